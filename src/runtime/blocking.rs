//! Work that blocks, on a small pool of threads: files of Maildirs today, password hashes later.
//!
//! A worker never blocks on a file.  It hands the work over and waits like for anything else; the
//! thread that did it drops a letter into the worker's mailbox.
//!
//! A file system that hangs takes the threads with it, and nothing else: who waits for too long
//! gives up, work that nobody waits for any more is not begun, and no more than a bounded number
//! of jobs waits for a thread.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::notify::Notify;
use crate::limits;

type Job = Box<dyn FnOnce() + Send>;

/// The threads; they end when the last clone of it is gone and the work is done.
#[derive(Clone)]
pub struct BlockingPool {
    jobs: Sender<Job>,
}

impl BlockingPool {
    /// Starts `threads` of them.
    ///
    /// # Errors
    /// The system gives no more threads.
    pub fn start(threads: usize) -> io::Result<BlockingPool> {
        let (jobs, work): (Sender<Job>, Receiver<Job>) = bounded(limits::BLOCKING_WAITING);
        for number in 0..threads {
            let work = work.clone();
            let name = format!("blocking-{number}");
            std::thread::Builder::new().name(name).spawn(move || {
                for job in work {
                    // What it says to the waiting task is that no result came.
                    let _ = catch_unwind(AssertUnwindSafe(job));
                }
            })?;
        }
        Ok(BlockingPool { jobs })
    }
}

/// One worker's door to the pool.
pub struct Blocking {
    pool: BlockingPool,
    /// Tells the worker's mailbox that the job of this token is over.
    announce: Arc<dyn Fn(u64) + Send + Sync>,
    waiting: RefCell<HashMap<u64, Rc<Notify>>>,
    next: Cell<u64>,
    late: Cell<u64>,
    patience: Duration,
}

impl Blocking {
    /// A door whose finished jobs are told by `announce`, from another thread.
    pub fn new(pool: BlockingPool, announce: Arc<dyn Fn(u64) + Send + Sync>) -> Blocking {
        Blocking {
            pool,
            announce,
            waiting: RefCell::default(),
            next: Cell::new(0),
            late: Cell::new(0),
            patience: limits::BLOCKING_PATIENCE,
        }
    }

    /// Runs `job` on the pool and waits for it; `None` if it panicked, took too long, or could not
    /// be taken on.  One that took too long may still come to its end.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let token = self.next.replace(self.next.get() + 1);
        let finished = Rc::new(Notify::default());
        self.waiting.borrow_mut().insert(token, finished.clone());
        let result = Arc::new(Mutex::new(None));
        let (place, announcement) = (result.clone(), Announcement(self.announce.clone(), token));
        let is_unwanted = Arc::new(AtomicBool::new(false));
        let unwanted = is_unwanted.clone();
        let work = move || {
            let _announced_at_the_end = announcement;
            if !unwanted.load(Ordering::Relaxed) {
                *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(job());
            }
        };
        let taken_on = self.pool.jobs.try_send(Box::new(work)).is_ok();
        if !taken_on || super::timeout(self.patience, finished.notified()).await.is_none() {
            is_unwanted.store(true, Ordering::Relaxed);
            self.waiting.borrow_mut().remove(&token);
            self.late.set(self.late.get() + 1);
            return None;
        }
        result.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Jobs that took too long, or could not be taken on.
    pub fn late(&self) -> u64 {
        self.late.get()
    }

    /// Takes the announcement in the worker.
    pub fn finished(&self, token: u64) {
        if let Some(waiting) = self.waiting.borrow_mut().remove(&token) {
            waiting.notify();
        }
    }
}

/// Sent when dropped, so also when the job panics.
struct Announcement(Arc<dyn Fn(u64) + Send + Sync>, u64);

impl Drop for Announcement {
    fn drop(&mut self) {
        (self.0)(self.1);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::runtime;

    /// A door whose announcements go through a channel that the test empties by itself.
    fn door(patience: Duration) -> (Rc<Blocking>, Receiver<u64>) {
        let pool = BlockingPool::start(1).expect("a thread");
        let (told, announced) = crossbeam::channel::unbounded();
        let announce = Arc::new(move |token| {
            let _ = told.send(token);
        });
        (Rc::new(Blocking { patience, ..Blocking::new(pool, announce) }), announced)
    }

    /// A mount that hangs must not take the attempts with it for ever.
    #[test]
    fn who_waits_for_too_long_gives_up_and_what_nobody_wants_is_not_begun() {
        let (release, held) = crossbeam::channel::bounded::<()>(0);
        let begun = Arc::new(AtomicBool::new(false));
        let also_begun = begun.clone();
        let results = runtime::run(async move {
            let (door, _announced) = door(Duration::from_millis(50));
            let hanging = door.run(move || held.recv().is_ok()).await;
            let behind = door.run(move || also_begun.store(true, Ordering::SeqCst)).await;
            (hanging, behind, door.late(), door.waiting.borrow().len())
        });
        assert_eq!(results.expect("a loop"), (None, None, 2, 0));
        drop(release);
        std::thread::sleep(Duration::from_millis(50));
        assert!(!begun.load(Ordering::SeqCst), "nobody waits for it any more");
    }

    #[test]
    fn a_result_comes_and_a_panic_is_none() {
        let results = runtime::run(async {
            let (door, announced) = door(Duration::from_secs(30));
            let opening = door.clone();
            runtime::spawn(async move {
                let end = Instant::now() + Duration::from_secs(30);
                let mut opened = 0;
                while opened < 2 && Instant::now() < end {
                    for token in announced.try_iter() {
                        opening.finished(token);
                        opened += 1;
                    }
                    runtime::sleep(Duration::from_millis(1)).await;
                }
            });
            let good = door.run(|| 7).await;
            let bad: Option<()> = door.run(|| panic!("on purpose")).await;
            (good, bad, door.late())
        });
        assert_eq!(results.expect("a loop"), (Some(7), None, 0));
    }
}
