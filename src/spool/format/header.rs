//! A segment's header block: who this file is in this life, and where the log was before it.
//!
//! The header is kept twice, in two sectors of the first block that are written together; the
//! copy with the higher revision counts.  One flipped bit, or a tear between the two, therefore
//! never costs a segment.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::super::{BLOCK, SegmentNo};
use super::{FORMAT_VERSION, FormatError};

const MAGIC: [u8; 8] = *b"MAILRACE";
/// Where the copies stand in the block.
const COPIES: [usize; 2] = [0, 2048];

/// What a segment file is at present.  That it is sealed is said by its footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum SegmentState {
    /// It holds nothing; its generation is that of its next life.
    Free = 0,
    /// It holds, or may come to hold, records.
    Open = 1,
    /// It was found damaged; nothing in it is needed any more, it is kept for inspection.
    Quarantined = 2,
}

/// The decoded header of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Grows by one each time the header is rewritten.
    pub revision: u64,
    /// What the file is.
    pub state: SegmentState,
    /// The size of the file in octets.
    pub segment_bytes: u32,
    /// A random number that stands in every batch of this life, so that stale batches of
    /// earlier lives never pass.
    pub generation: u64,
    /// Which life of a file this is; while free, which was the last one, 0 for none.
    pub segment: SegmentNo,
    /// The segment that was the log's head before.
    pub predecessor: SegmentNo,
    /// The sequence of this segment's first batch.
    pub first_sequence: u64,
    /// The last sequence before this segment that counts.
    ///
    /// `predecessor_last < first_sequence`
    pub predecessor_last: u64,
    /// The sequences, first and last, that a failed commit or a torn tail left behind and that
    /// must never count wherever they are found.
    pub voided: Option<(u64, u64)>,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: U32,
    state: U32,
    revision: U64,
    generation: U64,
    segment_bytes: U32,
    segment: U32,
    predecessor: U32,
    reserved: U32,
    first_sequence: U64,
    predecessor_last: U64,
    voided_first: U64,
    voided_last: U64,
    reserved_end: U32,
    crc32c: U32,
}

const RAW: usize = size_of::<Raw>();
const _: () = assert!(RAW <= 512, "a copy must fit one sector, which no disk tears");

impl SegmentHeader {
    /// The header of a file that holds nothing.
    pub fn free(segment_bytes: u32, generation: u64, revision: u64) -> SegmentHeader {
        SegmentHeader {
            revision,
            state: SegmentState::Free,
            segment_bytes,
            generation,
            segment: SegmentNo(0),
            predecessor: SegmentNo(0),
            first_sequence: 0,
            predecessor_last: 0,
            voided: None,
        }
    }

    /// Fills the header block: both copies, everything else zero.
    pub fn encode(&self, block: &mut [u8]) {
        let (voided_first, voided_last) = self.voided.unwrap_or((0, 0));
        let mut raw = Raw {
            magic: MAGIC,
            version: FORMAT_VERSION.into(),
            state: (self.state as u32).into(),
            revision: self.revision.into(),
            generation: self.generation.into(),
            segment_bytes: self.segment_bytes.into(),
            segment: self.segment.0.into(),
            predecessor: self.predecessor.0.into(),
            reserved: 0.into(),
            first_sequence: self.first_sequence.into(),
            predecessor_last: self.predecessor_last.into(),
            voided_first: voided_first.into(),
            voided_last: voided_last.into(),
            reserved_end: 0.into(),
            crc32c: 0.into(),
        };
        raw.crc32c = crc32c::crc32c(&raw.as_bytes()[..RAW - 4]).into();
        block[..BLOCK].fill(0);
        for at in COPIES {
            block[at..at + RAW].copy_from_slice(raw.as_bytes());
        }
    }

