//! A worker's end of the log as its tasks see it: appends that can be awaited, reads, and the
//! filing of messages in the queue when their commit completes.
//!
//! The logic is in [`crate::spool::Appender`]; here are the waiting tasks and the two threads on
//! the other side.  Appends only note that there is something to seal: the flush task runs after
//! all tasks of the same turn, so that what they append together is committed together.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::limits;
use crate::message::MessageId;
use crate::runtime;
use crate::runtime::deadline::{self, Shortage};
use crate::runtime::notify::{Handover, Notify, WaitingList};
use crate::smtp::reply::Refusal;
use crate::spool::appender::{ChunkTicket, NewRecord};
use crate::spool::stats::Health;
use crate::spool::{
    Appender, AppenderOptions, ChunkBuffer, ChunkPlace, CommitError, CommitterHandle, Completion,
    Defer, Done, NewMessage, Part, ReadAnswer, ReadError, ReadRecord, ReadRequest, ReaderHandle,
    RecordPlace, Refused, SegmentNo, SegmentPin, SharedBatch, SpoolStats, Ticket, WeakBatch,
};

/// See the module's text.
pub struct LocalLog {
    worker: usize,
    appender: RefCell<Appender>,
    committer: CommitterHandle,
    reader: ReaderHandle,
    stats: Arc<SpoolStats>,
    waiting: RefCell<HashMap<Ticket, Waiting>>,
    /// Batches that may still be in memory, this worker's and others', newest last.
    recent: RefCell<VecDeque<WeakBatch>>,
    reads: RefCell<HashMap<u64, Rc<Handover<Answered>>>>,
    next_read: Cell<u64>,
    late_reads: Cell<u64>,
    has_more: Notify,
    chunk_freed: WaitingList,
    batch_freed: WaitingList,
}

/// What became of a read.
type Answered = Result<ReadRecord, ReadError>;

/// Who waits for a record.
struct Waiting {
    receipt: Option<Rc<Handover<Result<RecordPlace, Refusal>>>>,
    /// Further ones, which are rare.
    more_receipts: Vec<Rc<Handover<Result<RecordPlace, Refusal>>>>,
    filing: Option<Filing>,
}

impl Waiting {
    fn new(
        receipt: Option<Rc<Handover<Result<RecordPlace, Refusal>>>>,
        filing: Option<Filing>,
    ) -> Waiting {
        Waiting { receipt, more_receipts: Vec::new(), filing }
    }
}

/// What the queue is to hear once a message is in the log.
#[derive(Debug)]
pub struct Filing {
    /// The message.
    pub id: MessageId,
    /// Its recipients by destination.
    pub groups: Vec<crate::delivery::sites::SiteGroup>,
}

/// A promise of the log's word on a record.
#[must_use]
pub struct Receipt(Rc<Handover<Result<RecordPlace, Refusal>>>);

impl Receipt {
    /// Waits until the record is as durable as it asked to be.
    ///
    /// # Errors
    /// The log could not keep it.
    pub async fn settled(self) -> Result<RecordPlace, Refusal> {
        self.0.take().await
    }
}

impl LocalLog {
    /// The end of `worker`, with so many chunks for large messages on their way in.
    pub fn new(
        worker: usize,
        chunks: usize,
        committer: CommitterHandle,
        reader: ReaderHandle,
        stats: Arc<SpoolStats>,
    ) -> LocalLog {
        let options = AppenderOptions { chunk_buffers: chunks, ..AppenderOptions::new(worker) };
        LocalLog {
            worker,
            appender: RefCell::new(Appender::new(options)),
            committer,
            reader,
            stats,
            waiting: RefCell::default(),
            recent: RefCell::default(),
            reads: RefCell::default(),
            next_read: Cell::new(0),
            late_reads: Cell::new(0),
            has_more: Notify::default(),
            chunk_freed: WaitingList::default(),
            batch_freed: WaitingList::default(),
        }
    }

