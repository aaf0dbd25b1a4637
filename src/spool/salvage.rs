//! Reading from a disk that fails: what it can still give, in few reads and in bounded time.
//!
//! A read that fails is halved until it is a block; blocks that cannot be read are zeros, which
//! nothing takes for a batch or a record, and are told to whoever asked ([`Lost`]).  What that
//! means is not decided here.  All reads of one recovery, or of one tool, share a [`Patience`]: a
//! disk may take half a minute over each read that fails, and nobody should wait for thousands of
//! them without a word.
//!
//! It fails where the disk refuses for another reason than that it cannot read what stands there,
//! and when the patience is at its end.

use std::io;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::BLOCK;
use super::disk::{Disk, FileNo};

/// Failing reads in one piece after which what still fails of it is given up.
const FAILING_READS_MAX: u32 = 1024;
/// How long all failing reads together may take.  One bad sector of a disk that tries for seven
/// seconds each time is found in 14 reads.
const FAILING_TIME_MAX: Duration = Duration::from_secs(300);
/// A header that cannot be read at first is asked for this often: a path to a disk that fails over
/// costs the reads of a moment.
const HEADER_READS: usize = 4;

/// How long failing reads are put up with, and whether they have been told.
#[derive(Debug)]
pub(crate) struct Patience {
    left: Duration,
    has_told: bool,
}

/// What of a piece could not be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Lost {
    /// How much of it.
    pub(crate) octets: usize,
    /// Where in the file the last of that ends; 0 where nothing is lost.
    pub(crate) end: u64,
}

impl Lost {
    /// Whether everything was read.
    pub(crate) fn is_nothing(self) -> bool {
        self.octets == 0
    }

    fn and(self, behind: Lost) -> Lost {
        Lost { octets: self.octets + behind.octets, end: self.end.max(behind.end) }
    }
}

/// Reads at an offset of one file.
type Read<'r> = dyn FnMut(u64, &mut [u8]) -> io::Result<()> + 'r;

impl Default for Patience {
    fn default() -> Patience {
        Patience { left: FAILING_TIME_MAX, has_told: false }
    }
}

impl Patience {
    /// Reads what can be read, and zeros for the rest.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`] when failing reads have taken too long; else what the disk says,
    /// other than that it cannot read.
    pub(crate) fn read<D: Disk>(
        &mut self,
        disk: &D,
        file: FileNo,
        offset: u32,
        into: &mut [u8],
    ) -> io::Result<Lost> {
        self.salvage(offset.into(), into, &mut |offset, into| disk.read(file, offset as u32, into))
    }

    /// As [`Self::read`] for the first block of a file, which is asked for again if it fails.
    pub(crate) fn read_header(&mut self, into: &mut [u8], read: &mut Read<'_>) -> io::Result<Lost> {
        let mut lost = Lost::default();
        for _ in 0..HEADER_READS {
            lost = self.salvage(0, into, read)?;
            if lost.is_nothing() {
                break;
            }
        }
        Ok(lost)
    }

    /// As [`Self::read`], by whatever reads.
    pub(crate) fn salvage(
        &mut self,
        offset: u64,
        into: &mut [u8],
        read: &mut Read<'_>,
    ) -> io::Result<Lost> {
        let mut tries_left = FAILING_READS_MAX;
        self.salvage_part(offset, into, read, &mut tries_left)
    }

    /// Halves what fails until it is a block.
    fn salvage_part(
        &mut self,
        offset: u64,
        into: &mut [u8],
        read: &mut Read<'_>,
        tries_left: &mut u32,
    ) -> io::Result<Lost> {
        let began = Instant::now();
        match read(offset, into) {
            Ok(()) => return Ok(Lost::default()),
            Err(error) if !is_unreadable(&error) => return Err(error),
            Err(error) => self.failed(offset, &error, began.elapsed())?,
        }
        *tries_left = tries_left.saturating_sub(1);
        if into.len() <= BLOCK || *tries_left == 0 {
            into.fill(0);
            return Ok(Lost { octets: into.len(), end: offset + into.len() as u64 });
        }
        let (first, second) = into.split_at_mut((into.len() / 2).next_multiple_of(BLOCK));
        let middle = offset + first.len() as u64;
        let lost = self.salvage_part(offset, first, read, tries_left)?;
        Ok(lost.and(self.salvage_part(middle, second, read, tries_left)?))
    }

