//! Questions to recursive name servers and their answers, one resolver a core.
//!
//! Whoever asks gets the cached answer, or joins those who have asked the same already, or starts
//! a task of its own that asks; giving up waiting does not stop that task, whose answer the cache
//! will want anyway.  At most
//! [`ResolverConfig::queries`] tasks talk to servers at a time.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::asking::{Asking, Attempt};
use super::cache::{Cache, Question};
use super::codec::{Known, Outcome};
use super::flight::{Flight, Prospect, Turns};
use super::transport::{self, Sockets};
use super::{Answer, Lookup, LookupError, Name, RecordType, resolv_conf};
use crate::config;
use crate::limits::{DNS_ALIASES, DNS_FAILURE_TTL, DNS_QUERIES, DNS_QUERIES_WAITING};

/// Whom to ask.
#[derive(Debug, Clone)]
pub struct ResolverConfig {
    /// Recursive servers, in the order in which they are preferred.
    pub servers: Vec<SocketAddr>,
    /// Servers whose AD bit counts, beside those on loopback addresses.
    pub trusted: Vec<IpAddr>,
    /// What one question may take in all.
    pub timeout: Duration,
    /// Questions under way at a time; each has a descriptor.
    pub queries: usize,
}

/// The resolver of one core; its clones are the same one.
#[derive(Clone)]
pub struct Resolver {
    shared: Rc<Shared>,
}

struct Shared {
    config: ResolverConfig,
    cache: RefCell<Cache>,
    flights: RefCell<HashMap<Question, Rc<Flight>>>,
    turns: Turns,
    sockets: Sockets,
    /// The server that answered last.
    first: Cell<usize>,
}

impl ResolverConfig {
    /// What the configuration says; the machine's own servers if it names none.
    pub fn new(config: &config::Dns) -> ResolverConfig {
        let servers = match &config.servers[..] {
            [] => resolv_conf::system_servers(),
            servers => servers.to_vec(),
        };
        let (trusted, timeout) = (config.trusted.clone(), config.timeout);
        ResolverConfig { servers, trusted, timeout, queries: *DNS_QUERIES.start() }
    }

    /// These servers, none trusted but on loopback addresses.
    pub fn with_servers(servers: Vec<SocketAddr>) -> ResolverConfig {
        let queries = *DNS_QUERIES.start();
        ResolverConfig { servers, trusted: Vec::new(), timeout: TIMEOUT, queries }
    }

    fn trusts(&self, server: SocketAddr) -> bool {
        let server = server.ip().to_canonical();
        server.is_loopback() || self.trusted.contains(&server)
    }
}

impl Resolver {
    /// A resolver with an empty cache.
    pub fn new(config: ResolverConfig) -> Resolver {
        let shared = Shared {
            turns: Turns::new(config.queries, config.queries / 2),
            config,
            cache: RefCell::default(),
            flights: RefCell::default(),
            sockets: Sockets::default(),
            first: Cell::new(0),
        };
        Resolver { shared: Rc::new(shared) }
    }

    /// The mail exchangers of a domain.
    pub async fn mx(&self, name: &Name) -> Rc<Answer> {
        self.lookup(name, RecordType::Mx).await
    }

    /// The texts under a name.
    pub async fn txt(&self, name: &Name) -> Rc<Answer> {
        self.lookup(name, RecordType::Txt).await
    }

    /// The names of an address's host; whether they lead back to the address is the caller's to
    /// check.
    pub async fn ptr(&self, address: IpAddr) -> Rc<Answer> {
        self.lookup(&Name::reverse(address), RecordType::Ptr).await
    }

    /// How many answers the cache holds.
    pub fn cached(&self) -> usize {
        self.shared.cache.borrow().len()
    }

    /// Asks the servers, or joins those who have; whether it was the first to ask.
    async fn ask(&self, question: &Question) -> (Rc<Answer>, bool) {
        match self.flight(question) {
            Some((flight, is_first)) => (flight.landed().await, is_first),
            None => {
                let now = Instant::now();
                (Rc::new(Answer::overloaded(now)), false)
            }
        }
    }

    /// The flight of a question, started if it is not under way, and whether it was; `None` when
    /// too many are.
    fn flight(&self, question: &Question) -> Option<(Rc<Flight>, bool)> {
        let mut flights = self.shared.flights.borrow_mut();
        if let Some(flight) = flights.get(question) {
            return Some((flight.clone(), false));
        }
        if flights.len() >= self.shared.config.queries + DNS_QUERIES_WAITING {
            return None;
        }
        let flight = Rc::new(Flight::default());
        flights.insert(question.clone(), flight.clone());
        let landing = Landing {
            shared: self.shared.clone(),
            question: question.clone(),
            flight: flight.clone(),
        };
        crate::runtime::spawn(landing.fly());
        Some((flight, true))
    }
}

