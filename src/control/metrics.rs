//! What each worker counts, kept so that counting costs a message next to nothing.
//!
//! A [`WorkerMetrics`] is written by its worker alone: a count is a plain load, an addition and a
//! plain store, so that no locked instruction stands on a message's path.  Any thread may read;
//! what it reads is a moment old at most, and sums over workers need not be of one moment.
//! [`exposition`] adds the workers up when somebody asks, and writes them as text.
//!
//! The list of all metrics is in `docs/operations.md`; a test holds that page to it.

pub mod exposition;
mod process;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use exposition::{Metrics, Sources};

/// A number that only grows, with one thread that writes it.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

/// A number that goes up and down, with one thread that writes it.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

/// Counters by a label that comes from the code or the configuration, never from a peer: as many
/// as there are places there, at most [`LABELS_MAX`].
#[derive(Debug)]
pub struct LabelledCounters {
    counters: [(OnceLock<Box<str>>, Counter); LABELS_MAX],
    /// What found no place.
    other: Counter,
}

/// How many durations fell between which bounds.
#[derive(Debug)]
pub struct Histogram {
    /// Upper ends of the buckets in microseconds, each included; one more bucket takes the rest.
    bounds_us: &'static [u64],
    counts: Box<[Counter]>,
    sum_us: Counter,
}

/// A [`Histogram`] at one moment, or the sum of several with the same bounds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HistogramFigures {
    /// Upper ends of the buckets in microseconds, each included.
    pub bounds_us: &'static [u64],
    /// How many fell into each bucket; one more than there are bounds.
    pub counts: Vec<u64>,
    /// The sum of all durations in microseconds.
    pub sum_us: u64,
}

/// What one worker counts.
///
/// Aligned so that two workers never write to one cache line, nor to a pair of them that the
/// processor fetches together.
#[derive(Debug)]
#[repr(align(128))]
pub struct WorkerMetrics {
    /// Sessions that began.
    pub sessions_opened: Counter,
    /// Sessions that there are.
    pub sessions_open: Gauge,
    /// `accept` failed: no descriptors, most of the time.
    pub accept_errors: Counter,
    /// Times that a listener stopped accepting for a moment.
    pub accept_pauses: Counter,
    /// Octets of receive buffers and envelopes in use.
    pub receive_octets: Gauge,
    /// Octets of buffers of connections to next hops in use.
    pub delivery_octets: Gauge,
    /// Octets of the chunks of large bodies in use.
    pub chunk_octets: Gauge,
    /// Times that a session did not read on in a body because those were used up.
    pub reads_paused: Counter,
    /// Messages that waited for the disk before they had room in a batch.
    pub appends_delayed: Counter,
    /// Sessions that were cut off because their body trickled while others waited for room.
    pub sessions_cut: Counter,
    /// Sessions that TLS began in.
    pub sessions_secured: Counter,
    /// TLS handshakes of clients that came to nothing.
    pub handshakes_failed: Counter,
    /// AUTH commands that succeeded.
    pub logins: Counter,
    /// AUTH commands that failed.
    pub logins_failed: Counter,
    /// Refusals by the name of their reason.
    pub refused: LabelledCounters,
    /// Verdicts of the edge filter by their action.
    pub verdicts: LabelledCounters,
    /// What its checks found that counted, by check.
    pub findings: LabelledCounters,
    /// What rspamd said of messages, by its advice; those that it was not shown too.
    pub rspamd_verdicts: LabelledCounters,
    /// Messages that rspamd did not judge, by reason.
    pub rspamd_failures: LabelledCounters,
    /// From the end of a message's data to what rspamd said, or did not say in time.
    pub rspamd_wait: Histogram,
    /// Messages that got their 250.
    pub messages_accepted: Counter,
    /// Their octets.
    pub octets_accepted: Counter,
    /// Their recipients.
    pub recipients_accepted: Counter,
    /// Messages that went straight to a next hop, which has taken them.
    pub messages_passed_on: Counter,
    /// Times that a next hop could not be reached, or was lost, while a client waited for it.
    pub next_hops_lost: Counter,
    /// Questions about recipients that next hops have answered.
    pub calls_ahead: Counter,
    /// Those that came to nothing.
    pub calls_ahead_failed: Counter,
    /// From the end of a message's data to its 250.
    pub commit_wait: Histogram,
    /// Attempts that began: one message to one site.
    pub attempts: Counter,
    /// Messages that a next hop took over, for one recipient at least.
    pub messages_delivered: Counter,
    /// Recipients that were delivered.
    pub recipients_delivered: Counter,
    /// Recipients that were deferred, each time counted.
    pub recipients_deferred: Counter,
    /// Recipients that failed for good.
    pub recipients_bounced: Counter,
    /// Recipients that were given up at the end of their message's lifetime.
    pub recipients_expired: Counter,
    /// From acceptance to delivery.
    pub delivery_delay: Histogram,
    /// Connections to next hops that stood.
    pub connections_opened: Counter,
    /// Connections to next hops that did not come about.
    pub connections_failed: Counter,
    /// Connections to next hops that TLS failed on.
    pub tls_failed: Counter,
    /// Connections to smart hosts that did not let us in.
    pub smart_host_logins_failed: Counter,
    /// Connections to next hops that there are.
    pub connections_open: Gauge,
    /// Sites that wait for a connection because all workers together have as many as they may.
    pub sites_waiting: Gauge,
    /// Connections that were cut off because their peer took long for a piece of a message while
    /// others waited for a buffer of the log's reader.
    pub connections_cut: Counter,
    /// Work on the blocking pool, and reads of the log, that took too long and were given up.
    pub work_late: Counter,
    /// Handles, one for each message and site, that wait for a connection.
    pub handles_ready: Gauge,
    /// Handles whose attempt is under way.
    pub handles_active: Gauge,
    /// Handles that wait for their next attempt.
    pub handles_deferred: Gauge,
    /// Handles that wait for an operator.
    pub handles_held: Gauge,
    /// Handles that wait for an operator because of the edge filter's verdict.
    pub handles_quarantined: Gauge,
}

