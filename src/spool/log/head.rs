//! The segments of a running log: the one that is appended to, and how the next one takes its
//! place.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;

use super::super::chore::{Chore, Spare};
use super::super::direct::AlignedBuf;
use super::super::disk::{Disk, FileNo};
use super::super::format::header::{SegmentHeader, SegmentState};
use super::super::format::index::IndexBuilder;
use super::super::format::roll::Roll;
use super::super::sealed::CommitError;
use super::super::{BLOCK, SegmentNo};
use super::{INDEX_PART, KEPT_FOR_FAILURE, KEPT_FOR_OUTCOMES, Log, LogOptions, compact};

/// A segment in use.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SegmentFile {
    pub(crate) file: FileNo,
    /// As it was written last, or tried.
    pub(crate) header: SegmentHeader,
    /// Where the batches that count end; set when it is closed.
    pub(crate) end: u32,
    /// Kept aside when it dies.
    pub(crate) is_damaged: bool,
    /// It was damaged when it was recovered, so no roll call of this life names it.
    pub(crate) was_damaged: bool,
    /// Compaction cannot read it.
    pub(crate) is_stuck: bool,
    pub(crate) closed_at_tick: i64,
    pub(crate) look: Option<compact::Look>,
}

impl SegmentFile {
    pub(crate) fn new(file: FileNo, header: SegmentHeader) -> SegmentFile {
        SegmentFile {
            file,
            header,
            end: header.segment_bytes,
            is_damaged: false,
            was_damaged: false,
            is_stuck: false,
            closed_at_tick: 0,
            look: None,
        }
    }
}

/// The segment that is appended to.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) header: SegmentHeader,
    pub(super) file: FileNo,
    /// Where the next batch goes.
    pub(super) position: u32,
    /// The header goes out with the first batch: one write, one sync.
    pub(super) header_is_written: bool,
    /// Something in it is written and not synced.
    pub(super) has_unsynced: bool,
    /// Where the batches that count end.
    ///
    /// `written <= position`
    pub(super) written: u32,
    /// Everything before this offset is synced.
    ///
    /// `synced <= position`
    pub(super) synced: u32,
    /// Nothing once it outgrew its bound.
    pub(super) index: Option<IndexBuilder>,
}

impl Head {
    pub(super) fn new(header: SegmentHeader, file: FileNo, header_is_written: bool) -> Head {
        Head {
            header,
            file,
            position: BLOCK as u32,
            header_is_written,
            has_unsynced: false,
            written: BLOCK as u32,
            synced: BLOCK as u32,
            index: Some(IndexBuilder::default()),
        }
    }
}

pub(super) enum Turn {
    Rolled,
    Wait,
    Refuse(CommitError),
}

impl<D: Disk> Log<D> {
    /// Goes on to the next segment if a batch may make it.
    pub(super) fn turn(&mut self, has_messages: bool, is_compaction: bool) -> Turn {
        // Of the outcomes' spare a compaction may only have what it is sure to give back.
        let is_outcomes = !has_messages && (!is_compaction || self.job_makes_room());
        let kept_back = if is_outcomes { KEPT_FOR_FAILURE } else { KEPT_FOR_OUTCOMES };
        if self.spares.len() > kept_back {
            return self.roll();
        }
        if self.is_full && !is_compaction && self.waiting.iter().any(|batch| batch.has_messages) {
            return Turn::Refuse(CommitError::Full);
        }
        Turn::Wait
    }

    pub(super) fn roll(&mut self) -> Turn {
        // Everything before a segment's first batch is durable, so that a tear can only be at
        // the very end of the log.
        if self.head.has_unsynced {
            self.sync_unsynced();
        }
        let Some(next) = self.next_segment() else {
            return Turn::Rolled;
        };
        let spare = self.spares.pop_front().expect("the caller has looked");
        self.write_index();
        self.close_head();
        let header = open_header(
            &self.options,
            spare,
            next,
            self.head.header.segment,
            self.last_sequence,
            self.next_sequence,
        );
        self.head = Head::new(header, spare.file, false);
        self.install_head();
        self.chores.extend(self.leaving.rolled());
        Turn::Rolled
    }

    /// Nothing more is appended to the head.
    pub(super) fn close_head(&mut self) {
        let segment = self.head.header.segment;
        self.accounts.close(segment);
        if let Some(file) = self.segments.get_mut(&segment) {
            (file.end, file.closed_at_tick) = (self.head.written, self.ticks);
        }
    }

