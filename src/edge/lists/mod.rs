//! DNS lists, for and against senders (RFC 5782), that check themselves.
//!
//! [`query`] makes the questions and reads the answers, [`health`] decides whether a list can be
//! believed, [`board`] is what the workers share of it, [`watch`] looks at the test entries.  All but
//! the last are pure.
//!
//! Invariants: only a code that the operator named is a listing; a list that is off, or has not
//! been checked yet, is not asked; so whatever happens to a list, it refuses nobody's mail that it
//! did not mean.  Clients that come with the first check wait for what it says, for a bounded time.

pub mod board;
pub mod health;
pub mod query;
pub mod watch;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::config::{List, ListSubject};
use crate::dns::{Lookup, Name, RecordType};
use crate::runtime;
use board::Board;
use health::State;
use query::Reading;
use std::net::IpAddr;

/// The lists of a configuration, with what all workers know of them.
#[derive(Debug)]
pub struct Lists {
    zones: Box<[Zone]>,
    /// The zone of each list of the configuration.
    of: Box<[usize]>,
}

/// One zone: several lists of the configuration may read its codes differently.
#[derive(Debug)]
pub struct Zone {
    /// Its name.
    pub name: Name,
    /// What its entries are.
    pub kind: Kind,
    /// How often its test entries are looked at; zero for never.
    pub self_check: Duration,
    /// What is known of it.
    pub board: Board,
    /// When somebody wanted to ask it first.
    wanted: OnceLock<Instant>,
}

/// What the entries of a list are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Addresses.
    Addresses,
    /// Domains.
    Domains,
}

/// What a list is asked about.
#[derive(Debug, Clone)]
pub enum Subject {
    /// An address.
    Address(IpAddr),
    /// A domain.
    Domain(Name),
}

/// What became of a question to a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// It was asked.
    Answered(Reading),
    /// It was not, since it does not count now.
    Unasked(State),
    /// There is no name to ask about: it would be too long.
    Unaskable,
}

impl Lists {
    /// These lists, none of them checked yet.  Those with the same zone share its health, and the
    /// shortest of their intervals.
    pub fn new(lists: &[List]) -> Lists {
        let (mut zones, mut of) = (Vec::<Zone>::new(), Vec::new());
        for list in lists {
            let name = Name::parse(&list.zone).expect("the configuration has checked it");
            let kind = Kind::of(list.of);
            let known = zones.iter().position(|zone| zone.name == name && zone.kind == kind);
            let index = known.unwrap_or(zones.len());
            of.push(index);
            match zones.get_mut(index) {
                Some(zone) if zone.self_check.is_zero() => zone.self_check = list.self_check,
                Some(_) if list.self_check.is_zero() => {}
                Some(zone) => zone.self_check = zone.self_check.min(list.self_check),
                None => {
                    let (board, wanted) = (Board::default(), OnceLock::new());
                    zones.push(Zone { name, kind, self_check: list.self_check, board, wanted });
                }
            }
        }
        for zone in zones.iter().filter(|zone| zone.self_check.is_zero()) {
            zone.board.publish(State::On);
        }
        Lists { zones: zones.into(), of: of.into() }
    }

    /// The zones, each once.
    pub fn zones(&self) -> &[Zone] {
        &self.zones
    }

    /// The zone of a list, by its place in the configuration.
    pub fn zone(&self, list: usize) -> &Zone {
        &self.zones[self.of[list]]
    }
}

impl Zone {
    /// Asks about a subject, as `list` of the configuration reads its answers.
    pub async fn ask(&self, resolver: &impl Lookup, list: &List, subject: &Subject) -> Asked {
        let state = self.settled().await;
        if state != State::On {
            return Asked::Unasked(state);
        }
        let name = match subject {
            Subject::Address(address) => query::of_address(*address, &self.name),
            Subject::Domain(domain) => query::of_domain(domain, &self.name),
        };
        let Some(name) = name else { return Asked::Unaskable };
        let (answer, is_first) = resolver.lookup_first(&name, RecordType::A).await;
        let reading = query::read(&answer, &list.codes);
        // A line of ours that is full is no silence of the list's.
        if !answer.is_overloaded() {
            self.board.count(&reading);
        }
        // One failure that many hear of is one failure.
        if is_first {
            self.board.saw(&reading);
        }
        Asked::Answered(reading)
    }

