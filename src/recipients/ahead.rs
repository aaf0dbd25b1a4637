//! What next hops have said about recipients: remembered for a while, bounded.
//!
//! Pure but for the lock of its table; time is an argument.  Who asks, and how, is
//! [`crate::inbound::ahead`]'s.  A yes that has run out is kept: it counts while the next hop does
//! not answer, so that its failure does not turn away mail for those who were there yesterday.

use std::time::{Duration, Instant};

use crate::peers::lapsing::{Lapses, Table};
use crate::queue::site::SiteId;
use crate::smtp::address::ForwardPath;

/// A recipient at a next hop.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Asked {
    site: SiteId,
    address: Box<str>,
}

impl Asked {
    /// This recipient at the next hop of this site.
    pub fn new(site: SiteId, path: &ForwardPath) -> Asked {
        Asked { site, address: path.folded().into() }
    }
}

/// What is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remembered {
    /// The recipient is there.
    There,
    /// It was there; ask again.
    WasThere,
    /// It is not there.
    NotThere,
}

/// The answers of next hops, for all workers.
pub struct Answers {
    table: Table<Asked, Answer>,
    positive: Duration,
    negative: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Answer {
    is_there: bool,
    believed_until: Instant,
}

impl Lapses for Answer {
    fn lapses(&self) -> Instant {
        if self.is_there { self.believed_until + KEPT_AFTER } else { self.believed_until }
    }
}

impl Answers {
    /// Room for so many, believed for so long.
    pub fn new(entries: usize, positive: Duration, negative: Duration) -> Answers {
        Answers { table: Table::new(entries), positive, negative }
    }

    /// What was said of the recipient, if that still counts for something.
    pub fn recall(&self, asked: &Asked, now: Instant) -> Option<Remembered> {
        let answer = self.table.read(asked, |answer| *answer)?;
        match (answer.is_there, answer.believed_until > now) {
            (true, true) => Some(Remembered::There),
            (true, false) => (answer.lapses() > now).then_some(Remembered::WasThere),
            (false, true) => Some(Remembered::NotThere),
            (false, false) => None,
        }
    }

    /// The next hop has answered.
    pub fn learn(&self, asked: &Asked, is_there: bool, now: Instant) {
        let lasts = if is_there { self.positive } else { self.negative };
        let answer = Answer { is_there, believed_until: now + lasts };
        self.table.change(asked, now, || answer, |known| *known = answer);
    }
}

/// How much longer a yes counts while the next hop does not answer.
const KEPT_AFTER: Duration = Duration::from_secs(7 * 86_400);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smtp::address::Utf8;

    fn asked(address: &str) -> Asked {
        let path = ForwardPath::parse(format!("<{address}>").as_bytes(), Utf8::Refused);
        Asked::new(SiteId(1), &path.expect("an address"))
    }

    #[test]
    fn a_yes_outlasts_itself_and_a_no_does_not() {
        let (positive, negative) = (Duration::from_secs(60), Duration::from_secs(10));
        let answers = Answers::new(1_000, positive, negative);
        let now = Instant::now();
        let at = |address: &str, s| answers.recall(&asked(address), now + Duration::from_secs(s));
        assert_eq!(at("a@x.example", 0), None);
        answers.learn(&asked("a@x.example"), true, now);
        answers.learn(&asked("B@x.example"), false, now);
        assert_eq!(at("A@X.example", 59), Some(Remembered::There));
        assert_eq!(at("a@x.example", 60), Some(Remembered::WasThere));
        assert_eq!(at("a@x.example", 60 + 7 * 86_400), None);
        assert_eq!(at("b@x.example", 9), Some(Remembered::NotThere));
        assert_eq!(at("b@x.example", 10), None);
        answers.learn(&asked("a@x.example"), false, now);
        assert_eq!(at("a@x.example", 0), Some(Remembered::NotThere));
    }

    #[test]
    fn there_is_room_for_so_many() {
        let answers = Answers::new(1_600, Duration::from_secs(60), Duration::from_secs(60));
        let now = Instant::now();
        for number in 0..20_000 {
            answers.learn(&asked(&format!("p{number}@x.example")), number % 2 == 0, now);
        }
        assert!(answers.table.len() <= 1_600);
    }
}