    /// Appends a message that a client waits for.  Its commit files it in the queue.
    ///
    /// Where senders are faster than the disk it waits for its turn, which `delayed` is told.
    ///
    /// # Errors
    /// There was no room in memory for too long, or the log has stopped.
    pub async fn append_message(
        &self,
        message: &NewMessage<'_>,
        filing: Filing,
        delayed: impl FnOnce(),
    ) -> Result<Receipt, Refusal> {
        let mut appended = self.try_append(message);
        if appended == Err(Refused::Busy) {
            delayed();
            let end = Instant::now() + limits::ROOM_PATIENCE;
            while appended == Err(Refused::Busy) && Instant::now() < end {
                self.batch_freed.wait(ROOM_POLL).await;
                appended = self.try_append(message);
            }
        }
        let ticket = appended?;
        let receipt = Rc::new(Handover::default());
        let waiting = Waiting::new(Some(receipt.clone()), Some(filing));
        self.waiting.borrow_mut().insert(ticket, waiting);
        self.has_more.notify();
        Ok(Receipt(receipt))
    }

    fn try_append(&self, message: &NewMessage<'_>) -> Result<Ticket, Refused> {
        self.appender.borrow_mut().append_message(message, Instant::now())
    }

    /// Why a message would be refused now, if it would.
    pub fn refusal(&self) -> Option<Refusal> {
        self.stats.refusal().map(Refusal::from)
    }

    /// Whether the log takes nothing any more, outcomes neither.
    pub fn has_failed(&self) -> bool {
        self.stats.health() == Health::Failed
    }

    /// Appends the end of recipients.
    pub fn append_done(&self, done: &Done<'_>) -> Ticket {
        self.has_more.notify();
        self.appender.borrow_mut().append_done(done, Instant::now())
    }

    /// Appends a wait of recipients.
    pub fn append_defer(&self, defer: &Defer<'_>) -> Ticket {
        self.has_more.notify();
        self.appender.borrow_mut().append_defer(defer, Instant::now())
    }

    /// A promise of the log's word on an outcome that was just appended.
    pub fn watch(&self, outcome: Ticket) -> Receipt {
        let receipt = Rc::new(Handover::default());
        let mut waiting = self.waiting.borrow_mut();
        let waiting = waiting.entry(outcome).or_insert_with(|| Waiting::new(None, None));
        waiting.more_receipts.push(receipt.clone());
        Receipt(receipt)
    }

    /// Appends a notice of ours together with its cause, an outcome, whose ticket it gives.
    ///
    /// # Errors
    /// The notice is longer than a record may be; nothing was appended.
    pub fn append_notice(
        &self,
        notice: &NewMessage<'_>,
        filing: Filing,
        cause: NewRecord<'_>,
    ) -> Result<Ticket, Refused> {
        let records = [NewRecord::Message(*notice), cause];
        let ticket = self.appender.borrow_mut().append_group(&records, Instant::now())?;
        self.waiting.borrow_mut().insert(ticket, Waiting::new(None, Some(filing)));
        self.has_more.notify();
        Ok(Ticket(ticket.0 + 1))
    }

    /// Takes a commit's completion; `file` gets each message that is now in the log.
    pub fn completed(&self, completion: Completion, mut file: impl FnMut(Filing, RecordPlace)) {
        let was_chunk = completion.is_chunk();
        let settled = self.appender.borrow_mut().completed(completion, Instant::now());
        if let Some(batch) = &settled.batch {
            self.remember(batch.downgrade());
        }
        for record in settled.records {
            let Some(waiting) = self.waiting.borrow_mut().remove(&record.ticket) else { continue };
            if let (Ok(place), Some(filing)) = (record.result, waiting.filing) {
                file(filing, place);
            }
            for receipt in waiting.receipt.into_iter().chain(waiting.more_receipts) {
                receipt.give(record.result.map_err(Refusal::from));
            }
        }
        drop(settled.batch);
        match was_chunk {
            true => self.chunk_freed.wake(1),
            false => self.batch_freed.wake(WOKEN),
        }
        self.has_more.notify();
    }

    /// A batch of another worker, one of whose messages was handed to this one.
    pub fn remember(&self, batch: WeakBatch) {
        let mut recent = self.recent.borrow_mut();
        if recent.len() >= RECENT {
            recent.pop_front();
        }
        recent.push_back(batch);
    }

    /// The batch that holds `place`, if it is still in memory.
    pub fn in_memory(&self, place: RecordPlace) -> Option<SharedBatch> {
        let recent = self.recent.borrow();
        let batches = recent.iter().rev().filter_map(WeakBatch::upgrade);
        batches.into_iter().find(|batch| batch.record(place).is_some())
    }

