//! Whether a list can be believed: a machine that watches its answers and its test entries.
//!
//! Pure: what was seen and the clock come in, what is to be told comes out.  RFC 5782 section 5
//! gives each list entries that must be there and entries that must not, so that a list that has
//! died, lists the whole world or refuses to answer shows itself before it harms mail.
//!
//! A list counts only once its test entries were as they must be: a list that is broken when the
//! gateway starts never refuses anything, and clients that come with the first check wait for it a
//! little ([`Zone::ask`](super::Zone::ask)).

use std::fmt;
use std::time::{Duration, Instant};

use super::query::{Oddity, Reading};

/// Whether a list counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not yet: its test entries have not been seen.
    Starting,
    /// It does.
    On,
    /// It does not.
    Off(Trouble),
}

/// What is wrong with a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// What every list must hold is not there.
    TestEntryMissing,
    /// What no list may hold is there: it lists everything, probably.
    ListsEverything,
    /// It refuses to answer us.
    Refuses,
    /// Its answers are no list's.
    ForeignAnswers,
    /// It did not answer, several times in a row.
    NoAnswers,
}

/// What the test entries looked like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// As they must.
    Good,
    /// Not so.
    Bad(Trouble),
    /// Nobody could say.
    Unanswered,
}

/// What there is to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The list does not count any more.
    Off(Trouble),
    /// It counts again.
    On,
}

/// The health of one list.
#[derive(Debug)]
pub struct Health {
    state: State,
    /// How often it is checked while all is well; `None` for never, and then it always counts.
    interval: Option<Duration>,
    next_check: Instant,
    /// Checks in a row that nobody answered.
    unanswered: u32,
}

impl Health {
    /// A list whose test entries are to be looked at as often as that; zero for never.
    pub fn new(interval: Duration, now: Instant) -> Health {
        let interval = Some(interval).filter(|interval| !interval.is_zero());
        let state = if interval.is_some() { State::Starting } else { State::On };
        Health { state, interval, next_check: now, unanswered: 0 }
    }

    /// Whether it counts.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether its test entries are to be looked at now.
    pub fn is_check_due(&self, now: Instant) -> bool {
        self.interval.is_some() && now >= self.next_check
    }

    /// The test entries were looked at.
    pub fn checked(&mut self, check: Check, now: Instant) -> Option<Change> {
        let interval = self.interval?;
        self.unanswered = match check {
            Check::Unanswered => self.unanswered.saturating_add(1),
            Check::Good | Check::Bad(_) => 0,
        };
        let change = match check {
            Check::Good => self.switch_on(),
            Check::Bad(trouble) => self.switch_off(trouble),
            Check::Unanswered if self.unanswered >= self.unanswered_most() => {
                self.switch_off(Trouble::NoAnswers)
            }
            Check::Unanswered => None,
        };
        let wait = match self.state {
            State::On if self.unanswered == 0 => interval,
            State::Starting => interval.min(RECHECK_AT_START),
            State::On | State::Off(_) => interval.min(RECHECK),
        };
        self.next_check = now + wait;
        change
    }

    /// Checks in a row without an answer that switch it off.
    fn unanswered_most(&self) -> u32 {
        match self.state {
            State::Starting => CHECKS_UNANSWERED_AT_START,
            State::On | State::Off(_) => CHECKS_UNANSWERED,
        }
    }

    /// An answer came that says that something is wrong.
    pub fn saw_odd(&mut self, trouble: Trouble, now: Instant) -> Option<Change> {
        self.doubt(trouble, now)
    }

    /// That many questions in a row had no answer.
    pub fn saw_silence(&mut self, questions: u32, now: Instant) -> Option<Change> {
        match questions >= QUESTIONS_UNANSWERED {
            true => self.doubt(Trouble::NoAnswers, now),
            false => None,
        }
    }

    /// Off at once, unless it is never checked: then nothing would switch it on again, and no
    /// answer that is worth nothing counts in any case.
    fn doubt(&mut self, trouble: Trouble, now: Instant) -> Option<Change> {
        let interval = self.interval?;
        if self.state != State::On {
            return None;
        }
        self.next_check = now + interval.min(RECHECK);
        self.switch_off(trouble)
    }

    fn switch_on(&mut self) -> Option<Change> {
        match std::mem::replace(&mut self.state, State::On) {
            State::Off(_) => Some(Change::On),
            State::Starting | State::On => None,
        }
    }