    pub(super) fn write_index(&mut self) {
        let head = &self.head;
        let blocks = head.index.as_ref().and_then(|index| {
            index.finish(
                head.header.segment,
                head.header.generation,
                self.last_sequence,
                head.position,
                self.options.segment_bytes,
            )
        });
        if let Some((offset, blocks)) = blocks {
            self.chores.push_back(Chore::Index { file: head.file, offset, blocks });
        }
    }

    /// Makes the new head known to the accounts and the tables.
    pub(super) fn install_head(&mut self) {
        let header = &self.head.header;
        self.accounts.open(header.segment);
        if header.voided.is_some() {
            self.accounts.succeeds(header.segment, header.predecessor);
        }
        self.segments.insert(header.segment, SegmentFile::new(self.head.file, *header));
        self.table.insert(header.segment, self.head.file);
        self.stats.rolls.fetch_add(1, Relaxed);
    }

    /// Gives an index up that has outgrown its part of the segment.
    pub(super) fn bound_index(&mut self) {
        let index_max = (self.options.segment_bytes / INDEX_PART) as usize;
        if self.head.index.as_ref().is_some_and(|index| index.len() > index_max) {
            self.head.index = None;
        }
    }

    /// A number for the next head, used for one attempt only.
    pub(super) fn next_segment(&mut self) -> Option<SegmentNo> {
        let next = self.last_segment.0.checked_add(1).map(SegmentNo);
        match next {
            Some(next) => self.last_segment = next,
            None => self.fail("segment numbers are used up"),
        }
        next
    }

    /// Syncs batches that were acknowledged without one.  They were promised to survive us, not
    /// the power: when the disk refuses, they stay where they are and may still be good.
    pub(super) fn sync_unsynced(&mut self) {
        match self.disk.sync(self.head.file) {
            Ok(()) => self.head.synced = self.head.position,
            Err(error) => {
                tracing::error!(segment = %self.head.header.segment, %error,
                    "a late sync failed: messages taken with durability = \"os\" may not survive a power cut");
                self.stats.commit_failures.fetch_add(1, Relaxed);
                self.mark_damaged(self.head.header.segment);
                self.suspect_unsynced();
                // Nothing more may follow in a segment whose sync failed.
                self.head.position = self.options.segment_bytes;
                self.head.index = None;
            }
        }
        self.head.has_unsynced = false;
        self.durable_through = self.last_sequence;
    }
}

/// Files of retired segments that are to be removed or set aside.  The head's roll call may still
/// name their segments, and a file whose header says what became of it is what says that they are
/// not missing.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    /// Retired under this head.
    named: Vec<Chore>,
    /// Retired under the one before.
    unnamed: Vec<Chore>,
}

impl Leaving {
    pub(super) fn add(&mut self, chore: Chore) {
        self.named.push(chore);
    }

    /// There is a new head; gives what no roll call names any more that could count: the header
    /// of the head that is closed now is durable.
    fn rolled(&mut self) -> Vec<Chore> {
        std::mem::replace(&mut self.unnamed, std::mem::take(&mut self.named))
    }
}

/// The header block of a head: its header, and the roll call of the other segments.
pub(super) fn header_block(
    header: &SegmentHeader,
    spool: u32,
    segments: &HashMap<SegmentNo, SegmentFile>,
) -> AlignedBuf {
    let mut block = AlignedBuf::new(BLOCK);
    header.encode(&mut block);
    // A damaged one has been told of, and is renamed when it is dead.
    let is_listed = |(&segment, file): (&SegmentNo, &SegmentFile)| {
        (segment != header.segment && !file.is_damaged).then_some(segment)
    };
    let mut in_use: Vec<SegmentNo> = segments.iter().filter_map(is_listed).collect();
    in_use.sort_unstable();
    Roll::of(spool, in_use.into_iter()).encode(header.generation, &mut block);
    block
}

/// The header with which a spare becomes the head.  What lies between the last sequence that
/// counts and the next to be given out is void for ever.
pub(super) fn open_header(
    options: &LogOptions,
    spare: Spare,
    segment: SegmentNo,
    predecessor: SegmentNo,
    last_sequence: u64,
    next_sequence: u64,
) -> SegmentHeader {
    debug_assert!(last_sequence < next_sequence);
    SegmentHeader {
        revision: spare.revision + 1,
        state: SegmentState::Open,
        segment_bytes: options.segment_bytes,
        generation: spare.generation,
        segment,
        predecessor,
        first_sequence: next_sequence,
        predecessor_last: last_sequence,
        voided: (last_sequence + 1 < next_sequence).then(|| (last_sequence + 1, next_sequence - 1)),
    }
}
