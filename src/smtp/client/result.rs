//! What became of a transaction or a connection, for each recipient: the words in which the
//! client machine answers its driver, and in which `delivery` judges.

use std::fmt;
use std::sync::Arc;

use super::settings::TransactionId;
use crate::auth::sasl::client::ClientError;
use crate::smtp::reply_reader::{PeerReply, ReplyError};

/// The end of a transaction.
#[derive(Debug)]
pub struct TransactionResult {
    /// Which one; they end in the order in which they were started.
    pub id: TransactionId,
    /// One for each of the transaction's recipients, in their order.
    pub outcomes: Vec<RecipientOutcome>,
    /// What may be done with the connection.
    pub connection: AfterTransaction,
    /// Whether the peer has DSN, so that the requests of RFC 3461 were passed on to it.
    pub peer_has_dsn: bool,
    /// What the peer announces and does not keep, to be remembered for its site.
    pub broken_promise: Option<BrokenPromise>,
    /// The message went the strict way, its envelope in one group and its body by BDAT, and was
    /// taken: the next ones may go in one flight
    /// ([`ClientConfig::one_flight`](super::ClientConfig)).
    pub has_behaved: bool,
}

/// What a peer announces and does not keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokenPromise {
    /// It does not know BDAT ([`ClientConfig::use_chunking`](super::ClientConfig)).
    Chunking,
    /// It loses count when an envelope comes together with its body
    /// ([`ClientConfig::one_flight`](super::ClientConfig)).
    OneFlight,
}

/// What may be done with a connection after a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterTransaction {
    /// It takes the next transaction.
    Usable,
    /// It is over; [`ClientAction::Close`](super::ClientAction) follows.
    MustClose,
}

/// What became of one recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecipientOutcome {
    /// The peer took responsibility (RFC 5321 section 6.1).
    Delivered(Arc<PeerReply>),
    /// To be tried again.
    Deferred(Deferral),
    /// Never to be tried again.
    Failed(Failure),
}

impl RecipientOutcome {
    /// Whether the peer had enough recipients in this transaction.
    pub fn is_too_many(&self) -> bool {
        matches!(self, RecipientOutcome::Deferred(Deferral::TooManyRecipients(_)))
    }

    /// Whether the connection failed before the peer was asked about this recipient.
    pub fn never_began(&self) -> bool {
        match self {
            RecipientOutcome::Deferred(Deferral::Connection(failure)) => {
                matches!(failure.stage, Stage::Idle | Stage::Reset | Stage::Mail)
            }
            _ => false,
        }
    }
}

/// Why a recipient is to be tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deferral {
    /// The peer said 4xx.
    Reply(StagedReply),
    /// The peer took other recipients of the transaction and has enough of them: the next
    /// transaction may begin at once (RFC 5321 section 4.5.3.1.10).
    TooManyRecipients(Arc<PeerReply>),
    /// The peer announced CHUNKING and refused BDAT as unknown: a fresh connection may try DATA
    /// at once.
    ChunkingRefused(Arc<PeerReply>),
    /// The peer was out of step when envelope and body came in one flight: a fresh connection may
    /// try the strict way at once.
    OneFlightRefused(Arc<PeerReply>),
    /// The connection ended before the peer said anything about this recipient.
    Connection(ConnectionFailure),
}

impl Deferral {
    /// Whether the peer may have taken the message all the same, so that the next attempt may
    /// make a second copy (RFC 5321 section 4.5.4.1, RFC 1047).
    pub fn possible_duplicate(&self) -> bool {
        matches!(self, Deferral::Connection(failure) if failure.possible_duplicate())
    }
}

/// Why a recipient will not be tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The peer said 5xx.
    Reply(StagedReply),
    /// We did not even ask: the peer cannot take this message.
    Local(LocalRefusal),
}

/// A reply that refuses, and what it answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagedReply {
    /// What it answered.
    pub stage: Stage,
    /// What it said.
    pub reply: Arc<PeerReply>,
}

/// What the peer's EHLO reply forbids for this message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LocalRefusal {
    /// RFC 1870 section 6.1: not to be sent when it is known to be refused.
    #[error("the message has {size_octets} octets and the mail server takes {limit_octets}")]
    TooLarge {
        /// The message's size.
        size_octets: u64,
        /// SIZE of the peer.
        limit_octets: u64,
    },
    /// RFC 8689 section 4.2.1.
    #[error("the sender requires TLS all the way and the mail server does not offer that")]
    NeedsRequireTls,
    /// RFC 6531 section 3.5.
    #[error("the message needs SMTPUTF8 and the mail server does not offer it")]
    NeedsSmtputf8,
    /// A message that came by BDAT with a CR or LF by itself.  By DATA it would break RFC 5321
    /// section 2.3.8, and a lax peer could take its LF.LF for the end of data and the rest for
    /// commands.
    #[error(
        "the message has bare newlines, which need CHUNKING, and the mail server does not offer it"
    )]
    BareNewlines,
    /// RFC 6152 section 3: not converted here, and by policy not sent as it is.
    #[error("the message has 8-bit data and the mail server does not offer 8BITMIME")]
    NeedsEightBitMime,
}

/// The connection failed; this says nothing about the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionFailure {
    /// Where it stood.
    pub stage: Stage,
    /// What happened.
    pub cause: ConnectionCause,
}

