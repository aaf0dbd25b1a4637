//! When mail is tried again, how long, and when its sender is told that it is late.
//!
//! `[queue]` has a whole [`Schedule`]; a `[[route]]` may give parts of one ([`GivenSchedule`]),
//! and what it leaves out is that of `[queue]`.  Values only: who waits, and the jitter of each
//! wait, is the queue's matter.

use std::time::Duration;

/// When mail is tried again, and how long: `[queue]`, or what holds for one route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// The waits between attempts; at least one, the last repeats.
    pub retry: Vec<Duration>,
    /// The age at which a message bounces.
    pub lifetime: Duration,
    /// When the sender of a late message is told.
    pub delay_notice: DelayNotice,
}

/// The keys of a schedule that one table gives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GivenSchedule {
    /// `retry`; at least one wait.
    pub retry: Option<Vec<Duration>>,
    /// `lifetime`.
    pub lifetime: Option<Duration>,
    /// `delay_notice`.
    pub delay_notice: Option<DelayNotice>,
}

/// When the sender of a late message is told (RFC 3461 section 4.1, RFC 3464 section 2.3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DelayNotice {
    /// `"off"`: never.
    Off,
    /// Once a message has this age.
    After(Duration),
}

impl GivenSchedule {
    /// What is given, the rest from `fallback`.
    pub fn or(&self, fallback: &Schedule) -> Schedule {
        Schedule {
            retry: self.retry.as_ref().unwrap_or(&fallback.retry).clone(),
            lifetime: self.lifetime.unwrap_or(fallback.lifetime),
            delay_notice: self.delay_notice.unwrap_or(fallback.delay_notice),
        }
    }
}

impl DelayNotice {
    /// The age at which a notice is due, if there is one at all.
    pub fn after(self) -> Option<Duration> {
        match self {
            DelayNotice::Off => None,
            DelayNotice::After(age) => Some(age),
        }
    }
}
