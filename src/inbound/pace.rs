//! How fast a body must come.
//!
//! A body that trickles holds memory, a large one segments of the log as well.  So each has a rate
//! to keep on average after a time of grace, and a higher one while others wait for what it holds.

use std::time::{Duration, Instant};

use crate::limits;

/// A body that is on its way in.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    started: Instant,
    octets: u64,
}

impl Pace {
    /// Nothing of it has come.
    pub fn new(now: Instant) -> Pace {
        Pace { started: now, octets: 0 }
    }

    /// Counts what came.
    pub fn received(&mut self, octets: usize) {
        self.octets += octets as u64;
    }

    /// It was we who did not read for so long.
    pub fn excuse(&mut self, paused: Duration) {
        self.started += paused;
    }

    /// When it has been too slow if nothing more comes.
    pub fn deadline(&self) -> Instant {
        self.at(limits::UPLOAD_GRACE, limits::UPLOAD_RATE_LEAST)
    }

    /// The same while others wait for what it holds.
    pub fn deadline_pressed(&self) -> Instant {
        self.at(limits::UPLOAD_GRACE_PRESSED, limits::UPLOAD_RATE_PRESSED)
    }

    fn at(&self, grace: Duration, octets_a_second: u64) -> Instant {
        self.started + grace + Duration::from_secs(self.octets / octets_a_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_earns_time() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert_eq!(pace.deadline(), now + limits::UPLOAD_GRACE);
        assert_eq!(pace.deadline_pressed(), now + limits::UPLOAD_GRACE_PRESSED);
        pace.received(64 * 1024);
        assert_eq!(pace.deadline(), now + limits::UPLOAD_GRACE + Duration::from_secs(64));
        let pressed = limits::UPLOAD_GRACE_PRESSED + Duration::from_secs(8);
        assert_eq!(pace.deadline_pressed(), now + pressed);
        pace.excuse(Duration::from_secs(7));
        assert_eq!(pace.deadline_pressed(), now + pressed + Duration::from_secs(7));
    }
}