impl Lookup for Resolver {
    async fn lookup(&self, name: &Name, kind: RecordType) -> Rc<Answer> {
        self.lookup_first(name, kind).await.0
    }

    async fn lookup_anew(&self, name: &Name, kind: RecordType) -> Rc<Answer> {
        self.ask(&Question { name: name.clone(), kind }).await.0
    }

    async fn lookup_first(&self, name: &Name, kind: RecordType) -> (Rc<Answer>, bool) {
        let question = Question { name: name.clone(), kind };
        let cached = self.shared.cache.borrow().find(&question, Instant::now());
        match cached {
            Some(answer) => (answer, false),
            None => self.ask(&question).await,
        }
    }
}

/// A question under way; those who wait for it hear of its end however it ends.
struct Landing {
    shared: Rc<Shared>,
    question: Question,
    flight: Rc<Flight>,
}

impl Landing {
    async fn fly(self) {
        let prospect = match self.shared.cache.borrow().has_failed(&self.question) {
            true => Prospect::Doubtful,
            false => Prospect::Hopeful,
        };
        let turn = self.shared.turns.take(prospect).await;
        let found = self.shared.resolve(&self.question).await;
        drop(turn);
        let now = Instant::now();
        let mut cache = self.shared.cache.borrow_mut();
        let answer = match found {
            Ok(known) => cache.put(self.question.clone(), into_answer(known, now)),
            Err(why) => cache.put_failure(self.question.clone(), &why, now),
        };
        drop(cache);
        self.flight.land(&answer);
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.shared.flights.borrow_mut().remove(&self.question);
        // Heard only if a bug of ours ended the task before it had an answer.
        let failure = Answer::temporary("the lookup was given up", Instant::now(), DNS_FAILURE_TTL);
        self.flight.land(&Rc::new(failure));
    }
}

impl Shared {
    /// Asks, and asks on where a server leaves an alias to us.
    async fn resolve(&self, question: &Question) -> Result<Known, Box<str>> {
        let mut question = question.clone();
        let mut known = self.ask(&question).await?;
        for _ in 0..DNS_ALIASES {
            let Outcome::Alias(target) = &known.outcome else { return Ok(known) };
            question.name = target.clone();
            let next = self.ask(&question).await?;
            known = Known {
                outcome: next.outcome,
                authentic: known.authentic && next.authentic,
                ttl: known.ttl.min(next.ttl),
            };
        }
        if matches!(known.outcome, Outcome::Alias(_)) {
            Err("too many aliases".into())
        } else {
            Ok(known)
        }
    }

    /// One question to one server after the other.
    async fn ask(&self, question: &Question) -> Result<Known, Box<str>> {
        let servers = &self.config.servers;
        let timeout = self.config.timeout;
        let mut asking = Asking::new(servers.len(), self.first.get(), timeout, Instant::now());
        let mut why = Box::from("no name server");
        while let Some(attempt) = asking.next(Instant::now()) {
            let server = servers[attempt.server];
            let Attempt { edns, deadline, .. } = attempt;
            match transport::ask(&self.sockets, server, question, edns, deadline).await {
                Ok(mut known) => {
                    self.first.set(attempt.server);
                    known.authentic &= self.config.trusts(server);
                    return Ok(known);
                }
                Err((failure, words)) => {
                    asking.failed(failure);
                    why = format!("{words} ({server})").into();
                }
            }
        }
        Err(why)
    }
}

fn into_answer(known: Known, now: Instant) -> Answer {
    let result = match known.outcome {
        Outcome::Records(records) => Ok(records),
        Outcome::NoName => Err(LookupError::NoName),
        Outcome::NoData | Outcome::Alias(_) => Err(LookupError::NoData),
    };
    Answer { result, authentic: known.authentic, expires: now + known.ttl }
}

/// What a question may take where no configuration says otherwise.
const TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_servers_here_and_those_that_are_named_are_trusted() {
        let servers = ["127.0.0.1:53", "[::1]:53", "192.0.2.1:53", "192.0.2.2:53"];
        let servers: Vec<SocketAddr> =
            servers.iter().map(|text| text.parse().expect("an address")).collect();
        let trusted = vec!["192.0.2.2".parse().expect("an address")];
        let config = ResolverConfig { trusted, ..ResolverConfig::with_servers(servers.clone()) };
        let trusts: Vec<bool> = servers.iter().map(|server| config.trusts(*server)).collect();
        assert_eq!(trusts, [true, true, false, true]);
    }
}
