//! A record's fixed header and its general shape: header, head, padding, body, padding.
//!
//! The head is what the log and recovery need; the body is octets.  Each has a CRC of its own, so
//! that one record can be trusted without the batch around it.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::super::RECORD_BYTES_MAX;
use super::{FormatError, Put, RECORD_ALIGN};
use crate::message::MessageId;

/// The fixed header in octets.
pub const RECORD_HEADER: usize = 40;
/// In the flags: a reader that does not know the kind must not skip the record.
pub const MUST_UNDERSTAND: u8 = 1;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A message: envelope, trace header, and the body or the places of its chunks.
    Message,
    /// A part of a large body; counts once its MESSAGE is there.
    Chunk,
    /// Recipients that are done.
    Done,
    /// Recipients that wait, and until when.
    Defer,
    /// Reserved for holds, suspensions and the like; none is known to this version.
    Control,
    /// A kind of a later version that may be skipped.
    Unknown(u8),
}

impl Kind {
    const fn number(self) -> u8 {
        match self {
            Kind::Message => 1,
            Kind::Chunk => 2,
            Kind::Done => 3,
            Kind::Defer => 4,
            Kind::Control => 5,
            Kind::Unknown(number) => number,
        }
    }

    const fn of(number: u8) -> Kind {
        match number {
            1 => Kind::Message,
            2 => Kind::Chunk,
            3 => Kind::Done,
            4 => Kind::Defer,
            5 => Kind::Control,
            other => Kind::Unknown(other),
        }
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct Raw {
    kind: u8,
    flags: u8,
    reserved: U16,
    /// Header and head, without padding.
    head_length: U32,
    /// Everything, a multiple of [`RECORD_ALIGN`].
    total_length: U32,
    /// From the record's beginning; a multiple of [`RECORD_ALIGN`].
    body_offset: U32,
    id: U64,
    body_length: U32,
    body_crc32c: U32,
    reserved_end: U32,
    /// Over header and head with this field left out.
    head_crc32c: U32,
}

const _: () = assert!(size_of::<Raw>() == RECORD_HEADER);

/// A record whose lengths and head have been checked; the body has not, see
/// [`Self::verify_body`].
#[derive(Clone, Copy)]
pub struct RecordView<'a> {
    raw: Raw,
    /// Header and head; the whole record when the body is at hand.
    bytes: &'a [u8],
}

impl<'a> RecordView<'a> {
    /// Reads the record at the beginning of `bytes`, which may go on behind it.
    pub fn parse(bytes: &'a [u8]) -> Result<RecordView<'a>, FormatError> {
        let head = Self::parse_head(bytes)?;
        let bytes = bytes.get(..head.total_length()).ok_or(FormatError::Truncated)?;
        Ok(RecordView { raw: head.raw, bytes })
    }

    /// Reads header and head only; `bytes` may end behind the head.  [`Self::body`] is then
    /// empty.
    pub fn parse_head(bytes: &'a [u8]) -> Result<RecordView<'a>, FormatError> {
        let raw = Self::sound_lengths(bytes)?;
        let head = bytes.get(..raw.head_length.get() as usize).ok_or(FormatError::Truncated)?;
        if head_crc(head) != raw.head_crc32c.get() {
            return Err(FormatError::Checksum("record head"));
        }
        if matches!(Kind::of(raw.kind), Kind::Control | Kind::Unknown(_))
            && raw.flags & MUST_UNDERSTAND != 0
        {
            return Err(FormatError::MustUnderstand("this kind of record"));
        }
        Ok(RecordView { raw, bytes: head })
    }

    /// How many octets [`Self::parse_head`] needs, from the first [`RECORD_HEADER`] of a record;
    /// unverified, but within bounds.
    pub fn head_length_of(bytes: &[u8]) -> Result<usize, FormatError> {
        Ok(Self::sound_lengths(bytes)?.head_length.get() as usize)
    }

    /// The whole record's length, unverified as in [`Self::head_length_of`].
    pub(crate) fn total_length_of(bytes: &[u8]) -> Result<usize, FormatError> {
        Ok(Self::sound_lengths(bytes)?.total_length.get() as usize)
    }

    /// Kind and message, unverified: for a record whose fixed header is known to be right from
    /// elsewhere, or to say of what is lost what it probably was.
    pub(crate) fn name_of(bytes: &[u8]) -> Result<(Kind, MessageId), FormatError> {
        let raw = Self::sound_lengths(bytes)?;
        Ok((Kind::of(raw.kind), MessageId(raw.id.get())))
    }

    fn sound_lengths(bytes: &[u8]) -> Result<Raw, FormatError> {
        let (raw, _) = Raw::read_from_prefix(bytes).map_err(|_| FormatError::Truncated)?;
        let [head, total, body, body_length] =
            [raw.head_length, raw.total_length, raw.body_offset, raw.body_length]
                .map(|length| length.get() as usize);
        let sane = head >= RECORD_HEADER
            && head <= body
            && body.is_multiple_of(RECORD_ALIGN)
            && body.checked_add(body_length).is_some_and(|end| end <= total)
            && total.is_multiple_of(RECORD_ALIGN)
            && total <= RECORD_BYTES_MAX;
        sane.then_some(raw).ok_or(FormatError::Malformed("record header"))
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        Kind::of(self.raw.kind)
    }

    /// The message to which it belongs.
    pub fn id(&self) -> MessageId {
        MessageId(self.raw.id.get())
    }

    /// The whole record with its padding, in octets.
    pub fn total_length(&self) -> usize {
        self.raw.total_length.get() as usize
    }

    /// Header and head, in octets.
    pub fn head_length(&self) -> usize {
        self.raw.head_length.get() as usize
    }

    /// The head behind the fixed header.
    pub fn head(&self) -> &'a [u8] {
        &self.bytes[RECORD_HEADER..self.head_length()]
    }

    /// The fixed header and the head as they stand in the file: what an index keeps.
    pub fn header_and_head(&self) -> &'a [u8] {
        &self.bytes[..self.head_length()]
    }

