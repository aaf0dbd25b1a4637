//! How many sessions there are, in all, by client address and by network, and how fast new ones
//! come; shared by all workers.
//!
//! A connection costs a handful of locks that workers seldom meet at.  The counts are as many as
//! there are sessions; the rates stand in bounded tables that forget who has been quiet.  Whoever is
//! refused has taken nothing but, of the rates, what was asked before.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::config::Limits;
use crate::peers::allowances::Allowances;
use crate::peers::network::{Host, Network};
use crate::smtp::reply::Refusal;

/// See the module's text.
pub struct SessionCounts {
    sessions_max: usize,
    sessions: AtomicUsize,
    by_address: Shares<Host>,
    by_network: Option<Shares<Network>>,
    connections: Option<Allowances<()>>,
    connections_by_address: Option<Allowances<Host>>,
    connections_by_network: Option<Allowances<Network>>,
}

/// How many sessions each of many has, with a bound for each.
struct Shares<K> {
    each_max: usize,
    hasher: RandomState,
    shards: [Mutex<HashMap<K, usize>>; SHARDS],
}

/// Locks of a table, so that workers seldom meet.
const SHARDS: usize = 64;

/// One session's place in the counts; given back when dropped.
pub struct Admission {
    counts: Arc<SessionCounts>,
    address: Option<Host>,
    network: Option<Network>,
}

impl SessionCounts {
    /// Nobody is there yet.
    pub fn new(limits: &Limits) -> SessionCounts {
        SessionCounts {
            sessions_max: limits.sessions,
            sessions: AtomicUsize::new(0),
            by_address: Shares::new(limits.sessions_per_address),
            by_network: limits.sessions_per_network.map(Shares::new),
            connections: limits.connections.map(Allowances::new),
            connections_by_address: limits.connections_per_address.map(Allowances::new),
            connections_by_network: limits.connections_per_network.map(Allowances::new),
        }
    }

    /// Counts a client in; of `exempt` ones only the sum of all sessions.
    ///
    /// # Errors
    /// As [`SessionCounts::enter`] and [`Admission::claim`].
    pub fn admit(
        self: &Arc<Self>,
        client: IpAddr,
        exempt: bool,
        now: Instant,
    ) -> Result<Admission, Refusal> {
        let mut admission = self.enter()?;
        if !exempt {
            admission.claim(client, now)?;
        }
        Ok(admission)
    }

    /// Counts a connection in whose client is not known yet.
    ///
    /// # Errors
    /// `TooManySessions`.
    pub fn enter(self: &Arc<Self>) -> Result<Admission, Refusal> {
        if self.sessions.fetch_add(1, Ordering::Relaxed) >= self.sessions_max {
            self.sessions.fetch_sub(1, Ordering::Relaxed);
            return Err(Refusal::TooManySessions);
        }
        Ok(Admission { counts: self.clone(), address: None, network: None })
    }

    /// How many there are.
    pub fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }
}

impl Admission {
    /// Counts it for its client, an address that is not exempt, and for nobody else any more.
    ///
    /// The rates come first, of the narrow before the wide: who is too fast by himself takes nothing
    /// of what everybody has together.
    ///
    /// # Errors
    /// Which limit or rate it is over.
    pub fn claim(&mut self, client: IpAddr, now: Instant) -> Result<(), Refusal> {
        self.disclaim();
        let (host, network) = (Host::of(client), Network::of(client));
        let counts = &self.counts;
        if !may(&counts.connections_by_address, &host, now) {
            return Err(Refusal::TooManyConnectionsFromAddress);
        }
        if !may(&counts.connections_by_network, &network, now) {
            return Err(Refusal::TooManyConnectionsFromNetwork);
        }
        if !may(&counts.connections, &(), now) {
            return Err(Refusal::TooManyConnections);
        }
        if !counts.by_address.take(host) {
            return Err(Refusal::TooManySessionsFromAddress);
        }
        self.address = Some(host);
        if let Some(by_network) = &counts.by_network {
            if !by_network.take(network) {
                return Err(Refusal::TooManySessionsFromNetwork);
            }
            self.network = Some(network);
        }
        Ok(())
    }

    /// Counts it for no client, only among all sessions.
    pub fn disclaim(&mut self) {
        if let Some(address) = self.address.take() {
            self.counts.by_address.give_back(address);
        }
        if let (Some(network), Some(by_network)) = (self.network.take(), &self.counts.by_network) {
            by_network.give_back(network);
        }
    }
}

fn may<K: Hash + Eq + Clone>(rate: &Option<Allowances<K>>, key: &K, now: Instant) -> bool {
    rate.as_ref().is_none_or(|rate| rate.take(key, now))
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.counts.sessions.fetch_sub(1, Ordering::Relaxed);
        self.disclaim();
    }
}

impl<K: Hash + Eq + Copy> Shares<K> {
    fn new(each_max: usize) -> Shares<K> {
        let shards = std::array::from_fn(|_| Mutex::default());
        Shares { each_max, hasher: RandomState::new(), shards }
    }

    fn take(&self, key: K) -> bool {
        let mut shard = self.shard(key);
        let count = shard.entry(key).or_insert(0);
        let is_free = *count < self.each_max;
        *count += usize::from(is_free);
        is_free
    }

