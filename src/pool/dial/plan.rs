//! In which order the addresses of a site are tried.
//!
//! Pure: clock, randomness and what the DNS says are arguments.  The hosts go by preference and at
//! random among equals (RFC 5321 section 5.1); a host's addresses alternate between IPv6 and IPv4,
//! at random within each family, since a cached answer has always the same one first (RFC 8305
//! section 4, in spirit).  Addresses that failed lately come after all others, whatever their
//! preference.  A preference's hosts are looked up when its turn comes, so that the slow DNS of a
//! back-up host delays nothing.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use fastrand::Rng;

use super::health::HostHealth;
use crate::dns::mail::{MailHost, usable};
use crate::dns::{Addresses, LookupError, Name};

/// The way through a site's addresses.
#[derive(Debug)]
pub struct DialPlan {
    hosts: Vec<Host>,
    port: u16,
    /// Only addresses of this one's family can be reached from it.
    source: Option<IpAddr>,
    /// The first host whose addresses have not been queued.
    next_host: usize,
    /// Addresses to be tried.
    queued: VecDeque<Target>,
    /// Those that failed lately and when they did, for the end.
    avoided: Vec<(Instant, Target)>,
    /// All that were queued or put off, so that none is tried twice.
    seen: Vec<SocketAddr>,
    tried: usize,
}

/// One address to be tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where.
    pub address: SocketAddr,
    /// Whose it is.
    pub host: Box<str>,
    /// That host's preference.
    pub preference: u16,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DialStep {
    /// These hosts' addresses are needed; [`DialPlan::looked_up`] takes each.
    LookUp(Vec<Name>),
    /// Try this one.
    Connect(Target),
    /// There is no address left.
    Exhausted,
}

#[derive(Debug)]
struct Host {
    preference: u16,
    name: Box<str>,
    addresses: Vec<IpAddr>,
    /// To be asked for before the addresses count.
    unknown: Option<Name>,
}

impl DialPlan {
    /// A plan for `hosts`, which are in the order of their preference.
    pub fn new(
        hosts: &[MailHost],
        port: u16,
        source: Option<IpAddr>,
        now: Instant,
        rng: &mut Rng,
    ) -> DialPlan {
        let mut hosts: Vec<Host> = hosts.iter().map(|host| Host::of(host, now)).collect();
        for equals in hosts.chunk_by_mut(|one, other| one.preference == other.preference) {
            rng.shuffle(equals);
        }
        DialPlan {
            hosts,
            port,
            source,
            next_host: 0,
            queued: VecDeque::new(),
            avoided: Vec::new(),
            seen: Vec::new(),
            tried: 0,
        }
    }

    /// What to do next.
    pub fn next(&mut self, health: &HostHealth, now: Instant, rng: &mut Rng) -> DialStep {
        if self.tried >= ADDRESSES_MAX {
            return DialStep::Exhausted;
        }
        loop {
            if let Some(target) = self.queued.pop_front() {
                self.tried += 1;
                return DialStep::Connect(target);
            }
            let group = self.next_group();
            let names = self.hosts[group.clone()].iter().filter_map(|host| host.unknown.clone());
            let unknown: Vec<Name> = names.collect();
            if !unknown.is_empty() {
                return DialStep::LookUp(unknown);
            }
            if group.is_empty() {
                if self.avoided.is_empty() {
                    return DialStep::Exhausted;
                }
                self.queue_avoided();
            }
            for host in group.clone() {
                self.queue_host(host, health, now, rng);
            }
            self.next_host = group.end;
        }
    }

    /// Whether an address of the same preference as the last is still to be tried.
    pub fn has_equal(&self) -> bool {
        !self.queued.is_empty()
    }

    /// What the DNS says about a host that was to be looked up.  Where it could not say, what was
    /// known of the host still counts.
    pub fn looked_up(&mut self, name: &Name, found: &Addresses) {
        for host in &mut self.hosts {
            if host.unknown.as_ref() != Some(name) {
                continue;
            }
            host.unknown = None;
            match &found.result {
                Ok(addresses) => host.addresses = usable(addresses),
                Err(LookupError::NoName | LookupError::NoData) => host.addresses.clear(),
                Err(LookupError::Temporary { .. }) => {}
            }
        }
    }

    /// The hosts of the next preference; none when all have been queued.
    fn next_group(&self) -> std::ops::Range<usize> {
        let rest = &self.hosts[self.next_host..];
        let equals = rest.iter().take_while(|host| host.preference == rest[0].preference).count();
        self.next_host..self.next_host + equals
    }

    fn queue_host(&mut self, place: usize, health: &HostHealth, now: Instant, rng: &mut Rng) {
        let host = &self.hosts[place];
        for address in interleaved(&host.addresses, rng) {
            let address = SocketAddr::new(address, self.port);
            let reachable = self.source.is_none_or(|source| source.is_ipv4() == address.is_ipv4());
            if !reachable || self.seen.contains(&address) {
                continue;
            }
            self.seen.push(address);
            let target = Target { address, host: host.name.clone(), preference: host.preference };
            match health.avoided_since(address, now) {
                None => self.queued.push_back(target),
                Some(failed) => self.avoided.push((failed, target)),
            }
        }
    }

    /// Now also those that failed lately, the one whose last failure is oldest first: each has its
    /// turn, however long it is avoided.
    fn queue_avoided(&mut self) {
        self.avoided.sort_by_key(|(failed, _)| *failed);
        self.queued.extend(self.avoided.drain(..).map(|(_, target)| target));
    }
}

impl Host {
    fn of(host: &MailHost, now: Instant) -> Host {
        let is_known = now < host.expires && !host.addresses.is_empty();
        let is_literal = host.name.parse::<IpAddr>().is_ok();
        let unknown = if is_known || is_literal { None } else { Name::parse(&host.name) };
        Host {
            preference: host.preference,
            name: host.name.clone(),
            addresses: host.addresses.clone(),
            unknown,
        }
    }
}

/// IPv6 first, then one of each family in turn, at random within a family.
fn interleaved(addresses: &[IpAddr], rng: &mut Rng) -> Vec<IpAddr> {
    let (mut v6, mut v4): (Vec<IpAddr>, Vec<IpAddr>) =
        addresses.iter().partition(|address| address.is_ipv6());
    rng.shuffle(&mut v6);
    rng.shuffle(&mut v4);
    let rounds = v6.len().max(v4.len());
    (0..rounds).flat_map(|round| [v6.get(round), v4.get(round)]).flatten().copied().collect()
}

/// Addresses that one dial tries; what is left has its turn when those are avoided.
const ADDRESSES_MAX: usize = 16;

#[cfg(test)]
mod tests;
