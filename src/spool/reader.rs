//! The reader's thread: durable records come back from the disk, verified, without a worker ever
//! waiting for a file.
//!
//! A worker asks for one record (a message with its small body, or one chunk) and gets it through
//! its [`ReadSink`] in a buffer of the reader's pool, or the reason why not.  Reads go through a
//! ring, several at once; where the kernel has none, through plain `pread`, one after the other.
//!
//! Before a record is handed out its head, its body (unless the envelope is all that is wanted) and
//! its id are checked, so a segment needs no
//! pin while it is read: if it was retired in between, the octets of its next life do not pass.
//! A MESSAGE that was moved is read where it stands now; if it is moved in the middle of a read,
//! it is read again.
//!
//! Memory: as many pooled buffers as may be in flight or in the hands of workers; when they are
//! used up, requests wait in their queue.  A quarter of the buffers is kept for messages: chunks
//! stay with slow next hops for as long as those take, and must not keep all other mail waiting.
//! A record that is longer than a pooled buffer gets one of its own, one at a time.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam::queue::SegQueue;
use rustix::event::{EventfdFlags, eventfd};

use super::buffer::{BufferPool, PooledBuf};
use super::committer::AbortOnPanic;
use super::direct::{Landed, ReadRing};
use super::file_disk::{FileDisk, read_all};
use super::format::FormatError;
use super::format::record::RecordView;
use super::segments::SegmentTable;
use super::stats::SpoolStats;
use super::{BLOCK, RECORD_BYTES_MAX, RecordPlace, SegmentNo, round_to_block};
use crate::limits;
use crate::message::MessageId;
use crate::sync::doorbell::Doorbell;

/// Reads in flight at once.
const DEPTH: u32 = 32;
/// A chunk, or a small message; a block more, since a record need not begin on one.
const BUFFER_OCTETS: usize = limits::CHUNK + 2 * BLOCK;
/// One of so many buffers is kept for messages.
const MESSAGE_SHARE: usize = 4;
/// How long to sleep when every buffer is out: their return wakes nobody.
const BUFFER_WAIT: Duration = Duration::from_millis(1);

/// A record to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadRequest {
    /// Who asks.
    pub worker: usize,
    /// Comes back with the answer.
    pub token: u64,
    /// Whose record it must be.
    pub id: MessageId,
    /// What is to be read.
    pub part: Part,
    /// Where it stands, or stood when the reader of a MESSAGE heard of it.
    pub place: RecordPlace,
    /// A longer record is refused.
    pub octets_max: usize,
}

/// Which part of a message is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Its MESSAGE record, wherever that was moved.
    Message,
    /// The same, of which the head alone has to be sound: who sent it to whom.
    Envelope,
    /// A chunk, whose segment the reader keeps from being retired ([`SegmentTable::pin`]).
    Chunk,
}

/// What became of a request.
#[derive(Debug)]
pub struct ReadAnswer {
    /// As in the request.
    pub worker: usize,
    /// As in the request.
    pub token: u64,
    /// The record, verified.
    pub result: Result<ReadRecord, ReadError>,
}

/// A record in memory; its buffer goes back when it is dropped.
#[derive(Debug)]
pub struct ReadRecord {
    buffer: PooledBuf,
    start: usize,
    end: usize,
}

impl ReadRecord {
    /// The record; its head has been verified, and its body unless [`Part::Envelope`] was asked
    /// for.
    pub fn view(&self) -> RecordView<'_> {
        RecordView::parse(&self.buffer[self.start..self.end]).expect("verified when it was read")
    }
}

/// Why a record was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The segment is no more: the message is done.
    #[error("{0} has been retired")]
    Retired(SegmentNo),
    /// Longer than was asked for, or not a place of a record.
    #[error("a record of {0} octets was not expected")]
    TooLong(u32),
    /// The disk refuses.
    #[error("reading the spool: {0}")]
    Io(#[from] io::Error),
    /// What was read is not what was written.
    #[error("a record of the spool is damaged: {0}")]
    Damaged(FormatError),
    /// The disk, or those who hold the reader's buffers, took too long.
    #[error("reading the spool took too long")]
    Late,
    /// It verifies and is another message's.
    #[error("the record belongs to message {0}")]
    WrongMessage(MessageId),
}