    /// Reads and verifies a MESSAGE, wherever it stands now.
    ///
    /// # Errors
    /// It could not be read, or is not what was written.
    pub async fn read(&self, id: MessageId, place: RecordPlace) -> Result<ReadRecord, ReadError> {
        self.read_part(id, Part::Message, place).await
    }

    /// Reads a MESSAGE, wherever it stands now, of which the envelope alone has to be sound.
    ///
    /// # Errors
    /// As for [`Self::read`].
    pub async fn read_envelope(
        &self,
        id: MessageId,
        place: RecordPlace,
    ) -> Result<ReadRecord, ReadError> {
        self.read_part(id, Part::Envelope, place).await
    }

    /// Reads and verifies a chunk, whose segment the caller has pinned.
    ///
    /// # Errors
    /// As for [`Self::read`].
    pub async fn read_chunk(
        &self,
        id: MessageId,
        place: RecordPlace,
    ) -> Result<ReadRecord, ReadError> {
        self.read_part(id, Part::Chunk, place).await
    }

    /// Keeps a segment from being retired while chunks of it are read; `None` if it was already,
    /// because what it held was moved.
    pub fn pin(&self, segment: SegmentNo) -> Option<SegmentPin> {
        self.reader.table().pin(segment)
    }

    async fn read_part(
        &self,
        id: MessageId,
        part: Part,
        place: RecordPlace,
    ) -> Result<ReadRecord, ReadError> {
        let token = self.next_read.replace(self.next_read.get() + 1);
        let answer = Rc::new(Handover::default());
        self.reads.borrow_mut().insert(token, answer.clone());
        let octets_max = crate::spool::RECORD_BYTES_MAX;
        let worker = self.worker;
        self.reader.request(ReadRequest { worker, token, id, part, place, octets_max });
        let answered = runtime::timeout(limits::READ_PATIENCE, answer.take()).await;
        answered.unwrap_or_else(|| {
            // An answer that comes later gives its buffer back.
            self.reads.borrow_mut().remove(&token);
            self.late_reads.set(self.late_reads.get() + 1);
            Err(ReadError::Late)
        })
    }

    /// Whether reads wait because all of the reader's buffers are in use.
    pub fn reader_is_short(&self) -> bool {
        self.reader.is_short()
    }

    /// Reads that took too long.
    pub fn late_reads(&self) -> u64 {
        self.late_reads.get()
    }

    /// Takes the reader's answer.
    pub fn answered(&self, answer: ReadAnswer) {
        if let Some(waiting) = self.reads.borrow_mut().remove(&answer.token) {
            waiting.give(answer.result);
        }
    }

    /// Hands sealed batches to the committer, for as long as the worker runs.
    pub async fn flush_forever(&self) {
        loop {
            loop {
                let sealed = self.appender.borrow_mut().seal(Instant::now());
                let Some(batch) = sealed else { break };
                self.committer.submit(batch);
            }
            let deadline = self.appender.borrow().deadline();
            match deadline {
                None => self.has_more.notified().await,
                Some(deadline) => {
                    let wait = deadline.saturating_duration_since(Instant::now());
                    runtime::timeout(wait.max(LEAST_WAIT), self.has_more.notified()).await;
                }
            }
        }
    }

    /// Whether everything that was appended is in the log; seals what is left, for a shutdown.
    pub fn drain(&self) -> bool {
        let mut appender = self.appender.borrow_mut();
        while let Some(batch) = appender.flush(Instant::now()) {
            self.committer.submit(batch);
        }
        appender.is_idle()
    }

    // ---- large messages ------------------------------------------------------------------

    /// An empty chunk, as soon as there is one; `None` when there was none for too long.  While
    /// somebody waits, bodies that trickle give way.
    pub async fn chunk_buffer(&self) -> Option<ChunkBuffer> {
        let end = Instant::now() + limits::ROOM_PATIENCE;
        loop {
            let now = Instant::now();
            let chunk = self.appender.borrow().chunk_buffer();
            match chunk {
                Ok(chunk) => return Some(chunk),
                Err(Refused::Busy) if now < end => {
                    deadline::press(Shortage::Intake, now + limits::PRESSURE);
                    self.chunk_freed.wait(ROOM_POLL).await;
                }
                Err(_) => return None,
            }
        }
    }

