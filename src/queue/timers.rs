//! When a core's handles are due: a calendar that costs a waiting message nothing but a pair of
//! links in its handle.
//!
//! What is due in a later second stands in the list of that second, in no order; a second that has
//! begun is opened, which puts its handles among the *near* ones, and these are in order.  A
//! balanced tree of all of them would take 35 octets each, and ten million messages wait in one
//! gigabyte.
//!
//! Invariant: a handle is in here if and only if its `due_unix_ms` is not 0, and that is its key.

use std::collections::{BTreeMap, BTreeSet};

use super::arena::{Arena, Slot};
use super::handle::Handle;
use super::list::{List, Timed};

/// The length of a list's time.
const SECOND_MS: u64 = 1_000;

/// The timers of one core's handles.
#[derive(Default)]
pub(super) struct Timers {
    /// Those of the seconds that were opened, earliest first.
    near: BTreeSet<(u64, Slot)>,
    /// The others by the second, since 1970 UTC, in which they are due.
    far: BTreeMap<u64, List<Timed>>,
    /// Seconds before this one have been opened to their last timer.
    opened: u64,
}

impl Timers {
    /// Files a handle that is not in here under its `due_unix_ms`.
    pub(super) fn insert(&mut self, handles: &mut Arena<Handle>, slot: Slot) {
        let Some(handle) = handles.get(slot) else { return };
        let due = handle.due_unix_ms;
        debug_assert_ne!(due, 0, "0 says that there is no timer");
        let second = due / SECOND_MS;
        if second < self.opened {
            self.near.insert((due, slot));
        } else {
            self.far.entry(second).or_default().push_back(handles, slot);
        }
    }

    /// Takes a handle out, if it is in here; its `due_unix_ms` is 0 then.
    pub(super) fn remove(&mut self, handles: &mut Arena<Handle>, slot: Slot) {
        let Some(handle) = handles.get_mut(slot) else { return };
        let due = std::mem::take(&mut handle.due_unix_ms);
        if due == 0 {
            return;
        }
        // A second that holds more than is opened at once has some in either place.
        if self.near.remove(&(due, slot)) {
            return;
        }
        let second = due / SECOND_MS;
        let list = self.far.get_mut(&second).expect("a timer is near, or in its second's list");
        list.remove(handles, slot);
        if list.is_empty() {
            self.far.remove(&second);
        }
    }

    /// Opens the seconds that have begun, up to `most` timers of them; more are opened by the next
    /// call.
    pub(super) fn open(&mut self, handles: &mut Arena<Handle>, now_unix_ms: u64, most: u32) {
        for _ in 0..most {
            let Some(mut first) = self.far.first_entry() else { break };
            let second = *first.key();
            if second > now_unix_ms / SECOND_MS {
                break;
            }
            let slot = first.get().first().expect("an empty list is removed");
            first.get_mut().remove(handles, slot);
            if first.get().is_empty() {
                first.remove();
                self.opened = self.opened.max(second + 1);
            }
            let due = handles.get(slot).expect("what is in a list is there").due_unix_ms;
            self.near.insert((due, slot));
        }
    }

    /// The earliest of those that were opened, if it is due.
    pub(super) fn due(&self, now_unix_ms: u64) -> Option<Slot> {
        let &(due, slot) = self.near.first()?;
        (due <= now_unix_ms).then_some(slot)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.near.len() + self.far.values().map(|list| list.len() as usize).sum::<usize>()
    }

    /// All of them, in no order, each with the time under which it stands: a second's first
    /// millisecond where that is all that is known.
    #[cfg(test)]
    pub(super) fn all(&self, handles: &mut Arena<Handle>) -> Vec<(u64, Slot)> {
        let near = self.near.iter().copied();
        let far = self.far.iter().flat_map(|(second, list)| {
            list.slots(handles).into_iter().map(move |slot| (second * SECOND_MS, slot))
        });
        near.chain(far).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::MessageId;
    use crate::queue::handle::Recipients;
    use crate::spool::{RecordPlace, SegmentNo};

    fn handle(due_unix_ms: u64) -> Handle {
        let place = RecordPlace { segment: SegmentNo(1), offset: 64, length: 64 };
        let mut handle = Handle::new(MessageId(1), place, Recipients::All(1), None);
        handle.due_unix_ms = due_unix_ms;
        handle
    }

    #[test]
    fn timers_do_what_a_sorted_set_does() {
        let mut random = fastrand::Rng::with_seed(7);
        let (mut handles, mut timers) = (Arena::default(), Timers::default());
        let mut model = BTreeSet::new();
        let mut now = 1_735_689_600_000;
        for step in 0..20_000 {
            match random.u8(0..6) {
                // Some are due already, and some at the very same time.
                0..3 => {
                    let due = now - 50 + random.u64(0..100) * random.u64(1..100);
                    let slot = handles.insert(handle(due));
                    timers.insert(&mut handles, slot);
                    model.insert((due, slot));
                }
                3 if !model.is_empty() => {
                    let place = random.usize(0..model.len());
                    let (due, slot) = *model.iter().nth(place).unwrap();
                    timers.remove(&mut handles, slot);
                    timers.remove(&mut handles, slot);
                    assert_eq!(handles.remove(slot).unwrap().due_unix_ms, 0);
                    model.remove(&(due, slot));
                }
                _ => {
                    now += random.u64(0..200);
                    timers.open(&mut handles, now, u32::MAX);
                    while let Some(slot) = timers.due(now) {
                        let (due, expected) = model.pop_first().expect("one is due");
                        assert!(due <= now);
                        assert_eq!(slot, expected, "step {step}");
                        timers.remove(&mut handles, slot);
                        handles.remove(slot);
                    }
                    assert!(model.first().is_none_or(|&(due, _)| due > now), "step {step}");
                }
            }
            assert_eq!(timers.len(), model.len());
        }
        assert_eq!(timers.all(&mut handles).len(), model.len());
    }

    /// A million that are due in one second are opened a few at a time, and none is lost.
    #[test]
    fn a_full_second_is_opened_in_parts() {
        let (mut handles, mut timers) = (Arena::default(), Timers::default());
        let slots: Vec<Slot> = (0..1_000).map(|_| handles.insert(handle(5_500))).collect();
        slots.iter().for_each(|&slot| timers.insert(&mut handles, slot));
        timers.open(&mut handles, 4_999, 100);
        assert_eq!(timers.near.len(), 0, "it has not begun");
        timers.open(&mut handles, 5_000, 100);
        assert_eq!(timers.near.len(), 100);
        assert_eq!(timers.due(5_499), None);
        // Either half can be taken out, and what is filed meanwhile is found.
        timers.remove(&mut handles, slots[0]);
        timers.remove(&mut handles, slots[999]);
        let late = handles.insert(handle(5_100));
        timers.insert(&mut handles, late);
        let mut due = 0;
        for _ in 0..11 {
            timers.open(&mut handles, 5_500, 100);
            while let Some(slot) = timers.due(5_500) {
                timers.remove(&mut handles, slot);
                due += 1;
            }
        }
        assert_eq!((due, timers.len()), (999, 0));
        assert!(timers.far.is_empty());
    }
}
