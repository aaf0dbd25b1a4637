//! A map that peers can fill and that stays small: sharded, bounded, forgetting what has lapsed.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Whether an entry has nothing to say any more.
pub(crate) trait Lapses {
    /// From when on it says what no entry says.
    fn lapses(&self) -> Instant;
}

/// Keys to entries, for all workers.
pub(crate) struct Table<K, V> {
    hasher: RandomState,
    shards: [Mutex<Shard<K, V>>; SHARDS],
    entries_per_shard: usize,
}

struct Shard<K, V> {
    entries: HashMap<K, V>,
    /// Entries given up since all were looked at.
    given_up: usize,
}

const SHARDS: usize = 16;
/// After so many were given up all are looked at, so that a flood does not pay for it each time.
const LOOK_AFTER: usize = 256;
/// Entries that are compared to find one to give up.
const LOOKED_AT: usize = 16;

impl<K: Hash + Eq + Clone, V: Lapses> Table<K, V> {
    /// An empty table for about this many entries.
    pub(crate) fn new(entries: usize) -> Table<K, V> {
        Table {
            hasher: RandomState::new(),
            shards: std::array::from_fn(|_| {
                Mutex::new(Shard { entries: HashMap::new(), given_up: LOOK_AFTER })
            }),
            entries_per_shard: entries.div_ceil(SHARDS),
        }
    }

    /// Reads the entry, if there is one.
    pub(crate) fn read<T>(&self, key: &K, read: impl FnOnce(&V) -> T) -> Option<T> {
        self.shard(key).entries.get(key).map(read)
    }

    /// Changes the entry; `fresh` makes one that is not there.
    ///
    /// In a full shard the lapsed go first, then of some entries the one that lapses next: whoever
    /// floods the table pushes out its own short entries before anybody's long ones.
    pub(crate) fn change<T>(
        &self,
        key: &K,
        now: Instant,
        fresh: impl FnOnce() -> V,
        change: impl FnOnce(&mut V) -> T,
    ) -> T {
        let mut shard = self.shard(key);
        if let Some(value) = shard.entries.get_mut(key) {
            return change(value);
        }
        if shard.entries.len() >= self.entries_per_shard {
            shard.make_room(now);
        }
        change(shard.entries.entry(key.clone()).or_insert_with(fresh))
    }

    /// Changes the entry, if there is one.
    pub(crate) fn adjust(&self, key: &K, change: impl FnOnce(&mut V)) {
        if let Some(value) = self.shard(key).entries.get_mut(key) {
            change(value);
        }
    }

    /// Forgets the entry.
    pub(crate) fn remove(&self, key: &K) {
        self.shard(key).entries.remove(key);
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap().entries.len()).sum()
    }

    fn shard(&self, key: &K) -> MutexGuard<'_, Shard<K, V>> {
        let shard = self.hasher.hash_one(key) as usize % SHARDS;
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq + Clone, V: Lapses> Shard<K, V> {
    /// Takes the lapsed out, or else of some entries the one that lapses next.
    fn make_room(&mut self, now: Instant) {
        if self.given_up >= LOOK_AFTER {
            self.given_up = 0;
            let before = self.entries.len();
            self.entries.retain(|_, value| value.lapses() > now);
            if self.entries.len() < before {
                return;
            }
        }
        let some = self.entries.iter().take(LOOKED_AT);
        let next = some.min_by_key(|(_, value)| value.lapses()).map(|(key, _)| key.clone());
        if let Some(next) = next {
            self.entries.remove(&next);
            self.given_up += 1;
        }
    }
}
