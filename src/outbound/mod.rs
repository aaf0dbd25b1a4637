//! Sending: one task for each connection to a site.
//!
//! A connection is opened on the scheduler's word, takes one message after the other from its
//! lane, and says what became of each.  [`smtp`] drives `smtp::client` over a stream; [`local`]
//! writes Maildirs and whatever else needs no peer.
//!
//! However it ends, the scheduler hears `ConnectionClosed`, and a message that was being sent is
//! settled or returned: nothing is left active.

pub mod local;
pub mod maildir;
pub mod smtp;

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use rustls::pki_types::ServerName;

use crate::config::Target;
use crate::pool::Lane;
use crate::queue::scheduler::{ConnectionId, Event};
use crate::queue::site::{SiteIndex, SiteShared};
use crate::runtime::guard::guarded;
use crate::smtp::client::Protocol;
use crate::worker::Worker;

/// Runs one connection to its end.
pub async fn run(worker: Rc<Worker>, site: SiteIndex, connection: ConnectionId, lane: Rc<Lane>) {
    let protocol = Protocol::Smtp;
    let way = Way { worker: worker.clone(), site, connection, lane, protocol };
    let target = worker.sites.target(site).clone();
    let result = match fixed_peer(&target, worker.sites.source(site)) {
        Some(peer) => {
            let sending = async {
                if let Some(stream) = smtp::connect(&way, peer).await {
                    smtp::run(&way, stream, Some(peer)).await;
                }
            };
            guarded(sending).await
        }
        None => guarded(local::run(&way, target)).await,
    };
    if let Err(words) = result {
        tracing::error!(site = site.0, "a delivery ended by a bug of ours: {words}");
    }
    worker.pool.close(connection);
    worker.queue_event(Event::ConnectionClosed { site, connection });
}

/// The next hop's address, of the family of `source`; `None` where there is no next hop, or only
/// a name that must be looked up.
fn fixed_peer(target: &Target, source: Option<IpAddr>) -> Option<SocketAddr> {
    let (Target::Smtp { host, port } | Target::Smtps { host, port }) = target else { return None };
    let fits = |address: &&IpAddr| source.is_none_or(|s| s.is_ipv4() == address.is_ipv4());
    Some(SocketAddr::new(*host.fixed_addresses().iter().find(fits)?, *port))
}

/// What a connection is to its core.
pub struct Way {
    /// The core.
    pub worker: Rc<Worker>,
    /// Where it leads.
    pub site: SiteIndex,
    /// Its name.
    pub connection: ConnectionId,
    /// Where its messages come from.
    pub lane: Rc<Lane>,
    /// What is spoken there, where there is a peer.
    pub protocol: Protocol,
}

impl Way {
    /// What the cores share of its site.
    pub fn shared(&self) -> &SiteShared {
        &self.worker.sites.shared()[self.site.0 as usize]
    }

    /// How its connections are encrypted.
    pub fn security(&self) -> smtp::Security {
        let target = self.worker.sites.target(self.site);
        let name = match target {
            Target::Smtp { host, .. } | Target::Smtps { host, .. } => {
                ServerName::try_from(host.to_string()).ok()
            }
            _ => None,
        };
        smtp::Security {
            policy: self.worker.sites.tls(self.site),
            is_implicit: matches!(target, Target::Smtps { .. }),
            name,
        }
    }

    /// Its site's name for people.
    pub fn site_name(&self) -> String {
        self.worker.sites.name(self.site)
    }

    /// The next message, once the connection is ready for one.  After `None` none will come: the
    /// connection is to close.
    pub async fn next(&self) -> Option<crate::queue::arena::Slot> {
        if self.worker.is_stopping() || self.worker.log.has_failed() {
            return None;
        }
        let (site, connection) = (self.site, self.connection);
        self.worker.queue_event(Event::ConnectionReady { site, connection });
        let next = self.lane.next(self.worker.config.delivery.idle_timeout).await;
        if next.is_none() {
            // At once, before anything is awaited: else a message could be given to a connection
            // that is saying good-bye.
            self.worker.queue_event(Event::ConnectionLeaving { site, connection });
        }
        next
    }

    /// The next message, if there is one at this moment: for a connection that has others under
    /// way.
    pub fn next_at_once(&self) -> Option<crate::queue::arena::Slot> {
        if self.worker.is_stopping() || self.worker.log.has_failed() {
            return None;
        }
        let (site, connection) = (self.site, self.connection);
        self.worker.queue_event(Event::ConnectionReady { site, connection });
        let next = self.lane.take_now();
        if next.is_none() {
            self.worker.queue_event(Event::ConnectionLeaving { site, connection });
        }
        next
    }

    /// The connection takes no further message; one that was given to it meanwhile goes back.
    pub fn leave(&self) {
        let (site, connection) = (self.site, self.connection);
        self.worker.queue_event(Event::ConnectionLeaving { site, connection });
        if let Some(slot) = self.lane.take_now() {
            self.worker.queue_event(Event::Returned { slot });
        }
    }
}
