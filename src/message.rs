//! A message as every part of the gateway knows it: its id, its envelope, and what the scan of
//! its body found.  Types only; parsed once at the edge (`smtp`), stored by `spool`, read by
//! `delivery`.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use crate::smtp::address::{ForwardPath, ReversePath};

/// A message's stable 64-bit name, from its acceptance to its last outcome, across restarts.
///
/// From the most significant bit: 41 bits of milliseconds since 2025-01-01 UTC, 7 bits of worker,
/// 16 bits of counter; so ids sort by time.  Written as 13 characters of Crockford's base 32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub u64);

/// What an acknowledged message survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Synced to the disk before the 250: survives a power cut.
    Fsync,
    /// Handed to the operating system before the 250: survives a crash of the process.
    Os,
}

/// Everything that MAIL and RCPT said (RFC 5321 section 2.3.1, RFC 3461).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Where notices go.
    pub reverse_path: ReversePath,
    /// RET, ENVID, BODY, SMTPUTF8 and REQUIRETLS as given.
    pub parameters: MailParameters,
    /// In the order of RCPT; an index into this list names a recipient in DONE and DEFER.
    pub recipients: Vec<Recipient>,
}

/// The parameters of MAIL that are kept with the message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MailParameters {
    /// BODY= (RFC 6152).
    pub body: BodyKind,
    /// SMTPUTF8 was asked for (RFC 6531).
    pub smtputf8: bool,
    /// REQUIRETLS was asked for (RFC 8689): it goes only where TLS and the next hop's name are
    /// proved, and on from there likewise.
    pub require_tls: bool,
    /// RET= (RFC 3461 section 4.3).
    pub ret: Option<Ret>,
    /// ENVID= as it came, still xtext (RFC 3461 section 4.4).
    pub envid: Option<Box<str>>,
}

/// BODY= (RFC 6152).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BodyKind {
    /// 7BIT, or nothing said.
    #[default]
    SevenBit,
    /// 8BITMIME.
    EightBitMime,
}

/// RET= (RFC 3461 section 4.3): how much of the message a failure notice returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ret {
    /// The whole message.
    Full,
    /// The header only.
    Headers,
}

/// One RCPT that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient {
    /// The address.
    pub path: ForwardPath,
    /// NOTIFY=, or what holds without it.
    pub notify: Notify,
    /// ORCPT= as it came: `addr-type;xtext` (RFC 3461 section 4.2).
    pub orcpt: Option<Box<str>>,
}

/// NOTIFY= (RFC 3461 section 4.1), a set of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notify(pub u8);

impl Notify {
    /// NOTIFY=NEVER: no notice of any kind.
    pub const NEVER: Notify = Notify(0);
    /// NOTIFY includes SUCCESS.
    pub const SUCCESS: Notify = Notify(1);
    /// NOTIFY includes FAILURE.
    pub const FAILURE: Notify = Notify(2);
    /// NOTIFY includes DELAY.
    pub const DELAY: Notify = Notify(4);
    /// NOTIFY was not given: failures and delays are told (RFC 3461 section 4.1).
    pub const UNSPECIFIED: Notify = Notify(8);

    /// Whether a failure of this recipient is told to the originator.
    pub fn on_failure(self) -> bool {
        self.0 & (Self::FAILURE.0 | Self::UNSPECIFIED.0) != 0
    }

    /// Whether a delay of this recipient is told to the originator.
    pub fn on_delay(self) -> bool {
        self.0 & (Self::DELAY.0 | Self::UNSPECIFIED.0) != 0
    }

    /// Whether the delivery to this recipient is told to the originator.
    pub fn on_success(self) -> bool {
        self.0 & Self::SUCCESS.0 != 0
    }

    /// Whether the parameter was given, so that it must be passed on.
    pub fn is_given(self) -> bool {
        self != Self::UNSPECIFIED
    }
}

/// Where a message came from: kept with it for trace, events and later checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The client's address.
    pub client: SocketAddr,
    /// The listener's address.
    pub listener: SocketAddr,
    /// What the client called itself in HELO or EHLO.
    pub helo: Box<str>,
    /// When the message was accepted, in milliseconds since 1970 UTC.
    pub accepted_unix_ms: u64,
}

/// What one scan of the body found; the body itself is kept in the form in which it came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BodySummary {
    /// Octets as kept: stuffed dots counted, the final `.CRLF` not.
    pub octets: u64,
    /// CRC-32C of those octets.
    pub crc32c: u32,
    /// The longest line in octets, without its CRLF.
    pub longest_line: u32,
    /// See [`BodyFlags`].
    pub flags: BodyFlags,
}

/// Facts about a body that decide how it may be sent on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BodyFlags(pub u16);