/// Labels of one [`LabelledCounters`]; the reasons of refusals are about two thirds as many.
pub const LABELS_MAX: usize = 96;

/// Buckets of [`WorkerMetrics::commit_wait`].  A sync of a good disk takes 0.1 to 0.3 ms, of a
/// slow one 10 ms; seconds mean that the disk cannot follow.
const COMMIT_WAIT_US: &[u64] = &[
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 5_000_000, 30_000_000,
];

/// Buckets of [`WorkerMetrics::rspamd_wait`]: rspamd asks the DNS of its own, and has a deadline of
/// a minute at most.
const RSPAMD_WAIT_US: &[u64] = &[
    1_000,
    5_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    SECOND_US,
    2 * SECOND_US,
    5 * SECOND_US,
    10 * SECOND_US,
    30 * SECOND_US,
    60 * SECOND_US,
];

const SECOND_US: u64 = 1_000_000;
const HOUR_US: u64 = 3_600 * SECOND_US;
/// Buckets of [`WorkerMetrics::delivery_delay`]: from a next hop beside us to days of retries.
const DELIVERY_DELAY_US: &[u64] = &[
    1_000,
    5_000,
    25_000,
    100_000,
    500_000,
    SECOND_US,
    5 * SECOND_US,
    30 * SECOND_US,
    60 * SECOND_US,
    300 * SECOND_US,
    900 * SECOND_US,
    HOUR_US,
    4 * HOUR_US,
    24 * HOUR_US,
    120 * HOUR_US,
];

impl Counter {
    /// Adds one.
    pub fn count(&self) {
        self.add(1);
    }

    /// Adds `more`.
    pub fn add(&self, more: u64) {
        // Only this thread writes, so nothing can come between the two.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    /// Where it stands, counted elsewhere on this thread.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Where it stands.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Gauge {
    /// One more.
    pub fn raise(&self) {
        self.set(self.value() + 1);
    }

    /// One less; stays at none if there was none, which would be a bug in the counting.
    pub fn lower(&self) {
        debug_assert!(self.value() > 0, "lowered more often than raised");
        self.set(self.value().saturating_sub(1));
    }

    /// So many.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// Where it stands.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl LabelledCounters {
    fn new() -> LabelledCounters {
        LabelledCounters {
            counters: std::array::from_fn(|_| (OnceLock::new(), Counter::default())),
            other: Counter::default(),
        }
    }

    /// Counts one of `label`.
    pub fn count(&self, label: &str) {
        for (known, counter) in &self.counters {
            // The first free place is this label's: only this thread fills them, in order.
            if **known.get_or_init(|| label.into()) == *label {
                return counter.count();
            }
        }
        self.other.count();
    }

    /// Labels and where they stand; what found no place is `other`.
    pub fn values(&self) -> impl Iterator<Item = (&str, u64)> {
        let known = self
            .counters
            .iter()
            .map_while(|(label, counter)| label.get().map(|label| (&**label, counter.value())));
        let other = Some(self.other.value()).filter(|&count| count > 0);
        known.chain(other.map(|count| ("other", count)))
    }
}

impl Histogram {
    fn new(bounds_us: &'static [u64]) -> Histogram {
        debug_assert!(bounds_us.is_sorted());
        let counts = (0..=bounds_us.len()).map(|_| Counter::default()).collect();
        Histogram { bounds_us, counts, sum_us: Counter::default() }
    }

    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.counts[self.bounds_us.partition_point(|&bound| bound < us)].count();
        self.sum_us.add(us);
    }

