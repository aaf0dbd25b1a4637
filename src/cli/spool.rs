//! `mailrace spool`: reading the log of a stopped gateway.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use super::{Failure, SpoolCommand, SpoolPlace, load_quietly};
use crate::spool::tools::{self, Export, ToolError, Verdict};

/// Reads the log that the arguments name.
pub fn spool(command: &SpoolCommand) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    let verdict = match command {
        SpoolCommand::Verify(place) => tools::verify(&directory(place)?, &mut out),
        SpoolCommand::Dump(place) => tools::dump(&directory(place)?, None, &mut out),
        SpoolCommand::Export(arguments) => {
            let spool = directory(&arguments.place)?;
            std::fs::create_dir_all(&arguments.output).map_err(|error| {
                Failure::Failed(format!("cannot make {}: {error}", arguments.output.display()))
            })?;
            tools::export(&spool, Export::Live, &arguments.output, &mut out)
        }
    };
    out.flush()?;
    drop(out);
    judge(verdict.map_err(|error: ToolError| Failure::Failed(error.to_string()))?)
}

/// The spool that the arguments name; the configuration's, if they name none.
fn directory(place: &SpoolPlace) -> Result<PathBuf, Failure> {
    let directory = match &place.directory {
        Some(directory) => directory.clone(),
        None => load_quietly(place.config.as_deref())?.spool_dir(),
    };
    if directory.join("LOCK").exists() {
        return Ok(directory);
    }
    let hint = match directory.join("spool/LOCK").exists() {
        true => format!("; did you mean {}?", directory.join("spool").display()),
        false => String::new(),
    };
    Err(Failure::Failed(format!("{} is no spool{hint}", directory.display())))
}

fn judge(verdict: Verdict) -> Result<(), Failure> {
    let Verdict { segments, records, live_messages, damage } = verdict;
    eprintln!("{segments} segments, {records} records, {live_messages} messages not done");
    match damage {
        0 => Ok(()),
        damage => Err(Failure::Failed(format!(
            "{damage} things are not as they were written; nothing was changed"
        ))),
    }
}
