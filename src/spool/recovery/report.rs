//! What a recovery tells: the live messages, how far it is, what is damaged, why it cannot be.

use std::ops::Range;
use std::{fmt, io};

use super::super::disk::FileNo;
use super::super::format::FormatError;
use super::super::format::message::StoredMessage;
use super::super::format::outcome::StoredDefer;
use super::super::{RecordPlace, SegmentNo};
use crate::message::MessageId;

/// A message that is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredMessage {
    /// Where its MESSAGE record stands.
    pub place: RecordPlace,
    /// Its envelope and the rest of its head.
    pub message: StoredMessage,
    /// Recipients that are done, ascending.
    pub done: Vec<u16>,
    /// The latest wait of each recipient that has one; no recipient is in two of them, and none
    /// that is done is in any.
    pub deferrals: Vec<StoredDefer>,
}

/// Takes what recovery finds.
pub trait RecoveryVisitor {
    /// A live message; in the order of the log, which is that of acceptance save for messages that
    /// a compaction has moved.
    fn message(&mut self, message: RecoveredMessage);
    /// One more segment has been read.
    fn progress(&mut self, _progress: Progress) {}
    /// Something is not as it was written.
    fn damage(&mut self, _damage: &Damage) {}
}

/// How far a recovery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Segments read.
    pub segments_done: usize,
    /// Segments to read in all, both passes counted.
    pub segments: usize,
}

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Damage {
    /// Both copies of a file's header are of no use; the file is set aside.
    Header {
        /// The file.
        file: FileNo,
        /// What is wrong.
        error: FormatError,
    },
    /// Segments that were in use, and no file holds them any more.
    Missing {
        /// Which, ascending.
        segments: Vec<SegmentNo>,
    },
    /// A segment's file is shorter than it was made.
    Short {
        /// Which.
        segment: SegmentNo,
        /// Its file.
        file: FileNo,
        /// How much is missing.
        octets: u64,
    },
    /// The disk cannot read parts of a segment; what stood there, if anything did, is gone.
    Unreadable {
        /// Where.
        segment: SegmentNo,
        /// The file.
        file: FileNo,
        /// How much of it.
        octets: usize,
    },
    /// Batches that were durable do not verify or are gone.
    Batches {
        /// Where.
        segment: SegmentNo,
        /// The file.
        file: FileNo,
        /// The sequences that are missing.
        sequences: Range<u64>,
    },
    /// A record does not verify, or makes no sense.
    Record {
        /// Which.
        place: RecordPlace,
        /// Whose it is.
        id: MessageId,
        /// What is wrong.
        error: FormatError,
    },
    /// The octets of a message, or of a part of one, do not verify; its envelope does.
    Body {
        /// Which record.
        place: RecordPlace,
        /// Whose it is.
        id: MessageId,
    },
}

/// What happened, where, and to which message, as a sentence for the operator.
impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damage::Header { file, error } => {
                write!(f, "{:08x}.seg is set aside: {error}", file.0)
            }
            Damage::Missing { segments } => {
                let (no, all) = (segments.first().copied().unwrap_or(SegmentNo(0)), segments.len());
                match all {
                    0 | 1 => write!(f, "the file of segment {no} is missing"),
                    _ => write!(f, "the files of {all} segments are missing, the first is {no}"),
                }
            }
            Damage::Short { segment, file, octets } => {
                write!(
                    f,
                    "{:08x}.seg (segment {segment}): its last {octets} octets are missing",
                    file.0
                )
            }
            Damage::Unreadable { segment, file, octets } => {
                let file = file.0;
                write!(
                    f,
                    "{file:08x}.seg (segment {segment}): the disk cannot read {octets} octets"
                )
            }
            Damage::Batches { segment, file, sequences } => write!(
                f,
                "{:08x}.seg (segment {segment}): sequences {} to {} are gone",
                file.0,
                sequences.start,
                sequences.end.saturating_sub(1)
            ),
            Damage::Record { place, id, error } => write!(
                f,
                "segment {} at {}: a record of message {id} is lost: {error}",
                place.segment, place.offset
            ),
            Damage::Body { place, id } => write!(
                f,
                "segment {} at {}: octets of message {id} are damaged; it cannot be delivered, and \
                 waits until its sender is told",
                place.segment, place.offset
            ),
        }
    }
}

/// What a recovery came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Segments that were in use.
    pub segments: usize,
    /// Of these, read through their index.
    pub indexed: usize,
    /// Records that count.
    pub records: u64,
    /// Messages given to the visitor.
    pub live_messages: u64,
    /// The highest id in any record that counts.
    pub highest_id: Option<MessageId>,
    /// The sequences cut from the log's end: written, never acknowledged as durable.
    pub cut: Option<Range<u64>>,
    /// What is damaged; the first 1,000.
    pub damage: Vec<Damage>,
    /// How much damage there is in all.
    pub damage_count: u64,
}

/// What of a file must be readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnreadPart {
    /// Its first block.
    Header,
    /// Where the log ends, or may end.
    End {
        /// How much of the file cannot be read.
        octets: usize,
        /// Up to here everything is certain.
        last_sequence: u64,
    },
}

/// What, and what is to be done about it.
impl fmt::Display for UnreadPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let repaired = match self {
            UnreadPart::Header => {
                write!(f, "its header")?;
                "sets the file aside"
            }
            UnreadPart::End { octets, last_sequence } => {
                write!(f, "{octets} octets where the log ends, behind sequence {last_sequence}")?;
                "puts a copy of what can be read in the file's place"
            }
        };
        write!(
            f,
            "; accepted mail may stand there, so nothing was changed: look at the disk (`dmesg`, \
             SMART) and start again when it reads, or copy the whole spool to a good disk first; \
             if it is lost for good, `mailrace spool repair` {repaired}"
        )
    }
}

/// Why a spool cannot be recovered.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The disk refuses.
    #[error("reading the spool: {0}")]
    Io(#[from] io::Error),
    /// The disk refuses a file.
    #[error("{file:08x}.seg: {source}")]
    File {
        /// The file's number.
        file: u32,
        /// What the system says.
        source: io::Error,
    },
    /// A file that is not ours, or of another version.
    #[error(
        "{file:08x}.seg: {error}; run the mailrace that wrote it, or move it away (`mailrace spool \
         repair --dry-run` explains)"
    )]
    Foreign {
        /// The file's number.
        file: u32,
        /// What it is.
        error: FormatError,
    },
    /// The disk cannot read what must be known.  Mail that was accepted may stand there, and might
    /// be lost for good if the log went on without it.
    #[error("{file:08x}.seg: the disk cannot read {part}")]
    Unreadable {
        /// The file's number.
        file: u32,
        /// What of it.
        part: UnreadPart,
    },
    /// Two files say to be the same segment.
    #[error(
        "{file:08x}.seg says to be the same segment as {other:08x}.seg; move the copy away, or let \
         `mailrace spool repair` set it aside"
    )]
    Twin {
        /// The file's number.
        file: u32,
        /// The other's.
        other: u32,
    },
    /// Files of several spools lie in one directory.
    #[error(
        "{file:08x}.seg belongs to another spool than most files here; move it away, or let \
         `mailrace spool repair` set it aside"
    )]
    OtherSpool {
        /// The file's number.
        file: u32,
    },
    /// The segments have another size than this log was told.
    #[error(
        "{file:08x}.seg is a segment of {found} octets and `spool.segment_size` is {expected}; the size \
         of a spool that exists cannot be changed"
    )]
    SegmentSize {
        /// The file's number.
        file: u32,
        /// As its header says.
        found: u32,
        /// As it was told.
        expected: u32,
    },
}
