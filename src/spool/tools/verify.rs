//! `spool verify`: what is damaged, where, which messages are hurt by it, and what to do.
//!
//! Two parts: lines about segments as they are read, and, once everything is known, a line for
//! each record that is hurt, with what that means for its message.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;

use super::super::RecordPlace;
use super::super::format::FormatError;
use super::super::format::message::{self, StoredMessage};
use super::super::format::outcome::{StoredDefer, StoredDone};
use super::super::format::record::{Kind, RecordView};
use super::look::{Entry, Gap, Look};
use super::{Named, Survey, ToolError, Verdict};
use crate::message::MessageId;

/// Records that are guessed at in one gap; more are only counted.
const GUESSES_MAX: usize = 100;

/// Checks every batch, record, index and chunk list.  Writes a line a segment, a line for each
/// thing that is wrong, and what that means for which message.
///
/// # Errors
/// The directory cannot be read, or a mailrace runs on it.
pub fn verify(spool: &Path, out: &mut impl Write) -> Result<Verdict, ToolError> {
    let mut survey = Survey::take(spool)?;
    let mut verdict = Verdict::default();
    let mut hurt = Vec::new();
    survey.each(&mut verdict, out, |look, verdict, out| {
        tell_gaps(look, verdict, out)?;
        if look.index_disagrees {
            verdict.damage += 1;
            writeln!(out, "{}: DAMAGED: its index does not agree with its records", look.name)?;
        }
        hurt.extend(look.entries.iter().filter_map(|entry| Hurt::of(look.name, entry)));
        Ok(())
    })?;
    verdict.live_messages = survey.live().count() as u64;
    conclude(&survey, &hurt, &mut verdict, out).map_err(|source| survey.failed(source))?;
    Ok(verdict)
}

fn tell_gaps(look: &Look<'_>, verdict: &mut Verdict, out: &mut impl Write) -> io::Result<()> {
    for gap in &look.gaps {
        verdict.damage += 1;
        let Gap { sequences, octets } = gap;
        writeln!(
            out,
            "{}: DAMAGED: sequences {} to {} are gone; they stood between {} and {}",
            look.name,
            sequences.start,
            sequences.end - 1,
            octets.start,
            octets.end
        )?;
        if look.has_named(gap) {
            continue;
        }
        let mut left = 0;
        for (place, (at, kind, id)) in look.guesses(gap).enumerate() {
            if place >= GUESSES_MAX {
                left += 1;
                continue;
            }
            writeln!(out, "{}: at {at} there is, or was once, {} of {id}", look.name, a(kind))?;
        }
        if left > 0 {
            writeln!(out, "{}: and {left} more records of this kind", look.name)?;
        }
    }
    Ok(())
}

/// A record that is not as it was written.
struct Hurt {
    file: String,
    place: RecordPlace,
    kind: Kind,
    id: MessageId,
    error: FormatError,
    /// Recovery still knows what it says: of a message, from whom to whom.
    is_known: bool,
    whom: Option<String>,
}

impl Hurt {
    fn of(file: &str, entry: &Entry<'_>) -> Option<Hurt> {
        let error = entry.hurt.or_else(|| entry.record.as_ref().and_then(nonsense))?;
        let (kind, id) = entry.name;
        let message = entry.record.as_ref().filter(|_| kind == Kind::Message);
        let stored = message.and_then(|record| StoredMessage::decode(record).ok());
        Some(Hurt {
            file: file.to_owned(),
            place: entry.place,
            kind,
            id,
            error,
            is_known: entry.record.as_ref().is_some_and(|record| nonsense(record).is_none()),
            whom: stored.as_ref().map(from_and_to),
        })
    }

    /// What it means that this is hurt.
    fn meaning(&self, has_ended: bool) -> &'static str {
        match (self.kind, self.is_known) {
            _ if has_ended => "it had been dealt with for every recipient, so nothing is lost",
            (Kind::Message, true) => {
                "its envelope is known and its octets are damaged: it stays in the queue, cannot \
                 be delivered, and its sender is told when it expires"
            }
            (Kind::Message, false) => "it is lost",
            (Kind::Chunk, _) => {
                "a part of its octets is damaged: it stays in the queue, cannot be delivered, and \
                 its sender is told when it expires"
            }
            (Kind::Done, false) => {
                "that recipients were done is forgotten: it may be sent to them again"
            }
            (Kind::Defer, false) => "when to try again is forgotten: it is tried at once",
            (Kind::Done | Kind::Defer, true) => "what it says is known from the segment's index",
            (Kind::Control | Kind::Unknown(_), _) => "this version does not use it",
        }
    }
}