    /// The octets of the body; empty when there is none or only the head was read.
    pub fn body(&self) -> &'a [u8] {
        let start = self.raw.body_offset.get() as usize;
        self.bytes.get(start..start + self.body_length()).unwrap_or_default()
    }

    /// The body's length in octets, whether or not it is at hand.
    pub fn body_length(&self) -> usize {
        self.raw.body_length.get() as usize
    }

    /// The body's CRC-32C as it was noted.
    pub fn body_crc32c(&self) -> u32 {
        self.raw.body_crc32c.get()
    }

    /// All octets that were read.
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Checks the body against its CRC.
    pub fn verify_body(&self) -> Result<(), FormatError> {
        if self.body().len() == self.body_length()
            && crc32c::crc32c(self.body()) == self.body_crc32c()
        {
            Ok(())
        } else {
            Err(FormatError::Checksum("body"))
        }
    }
}

impl std::fmt::Debug for RecordView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {} ({} octets)", self.kind(), self.id(), self.total_length())
    }
}

fn head_crc(head: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&head[..RECORD_HEADER - 4]);
    crc32c::crc32c_append(crc, &head[RECORD_HEADER..])
}

/// Takes the checksum of a whole record's header and head anew.
pub(crate) fn reseal_head(record: &mut [u8]) {
    if let Ok(length) = RecordView::head_length_of(record)
        && length <= record.len()
    {
        let crc = head_crc(&record[..length]);
        record[RECORD_HEADER - 4..RECORD_HEADER].copy_from_slice(&crc.to_le_bytes());
    }
}

/// Where a record's body comes from.
pub(crate) enum PutBody<'a> {
    /// These octets, copied; their CRC-32C is known already.
    Copy(&'a [u8], u32),
    /// It stands in the buffer already, right behind one [`RECORD_ALIGN`] of front.
    InPlace { octets: u32, crc32c: u32 },
}

