//! How other threads reach a worker: a lock-free queue and one wake-up for many pushes.
//!
//! Whoever pushes writes to the worker's socket pair only if the worker has said that it is
//! about to sleep ([`Doorbell`]).  So a push between the last look and the sleep is never missed,
//! and pushes to a worker that is awake cost no system call.
//!
//! A worker opens so many letters at a time and then lets its other tasks and its sockets have
//! their turn, however fast others push.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crossbeam::queue::{ArrayQueue, SegQueue};
use monoio::io::AsyncReadRent;

use crate::sync::doorbell::{Doorbell, Turn};

/// The sending side of a worker's mailbox, shared by all threads.
pub struct Mailbox<T> {
    letters: Letters<T>,
    doorbell: Doorbell,
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
    let mailbox = Arc::new(Mailbox { letters, doorbell: Doorbell::default(), bell });
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
        if self.doorbell.is_to_be_rung() {
            self.ring();
        }
    }

    fn ring(&self) {
        // A full pipe means that a wake-up is on its way already.
        let _ = rustix::io::write(&self.bell, &[1]);
    }

    /// Opens at most so many letters; tells whether that was all.
    fn open_some(&self, most: usize, open: &mut impl FnMut(T)) -> bool {
        for _ in 0..most {
            match self.pop() {
                Some(letter) => open(letter),
                None => return true,
            }
        }
        false
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
            let has_opened_all = self.mailbox.open_some(LETTERS_PER_TURN, &mut open);
            rest();
            match self.mailbox.doorbell.turn(has_opened_all, || !self.mailbox.is_empty()) {
                Turn::Again => continue,
                // The read goes through the loop, and with it everybody else's turn.
                Turn::RingAndSleep => self.mailbox.ring(),
                Turn::Sleep => {}
            }
            let result;
            (result, rings) = ear.read(rings).await;
            if result? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// Letters that are opened before others have their turn: a few milliseconds' work, and more than
/// an ordinary commit brings.
const LETTERS_PER_TURN: usize = 4_096;

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;
    use std::time::Duration;

    use super::*;
    use crate::runtime;

    /// A letter that answers itself would keep the worker for ever.
    #[test]
    fn a_flood_of_letters_lets_others_have_their_turn() {
        let (mailbox, inbox) = mailbox::<()>(None).expect("two descriptors");
        let opened = Rc::new(Cell::new(0usize));
        let others = Rc::new(RefCell::new(Vec::new()));
        mailbox.push(()).expect("it has no bound");
        let (own, count, turns) = (mailbox.clone(), opened.clone(), others.clone());
        let waited = runtime::run(async move {
            runtime::spawn(async move {
                let open = |()| {
                    count.set(count.get() + 1);
                    own.push(()).expect("it has no bound");
                };
                inbox.open_forever(open, || ()).await.expect("the socket lasts");
            });
            let patience = Duration::from_secs(30);
            runtime::timeout(patience, async {
                while others.borrow().len() < 3 {
                    runtime::sleep(Duration::from_millis(1)).await;
                    others.borrow_mut().push(opened.get());
                }
            })
            .await
        });
        assert!(waited.expect("a loop").is_some(), "nobody else had a turn");
        let turns = turns.borrow();
        assert!(turns[0] > 0 && turns.is_sorted(), "{turns:?}");
    }

    /// Every letter is opened once, whoever pushes it and whenever.
    #[test]
    fn letters_of_many_threads_are_all_opened() {
        const THREADS: usize = 4;
        const EACH: usize = 20_000;
        let (mailbox, inbox) = mailbox::<usize>(None).expect("two descriptors");
        let senders: Vec<_> = (0..THREADS)
            .map(|thread| {
                let mailbox = mailbox.clone();
                std::thread::spawn(move || {
                    for letter in 0..EACH {
                        mailbox.push(thread * EACH + letter).expect("it has no bound");
                        mailbox.wake();
                    }
                })
            })
            .collect();
        let seen = Rc::new(RefCell::new(vec![0u8; THREADS * EACH]));
        let inside = seen.clone();
        let ended = runtime::run(async move {
            let left = Rc::new(Cell::new(THREADS * EACH));
            let counted = left.clone();
            runtime::spawn(async move {
                let open = |letter: usize| {
                    inside.borrow_mut()[letter] += 1;
                    counted.set(counted.get() - 1);
                };
                inbox.open_forever(open, || ()).await.expect("the socket lasts");
            });
            let until_all = async {
                while left.get() > 0 {
                    runtime::sleep(Duration::from_millis(1)).await;
                }
            };
            runtime::timeout(Duration::from_secs(30), until_all).await
        });
        assert!(ended.expect("a loop").is_some(), "a letter was left unopened");
        senders.into_iter().for_each(|sender| sender.join().expect("it only pushes"));
        assert!(seen.borrow().iter().all(|&times| times == 1));
    }
}
