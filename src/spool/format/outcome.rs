//! DONE and DEFER: what became of a message's recipients.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::super::SegmentNo;
use super::record::{Kind, PutBody, RecordView, put_record};
use super::{FormatError, Put, Take};
use crate::limits;
use crate::message::MessageId;

/// Which of a message's recipients a record speaks of, by their index in the envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recipients<'a> {
    /// Every one.
    All,
    /// These, ascending and without repetition.
    Some(&'a [u16]),
}

/// Recipients that need nothing more: delivered, bounced, or removed by an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done<'a> {
    /// The message.
    pub id: MessageId,
    /// Where its MESSAGE record stands.
    pub segment: SegmentNo,
    /// Whom it speaks of.
    pub recipients: Recipients<'a>,
    /// With this, all recipients are done and the message ends.  Said exactly once a message.
    pub last: bool,
}

/// Recipients that wait.  Only the latest of a recipient counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defer<'a> {
    /// The message.
    pub id: MessageId,
    /// Where its MESSAGE record stands.
    pub segment: SegmentNo,
    /// Whom it speaks of.
    pub recipients: Recipients<'a>,
    /// Why they wait.
    pub state: DeferState,
    /// When to try next, in milliseconds since 1970 UTC.
    pub next_attempt_unix_ms: u64,
    /// Attempts made so far.
    pub attempts: u16,
    /// Their originator has been told of the delay, or need not be.
    pub delay_told: bool,
    /// What the peer said last; cut at [`limits::KEPT_REPLY`].
    pub reply: &'a str,
}

/// Why recipients wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DeferState {
    /// For their next attempt.
    Deferred = 0,
    /// For an operator.
    Held = 1,
    /// For their next attempt, past the routes that hold: an operator let them go.
    Released = 2,
}

/// The recipients of a record that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredRecipients {
    /// Every one.
    All,
    /// These, ascending.
    Some(Box<[u16]>),
}

impl StoredRecipients {
    /// Whether it speaks of this recipient.
    pub fn contains(&self, recipient: u16) -> bool {
        match self {
            StoredRecipients::All => true,
            StoredRecipients::Some(list) => list.binary_search(&recipient).is_ok(),
        }
    }
}

/// A DONE that was read; fields as in [`Done`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct StoredDone {
    pub id: MessageId,
    pub segment: SegmentNo,
    pub recipients: StoredRecipients,
    pub last: bool,
}

/// A DEFER that was read; fields as in [`Defer`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct StoredDefer {
    pub id: MessageId,
    pub segment: SegmentNo,
    pub recipients: StoredRecipients,
    pub state: DeferState,
    pub next_attempt_unix_ms: u64,
    pub attempts: u16,
    pub delay_told: bool,
    pub reply: Box<str>,
}

const ALL: u8 = 1;
const LAST: u8 = 2;
/// Of a DEFER.  A reader that does not know it tells of the delay once more.
const DELAY_TOLD: u8 = 2;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawDone {
    segment: U32,
    flags: u8,
    reserved: u8,
    count: U16,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawDefer {
    next_attempt_unix_ms: U64,
    segment: U32,
    attempts: U16,
    state: u8,
    flags: u8,
    count: U16,
    reply_length: U16,
}

impl<'a> Recipients<'a> {
    fn list(self) -> &'a [u16] {
        match self {
            Recipients::All => &[],
            Recipients::Some(list) => list,
        }
    }

    fn flag(self) -> u8 {
        if matches!(self, Recipients::All) { ALL } else { 0 }
    }
}

fn put_list(put: &mut Put<'_>, list: &[u16]) {
    debug_assert!(list.is_sorted_by(|a, b| a < b), "recipients are ascending");
    for &recipient in list {
        put.u16(recipient);
    }
}

fn take_list(take: &mut Take<'_>, all: bool, count: u16) -> Result<StoredRecipients, FormatError> {
    if all {
        return Ok(StoredRecipients::All);
    }
    let octets = take.bytes(count as usize * 2)?;
    let list: Box<[u16]> =
        octets.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
    if !list.is_sorted_by(|a, b| a < b) {
        return Err(FormatError::Malformed("recipient list"));
    }
    Ok(StoredRecipients::Some(list))
}

/// What the records of one outcome may take at most, in octets.
pub(crate) const fn outcome_bytes_max(recipients: usize) -> usize {
    (256 + recipients * 2 + limits::KEPT_REPLY).next_multiple_of(super::RECORD_ALIGN)
}

/// The longest part of `text` up to `octets` that is still text.
fn cut(text: &str, octets: usize) -> &str {
    &text[..text.floor_char_boundary(octets)]
}

impl Done<'_> {
    /// Writes the record; nothing when `out` is too short.
    pub(crate) fn put(&self, out: &mut [u8]) -> Option<usize> {
        let list = self.recipients.list();
        let raw = RawDone {
            segment: self.segment.0.into(),
            flags: self.recipients.flag() | if self.last { LAST } else { 0 },
            reserved: 0,
            count: u16::try_from(list.len()).ok()?.into(),
        };
        put_record(out, Kind::Done, self.id, PutBody::Copy(&[], 0), |put| {
            put.bytes(raw.as_bytes());
            put_list(put, list);
        })
    }

    /// An upper bound of what [`Self::put`] writes, in octets.
    pub(crate) fn bytes_max(&self) -> usize {
        outcome_bytes_max(self.recipients.list().len())
    }
}

