//! Which questions to next hops are under way, and who waits for them on other cores.
//!
//! Pure but for its lock.  A question has one core that asks it; the others whose sessions want to
//! know the same are noted here and told by that core.  No more entries than sessions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ahead::Asked;

/// The questions of all workers that are under way, with the other workers that wait for each.
#[derive(Debug, Default)]
pub struct Claims(Mutex<HashMap<Asked, Vec<usize>>>);

/// One worker's right to ask a question, until this is dropped.
#[derive(Debug)]
pub struct Claim {
    claims: Arc<Claims>,
    asked: Asked,
    is_settled: bool,
}

impl Claims {
    /// The right to ask; `None` if another worker does already: that one will tell `worker`.
    pub fn claim(self: &Arc<Claims>, asked: &Asked, worker: usize) -> Option<Claim> {
        let mut under_way = self.under_way();
        if let Some(waiting) = under_way.get_mut(asked) {
            waiting.push(worker);
            return None;
        }
        under_way.insert(asked.clone(), Vec::new());
        Some(Claim { claims: self.clone(), asked: asked.clone(), is_settled: false })
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<Asked, Vec<usize>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    /// The question is answered: gives the workers that are to be told.
    pub fn settle(mut self) -> Vec<usize> {
        self.is_settled = true;
        self.claims.under_way().remove(&self.asked).unwrap_or_default()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Only where the service ends in the middle; who waits gives up by its own deadline.
        if !self.is_settled {
            self.claims.under_way().remove(&self.asked);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::site::SiteId;
    use crate::smtp::address::{ForwardPath, Utf8};

    #[test]
    fn one_worker_asks_and_tells_the_others() {
        let asked = |address: &str| {
            let path = ForwardPath::parse(format!("<{address}>").as_bytes(), Utf8::Refused);
            Asked::new(SiteId(1), &path.expect("an address"))
        };
        let (a, b) = (asked("a@x.example"), asked("b@x.example"));
        let claims = Arc::new(Claims::default());
        let claim = claims.claim(&a, 0).expect("it is the first");
        assert!(claims.claim(&a, 1).is_none() && claims.claim(&a, 3).is_none());
        let other = claims.claim(&b, 1).expect("another question");
        assert_eq!(claim.settle(), [1, 3]);
        drop(other);
        let again = [&a, &b].map(|asked| claims.claim(asked, 2));
        assert!(again.iter().all(Option::is_some), "what is over may be asked again");
    }
}
