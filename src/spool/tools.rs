//! Looking at a stopped spool: is it sound, what stands in it, and its messages as files.
//!
//! Everything here but [`repair`] is read-only and goes by `docs/spool-format.md`: segments in their order, the
//! rules of recovery, nothing repaired.  Files that recovery has set aside are looked at too, each
//! by itself.  Each function gives a [`Verdict`], which is what a command's exit code says.
//!
//! It fails only where the directory cannot be read or written to, or another mailrace runs on it.

mod look;
mod repair;
mod text;
mod verify;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use self::look::{Bounds, Look};
pub use self::repair::{Repair, repair};
use self::text::{Line, Unstuff, envelope_line, record_line};
pub use self::verify::verify;
use super::format::FormatError;
use super::format::header::{SegmentHeader, SegmentState};
use super::format::message::{self, StoredBody, StoredMessage};
use super::format::outcome::{StoredDone, StoredRecipients};
use super::format::record::{Kind, RecordView};
use super::format::roll::{self, Roll};
use super::salvage::{Lost, Patience};
use super::scan;
use super::{BLOCK, RECORD_BYTES_MAX, RecordPlace, SegmentNo, round_to_block};
use crate::message::MessageId;

/// What was met.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Segments in use.
    pub segments: u64,
    /// Records that count.
    pub records: u64,
    /// Messages that are not done.
    pub live_messages: u64,
    /// Things that are not as they were written; 0 means sound.
    pub damage: u64,
}

/// Why a spool cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// Another process has it.
    #[error("{0} is in use: stop mailrace first")]
    InUse(PathBuf),
    /// The system refuses.
    #[error("{path}: {source}")]
    Io {
        /// What was to be read or written.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// How a dump is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Text,
    /// An object a line.
    Json,
}

/// Writes a line for each record, of one message if `only` says so.
pub fn dump(
    spool: &Path,
    only: Option<MessageId>,
    form: Form,
    out: &mut impl Write,
) -> Result<Verdict, ToolError> {
    let mut survey = Survey::take(spool)?;
    let mut verdict = Verdict::default();
    // What is said of the segments is no line of JSON.
    let mut said = Vec::new();
    survey.each(&mut verdict, &mut said, |look, _, said| {
        if form == Form::Text && only.is_none() {
            out.write_all(said)?;
        }
        said.clear();
        for look::Entry { sequence, place, name: (_, id), record, .. } in &look.entries {
            let Some(record) = record.as_ref().filter(|_| only.is_none_or(|only| only == *id))
            else {
                continue;
            };
            if form == Form::Json {
                writeln!(out, "{}", record_line(*sequence, *place, record))?;
            } else {
                writeln!(
                    out,
                    "{}+{:<9} seq {sequence:<8} {} {}",
                    place.segment,
                    place.offset,
                    id,
                    Line(record)
                )?;
            }
        }
        Ok(())
    })?;
    if form == Form::Text && only.is_none() {
        out.write_all(&said).map_err(|source| survey.failed(source))?;
    }
    verdict.live_messages = survey.live().count() as u64;
    Ok(verdict)
}

/// Which messages to export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Export {
    /// Those that are not done.
    Live,
    /// All whose octets are still there.
    All,
}

/// Writes each message to `directory` as `ID.eml`, in the form of RFC 5322 (trace header first,
/// dots not doubled), and its envelope as a line of JSON to `out`.
pub fn export(
    spool: &Path,
    which: Export,
    directory: &Path,
    out: &mut impl Write,
) -> Result<Verdict, ToolError> {
    export_surveyed(Survey::take(spool)?, which, directory, out)
}

