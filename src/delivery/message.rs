//! A message as an attempt needs it: envelope, trace header and body, out of memory if its batch
//! is still there, else out of the log.  Of one whose body is damaged or gone the envelope alone
//! can be had, which is enough to tell its originator ([`LoadedMessage::load_envelope`]).

use std::collections::VecDeque;
use std::sync::Arc;

use crate::edge::explanation::Explanation;
use crate::message::{BodyFlags, BodySummary, Envelope, MessageId, Origin};
use crate::runtime::buffer::ChunkBody;
use crate::smtp::body::{BodyForm, Reshape};
use crate::spool::format::FormatError;
use crate::spool::{
    ChunkPlace, Extension, ReadError, RecordPlace, RecordView, SegmentNo, SegmentPin, StoredBody,
    StoredMessage,
};
use crate::worker::log::LocalLog;

/// A message that was read, but for the chunks of a large body.
pub struct LoadedMessage {
    stored: StoredMessage,
    envelope: Arc<Envelope>,
    /// The MESSAGE record, copied: neither a batch nor a read's buffer must wait for a slow peer.
    record: Box<[u8]>,
    /// The segments of its chunks stay while it is at hand.
    pins: Arc<[SegmentPin]>,
    /// Its envelope is sound; its body is not, or was not looked at.
    lacks_body: bool,
}

/// Why a message cannot be attempted.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The log could not be read.
    #[error("the log could not be read")]
    Read(#[from] ReadError),
    /// What stands there is not the message.
    #[error("the log holds something else in the message's place")]
    Format(#[from] FormatError),
}

impl LoadError {
    /// Whether the disk refused or was slow, which may pass; else the message is not what was written.
    pub fn may_pass(&self) -> bool {
        matches!(self, LoadError::Read(ReadError::Io(_) | ReadError::Late))
    }
}

impl LoadedMessage {
    /// Loads the message whose record stands at `place`.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub async fn load(
        log: &LocalLog,
        id: MessageId,
        place: RecordPlace,
    ) -> Result<LoadedMessage, LoadError> {
        let in_memory = log.in_memory(place).and_then(|batch| batch.record(place).map(Box::from));
        let mut record: Box<[u8]> = match in_memory {
            Some(record) => record,
            None => log.read(id, place).await?.view().bytes().into(),
        };
        let mut stored = StoredMessage::decode(&RecordView::parse(&record)?)?;
        let mut pins = pin_chunks(log, &stored);
        // A record that names chunks which have been moved since is an old copy; the log knows
        // the new one.
        for _ in 0..RELOADS {
            if pins.is_ok() {
                break;
            }
            record = log.read(id, place).await?.view().bytes().into();
            stored = StoredMessage::decode(&RecordView::parse(&record)?)?;
            pins = pin_chunks(log, &stored);
        }
        Ok(LoadedMessage::new(stored, record, pins?, false))
    }

    /// Loads the envelope of a message that could not be loaded, to tell its originator.
    ///
    /// # Errors
    /// That cannot be read, or is damaged, either.
    pub async fn load_envelope(
        log: &LocalLog,
        id: MessageId,
        place: RecordPlace,
    ) -> Result<LoadedMessage, LoadError> {
        let record: Box<[u8]> = log.read_envelope(id, place).await?.view().bytes().into();
        let stored = StoredMessage::decode(&RecordView::parse(&record)?)?;
        Ok(LoadedMessage::new(stored, record, Arc::new([]), true))
    }

    fn new(
        mut stored: StoredMessage,
        record: Box<[u8]>,
        pins: Arc<[SegmentPin]>,
        lacks_body: bool,
    ) -> LoadedMessage {
        let empty = Envelope {
            reverse_path: crate::smtp::address::ReversePath::Null,
            parameters: Default::default(),
            recipients: Vec::new(),
        };
        let envelope = Arc::new(std::mem::replace(&mut stored.envelope, empty));
        LoadedMessage { stored, envelope, record, pins, lacks_body }
    }

    /// The message.
    pub fn id(&self) -> MessageId {
        self.stored.id
    }

    /// Who sends it to whom.
    pub fn envelope(&self) -> &Arc<Envelope> {
        &self.envelope
    }

    /// Where it came from.
    pub fn origin(&self) -> &Origin {
        &self.stored.origin
    }

    /// Why the edge filter judged it as it did, where that was kept with it.
    pub fn explanation(&self) -> Option<Explanation> {
        self.stored.extension(Extension::EXPLANATION).and_then(Explanation::from_text)
    }

    /// What the scan of its body found.
    pub fn summary(&self) -> &BodySummary {
        &self.stored.summary
    }

    /// The trace header that goes out before the body.
    pub fn trace(&self) -> &[u8] {
        &self.stored.trace
    }

    /// The body of a small message, as kept; `None` for one in chunks.  Not for one of which only
    /// the envelope was loaded.
    pub fn inline_body(&self) -> Option<&[u8]> {
        match self.stored.body {
            StoredBody::Inline => {
                let record = RecordView::parse(&self.record);
                Some(record.expect("it was parsed when it was loaded").body())
            }
            StoredBody::Chunks(_) => None,
        }
    }

    /// The chunks of a large message, one after the other.
    pub fn pieces(&self) -> Pieces {
        let chunks: &[ChunkPlace] = match &self.stored.body {
            StoredBody::Inline => &[],
            StoredBody::Chunks(chunks) => chunks,
        };
        Pieces {
            id: self.stored.id,
            left: chunks.iter().copied().collect(),
            _pins: self.pins.clone(),
        }
    }

    /// The message's size without stuffed dots and with its trace header: what BDAT sends.
    ///
    /// Only a body whose dots were stuffed on the way in has to be looked through for it.
    ///
    /// # Errors
    /// The log could not be read.
    pub async fn octets_unstuffed(&self, log: &LocalLog) -> Result<u64, LoadError> {
        let summary = &self.stored.summary;
        let trace = self.stored.trace.len() as u64;
        if !summary.flags.contains(BodyFlags::DATA | BodyFlags::LEADING_DOTS) {
            return Ok(trace + summary.octets);
        }
        let mut reshape = Reshape::new(summary.flags, BodyForm::Bdat);
        if let Some(body) = self.inline_body() {
            return Ok(trace + reshape.slices(body).octets() as u64);
        }
        let mut octets = trace;
        let mut pieces = self.pieces();
        while let Some(piece) = pieces.next(log).await {
            octets += reshape.slices(piece?.0.view().body()).octets() as u64;
        }
        Ok(octets)
    }

    /// The beginning of the body without stuffed dots, for a notice: at most `octets_max`, and
    /// whether that is all of it.
    ///
    /// # Errors
    /// The log could not be read.
    pub async fn beginning(
        &self,
        log: &LocalLog,
        octets_max: usize,
    ) -> Result<(Vec<u8>, bool), LoadError> {
        if self.lacks_body {
            return Ok((Vec::new(), false));
        }
        let mut reshape = Reshape::new(self.stored.summary.flags, BodyForm::Bdat);
        let mut out = Vec::new();
        if let Some(body) = self.inline_body() {
            reshape.write(body, &mut out);
        }
        let mut pieces = self.pieces();
        while out.len() <= octets_max
            && let Some(piece) = pieces.next(log).await
        {
            reshape.write(piece?.0.view().body(), &mut out);
        }
        let is_whole = out.len() <= octets_max;
        out.truncate(octets_max);
        Ok((out, is_whole))
    }
}

