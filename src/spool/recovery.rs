//! From a directory of segments back to a running log: what counts, what is live, what is damaged.
//!
//! Two passes over the segments in their order.  The first applies every record's head to a map of
//! live messages (an entry each, no envelopes) and to the accounts; the second reads the envelopes
//! of what is left and hands each message to the visitor.  Sealed segments are read through their
//! index, so bodies are read only where there is none.
//!
//! The rules for a scanned segment:
//! - A batch counts if it verifies, its sequence is in order and no header has voided it.
//! - Of a batch that was durable and is damaged, the records that verify count, if the batch's
//!   digest says that all are where they were; a message whose octets alone are hurt stays in the
//!   queue, so that its sender is told.
//! - In the newest segment, the first sequence that is missing above every `durable_through` is
//!   where the last crash tore the log; from there on nothing was acknowledged, and it is cut.
//! - Blocks that the disk cannot read are as if they had never been written, and told; but not
//!   where the log may end in them, since nothing would tell acknowledged batches from a tear.
//! - Every other gap is damage: told, skipped over, and the file is set aside when it is dead.
//!
//! It fails, and touches nothing, when a file is foreign, of another format version or holds
//! something that must not be passed over, and when the disk cannot read a header or the end of the
//! log: on a disk that has healed the next start finds everything.  Otherwise a fresh segment is
//! open when it returns, and its header says what was cut, so that a second recovery comes to the
//! same end.

mod headers;
mod report;
mod visit;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::sync::Arc;

pub use self::report::{
    Damage, Progress, RecoveredMessage, RecoveryError, RecoveryReport, RecoveryVisitor, UnreadPart,
};
use super::accounts::Accounts;
use super::chore::{Chore, ChoreDone, Spare};
use super::direct::AlignedBuf;
use super::disk::{Disk, FileNo};
use super::fold::Outcomes;
use super::format::FormatError;
use super::format::header::SegmentHeader;
use super::format::index::IndexBuilder;
use super::format::message;
use super::format::outcome::{StoredDefer, StoredDone};
use super::format::record::{Kind, RecordView};
use super::format::roll::{self, Roll};
use super::log::{Found, Log, LogOptions, Mistake, SegmentFile};
use super::salvage::Patience;
use super::scan::{self, Piece, Scanned};
use super::segments::SegmentTable;
use super::stats::SpoolStats;
use super::{BLOCK, RecordPlace, SegmentNo};
use crate::message::MessageId;

/// Damage that is told one by one; more is only counted.
const DAMAGE_MAX: usize = 1000;
/// Octets of heads that are kept from pass one for pass two.
const HEADS_MAX: usize = 128 * 1024 * 1024;
/// A torn write may have held this many batches whose sequences cannot be read.
const TORN_SEQUENCES: u64 = 1024;

/// Recovers the log on `disk` and opens it for appending.  `random` gives generations.
///
/// # Errors
/// See [`RecoveryError`]; nothing that anybody needs has been changed then.
pub fn recover<D: Disk>(
    disk: Arc<D>,
    options: LogOptions,
    stats: Arc<SpoolStats>,
    random: &mut dyn FnMut() -> u64,
    visitor: &mut dyn RecoveryVisitor,
) -> Result<(Log<D>, RecoveryReport), RecoveryError> {
    let mut recovery = Recovery::new(&*disk, options, visitor);
    recovery.read_headers()?;
    recovery.read_records()?;
    recovery.visit_live()?;
    let report = std::mem::take(&mut recovery.report);
    let mut found = recovery.finish(random);
    // A head whose first write was torn has left batches of the generation that its file's free
    // header still announces.
    for spare in &mut found.spares {
        spare.generation = random();
    }
    stats.segments_damaged.store(
        found.segments.values().filter(|segment| segment.is_damaged).count() as u64,
        std::sync::atomic::Ordering::Relaxed,
    );
    if found.spares.is_empty() {
        let spare = match retire_dead(&*disk, &options, &mut found, random) {
            Some(spare) => spare,
            None => make_spare(&*disk, &options, &mut found.next_file, random)?,
        };
        found.spares.push_back(spare);
    }
    let log = Log::resume(disk, options, Arc::new(SegmentTable::default()), stats, found)?;
    Ok((log, report))
}

