//! The log's side of the compaction: which segments are looked at and when, what is handed to the
//! maintenance, what becomes of the batches that it makes.  See [`super::super::compaction`].

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::io;
use std::sync::atomic::Ordering::Relaxed;

use super::super::chore::Chore;
use super::super::compaction::{
    COMPACTOR, COPY_OCTETS, Item, Made, Plan, Survey, Task, Work, Written,
};
use super::super::disk::Disk;
use super::super::format::message;
use super::super::format::outcome;
use super::super::format::record::Kind;
use super::super::format::{BATCH_HEADER, batch};
use super::super::sealed::{BatchPlace, Completion, SealedBatch};
use super::super::{RecordPlace, SegmentNo};
use super::{KEPT_FOR_OUTCOMES, Log, Mistake};
use crate::message::MessageId;

/// Segments that one job empties at most.
const SEGMENTS_MAX: usize = 64;
/// Records that the segments of one job may hold, save for the first segment: a message costs some
/// 130 octets while they are surveyed, one with outcomes some 300.
const RECORDS_MAX: u64 = 128 * 1024;
/// Messages whose outcomes may come in while a job runs; beyond that it is given up.
const TOUCHED_MAX: usize = 1 << 20;
/// Of what others write the compaction may write this part on top of its own share.
const SHARE: u64 = 8;
/// A segment is looked at again once this part of it has died since.
const DIED_PART: u32 = 16;

/// A job under way.
#[derive(Debug)]
pub(super) struct Job {
    stage: Stage,
    candidates: BTreeSet<SegmentNo>,
    chosen: BTreeSet<SegmentNo>,
    /// The log's head when the job began.
    head: SegmentNo,
    /// Messages that may have been surveyed and of which an outcome was committed since the job
    /// began.
    touched: HashSet<MessageId>,
    /// Candidates of whose outcomes some could not be written again.
    not_clean: BTreeSet<SegmentNo>,
    /// Segments that were to be emptied of something that stays: another job is to try again.
    unfinished: BTreeSet<SegmentNo>,
    /// Candidates for which the job had no room; another one may begin at once.
    postponed: BTreeSet<SegmentNo>,
    /// Nothing more is begun; what is under way is waited for.
    is_given_up: bool,
    /// It was planned for a full disk: it needs no more room than it makes.
    makes_room: bool,
    /// It was given up because the disk is full; one that makes room may begin at once.
    lacks_room: bool,
}

#[derive(Debug)]
enum Stage {
    /// Heads are being read; these segments are still to be.
    Surveying { left: VecDeque<Task> },
    /// Items are being copied, one batch at a time.
    Copying { left: VecDeque<Item>, is_busy: bool },
}

/// What is remembered of a segment's last survey.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    at_tick: i64,
    live: u32,
    pins: u32,
}

impl<D: Disk> Log<D> {
    /// Begins a job if there is something to do, or goes on with one that waited for its share.
    pub(super) fn compact_tick(&mut self) {
        let share = i64::from(self.options.compact_octets_per_tick);
        self.compaction_credit =
            (self.compaction_credit + share).min(share.max(COPY_OCTETS as i64));
        if self.job.is_none() {
            self.begin_compaction();
        }
        self.compact_step();
    }

    /// A share of what others write.
    pub(super) fn credit_compaction(&mut self, octets: usize) {
        let most = i64::from(self.options.compact_octets_per_tick).max(COPY_OCTETS as i64);
        let share = (octets as u64 / SHARE) as i64;
        self.compaction_credit = (self.compaction_credit + share).min(most);
    }

