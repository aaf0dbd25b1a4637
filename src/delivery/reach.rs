//! How connections to a site are made: to which hosts, from which address, in which protocol.
//!
//! One for each site, shared by its cores.  The locks in here are taken a few times a connection
//! and once a resolution, never for a message.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::config::Target;
use crate::dns::mail::{MailHost, fixed_host};
use crate::pool::dial::{self, HostHealth};
use crate::smtp::client::Protocol;

/// See the module's text.
#[derive(Debug)]
pub struct Reach {
    /// Where the mail goes, as the route says.
    pub target: Target,
    /// The address that connections are made from.
    pub source: Option<IpAddr>,
    /// The port of its hosts; 0 where there are none.
    pub port: u16,
    /// Which addresses have failed lately.
    pub health: Mutex<HostHealth>,
    hosts: Mutex<Arc<[MailHost]>>,
}

impl Reach {
    /// The way to a target that names its next hop, or needs none.
    pub fn fixed(target: &Target, source: Option<IpAddr>) -> Reach {
        let (host, port) = match target {
            Target::Smtp { host, port } | Target::Lmtp { host, port } => {
                (fixed_host(&host.to_string(), Instant::now()), *port)
            }
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
        Reach { target, source, port, health: Mutex::default(), hosts: Mutex::new(hosts) }
    }

    /// What is spoken there; `None` where mail goes without a peer.
    pub fn protocol(&self) -> Option<Protocol> {
        match self.target {
            Target::Mx | Target::Smtp { .. } => Some(Protocol::Smtp),
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

    /// A host did not take us; tells whether another one is known that has not failed lately.
    pub fn host_failed(&self, address: SocketAddr, now: Instant) -> bool {
        let mut health = dial::lock(&self.health);
        health.failed(address, now);
        let fits = |ip: &IpAddr| self.source.is_none_or(|source| source.is_ipv4() == ip.is_ipv4());
        let hosts = self.hosts();
        let mut known = hosts.iter().flat_map(|host| &host.addresses).copied().filter(fits);
        known.any(|ip| health.avoid_until(SocketAddr::new(ip, self.port), now).is_none())
    }

    /// A host has greeted us well.
    pub fn host_succeeded(&self, address: SocketAddr) {
        dial::lock(&self.health).succeeded(address);
    }
}
