//! The command line.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::ledger::compare::compare;
use crate::ledger::record::{self, Side};
use crate::report::books::Books;
use crate::report::send::Summary;
use crate::report::tally::{Counts, Tally};
use crate::report::usage::CpuTime;
use crate::signal::Signals;
use crate::sink;
use crate::source;
use crate::source::plan::Plan;
use crate::source::settings::Settings;

/// A load generator for SMTP: sends, sinks, keeps the books.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Send messages to a server and measure it.
    Send(Box<Send>),
    /// Receive messages and behave as the world does.
    Sink(sink::settings::SinkSettings),
    /// Hold what was acknowledged against what arrived.
    Ledger(LedgerArgs),
}

#[derive(Debug, Args)]
struct Send {
    /// A scenario file; what is given here besides wins over it.
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
    /// No moving line.
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Args)]
struct LedgerArgs {
    /// The ledger of send.
    sent: PathBuf,
    /// The ledger of sink.
    arrived: PathBuf,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

type AnyError = Box<dyn std::error::Error>;

/// Runs the command that was asked for: 0 it went well, 1 it ran and found faults, 2 it could
/// not run.
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Send(send) => run_send(&send),
        Command::Sink(settings) => run_sink(&settings),
        Command::Ledger(books) => run_ledger(&books),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("mailrace-loadtest: {error}");
            ExitCode::from(2)
        }
    }
}

/// True if every message was acknowledged (or abandoned, where that is the plan), of the parties
/// that count where there are several.
fn run_send(send: &Send) -> Result<bool, AnyError> {
    let file = send.scenario.as_deref().map_or(Ok(Settings::default()), Settings::read)?;
    let (mut names, mut plans) = (Vec::new(), Vec::new());
    // Each is a run of its own to whoever reads the ledgers.
    let first_run = fastrand::u16(..);
    for (party, place) in send.settings.clone().over(file).parties()?.into_iter().zip(0..) {
        names.push((party.name, party.is_wanted));
        plans.push(Plan::new(party.settings, first_run.wrapping_add(place))?);
    }
    // Ids name sessions, and sessions need descriptors.
    crate::signal::raise_file_limit();
    let signals = Signals::take_over()?;
    let before = CpuTime::now();
    let ran = source::run_all(plans, &signals, send.quiet)?;
    let cpu = (ran.len() == 1).then(|| CpuTime::now().since(before));
    let summary = |(tally, elapsed): &(Tally, Duration)| Summary::new(tally, *elapsed, cpu);
    let named = names.iter().map(|(name, _)| name.clone());
    tell_parties(&named.zip(ran.iter().map(summary)).collect::<Vec<_>>(), send.json);
    let wanted = ran.iter().zip(&names).filter(|(_, (_, is_wanted))| *is_wanted);
    Ok(wanted.map(|((tally, _), _)| &tally.counts).all(is_good))
}

fn is_good(counts: &Counts) -> bool {
    let good = counts.acknowledged + counts.abandoned;
    good > 0 && good == counts.finished() && counts.unfinished == 0
}

/// One summary, or one under the name of each.
fn tell_parties(parties: &[(String, Summary)], as_json: bool) {
    let text = match parties {
        [(_, only)] if as_json => only.to_json() + "\n",
        [(_, only)] => only.to_string(),
        _ if as_json => Summary::all_to_json(parties) + "\n",
        _ => {
            let told = parties.iter().map(|(name, summary)| format!("[{name}]\n{summary}"));
            told.collect::<Vec<_>>().join("\n")
        }
    };
    tell(&text);
}

fn run_sink(settings: &sink::settings::SinkSettings) -> Result<bool, AnyError> {
    crate::signal::raise_file_limit();
    let signals = Signals::take_over()?;
    let summary = sink::run(settings, &signals)?;
    tell(&if settings.json { summary.to_json() + "\n" } else { summary.to_string() });
    Ok(true)
}

/// True if the server kept every promise.
fn run_ledger(books: &LedgerArgs) -> Result<bool, AnyError> {
    let named = |path: &PathBuf, error| format!("{}: {error}", path.display());
    let mut sent =
        record::read(&books.sent, Side::Source).map_err(|error| named(&books.sent, error))?;
    let mut arrived =
        record::read(&books.arrived, Side::Sink).map_err(|error| named(&books.arrived, error))?;
    let unreadable = sent.unreadable + arrived.unreadable;
    let found = compare(&mut sent.records, &mut arrived.records);
    let summary = Books::new(&found, unreadable);
    tell(&if books.json { summary.to_json() + "\n" } else { summary.to_string() });
    Ok(found.is_clean())
}

/// Prints; whoever has read enough may close the pipe.
fn tell(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}
