//! Reading the heads of old records to know what of them is needed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::Arc;

use super::super::disk::{Disk, FileNo};
use super::super::fold::Outcomes;
use super::super::format::batch::BatchHeader;
use super::super::format::header::SegmentHeader;
use super::super::format::message::{self, ChunkPlace};
use super::super::format::outcome::{StoredDefer, StoredDone, StoredRecipients, outcome_bytes_max};
use super::super::format::record::{Kind, RECORD_HEADER, RecordView};
use super::super::format::{BATCH_HEADER, FormatError};
use super::super::salvage::Patience;
use super::super::scan::{self, Unreadable, Window};
use super::super::segments::SegmentTable;
use super::super::{BLOCK, RecordPlace, SegmentNo};
use super::{Item, Move, Plan};
use crate::limits;
use crate::message::MessageId;

/// One segment to be read.
#[derive(Debug, Clone)]
pub struct Task {
    pub(crate) file: FileNo,
    pub(crate) header: SegmentHeader,
    /// Where its batches end, as far as they counted when the job began.
    pub(crate) end: u32,
    /// It may have an index.
    pub(crate) is_closed: bool,
    /// Recovery found damage in it: what does not verify is passed over as it was then.
    pub(crate) is_damaged: bool,
}

/// What has been read so far.
#[derive(Debug)]
pub struct Survey {
    candidates: BTreeSet<SegmentNo>,
    in_use: BTreeSet<SegmentNo>,
    table: Arc<SegmentTable>,
    /// At most `messages_max`, and those of one batch.
    known: HashMap<MessageId, Known>,
    pub(super) messages_max: usize,
    segment_bytes: u32,
    /// Octets that may be written by this job.
    octets_max: u64,
}

/// What is known of a message of which something stands in a candidate.
#[derive(Debug)]
struct Known {
    /// Its MESSAGE's last copy, if it has been met.
    place: Option<RecordPlace>,
    recipients: u32,
    /// Those that the last copy names.
    chunks: Box<[ChunkPlace]>,
    /// CHUNK records in candidates: place only.
    met_chunks: Vec<RecordPlace>,
    /// Where the message stands by the word of the last outcome.
    named: SegmentNo,
    outcomes: Option<Box<Surveyed>>,
}

#[derive(Debug, Default)]
struct Surveyed {
    fold: Outcomes,
    /// Candidates that hold DONEs of it.
    done_holders: Vec<SegmentNo>,
    /// The segment where one DONE first says the message's end by itself.  Several may come to it
    /// together; then none of them may go without the others.
    ended_in: Option<SegmentNo>,
}

impl Survey {
    pub(crate) fn new(
        candidates: BTreeSet<SegmentNo>,
        in_use: BTreeSet<SegmentNo>,
        table: Arc<SegmentTable>,
        segment_bytes: u32,
        octets_max: u64,
    ) -> Survey {
        let (known, messages_max) = (HashMap::new(), limits::COMPACTION_MESSAGES);
        Survey { candidates, in_use, table, known, messages_max, segment_bytes, octets_max }
    }

    /// Reads one segment.
    ///
    /// # Errors
    /// The disk refuses, what was durable is damaged, or more messages matter than may be known at
    /// a time ([`io::ErrorKind::OutOfMemory`]); nothing may be concluded then.
    pub(crate) fn read<D: Disk>(&mut self, disk: &D, task: &Task) -> io::Result<()> {
        if task.is_closed
            && let Some(index) =
                scan::load_index(disk, task.file, &task.header, &mut Patience::default())?
        {
            for entry in index.entries() {
                let (offset, record) = entry.map_err(damaged)?;
                self.apply(task.header.segment, offset, &record).map_err(damaged)?;
                self.bound()?;
            }
            return Ok(());
        }
        self.walk(disk, task)
    }

    /// To be called after each record or few.
    fn bound(&self) -> io::Result<()> {
        let count = self.known.len();
        let error = || io::Error::new(io::ErrorKind::OutOfMemory, format!("{count} messages"));
        if count > self.messages_max { Err(error()) } else { Ok(()) }
    }

