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
use std::thread::{self, JoinHandle};
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
    let mut run = Run::start(plan, live)?;
    watch(std::slice::from_mut(&mut run), signals, is_quiet);
    run.end()
}

/// As [`run`], for several plans at the same time, each with threads of its own.
///
/// # Errors
/// See [`RunError`]; what servers do is in the tallies, which are in the order of the plans.
pub fn run_all(
    plans: Vec<Plan>,
    signals: &Signals,
    is_quiet: bool,
) -> Result<Vec<(Tally, Duration)>, RunError> {
    let start = |plan| Run::start(plan, Arc::new(Live::default()));
    let mut runs = plans.into_iter().map(start).collect::<Result<Vec<Run>, _>>()?;
    watch(&mut runs, signals, is_quiet);
    runs.into_iter().map(Run::end).collect()
}

/// The threads that carry out a plan.
struct Run {
    plan: Arc<Plan>,
    live: Arc<Live>,
    threads: Vec<JoinHandle<Result<Tally, RunError>>>,
    begun: Instant,
    /// What it took, once it is over.
    took: Option<Duration>,
}

impl Run {
    fn start(plan: Plan, live: Arc<Live>) -> Result<Run, RunError> {
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
            let thread = thread::Builder::new().name(name).spawn(main);
            threads.push(thread.map_err(RunError::Thread)?);
        }
        Ok(Run { plan, live, threads, begun, took: None })
    }

    /// Whether it is over; tells the threads to stop if no server is there.
    fn is_over(&mut self) -> bool {
        let elapsed = self.begun.elapsed();
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let (made, failed) = (&self.live.connections, &self.live.connect_failures);
        if read(made) == 0 && read(failed) > 0 && elapsed > PATIENCE && !self.was_refused() {
            self.stop();
        }
        if self.threads.iter().all(JoinHandle::is_finished) {
            self.took.get_or_insert(elapsed);
        }
        self.took.is_some()
    }

    /// Whether some server was there, and turned messages away.
    fn was_refused(&self) -> bool {
        self.live.finished.load(Ordering::Relaxed) > 0
    }

    fn stop(&self) {
        self.live.stop.store(true, Ordering::Relaxed);
    }

    fn end(self) -> Result<(Tally, Duration), RunError> {
        let took = self.took.unwrap_or_else(|| self.begun.elapsed());
        let mut tally = Tally::new();
        for thread in self.threads {
            tally.merge(thread.join().map_err(|_| RunError::Panicked)??);
        }
        Ok((tally, took))
    }
}

/// Draws the progress until all are over, and tells them to stop when a signal comes.
fn watch(runs: &mut [Run], signals: &Signals, is_quiet: bool) {
    let mut progress = Progress::new(is_quiet);
    let begun = Instant::now();
    // Each is asked, for it is this that notes its end.
    while runs.iter_mut().map(Run::is_over).filter(|is_over| !is_over).count() > 0 {
        if signals.wait(LOOK) {
            runs.iter().for_each(Run::stop);
        }
        let sum = |number: fn(&Live) -> &AtomicU64| -> u64 {
            runs.iter().map(|run| number(&run.live).load(Ordering::Relaxed)).sum()
        };
        progress.draw(sum(|live| &live.acknowledged), |rate| {
            let planned = runs.iter().map(|run| run.plan.messages);
            let all = match planned.fold(0, u64::saturating_add) {
                u64::MAX => String::new(),
                messages => format!(" of {}", grouped(messages)),
            };
            let p99_us = runs.iter().map(|run| run.live.p99_us.load(Ordering::Relaxed)).max();
            format!(
                "{:>4.0} s  {}{all} messages  {}/s  p99 {}  {} connections",
                begun.elapsed().as_secs_f64(),
                grouped(sum(|live| &live.finished)),
                grouped(rate as u64),
                crate::report::send::time(p99_us.unwrap_or(0)),
                grouped(sum(|live| &live.connections)),
            )
        });
    }
    progress.clear();
}
