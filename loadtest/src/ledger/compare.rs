//! What follows from two ledgers.
//!
//! The plain version: for each id, hold what the source says against what came to the sink.
//! Done on sorted records, so that memory is two arrays of 32 octets a message and time is that
//! of sorting.
//!
//! The rules:
//! - acknowledged, and fewer recipients arrived than were accepted: **lost**;
//! - more arrived than were accepted: **duplicated**; as many but others: **misdirected**;
//! - arrived, but another body: **damaged**;
//! - refused by the server and yet arrived: a fault of the server; no final reply and yet
//!   arrived: it may;
//! - a message of a session that arrived after a later one of the same session: **reordered**
//!   (SMTP promises no order; it is told, not judged).

use std::collections::HashMap;

use hdrhistogram::Histogram;

use super::record::{Record, Verdict};

/// Ids that are shown of each kind.
const SHOWN: usize = 5;
/// The longest time from acknowledgement to arrival that is counted in full: a day.
const ARRIVAL_MAX_US: u64 = 86_400_000_000;

/// Messages of one kind: how many, and the first few.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Kind {
    /// How many messages.
    pub count: u64,
    /// The first few.
    pub shown: Vec<Record>,
}

/// What follows.
#[derive(Debug)]
pub struct Comparison {
    /// The final reply was 2xx.
    pub acknowledged: u64,
    /// The final reply was 4xx or 5xx.
    pub refused: u64,
    /// No final reply came.
    pub unknown: u64,
    /// Arrivals at the sink that are of these runs, copies included.
    pub arrived: u64,
    /// Arrivals of other runs.
    pub foreign: u64,
    /// Acknowledged, and for at least one recipient not arrived.
    pub lost: Kind,
    /// Arrived for more recipients than were accepted.
    pub duplicated: Kind,
    /// Arrived for as many recipients, but not for the same.
    pub misdirected: Kind,
    /// Arrived with another body.
    pub damaged: Kind,
    /// Refused, and yet arrived.
    pub refused_but_arrived: Kind,
    /// Never acknowledged nor refused, and yet arrived.
    pub unknown_but_arrived: Kind,
    /// Arrived after a later one of its session.
    pub reordered: Kind,
    /// From the acknowledgement to the first arrival, in microseconds.
    pub delay_us: Histogram<u64>,
    /// Arrivals before the acknowledgement: the server passes on before it says so, or two
    /// machines' clocks differ.
    pub arrived_first: u64,
    /// Arrivals by the address they came to, where that was recorded.
    pub by_address: HashMap<u32, u64>,
    /// Records of one id in the source's ledger after the first: the books themselves are wrong.
    pub repeated_ids: u64,
}

impl Kind {
    fn add(&mut self, record: Record) {
        self.count += 1;
        if self.shown.len() < SHOWN {
            self.shown.push(record);
        }
    }
}

impl Comparison {
    /// Whether the server kept its promises.
    pub fn is_clean(&self) -> bool {
        let faults = [
            &self.lost,
            &self.duplicated,
            &self.misdirected,
            &self.damaged,
            &self.refused_but_arrived,
        ];
        faults.iter().all(|kind| kind.count == 0) && self.repeated_ids == 0
    }
}

/// Holds the source's records against the sink's; both come back sorted by id.
pub fn compare(sent: &mut [Record], arrived: &mut [Record]) -> Comparison {
    let mut comparison = Comparison {
        acknowledged: 0,
        refused: 0,
        unknown: 0,
        arrived: 0,
        foreign: 0,
        lost: Kind::default(),
        duplicated: Kind::default(),
        misdirected: Kind::default(),
        damaged: Kind::default(),
        refused_but_arrived: Kind::default(),
        unknown_but_arrived: Kind::default(),
        reordered: Kind::default(),
        delay_us: Histogram::new_with_max(ARRIVAL_MAX_US, 3).expect("sound bounds"),
        arrived_first: 0,
        by_address: HashMap::new(),
        repeated_ids: 0,
    };
    arrived.sort_unstable_by_key(|record| (record.time_ns, record.id));
    find_reordered(arrived, &mut comparison.reordered);
    // Ids of equal time stay in the order of their arrival.
    arrived.sort_unstable_by_key(|record| (record.id, record.time_ns));
    sent.sort_unstable_by_key(|record| (record.id, record.time_ns));
    let mut rest = &arrived[..];
    let mut last = None;
    for record in sent.iter() {
        if last == Some(record.id) {
            comparison.repeated_ids += 1;
            continue;
        }
        last = Some(record.id);
        let before = rest.partition_point(|other| other.id < record.id);
        comparison.unsent(&rest[..before], sent);
        rest = &rest[before..];
        let copies = rest.iter().take_while(|other| other.id == record.id).count();
        comparison.judge(record, &rest[..copies]);
        rest = &rest[copies..];
    }
    comparison.unsent(rest, sent);
    comparison
}

