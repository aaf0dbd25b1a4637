//! How connections to a site are made: to which hosts, from which address, in which protocol.
//!
//! One for each site, shared by its cores.  The locks in here are taken a few times a connection
//! and once a resolution, never for a message.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::auth::SmartHostLogin;
use crate::config::Target;
use crate::dns::mail::{MailHost, fixed_host};
use crate::dns::{Addresses, Name};
use crate::pool::dial::{self, HostHealth};
use crate::smtp::client::Protocol;
use crate::tls::TlsPolicy;

/// See the module's text.
#[derive(Debug)]
pub struct Reach {
    /// Where the mail goes, as the route says.
    pub target: Target,
    /// The address that connections are made from.
    pub source: Option<IpAddr>,
    /// How connections are encrypted; see [`Reach::with_tls`].
    pub tls: TlsPolicy,
    /// What connections log in with; see [`Reach::with_login`].
    pub login: Option<Arc<SmartHostLogin>>,
    /// The port of its hosts; 0 where there are none.
    pub port: u16,
    /// Which addresses have failed lately.
    pub health: Mutex<HostHealth>,
    hosts: Mutex<Arc<[MailHost]>>,
    /// Hosts that did not take the queue's connections since one did.
    failures: AtomicU32,
    /// The addresses of connections that have shown themselves well, and how many lead to each;
    /// bounded by the site's connections.
    serving: Arc<Mutex<Connections>>,
}

/// How many connections lead to each address.
type Connections = HashMap<SocketAddr, u32>;

impl Reach {
    /// The way to a target that names its next hop, or needs none.
    pub fn fixed(target: &Target, source: Option<IpAddr>) -> Reach {
        let (host, port) = match target {
            Target::Smtp { host, port }
            | Target::Smtps { host, port }
            | Target::Lmtp { host, port } => (fixed_host(&host.to_string(), Instant::now()), *port),
            _ => (None, 0),
        };
        Reach::to_hosts(target.clone(), source, host.into_iter().collect(), port)
    }

    /// The way to mail exchangers.
    pub fn to_hosts(
        target: Target,
        source: Option<IpAddr>,
        hosts: Arc<[MailHost]>,
        port: u16,
    ) -> Reach {
        Reach {
            target,
            source,
            tls: TlsPolicy::Off,
            login: None,
            port,
            health: Mutex::default(),
            hosts: Mutex::new(hosts),
            failures: AtomicU32::new(0),
            serving: Arc::default(),
        }
    }

    /// The same with connections encrypted so.
    pub fn with_tls(self, tls: TlsPolicy) -> Reach {
        Reach { tls, ..self }
    }

    /// The same with connections that log in so.
    pub fn with_login(self, login: Option<Arc<SmartHostLogin>>) -> Reach {
        Reach { login, ..self }
    }

    /// What is spoken there; `None` where mail goes without a peer.
    pub fn protocol(&self) -> Option<Protocol> {
        match self.target {
            Target::Mx | Target::Smtp { .. } | Target::Smtps { .. } => Some(Protocol::Smtp),
            Target::Lmtp { .. } | Target::LmtpUnix { .. } => Some(Protocol::Lmtp),
            Target::Maildir(_) | Target::Discard | Target::Hold | Target::Reject { .. } => None,
        }
    }

    /// Its hosts by preference, with what is known of their addresses.
    pub fn hosts(&self) -> Arc<[MailHost]> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same hosts, with what is known now of their addresses.
    pub fn renew(&self, hosts: Arc<[MailHost]>) {
        *self.hosts.lock().unwrap_or_else(PoisonError::into_inner) = hosts;
    }

    /// What a dial has looked up, which is what [`Reach::pass_over`] judges by: the hosts
    /// themselves are renewed only as often as their domain is asked for, and the next hop of a
    /// route that names one never.
    pub fn learn(&self, name: &Name, found: &Addresses) {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut learned = hosts.to_vec();
        let same = learned.iter_mut().filter(|host| *host.name == *name.as_str());
        same.for_each(|host| host.learn(found));
        *hosts = learned.into();
    }

