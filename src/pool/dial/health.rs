//! Which addresses of a site have failed lately.
//!
//! Pure; one for each site, shared by its cores behind a lock that is taken a few times a
//! connection.  It only orders the attempts: an address that has failed is tried after all others,
//! never not at all, so nothing here can cut a site off.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The addresses of one site that have failed, and until when they come last.
#[derive(Debug, Default)]
pub struct HostHealth {
    failing: HashMap<SocketAddr, Failing>,
}

#[derive(Debug, Clone, Copy)]
struct Failing {
    avoid_until: Instant,
    pause: Duration,
    /// When it failed last, within the pause or not.
    failed: Instant,
}

impl HostHealth {
    /// No connection came about, or the peer did not greet well.
    ///
    /// The first failure counts for a minute, each one after the pause is over for twice as long
    /// as the last, an hour at most.  Failures within the pause are those of connections that were
    /// begun together, and count once.
    pub fn failed(&mut self, address: SocketAddr, now: Instant) {
        let pause = match self.failing.get_mut(&address) {
            Some(failing) if now < failing.avoid_until => return failing.failed = now,
            Some(failing) if now < failing.avoid_until + PAUSE_MAX => failing.pause * 2,
            _ => PAUSE_MIN,
        };
        if self.failing.len() >= ADDRESSES_MAX && !self.failing.contains_key(&address) {
            self.forget_oldest();
        }
        let pause = pause.min(PAUSE_MAX);
        self.failing.insert(address, Failing { avoid_until: now + pause, pause, failed: now });
    }

    /// One that has failed is avoided at least until then.
    pub fn avoid_at_least(&mut self, address: SocketAddr, until: Instant) {
        if let Some(failing) = self.failing.get_mut(&address) {
            failing.avoid_until = failing.avoid_until.max(until);
        }
    }

    /// The peer has greeted well: it is as good as any.
    pub fn succeeded(&mut self, address: SocketAddr) {
        self.failing.remove(&address);
    }

    /// When the address is no longer to come last, if it is to now.
    pub fn avoid_until(&self, address: SocketAddr, now: Instant) -> Option<Instant> {
        self.failing.get(&address).map(|failing| failing.avoid_until).filter(|until| now < *until)
    }

    /// When the address failed last, if it is to come last now.
    pub fn avoided_since(&self, address: SocketAddr, now: Instant) -> Option<Instant> {
        let failing = self.failing.get(&address).filter(|failing| now < failing.avoid_until);
        failing.map(|failing| failing.failed)
    }

    /// The addresses that come last now, for people.
    pub fn avoided(&self, now: Instant) -> Vec<(SocketAddr, Duration)> {
        let left = |(address, failing): (&SocketAddr, &Failing)| {
            (*address, failing.avoid_until.saturating_duration_since(now))
        };
        let mut avoided: Vec<_> = self.failing.iter().map(left).collect();
        avoided.retain(|(_, left)| !left.is_zero());
        avoided.sort_unstable();
        avoided
    }

    fn forget_oldest(&mut self) {
        let oldest = self.failing.iter().min_by_key(|(_, failing)| failing.avoid_until);
        if let Some(address) = oldest.map(|(address, _)| *address) {
            self.failing.remove(&address);
        }
    }
}

const PAUSE_MIN: Duration = Duration::from_secs(60);
const PAUSE_MAX: Duration = Duration::from_secs(3_600);
/// More than a site's hosts have addresses that one dial would try.
const ADDRESSES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], last))
    }

    #[test]
    fn the_pause_doubles_up_to_an_hour() {
        let (mut health, mut now) = (HostHealth::default(), Instant::now());
        let mut minutes = Vec::new();
        for _ in 0..8 {
            health.failed(address(25), now);
            let until = health.avoid_until(address(25), now).expect("it has failed");
            minutes.push((until - now).as_secs() / 60);
            now = until;
            assert_eq!(health.avoid_until(address(25), now), None);
        }
        assert_eq!(minutes, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn failures_of_one_moment_count_once() {
        let (mut health, now) = (HostHealth::default(), Instant::now());
        for _ in 0..20 {
            health.failed(address(25), now);
        }
        assert_eq!(health.avoid_until(address(25), now), Some(now + PAUSE_MIN));
    }

    #[test]
    fn who_failed_last_is_told_within_the_pause_too() {
        let (mut health, now) = (HostHealth::default(), Instant::now());
        let second = Duration::from_secs(1);
        health.failed(address(25), now);
        health.failed(address(25), now + second);
        assert_eq!(health.avoided_since(address(25), now + second), Some(now + second));
        assert_eq!(health.avoided_since(address(25), now + PAUSE_MIN), None);
        health.avoid_at_least(address(25), now + PAUSE_MIN * 5);
        assert_eq!(health.avoided_since(address(25), now + PAUSE_MIN), Some(now + second));
        health.avoid_at_least(address(26), now + PAUSE_MIN);
        assert_eq!(health.avoid_until(address(26), now), None, "it has not failed");
    }

    #[test]
    fn success_and_time_heal() {
        let (mut health, now) = (HostHealth::default(), Instant::now());
        health.failed(address(25), now);
        health.succeeded(address(25));
        assert_eq!(health.avoid_until(address(25), now), None);
        health.failed(address(26), now);
        let later = now + PAUSE_MIN + PAUSE_MAX;
        health.failed(address(26), later);
        assert_eq!(health.avoid_until(address(26), later), Some(later + PAUSE_MIN));
    }

    #[test]
    fn the_map_is_bounded() {
        let (mut health, now) = (HostHealth::default(), Instant::now());
        for port in 0..2_000 {
            health.failed(address(port), now + Duration::from_millis(port.into()));
        }
        assert_eq!(health.failing.len(), ADDRESSES_MAX);
        assert!(health.failing.contains_key(&address(1_999)));
    }
}