/// Takes answers to their workers.  Called on the reader's thread: must not block.
pub trait ReadSink: Send + Sync {
    /// Puts an answer where its worker will look.
    fn answer(&self, worker: usize, answer: ReadAnswer);
    /// Wakes the worker, after a group of answers.
    fn wake(&self, worker: usize);
}

/// The running reader.
#[derive(Debug)]
pub struct Reader {
    inbox: Arc<Inbox>,
    table: Arc<SegmentTable>,
    thread: JoinHandle<()>,
}

/// Where workers put their requests; cheap to clone.
#[derive(Debug, Clone)]
pub struct ReaderHandle {
    inbox: Arc<Inbox>,
    table: Arc<SegmentTable>,
}

#[derive(Debug)]
struct Inbox {
    requests: SegQueue<ReadRequest>,
    event: Arc<OwnedFd>,
    doorbell: Doorbell,
    is_stopping: AtomicBool,
    /// Requests wait because all buffers are in use.
    is_short: AtomicBool,
}

impl Inbox {
    fn knock(&self) {
        if self.doorbell.is_to_be_rung() {
            self.ring();
        }
    }

    fn ring(&self) {
        // A full counter means that the reader is awake already.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }
}

impl ReaderHandle {
    /// Asks for a record; the answer comes through the sink.
    pub fn request(&self, request: ReadRequest) {
        self.inbox.requests.push(request);
        self.inbox.knock();
    }

    /// Whether requests wait because all buffers are in use.
    pub fn is_short(&self) -> bool {
        self.inbox.is_short.load(Ordering::Relaxed)
    }

    /// Which file holds which segment, and what was moved.
    pub fn table(&self) -> &SegmentTable {
        &self.table
    }
}

impl Reader {
    /// Starts the thread.  `buffers` bounds its memory: so many of 264 KiB.
    pub fn start(
        disk: Arc<FileDisk>,
        table: Arc<SegmentTable>,
        stats: Arc<SpoolStats>,
        sink: Arc<dyn ReadSink>,
        buffers: usize,
    ) -> io::Result<Reader> {
        let event = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let inbox = Arc::new(Inbox {
            requests: SegQueue::new(),
            event,
            doorbell: Doorbell::default(),
            is_stopping: AtomicBool::new(false),
            is_short: AtomicBool::new(false),
        });
        let inside = inbox.clone();
        let shared_table = table.clone();
        let thread = thread::Builder::new().name("spool-read".into()).spawn(move || {
            let _abort = AbortOnPanic;
            let ring = ReadRing::new(DEPTH, inside.event.clone())
                .inspect_err(
                    |error| tracing::warn!(%error, "no ring for the reader: reads go one by one"),
                )
                .ok();
            let pool = BufferPool::new(BUFFER_OCTETS, buffers);
            let kept_for_messages = buffers / MESSAGE_SHARE;
            Loop {
                disk,
                table,
                stats,
                sink,
                inbox: inside,
                pool,
                kept_for_messages,
                waiting: Waiting::default(),
                flying: Vec::new(),
                woken: Vec::new(),
            }
            .run(ring);
        })?;
        Ok(Reader { inbox, table: shared_table, thread })
    }

    /// Where workers put their requests.
    pub fn handle(&self) -> ReaderHandle {
        ReaderHandle { inbox: self.inbox.clone(), table: self.table.clone() }
    }

    /// Answers what has been asked and ends the thread.
    pub fn stop(self) {
        self.inbox.is_stopping.store(true, Ordering::SeqCst);
        self.inbox.ring();
        self.thread.join().expect("a panic would have aborted the process");
    }
}

struct Loop {
    disk: Arc<FileDisk>,
    table: Arc<SegmentTable>,
    stats: Arc<SpoolStats>,
    sink: Arc<dyn ReadSink>,
    inbox: Arc<Inbox>,
    pool: BufferPool,
    /// Buffers that chunks may not take.
    kept_for_messages: usize,
    /// What waits for a slot or a buffer.
    waiting: Waiting,
    /// By ring token.
    flying: Vec<Option<(ReadRequest, Plan)>>,
    woken: Vec<usize>,
}

/// Requests that wait, in the order of their arrival within each kind.
#[derive(Debug, Default)]
struct Waiting {
    messages: VecDeque<ReadRequest>,
    chunks: VecDeque<ReadRequest>,
    /// Whose turn it is, so that neither kind keeps the other from the ring.
    chunk_is_next: bool,
}

impl Waiting {
    fn push(&mut self, request: ReadRequest) {
        match request.part {
            Part::Message | Part::Envelope => self.messages.push_back(request),
            Part::Chunk => self.chunks.push_back(request),
        }
    }

    fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.chunks.is_empty()
    }

    /// The kinds that have requests, the one whose turn it is first.
    fn order(&self) -> [Part; 2] {
        if self.chunk_is_next { [Part::Chunk, Part::Message] } else { [Part::Message, Part::Chunk] }
    }

    fn of(&mut self, part: Part) -> &mut VecDeque<ReadRequest> {
        match part {
            Part::Message | Part::Envelope => &mut self.messages,
            Part::Chunk => &mut self.chunks,
        }
    }
}

/// The whole blocks around a record.
#[derive(Debug, Clone, Copy)]
struct Plan {
    offset: u32,
    octets: usize,
    /// Where in those the record begins.
    start: usize,
}

impl Plan {
    fn of(place: RecordPlace) -> Option<Plan> {
        let start = place.offset as usize % BLOCK;
        let octets = round_to_block(start + place.length as usize);
        (place.length as usize <= RECORD_BYTES_MAX && place.length > 0).then_some(Plan {
            offset: place.offset - start as u32,
            octets,
            start,
        })
    }
}

impl Loop {
    fn run(mut self, mut ring: Option<ReadRing>) {
        self.flying.resize_with(DEPTH as usize, || None);
        loop {
            while let Some(request) = self.inbox.requests.pop() {
                self.waiting.push(request);
            }
            let lacks_buffers = self.start_reads(ring.as_mut());
            self.inbox.is_short.store(lacks_buffers, Ordering::Relaxed);
            self.wake_all();
            let is_flying = self.flying.iter().any(Option::is_some);
            let is_stopping = self.inbox.is_stopping.load(Ordering::SeqCst);
            if is_stopping
                && self.waiting.is_empty()
                && !is_flying
                && self.inbox.requests.is_empty()
            {
                return;
            }
            if lacks_buffers && !is_flying {
                thread::sleep(BUFFER_WAIT);
                continue;
            }
            // A stop rings without a look at the bell, so it ends this wait or the next one.
            if self.inbox.doorbell.may_sleep(|| !self.inbox.requests.is_empty()) {
                self.wait(ring.as_mut());
            }
            self.inbox.doorbell.disarm();
            while let Some(landed) = ring.as_mut().and_then(ReadRing::landed) {
                self.land(landed);
            }
        }
    }

    /// Sleeps until a read has landed or somebody knocks.
    fn wait(&self, ring: Option<&mut ReadRing>) {
        match ring {
            Some(ring) => {
                if let Err(error) = ring.wait() {
                    // Nothing that is in flight could ever be told.
                    panic!("the reader's ring fails: {error}");
                }
            }
            None => {
                let event = &*self.inbox.event;
                let mut descriptors =
                    [rustix::event::PollFd::new(event, rustix::event::PollFlags::IN)];
                let _ = rustix::event::poll(&mut descriptors, None);
            }
        }
        let mut counter = [0; 8];
        let _ = rustix::io::read(&*self.inbox.event, &mut counter);
    }

    /// Starts as many reads as there are slots and buffers; gives whether a buffer was lacking.
    fn start_reads(&mut self, mut ring: Option<&mut ReadRing>) -> bool {
        loop {
            if ring.as_ref().is_some_and(|ring| !ring.has_room()) {
                return false;
            }
            let order = self.waiting.order();
            if self.waiting.is_empty() {
                return false;
            }
            let started = order.into_iter().any(|part| self.start_one(part, ring.as_deref_mut()));
            if !started {
                return true;
            }
        }
    }