    /// Reads the heads of the records in one batch after the other.
    fn walk<D: Disk>(&mut self, disk: &D, task: &Task) -> io::Result<()> {
        let mut window = Window::new(disk, task.file, self.segment_bytes, Unreadable::Fails);
        let mut offset = BLOCK;
        let end = task.end as usize;
        let mut last_sequence = 0;
        while offset < end {
            let header = window.bytes(offset, BATCH_HEADER)?;
            let batch = BatchHeader::decode(header, task.header.generation).and_then(|batch| {
                match batch.sequence > last_sequence {
                    true => Ok(batch),
                    false => Err(FormatError::Malformed("batch's place")),
                }
            });
            let batch = match batch {
                Ok(batch) if offset + batch.batch_bytes() <= end => batch,
                _ if task.is_damaged => {
                    offset += BLOCK;
                    continue;
                }
                Ok(_) => return Err(damaged(FormatError::Malformed("batch's length"))),
                Err(error) => return Err(damaged(error)),
            };
            last_sequence = batch.sequence;
            self.bound()?;
            let walked = self.walk_batch(&mut window, task, offset, &batch)?;
            match walked {
                Err(error) if !task.is_damaged => return Err(damaged(error)),
                _ => offset += batch.batch_bytes(),
            }
        }
        Ok(())
    }

    fn walk_batch<D: Disk>(
        &mut self,
        window: &mut Window<'_, D>,
        task: &Task,
        offset: usize,
        batch: &BatchHeader,
    ) -> io::Result<Result<(), FormatError>> {
        let mut at = offset + BATCH_HEADER;
        let end = at + batch.payload_length as usize;
        while at < end {
            let place = RecordPlace { segment: task.header.segment, offset: at as u32, length: 0 };
            let record = match RecordView::parse_head(window.record_head(place)?) {
                Ok(record) => record,
                // Recovery counts what is good behind it, if its length is to be trusted.
                Err(error) if task.is_damaged => {
                    match RecordView::total_length_of(window.bytes(at, RECORD_HEADER)?) {
                        Ok(length) => at += length.max(1),
                        Err(_) => return Ok(Err(error)),
                    }
                    continue;
                }
                Err(error) => return Ok(Err(error)),
            };
            let length = record.total_length();
            if let Err(error) = self.apply(task.header.segment, at as u32, &record) {
                return Ok(Err(error));
            }
            at += length.max(1);
        }
        Ok(Ok(()))
    }

    fn apply(
        &mut self,
        segment: SegmentNo,
        offset: u32,
        record: &RecordView<'_>,
    ) -> Result<(), FormatError> {
        let place = RecordPlace { segment, offset, length: record.total_length() as u32 };
        match record.kind() {
            Kind::Message => self.apply_message(place, record),
            Kind::Chunk => {
                if self.candidates.contains(&segment) {
                    self.known(record.id(), segment).met_chunks.push(place);
                }
                Ok(())
            }
            Kind::Done => {
                let done = StoredDone::decode(record)?;
                self.apply_done(segment, &done);
                Ok(())
            }
            Kind::Defer => {
                let defer = StoredDefer::decode(record)?;
                self.apply_defer(segment, defer);
                Ok(())
            }
            Kind::Control | Kind::Unknown(_) => Ok(()),
        }
    }

    fn known(&mut self, id: MessageId, named: SegmentNo) -> &mut Known {
        self.known.entry(id).or_insert_with(|| Known {
            place: None,
            recipients: 0,
            chunks: Box::default(),
            met_chunks: Vec::new(),
            named,
            outcomes: None,
        })
    }