    /// A host did not take us; tells whether another one is known that has not failed lately.  For
    /// those that bound themselves how many they try; the queue asks [`Reach::host_failed`].
    pub fn pass_over(&self, address: SocketAddr, now: Instant) -> bool {
        let mut health = dial::lock(&self.health);
        health.failed(address, now);
        let fits = |ip: &IpAddr| self.source.is_none_or(|source| source.is_ipv4() == ip.is_ipv4());
        let hosts = self.hosts();
        // Also those that have run out: whoever dials asks for them anew, and what became of them
        // is found there.
        let mut known = hosts.iter().flat_map(|host| &host.addresses).copied().filter(fits);
        known.any(|ip| health.avoid_until(SocketAddr::new(ip, self.port), now).is_none())
    }

    /// A host did not take a connection of the queue; tells whether another one is to be tried at
    /// once.
    pub fn host_failed(&self, address: SocketAddr, now: Instant) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        // Whatever the addresses do, this comes to an end and the site to its rest.
        let goes_on = self.pass_over(address, now) && failures < HOSTS_AT_ONCE;
        if !goes_on {
            self.failures.store(0, Ordering::Relaxed);
        }
        goes_on
    }

    /// The site rests until then because of this host.  If another one's addresses could not be
    /// looked up, it is asked for before this one has its next turn: else a host that connects and
    /// then refuses would hide the others for ever.
    pub fn rests(&self, address: SocketAddr, until: Instant) {
        if self.hosts().iter().any(|host| host.addresses.is_empty()) {
            dial::lock(&self.health).avoid_at_least(address, until + AVOIDED_AFTER_REST);
        }
    }

    /// A host did not take us while others serve the site; it is avoided unless it is one of
    /// them.
    pub fn host_refused(&self, address: SocketAddr, now: Instant) {
        if !self.serves(address) {
            dial::lock(&self.health).failed(address, now);
        }
    }

    /// A host has had its word on a message: not at its greeting, since one that greets and then
    /// drops every transaction is not well.  It serves until the value is dropped.
    pub fn host_succeeded(&self, address: SocketAddr) -> Serving {
        self.failures.store(0, Ordering::Relaxed);
        dial::lock(&self.health).succeeded(address);
        *lock(&self.serving).entry(address).or_default() += 1;
        Serving { among: self.serving.clone(), address }
    }

    /// Whether a connection to this address stands that has shown itself well.
    pub fn serves(&self, address: SocketAddr) -> bool {
        lock(&self.serving).contains_key(&address)
    }
}

/// A connection whose host has had its word on a message.
#[derive(Debug)]
pub struct Serving {
    among: Arc<Mutex<Connections>>,
    address: SocketAddr,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let mut among = lock(&self.among);
        if let Some(count) = among.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                among.remove(&self.address);
            }
        }
    }
}

fn lock(serving: &Mutex<Connections>) -> MutexGuard<'_, Connections> {
    serving.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hosts that are tried one after the other, whatever their addresses come to: by the queue before a
