//! Rates: what each of many may spend in a time.
//!
//! By the generic cell rate algorithm: one time stamp a key says how much of its allowance is left.

use std::hash::Hash;
use std::time::Instant;

use super::lapsing::{Lapses, Table};
use crate::limits;
use crate::units::Rate;

/// Allowances of one kind, for all workers.
pub struct Allowances<K> {
    rate: Rate,
    table: Table<K, Spent>,
}

/// When all that was spent will have come back (the theoretical arrival time).
struct Spent(Instant);

impl Lapses for Spent {
    fn lapses(&self) -> Instant {
        self.0
    }
}

impl<K: Hash + Eq + Clone> Allowances<K> {
    /// Nothing is spent yet.
    pub fn new(rate: Rate) -> Allowances<K> {
        Allowances { rate, table: Table::new(limits::PEERS_REMEMBERED) }
    }

    /// Takes one; tells whether there was one.
    pub fn take(&self, key: &K, now: Instant) -> bool {
        let each = self.rate.period / self.rate.count.max(1);
        self.table.change(
            key,
            now,
            || Spent(now),
            |spent| {
                let next = spent.0.max(now) + each;
                let allowed = next <= now + self.rate.period;
                if allowed {
                    spent.0 = next;
                }
                allowed
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_allowance_is_spent_and_comes_back() {
        let rate = Rate { count: 3, period: Duration::from_secs(30) };
        let allowances: Allowances<u8> = Allowances::new(rate);
        let now = Instant::now();
        let take = |seconds| allowances.take(&1, now + Duration::from_secs(seconds));
        assert_eq!([0, 0, 0, 0, 9].map(take), [true, true, true, false, false]);
        assert_eq!([10, 10, 19, 20].map(take), [true, false, false, true]);
        assert!(allowances.take(&2, now), "everybody has one of its own");
        assert_eq!([100, 100, 100, 100].map(take), [true, true, true, false], "no more is saved");
    }
}
