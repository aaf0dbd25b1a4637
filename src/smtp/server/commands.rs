//! From a line to what it does: the table of commands, and those that need nobody's word.
//!
//! Its place: the half of [`Server`] that reads lines.  Commands whose answer somebody else knows
//! have files of their own.

use std::time::Instant;

use super::tls::is_free_of_tls;
use super::{Client, Event, Handled, Haste, Phase, Refusal, Server};
use crate::limits;
use crate::smtp::address::{AddressError, Utf8};
use crate::smtp::command::{self, Command, CommandError, Extensions};
use crate::smtp::line::LineStep;
use crate::smtp::reply;
use crate::smtp::xclient;

impl Server {
    pub(super) fn command_bytes(&mut self, now: Instant, input: &mut [u8]) -> Handled {
        self.lines.set_limit(self.line_limit(input));
        match self.lines.next(input) {
            LineStep::Incomplete => Handled { consumed: 0, event: Event::NeedInput },
            LineStep::Discard { consumed } => {
                self.long_line(&input[..consumed]);
                Handled { consumed, event: Event::NeedInput }
            }
            LineStep::TooLong { consumed } => {
                self.deadline = now + limits::SERVER_COMMAND;
                self.long_line(&input[..consumed]);
                if matches!(self.phase, Phase::LongLine) {
                    self.phase = Phase::Command;
                    self.fault(Refusal::LineTooLong);
                }
                Handled { consumed, event: Event::Continue }
            }
            LineStep::Line { length, consumed } => {
                self.deadline = now + limits::SERVER_COMMAND;
                self.watch_haste();
                let event = match command::parse(&input[..length], &self.extensions()) {
                    Ok(command) => self.command(now, command),
                    Err(CommandError::Bdat { skip_octets }) => self.skip_bdat(now, skip_octets),
                    Err(error) => self.refused(Refusal::from(&error)),
                };
                Handled { consumed, event }
            }
        }
    }

    /// A command has come; the replies that wait were not sent yet, so it was sent without them.
    fn watch_haste(&mut self) {
        let is_extended = self.client.as_ref().is_some_and(|client| client.extended);
        self.haste = match self.haste {
            Haste::Forbidden if !self.replies.is_empty() => Haste::Caught,
            Haste::Forbidden if is_extended => Haste::Allowed,
            haste => haste,
        };
    }

    /// Looks at the front of a line that is over the limit, when it comes for the first time.
    ///
    /// The line is not obeyed, but behind two kinds of it come octets that are no commands: BDAT,
    /// whose chunk nobody can count now, and the request of another protocol.
    fn long_line(&mut self, octets: &[u8]) {
        if matches!(self.phase, Phase::LongLine) {
            return;
        }
        self.phase = Phase::LongLine;
        // As much as is there in any case when a line proves too long: its last octet may wait.
        let front = &octets[..octets.len().min(limits::COMMAND_LINE - 1)];
        match command::parse(front, &self.extensions()) {
            Ok(Command::Bdat { .. }) | Err(CommandError::Bdat { .. }) => {
                self.close(Refusal::LineTooLong);
            }
            Ok(Command::OtherProtocol) => self.close(Refusal::OtherProtocol),
            _ => {}
        }
    }

    /// The table of commands: each does its own checks and says what happens next.
    fn command(&mut self, now: Instant, command: Command<'_>) -> Event {
        if self.lacks_tls() && !is_free_of_tls(&command) {
            return self.refused(Refusal::NeedsTls);
        }
        match command {
            Command::Helo { name } => self.hello(name, false),
            Command::Ehlo { name } => self.hello(name, true),
            Command::Mail(mail) => self.mail(mail),
            Command::Rcpt(recipient) => self.rcpt(recipient),
            Command::Data => self.data(now),
            Command::Bdat { octets, last } => self.bdat(now, octets, last),
            Command::Rset => self.idle(reply::OK, true),
            Command::Noop => self.idle(reply::OK, false),
            Command::Help => self.idle(reply::HELP, false),
            Command::Vrfy { argument } => self.inquire(false, argument),
            Command::Expn { argument } => self.inquire(true, argument),
            Command::Quit => self.quit(),
            Command::Etrn(node) => self.etrn(node),
            Command::Xclient { arguments } => self.xclient(arguments),
            Command::NotImplemented => self.refused(Refusal::NotImplemented),
            Command::StartTls => self.start_tls(now),
            Command::Auth { mechanism, initial } => self.auth(now, mechanism, initial),
            Command::OtherProtocol => {
                self.close(Refusal::OtherProtocol);
                Event::Close
            }
            Command::Unknown => self.refused(Refusal::UnknownCommand),
        }
    }

