//! Which questions to next hops are under way, and who waits for them on other cores.
//!
//! Pure but for its lock.  A question has one core that asks it; the others whose sessions want to
//! know the same are noted here and told by that core.  No more entries than sessions.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::ahead::Asked;

/// The questions of all workers that are under way, with the other workers that wait for each.
#[derive(Debug, Default)]
pub struct Claims(Mutex<HashMap<Asked, Vec<usize>>>);

impl Claims {
    /// Whether `worker` is to ask; if another one does already, that one will tell it.  Who is to
    /// ask must [settle](Claims::settle) the question, whatever becomes of it.
    pub fn claim(&self, asked: &Asked, worker: usize) -> bool {
        let mut under_way = self.under_way();
        if let Some(waiting) = under_way.get_mut(asked) {
            waiting.push(worker);
            return false;
        }
        under_way.insert(asked.clone(), Vec::new());
        true
    }

    /// The question is over: gives the workers that are to be told.
    pub fn settle(&self, asked: &Asked) -> Vec<usize> {
        self.under_way().remove(asked).unwrap_or_default()
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<Asked, Vec<usize>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        let claims = Claims::default();
        assert!(claims.claim(&a, 0), "it is the first");
        assert!(!claims.claim(&a, 1) && !claims.claim(&a, 3));
        assert!(claims.claim(&b, 1), "another question");
        assert_eq!(claims.settle(&a), [1, 3]);
        assert!(claims.settle(&b).is_empty());
        let again = [&a, &b].map(|asked| claims.claim(asked, 2));
        assert!(again.iter().all(|&is_ours| is_ours), "what is over may be asked again");
    }
}