    /// What the chunks take that are in use, in octets.
    pub fn chunk_octets(&self) -> usize {
        self.appender.borrow().chunks_in_use() * limits::CHUNK
    }

    fn append_chunk(&self, chunk: ChunkBuffer, id: MessageId, index: u32) -> PendingChunk {
        let mut appender = self.appender.borrow_mut();
        let ChunkTicket { ticket, octets, crc32c } = appender.append_chunk(chunk, id, index);
        let receipt = Rc::new(Handover::default());
        if appender.has_failed() {
            receipt.give(Err(Refusal::StorageFailed));
        } else {
            let waiting = Waiting::new(Some(receipt.clone()), None);
            self.waiting.borrow_mut().insert(ticket, waiting);
        }
        drop(appender);
        self.has_more.notify();
        PendingChunk { octets, crc32c, receipt: Receipt(receipt) }
    }

    fn abandon(&self, id: MessageId) {
        self.appender.borrow_mut().abandon_upload(id);
        self.has_more.notify();
    }
}

/// A chunk on its way to the disk.
struct PendingChunk {
    octets: u32,
    crc32c: u32,
    receipt: Receipt,
}

/// A large message that is being received; given up when dropped before its end.
pub struct Upload {
    log: Rc<LocalLog>,
    id: MessageId,
    next: u32,
    pending: VecDeque<PendingChunk>,
    places: Vec<ChunkPlace>,
    failed: Option<Refusal>,
    is_finished: bool,
}

impl Upload {
    /// The message `id`, of which nothing is in the log yet.
    pub fn new(log: Rc<LocalLog>, id: MessageId) -> Upload {
        Upload {
            log,
            id,
            next: 0,
            pending: VecDeque::new(),
            places: Vec::new(),
            failed: None,
            is_finished: false,
        }
    }

    /// The message's id.
    pub fn id(&self) -> MessageId {
        self.id
    }

    /// Sends a chunk on its way; waits while as many as may be are on theirs.
    pub async fn push(&mut self, chunk: ChunkBuffer) {
        if chunk.is_empty() {
            return;
        }
        while self.pending.len() >= limits::CHUNKS_IN_FLIGHT {
            self.settle_one().await;
        }
        let pending = self.log.append_chunk(chunk, self.id, self.next);
        self.pending.push_back(pending);
        self.next += 1;
    }

    /// Waits for all of them; gives their places for the MESSAGE.
    ///
    /// # Errors
    /// The log could not keep one.
    pub async fn places(&mut self) -> Result<&[ChunkPlace], Refusal> {
        while !self.pending.is_empty() {
            self.settle_one().await;
        }
        match &self.failed {
            Some(refusal) => Err(refusal.clone()),
            None => Ok(&self.places),
        }
    }

    /// Its MESSAGE is in the log: the chunks are that one's now.
    pub fn finished(mut self) {
        self.is_finished = true;
    }

    async fn settle_one(&mut self) {
        let Some(PendingChunk { octets, crc32c, receipt }) = self.pending.pop_front() else {
            return;
        };
        match receipt.settled().await {
            Ok(place) => self.places.push(ChunkPlace { place, octets, crc32c }),
            Err(refusal) => self.failed = Some(refusal),
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.is_finished {
            self.log.abandon(self.id);
        }
        // Its chunk goes back a moment before or after: the next one in line looks again and again.
        self.log.chunk_freed.wake(1);
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Refusal {
        match refused {
            Refused::Busy => Refusal::Busy,
            Refused::TooLarge => Refusal::TooLarge,
            Refused::Failed => Refusal::StorageFailed,
        }
    }
}

impl From<CommitError> for Refusal {
    fn from(error: CommitError) -> Refusal {
        match error {
            CommitError::Full => Refusal::StorageFull,
            CommitError::Disk(_) | CommitError::TooLarge | CommitError::Failed => {
                Refusal::StorageFailed
            }
        }
    }
}

/// Batches of which it is remembered that they may be in memory.
const RECENT: usize = 32;
/// Timers are no finer than this.
const LEAST_WAIT: Duration = Duration::from_millis(1);
/// The longest wait for room in memory before looking again.
const ROOM_POLL: Duration = Duration::from_millis(250);
/// Who is woken when a batch is through: a batch is room for about as many messages of 10 KiB.
const WOKEN: usize = 128;