    fn hello(&mut self, name: &str, extended: bool) -> Event {
        let known = self.client.take().unwrap_or_default();
        let secured = self.is_secured;
        self.client = Some(Client { helo: name.into(), extended, secured, ..known });
        if extended {
            let size = format!("SIZE {}", self.config.message_size);
            // RFC 9422 section 4.2: who knows it splits its recipients before we refuse some.
            let limits = format!("LIMITS RCPTMAX={}", self.config.recipients);
            let keywords = [
                "PIPELINING",
                &size,
                "8BITMIME",
                "SMTPUTF8",
                "ENHANCEDSTATUSCODES",
                "DSN",
                "CHUNKING",
                &limits,
            ];
            let require_tls = self.is_secured.then_some("REQUIRETLS");
            let etrn = self.may_start_queues.then_some("ETRN");
            let xclient = self.may_introduce.then_some(xclient::KEYWORD);
            let starttls = self.offers_tls().then_some("STARTTLS");
            let auth = self.auth_keyword();
            let keywords = keywords.into_iter().chain(etrn).chain(auth.as_deref());
            let keywords = keywords.chain(starttls).chain(require_tls).chain(xclient);
            let [vrfy, expn] = self.inquiry_keywords();
            let keywords = keywords.chain(vrfy).chain(expn).chain(["HELP"]);
            self.replies.extended_hello(&self.config.hostname, keywords);
        } else {
            self.replies.hello(&self.config.hostname);
        }
        self.idled();
        // EHLO in a transaction ends it as RSET does (RFC 5321 section 4.1.4).
        self.reset()
    }

    /// What the client may use: all of it, also after HELO, for a client that knows a parameter
    /// means it.
    fn extensions(&self) -> Extensions {
        let smtputf8 = self.transaction.as_ref().is_some_and(|t| t.parameters.smtputf8);
        Extensions {
            size: true,
            eight_bit_mime: true,
            smtputf8: true,
            dsn: true,
            auth: self.config.auth.is_some(),
            // RFC 8689 section 2: not in clear, where the message has gone unprotected already.
            require_tls: self.is_secured,
            transaction: if smtputf8 { Utf8::Allowed } else { Utf8::Refused },
        }
    }

    fn quit(&mut self) -> Event {
        self.replies.push(reply::BYE);
        self.transaction = None;
        self.phase = Phase::Closed { has_quit: true };
        Event::Close
    }

    /// Commands that do nothing for a message.
    pub(super) fn idle(&mut self, reply: reply::Reply, resets: bool) -> Event {
        self.replies.push(reply);
        self.idled();
        if resets { self.reset() } else { Event::Continue }
    }

    pub(super) fn idled(&mut self) {
        self.idle_commands += 1;
        if self.idle_commands > limits::IDLE_COMMANDS {
            self.close(Refusal::TooManyErrors);
        }
    }

    fn reset(&mut self) -> Event {
        match self.transaction.take() {
            Some(transaction) if transaction.chunking.is_some() => Event::DropBody,
            _ => Event::Continue,
        }
    }
}

impl From<&CommandError> for Refusal {
    fn from(error: &CommandError) -> Refusal {
        match error {
            CommandError::TooLong => Refusal::LineTooLong,
            CommandError::Nul | CommandError::BareNewline => Refusal::BareNewlineInCommand,
            CommandError::ControlCharacter | CommandError::EightBit => Refusal::Syntax,
            CommandError::Syntax { .. } | CommandError::Bdat { .. } => Refusal::BadArgument,
            CommandError::ReversePath(AddressError::Utf8Refused)
            | CommandError::ForwardPath(AddressError::Utf8Refused) => Refusal::NeedsSmtpUtf8,
            CommandError::ReversePath(_) => Refusal::BadSender,
            CommandError::ForwardPath(_) => Refusal::BadRecipient,
            CommandError::UnknownParameter | CommandError::BinaryMime => Refusal::UnknownParameter,
            CommandError::DuplicateParameter { .. } | CommandError::BadParameter { .. } => {
                Refusal::BadParameter
            }
        }
    }
}
