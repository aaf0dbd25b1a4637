//! One SMTP session as its server sees it: a state machine without I/O (RFC 5321, with
//! PIPELINING, SIZE, 8BITMIME, SMTPUTF8, ENHANCEDSTATUSCODES, DSN, CHUNKING, LIMITS, ETRN,
//! STARTTLS, REQUIRETLS, AUTH and XCLIENT).
//!
//! Octets and time go in through [`Server::handle_bytes`] and [`Server::handle_timeout`]; what is
//! to be done comes back as an [`Event`], what is to be sent gathers in [`Server::replies`].  The
//! machine never holds a body: it says which octets of the input belong to one.
//!
//! It stops where somebody else must decide, until it hears:
//!
//! | at | until |
//! |---|---|
//! | [`Event::CheckSender`] | [`Server::sender_checked`] |
//! | [`Event::CheckRecipient`] | [`Server::recipient_checked`], or, for one that is accepted, [`Server::recipient_expanded`] or [`Server::recipient_passed`] |
//! | [`Event::EndOfMessage`] | [`Server::stored`] or [`Server::passed_on`] |
//! | [`Event::Authenticate`] | [`Server::auth_answered`] |
//! | [`Event::LookUp`] | [`Server::inquiry_answered`] |
//! | [`Event::StartQueue`] | [`Server::queue_started`] |
//! | [`Event::Introduce`] | [`Server::introduced`] |
//! | [`Event::StartTls`] | [`Server::tls_started`] |
//!
//! Until then it must be given no input; so the replies stay in the order of the commands.
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
#[cfg(test)]
mod auth_tests;
mod body;
mod commands;
mod etrn;
mod recipients;
mod sender;
#[cfg(test)]
mod tests;
mod tls;
mod xclient;

use super::address::{ForwardPath, ReversePath};
use super::command::{Mail, Node};
use super::data::DataScanner;
use super::header::{HeaderFacts, HeaderWatch};
use super::line::LineScanner;
use super::reply::{Refusal, Replies};
use super::xclient::Introduction;
use crate::config::{BareNewline, ListenerTls, RouteIndex};
use crate::limits;
use crate::message::{BodySummary, Envelope, MailParameters, Recipient};
use auth::Pending;
use body::Chunking;

pub use auth::{AuthAnswer, AuthOffer, Response};
pub use recipients::{Inquiry, MayInquire, recipient_octets};

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
    /// Decide on [`Server::recipient_in_question`], then call [`Server::recipient_checked`],
    /// [`Server::recipient_expanded`] or [`Server::recipient_passed`].
    CheckRecipient,
    /// Look up who [`Server::inquiry`] asks for, then call [`Server::inquiry_answered`].
    LookUp,
    /// The body is whole: [`Server::take_message`], keep it or pass it on, then call
    /// [`Server::stored`] or [`Server::passed_on`].
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

impl ReceivedMessage {
    /// Its recipients, if they are those that the client named: whom a name stands for is nobody's
    /// business who wrote to that name.
    pub fn named(&self) -> &[Recipient] {
        if self.is_expanded { &[] } else { &self.envelope.recipients }
    }
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
    Closed { has_quit: bool },
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
        self.phase = Phase::Closed { has_quit: false };
        self.transaction = None;
        self.refuse(refusal);
    }

    /// Whether the session ended because its client said QUIT.
    pub fn has_quit(&self) -> bool {
        matches!(self.phase, Phase::Closed { has_quit: true })
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

    // ---- waiting -------------------------------------------------------------------------

    /// Leaves the phase in which somebody was asked, if it is the one that `asked` takes, with what
    /// was in question.
    fn resume<T>(
        &mut self,
        now: Instant,
        asked: impl FnOnce(Phase) -> Result<T, Phase>,
    ) -> Option<T> {
        match asked(std::mem::replace(&mut self.phase, Phase::Command)) {
            Ok(asked) => {
                self.deadline = now + limits::SERVER_COMMAND;
                Some(asked)
            }
            Err(phase) => {
                self.phase = phase;
                None
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
