//! What a connection is to keep to, and what it is given to send.

use std::sync::Arc;
use std::time::Duration;

use super::login::Login;
use crate::config::EightBit;
use crate::limits;
use crate::message::{BodyFlags, Envelope, Recipient};

/// What a connection is to keep to.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// What EHLO says: our host name, or an address literal.
    pub ehlo_name: Arc<str>,
    /// Which of the two protocols the peer speaks.
    pub protocol: Protocol,
    /// Whether the connection turns to TLS by STARTTLS; `Never` where it is encrypted already.
    pub starttls: StartTls,
    /// The connection runs over TLS from its first octet.
    pub is_secured: bool,
    /// What it logs in with, before any mail.
    pub login: Option<Login>,
    /// How long the peer may take.
    pub timeouts: Timeouts,
    /// False once a peer of the site announced CHUNKING and refused BDAT
    /// ([`TransactionResult::broken_promise`](super::TransactionResult)).
    pub use_chunking: bool,
    /// Whether an envelope and its body may go in one flight.
    pub one_flight: OneFlight,
    /// The most messages under way at a time, where they go in one flight; 0 counts as 1.
    pub messages_in_flight: usize,
    /// What becomes of 8-bit mail for a peer without 8BITMIME.
    pub eight_bit: EightBit,
}

/// What is spoken on the connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// RFC 5321.
    #[default]
    Smtp,
    /// RFC 2033: LHLO, and one reply for each accepted recipient after the data.
    Lmtp,
}

/// Whether a connection turns to TLS (RFC 3207).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum StartTls {
    /// No.
    #[default]
    Never,
    /// Where the peer offers it.
    IfOffered,
    /// Yes, or no mail goes over it.
    Demanded,
}

/// Whether MAIL, RCPT, BDAT LAST and the body may go out before any of their replies has come.
/// It needs PIPELINING and CHUNKING of the peer all the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OneFlight {
    /// No: the peer of this site was out of step once.
    Never,
    /// Once a message went the strict way on this connection and was taken.
    #[default]
    AfterOne,
    /// Yes: a peer of this site has taken a message the strict way before.
    AtOnce,
}

/// How long the peer may take for a reply (RFC 5321 section 4.5.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For the greeting.
    pub greeting: Duration,
    /// For the reply to a command.
    pub command: Duration,
    /// For the reply to the end of data.
    pub data: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            greeting: limits::CLIENT_GREETING,
            command: limits::CLIENT_COMMAND,
            data: limits::CLIENT_DATA_END,
        }
    }
}

/// A transaction's name, unique and growing on its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransactionId(pub u32);

/// A message for some of its recipients.
#[derive(Debug, Clone)]
pub struct Transaction {
    pub(super) envelope: Arc<Envelope>,
    /// Not empty; each `< envelope.recipients.len()`.
    pub(super) recipients: Vec<u16>,
    pub(super) size_octets: u64,
    pub(super) flags: BodyFlags,
}

impl Transaction {
    /// A transaction for those recipients of the envelope that `recipients` names by index.
    ///
    /// `size_octets` is the message with its trace header and without stuffed dots: what BDAT
    /// transfers, and what SIZE means too (RFC 1870 section 3 does not count them).  `flags` is
    /// what the scan of the body found.
    ///
    /// `None` if there are no recipients, or one that the envelope does not have.
    pub fn new(
        envelope: Arc<Envelope>,
        recipients: Vec<u16>,
        size_octets: u64,
        flags: BodyFlags,
    ) -> Option<Transaction> {
        let known = recipients.iter().all(|&index| usize::from(index) < envelope.recipients.len());
        (known && !recipients.is_empty()).then_some(Transaction {
            envelope,
            recipients,
            size_octets,
            flags,
        })
    }

    /// The recipients as indices into the envelope's, in the order of the result's outcomes.
    pub fn recipients(&self) -> &[u16] {
        &self.recipients
    }

    /// The recipient at a place of this transaction.
    pub(super) fn recipient(&self, place: usize) -> &Recipient {
        &self.envelope.recipients[usize::from(self.recipients[place])]
    }

    /// Whether it is small enough to be sent before anything is known of its recipients.  A
    /// large message gains nothing from a round trip less, would be sent in vain if nobody is
    /// taken, and would hold up the replies to what follows it; an envelope of more than an
    /// ordinary size goes in groups (RFC 2920 section 3.1).
    pub(super) fn fits_one_flight(&self) -> bool {
        self.size_octets <= limits::ONE_FLIGHT_OCTETS
            && self.recipients.len() <= limits::ONE_FLIGHT_RECIPIENTS
    }
}
