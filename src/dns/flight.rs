//! What the questions of one core share while they are under way: one flight for all who ask the
//! same, and a bounded number of turns.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::Answer;
use crate::runtime::notify::Notify;

/// One question that is under way; all who have it wait here.
pub struct Flight<T = Answer> {
    answer: RefCell<Option<Rc<T>>>,
    /// By the numbers that they were given when they came: who came first hears first.
    waiting: RefCell<BTreeMap<u64, Waker>>,
    next: Cell<u64>,
}

/// One who waits for a flight.
struct Waiting<'a, T> {
    flight: &'a Flight<T>,
    number: u64,
}

impl<T> Default for Flight<T> {
    fn default() -> Flight<T> {
        Flight { answer: RefCell::default(), waiting: RefCell::default(), next: Cell::default() }
    }
}

impl<T> Flight<T> {
    /// The answer is there; the first one counts.
    pub fn land(&self, answer: &Rc<T>) {
        self.answer.borrow_mut().get_or_insert_with(|| answer.clone());
        for waker in self.waiting.take().into_values() {
            waker.wake();
        }
    }

    /// Waits for the answer.
    pub async fn landed(&self) -> Rc<T> {
        let number = self.next.get();
        self.next.set(number + 1);
        let waiting = Waiting { flight: self, number };
        poll_fn(|context| {
            if let Some(answer) = &*self.answer.borrow() {
                return Poll::Ready(answer.clone());
            }
            // A task that is polled again for another reason is not entered twice.
            let waker = context.waker().clone();
            waiting.flight.waiting.borrow_mut().insert(waiting.number, waker);
            Poll::Pending
        })
        .await
    }
}

impl<T> Drop for Waiting<'_, T> {
    fn drop(&mut self) {
        self.flight.waiting.borrow_mut().remove(&self.number);
    }
}

/// A bounded number of turns, given in the order in which they were asked for, the hopeful before
/// the doubtful: thousands of domains whose servers are silent use up their time again and again,
/// and are not to hold up those whose servers answer.
pub struct Turns {
    free: Cell<usize>,
    /// Turns that the doubtful leave free.
    /// If a hopeful one waits, `free == 0`; if a doubtful one does, `free <= reserved`.
    reserved: usize,
    hopeful: RefCell<VecDeque<Rc<Notify>>>,
    doubtful: RefCell<VecDeque<Rc<Notify>>>,
}

/// What is to be expected of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prospect {
    /// Nothing is known, or it was answered the last time.
    Hopeful,
    /// Nobody could answer it the last time.
    Doubtful,
}

/// One turn; it goes to the next in line when it is dropped.
pub struct Turn<'a>(&'a Turns);

impl Turns {
    /// So many turns at a time, the last `reserved` of them for the hopeful alone.
    pub fn new(turns: usize, reserved: usize) -> Turns {
        let (hopeful, doubtful) = Default::default();
        Turns { free: Cell::new(turns), reserved, hopeful, doubtful }
    }

    /// Waits for a turn.  Once begun, the wait must not be given up: the turn would be lost.
    pub async fn take(&self, prospect: Prospect) -> Turn<'_> {
        let (line, left) = match prospect {
            Prospect::Hopeful => (&self.hopeful, 0),
            Prospect::Doubtful => (&self.doubtful, self.reserved),
        };
        let free = self.free.get();
        if free > left {
            self.free.set(free - 1);
        } else {
            let called = Rc::new(Notify::default());
            line.borrow_mut().push_back(called.clone());
            called.notified().await;
        }
        Turn(self)
    }

    /// Who has the turn that has come free.
    fn next(&self) -> Option<Rc<Notify>> {
        let hopeful = self.hopeful.borrow_mut().pop_front();
        let may_doubt = self.free.get() >= self.reserved;
        hopeful.or_else(|| may_doubt.then(|| self.doubtful.borrow_mut().pop_front()).flatten())
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        match self.0.next() {
            Some(next) => next.notify(),
            None => self.0.free.set(self.0.free.get() + 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::Pin;
    use std::task::Context;

    use super::*;

    type Taking<'a> = Pin<Box<dyn Future<Output = Turn<'a>> + 'a>>;

    fn poll<'a>(taking: &mut Taking<'a>) -> Option<Turn<'a>> {
        match taking.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(turn) => Some(turn),
            Poll::Pending => None,
        }
    }

    #[test]
    fn the_doubtful_leave_turns_free_and_wait_behind_the_hopeful() {
        let turns = Turns::new(3, 1);
        let take = |prospect| -> Taking { Box::pin(turns.take(prospect)) };
        let first = poll(&mut take(Prospect::Doubtful)).expect("three are free");
        let second = poll(&mut take(Prospect::Doubtful)).expect("two are free");
        let mut doubtful = take(Prospect::Doubtful);
        assert!(poll(&mut doubtful).is_none(), "the last one is not for it");
        let third = poll(&mut take(Prospect::Hopeful)).expect("one is free");
        let mut hopeful = take(Prospect::Hopeful);
        assert!(poll(&mut hopeful).is_none());
        drop(first);
        assert!(poll(&mut doubtful).is_none(), "it came first and is still behind");
        let fourth = poll(&mut hopeful).expect("it was called");
        drop(second);
        assert!(poll(&mut doubtful).is_none(), "one is free, and reserved");
        drop(third);
        let fifth = poll(&mut doubtful).expect("two are free");
        drop((fourth, fifth));
        assert_eq!(turns.free.get(), 3);
    }
}
