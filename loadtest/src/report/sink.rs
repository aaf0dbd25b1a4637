//! The summary of `sink`.

use std::fmt::{self, Display};
use std::time::Duration;

use serde::Serialize;

use super::usage::CpuTime;
use crate::sink::sites::Traffic;
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
    /// Messages that were not entered in the books, as they were told to be.
    pub lost: u64,
    /// Messages that were entered twice, as they were told to be.
    pub doubled: u64,
    /// Messages that were entered behind the next one, as they were told to be.
    pub reordered: u64,
    /// Recipients that came to another site than their domain's.
    pub misrouted: u64,
}

/// What came to one port or site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Its name.
    pub name: String,
    /// Sessions that came and were not turned away.
    pub sessions: u64,
    /// The most of them at a time.
    pub sessions_max: usize,
    /// Messages that it took.
    pub messages: u64,
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
    places: Vec<Place>,
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
        counts.lost += other.lost;
        counts.doubled += other.doubled;
        counts.reordered += other.reordered;
        counts.misrouted += other.misrouted;
    }

    /// Adds a port or a site.
    pub fn place(&mut self, name: String, traffic: &Traffic) {
        let (sessions_max, sessions, messages) = traffic.so_far();
        self.places.push(Place { name, sessions, sessions_max, messages });
    }

    /// What came where.
    pub fn places(&self) -> &[Place] {
        &self.places
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

/// Places that are shown one by one.
const SHOWN: usize = 8;

impl Summary {
    /// Those with the most sessions at a time.
    fn tell_places(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut used: Vec<&Place> = self.places.iter().filter(|one| one.sessions > 0).collect();
        used.sort_by_key(|one| std::cmp::Reverse((one.sessions_max, one.messages)));
        for place in used.iter().take(SHOWN) {
            writeln!(
                f,
                "  {}: at most {} sessions at a time, {} in all, {} messages",
                place.name,
                grouped(place.sessions_max as u64),
                grouped(place.sessions),
                grouped(place.messages),
            )?;
        }
        match used.get(SHOWN..) {
            None | Some([]) => Ok(()),
            Some(others) => writeln!(
                f,
                "  {} others: at most {} sessions at a time, from {} to {} messages",
                grouped(others.len() as u64),
                grouped(others[0].sessions_max as u64),
                grouped(others.iter().map(|one| one.messages).min().unwrap_or(0)),
                grouped(others.iter().map(|one| one.messages).max().unwrap_or(0)),
            ),
        }
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
            (counts.lost, "messages not entered in the books, as told"),
            (counts.doubled, "messages entered twice, as told"),
            (counts.reordered, "messages entered late, as told"),
            (counts.misrouted, "recipients that came to another site than their domain's"),
        ] {
            if count > 0 {
                writeln!(f, "  {} {what}", grouped(count))?;
            }
        }
        self.tell_places(f)?;
        writeln!(
            f,
            "  this sink used {:.1} us of CPU a message ({:.1} user, {:.1} system)",
            self.cpu_user_us + self.cpu_system_us,
            self.cpu_user_us,
            self.cpu_system_us,
        )
    }
}
