//! Handles in pages of fixed size: a queue that grows never copies what it holds, as a doubling
//! vector would, and an index stays good until its handle is removed.

/// Octets of a page at most.  It is a size in which the allocator deals: a few octets more, and it
/// would give a sixth more, of which huge pages make memory that is never touched and yet taken.
const PAGE_OCTETS: usize = 96 * 1024;

/// The place of a value in an [`Arena`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

/// Values that keep their place.  Memory is 16 bits of bookkeeping over the value's own size and
/// is given back when the arena is dropped.
pub struct Arena<T> {
    pages: Vec<Box<[Entry<T>]>>,
    free: Option<Slot>,
    len: usize,
}

enum Entry<T> {
    Free { next: Option<Slot> },
    Used(T),
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Arena { pages: Vec::new(), free: None, len: 0 }
    }
}

impl<T> Arena<T> {
    /// Slots of a page.
    const PAGE: usize = PAGE_OCTETS / size_of::<Entry<T>>();

    /// Puts a value in.
    pub fn insert(&mut self, value: T) -> Slot {
        let slot = match self.free {
            Some(slot) => slot,
            None => self.grow(),
        };
        let entry = self.entry(slot);
        let Entry::Free { next } = *entry else { unreachable!("the free list holds free slots") };
        *entry = Entry::Used(value);
        self.free = next;
        self.len += 1;
        slot
    }

    /// Takes a value out; `None` if there is none.
    pub fn remove(&mut self, slot: Slot) -> Option<T> {
        self.get(slot)?;
        let next = self.free;
        let Entry::Used(value) = std::mem::replace(self.entry(slot), Entry::Free { next }) else {
            unreachable!("it was looked at just now")
        };
        self.free = Some(slot);
        self.len -= 1;
        Some(value)
    }

    /// The value in `slot`.
    pub fn get(&self, slot: Slot) -> Option<&T> {
        match self.pages.get(slot.0 as usize / Self::PAGE)?.get(slot.0 as usize % Self::PAGE)? {
            Entry::Used(value) => Some(value),
            Entry::Free { .. } => None,
        }
    }

    /// The value in `slot`, to be changed.
    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut T> {
        match self
            .pages
            .get_mut(slot.0 as usize / Self::PAGE)?
            .get_mut(slot.0 as usize % Self::PAGE)?
        {
            Entry::Used(value) => Some(value),
            Entry::Free { .. } => None,
        }
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many places there are, free ones too.
    pub fn places(&self) -> u32 {
        (self.pages.len() * Self::PAGE) as u32
    }

    /// All values with their places.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, &T)> {
        self.pages.iter().flatten().enumerate().filter_map(|(place, entry)| match entry {
            Entry::Used(value) => Some((Slot(place as u32), value)),
            Entry::Free { .. } => None,
        })
    }

    fn entry(&mut self, slot: Slot) -> &mut Entry<T> {
        &mut self.pages[slot.0 as usize / Self::PAGE][slot.0 as usize % Self::PAGE]
    }

    /// Adds a page and gives its first slot; the rest of it is chained behind.
    fn grow(&mut self) -> Slot {
        let first = (self.pages.len() * Self::PAGE) as u32;
        let chain = |place: usize| Entry::Free {
            next: (place + 1 < Self::PAGE).then(|| Slot(first + place as u32 + 1)),
        };
        self.pages.push((0..Self::PAGE).map(chain).collect());
        Slot(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_place_and_free_places_are_used_again() {
        let mut arena = Arena::default();
        let slots: Vec<Slot> =
            (0..3 * Arena::<usize>::PAGE).map(|value| arena.insert(value)).collect();
        for (value, &slot) in slots.iter().enumerate() {
            assert_eq!(arena.get(slot), Some(&value));
        }
        assert_eq!(arena.remove(slots[7]), Some(7));
        assert_eq!(arena.remove(slots[7]), None);
        assert_eq!(arena.get(slots[7]), None);
        assert_eq!(arena.insert(99), slots[7]);
        assert_eq!(arena.len(), 3 * Arena::<usize>::PAGE);
        assert_eq!(arena.iter().count(), 3 * Arena::<usize>::PAGE);
        assert_eq!(arena.get(Slot(u32::MAX)), None);
    }
}
