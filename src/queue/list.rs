//! Doubly linked lists through an arena: whatever is in one can be taken out of its middle at
//! once, and a list of a million costs three numbers.
//!
//! Handles wait in such lists, and destinations stand in the rings of their sites.  A value has
//! one pair of links for each kind of list and so is in one of a kind at most; which one is for the
//! owner of the lists to know.

use std::marker::PhantomData;

use super::arena::{Arena, Slot};

/// Lists of what waits for its turn.
#[derive(Debug)]
pub(super) struct Waiting;

/// Lists of what has a timer.
#[derive(Debug)]
pub(super) struct Timed;

/// A value that can stand in a [`List`] of a kind.
pub(super) trait Linked<Kind = Waiting> {
    /// Its neighbours there.
    fn links(&mut self) -> &mut Links;
}

/// A value's neighbours in its list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Links {
    before: Link,
    after: Link,
}

/// A slot or nothing in 4 octets; an `Option<Slot>` would take 8, twice in every handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Link(u32);

impl Link {
    const NONE: Link = Link(u32::MAX);

    fn slot(self) -> Option<Slot> {
        (self != Link::NONE).then_some(Slot(self.0))
    }
}

impl From<Option<Slot>> for Link {
    fn from(slot: Option<Slot>) -> Link {
        slot.map_or(Link::NONE, |slot| Link(slot.0))
    }
}

impl Default for Links {
    fn default() -> Links {
        Links { before: Link::NONE, after: Link::NONE }
    }
}

/// The ends of a list, and its length.
#[derive(Debug)]
pub(super) struct List<Kind = Waiting> {
    first: Option<Slot>,
    last: Option<Slot>,
    len: u32,
    kind: PhantomData<Kind>,
}

impl<Kind> Default for List<Kind> {
    fn default() -> List<Kind> {
        List { first: None, last: None, len: 0, kind: PhantomData }
    }
}

impl<Kind> List<Kind> {
    pub(super) fn first(&self) -> Option<Slot> {
        self.first
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn push_back<T: Linked<Kind>>(&mut self, arena: &mut Arena<T>, slot: Slot) {
        let last = self.last.replace(slot);
        link(arena, slot, last, None);
        match last.and_then(|last| arena.get_mut(last)) {
            Some(last) => last.links().after = Link(slot.0),
            None => self.first = Some(slot),
        }
        self.len += 1;
    }

    pub(super) fn push_front<T: Linked<Kind>>(&mut self, arena: &mut Arena<T>, slot: Slot) {
        let first = self.first.replace(slot);
        link(arena, slot, None, first);
        match first.and_then(|first| arena.get_mut(first)) {
            Some(first) => first.links().before = Link(slot.0),
            None => self.last = Some(slot),
        }
        self.len += 1;
    }

    /// Takes one out that is in this list.
    pub(super) fn remove<T: Linked<Kind>>(&mut self, arena: &mut Arena<T>, slot: Slot) {
        let value = arena.get_mut(slot).expect("what is in a list is there");
        let Links { before, after } = std::mem::take(value.links());
        match before.slot() {
            Some(before) => arena.get_mut(before).expect("a neighbour").links().after = after,
            None => self.first = after.slot(),
        }
        match after.slot() {
            Some(after) => arena.get_mut(after).expect("a neighbour").links().before = before,
            None => self.last = before.slot(),
        }
        self.len -= 1;
    }

    /// Moves the first one to the end.
    pub(super) fn rotate<T: Linked<Kind>>(&mut self, arena: &mut Arena<T>) {
        if let Some(first) = self.first.filter(|_| self.len > 1) {
            self.remove(arena, first);
            self.push_back(arena, first);
        }
    }

    /// The slots in their order.
    #[cfg(test)]
    pub(super) fn slots<T: Linked<Kind>>(&self, arena: &mut Arena<T>) -> Vec<Slot> {
        let mut slots = Vec::new();
        let mut at = self.first;
        while let Some(slot) = at {
            slots.push(slot);
            at = arena.get_mut(slot).expect("what is in a list is there").links().after.slot();
        }
        slots
    }
}

fn link<Kind, T: Linked<Kind>>(
    arena: &mut Arena<T>,
    slot: Slot,
    before: Option<Slot>,
    after: Option<Slot>,
) {
    if let Some(value) = arena.get_mut(slot) {
        *value.links() = Links { before: before.into(), after: after.into() };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    #[derive(Default)]
    struct Value(Links);

    impl Linked for Value {
        fn links(&mut self) -> &mut Links {
            &mut self.0
        }
    }

    #[test]
    fn a_list_does_what_a_deque_does() {
        let mut random = fastrand::Rng::with_seed(11);
        let mut arena = Arena::default();
        let (mut list, mut model) = (List::<Waiting>::default(), VecDeque::new());
        for _ in 0..5_000 {
            match random.u8(0..5) {
                0 => {
                    let slot = arena.insert(Value::default());
                    list.push_back(&mut arena, slot);
                    model.push_back(slot);
                }
                1 => {
                    let slot = arena.insert(Value::default());
                    list.push_front(&mut arena, slot);
                    model.push_front(slot);
                }
                2 => {
                    list.rotate(&mut arena);
                    model.rotate_left(1.min(model.len()));
                }
                _ if !model.is_empty() => {
                    let place = random.usize(0..model.len());
                    let slot = model.remove(place).unwrap();
                    list.remove(&mut arena, slot);
                    arena.remove(slot);
                }
                _ => {}
            }
            assert_eq!(list.first(), model.front().copied());
            assert_eq!(list.len() as usize, model.len());
        }
        assert_eq!(list.slots(&mut arena), Vec::from(model));
    }
}
