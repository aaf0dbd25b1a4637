//! The committer's logic: where each batch goes, when it counts, what happens when the disk says
//! no.  It owns the order of the log; nobody else gives out a place or a sequence.
//!
//! A call of [`Log::commit`] writes everything it is given with one vectored write and one sync
//! for each segment it touches (nearly always one).  Work that would make it wait for metadata is
//! handed out as [`Chore`]s.
//!
//! How it fails:
//! - The disk refuses a write or a sync: these batches get [`CommitError::Disk`], after the next
//!   segment's header says durably that their sequences are void.  The refusing segment is closed
//!   and never written to again; a sync is never tried twice, since the second one may lie.
//! - No spare segment can be made: batches with new messages get [`CommitError::Full`] while one
//!   spare is kept back for outcomes and one for the next two cases.
//! - Not even the void can be recorded: everything gets [`CommitError::Failed`] from then on.
//!
//! It does not know threads or clocks, and never looks into a body.

mod compact;
mod upkeep;

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::accounts::Accounts;
use super::chore::{Chore, Spare, write_header};
use super::direct::AlignedBuf;
use super::disk::{Disk, FileNo, Sync};
use super::format::BATCH_HEADER;
use super::format::batch::{self, BatchHeader};
use super::format::header::{SegmentHeader, SegmentState};
use super::format::index::IndexBuilder;
use super::format::message::{self, ChunkPlace};
use super::format::record::Kind;
use super::sealed::{BatchPlace, CommitError, Completion, SealedBatch};
use super::segments::SegmentTable;
use super::stats::SpoolStats;
use super::{BLOCK, RecordPlace, SEGMENT_BYTES, SegmentNo};
use crate::message::{Durability, MessageId};

/// The last spare is for what must go on when all else fails: to void a refused commit, and to
/// start again on a full disk.
const KEPT_FOR_FAILURE: usize = 1;
/// One more is for outcomes, so that a full disk can still be drained.
const KEPT_FOR_OUTCOMES: usize = 1 + KEPT_FOR_FAILURE;
/// An index that outgrows this part of its segment is given up: a segment of small outcomes is
/// read as fast without.
const INDEX_PART: u32 = 16;
/// What was recovered is left alone for so long, if compaction waits that long at all: most of it
/// is about to be delivered.
const AFTER_START_TICKS: u32 = 60;
/// The most batches of one write; the kernel takes 1,024 parts.
const WRITE_BATCHES_MAX: usize = 512;

/// What can be chosen of a log.
#[derive(Debug, Clone, Copy)]
pub struct LogOptions {
    /// The size of a segment; [`SEGMENT_BYTES`] unless a test wants smaller ones.
    pub segment_bytes: u32,
    /// Spares to keep ready, the two included that are kept back for outcomes and for failures;
    /// at least 3.
    pub spares: usize,
    /// Spares beyond this are removed when segments are retired.
    pub spares_max: usize,
    /// The age in ticks (seconds) from which a segment is compacted once most of it is dead.
    pub compact_after_ticks: u32,
    /// Octets that a compaction may write a tick, besides an eighth of what others write.
    pub compact_octets_per_tick: u32,
}

impl Default for LogOptions {
    fn default() -> Self {
        LogOptions {
            segment_bytes: SEGMENT_BYTES,
            spares: 3,
            spares_max: 16,
            compact_after_ticks: 600,
            compact_octets_per_tick: 32 * 1024 * 1024,
        }
    }
}

