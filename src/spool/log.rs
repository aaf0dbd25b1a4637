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
mod failure;
mod head;
mod upkeep;

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use self::failure::RefusedGroup;
pub(crate) use self::head::SegmentFile;
use self::head::{Head, Leaving, Turn, open_header};
use super::accounts::Accounts;
use super::chore::{Chore, Spare, write_header_block};
use super::disk::{Disk, FileNo, Sync};
use super::format::BATCH_HEADER;
use super::format::batch::{self, BatchHeader};
use super::format::index::IndexBuilder;
use super::format::outcome;
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
    /// For the simulation, which must find it; nothing otherwise.
    #[doc(hidden)]
    pub mistake: Option<Mistake>,
}

/// A rule that the compaction leaves out, so that a test can see what the rule is for.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// The segment of a copy may die before the one that it was copied from.
    NoSuccessor,
    /// A copy is committed although an outcome of its message came since it was read.
    Outdated,
    /// The recipients that are done are left out of a copy.
    ForgottenDone,
}

impl Default for LogOptions {
    fn default() -> Self {
        LogOptions {
            segment_bytes: SEGMENT_BYTES,
            spares: 3,
            spares_max: 16,
            compact_after_ticks: 600,
            compact_octets_per_tick: 32 * 1024 * 1024,
            mistake: None,
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
    /// What all segments of this spool say in their headers.
    spool: u32,
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
    leaving: Leaving,
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

/// What recovery found, for [`Log::resume`].
#[derive(Debug)]
pub(crate) struct Found {
    /// See [`Roll::spool`](super::format::roll::Roll::spool).
    pub(crate) spool: u32,
    pub(crate) accounts: Accounts,
    pub(crate) segments: HashMap<SegmentNo, SegmentFile>,
    /// At least one.
    pub(crate) spares: VecDeque<Spare>,
    /// Files to be set aside, now that no roll call names what they held.
    pub(crate) useless: Vec<FileNo>,
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
        let block = head::header_block(&header, found.spool, &found.segments);
        write_header_block(&*disk, spare.file, &block)?;
        let mut log = Log {
            disk,
            options,
            table,
            stats,
            spool: found.spool,
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
            leaving: Leaving::default(),
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
        let useless = found.useless.into_iter();
        log.chores.extend(useless.map(|file| Chore::SetAside { file }));
        // The run before may have been about to remove these.
        let excess = log.spares.split_off(log.spares.len().min(options.spares_max));
        log.chores.extend(excess.into_iter().map(|spare| Chore::Remove { file: spare.file }));
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
            let is_compaction = first.compaction.is_some();
            match self.turn(first.has_messages, is_compaction) {
                Turn::Rolled => {}
                // There is no room to come before something dies, and outcomes wait behind it.
                Turn::Wait if is_compaction && self.is_full => {
                    let written = self.waiting.pop_front().and_then(|batch| batch.compaction);
                    written.into_iter().for_each(|written| self.compaction_lacks_room(written));
                }
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
                if self.is_outdated(batch) || self.names_suspect(batch) {
                    let written = self.waiting.pop_front().and_then(|batch| batch.compaction);
                    written.into_iter().for_each(|written| self.compaction_withdrawn(written));
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
            header_block = Some(head::header_block(&self.head.header, self.spool, &self.segments));
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
            if matches!(record.kind(), Kind::Done | Kind::Defer) {
                let subject = outcome::subject(&record);
                let (named, _) = subject.expect("the appender writes sound records");
                self.touch(record.id(), moved(record.id()).unwrap_or(named));
            }
            let moved = |id| self.table.moved(id).map(|place| place.segment);
            self.accounts
                .record(place.segment, &record, moved)
                .expect("the appender writes sound records");
            if let Some(index) = &mut self.head.index {
                index.add(place.offset + (BATCH_HEADER + offset) as u32, &record);
            }
        }
    }
}

/// Why a group of batches is not on the disk.
struct Unwritten {
    error: io::Error,
    was_sync: bool,
}
