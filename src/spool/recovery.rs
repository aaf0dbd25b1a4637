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
//! - Blocks that the disk cannot read are as if they had never been written, and told.
//! - Every other gap is damage: told, skipped over, and the file is set aside when it is dead.
//!
//! It fails, and touches nothing, when a file is foreign, of another format version or holds
//! something that must not be passed over.  Otherwise a fresh segment is open when it returns, and
//! its header says what was cut, so that a second recovery comes to the same end.

mod report;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::sync::Arc;

pub use self::report::{
    Damage, Progress, RecoveredMessage, RecoveryError, RecoveryReport, RecoveryVisitor,
};
use super::accounts::Accounts;
use super::chore::{Chore, ChoreDone, Spare};
use super::direct::AlignedBuf;
use super::disk::{Disk, FileNo};
use super::fold::Outcomes;
use super::format::FormatError;
use super::format::header::{SegmentHeader, SegmentState};
use super::format::index::IndexBuilder;
use super::format::message::{self, StoredBody, StoredMessage};
use super::format::outcome::{StoredDefer, StoredDone};
use super::format::record::{Kind, RecordView};
use super::format::roll::{self, Roll};
use super::log::{Found, Log, LogOptions, Mistake, SegmentFile};
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
const UNREADABLE: FormatError = FormatError::Malformed("header, which the disk cannot read,");

/// Recovers the log on `disk` and opens it for appending.  `random` gives generations.
///
/// # Errors
/// See [`RecoveryError`]; nothing has been changed then, save that unreadable files may have been
/// set aside.
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
}