fn export_surveyed(
    mut survey: Survey,
    which: Export,
    directory: &Path,
    out: &mut impl Write,
) -> Result<Verdict, ToolError> {
    let mut verdict = Verdict::default();
    // Nothing in these is exported.
    survey.files.retain(|file| !file.is_aside());
    survey.each(&mut verdict, &mut io::sink(), |_, _, _| Ok(()))?;
    verdict.live_messages = survey.live().count() as u64;
    let places: Vec<(MessageId, RecordPlace)> = survey
        .messages
        .iter()
        .filter(|(_, known)| which == Export::All || !known.is_done())
        .filter_map(|(&id, known)| Some((id, known.place?)))
        .collect();
    for (id, place) in places {
        let path = directory.join(format!("{id}.eml"));
        let failed = |source| ToolError::Io { path: path.clone(), source };
        let mut file = io::BufWriter::new(File::create_new(&path).map_err(failed)?);
        let exported = survey.export(id, place, &mut file).and_then(|line| {
            file.flush()?;
            Ok(line)
        });
        let Exported { line, damage } = match exported {
            Ok(exported) => exported,
            Err(error) => {
                // Half a file would look whole.
                fs::remove_file(&path).map_err(failed)?;
                if !is_damage(&error) {
                    return Err(failed(error));
                }
                // The others can still be had.
                tracing::error!("message {id} cannot be read: {error}");
                verdict.damage += 1;
                continue;
            }
        };
        verdict.damage += damage;
        writeln!(out, "{line}").map_err(failed)?;
    }
    Ok(verdict)
}

/// A directory's segments and what they say of each message.
struct Survey {
    path: PathBuf,
    /// Held for the lock's sake.
    _lock: Option<File>,
    reads: Reads,
    files: Vec<Named>,
    messages: BTreeMap<MessageId, Known>,
    /// Every CHUNK record that verifies.
    chunks: BTreeSet<RecordPlace>,
    /// Chunks that a message that is not done names.
    named_chunks: BTreeMap<MessageId, Vec<RecordPlace>>,
}

/// How the files are read.
struct Reads {
    read_at: ReadAt,
    /// For all reads of one tool together.
    patience: Patience,
}

/// Fills the octets from an offset of a file.
type ReadAt = fn(&File, &mut [u8], u64) -> io::Result<()>;

struct Named {
    name: String,
    octets: u64,
    header: Result<SegmentHeader, FormatError>,
    roll: Option<Roll>,
    /// Its name says that it is set aside.
    is_renamed: bool,
}

impl Named {
    /// Set aside: judged by itself.  The header says so before the name does, and a crash may come
    /// between the two.
    fn is_aside(&self) -> bool {
        let is_dead = |header: SegmentHeader| header.state == SegmentState::Quarantined;
        self.is_renamed || self.header.is_ok_and(is_dead)
    }

    /// Whether it says to hold this segment.
    fn is_open(&self, segment: SegmentNo) -> bool {
        self.header
            .is_ok_and(|header| header.segment == segment && header.state == SegmentState::Open)
    }

    /// 0 where that is not known.
    fn segment(&self) -> SegmentNo {
        self.header.map_or(SegmentNo(0), |header| header.segment)
    }
}

/// What is known of a message.
#[derive(Default)]
struct Known {
    /// Where it stands last.
    place: Option<RecordPlace>,
    recipients: u32,
    done: BTreeSet<u16>,
    is_ended: bool,
}

impl Known {
    fn is_done(&self) -> bool {
        self.is_ended
            || (self.place.is_some() && self.done.len() as u64 >= u64::from(self.recipients))
    }
}

impl Reads {
    /// The whole blocks of a file, with zeros where the disk cannot read it.  Recovery, too, passes
    /// over a block that was cut in the middle.
    fn whole(&mut self, path: &Path) -> io::Result<(Vec<u8>, Lost)> {
        let file = File::open(path)?;
        let octets = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let mut bytes = vec![0; octets / BLOCK * BLOCK];
        let mut read = |at, into: &mut [u8]| (self.read_at)(&file, into, at);
        let lost = self.patience.salvage(0, &mut bytes, &mut read)?;
        Ok((bytes, lost))
    }