    fn give_back(&self, key: K) {
        let mut shard = self.shard(key);
        if let Some(count) = shard.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                shard.remove(&key);
            }
        }
    }

    fn shard(&self, key: K) -> MutexGuard<'_, HashMap<K, usize>> {
        let shard = self.hasher.hash_one(key) as usize % SHARDS;
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::units::{ByteSize, Rate};

    fn counts(limits: Limits) -> Arc<SessionCounts> {
        Arc::new(SessionCounts::new(&limits))
    }

    fn limits(sessions: usize, per_address: usize) -> Limits {
        Limits {
            message_size: ByteSize(1 << 20),
            recipients: 100,
            sessions,
            sessions_per_address: per_address,
            sessions_per_network: None,
            connections: None,
            connections_per_address: None,
            connections_per_network: None,
            received: 100,
            memory: None,
            messages_per_user: None,
            recipients_per_user: None,
            messages_per_address: None,
            recipients_per_address: None,
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_has_its_share_and_gives_it_back() {
        let (counts, now) = (counts(limits(3, 1)), Instant::now());
        let admit = |client, exempt| counts.admit(ip(client), exempt, now);
        let first = admit("192.0.2.1", false).map_err(|_| ()).unwrap();
        let second = admit("::ffff:192.0.2.1", false).err();
        assert_eq!(second, Some(Refusal::TooManySessionsFromAddress));
        assert_eq!(counts.sessions(), 1, "who is refused does not count");
        let exempt = [admit("192.0.2.1", true), admit("192.0.2.1", true)];
        assert!(exempt.iter().all(Result::is_ok));
        assert_eq!(admit("192.0.2.1", true).err(), Some(Refusal::TooManySessions));
        drop((first, exempt));
        assert_eq!(counts.sessions(), 0);
        assert!(admit("192.0.2.1", false).is_ok());
    }

    /// Which of a /64's addresses it uses is an IPv6 client's own choice.
    #[test]
    fn the_addresses_of_a_64_are_one_client() {
        let (counts, now) = (counts(limits(9, 1)), Instant::now());
        let admit = |client| counts.admit(ip(client), false, now);
        let first = admit("2001:db8::1").map_err(|_| ()).unwrap();
        assert_eq!(admit("2001:db8::2").err(), Some(Refusal::TooManySessionsFromAddress));
        let other = admit("2001:db8:0:1::1").map_err(|_| ()).unwrap();
        drop((first, other));
        assert!(admit("2001:db8::2").is_ok());
    }

    #[test]
    fn a_network_has_its_share_and_gives_it_back() {
        let limits = Limits { sessions_per_network: Some(2), ..limits(100, 10) };
        let (counts, now) = (counts(limits), Instant::now());
        let admit = |client| counts.admit(ip(client), false, now);
        let held = [admit("192.0.2.1"), admit("192.0.2.200")];
        assert!(held.iter().all(Result::is_ok));
        let too_many = Some(Refusal::TooManySessionsFromNetwork);
        for _ in 0..3 {
            assert_eq!(admit("192.0.2.3").err(), too_many);
        }
        assert!(admit("192.0.3.1").is_ok(), "the network beside it");
        drop(held);
        assert!(admit("192.0.2.3").is_ok());
        assert_eq!(counts.sessions(), 0);
        assert!(counts.by_address.shards.iter().all(|shard| shard.lock().unwrap().is_empty()));
        let _held = [admit("2001:db8::1"), admit("2001:db8::2")];
        assert_eq!(admit("2001:db8::3").err(), too_many);
    }

    #[test]
    fn a_session_counts_for_its_last_client_only() {
        let limits = Limits { sessions_per_network: Some(1), ..limits(100, 1) };
        let (counts, now) = (counts(limits), Instant::now());
        let mut admission = counts.enter().map_err(|_| ()).unwrap();
        assert!(counts.admit(ip("192.0.2.1"), false, now).is_ok(), "nobody is counted yet");
        assert_eq!(admission.claim(ip("192.0.2.1"), now), Ok(()));
        assert_eq!(admission.claim(ip("192.0.2.1"), now), Ok(()), "its own place is free for it");
        assert!(counts.admit(ip("192.0.2.1"), false, now).is_err());
        assert_eq!(admission.claim(ip("198.51.100.1"), now), Ok(()));
        assert!(counts.admit(ip("192.0.2.1"), false, now).is_ok());
        admission.disclaim();
        assert!(counts.admit(ip("198.51.100.1"), false, now).is_ok());
        drop(admission);
        assert_eq!(counts.sessions(), 0);
    }

    #[test]
    fn connections_come_no_faster_than_they_may() {
        let rate = |count| Some(Rate { count, period: Duration::from_secs(60) });
        let limits = Limits {
            connections_per_address: rate(2),
            connections_per_network: rate(3),
            connections: rate(5),
            ..limits(100, 100)
        };
        let (counts, now) = (counts(limits), Instant::now());
        let come = |client, seconds| {
            counts.admit(ip(client), false, now + Duration::from_secs(seconds)).err()
        };
        assert_eq!([come("192.0.2.1", 0), come("192.0.2.1", 0)], [None, None]);
        assert_eq!(come("192.0.2.1", 0), Some(Refusal::TooManyConnectionsFromAddress));
        assert_eq!(come("192.0.2.2", 0), None);
        assert_eq!(come("192.0.2.3", 0), Some(Refusal::TooManyConnectionsFromNetwork));
        assert_eq!([come("2001:db8::1", 0), come("2001:db8::2", 0)], [None, None]);
        let same = come("2001:db8::3", 0);
        assert_eq!(same, Some(Refusal::TooManyConnectionsFromAddress), "its /64 is one client");
        assert_eq!(come("198.51.100.1", 0), Some(Refusal::TooManyConnections));
        assert!(counts.admit(ip("198.51.100.1"), true, now).is_ok(), "an exempt one");
        assert_eq!(come("198.51.100.1", 12), None);
        assert_eq!(come("192.0.2.1", 31), None);
        assert_eq!(counts.sessions(), 0);
    }
}
