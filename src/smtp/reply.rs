//! Every reply that the server gives: code, enhanced code (RFC 3463, 5248) and text, in one place.
//!
//! Texts are generic on purpose: what exactly went wrong goes to the events and the log under the
//! session's id, not to the peer.

use std::fmt::Write as _;

use data_encoding::BASE64;

use crate::limits;
use crate::message::{Durability, MessageId};
use crate::smtp::address::Mailbox;
use crate::smtp::code::{EnhancedCode, ReplyClass};
use crate::smtp::reply_reader::PeerReply;

/// A reply of one line, or the last line of a longer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// The three digits of RFC 5321 section 4.2.
    pub code: u16,
    /// The enhanced code, empty where RFC 2034 has none (greeting, EHLO, 3xx).
    pub enhanced: &'static str,
    /// What a person reads.
    pub text: &'static str,
}

const fn reply(code: u16, enhanced: &'static str, text: &'static str) -> Reply {
    Reply { code, enhanced, text }
}

/// MAIL was good.
pub const SENDER_OK: Reply = reply(250, "2.1.0", "Sender ok");
/// RCPT was good.
pub const RECIPIENT_OK: Reply = reply(250, "2.1.5", "Recipient ok");
/// DATA: go ahead.
pub const START_DATA: Reply = reply(354, "", "End data with <CR><LF>.<CR><LF>");
/// A BDAT that is not the last.
pub const CHUNK_OK: Reply = reply(250, "2.0.0", "Chunk ok");
/// STARTTLS: the next octet is TLS's (RFC 3207 section 4).
pub const START_TLS: Reply = reply(220, "2.0.0", "Ready to start TLS");
/// AUTH has succeeded.
pub const AUTHENTICATED: Reply = reply(235, "2.7.0", "Authentication succeeded");
/// NOOP and RSET.
pub const OK: Reply = reply(250, "2.0.0", "Ok");
/// QUIT.
pub const BYE: Reply = reply(221, "2.0.0", "Bye");
/// VRFY: neither yes nor no (RFC 5321 section 3.5.3).
pub const VRFY: Reply = reply(252, "2.5.0", "Cannot verify; send mail and see");
/// ETRN: the queue was started; what is in it nobody could tell in time (RFC 1985 section 5.1).
pub const QUEUE_STARTED: Reply = reply(250, "2.0.0", "Queue started");
/// ETRN: nothing waits.
pub const QUEUE_EMPTY: Reply = reply(251, "2.0.0", "No messages waiting");
/// ETRN: something waits, perhaps among messages for others.
pub const QUEUE_PENDING: Reply = reply(252, "2.0.0", "Pending messages started");
/// HELP.
pub const HELP: Reply = reply(214, "2.0.0", "See RFC 5321");

