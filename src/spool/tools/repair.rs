//! Setting aside what keeps a spool from being recovered, or would be set aside by recovery.
//!
//! Nothing is deleted and nothing is rewritten: a file is renamed to `NAME.quarantined`, where the
//! gateway passes it over and the other tools still look at it.  Segments that are readable stay,
//! also where batches in them are damaged: recovery serves the rest of those.  A file of another
//! version is no damage and stays too: the mailrace that wrote it reads it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::super::SegmentNo;
use super::super::format::FormatError;
use super::super::format::header::SegmentState;
use super::{Named, Survey, ToolError, Verdict};

/// Whether to do it or only to say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// Say what would be done.
    DryRun,
    /// Do it.
    Quarantine,
}

/// Sets damaged files aside, or says which; a line for each thing that is not as it should be.
/// [`Verdict::damage`] counts what is left: what a start of the gateway would still stumble over.
///
/// # Errors
/// The directory cannot be read, a file cannot be renamed, or a mailrace runs on it.
pub fn repair(spool: &Path, how: Repair, out: &mut impl Write) -> Result<Verdict, ToolError> {
    let mut survey = Survey::take(spool)?;
    let failed = |source| ToolError::Io { path: spool.into(), source };
    let mut verdict = Verdict::default();
    let mut renamed = 0u64;
    let unusable = unusable(&survey);
    for (name, reason) in &unusable {
        match (reason, how) {
            (Reason::OtherVersion(error), _) => {
                verdict.damage += 1;
                writeln!(out, "{name}: left alone: {error}; start the mailrace that wrote it")
            }
            (reason, Repair::DryRun) => {
                verdict.damage += 1;
                writeln!(out, "{name}: would be set aside: {reason}")
            }
            (reason, Repair::Quarantine) => {
                let aside = set_aside(spool, name).map_err(failed)?;
                renamed += 1;
                writeln!(out, "{name}: set aside as {aside}: {reason}")
            }
        }
        .map_err(failed)?;
    }
    if renamed > 0 {
        File::open(spool).and_then(|directory| directory.sync_all()).map_err(failed)?;
    }
    let is_unusable = |file: &Named| unusable.iter().any(|(name, _)| *name == file.name);
    survey.files.retain(|file| !file.is_aside && !is_unusable(file));
    let mut in_segments = Verdict::default();
    survey.each(&mut in_segments, &mut io::sink(), |look, verdict, _| {
        let hurt = look.entries.iter().filter(|entry| entry.hurt.is_some()).count();
        verdict.damage += (hurt + look.gaps.len()) as u64;
        Ok(())
    })?;
    if in_segments.damage > 0 {
        writeln!(
            out,
            "{} things in readable segments are damaged (`mailrace spool verify` lists them); what \
             is good in them is served, and they are set aside when they are dead",
            in_segments.damage
        )
        .map_err(failed)?;
    }
    verdict.segments = in_segments.segments;
    verdict.records = in_segments.records;
    verdict.live_messages = survey.live().count() as u64;
    Ok(verdict)
}

/// Why a file is of no use.
enum Reason {
    Header(FormatError),
    OtherVersion(FormatError),
    Dead,
    Size {
        found: u32,
        others: u32,
    },
    Stranger,
    /// Octet by octet the same as this other file.
    Copy(String),
    Twin(SegmentNo),
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reason::Header(error) | Reason::OtherVersion(error) => write!(f, "{error}"),
            Reason::Dead => write!(f, "it is damaged and dead, and was to be set aside"),
            Reason::Stranger => write!(f, "it belongs to another spool than most files here"),
            Reason::Copy(of) => write!(f, "it is a copy of {of}"),
            Reason::Size { found, others } => {
                write!(f, "a segment of {found} octets among segments of {others}")
            }
            Reason::Twin(segment) => write!(
                f,
                "it says to be segment {segment}, as another file does; compare them with \
                 `mailrace spool dump`"
            ),
        }
    }
}

/// The files that recovery could not use or would refuse to go on with.
fn unusable(survey: &Survey) -> Vec<(String, Reason)> {
    let files = &survey.files;
    let strangers: Vec<&str> = survey.strangers().map(|file| file.name.as_str()).collect();
    let mut sizes: BTreeMap<u32, usize> = BTreeMap::new();
    let mut numbers: BTreeMap<SegmentNo, usize> = BTreeMap::new();
    for file in files.iter().filter(|file| !file.is_aside) {
        let Ok(header) = file.header else { continue };
        *sizes.entry(header.segment_bytes).or_default() += 1;
        if header.state == SegmentState::Open && !strangers.contains(&file.name.as_str()) {
            *numbers.entry(header.segment).or_default() += 1;
        }
    }
    let usual = sizes.iter().max_by_key(|(_, count)| **count).map(|(&size, _)| size);
    let reason = |file: &Named| match file.header {
        Err(error @ FormatError::Version(_)) => Some(Reason::OtherVersion(error)),
        Err(error) => Some(Reason::Header(error)),
        Ok(header) if header.state == SegmentState::Quarantined => Some(Reason::Dead),
        Ok(_) if strangers.contains(&file.name.as_str()) => Some(Reason::Stranger),
        Ok(header) if Some(header.segment_bytes) != usual => {
            let (found, others) = (header.segment_bytes, usual.unwrap_or(0));
            Some(Reason::Size { found, others })
        }
        Ok(header)
            if header.state == SegmentState::Open
                && numbers.get(&header.segment).is_some_and(|&count| count > 1) =>
        {
            twin(survey, file, header.segment)
        }
        Ok(_) => None,
    };
    let files = files.iter().filter(|file| !file.is_aside);
    files.filter_map(|file| Some((file.name.clone(), reason(file)?))).collect()
}

/// What is to become of one of several files that say to be the same segment: of copies the first
/// stays.
fn twin(survey: &Survey, file: &Named, segment: SegmentNo) -> Option<Reason> {
    let mut twins = survey.files.iter().filter(|file| !file.is_aside && file.is_open(segment));
    let first = twins.next()?;
    let is_copy = |other: &Named| {
        let read = |file: &Named| std::fs::read(survey.path.join(&file.name));
        matches!((read(first), read(other)), (Ok(first), Ok(other)) if first == other)
    };
    match file.name == first.name {
        true if twins.all(is_copy) => None,
        false if is_copy(file) => Some(Reason::Copy(first.name.clone())),
        _ => Some(Reason::Twin(segment)),
    }
}

/// Renames a file so that recovery passes it over; never over another file.
fn set_aside(spool: &Path, name: &str) -> io::Result<String> {
    for again in 0..1000 {
        let aside = match again {
            0 => format!("{name}.quarantined"),
            again => format!("{name}.{again}.quarantined"),
        };
        let (from, to) = (spool.join(name), spool.join(&aside));
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(aside),
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}
