//! Deadlines of reads and writes, kept by one sweep a thread instead of a timer an operation.
//!
//! A session sets when its next operation must be over; twice a second the sweep looks at all of
//! them and shuts down the sockets that are late, which ends their operation.  A timer for each
//! read would cost more than the read's own bookkeeping, and SMTP's times are minutes.
#![allow(unsafe_code)] // Borrowed descriptors of sockets that another task owns.

use std::cell::{Cell, RefCell};
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::socket::Fd;

/// How often the sweep looks: the most that an operation outlives its deadline.
const SWEEP: Duration = Duration::from_millis(500);

/// What is shut down when the deadline passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// The receiving half: a last reply can still be sent.
    Receiving,
    /// Both halves: the peer takes nothing.
    Both,
}

/// One socket's deadline; the socket is watched until this is dropped.
pub(super) struct Watch {
    entry: Rc<Entry>,
}

struct Entry {
    fd: Fd,
    /// `None` while nothing is under way, or nothing that may not take for ever.
    deadline: Cell<Option<Instant>>,
    cut: Cell<Cut>,
    has_cut: Cell<bool>,
    /// The operation only waits for what may never come; a stopping service may end it.
    may_interrupt: Cell<bool>,
    place: Cell<usize>,
}

thread_local! {
    static WATCHED: RefCell<Vec<Rc<Entry>>> = const { RefCell::new(Vec::new()) };
}

/// Begins to watch `fd`, which must be open for as long as the watch lives.
pub(super) fn watch(fd: Fd) -> Watch {
    WATCHED.with_borrow_mut(|watched| {
        let entry = Rc::new(Entry {
            fd,
            deadline: Cell::new(None),
            cut: Cell::new(Cut::Receiving),
            has_cut: Cell::new(false),
            may_interrupt: Cell::new(false),
            place: Cell::new(watched.len()),
        });
        watched.push(entry.clone());
        Watch { entry }
    })
}

impl Watch {
    /// The next operation must be over by `deadline`.
    pub(super) fn set(&self, deadline: Instant, cut: Cut) {
        self.entry.deadline.set(Some(deadline));
        self.entry.cut.set(cut);
        self.entry.has_cut.set(false);
    }

    /// What is under way in both directions must have moved on by `deadline`.  Once the sweep has
    /// ended it, a later deadline changes nothing.
    pub(super) fn set_for_both(&self, deadline: Option<Instant>) {
        self.entry.deadline.set(deadline);
        self.entry.cut.set(Cut::Both);
    }

    /// Whether [`interrupt_waiting`] may end the operations from here on.
    pub(super) fn allow_interrupt(&self, allowed: bool) {
        self.entry.may_interrupt.set(allowed);
    }

    /// The operation is over: nothing is cut until the next one.
    pub(super) fn clear(&self) {
        self.entry.deadline.set(None);
    }

    /// Whether the sweep ended the operation.
    pub(super) fn has_cut(&self) -> bool {
        self.entry.has_cut.get()
    }
}

impl Entry {
    fn is_late(&self, now: Instant) -> bool {
        self.deadline.get().is_some_and(|deadline| deadline <= now)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // A thread that is ending has no list any more.
        let _ = WATCHED.try_with(|watched| {
            let mut watched = watched.borrow_mut();
            let place = self.entry.place.get();
            watched.swap_remove(place);
            if let Some(moved) = watched.get(place) {
                moved.place.set(place);
            }
        });
    }
}

/// The sweep; one such task runs on every worker for as long as its loop does.
pub async fn sweep_forever() {
    loop {
        super::sleep(SWEEP).await;
        sweep(Instant::now());
    }
}

fn sweep(now: Instant) {
    WATCHED.with_borrow(|watched| {
        for entry in watched.iter().filter(|entry| entry.is_late(now)) {
            let how = match entry.cut.get() {
                Cut::Receiving => rustix::net::Shutdown::Read,
                Cut::Both => rustix::net::Shutdown::Both,
            };
            entry.has_cut.set(true);
            // The peer may be gone already: then the operation is ending anyway.
            let _ = rustix::net::shutdown(borrow(entry.fd, entry), how);
        }
    });
}

/// Ends every operation of this thread that only waits for a peer's next move, as if its deadline
/// had passed.
pub fn interrupt_waiting() {
    let now = Instant::now();
    WATCHED.with_borrow(|watched| {
        for entry in watched.iter().filter(|entry| entry.may_interrupt.get()) {
            entry.deadline.set(Some(now));
        }
    });
    sweep(now);
}

/// The descriptor of a socket that `_owner` keeps open.
pub(super) fn borrow<T: ?Sized>(fd: Fd, _owner: &T) -> BorrowedFd<'_> {
    // SAFETY: a watch is a field of the stream that owns the socket and leaves the list before
    // the socket is closed; the borrow ends with the owner's.
    unsafe { BorrowedFd::borrow_raw(fd) }
}