    fn header(&mut self, path: &Path, name: String, is_renamed: bool) -> io::Result<Named> {
        let file = File::open(path)?;
        let octets = file.metadata()?.len();
        let mut block = [0; BLOCK];
        let mut read = |at, into: &mut [u8]| (self.read_at)(&file, into, at);
        let header = match self.patience.read_header(&mut block, &mut read) {
            Ok(lost) if lost.is_nothing() => SegmentHeader::decode(&block),
            Ok(_) => Err(FormatError::Malformed("header, which the disk cannot read,")),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(FormatError::Truncated)
            }
            Err(error) => return Err(error),
        };
        let is_open = |header: &SegmentHeader| header.state == SegmentState::Open;
        let open = header.ok().filter(is_open);
        let roll = open.and_then(|header| Roll::decode(&block, header.generation));
        Ok(Named { name, octets, header, roll, is_renamed })
    }
}

impl Survey {
    fn take(path: &Path) -> Result<Survey, ToolError> {
        let reads = Reads { read_at: FileExt::read_exact_at, patience: Patience::default() };
        Survey::take_by(reads, path)
    }

    fn take_by(mut reads: Reads, path: &Path) -> Result<Survey, ToolError> {
        let failed = |source| ToolError::Io { path: path.into(), source };
        let lock = match File::open(path.join("LOCK")) {
            Ok(lock) => match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => Some(lock),
                Err(Errno::WOULDBLOCK) => return Err(ToolError::InUse(path.into())),
                Err(error) => return Err(failed(error.into())),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        let mut files = Vec::new();
        for entry in fs::read_dir(path).map_err(failed)? {
            let Ok(name) = entry.map_err(failed)?.file_name().into_string() else { continue };
            let is_renamed = name.ends_with(".quarantined");
            if is_renamed || name.ends_with(".seg") {
                let file = path.join(&name);
                let named = reads.header(&file, name, is_renamed);
                files.push(named.map_err(|source| ToolError::Io { path: file, source })?);
            }
        }
        // Those that are set aside come last: they have nothing to do with their neighbours, and the
        // others want the patience more.
        files.sort_by_key(|file| {
            let segment = file.header.map(|header| header.segment).ok();
            (file.is_aside(), segment, file.name.clone())
        });
        Ok(Survey {
            path: path.into(),
            _lock: lock,
            reads,
            files,
            messages: BTreeMap::new(),
            chunks: BTreeSet::new(),
            named_chunks: BTreeMap::new(),
        })
    }

    /// The spool to which most files belong.
    fn ours(&self) -> Option<u32> {
        let files = self.files.iter().filter(|file| !file.is_aside());
        let spools: Vec<u32> =
            files.filter_map(|file| file.roll.as_ref()).map(|roll| roll.spool).collect();
        roll::spool_of(spools.into_iter())
    }

    /// Files of another spool.
    fn strangers(&self) -> impl Iterator<Item = &Named> {
        let ours = self.ours();
        let is_strange = move |roll: &Roll| Some(roll.spool) != ours;
        let files = self.files.iter().filter(|file| !file.is_aside());
        files.filter(move |file| file.roll.as_ref().is_some_and(is_strange))
    }

    /// Segments that were in use when the newest was opened, and of which there is no trace.
    fn missing(&self) -> Vec<SegmentNo> {
        let ours = self.ours();
        let is_ours = |file: &&Named| {
            let is_strange = file.roll.as_ref().is_some_and(|roll| Some(roll.spool) != ours);
            !file.is_aside() && file.is_open(file.segment()) && !is_strange
        };
        let newest = self.files.iter().filter(is_ours).max_by_key(|file| file.segment());
        let known: BTreeSet<SegmentNo> = self.files.iter().map(Named::segment).collect();
        let roll = newest.and_then(|file| file.roll.as_ref());
        roll.map_or_else(Vec::new, |roll| roll.missing(|segment| known.contains(&segment)))
    }

    fn failed(&self, source: io::Error) -> ToolError {
        ToolError::Io { path: self.path.clone(), source }
    }

    /// Looks at each segment in the log's order.
    fn each<W: Write>(
        &mut self,
        verdict: &mut Verdict,
        out: &mut W,
        mut f: impl FnMut(&Look<'_>, &mut Verdict, &mut W) -> io::Result<()>,
    ) -> Result<(), ToolError> {
        let files = std::mem::take(&mut self.files);
        let open: Vec<SegmentHeader> = open_headers(&files).collect();
        for file in &files {
            self.look_at(file, &open, verdict, out, &mut f)
                .map_err(|source| self.failed(source))?;
        }
        self.files = files;
        Ok(())
    }

    fn look_at<W: Write>(
        &mut self,
        file: &Named,
        open: &[SegmentHeader],
        verdict: &mut Verdict,
        out: &mut W,
        f: &mut impl FnMut(&Look<'_>, &mut Verdict, &mut W) -> io::Result<()>,
    ) -> io::Result<()> {
        let header = match file.header {
            Ok(header) => header,
            Err(error) => {
                verdict.damage += 1;
                return writeln!(out, "{}: DAMAGED header: {error}", file.name);
            }
        };
        if header.state == SegmentState::Free {
            return writeln!(out, "{}: free", file.name);
        }
        let read = self.reads.whole(&self.path.join(&file.name));
        let (bytes, lost) =
            read.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.name)))?;
        let missing = u64::from(header.segment_bytes).saturating_sub(file.octets);
        if missing > 0 {
            verdict.damage += 1;
            writeln!(out, "{}: DAMAGED: its last {missing} octets are missing", file.name)?;
        }
        if !lost.is_nothing() {
            verdict.damage += 1;
            let octets = lost.octets;
            writeln!(out, "{}: DAMAGED: the disk cannot read {octets} octets of it", file.name)?;
        }
        let voided: Vec<(u64, u64)> = open.iter().filter_map(|header| header.voided).collect();
        let scanned = match scan::scan(&bytes, &header, &voided) {
            Ok(scanned) => scanned,
            Err(error) => {
                verdict.damage += 1;
                return writeln!(out, "{}: NOT READ: {error}", file.name);
            }
        };
        let next = open.iter().find(|next| next.segment > header.segment);
        let sealed = scan::sealed_end(&bytes, &header);
        let (last_valid, is_end_known) = match (next, sealed) {
            _ if file.is_aside() => (u64::MAX, false),
            (None, Some(last)) => (last, true),
            (None, None) => (scanned.end_of_whole(header.first_sequence), true),
            (next, _) => scan::bound_by(header.segment, next),
        };
        let is_indexed = sealed.is_some() && !file.is_aside();
        let bounds = Bounds { last_valid, is_end_known, is_indexed };
        let look = Look::new(&file.name, header, &bytes, &scanned, bounds);
        look.describe(out)?;
        let is_last = next.is_none() && sealed.is_none() && !file.is_aside();
        if is_last && !scanned.is_end_readable(last_valid, lost) {
            writeln!(
                out,
                "{}: the log may end where the disk cannot read, behind sequence {last_valid}: \
                 mailrace does not start with it",
                file.name
            )?;
        } else if let Some(torn) =
            scanned.last_seen.filter(|&last| next.is_none() && last > last_valid)
        {
            writeln!(
                out,
                "{}: the end is torn from sequence {} to {torn}, as a crash leaves it; no write \
                 that ended is in it",
                file.name,
                last_valid + 1
            )?;
        }
        verdict.segments += 1;
        if !file.is_aside() {
            for entry in &look.entries {
                if let Some(record) = &entry.record {
                    verdict.records += 1;
                    self.apply(entry.place, record);
                }
            }
        }
        f(&look, verdict, out)
    }