    fn begin_compaction(&mut self) {
        let is_full = self.is_short_of_room();
        if self.has_failed || (is_full && self.spares.len() < KEPT_FOR_OUTCOMES) {
            return;
        }
        let candidates = self.compaction_candidates(is_full);
        let Some(&first) = candidates.first() else { return };
        let in_use: BTreeSet<SegmentNo> = self.accounts.in_use().collect();
        let mut tasks = VecDeque::new();
        for &segment in in_use.range(first..) {
            let Some(file) = self.segments.get(&segment) else { continue };
            let is_head = segment == self.head.header.segment;
            tasks.push_back(Task {
                file: file.file,
                header: file.header,
                end: if is_head { self.head.written } else { file.end },
                is_closed: !is_head,
                is_damaged: file.was_damaged,
            });
        }
        // On a full disk a job must need no more room than it is sure to make.
        let segment_bytes = self.options.segment_bytes;
        let octets_max = if is_full { u64::from(segment_bytes) / 2 } else { u64::MAX };
        let table = self.table.clone();
        let survey = Survey::new(candidates.clone(), in_use, table, segment_bytes, octets_max);
        self.job = Some(Job {
            stage: Stage::Surveying { left: tasks },
            candidates,
            chosen: BTreeSet::new(),
            head: self.head.header.segment,
            touched: HashSet::new(),
            not_clean: BTreeSet::new(),
            unfinished: BTreeSet::new(),
            postponed: BTreeSet::new(),
            is_given_up: false,
            makes_room: is_full,
            lacks_room: false,
        });
        self.survey_next(Box::new(survey));
    }

    /// The disk is full, and what spares there are is kept back.
    pub(super) fn is_short_of_room(&self) -> bool {
        self.is_full && self.spares.len() <= KEPT_FOR_OUTCOMES
    }

    /// Whether the job under way needs no more room than it makes.
    pub(super) fn job_makes_room(&self) -> bool {
        self.job.as_ref().is_some_and(|job| job.makes_room)
    }

    fn compaction_candidates(&self, is_full: bool) -> BTreeSet<SegmentNo> {
        let now = self.ticks;
        let after = i64::from(self.options.compact_after_ticks);
        let mut candidates = BTreeSet::new();
        let mut records = 0u64;
        for fill in self.accounts.fills() {
            let Some(file) = self.segments.get(&fill.segment) else { continue };
            let has_died = match file.look {
                None => fill.live < fill.counted || fill.live == 0,
                Some(look) => {
                    // Where nothing is live, what is needed can only become less with what it is
                    // needed for.
                    let is_freer = fill.live == 0 && fill.pins < look.pins;
                    look.live.saturating_sub(fill.live) > fill.counted / DIED_PART || is_freer
                }
            };
            let is_rested = file.look.is_none_or(|look| now - look.at_tick >= after);
            let is_old = is_full || now - file.closed_at_tick >= after;
            let is_needed = fill.live > 0 || fill.pins > 0;
            if !(has_died && is_rested && is_old && is_needed) || file.is_stuck {
                continue;
            }
            records += u64::from(fill.counted) + u64::from(fill.outcomes);
            if !candidates.is_empty() && (records > RECORDS_MAX || candidates.len() >= SEGMENTS_MAX)
            {
                break;
            }
            candidates.insert(fill.segment);
        }
        candidates
    }

    fn survey_next(&mut self, survey: Box<Survey>) {
        let Some(Job { stage: Stage::Surveying { left }, .. }) = &mut self.job else { return };
        let chore = match left.pop_front() {
            Some(task) => Chore::Survey { survey, task: Box::new(task) },
            None => Chore::Plan { survey },
        };
        self.chores.push_back(chore);
    }

    /// One more segment was read.
    pub(super) fn surveyed(
        &mut self,
        survey: Box<Survey>,
        segment: SegmentNo,
        result: io::Result<()>,
    ) {
        let Some(job) = &mut self.job else { return };
        match result {
            _ if job.is_given_up => self.end_compaction(),
            Ok(()) => self.survey_next(survey),
            // Retired in the meantime, and perhaps used again: nobody needs what it said.
            Err(_) if !self.segments.contains_key(&segment) => self.survey_next(survey),
            // Segments of little more than outcomes; others need not wait for them.
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => {
                tracing::warn!(%segment, %error, "a compaction was given up");
                job.is_given_up = true;
                self.end_compaction();
            }
            Err(error) => {
                self.stats.chore_failures.fetch_add(1, Relaxed);
                job.is_given_up = true;
                let candidates = job.candidates.clone();
                if error.kind() == io::ErrorKind::InvalidData {
                    tracing::error!(%segment, %error, "a segment is damaged; what stands before \
                        it is not compacted until a restart");
                    self.mark_damaged(segment);
                    for candidate in candidates {
                        if let Some(file) = self.segments.get_mut(&candidate) {
                            file.is_stuck |= candidate <= segment;
                        }
                    }
                } else {
                    tracing::warn!(%segment, %error, "a segment could not be read for compaction");
                }
                self.end_compaction();
            }
        }
    }

