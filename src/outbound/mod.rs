//! Sending: one task for each connection to a site.
//!
//! A connection is opened on the scheduler's word, takes one message after the other from its
//! lane, and says what became of each.  Here it is dialled; [`smtp`] drives `smtp::client` over
//! its stream; [`local`] writes Maildirs and whatever else needs no peer.
//!
//! However it ends, the scheduler hears `ConnectionClosed`, and a message that was being sent is
//! settled or returned: nothing is left active.  A panic in here aborts the process, since it may
//! have come from the middle of the scheduler's or the log's work; recovery does the rest.  A host
//! that cannot be reached, does not greet well, or ends a fresh connection without a word on a
//! message is avoided for a while; only when no other one is left does the site rest, or the
//! message wait.

pub mod backend;
pub mod local;
pub mod maildir;
pub mod smtp;

use std::fmt::Display;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{Host, Target};
use crate::delivery::outcome::RetryPolicy;
use crate::delivery::reach::{Reach, Serving};
use crate::delivery::settle::{self, UNREACHABLE};
use crate::dns::{Addresses, Name};
use crate::pool::Lane;
use crate::pool::dial::{DialError, Dialled, dial, is_own_shortage};
use crate::queue::arena::Slot;
use crate::queue::scheduler::{ConnectionId, Event};
use crate::queue::site::{SiteIndex, SiteShared};
use crate::runtime::guard::guarded;
use crate::runtime::socket::{Stream, StreamError};
use crate::smtp::client::Protocol;
use crate::worker::Worker;

/// Runs one connection to its end.
pub async fn run(worker: Rc<Worker>, site: SiteIndex, connection: ConnectionId, lane: Rc<Lane>) {
    if let Some(shared) = worker.with_queue(|queue| queue.site(site).cloned()) {
        let way = Way { worker: worker.clone(), site, shared, connection, lane };
        if let Err(words) = guarded(go(&way)).await {
            let site = way.site_name();
            tracing::error!(site, "a delivery met a bug of ours; the process ends: {words}");
            std::process::abort();
        }
    }
    worker.pool.close(connection);
    worker.queue_event(Event::ConnectionClosed { site, connection });
}

async fn go(way: &Way) {
    let reach = way.shared.reach();
    if reach.protocol().is_none() {
        return local::run(way, reach.target.clone()).await;
    }
    if let Target::LmtpUnix { path } = &reach.target {
        let limit = way.worker.config.delivery.timeouts.connect;
        return match Stream::connect_unix(path, limit).await {
            Ok(stream) => smtp::run(way, stream, None, way.security("")).await,
            Err(error) => {
                settle::site_failed(way, UNREACHABLE, &describe_connect(path.display(), &error))
            }
        };
    }
    match connect(&way.worker, reach).await {
        Ok(Dialled { stream, peer, host }) => {
            smtp::run(way, stream, Some(peer), way.security(&host)).await;
        }
        Err(error) if error.is_own_shortage => settle::own_shortage(way, &error.words),
        Err(error) => settle::site_failed(way, UNREACHABLE, &error.words),
    }
}

/// A connection to the site: to the address that its target names, else to the first of its hosts
/// that answers.
async fn connect(worker: &Worker, reach: &Reach) -> Result<Dialled, DialError> {
    let limit = worker.config.delivery.timeouts.connect;
    if let Target::Smtp { host: Host::Address(ip), port }
    | Target::Smtps { host: Host::Address(ip), port }
    | Target::Lmtp { host: Host::Address(ip), port } = &reach.target
    {
        let peer = SocketAddr::new(*ip, *port);
        return match Stream::connect(peer, reach.source, limit).await {
            Ok(stream) => Ok(Dialled { stream, peer, host: ip.to_string().into() }),
            Err(error) => {
                let words = describe_connect(peer, &error).into();
                let is_own_shortage = is_own_shortage(&error, peer, reach.source);
                Err(DialError { words, dns_only: false, is_own_shortage })
            }
        };
    }
    let hosts = reach.hosts();
    let learned = |name: &Name, found: &Addresses| reach.learn(name, found);
    dial(&worker.resolver, &hosts, reach.port, reach.source, limit, &reach.health, &learned).await
}

