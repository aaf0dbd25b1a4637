//! The facts of one stage of a session on their way in: all asked for at the same time, waited for
//! together and no longer than the stage's deadline.
//!
//! What has come counts, also when the deadline passes; of what has not it is told that it did not,
//! which has no effect.  A question whose asker has gone goes on by itself and ends: the DNS cache
//! will want its answer anyway.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Instant;

use super::verdict::{Effect, Finding};
use crate::dns::Name;
use crate::runtime;
use crate::runtime::notify::Notify;

/// The findings of one stage.
pub struct Gathering {
    deadline: Instant,
    found: RefCell<Vec<Finding>>,
    /// Questions under way, in the order in which they were asked.
    open: RefCell<Vec<Rc<Asked>>>,
    /// The name behind the client's address that leads back to it, once it is known.
    name: OnceCell<Name>,
    /// Somebody has waited for them until the deadline.
    given_up: Cell<bool>,
    closed: Notify,
    /// One question is left at most.
    last: Notify,
}

/// One question under way.
struct Asked {
    /// The names of the checks that wait for it.
    checks: Box<[Box<str>]>,
    since: Instant,
}

impl Gathering {
    /// Nothing has been asked yet; nobody waits beyond `deadline`.
    pub fn new(deadline: Instant) -> Rc<Gathering> {
        Rc::new(Gathering {
            deadline,
            found: RefCell::default(),
            open: RefCell::default(),
            name: OnceCell::new(),
            given_up: Cell::new(false),
            closed: Notify::default(),
            last: Notify::default(),
        })
    }

    /// Takes a finding that needs no question.
    pub fn add(&self, finding: Finding) {
        self.found.borrow_mut().push(finding);
    }

    /// Takes the name behind the client's address that leads back to it.
    pub fn name(&self, name: &Name) {
        self.name.get_or_init(|| name.clone());
    }

    /// That name, if it has come.
    pub fn client_name(&self) -> Option<&Name> {
        self.name.get()
    }

    /// Asks, in a task of its own, which runs to its end in any case, what these checks want to
    /// know; how long it takes is noted.
    pub fn ask(
        self: &Rc<Self>,
        checks: impl IntoIterator<Item = Box<str>>,
        question: impl Future<Output = Vec<Finding>> + 'static,
    ) {
        let checks = checks.into_iter().collect();
        let asked = Rc::new(Asked { checks, since: Instant::now() });
        self.open.borrow_mut().push(asked.clone());
        let open = Question { gathering: self.clone(), asked };
        runtime::spawn(async move {
            let findings = question.await;
            let took = open.asked.since.elapsed();
            let findings = findings.into_iter().map(|finding| Finding { took, ..finding });
            open.gathering.found.borrow_mut().extend(findings);
        });
    }

    /// Waits until all has come, or the deadline has.
    pub async fn settle(&self) {
        while !self.open.borrow().is_empty() && !self.given_up.get() {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let closed = self.closed.notified();
            let is_late =
                left.is_zero() || Box::pin(runtime::timeout(left, closed)).await.is_none();
            self.given_up.set(is_late);
        }
    }

    /// Waits, within a question, until all others have come.
    pub async fn others(&self) {
        while self.open.borrow().len() > 1 {
            self.last.notified().await;
        }
    }

    /// What has come so far, in the order in which it came, and what [`Gathering::settle`] has
    /// given up on.
    pub fn found(&self) -> Vec<Finding> {
        let mut found = self.found.borrow().clone();
        if self.given_up.get() {
            found.extend(self.open.borrow().iter().flat_map(|asked| asked.missed()));
        }
        found
    }
}

impl Asked {
    /// What is told of it when nobody waits any longer.
    fn missed(&self) -> impl Iterator<Item = Finding> {
        let took = self.since.elapsed();
        self.checks.iter().map(move |check| Finding {
            check: check.clone(),
            fact: "no answer in time".into(),
            effect: Effect::None,
            reply: None,
            took,
        })
    }
}

/// One question under way; closed however its task ends.
struct Question {
    gathering: Rc<Gathering>,
    asked: Rc<Asked>,
}

impl Drop for Question {
    fn drop(&mut self) {
        let mut open = self.gathering.open.borrow_mut();
        open.retain(|asked| !Rc::ptr_eq(asked, &self.asked));
        match open.len() {
            0 => self.gathering.closed.notify(),
            1 => self.gathering.last.notify(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn finding(check: &str) -> Finding {
        let (fact, took) = ("there".into(), Duration::ZERO);
        Finding { check: check.into(), fact, effect: Effect::None, reply: None, took }
    }

    fn facts(gathering: &Gathering) -> Vec<String> {
        let found = gathering.found().into_iter();
        found.map(|finding| format!("{} {}", finding.check, finding.fact)).collect()
    }

    #[test]
    fn what_has_not_come_at_the_deadline_is_told_and_counts_when_it_comes() {
        let (early, late) = runtime::run(async {
            let gathering = Gathering::new(Instant::now() + Duration::from_millis(50));
            let come = Rc::new(Notify::default());
            let (bell, names) = (come.clone(), ["slow", "slower"].map(Box::from));
            gathering.ask(names, async move {
                bell.notified().await;
                vec![finding("slow"), finding("slower")]
            });
            gathering.ask([Box::from("quick")], async { vec![finding("quick")] });
            assert!(facts(&gathering).is_empty(), "nobody has given up on anything yet");
            gathering.settle().await;
            let early = facts(&gathering);
            come.notify();
            while !gathering.open.borrow().is_empty() {
                runtime::sleep(Duration::from_millis(1)).await;
            }
            (early, facts(&gathering))
        })
        .expect("a loop");
        let missed = ["quick there", "slow no answer in time", "slower no answer in time"];
        assert_eq!(early, missed);
        assert_eq!(late, ["quick there", "slow there", "slower there"]);
    }

    #[test]
    fn nobody_waits_for_what_has_come() {
        let settled = runtime::run(async {
            let gathering = Gathering::new(Instant::now() + Duration::from_secs(3_600));
            gathering.ask([Box::from("quick")], async { vec![finding("quick")] });
            let open_before = gathering.open.borrow().len();
            gathering.settle().await;
            (open_before, gathering.open.borrow().len())
        });
        assert_eq!(settled.expect("a loop"), (1, 0));
    }
}