/// Why the server did not do what the client asked.  Grouped by whose fault it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    // The client's fault: it would be refused again.
    /// The verb is not one of ours.
    UnknownCommand,
    /// The verb is known and not offered here.
    NotImplemented,
    /// The line is not one that the grammar allows.
    Syntax,
    /// An argument, a path above all, is malformed.
    BadArgument,
    /// A mailbox in MAIL is malformed.
    BadSender,
    /// A mailbox in RCPT is malformed.
    BadRecipient,
    /// A parameter of MAIL or RCPT is malformed or given twice.
    BadParameter,
    /// A parameter of MAIL or RCPT that nobody offered.
    UnknownParameter,
    /// An address with UTF-8 where SMTPUTF8 was not asked for (RFC 6531 section 3.2).
    NeedsSmtpUtf8,
    /// The line is longer than a command may be.
    LineTooLong,
    /// A bare CR or LF, or a NUL, in a command.
    BareNewlineInCommand,
    /// The first line of another protocol.
    OtherProtocol,
    /// A command before HELO or EHLO.
    NeedsHello,
    /// MAIL inside a transaction.
    NestedMail,
    /// RCPT without MAIL.
    NeedsMail,
    /// DATA or BDAT without a recipient that was accepted.
    NeedsRecipient,
    /// DATA in a transaction that BDAT began, or any command but BDAT and RSET in one.
    ChunkingUnderWay,
    /// BDAT after one that failed, before RSET.
    ChunkingFailed,
    /// A TLS or AUTH command where there is none.
    NotOffered,
    /// ETRN from a client that may not send it.
    EtrnDenied,
    /// ETRN for a queue that there is not (RFC 1985 section 5.3).
    NoSuchQueue,
    /// A command that is not obeyed in clear here (RFC 3207 section 4).
    NeedsTls,
    /// STARTTLS inside TLS.
    TlsUnderWay,
    /// AUTH by a mechanism that is not offered (RFC 4954 section 4).
    NoSuchMechanism,
    /// A mechanism that shows the secret, in clear.
    MechanismNeedsTls,
    /// AUTH once more, or in a transaction.
    AuthOutOfPlace,
    /// The client has cancelled AUTH with `*`.
    AuthCancelled,
    /// A response that is not base64, or not of the mechanism's form.
    BadResponse,
    /// Wrong credentials.
    AuthFailed,
    /// MAIL without AUTH where it is needed.
    NeedsAuth,
    /// A sender address that is not the user's.
    SenderDenied,
    /// The recipient is not ours and the client may not relay.
    RelayDenied,
    /// No route leads there.
    NoRoute,
    /// A `reject:` route: the operator's words.
    Rejected(Box<str>),
    /// The edge filter rejects: the words for the client.
    Screened(Box<str>),
    /// The edge filter rejects because there is no such sender domain.
    UnknownSenderDomain,
    /// The edge filter rejects because the sender's domain takes no mail (RFC 7505 section 4.2).
    SenderTakesNoMail,
    /// The edge filter rejects because of the name behind the client's address (RFC 7372 section
    /// 3.3).
    ReverseName,
    /// A proxy that does not know for whom it speaks.
    UnknownClient,
    /// Nobody of this name is here.
    UnknownRecipient,
    /// The announced or the real size is over the limit.
    TooLarge,
    /// A bare CR or LF in the message.
    BareNewline,
    /// Too many Received fields: a loop (RFC 5321 section 6.3).
    Loop,

    // Try later.
    /// One recipient more than a transaction may have (RFC 5321 section 4.5.3.1.10).
    TooManyRecipients,
    /// The next hop could not be asked whether the recipient is there.
    UnverifiedRecipient,
    /// So many recipients that are not there that somebody is looking for those that are.
    TooManyUnknown,
    /// In-line: what the next hop said, which may be for good.
    NextHop(Passed),
    /// In-line: the next hop cannot be reached, or its connection ended.
    NextHopLost,
    /// In-line: there are as many connections to next hops as there may be.
    NextHopsBusy,
    /// In-line: the recipient's mail goes another way than that of those before it.
    OtherNextHop,
    /// More messages are on their way in than there is memory for, or than the disk can follow.
    Busy,
    /// The log has no room.
    StorageFull,
    /// The log could not keep the message.
    StorageFailed,
    /// As many sessions as there may be.
    TooManySessions,
    /// As many sessions from this address as there may be.
    TooManySessionsFromAddress,
    /// As many sessions from this network as there may be.
    TooManySessionsFromNetwork,
    /// As many new connections in a time as there may be.
    TooManyConnections,
    /// As many new connections from this address in a time as there may be.
    TooManyConnectionsFromAddress,
    /// As many new connections from this network in a time as there may be.
    TooManyConnectionsFromNetwork,
    /// ETRN while more of them wait than may.
    QueueBusy,
    /// Nobody could check the credentials now, or it was too early to try again.
    AuthLater,
    /// The edge filter puts off: the words for the client.
    PutOff(Box<str>),
    /// Nobody could look at the message, without which it is not to be taken.
    Unchecked,
    /// The edge filter does not know the client and wants to see that it comes again.
    Greylisted,
    /// More messages or recipients in a time than allowed.
    TooManyMessages,
    /// Nothing came for too long.
    TimedOut,
    /// Too many commands that were wrong.
    TooManyErrors,
    /// The service is stopping.
    ShuttingDown,
    /// Our bug: the session ends, the process goes on.
    Internal,
}

impl Refusal {
    /// Whether the edge filter has refused a recipient by it, for its client's sake.
    pub fn is_of_the_edge(&self) -> bool {
        matches!(
            self,
            Refusal::Screened(_)
                | Refusal::UnknownSenderDomain
                | Refusal::SenderTakesNoMail
                | Refusal::ReverseName
        )
    }

