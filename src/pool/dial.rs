//! From a site's hosts to a connected stream.
//!
//! [`dial`] tries the addresses in the order of [`plan::DialPlan`].  The next one is tried when
//! the last has failed, or has not answered for a while; the first to connect wins and the others
//! are given up.  What failed is noted in the site's [`HostHealth`], so that the next dial begins
//! with another address.
//!
//! A connection says nothing about the peer's mood: whoever uses it tells [`HostHealth::failed`]
//! of a greeting that is bad or never comes, and [`HostHealth::succeeded`] of a good one.  Names
//! are looked up only where the caller has no addresses that still count.

pub mod health;
pub mod plan;

use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

pub use health::HostHealth;
use nix::errno::Errno;
use plan::{DialPlan, DialStep, Target};

use crate::dns::mail::MailHost;
use crate::dns::{Addresses, Lookup, Name, join};
use crate::limits::KEPT_REPLY;
use crate::runtime::socket::{Stream, StreamError};

/// A connection that came about.
pub struct Dialled {
    /// The connection.
    pub stream: Stream,
    /// Whom it leads to.
    pub peer: SocketAddr,
    /// The host whose address that is.
    pub host: Box<str>,
}

/// No connection came about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{words}")]
pub struct DialError {
    /// What happened, for the log and the deferral; at most [`KEPT_REPLY`] octets.
    pub words: Box<str>,
    /// No address was tried: the DNS has none, or none that can be reached from the source.
    pub dns_only: bool,
    /// This machine had no descriptor, port or memory for one of the attempts.
    pub is_own_shortage: bool,
}

/// Whether a connection did not come about because this machine is short of something, which says
/// nothing of the peer.
///
/// EADDRNOTAVAIL is the want of a port only between IPv4 addresses that the system has chosen:
/// else it may mean that there is no IPv6 here, or that the source is not an address of ours.
pub fn is_own_shortage(error: &StreamError, peer: SocketAddr, source: Option<IpAddr>) -> bool {
    let StreamError::Io(error) = error else { return false };
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => true,
        Some(Errno::EADDRNOTAVAIL) => peer.is_ipv4() && source.is_none(),
        _ => false,
    }
}

/// Connects to one of `hosts`, which are in the order of their preference, from the address
/// `source` if one is given.
///
/// What is looked up on the way is told to `learned`, so that it is known to whoever judges the
/// connection.  From the first attempt on it takes `connect_limit` at most; before that only the resolver's
/// own time.
///
/// # Errors
/// No address could be connected to in time, or there is none.
pub async fn dial(
    resolver: &impl Lookup,
    hosts: &[MailHost],
    port: u16,
    source: Option<IpAddr>,
    connect_limit: Duration,
    health: &Mutex<HostHealth>,
    learned: &dyn Fn(&Name, &Addresses),
) -> Result<Dialled, DialError> {
    let mut rng = fastrand::Rng::new();
    let plan = DialPlan::new(hosts, port, source, Instant::now(), &mut rng);
    let mut race = Race {
        resolver,
        plan,
        health,
        learned,
        rng,
        source,
        connect_limit,
        deadline: None,
        attempts: Vec::new(),
        lookup: None,
        timer: None,
        is_exhausted: false,
        step: STEP_MIN,
        problems: Problems::default(),
    };
    race.run().await
}

/// The site's health; a thread that panicked with it left nothing half done.
pub fn lock(health: &Mutex<HostHealth>) -> MutexGuard<'_, HostHealth> {
    health.lock().unwrap_or_else(PoisonError::into_inner)
}

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// One dial under way.
struct Race<'a, L> {
    resolver: &'a L,
    plan: DialPlan,
    health: &'a Mutex<HostHealth>,
    learned: &'a dyn Fn(&Name, &Addresses),
    rng: fastrand::Rng,
    source: Option<IpAddr>,
    connect_limit: Duration,
    /// The end of the whole, once an address is being tried.
    deadline: Option<Instant>,
    /// In the order in which they began.
    attempts: Vec<Attempt<'a>>,
    lookup: Option<Boxed<'a, Vec<(Name, Addresses)>>>,
    /// Rings when the next address is to be tried.
    timer: Option<Boxed<'a, ()>>,
    is_exhausted: bool,
    /// How long the last attempt is waited for before the next begins.
    step: Duration,
    problems: Problems,
}

struct Attempt<'a> {
    target: Target,
    began: Instant,
    connecting: Boxed<'a, Result<Stream, StreamError>>,
}

/// What the race waits for.
enum Event {
    /// The attempt at this place of the list is over.
    Ended(usize, Result<Stream, StreamError>),
    LookedUp(Vec<(Name, Addresses)>),
    Rang,
}

impl<'a, L: Lookup> Race<'a, L> {
    async fn run(&mut self) -> Result<Dialled, DialError> {
        loop {
            self.advance();
            if self.attempts.is_empty() && self.lookup.is_none() {
                return Err(self.problems.error(self.source));
            }
            match poll_fn(|context| self.poll(context)).await {
                Event::Ended(place, Ok(stream)) => return Ok(self.won(place, stream)),
                Event::Ended(place, Err(error)) => self.lost(place, &error),
                Event::LookedUp(found) => self.looked_up(&found),
                Event::Rang => self.timer = None,
            }
        }
    }