/// site rests, and by one session that waits.
pub const HOSTS_AT_ONCE: u32 = 16;
/// How long after a rest the host that led to it still comes last, if another one is unknown.
const AVOIDED_AFTER_REST: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(hosts: &[(&str, Instant)]) -> Reach {
        let host = |&(address, expires): &(&str, Instant)| MailHost {
            preference: 10,
            name: address.into(),
            addresses: vec![address.parse().expect("an address")],
            expires,
            authentic: false,
        };
        Reach::to_hosts(Target::Mx, None, hosts.iter().map(host).collect(), 25)
    }

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 25))
    }

    #[test]
    fn the_next_host_is_tried_until_none_is_left() {
        let now = Instant::now();
        let later = now + Duration::from_secs(60);
        let reach = reach(&[("192.0.2.1", later), ("192.0.2.2", later), ("192.0.2.3", now)]);
        assert!(reach.host_failed(at(1), now), "the second one is left");
        assert!(reach.host_failed(at(2), now), "what is known of the third one has run out");
        assert!(!reach.host_failed(at(3), now));
        reach.host_succeeded(at(2));
        assert!(reach.host_failed(at(1), now));
    }

    #[test]
    fn a_host_that_serves_is_not_avoided_for_refusing_more() {
        let now = Instant::now();
        let reach = reach(&[("192.0.2.1", now), ("192.0.2.2", now)]);
        let is_avoided = |last| dial::lock(&reach.health).avoid_until(at(last), now).is_some();
        let serving = [reach.host_succeeded(at(2)), reach.host_succeeded(at(2))];
        (1..=2).for_each(|last| reach.host_refused(at(last), now));
        assert!(is_avoided(1) && !is_avoided(2));
        let [one, other] = serving;
        drop(one);
        assert!(reach.serves(at(2)));
        drop(other);
        assert!(!reach.serves(at(2)));
        reach.host_refused(at(2), now);
        assert!(is_avoided(2));
    }

    fn found(addresses: &[&str], expires: Instant) -> Addresses {
        let addresses = addresses.iter().map(|address| address.parse().expect("an address"));
        Addresses { result: Ok(addresses.collect()), authentic: false, expires }
    }

    #[test]
    fn a_next_hop_with_a_name_has_the_addresses_that_its_dial_found() {
        let (now, name) = (Instant::now(), Name::parse("relay.test").expect("a name"));
        let target = Target::parse("smtp://relay.test", std::path::Path::new("/"));
        let reach = Reach::fixed(&target.expect("a target"), None);
        assert!(!reach.host_failed(at(1), now), "no other one is known");
        // It expires at once, which is the business of the next dial.
        reach.learn(&name, &found(&["192.0.2.1", "0.0.0.0", "::ffff:192.0.2.2"], now));
        assert_eq!(reach.hosts()[0].addresses, [at(1).ip(), at(2).ip()]);
        assert!(reach.host_failed(at(1), now), "the second one is left");
        assert!(!reach.host_failed(at(2), now));
        // Nobody can say: what was known stands.
        let result = Err(crate::dns::LookupError::Temporary { why: "silence".into() });
        reach.learn(&name, &Addresses { result, authentic: false, expires: now });
        assert_eq!(reach.hosts()[0].addresses.len(), 2);
        let result = Err(crate::dns::LookupError::NoData);
        reach.learn(&name, &Addresses { result, authentic: false, expires: now });
        assert_eq!(reach.hosts()[0].addresses.len(), 0);
    }

    #[test]
    fn a_host_that_leads_to_a_rest_comes_after_one_that_could_not_be_looked_up() {
        let now = Instant::now();
        let rest = now + Duration::from_secs(900);
        let avoided = |reach: &Reach| dial::lock(&reach.health).avoid_until(at(1), rest).is_some();
        let reach = reach(&[("192.0.2.1", now), ("192.0.2.2", now)]);
        reach.host_failed(at(1), now);
        reach.rests(at(1), rest);
        assert!(!avoided(&reach), "both are known, and have their turn by preference");
        let hosts = reach.hosts();
        let mut hosts = hosts.to_vec();
        hosts[1].addresses.clear();
        reach.renew(hosts.into());
        reach.rests(at(1), rest);
        assert!(avoided(&reach));
    }

    #[test]
    fn hosts_that_change_their_addresses_do_not_keep_a_site_busy_for_ever() {
        let now = Instant::now();
        let reach = reach(&[("192.0.2.1", now + Duration::from_secs(60))]);
        let tried = (100..200).take_while(|&last| reach.host_failed(at(last), now)).count();
        assert_eq!(tried as u32, HOSTS_AT_ONCE - 1);
    }

    #[test]
    fn sessions_that_wait_do_not_use_up_what_the_queue_may_try() {
        let now = Instant::now();
        let reach = reach(&[("192.0.2.1", now), ("192.0.2.2", now)]);
        assert!((0..100).all(|_| reach.pass_over(at(1), now)), "the second one is left");
        assert!(reach.host_failed(at(1), now), "the queue has tried none yet");
        assert!(!reach.pass_over(at(2), now));
    }

    #[test]
    fn every_target_with_a_peer_has_a_protocol_and_a_host() {
        let target = |text: &str| Target::parse(text, std::path::Path::new("/")).expect("a target");
        for (text, protocol, port) in [
            ("smtp://192.0.2.1", Some(Protocol::Smtp), 25),
            ("smtp://mx.example:26", Some(Protocol::Smtp), 26),
            ("smtp://[2001:db8::1]:26", Some(Protocol::Smtp), 26),
            ("lmtp://localhost:24", Some(Protocol::Lmtp), 24),
            ("lmtp+unix:/run/lmtp", Some(Protocol::Lmtp), 0),
            ("discard", None, 0),
        ] {
            let reach = Reach::fixed(&target(text), None);
            assert_eq!((reach.protocol(), reach.port), (protocol, port), "{text}");
            assert_eq!(reach.hosts().len(), usize::from(port != 0), "{text}");
        }
    }
}
