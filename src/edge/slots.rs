//! A table of fixed size for what strangers make us remember: when something was seen, and how
//! often, under a key of 128 bits.
//!
//! In plain words: a map from key to time and count in which new entries push out old ones.  What
//! makes it fit for a flood: it is laid out like a processor's cache, in sets of 16 slots of 24
//! octets, so it never grows, allocates once, and gives an entry up by looking at one set.  Memory
//! that was never used costs nothing, because it comes zeroed from the system.  And a key may only
//! lie in the region of the network that caused it ([`REGION`] slots): a network that invents
//! senders without end pushes out its own entries and those of the few that share its region, not
//! everybody's.
//!
//! Pure but for its locks; time is an argument, in whole seconds.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seconds(pub u32);

/// What an entry is called: hashes that nobody can foresee.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// Of the network that caused it; decides on its region.
    pub network: u64,
    /// Of all that it is about.
    pub subject: u64,
}

/// What is remembered under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// When.
    pub at: Seconds,
    /// How often; at least 1.
    pub count: u32,
}

/// The table.
#[derive(Debug)]
pub struct Slots {
    shards: Box<[Mutex<Box<[Slot]>>]>,
    regions: u64,
}

/// A key, and in the third word the time above the count; a slot that is free is all zeroes.
///
/// Plain numbers, because those the allocator takes zeroed from the system.
type Slot = [u64; 3];

/// Octets of an entry.
pub const ENTRY_OCTETS: usize = size_of::<Slot>();
/// Slots of one set: how many old entries are compared before one of them goes.
const WAYS: usize = 16;
/// Slots that one network's entries may lie in.
pub const REGION: usize = 16 * WAYS;
/// Locks, so that workers seldom meet.
const SHARDS: u64 = 64;

impl Seconds {
    /// How long ago `earlier` was; nothing if it is still to come.
    pub fn since(self, earlier: Seconds) -> u64 {
        u64::from(self.0.saturating_sub(earlier.0))
    }
}

impl Slots {
    /// Room for so many entries, rounded up to whole regions.
    pub fn new(entries: usize) -> Slots {
        let regions = entries.div_ceil(REGION).max(1) as u64;
        let shards = (0..SHARDS).map(|shard| {
            let regions = (regions + SHARDS - 1 - shard) / SHARDS;
            Mutex::new(vec![[0; 3]; regions as usize * REGION].into_boxed_slice())
        });
        Slots { shards: shards.collect(), regions }
    }

    /// What is remembered.
    pub fn entry(&self, key: Key) -> Option<Entry> {
        let (shard, set) = self.place(key);
        let slots = self.shard(shard);
        slots[set..set + WAYS].iter().find(|slot| is(slot, key)).map(entry)
    }

    /// Remembers.  Where there is no room, the oldest of a few goes.
    pub fn put(&self, key: Key, entry: Entry) {
        let (shard, set) = self.place(key);
        let mut slots = self.shard(shard);
        let set = &mut slots[set..set + WAYS];
        let known = set.iter().position(|slot| is(slot, key));
        // Free ones have the oldest time of all.
        let place = known.or_else(|| (0..WAYS).min_by_key(|&place| set[place][2]));
        if let Some(place) = place {
            let what = u64::from(entry.at.0) << 32 | u64::from(entry.count.max(1));
            set[place] = [key.network, key.subject, what];
        }
    }

    /// Forgets.
    pub fn remove(&self, key: Key) {
        let (shard, set) = self.place(key);
        let mut slots = self.shard(shard);
        if let Some(slot) = slots[set..set + WAYS].iter_mut().find(|slot| is(slot, key)) {
            *slot = [0; 3];
        }
    }

    /// Copies out what there is, one shard after the other, so that nobody waits for long.
    pub fn parts(&self) -> impl Iterator<Item = Vec<(Key, Entry)>> {
        (0..self.shards.len()).map(|shard| {
            let slots = self.shard(shard);
            let used = slots.iter().filter(|slot| is_used(slot));
            used.map(|slot| (Key { network: slot[0], subject: slot[1] }, entry(slot))).collect()
        })
    }

    /// Where the key's set begins, and in which shard.
    fn place(&self, key: Key) -> (usize, usize) {
        let region = key.network % self.regions;
        let set = key.subject as usize % (REGION / WAYS);
        ((region % SHARDS) as usize, (region / SHARDS) as usize * REGION + set * WAYS)
    }

    fn shard(&self, shard: usize) -> MutexGuard<'_, Box<[Slot]>> {
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_used(slot: &Slot) -> bool {
    slot[2] as u32 > 0
}

fn is(slot: &Slot, key: Key) -> bool {
    slot[0] == key.network && slot[1] == key.subject && is_used(slot)
}

fn entry(slot: &Slot) -> Entry {
    Entry { at: Seconds((slot[2] >> 32) as u32), count: slot[2] as u32 }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn key(network: u64, subject: u64) -> Key {
        // Spread like hashes.
        let spread = |value: u64| (value + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Key { network: spread(network), subject: spread(subject).rotate_left(32) }
    }

    fn at(seconds: u32) -> Entry {
        Entry { at: Seconds(seconds), count: 1 }
    }

    fn len(slots: &Slots) -> usize {
        slots.parts().map(|part| part.len()).sum()
    }

    proptest! {
        /// Below the size of a set nothing is ever lost, whatever is put and removed.
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((0..12u64, 1..9u32, any::<bool>()), 0..200)) {
            let (slots, mut map) = (Slots::new(1_000), HashMap::new());
            for (subject, time, removes) in steps {
                let key = key(subject % 3, subject);
                if removes {
                    slots.remove(key);
                    map.remove(&key);
                } else {
                    slots.put(key, at(time));
                    map.insert(key, at(time));
                }
                prop_assert_eq!(slots.entry(key), map.get(&key).copied());
            }
            let all: HashMap<Key, Entry> = slots.parts().flatten().collect();
            prop_assert_eq!(all, map);
        }
    }

    /// Whoever invents senders without end pushes out its own.
    #[test]
    fn a_flood_of_one_network_stays_in_its_region() {
        let slots = Slots::new(100_000);
        for network in 0..1_000 {
            slots.put(key(network, 0), at(1));
        }
        let before = len(&slots);
        for subject in 1..100_000 {
            slots.put(key(7_777, subject), at(2));
        }
        let lost = (0..1_000).filter(|&network| slots.entry(key(network, 0)).is_none()).count();
        // Some 400 regions: two or three of a thousand networks share the flooder's.
        assert!(lost <= 12, "{lost} of 1000");
        assert!(len(&slots) <= before + REGION);
    }

    #[test]
    fn the_oldest_goes_first() {
        let slots = Slots::new(1);
        for time in 1..=10 * REGION as u32 {
            slots.put(key(0, u64::from(time)), at(time));
        }
        assert!(len(&slots) <= REGION);
        let oldest = slots.parts().flatten().map(|(_, entry)| entry.at.0).min();
        // Spread by a hash: each set keeps its last sixteen.
        assert!(oldest > Some(7 * REGION as u32), "{oldest:?}");
    }

    #[test]
    fn there_is_room_for_what_was_asked_for() {
        let slots = Slots::new(100_000);
        for number in 0..50_000 {
            slots.put(key(number, number), at(1));
        }
        assert!(len(&slots) > 49_500, "{}", len(&slots));
    }
}