    /// Whether it counts towards the end of a session: a client that does as RFC 5321 says may
    /// meet the others without end.
    pub fn is_fault(&self) -> bool {
        match self {
            Refusal::TooManyRecipients | Refusal::OtherNextHop | Refusal::Greylisted => false,
            Refusal::UnverifiedRecipient | Refusal::Unchecked => false,
            Refusal::NextHopLost | Refusal::NextHopsBusy => false,
            Refusal::NextHop(passed) => !passed.is_for_now(),
            _ => true,
        }
    }

    /// Whether nobody of that name is here, in our words or the next hop's.
    pub fn is_unknown_recipient(&self) -> bool {
        match self {
            Refusal::UnknownRecipient => true,
            // Bad mailbox (RFC 3463 section 3.2).
            Refusal::NextHop(passed) => passed.code == 550 && passed.words.starts_with("5.1.1"),
            _ => false,
        }
    }

    /// A short name for events and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Refusal::UnknownCommand => "unknown_command",
            Refusal::NotImplemented => "not_implemented",
            Refusal::Syntax => "syntax",
            Refusal::BadArgument => "bad_argument",
            Refusal::BadSender => "bad_sender",
            Refusal::BadRecipient => "bad_recipient",
            Refusal::BadParameter => "bad_parameter",
            Refusal::UnknownParameter => "unknown_parameter",
            Refusal::NeedsSmtpUtf8 => "needs_smtputf8",
            Refusal::LineTooLong => "line_too_long",
            Refusal::BareNewlineInCommand => "bare_newline_in_command",
            Refusal::OtherProtocol => "other_protocol",
            Refusal::NeedsHello => "needs_hello",
            Refusal::NestedMail => "nested_mail",
            Refusal::NeedsMail => "needs_mail",
            Refusal::NeedsRecipient => "needs_recipient",
            Refusal::ChunkingUnderWay => "chunking_under_way",
            Refusal::ChunkingFailed => "chunking_failed",
            Refusal::NotOffered => "not_offered",
            Refusal::EtrnDenied => "etrn_denied",
            Refusal::NoSuchQueue => "no_such_queue",
            Refusal::NeedsTls => "needs_tls",
            Refusal::TlsUnderWay => "tls_under_way",
            Refusal::NoSuchMechanism => "no_such_mechanism",
            Refusal::MechanismNeedsTls => "mechanism_needs_tls",
            Refusal::AuthOutOfPlace => "auth_out_of_place",
            Refusal::AuthCancelled => "auth_cancelled",
            Refusal::BadResponse => "bad_response",
            Refusal::AuthFailed => "auth_failed",
            Refusal::NeedsAuth => "needs_auth",
            Refusal::SenderDenied => "sender_denied",
            Refusal::AuthLater => "auth_later",
            Refusal::TooManyMessages => "too_many_messages",
            Refusal::RelayDenied => "relay_denied",
            Refusal::NoRoute => "no_route",
            Refusal::Rejected(_) => "rejected_by_route",
            Refusal::Screened(_) => "screened",
            Refusal::PutOff(_) => "put_off",
            Refusal::Unchecked => "unchecked",
            Refusal::UnknownSenderDomain => "unknown_sender_domain",
            Refusal::SenderTakesNoMail => "sender_takes_no_mail",
            Refusal::ReverseName => "reverse_name",
            Refusal::Greylisted => "greylisted",
            Refusal::UnknownClient => "unknown_client",
            Refusal::UnknownRecipient => "unknown_recipient",
            Refusal::UnverifiedRecipient => "unverified_recipient",
            Refusal::TooManyUnknown => "too_many_unknown",
            Refusal::NextHop(_) => "next_hop",
            Refusal::NextHopLost => "next_hop_lost",
            Refusal::NextHopsBusy => "next_hops_busy",
            Refusal::OtherNextHop => "other_next_hop",
            Refusal::TooLarge => "too_large",
            Refusal::BareNewline => "bare_newline",
            Refusal::Loop => "loop",
            Refusal::TooManyRecipients => "too_many_recipients",
            Refusal::Busy => "busy",
            Refusal::StorageFull => "storage_full",
            Refusal::StorageFailed => "storage_failed",
            Refusal::TooManySessions => "too_many_sessions",
            Refusal::TooManySessionsFromAddress => "too_many_sessions_from_address",
            Refusal::TooManySessionsFromNetwork => "too_many_sessions_from_network",
            Refusal::TooManyConnections => "too_many_connections",
            Refusal::TooManyConnectionsFromAddress => "too_many_connections_from_address",
            Refusal::TooManyConnectionsFromNetwork => "too_many_connections_from_network",
            Refusal::QueueBusy => "queue_busy",
            Refusal::TimedOut => "timed_out",
            Refusal::TooManyErrors => "too_many_errors",
            Refusal::ShuttingDown => "shutting_down",
            Refusal::Internal => "internal",
        }
    }
}

