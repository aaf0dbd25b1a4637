//! What keeps guessing slow and sending within its rates: failures by address and by user, and
//! messages and recipients in a time by address and by user.
//!
//! Pure but for the locks of its bounded tables; time is an argument.
//!
//! Failures: five are free, then each one more closes the door for twice as long, to a quarter of
//! an hour for an address and a minute for a user.  The user's door stays open to an address from
//! which that user has logged in of late, so that a stranger cannot lock anybody out.  Rates are
//! [`Allowances`].

use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::limits;
use crate::peers::allowances::Allowances;
use crate::peers::lapsing::{Lapses, Table};
use crate::peers::network::Host;

/// Failed logins, for all workers.
pub struct Failures {
    by_address: Table<Host, Strikes>,
    by_user: Table<Arc<str>, Strikes>,
    /// Where users have logged in.
    at_home: Table<(Arc<str>, Host), Visit>,
}

struct Strikes {
    count: u32,
    closed_until: Instant,
    forgotten: Instant,
}

struct Visit(Instant);

impl Lapses for Strikes {
    fn lapses(&self) -> Instant {
        self.forgotten
    }
}

impl Lapses for Visit {
    fn lapses(&self) -> Instant {
        self.0
    }
}

/// Failures that cost nothing but the wait for the reply.
const FREE_FAILURES: u32 = 5;
/// What the first failure beyond them costs; it doubles with each.
const FIRST_WAIT: Duration = Duration::from_secs(2);
const ADDRESS_WAIT_MAX: Duration = Duration::from_secs(15 * 60);
const USER_WAIT_MAX: Duration = Duration::from_secs(60);
/// Failures are forgotten so long after the last one.
const MEMORY: Duration = Duration::from_secs(60 * 60);
/// A login is remembered so long.
const HOME: Duration = Duration::from_secs(7 * 24 * 60 * 60);

impl Default for Failures {
    fn default() -> Failures {
        Failures {
            by_address: Table::new(limits::PEERS_REMEMBERED),
            by_user: Table::new(limits::PEERS_REMEMBERED),
            at_home: Table::new(limits::PEERS_REMEMBERED),
        }
    }
}

impl Failures {
    /// Whether this address may try at all now.
    pub fn admits_address(&self, address: IpAddr, now: Instant) -> bool {
        let open = |strikes: &Strikes| strikes.closed_until <= now;
        self.by_address.read(&Host::of(address), open).unwrap_or(true)
    }

    /// Whether somebody at this address may try to be `user` now.
    pub fn admits_user(&self, user: &str, address: IpAddr, now: Instant) -> bool {
        let user: Arc<str> = user.into();
        let open = |strikes: &Strikes| strikes.closed_until <= now;
        let is_open = self.by_user.read(&user, open).unwrap_or(true);
        is_open || self.is_at_home(user, address, now)
    }

    /// A login failed.
    pub fn failed(&self, user: Option<&str>, address: IpAddr, now: Instant) {
        strike(&self.by_address, &Host::of(address), ADDRESS_WAIT_MAX, now);
        let Some(user) = user.map(Arc::<str>::from) else { return };
        strike(&self.by_user, &user, USER_WAIT_MAX, now);
    }

    /// A login succeeded.  The address keeps its failures: else one account of his own would let a
    /// guesser go on for ever.
    pub fn succeeded(&self, user: &str, address: IpAddr, now: Instant) {
        let user: Arc<str> = user.into();
        self.by_user.remove(&user);
        let until = now + HOME;
        let key = (user, Host::of(address));
        self.at_home.change(&key, now, || Visit(until), |visit| visit.0 = until);
    }

    fn is_at_home(&self, user: Arc<str>, address: IpAddr, now: Instant) -> bool {
        let known = |visit: &Visit| visit.0 > now;
        self.at_home.read(&(user, Host::of(address)), known).unwrap_or(false)
    }
}

fn strike<K: Hash + Eq + Clone>(
    table: &Table<K, Strikes>,
    key: &K,
    wait_max: Duration,
    now: Instant,
) {
    let fresh = || Strikes { count: 0, closed_until: now, forgotten: now };
    table.change(key, now, fresh, |strikes| {
        if strikes.forgotten <= now {
            strikes.count = 0;
        }
        strikes.count = strikes.count.saturating_add(1);
        strikes.forgotten = now + MEMORY;
        if let Some(beyond) = strikes.count.checked_sub(FREE_FAILURES + 1) {
            let wait = FIRST_WAIT.saturating_mul(1 << beyond.min(16)).min(wait_max);
            strikes.closed_until = now + wait;
        }
    });
}