/// Keeps the segments of a message's chunks from being retired.
fn pin_chunks(log: &LocalLog, stored: &StoredMessage) -> Result<Arc<[SegmentPin]>, ReadError> {
    let chunks: &[ChunkPlace] = match &stored.body {
        StoredBody::Inline => &[],
        StoredBody::Chunks(chunks) => chunks,
    };
    let mut segments: Vec<SegmentNo> = chunks.iter().map(|chunk| chunk.place.segment).collect();
    segments.sort_unstable();
    segments.dedup();
    let pin = |segment| log.pin(segment).ok_or(ReadError::Retired(segment));
    segments.into_iter().map(pin).collect()
}

/// How often a message is read again whose chunks were moved in the meantime.  A segment is moved
/// once in its life.
const RELOADS: usize = 3;

/// The chunks of a body that are still to be read.
pub struct Pieces {
    id: MessageId,
    left: VecDeque<ChunkPlace>,
    _pins: Arc<[SegmentPin]>,
}

impl Pieces {
    /// The next one, verified; `None` at the end.
    pub async fn next(&mut self, log: &LocalLog) -> Option<Result<ChunkBody, LoadError>> {
        let chunk = self.left.pop_front()?;
        Some(log.read_chunk(self.id, chunk.place).await.map(ChunkBody).map_err(LoadError::from))
    }
}