impl From<&Refusal> for Reply {
    fn from(refusal: &Refusal) -> Reply {
        match refusal {
            Refusal::UnknownCommand => reply(500, "5.5.2", "Unknown command"),
            Refusal::NotImplemented => reply(502, "5.5.1", "Command not implemented"),
            Refusal::Syntax => reply(500, "5.5.2", "Syntax error"),
            Refusal::BadArgument => reply(501, "5.5.4", "Syntax error in the argument"),
            Refusal::BadSender => reply(501, "5.1.7", "Syntax error in the sender's address"),
            Refusal::BadRecipient => reply(501, "5.1.3", "Syntax error in the recipient's address"),
            Refusal::BadParameter => reply(501, "5.5.4", "Syntax error in a parameter"),
            Refusal::UnknownParameter => reply(555, "5.5.4", "Unsupported parameter"),
            Refusal::NeedsSmtpUtf8 => reply(553, "5.6.7", "Address needs SMTPUTF8"),
            Refusal::LineTooLong => reply(500, "5.5.2", "Line too long"),
            Refusal::BareNewlineInCommand => {
                reply(500, "5.5.2", "Lines end with <CR><LF> and hold no other CR, LF or NUL")
            }
            Refusal::OtherProtocol => reply(421, "4.7.0", "This is an SMTP server"),
            Refusal::NeedsHello => reply(503, "5.5.1", "Send EHLO or HELO first"),
            Refusal::NestedMail => reply(503, "5.5.1", "A transaction is under way"),
            Refusal::NeedsMail => reply(503, "5.5.1", "Send MAIL first"),
            Refusal::NeedsRecipient => reply(503, "5.5.1", "No recipient was accepted"),
            Refusal::ChunkingUnderWay => reply(503, "5.5.1", "BDAT under way: go on or send RSET"),
            Refusal::ChunkingFailed => reply(503, "5.5.1", "A chunk failed: send RSET"),
            Refusal::NotOffered => reply(502, "5.5.1", "Not offered here"),
            Refusal::EtrnDenied => reply(550, "5.7.1", "ETRN denied"),
            Refusal::NoSuchQueue => reply(459, "4.5.4", "No queue of this name"),
            Refusal::NeedsTls => reply(530, "5.7.0", "Send STARTTLS first"),
            Refusal::TlsUnderWay => reply(503, "5.5.1", "TLS is under way"),
            Refusal::NoSuchMechanism => reply(504, "5.5.4", "No such mechanism"),
            Refusal::MechanismNeedsTls => reply(538, "5.7.11", "Send STARTTLS first"),
            Refusal::AuthOutOfPlace => reply(503, "5.5.1", "Not now"),
            Refusal::AuthCancelled => reply(501, "5.7.0", "Authentication cancelled"),
            Refusal::BadResponse => reply(501, "5.5.2", "Cannot read the response"),
            Refusal::AuthFailed => reply(535, "5.7.8", "Authentication failed"),
            Refusal::NeedsAuth => reply(530, "5.7.0", "Authentication required"),
            Refusal::SenderDenied => reply(553, "5.7.1", "Sender address is not yours"),
            Refusal::AuthLater => reply(454, "4.7.0", "Cannot authenticate now, try later"),
            Refusal::TooManyMessages => reply(450, "4.7.1", "Too much mail, try later"),
            Refusal::RelayDenied => reply(550, "5.7.1", "Relaying denied"),
            Refusal::NoRoute => reply(550, "5.1.2", "No route to this address"),
            // The operator's words are put in place of the text by `refuse`.
            Refusal::Rejected(_) => reply(550, "5.7.1", "Refused"),
            // The filter's words are put in place of the text by `refuse`, here too.
            Refusal::Screened(_) => reply(554, "5.7.1", "Refused"),
            Refusal::PutOff(_) => reply(450, "4.7.1", "Try later"),
            Refusal::Unchecked => reply(451, "4.7.1", "Cannot check the message now, try later"),
            Refusal::UnknownSenderDomain => {
                reply(550, "5.1.8", "The sender's domain does not exist")
            }
            Refusal::SenderTakesNoMail => reply(550, "5.7.27", "The sender's domain takes no mail"),
            Refusal::ReverseName => {
                reply(550, "5.7.25", "The name of your address is missing or not its own")
            }
            Refusal::Greylisted => {
                reply(451, "4.7.1", "You are new here: please try again in a few minutes")
            }
            Refusal::UnknownClient => reply(421, "4.3.0", "The client's address is not known"),
            Refusal::UnknownRecipient => reply(550, "5.1.1", "No such mailbox here"),
            Refusal::UnverifiedRecipient => {
                reply(450, "4.1.1", "Cannot verify the recipient now, try later")
            }
            Refusal::TooManyUnknown => reply(421, "4.7.0", "Too many unknown recipients"),
            // The next hop's own words are put in place of all of it by `refuse`.
            Refusal::NextHop(_) => reply(451, "4.4.0", "Refused"),
            Refusal::NextHopLost => reply(451, "4.4.1", "The next hop does not answer, try later"),
            Refusal::NextHopsBusy => reply(451, "4.4.5", "Too many are served now, try later"),
            Refusal::OtherNextHop => {
                reply(452, "4.5.3", "This recipient needs a transaction of its own")
            }
            Refusal::TooLarge => reply(552, "5.3.4", "Message too large"),
            Refusal::BareNewline => {
                reply(550, "5.6.0", "Message holds a bare <CR> or <LF>; lines end with <CR><LF>")
            }
            Refusal::Loop => reply(554, "5.4.6", "Too many hops: this message loops"),
            Refusal::TooManyRecipients => reply(452, "4.5.3", "Too many recipients"),
            Refusal::Busy => reply(452, "4.4.5", "Too much is under way, try again later"),
            Refusal::StorageFull => reply(452, "4.3.1", "No room now, try again later"),
            Refusal::StorageFailed => reply(451, "4.3.0", "Could not keep the message, try later"),
            Refusal::TooManySessions => reply(421, "4.3.2", "Too many connections, try later"),
            Refusal::TooManySessionsFromAddress => {
                reply(421, "4.7.0", "Too many connections from your address, try later")
            }
            Refusal::TooManySessionsFromNetwork => {
                reply(421, "4.7.0", "Too many connections from your network, try later")
            }
            Refusal::TooManyConnections => reply(421, "4.3.2", "Too many connections, try later"),
            Refusal::TooManyConnectionsFromAddress => {
                reply(421, "4.7.0", "Too many new connections from your address, try later")
            }
            Refusal::TooManyConnectionsFromNetwork => {
                reply(421, "4.7.0", "Too many new connections from your network, try later")
            }
            Refusal::QueueBusy => reply(458, "4.3.2", "Cannot start the queue now, try later"),
            Refusal::TimedOut => reply(421, "4.4.2", "Timed out"),
            Refusal::TooManyErrors => reply(421, "4.7.0", "Too many errors"),
            Refusal::ShuttingDown => reply(421, "4.3.2", "Service is stopping, try later"),
            Refusal::Internal => reply(421, "4.3.0", "Internal error, try later"),
        }
    }
}