    /// Reads a header block.
    ///
    /// # Errors
    /// [`FormatError::Magic`] when neither copy is ours: a foreign file.
    /// [`FormatError::Version`] when a sound copy has another version.
    /// Anything else means that both copies are damaged.
    pub fn decode(block: &[u8]) -> Result<SegmentHeader, FormatError> {
        let [first, second] = COPIES.map(|at| {
            block.get(at..at + RAW).ok_or(FormatError::Truncated).and_then(Self::decode_copy)
        });
        match (first, second) {
            (Ok(first), Ok(second)) if second.revision > first.revision => Ok(second),
            (Ok(header), _) | (_, Ok(header)) => Ok(header),
            (Err(FormatError::Magic), Err(other)) | (Err(other), _) => Err(other),
        }
    }

    fn decode_copy(bytes: &[u8]) -> Result<SegmentHeader, FormatError> {
        let raw = Raw::read_from_bytes(bytes).map_err(|_| FormatError::Truncated)?;
        if raw.magic != MAGIC {
            return Err(FormatError::Magic);
        }
        if raw.crc32c.get() != crc32c::crc32c(&bytes[..RAW - 4]) {
            return Err(FormatError::Checksum("segment header"));
        }
        if raw.version.get() != FORMAT_VERSION {
            return Err(FormatError::Version(raw.version.get()));
        }
        let state = match raw.state.get() {
            0 => SegmentState::Free,
            1 => SegmentState::Open,
            2 => SegmentState::Quarantined,
            _ => return Err(FormatError::Malformed("segment state")),
        };
        let voided = (raw.voided_first.get(), raw.voided_last.get());
        if voided.0 > voided.1 {
            return Err(FormatError::Malformed("voided range"));
        }
        Ok(SegmentHeader {
            revision: raw.revision.get(),
            state,
            segment_bytes: raw.segment_bytes.get(),
            generation: raw.generation.get(),
            segment: SegmentNo(raw.segment.get()),
            predecessor: SegmentNo(raw.predecessor.get()),
            first_sequence: raw.first_sequence.get(),
            predecessor_last: raw.predecessor_last.get(),
            voided: (voided != (0, 0)).then_some(voided),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            state: SegmentState::Open,
            segment: SegmentNo(7),
            predecessor: SegmentNo(6),
            first_sequence: 100,
            predecessor_last: 95,
            voided: Some((96, 99)),
            ..SegmentHeader::free(1 << 20, 0xfeed, 3)
        }
    }

    #[test]
    fn it_reads_back_and_survives_the_loss_of_either_copy() {
        let mut block = vec![0xff; BLOCK];
        header().encode(&mut block);
        assert_eq!(SegmentHeader::decode(&block), Ok(header()));
        for at in COPIES {
            for byte in 0..RAW {
                let mut hurt = block.clone();
                hurt[at + byte] ^= 4;
                assert_eq!(SegmentHeader::decode(&hurt), Ok(header()), "byte {byte} of {at}");
            }
        }
    }

    #[test]
    fn a_tear_between_the_copies_gives_the_newer() {
        let (mut old, mut new) = (vec![0; BLOCK], vec![0; BLOCK]);
        header().encode(&mut old);
        let freed = SegmentHeader::free(1 << 20, 1, 4);
        freed.encode(&mut new);
        old[2048..].copy_from_slice(&new[2048..]);
        assert_eq!(SegmentHeader::decode(&old), Ok(freed));
    }

    #[test]
    fn foreign_other_version_and_damaged_are_told_apart() {
        assert_eq!(SegmentHeader::decode(&[0; BLOCK]), Err(FormatError::Magic));
        assert_eq!(SegmentHeader::decode(&[]), Err(FormatError::Truncated));
        let mut block = vec![0; BLOCK];
        header().encode(&mut block);
        let mut hurt = block.clone();
        hurt[16] ^= 1;
        hurt[2048 + 17] ^= 1;
        assert_eq!(SegmentHeader::decode(&hurt), Err(FormatError::Checksum("segment header")));
        let mut old = block.clone();
        for at in COPIES {
            old[at + 8] = 9;
            let crc = crc32c::crc32c(&old[at..at + RAW - 4]);
            old[at + RAW - 4..at + RAW].copy_from_slice(&crc.to_le_bytes());
        }
        assert_eq!(SegmentHeader::decode(&old), Err(FormatError::Version(9)));
    }
}
