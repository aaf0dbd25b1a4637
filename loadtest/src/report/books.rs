//! The summary of `ledger`.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::net::Ipv4Addr;

use serde::Serialize;

use super::send::time;
use crate::ledger::compare::{Comparison, Kind};
use crate::units::grouped;

/// What two ledgers came to, to be printed; its JSON form is what `--json` prints.
#[derive(Debug, Serialize)]
pub struct Books {
    schema: u32,
    is_clean: bool,
    acknowledged: u64,
    refused: u64,
    unknown: u64,
    arrived: u64,
    foreign: u64,
    unreadable_records: u64,
    repeated_ids: u64,
    arrived_before_acknowledged: u64,
    kinds: Vec<Line>,
    /// Arrivals by address, where that was recorded.
    addresses: BTreeMap<Ipv4Addr, u64>,
    delay_us: Delay,
}

#[derive(Debug, Serialize)]
struct Line {
    kind: &'static str,
    count: u64,
    first_ids: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Delay {
    count: u64,
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

impl Books {
    /// Sums up a comparison; `unreadable` records of either ledger were passed over.
    pub fn new(found: &Comparison, unreadable: u64) -> Books {
        let line = |kind, of: &Kind| Line {
            kind,
            count: of.count,
            first_ids: of.shown.iter().map(|record| record.id.to_string()).collect(),
        };
        let delay = &found.delay_us;
        Books {
            schema: 1,
            is_clean: found.is_clean(),
            acknowledged: found.acknowledged,
            refused: found.refused,
            unknown: found.unknown,
            arrived: found.arrived,
            foreign: found.foreign,
            unreadable_records: unreadable,
            repeated_ids: found.repeated_ids,
            arrived_before_acknowledged: found.arrived_first,
            kinds: vec![
                line("lost", &found.lost),
                line("duplicated", &found.duplicated),
                line("misdirected", &found.misdirected),
                line("damaged", &found.damaged),
                line("refused but arrived", &found.refused_but_arrived),
                line("never acknowledged but arrived", &found.unknown_but_arrived),
                line("reordered within a session", &found.reordered),
            ],
            addresses: found.by_address.iter().map(|(at, count)| ((*at).into(), *count)).collect(),
            delay_us: Delay {
                count: delay.len(),
                p50: delay.value_at_quantile(0.5),
                p90: delay.value_at_quantile(0.9),
                p99: delay.value_at_quantile(0.99),
                p999: delay.value_at_quantile(0.999),
                max: delay.max(),
            },
        }
    }

    /// As one JSON object.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("numbers and strings only")
    }
}

impl Display for Books {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} acknowledged, {} refused, {} without an answer; {} arrived",
            grouped(self.acknowledged),
            grouped(self.refused),
            grouped(self.unknown),
            grouped(self.arrived),
        )?;
        for line in &self.kinds {
            write!(f, "{:>12} {}", grouped(line.count), line.kind)?;
            if !line.first_ids.is_empty() {
                write!(f, ": {}", line.first_ids.join(" "))?;
            }
            writeln!(f)?;
        }
        for (count, what) in [
            (self.foreign, "arrivals of runs that are not in the source's ledger"),
            (self.unreadable_records, "records that could not be read"),
            (self.repeated_ids, "ids that the source recorded more than once"),
            (self.arrived_before_acknowledged, "arrived before they were acknowledged"),
        ] {
            if count > 0 {
                writeln!(f, "{:>12} {what}", grouped(count))?;
            }
        }
        let counts = self.addresses.values();
        if let (2.., Some(least), Some(most)) =
            (self.addresses.len(), counts.clone().min(), counts.max())
        {
            let (places, least, most) =
                (self.addresses.len() as u64, grouped(*least), grouped(*most));
            writeln!(f, "arrived at {} addresses, {least} to {most} each", grouped(places))?;
        }
        let delay = &self.delay_us;
        if delay.count > 0 {
            writeln!(
                f,
                "from acknowledgement to arrival: p50 {}, p90 {}, p99 {}, p99.9 {}, max {}",
                time(delay.p50),
                time(delay.p90),
                time(delay.p99),
                time(delay.p999),
                time(delay.max),
            )?;
        }
        let verdict = if self.is_clean { "every promise was kept" } else { "PROMISES WERE BROKEN" };
        writeln!(f, "{verdict}")
    }
}
