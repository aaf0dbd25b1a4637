//! How other threads reach a worker: a lock-free queue and one wake-up for many pushes.
//!
//! Whoever pushes writes to the worker's socket pair only if the worker has said that it is
//! about to sleep; the worker arms that flag, looks at its queue once more, and then reads.  So
//! a push between the last look and the sleep is never missed, and pushes to a worker that is
//! awake cost no system call.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::queue::{ArrayQueue, SegQueue};
use monoio::io::AsyncReadRent;

/// The sending side of a worker's mailbox, shared by all threads.
pub struct Mailbox<T> {
    letters: Letters<T>,
    armed: AtomicBool,
    bell: UnixStream,
}

enum Letters<T> {
    Bounded(ArrayQueue<T>),
    /// For answers, of which there are never more than requests under way.
    Unbounded(SegQueue<T>),
}

/// The receiving side, owned by the worker.
pub struct Inbox<T> {
    mailbox: Arc<Mailbox<T>>,
    ear: OwnedFd,
}

/// A mailbox for `capacity` letters; `None` for one whose senders bound themselves.
///
/// # Errors
/// No descriptors are left.
pub fn mailbox<T>(capacity: Option<usize>) -> io::Result<(Arc<Mailbox<T>>, Inbox<T>)> {
    let (bell, ear) = UnixStream::pair()?;
    bell.set_nonblocking(true)?;
    ear.set_nonblocking(true)?;
    let letters = match capacity {
        Some(capacity) => Letters::Bounded(ArrayQueue::new(capacity)),
        None => Letters::Unbounded(SegQueue::new()),
    };
    let mailbox = Arc::new(Mailbox { letters, armed: AtomicBool::new(false), bell });
    Ok((mailbox.clone(), Inbox { mailbox, ear: ear.into() }))
}

impl<T> Mailbox<T> {
    /// Puts a letter in without waking the worker; call [`Mailbox::wake`] after the last of many.
    ///
    /// # Errors
    /// The letter comes back when the mailbox is full.
    pub fn push(&self, letter: T) -> Result<(), T> {
        match &self.letters {
            Letters::Bounded(queue) => queue.push(letter),
            Letters::Unbounded(queue) => {
                queue.push(letter);
                Ok(())
            }
        }
    }

    /// Wakes the worker if it sleeps.
    pub fn wake(&self) {
        // SeqCst: the letter must be visible before the flag is looked at, and the worker sets
        // the flag before it looks for letters.
        if self.armed.swap(false, Ordering::SeqCst) {
            // A full pipe means that a wake-up is on its way already.
            let _ = rustix::io::write(&self.bell, &[1]);
        }
    }

    fn pop(&self) -> Option<T> {
        match &self.letters {
            Letters::Bounded(queue) => queue.pop(),
            Letters::Unbounded(queue) => queue.pop(),
        }
    }

    fn is_empty(&self) -> bool {
        match &self.letters {
            Letters::Bounded(queue) => queue.is_empty(),
            Letters::Unbounded(queue) => queue.is_empty(),
        }
    }
}

impl<T> Inbox<T> {
    /// Hands every letter to `open`, for as long as the worker runs.  `rest` is called after
    /// each group of letters, before the worker sleeps again.
    ///
    /// # Errors
    /// The event loop refused the socket, or it broke.
    pub async fn open_forever(
        self,
        mut open: impl FnMut(T),
        mut rest: impl FnMut(),
    ) -> io::Result<()> {
        let mut ear = monoio::net::UnixStream::from_std(UnixStream::from(self.ear))?;
        let mut rings = vec![0u8; 64];
        loop {
            while let Some(letter) = self.mailbox.pop() {
                open(letter);
            }
            rest();
            self.mailbox.armed.store(true, Ordering::SeqCst);
            if !self.mailbox.is_empty() && self.mailbox.armed.swap(false, Ordering::SeqCst) {
                continue;
            }
            let result;
            (result, rings) = ear.read(rings).await;
            if result? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