    /// The survey is over.
    pub(super) fn planned(&mut self, plan: Plan) {
        let Some(job) = &mut self.job else { return };
        // What fits a segment and not this job is for the next one.
        let half = u64::from(self.options.segment_bytes) / 2;
        let fitting = plan.needed_octets.iter().filter(|(_, octets)| **octets <= half);
        let postponed = fitting.map(|(&segment, _)| segment);
        job.postponed = postponed.filter(|segment| !plan.chosen.contains(segment)).collect();
        job.chosen = plan.chosen;
        let mut left: VecDeque<Item> = plan.items.into();
        if self.options.mistake == Some(Mistake::ForgottenDone) {
            left.iter_mut().for_each(|item| item.done = None);
        }
        job.stage = Stage::Copying { left, is_busy: false };
        self.compact_step();
    }

    /// Hands out the next batch to be made, if the share of the disk allows it; ends the job when
    /// there is none.
    pub(super) fn compact_step(&mut self) {
        let is_short_of_room = self.is_short_of_room();
        let Some(job) = &mut self.job else { return };
        job.lacks_room |= is_short_of_room && !job.makes_room;
        job.is_given_up |= job.lacks_room;
        let Stage::Copying { left, is_busy } = &mut job.stage else { return };
        if *is_busy {
            return;
        }
        if job.is_given_up || self.has_failed {
            for item in std::mem::take(left) {
                leave(&mut job.not_clean, &mut job.unfinished, &item);
                forget_copies(&mut self.accounts, &item);
            }
        }
        if left.is_empty() {
            return self.end_compaction();
        }
        if self.compaction_credit <= 0 {
            return;
        }
        let octets_max = COPY_OCTETS.min(self.options.segment_bytes as usize / 4);
        let mut octets = 0;
        let mut items = Vec::new();
        let mut chunk = None;
        while let Some(item) = left.front() {
            // A copy must not name a chunk whose sync failed, so such a message stays.
            let is_suspect = names_suspect(&self.suspect, item);
            let is_touched = is_suspect || job.touched.contains(&item.id);
            let next_chunk =
                item.message.as_ref().and_then(|message| message.to_copy.last().copied());
            let needed = item.octets_max();
            let is_alone = next_chunk.is_some() && !is_touched;
            if !items.is_empty() && (octets + needed > octets_max || is_alone) {
                break;
            }
            let item = left.pop_front().expect("looked at above");
            if is_touched {
                leave(&mut job.not_clean, &mut job.unfinished, &item);
                forget_copies(&mut self.accounts, &item);
                continue;
            }
            if let Some(index) = next_chunk {
                chunk = Some(Written::Chunk { item: Box::new(item), index });
                break;
            }
            octets += needed;
            items.push(item);
        }
        let written = match chunk {
            Some(chunk) => chunk,
            None if items.is_empty() => return self.end_compaction(),
            None => Written::Items(items),
        };
        *is_busy = true;
        let work = Work { written, segment_bytes: self.options.segment_bytes };
        self.chores.push_back(Chore::Copy { work: Box::new(work), table: self.table.clone() });
    }

    /// A batch was made; it is committed like any other.
    pub(super) fn copied(&mut self, made: Made) {
        for (item, error) in made.failed {
            self.stats.chore_failures.fetch_add(1, Relaxed);
            forget_copies(&mut self.accounts, &item);
            let Some(job) = &mut self.job else { continue };
            leave(&mut job.not_clean, &mut job.unfinished, &item);
            // It has ended, and its segment may be in use again.
            if job.touched.contains(&item.id) {
                continue;
            }
            if error.kind() != io::ErrorKind::InvalidData {
                tracing::warn!(id = %item.id, %error, "a message could not be read for compaction");
                job.is_given_up = true;
                continue;
            }
            tracing::error!(id = %item.id, %error, "a message is damaged; its segment is kept");
            let message = item.message.iter();
            let places = message.flat_map(|message| {
                message.chunks.iter().map(|chunk| chunk.place).chain([message.place])
            });
            let mut segments: BTreeSet<SegmentNo> = places.map(|place| place.segment).collect();
            segments.retain(|segment| job.chosen.contains(segment));
            for segment in segments {
                if let Some(file) = self.segments.get_mut(&segment) {
                    file.is_stuck = true;
                }
                self.mark_damaged(segment);
            }
        }
        match made.batch {
            Some(batch) => self.waiting.push_back(batch),
            None => self.compaction_is_free(),
        }
    }

