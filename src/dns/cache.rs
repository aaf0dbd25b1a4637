//! What has been answered, for as long as it may be believed.
//!
//! Pure: the clock is an argument.  Invariants: an entry is given out only until it expires; there
//! are never more than [`DNS_CACHE_ENTRIES`] of them nor more than [`DNS_CACHE_OCTETS`], and what
//! expires soonest goes first, so that expired entries go before any that still count.
//!
//! An entry stays beyond its time until its place is needed, since a failure that is repeated is
//! remembered for longer (RFC 9520 section 3.2).

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{Answer, Exchange, Name, Record, RecordType};
use crate::limits::{DNS_CACHE_ENTRIES, DNS_CACHE_OCTETS, DNS_FAILURE_TTL, DNS_FAILURE_TTL_MAX};

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Question {
    /// About this name.
    pub name: Name,
    /// For records of this type.
    pub kind: RecordType,
}

/// The answers of one core.
#[derive(Debug)]
pub struct Cache {
    entries: HashMap<Question, Entry>,
    /// The questions by when their answers expire; the number tells those of one moment apart.
    by_expiry: BTreeMap<(Instant, u64), Question>,
    next_number: u64,
    octets: usize,
    entries_max: usize,
    octets_max: usize,
}

#[derive(Debug)]
struct Entry {
    answer: Rc<Answer>,
    number: u64,
    octets: usize,
    /// Failures in a row, this one counted.
    failures: u32,
}

impl Default for Cache {
    fn default() -> Cache {
        Cache::bounded(DNS_CACHE_ENTRIES, DNS_CACHE_OCTETS)
    }
}

impl Cache {
    fn bounded(entries_max: usize, octets_max: usize) -> Cache {
        Cache {
            entries: HashMap::new(),
            by_expiry: BTreeMap::new(),
            next_number: 0,
            octets: 0,
            entries_max,
            octets_max,
        }
    }

    /// The answer to a question, if there is one that still counts.
    pub fn find(&self, question: &Question, now: Instant) -> Option<Rc<Answer>> {
        let entry = self.entries.get(question)?;
        (now < entry.answer.expires).then(|| entry.answer.clone())
    }

    /// Whether nobody could answer a question the last time, as far as that is remembered.
    pub fn has_failed(&self, question: &Question) -> bool {
        self.entries.get(question).is_some_and(|entry| entry.failures > 0)
    }

    /// Keeps an answer; it takes the place of an older one.
    pub fn put(&mut self, question: Question, answer: Answer) -> Rc<Answer> {
        self.remove(&question);
        self.insert(question, Rc::new(answer), 0)
    }

    /// Remembers that nobody could answer: at first briefly, longer with each failure in a row.
    pub fn put_failure(&mut self, question: Question, why: &str, now: Instant) -> Rc<Answer> {
        let failures = self.remove(&question).map_or(0, |entry| entry.failures);
        let ttl = failure_ttl(failures);
        self.insert(question, Rc::new(Answer::temporary(why, now, ttl)), failures.saturating_add(1))
    }

    /// How many answers there are, expired ones counted.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn insert(&mut self, question: Question, answer: Rc<Answer>, failures: u32) -> Rc<Answer> {
        let (number, octets) = (self.next_number, weight(&question, &answer));
        self.next_number += 1;
        while self.entries.len() >= self.entries_max || self.octets + octets > self.octets_max {
            let Some((_, oldest)) = self.by_expiry.first_key_value() else { break };
            let oldest = oldest.clone();
            self.remove(&oldest);
        }
        self.octets += octets;
        self.by_expiry.insert((answer.expires, number), question.clone());
        self.entries.insert(question, Entry { answer: answer.clone(), number, octets, failures });
        answer
    }

    fn remove(&mut self, question: &Question) -> Option<Entry> {
        let entry = self.entries.remove(question)?;
        self.octets -= entry.octets;
        self.by_expiry.remove(&(entry.answer.expires, entry.number));
        Some(entry)
    }
}

