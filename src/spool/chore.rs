//! What the maintenance thread does so that the committer never waits for metadata: make and zero
//! spare segments, write indexes, retire the dead, read for the compaction.
//!
//! [`Log`](super::Log) hands out chores and takes their results; [`Chore::perform`] is all the I/O
//! there is, and the simulator calls it as it likes.  A chore that fails loses nothing: a segment
//! that cannot be retired stays pinned, and a spare that cannot be made leaves the log full.

use std::io::{self, IoSlice};
use std::sync::Arc;

use super::compaction::{Made, Plan, Survey, Task, Work};
use super::direct::AlignedBuf;
use super::disk::{Disk, FileNo, Sync};
use super::format::header::{SegmentHeader, SegmentState};
use super::segments::SegmentTable;
use super::{BLOCK, SegmentNo};

/// A piece of work outside the path of a message.
#[derive(Debug)]
pub enum Chore {
    /// Make a zeroed segment file.
    Create {
        /// Its number, not in use.
        file: FileNo,
        /// Its size.
        segment_bytes: u32,
    },
    /// Write the index of a closed segment; it ends with the file.
    Index {
        /// Where.
        file: FileNo,
        /// From this octet on.
        offset: u32,
        /// The index and the footer.
        blocks: AlignedBuf,
    },
    /// Say durably that a dead segment is free, or, where it was damaged, quarantined.
    Retire {
        /// The life that ends.
        segment: SegmentNo,
        /// Its file.
        file: FileNo,
        /// Its size.
        segment_bytes: u32,
        /// One more than its header has.
        revision: u64,
        /// The file is not to be used again, but to be set aside.
        quarantine: bool,
    },
    /// Read what a segment holds, for the compaction.
    Survey {
        /// What has been read so far.
        survey: Box<Survey>,
        /// What to read.
        task: Box<Task>,
    },
    /// Work out what is to be written again.
    Plan {
        /// All that has been read.
        survey: Box<Survey>,
    },
    /// Read what is to be written again, for the compaction.
    Copy {
        /// What.
        work: Box<Work>,
        /// Where the segments are.
        table: Arc<SegmentTable>,
    },
    /// Keep aside a file that is of no use, or to be looked at: its header could not be written or
    /// read, or says that it is quarantined.
    SetAside {
        /// The file.
        file: FileNo,
    },
    /// Remove a spare that is one too many.
    Remove {
        /// The spare.
        file: FileNo,
    },
}

/// What became of a chore.
#[derive(Debug)]
pub enum ChoreDone {
    /// A spare was made.
    Created(Spare),
    /// No spare could be made.
    NotCreated(io::Error),
    /// The segment's header says that it is free, or that it is quarantined; its file is a spare
    /// in the first case.
    Retired {
        /// The life that ended.
        segment: SegmentNo,
        /// The file for its next one.
        spare: Option<Spare>,
    },
    /// The header could not be rewritten: it stays as it is.
    NotRetired {
        /// The segment.
        segment: SegmentNo,
        /// Why.
        error: io::Error,
    },
    /// A segment was read for the compaction.
    Surveyed {
        /// What has been read so far.
        survey: Box<Survey>,
        /// The segment.
        segment: SegmentNo,
        /// Whether it could be.
        result: io::Result<()>,
    },
    /// What is to be written again is known.
    Planned(Box<Plan>),
    /// What is to be written again was read.
    Copied(Box<Made>),
    /// Something that nobody waits for was done.
    Housekeeping,
    /// Something that nobody waits for failed.
    HousekeepingFailed(io::Error),
}

/// A file that is ready to become the log's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spare {
    /// The file.
    pub file: FileNo,
    /// The generation of its next life, which its header has already.
    pub generation: u64,
    /// The revision of its header.
    pub revision: u64,
}

impl Chore {
    /// Does it.  `random` gives a new generation, unlike any before.
    pub fn perform<D: Disk>(self, disk: &D, random: &mut dyn FnMut() -> u64) -> ChoreDone {
        match self {
            Chore::Create { file, segment_bytes } => {
                let spare = Spare { file, generation: random(), revision: 1 };
                let header = SegmentHeader::free(segment_bytes, spare.generation, spare.revision);
                let mut block = AlignedBuf::new(BLOCK);
                header.encode(&mut block);
                match disk.create(file, segment_bytes, &block) {
                    Ok(()) => ChoreDone::Created(spare),
                    Err(error) => ChoreDone::NotCreated(error),
                }
            }
            Chore::Index { file, offset, blocks } => {
                housekeeping(disk.write(file, offset, &[IoSlice::new(&blocks)], Sync::Data))
            }
            Chore::Retire { segment, file, segment_bytes, revision, quarantine } => {
                let generation = random();
                // The number stays, so that it is never given again even if this is the last
                // file to remember it.
                let state = if quarantine { SegmentState::Quarantined } else { SegmentState::Free };
                let free = SegmentHeader::free(segment_bytes, generation, revision);
                let header = SegmentHeader { state, segment, ..free };
                if let Err(error) = write_header(disk, file, &header) {
                    return ChoreDone::NotRetired { segment, error };
                }
                let spare = (!quarantine).then_some(Spare { file, generation, revision });
                ChoreDone::Retired { segment, spare }
            }
            Chore::Survey { mut survey, task } => {
                let result = survey.read(disk, &task);
                ChoreDone::Surveyed { survey, segment: task.header.segment, result }
            }
            Chore::Plan { survey } => ChoreDone::Planned(Box::new(survey.plan())),
            Chore::Copy { work, table } => ChoreDone::Copied(Box::new(work.perform(disk, &table))),
            Chore::SetAside { file } => housekeeping(disk.quarantine(file)),
            Chore::Remove { file } => housekeeping(disk.remove(file)),
        }
    }
}

fn housekeeping(result: io::Result<()>) -> ChoreDone {
    match result {
        Ok(()) => ChoreDone::Housekeeping,
        Err(error) => ChoreDone::HousekeepingFailed(error),
    }
}

/// Rewrites a header block durably, by itself.
pub(crate) fn write_header<D: Disk>(
    disk: &D,
    file: FileNo,
    header: &SegmentHeader,
) -> io::Result<()> {
    let mut block = AlignedBuf::new(BLOCK);
    header.encode(&mut block);
    write_header_block(disk, file, &block)
}

/// The same for a block that is made already.
pub(crate) fn write_header_block<D: Disk>(
    disk: &D,
    file: FileNo,
    block: &AlignedBuf,
) -> io::Result<()> {
    disk.write(file, 0, &[IoSlice::new(block)], Sync::Data)
}