    /// Whether it counts, once that is known or has taken too long.
    async fn settled(&self) -> State {
        let wanted = self.wanted.get_or_init(Instant::now);
        loop {
            let state = self.board.state();
            if state != State::Starting || wanted.elapsed() >= FIRST_CHECK {
                return state;
            }
            runtime::sleep(FIRST_LOOK).await;
        }
    }
}

/// How long clients wait for the first check of a list, counted from the first of them.
const FIRST_CHECK: Duration = Duration::from_secs(2);
/// How often each of them looks whether it is over.
const FIRST_LOOK: Duration = Duration::from_millis(100);

impl Kind {
    fn of(subject: ListSubject) -> Kind {
        match subject {
            ListSubject::Address => Kind::Addresses,
            ListSubject::Helo | ListSubject::Reverse | ListSubject::Sender => Kind::Domains,
        }
    }

    /// Its name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Addresses => "address",
            Kind::Domains => "domain",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::dns::Answer;
    use crate::edge::verdict::Score;

    fn list(zone: &str, of: ListSubject, seconds: u64) -> List {
        List {
            zone: zone.into(),
            of,
            codes: Vec::new(),
            weight: Score(100),
            reply: "".into(),
            self_check: Duration::from_secs(seconds),
        }
    }

    /// A server that has failed once, as many hear.
    struct Failed;

    impl Lookup for Failed {
        async fn lookup(&self, _: &Name, _: RecordType) -> Rc<Answer> {
            Rc::new(Answer::temporary("SERVFAIL", Instant::now(), Duration::from_secs(5)))
        }

        async fn lookup_first(&self, name: &Name, kind: RecordType) -> (Rc<Answer>, bool) {
            let is_first = name.as_str().starts_with("1.");
            (self.lookup(name, kind).await, is_first)
        }
    }

    #[test]
    fn a_failure_that_is_remembered_is_held_against_a_list_once() {
        let list = list("a.example", ListSubject::Address, 0);
        let lists = Lists::new(std::slice::from_ref(&list));
        let zone = lists.zone(0);
        let asked = crate::runtime::run(async {
            for last in [1, 2, 3, 4] {
                let subject = Subject::Address(IpAddr::from([192, 0, 2, last]));
                let asked = zone.ask(&Failed, &list, &subject).await;
                assert!(matches!(asked, Asked::Answered(Reading::Unanswered(_))));
            }
        });
        assert!(asked.is_ok());
        assert_eq!((zone.board.silence(), zone.board.figures().unanswered), (1, 4));
    }

    #[test]
    fn who_comes_with_the_first_check_waits_for_it() {
        let list = list("a.example", ListSubject::Address, 60);
        let subject = Subject::Address(IpAddr::from([192, 0, 2, 1]));
        let asked = crate::runtime::run(async {
            let lists = Rc::new(Lists::new(std::slice::from_ref(&list)));
            let checked = lists.clone();
            crate::runtime::spawn(async move {
                runtime::sleep(Duration::from_millis(50)).await;
                checked.zone(0).board.publish(State::On);
            });
            lists.zone(0).ask(&Failed, &list, &subject).await
        });
        assert!(matches!(asked, Ok(Asked::Answered(_))), "{asked:?}");
        // But not for ever.
        let asked = crate::runtime::run(async {
            Lists::new(std::slice::from_ref(&list)).zone(0).ask(&Failed, &list, &subject).await
        });
        assert!(matches!(asked, Ok(Asked::Unasked(State::Starting))), "{asked:?}");
    }

    #[test]
    fn lists_of_one_zone_share_its_health_and_the_shortest_interval() {
        let lists = Lists::new(&[
            list("a.example", ListSubject::Address, 60),
            list("a.example", ListSubject::Helo, 0),
            list("a.example", ListSubject::Address, 0),
            list("a.example", ListSubject::Sender, 30),
            list("b.example", ListSubject::Address, 0),
            list("a.example", ListSubject::Address, 20),
        ]);
        assert_eq!(*lists.of, [0, 1, 0, 1, 2, 0]);
        let seconds: Vec<u64> = lists.zones().iter().map(|z| z.self_check.as_secs()).collect();
        assert_eq!(seconds, [20, 30, 0]);
        let states = lists.zones().iter().map(|zone| zone.board.state());
        assert_eq!(states.collect::<Vec<_>>(), [State::Starting, State::Starting, State::On]);
    }
}