    /// What it is off for first is what it was switched off for.
    fn switch_off(&mut self, trouble: Trouble) -> Option<Change> {
        if matches!(self.state, State::Off(_)) {
            return None;
        }
        self.state = State::Off(trouble);
        Some(Change::Off(trouble))
    }
}

/// What the readings of a list's test entries say: one that must be there, and those that must
/// not.
pub fn judge(present: &Reading, absent: &[Reading]) -> Check {
    let odd = |reading: &Reading| match reading {
        Reading::Odd(Oddity::Refusal(_)) => Some(Trouble::Refuses),
        Reading::Odd(Oddity::Foreign(_)) => Some(Trouble::ForeignAnswers),
        _ => None,
    };
    let is_there = |reading: &Reading| matches!(reading, Reading::Listed(_) | Reading::Odd(_));
    let is_silent = |reading: &Reading| matches!(reading, Reading::Unanswered(_));
    let all = || std::iter::once(present).chain(absent);
    if let Some(trouble) = all().find_map(odd) {
        Check::Bad(trouble)
    } else if absent.iter().any(is_there) {
        Check::Bad(Trouble::ListsEverything)
    } else if *present == Reading::NotListed {
        Check::Bad(Trouble::TestEntryMissing)
    } else if all().any(is_silent) {
        Check::Unanswered
    } else {
        Check::Good
    }
}

impl Trouble {
    /// Its name in events.
    pub fn as_str(self) -> &'static str {
        match self {
            Trouble::TestEntryMissing => "test_entry_missing",
            Trouble::ListsEverything => "lists_everything",
            Trouble::Refuses => "refuses",
            Trouble::ForeignAnswers => "foreign_answers",
            Trouble::NoAnswers => "no_answers",
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Trouble::TestEntryMissing => "its test entry is missing",
            Trouble::ListsEverything => "it lists what no list may hold",
            Trouble::Refuses => "it refuses to answer",
            Trouble::ForeignAnswers => "its answers are no list's",
            Trouble::NoAnswers => "it does not answer",
        })
    }
}

