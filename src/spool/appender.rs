//! A worker's end of the log: records go into an open batch, sealed batches come out, completions
//! go back in.  Pure: memory and arithmetic, the time is an argument.
//!
//! When to seal is decided here, by [`Appender::seal`]: at once when nothing of this worker is in
//! flight, when a batch is full, and 10 ms after the first record of a batch that holds outcomes
//! only.  While a batch is in flight the next one gathers, which is group commit without a timer.
//!
//! New messages are refused when memory runs out ([`Refused::Busy`]: the client hears 451 or 452).
//! Outcomes never are: they wait in a list, and those of a batch that the disk refused are
//! appended again without the caller's help, ahead of newer ones.
//!
//! It does no I/O and does not know where anything stands until it is told.

mod open;

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::open::{OpenBatch, zero_tail};
use super::buffer::{BufferPool, CHUNK_FRONT, ChunkBuffer, PooledBuf, SharedBatch, SharedInner};
use super::format::batch::Digest;
use super::format::message::{NewMessage, put_chunk};
use super::format::outcome::{Defer, Done};
use super::format::{BATCH_HEADER, index};
use super::sealed::{CommitError, Completion, SealedBatch};
use super::{BATCH_BYTES, RECORD_BYTES_MAX, RecordPlace};
use crate::limits;
use crate::message::{Durability, MessageId};

/// A record's name until its place is known; increasing within an appender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Why a record was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Every buffer is on its way to the disk.  Try later.
    #[error("too much is on its way to the disk")]
    Busy,
    /// Envelope and body are longer than any record may be.
    #[error("the message is longer than a record may be")]
    TooLarge,
    /// The log has stopped for good.
    #[error("the log has failed")]
    Failed,
}

/// What can be chosen of an appender.
#[derive(Debug, Clone, Copy)]
pub struct AppenderOptions {
    /// Its number, which its batches and completions carry.
    pub worker: usize,
    /// The size of a batch buffer in octets.
    pub batch_bytes: usize,
    /// Batch buffers in all: open, in flight, and kept for delivery from memory.
    pub buffers: usize,
    /// Full batches that may be in flight at once.
    pub in_flight: usize,
    /// Chunk buffers in all: being filled and in flight.
    pub chunk_buffers: usize,
    /// Committed batches that are kept in memory while no buffer is needed.
    pub recent: usize,
    /// How long outcomes wait for a batch to ride on.
    pub outcome_delay: Duration,
}

impl AppenderOptions {
    /// What a worker uses: 8 MiB of batches and 64 MiB of chunks at most.
    pub fn new(worker: usize) -> AppenderOptions {
        AppenderOptions {
            worker,
            batch_bytes: BATCH_BYTES,
            buffers: 8,
            in_flight: 3,
            chunk_buffers: 256,
            recent: 4,
            outcome_delay: Duration::from_millis(10),
        }
    }
}

/// One of several records that must share a batch.
#[derive(Debug, Clone, Copy)]
pub enum NewRecord<'a> {
    /// A notice of ours, say.
    Message(NewMessage<'a>),
    /// The end of its cause.
    Done(Done<'a>),
    /// A wait.
    Defer(Defer<'a>),
}

/// What a completion settles.
#[derive(Debug, Default)]
pub struct Settled {
    /// In the order in which they were appended.  Outcomes and groups appear only when they are
    /// in the log: a refusal of theirs is not told but appended again.
    pub records: Vec<SettledRecord>,
    /// The batch itself, for as long as its buffer is not needed.
    pub batch: Option<SharedBatch>,
}

/// A record whose fate is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SettledRecord {
    /// As it was given when appended.
    pub ticket: Ticket,
    /// Where it stands, as durable as it asked to be.
    pub result: Result<RecordPlace, CommitError>,
}

/// A record within a batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Note {
    ticket: Ticket,
    /// From the batch's beginning.
    offset: u32,
    length: u32,
    /// The first ticket of those appended together.
    group: Ticket,
    /// A refusal is told to the caller; else the record is appended again.
    is_refusable: bool,
}