    /// What it stands at.
    pub fn figures(&self) -> HistogramFigures {
        HistogramFigures {
            bounds_us: self.bounds_us,
            counts: self.counts.iter().map(Counter::value).collect(),
            sum_us: self.sum_us.value(),
        }
    }
}

impl HistogramFigures {
    /// Adds those of a histogram with the same bounds.
    fn add(mut self, more: HistogramFigures) -> HistogramFigures {
        if self.counts.is_empty() {
            return more;
        }
        debug_assert_eq!(self.bounds_us, more.bounds_us);
        self.counts.iter_mut().zip(&more.counts).for_each(|(sum, more)| *sum += more);
        self.sum_us = self.sum_us.wrapping_add(more.sum_us);
        self
    }
}

impl Default for WorkerMetrics {
    fn default() -> WorkerMetrics {
        WorkerMetrics {
            sessions_opened: Counter::default(),
            sessions_open: Gauge::default(),
            accept_errors: Counter::default(),
            accept_pauses: Counter::default(),
            receive_octets: Gauge::default(),
            delivery_octets: Gauge::default(),
            chunk_octets: Gauge::default(),
            reads_paused: Counter::default(),
            appends_delayed: Counter::default(),
            sessions_cut: Counter::default(),
            sessions_secured: Counter::default(),
            handshakes_failed: Counter::default(),
            logins: Counter::default(),
            logins_failed: Counter::default(),
            refused: LabelledCounters::new(),
            verdicts: LabelledCounters::new(),
            findings: LabelledCounters::new(),
            rspamd_verdicts: LabelledCounters::new(),
            rspamd_failures: LabelledCounters::new(),
            rspamd_wait: Histogram::new(RSPAMD_WAIT_US),
            messages_accepted: Counter::default(),
            octets_accepted: Counter::default(),
            recipients_accepted: Counter::default(),
            messages_passed_on: Counter::default(),
            next_hops_lost: Counter::default(),
            calls_ahead: Counter::default(),
            calls_ahead_failed: Counter::default(),
            commit_wait: Histogram::new(COMMIT_WAIT_US),
            attempts: Counter::default(),
            messages_delivered: Counter::default(),
            recipients_delivered: Counter::default(),
            recipients_deferred: Counter::default(),
            recipients_bounced: Counter::default(),
            recipients_expired: Counter::default(),
            delivery_delay: Histogram::new(DELIVERY_DELAY_US),
            connections_opened: Counter::default(),
            connections_failed: Counter::default(),
            tls_failed: Counter::default(),
            smart_host_logins_failed: Counter::default(),
            connections_open: Gauge::default(),
            sites_waiting: Gauge::default(),
            connections_cut: Counter::default(),
            work_late: Counter::default(),
            handles_ready: Gauge::default(),
            handles_active: Gauge::default(),
            handles_deferred: Gauge::default(),
            handles_held: Gauge::default(),
            handles_quarantined: Gauge::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_into_the_bucket_that_ends_at_or_after_it() {
        let histogram = Histogram::new(&[10, 100]);
        for us in [0, 10, 11, 100, 101, u64::MAX] {
            histogram.observe(Duration::from_micros(us));
        }
        histogram.observe(Duration::MAX);
        assert_eq!(histogram.figures().counts, [2, 2, 3]);
    }

    #[test]
    fn figures_of_workers_add_up() {
        let (a, b) = (Histogram::new(&[10]), Histogram::new(&[10]));
        a.observe(Duration::from_micros(5));
        b.observe(Duration::from_micros(7));
        b.observe(Duration::from_micros(70));
        let sum = HistogramFigures::default().add(a.figures()).add(b.figures());
        assert_eq!((sum.counts.as_slice(), sum.sum_us), ([2, 1].as_slice(), 82));
    }

    #[test]
    fn labels_keep_their_places_and_run_out_of_them() {
        let counters = LabelledCounters::new();
        counters.count("a");
        counters.count("b");
        counters.count("a");
        assert_eq!(counters.values().collect::<Vec<_>>(), [("a", 2), ("b", 1)]);
        for number in 0..LABELS_MAX {
            counters.count(&number.to_string());
        }
        assert_eq!(counters.values().last(), Some(("other", 2)));
        assert_eq!(counters.values().count(), LABELS_MAX + 1);
    }

    #[test]
    fn a_gauge_goes_up_and_down() {
        let gauge = Gauge::default();
        gauge.raise();
        gauge.raise();
        gauge.lower();
        assert_eq!(gauge.value(), 1);
    }
}
