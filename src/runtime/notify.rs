//! Waking a task of the same thread: a flag with a waker behind it.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Poll, Waker};

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