/// See the module's text.
#[derive(Debug)]
pub struct Appender {
    options: AppenderOptions,
    pool: BufferPool,
    chunk_pool: BufferPool,
    open: Option<OpenBatch>,
    /// Full batches and chunks that [`Self::seal`] has not given out yet.
    ready: VecDeque<SealedBatch>,
    /// Outcomes and groups that found no buffer or whose batch was refused.
    pending: VecDeque<Pending>,
    /// Given out and not completed, chunks not counted.
    in_flight: usize,
    next_ticket: u64,
    abandoned: Vec<MessageId>,
    recent: VecDeque<SharedBatch>,
    has_failed: bool,
}

/// Records in their final form without a batch.
#[derive(Debug)]
struct Pending {
    /// Offsets count from the beginning of `bytes`.
    notes: Vec<Note>,
    bytes: Box<[u8]>,
    was_refused: bool,
}

impl Appender {
    /// Without any buffer yet; they are made as they are needed.
    pub fn new(options: AppenderOptions) -> Appender {
        Appender {
            pool: BufferPool::new(options.batch_bytes, options.buffers),
            chunk_pool: BufferPool::new(limits::CHUNK, options.chunk_buffers),
            options,
            open: None,
            ready: VecDeque::new(),
            pending: VecDeque::new(),
            in_flight: 0,
            next_ticket: 0,
            abandoned: Vec::new(),
            recent: VecDeque::new(),
            has_failed: false,
        }
    }

    /// Appends a message that a client waits for; its body, if inline, is copied.
    ///
    /// # Errors
    /// See [`Refused`]; nothing was taken then.
    pub fn append_message(
        &mut self,
        message: &NewMessage<'_>,
        now: Instant,
    ) -> Result<Ticket, Refused> {
        if self.has_failed {
            return Err(Refused::Failed);
        }
        self.place_pending(now);
        let record = [NewRecord::Message(*message)];
        if let Some(open) = self.open.as_mut().filter(|open| !open.is_closed_to_messages)
            && let Some(ticket) = open.put(&record, &mut self.next_ticket, true)
        {
            return Ok(ticket);
        }
        let octets = message.bytes_max();
        if octets > RECORD_BYTES_MAX {
            return Err(Refused::TooLarge);
        }
        self.open_another(octets, now, 1)?;
        let open = self.open.as_mut().expect("just opened");
        open.put(&record, &mut self.next_ticket, true).ok_or(Refused::TooLarge)
    }

    /// An empty chunk to receive into.
    ///
    /// # Errors
    /// [`Refused::Busy`] when every chunk buffer is in use.
    pub fn chunk_buffer(&self) -> Result<ChunkBuffer, Refused> {
        if self.has_failed {
            return Err(Refused::Failed);
        }
        self.chunk_pool.take().map(ChunkBuffer::new).ok_or(Refused::Busy)
    }

    /// Chunk buffers that are being filled or on their way to the disk.
    pub fn chunks_in_use(&self) -> usize {
        self.options.chunk_buffers - self.chunk_pool.available().min(self.options.chunk_buffers)
    }

    /// Appends the part number `index` (from 0) of the message `id`.  It is given out by the next
    /// [`Self::seal`] and promises nothing by itself: its MESSAGE does.  Once the log has failed
    /// ([`Self::has_failed`]) it is dropped, and the ticket never settles.
    pub fn append_chunk(&mut self, chunk: ChunkBuffer, id: MessageId, index: u32) -> ChunkTicket {
        let ticket = self.ticket();
        let octets = chunk.len() as u32;
        if self.has_failed {
            return ChunkTicket { ticket, octets, crc32c: 0 };
        }
        let crc32c = crc32c::crc32c(chunk.body());
        let mut buffer = chunk.buffer;
        let length = put_chunk(&mut buffer[BATCH_HEADER..], id, index, octets, crc32c)
            .expect("the front has room for its head");
        let mut digest = Digest::default();
        digest.add(&buffer[BATCH_HEADER..]);
        zero_tail(&mut buffer, BATCH_HEADER + length);
        let note = Note {
            ticket,
            offset: BATCH_HEADER as u32,
            length: length as u32,
            group: ticket,
            is_refusable: true,
        };
        self.ready.push_back(SealedBatch {
            worker: self.options.worker,
            buffer,
            payload_length: length,
            digest,
            durability: Durability::Os,
            has_messages: true,
            is_chunk: true,
            index_octets: index::entry_bytes(CHUNK_FRONT - BATCH_HEADER),
            notes: vec![note],
            abandoned: Vec::new(),
            compaction: None,
        });
        ChunkTicket { ticket, octets, crc32c }
    }