/// The rates of `[limits]`, as far as they are set.
pub struct Rates {
    messages_per_user: Option<Allowances<Arc<str>>>,
    recipients_per_user: Option<Allowances<Arc<str>>>,
    messages_per_address: Option<Allowances<Host>>,
    recipients_per_address: Option<Allowances<Host>>,
}

impl Rates {
    /// Nothing is spent yet.
    pub fn new(limits: &crate::config::Limits) -> Rates {
        Rates {
            messages_per_user: limits.messages_per_user.map(Allowances::new),
            recipients_per_user: limits.recipients_per_user.map(Allowances::new),
            messages_per_address: limits.messages_per_address.map(Allowances::new),
            recipients_per_address: limits.recipients_per_address.map(Allowances::new),
        }
    }

    /// Whether a message may be begun; it counts from MAIL on, for its user and its address as far
    /// as they are given.
    pub fn message(&self, user: Option<&str>, address: Option<IpAddr>, now: Instant) -> bool {
        let (users, addresses) = (&self.messages_per_user, &self.messages_per_address);
        take(users, addresses, user, address, now)
    }

    /// Whether one more recipient may be named.
    pub fn recipient(&self, user: Option<&str>, address: Option<IpAddr>, now: Instant) -> bool {
        let (users, addresses) = (&self.recipients_per_user, &self.recipients_per_address);
        take(users, addresses, user, address, now)
    }
}

fn take(
    users: &Option<Allowances<Arc<str>>>,
    addresses: &Option<Allowances<Host>>,
    user: Option<&str>,
    address: Option<IpAddr>,
    now: Instant,
) -> bool {
    let of_user = match (users, user) {
        (Some(users), Some(user)) => users.take(&user.into(), now),
        _ => true,
    };
    let of_address = || match (addresses, address) {
        (Some(addresses), Some(address)) => addresses.take(&Host::of(address), now),
        _ => true,
    };
    of_user && of_address()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOME_ADDRESS: &str = "192.0.2.1";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn guessing_becomes_slow_and_is_forgiven() {
        let failures = Failures::default();
        let mut now = Instant::now();
        for _ in 0..FREE_FAILURES {
            failures.failed(Some("a"), ip("203.0.113.1"), now);
            assert!(failures.admits_address(ip("203.0.113.1"), now));
            assert!(failures.admits_user("a", ip("203.0.113.1"), now));
        }
        let mut waits = Vec::new();
        for _ in 0..12 {
            failures.failed(Some("a"), ip("203.0.113.1"), now);
            let mut wait = 0;
            while !failures.admits_address(ip("203.0.113.1"), now + Duration::from_secs(wait)) {
                wait += 1;
            }
            waits.push(wait);
            now += Duration::from_secs(wait);
        }
        assert_eq!(waits, [2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900]);
        assert!(failures.admits_address(ip("203.0.113.2"), now), "a neighbour");
        failures.failed(None, ip("203.0.113.1"), now + MEMORY);
        assert!(failures.admits_address(ip("203.0.113.1"), now + MEMORY));
    }

    #[test]
    fn a_stranger_cannot_lock_a_user_out_at_home() {
        let failures = Failures::default();
        let now = Instant::now();
        failures.succeeded("a", ip(HOME_ADDRESS), now);
        for _ in 0..10 {
            failures.failed(Some("a"), ip("203.0.113.1"), now);
        }
        assert!(!failures.admits_user("a", ip("198.51.100.1"), now));
        assert!(failures.admits_user("a", ip(HOME_ADDRESS), now));
        assert!(failures.admits_user("b", ip("198.51.100.1"), now));
        assert!(failures.admits_user("a", ip("198.51.100.1"), now + USER_WAIT_MAX));
    }

    #[test]
    fn an_ipv6_client_is_its_whole_network() {
        let failures = Failures::default();
        let now = Instant::now();
        for host in 1..=10 {
            failures.failed(None, ip(&format!("2001:db8::{host:x}")), now);
        }
        assert!(!failures.admits_address(ip("2001:db8::ffff"), now));
        assert!(failures.admits_address(ip("2001:db8:0:1::1"), now));
    }

    #[test]
    fn a_flood_of_names_fills_no_memory() {
        let failures = Failures::default();
        let now = Instant::now();
        for user in 0..2 * limits::PEERS_REMEMBERED {
            failures.failed(Some(&user.to_string()), ip("203.0.113.1"), now);
        }
        assert!(failures.by_user.len() <= limits::PEERS_REMEMBERED);
    }
}
