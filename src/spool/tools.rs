//! Looking at a stopped spool: is it sound, what stands in it, and its messages as files.
//!
//! Everything here but [`repair`] is read-only and goes by `docs/spool-format.md`: segments in their order, the
//! rules of recovery, nothing repaired.  Files that recovery has set aside are looked at too, each
//! by itself.  Each function gives a [`Verdict`], which is what a command's exit code says.
//!
//! It fails only where the directory cannot be read or written to, or another mailrace runs on it.

mod repair;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

pub use self::repair::{Repair, repair};
use self::text::{Line, Unstuff, envelope_line, record_line};
use super::format::FormatError;
use super::format::header::{SegmentHeader, SegmentState};
use super::format::message::{self, StoredBody, StoredMessage};
use super::format::outcome::{StoredDefer, StoredDone, StoredRecipients};
use super::format::record::{Kind, RecordView};
use super::scan::{self, Scanned};
use super::{BLOCK, RECORD_BYTES_MAX, RecordPlace, SegmentNo};
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

/// Checks every batch, record, index and chunk list; writes a line a segment and a line for each
/// thing that is wrong.
pub fn verify(spool: &Path, out: &mut impl Write) -> Result<Verdict, ToolError> {
    let mut survey = Survey::take(spool)?;
    let mut verdict = Verdict::default();
    survey.each(&mut verdict, out, |look, verdict, out| {
        let chunks = look.verify_records(out)?;
        verdict.damage += chunks + look.verify_index(out)?;
        Ok(())
    })?;
    verdict.damage += survey.verify_chunks(out)?;
    verdict.live_messages = survey.live().count() as u64;
    writeln!(
        out,
        "{} segments, {} records, {} live messages, {} damaged",
        verdict.segments, verdict.records, verdict.live_messages, verdict.damage
    )
    .map_err(|source| survey.failed(source))?;
    Ok(verdict)
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
        for (sequence, place, record) in look.records() {
            if only.is_some_and(|id| id != record.id()) {
                continue;
            }
            if form == Form::Json {
                writeln!(out, "{}", record_line(sequence, place, &record))?;
            } else {
                writeln!(
                    out,
                    "{}+{:<9} seq {sequence:<8} {} {}",
                    place.segment,
                    place.offset,
                    record.id(),
                    Line(&record)
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
    let mut survey = Survey::take(spool)?;
    let mut verdict = Verdict::default();
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
        let Exported { line, damage } = exported.map_err(failed)?;
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
    files: Vec<Named>,
    messages: BTreeMap<MessageId, Known>,
    /// Every CHUNK record that verifies.
    chunks: BTreeSet<RecordPlace>,
    /// Chunks that a message that is not done names.
    named_chunks: BTreeMap<MessageId, Vec<RecordPlace>>,
}

struct Named {
    name: String,
    header: Result<SegmentHeader, FormatError>,
    /// Set aside by recovery: judged by itself.
    is_aside: bool,
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

/// One segment while it is looked at.
struct Look<'a> {
    name: &'a str,
    header: SegmentHeader,
    bytes: &'a [u8],
    scanned: &'a Scanned,
    last_valid: u64,
}

impl Survey {
    fn take(path: &Path) -> Result<Survey, ToolError> {
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
            let is_aside = name.ends_with(".quarantined");
            if is_aside || name.ends_with(".seg") {
                let file = path.join(&name);
                let header = read_header(&file)
                    .map_err(|source| ToolError::Io { path: file.clone(), source })?;
                files.push(Named { name, header, is_aside });
            }
        }
        files
            .sort_by_key(|file| (file.header.map(|header| header.segment).ok(), file.name.clone()));
        Ok(Survey {
            path: path.into(),
            _lock: lock,
            files,
            messages: BTreeMap::new(),
            chunks: BTreeSet::new(),
            named_chunks: BTreeMap::new(),
        })
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
        let open: Vec<SegmentHeader> = files
            .iter()
            .filter(|file| !file.is_aside)
            .filter_map(|file| file.header.ok())
            .filter(|header| header.state == SegmentState::Open)
            .collect();
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
        let (bytes, lost) = read_whole(&self.path.join(&file.name))
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.name)))?;
        if lost > 0 {
            verdict.damage += 1;
            writeln!(out, "{}: DAMAGED: the disk cannot read {lost} octets of it", file.name)?;
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
        let (last_valid, is_end_known) = match next {
            _ if file.is_aside => (u64::MAX, false),
            None => (scanned.end_of_whole(header.first_sequence), true),
            next => scan::bound_by(header.segment, next),
        };
        let look = Look { name: &file.name, header, bytes: &bytes, scanned: &scanned, last_valid };
        look.describe(out)?;
        for gap in scanned.gaps(header.first_sequence, last_valid, is_end_known) {
            verdict.damage += 1;
            writeln!(
                out,
                "{}: DAMAGED: sequences {} to {} are gone",
                file.name,
                gap.start,
                gap.end - 1
            )?;
        }
        if let Some(torn) = scanned.last_seen.filter(|&last| next.is_none() && last > last_valid) {
            writeln!(
                out,
                "{}: the end is torn from sequence {} to {torn}; never acknowledged",
                file.name,
                last_valid + 1
            )?;
        }
        verdict.segments += 1;
        if !file.is_aside {
            for (_, place, record) in look.records() {
                verdict.records += 1;
                self.apply(place, &record);
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

    /// Tells of chunks that live messages name and that are not there.
    fn verify_chunks(&self, out: &mut impl Write) -> Result<u64, ToolError> {
        let mut damage = 0;
        for (id, _) in self.live() {
            let named = self.named_chunks.get(&id).into_iter().flatten();
            for place in named.filter(|place| !self.chunks.contains(place)) {
                damage += 1;
                writeln!(
                    out,
                    "message {id}: DAMAGED: its chunk at {}+{} is gone",
                    place.segment, place.offset
                )
                .map_err(|source| self.failed(source))?;
            }
        }
        Ok(damage)
    }

    fn file_of(&self, segment: SegmentNo) -> io::Result<File> {
        let is_it = |file: &&Named| {
            !file.is_aside
                && file.header.is_ok_and(|header| {
                    header.segment == segment && header.state == SegmentState::Open
                })
        };
        let file = self.files.iter().find(is_it).ok_or(io::ErrorKind::NotFound)?;
        File::open(self.path.join(&file.name))
    }

    fn record_bytes(&self, place: RecordPlace) -> io::Result<Vec<u8>> {
        let octets = place.length as usize;
        if octets > RECORD_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = vec![0; octets];
        self.file_of(place.segment)?.read_exact_at(&mut bytes, u64::from(place.offset))?;
        Ok(bytes)
    }

    fn export(
        &self,
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
            StoredBody::Inline => body.write(record.body())?,
            StoredBody::Chunks(chunks) => {
                for chunk in chunks {
                    match self.record_bytes(chunk.place) {
                        Ok(bytes) if is_chunk_of(id, &bytes) => {
                            body.write(RecordView::parse(&bytes).map_err(bad)?.body())?;
                        }
                        _ => damage += 1,
                    }
                }
            }
        }
        let known = &self.messages[&id];
        Ok(Exported { line: envelope_line(&stored, known, damage == 0), damage })
    }
}

struct Exported {
    line: serde_json::Value,
    damage: u64,
}

fn is_chunk_of(id: MessageId, bytes: &[u8]) -> bool {
    RecordView::parse(bytes).is_ok_and(|record| {
        record.kind() == Kind::Chunk && record.id() == id && record.verify_body().is_ok()
    })
}

/// A file, with zeros where the disk cannot read it, and how many octets these are.
fn read_whole(path: &Path) -> io::Result<(Vec<u8>, usize)> {
    let file = File::open(path)?;
    let octets = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes = vec![0; octets];
    let lost = scan::salvage(0, &mut bytes, &mut |at, into| file.read_exact_at(into, at))?;
    Ok((bytes, lost))
}

fn read_header(path: &Path) -> io::Result<Result<SegmentHeader, FormatError>> {
    let mut block = [0; BLOCK];
    match File::open(path)?.read_exact_at(&mut block, 0) {
        Ok(()) => Ok(SegmentHeader::decode(&block)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Ok(Err(FormatError::Truncated))
        }
        Err(error) if scan::is_unreadable(&error) => {
            Ok(Err(FormatError::Malformed("header, which the disk cannot read,")))
        }
        Err(error) => Err(error),
    }
}

impl Look<'_> {
    fn records(&self) -> impl Iterator<Item = (u64, RecordPlace, RecordView<'_>)> {
        let counts = |batch: &&scan::FoundBatch| batch.header.sequence <= self.last_valid;
        self.scanned.batches.iter().filter(counts).flatten_records(self.bytes, self.header.segment)
    }

    fn describe(&self, out: &mut impl Write) -> io::Result<()> {
        let SegmentHeader { segment, generation, first_sequence, .. } = self.header;
        let last = self.scanned.batches.last().map_or(first_sequence.saturating_sub(1), |batch| {
            batch.header.sequence.min(self.last_valid)
        });
        let octets: usize =
            self.scanned.batches.iter().map(|batch| batch.header.batch_bytes()).sum();
        writeln!(
            out,
            "{}: segment {segment}, generation {generation:016x}, sequences {first_sequence} to {last}, {} batches, {octets} octets",
            self.name,
            self.scanned.batches.len(),
        )
    }

    /// Every record must decode; gives how many do not.
    fn verify_records(&self, out: &mut impl Write) -> io::Result<u64> {
        let mut damage = 0;
        for (_, place, record) in self.records() {
            let decoded = match record.kind() {
                Kind::Message => StoredMessage::decode(&record).map(drop),
                Kind::Done => StoredDone::decode(&record).map(drop),
                Kind::Defer => StoredDefer::decode(&record).map(drop),
                Kind::Chunk => message::chunk_index(&record).map(drop),
                Kind::Control | Kind::Unknown(_) => Ok(()),
            };
            if let Err(error) = decoded {
                damage += 1;
                writeln!(out, "{}: DAMAGED record at {}: {error}", self.name, place.offset)?;
            }
        }
        Ok(damage)
    }

    /// An index must name exactly the records; gives 1 if it does not.  None at all is not damage.
    fn verify_index(&self, out: &mut impl Write) -> io::Result<u64> {
        let index = match scan::index_in(self.bytes, &self.header) {
            None => return Ok(0),
            Some(index) => index,
        };
        let named: Result<Vec<(u32, MessageId)>, FormatError> = index
            .entries()
            .map(|entry| entry.map(|(offset, record)| (offset, record.id())))
            .collect();
        let found: Vec<(u32, MessageId)> =
            self.records().map(|(_, place, record)| (place.offset, record.id())).collect();
        if named == Ok(found) {
            return Ok(0);
        }
        writeln!(out, "{}: DAMAGED: its index does not agree with its records", self.name)?;
        Ok(1)
    }
}

/// The records of batches one after the other, with sequence and place.
trait FlattenRecords<'a> {
    fn flatten_records(
        self,
        bytes: &'a [u8],
        segment: SegmentNo,
    ) -> impl Iterator<Item = (u64, RecordPlace, RecordView<'a>)>;
}

impl<'a, I: Iterator<Item = &'a scan::FoundBatch>> FlattenRecords<'a> for I {
    fn flatten_records(
        self,
        bytes: &'a [u8],
        segment: SegmentNo,
    ) -> impl Iterator<Item = (u64, RecordPlace, RecordView<'a>)> {
        self.flat_map(move |batch| {
            batch.records(bytes).map(move |(offset, record)| {
                let length = record.total_length() as u32;
                (batch.header.sequence, RecordPlace { segment, offset, length }, record)
            })
        })
    }
}

#[cfg(test)]
#[path = "tools_tests.rs"]
mod tests;
