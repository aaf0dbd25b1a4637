//! The threads around [`Log`]: the committer, which drains what the workers sealed, commits it in
//! one go and wakes each worker once; and the maintenance, which performs the log's chores.
//!
//! The committer never waits for a timer while there is work: what arrives during one sync is the
//! next group.  A panic in either thread aborts the process: nobody could say any more what was
//! promised, and recovery can.

use std::io;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use crossbeam::queue::SegQueue;

use super::chore::{Chore, ChoreDone};
use super::disk::Disk;
use super::log::Log;
use super::sealed::{Completion, SealedBatch};
use crate::sync::doorbell::Doorbell;

/// Between two looks at what only time brings: a new try to make room, a late sync.
const TICK: Duration = Duration::from_secs(1);

/// Takes completions to their workers.  Called on the committer's thread: must not block.
pub trait CompletionSink: Send + Sync {
    /// Puts a completion where its worker will look.
    fn complete(&self, worker: usize, completion: Completion);
    /// Wakes the worker; once a commit, after all of its completions.
    fn wake(&self, worker: usize);
}

/// The running committer and maintenance.
#[derive(Debug)]
pub struct Committer {
    inbox: Arc<Inbox>,
    committer: JoinHandle<()>,
    maintenance: JoinHandle<()>,
}

/// Where workers put their batches; cheap to clone.
#[derive(Debug, Clone)]
pub struct CommitterHandle(Arc<Inbox>);

#[derive(Debug, Default)]
struct Inbox {
    /// Bounded by the batches that the appenders may have in flight.
    batches: SegQueue<SealedBatch>,
    results: SegQueue<ChoreDone>,
    stop_by: OnceLock<Instant>,
    /// The committer, set before it can first be armed.
    thread: OnceLock<Thread>,
    doorbell: Doorbell,
}

impl Inbox {
    /// Wakes the committer if it sleeps, and costs no system call if it does not.
    fn knock(&self) {
        if self.doorbell.is_to_be_rung()
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    fn is_empty(&self) -> bool {
        self.batches.is_empty() && self.results.is_empty()
    }
}

impl CommitterHandle {
    /// Hands over a batch; its completion comes through the sink.
    pub fn submit(&self, batch: SealedBatch) {
        self.0.batches.push(batch);
        self.0.knock();
    }
}

impl Committer {
    /// Starts both threads.
    pub fn start<D: Disk>(log: Log<D>, sink: Arc<dyn CompletionSink>) -> io::Result<Committer> {
        let inbox = Arc::new(Inbox::default());
        let (chores, chores_to_do) = mpsc::channel::<Chore>();
        let disk = log.disk().clone();
        let results = inbox.clone();
        let maintenance = thread::Builder::new().name("spool-chores".into()).spawn(move || {
            let _abort = AbortOnPanic;
            for chore in chores_to_do {
                results.results.push(chore.perform(&*disk, &mut random_generation));
                results.knock();
            }
        })?;
        let inside = inbox.clone();
        let committer = thread::Builder::new().name("spool-commit".into()).spawn(move || {
            let _abort = AbortOnPanic;
            let _ = inside.thread.set(thread::current());
            Loop { log, sink, inbox: inside, chores, woken: Vec::new() }.run();
        })?;
        Ok(Committer { inbox, committer, maintenance })
    }

    /// Where workers put their batches.
    pub fn handle(&self) -> CommitterHandle {
        CommitterHandle(self.inbox.clone())
    }

    /// Commits what has been submitted, syncs what is not synced, and ends both threads.  What
    /// still waits for a segment after `patience` is dropped unacknowledged.
    pub fn stop(self, patience: Duration) {
        let _ = self.inbox.stop_by.set(Instant::now() + patience);
        self.committer.thread().unpark();
        for thread in [self.committer, self.maintenance] {
            thread.join().expect("a panic would have aborted the process");
        }
    }
}

struct Loop<D> {
    log: Log<D>,
    sink: Arc<dyn CompletionSink>,
    inbox: Arc<Inbox>,
    chores: Sender<Chore>,
    /// Which workers have completions in this round.
    woken: Vec<usize>,
}

impl<D: Disk> Loop<D> {
    fn run(mut self) {
        let mut next_tick = Instant::now() + TICK;
        self.hand_out_chores();
        loop {
            let batches: Vec<SealedBatch> =
                std::iter::from_fn(|| self.inbox.batches.pop()).collect();
            if !batches.is_empty() {
                let done = self.log.commit(batches);
                self.deliver(done);
            }
            while let Some(result) = self.inbox.results.pop() {
                let done = self.log.chore_done(result);
                self.deliver(done);
            }
            let now = Instant::now();
            if now >= next_tick {
                next_tick = now + TICK;
                let done = self.log.tick();
                self.deliver(done);
            }
            self.hand_out_chores();
            if self.has_stopped(now) {
                return;
            }
            self.sleep_until(next_tick);
        }
    }

    fn sleep_until(&self, next_tick: Instant) {
        if self.inbox.doorbell.may_sleep(|| !self.inbox.is_empty()) {
            let stopping = self.inbox.stop_by.get().map(|_| Duration::from_millis(20));
            let left = next_tick.saturating_duration_since(Instant::now());
            thread::park_timeout(stopping.unwrap_or(left));
        }
        self.inbox.doorbell.disarm();
    }

    /// Whether everything has been said and done, or patience is at its end.
    fn has_stopped(&mut self, now: Instant) -> bool {
        let Some(&stop_by) = self.inbox.stop_by.get() else {
            return false;
        };
        if !self.inbox.batches.is_empty() || (self.log.is_waiting() && now < stop_by) {
            return false;
        }
        if self.log.has_unsynced() {
            let done = self.log.tick();
            self.deliver(done);
        }
        true
    }

    fn deliver(&mut self, done: Vec<Completion>) {
        for completion in done {
            let worker = completion.worker;
            if !self.woken.contains(&worker) {
                self.woken.push(worker);
            }
            self.sink.complete(worker, completion);
        }
        for worker in self.woken.drain(..) {
            self.sink.wake(worker);
        }
    }

    fn hand_out_chores(&mut self) {
        while let Some(chore) = self.log.poll_chore() {
            self.chores.send(chore).expect("the maintenance outlives the committer");
        }
    }
}

/// A number that nobody can guess: bodies may hold anything, also what looks like a batch.
///
/// # Panics
/// Where the system has no random numbers, which no supported kernel lets happen.
pub fn random_generation() -> u64 {
    let mut octets = [0; 8];
    let mut filled = 0;
    while filled < octets.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        match rustix::rand::getrandom(&mut octets[filled..], flags) {
            Ok(more) => filled += more,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("no random numbers: {error}"),
        }
    }
    u64::from_ne_bytes(octets)
}

/// Ends the process when its thread panics.
pub(crate) struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

#[cfg(test)]
#[path = "committer_tests.rs"]
mod tests;