    fn apply_message(
        &mut self,
        place: RecordPlace,
        record: &RecordView<'_>,
    ) -> Result<(), FormatError> {
        let id = record.id();
        if !self.candidates.contains(&place.segment) && !self.known.contains_key(&id) {
            return Ok(());
        }
        let recipients = message::recipient_count(record)?;
        let chunks = message::chunks(record)?.collect();
        let known = self.known(id, place.segment);
        (known.place, known.recipients, known.chunks) = (Some(place), recipients, chunks);
        known.named = place.segment;
        Ok(())
    }

    /// The entry of an outcome's message, if it can matter.
    fn subject(
        &mut self,
        holder: SegmentNo,
        id: MessageId,
        named: SegmentNo,
    ) -> Option<&mut Known> {
        let named = if named == SegmentNo(0) { holder } else { named };
        let of = self.table.moved(id).map_or(named, |place| place.segment);
        if !self.known.contains_key(&id) {
            let is_needed = self.candidates.contains(&holder) && self.in_use.contains(&of);
            is_needed.then_some(())?;
        }
        let known = self.known(id, of);
        if known.place.is_none() {
            known.named = of;
        }
        Some(known)
    }

    fn apply_done(&mut self, holder: SegmentNo, done: &StoredDone) {
        let is_candidate = self.candidates.contains(&holder);
        let Some(known) = self.subject(holder, done.id, done.segment) else { return };
        let all = known.all();
        let outcomes = known.outcomes.get_or_insert_default();
        outcomes.fold.done(done, all);
        if done.last || done.recipients == StoredRecipients::All {
            outcomes.ended_in.get_or_insert(holder);
        }
        if is_candidate && !outcomes.done_holders.contains(&holder) {
            outcomes.done_holders.push(holder);
        }
    }

    fn apply_defer(&mut self, holder: SegmentNo, defer: StoredDefer) {
        let Some(known) = self.subject(holder, defer.id, defer.segment) else { return };
        let all = known.all();
        let outcomes = known.outcomes.get_or_insert_default();
        if !outcomes.fold.is_ended {
            outcomes.fold.defer(defer, holder, all);
        }
    }

    // ---- the plan ------------------------------------------------------------------------

    /// What is to be done, when every segment has been read.
    pub(crate) fn plan(self) -> Plan {
        let mut plan = Plan { needed_octets: self.needed_octets(), ..Plan::default() };
        let half = u64::from(self.segment_bytes) / 2;
        let mut sum = 0;
        for (&segment, &octets) in &plan.needed_octets {
            if octets <= half && sum + octets <= self.octets_max {
                sum += octets;
                plan.chosen.insert(segment);
            }
        }
        for (id, known) in self.known {
            let item = known.into_item(id, &plan.chosen, &self.in_use);
            plan.items.extend(item);
        }
        plan.items.sort_unstable_by_key(|item| match &item.message {
            Some(message) => (message.place.segment, message.place.offset),
            None => (SegmentNo(0), 0),
        });
        plan
    }

    /// Octets that each candidate would add to the head; outcomes are counted generously.
    fn needed_octets(&self) -> BTreeMap<SegmentNo, u64> {
        let mut needed: BTreeMap<SegmentNo, u64> =
            self.candidates.iter().map(|&segment| (segment, 0)).collect();
        let mut add = |segment: SegmentNo, octets: u64| {
            if let Some(needed) = needed.get_mut(&segment) {
                *needed += octets;
            }
        };
        for known in self.known.values() {
            let (done_holders, is_ended) = match &known.outcomes {
                Some(outcomes) => (&outcomes.done_holders[..], outcomes.fold.is_ended),
                None => (&[][..], false),
            };
            if !is_ended {
                if let Some(place) = known.place {
                    add(place.segment, u64::from(place.length));
                    let chunks = known.chunks.iter().map(|chunk| chunk.place);
                    chunks.for_each(|chunk| add(chunk.segment, u64::from(chunk.length)));
                } else {
                    let chunks = known.met_chunks.iter();
                    chunks.for_each(|chunk| add(chunk.segment, u64::from(chunk.length)));
                }
            }
            if let Some(&holder) = done_holders.first() {
                add(holder, 64);
            }
            for deferral in known.outcomes.iter().flat_map(|outcomes| &outcomes.fold.deferrals) {
                add(deferral.holder, outcome_bytes_max(0) as u64);
            }
        }
        needed
    }
}