/// A spare from a segment that nothing needs: on a full disk, the head of a run that came to
/// nothing lets the next one start.
fn retire_dead<D: Disk>(
    disk: &D,
    options: &LogOptions,
    found: &mut Found,
    random: &mut dyn FnMut() -> u64,
) -> Option<Spare> {
    for segment in found.accounts.take_dead() {
        let Some(dead) = found.segments.get_mut(&segment) else { continue };
        // One more for each attempt, so that a header of which half was written loses.
        dead.header.revision += 1;
        let SegmentFile { file, header, is_damaged, .. } = *dead;
        let retire = Chore::Retire {
            segment,
            file,
            segment_bytes: options.segment_bytes,
            revision: header.revision,
            quarantine: is_damaged,
        };
        if let ChoreDone::Retired { segment, spare } = retire.perform(disk, random) {
            found.accounts.retired(segment);
            found.segments.remove(&segment);
            found.useless.extend(is_damaged.then_some(file));
            found.spares.extend(spare);
        } else {
            found.accounts.not_retired(segment);
        }
    }
    found.spares.pop_front()
}

fn make_spare<D: Disk>(
    disk: &D,
    options: &LogOptions,
    next_file: &mut FileNo,
    random: &mut dyn FnMut() -> u64,
) -> io::Result<Spare> {
    let create = Chore::Create { file: *next_file, segment_bytes: options.segment_bytes };
    next_file.0 = next_file.0.checked_add(1).ok_or_else(|| io::Error::other("file numbers"))?;
    match create.perform(disk, random) {
        ChoreDone::Created(spare) => Ok(spare),
        ChoreDone::NotCreated(error) => Err(error),
        other => unreachable!("a creation ends as one: {other:?}"),
    }
}

struct Recovery<'a, D> {
    disk: &'a D,
    options: LogOptions,
    visitor: &'a mut dyn RecoveryVisitor,
    report: RecoveryReport,
    progress: Progress,
    accounts: Accounts,
    segments: BTreeMap<SegmentNo, Segment>,
    spares: VecDeque<Spare>,
    next_file: FileNo,
    /// To be set aside by the log, when there is one.
    useless: Vec<FileNo>,
    /// What the open segments say that they belong to.
    spools: Vec<(FileNo, u32)>,
    /// The last lives of the files that are free or were set aside.
    ended: BTreeSet<SegmentNo>,
    /// Of the newest segment.
    roll: Option<Roll>,
    last_segment: SegmentNo,
    live: BTreeMap<MessageId, Live>,
    /// Messages, live or ended, that do not stand where an outcome says.
    moved: HashMap<MessageId, RecordPlace>,
    /// The heads of messages in segments that were scanned, so that pass two need not read those
    /// again; not of all, if there are many.
    heads: HashMap<SegmentNo, IndexBuilder>,
    heads_octets: usize,
    last_sequence: u64,
    next_sequence: u64,
    /// One segment at most, reused by the first pass.
    whole: AlignedBuf,
    patience: Patience,
}

struct Segment {
    header: SegmentHeader,
    file: FileNo,
    is_damaged: bool,
    /// Pass one read it through its index, so pass two does.
    is_indexed: bool,
    /// Where the batches that count end.
    end: u32,
}

/// What is kept of a live message between the passes.
struct Live {
    place: RecordPlace,
    recipients: u32,
    /// Nothing for most.
    outcomes: Option<Box<Outcomes>>,
}

impl<'a, D: Disk> Recovery<'a, D> {
    fn new(disk: &'a D, options: LogOptions, visitor: &'a mut dyn RecoveryVisitor) -> Self {
        Recovery {
            disk,
            options,
            visitor,
            report: RecoveryReport::default(),
            progress: Progress { segments_done: 0, segments: 0 },
            accounts: Accounts::default(),
            segments: BTreeMap::new(),
            spares: VecDeque::new(),
            next_file: FileNo(1),
            useless: Vec::new(),
            spools: Vec::new(),
            ended: BTreeSet::new(),
            roll: None,
            last_segment: SegmentNo(0),
            live: BTreeMap::new(),
            moved: HashMap::new(),
            heads: HashMap::new(),
            heads_octets: 0,
            last_sequence: 0,
            next_sequence: 1,
            whole: AlignedBuf::new(options.segment_bytes as usize),
            patience: Patience::default(),
        }
    }

