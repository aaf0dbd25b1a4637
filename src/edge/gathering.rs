//! The facts of one stage of a session on their way in: all asked for at the same time, waited for
//! together and no longer than the stage's deadline.
//!
//! What has come counts, also when the deadline passes; what has not is no finding.  A question
//! whose asker has gone goes on by itself and ends: the DNS cache will want its answer anyway.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Instant;

use super::verdict::Finding;
use crate::runtime;
use crate::runtime::notify::Notify;

/// The findings of one stage.
pub struct Gathering {
    deadline: Instant,
    found: RefCell<Vec<Finding>>,
    /// Questions under way.
    open: Cell<usize>,
    closed: Notify,
}

impl Gathering {
    /// Nothing has been asked yet; nobody waits beyond `deadline`.
    pub fn new(deadline: Instant) -> Rc<Gathering> {
        Rc::new(Gathering {
            deadline,
            found: RefCell::default(),
            open: Cell::new(0),
            closed: Notify::default(),
        })
    }

    /// Takes a finding that needs no question.
    pub fn add(&self, finding: Finding) {
        self.found.borrow_mut().push(finding);
    }

    /// Asks, in a task of its own, which runs to its end in any case; how long it takes is noted.
    pub fn ask(self: &Rc<Self>, question: impl Future<Output = Vec<Finding>> + 'static) {
        self.open.set(self.open.get() + 1);
        let asked = Question(self.clone());
        let began = Instant::now();
        runtime::spawn(async move {
            let findings = question.await;
            let took = began.elapsed();
            let findings = findings.into_iter().map(|finding| Finding { took, ..finding });
            asked.0.found.borrow_mut().extend(findings);
        });
    }

    /// Waits until all has come, or the deadline has.
    pub async fn settle(&self) {
        while self.open.get() > 0 {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || runtime::timeout(left, self.closed.notified()).await.is_none() {
                return;
            }
        }
    }

    /// Whether nothing is awaited any more.
    pub fn is_settled(&self) -> bool {
        self.open.get() == 0 || Instant::now() >= self.deadline
    }

    /// What has come so far, in the order in which it came.
    pub fn found(&self) -> Vec<Finding> {
        self.found.borrow().clone()
    }
}

/// One question under way; closed however its task ends.
struct Question(Rc<Gathering>);

impl Drop for Question {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        if self.0.open.get() == 0 {
            self.0.closed.notify();
        }
    }
}