/// A refusal as its client hears it, without the line's end.
pub fn refusal_text(refusal: &Refusal) -> Box<str> {
    let mut replies = Replies::default();
    replies.refuse(refusal);
    String::from_utf8_lossy(&replies.take()).trim_end().into()
}

/// What was found when a queue was started for ETRN (RFC 1985 section 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueStart {
    /// It was started; what is in it could not be told in time (250).
    Unknown,
    /// Nothing waits (251).
    Nothing,
    /// Something waits, perhaps among messages for others (252).
    Something,
    /// So many messages wait, and all of them are the node's (253).
    Messages(u64),
}

/// A next hop's reply as a client of ours may hear it: its code, its enhanced code or a generic one,
/// and its words on one line of printable ASCII.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    code: u16,
    words: Box<str>,
}

impl Passed {
    /// What to make of a reply to RCPT, DATA or the end of the data.
    ///
    /// `None` for one that is no answer to these: 3xx, and 421, which speaks of a connection that
    /// is not our client's.
    pub fn of(reply: &PeerReply) -> Option<Passed> {
        let code = reply.code.value();
        let class = match reply.class() {
            ReplyClass::Success => 2,
            ReplyClass::TransientFailure if code != 421 => 4,
            ReplyClass::PermanentFailure => 5,
            _ => return None,
        };
        let mut words = String::new();
        let first = reply.lines().next().unwrap_or_default();
        let has_code = |code: EnhancedCode| u16::from(code.class()) == class;
        if !EnhancedCode::at_front(first.as_bytes()).is_some_and(has_code) {
            words = match reply.enhanced {
                Some(code) => format!("{code} "),
                None => format!("{class}.0.0 "),
            };
        }
        for (place, line) in reply.lines().enumerate() {
            // Each line has the enhanced code again (RFC 2034 section 4).
            let code = EnhancedCode::at_front(line.as_bytes()).filter(|_| place > 0);
            let line = code.map_or(line, |_| line.split_once(' ').map_or("", |(_, rest)| rest));
            if place > 0 && !line.is_empty() {
                words.push(' ');
            }
            words.extend(line.chars().map(|c| if matches!(c, ' '..='~') { c } else { '?' }));
        }
        // Code, blank and CRLF are on the line too.
        words.truncate(limits::REPLY_LINE - 6);
        Some(Passed { code, words: words.trim_end().into() })
    }

