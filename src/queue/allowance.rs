//! How many connections to next hops all workers may have together.
//!
//! Each costs a descriptor and memory, and the limit of a site bounds only its own: a thousand
//! slow domains would otherwise take what the listeners need.
//!
//! A core may use all of them while no other one needs any.  Once sites of another core stand in
//! line, a core that has its even share or more takes none.

use std::sync::atomic::{AtomicU32, Ordering};

use crossbeam::utils::CachePadded;

/// Connections that may be open, and those that are; shared by all workers.
#[derive(Debug)]
pub struct Allowance {
    most: u32,
    /// `used <= most`
    used: CachePadded<AtomicU32>,
    /// Cores with sites that wait for one.
    lines: CachePadded<AtomicU32>,
}

impl Allowance {
    /// At most so many, one at least.
    pub fn new(most: usize) -> Allowance {
        let most = u32::try_from(most).unwrap_or(u32::MAX).max(1);
        let none = || CachePadded::new(AtomicU32::new(0));
        Allowance { most, used: none(), lines: none() }
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
        let taken = self.used.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| {
            (used < self.most).then_some(used + 1)
        });
        taken.is_ok()
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
    pub(super) fn is_wanted(&self) -> bool {
        self.lines.load(Ordering::Acquire) > 0
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

impl Default for Allowance {
    /// As many as there are numbers.
    fn default() -> Allowance {
        Allowance::new(usize::MAX)
    }
}
