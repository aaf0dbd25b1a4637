//! The log as the gateway opens it: recovered by a thread of its own; and its figures.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use super::StartError;
use crate::config::{Config, Spool};
use crate::control::metrics::HistogramFigures;
use crate::control::status::{SpoolFigures, SpoolHealth};
use crate::delivery::recovery::{Recovered, RecoveredHandles};
use crate::delivery::sites::Sites;
use crate::message::MessageId;
use crate::spool::committer::random_generation;
use crate::spool::stats::{COMMIT_BUCKETS_US, Health};
use crate::spool::{FileDisk, Log, LogOptions, SpoolStats, recover};

/// What recovery leaves: the log, each core's handles, the highest message id.
pub(super) type Opened = (Log<FileDisk>, Vec<RecoveredHandles>, MessageId);

/// Recovers the log in a thread of its own: what a large queue takes in passing goes back to the
/// system with the thread, where an allocator may keep it for one that lives on.
pub(super) fn open_log(
    config: &Config,
    sites: &Sites,
    stats: Arc<SpoolStats>,
) -> Result<Opened, StartError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("recovery".into());
        let recovery = thread.spawn_scoped(scope, || recover_log(config, sites, stats));
        let recovered = recovery.map_err(StartError::Thread)?.join();
        recovered.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn recover_log(
    config: &Config,
    sites: &Sites,
    stats: Arc<SpoolStats>,
) -> Result<Opened, StartError> {
    let started = Instant::now();
    let disk = Arc::new(FileDisk::open(&config.spool_dir())?);
    let mut recovered = Recovered::new(config, sites);
    let mut random = random_generation;
    let options = log_options(&config.spool);
    let (log, report) = recover(disk, options, stats, &mut random, &mut recovered)?;
    if report.live_messages > 0 || report.damage_count > 0 {
        tracing::info!(
            messages = report.live_messages,
            segments = report.segments,
            damage = report.damage_count,
            seconds = started.elapsed().as_secs_f64(),
            "recovered the log"
        );
    }
    Ok((log, recovered.into_handles(), report.highest_id.unwrap_or(MessageId(0))))
}

/// The log as it is configured.
fn log_options(spool: &Spool) -> LogOptions {
    let whole = |value: u64| u32::try_from(value).expect("the configuration has bounds");
    LogOptions {
        segment_bytes: whole(spool.segment_size.0),
        compact_after_ticks: whole(spool.compact_after.as_secs()),
        ..LogOptions::default()
    }
}

/// The log's figures for whoever asks.
pub(super) fn spool_figures(stats: Arc<SpoolStats>) -> impl Fn() -> SpoolFigures + Send + Sync {
    move || {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SpoolFigures {
            commits: value(&stats.commits),
            batches: value(&stats.batches),
            records: value(&stats.records),
            written_octets: value(&stats.octets),
            commit: HistogramFigures {
                bounds_us: &COMMIT_BUCKETS_US,
                counts: stats.commit_us.iter().map(value).collect(),
                sum_us: value(&stats.commit_us_sum),
            },
            commit_failures: value(&stats.commit_failures),
            rolls: value(&stats.rolls),
            retired: value(&stats.retired),
            chore_failures: value(&stats.chore_failures),
            segments_used: value(&stats.segments_used),
            segments_spare: value(&stats.segments_spare),
            segments_damaged: value(&stats.segments_damaged),
            live_records: value(&stats.live_records),
            compactions: value(&stats.compactions),
            messages_moved: value(&stats.messages_moved),
            compacted_octets: value(&stats.compacted_octets),
            reads: value(&stats.reads),
            read_failures: value(&stats.read_failures),
            health: match stats.health() {
                Health::Good => SpoolHealth::Good,
                Health::Full => SpoolHealth::Full,
                Health::Failed => SpoolHealth::Failed,
            },
        }
    }
}
