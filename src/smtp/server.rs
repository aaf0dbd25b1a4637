//! One SMTP session as its server sees it: a state machine without I/O (RFC 5321, with
//! PIPELINING, SIZE, 8BITMIME, SMTPUTF8, ENHANCEDSTATUSCODES, DSN, CHUNKING, LIMITS, ETRN,
//! STARTTLS, REQUIRETLS, AUTH and XCLIENT).
//!
//! Octets and time go in through [`Server::handle_bytes`] and [`Server::handle_timeout`]; what is
//! to be done comes back as an [`Event`], what is to be sent gathers in [`Server::replies`].  The
//! machine never holds a body: it says which octets of the input belong to one.
//!
//! It stops where somebody else must decide: at [`Event::CheckRecipient`] until
//! [`Server::recipient_checked`], at [`Event::EndOfMessage`] until [`Server::stored`], at
//! [`Event::StartQueue`] until [`Server::queue_started`], at [`Event::Introduce`] until
//! [`Server::introduced`], at [`Event::LookUp`] until
//! [`Server::inquiry_answered`], at [`Event::StartTls`] until
//! [`Server::tls_started`], at [`Event::Authenticate`] until [`Server::auth_answered`], at
//! [`Event::CheckSender`] until [`Server::sender_checked`].  Until then it must be given no input;
//! so the replies stay in the order of the commands.
//!
//! Invariant: a message ends at CRLF.CRLF or at the last octet of BDAT LAST and nowhere else, and
//! whatever was refused is still read to that end, so that no octet of a body is ever taken for
//! a command.  Where nobody can tell that end (a BDAT whose number cannot be read), and where
//! reading to it would cost too much (see `server/body.rs`), the session ends instead.
//!
//! A second one: the replies, the message and the end of the session depend on the octets alone,
//! never on how they were cut into reads.

use std::rc::Rc;
use std::time::Instant;

mod auth;
mod body;
mod recipients;
#[cfg(test)]
mod tests;

use super::address::{AddressError, ForwardPath, ReversePath, Utf8};
use super::command::{self, Command, CommandError, Extensions, Mail, Node};
use super::data::DataScanner;
use super::header::{HeaderFacts, HeaderWatch};
use super::line::{LineScanner, LineStep};
use super::reply::{self, QueueStart, Refusal, Replies};
use super::xclient::{self, Introduction};
use crate::config::{BareNewline, ListenerTls, RouteIndex};
use crate::limits;
use crate::message::{BodySummary, Durability, Envelope, MailParameters, MessageId, Recipient};
use body::Chunking;

use auth::Pending;
pub use auth::{AuthAnswer, AuthOffer, Response};
pub use recipients::{Inquiry, MayInquire};

/// What a listener tells its sessions.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Our name in the greeting.
    pub hostname: Box<str>,
    /// The largest message, in octets.
    pub message_size: u64,
    /// The most recipients of a transaction.
    pub recipients: usize,
    /// The most Received fields that a message may have; with one more it counts as looping.
    pub received: u32,
    /// What happens to a bare CR or LF in DATA.  In BDAT it refuses the message always: a client
    /// that counts its octets is no old one that needs help, and its chunks are not ours to alter.
    pub bare_newline: BareNewline,
    /// Whether sessions are encrypted; with `Implicit` they are when they begin.
    pub tls: ListenerTls,
    /// What of AUTH is offered; `None` where nobody can log in.
    pub auth: Option<AuthOffer>,
    /// Whether the driver decides on senders, at [`Event::CheckSender`].
    pub checks_senders: bool,
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
    /// Take [`Server::response`] further, then call [`Server::auth_answered`].
    Authenticate,
    /// Decide on [`Server::sender_in_question`], then call [`Server::sender_checked`].
    CheckSender,
    /// Decide on [`Server::recipient_in_question`], then call [`Server::recipient_checked`] or
    /// [`Server::recipient_expanded`].
    CheckRecipient,
    /// Look up who [`Server::inquiry`] asks for, then call [`Server::inquiry_answered`].
    LookUp,
    /// The body is whole: [`Server::take_message`], keep it, then call [`Server::stored`].
    EndOfMessage,
    /// Start the queue for [`Server::node_in_question`], then call [`Server::queue_started`].
    StartQueue,
    /// Decide on [`Server::introduction`], then call [`Server::introduced`].
    Introduce,
    /// Send the replies, throw away whatever else has come, shake hands, then call
    /// [`Server::tls_started`]; close if that fails.
    StartTls,
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
    /// What a look at its header section found.
    pub header: HeaderFacts,
    /// Some of its recipients are not those that the client named, and are not to be shown to it.
    pub is_expanded: bool,
}

