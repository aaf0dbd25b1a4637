//! Deadlines of reads and writes, kept by one sweep a thread instead of a timer an operation.
//!
//! A session sets when its next operation must be over; twice a second the sweep looks at all of
//! them and shuts down the sockets that are late, which ends their operation.  A timer for each
//! read would cost more than the read's own bookkeeping, and SMTP's times are minutes.
//!
//! An operation may have a second, earlier deadline that counts only while the thread is short of
//! something ([`press`]): who is too slow then gives way, a few at each sweep.
#![allow(unsafe_code)] // Borrowed descriptors of sockets that another task owns.

use std::cell::{Cell, RefCell};
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::socket::Fd;

/// How often the sweep looks: the most that an operation outlives its deadline.
const SWEEP: Duration = Duration::from_millis(500);
/// How many operations one sweep ends for their second deadline: what they held may be enough.
const PRESSED_CUTS: usize = 32;

/// What a thread may be short of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage {
    /// Memory for messages on their way in.
    Intake,
    /// Buffers of the log's reader, for messages on their way out.
    Reader,
    /// Connections to next hops, for transactions that are passed on in-line.
    Connections,
}

const SHORTAGES: [Shortage; 3] = [Shortage::Intake, Shortage::Reader, Shortage::Connections];

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
    /// The deadline while the thread is short of that.
    pressed: Cell<Option<(Shortage, Instant)>>,
    cut: Cell<Cut>,
    has_cut: Cell<bool>,
    /// The operation only waits for what may never come; a stopping service may end it.
    may_interrupt: Cell<bool>,
    place: Cell<usize>,
}

thread_local! {
    static WATCHED: RefCell<Vec<Rc<Entry>>> = const { RefCell::new(Vec::new()) };
    /// By [`Shortage`].
    static PRESSURE: Cell<[Pressure; SHORTAGES.len()]> =
        const { Cell::new([Pressure { until: None, cuts: 0 }; SHORTAGES.len()]) };
}

/// How short the thread is of something.
#[derive(Debug, Clone, Copy)]
struct Pressure {
    until: Option<Instant>,
    /// Operations that were ended for it.
    cuts: u64,
}

/// The thread is short of something until `until`: the second deadlines for it count.
pub fn press(shortage: Shortage, until: Instant) {
    let mut pressure = PRESSURE.get();
    let until = pressure[shortage as usize].until.max(Some(until));
    pressure[shortage as usize].until = until;
    PRESSURE.set(pressure);
}

/// Operations of this thread that second deadlines have ended.
pub fn pressed_cuts(shortage: Shortage) -> u64 {
    PRESSURE.get()[shortage as usize].cuts
}

/// Begins to watch `fd`, which must be open for as long as the watch lives.
pub(super) fn watch(fd: Fd) -> Watch {
    WATCHED.with_borrow_mut(|watched| {
        let entry = Rc::new(Entry {
            fd,
            deadline: Cell::new(None),
            pressed: Cell::new(None),
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

    /// The operations from here on must be over by then if the thread is short of that.
    pub(super) fn set_pressed(&self, pressed: Option<(Shortage, Instant)>) {
        self.entry.pressed.set(pressed);
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

    /// Whether its operation is too slow for a thread that is short of that.
    fn is_in_the_way(&self, of: Shortage, now: Instant) -> bool {
        let is_waiting = self.deadline.get().is_some() && !self.has_cut.get();
        let pressed = self.pressed.get();
        is_waiting && pressed.is_some_and(|(shortage, at)| shortage == of && at <= now)
    }

    fn end(self: &Rc<Self>) {
        let how = match self.cut.get() {
            Cut::Receiving => rustix::net::Shutdown::Read,
            Cut::Both => rustix::net::Shutdown::Both,
        };
        self.has_cut.set(true);
        // The peer may be gone already: then the operation is ending anyway.
        let _ = rustix::net::shutdown(borrow(self.fd, self), how);
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
            entry.end();
        }
        for shortage in SHORTAGES {
            let mut pressure = PRESSURE.get();
            if pressure[shortage as usize].until.is_none_or(|until| until <= now) {
                continue;
            }
            let in_the_way = watched.iter().filter(|entry| entry.is_in_the_way(shortage, now));
            let cuts = in_the_way.take(PRESSED_CUTS).map(|entry| entry.end()).count();
            pressure[shortage as usize].cuts += cuts as u64;
            PRESSURE.set(pressure);
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Who is slow is cut off for those who wait, a few at a time, and only for what it holds.
    #[test]
    fn the_slow_give_way_while_something_is_short() {
        let now = Instant::now();
        let (soon, late) = (now + Duration::from_secs(1), now + Duration::from_secs(60));
        let pairs: Vec<_> =
            (0..PRESSED_CUTS + 3).map(|_| UnixStream::pair().expect("a pair")).collect();
        let watches: Vec<Watch> = pairs.iter().map(|(ours, _)| watch(ours.as_raw_fd())).collect();
        for (place, watch) in watches.iter().enumerate() {
            watch.set(late, Cut::Receiving);
            let of = if place == 0 { Shortage::Reader } else { Shortage::Intake };
            let at = if place == 1 { late } else { soon };
            watch.set_pressed(Some((of, at)));
        }
        let cut = || watches.iter().filter(|watch| watch.has_cut()).count();
        sweep(soon);
        assert_eq!(cut(), 0, "nothing is short");
        press(Shortage::Intake, late);
        sweep(soon);
        assert_eq!(cut(), PRESSED_CUTS, "what they held may be enough");
        sweep(soon);
        assert_eq!(cut(), PRESSED_CUTS + 1);
        assert!(!watches[0].has_cut() && !watches[1].has_cut());
        assert_eq!(pressed_cuts(Shortage::Intake), PRESSED_CUTS as u64 + 1);
        assert_eq!(pressed_cuts(Shortage::Reader), 0);
        watches[1].clear();
        sweep(late);
        assert!(!watches[1].has_cut(), "the pressure is over, and nothing is under way");
    }
}