    /// What we say in a next hop's place.
    pub fn ours(code: u16, words: &str) -> Passed {
        Passed { code, words: words.into() }
    }

    /// Whether the next hop said yes.
    pub fn is_success(&self) -> bool {
        self.code < 300
    }

    /// Whether the same may be asked again later.
    pub fn is_for_now(&self) -> bool {
        (400..500).contains(&self.code)
    }
}

/// On one line, without its end.
impl std::fmt::Display for Passed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.code, self.words)
    }
}

/// What VRFY or EXPN found (RFC 5321 section 3.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verified {
    /// These, at least one: the mailbox, or who is on the list (250).
    Found(Vec<Mailbox>),
    /// Nobody (550).
    Nobody,
    /// It cannot be told: not an address, or not one that is judged here (252).
    Untold,
}

/// Octets that most replies fit.
const LINE: usize = 128;

/// The replies that wait to be sent, in order; one write takes them all.
#[derive(Debug, Default)]
pub struct Replies {
    text: Vec<u8>,
}

impl Replies {
    /// Adds a reply.
    pub fn push(&mut self, reply: Reply) {
        self.line(reply.code, b' ', reply.enhanced, reply.text);
    }

    /// Adds a refusal.
    pub fn refuse(&mut self, refusal: &Refusal) {
        let reply = Reply::from(refusal);
        match refusal {
            Refusal::Rejected(words) | Refusal::Screened(words) | Refusal::PutOff(words) => {
                self.line(reply.code, b' ', reply.enhanced, words)
            }
            Refusal::NextHop(passed) => self.passed(passed),
            _ => self.push(reply),
        }
    }

    /// The greeting (RFC 5321 section 3.1).
    pub fn greet(&mut self, hostname: &str) {
        self.format(format_args!("220 {hostname} ESMTP mailrace\r\n"));
    }

    /// The first line of a greeting whose last line comes later.
    pub fn begin_greeting(&mut self, hostname: &str) {
        self.format(format_args!("220-{hostname} One moment, please\r\n"));
    }

    /// The answer to HELO.
    pub fn hello(&mut self, hostname: &str) {
        self.format(format_args!("250 {hostname}\r\n"));
    }

