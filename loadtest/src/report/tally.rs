//! Counts and latencies of one thread, merged when the run is over.
//!
//! Nothing here is shared while the run goes on: a thread counts for itself, and now and then
//! copies the few numbers that the progress line needs into atomics.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

/// The longest latency that is counted in full: an hour.
const LATENCY_MAX_US: u64 = 3_600_000_000;
/// Different replies and failures that are told apart.
const TEXTS_MAX: usize = 64;
/// What of such a text is kept.
const TEXT_LENGTH: usize = 100;

/// What takes time in a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Open loop: from the intended start to the real one, because every session was busy.
    Wait,
    /// Until the connection stands.
    Connect,
    /// From there to the 220.
    Greeting,
    /// EHLO.
    Ehlo,
    /// MAIL.
    Mail,
    /// RCPT.
    Rcpt,
    /// DATA, to the 354.
    Data,
    /// From the end of the message to the final reply.
    Message,
    /// From the intended start to the final reply.
    Whole,
}

impl Step {
    /// All of them, in the order in which they come.
    pub const ALL: [Step; 9] = [
        Step::Wait,
        Step::Connect,
        Step::Greeting,
        Step::Ehlo,
        Step::Mail,
        Step::Rcpt,
        Step::Data,
        Step::Message,
        Step::Whole,
    ];

    /// As it is called in reports.
    pub fn name(self) -> &'static str {
        match self {
            Step::Wait => "wait",
            Step::Connect => "connect",
            Step::Greeting => "greeting",
            Step::Ehlo => "ehlo",
            Step::Mail => "mail",
            Step::Rcpt => "rcpt",
            Step::Data => "data",
            Step::Message => "message",
            Step::Whole => "whole",
        }
    }
}

/// Numbers that only grow.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Messages whose final reply was 2xx.
    pub acknowledged: u64,
    /// Messages refused by 4xx at some step.
    pub refused_for_now: u64,
    /// Messages refused by 5xx at some step.
    pub refused_for_good: u64,
    /// Messages whose connection broke before the final reply.
    pub broken: u64,
    /// Envelopes that were abandoned after their recipients, as they should be.
    pub abandoned: u64,
    /// Messages that still waited for a connection or an answer when the time was up.
    pub unfinished: u64,
    /// Single recipients that were refused.
    pub recipients_refused: u64,
    /// Connections that reached the end of EHLO.
    pub connections: u64,
    /// Connections that did not.
    pub connect_failures: u64,
    /// Octets of acknowledged messages.
    pub octets: u64,
}

/// What one thread, or all of them together, came to.
#[derive(Debug)]
pub struct Tally {
    /// Numbers.
    pub counts: Counts,
    /// Refusals and failures by their text.
    pub texts: BTreeMap<String, u64>,
    /// Messages and connections that were refused, by the step whose reply said so (for
    /// recipients: of the first that was refused) and its code.
    pub refusals: BTreeMap<(Step, u16), u64>,
    /// When the last message was acknowledged, since the start of the run.
    pub last_at: Duration,
    latencies: Vec<Histogram<u64>>,
}

impl Tally {
    /// Nothing yet.
    pub fn new() -> Tally {
        let histogram = || Histogram::new_with_max(LATENCY_MAX_US, 3).expect("sound bounds");
        Tally {
            counts: Counts::default(),
            texts: BTreeMap::new(),
            refusals: BTreeMap::new(),
            last_at: Duration::ZERO,
            latencies: Step::ALL.iter().map(|_| histogram()).collect(),
        }
    }

    /// Counts the time that a step took.
    pub fn took(&mut self, step: Step, time: Duration) {
        self.latencies[step as usize].saturating_record(time.as_micros() as u64);
    }

    /// The latencies of a step, in microseconds.
    pub fn latency(&self, step: Step) -> &Histogram<u64> {
        &self.latencies[step as usize]
    }

    /// Counts a message or a connection that a reply refused.
    pub fn refused(&mut self, at: Step, code: u16) {
        match code / 100 {
            4 => self.counts.refused_for_now += 1,
            _ => self.counts.refused_for_good += 1,
        }
        *self.refusals.entry((at, code)).or_default() += 1;
    }

    /// Counts a refusal or a failure under its text.
    pub fn note(&mut self, text: &str) {
        let kept = text.floor_char_boundary(TEXT_LENGTH);
        self.add_note(&text[..kept], 1);
    }

    fn add_note(&mut self, text: &str, count: u64) {
        if let Some(known) = self.texts.get_mut(text) {
            *known += count;
            return;
        }
        // Texts may hold ids; what is too much is counted under one name.
        let is_full = self.texts.len() >= TEXTS_MAX;
        let text = if is_full { "(other texts)" } else { text };
        *self.texts.entry(text.into()).or_default() += count;
    }

    /// Adds what another thread came to.
    pub fn merge(&mut self, other: Tally) {
        self.counts = self.counts.plus(&other.counts);
        for (text, count) in &other.texts {
            self.add_note(text, *count);
        }
        for (refusal, count) in &other.refusals {
            *self.refusals.entry(*refusal).or_default() += count;
        }
        self.last_at = self.last_at.max(other.last_at);
        for (mine, theirs) in self.latencies.iter_mut().zip(&other.latencies) {
            mine.add(theirs).expect("both were made with the same bounds");
        }
    }
}

impl Default for Tally {
    fn default() -> Tally {
        Tally::new()
    }
}

impl Counts {
    /// Messages that are over, however.
    pub fn finished(&self) -> u64 {
        self.acknowledged
            + self.refused_for_now
            + self.refused_for_good
            + self.broken
            + self.abandoned
    }

    fn plus(self, other: &Counts) -> Counts {
        Counts {
            acknowledged: self.acknowledged + other.acknowledged,
            refused_for_now: self.refused_for_now + other.refused_for_now,
            refused_for_good: self.refused_for_good + other.refused_for_good,
            broken: self.broken + other.broken,
            abandoned: self.abandoned + other.abandoned,
            unfinished: self.unfinished + other.unfinished,
            recipients_refused: self.recipients_refused + other.recipients_refused,
            connections: self.connections + other.connections,
            connect_failures: self.connect_failures + other.connect_failures,
            octets: self.octets + other.octets,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_add_up_and_texts_are_bounded() {
        let (mut one, mut two) = (Tally::new(), Tally::new());
        one.took(Step::Whole, Duration::from_millis(1));
        two.took(Step::Whole, Duration::from_millis(9));
        one.refused(Step::Greeting, 421);
        one.refused(Step::Rcpt, 550);
        two.refused(Step::Rcpt, 550);
        one.counts.acknowledged = 1;
        two.counts.acknowledged = 2;
        for number in 0..1_000 {
            two.note(&format!("451 try later, id {number}"));
        }
        one.merge(two);
        assert_eq!(one.counts.finished(), 6);
        assert_eq!((one.counts.refused_for_now, one.counts.refused_for_good), (1, 2));
        assert_eq!(one.refusals[&(Step::Rcpt, 550)], 2);
        assert_eq!(one.latency(Step::Whole).len(), 2);
        assert!((8_990..=9_010).contains(&one.latency(Step::Whole).max()));
        assert!(one.texts.len() <= TEXTS_MAX + 1);
        assert_eq!(one.texts.values().sum::<u64>(), 1_000);
    }
}
