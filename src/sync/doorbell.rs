//! How one thread sleeps while it has no work, and those who bring some wake it: no wake-up is
//! missed, and to whom is awake nobody rings.
//!
//! It stands under a worker's mailbox, the committer and the reader of the log, which differ in
//! what they sleep on: a socket, `park`, an event descriptor.  All of these remember that they
//! were rung, so that a ring between the last look and the sleep ends the sleep at once.
//!
//! The handshake.  Whoever brings work: put it into the queue, *then* look whether the bell is
//! armed.  Who sleeps: arm the bell, *then* look into the queue once more.  With a full fence
//! between the two steps on both sides at least one of them sees what the other did, whatever the
//! queue's own orderings are.

use super::atomic::{AtomicBool, Ordering, fence};

/// The sleeper's bell; shared with everybody who brings it work.
#[derive(Debug)]
pub struct Doorbell {
    /// The sleeper has looked and found nothing, or is about to look: it wants to be rung for.
    is_armed: AtomicBool,
}

/// How a sleeper goes on after it has taken what it may take at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Look again: something came.
    Again,
    /// Wait for the ring; it may be on its way.
    Sleep,
    /// Ring for itself, then wait: there is more, and others are to have their turn first.
    RingAndSleep,
}

impl Default for Doorbell {
    fn default() -> Self {
        Doorbell { is_armed: AtomicBool::new(false) }
    }
}

impl Doorbell {
    /// For whoever has put something into the queue: whether the sleeper is to be rung for.  Of
    /// several who come at a time one is told so.
    #[must_use]
    pub fn is_to_be_rung(&self) -> bool {
        fence(Ordering::SeqCst);
        // The look before the swap keeps the line shared while the sleeper is awake.
        self.is_armed.load(Ordering::Relaxed) && self.is_armed.swap(false, Ordering::AcqRel)
    }

    /// For the sleeper: whether it may sleep.  `has_work` looks into the queue.  It may also if
    /// it has work and the ring for it is on its way; it must then, or the ring is left over.
    #[must_use]
    pub fn may_sleep(&self, has_work: impl FnOnce() -> bool) -> bool {
        // A swap, since whoever was told not to ring has left its work before its own swap.
        self.is_armed.swap(true, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        !has_work() || !self.is_armed.swap(false, Ordering::AcqRel)
    }

    /// For the sleeper when it wakes by itself: nobody need ring now.
    pub fn disarm(&self) {
        self.is_armed.store(false, Ordering::Relaxed);
    }

    /// For a sleeper whose queue fills while it works, and which is not to keep its thread to
    /// itself: how it goes on.  `has_taken_all` is whether it found its queue empty.
    #[must_use]
    pub fn turn(&self, has_taken_all: bool, has_work: impl FnOnce() -> bool) -> Turn {
        match has_taken_all {
            false => Turn::RingAndSleep,
            true if self.may_sleep(has_work) => Turn::Sleep,
            true => Turn::Again,
        }
    }
}
