//! Who is here: the recipients of `[recipients]`, asked at RCPT, VRFY and EXPN.
//!
//! [`Table`] is the file, read once and whole: pure, and proved free of loops.  [`Roster`] is
//! what all workers share of it, with what next hops have said ([`ahead`]) and who asks for those
//! that are not there ([`harvest`]).  What the file says nothing about it does not judge: a domain
//! without a line takes mail for everybody, as if there were no file.
//!
//! A file that cannot be used stops the start and `check`; at a reload it changes nothing.

pub mod ahead;
pub mod claims;
mod forward;
pub mod harvest;
mod inquiry;
mod read;
mod table;
#[cfg(test)]
mod tests;
mod walk;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwapOption;

use crate::config::Config;
use crate::inbound::relay;
use crate::smtp::address::ForwardPath;
use ahead::Answers;
use claims::Claims;
use harvest::Harvest;

pub use forward::forwarded;
pub use read::BadTable;
pub use table::{Expansion, Figures, Finding, Table};

/// What all workers share; see the module's text.
pub struct Roster {
    table: ArcSwapOption<Table>,
    /// Who asks for those that are not there.
    pub harvest: Harvest,
    /// What next hops have said.
    pub answers: Answers,
    /// What they are being asked.
    pub claims: Claims,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipientsError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// It is larger than any that is of use.
    #[error("{} is larger than {} MiB", path.display(), FILE_OCTETS_MAX >> 20)]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// It is not text.
    #[error("{} is not UTF-8 from line {line} on", path.display())]
    NotUtf8 {
        /// Which.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// A line of it.
    #[error("{}, {source}", path.display())]
    Bad {
        /// Which.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: BadTable,
    },
}

/// A file of several million addresses fits.
const FILE_OCTETS_MAX: u64 = 256 << 20;

impl Roster {
    /// Reads the file that the configuration names.
    ///
    /// # Errors
    /// See [`RecipientsError`].
    pub fn new(config: &Config) -> Result<Roster, RecipientsError> {
        let settings = &config.recipients;
        Ok(Roster {
            table: ArcSwapOption::new(read_table(config)?.map(Arc::new)),
            harvest: Harvest::default(),
            answers: Answers::new(settings.entries, settings.positive, settings.negative),
            claims: Claims::default(),
        })
    }

    /// Reads the file again; tells whether there is one.
    ///
    /// # Errors
    /// See [`RecipientsError`]; what was read before stays in use.
    pub fn reload(&self, config: &Config) -> Result<bool, RecipientsError> {
        let table = read_table(config)?.map(Arc::new);
        let is_there = table.is_some();
        self.table.store(table);
        Ok(is_there)
    }

    /// The table as it is now; none without a file.
    pub fn table(&self) -> Option<Arc<Table>> {
        self.table.load_full()
    }
}

fn read_table(config: &Config) -> Result<Option<Table>, RecipientsError> {
    let Some(path) = &config.recipients.file else { return Ok(None) };
    let text = read_text(path)?;
    let divider = config.recipients.plus.map(String::from).unwrap_or_default();
    let bad = |source| RecipientsError::Bad { path: path.clone(), source };
    let table = Table::parse(&text, &divider).map_err(bad)?;
    check_routes(config, &table).map_err(bad)?;
    Ok(Some(table))
}

fn read_text(path: &Path) -> Result<String, RecipientsError> {
    let failed = |source| RecipientsError::Read { path: path.to_owned(), source };
    let mut octets = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(FILE_OCTETS_MAX + 1).read_to_end(&mut octets).map_err(failed)?;
    if octets.len() as u64 > FILE_OCTETS_MAX {
        return Err(RecipientsError::TooLarge { path: path.to_owned() });
    }
    String::from_utf8(octets).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|&&octet| octet == b'\n').count();
        RecipientsError::NotUtf8 { path: path.to_owned(), line }
    })
}

/// Mail for an alias must be able to go on: no client is told of a line that leads nowhere.
fn check_routes(config: &Config, table: &Table) -> Result<(), BadTable> {
    for expansion in table.expansions() {
        for target in expansion.all() {
            let path = ForwardPath::Mailbox(target.clone());
            let Err(refusal) = relay::route_for(config, &path) else { continue };
            let reason = refusal.reason();
            let what = format!(
                "mail for `{target}` has no way on ({reason}); add a [[route]] for it, or take it \
                 out"
            );
            return Err(BadTable { line: expansion.line(), what: what.into() });
        }
    }
    Ok(())
}