    fn apply(&mut self, place: RecordPlace, record: &RecordView<'_>) {
        let known = || Known::default();
        match record.kind() {
            Kind::Message => {
                let known = self.messages.entry(record.id()).or_insert_with(known);
                known.place = Some(place);
                known.recipients = message::recipient_count(record).unwrap_or(u32::MAX);
                let chunks = message::chunks(record).into_iter().flatten();
                let chunks: Vec<RecordPlace> = chunks.map(|chunk| chunk.place).collect();
                if !chunks.is_empty() {
                    self.named_chunks.insert(record.id(), chunks);
                }
            }
            Kind::Chunk => drop(self.chunks.insert(place)),
            Kind::Done => {
                let Ok(done) = StoredDone::decode(record) else { return };
                let known = self.messages.entry(record.id()).or_insert_with(known);
                known.is_ended |= done.last || done.recipients == StoredRecipients::All;
                if let StoredRecipients::Some(list) = done.recipients {
                    known.done.extend(list);
                }
            }
            Kind::Defer | Kind::Control | Kind::Unknown(_) => {}
        }
    }

    fn live(&self) -> impl Iterator<Item = (MessageId, RecordPlace)> {
        self.messages
            .iter()
            .filter(|(_, known)| !known.is_done())
            .filter_map(|(&id, known)| Some((id, known.place?)))
    }

