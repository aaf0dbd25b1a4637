//! The roll call: in the header block of each segment, which spool it belongs to and which
//! segments were in use when it was opened.
//!
//! A file that is gone leaves nothing behind, and a file of another spool looks like one of ours;
//! this is how a start tells.  It stands behind both copies of the header and has a checksum of
//! its own: without it, as with what was written before there was one, nothing is told and nothing
//! else changes.

use std::ops::RangeInclusive;

use super::super::{BLOCK, SegmentNo};

/// Where the copies stand in the header block: each behind a copy of the header.
const COPIES: [usize; 2] = [512, 2048 + 512];
/// Checksum, spool and count.
const FIXED: usize = 12;
const RANGE: usize = 8;
/// What fits between two copies of the header; a spool that is more scattered is told of in part.
const RANGES_MAX: usize = (2048 - 512 - FIXED) / RANGE;

const _: () = assert!(COPIES[1] + FIXED + RANGES_MAX * RANGE <= BLOCK);

/// What a header block says of the spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roll {
    /// A random number, the same in all segments of a spool.
    pub spool: u32,
    /// The segments in use, ascending; all of them, unless they are in very many pieces.
    pub in_use: Vec<RangeInclusive<u32>>,
}

impl Roll {
    /// A roll call of these segments, which ascend.
    pub fn of(spool: u32, segments: impl Iterator<Item = SegmentNo>) -> Roll {
        let mut in_use: Vec<RangeInclusive<u32>> = Vec::new();
        for SegmentNo(no) in segments {
            let ranges = in_use.len();
            match in_use.last_mut() {
                Some(last) if last.end().checked_add(1) == Some(no) => *last = *last.start()..=no,
                _ if ranges == RANGES_MAX => break,
                _ => in_use.push(no..=no),
            }
        }
        Roll { spool, in_use }
    }

    /// Writes both copies into a header block.
    pub fn encode(&self, generation: u64, block: &mut [u8]) {
        let ranges = &self.in_use[..self.in_use.len().min(RANGES_MAX)];
        let mut bytes = Vec::with_capacity(FIXED + ranges.len() * RANGE);
        for word in [0, self.spool, ranges.len() as u32] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        for range in ranges {
            bytes.extend_from_slice(&range.start().to_le_bytes());
            bytes.extend_from_slice(&range.end().to_le_bytes());
        }
        let crc = checksum(generation, &bytes);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        for at in COPIES {
            block[at..at + bytes.len()].copy_from_slice(&bytes);
        }
    }

    /// Reads the roll call of a header block whose header has this generation, if it has a sound
    /// one.
    pub fn decode(block: &[u8], generation: u64) -> Option<Roll> {
        COPIES.into_iter().find_map(|at| Roll::decode_copy(block.get(at..)?, generation))
    }

    fn decode_copy(bytes: &[u8], generation: u64) -> Option<Roll> {
        let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let ranges = word(8)? as usize;
        let bytes = bytes.get(..FIXED + ranges.min(RANGES_MAX + 1).checked_mul(RANGE)?)?;
        if ranges > RANGES_MAX || word(0)? != checksum(generation, bytes) {
            return None;
        }
        let range = |at: usize| Some(word(at)?..=word(at + 4)?);
        let in_use = (0..ranges).map(|place| range(FIXED + place * RANGE)).collect::<Option<_>>();
        Some(Roll { spool: word(4)?, in_use: in_use? })
    }

    /// Those of the roll of which `is_there` does not know.
    pub fn missing(&self, is_there: impl Fn(SegmentNo) -> bool) -> Vec<SegmentNo> {
        let all = self.in_use.iter().cloned().flatten().map(SegmentNo);
        all.filter(|&segment| !is_there(segment)).collect()
    }
}

/// To which spool a directory belongs, if files of several lie in it: that of most files, the
/// first of them where that does not decide.
pub fn spool_of(files: impl Iterator<Item = u32> + Clone) -> Option<u32> {
    let count = |spool: u32| files.clone().filter(|&other| other == spool).count();
    let mut most = None;
    for spool in files.clone() {
        let count = count(spool);
        if most.is_none_or(|(_, highest)| count > highest) {
            most = Some((spool, count));
        }
    }
    most.map(|(spool, _)| spool)
}

fn checksum(generation: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&generation.to_le_bytes()), &bytes[4..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roll(segments: &[u32]) -> Roll {
        Roll::of(7, segments.iter().copied().map(SegmentNo))
    }

    #[test]
    fn it_reads_back_and_survives_the_loss_of_either_copy() {
        let roll = roll(&[1, 2, 3, 7, 9, 10, u32::MAX]);
        assert_eq!(roll.in_use, [1..=3, 7..=7, 9..=10, u32::MAX..=u32::MAX]);
        let mut block = vec![0; BLOCK];
        roll.encode(5, &mut block);
        assert_eq!(Roll::decode(&block, 5), Some(roll.clone()));
        assert_eq!(Roll::decode(&block, 6), None, "of another life");
        for at in COPIES {
            let mut hurt = block.clone();
            hurt[at..at + 100].fill(0xff);
            assert_eq!(Roll::decode(&hurt, 5), Some(roll.clone()));
        }
        assert_eq!(Roll::decode(&[0; BLOCK], 5), None);
        let missing = roll.missing(|segment| segment.0 != 2 && segment.0 != 9);
        assert_eq!(missing, [SegmentNo(2), SegmentNo(9)]);
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let odd: Vec<u32> = (0..10_000).map(|no| 2 * no + 1).collect();
        let roll = roll(&odd);
        assert_eq!(roll.in_use.len(), RANGES_MAX);
        let mut block = vec![0; BLOCK];
        roll.encode(5, &mut block);
        assert_eq!(block[2048..2048 + 512], [0; 512], "the header's second copy is left alone");
        assert_eq!(Roll::decode(&block, 5), Some(roll));
    }

    #[test]
    fn most_files_decide() {
        for (files, spool) in
            [(&[][..], None), (&[3], Some(3)), (&[3, 4, 4], Some(4)), (&[4, 3, 4, 3], Some(4))]
        {
            assert_eq!(spool_of(files.iter().copied()), spool, "{files:?}");
        }
    }

    #[test]
    fn nonsense_is_no_roll() {
        for count in [RANGES_MAX as u32 + 1, u32::MAX] {
            let mut block = vec![0; BLOCK];
            for at in COPIES {
                block[at + 8..at + 12].copy_from_slice(&count.to_le_bytes());
            }
            assert_eq!(Roll::decode(&block, 5), None);
            assert_eq!(Roll::decode(&block[..600], 5), None);
        }
    }
}