/// Writes one record at the beginning of `out`, whose own start is aligned to [`RECORD_ALIGN`].
/// Gives its whole length, or nothing when `out` is too short (its octets are then garbage).
pub(crate) fn put_record(
    out: &mut [u8],
    kind: Kind,
    id: MessageId,
    body: PutBody<'_>,
    put_head: impl FnOnce(&mut Put<'_>),
) -> Option<usize> {
    let mut put = Put::new(out);
    put.bytes(&[0; RECORD_HEADER]);
    put_head(&mut put);
    let head_length = put.len()?;
    put.pad_to(RECORD_ALIGN);
    let body_offset = put.len()?;
    let (body_length, body_crc32c) = match body {
        PutBody::Copy(octets, crc32c) => {
            put.bytes(octets);
            (u32::try_from(octets.len()).ok()?, crc32c)
        }
        PutBody::InPlace { octets, crc32c } => {
            debug_assert_eq!(body_offset, RECORD_ALIGN);
            put.at = put.at.checked_add(octets as usize).filter(|&at| at <= put.out.len())?;
            (octets, crc32c)
        }
    };
    put.pad_to(RECORD_ALIGN);
    let total_length = put.len().filter(|&octets| octets <= RECORD_BYTES_MAX)?;
    let raw = Raw {
        kind: kind.number(),
        flags: MUST_UNDERSTAND,
        reserved: 0.into(),
        head_length: (head_length as u32).into(),
        total_length: (total_length as u32).into(),
        body_offset: (body_offset as u32).into(),
        id: id.0.into(),
        body_length: body_length.into(),
        body_crc32c: body_crc32c.into(),
        reserved_end: 0.into(),
        head_crc32c: 0.into(),
    };
    let record = put.written();
    record[..RECORD_HEADER].copy_from_slice(raw.as_bytes());
    let crc = head_crc(&record[..head_length]);
    record[RECORD_HEADER - 4..RECORD_HEADER].copy_from_slice(&crc.to_le_bytes());
    Some(total_length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(body: &[u8]) -> Vec<u8> {
        let mut out = vec![0xee; 1024];
        let body = PutBody::Copy(body, crc32c::crc32c(body));
        let length =
            put_record(&mut out, Kind::Done, MessageId(9), body, |put| put.bytes(b"head")).unwrap();
        out.truncate(length);
        out
    }

    #[test]
    fn a_record_reads_back() {
        let bytes = record(b"the body");
        let view = RecordView::parse(&bytes).unwrap();
        assert_eq!((view.kind(), view.id()), (Kind::Done, MessageId(9)));
        assert_eq!((view.head(), view.body()), (&b"head"[..], &b"the body"[..]));
        assert_eq!(view.total_length(), 128);
        view.verify_body().unwrap();
        assert_eq!(RecordView::parse_head(&bytes[..44]).unwrap().head(), b"head");
    }

    #[test]
    fn bit_flip_is_refused() {
        let bytes = record(b"the body");
        for bit in 0..bytes.len() * 8 {
            let mut hurt = bytes.clone();
            hurt[bit / 8] ^= 1 << (bit % 8);
            let sound = RecordView::parse(&hurt).is_ok_and(|view| view.verify_body().is_ok());
            let is_padding = (44..64).contains(&(bit / 8)) || bit / 8 >= 72;
            assert_eq!(sound, is_padding, "bit {bit}");
        }
    }

    #[test]
    fn a_short_buffer_is_told_at_every_length() {
        let mut out = [0; 128];
        for octets in 0..out.len() {
            let body = PutBody::Copy(b"the body", 0);
            let put = |put: &mut Put<'_>| put.bytes(b"head");
            assert_eq!(put_record(&mut out[..octets], Kind::Done, MessageId(9), body, put), None);
        }
        for octets in 0..128 {
            assert!(RecordView::parse(&record(b"the body")[..octets]).is_err());
        }
    }

    #[test]
    fn an_unknown_kind_is_skipped_unless_it_must_be_understood() {
        let mut bytes = record(b"");
        bytes[0] = 200;
        let seal = |bytes: &mut [u8]| {
            let crc = head_crc(&bytes[..44]);
            bytes[36..40].copy_from_slice(&crc.to_le_bytes());
        };
        seal(&mut bytes);
        assert!(matches!(RecordView::parse(&bytes), Err(FormatError::MustUnderstand(_))));
        bytes[1] = 0;
        seal(&mut bytes);
        assert_eq!(RecordView::parse(&bytes).unwrap().kind(), Kind::Unknown(200));
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_a_disk_gives_panics(bytes in proptest::collection::vec(0u8.., 0..300)) {
            if let Ok(view) = RecordView::parse(&bytes) {
                let _ = (view.head(), view.body(), view.verify_body());
            }
        }
    }
}