/// The log's head and everything behind it.
#[derive(Debug)]
pub struct Log<D> {
    disk: Arc<D>,
    options: LogOptions,
    table: Arc<SegmentTable>,
    stats: Arc<SpoolStats>,
    accounts: Accounts,
    segments: HashMap<SegmentNo, SegmentFile>,
    head: Head,
    /// The highest number given to a segment, or tried.
    last_segment: SegmentNo,
    /// `durable_through <= last_sequence`
    durable_through: u64,
    /// The last sequence that was written and counts.
    last_sequence: u64,
    /// The next to be given out; above `last_sequence + 1` after a failure.
    next_sequence: u64,
    /// Where chunks may stand that were written and whose sync failed: the segment, and from which
    /// offset on.  A message that is promised to be durable must not name them.
    suspect: HashMap<SegmentNo, u32>,
    waiting: VecDeque<SealedBatch>,
    /// Batches that the disk refused and whose void is not yet recorded.
    refused: Option<RefusedGroup>,
    spares: VecDeque<Spare>,
    next_file: FileNo,
    is_creating: bool,
    /// The last attempt to make a spare failed.
    is_full: bool,
    has_failed: bool,
    chores: VecDeque<Chore>,
    ticks: i64,
    /// Segments whose retirement failed, or waits for readers: tried again by the next tick.
    unretired: Vec<SegmentNo>,
    job: Option<compact::Job>,
    /// Octets that the compaction may write now.
    compaction_credit: i64,
    /// Which messages the table says to be in a segment that they were not accepted into.
    moved_into: HashMap<SegmentNo, Vec<MessageId>>,
}

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
    /// It was damaged when it was recovered.
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
struct Head {
    header: SegmentHeader,
    file: FileNo,
    /// Where the next batch goes.
    position: u32,
    /// The header goes out with the first batch: one write, one sync.
    header_is_written: bool,
    /// Something in it is written and not synced.
    has_unsynced: bool,
    /// Where the batches that count end.
    ///
    /// `written <= position`
    written: u32,
    /// Everything before this offset is synced.
    ///
    /// `synced <= position`
    synced: u32,
    /// Nothing once it outgrew its bound.
    index: Option<IndexBuilder>,
}

#[derive(Debug)]
struct RefusedGroup {
    batches: Vec<SealedBatch>,
    error: io::Error,
    /// It was a sync that was refused, so that another one would say nothing.
    was_sync: bool,
}

/// What recovery found, for [`Log::resume`].
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) accounts: Accounts,
    pub(crate) segments: HashMap<SegmentNo, SegmentFile>,
    /// At least one.
    pub(crate) spares: VecDeque<Spare>,
    pub(crate) next_file: FileNo,
    /// The segment that was the head.
    pub(crate) predecessor: SegmentNo,
    /// The highest number that a segment has or had.
    pub(crate) last_segment: SegmentNo,
    /// The last sequence that counts.
    pub(crate) last_sequence: u64,
    /// Above everything that may have been written.
    pub(crate) next_sequence: u64,
    /// Messages that do not stand where some of their outcomes say.
    pub(crate) moved: Vec<(MessageId, RecordPlace)>,
}

enum Turn {
    Rolled,
    Wait,
    Refuse(CommitError),
}

impl<D: Disk> Log<D> {
    /// Goes on after what was found, in a fresh segment whose header is durable before this
    /// returns.
    pub(crate) fn resume(
        disk: Arc<D>,
        options: LogOptions,
        table: Arc<SegmentTable>,
        stats: Arc<SpoolStats>,
        mut found: Found,
    ) -> io::Result<Log<D>> {
        assert!(options.spares > KEPT_FOR_OUTCOMES, "a message could never roll the log");
        let spare = found.spares.pop_front().expect("recovery leaves a spare");
        let next_segment = found
            .last_segment
            .0
            .checked_add(1)
            .map(SegmentNo)
            .ok_or_else(|| io::Error::other("segment numbers are used up"))?;
        let header = open_header(
            &options,
            spare,
            next_segment,
            found.predecessor,
            found.last_sequence,
            found.next_sequence,
        );
        write_header(&*disk, spare.file, &header)?;
        let mut log = Log {
            disk,
            options,
            table,
            stats,
            accounts: found.accounts,
            segments: found.segments,
            head: Head::new(header, spare.file, true),
            last_segment: next_segment,
            durable_through: found.last_sequence,
            last_sequence: found.last_sequence,
            next_sequence: found.next_sequence,
            suspect: HashMap::new(),
            waiting: VecDeque::new(),
            refused: None,
            spares: found.spares,
            next_file: found.next_file,
            is_creating: false,
            is_full: false,
            has_failed: false,
            chores: VecDeque::new(),
            ticks: 0,
            unretired: Vec::new(),
            job: None,
            compaction_credit: 0,
            moved_into: HashMap::new(),
        };
        let is_rested_at =
            i64::from(log.options.compact_after_ticks.saturating_sub(AFTER_START_TICKS));
        for (&segment, file) in &mut log.segments {
            file.closed_at_tick = -is_rested_at;
            log.table.insert(segment, file.file);
        }
        for (id, place) in found.moved {
            log.table.set_moved(id, place);
            log.moved_into.entry(place.segment).or_default().push(id);
        }
        log.install_head();
        log.settle();
        Ok(log)
    }

