//! `mailrace check`: `ok` and what the configuration comes to, or everything that is wrong.

use std::fmt::{self, Display};
use std::io::{self, Write};

use super::{CheckArgs, Failure, load, tell};
use crate::auth::{Authority, AuthorityError};
use crate::config::{Config, Events};
use crate::message::Durability;
use crate::recipients::{Figures, Roster};
use crate::tls::Acceptor;
use crate::units::Period;

/// Prints the summary; warnings go to standard error, errors are the [`Failure`].
pub(super) fn check(arguments: &CheckArgs) -> Result<(), Failure> {
    let config = load(Some(&arguments.config))?;
    certificates(&config)?;
    secrets(&config)?;
    let recipients = recipients(&config)?;
    write!(io::stdout(), "ok\n{}{recipients}", Summary(&config))?;
    Ok(())
}

/// Reads the file of recipients; a line on what it comes to, none without a file.
fn recipients(config: &Config) -> Result<String, Failure> {
    let roster = Roster::new(config).map_err(|error| Failure::Failed(error.to_string()))?;
    let Some(table) = roster.table() else { return Ok(String::new()) };
    for domain in config.domains.exact().filter(|domain| !table.speaks_for(domain)) {
        tell(&format!(
            "warning: the file of recipients has no line for {domain}, so everybody is taken \
             there; `@{domain}` says that this is meant\n"
        ));
    }
    for domain in table.domains().into_iter().filter(|domain| !config.domains.contains(domain)) {
        tell(&format!(
            "warning: the file of recipients has lines for {domain}, which is not in `[domains] \
             accept`; they count for nothing\n"
        ));
    }
    let Figures { addresses, expansions, domains, .. } = table.figures();
    Ok(format!(
        "recipients {addresses} addresses, {expansions} aliases and lists, {domains} domains\n"
    ))
}

/// Reads the certificates, which are no part of the text.
fn certificates(config: &Config) -> Result<(), Failure> {
    let Some(settings) = config.acceptor() else { return Ok(()) };
    let read = Acceptor::new(&settings);
    let (_, expiries) = read.map_err(|error| Failure::Failed(error.to_string()))?;
    for expiry in expiries {
        tell(&format!("warning: {expiry}\n"));
    }
    Ok(())
}

/// Reads users, keys and what routes log in with; no secret is shown.
fn secrets(config: &Config) -> Result<(), Failure> {
    Authority::new(config).map_err(|error| Failure::Failed(error.to_string()))?;
    for login in config.routes.iter().filter_map(|route| route.login.as_ref()) {
        match login.credentials() {
            Ok(_) => {}
            // The gateway may be started with another environment than this command.
            Err(error @ AuthorityError::NoVariable { .. }) => tell(&format!("warning: {error}\n")),
            Err(error) => return Err(Failure::Failed(error.to_string())),
        }
    }
    Ok(())
}

/// What a configuration comes to, a line a subject, defaults filled in.
struct Summary<'a>(&'a Config);

impl Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = self.0;
        let workers = config.workers;
        writeln!(f, "host      {}, {workers} workers", config.hostname)?;
        writeln!(f, "data      {}", config.data_dir.display())?;
        for listener in &config.listeners {
            let durability = match listener.durability {
                Durability::Fsync => "fsync",
                Durability::Os => "os",
            };
            let (address, service) = (listener.address, listener.service);
            writeln!(f, "listener  {address} {service}, {durability}, tls {}", listener.tls)?;
        }
        for route in config.routes.iter() {
            writeln!(f, "route     {} -> {}", route.recipient, route.to)?;
        }
        let limits = &config.limits;
        writeln!(
            f,
            "limits    {} a message, {} recipients, {} sessions, {} of one address",
            limits.message_size, limits.recipients, limits.sessions, limits.sessions_per_address,
        )?;
        let queue = &config.queue;
        writeln!(
            f,
            "queue     retries after {}, for {}",
            queue.retry.iter().map(|&wait| Period(wait).to_string()).collect::<Vec<_>>().join(", "),
            Period(queue.lifetime),
        )?;
        match &config.log.events {
            Events::Stdout => writeln!(f, "events    standard output")?,
            Events::File(path) => writeln!(f, "events    {}", path.display())?,
        }
        writeln!(f, "admin     http://{}", config.admin.address)
    }
}
