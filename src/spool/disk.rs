//! What the log asks of a disk: few, synchronous operations on whole blocks.
//!
//! [`FileDisk`](super::FileDisk) is the real one; [`SimDisk`](super::sim_disk::SimDisk) tears,
//! reorders, drops and refuses.  Files are named by number; a file's number has nothing to do
//! with the [`SegmentNo`](super::SegmentNo) of its present life.

use std::io::{self, IoSlice};

/// A segment file of the spool directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileNo(pub u32);

/// Whether a write must be durable when it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// It may be lost in a power cut until [`Disk::sync`].
    Later,
    /// This write is durable when it returns; writes before it are not thereby.
    Data,
}

/// The operations; offsets and lengths are whole blocks, memory is aligned to
/// [`BLOCK`](super::BLOCK).  Shared by the committer, the maintenance and the reader.
pub trait Disk: Send + std::marker::Sync + 'static {
    /// The segment files, quarantined ones left out.
    fn files(&self) -> io::Result<Vec<FileNo>>;

    /// Makes a file of `octets` zeros with `header` in its first block; it exists with all of
    /// that, durably, or not at all.
    fn create(&self, file: FileNo, octets: u32, header: &[u8]) -> io::Result<()>;

    /// The file's length in octets.
    fn length(&self, file: FileNo) -> io::Result<u64>;

    /// Writes all of `parts`, one after the other, from `offset` on.
    fn write(&self, file: FileNo, offset: u32, parts: &[IoSlice<'_>], sync: Sync)
    -> io::Result<()>;

    /// Makes every write to the file so far durable.
    fn sync(&self, file: FileNo) -> io::Result<()>;

    /// Fills `into` from `offset` on.
    fn read(&self, file: FileNo, offset: u32, into: &mut [u8]) -> io::Result<()>;

    /// Renames the file durably so that [`Self::files`] no longer lists it.
    fn quarantine(&self, file: FileNo) -> io::Result<()>;

    /// Removes a file that holds nothing.
    fn remove(&self, file: FileNo) -> io::Result<()>;
}
