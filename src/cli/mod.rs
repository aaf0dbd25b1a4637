//! The command line: arguments in, an exit code out.
//!
//! Arguments are parsed into types here; each command has a file of its own.  Exit codes: 0 it
//! went well, 1 something was found or failed, 2 the command line is wrong; `route` has 75 for a
//! message that would wait.  What a command is
//! asked for goes to standard output, everything about how it went to standard error.

mod cert;
mod check;
mod environment;
mod plain;
mod queue;
mod route;
mod run;
mod spool;
mod test_client;
mod user;
mod why;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::config::{self, Checked, LoadError, Pattern, Severity};
use crate::control::port::Originator;
use crate::message::MessageId;

pub use cert::cert;
pub use queue::queue;
pub use run::run;
pub use spool::spool;
pub use user::user;

/// The whole command line.
#[derive(Debug, Parser)]
#[command(
    name = "mailrace",
    version,
    about = "A durable, fast mail gateway",
    args_conflicts_with_subcommands = true
)]
pub struct Cli {
    /// The command; `run` if none is given.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The arguments of `run` without its name.
    #[command(flatten)]
    pub run: RunArgs,
}

/// One command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the gateway (this is what happens without a command)
    Run(RunArgs),
    /// Say what is wrong with a configuration, where, and the mend
    Check(CheckArgs),
    /// Say where a message for an address would go, and why; nothing is sent
    Route(RouteArgs),
    /// Say what the edge filter makes of a client, check by check; nothing is sent
    TestClient(TestClientArgs),
    /// Look at the queue of a running gateway, and change it
    #[command(subcommand)]
    Queue(Box<QueueCommand>),
    /// Say why a session, or a message, was judged as it was: each check, its facts and its score
    Why(WhyArgs),
    /// Read the log of messages of a stopped gateway
    #[command(subcommand)]
    Spool(SpoolCommand),
    /// Make certificates
    #[command(subcommand)]
    Cert(CertCommand),
    /// Change the users who may log in
    #[command(subcommand)]
    User(UserCommand),
}

