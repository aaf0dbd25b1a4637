//! The sending side: a plan, run by threads that each keep their share of the sessions.
//!
//! `settings` is what the user says, `plan` what can be run, `pace` when messages start,
//! `worker` a thread, `session` a client's life, `transaction` one message, `connection` the
//! commands and replies under it.

mod connection;
pub mod pace;
pub mod plan;
mod session;
pub mod settings;
mod transaction;
mod worker;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::ledger::record::{LedgerFile, Side};
use crate::report::progress::Progress;
use crate::report::tally::Tally;
use crate::signal::Signals;
use crate::units::grouped;
use plan::Plan;

/// How often the coordinating thread looks.
const LOOK: Duration = Duration::from_millis(20);
/// How long a server may be unreachable at the start before the run is given up.
const PATIENCE: Duration = Duration::from_secs(5);

/// What all threads of a run share; written a few times a second at most.
#[derive(Debug, Default)]
pub struct Live {
    /// The run is to end.
    pub stop: AtomicBool,
    /// Messages that are over.
    pub finished: AtomicU64,
    /// Of them, acknowledged.
    pub acknowledged: AtomicU64,
    /// Connections that were made.
    pub connections: AtomicU64,
    /// Connections that failed.
    pub connect_failures: AtomicU64,
    /// The 99th percentile of the whole latency so far, of one of the threads.
    pub p99_us: AtomicU64,
}

/// Why a run could not be made or is worthless.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The ledger cannot be opened, or a record of it was not written.
    #[error("the ledger cannot be written: {0}")]
    Ledger(#[source] io::Error),
    /// A thread or its event loop could not be started.
    #[error("a thread could not be started: {0}")]
    Thread(#[source] io::Error),
    /// A thread panicked: our bug.
    #[error("a thread ended by a bug of this program")]
    Panicked,
}

/// Runs a plan to its end, or until a signal comes.
///
/// # Errors
/// See [`RunError`]; what servers do is in the tally.
pub fn run(plan: Plan, signals: &Signals, is_quiet: bool) -> Result<(Tally, Duration), RunError> {
    run_with(plan, signals, is_quiet, Arc::new(Live::default()))
}

/// As [`run`], with the numbers and the stop flag in the caller's hands.
///
/// # Errors
/// See [`RunError`]; what servers do is in the tally.
pub fn run_with(
    plan: Plan,
    signals: &Signals,
    is_quiet: bool,
    live: Arc<Live>,
) -> Result<(Tally, Duration), RunError> {
    let plan = Arc::new(plan);
    let ledger = match &plan.ledger {
        None => None,
        Some(path) => Some(LedgerFile::append(path, Side::Source).map_err(RunError::Ledger)?),
    };
    let begun = Instant::now();
    let mut threads = Vec::new();
    for place in 0..plan.threads {
        let (plan, live, ledger) = (plan.clone(), live.clone(), ledger.clone());
        let main = move || worker::run(plan, live, ledger, place, begun);
        let name = format!("source-{place}");
        threads.push(thread::Builder::new().name(name).spawn(main).map_err(RunError::Thread)?);
    }
    watch(&plan, &live, signals, is_quiet, begun, &mut || {
        threads.iter().all(thread::JoinHandle::is_finished)
    });
    let elapsed = begun.elapsed();
    let mut tally = Tally::new();
    for thread in threads {
        tally.merge(thread.join().map_err(|_| RunError::Panicked)??);
    }
    Ok((tally, elapsed))
}

/// Draws the progress, and tells the threads to stop when a signal comes or no server is there.
fn watch(
    plan: &Plan,
    live: &Live,
    signals: &Signals,
    is_quiet: bool,
    begun: Instant,
    is_over: &mut dyn FnMut() -> bool,
) {
    let mut progress = Progress::new(is_quiet);
    while !is_over() {
        if signals.wait(LOOK) {
            live.stop.store(true, Ordering::Relaxed);
        }
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let never_connected = read(&live.connections) == 0 && read(&live.connect_failures) > 0;
        if never_connected && begun.elapsed() > PATIENCE {
            live.stop.store(true, Ordering::Relaxed);
        }
        progress.draw(read(&live.acknowledged), |rate| {
            let all = match plan.messages {
                u64::MAX => String::new(),
                messages => format!(" of {}", grouped(messages)),
            };
            format!(
                "{:>4.0} s  {}{all} messages  {}/s  p99 {}  {} connections",
                begun.elapsed().as_secs_f64(),
                grouped(read(&live.finished)),
                grouped(rate as u64),
                crate::report::send::time(read(&live.p99_us)),
                grouped(read(&live.connections)),
            )
        });
    }
    progress.clear();
}