    /// The answer to EHLO: one line for each of `keywords`.
    pub fn extended_hello<'a>(
        &mut self,
        hostname: &str,
        keywords: impl IntoIterator<Item = &'a str>,
    ) {
        let mut line = hostname;
        let mut keywords = keywords.into_iter();
        loop {
            let next = keywords.next();
            self.line(250, if next.is_some() { b'-' } else { b' ' }, "", line);
            let Some(keyword) = next else { return };
            line = keyword;
        }
    }

    /// A challenge of AUTH (RFC 4954 section 4), in base64.
    pub fn challenge(&mut self, octets: &[u8]) {
        let text = BASE64.encode(octets);
        self.format(format_args!("334 {text}\r\n"));
    }

    /// The answer to ETRN.
    pub fn queue_started(&mut self, found: QueueStart) {
        match found {
            QueueStart::Unknown => self.push(QUEUE_STARTED),
            QueueStart::Nothing => self.push(QUEUE_EMPTY),
            QueueStart::Something => self.push(QUEUE_PENDING),
            QueueStart::Messages(count) => {
                self.format(format_args!("253 2.0.0 {count} pending messages started\r\n"));
            }
        }
    }

    /// What a next hop said.
    pub fn passed(&mut self, passed: &Passed) {
        self.format(format_args!("{passed}\r\n"));
    }

    /// The answer to VRFY and EXPN.
    pub fn verified(&mut self, answer: &Verified) {
        match answer {
            Verified::Found(mailboxes) => {
                let last = mailboxes.len().saturating_sub(1);
                for (place, mailbox) in mailboxes.iter().enumerate() {
                    let mark = if place == last { ' ' } else { '-' };
                    self.format(format_args!("250{mark}2.1.5 <{mailbox}>\r\n"));
                }
            }
            Verified::Nobody => self.refuse(&Refusal::UnknownRecipient),
            Verified::Untold => self.push(VRFY),
        }
    }

    /// The final 250: from here on the message is ours.
    pub fn queued(&mut self, id: MessageId, durability: Durability) {
        let class = match durability {
            Durability::Fsync => "fsync",
            Durability::Os => "os",
        };
        self.format(format_args!("250 2.0.0 Ok: queued as {id} ({class})\r\n"));
    }

    /// Octets that wait.
    pub fn len(&self) -> usize {
        self.text.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Takes them out, to be sent.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.text)
    }

    /// Gives the sent buffer back for reuse.
    pub fn recycle(&mut self, mut sent: Vec<u8>) {
        if self.text.capacity() == 0 {
            sent.clear();
            self.text = sent;
        }
    }

    fn line(&mut self, code: u16, mark: u8, enhanced: &str, text: &str) {
        self.format(format_args!("{code}{}", mark as char));
        if !enhanced.is_empty() {
            self.text.extend_from_slice(enhanced.as_bytes());
            self.text.push(b' ');
        }
        self.text.extend_from_slice(text.as_bytes());
        self.text.extend_from_slice(b"\r\n");
    }

    fn format(&mut self, text: std::fmt::Arguments<'_>) {
        struct Text<'a>(&'a mut Vec<u8>);
        impl std::fmt::Write for Text<'_> {
            fn write_str(&mut self, text: &str) -> std::fmt::Result {
                self.0.extend_from_slice(text.as_bytes());
                Ok(())
            }
        }
        // Else it would grow with each piece of the line.
        if self.text.capacity() == 0 {
            self.text.reserve(LINE);
        }
        Text(&mut self.text).write_fmt(text).expect("a vector takes all text");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_one_line_and_the_last_keyword_ends_the_list() {
        let mut replies = Replies::default();
        replies.push(SENDER_OK);
        replies.extended_hello("mx.example.com", ["PIPELINING", "SIZE 5"]);
        replies.extended_hello("mx.example.com", []);
        replies.refuse(&Refusal::Rejected("Moved to example.net".into()));
        replies.push(START_DATA);
        assert_eq!(
            String::from_utf8(replies.take()).unwrap(),
            "250 2.1.0 Sender ok\r\n\
             250-mx.example.com\r\n250-PIPELINING\r\n250 SIZE 5\r\n\
             250 mx.example.com\r\n\
             550 5.7.1 Moved to example.net\r\n\
             354 End data with <CR><LF>.<CR><LF>\r\n"
        );
    }
}