impl Known {
    fn all(&self) -> Option<u32> {
        self.place.map(|_| self.recipients)
    }

    fn into_item(
        self,
        id: MessageId,
        chosen: &BTreeSet<SegmentNo>,
        in_use: &BTreeSet<SegmentNo>,
    ) -> Option<Item> {
        let outcomes = self.outcomes.as_deref();
        let is_ended = outcomes.is_some_and(|outcomes| outcomes.fold.is_ended);
        let place = self.place.filter(|_| !is_ended);
        let to_copy: Vec<usize> = match place {
            None => Vec::new(),
            Some(_) => (0..self.chunks.len())
                .filter(|&index| chosen.contains(&self.chunks[index].place.segment))
                .rev()
                .collect(),
        };
        let moves = place.filter(|place| chosen.contains(&place.segment) || !to_copy.is_empty());
        match moves {
            Some(place) => Some(self.moved(id, place, to_copy, chosen)),
            None => self.carried(id, chosen, in_use),
        }
    }

    fn moved(
        self,
        id: MessageId,
        place: RecordPlace,
        to_copy: Vec<usize>,
        chosen: &BTreeSet<SegmentNo>,
    ) -> Item {
        let all = self.all();
        let surveyed = self.outcomes.map(|outcomes| *outcomes).unwrap_or_default();
        let holders = surveyed.holders(chosen);
        let (done, deferrals) = surveyed.fold.waits(all);
        let done = (!done.is_empty()).then(|| (StoredRecipients::Some(done.into()), false));
        let chunks = self.chunks.into_vec();
        let message =
            Some(Move { place, chunks, to_copy, copies: Vec::new(), copied_from: Vec::new() });
        Item { id, message, of: SegmentNo(0), done, deferrals, holders }
    }

    /// The outcomes of a message that stays where it is, if any of them stands in what goes.
    fn carried(
        self,
        id: MessageId,
        chosen: &BTreeSet<SegmentNo>,
        in_use: &BTreeSet<SegmentNo>,
    ) -> Option<Item> {
        let all = self.all();
        let of = self.named;
        if chosen.contains(&of) || !in_use.contains(&of) {
            return None;
        }
        let surveyed = *self.outcomes?;
        let holders = surveyed.holders(chosen);
        if holders.is_empty() {
            return None;
        }
        if surveyed.fold.is_ended {
            // An end that stands elsewhere in one piece says all there is to say.
            if surveyed.ended_in.is_some_and(|segment| !chosen.contains(&segment)) {
                return None;
            }
            let done = Some((StoredRecipients::All, surveyed.fold.is_last_said));
            return Some(Item { id, message: None, of, done, deferrals: Vec::new(), holders });
        }
        // A DEFER that is written again must not come to stand behind a later one that is not.
        let mut is_in_chosen = false;
        let mut fold = surveyed.fold;
        fold.deferrals.retain(|deferral| {
            is_in_chosen |= chosen.contains(&deferral.holder);
            is_in_chosen
        });
        let (done, deferrals) = fold.waits(all);
        let done = (!done.is_empty()).then(|| (StoredRecipients::Some(done.into()), false));
        Some(Item { id, message: None, of, done, deferrals, holders })
    }
}

impl Surveyed {
    /// The chosen segments that hold something of it that counts.
    fn holders(&self, chosen: &BTreeSet<SegmentNo>) -> Vec<SegmentNo> {
        let deferrals = self.fold.deferrals.iter().map(|deferral| deferral.holder);
        let mut holders: Vec<SegmentNo> =
            self.done_holders.iter().copied().chain(deferrals).collect();
        holders.retain(|holder| chosen.contains(holder));
        holders.sort_unstable();
        holders.dedup();
        holders
    }
}

fn damaged(error: FormatError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