    /// Begins what may begin now: the next attempt, or the look-up that it needs.
    fn advance(&mut self) {
        while self.timer.is_none() && self.lookup.is_none() && !self.is_exhausted {
            let now = Instant::now();
            if self.deadline.is_some_and(|deadline| now >= deadline) {
                self.is_exhausted = true;
                return;
            }
            match self.plan.next(&lock(self.health), now, &mut self.rng) {
                DialStep::LookUp(names) => self.look_up(names),
                DialStep::Connect(target) => self.begin(target, now),
                DialStep::Exhausted => self.is_exhausted = true,
            }
        }
    }

    fn look_up(&mut self, names: Vec<Name>) {
        let resolver = self.resolver;
        self.lookup = Some(Box::pin(async move {
            let questions = names.iter().map(|name| resolver.addresses(name));
            let found = join::join_all(questions).await;
            names.into_iter().zip(found).collect()
        }));
    }

    fn looked_up(&mut self, found: &[(Name, Addresses)]) {
        self.lookup = None;
        for (name, addresses) in found {
            if let Err(error) = &addresses.result {
                self.problems.of_dns(format!("no address of {name}: {error}"));
            }
            (self.learned)(name, addresses);
            self.plan.looked_up(name, addresses);
        }
    }

    fn begin(&mut self, target: Target, now: Instant) {
        let deadline = *self.deadline.get_or_insert(now + self.connect_limit);
        let limit = deadline.saturating_duration_since(now);
        let (address, source) = (target.address, self.source);
        self.problems.tried = true;
        let connecting = Box::pin(Stream::connect(address, source, limit));
        self.attempts.push(Attempt { target, began: now, connecting });
        let step = if self.plan.has_equal() { self.step } else { STEP_MAX };
        self.timer = Some(Box::pin(crate::runtime::sleep(step)));
        self.step = (self.step * 2).min(STEP_MAX);
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Event> {
        for (place, attempt) in self.attempts.iter_mut().enumerate() {
            if let Poll::Ready(result) = attempt.connecting.as_mut().poll(context) {
                return Poll::Ready(Event::Ended(place, result));
            }
        }
        if let Some(lookup) = &mut self.lookup
            && let Poll::Ready(found) = lookup.as_mut().poll(context)
        {
            return Poll::Ready(Event::LookedUp(found));
        }
        match &mut self.timer {
            Some(timer) => timer.as_mut().poll(context).map(|()| Event::Rang),
            None => Poll::Pending,
        }
    }

    fn lost(&mut self, place: usize, error: &StreamError) {
        let is_last = place + 1 == self.attempts.len();
        let attempt = self.attempts.remove(place);
        if is_own_shortage(error, attempt.target.address, self.source) {
            self.problems.is_own_shortage = true;
        } else {
            lock(self.health).failed(attempt.target.address, Instant::now());
        }
        self.problems.of_connection(&attempt.target, error);
        // Its successor has not to wait, unless that is a back-up and a better host may still
        // answer; the successor of an earlier attempt is under way already.
        if is_last && (self.plan.has_equal() || self.attempts.is_empty()) {
            self.timer = None;
        }
    }

    fn won(&mut self, place: usize, stream: Stream) -> Dialled {
        let winner = self.attempts.remove(place);
        // Those that had a head start and have not answered are slow, if not worse; without this
        // every dial would wait for them first.
        let mut health = lock(self.health);
        for slower in self.attempts.drain(..).filter(|slower| slower.began < winner.began) {
            health.failed(slower.target.address, Instant::now());
        }
        Dialled { stream, peer: winner.target.address, host: winner.target.host }
    }
}

/// What went wrong so far.
#[derive(Default)]
struct Problems {
    words: String,
    tried: bool,
    is_own_shortage: bool,
}

impl Problems {
    fn of_dns(&mut self, words: String) {
        self.add(&words);
    }

    fn of_connection(&mut self, target: &Target, error: &StreamError) {
        let Target { address, host, .. } = target;
        let whom = if **host == *address.ip().to_string() {
            address.to_string()
        } else {
            format!("{host} ({address})")
        };
        self.add(&match error {
            StreamError::TimedOut => format!("no connection to {whom} in time"),
            StreamError::Io(error) => format!("no connection to {whom}: {error}"),
        });
    }

    /// Keeps what fits; the first failures say most.
    fn add(&mut self, words: &str) {
        let separator = if self.words.is_empty() { "" } else { "; " };
        if self.words.len() + separator.len() + words.len() <= KEPT_REPLY {
            self.words.push_str(separator);
            self.words.push_str(words);
        }
    }

    fn error(&self, source: Option<IpAddr>) -> DialError {
        let words = match source {
            _ if !self.words.is_empty() => self.words.clone(),
            Some(source) => format!("no host has an address that {source} can connect to"),
            None => "no host has an address".to_owned(),
        };
        let is_own_shortage = self.is_own_shortage;
        DialError { words: words.into(), dns_only: !self.tried, is_own_shortage }
    }
}

/// How long the first address is waited for before the second is tried as well.  More than the
/// 250 ms of RFC 8305 section 5, and doubled for each that follows: a mail server that is far away
/// is not to see connections that come and go.
const STEP_MIN: Duration = Duration::from_millis(500);
/// The longest step, and the one before a host of less preference: a lost SYN is sent again after
/// one second, and back-up hosts are for when the others are down, not for when they are slow.
const STEP_MAX: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests;
