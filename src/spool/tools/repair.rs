//! Setting aside what keeps a spool from being recovered, or would be set aside by recovery.
//!
//! Nothing is deleted and nothing is rewritten: a file is renamed to `NAME.quarantined`, where the
//! gateway passes it over and the other tools still look at it.  Segments that are readable stay,
//! also where batches in them are damaged: recovery serves the rest of those.  A file of another
//! version is no damage and stays too: the mailrace that wrote it reads it.  Where the disk cannot
//! read the end of the log, a copy takes the file's place, with zeros for what cannot be read; the
//! operator has said that it never will be.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::super::SegmentNo;
use super::super::format::FormatError;
use super::super::format::header::SegmentState;
use super::super::scan;
use super::{Named, Survey, ToolError, Verdict, open_headers};

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
    repair_surveyed(Survey::take(spool)?, how, out)
}

pub(super) fn repair_surveyed(
    mut survey: Survey,
    how: Repair,
    out: &mut impl Write,
) -> Result<Verdict, ToolError> {
    let spool = &survey.path.clone();
    let failed = |source| ToolError::Io { path: spool.into(), source };
    let mut verdict = Verdict::default();
    let mut renamed = 0u64;
    let mut unusable = unusable(&survey);
    unusable.extend(hidden_end(&mut survey, &unusable).map_err(failed)?);
    for (name, reason) in &unusable {
        match (reason, how) {
            (Reason::OtherVersion(error), _) => {
                verdict.damage += 1;
                writeln!(out, "{name}: left alone: {error}; start the mailrace that wrote it")
            }
            (Reason::HiddenEnd { octets, .. }, Repair::DryRun) => {
                verdict.damage += 1;
                writeln!(
                    out,
                    "{name}: would be replaced by a copy: {reason}; {octets} octets would be zeros"
                )
            }
            (Reason::HiddenEnd { bytes, octets }, Repair::Quarantine) => {
                let aside = replace(spool, name, bytes).map_err(failed)?;
                renamed += 1;
                writeln!(
                    out,
                    "{name}: set aside as {aside}: {reason}; a copy is in its place, with zeros \
                     for {octets} octets"
                )
            }
            (reason, Repair::DryRun) => {
                // A start renames a dead one itself, and goes on.
                verdict.damage += u64::from(!matches!(reason, Reason::Dead));
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
    let is_unusable = |file: &Named| {
        let is_kept = |reason: &Reason| matches!(reason, Reason::HiddenEnd { .. });
        unusable.iter().any(|(name, reason)| *name == file.name && !is_kept(reason))
    };
    survey.files.retain(|file| !file.is_aside() && !is_unusable(file));
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
    /// The log may end where the disk cannot read.
    HiddenEnd {
        /// What can be read, with zeros for the rest.
        bytes: Vec<u8>,
        octets: usize,
    },
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reason::Header(error) | Reason::OtherVersion(error) => write!(f, "{error}"),
            Reason::Dead => write!(f, "it is damaged and dead, and was to be set aside"),
            Reason::Stranger => write!(f, "it belongs to another spool than most files here"),
            Reason::HiddenEnd { .. } => write!(f, "the log may end where the disk cannot read"),
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
    for file in files.iter().filter(|file| !file.is_renamed) {
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
        Ok(_) if strangers.contains(&file.name.as_str()) => Some(Reason::Stranger),
        Ok(header) if Some(header.segment_bytes) != usual => {
            let (found, others) = (header.segment_bytes, usual.unwrap_or(0));
            Some(Reason::Size { found, others })
        }
        Ok(header) if header.state == SegmentState::Quarantined => Some(Reason::Dead),
        Ok(header)
            if header.state == SegmentState::Open
                && numbers.get(&header.segment).is_some_and(|&count| count > 1) =>
        {
            twin(survey, file, header.segment)
        }
        Ok(_) => None,
    };
    let files = files.iter().filter(|file| !file.is_renamed);
    files.filter_map(|file| Some((file.name.clone(), reason(file)?))).collect()
}

/// The newest of the other files, if recovery cannot be certain of its end.
fn hidden_end(
    survey: &mut Survey,
    unusable: &[(String, Reason)],
) -> io::Result<Option<(String, Reason)>> {
    let is_open = |file: &&Named| {
        let is_unusable = unusable.iter().any(|(name, _)| *name == file.name);
        !file.is_aside() && !is_unusable && file.is_open(file.segment())
    };
    let Some(file) = survey.files.iter().filter(is_open).max_by_key(|file| file.segment()) else {
        return Ok(None);
    };
    let Ok(header) = file.header else { return Ok(None) };
    let (bytes, lost) = survey.reads.whole(&survey.path.join(&file.name))?;
    let voided: Vec<(u64, u64)> =
        open_headers(&survey.files).filter_map(|header| header.voided).collect();
    let Ok(scanned) = scan::scan(&bytes, &header, &voided) else { return Ok(None) };
    let last_valid = scanned.end_of_whole(header.first_sequence);
    if scan::sealed_end(&bytes, &header).is_some() || scanned.is_end_readable(last_valid, lost) {
        return Ok(None);
    }
    let reason = Reason::HiddenEnd { bytes, octets: lost.octets };
    Ok(Some((file.name.clone(), reason)))
}

/// What is to become of one of several files that say to be the same segment: of copies the first
/// stays.
fn twin(survey: &Survey, file: &Named, segment: SegmentNo) -> Option<Reason> {
    let mut twins = survey.files.iter().filter(|file| !file.is_aside() && file.is_open(segment));
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
    for aside in asides(name) {
        let (from, to) = (spool.join(name), spool.join(&aside));
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(aside),
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Sets a file aside and puts `bytes` in its place, in one step: whenever it is interrupted, one of
/// the two is there.
fn replace(spool: &Path, name: &str, bytes: &[u8]) -> io::Result<String> {
    for aside in asides(name) {
        let (path, copy) = (spool.join(name), spool.join(&aside));
        let mut file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&copy)
        {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(error),
        };
        // Its owner opens it, whoever repairs it.
        let given = fs::metadata(&path)
            .and_then(|owner| fchown(&file, Some(owner.uid()), Some(owner.gid())));
        let written = given.and_then(|()| file.write_all(bytes)).and_then(|()| file.sync_all());
        let exchange = || renameat_with(CWD, &copy, CWD, path, RenameFlags::EXCHANGE);
        match written.and_then(|()| Ok(exchange()?)) {
            Ok(()) => return Ok(aside),
            Err(error) => {
                // Only half a copy.
                fs::remove_file(&copy)?;
                return Err(error);
            }
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Names for a file that is set aside, of which the first that is free is taken.
fn asides(name: &str) -> impl Iterator<Item = String> {
    (0..1000).map(move |again| match again {
        0 => format!("{name}.quarantined"),
        again => format!("{name}.{again}.quarantined"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_takes_the_place_and_the_file_is_kept() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        fs::write(at("00000001.seg"), "hurt").unwrap();
        fs::write(at("00000001.seg.quarantined"), "older").unwrap();
        let aside = replace(place.path(), "00000001.seg", b"copy").unwrap();
        assert_eq!(aside, "00000001.seg.1.quarantined");
        let read = |name: &str| fs::read_to_string(at(name)).unwrap();
        assert_eq!(read("00000001.seg"), "copy");
        assert_eq!(read("00000001.seg.1.quarantined"), "hurt");
        assert_eq!(read("00000001.seg.quarantined"), "older");
        replace(place.path(), "00000002.seg", b"copy").unwrap_err();
        assert!(!at("00000002.seg.quarantined").exists());
    }
}