/// Arguments of `run`.
#[derive(Debug, Clone, Default, Args)]
pub struct RunArgs {
    /// The configuration; without it, development defaults on loopback addresses
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Arguments of `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// The configuration
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Arguments of `route`.
#[derive(Debug, Clone, Args)]
pub struct RouteArgs {
    /// The recipient, with or without angle brackets
    pub address: String,
    /// The originator; '<>' for a notice
    #[arg(long, value_name = "ADDRESS", allow_hyphen_values = true)]
    pub from: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// The configuration; without it, the development defaults
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Arguments of `test-client`.
#[derive(Debug, Clone, Args)]
pub struct TestClientArgs {
    /// The client's address
    pub address: IpAddr,
    /// What it calls itself
    #[arg(long, value_name = "NAME")]
    pub helo: Option<String>,
    /// The sender of its mail; '<>' for a notice
    #[arg(long, value_name = "ADDRESS", allow_hyphen_values = true)]
    pub from: Option<String>,
    /// The recipient
    #[arg(long, value_name = "ADDRESS")]
    pub to: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// The configuration; without it, the development defaults
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// `queue ...`: each goes over the admin socket of the gateway that the configuration names.
#[derive(Debug, Subcommand)]
pub enum QueueCommand {
    /// Count messages and recipients
    Count(QueueListArgs),
    /// List messages, the oldest first
    List(QueueListArgs),
    /// Show one message: its envelope, attempts and replies
    Show(QueueShowArgs),
    /// Try deferred messages now
    Retry(QueueChangeArgs),
    /// Let held messages go
    Release(QueueChangeArgs),
    /// Delete messages without a notice
    Delete(QueueChangeArgs),
}

/// Arguments of `queue count` and `queue list`.
#[derive(Debug, Clone, Args)]
pub struct QueueListArgs {
    /// Which messages.
    #[command(flatten)]
    pub filters: Filters,
    /// How to print and whom to ask.
    #[command(flatten)]
    pub output: Output,
}

/// Arguments of `queue show`.
#[derive(Debug, Clone, Args)]
pub struct QueueShowArgs {
    /// The message, as in the 250 reply and in `queue list`
    pub id: MessageId,
    /// How to print and whom to ask.
    #[command(flatten)]
    pub output: Output,
}

/// Arguments of the commands that change messages; either ids, or filters, or all.
#[derive(Debug, Clone, Args)]
pub struct QueueChangeArgs {
    /// These messages
    #[arg(value_name = "ID", conflicts_with = "all")]
    pub ids: Vec<MessageId>,
    /// Every message; without it an id or a filter is needed
    #[arg(long)]
    pub all: bool,
    /// Which messages.
    #[command(flatten)]
    pub filters: Filters,
    /// How to print and whom to ask.
    #[command(flatten)]
    pub output: Output,
}

/// Which messages and recipients a queue command is about: those that all the filters fit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct Filters {
    /// Recipients like this, `*` for any characters: '*@example.com'
    #[arg(long, value_name = "PATTERN")]
    pub to: Option<Pattern>,
    /// Originators like this; '<>' for notices, which have none
    #[arg(long, value_name = "PATTERN")]
    pub from: Option<Originator>,
    /// Recipients in this state
    #[arg(long, value_enum)]
    pub state: Option<State>,
    /// Recipients that go to this site: a domain, or the ADDRESS:PORT of a next hop
    #[arg(long, value_name = "SITE")]
    pub site: Option<String>,
    /// At most so many messages
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

/// Where a recipient of a message in the queue stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub enum State {
    /// Due, waiting for a connection, or being sent.
    Ready,
    /// Waiting for its next attempt.
    Deferred,
    /// Waiting for an operator.
    Held,
    /// Waiting for an operator because of the edge filter's verdict.
    Quarantined,
}

/// How a queue command prints, and whom it asks.
#[derive(Debug, Clone, Default, Args)]
pub struct Output {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// The configuration of the gateway; without it, the development defaults
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Arguments of `why`.
#[derive(Debug, Clone, Args)]
pub struct WhyArgs {
    /// The session, as in the events; or the message, as in the 250 reply and in the events
    pub id: MessageId,
    /// How to print and whom to ask.
    #[command(flatten)]
    pub output: Output,
}

/// `spool ...`: each needs the gateway stopped.
#[derive(Debug, Subcommand)]
pub enum SpoolCommand {
    /// Check every batch and record; exit 1 if there is damage
    Verify(SpoolPlace),
    /// Print every record, one line each
    Dump(SpoolDumpArgs),
    /// Write the messages that are still queued to files
    Export(SpoolExportArgs),
    /// Set aside the files that keep the gateway from starting; nothing is deleted
    Repair(SpoolRepairArgs),
}

/// `cert ...`.
#[derive(Debug, Subcommand)]
pub enum CertCommand {
    /// Make one that nobody trusts but who is told to, for a first try; print the lines to use it
    SelfSigned(SelfSignedArgs),
}

/// Arguments of `cert self-signed`.
#[derive(Debug, Clone, Args)]
pub struct SelfSignedArgs {
    /// A host name that it is for, or an IP address; may be given several times
    #[arg(long = "name", value_name = "NAME", required = true)]
    pub names: Vec<String>,
    /// The directory for NAME.pem and NAME.key; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// `user ...`: the password comes from the terminal, or as the first line of standard input.
#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// Make a user
    Add(UserAddArgs),
    /// Give a user another password
    Passwd(UserNameArgs),
    /// Print users, what they can log in with, and the addresses that they may send as
    List(UserPlace),
    /// Take a user out
    Remove(UserNameArgs),
}

/// Arguments of `user add`.
#[derive(Debug, Clone, Args)]
pub struct UserAddArgs {
    /// The name to log in with, most often an address
    pub name: String,
    /// Addresses that the user may send as, `*` for any characters; without it, the name alone
    #[arg(long = "sender", value_name = "PATTERN")]
    pub senders: Vec<Pattern>,
    /// Keep a verifier for SCRAM-SHA-1 too, for old clients
    #[arg(long)]
    pub scram_sha_1: bool,
    /// Which file.
    #[command(flatten)]
    pub place: UserPlace,
}

/// Arguments of `user passwd` and `user remove`.
#[derive(Debug, Clone, Args)]
pub struct UserNameArgs {
    /// The user
    pub name: String,
    /// Which file.
    #[command(flatten)]
    pub place: UserPlace,
}

/// Which users file.
#[derive(Debug, Clone, Default, Args)]
pub struct UserPlace {
    /// The users file
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    pub file: Option<PathBuf>,
    /// The configuration that names it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Which spool.
#[derive(Debug, Clone, Default, Args)]
pub struct SpoolPlace {
    /// The spool directory
    #[arg(value_name = "DIR", conflicts_with = "config")]
    pub directory: Option<PathBuf>,
    /// The configuration that names it; without both, the development defaults
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What `spool dump` is told.
#[derive(Debug, clap::Args)]
pub struct SpoolDumpArgs {
    /// Which spool.
    #[command(flatten)]
    pub place: SpoolPlace,
    /// Only what concerns this message
    #[arg(long, value_name = "ID")]
    pub id: Option<crate::message::MessageId>,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// What `spool repair` is told.
#[derive(Debug, clap::Args)]
pub struct SpoolRepairArgs {
    /// Which spool.
    #[command(flatten)]
    pub place: SpoolPlace,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of `spool export`.
#[derive(Debug, Clone, Args)]
pub struct SpoolExportArgs {
    /// Which spool.
    #[command(flatten)]
    pub place: SpoolPlace,
    /// Where the files go; made if it is not there
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub output: PathBuf,
    /// Also messages that are done, as far as their octets are still there
    #[arg(long)]
    pub all: bool,
}

/// Why a command did not go well.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// There is no usable configuration.
    #[error(transparent)]
    Config(#[from] LoadError),
    /// What the command found or could not do, as a sentence.
    #[error("{0}")]
    Failed(String),
    /// Standard output is gone.
    #[error("cannot write the answer")]
    Output(#[from] io::Error),
}

/// Parses the command line and does what it says.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments).and_then(Cli::checked) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors and go to standard output; if that is gone there is
            // nobody to tell.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match perform(cli.command.unwrap_or(Command::Run(cli.run))) {
        Ok(code) => code,
        Err(failure) => {
            report(&failure);
            ExitCode::from(1)
        }
    }
}

fn perform(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Run(arguments) => run(&arguments)?,
        Command::Check(arguments) => check::check(&arguments)?,
        Command::Route(arguments) => return route::route(&arguments),
        Command::TestClient(arguments) => return test_client::test_client(&arguments),
        Command::Queue(command) => queue(&command)?,
        Command::Why(arguments) => why::why(&arguments)?,
        Command::Spool(command) => spool(&command)?,
        Command::Cert(command) => cert(&command)?,
        Command::User(command) => user(&command)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads and checks the configuration for this host, warnings told on standard error.
pub fn load(file: Option<&Path>) -> Result<config::Config, Failure> {
    let Checked { config, report } = config::load(file, &environment::environment()?)?;
    tell(&report.render(stderr_has_color()));
    Ok(config)
}

/// The same for commands that only need to know where things are: warnings belong to `run` and
/// `check`.
pub fn load_quietly(file: Option<&Path>) -> Result<config::Config, Failure> {
    Ok(config::load(file, &environment::environment()?)?.config)
}

impl Cli {
    /// What the derived parser cannot say: a change without ids and filters needs `--all`.
    fn checked(self) -> Result<Cli, clap::Error> {
        use QueueCommand::{Delete, Release, Retry};
        if let Some(Command::Queue(command)) = &self.command
            && let Retry(change) | Release(change) | Delete(change) = &**command
        {
            let filters = Filters { limit: None, ..change.filters.clone() };
            if change.ids.is_empty() && !change.all && filters == Filters::default() {
                let sentence = "name messages by ID, by a filter such as --to, or with --all";
                return Err(Cli::command().error(ErrorKind::MissingRequiredArgument, sentence));
            }
        }
        Ok(self)
    }
}

/// Tells standard error why a command failed, causes included.
fn report(failure: &Failure) {
    if let Failure::Config(LoadError::Invalid(report)) = failure {
        let drawn = report.render(stderr_has_color());
        return tell(&format!("{drawn}mailrace: {}\n", counts(report)));
    }
    let mut line = format!("mailrace: {failure}");
    let mut cause = std::error::Error::source(failure);
    while let Some(error) = cause {
        line.push_str(&format!(": {error}"));
        cause = error.source();
    }
    tell(&format!("{line}\n"));
}

/// Writes to standard error.  If that is gone there is nobody to tell; the exit code remains.
fn tell(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// `2 errors, 1 warning`.
fn counts(report: &config::Report) -> String {
    let count = |severity, name: &str| match report.count(severity) {
        0 => None,
        1 => Some(format!("1 {name}")),
        n => Some(format!("{n} {name}s")),
    };
    let all = [count(Severity::Error, "error"), count(Severity::Warning, "warning")];
    all.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Colour only for a person: a terminal, and no NO_COLOR (<https://no-color.org>).
fn stderr_has_color() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !refused && io::stderr().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        let words = std::iter::once("mailrace").chain(line.split_whitespace());
        Cli::try_parse_from(words).and_then(Cli::checked)
    }

    #[test]
    fn the_parser_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_is_the_default_command() {
        assert!(parse("").unwrap().command.is_none());
        assert_eq!(parse("--config a").unwrap().run.config, Some("a".into()));
        let Some(Command::Run(run)) = parse("run --config a").unwrap().command else { panic!() };
        assert_eq!(run.config, Some("a".into()));
    }

    #[test]
    fn lines_that_are_understood() {
        for line in [
            "check --config a",
            "route a@b.example --from <> --json --config a",
            "test-client 192.0.2.1 --json",
            "test-client 2001:db8::1 --helo a.example --from <> --to a@b.example --config a",
            "queue count --json",
            "queue list --to *@example.com --from <> --state held --limit 5",
            "queue list --site 10.0.0.5:25 --from *@example.org",
            "queue show 0000000000001 --json --config a",
            "queue retry --all",
            "queue release --state held",
            "queue list --state quarantined",
            "why 0000000000001 --json --config a",
            "queue delete 0000000000001 0000000000002",
            "cert self-signed --name mx.example.com --name 127.0.0.1 --out b",
            "spool verify",
            "spool dump spool",
            "spool export --config a --output b",
        ] {
            assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
        }
    }

    #[test]
    fn lines_that_are_refused() {
        for line in [
            "chekc",
            "cert self-signed --out b",
            "check",
            "route",
            "route a@b.example c@d.example",
            "queue",
            "queue show",
            "queue show xyz",
            "test-client",
            "test-client mx.example.com",
            "queue delete",
            "queue delete --limit 5",
            "queue delete --all 0000000000001",
            "queue list --to example.com",
            "queue list --state frozen",
            "spool verify spool --config a",
            "--config a check --config b",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