    fn damage(&mut self, damage: Damage) {
        self.visitor.damage(&damage);
        self.report.damage_count += 1;
        if self.report.damage.len() < DAMAGE_MAX {
            self.report.damage.push(damage);
        }
    }

    /// Pass one.
    fn read_records(&mut self) -> Result<(), RecoveryError> {
        let newest = self.segments.keys().next_back().copied();
        if let Some(newest) = newest {
            // A crash of the process alone leaves writes that no sync has covered; what is found
            // now must still be there after the next power cut.
            let file = self.segments[&newest].file;
            self.disk.sync(file).map_err(refused(file))?;
        }
        let voided: Vec<(u64, u64)> =
            self.segments.values().filter_map(|segment| segment.header.voided).collect();
        let order: Vec<SegmentNo> = self.segments.keys().copied().collect();
        for no in order {
            let is_newest = Some(no) == newest;
            // One with an index was closed, and everything in it was durable before.
            if !self.read_index(no)? {
                self.scan_segment(no, is_newest, &voided)?;
            }
            self.step();
        }
        // Nothing is scanned again.
        self.whole = AlignedBuf::new(0);
        self.accounts.abandon_all_uploads();
        Ok(())
    }

    fn step(&mut self) {
        self.progress.segments_done += 1;
        self.visitor.progress(self.progress);
    }

    /// Applies a sealed segment's index, if it has a sound one.
    fn read_index(&mut self, no: SegmentNo) -> Result<bool, RecoveryError> {
        let (file, header) = (self.segments[&no].file, self.segments[&no].header);
        let index = scan::load_index(self.disk, file, &header, &mut self.patience)
            .map_err(refused(file))?;
        let Some(index) = index else {
            return Ok(false);
        };
        for entry in index.entries() {
            let (offset, record) = entry.map_err(|error| foreign(file, error))?;
            self.apply(no, offset, &record)?;
        }
        self.saw_sequence(index.last_sequence());
        self.segments.get_mut(&no).expect("it is one of them").is_indexed = true;
        self.report.indexed += 1;
        Ok(true)
    }

    fn saw_sequence(&mut self, sequence: u64) {
        self.last_sequence = self.last_sequence.max(sequence);
        self.next_sequence = self.next_sequence.max(sequence.saturating_add(1));
    }

    fn scan_segment(
        &mut self,
        no: SegmentNo,
        is_newest: bool,
        voided: &[(u64, u64)],
    ) -> Result<(), RecoveryError> {
        let (file, header) = (self.segments[&no].file, self.segments[&no].header);
        let mut whole = std::mem::replace(&mut self.whole, AlignedBuf::new(0));
        let length = self.disk.length(file).map_err(refused(file))?.min(whole.len() as u64);
        let length = length as usize / BLOCK * BLOCK;
        let lost =
            self.patience.read(self.disk, file, 0, &mut whole[..length]).map_err(refused(file))?;
        let scanned =
            scan::scan(&whole[..length], &header, voided).map_err(|error| foreign(file, error))?;
        let (last_valid, is_end_known) = if is_newest {
            (scanned.end_of_whole(header.first_sequence), true)
        } else {
            let next = self.segments.range(SegmentNo(no.0.saturating_add(1))..).next();
            scan::bound_by(no, next.map(|(_, next)| &next.header))
        };
        if is_newest && !scanned.is_end_readable(last_valid, lost) {
            let part = UnreadPart::End { octets: lost.octets, last_sequence: last_valid };
            return Err(RecoveryError::Unreadable { file: file.0, part });
        }
        if !lost.is_nothing() {
            self.segments.get_mut(&no).expect("it is one of them").is_damaged = true;
            self.damage(Damage::Unreadable { segment: no, file, octets: lost.octets });
        }
        for sequences in scanned.gaps(header.first_sequence, last_valid, is_end_known) {
            self.segments.get_mut(&no).expect("it is one of them").is_damaged = true;
            self.damage(Damage::Batches { segment: no, file, sequences });
        }
        let mut heads = IndexBuilder::default();
        for batch in scanned.batches.iter().filter(|batch| batch.header.sequence <= last_valid) {
            for piece in batch.pieces(&whole) {
                let Some(record) = self.sound(no, &piece, batch.is_whole)? else { continue };
                self.apply(no, piece.offset, &record)?;
                if record.kind() == Kind::Message && self.heads_octets < HEADS_MAX {
                    heads.add(piece.offset, &record);
                }
            }
            self.saw_sequence(batch.header.sequence);
        }
        if self.heads_octets < HEADS_MAX {
            self.heads_octets += heads.len();
            self.heads.insert(no, heads);
        }
        let counting =
            scanned.batches.iter().rev().find(|batch| batch.header.sequence <= last_valid);
        self.segments.get_mut(&no).expect("it is one of them").end =
            counting.map_or(BLOCK, |batch| batch.offset + batch.header.batch_bytes()) as u32;
        if is_newest {
            self.cut(&scanned, last_valid);
        }
        self.whole = whole;
        Ok(())
    }

