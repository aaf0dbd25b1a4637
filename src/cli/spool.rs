//! `mailrace spool`: the log of a stopped gateway, read, exported and repaired.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use super::{Failure, SpoolCommand, SpoolPlace, load_quietly};
use crate::spool::tools::{self, Export, Form, Repair, ToolError, Verdict};

/// Reads the log that the arguments name.
pub fn spool(command: &SpoolCommand) -> Result<(), Failure> {
    let mut out = BufWriter::new(io::stdout().lock());
    let verdict = match command {
        SpoolCommand::Verify(place) => tools::verify(&directory(place)?, &mut out),
        SpoolCommand::Dump(arguments) => {
            let form = if arguments.json { Form::Json } else { Form::Text };
            tools::dump(&directory(&arguments.place)?, arguments.id, form, &mut out)
        }
        SpoolCommand::Repair(arguments) => {
            let how = if arguments.dry_run { Repair::DryRun } else { Repair::Quarantine };
            tools::repair(&directory(&arguments.place)?, how, &mut out)
        }
        SpoolCommand::Export(arguments) => {
            let spool = directory(&arguments.place)?;
            std::fs::create_dir_all(&arguments.output).map_err(|error| {
                Failure::Failed(format!("cannot make {}: {error}", arguments.output.display()))
            })?;
            let which = if arguments.all { Export::All } else { Export::Live };
            tools::export(&spool, which, &arguments.output, &mut out)
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
        damage => Err(Failure::Failed(format!("{damage} things are not as they were written"))),
    }
}