/// Two files that say to be the same segment.
type Twins = Option<(FileNo, FileNo)>;

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
        }
    }

    fn read_headers(&mut self) -> Result<(), RecoveryError> {
        let mut twin = None;
        for file in self.disk.files()? {
            self.next_file = self.next_file.max(FileNo(file.0.saturating_add(1)));
            twin = self.read_header(file)?.or(twin);
        }
        self.check_spools()?;
        if let Some((file, other)) = twin {
            // A copy, most likely.  Neither can be preferred.
            return Err(RecoveryError::Twin { file: file.0, other: other.0 });
        }
        self.call_roll();
        self.report.segments = self.segments.len();
        self.progress.segments = 2 * self.segments.len();
        for (&no, segment) in &self.segments {
            self.accounts.open(no);
            self.accounts.close(no);
            if segment.header.voided.is_some() {
                self.accounts.succeeds(no, segment.header.predecessor);
            }
        }
        Ok(())
    }

    /// All files must belong to one spool: mail of another must not be delivered here as well.
    fn check_spools(&self) -> Result<(), RecoveryError> {
        let ours = roll::spool_of(self.spools.iter().map(|&(_, spool)| spool));
        let stranger = self.spools.iter().find(|&&(_, spool)| Some(spool) != ours);
        match stranger {
            Some((file, _)) => Err(RecoveryError::OtherSpool { file: file.0 }),
            None => Ok(()),
        }
    }

    /// Tells of segments that were in use when the newest was opened, and of which there is no
    /// trace.
    fn call_roll(&mut self) {
        let Some(roll) = self.roll.take() else { return };
        let is_there =
            |segment| self.segments.contains_key(&segment) || self.ended.contains(&segment);
        let segments = roll.missing(is_there);
        if !segments.is_empty() {
            self.damage(Damage::Missing { segments });
        }
    }

    /// Takes a file in; if another one says to be the same segment, gives both.
    fn read_header(&mut self, file: FileNo) -> Result<Twins, RecoveryError> {
        let length = self.disk.length(file).map_err(refused(file))?;
        if length < BLOCK as u64 {
            return self.set_aside(file, FormatError::Truncated);
        }
        let mut block = AlignedBuf::new(BLOCK);
        let lost = scan::read_salvaging(self.disk, file, 0, &mut block).map_err(refused(file))?;
        if lost > 0 {
            return self.set_aside(file, UNREADABLE);
        }
        let header = match SegmentHeader::decode(&block) {
            Ok(header) => header,
            Err(error @ (FormatError::Magic | FormatError::Version(_))) => {
                return Err(RecoveryError::Foreign { file: file.0, error });
            }
            Err(error) => return self.set_aside(file, error),
        };
        if header.segment_bytes != self.options.segment_bytes {
            let (found, expected) = (header.segment_bytes, self.options.segment_bytes);
            return Err(RecoveryError::SegmentSize { file: file.0, found, expected });
        }
        self.last_segment = self.last_segment.max(header.segment);
        self.next_sequence = self.next_sequence.max(header.first_sequence);
        match header.state {
            SegmentState::Free if length < u64::from(header.segment_bytes) => {
                return self.set_aside(file, FormatError::Truncated);
            }
            SegmentState::Free => {
                self.ended.insert(header.segment);
                // A crash of the process may have come between the write of this header and its
                // sync.  From now on outcomes that others hold for the segment's messages count no
                // more, so it must not come back after a power cut.
                self.disk.sync(file).map_err(refused(file))?;
                let SegmentHeader { generation, revision, .. } = header;
                self.spares.push_back(Spare { file, generation, revision });
            }
            // It was to be renamed when the last run ended.
            SegmentState::Quarantined => {
                self.ended.insert(header.segment);
                self.disk.quarantine(file).map_err(refused(file))?;
            }
            SegmentState::Open => {
                let roll = Roll::decode(&block, header.generation);
                self.spools.extend(roll.as_ref().map(|roll| (file, roll.spool)));
                if self.segments.keys().next_back().is_none_or(|&newest| newest < header.segment) {
                    self.roll = roll;
                }
                let cut = u64::from(header.segment_bytes).saturating_sub(length);
                if cut > 0 {
                    let segment = header.segment;
                    self.damage(Damage::Short { segment, file, octets: cut });
                }
                let segment = Segment {
                    header,
                    file,
                    is_damaged: cut > 0,
                    is_indexed: false,
                    end: header.segment_bytes,
                };
                let before = self.segments.insert(header.segment, segment);
                return Ok(before.map(|other| (file, other.file)));
            }
        }
        Ok(None)
    }

    fn set_aside(&mut self, file: FileNo, error: FormatError) -> Result<Twins, RecoveryError> {
        self.disk.quarantine(file).map_err(refused(file))?;
        self.damage(Damage::Header { file, error });
        Ok(None)
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
        let index = scan::load_index(self.disk, file, &header).map_err(refused(file))?;
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
        let octets = scan::read_salvaging(self.disk, file, 0, &mut whole[..length])
            .map_err(refused(file))?;
        if octets > 0 {
            self.segments.get_mut(&no).expect("it is one of them").is_damaged = true;
            self.damage(Damage::Unreadable { segment: no, file, octets });
        }
        let scanned =
            scan::scan(&whole[..length], &header, voided).map_err(|error| foreign(file, error))?;
        let (last_valid, is_end_known) = if is_newest {
            (scanned.end_of_whole(header.first_sequence), true)
        } else {
            let next = self.segments.range(SegmentNo(no.0.saturating_add(1))..).next();
            scan::bound_by(no, next.map(|(_, next)| &next.header))
        };
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

    /// Pass two.
    fn visit_live(&mut self) -> Result<(), RecoveryError> {
        // Offsets alone: there may be millions.
        let mut by_scan: BTreeMap<SegmentNo, Vec<u32>> = BTreeMap::new();
        for live in self.live.values() {
            let segment = live.place.segment;
            if !self.segments[&segment].is_indexed && !self.heads.contains_key(&segment) {
                by_scan.entry(segment).or_default().push(live.place.offset);
            }
        }
        let order: Vec<SegmentNo> = self.segments.keys().copied().collect();
        for no in order {
            if self.segments[&no].is_indexed {
                self.visit_indexed(no)?;
            } else if let Some(heads) = self.heads.remove(&no) {
                self.visit_heads(no, &heads)?;
            } else if let Some(mut offsets) = by_scan.remove(&no) {
                offsets.sort_unstable();
                self.visit_places(no, &offsets)?;
            }
            self.step();
        }
        Ok(())
    }

    fn visit_indexed(&mut self, no: SegmentNo) -> Result<(), RecoveryError> {
        let (file, header) = (self.segments[&no].file, self.segments[&no].header);
        let index = scan::load_index(self.disk, file, &header).map_err(refused(file))?;
        let Some(index) = index else {
            // It could be read a moment ago.  What it said of the records is known, so these are
            // asked themselves.
            let places = self.live.values().map(|live| live.place);
            let there = places.filter(|place| place.segment == no);
            let mut offsets: Vec<u32> = there.map(|place| place.offset).collect();
            offsets.sort_unstable();
            return self.visit_places(no, &offsets);
        };
        for entry in index.entries() {
            let (offset, record) = entry.map_err(|error| foreign(file, error))?;
            if record.kind() == Kind::Message {
                self.visit(no, offset, &record)?;
            }
        }
        Ok(())
    }

    fn visit_heads(&mut self, no: SegmentNo, heads: &IndexBuilder) -> Result<(), RecoveryError> {
        for entry in heads.entries() {
            let (offset, record) = entry.expect("it was taken from a record that verified");
            self.visit(no, offset, &record)?;
        }
        Ok(())
    }

    /// Visits the records at these offsets, which are ascending.
    fn visit_places(&mut self, no: SegmentNo, offsets: &[u32]) -> Result<(), RecoveryError> {
        let file = self.segments[&no].file;
        let mut window = scan::Window::new(
            self.disk,
            file,
            self.options.segment_bytes,
            scan::Unreadable::IsEmpty,
        );
        let mut lost = BTreeMap::new();
        for &offset in offsets {
            let place = RecordPlace { segment: no, offset, length: 0 };
            let head = window.record_head(place).map_err(refused(file))?;
            match RecordView::parse_head(head) {
                Ok(record) => self.visit(no, offset, &record)?,
                Err(error) => drop(lost.insert(offset, error)),
            }
        }
        if lost.is_empty() {
            return Ok(());
        }
        let there = self.live.iter().filter(|(_, live)| live.place.segment == no);
        let places: Vec<(MessageId, RecordPlace)> =
            there.map(|(&id, live)| (id, live.place)).collect();
        for (id, place) in places {
            if let Some(error) = lost.remove(&place.offset) {
                self.lose(id, place, error)?;
            }
        }
        Ok(())
    }

    /// Gives a message to the visitor if it is live and this is its place.
    fn visit(
        &mut self,
        segment: SegmentNo,
        offset: u32,
        record: &RecordView<'_>,
    ) -> Result<(), RecoveryError> {
        let id = record.id();
        let is_its_place =
            |live: &Live| (live.place.segment, live.place.offset) == (segment, offset);
        if !self.live.get(&id).is_some_and(is_its_place) {
            return Ok(());
        }
        let live = self.live.remove(&id).expect("looked at above");
        match StoredMessage::decode(record) {
            Ok(message) => {
                if let StoredBody::Chunks(chunks) = &message.body {
                    // Copies that a compaction left unfinished are no part of it.
                    let named: Vec<SegmentNo> =
                        chunks.iter().map(|chunk| chunk.place.segment).collect();
                    self.accounts.retain_chunks(id, &named);
                }
                self.report.live_messages += 1;
                self.visitor.message(live.recovered(message));
                Ok(())
            }
            Err(error) => self.lose(id, live.place, error),
        }
    }

    /// A live message that cannot be read: nobody will ever end it, so it does not count.  What is
    /// left of it is set aside with its segments when they are dead.
    fn lose(
        &mut self,
        id: MessageId,
        place: RecordPlace,
        error: FormatError,
    ) -> Result<(), RecoveryError> {
        self.live.remove(&id);
        for segment in self.accounts.chunk_segments(id) {
            if let Some(segment) = self.segments.get_mut(&segment) {
                segment.is_damaged = true;
            }
        }
        self.accounts.finished(place.segment, id);
        self.bad_record(place, id, error)
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
            next_file: self.next_file,
            predecessor: self.segments.keys().next_back().copied().unwrap_or(SegmentNo(0)),
            last_segment: self.last_segment,
            last_sequence: self.last_sequence,
            next_sequence: self.next_sequence,
            moved: self.moved.into_iter().collect(),
        }
    }
}

impl Live {
    fn recovered(self, message: StoredMessage) -> RecoveredMessage {
        let outcomes = self.outcomes.map(|outcomes| *outcomes).unwrap_or_default();
        let (done, deferrals) = outcomes.waits(Some(self.recipients));
        RecoveredMessage { place: self.place, message, done, deferrals }
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
