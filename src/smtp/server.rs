//! One SMTP session as its server sees it: a state machine without I/O (RFC 5321, with
//! PIPELINING, SIZE, 8BITMIME, SMTPUTF8, ENHANCEDSTATUSCODES, DSN and CHUNKING).
//!
//! Octets and time go in through [`Server::handle_bytes`] and [`Server::handle_timeout`]; what is
//! to be done comes back as an [`Event`], what is to be sent gathers in [`Server::replies`].  The
//! machine never holds a body: it says which octets of the input belong to one.
//!
//! It stops where somebody else must decide: at [`Event::CheckRecipient`] until
//! [`Server::recipient_checked`], at [`Event::EndOfMessage`] until [`Server::stored`].  Until
//! then it must be given no input; so the replies stay in the order of the commands.
//!
//! Invariant: a message ends at CRLF.CRLF or at the last octet of BDAT LAST and nowhere else, and
//! whatever was refused is still read to that end, so that no octet of a body is ever taken for
//! a command.

use std::rc::Rc;
use std::time::Instant;

use super::address::{AddressError, ForwardPath, ReversePath, Utf8};
use super::body::BodyForm;
use super::command::{self, Command, CommandError, Extensions, Mail};
use super::data::{ChunkScanner, DataScanner, Scanned};
use super::header::HeaderWatch;
use super::line::{LineScanner, LineStep};
use super::reply::{self, Refusal, Replies};
use crate::config::{BareNewline, RouteIndex};
use crate::limits;
use crate::message::{
    BodyFlags, BodySummary, Durability, Envelope, MailParameters, MessageId, Recipient,
};

/// What a listener tells its sessions.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Our name in the greeting.
    pub hostname: Box<str>,
    /// The largest message, in octets.
    pub message_size: u64,
    /// The most recipients of a transaction.
    pub recipients: usize,
    /// Received fields from which a message counts as looping.
    pub received: u32,
    /// What happens to a bare CR or LF.
    pub bare_newline: BareNewline,
}

/// What the driver is to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Send the replies, then read more.
    NeedInput,
    /// Call again with the rest of the input.
    Continue,
    /// The octets consumed are the next ones of the body.
    Body,
    /// The body so far is of no use: its transaction was refused or given up.
    DropBody,
    /// Decide on [`Server::recipient_in_question`], then call [`Server::recipient_checked`].
    CheckRecipient,
    /// The body is whole: [`Server::take_message`], keep it, then call [`Server::stored`].
    EndOfMessage,
    /// Send the replies, then close.
    Close,
}

/// What one call did with its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handled {
    /// Octets of the input that are used up.
    pub consumed: usize,
    /// What to do about it.
    pub event: Event,
}

/// A whole message with its envelope; the body is where the driver put it.
#[derive(Debug)]
pub struct ReceivedMessage {
    /// Who sends it to whom.
    pub envelope: Envelope,
    /// For each recipient the route that the driver named when it was accepted.
    pub routes: Vec<RouteIndex>,
    /// What the scan of the body found.
    pub summary: BodySummary,
}

/// What is known of the client beyond its address.
#[derive(Debug, Clone, Default)]
pub struct Client {
    /// The argument of HELO or EHLO.
    pub helo: Box<str>,
    /// It said EHLO.
    pub extended: bool,
    /// The session runs over TLS (a later step of this server).
    pub secured: bool,
    /// Who it has proved to be (a later step of this server).
    pub authenticated: Option<Box<str>>,
}

/// The session.
pub struct Server {
    config: Rc<ServerConfig>,
    phase: Phase,
    lines: LineScanner,
    client: Option<Client>,
    transaction: Option<Box<Transaction>>,
    replies: Replies,
    refusals: Vec<Refusal>,
    errors: u32,
    idle_commands: u32,
    deadline: Instant,
}