/// What is wrong with a record that verifies.
fn nonsense(record: &RecordView<'_>) -> Option<FormatError> {
    match record.kind() {
        Kind::Message => StoredMessage::decode(record).map(drop),
        Kind::Done => StoredDone::decode(record).map(drop),
        Kind::Defer => StoredDefer::decode(record).map(drop),
        Kind::Chunk => message::chunk_index(record).map(drop),
        Kind::Control | Kind::Unknown(_) => Ok(()),
    }
    .err()
}

fn from_and_to(stored: &StoredMessage) -> String {
    let recipients = &stored.envelope.recipients;
    let first = recipients.first().map_or("", |recipient| recipient.path.as_str());
    let more = match recipients.len() {
        0 | 1 => String::new(),
        all => format!(" and {} more", all - 1),
    };
    format!(" from <{}> to <{first}>{more}", stored.envelope.reverse_path.as_str())
}

fn a(kind: Kind) -> &'static str {
    match kind {
        Kind::Message => "a MESSAGE",
        Kind::Chunk => "a CHUNK",
        Kind::Done => "a DONE",
        Kind::Defer => "a DEFER",
        Kind::Control => "a CONTROL",
        Kind::Unknown(_) => "a record of a later version",
    }
}

fn conclude(
    survey: &Survey,
    hurt: &[Hurt],
    verdict: &mut Verdict,
    out: &mut impl Write,
) -> io::Result<()> {
    for stranger in survey.strangers() {
        verdict.damage += 1;
        writeln!(
            out,
            "{}: DAMAGED: it belongs to another spool than most files here; mailrace does not \
             start with it",
            stranger.name
        )?;
    }
    for pair in survey.files.windows(2) {
        let [one, other] = pair else { continue };
        let segment = one.header.map(|header| header.segment).ok();
        let is_twin = |file: &Named| !file.is_aside() && segment.is_some_and(|no| file.is_open(no));
        if is_twin(one) && is_twin(other) {
            verdict.damage += 1;
            writeln!(
                out,
                "{}: DAMAGED: it says to be the same segment as {}; mailrace does not start with \
                 both",
                other.name, one.name
            )?;
        }
    }
    for segment in survey.missing() {
        verdict.damage += 1;
        writeln!(
            out,
            "segment {segment}: DAMAGED: its file is missing, or is one whose header is damaged; \
             messages that only it holds are lost unless it is put back before the next start"
        )?;
    }
    let has_ended = |id| survey.messages.get(&id).is_some_and(super::Known::is_done);
    for one in hurt {
        verdict.damage += 1;
        let Hurt { file, place, kind, id, error, whom, .. } = one;
        writeln!(
            out,
            "message {id}{}: DAMAGED: {} in {file} at {}, {} octets: {error}; {}",
            whom.as_deref().unwrap_or_default(),
            a(*kind),
            place.offset,
            place.length,
            one.meaning(has_ended(*id))
        )?;
    }
    let told: BTreeSet<RecordPlace> = hurt.iter().map(|one| one.place).collect();
    for (id, _) in survey.live() {
        let named = survey.named_chunks.get(&id).into_iter().flatten();
        let lost = |place: &&RecordPlace| !survey.chunks.contains(place) && !told.contains(place);
        for place in named.filter(lost) {
            verdict.damage += 1;
            writeln!(
                out,
                "message {id}: DAMAGED: a part of its octets, in segment {} at {}, is gone: it \
                 stays in the queue, cannot be delivered, and its sender is told when it expires",
                place.segment, place.offset
            )?;
        }
    }
    if verdict.damage > 0 {
        out.write_all(ADVICE.as_bytes())?;
    }
    writeln!(
        out,
        "{} segments, {} records, {} live messages, {} damaged",
        verdict.segments, verdict.records, verdict.live_messages, verdict.damage
    )
}

const ADVICE: &str = "\
What to do: copy the directory away before anything else, and look at the disk (`dmesg`, SMART).
Then start mailrace: it serves all that is good, sets damaged files aside when they are dead, and
deletes none.  If it does not start, `mailrace spool repair --dry-run` says what keeps it, and
`mailrace spool repair` sets that aside.  `mailrace spool export` writes what can be read to files.
";