/// Something that was refused, for events and metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub refusal: Refusal,
    /// The recipient, if it was one.
    pub recipient: Option<ForwardPath>,
}

/// What is known of the client beyond its address.
#[derive(Debug, Clone, Default)]
pub struct Client {
    /// The argument of HELO or EHLO.
    pub helo: Box<str>,
    /// It said EHLO.
    pub extended: bool,
    /// The session runs over TLS.
    pub secured: bool,
    /// The user that it has proved to be.
    pub authenticated: Option<Box<str>>,
}

/// The session.
pub struct Server {
    config: Rc<ServerConfig>,
    phase: Phase,
    lines: LineScanner,
    is_secured: bool,
    /// The connection has what SCRAM-PLUS binds to.
    can_bind: bool,
    auth_failures: u32,
    client: Option<Client>,
    /// The client may send ETRN.
    may_start_queues: bool,
    /// The client is a proxy, which may say for whom it speaks.
    may_introduce: bool,
    may_inquire: MayInquire,
    haste: Haste,
    transaction: Option<Box<Transaction>>,
    /// Those that MAIL has begun so far.
    transactions: u32,
    replies: Replies,
    refusals: Vec<Refused>,
    errors: u32,
    idle_commands: u32,
    deadline: Instant,
}

/// What the next octet is.
enum Phase {
    /// Part of a command.
    Command,
    /// Part of a command that is over the limit already.
    LongLine,
    /// Nothing, until the response is taken further.
    Authenticating(Box<Pending>),
    /// Part of the client's response to a challenge.
    Response(Box<Pending>),
    /// Nothing, until the sender is decided on.
    Sender(Box<Mail>),
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
    /// Nothing, until the queue for this node is started.
    Starting(Node),
    /// Nothing, until the client is changed for this one.
    Introducing(Box<Introduction>),
    /// Nothing, until somebody has looked.
    Inquiry(Inquiry),
    /// Nothing, until the handshake is over.
    StartTls,
    /// Nothing, until the message is stored.
    Storing { summary: BodySummary },
    /// Nothing any more.
    Closed { timed_out: bool },
}

/// Whether the client may send commands without waiting for the replies (RFC 2920 section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Haste {
    /// Nobody has told it so yet.
    Forbidden,
    /// It has done so in spite of that.
    Caught,
    /// It has seen the reply to EHLO.
    Allowed,
}

/// From MAIL to the end of the message.
struct Transaction {
    reverse_path: ReversePath,
    parameters: MailParameters,
    recipients: Vec<Recipient>,
    routes: Vec<RouteIndex>,
    /// RCPTs that were accepted.  Where one stands for others, `recipients` has those.
    given: usize,
    /// Some of `recipients` were not named by the client, and may be there twice.
    is_expanded: bool,
    /// There once the body has begun.
    header: Option<HeaderWatch>,
    chunking: Option<Chunking>,
}

impl Server {
    /// A session that has just been accepted; the greeting waits in its replies.
    pub fn new(config: Rc<ServerConfig>, now: Instant) -> Server {
        let mut replies = Replies::default();
        replies.greet(&config.hostname);
        Server {
            is_secured: config.tls == ListenerTls::Implicit,
            config,
            phase: Phase::Command,
            lines: LineScanner::default(),
            client: None,
            can_bind: false,
            auth_failures: 0,
            may_start_queues: false,
            may_introduce: false,
            may_inquire: MayInquire::default(),
            haste: Haste::Forbidden,
            transaction: None,
            transactions: 0,
            replies,
            refusals: Vec::new(),
            errors: 0,
            idle_commands: 0,
            deadline: now + limits::SERVER_COMMAND,
        }
    }

