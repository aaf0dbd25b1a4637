//! A batch's header: what makes the records behind it count, in this life of the segment only.
//!
//! The worker fills in what it knows when it seals (lengths, the digest of its records); the
//! committer adds segment, generation, sequence and the CRC just before the write.
//!
//! The digest covers the fixed headers of the records in order.  Each of those holds the CRC of
//! its head and of its body, so a batch whose digest and records all verify is whole, and the
//! body's octets, whose CRC the data scanner has already taken, are not read a second time.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::super::{SegmentNo, round_to_block};
use super::record::{RECORD_HEADER, RecordView};
use super::{BATCH_HEADER, FormatError, RECORD_ALIGN};

const MAGIC: u32 = u32::from_le_bytes(*b"MRB1");

/// The decoded header of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// The life of the file to which it belongs.
    pub segment: SegmentNo,
    /// The generation of that life.
    pub generation: u64,
    /// Its place in the one order of all batches.
    pub sequence: u64,
    /// The highest sequence that was known durable when this was written.
    ///
    /// `durable_through < sequence`
    pub durable_through: u64,
    /// The records behind the header, in octets.
    pub payload_length: u32,
    /// How many records those are.
    pub record_count: u32,
    /// CRC-32C over the fixed headers of the records.
    pub digest: u32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct Raw {
    magic: U32,
    segment: U32,
    generation: U64,
    sequence: U64,
    durable_through: U64,
    payload_length: U32,
    digest: U32,
    record_count: U32,
    flags: U16,
    reserved: [u8; 14],
    crc32c: U32,
}

const _: () = assert!(size_of::<Raw>() == BATCH_HEADER);

/// Header and payload in whole blocks: what a batch occupies in its segment.
pub(crate) fn batch_bytes(payload_length: usize) -> usize {
    round_to_block(BATCH_HEADER + payload_length)
}

/// The header's CRC is seeded, so that a header of another life fails also where only its
/// checksum is looked at.
fn header_crc(generation: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&generation.to_le_bytes()), &bytes[..BATCH_HEADER - 4])
}

impl BatchHeader {
    /// Writes the header into the first [`BATCH_HEADER`] octets of `out`.
    pub fn encode(&self, out: &mut [u8]) {
        let mut raw = Raw {
            magic: MAGIC.into(),
            segment: self.segment.0.into(),
            generation: self.generation.into(),
            sequence: self.sequence.into(),
            durable_through: self.durable_through.into(),
            payload_length: self.payload_length.into(),
            digest: self.digest.into(),
            record_count: self.record_count.into(),
            flags: 0.into(),
            reserved: [0; 14],
            crc32c: 0.into(),
        };
        raw.crc32c = header_crc(self.generation, raw.as_bytes()).into();
        out[..BATCH_HEADER].copy_from_slice(raw.as_bytes());
    }

    /// Reads a header and checks all that it says of itself; `generation` is the segment's.
    pub fn decode(bytes: &[u8], generation: u64) -> Result<BatchHeader, FormatError> {
        let (raw, _) = Raw::read_from_prefix(bytes).map_err(|_| FormatError::Truncated)?;
        if raw.magic.get() != MAGIC || raw.generation.get() != generation {
            return Err(FormatError::Magic);
        }
        if raw.crc32c.get() != header_crc(generation, bytes) {
            return Err(FormatError::Checksum("batch header"));
        }
        if raw.flags.get() != 0 {
            return Err(FormatError::MustUnderstand("this batch's flags"));
        }
        let header = BatchHeader {
            segment: SegmentNo(raw.segment.get()),
            generation,
            sequence: raw.sequence.get(),
            durable_through: raw.durable_through.get(),
            payload_length: raw.payload_length.get(),
            record_count: raw.record_count.get(),
            digest: raw.digest.get(),
        };
        let sane = header.durable_through < header.sequence
            && (header.payload_length as usize).is_multiple_of(RECORD_ALIGN);
        sane.then_some(header).ok_or(FormatError::Malformed("batch header"))
    }

    /// What the batch occupies in its segment, in octets.
    pub fn batch_bytes(&self) -> usize {
        batch_bytes(self.payload_length as usize)
    }

    /// Checks that `payload` is exactly the records that were sealed: each record's head and
    /// body, their count and their digest.
    pub fn verify_payload(&self, payload: &[u8]) -> Result<(), FormatError> {
        let mut digest = Digest::default();
        for record in records(payload) {
            let (_, record) = record?;
            record.verify_body()?;
            digest.add(record.bytes());
        }
        self.agrees(digest).then_some(()).ok_or(FormatError::Checksum("batch"))
    }

    /// Whether the fixed headers of the records in `payload` are all as they were sealed, so that
    /// where each record stands and which message it belongs to is certain, whatever has become
    /// of heads and bodies.
    pub fn verify_frames(&self, payload: &[u8]) -> bool {
        let (mut at, mut digest) = (0, Digest::default());
        while let Some(rest) = payload.get(at..).filter(|rest| !rest.is_empty()) {
            let Ok(total) = RecordView::total_length_of(rest) else { return false };
            digest.add(rest);
            at += total;
        }
        at == payload.len() && self.agrees(digest)
    }

    fn agrees(&self, digest: Digest) -> bool {
        (digest.crc32c, digest.record_count) == (self.digest, self.record_count)
    }
}

/// The running digest of the records of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digest {
    /// CRC-32C over the fixed headers so far.
    pub crc32c: u32,
    /// How many those are.
    pub record_count: u32,
}

impl Digest {
    /// Counts one record in; `record` begins with its fixed header.
    pub fn add(&mut self, record: &[u8]) {
        self.crc32c = crc32c::crc32c_append(self.crc32c, &record[..RECORD_HEADER]);
        self.record_count += 1;
    }
}

/// The records of a payload with their offsets in it; ends after the first that is bad.
pub fn records(
    payload: &[u8],
) -> impl Iterator<Item = Result<(usize, RecordView<'_>), FormatError>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = payload.get(at..).filter(|rest| !rest.is_empty())?;
        let record = RecordView::parse(rest);
        let start = at;
        at = record.as_ref().map_or(payload.len(), |record| at + record.total_length());
        Some(record.map(|record| (start, record)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> BatchHeader {
        BatchHeader {
            segment: SegmentNo(2),
            generation: 77,
            sequence: 9,
            durable_through: 8,
            payload_length: 128,
            record_count: 2,
            digest: 5,
        }
    }

    #[test]
    fn a_header_reads_back_in_its_own_generation_only() {
        let mut bytes = [0; BATCH_HEADER];
        header().encode(&mut bytes);
        assert_eq!(BatchHeader::decode(&bytes, 77), Ok(header()));
        assert_eq!(BatchHeader::decode(&bytes, 78), Err(FormatError::Magic));
        for bit in 0..BATCH_HEADER * 8 {
            let mut hurt = bytes;
            hurt[bit / 8] ^= 1 << (bit % 8);
            assert!(BatchHeader::decode(&hurt, 77).is_err(), "bit {bit}");
        }
        for short in 0..BATCH_HEADER {
            assert_eq!(BatchHeader::decode(&bytes[..short], 77), Err(FormatError::Truncated));
        }
    }
}
