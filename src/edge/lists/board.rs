//! What all workers know of one list: whether it counts, and what they saw of it.
//!
//! Atomics and nothing else: every worker writes what it sees, the one that keeps watch
//! ([`super::watch`]) takes it, and publishes the state.  Nothing here orders anything else, so all
//! of it is relaxed: who learns a moment late that a list is off does not believe its odd answers
//! all the same.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use super::health::{State, Trouble};
use super::query::{Oddity, Reading};

/// What is known of one list.
#[derive(Debug, Default)]
pub struct Board {
    /// As [`encode`] writes it.
    state: AtomicU8,
    /// Questions in a row that nobody answered.
    silence: AtomicU32,
    /// An answer that says that something is wrong, until somebody has taken notice: 0 none, 1 a
    /// refusal, 2 a foreign one.
    odd: AtomicU8,
    figures: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    asked: AtomicU64,
    listed: AtomicU64,
    odd: AtomicU64,
    unanswered: AtomicU64,
}

/// What a list was asked and answered since the start, its test entries left out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Questions, from the cache or not.
    pub asked: u64,
    /// Answers that were listings.
    pub listed: u64,
    /// Answers that were neither listings nor absences.
    pub odd: u64,
    /// Questions that nobody answered.
    pub unanswered: u64,
}

impl Board {
    /// Whether the list counts.
    pub fn state(&self) -> State {
        decode(self.state.load(Ordering::Relaxed))
    }

    /// Tells all workers whether it does.
    pub fn publish(&self, state: State) {
        self.state.store(encode(state), Ordering::Relaxed);
    }

    /// A question has come to its end, by an answer that was remembered or not.
    pub fn count(&self, reading: &Reading) {
        let add = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        add(&self.figures.asked);
        match reading {
            Reading::Listed(_) => {
                add(&self.figures.listed);
            }
            Reading::NotListed => {}
            Reading::Odd(_) => {
                add(&self.figures.odd);
            }
            Reading::Unanswered(_) => {
                add(&self.figures.unanswered);
            }
        }
    }

    /// What the list, and no memory of ours, has said or not: what its health is judged by.
    pub fn saw(&self, reading: &Reading) {
        match reading {
            Reading::Odd(Oddity::Refusal(_)) => self.odd.store(1, Ordering::Relaxed),
            Reading::Odd(Oddity::Foreign(_)) => self.odd.store(2, Ordering::Relaxed),
            _ => {}
        }
        match reading {
            Reading::Unanswered(_) => {
                // A wrap would need as many silent questions in a row.
                self.silence.fetch_add(1, Ordering::Relaxed);
            }
            _ if self.silence.load(Ordering::Relaxed) != 0 => {
                self.silence.store(0, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    /// An odd answer that nobody has taken notice of yet.
    pub fn take_odd(&self) -> Option<Trouble> {
        if self.odd.load(Ordering::Relaxed) == 0 {
            return None;
        }
        match self.odd.swap(0, Ordering::Relaxed) {
            0 => None,
            1 => Some(Trouble::Refuses),
            _ => Some(Trouble::ForeignAnswers),
        }
    }

    /// Questions in a row, up to now, that nobody answered.
    pub fn silence(&self) -> u32 {
        self.silence.load(Ordering::Relaxed)
    }

    /// The state has changed: what was seen before it says nothing any more.
    pub fn forget(&self) {
        self.silence.store(0, Ordering::Relaxed);
        self.odd.store(0, Ordering::Relaxed);
    }

    /// What it was asked and answered.
    pub fn figures(&self) -> Figures {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Figures {
            asked: read(&self.figures.asked),
            listed: read(&self.figures.listed),
            odd: read(&self.figures.odd),
            unanswered: read(&self.figures.unanswered),
        }
    }
}

/// Troubles in the order of their numbers, from 2 on.
const TROUBLES: [Trouble; 5] = [
    Trouble::TestEntryMissing,
    Trouble::ListsEverything,
    Trouble::Refuses,
    Trouble::ForeignAnswers,
    Trouble::NoAnswers,
];

fn encode(state: State) -> u8 {
    match state {
        State::Starting => 0,
        State::On => 1,
        State::Off(trouble) => {
            let number = TROUBLES.iter().position(|&one| one == trouble);
            2 + number.expect("all troubles have numbers") as u8
        }
    }
}

fn decode(number: u8) -> State {
    match number {
        0 => State::Starting,
        1 => State::On,
        off => State::Off(TROUBLES[usize::from(off) - 2]),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn every_state_can_be_published() {
        let board = Board::default();
        assert_eq!(board.state(), State::Starting);
        let states = TROUBLES.map(State::Off).into_iter().chain([State::On, State::Starting]);
        for state in states {
            board.publish(state);
            assert_eq!(board.state(), state);
        }
    }

    #[test]
    fn what_was_seen_is_counted_and_taken_notice_of_once() {
        let board = Board::default();
        let code = Ipv4Addr::new(127, 255, 255, 254);
        let seen = |reading: Reading| {
            board.count(&reading);
            board.saw(&reading);
        };
        seen(Reading::Unanswered("".into()));
        seen(Reading::Unanswered("".into()));
        assert_eq!((board.silence(), board.take_odd()), (2, None));
        seen(Reading::Odd(Oddity::Unnamed(code)));
        assert_eq!((board.silence(), board.take_odd()), (0, None));
        seen(Reading::Odd(Oddity::Refusal(code)));
        assert_eq!(board.take_odd(), Some(Trouble::Refuses));
        assert_eq!(board.take_odd(), None);
        seen(Reading::Odd(Oddity::Foreign(code)));
        board.forget();
        assert_eq!(board.take_odd(), None);
        seen(Reading::Listed(vec![code]));
        seen(Reading::NotListed);
        let figures = Figures { asked: 7, listed: 1, odd: 3, unanswered: 2 };
        assert_eq!(board.figures(), figures);
    }
}