impl BodyFlags {
    /// It came by DATA, so lines that begin with a dot carry one more; else by BDAT, as it is.
    pub const DATA: BodyFlags = BodyFlags(1);
    /// At least one line begins with a dot as kept.  Without it both forms are the same octets.
    pub const LEADING_DOTS: BodyFlags = BodyFlags(2);
    /// An octet above 127.
    pub const EIGHT_BIT: BodyFlags = BodyFlags(4);
    /// A NUL.
    pub const NUL: BodyFlags = BodyFlags(8);
    /// A CR without LF (BDAT only; DATA refuses it).
    pub const BARE_CR: BodyFlags = BodyFlags(16);
    /// An LF without CR (BDAT only; DATA refuses it).
    pub const BARE_LF: BodyFlags = BodyFlags(32);
    /// The last octets are CRLF, or there are none.
    pub const ENDS_WITH_CRLF: BodyFlags = BodyFlags(64);

    /// Whether all of `other` is set.
    pub fn contains(self, other: BodyFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Sets all of `other`.
    pub fn insert(&mut self, other: BodyFlags) {
        self.0 |= other.0;
    }
}

impl std::ops::BitOr for BodyFlags {
    type Output = BodyFlags;
    fn bitor(self, other: BodyFlags) -> BodyFlags {
        BodyFlags(self.0 | other.0)
    }
}

/// Milliseconds from 1970 to 2025-01-01 UTC, where ids begin.
const EPOCH_UNIX_MS: u64 = 1_735_689_600_000;
/// Bits of an id below its milliseconds: 7 of worker, 16 of counter.
const BELOW_TIME: u32 = 23;

impl MessageId {
    /// When the id was made, in milliseconds since 1970 UTC.
    pub fn unix_ms(self) -> u64 {
        EPOCH_UNIX_MS + (self.0 >> BELOW_TIME)
    }
}

/// Makes the ids of one worker: each greater than the last, whatever the clock does.
#[derive(Debug)]
pub struct MessageIds {
    worker: u64,
    /// Milliseconds since the ids' epoch, and the counter within them.
    last: (u64, u16),
}

impl MessageIds {
    /// Ids of `worker`, greater than `highest`, the highest one that recovery saw.
    pub fn new(worker: u8, highest: MessageId) -> MessageIds {
        let worker = u64::from(worker & 0x7f);
        MessageIds { worker, last: ((highest.0 >> BELOW_TIME) + 1, 0) }
    }

    /// The next one.
    pub fn next(&mut self, now_unix_ms: u64) -> MessageId {
        let now = now_unix_ms.saturating_sub(EPOCH_UNIX_MS);
        self.last = match self.last {
            (ms, _) if now > ms => (now, 0),
            (ms, u16::MAX) => (ms + 1, 0),
            (ms, count) => (ms, count + 1),
        };
        MessageId(self.last.0 << BELOW_TIME | self.worker << 16 | u64::from(self.last.1))
    }
}

const BASE32: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0u8; 13];
        for (place, digit) in text.iter_mut().rev().enumerate() {
            *digit = BASE32[(self.0 >> (5 * place) & 31) as usize];
        }
        f.write_str(std::str::from_utf8(&text).expect("the alphabet is ASCII"))
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not 13 characters of Crockford's base 32 that make 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message id is 13 letters and digits, as in the 250 reply and in `mailrace queue list`")]
pub struct NotAMessageId;

impl FromStr for MessageId {
    type Err = NotAMessageId;

    fn from_str(text: &str) -> Result<Self, NotAMessageId> {
        if text.len() != 13 {
            return Err(NotAMessageId);
        }
        text.bytes().try_fold(MessageId(0), |id, digit| {
            let digit = digit.to_ascii_lowercase();
            let value = BASE32.iter().position(|&d| d == digit).ok_or(NotAMessageId)?;
            if id.0 >> 59 != 0 {
                return Err(NotAMessageId);
            }
            Ok(MessageId(id.0 << 5 | value as u64))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_grow_even_when_the_clock_stands_or_goes_back() {
        let start = EPOCH_UNIX_MS + 5_000;
        let mut ids = MessageIds::new(3, MessageId(4_000 << BELOW_TIME));
        let mut last = ids.next(start);
        assert_eq!(last.unix_ms(), start);
        for step in 0..200_000u64 {
            let next = ids.next(start - step % 3);
            assert!(next > last);
            last = next;
        }
        let behind = MessageIds::new(3, last).next(start);
        assert!(behind > last, "ids of a new start follow those of the log");
    }

    #[test]
    fn an_id_reads_back_as_it_was_written() {
        for id in [0, 1, 31, 32, 0x0123_4567_89ab_cdef, u64::MAX] {
            let text = MessageId(id).to_string();
            assert_eq!(text.len(), 13);
            assert_eq!(text.parse(), Ok(MessageId(id)));
            assert_eq!(text.to_uppercase().parse(), Ok(MessageId(id)));
        }
        for text in ["", "0", "zzzzzzzzzzzzz", "000000000000u", "00000000000000"] {
            assert_eq!(text.parse::<MessageId>(), Err(NotAMessageId), "{text}");
        }
    }
}
