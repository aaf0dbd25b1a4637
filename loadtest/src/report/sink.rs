//! The summary of `sink`.

use std::fmt::{self, Display};
use std::time::Duration;

use serde::Serialize;

use super::usage::CpuTime;
use crate::units::{Octets, grouped};

/// Numbers that only grow.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Connections that came.
    pub connections: u64,
    /// Connections over a port's limit.
    pub turned_away: u64,
    /// Messages that were accepted.
    pub messages: u64,
    /// Their recipients.
    pub recipients: u64,
    /// Their octets, dots taken out.
    pub octets: u64,
    /// Recipients that were refused.
    pub recipients_refused: u64,
    /// Messages that were refused at their end.
    pub refused: u64,
    /// Messages in the midst of which the connection was reset.
    pub broken: u64,
    /// Messages that carry no id, where books are kept.
    pub unmarked: u64,
    /// Messages that are not what was sent under their id, where books are kept.
    pub damaged: u64,
}

/// What a sink came to; its JSON form is what `--json` prints.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    schema: u32,
    seconds: f64,
    #[serde(flatten)]
    counts: Counts,
    cpu_user_us: f64,
    cpu_system_us: f64,
}

impl Summary {
    /// Adds what one thread came to.
    pub fn add(&mut self, other: Counts) {
        let counts = &mut self.counts;
        counts.connections += other.connections;
        counts.turned_away += other.turned_away;
        counts.messages += other.messages;
        counts.recipients += other.recipients;
        counts.octets += other.octets;
        counts.recipients_refused += other.recipients_refused;
        counts.refused += other.refused;
        counts.broken += other.broken;
        counts.unmarked += other.unmarked;
        counts.damaged += other.damaged;
    }

    /// The sink was open for `elapsed`.
    pub fn finish(&mut self, elapsed: Duration, cpu: CpuTime) {
        self.schema = 1;
        self.seconds = elapsed.as_secs_f64();
        (self.cpu_user_us, self.cpu_system_us) = cpu.per_us(self.counts.messages);
    }

    /// What was counted.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// As one JSON object.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("numbers and strings only")
    }
}

impl Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        writeln!(
            f,
            "{} messages for {} recipients on {} connections, {}",
            grouped(counts.messages),
            grouped(counts.recipients),
            grouped(counts.connections),
            Octets(counts.octets),
        )?;
        for (count, what) in [
            (counts.turned_away, "connections turned away"),
            (counts.recipients_refused, "recipients refused"),
            (counts.refused, "messages refused at their end"),
            (counts.broken, "connections broken in the middle of a message"),
            (counts.unmarked, "messages without an id"),
            (counts.damaged, "messages damaged"),
        ] {
            if count > 0 {
                writeln!(f, "  {} {what}", grouped(count))?;
            }
        }
        writeln!(
            f,
            "  this sink used {:.1} us of CPU a message ({:.1} user, {:.1} system)",
            self.cpu_user_us + self.cpu_system_us,
            self.cpu_user_us,
            self.cpu_system_us,
        )
    }
}