/// How soon a list is looked at again that is off or did not answer, unless its interval is
/// shorter still.
const RECHECK: Duration = Duration::from_secs(30);
/// The same of one that did not answer at the start: a resolver of the same machine may need a
/// moment longer than the gateway.
const RECHECK_AT_START: Duration = Duration::from_secs(1);
/// Checks in a row without an answer that switch a list off.
const CHECKS_UNANSWERED: u32 = 2;
/// The same at the start.
const CHECKS_UNANSWERED_AT_START: u32 = 6;
/// Questions in a row without an answer that do.  Each of them cost its client the stage's whole
/// deadline.
const QUESTIONS_UNANSWERED: u32 = 8;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(300);
    const CODE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

    fn well(now: Instant) -> Health {
        let mut health = Health::new(INTERVAL, now);
        assert_eq!(health.checked(Check::Good, now), None, "the first time is no news");
        health
    }

    #[test]
    fn a_list_counts_once_its_test_entries_were_good() {
        let now = Instant::now();
        let mut health = Health::new(INTERVAL, now);
        assert_eq!(health.state(), State::Starting);
        assert!(health.is_check_due(now));
        assert_eq!(health.checked(Check::Good, now), None);
        assert_eq!(health.state(), State::On);
        assert!(!health.is_check_due(now + INTERVAL - Duration::from_millis(1)));
        assert!(health.is_check_due(now + INTERVAL));
    }

    #[test]
    fn a_list_that_does_not_answer_at_the_start_is_asked_again_soon() {
        let now = Instant::now();
        let mut health = Health::new(INTERVAL, now);
        assert_eq!(health.checked(Check::Unanswered, now), None);
        assert_eq!(health.state(), State::Starting);
        assert!(health.is_check_due(now + RECHECK_AT_START));
        assert_eq!(health.checked(Check::Good, now + RECHECK_AT_START), None);
        assert_eq!(health.state(), State::On);
        let mut silent = Health::new(INTERVAL, now);
        for _ in 1..CHECKS_UNANSWERED_AT_START {
            assert_eq!(silent.checked(Check::Unanswered, now), None);
        }
        let off = Some(Change::Off(Trouble::NoAnswers));
        assert_eq!(silent.checked(Check::Unanswered, now), off);
    }

    #[test]
    fn a_list_that_is_broken_at_the_start_never_counts() {
        let now = Instant::now();
        for trouble in [Trouble::TestEntryMissing, Trouble::ListsEverything, Trouble::Refuses] {
            let mut health = Health::new(INTERVAL, now);
            assert_eq!(health.checked(Check::Bad(trouble), now), Some(Change::Off(trouble)));
            assert_eq!(health.state(), State::Off(trouble));
        }
    }

    #[test]
    fn trouble_is_told_once_and_so_is_its_end() {
        let mut now = Instant::now();
        let mut health = well(now);
        now += INTERVAL;
        let bad = Check::Bad(Trouble::ListsEverything);
        assert_eq!(health.checked(bad, now), Some(Change::Off(Trouble::ListsEverything)));
        assert_eq!(health.checked(bad, now), None);
        assert_eq!(health.checked(Check::Bad(Trouble::Refuses), now), None);
        assert_eq!(health.state(), State::Off(Trouble::ListsEverything));
        assert!(health.is_check_due(now + RECHECK) && !health.is_check_due(now));
        assert_eq!(health.checked(Check::Good, now + RECHECK), Some(Change::On));
        assert_eq!(health.checked(Check::Good, now + RECHECK), None);
    }

    #[test]
    fn an_odd_answer_switches_off_at_once() {
        let now = Instant::now();
        for trouble in [Trouble::Refuses, Trouble::ForeignAnswers] {
            let mut health = well(now);
            assert_eq!(health.saw_odd(trouble, now), Some(Change::Off(trouble)));
            assert_eq!(health.saw_odd(trouble, now), None, "told already");
            assert!(health.is_check_due(now + RECHECK));
        }
    }

    #[test]
    fn silence_switches_off_after_a_while_only() {
        let now = Instant::now();
        let mut health = well(now);
        assert_eq!(health.saw_silence(QUESTIONS_UNANSWERED - 1, now), None);
        let off = Some(Change::Off(Trouble::NoAnswers));
        assert_eq!(health.saw_silence(QUESTIONS_UNANSWERED, now), off);
        let mut health = well(now);
        assert_eq!(health.checked(Check::Unanswered, now), None);
        assert!(health.is_check_due(now + RECHECK), "and it is asked again soon");
        assert_eq!(health.checked(Check::Unanswered, now), off);
        let mut health = well(now);
        for _ in 0..10 {
            assert_eq!(health.checked(Check::Unanswered, now), None);
            assert_eq!(health.checked(Check::Good, now), None, "not in a row");
        }
    }

    #[test]
    fn a_list_that_is_never_checked_always_counts() {
        let now = Instant::now();
        let mut health = Health::new(Duration::ZERO, now);
        assert!(!health.is_check_due(now + 100 * INTERVAL));
        assert_eq!(health.saw_odd(Trouble::Refuses, now), None);
        assert_eq!(health.saw_silence(1_000, now), None);
        assert_eq!(health.checked(Check::Bad(Trouble::Refuses), now), None);
        assert_eq!(health.state(), State::On);
    }

    #[test]
    fn an_interval_shorter_than_the_recheck_is_kept() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let mut health = Health::new(second, now);
        health.checked(Check::Bad(Trouble::Refuses), now);
        assert!(health.is_check_due(now + second));
    }

    #[test]
    fn test_entries_are_judged() {
        let listed = || Reading::Listed(vec![CODE]);
        let unnamed = || Reading::Odd(Oddity::Unnamed(CODE));
        let refusal = || Reading::Odd(Oddity::Refusal(CODE));
        let foreign = || Reading::Odd(Oddity::Foreign(CODE));
        let silent = || Reading::Unanswered("".into());
        let absent = || Reading::NotListed;
        for (present, forbidden, check) in [
            (listed(), [absent(), absent()], Check::Good),
            // A part of a combined list: its test entry may have the code of another.
            (unnamed(), [absent(), absent()], Check::Good),
            (absent(), [absent(), absent()], Check::Bad(Trouble::TestEntryMissing)),
            (absent(), [silent(), absent()], Check::Bad(Trouble::TestEntryMissing)),
            (listed(), [listed(), absent()], Check::Bad(Trouble::ListsEverything)),
            (listed(), [absent(), unnamed()], Check::Bad(Trouble::ListsEverything)),
            (refusal(), [refusal(), refusal()], Check::Bad(Trouble::Refuses)),
            (listed(), [absent(), refusal()], Check::Bad(Trouble::Refuses)),
            (foreign(), [foreign(), foreign()], Check::Bad(Trouble::ForeignAnswers)),
            (silent(), [absent(), absent()], Check::Unanswered),
            (listed(), [absent(), silent()], Check::Unanswered),
        ] {
            assert_eq!(judge(&present, &forbidden), check, "{present:?} {forbidden:?}");
        }
    }
}