/// What the next octet is.
enum Phase {
    /// Part of a command.
    Command,
    /// Nothing, until the recipient is decided on.
    Recipient(Box<Recipient>),
    /// Part of a body that DATA began.
    Data { scanner: Box<DataScanner>, started: Instant, refusal: Option<Refusal> },
    /// The end of that body: so many octets of it.
    DataEnd { octets: usize, summary: BodySummary, refusal: Option<Refusal> },
    /// Part of a chunk.
    Chunk { left: u64, last: bool, started: Instant },
    /// Part of a chunk that belongs to no message.
    Skip { left: u64, started: Instant },
    /// Nothing, until the message is stored.
    Storing { summary: BodySummary },
    /// Nothing any more.
    Closed,
}

/// From MAIL to the end of the message.
struct Transaction {
    reverse_path: ReversePath,
    parameters: MailParameters,
    recipients: Vec<Recipient>,
    routes: Vec<RouteIndex>,
    /// There once the body has begun.
    header: Option<HeaderWatch>,
    chunking: Option<Chunking>,
}

/// The part of a transaction that exists once BDAT was given.
struct Chunking {
    scanner: ChunkScanner,
    /// The first thing that was wrong; the rest of the chunks are read and thrown away.
    refusal: Option<Refusal>,
}

impl Server {
    /// A session that has just been accepted; the greeting waits in its replies.
    pub fn new(config: Rc<ServerConfig>, now: Instant) -> Server {
        let mut replies = Replies::default();
        replies.greet(&config.hostname);
        Server {
            config,
            phase: Phase::Command,
            lines: LineScanner::default(),
            client: None,
            transaction: None,
            replies,
            refusals: Vec::new(),
            errors: 0,
            idle_commands: 0,
            deadline: now + limits::SERVER_COMMAND,
        }
    }

    /// Does as much with `input` as it can; call again with what it left, and with the rest of
    /// the stream behind it.
    pub fn handle_bytes(&mut self, now: Instant, input: &mut [u8]) -> Handled {
        let mut consumed = 0;
        loop {
            let rest = &mut input[consumed..];
            let step = match &mut self.phase {
                Phase::Command => self.command_bytes(now, rest),
                // A body is handed over in a call of its own, so that it begins the input.
                _ if consumed > 0 => Handled { consumed: 0, event: Event::Continue },
                Phase::Data { .. } => self.data_bytes(now, rest),
                Phase::DataEnd { .. } => self.data_end(now, rest.len()),
                Phase::Chunk { .. } => self.chunk_bytes(now, rest),
                Phase::Skip { .. } => self.skip_bytes(now, rest),
                Phase::Recipient(_) => Handled { consumed: 0, event: Event::CheckRecipient },
                Phase::Storing { .. } => Handled { consumed: 0, event: Event::EndOfMessage },
                Phase::Closed => Handled { consumed: rest.len(), event: Event::Close },
            };
            consumed += step.consumed;
            let handled = Handled { consumed, event: step.event };
            let goes_on = matches!(self.phase, Phase::Command)
                && step.event == Event::Continue
                && self.replies.len() < FLUSH_AT;
            if !goes_on {
                return handled;
            }
        }
    }

    /// The deadline passed: the session ends, with a word to the client.
    pub fn handle_timeout(&mut self) {
        self.close(Refusal::TimedOut);
    }

    /// The service is stopping: the session ends if it is between two transactions.
    /// Tells whether it did.
    pub fn handle_shutdown(&mut self) -> bool {
        let between = matches!(self.phase, Phase::Command) && self.transaction.is_none();
        if between {
            self.close(Refusal::ShuttingDown);
        }
        between
    }

    /// The service is stopping and the client was waited for long enough.
    pub fn handle_shutdown_now(&mut self) {
        self.close(Refusal::ShuttingDown);
    }

    /// Ends the session for a reason that is not in its own commands.
    pub fn close(&mut self, refusal: Refusal) {
        self.refuse(refusal);
        self.transaction = None;
        self.phase = Phase::Closed;
    }

    /// When the next octets must have come.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The replies that wait to be sent.
    pub fn replies(&mut self) -> &mut Replies {
        &mut self.replies
    }

    /// What was refused since the last call, for events and metrics.
    pub fn take_refusals(&mut self) -> Vec<Refusal> {
        std::mem::take(&mut self.refusals)
    }