    /// Lets the client send ETRN, which EHLO then offers (RFC 1985).  Its answer, and the
    /// connections that it makes this host open, are not for everybody.
    pub fn permit_etrn(&mut self) {
        self.may_start_queues = true;
    }

    /// Lets the client send XCLIENT, which EHLO then offers, also after it has sent one.
    pub fn permit_xclient(&mut self) {
        self.may_introduce = true;
    }

    /// Does as much with `input` as it can; call again with what it left, and with the rest of
    /// the stream behind it.
    pub fn handle_bytes(&mut self, now: Instant, input: &mut [u8]) -> Handled {
        let mut consumed = 0;
        loop {
            let rest = &mut input[consumed..];
            let step = match &mut self.phase {
                Phase::Command | Phase::LongLine => self.command_bytes(now, rest),
                Phase::Response(_) => self.response_bytes(now, rest),
                // A body is handed over in a call of its own, so that it begins the input.
                _ if consumed > 0 => Handled { consumed: 0, event: Event::Continue },
                Phase::Data { .. } => self.data_bytes(now, rest),
                Phase::DataEnd { .. } => self.data_end(now, rest.len()),
                Phase::Chunk { .. } => self.chunk_bytes(now, rest),
                Phase::Skip { .. } => self.skip_bytes(now, rest),
                Phase::Authenticating(_) => Handled { consumed: 0, event: Event::Authenticate },
                Phase::Sender(_) => Handled { consumed: 0, event: Event::CheckSender },
                Phase::Recipient(_) => Handled { consumed: 0, event: Event::CheckRecipient },
                Phase::Storing { .. } => Handled { consumed: 0, event: Event::EndOfMessage },
                Phase::Starting(_) => Handled { consumed: 0, event: Event::StartQueue },
                Phase::Introducing(_) => Handled { consumed: 0, event: Event::Introduce },
                Phase::Inquiry(_) => Handled { consumed: 0, event: Event::LookUp },
                Phase::StartTls => Handled { consumed: 0, event: Event::StartTls },
                Phase::Closed { .. } => Handled { consumed: rest.len(), event: Event::Close },
            };
            consumed += step.consumed;
            let goes_on = matches!(self.phase, Phase::Command | Phase::Response(_))
                && step.event == Event::Continue
                && self.replies.len() < limits::REPLIES_WAITING;
            if !goes_on {
                let closed = matches!(self.phase, Phase::Closed { .. });
                return Handled { consumed, event: if closed { Event::Close } else { step.event } };
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

    /// Tells the client why it is not served, in place of the greeting (RFC 5321 section 3.1).
    pub fn turn_away(&mut self, refusal: Refusal) {
        self.replies = Replies::default();
        self.close(refusal);
    }

    /// Ends the session and tells the client why; nothing if it has ended already.
    pub fn close(&mut self, refusal: Refusal) {
        if matches!(self.phase, Phase::Closed { .. }) {
            return;
        }
        self.phase = Phase::Closed { timed_out: refusal == Refusal::TimedOut };
        self.transaction = None;
        self.refuse(refusal);
    }

    /// Whether the session ended because its client was silent for too long.
    pub fn has_timed_out(&self) -> bool {
        matches!(self.phase, Phase::Closed { timed_out: true })
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
    pub fn take_refusals(&mut self) -> Vec<Refused> {
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

    /// Whether the next octets belong to a body that has not been refused yet.
    pub fn keeps_body(&self) -> bool {
        match &self.phase {
            Phase::Data { refusal, .. } => refusal.is_none(),
            Phase::Chunk { .. } => self.transaction.as_ref().is_some_and(|t| t.keeps_chunks()),
            _ => false,
        }
    }

    /// Whether the client has sent a command before the reply to the one before it, and before it
    /// was told in reply to EHLO that it may.
    ///
    /// What is found depends on how the octets were cut into reads; that an honest client is never
    /// found does not: nothing of it comes before the reply that it waits for has gone.
    pub fn was_hasty(&self) -> bool {
        self.haste == Haste::Caught
    }

    /// Whether a transaction is under way.
    pub fn in_transaction(&self) -> bool {
        self.transaction.is_some()
    }

    /// The sender of the transaction under way.
    pub fn reverse_path(&self) -> Option<&ReversePath> {
        self.transaction.as_ref().map(|transaction| &transaction.reverse_path)
    }

    /// The sender that waits at [`Event::CheckSender`].
    pub fn sender_in_question(&self) -> Option<&ReversePath> {
        match &self.phase {
            Phase::Sender(mail) => Some(&mail.path),
            _ => None,
        }
    }

    /// Decides on the sender in question.
    pub fn sender_checked(&mut self, now: Instant, verdict: Result<(), Refusal>) {
        if !matches!(self.phase, Phase::Sender(_)) {
            return;
        }
        self.deadline = now + limits::SERVER_COMMAND;
        let Phase::Sender(mail) = std::mem::replace(&mut self.phase, Phase::Command) else {
            return;
        };
        match verdict {
            Ok(()) => self.begin(*mail),
            Err(refusal) => self.fault(refusal),
        }
    }

    /// The recipient that waits at [`Event::CheckRecipient`].
    pub fn recipient_in_question(&self) -> Option<&ForwardPath> {
        self.rcpt_in_question().map(|recipient| &recipient.path)
    }

    /// The same with its parameters.
    pub fn rcpt_in_question(&self) -> Option<&Recipient> {
        match &self.phase {
            Phase::Recipient(recipient) => Some(recipient),
            _ => None,
        }
    }

    /// Whether that recipient would be the first of its transaction.
    pub fn is_first_recipient(&self) -> bool {
        self.transaction.as_ref().is_none_or(|transaction| transaction.recipients.is_empty())
    }

    /// What that recipient will take of memory, in octets.
    pub fn recipient_octets(&self) -> usize {
        self.rcpt_in_question().map_or(0, recipient_octets)
    }

    /// Decides on the recipient in question: where its mail goes, or why not.
    pub fn recipient_checked(&mut self, now: Instant, verdict: Result<RouteIndex, Refusal>) {
        if !matches!(self.phase, Phase::Recipient(_)) {
            return;
        }
        self.deadline = now + limits::SERVER_COMMAND;
        let phase = std::mem::replace(&mut self.phase, Phase::Command);
        let (Phase::Recipient(recipient), Some(transaction)) = (phase, &mut self.transaction)
        else {
            return;
        };
        match verdict {
            Ok(route) => {
                transaction.recipients.push(*recipient);
                transaction.routes.push(route);
                transaction.given += 1;
                self.replies.push(reply::RECIPIENT_OK);
            }
            Err(refusal) if refusal.is_fault() => self.fault_of(refusal, Some(recipient.path)),
            Err(refusal) => self.refuse_recipient(refusal, Some(recipient.path)),
        }
    }

    /// The node that waits at [`Event::StartQueue`].
    pub fn node_in_question(&self) -> Option<&Node> {
        match &self.phase {
            Phase::Starting(node) => Some(node),
            _ => None,
        }
    }

    /// What became of the node in question.
    pub fn queue_started(&mut self, now: Instant, result: Result<QueueStart, Refusal>) {
        if !matches!(self.phase, Phase::Starting(_)) {
            return;
        }
        self.phase = Phase::Command;
        self.deadline = now + limits::SERVER_COMMAND;
        match result {
            Ok(found) => self.replies.queue_started(found),
            Err(refusal) => self.refuse(refusal),
        }
        self.idled();
    }

    /// What a proxy says at [`Event::Introduce`].
    pub fn introduction(&self) -> Option<&Introduction> {
        match &self.phase {
            Phase::Introducing(introduction) => Some(introduction),
            _ => None,
        }
    }

    /// The client is another one from here on, and is greeted; or the session ends.
    ///
    /// Nothing is left of what was said before, but the count of commands that did nothing, or
    /// there would be no end of them.  What a client may do is to be permitted anew.
    pub fn introduced(&mut self, now: Instant, result: Result<(), Refusal>) {
        if !matches!(self.phase, Phase::Introducing(_)) {
            return;
        }
        self.deadline = now + limits::SERVER_COMMAND;
        let Phase::Introducing(told) = std::mem::replace(&mut self.phase, Phase::Command) else {
            return;
        };
        if let Err(refusal) = result {
            return self.close(refusal);
        }
        self.client = told.helo.map(|helo| Client {
            helo,
            extended: !told.is_plain,
            secured: self.is_secured,
            authenticated: None,
        });
        self.haste = Haste::Forbidden;
        self.may_start_queues = false;
        self.auth_failures = 0;
        self.errors = 0;
        self.replies.greet(&self.config.hostname);
        self.idled();
    }

    /// The handshake that [`Event::StartTls`] asked for is done: all that is known of the client
    /// is forgotten (RFC 3207 section 4.2), because somebody else may have said it.
    pub fn tls_started(&mut self, now: Instant) {
        if !matches!(self.phase, Phase::StartTls) {
            return;
        }
        self.phase = Phase::Command;
        self.is_secured = true;
        self.lines = LineScanner::default();
        self.client = None;
        self.can_bind = false;
        if self.haste == Haste::Allowed {
            self.haste = Haste::Forbidden;
        }
        self.transaction = None;
        self.deadline = now + limits::SERVER_COMMAND;
    }

    /// The message that waits at [`Event::EndOfMessage`]; `None` at any other time.
    pub fn take_message(&mut self) -> Option<ReceivedMessage> {
        let Phase::Storing { summary } = self.phase else { return None };
        let mut transaction = self.transaction.take()?;
        transaction.merge();
        let header = transaction.header.as_ref().map(HeaderWatch::facts).unwrap_or_default();
        Some(ReceivedMessage {
            header,
            envelope: Envelope {
                reverse_path: transaction.reverse_path,
                parameters: transaction.parameters,
                recipients: transaction.recipients,
            },
            routes: transaction.routes,
            summary,
            is_expanded: transaction.is_expanded,
        })
    }

    /// The fate of the message that was taken.
    pub fn stored(&mut self, now: Instant, result: Result<(MessageId, Durability), Refusal>) {
        if !matches!(self.phase, Phase::Storing { .. }) {
            return;
        }
        self.phase = Phase::Command;
        self.transaction = None;
        self.deadline = now + limits::SERVER_COMMAND;
        match result {
            Ok((id, durability)) => {
                // A client that delivers may go on for days; only one that does not is counted.
                self.idle_commands = 0;
                self.errors = 0;
                self.replies.queued(id, durability);
            }
            Err(refusal) => self.refuse(refusal),
        }
    }

    // ---- commands ------------------------------------------------------------------------

    fn command_bytes(&mut self, now: Instant, input: &mut [u8]) -> Handled {
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

    /// Whether STARTTLS can be given now: where it is configured, and once.
    fn offers_tls(&self) -> bool {
        let offered = matches!(self.config.tls, ListenerTls::StartTls | ListenerTls::Required);
        offered && !self.is_secured
    }

    /// Whether the session must be encrypted first.
    fn lacks_tls(&self) -> bool {
        self.config.tls == ListenerTls::Required && !self.is_secured
    }

    fn start_tls(&mut self, now: Instant) -> Event {
        if self.is_secured {
            return self.refused(Refusal::TlsUnderWay);
        }
        if !self.offers_tls() {
            return self.refused(Refusal::NotOffered);
        }
        if self.transaction.is_some() {
            return self.refused(Refusal::NestedMail);
        }
        self.replies.push(reply::START_TLS);
        self.phase = Phase::StartTls;
        self.deadline = now + limits::TLS_HANDSHAKE;
        Event::StartTls
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

    fn mail(&mut self, mail: Mail) -> Event {
        if self.client.is_none() {
            return self.refused(Refusal::NeedsHello);
        }
        if self.transaction.is_some() {
            return self.refused(Refusal::NestedMail);
        }
        if self.lacks_auth() {
            return self.refused(Refusal::NeedsAuth);
        }
        if mail.size_octets.is_some_and(|octets| octets > self.config.message_size) {
            return self.refused(Refusal::TooLarge);
        }
        if self.config.checks_senders {
            self.phase = Phase::Sender(Box::new(mail));
            return Event::CheckSender;
        }
        self.begin(mail);
        Event::Continue
    }

    fn begin(&mut self, mail: Mail) {
        self.transactions = self.transactions.wrapping_add(1);
        self.transaction = Some(Box::new(Transaction {
            reverse_path: mail.path,
            parameters: mail.parameters,
            recipients: Vec::new(),
            routes: Vec::new(),
            given: 0,
            is_expanded: false,
            header: None,
            chunking: None,
        }));
        self.replies.push(reply::SENDER_OK);
    }

    fn rcpt(&mut self, recipient: Recipient) -> Event {
        let Some(transaction) = &self.transaction else {
            return self.refused(Refusal::NeedsMail);
        };
        if transaction.chunking.is_some() {
            return self.refused(Refusal::ChunkingUnderWay);
        }
        if transaction.given >= self.config.recipients {
            // Not counted as an error: a sender with more recipients is told so once for each,
            // and sends the rest in its next transaction.
            self.refuse(Refusal::TooManyRecipients);
            return Event::Continue;
        }
        self.phase = Phase::Recipient(Box::new(recipient));
        Event::CheckRecipient
    }

    fn etrn(&mut self, node: Node) -> Event {
        if self.client.is_none() {
            return self.refused(Refusal::NeedsHello);
        }
        // Whoever may not send it learns nothing of our queues, not even their names.
        if !self.may_start_queues {
            return self.refused(Refusal::EtrnDenied);
        }
        if node == Node::Named {
            return self.refused(Refusal::NoSuchQueue);
        }
        if self.transaction.is_some() {
            return self.refused(Refusal::NestedMail);
        }
        self.phase = Phase::Starting(node);
        Event::StartQueue
    }

    fn xclient(&mut self, arguments: &str) -> Event {
        // For everybody else there is no such command.
        if !self.may_introduce {
            return self.refused(Refusal::UnknownCommand);
        }
        if self.transaction.is_some() {
            return self.refused(Refusal::NestedMail);
        }
        let Some(introduction) = Introduction::parse(arguments) else {
            return self.refused(Refusal::BadArgument);
        };
        self.phase = Phase::Introducing(Box::new(introduction));
        Event::Introduce
    }

    fn quit(&mut self) -> Event {
        self.replies.push(reply::BYE);
        self.transaction = None;
        self.phase = Phase::Closed { timed_out: false };
        Event::Close
    }

    /// Commands that do nothing for a message.
    fn idle(&mut self, reply: reply::Reply, resets: bool) -> Event {
        self.replies.push(reply);
        self.idled();
        if resets { self.reset() } else { Event::Continue }
    }

    fn idled(&mut self) {
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

    // ---- refusing ------------------------------------------------------------------------

    fn refused(&mut self, refusal: Refusal) -> Event {
        self.fault(refusal);
        Event::Continue
    }

    /// A refusal that counts towards the end of the session.
    fn fault(&mut self, refusal: Refusal) {
        self.fault_of(refusal, None);
    }

    fn fault_of(&mut self, refusal: Refusal, recipient: Option<ForwardPath>) {
        self.errors += 1;
        self.replies.refuse(&refusal);
        self.refusals.push(Refused { refusal, recipient });
        if self.errors > limits::SESSION_ERRORS {
            self.close(Refusal::TooManyErrors);
        }
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.refuse_recipient(refusal, None);
    }

    /// A refusal that does not count towards the end of the session.
    fn refuse_recipient(&mut self, refusal: Refusal, recipient: Option<ForwardPath>) {
        self.replies.refuse(&refusal);
        self.refusals.push(Refused { refusal, recipient });
    }
}

/// What a recipient takes of memory in a transaction, in octets.
pub fn recipient_octets(recipient: &Recipient) -> usize {
    let text = recipient.path.as_str().len() + recipient.orcpt.as_deref().map_or(0, str::len);
    text + size_of::<Recipient>() + size_of::<RouteIndex>()
}

/// What may be said before TLS where it is demanded (RFC 3207 section 4), and BDAT, which is
/// refused at its end: its octets follow in any case.
fn is_free_of_tls(command: &Command<'_>) -> bool {
    matches!(
        command,
        Command::Ehlo { .. }
            | Command::Noop
            | Command::Quit
            | Command::StartTls
            | Command::Bdat { .. }
            | Command::OtherProtocol
            | Command::Unknown
    )
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