    /// Starts or answers the first request of a kind; gives whether there was one that could be.
    fn start_one(&mut self, part: Part, ring: Option<&mut ReadRing>) -> bool {
        let Some(mut request) = self.waiting.of(part).front().copied() else { return false };
        let (file, plan) = match self.prepare(&mut request) {
            Ok(prepared) => prepared,
            Err(error) => {
                self.waiting.of(part).pop_front();
                self.answer(request, Err(error));
                return true;
            }
        };
        let Some(mut buffer) = self.buffer(part, plan.octets) else { return false };
        self.waiting.of(part).pop_front();
        self.waiting.chunk_is_next = part == Part::Message;
        match ring {
            Some(ring) => {
                let token = self.flying.iter().position(Option::is_none);
                let token = token.expect("the ring has as many slots");
                self.flying[token] = Some((request, plan));
                ring.read(file, plan.offset, plan.octets, buffer, token as u64);
            }
            None => {
                let result = read_all(&file, plan.offset, &mut buffer[..plan.octets]);
                self.verify(request, plan, buffer, result.map(|()| plan.octets));
            }
        }
        true
    }

    fn prepare(&self, request: &mut ReadRequest) -> Result<(Arc<OwnedFd>, Plan), ReadError> {
        loop {
            let prepared = self.look_up(request);
            // It may have been moved, and its old segment retired, between the look at its place
            // and that at its file.
            let is_old = prepared.is_err()
                && request.part != Part::Chunk
                && self.table.place_of(request.id, request.place) != request.place;
            if !is_old {
                return prepared;
            }
        }
    }

    fn look_up(&self, request: &mut ReadRequest) -> Result<(Arc<OwnedFd>, Plan), ReadError> {
        if request.part != Part::Chunk {
            request.place = self.table.place_of(request.id, request.place);
        }
        let RecordPlace { segment, length, .. } = request.place;
        let plan = Plan::of(request.place)
            .filter(|_| length as usize <= request.octets_max)
            .ok_or(ReadError::TooLong(length))?;
        let file = self.table.file(segment).ok_or(ReadError::Retired(segment))?;
        Ok((self.disk.descriptor(file)?, plan))
    }

    fn buffer(&self, part: Part, octets: usize) -> Option<PooledBuf> {
        if octets <= self.pool.buffer_octets() {
            let is_free = part != Part::Chunk || self.pool.available() > self.kept_for_messages;
            return is_free.then(|| self.pool.take()).flatten();
        }
        let is_large = |(_, plan): &(ReadRequest, Plan)| plan.octets > BUFFER_OCTETS;
        let has_large = self.flying.iter().flatten().any(is_large);
        (!has_large).then(|| PooledBuf::single(octets))
    }

    fn land(&mut self, landed: Landed) {
        let Landed { token, buffer, result } = landed;
        let slot = usize::try_from(token).ok().and_then(|token| self.flying.get_mut(token));
        let (request, plan) = slot.and_then(Option::take).expect("every read has its slot");
        self.verify(request, plan, buffer, result);
    }

    fn verify(
        &mut self,
        request: ReadRequest,
        plan: Plan,
        buffer: PooledBuf,
        result: io::Result<usize>,
    ) {
        let end = plan.start + request.place.length as usize;
        let verified = result.map_err(ReadError::Io).and_then(|octets| {
            let record = buffer.get(plan.start..end).filter(|_| octets >= end);
            let record = record.ok_or(ReadError::Damaged(FormatError::Truncated))?;
            check(record, &request)
        });
        // It may have been moved while it was read, and its old segment be in use again.
        let is_old = verified.is_err()
            && request.part != Part::Chunk
            && self.table.place_of(request.id, request.place) != request.place;
        if is_old {
            return self.waiting.push(request);
        }
        let result = verified.map(|()| ReadRecord { buffer, start: plan.start, end });
        self.answer(request, result);
    }

    fn answer(&mut self, request: ReadRequest, result: Result<ReadRecord, ReadError>) {
        let counter = if result.is_ok() { &self.stats.reads } else { &self.stats.read_failures };
        counter.fetch_add(1, Ordering::Relaxed);
        let ReadRequest { worker, token, .. } = request;
        if !self.woken.contains(&worker) {
            self.woken.push(worker);
        }
        self.sink.answer(worker, ReadAnswer { worker, token, result });
    }

    fn wake_all(&mut self) {
        for worker in self.woken.drain(..) {
            self.sink.wake(worker);
        }
    }
}

fn check(record: &[u8], request: &ReadRequest) -> Result<(), ReadError> {
    let view = RecordView::parse(record).map_err(ReadError::Damaged)?;
    if request.part != Part::Envelope {
        view.verify_body().map_err(ReadError::Damaged)?;
    }
    if view.id() != request.id {
        return Err(ReadError::WrongMessage(view.id()));
    }
    Ok(())
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