    fn compaction_is_free(&mut self) {
        if let Some(Job { stage: Stage::Copying { is_busy, .. }, .. }) = &mut self.job {
            *is_busy = false;
        }
        self.compact_step();
    }

    /// Whether a batch of the compaction says something that is no longer true.
    pub(super) fn is_outdated(&self, batch: &SealedBatch) -> bool {
        let (Some(written), Some(job)) = (&batch.compaction, &self.job) else { return false };
        written.items().iter().any(|item| job.touched.contains(&item.id))
    }

    /// An outcome was committed of a message that stands in segment `of`.
    pub(super) fn touch(&mut self, id: MessageId, of: SegmentNo) {
        let Some(job) = &mut self.job else { return };
        if self.options.mistake == Some(Mistake::Outdated) {
            return;
        }
        // Nothing that came since has been surveyed.
        if of > job.head {
            return;
        }
        job.touched.insert(id);
        job.is_given_up |= job.touched.len() > TOUCHED_MAX;
    }

    /// How many outcomes the job under way has to remember.
    #[cfg(test)]
    pub(crate) fn touched(&self) -> usize {
        self.job.as_ref().map_or(0, |job| job.touched.len())
    }

    /// Takes a committed batch of the compaction into the accounts and the index.
    pub(super) fn count_compacted(&mut self, batch: &SealedBatch, place: BatchPlace) {
        let segment = place.segment;
        let items = batch.compaction.as_ref().map_or(&[][..], Written::items);
        let mut moves = items.iter().filter_map(|item| item.message.as_ref());
        for record in batch::records(batch.payload()) {
            let (offset, record) = record.expect("the compaction writes sound records");
            let offset = place.offset + (BATCH_HEADER + offset) as u32;
            let id = record.id();
            match record.kind() {
                Kind::Message => {
                    let from = moves.next().expect("a MESSAGE is a move").place;
                    let chunks = message::chunks(&record).into_iter().flatten();
                    let chunks: Vec<SegmentNo> = chunks.map(|chunk| chunk.place.segment).collect();
                    self.accounts.moved(id, from.segment, segment, &chunks);
                    if self.options.mistake != Some(Mistake::NoSuccessor) {
                        self.accounts.succeeds(segment, from.segment);
                    }
                    let length = record.total_length() as u32;
                    self.table.set_moved(id, RecordPlace { segment, offset, length });
                    self.moved_into.entry(segment).or_default().push(id);
                    self.stats.messages_moved.fetch_add(1, Relaxed);
                }
                Kind::Chunk => self.accounts.chunk(segment, id),
                _ => {
                    let subject = outcome::subject(&record);
                    let (of, _) = subject.expect("the compaction writes sound records");
                    if of != SegmentNo(0) {
                        let of = self.table.moved(id).map_or(of, |place| place.segment);
                        self.accounts.outcome(segment, of);
                    }
                }
            }
            if let Some(index) = &mut self.head.index {
                index.add(offset, &record);
            }
        }
        self.compaction_credit -= batch.octets() as i64;
        self.stats.compacted_octets.fetch_add(batch.octets() as u64, Relaxed);
    }

    /// Keeps the compaction's own completions from among others.
    pub(super) fn take_compacted(&mut self, done: &mut Vec<Completion>) {
        if !done.iter().any(|completion| completion.worker == COMPACTOR) {
            return;
        }
        let ours: Vec<Completion> =
            done.extract_if(.., |completion| completion.worker == COMPACTOR).collect();
        for Completion { result, mut batch, .. } in ours {
            let Some(written) = batch.compaction.take() else { continue };
            match result {
                Ok(place) => self.compacted(written, place),
                Err(error) => {
                    tracing::warn!(%error, "compaction: a batch was refused");
                    self.compaction_refused(written);
                }
            }
        }
    }