    /// What the client said of itself, once it has said HELO or EHLO.
    pub fn client(&self) -> Option<&Client> {
        self.client.as_ref()
    }

    /// Whether the next octets belong to a body that is kept.
    pub fn in_body(&self) -> bool {
        matches!(self.phase, Phase::Data { .. } | Phase::Chunk { .. })
    }

    /// Whether a transaction is under way.
    pub fn in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    /// The sender of the transaction under way.
    pub fn reverse_path(&self) -> Option<&ReversePath> {
        self.transaction.as_ref().map(|transaction| &transaction.reverse_path)
    }

    /// The recipient that waits at [`Event::CheckRecipient`].
    pub fn recipient_in_question(&self) -> Option<&ForwardPath> {
        match &self.phase {
            Phase::Recipient(recipient) => Some(&recipient.path),
            _ => None,
        }
    }

    /// Decides on the recipient in question: where its mail goes, or why not.
    pub fn recipient_checked(&mut self, now: Instant, verdict: Result<RouteIndex, Refusal>) {
        let phase = std::mem::replace(&mut self.phase, Phase::Command);
        self.deadline = now + limits::SERVER_COMMAND;
        let (Phase::Recipient(recipient), Some(transaction)) = (phase, &mut self.transaction)
        else {
            return;
        };
        match verdict {
            Ok(route) => {
                transaction.recipients.push(*recipient);
                transaction.routes.push(route);
                self.replies.push(reply::RECIPIENT_OK);
            }
            Err(refusal) => self.fault(refusal),
        }
    }

    /// The message that waits at [`Event::EndOfMessage`]; `None` at any other time.
    pub fn take_message(&mut self) -> Option<ReceivedMessage> {
        let Phase::Storing { summary } = self.phase else { return None };
        let transaction = self.transaction.take()?;
        Some(ReceivedMessage {
            envelope: Envelope {
                reverse_path: transaction.reverse_path,
                parameters: transaction.parameters,
                recipients: transaction.recipients,
            },
            routes: transaction.routes,
            summary,
        })
    }

    /// The fate of the message that was taken.
    pub fn stored(&mut self, now: Instant, result: Result<(MessageId, Durability), Refusal>) {
        self.phase = Phase::Command;
        self.transaction = None;
        self.deadline = now + limits::SERVER_COMMAND;
        match result {
            Ok((id, durability)) => {
                self.idle_commands = 0;
                self.replies.queued(id, durability);
            }
            Err(refusal) => self.refuse(refusal),
        }
    }

    // ---- commands ------------------------------------------------------------------------

    fn command_bytes(&mut self, now: Instant, input: &mut [u8]) -> Handled {
        match self.lines.next(input) {
            LineStep::Incomplete => Handled { consumed: 0, event: Event::NeedInput },
            LineStep::Discard { consumed } => Handled { consumed, event: Event::NeedInput },
            LineStep::TooLong { consumed } => {
                self.deadline = now + limits::SERVER_COMMAND;
                self.fault(Refusal::LineTooLong);
                self.after_command(consumed, Event::Continue)
            }
            LineStep::Line { length, consumed } => {
                self.deadline = now + limits::SERVER_COMMAND;
                let event = match command::parse(&input[..length], &self.extensions()) {
                    Ok(command) => self.command(now, command),
                    Err(CommandError::Bdat { skip_octets }) => self.skip_bdat(now, skip_octets),
                    Err(error) => self.refused(Refusal::from(&error)),
                };
                self.after_command(consumed, event)
            }
        }
    }

    fn after_command(&mut self, consumed: usize, event: Event) -> Handled {
        if self.errors > limits::SESSION_ERRORS || self.idle_commands > limits::IDLE_COMMANDS {
            self.close(Refusal::TooManyErrors);
        }
        let event = if matches!(self.phase, Phase::Closed) { Event::Close } else { event };
        Handled { consumed, event }
    }