/// What ended a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectionCause {
    /// The peer closed it, or the network broke it.
    Closed,
    /// The peer did not answer in time.
    TimedOut,
    /// The peer said 421 (at any time), refused the greeting or EHLO and HELO.
    Refused(Arc<PeerReply>),
    /// A reply that is none in this place: illegal code, unasked for, early, out of step.
    Unexpected(Arc<PeerReply>),
    /// Octets that are not a reply.
    Malformed(ReplyError),
    /// The connection is not encrypted as it should be.
    Tls(TlsTrouble),
    /// We are not logged in.
    Login(LoginTrouble),
    /// We gave up: the body could not be read, or the gateway stops.
    Abandoned,
}

/// Why we are not logged in at a smart host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoginTrouble {
    /// The peer offers no mechanism that we have a secret for and that shows nothing to who reads
    /// along.
    NotOffered,
    /// The peer refused.
    Refused(Arc<PeerReply>),
    /// We gave the exchange up.
    Ours(ClientError),
    /// The secret cannot be read, in these words.
    NoSecret(Box<str>),
}

/// Why there is no TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsTrouble {
    /// It is demanded, and the peer does not offer it.
    NotOffered,
    /// The peer offered it and refused the command.
    Refused(Arc<PeerReply>),
    /// More than its 220 came in clear.
    Injected,
    /// The handshake failed, in these words.
    Handshake(Box<str>),
}

impl ConnectionFailure {
    /// Whether the peer may have taken the message: everything was sent, or the peer claims so.
    pub fn possible_duplicate(&self) -> bool {
        match self.stage {
            Stage::EndOfData => !matches!(self.cause, ConnectionCause::Refused(_)),
            Stage::Body => matches!(self.cause, ConnectionCause::Unexpected(_)),
            _ => false,
        }
    }

    /// What the peer said last, if that ended the connection.
    pub fn reply(&self) -> Option<&Arc<PeerReply>> {
        match &self.cause {
            ConnectionCause::Refused(reply)
            | ConnectionCause::Unexpected(reply)
            | ConnectionCause::Tls(TlsTrouble::Refused(reply))
            | ConnectionCause::Login(LoginTrouble::Refused(reply)) => Some(reply),
            _ => None,
        }
    }
}

impl fmt::Display for ConnectionFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = self.stage;
        match &self.cause {
            ConnectionCause::Closed => write!(f, "the connection was lost {stage}"),
            ConnectionCause::TimedOut => {
                write!(f, "the mail server did not answer in time {stage}")
            }
            ConnectionCause::Refused(_) => {
                write!(f, "the mail server ended the connection {stage}")
            }
            ConnectionCause::Unexpected(_) => {
                write!(f, "the mail server broke the protocol {stage}")
            }
            ConnectionCause::Malformed(_) => {
                write!(f, "the mail server sent no SMTP reply {stage}")
            }
            ConnectionCause::Tls(TlsTrouble::NotOffered) => {
                write!(f, "TLS is required here and the mail server does not offer it")
            }
            ConnectionCause::Tls(TlsTrouble::Refused(_)) => {
                write!(f, "the mail server offers STARTTLS and refuses it")
            }
            ConnectionCause::Tls(TlsTrouble::Injected) => {
                write!(f, "octets in clear came behind the reply to STARTTLS")
            }
            ConnectionCause::Tls(TlsTrouble::Handshake(words)) => f.write_str(words),
            ConnectionCause::Login(LoginTrouble::NotOffered) => {
                write!(f, "the mail server offers no AUTH that may be used on this connection")
            }
            ConnectionCause::Login(LoginTrouble::Refused(_)) => {
                write!(f, "the mail server refused our login")
            }
            ConnectionCause::Login(LoginTrouble::Ours(error)) => {
                write!(f, "we could not log in: {error}")
            }
            ConnectionCause::Login(LoginTrouble::NoSecret(words)) => {
                write!(f, "we could not log in: {words}")
            }
            ConnectionCause::Abandoned => write!(f, "the attempt was cut off here {stage}"),
        }
    }
}

/// What a reply answers, or where a connection stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The 220 after the connection.
    Greeting,
    /// EHLO or HELO.
    Hello,
    /// STARTTLS and the handshake.
    StartTls,
    /// AUTH.
    Login,
    /// Between transactions.
    Idle,
    /// RSET.
    Reset,
    /// MAIL.
    Mail,
    /// RCPT.
    Rcpt,
    /// DATA, before the body.
    Data,
    /// While the body was being sent.
    Body,
    /// After the final dot or the last octet of BDAT LAST.
    EndOfData,
    /// QUIT.
    Quit,
}

/// As a place in time: `at RCPT TO`.
impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Greeting => "at its greeting",
            Stage::Hello => "at EHLO",
            Stage::StartTls => "at STARTTLS",
            Stage::Login => "at AUTH",
            Stage::Idle => "between two messages",
            Stage::Reset => "at RSET",
            Stage::Mail => "at MAIL FROM",
            Stage::Rcpt => "at RCPT TO",
            Stage::Data => "at DATA",
            Stage::Body => "in the middle of the message",
            Stage::EndOfData => "at the end of the message",
            Stage::Quit => "at QUIT",
        })
    }
}