/// How long a failure after `failures` others is remembered.
fn failure_ttl(failures: u32) -> Duration {
    let factor = 1u32.checked_shl(failures.min(16)).unwrap_or(u32::MAX);
    DNS_FAILURE_TTL.saturating_mul(factor).min(DNS_FAILURE_TTL_MAX)
}

/// About what an entry takes of memory, in octets.
fn weight(question: &Question, answer: &Answer) -> usize {
    let texts = answer.result.iter().flatten().map(|record| match record {
        Record::Txt(text) => text.len(),
        Record::Mx { exchange: Exchange::Host(name), .. }
        | Record::Ptr(name)
        | Record::Cname(name) => name.as_str().len() + NAME_OVERHEAD,
        Record::Mx { exchange: Exchange::Unusable(name), .. } => name.len(),
        Record::Mx { exchange: Exchange::Null, .. } | Record::A(_) | Record::Aaaa(_) => 0,
    });
    let records = answer.result.as_ref().map_or(0, Vec::len) * size_of::<Record>();
    ENTRY_OVERHEAD + question.name.as_str().len() + records + texts.sum::<usize>()
}

/// An entry without its records: the two maps' places, the answer, the shared name.
const ENTRY_OVERHEAD: usize = 320;
/// A name's counters and its allocation.
const NAME_OVERHEAD: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::LookupError;

    fn question(name: &str) -> Question {
        Question { name: Name::parse(name).expect("a name"), kind: RecordType::Txt }
    }

    fn answer(text: &[u8], expires: Instant) -> Answer {
        Answer { result: Ok(vec![Record::Txt(text.into())]), authentic: false, expires }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_answer_counts_until_it_expires() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        cache.put(question("a.example"), answer(b"x", now + SECOND));
        assert!(cache.find(&question("a.example"), now).is_some());
        assert!(cache.find(&question("a.example"), now + SECOND).is_none());
        assert!(cache.find(&question("b.example"), now).is_none());
        let other = Question { kind: RecordType::A, ..question("a.example") };
        assert!(cache.find(&other, now).is_none());
    }

    #[test]
    fn the_bounds_hold_and_what_expires_first_goes_first() {
        let (mut cache, now) = (Cache::bounded(3, 1 << 20), Instant::now());
        for (name, seconds) in [("a", 9), ("b", 3), ("c", 6), ("c", 6), ("d", 12)] {
            cache.put(question(name), answer(b"x", now + seconds * SECOND));
            assert_eq!(cache.entries.len(), cache.by_expiry.len());
        }
        let left = ["a", "b", "c", "d"].map(|name| cache.find(&question(name), now).is_some());
        assert_eq!(left, [true, false, true, true]);
    }

    #[test]
    fn large_answers_push_others_out() {
        let (mut cache, now) = (Cache::bounded(1_000, 100_000), Instant::now());
        for number in 0..100 {
            let name = format!("{number}.example");
            cache.put(question(&name), answer(&[b'x'; 60_000], now + SECOND));
            assert!(cache.octets <= 100_000 && cache.len() == 1);
        }
        cache.remove(&question("99.example"));
        assert_eq!((cache.octets, cache.len(), cache.by_expiry.len()), (0, 0, 0));
    }

    #[test]
    fn a_failure_is_remembered_longer_each_time() {
        let (mut cache, mut now) = (Cache::default(), Instant::now());
        let mut seconds = Vec::new();
        for _ in 0..9 {
            let failure = cache.put_failure(question("a"), "no answer", now);
            assert!(
                matches!(&failure.result, Err(LookupError::Temporary { why }) if **why == *"no answer")
            );
            seconds.push((failure.expires - now).as_secs());
            now = failure.expires;
        }
        assert_eq!(seconds, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
        cache.put(question("a"), answer(b"x", now + SECOND));
        let failure = cache.put_failure(question("a"), "no answer", now + SECOND);
        assert_eq!(failure.expires, now + 6 * SECOND, "an answer between them counts");
    }
}
