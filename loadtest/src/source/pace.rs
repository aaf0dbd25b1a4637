//! When each message of an open-loop run is meant to start.
//!
//! The start of the `k`th message is a function of `k` alone.  A session that comes late to it,
//! for the server kept it waiting, still counts the latency from that moment: a stall shows in
//! every message that should have been sent during it (no coordinated omission).
//!
//! Within a stage the rate goes in a straight line from one value to the other, so the number of
//! messages started after `t` seconds is `rate*t + (end-rate)/2/length * t^2`; the start of the
//! `k`th is that turned round.

use std::time::Duration;

use super::settings::Stage;

/// The plan of starts.
#[derive(Debug, Clone)]
pub struct Pace {
    stages: Vec<Part>,
}

#[derive(Debug, Clone, Copy)]
struct Part {
    /// Seconds before it.
    begin: f64,
    length: f64,
    rate: f64,
    rate_end: f64,
    /// Messages before it.
    before: f64,
}

impl Part {
    fn messages(&self) -> f64 {
        (self.rate + self.rate_end) / 2.0 * self.length
    }

    /// Seconds into the part at which `count` messages of it have started.
    fn time_of(&self, count: f64) -> f64 {
        let slope = (self.rate_end - self.rate) / self.length;
        if count == 0.0 {
            return 0.0;
        }
        if slope == 0.0 {
            return count / self.rate;
        }
        // slope/2*t^2 + rate*t - count = 0, in the form that does not cancel.
        let root = (self.rate * self.rate + 2.0 * slope * count).max(0.0).sqrt();
        2.0 * count / (self.rate + root)
    }
}

impl Pace {
    /// The same rate for all time.
    pub fn steady(rate: f64) -> Pace {
        let part = Part { begin: 0.0, length: 1e9, rate, rate_end: rate, before: 0.0 };
        Pace { stages: vec![part] }
    }

    /// One stage after the other.
    pub fn staged(stages: &[Stage]) -> Pace {
        let (mut begin, mut before) = (0.0, 0.0);
        let parts = stages.iter().map(|stage| {
            let length = stage.time.0.as_secs_f64();
            let rate_end = stage.up_to.unwrap_or(stage.rate);
            let part = Part { begin, length, rate: stage.rate, rate_end, before };
            begin += length;
            before += part.messages();
            part
        });
        Pace { stages: parts.collect() }
    }

    /// When the message with this number, from 0, starts; None beyond the last stage.
    pub fn start_of(&self, number: u64) -> Option<Duration> {
        let number = number as f64;
        let at = self.stages.partition_point(|part| part.before + part.messages() <= number);
        let part = self.stages.get(at)?;
        let seconds = part.begin + part.time_of(number - part.before);
        Some(Duration::from_secs_f64(seconds.min(1e9)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Span;

    fn stage(seconds: u64, rate: f64, up_to: Option<f64>) -> Stage {
        Stage { time: Span(Duration::from_secs(seconds)), rate, up_to }
    }

    #[test]
    fn a_steady_rate_is_evenly_spaced() {
        let pace = Pace::steady(1_000.0);
        assert_eq!(pace.start_of(0), Some(Duration::ZERO));
        assert_eq!(pace.start_of(2_500), Some(Duration::from_millis(2_500)));
    }

    #[test]
    fn a_ramp_starts_as_many_as_the_area_under_it() {
        let pace = Pace::staged(&[stage(10, 0.0, Some(100.0)), stage(10, 200.0, None)]);
        // 500 in the ramp, then 2000 more.
        assert!((pace.start_of(125).unwrap().as_secs_f64() - 5.0).abs() < 1e-6);
        assert!((pace.start_of(500).unwrap().as_secs_f64() - 10.0).abs() < 1e-6);
        assert!((pace.start_of(700).unwrap().as_secs_f64() - 11.0).abs() < 1e-6);
        assert!(pace.start_of(2_499).is_some());
        assert_eq!(pace.start_of(2_500), None);
    }

    #[test]
    fn starts_never_go_back() {
        let pace = Pace::staged(&[
            stage(3, 50.0, Some(500.0)),
            stage(1, 0.0, None),
            stage(3, 500.0, Some(0.0)),
        ]);
        let starts: Vec<_> = (0..).map_while(|number| pace.start_of(number)).collect();
        assert!(starts.is_sorted());
        assert_eq!(starts.len(), 825 + 750);
    }
}
