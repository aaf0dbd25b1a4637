//! How connections to a site are made: to which hosts, from which address, in which protocol.
//!
//! One for each site, shared by its cores.  The locks in here are taken a few times a connection
//! and once a resolution, never for a message.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::auth::SmartHostLogin;
use crate::config::Target;
use crate::dns::mail::{MailHost, fixed_host};
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
    /// Hosts that did not take us since one did.
    failures: AtomicU32,
}

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

    /// A host did not take us; tells whether another one is known that has not failed lately, and
    /// is to be tried at once.
    pub fn host_failed(&self, address: SocketAddr, now: Instant) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let mut health = dial::lock(&self.health);
        health.failed(address, now);
        let fits = |ip: &IpAddr| self.source.is_none_or(|source| source.is_ipv4() == ip.is_ipv4());
        let hosts = self.hosts();
        // Addresses that have run out are asked for anew by whoever dials, and may be others.
        let stand = hosts.iter().filter(|host| host.expires > now);
        let mut known = stand.flat_map(|host| &host.addresses).copied().filter(fits);
        let is_left =
            known.any(|ip| health.avoid_until(SocketAddr::new(ip, self.port), now).is_none());
        // Whatever the addresses do, this comes to an end and the site to its rest.
        let goes_on = is_left && failures < HOSTS_AT_ONCE;
        if !goes_on {
            self.failures.store(0, Ordering::Relaxed);
        }
        goes_on
    }

    /// A host has greeted us well.
    pub fn host_succeeded(&self, address: SocketAddr) {
        self.failures.store(0, Ordering::Relaxed);
        dial::lock(&self.health).succeeded(address);
    }
}

/// Hosts that are tried one after the other before a site rests.
const HOSTS_AT_ONCE: u32 = 16;

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
        assert!(!reach.host_failed(at(2), now), "what is known of the third one has run out");
        reach.host_succeeded(at(2));
        assert!(reach.host_failed(at(1), now));
    }

    #[test]
    fn hosts_that_change_their_addresses_do_not_keep_a_site_busy_for_ever() {
        let now = Instant::now();
        let reach = reach(&[("192.0.2.1", now + Duration::from_secs(60))]);
        let tried = (100..200).take_while(|&last| reach.host_failed(at(last), now)).count();
        assert_eq!(tried as u32, HOSTS_AT_ONCE - 1);
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
