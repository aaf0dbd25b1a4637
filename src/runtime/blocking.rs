//! Work that blocks, on a small pool of threads: files of Maildirs today, password hashes later.
//!
//! A worker never blocks on a file.  It hands the work over and waits like for anything else; the
//! thread that did it drops a letter into the worker's mailbox.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam::channel::{Receiver, Sender, unbounded};

use super::notify::Notify;

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
        // Unbounded, yet no longer than the tasks that wait, which have bounds of their own.
        let (jobs, work): (Sender<Job>, Receiver<Job>) = unbounded();
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
}

impl Blocking {
    /// A door whose finished jobs are told by `announce`, from another thread.
    pub fn new(pool: BlockingPool, announce: Arc<dyn Fn(u64) + Send + Sync>) -> Blocking {
        Blocking { pool, announce, waiting: RefCell::default(), next: Cell::new(0) }
    }

    /// Runs `job` on the pool and waits for it; `None` if it panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let token = self.next.replace(self.next.get() + 1);
        let finished = Rc::new(Notify::default());
        self.waiting.borrow_mut().insert(token, finished.clone());
        let result = Arc::new(Mutex::new(None));
        let (place, announcement) = (result.clone(), Announcement(self.announce.clone(), token));
        let work = move || {
            let _announced_at_the_end = announcement;
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(job());
        };
        self.pool.jobs.send(Box::new(work)).expect("the threads live as long as the pool");
        finished.notified().await;
        result.lock().unwrap_or_else(PoisonError::into_inner).take()
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