impl Comparison {
    /// One message that the source knows of.
    fn judge(&mut self, sent: &Record, copies: &[Record]) {
        match sent.verdict {
            Verdict::Refused => self.refused += 1,
            Verdict::Unknown => self.unknown += 1,
            _ => self.acknowledged += 1,
        }
        self.arrived += copies.len() as u64;
        for copy in copies.iter().filter(|copy| copy.address != 0) {
            *self.by_address.entry(copy.address).or_default() += 1;
        }
        let Some(first) = copies.first() else {
            if sent.verdict == Verdict::Acknowledged {
                self.lost.add(*sent);
            }
            return;
        };
        if let Some(damaged) = copies.iter().find(|copy| copy.verdict == Verdict::Damaged) {
            self.damaged.add(*damaged);
        }
        match sent.verdict {
            Verdict::Refused => return self.refused_but_arrived.add(*first),
            Verdict::Unknown => return self.unknown_but_arrived.add(*first),
            _ => {}
        }
        let recipients: u32 = copies.iter().map(|copy| u32::from(copy.recipients)).sum();
        let sum = copies.iter().fold(0u32, |sum, copy| sum.wrapping_add(copy.recipients_sum));
        match recipients.cmp(&u32::from(sent.recipients)) {
            std::cmp::Ordering::Less => self.lost.add(*sent),
            std::cmp::Ordering::Greater => self.duplicated.add(copies[copies.len() - 1]),
            std::cmp::Ordering::Equal if sum != sent.recipients_sum => self.misdirected.add(*first),
            std::cmp::Ordering::Equal => {}
        }
        match first.time_ns.checked_sub(sent.time_ns) {
            None => self.arrived_first += 1,
            Some(delay_ns) => self.delay_us.saturating_record(delay_ns / 1_000),
        }
    }

    /// Arrivals that the source has no record of: its own that it was killed over, or foreign.
    fn unsent(&mut self, arrived: &[Record], sent: &[Record]) {
        for record in arrived {
            // The runs of the source's ledger; sorted by id, they lie together.
            let run = record.id.run();
            let at = sent.partition_point(|other| other.id.run() < run);
            if sent.get(at).is_some_and(|other| other.id.run() == run) {
                self.arrived += 1;
                self.unknown_but_arrived.add(*record);
            } else {
                self.foreign += 1;
            }
        }
    }
}

/// `arrived` is in the order of arrival; a copy of what came before counts once.
fn find_reordered(arrived: &[Record], reordered: &mut Kind) {
    let mut latest: HashMap<u64, u32> = HashMap::new();
    for record in arrived {
        let number = record.id.number();
        let highest = latest.entry(record.id.session()).or_insert(number);
        if number < *highest {
            reordered.add(*record);
        } else {
            *highest = number;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::MessageId;

    fn sent(number: u32, verdict: Verdict) -> Record {
        let id = MessageId::new(1, 0, number);
        let time_ns = 1_000_000 * u64::from(number);
        Record { id, time_ns, recipients_sum: 9, recipients: 1, verdict, address: 0 }
    }

    fn came(number: u32) -> Record {
        let record = sent(number, Verdict::Intact);
        Record { time_ns: record.time_ns + 5_000_000, ..record }
    }

    /// `(lost, duplicated, misdirected, damaged, refused, unknown, reordered)`.
    fn counts(mut source: Vec<Record>, mut sink: Vec<Record>) -> [u64; 7] {
        let found = compare(&mut source, &mut sink);
        [
            found.lost.count,
            found.duplicated.count,
            found.misdirected.count,
            found.damaged.count,
            found.refused_but_arrived.count,
            found.unknown_but_arrived.count,
            found.reordered.count,
        ]
    }

    #[test]
    fn each_fault_is_told_as_what_it_is() {
        let acknowledged = |number| sent(number, Verdict::Acknowledged);
        let all: Vec<Record> = (0..3).map(acknowledged).collect();
        let table = [
            (vec![came(0), came(1), came(2)], [0, 0, 0, 0, 0, 0, 0]),
            (vec![came(0), came(2)], [1, 0, 0, 0, 0, 0, 0]),
            (vec![came(0), came(1), came(2), came(2)], [0, 1, 0, 0, 0, 0, 0]),
            (
                vec![came(0), Record { recipients_sum: 8, ..came(1) }, came(2)],
                [0, 0, 1, 0, 0, 0, 0],
            ),
            (
                vec![Record { verdict: Verdict::Damaged, ..came(0) }, came(1), came(2)],
                [0, 0, 0, 1, 0, 0, 0],
            ),
            (
                vec![Record { time_ns: 99_000_000, ..came(0) }, came(1), came(2)],
                [0, 0, 0, 0, 0, 0, 1],
            ),
            (vec![came(0), came(1), came(2), came(3)], [0, 0, 0, 0, 0, 1, 0]),
        ];
        for (sink, expected) in table {
            assert_eq!(counts(all.clone(), sink.clone()), expected, "{sink:?}");
        }
        let mixed = vec![sent(0, Verdict::Refused), sent(1, Verdict::Unknown)];
        assert_eq!(counts(mixed.clone(), vec![came(0), came(1)]), [0, 0, 0, 0, 1, 1, 0]);
        assert_eq!(counts(mixed, vec![]), [0; 7]);
    }

    #[test]
    fn a_message_may_come_in_parts_for_its_recipients() {
        let whole = Record { recipients: 3, recipients_sum: 30, ..sent(0, Verdict::Acknowledged) };
        let two = Record { recipients: 2, recipients_sum: 25, ..came(0) };
        let one = Record { recipients: 1, recipients_sum: 5, ..came(0) };
        assert_eq!(counts(vec![whole], vec![two, one]), [0; 7]);
        assert_eq!(counts(vec![whole], vec![two])[0], 1);
        assert_eq!(counts(vec![whole], vec![two, two])[1], 1);
    }

    #[test]
    fn other_runs_are_foreign_and_times_are_taken() {
        let foreign = Record { id: MessageId::new(2, 0, 0), ..came(0) };
        let mut source = vec![sent(0, Verdict::Acknowledged)];
        let found = compare(&mut source, &mut [came(0), foreign]);
        assert_eq!((found.foreign, found.arrived), (1, 1));
        assert!((4_990..5_010).contains(&found.delay_us.max()));
        assert!(found.is_clean());
    }
}
