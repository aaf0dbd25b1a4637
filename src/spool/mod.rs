//! The log: one append-only sequence of segments that holds every accepted message until its
//! last recipient is done.  It stands between `inbound`, which appends, and `queue`, which is
//! told by completions what exists and appends outcomes in turn.
//!
//! ```text
//! worker            committer             maintenance           reader
//! Appender ──batch──▶ Log::commit ──chore──▶ Chore::perform
//!    ▲                  │ one write,           │ zero, index,
//!    └──── Completion ◀─┘ one sync             ▼ retire            ReadRequest ─▶ ReadAnswer
//! ```
//!
//! The bytes are in [`mod@format`] and in `docs/spool-format.md`.  All logic ([`Appender`], [`Log`],
//! [`Accounts`], [`recovery`]) is free of threads and clocks and runs over a small [`Disk`]
//! trait, so that [`sim_disk::SimDisk`] can tear, reorder, drop and refuse.
//!
//! Invariants:
//! - A [`Completion`] that says yes to a [`Durability::Fsync`](crate::message::Durability) batch
//!   is made only when that batch and every lower sequence is on the disk.
//! - A batch that was refused is void on the disk before its refusal is told.
//! - A segment is reused only after its header says durably that it is free, and the outcomes
//!   which others hold for its messages are let go only after that.
//! - A copy that the compaction makes says what was true when it was committed: an outcome that
//!   comes in between keeps the copy from being written.
//!
//! It fails by [`CommitError`]: the disk is full (try later), the disk refused this batch (try
//! later), the log has stopped (an operator must look).  What is read and does not verify is an
//! error of that one read.
//!
//! It does not know what a recipient is beyond its index, and does not schedule.

pub mod accounts;
pub mod appender;
pub mod buffer;
pub mod chore;
pub mod committer;
mod compaction;
pub mod direct;
pub mod disk;
pub mod file_disk;
mod fold;
pub mod format;
pub mod log;
pub mod reader;
pub mod recovery;
mod salvage;
mod scan;
pub mod sealed;
pub mod segments;
pub mod sim_disk;
pub mod stats;
#[cfg(test)]
mod test_kit;
pub mod tools;

use std::fmt;

pub use accounts::Accounts;
pub use appender::{
    Appender, AppenderOptions, ChunkTicket, NewRecord, Refused, Settled, SettledRecord, Ticket,
};
pub use buffer::{ChunkBuffer, SharedBatch, WeakBatch};
pub use committer::{Committer, CommitterHandle, CompletionSink};
pub use disk::{Disk, FileNo};
pub use file_disk::FileDisk;
pub use format::message::{ChunkPlace, Extension, NewBody, NewMessage, StoredBody, StoredMessage};
pub use format::outcome::{Defer, DeferState, Done, Recipients, StoredDefer, StoredDone};
pub use format::record::{Kind, RecordView};
#[doc(hidden)]
pub use log::Mistake;
pub use log::{Log, LogOptions};
pub use reader::{
    Part, ReadAnswer, ReadError, ReadRecord, ReadRequest, ReadSink, Reader, ReaderHandle,
};
pub use recovery::{RecoveredMessage, RecoveryError, RecoveryReport, RecoveryVisitor, recover};
pub use sealed::{BatchPlace, CommitError, Completion, SealedBatch};
pub use segments::{SegmentPin, SegmentTable};
pub use stats::SpoolStats;

/// The unit of everything that is written: what direct I/O and all known disks accept.
pub const BLOCK: usize = 4096;
/// A segment file's size unless a test wants smaller ones.
pub const SEGMENT_BYTES: u32 = 64 * 1024 * 1024;
/// A batch buffer: large enough to make one write worth its sync, small enough to have several.
pub const BATCH_BYTES: usize = 1024 * 1024;
/// The longest record: a message with 32,768 recipients whose every address is as long as it may
/// be.  What is longer is refused when appended and is damage when read.
pub const RECORD_BYTES_MAX: usize = 32 * 1024 * 1024;

/// One life of a segment file: grows by one each time a file is opened as the log's head, and is
/// never given twice.  A record that names it names nothing once the segment was retired.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentNo(pub u32);

impl fmt::Display for SegmentNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for SegmentNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "segment {}", self.0)
    }
}

/// Where a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordPlace {
    /// In which life of a segment file.
    pub segment: SegmentNo,
    /// From the beginning of the file, in octets; a multiple of [`format::RECORD_ALIGN`].
    pub offset: u32,
    /// The whole record in octets, its padding counted; a multiple of [`format::RECORD_ALIGN`].
    pub length: u32,
}

const _: () = assert!(size_of::<RecordPlace>() == 12);
const _: () = assert!(RECORD_BYTES_MAX + 3 * BLOCK < SEGMENT_BYTES as usize);

/// Rounds up to whole blocks.
pub(crate) const fn round_to_block(octets: usize) -> usize {
    octets.next_multiple_of(BLOCK)
}