    /// The table of commands: each does its own checks and says what happens next.
    fn command(&mut self, now: Instant, command: Command<'_>) -> Event {
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
            Command::Vrfy { .. } => self.idle(reply::VRFY, false),
            Command::Quit => self.quit(),
            Command::Expn { .. } | Command::Etrn { .. } | Command::NotImplemented => {
                self.refused(Refusal::NotImplemented)
            }
            Command::StartTls | Command::Auth { .. } => self.refused(Refusal::NotOffered),
            Command::OtherProtocol => {
                self.close(Refusal::OtherProtocol);
                Event::Close
            }
            Command::Unknown => self.refused(Refusal::UnknownCommand),
        }
    }

    fn hello(&mut self, name: &str, extended: bool) -> Event {
        self.idle_commands += 1;
        let known = self.client.take().unwrap_or_default();
        self.client = Some(Client { helo: name.into(), extended, ..known });
        if extended {
            let size = format!("SIZE {}", self.config.message_size);
            let keywords = [
                "PIPELINING",
                &size,
                "8BITMIME",
                "SMTPUTF8",
                "ENHANCEDSTATUSCODES",
                "DSN",
                "CHUNKING",
                "HELP",
            ];
            self.replies.extended_hello(&self.config.hostname, keywords);
        } else {
            self.replies.hello(&self.config.hostname);
        }
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
            auth: false,
            transaction: if smtputf8 { Utf8::Allowed } else { Utf8::Refused },
        }
    }

    fn mail(&mut self, mail: Mail) -> Event {
        if self.client.is_none() {
            return self.refused(Refusal::NeedsHello);
        }
        if self.transaction.is_some() {
            return self.refused(Refusal::NestedMail);
        }
        if mail.size_octets.is_some_and(|octets| octets > self.config.message_size) {
            return self.refused(Refusal::TooLarge);
        }
        self.transaction = Some(Box::new(Transaction {
            reverse_path: mail.path,
            parameters: mail.parameters,
            recipients: Vec::new(),
            routes: Vec::new(),
            header: None,
            chunking: None,
        }));
        self.replies.push(reply::SENDER_OK);
        Event::Continue
    }

    fn rcpt(&mut self, recipient: Recipient) -> Event {
        let Some(transaction) = &self.transaction else {
            return self.refused(Refusal::NeedsMail);
        };
        if transaction.chunking.is_some() {
            return self.refused(Refusal::ChunkingUnderWay);
        }
        if transaction.recipients.len() >= self.config.recipients {
            // Not counted as an error: a sender with more recipients is told so once for each,
            // and sends the rest in its next transaction.
            self.refuse(Refusal::TooManyRecipients);
            return Event::Continue;
        }
        self.phase = Phase::Recipient(Box::new(recipient));
        Event::CheckRecipient
    }

    fn data(&mut self, now: Instant) -> Event {
        let Some(transaction) = &mut self.transaction else {
            return self.refused(Refusal::NeedsMail);
        };
        if transaction.chunking.is_some() {
            return self.refused(Refusal::ChunkingUnderWay);
        }
        if transaction.recipients.is_empty() {
            return self.refused(Refusal::NeedsRecipient);
        }
        transaction.header = Some(HeaderWatch::new(BodyForm::Data));
        self.replies.push(reply::START_DATA);
        self.deadline = now + limits::SERVER_DATA_BLOCK;
        self.phase = Phase::Data { scanner: Box::default(), started: now, refusal: None };
        Event::Continue
    }

    fn bdat(&mut self, now: Instant, octets: u64, last: bool) -> Event {
        // The octets of a chunk follow whatever we think of it; one that is far beyond what we
        // would take is not waited for.
        if octets > self.config.message_size.saturating_mul(2) {
            self.close(Refusal::TooLarge);
            return Event::Close;
        }
        self.deadline = now + limits::SERVER_DATA_BLOCK;
        self.phase = Phase::Chunk { left: octets, last, started: now };
        if let Some(transaction) = &mut self.transaction {
            let no_recipient = transaction.recipients.is_empty();
            transaction.header.get_or_insert_with(|| HeaderWatch::new(BodyForm::Bdat));
            let chunking = transaction.chunking.get_or_insert_with(|| Chunking {
                scanner: ChunkScanner::new(),
                refusal: no_recipient.then_some(Refusal::NeedsRecipient),
            });
            let size = chunking.scanner.octets().saturating_add(octets);
            // Once something is wrong, the octets are read and not scanned any more.
            if chunking.refusal.is_none() {
                if size > self.config.message_size {
                    chunking.refusal = Some(Refusal::TooLarge);
                    return Event::DropBody;
                }
                chunking.scanner.begin_chunk(octets);
            }
        }
        Event::Continue
    }

    /// A BDAT that cannot be obeyed: its octets follow all the same, and are no commands.
    fn skip_bdat(&mut self, now: Instant, octets: Option<u64>) -> Event {
        let most = self.config.message_size.saturating_mul(2);
        let Some(octets) = octets.filter(|&octets| octets <= most) else {
            self.close(Refusal::BadArgument);
            return Event::Close;
        };
        self.phase = Phase::Skip { left: octets, started: now };
        Event::Continue
    }

    fn quit(&mut self) -> Event {
        self.replies.push(reply::BYE);
        self.transaction = None;
        self.phase = Phase::Closed;
        Event::Close
    }

    /// Commands that do nothing for a message.
    fn idle(&mut self, reply: reply::Reply, resets: bool) -> Event {
        self.idle_commands += 1;
        self.replies.push(reply);
        if resets { self.reset() } else { Event::Continue }
    }

    fn reset(&mut self) -> Event {
        match self.transaction.take() {
            Some(transaction) if transaction.chunking.is_some() => Event::DropBody,
            _ => Event::Continue,
        }
    }

    // ---- bodies --------------------------------------------------------------------------

    fn data_bytes(&mut self, now: Instant, input: &mut [u8]) -> Handled {
        let (Phase::Data { scanner, started, refusal }, Some(transaction)) =
            (&mut self.phase, &mut self.transaction)
        else {
            return Handled { consumed: 0, event: Event::Continue };
        };
        if !input.is_empty() {
            self.deadline = data_deadline(now, *started);
        }
        let Scanned { consumed, body, end } = match self.config.bare_newline {
            BareNewline::Reject => scanner.scan(input),
            BareNewline::Space => scanner.scan_replacing(input),
        };
        if let Some(header) = &mut transaction.header {
            header.feed(&input[..body]);
        }
        let summary = scanner.summary();
        let keeps = refusal.is_none();
        if keeps && summary.octets > self.config.message_size {
            *refusal = Some(Refusal::TooLarge);
        }
        let fails_now = keeps && refusal.is_some();
        let far_too_large = summary.octets > self.config.message_size.saturating_mul(4);
        if end {
            let refusal = refusal.take().or_else(|| transaction.objection(&self.config, &summary));
            let octets = consumed - body;
            self.phase = Phase::DataEnd { octets, summary, refusal };
        } else if far_too_large {
            // Somebody who sends without end is not listened to for an hour.
            self.close(Refusal::TooLarge);
            return Handled { consumed: input.len(), event: Event::Close };
        }
        let event = match (fails_now, keeps && body > 0, end) {
            (true, ..) => Event::DropBody,
            (_, true, _) => Event::Body,
            (.., true) => Event::Continue,
            _ => Event::NeedInput,
        };
        Handled { consumed: body, event }
    }

    fn data_end(&mut self, now: Instant, available: usize) -> Handled {
        let Phase::DataEnd { octets, summary, refusal } = &mut self.phase else {
            return Handled { consumed: 0, event: Event::Continue };
        };
        debug_assert!(available >= *octets, "the driver keeps what was not consumed");
        let consumed = *octets;
        let (summary, refusal) = (*summary, refusal.take());
        let event = self.end_of_message(now, summary, refusal);
        Handled { consumed, event }
    }

    fn chunk_bytes(&mut self, now: Instant, input: &mut [u8]) -> Handled {
        let Phase::Chunk { left, last, started } = &mut self.phase else {
            return Handled { consumed: 0, event: Event::Continue };
        };
        if !input.is_empty() {
            self.deadline = data_deadline(now, *started);
        }
        let octets = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
        *left -= octets as u64;
        let (left, last) = (*left, *last);
        let body = &mut input[..octets];
        let chunking = self.transaction.as_mut().and_then(|transaction| {
            let chunking = transaction.chunking.as_mut()?;
            if chunking.refusal.is_none() {
                chunking.scanner.scan(body);
                if let Some(header) = &mut transaction.header {
                    header.feed(body);
                }
            }
            Some(chunking)
        });
        let keeps = chunking.is_some_and(|chunking| chunking.refusal.is_none());
        if octets > 0 && keeps {
            return Handled { consumed: octets, event: Event::Body };
        }
        if left > 0 {
            return Handled { consumed: octets, event: Event::NeedInput };
        }
        Handled { consumed: octets, event: self.chunk_end(now, last) }
    }

    fn skip_bytes(&mut self, now: Instant, input: &[u8]) -> Handled {
        let Phase::Skip { left, started } = &mut self.phase else {
            return Handled { consumed: 0, event: Event::Continue };
        };
        if !input.is_empty() {
            self.deadline = data_deadline(now, *started);
        }
        let consumed = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
        *left -= consumed as u64;
        if *left > 0 {
            return Handled { consumed, event: Event::NeedInput };
        }
        self.phase = Phase::Command;
        self.deadline = now + limits::SERVER_COMMAND;
        let event = self.refused(Refusal::BadArgument);
        self.after_command(consumed, event)
    }

    fn chunk_end(&mut self, now: Instant, last: bool) -> Event {
        self.phase = Phase::Command;
        self.deadline = now + limits::SERVER_COMMAND;
        let Some(transaction) = &mut self.transaction else {
            return self.refused(Refusal::NeedsMail);
        };
        let Some(chunking) = &mut transaction.chunking else {
            return self.refused(Refusal::NeedsMail);
        };
        if let Some(refusal) = chunking.refusal.replace(Refusal::ChunkingFailed) {
            // Whatever failed first is told once; the transaction is then good for RSET only
            // (RFC 3030 section 2).
            return self.refused(refusal);
        }
        chunking.refusal = None;
        if !last {
            self.replies.push(reply::CHUNK_OK);
            return Event::Continue;
        }
        let summary = chunking.scanner.summary();
        let refusal = transaction.objection(&self.config, &summary);
        self.end_of_message(now, summary, refusal)
    }

    fn end_of_message(
        &mut self,
        now: Instant,
        summary: BodySummary,
        refusal: Option<Refusal>,
    ) -> Event {
        self.deadline = now + limits::SERVER_COMMAND;
        match refusal {
            Some(refusal) => {
                self.phase = Phase::Command;
                self.transaction = None;
                self.refuse(refusal);
                Event::DropBody
            }
            None => {
                self.phase = Phase::Storing { summary };
                Event::EndOfMessage
            }
        }
    }

    // ---- refusing ------------------------------------------------------------------------

    fn refused(&mut self, refusal: Refusal) -> Event {
        self.fault(refusal);
        Event::Continue
    }

    /// A refusal that counts towards the end of the session.
    fn fault(&mut self, refusal: Refusal) {
        self.errors += 1;
        self.refuse(refusal);
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.replies.refuse(&refusal);
        self.refusals.push(refusal);
    }
}

impl Transaction {
    /// What speaks against a message that has come to its end.
    fn objection(&self, config: &ServerConfig, summary: &BodySummary) -> Option<Refusal> {
        let bare = [BodyFlags::BARE_CR, BodyFlags::BARE_LF];
        if bare.iter().any(|&flag| summary.flags.contains(flag)) {
            return Some(Refusal::BareNewline);
        }
        let received = self.header.as_ref().map_or(0, |header| header.facts().received);
        (received > config.received).then_some(Refusal::Loop)
    }
}

/// The end of the wait for the next piece of a body: a block's time, within the whole body's.
fn data_deadline(now: Instant, started: Instant) -> Instant {
    (now + limits::SERVER_DATA_BLOCK).min(started + limits::SERVER_DATA_TOTAL)
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

/// Replies are sent before more commands are read once this many octets of them wait, so that
/// a client that sends and never reads fills its own socket and not our memory.
const FLUSH_AT: usize = 16 * 1024;