    /// A record of a batch that counts, if it can be used; tells what is wrong with it.
    fn sound<'b>(
        &mut self,
        segment: SegmentNo,
        piece: &Piece<'b>,
        is_whole: bool,
    ) -> Result<Option<RecordView<'b>>, RecoveryError> {
        let place = RecordPlace { segment, offset: piece.offset, length: piece.length };
        let (_, id) = piece.name;
        match piece.record {
            Ok(record) => {
                if !is_whole && record.verify_body().is_err() {
                    // Its sender can still be told; reading it says again what is wrong.
                    if let Some(segment) = self.segments.get_mut(&segment) {
                        segment.is_damaged = true;
                    }
                    self.damage(Damage::Body { place, id });
                }
                Ok(Some(record))
            }
            Err(error) => self.bad_record(place, id, error).map(|()| None),
        }
    }

    /// Makes the numbers behind the torn end of the log void.
    fn cut(&mut self, scanned: &Scanned, last_valid: u64) {
        self.last_sequence = self.last_sequence.max(last_valid);
        self.next_sequence = self.next_sequence.max(last_valid.saturating_add(1));
        let last_torn = scanned.last_seen.filter(|&last| last > last_valid);
        if let Some(last_torn) = last_torn {
            let end = last_torn.saturating_add(TORN_SEQUENCES);
            self.next_sequence = self.next_sequence.max(end);
            self.report.cut = Some(last_valid + 1..last_torn + 1);
            tracing::warn!(
                first = last_valid + 1,
                last = last_torn,
                "the end of the log was torn by the last stop and is cut; no write that ended is in it"
            );
        }
    }

    fn apply(
        &mut self,
        segment: SegmentNo,
        offset: u32,
        record: &RecordView<'_>,
    ) -> Result<(), RecoveryError> {
        self.report.records += 1;
        self.report.highest_id = self.report.highest_id.max(Some(record.id()));
        let place = RecordPlace { segment, offset, length: record.total_length() as u32 };
        let applied = match record.kind() {
            Kind::Message => self.apply_message(place, record),
            Kind::Chunk => {
                self.accounts.chunk(segment, record.id());
                Ok(())
            }
            Kind::Done => StoredDone::decode(record).map(|done| self.apply_done(segment, &done)),
            Kind::Defer => {
                StoredDefer::decode(record).map(|defer| self.apply_defer(segment, defer))
            }
            Kind::Control | Kind::Unknown(_) => Ok(()),
        };
        if let Err(error) = applied {
            self.bad_record(place, record.id(), error)?;
        }
        Ok(())
    }

    fn bad_record(
        &mut self,
        place: RecordPlace,
        id: MessageId,
        error: FormatError,
    ) -> Result<(), RecoveryError> {
        if let Some(segment) = self.segments.get_mut(&place.segment) {
            if matches!(error, FormatError::MustUnderstand(_)) {
                return Err(foreign(segment.file, error));
            }
            segment.is_damaged = true;
        }
        self.damage(Damage::Record { place, id, error });
        Ok(())
    }

    fn apply_message(
        &mut self,
        place: RecordPlace,
        record: &RecordView<'_>,
    ) -> Result<(), FormatError> {
        let recipients = message::recipient_count(record)?;
        self.accounts.message(place.segment, record.id());
        match self.live.entry(record.id()) {
            Entry::Vacant(vacant) => {
                vacant.insert(Live { place, recipients, outcomes: None });
            }
            // A second copy takes the place of the first, whose segment need not keep it, and
            // must outlast it.
            Entry::Occupied(mut live) => {
                let live = live.get_mut();
                self.accounts.subtract_message(live.place.segment, record.id());
                if self.options.mistake != Some(Mistake::NoSuccessor) {
                    self.accounts.succeeds(place.segment, live.place.segment);
                }
                live.place = place;
            }
        }
        if let Some(moved) = self.moved.get_mut(&record.id()) {
            *moved = place;
        }
        Ok(())
    }

    fn apply_done(&mut self, holder: SegmentNo, done: &StoredDone) {
        let Some((live, place)) = self.subject(holder, done.id, done.segment) else { return };
        let all = live.recipients;
        let outcomes = live.outcomes.get_or_insert_default();
        outcomes.done(done, Some(all));
        if outcomes.is_ended {
            self.live.remove(&done.id);
            self.accounts.finished(place.segment, done.id);
        }
    }

    fn apply_defer(&mut self, holder: SegmentNo, defer: StoredDefer) {
        let Some((live, _)) = self.subject(holder, defer.id, defer.segment) else { return };
        let all = live.recipients;
        live.outcomes.get_or_insert_default().defer(defer, holder, Some(all));
    }

    /// The live message of an outcome, and where it stands.  What the outcome says of that was true
    /// when it was appended; the message may have been moved before it was written.
    fn subject(
        &mut self,
        holder: SegmentNo,
        id: MessageId,
        named: SegmentNo,
    ) -> Option<(&mut Live, RecordPlace)> {
        let named = if named == SegmentNo(0) { holder } else { named };
        let live = self.live.get_mut(&id);
        let moved = live.as_ref().map(|live| live.place).or_else(|| self.moved.get(&id).copied());
        match moved {
            Some(place) => {
                if place.segment != named {
                    self.moved.insert(id, place);
                }
                self.accounts.outcome(holder, place.segment);
            }
            None => self.accounts.outcome(holder, named),
        }
        live.map(|live| {
            let place = live.place;
            (live, place)
        })
    }

    fn finish(self, random: &mut dyn FnMut() -> u64) -> Found {
        let ours = roll::spool_of(self.spools.iter().map(|&(_, spool)| spool));
        let file = |segment: &Segment| SegmentFile {
            end: segment.end,
            is_damaged: segment.is_damaged,
            was_damaged: segment.is_damaged,
            ..SegmentFile::new(segment.file, segment.header)
        };
        let segments: HashMap<_, _> =
            self.segments.iter().map(|(&no, segment)| (no, file(segment))).collect();
        Found {
            spool: ours.unwrap_or_else(|| random() as u32),
            accounts: self.accounts,
            segments,
            spares: self.spares,
            useless: self.useless,
            next_file: self.next_file,
            predecessor: self.segments.keys().next_back().copied().unwrap_or(SegmentNo(0)),
            last_segment: self.last_segment,
            last_sequence: self.last_sequence,
            next_sequence: self.next_sequence,
            moved: self.moved.into_iter().collect(),
        }
    }
}

fn refused(file: FileNo) -> impl Fn(io::Error) -> RecoveryError {
    move |source| RecoveryError::File { file: file.0, source }
}

fn foreign(file: FileNo, error: FormatError) -> RecoveryError {
    RecoveryError::Foreign { file: file.0, error }
}

#[cfg(test)]
#[path = "recovery_tests.rs"]
mod tests;