    fn failed(&mut self, offset: u64, error: &io::Error, took: Duration) -> io::Result<()> {
        if !self.has_told {
            self.has_told = true;
            tracing::warn!(offset, %error,
                "the disk fails reads of the spool; what it can still give is looked for, which \
                 may take minutes");
        }
        self.left = self.left.saturating_sub(took);
        match self.left {
            Duration::ZERO => Err(io::Error::new(io::ErrorKind::TimedOut, GIVEN_UP)),
            _ => Ok(()),
        }
    }

    /// One that puts up with less.
    #[cfg(test)]
    pub(crate) fn of(left: Duration) -> Patience {
        Patience { left, has_told: false }
    }
}

const GIVEN_UP: &str = "the disk keeps failing reads, and each takes long: copy the spool to a good \
                        disk (zeros for what cannot be read) and start there";

/// Whether the disk says that it cannot read what stands there.
fn is_unreadable(error: &io::Error) -> bool {
    // What Linux makes of a medium error: EIO, ENODATA since 4.13, EILSEQ where a checksum of the
    // device's own fails.
    matches!(Errno::from_io_error(error), Some(Errno::IO | Errno::NODATA | Errno::ILSEQ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_the_blocks_that_fail_are_read() {
        for bad in [vec![], vec![0], vec![6], vec![2, 3], (0..7).collect::<Vec<u64>>()] {
            let mut into = vec![7; 7 * BLOCK];
            let mut reads = 0;
            let lost = Patience::default().salvage(BLOCK as u64, &mut into, &mut |offset, into| {
                reads += 1;
                let first = offset / BLOCK as u64 - 1;
                let last = first + into.len() as u64 / BLOCK as u64;
                if bad.iter().any(|block| (first..last).contains(block)) {
                    return Err(Errno::IO.into());
                }
                into.fill(1);
                Ok(())
            });
            let end = bad.last().map_or(0, |last| (last + 2) * BLOCK as u64);
            assert_eq!(lost.unwrap(), Lost { octets: bad.len() * BLOCK, end });
            for (block, octets) in into.chunks(BLOCK).enumerate() {
                let expected = u8::from(!bad.contains(&(block as u64)));
                assert!(octets.iter().all(|&octet| octet == expected), "{bad:?}, block {block}");
            }
            assert!(reads < 16, "{reads}");
        }
        let mut refuse = |_: u64, _: &mut [u8]| Err(Errno::ACCESS.into());
        assert!(Patience::default().salvage(0, &mut [0; BLOCK], &mut refuse).is_err());
    }

    #[test]
    fn a_dead_disk_is_not_asked_for_every_block() {
        let mut reads = 0;
        let mut into = vec![1; 16 * 1024 * BLOCK];
        let lost = Patience::default().salvage(0, &mut into, &mut |_, _| {
            reads += 1;
            Err(Errno::IO.into())
        });
        assert_eq!(lost.unwrap().octets, into.len());
        assert!(into.iter().all(|&octet| octet == 0));
        assert!(reads < FAILING_READS_MAX + 32, "{reads}");
    }

    /// Each read takes a millisecond at least, and the patience is for ten over all pieces.
    #[test]
    fn a_slow_disk_that_fails_is_given_up() {
        let mut patience = Patience::of(Duration::from_millis(10));
        let mut reads = 0;
        let mut pieces = 0;
        let error = loop {
            pieces += 1;
            let read = patience.salvage(0, &mut [0; 2 * BLOCK], &mut |_, _| {
                reads += 1;
                std::thread::sleep(Duration::from_millis(1));
                Err(Errno::IO.into())
            });
            match read {
                Ok(lost) => assert_eq!(lost.octets, 2 * BLOCK),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(reads <= 10 && pieces <= 4, "{reads}, {pieces}");
    }

    #[test]
    fn a_header_is_asked_for_again() {
        for failures in 0..8 {
            let mut left = failures;
            let lost = Patience::default().read_header(&mut [0; BLOCK], &mut |_, _| {
                let fails = left > 0;
                left -= usize::from(fails);
                if fails { Err(Errno::IO.into()) } else { Ok(()) }
            });
            assert_eq!(lost.unwrap().is_nothing(), failures < HEADER_READS, "{failures}");
        }
    }
}
