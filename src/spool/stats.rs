//! What the spool counts for the metrics: plain atomics, written by its threads, read by the
//! control thread.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::sealed::CommitError;

/// Upper ends of the commit histogram's buckets in microseconds; one more bucket takes the rest.
pub const COMMIT_BUCKETS_US: [u64; 12] =
    [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 102_400, 409_600, 1_638_400];

/// Counters since the start, and gauges of the present.
#[derive(Debug, Default)]
pub struct SpoolStats {
    /// Write-and-sync rounds that succeeded.
    pub commits: AtomicU64,
    /// Batches in those.
    pub batches: AtomicU64,
    /// Records in those.
    pub records: AtomicU64,
    /// Octets written by those, padding counted.
    pub octets: AtomicU64,
    /// Time spent in them, in microseconds.
    pub commit_us_sum: AtomicU64,
    /// Their times, by [`COMMIT_BUCKETS_US`].
    pub commit_us: [AtomicU64; COMMIT_BUCKETS_US.len() + 1],
    /// Rounds that the disk refused.
    pub commit_failures: AtomicU64,
    /// Segments opened as the head.
    pub rolls: AtomicU64,
    /// Segments retired.
    pub retired: AtomicU64,
    /// Chores (zeroing, retiring, indexing) that failed.
    pub chore_failures: AtomicU64,
    /// Gauge: segments in use, the head counted.
    pub segments_used: AtomicU64,
    /// Gauge: segments ready to become the head.
    pub segments_spare: AtomicU64,
    /// Gauge: segments with damage in them, kept.
    pub segments_damaged: AtomicU64,
    /// Gauge: messages and chunks that are live.
    pub live_records: AtomicU64,
    /// Gauge: 0 takes everything, 1 is full (outcomes only), 2 has failed.
    health: AtomicU64,
    /// Compactions that came to their end.
    pub compactions: AtomicU64,
    /// Messages that those wrote again.
    pub messages_moved: AtomicU64,
    /// Octets that they wrote, padding counted.
    pub compacted_octets: AtomicU64,
    /// Reads answered.
    pub reads: AtomicU64,
    /// Reads that failed or did not verify.
    pub read_failures: AtomicU64,
}

/// What the log takes at present, for a listener to know before it says 354.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Everything.
    Good,
    /// Outcomes only: the disk has no room for another segment.
    Full,
    /// Nothing.
    Failed,
}

impl SpoolStats {
    /// What the log takes at present.
    pub fn health(&self) -> Health {
        match self.health.load(Relaxed) {
            0 => Health::Good,
            1 => Health::Full,
            _ => Health::Failed,
        }
    }

    pub(crate) fn set_health(&self, health: Health) {
        self.health.store(health as u64, Relaxed);
    }

    pub(crate) fn count_commit(&self, batches: usize, records: u64, octets: usize, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = COMMIT_BUCKETS_US.partition_point(|&end| end < took_us);
        self.commits.fetch_add(1, Relaxed);
        self.batches.fetch_add(batches as u64, Relaxed);
        self.records.fetch_add(records, Relaxed);
        self.octets.fetch_add(octets as u64, Relaxed);
        self.commit_us_sum.fetch_add(took_us, Relaxed);
        self.commit_us[bucket].fetch_add(1, Relaxed);
    }

    /// Why a commit would be refused at present, if it would.
    pub fn refusal(&self) -> Option<CommitError> {
        match self.health() {
            Health::Good => None,
            Health::Full => Some(CommitError::Full),
            Health::Failed => Some(CommitError::Failed),
        }
    }
}
