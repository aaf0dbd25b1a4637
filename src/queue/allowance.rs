//! How many connections to next hops all workers may have together.
//!
//! Each costs a descriptor and memory, and the limit of a site bounds only its own: a thousand
//! slow domains would otherwise take what the listeners need.
//!
//! A core may use all of them while no other one needs any.  Once sites of another core stand in
//! line, a core that has its even share or more takes none.
//!
//! Connections that a client waits for, which belong to no queue, have a [`Place`]: they take what
//! there is and stand in no line, since whoever waits for them can be told to come again.  A client
//! may hold one for as long as it likes, so they are three quarters of all at most, and the rest is
//! the queue's.  If there is only one, whoever comes first has it.  Who finds none leaves word, so
//! that every core closes what idles.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;

/// Connections that may be open, and those that are; shared by all workers.
#[derive(Debug)]
pub struct Allowance {
    most: u32,
    /// `used <= most`
    used: CachePadded<AtomicU32>,
    /// `places <= places_most`, and those that are taken are among the used ones.
    places: CachePadded<AtomicU32>,
    /// Cores with sites that wait for one.
    lines: CachePadded<AtomicU32>,
    began: Instant,
    /// Until when those that idle give way to who found no place, in ms since `began`.
    missed_until_ms: CachePadded<AtomicU64>,
}

impl Allowance {
    /// At most so many, one at least.
    pub fn new(most: usize) -> Allowance {
        let most = u32::try_from(most).unwrap_or(u32::MAX).max(1);
        let none = || CachePadded::new(AtomicU32::new(0));
        Allowance {
            most,
            used: none(),
            places: none(),
            lines: none(),
            began: Instant::now(),
            missed_until_ms: CachePadded::new(AtomicU64::new(0)),
        }
    }

    /// Whether there is one for a core that has `own` of them, among `cores`, and perhaps a line
    /// itself.
    pub(super) fn has_room(&self, own: u32, cores: u32, has_line: bool) -> bool {
        let lines = self.lines.load(Ordering::Acquire);
        let others_wait = lines > u32::from(has_line);
        !self.is_full() && (!others_wait || own < self.most.div_ceil(cores))
    }

    /// Takes one, if there is one; see [`Allowance::has_room`].
    pub(super) fn acquire(&self, own: u32, cores: u32, has_line: bool) -> bool {
        if !self.has_room(own, cores, has_line) {
            return false;
        }
        self.take()
    }

    /// One for a connection that is in no queue, if there is one.
    pub fn place(self: &Arc<Allowance>) -> Option<Place> {
        if !take_one(&self.places, self.places_most()) {
            return None;
        }
        if !self.take() {
            self.places.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        Some(Place(self.clone()))
    }

    fn places_most(&self) -> u32 {
        (self.most - self.most.div_ceil(4)).max(1)
    }

    fn take(&self) -> bool {
        take_one(&self.used, self.most)
    }

    /// Gives it back.
    pub(super) fn release(&self) {
        let before = self.used.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before > 0, "every release has its acquire");
    }

    /// Sites of a core begin to wait.
    pub(super) fn line_began(&self) {
        self.lines.fetch_add(1, Ordering::AcqRel);
    }

    /// None of them waits any more.
    pub(super) fn line_ended(&self) {
        let before = self.lines.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before > 0, "every end has its beginning");
    }

    /// Whether somebody waits for one.
    pub fn is_wanted(&self) -> bool {
        self.lines.load(Ordering::Acquire) > 0
    }

    /// Somebody found no place at `now`: for so long, what idles had better end.
    pub fn place_missed(&self, now: Instant, for_so_long: Duration) {
        let until = self.ms(now + for_so_long);
        self.missed_until_ms.fetch_max(until, Ordering::AcqRel);
    }

    /// Whether somebody has found no place of late.
    pub fn misses_place(&self, now: Instant) -> bool {
        self.ms(now) < self.missed_until_ms.load(Ordering::Acquire)
    }

    fn ms(&self, at: Instant) -> u64 {
        u64::try_from(at.duration_since(self.began).as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether all of them are used.
    pub fn is_full(&self) -> bool {
        self.used() >= self.most
    }

    /// Those that are open.
    pub fn used(&self) -> u32 {
        self.used.load(Ordering::Acquire)
    }
}

/// One connection among those that may be open, for as long as this lives.
#[derive(Debug)]
pub struct Place(Arc<Allowance>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.places.fetch_sub(1, Ordering::AcqRel);
        self.0.release();
    }
}

fn take_one(count: &AtomicU32, most: u32) -> bool {
    let taken = count.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |count| {
        (count < most).then_some(count + 1)
    });
    taken.is_ok()
}

impl Default for Allowance {
    /// As many as there are numbers.
    fn default() -> Allowance {
        Allowance::new(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_one_of_those_that_there_are() {
        let allowance = Arc::new(Allowance::new(2));
        assert!(allowance.acquire(0, 1, false));
        let place = allowance.place();
        assert!(place.is_some() && allowance.is_full());
        assert!(allowance.place().is_none() && !allowance.acquire(1, 1, false));
        drop(place);
        assert!(allowance.place().is_some(), "it was given back");
        assert_eq!(allowance.used(), 1);
    }

    #[test]
    fn places_leave_a_quarter_to_the_queue() {
        for (most, expected) in [(1, 1), (2, 1), (3, 2), (4, 3), (5, 3), (8, 6), (100, 75)] {
            let allowance = Arc::new(Allowance::new(most));
            let places: Vec<_> = std::iter::from_fn(|| allowance.place()).collect();
            assert_eq!(places.len(), expected, "of {most}");
            let queued = std::iter::from_fn(|| allowance.acquire(0, 1, false).then_some(()));
            assert_eq!(queued.count(), most - expected, "of {most}");
            drop(places);
            // What the queue has taken is not missed among the places.
            let places: Vec<_> = std::iter::from_fn(|| allowance.place()).collect();
            assert_eq!(places.len(), expected, "of {most}");
            assert!(allowance.is_full());
        }
    }

    #[test]
    fn a_missed_place_is_remembered_for_a_while() {
        let allowance = Allowance::new(1);
        let now = Instant::now();
        assert!(!allowance.misses_place(now));
        allowance.place_missed(now, Duration::from_secs(3));
        allowance.place_missed(now, Duration::from_secs(1));
        assert!(allowance.misses_place(now + Duration::from_secs(2)));
        assert!(!allowance.misses_place(now + Duration::from_secs(4)));
    }

    #[test]
    fn who_finds_all_used_takes_no_place() {
        let allowance = Arc::new(Allowance::new(2));
        assert!(allowance.acquire(0, 1, false) && allowance.acquire(1, 1, false));
        assert!((0..3).all(|_| allowance.place().is_none()));
        allowance.release();
        assert!(allowance.place().is_some());
    }
}
