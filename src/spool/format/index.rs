//! The index of a sealed segment: every record's fixed header and head again, side by side, so
//! that recovery reads envelopes and not bodies.
//!
//! It is built as batches are committed, written behind the last batch by the maintenance thread
//! and announced by a footer in the file's last block.  It is a convenience: where it is missing
//! or does not verify, the segment is scanned.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::super::direct::AlignedBuf;
use super::super::{BLOCK, SegmentNo, round_to_block};
use super::record::RecordView;
use super::{FormatError, Put, Take};

const MAGIC: [u8; 8] = *b"MRINDEX1";
/// Before each head in the index: the record's offset in the file, and the head's length.
const ENTRY: usize = 8;

/// What the last block of a sealed segment says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    /// Of the segment's life, as in its header.
    pub generation: u64,
    /// As in its header.
    pub segment: SegmentNo,
    /// Where the index begins, in octets from the file's beginning; a whole number of blocks.
    pub index_offset: u32,
    /// Octets of index, without padding.
    pub index_length: u32,
    /// Records in it.
    pub record_count: u32,
    /// The last sequence in the segment.
    pub last_sequence: u64,
    /// CRC-32C over the index.
    pub index_crc32c: u32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    generation: U64,
    last_sequence: U64,
    segment: U32,
    index_offset: U32,
    index_length: U32,
    record_count: U32,
    index_crc32c: U32,
    crc32c: U32,
}

const RAW: usize = size_of::<Raw>();

impl Footer {
    /// Fills the last block.
    pub fn encode(&self, block: &mut [u8]) {
        let mut raw = Raw {
            magic: MAGIC,
            generation: self.generation.into(),
            last_sequence: self.last_sequence.into(),
            segment: self.segment.0.into(),
            index_offset: self.index_offset.into(),
            index_length: self.index_length.into(),
            record_count: self.record_count.into(),
            index_crc32c: self.index_crc32c.into(),
            crc32c: 0.into(),
        };
        raw.crc32c = crc32c::crc32c(&raw.as_bytes()[..RAW - 4]).into();
        block[..BLOCK].fill(0);
        block[..RAW].copy_from_slice(raw.as_bytes());
    }

    /// Reads the last block of the segment that has this generation.
    pub fn decode(block: &[u8], generation: u64) -> Result<Footer, FormatError> {
        let (raw, _) = Raw::read_from_prefix(block).map_err(|_| FormatError::Truncated)?;
        if raw.magic != MAGIC || raw.generation.get() != generation {
            return Err(FormatError::Magic);
        }
        if raw.crc32c.get() != crc32c::crc32c(&block[..RAW - 4]) {
            return Err(FormatError::Checksum("segment footer"));
        }
        Ok(Footer {
            generation,
            segment: SegmentNo(raw.segment.get()),
            index_offset: raw.index_offset.get(),
            index_length: raw.index_length.get(),
            record_count: raw.record_count.get(),
            last_sequence: raw.last_sequence.get(),
            index_crc32c: raw.index_crc32c.get(),
        })
    }
}

/// What one record adds to an index, in octets.
pub(crate) fn entry_bytes(head_length: usize) -> usize {
    ENTRY + head_length
}

/// Gathers the index of the segment that is being written.
#[derive(Debug, Default)]
pub(crate) struct IndexBuilder {
    bytes: Vec<u8>,
    record_count: u32,
}

impl IndexBuilder {
    /// Takes in one record that stands at `offset` of the file.
    pub(crate) fn add(&mut self, offset: u32, record: &RecordView<'_>) {
        let head = record.header_and_head();
        self.bytes.extend_from_slice(&offset.to_le_bytes());
        self.bytes.extend_from_slice(&(head.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(head);
        self.record_count += 1;
    }

    /// Octets so far.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The records so far.
    pub(crate) fn entries(
        &self,
    ) -> impl Iterator<Item = Result<(u32, RecordView<'_>), FormatError>> {
        entries(&self.bytes)
    }

    /// Octets of segment that an index of `octets` takes with its footer.
    pub(crate) fn room(octets: usize) -> usize {
        round_to_block(octets) + BLOCK
    }

    /// The blocks to write so that they end with the segment, and where; nothing if there is no
    /// room behind `position`.
    pub(crate) fn finish(
        &self,
        segment: SegmentNo,
        generation: u64,
        last_sequence: u64,
        position: u32,
        segment_bytes: u32,
    ) -> Option<(u32, AlignedBuf)> {
        let room = Self::room(self.len());
        let offset = segment_bytes.checked_sub(u32::try_from(room).ok()?)?;
        if offset < position {
            return None;
        }
        let mut blocks = AlignedBuf::new(room);
        Put::new(&mut blocks).bytes(&self.bytes);
        let footer = Footer {
            generation,
            segment,
            index_offset: offset,
            index_length: self.len() as u32,
            record_count: self.record_count,
            last_sequence,
            index_crc32c: crc32c::crc32c(&self.bytes),
        };
        footer.encode(&mut blocks[room - BLOCK..]);
        Some((offset, blocks))
    }
}

/// The records of an index that has been verified against its footer: offset in the file, head.
pub(crate) fn entries(
    index: &[u8],
) -> impl Iterator<Item = Result<(u32, RecordView<'_>), FormatError>> {
    let mut take = Take(index);
    std::iter::from_fn(move || {
        if take.is_empty() {
            return None;
        }
        let entry = take_entry(&mut take);
        if entry.is_err() {
            take = Take(&[]);
        }
        Some(entry)
    })
}

fn take_entry<'a>(take: &mut Take<'a>) -> Result<(u32, RecordView<'a>), FormatError> {
    let offset = take.u32()?;
    let length = take.u32()? as usize;
    let record = RecordView::parse_head(take.bytes(length)?)?;
    Ok((offset, record))
}