    fn file_of(&self, segment: SegmentNo) -> io::Result<File> {
        let is_it = |file: &&Named| !file.is_aside() && file.is_open(segment);
        let file = self.files.iter().find(is_it).ok_or(io::ErrorKind::NotFound)?;
        File::open(self.path.join(&file.name))
    }

    /// A record with zeros for what the disk cannot read.
    fn record_bytes(&mut self, place: RecordPlace) -> io::Result<Vec<u8>> {
        let (start, octets) = (place.offset as usize % BLOCK, place.length as usize);
        if octets > RECORD_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let file = self.file_of(place.segment)?;
        let mut blocks = vec![0; round_to_block(start + octets)];
        let Reads { read_at, patience } = &mut self.reads;
        let mut read = |at, into: &mut [u8]| read_at(&file, into, at);
        patience.salvage(u64::from(place.offset) - start as u64, &mut blocks, &mut read)?;
        Ok(blocks[start..][..octets].to_vec())
    }

    fn export(
        &mut self,
        id: MessageId,
        place: RecordPlace,
        file: &mut impl Write,
    ) -> io::Result<Exported> {
        let bad = |error: FormatError| io::Error::new(io::ErrorKind::InvalidData, error);
        let bytes = self.record_bytes(place)?;
        let record = RecordView::parse(&bytes).map_err(bad)?;
        let stored = StoredMessage::decode(&record).map_err(bad)?;
        file.write_all(&stored.trace)?;
        let mut body = Unstuff::new(stored.summary.flags, file);
        let mut damage = 0;
        match &stored.body {
            StoredBody::Inline => {
                damage += u64::from(record.verify_body().is_err());
                body.write(record.body())?;
            }
            StoredBody::Chunks(chunks) => {
                for chunk in chunks {
                    let bytes = match self.record_bytes(chunk.place) {
                        Err(error)
                            if is_damage(&error) || error.kind() == io::ErrorKind::NotFound =>
                        {
                            Vec::new()
                        }
                        read => read?,
                    };
                    let Some(record) = chunk_of(id, &bytes) else {
                        damage += 1;
                        continue;
                    };
                    damage += u64::from(record.verify_body().is_err());
                    body.write(record.body())?;
                }
            }
        }
        let known = &self.messages[&id];
        Ok(Exported { line: envelope_line(&stored, known, damage == 0), damage })
    }
}

/// Of the files that are not set aside.
fn open_headers(files: &[Named]) -> impl Iterator<Item = SegmentHeader> {
    let files = files.iter().filter(|file| !file.is_aside());
    files.filter_map(|file| file.header.ok()).filter(|header| header.state == SegmentState::Open)
}

/// Whether the message is the reason, and others can still be had: its record is none, its place is
/// behind the file's end, or the disk cannot read it and the tool's patience with that is used up.
fn is_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, TimedOut, UnexpectedEof};
    matches!(error.kind(), InvalidData | UnexpectedEof | TimedOut)
}

struct Exported {
    line: serde_json::Value,
    damage: u64,
}

/// A chunk of the message, whether or not its octets are whole.
fn chunk_of(id: MessageId, bytes: &[u8]) -> Option<RecordView<'_>> {
    let record = RecordView::parse(bytes).ok()?;
    (record.kind() == Kind::Chunk && record.id() == id).then_some(record)
}

#[cfg(test)]
#[path = "tools_tests.rs"]
mod tests;
