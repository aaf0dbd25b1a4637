//! Waking a task of the same thread: a flag with a waker behind it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// One task waits, any other of the thread notifies.  A notice that comes before the wait is
/// kept; several before one wait count as one.
#[derive(Default)]
pub struct Notify {
    notified: Cell<bool>,
    waiter: RefCell<Option<Waker>>,
}

impl Notify {
    /// Lets the waiting task go on.
    pub fn notify(&self) {
        self.notified.set(true);
        if let Some(waker) = self.waiter.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Waits for the next notice.
    pub async fn notified(&self) {
        poll_fn(|context| {
            if self.notified.replace(false) {
                return Poll::Ready(());
            }
            *self.waiter.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// Tasks that wait for something of which there is not enough, the one that came first in front.
#[derive(Default)]
pub struct WaitingList {
    waiting: RefCell<VecDeque<Rc<Notify>>>,
}

impl WaitingList {
    /// Waits for its turn, or for `limit`; the caller looks then whether there is enough.
    pub async fn wait(&self, limit: Duration) {
        let turn = Rc::new(Notify::default());
        self.forget_gone();
        self.waiting.borrow_mut().push_back(turn.clone());
        // On the heap: a timer is large, and nearly nobody who may have to wait does.
        Box::pin(super::timeout(limit, turn.notified())).await;
    }

    /// It is the turn of so many.
    pub fn wake(&self, most: usize) {
        for _ in 0..most {
            self.forget_gone();
            let Some(first) = self.waiting.borrow_mut().pop_front() else { return };
            first.notify();
        }
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.forget_gone();
        self.waiting.borrow().is_empty()
    }

    /// Who waited for too long has left his place.
    fn forget_gone(&self) {
        let mut waiting = self.waiting.borrow_mut();
        while waiting.front().is_some_and(|turn| Rc::strong_count(turn) == 1) {
            waiting.pop_front();
        }
    }
}

/// A value that one task hands to another of the same thread, once.
pub struct Handover<T> {
    value: RefCell<Option<T>>,
    ready: Notify,
}

impl<T> Default for Handover<T> {
    fn default() -> Self {
        Handover { value: RefCell::new(None), ready: Notify::default() }
    }
}

impl<T> Handover<T> {
    /// Gives the value and wakes the taker.
    pub fn give(&self, value: T) {
        *self.value.borrow_mut() = Some(value);
        self.ready.notify();
    }

    /// Gives the value unless one is waiting to be taken.
    pub fn give_if_empty(&self, value: T) {
        if self.value.borrow().is_none() {
            self.give(value);
        }
    }

    /// The value, if it is there.
    pub fn take_now(&self) -> Option<T> {
        self.value.borrow_mut().take()
    }

    /// Waits for the value.
    pub async fn take(&self) -> T {
        loop {
            if let Some(value) = self.value.borrow_mut().take() {
                return value;
            }
            self.ready.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime;

    #[test]
    fn turns_come_in_their_order_and_who_has_gone_has_none() {
        let woken = runtime::run(async {
            let list = Rc::new(WaitingList::default());
            list.wait(Duration::from_millis(1)).await;
            assert!(list.is_empty(), "nobody waits any more");
            let woken = Rc::new(RefCell::new(Vec::new()));
            for number in 0..3 {
                let (list, woken) = (list.clone(), woken.clone());
                runtime::spawn(async move {
                    list.wait(Duration::from_secs(60)).await;
                    woken.borrow_mut().push(number);
                });
            }
            runtime::sleep(Duration::from_millis(10)).await;
            list.wake(2);
            runtime::sleep(Duration::from_millis(10)).await;
            assert!(!list.is_empty());
            woken.take()
        });
        assert_eq!(woken.expect("a loop"), [0, 1]);
    }
}