impl StoredDone {
    /// Reads a DONE.
    pub fn decode(record: &RecordView<'_>) -> Result<StoredDone, FormatError> {
        let mut take = Take(record.head());
        let raw = RawDone::read_from_bytes(take.bytes(size_of::<RawDone>())?)
            .map_err(|_| FormatError::Truncated)?;
        Ok(StoredDone {
            id: record.id(),
            segment: SegmentNo(raw.segment.get()),
            recipients: take_list(&mut take, raw.flags & ALL != 0, raw.count.get())?,
            last: raw.flags & LAST != 0,
        })
    }
}

impl Defer<'_> {
    /// Writes the record; nothing when `out` is too short.
    pub(crate) fn put(&self, out: &mut [u8]) -> Option<usize> {
        let list = self.recipients.list();
        let reply = cut(self.reply, limits::KEPT_REPLY);
        let raw = RawDefer {
            next_attempt_unix_ms: self.next_attempt_unix_ms.into(),
            segment: self.segment.0.into(),
            attempts: self.attempts.into(),
            state: self.state as u8,
            flags: self.recipients.flag() | if self.delay_told { DELAY_TOLD } else { 0 },
            count: u16::try_from(list.len()).ok()?.into(),
            reply_length: (reply.len() as u16).into(),
        };
        put_record(out, Kind::Defer, self.id, PutBody::Copy(&[], 0), |put| {
            put.bytes(raw.as_bytes());
            put_list(put, list);
            put.bytes(reply.as_bytes());
        })
    }

    /// An upper bound of what [`Self::put`] writes, in octets.
    pub(crate) fn bytes_max(&self) -> usize {
        outcome_bytes_max(self.recipients.list().len())
    }
}

impl StoredDefer {
    /// Reads a DEFER.
    pub fn decode(record: &RecordView<'_>) -> Result<StoredDefer, FormatError> {
        let mut take = Take(record.head());
        let raw = RawDefer::read_from_bytes(take.bytes(size_of::<RawDefer>())?)
            .map_err(|_| FormatError::Truncated)?;
        let recipients = take_list(&mut take, raw.flags & ALL != 0, raw.count.get())?;
        let state = match raw.state {
            0 => DeferState::Deferred,
            1 => DeferState::Held,
            2 => DeferState::Released,
            _ => return Err(FormatError::Malformed("state of a deferral")),
        };
        Ok(StoredDefer {
            id: record.id(),
            segment: SegmentNo(raw.segment.get()),
            recipients,
            state,
            next_attempt_unix_ms: raw.next_attempt_unix_ms.get(),
            attempts: raw.attempts.get(),
            delay_told: raw.flags & DELAY_TOLD != 0,
            reply: take.text(raw.reply_length.get() as usize)?.into(),
        })
    }
}

/// The segment of the message that a DONE or DEFER speaks of, and whether it ends the message:
/// what the accounts need, read without an allocation.
pub(crate) fn subject(record: &RecordView<'_>) -> Result<(SegmentNo, bool), FormatError> {
    let mut take = Take(record.head());
    match record.kind() {
        Kind::Done => {
            let segment = take.u32()?;
            Ok((SegmentNo(segment), take.u8()? & LAST != 0))
        }
        Kind::Defer => {
            take.bytes(8)?;
            Ok((SegmentNo(take.u32()?), false))
        }
        _ => Err(FormatError::Malformed("outcome")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_read_back() {
        let mut out = vec![0; 4096];
        let mut done = Done {
            id: MessageId(5),
            segment: SegmentNo(3),
            recipients: Recipients::Some(&[0, 7, 9]),
            last: true,
        };
        let length = done.put(&mut out).unwrap();
        assert!(length <= done.bytes_max());
        let record = RecordView::parse(&out).unwrap();
        assert_eq!(subject(&record), Ok((SegmentNo(3), true)));
        let stored = StoredDone::decode(&record).unwrap();
        assert_eq!(stored.recipients, StoredRecipients::Some([0, 7, 9].into()));
        assert!(stored.last && stored.recipients.contains(7) && !stored.recipients.contains(8));
        (done.recipients, done.last) = (Recipients::All, false);
        assert_eq!(done.put(&mut out), Some(64), "the common case is one line of the cache");
        let stored = StoredDone::decode(&RecordView::parse(&out).unwrap()).unwrap();
        assert_eq!((stored.recipients, stored.last), (StoredRecipients::All, false));
    }

    #[test]
    fn a_long_reply_is_cut_at_a_character() {
        let reply = "ü".repeat(limits::KEPT_REPLY);
        let defer = Defer {
            id: MessageId(5),
            segment: SegmentNo(3),
            recipients: Recipients::Some(&[1]),
            state: DeferState::Held,
            next_attempt_unix_ms: u64::MAX,
            attempts: 3,
            delay_told: true,
            reply: &format!("4{reply}"),
        };
        let mut out = vec![0; 4096];
        assert!(defer.put(&mut out).unwrap() <= defer.bytes_max());
        let record = RecordView::parse(&out).unwrap();
        assert_eq!(subject(&record), Ok((SegmentNo(3), false)));
        let stored = StoredDefer::decode(&record).unwrap();
        assert_eq!(stored.reply.len(), limits::KEPT_REPLY - 1);
        assert_eq!((stored.state, stored.attempts), (DeferState::Held, 3));
        assert!(stored.delay_told && stored.recipients == StoredRecipients::Some([1].into()));
        assert_eq!(stored.next_attempt_unix_ms, u64::MAX);
    }
}