fn describe_connect(peer: impl Display, error: &StreamError) -> String {
    match error {
        StreamError::TimedOut => format!("no connection to {peer} in time"),
        StreamError::Io(error) => format!("no connection to {peer}: {error}"),
    }
}

/// What a connection is to its core.
pub struct Way {
    /// The core.
    pub worker: Rc<Worker>,
    /// Where it leads, in the scheduler's table.
    pub site: SiteIndex,
    /// What the cores share of its site.
    shared: Arc<SiteShared>,
    /// Its name.
    pub connection: ConnectionId,
    /// Where its messages come from.
    pub lane: Rc<Lane>,
}

impl Way {
    /// What the cores share of its site.
    pub fn shared(&self) -> &SiteShared {
        &self.shared
    }

    /// How a connection to `host`, one of its hosts, is encrypted.
    fn security(&self, host: &str) -> smtp::Security {
        smtp::Security::of(self.shared.reach(), host)
    }

    /// Its site's name for people.
    pub fn site_name(&self) -> &str {
        self.shared.name()
    }

    /// What is spoken there.
    pub fn protocol(&self) -> Protocol {
        self.shared.reach().protocol().unwrap_or(Protocol::Smtp)
    }

    /// When its site is tried again: the schedule of the message that waits first for it.
    pub fn retry(&self) -> &RetryPolicy {
        let course = self.worker.with_queue(|queue| queue.course_of_site(self.site));
        let fallback = self.worker.sites.unrouted().course;
        &self.worker.sites.course(course.unwrap_or(fallback)).retry
    }

    /// The host has had its word on a message; said once a connection, for as long as it lasts.
    pub fn host_succeeded(&self, peer: Option<SocketAddr>) -> Option<Serving> {
        peer.map(|peer| self.shared.reach().host_succeeded(peer))
    }

    /// The host has greeted us and then ended the connection without a word on its first message.
    /// Tells whether another host is left, which is to have the message at once.
    ///
    /// Not if other connections to it are well: then it is the message that it does not like.
    pub fn is_passed_over(&self, peer: Option<SocketAddr>) -> bool {
        let reach = self.shared.reach();
        let Some(peer) = peer.filter(|peer| !reach.serves(*peer)) else { return false };
        let is_passed_over = reach.host_failed(peer, Instant::now());
        if is_passed_over {
            let words = "no word on its first message";
            tracing::info!(site = self.site_name(), %peer, words, "the next host is tried");
        }
        is_passed_over
    }

    /// The host has connected and then not taken us, at its greeting or at EHLO: the next
    /// connection goes to another host.  Without one the site rests, or pauses.  `reason` is the
    /// short name of that for the events.
    pub fn host_failed(&self, peer: Option<SocketAddr>, reason: &'static str, words: &str) {
        // A site that serves other connections most likely has enough of them: it pauses, and the
        // hosts that stand in are not troubled at once.
        let (is_lone, reach) = (self.shared.established() == 0, self.shared.reach());
        if let Some(peer) = peer.filter(|_| !is_lone) {
            reach.host_refused(peer, Instant::now());
        } else if let Some(peer) = peer
            && reach.host_failed(peer, Instant::now())
        {
            self.worker.metrics.connections_failed.count();
            tracing::info!(site = self.site_name(), %peer, words, "the next host is tried");
            return;
        }
        settle::site_failed(self, reason, words);
        let now_unix_ms = self.worker.now_unix_ms();
        if let (Some(peer), Some(until)) = (peer, self.shared.rests_until(now_unix_ms)) {
            let rest = Duration::from_millis(until.saturating_sub(now_unix_ms));
            reach.rests(peer, Instant::now() + rest);
        }
    }

    /// The next message, once the connection is ready for one.  After `None` none will come: the
    /// connection is to close.
    pub async fn next(&self) -> Option<Slot> {
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
    pub fn next_at_once(&self) -> Option<Slot> {
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