    /// Whether the log is known to have stopped for good: nothing that is appended settles.
    pub fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// The upload `id` will get no MESSAGE: its chunks need not be kept.
    pub fn abandon_upload(&mut self, id: MessageId) {
        self.abandoned.push(id);
    }

    /// Appends the end of recipients.  Never refused; once the log has failed, the ticket never
    /// settles.
    pub fn append_done(&mut self, done: &Done<'_>, now: Instant) -> Ticket {
        self.append_outcomes(&[NewRecord::Done(*done)], now)
    }

    /// Appends a wait of recipients.  Never refused.
    pub fn append_defer(&mut self, defer: &Defer<'_>, now: Instant) -> Ticket {
        self.append_outcomes(&[NewRecord::Defer(*defer)], now)
    }

    /// Appends records that count together or not at all: a bounce's MESSAGE and the DONE of its
    /// cause.  Never refused; appended again as a whole if the disk refuses them.  The tickets
    /// are the given one and its successors.
    ///
    /// # Errors
    /// [`Refused::TooLarge`] only.
    pub fn append_group(
        &mut self,
        group: &[NewRecord<'_>],
        now: Instant,
    ) -> Result<Ticket, Refused> {
        let octets: usize = group.iter().map(NewRecord::bytes_max).sum();
        if octets > RECORD_BYTES_MAX {
            return Err(Refused::TooLarge);
        }
        Ok(self.append_outcomes(group, now))
    }

    fn append_outcomes(&mut self, records: &[NewRecord<'_>], now: Instant) -> Ticket {
        if self.has_failed {
            // It can never be written: a restart will find its message as it was.
            return self.ticket();
        }
        self.place_pending(now);
        // What waits already goes first, so that a later DEFER stays later.
        if self.pending.is_empty() {
            if let Some(ticket) = self.put_in_open(records) {
                return ticket;
            }
            let octets = records.iter().map(NewRecord::bytes_max).sum();
            if self.open_another(octets, now, 0).is_ok()
                && let Some(ticket) = self.put_in_open(records)
            {
                return ticket;
            }
        }
        self.keep_pending(records)
    }

    fn put_in_open(&mut self, records: &[NewRecord<'_>]) -> Option<Ticket> {
        self.open.as_mut()?.put(records, &mut self.next_ticket, false)
    }

    fn keep_pending(&mut self, records: &[NewRecord<'_>]) -> Ticket {
        let group = Ticket(self.next_ticket);
        let mut bytes = vec![0; records.iter().map(NewRecord::bytes_max).sum()];
        let mut at = 0;
        let mut notes = Vec::with_capacity(records.len());
        for record in records {
            let length = record.put(&mut bytes[at..]).expect("its bound was allocated");
            let ticket = self.ticket();
            notes.push(Note {
                ticket,
                offset: at as u32,
                length: length as u32,
                group,
                is_refusable: false,
            });
            at += length;
        }
        bytes.truncate(at);
        self.pending.push_back(Pending { notes, bytes: bytes.into(), was_refused: false });
        group
    }

    /// Moves what waits into batches as far as there are buffers.
    fn place_pending(&mut self, now: Instant) {
        while let Some(pending) = self.pending.front() {
            let fits = |open: &OpenBatch| {
                open.room() >= pending.bytes.len() && !(pending.was_refused && open.has_messages)
            };
            if !self.open.as_ref().is_some_and(fits) {
                let octets = pending.bytes.len();
                if self.open_another(octets, now, 0).is_err() {
                    return;
                }
            }
            let pending = self.pending.pop_front().expect("looked at above");
            self.open.as_mut().expect("opened above").put_pending(&pending);
        }
    }

    /// Sets the open batch aside as full and opens one with room for `octets` of records.  Leaves
    /// `kept_back` buffers to others.
    fn open_another(
        &mut self,
        octets: usize,
        now: Instant,
        kept_back: usize,
    ) -> Result<(), Refused> {
        let needed = BATCH_HEADER + octets;
        let buffer = if needed > self.pool.buffer_octets() {
            // Rare and large: one at a time.
            let is_single = |batch: &SealedBatch| batch.buffer.len() > self.options.batch_bytes;
            if self.in_flight > 0 || self.ready.iter().any(is_single) {
                return Err(Refused::Busy);
            }
            PooledBuf::single(needed)
        } else {
            while self.pool.available() <= kept_back && self.recent.pop_front().is_some() {}
            if self.pool.available() <= kept_back {
                return Err(Refused::Busy);
            }
            self.pool.take().ok_or(Refused::Busy)?
        };
        if let Some(full) = self.open.take() {
            self.ready.push_back(full.seal(self.options.worker));
        }
        self.open = Some(OpenBatch::new(buffer, now));
        Ok(())
    }

    /// A batch to be handed to the committer now, if there is one; to be called until there is
    /// none, after a turn's appends, after completions, and at [`Self::deadline`].
    pub fn seal(&mut self, now: Instant) -> Option<SealedBatch> {
        if self.has_failed {
            return None;
        }
        self.place_pending(now);
        let mut batch =
            self.next_ready().or_else(|| self.seal_open(now)).or_else(|| self.seal_abandoned())?;
        if !batch.is_chunk {
            self.in_flight += 1;
        }
        // After everything that was appended before it, the chunks above all.
        if self.ready.is_empty() {
            batch.abandoned = mem::take(&mut self.abandoned);
        }
        Some(batch)
    }

    fn next_ready(&mut self) -> Option<SealedBatch> {
        let may_fly = self.in_flight < self.options.in_flight;
        let place = self.ready.iter().position(|batch| batch.is_chunk || may_fly)?;
        self.ready.remove(place)
    }

    fn seal_open(&mut self, now: Instant) -> Option<SealedBatch> {
        if self.in_flight > 0 || !self.ready.is_empty() {
            return None;
        }
        let delay = self.options.outcome_delay;
        let is_due = |open: &mut OpenBatch| {
            !open.notes.is_empty()
                && (open.is_urgent || now.saturating_duration_since(open.first_record) >= delay)
        };
        let worker = self.options.worker;
        self.open.take_if(is_due).map(|open| open.seal(worker))
    }

    /// A batch without records, when nothing else will carry what was given up.
    fn seal_abandoned(&mut self) -> Option<SealedBatch> {
        let has_records = self.open.as_ref().is_some_and(|open| !open.notes.is_empty());
        if self.abandoned.is_empty() || self.in_flight > 0 || has_records {
            return None;
        }
        Some(SealedBatch {
            worker: self.options.worker,
            buffer: PooledBuf::single(0),
            payload_length: 0,
            digest: Digest::default(),
            durability: Durability::Os,
            has_messages: false,
            is_chunk: false,
            index_octets: 0,
            notes: Vec::new(),
            abandoned: Vec::new(),
            compaction: None,
        })
    }

    /// Everything at once, for a shutdown: the open batch is sealed whatever it holds.
    pub fn flush(&mut self, now: Instant) -> Option<SealedBatch> {
        if let Some(open) = &mut self.open {
            open.is_urgent = true;
        }
        self.seal(now)
    }

    /// When [`Self::seal`] should be called though nothing else happens.
    pub fn deadline(&self) -> Option<Instant> {
        let open = self.open.as_ref().filter(|open| !open.notes.is_empty())?;
        (self.in_flight == 0).then(|| open.first_record + self.options.outcome_delay)
    }

    /// Whether everything that was appended has been completed.
    pub fn is_idle(&self) -> bool {
        self.in_flight == 0
            && self.ready.is_empty()
            && self.pending.is_empty()
            && self.chunk_pool.available() == self.options.chunk_buffers
            && self.open.as_ref().is_none_or(|open| open.notes.is_empty())
    }

    /// Takes a completion back.
    pub fn completed(&mut self, completion: Completion, now: Instant) -> Settled {
        let Completion { result, batch, .. } = completion;
        if !batch.is_chunk {
            self.in_flight -= 1;
        }
        match result {
            Ok(place) => {
                let records = batch.notes.iter().map(|note| note.settled(place)).collect();
                let used = BATCH_HEADER + batch.payload_length;
                let shared =
                    SharedBatch(Arc::new(SharedInner { buffer: batch.buffer, used, place }));
                if !batch.is_chunk && self.options.recent > 0 {
                    if self.recent.len() >= self.options.recent {
                        self.recent.pop_front();
                    }
                    self.recent.push_back(shared.clone());
                }
                Settled { records, batch: Some(shared) }
            }
            Err(error) => {
                let mut records = self.take_refused(batch, error);
                if error == CommitError::Failed {
                    self.has_failed = true;
                    records.extend(self.fail_unsealed());
                } else {
                    self.place_pending(now);
                }
                Settled { records, batch: None }
            }
        }
    }

    /// Keeps the outcomes and groups of a refused batch, in order and ahead of newer ones; gives
    /// the rest.
    fn take_refused(&mut self, batch: SealedBatch, error: CommitError) -> Vec<SettledRecord> {
        self.abandoned.extend(&batch.abandoned);
        let (refusable, kept): (Vec<Note>, Vec<Note>) =
            batch.notes.iter().partition(|note| note.is_refusable);
        for group in kept.chunk_by(|a, b| a.group == b.group).rev() {
            let first = group[0].offset;
            let last = group[group.len() - 1];
            let bytes = &batch.buffer[first as usize..(last.offset + last.length) as usize];
            let notes =
                group.iter().map(|note| Note { offset: note.offset - first, ..*note }).collect();
            self.pending.push_front(Pending { notes, bytes: bytes.into(), was_refused: true });
        }
        refusable
            .iter()
            .map(|note| SettledRecord { ticket: note.ticket, result: Err(error) })
            .collect()
    }

    /// What has not been given out never will be: somebody waits for each of its messages and
    /// chunks.
    fn fail_unsealed(&mut self) -> Vec<SettledRecord> {
        let worker = self.options.worker;
        let open = self.open.take().map(|open| open.seal(worker));
        let batches: Vec<SealedBatch> = self.ready.drain(..).chain(open).collect();
        // The last first, since each puts its outcomes ahead of the others'.
        let refused = batches.into_iter().rev();
        refused.flat_map(|batch| self.take_refused(batch, CommitError::Failed)).collect()
    }

    fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket - 1)
    }
}

/// A chunk that was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkTicket {
    /// Settles with its place.
    pub ticket: Ticket,
    /// For its [`ChunkPlace`](super::ChunkPlace).
    pub octets: u32,
    /// For its [`ChunkPlace`](super::ChunkPlace).
    pub crc32c: u32,
}

impl NewRecord<'_> {
    fn put(&self, out: &mut [u8]) -> Option<usize> {
        match self {
            NewRecord::Message(message) => message.put(out),
            NewRecord::Done(done) => done.put(out),
            NewRecord::Defer(defer) => defer.put(out),
        }
    }

    fn bytes_max(&self) -> usize {
        let octets = match self {
            NewRecord::Message(message) => message.bytes_max(),
            NewRecord::Done(done) => done.bytes_max(),
            NewRecord::Defer(defer) => defer.bytes_max(),
        };
        octets.next_multiple_of(super::format::RECORD_ALIGN)
    }
}

impl Note {
    fn settled(&self, place: super::BatchPlace) -> SettledRecord {
        let place = RecordPlace {
            segment: place.segment,
            offset: place.offset + self.offset,
            length: self.length,
        };
        SettledRecord { ticket: self.ticket, result: Ok(place) }
    }
}

#[cfg(test)]
#[path = "appender_tests.rs"]
mod tests;