    /// Takes batches and writes as much as can be written now.  The completions are in the order
    /// of the batches; what waits for a spare segment is completed by a later call.
    pub fn commit(&mut self, batches: Vec<SealedBatch>) -> Vec<Completion> {
        self.waiting.extend(batches);
        let mut done = Vec::with_capacity(self.waiting.len());
        self.advance(&mut done);
        done
    }

    /// The next piece of work for the maintenance.
    pub fn poll_chore(&mut self) -> Option<Chore> {
        self.chores.pop_front()
    }

    /// To be called each second or so: tries again to make room, and syncs what was written
    /// without a sync, so that `durability = "os"` loses a second at most.
    pub fn tick(&mut self) -> Vec<Completion> {
        if self.is_full && !self.is_creating {
            self.create_spare();
        }
        if self.head.has_unsynced && !self.has_failed {
            self.sync_unsynced();
        }
        self.ticks += 1;
        for segment in std::mem::take(&mut self.unretired) {
            self.accounts.not_retired(segment);
        }
        self.compact_tick();
        let mut done = Vec::new();
        self.advance(&mut done);
        done
    }

    /// Whether a batch waits for a chore.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty() || self.refused.is_some()
    }

    /// Whether something is written that is not synced.
    pub fn has_unsynced(&self) -> bool {
        self.head.has_unsynced
    }

    /// Which file holds which segment.
    pub fn table(&self) -> &Arc<SegmentTable> {
        &self.table
    }

    /// The counters.
    pub fn stats(&self) -> &Arc<SpoolStats> {
        &self.stats
    }

    /// The disk.
    pub fn disk(&self) -> &Arc<D> {
        &self.disk
    }

    /// The live counts.
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    fn advance(&mut self, done: &mut Vec<Completion>) {
        loop {
            if self.has_failed {
                self.refuse_all(done);
                break;
            }
            if self.refused.is_some() && !self.void_refused(done) {
                if self.has_failed {
                    continue;
                }
                break;
            }
            let group = self.gather(done);
            if !group.is_empty() {
                self.write(group, done);
                continue;
            }
            let Some(first) = self.waiting.front() else {
                break;
            };
            match self.turn(first.has_messages) {
                Turn::Rolled => {}
                Turn::Wait => break,
                Turn::Refuse(error) => self.refuse_messages(error, done),
            }
        }
        self.take_compacted(done);
        self.compact_step();
        self.settle();
    }

    /// Takes from the waiting batches as many as the head has room for.
    fn gather(&mut self, done: &mut Vec<Completion>) -> Vec<SealedBatch> {
        let mut group = Vec::new();
        let mut position = self.head.position as usize;
        let mut index = self.head.index.as_ref().map(IndexBuilder::len);
        while group.len() < WRITE_BATCHES_MAX
            && let Some(batch) = self.waiting.front()
        {
            let octets = batch.octets();
            if octets + BLOCK > self.options.segment_bytes as usize {
                done.extend(
                    self.waiting.pop_front().map(|batch| batch.refused(CommitError::TooLarge)),
                );
                continue;
            }
            if batch.has_messages && self.is_full && self.spares.len() < KEPT_FOR_OUTCOMES {
                done.extend(self.waiting.pop_front().map(|batch| batch.refused(CommitError::Full)));
                continue;
            }
            if batch.compaction.is_some() {
                // What is before it in the group may be an outcome of what it holds.
                if !group.is_empty() {
                    break;
                }
                if self.is_outdated(batch) {
                    let written = self.waiting.pop_front().and_then(|batch| batch.compaction);
                    written.into_iter().for_each(|written| self.compaction_refused(written, false));
                    continue;
                }
            }
            if self.names_suspect(batch) {
                let error = CommitError::Disk(io::ErrorKind::Other);
                done.extend(self.waiting.pop_front().map(|batch| batch.refused(error)));
                continue;
            }
            let room = self.options.segment_bytes as usize - position;
            index = index.map(|index| index + batch.index_octets);
            let index_room = index.map_or(0, IndexBuilder::room);
            if octets + index_room > room {
                // A segment that would hold nothing else goes without an index.
                if position > BLOCK || octets > room {
                    break;
                }
                index = None;
                self.head.index = None;
            }
            position += octets;
            group.extend(self.waiting.pop_front());
        }
        group
    }

    /// Writes a group to the head and completes it.
    fn write(&mut self, mut group: Vec<SealedBatch>, done: &mut Vec<Completion>) {
        let first_sequence = self.next_sequence;
        let octets = self.number(&mut group);
        let started = Instant::now();
        if let Err(Unwritten { error, was_sync }) = self.write_numbered(&group, octets) {
            self.stats.commit_failures.fetch_add(1, Relaxed);
            tracing::error!(segment = %self.head.header.segment, %error, "the disk refused a commit");
            self.refused = Some(RefusedGroup { batches: group, error, was_sync });
            return;
        }
        let records = group.iter().map(|batch| u64::from(batch.digest.record_count)).sum();
        self.stats.count_commit(group.len(), records, octets, started.elapsed());
        let mut sequence = first_sequence;
        for batch in group {
            let place = BatchPlace {
                segment: self.head.header.segment,
                offset: self.head.position,
                sequence,
            };
            if batch.octets() > 0 {
                match batch.compaction {
                    None => self.count(&batch, place),
                    Some(_) => self.count_compacted(&batch, place),
                }
                self.last_sequence = sequence;
                self.head.position += batch.octets() as u32;
                self.head.written = self.head.position;
                sequence += 1;
            }
            batch.abandoned.iter().for_each(|&id| self.accounts.abandoned(id));
            done.push(Completion { worker: batch.worker, result: Ok(place), batch });
        }
        if !self.head.has_unsynced {
            self.durable_through = self.last_sequence;
            self.head.synced = self.head.position;
        }
        debug_assert_eq!(sequence, self.next_sequence);
        self.bound_index();
        self.credit_compaction(octets);
    }

    /// Writes each batch's header, the committer's part of it included; gives their octets.
    fn number(&mut self, group: &mut [SealedBatch]) -> usize {
        let mut octets = 0;
        for batch in group.iter_mut().filter(|batch| batch.octets() > 0) {
            let header = BatchHeader {
                segment: self.head.header.segment,
                generation: self.head.header.generation,
                sequence: self.next_sequence,
                durable_through: self.durable_through,
                payload_length: batch.payload_length as u32,
                record_count: batch.digest.record_count,
                digest: batch.digest.crc32c,
            };
            header.encode(&mut batch.buffer);
            self.next_sequence += 1;
            octets += batch.octets();
        }
        octets
    }

    fn write_numbered(&mut self, group: &[SealedBatch], octets: usize) -> Result<(), Unwritten> {
        if octets == 0 {
            return Ok(());
        }
        let mut header_block = None;
        if !self.head.header_is_written {
            self.head.header.encode(header_block.insert(AlignedBuf::new(BLOCK)));
        }
        let mut parts = Vec::with_capacity(group.len() + 1);
        parts.extend(header_block.as_deref().map(IoSlice::new));
        parts.extend(
            group
                .iter()
                .filter(|batch| batch.octets() > 0)
                .map(|batch| IoSlice::new(&batch.buffer[..batch.octets()])),
        );
        let offset = if header_block.is_some() { 0 } else { self.head.position };
        let must_sync = group.iter().any(|batch| batch.durability == Durability::Fsync);
        // A synchronous write makes durable only itself, so it suffices only alone.
        let sync = if must_sync && !self.head.has_unsynced { Sync::Data } else { Sync::Later };
        let written = self.disk.write(self.head.file, offset, &parts, sync);
        written.map_err(|error| Unwritten { error, was_sync: sync == Sync::Data })?;
        if must_sync && sync == Sync::Later {
            let synced = self.disk.sync(self.head.file);
            synced.map_err(|error| Unwritten { error, was_sync: true })?;
        }
        self.head.has_unsynced = !must_sync;
        self.head.header_is_written = true;
        Ok(())
    }

    /// Takes a written batch's records into the accounts and the index.
    fn count(&mut self, batch: &SealedBatch, place: BatchPlace) {
        for record in batch::records(batch.payload()) {
            let (offset, record) = record.expect("the appender writes sound records");
            let moved = |id| self.table.moved(id).map(|place| place.segment);
            self.accounts
                .record(place.segment, &record, moved)
                .expect("the appender writes sound records");
            if matches!(record.kind(), Kind::Done | Kind::Defer) {
                self.touch(record.id());
            }
            if let Some(index) = &mut self.head.index {
                index.add(place.offset + (BATCH_HEADER + offset) as u32, &record);
            }
        }
    }

    /// Gives an index up that has outgrown its part of the segment.
    fn bound_index(&mut self) {
        let index_max = (self.options.segment_bytes / INDEX_PART) as usize;
        if self.head.index.as_ref().is_some_and(|index| index.len() > index_max) {
            self.head.index = None;
        }
    }

    /// Goes on to the next segment if a batch may make it.
    fn turn(&mut self, has_messages: bool) -> Turn {
        let kept_back = if has_messages { KEPT_FOR_OUTCOMES } else { KEPT_FOR_FAILURE };
        if self.spares.len() > kept_back {
            return self.roll();
        }
        if self.is_full && self.waiting.iter().any(|batch| batch.has_messages) {
            return Turn::Refuse(CommitError::Full);
        }
        Turn::Wait
    }

    fn roll(&mut self) -> Turn {
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
        Turn::Rolled
    }

    /// Nothing more is appended to the head.
    fn close_head(&mut self) {
        let segment = self.head.header.segment;
        self.accounts.close(segment);
        if let Some(file) = self.segments.get_mut(&segment) {
            (file.end, file.closed_at_tick) = (self.head.written, self.ticks);
        }
    }

    fn write_index(&mut self) {
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
    fn install_head(&mut self) {
        let header = &self.head.header;
        self.accounts.open(header.segment);
        if header.voided.is_some() {
            self.accounts.succeeds(header.segment, header.predecessor);
        }
        self.segments.insert(header.segment, SegmentFile::new(self.head.file, *header));
        self.table.insert(header.segment, self.head.file);
        self.stats.rolls.fetch_add(1, Relaxed);
    }

    /// Syncs batches that were acknowledged without one.  They were promised to survive us, not
    /// the power: when the disk refuses, they stay where they are and may still be good.
    fn sync_unsynced(&mut self) {
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

    /// Syncs what was acknowledged without a sync in the segment that is being closed by a failure.
    fn sync_closed(&mut self, was_sync: bool) {
        if !self.head.has_unsynced {
            return;
        }
        // A sync that was refused once would lie the second time.
        if !was_sync && self.disk.sync(self.head.file).is_ok() {
            self.head.has_unsynced = false;
            return;
        }
        tracing::error!(segment = %self.head.header.segment,
            "messages taken with durability = \"os\" before the disk's refusal may not survive a \
             power cut");
        self.mark_damaged(self.head.header.segment);
        self.suspect_unsynced();
    }

    fn suspect_unsynced(&mut self) {
        if self.head.has_unsynced {
            self.suspect.insert(self.head.header.segment, self.head.synced);
        }
    }

    /// Whether the batch has a message with a chunk whose sync failed.
    fn names_suspect(&self, batch: &SealedBatch) -> bool {
        let is_suspect = |chunk: ChunkPlace| {
            let from = self.suspect.get(&chunk.place.segment);
            from.is_some_and(|&from| chunk.place.offset >= from)
        };
        !self.suspect.is_empty()
            && batch::records(batch.payload())
                .flatten()
                .filter(|(_, record)| record.kind() == Kind::Message)
                .filter_map(|(_, record)| message::chunks(&record).ok())
                .any(|mut chunks| chunks.any(is_suspect))
    }

    /// Records durably that the refused batches are void, then tells so.  Gives whether the log
    /// can go on.
    fn void_refused(&mut self, done: &mut Vec<Completion>) -> bool {
        while let Some(spare) = self.spares.pop_front() {
            let Some(next) = self.next_segment() else {
                return false;
            };
            let header = open_header(
                &self.options,
                spare,
                next,
                self.head.header.segment,
                self.last_sequence,
                self.next_sequence,
            );
            if let Err(error) = write_header(&*self.disk, spare.file, &header) {
                tracing::error!(file = spare.file.0, %error, "a spare segment refused its header");
                self.chores.push_back(Chore::SetAside { file: spare.file });
                continue;
            }
            let RefusedGroup { batches, error, was_sync } =
                self.refused.take().expect("called only with a refused group");
            if !is_out_of_space(&error) {
                self.mark_damaged(self.head.header.segment);
            }
            self.close_head();
            self.sync_closed(was_sync);
            self.durable_through = self.last_sequence;
            self.head = Head::new(header, spare.file, true);
            self.install_head();
            let error = CommitError::Disk(error.kind());
            done.extend(batches.into_iter().map(|batch| batch.refused(error)));
            return true;
        }
        if self.is_full || !self.is_creating {
            self.fail("a failed commit could not be recorded as void");
        }
        false
    }

    /// A number for the next head, used for one attempt only.
    fn next_segment(&mut self) -> Option<SegmentNo> {
        let next = self.last_segment.0.checked_add(1).map(SegmentNo);
        match next {
            Some(next) => self.last_segment = next,
            None => self.fail("segment numbers are used up"),
        }
        next
    }

    fn mark_damaged(&mut self, segment: SegmentNo) {
        if let Some(file) = self.segments.get_mut(&segment)
            && !file.is_damaged
        {
            file.is_damaged = true;
            self.stats.segments_damaged.fetch_add(1, Relaxed);
        }
    }

    fn fail(&mut self, why: &str) {
        tracing::error!("the log stops: {why}");
        self.has_failed = true;
    }

    fn refuse_all(&mut self, done: &mut Vec<Completion>) {
        let refused = self.refused.take().map(|group| group.batches).unwrap_or_default();
        let all = refused.into_iter().chain(self.waiting.drain(..));
        done.extend(all.map(|batch| batch.refused(CommitError::Failed)));
    }

    /// Refuses the waiting batches that bring messages; outcomes go on waiting.
    fn refuse_messages(&mut self, error: CommitError, done: &mut Vec<Completion>) {
        for batch in std::mem::take(&mut self.waiting) {
            if batch.has_messages {
                done.push(batch.refused(error));
            } else {
                self.waiting.push_back(batch);
            }
        }
    }
}

/// Why a group of batches is not on the disk.
struct Unwritten {
    error: io::Error,
    was_sync: bool,
}

impl Head {
    fn new(header: SegmentHeader, file: FileNo, header_is_written: bool) -> Head {
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

fn is_out_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The header with which a spare becomes the head.  What lies between the last sequence that
/// counts and the next to be given out is void for ever.
fn open_header(
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
