//! What the questions of one core share while they are under way: one flight for all who ask the
//! same, and a bounded number of turns.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::Answer;
use crate::runtime::notify::Notify;

/// One question that is under way; all who have it wait here.
#[derive(Default)]
pub struct Flight {
    answer: RefCell<Option<Rc<Answer>>>,
    waiting: RefCell<Vec<Waker>>,
}

impl Flight {
    /// The answer is there; the first one counts.
    pub fn land(&self, answer: &Rc<Answer>) {
        self.answer.borrow_mut().get_or_insert_with(|| answer.clone());
        for waker in self.waiting.take() {
            waker.wake();
        }
    }

    /// Waits for the answer.
    pub async fn landed(&self) -> Rc<Answer> {
        poll_fn(|context| {
            if let Some(answer) = &*self.answer.borrow() {
                return Poll::Ready(answer.clone());
            }
            let mut waiting = self.waiting.borrow_mut();
            // A task that is polled again for another reason is not entered twice.
            if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

/// A bounded number of turns, given in the order in which they were asked for.
pub struct Turns {
    free: Cell<usize>,
    waiting: RefCell<VecDeque<Rc<Notify>>>,
}

/// One turn; it goes to the next in line when it is dropped.
pub struct Turn<'a>(&'a Turns);

impl Turns {
    /// So many turns at a time.
    pub fn new(turns: usize) -> Turns {
        Turns { free: Cell::new(turns), waiting: RefCell::default() }
    }

    /// Waits for a turn.  Once begun, the wait must not be given up: the turn would be lost.
    pub async fn take(&self) -> Turn<'_> {
        match self.free.get() {
            0 => {
                let called = Rc::new(Notify::default());
                self.waiting.borrow_mut().push_back(called.clone());
                called.notified().await;
            }
            free => self.free.set(free - 1),
        }
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let next = self.0.waiting.borrow_mut().pop_front();
        match next {
            Some(next) => next.notify(),
            None => self.0.free.set(self.0.free.get() + 1),
        }
    }
}