    fn compacted(&mut self, written: Written, place: BatchPlace) {
        if let Written::Chunk { mut item, index } = written {
            if let Some(message) = &mut item.message {
                message.to_copy.pop();
                message.copies.push(place.segment);
                let copy = &mut message.chunks[index].place;
                message.copied_from.push(copy.segment);
                (copy.segment, copy.offset) = (place.segment, place.offset + BATCH_HEADER as u32);
            }
            match &mut self.job {
                Some(Job { stage: Stage::Copying { left, .. }, .. }) => left.push_front(*item),
                _ => forget_copies(&mut self.accounts, &item),
            }
        }
        self.compaction_is_free();
    }

    /// What was to be written again stays where it is, until another job.
    pub(super) fn compaction_refused(&mut self, written: Written) {
        for item in written.into_items() {
            forget_copies(&mut self.accounts, &item);
            if let Some(job) = &mut self.job {
                leave(&mut job.not_clean, &mut job.unfinished, &item);
                job.is_given_up = true;
            }
        }
        self.compaction_is_free();
    }

    /// A batch finds no room on a full disk.
    pub(super) fn compaction_lacks_room(&mut self, written: Written) {
        if let Some(job) = &mut self.job {
            job.lacks_room = true;
        }
        self.compaction_refused(written);
    }

    /// A batch says something that is no longer true, or not for sure: its items are gone through
    /// once more, and those that are still as they were surveyed are put into another one.
    pub(super) fn compaction_withdrawn(&mut self, written: Written) {
        for item in written.into_items().into_iter().rev() {
            match &mut self.job {
                Some(Job { stage: Stage::Copying { left, .. }, .. }) => left.push_front(item),
                _ => forget_copies(&mut self.accounts, &item),
            }
        }
        self.compaction_is_free();
    }

    fn end_compaction(&mut self) {
        let Some(job) = self.job.take() else { return };
        for segment in &job.chosen {
            if !job.is_given_up && !job.not_clean.contains(segment) {
                self.accounts.carried(*segment, &job.chosen);
            }
        }
        let fills: BTreeMap<SegmentNo, (u32, u32)> =
            self.accounts.fills().map(|fill| (fill.segment, (fill.live, fill.pins))).collect();
        for segment in job.candidates {
            let is_left = job.not_clean.contains(&segment) || job.unfinished.contains(&segment);
            if job.lacks_room || (!job.is_given_up && job.postponed.contains(&segment)) {
                continue;
            }
            if let Some(file) = self.segments.get_mut(&segment) {
                // What was not done is to be tried again, whether or not more has died.
                let (live, pins) = match job.is_given_up || is_left {
                    true => (u32::MAX, u32::MAX),
                    false => fills.get(&segment).copied().unwrap_or_default(),
                };
                // What still needs a segment that was emptied is about to die, and may not.
                let pins = if job.chosen.contains(&segment) { u32::MAX } else { pins };
                file.look = Some(Look { at_tick: self.ticks, live, pins });
            }
        }
        self.stats.compactions.fetch_add(1, Relaxed);
    }
}

/// Whether a copy of the item would name a chunk, not copied itself, whose sync failed.
fn names_suspect(suspect: &HashMap<SegmentNo, u32>, item: &Item) -> bool {
    let is_suspect =
        |place: RecordPlace| suspect.get(&place.segment).is_some_and(|&from| place.offset >= from);
    !suspect.is_empty()
        && item.message.as_ref().is_some_and(|message| {
            let chunks = message.chunks.iter().enumerate();
            let mut named = chunks.filter(|(index, _)| !message.to_copy.contains(index));
            named.any(|(_, chunk)| is_suspect(chunk.place))
        })
}

/// Nothing of the item is written again by this job.
fn leave(not_clean: &mut BTreeSet<SegmentNo>, unfinished: &mut BTreeSet<SegmentNo>, item: &Item) {
    not_clean.extend(&item.holders);
    unfinished.extend(item.sources());
}

/// Copies of chunks that no MESSAGE will name.
fn forget_copies(accounts: &mut super::Accounts, item: &Item) {
    if let Some(message) = &item.message {
        accounts.forget_chunks(item.id, &message.copies);
    }
}
