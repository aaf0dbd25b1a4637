//! The summary of `send`.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::time::Duration;

use serde::Serialize;

use super::tally::{Step, Tally};
use super::usage::CpuTime;
use crate::units::{Octets, grouped};

/// What a run came to; its JSON form is what `--json` prints.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// The version of this form.
    schema: u32,
    /// From the start to the last acknowledgement (to the end where there was none).
    seconds: f64,
    /// Acknowledged messages a second.
    rate: f64,
    acknowledged: u64,
    refused_for_now: u64,
    refused_for_good: u64,
    broken: u64,
    abandoned: u64,
    unfinished: u64,
    recipients_refused: u64,
    connections: u64,
    connect_failures: u64,
    octets: u64,
    /// The generator's own processor time a message; not told of one of several parties.
    #[serde(flatten)]
    cpu: Option<Cpu>,
    /// What was refused, by where and with which code.
    refusals: Vec<Refused>,
    latencies_us: Vec<Latency>,
    texts: Vec<Text>,
}

/// Processor time a message, in microseconds.
#[derive(Debug, Serialize)]
struct Cpu {
    cpu_user_us: f64,
    cpu_system_us: f64,
}

/// Messages and connections that were refused at the same step with the same code.
#[derive(Debug, Serialize)]
struct Refused {
    at: &'static str,
    code: u16,
    count: u64,
}

/// The latencies of one step, in microseconds.
#[derive(Debug, Serialize)]
struct Latency {
    step: &'static str,
    count: u64,
    mean: f64,
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

/// A refusal or a failure and how often it came.
#[derive(Debug, Serialize)]
struct Text {
    text: String,
    count: u64,
}

impl Summary {
    /// Sums up a run that took `elapsed`, and so much of the processor if that is known.
    pub fn new(tally: &Tally, elapsed: Duration, cpu: Option<CpuTime>) -> Summary {
        let counts = &tally.counts;
        let took = if tally.last_at.is_zero() { elapsed } else { tally.last_at };
        let cpu = cpu.map(|cpu| {
            let count = counts.finished().max(counts.connections + counts.connect_failures);
            let (cpu_user_us, cpu_system_us) = cpu.per_us(count);
            Cpu { cpu_user_us, cpu_system_us }
        });
        let refusals = tally.refusals.iter();
        let refusals =
            refusals.map(|(&(at, code), &count)| Refused { at: at.name(), code, count }).collect();
        let texts = tally.texts.iter();
        let mut texts: Vec<Text> =
            texts.map(|(text, count)| Text { text: text.clone(), count: *count }).collect();
        texts.sort_by_key(|text| std::cmp::Reverse(text.count));
        Summary {
            schema: 1,
            seconds: took.as_secs_f64(),
            rate: counts.acknowledged as f64 / took.as_secs_f64().max(1e-9),
            acknowledged: counts.acknowledged,
            refused_for_now: counts.refused_for_now,
            refused_for_good: counts.refused_for_good,
            broken: counts.broken,
            abandoned: counts.abandoned,
            unfinished: counts.unfinished,
            recipients_refused: counts.recipients_refused,
            connections: counts.connections,
            connect_failures: counts.connect_failures,
            octets: counts.octets,
            cpu,
            refusals,
            latencies_us: Step::ALL
                .iter()
                .filter(|step| !tally.latency(**step).is_empty())
                .map(|step| Latency::new(*step, tally))
                .collect(),
            texts,
        }
    }

    /// As one JSON object.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("numbers and strings only")
    }

    /// Several by their names, as one JSON object.
    pub fn all_to_json(parties: &[(String, Summary)]) -> String {
        let named: BTreeMap<&str, &Summary> =
            parties.iter().map(|(name, summary)| (&**name, summary)).collect();
        let all = serde_json::json!({ "schema": 1, "parties": named });
        serde_json::to_string_pretty(&all).expect("numbers and strings only")
    }
}

impl Latency {
    fn new(step: Step, tally: &Tally) -> Latency {
        let latency = tally.latency(step);
        Latency {
            step: step.name(),
            count: latency.len(),
            mean: latency.mean(),
            p50: latency.value_at_quantile(0.5),
            p90: latency.value_at_quantile(0.9),
            p99: latency.value_at_quantile(0.99),
            p999: latency.value_at_quantile(0.999),
            max: latency.max(),
        }
    }
}

impl Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} messages in {:.2} s: {} a second, {}/s",
            grouped(self.acknowledged),
            self.seconds,
            grouped(self.rate.round() as u64),
            Octets((self.octets as f64 / self.seconds.max(1e-9)) as u64),
        )?;
        for (count, what) in [
            (self.refused_for_now, "messages refused for now (4xx)"),
            (self.refused_for_good, "messages refused for good (5xx)"),
            (self.broken, "messages whose connection broke"),
            (self.abandoned, "sessions or envelopes left without a message, as planned"),
            (self.unfinished, "messages without a connection or an answer when the time was up"),
            (self.recipients_refused, "recipients refused"),
            (self.connect_failures, "connections that failed"),
        ] {
            if count > 0 {
                writeln!(f, "  {} {what}", grouped(count))?;
            }
        }
        for Refused { at, code, count } in &self.refusals {
            writeln!(f, "  {} refused at {at} with {code}", grouped(*count))?;
        }
        write!(f, "  {} connections", grouped(self.connections))?;
        match &self.cpu {
            Some(Cpu { cpu_user_us: user, cpu_system_us: system }) => writeln!(
                f,
                "; this generator used {:.1} us of CPU a message ({user:.1} user, {system:.1} system)",
                user + system,
            )?,
            None => writeln!(f)?,
        }
        if !self.latencies_us.is_empty() {
            writeln!(f)?;
            write!(f, "{:<10}", "latency")?;
            for title in ["count", "mean", "p50", "p90", "p99", "p99.9", "max"] {
                write!(f, "{title:>10}")?;
            }
            writeln!(f)?;
        }
        for latency in &self.latencies_us {
            write!(f, "{:<10}{:>10}", latency.step, latency.count)?;
            for value in [
                latency.mean.round() as u64,
                latency.p50,
                latency.p90,
                latency.p99,
                latency.p999,
                latency.max,
            ] {
                write!(f, "{:>10}", time(value))?;
            }
            writeln!(f)?;
        }
        if !self.texts.is_empty() {
            writeln!(f)?;
        }
        for text in &self.texts {
            writeln!(f, "{:>9} x {}", text.count, text.text)?;
        }
        Ok(())
    }
}

/// Microseconds in the unit that suits them.
pub fn time(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..10_000 => format!("{:.2} ms", us as f64 / 1e3),
        10_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}
