//! What passes between the appenders and the log: a sealed batch one way, its completion the other.

use std::io;

use super::SegmentNo;
use super::appender::Note;
use super::buffer::PooledBuf;
use super::compaction::Written;
use super::format::BATCH_HEADER;
use super::format::batch::{self, Digest};
use crate::message::{Durability, MessageId};

/// A batch on its way to the disk.  Made by [`Appender::seal`](super::Appender::seal), and given
/// back to it in a [`Completion`].
#[derive(Debug)]
pub struct SealedBatch {
    /// The appender that made it and gets the completion.
    pub worker: usize,
    pub(crate) buffer: PooledBuf,
    pub(crate) payload_length: usize,
    pub(crate) digest: Digest,
    pub(crate) durability: Durability,
    /// It brings new messages, which a full log refuses.
    pub(crate) has_messages: bool,
    /// A chunk travels alone and does not count against the batches in flight.
    pub(crate) is_chunk: bool,
    /// What its records add to an index.
    pub(crate) index_octets: usize,
    pub(crate) notes: Vec<Note>,
    /// Uploads that were given up; they count as said after the batch.
    pub(crate) abandoned: Vec<MessageId>,
    /// What it holds, if it is the compaction's own.
    pub(crate) compaction: Option<Written>,
}

impl SealedBatch {
    /// Header and payload in whole blocks; nothing for a batch that only abandons.
    pub fn octets(&self) -> usize {
        if self.payload_length == 0 { 0 } else { batch::batch_bytes(self.payload_length) }
    }

    /// Its completion when it does not count.
    pub(crate) fn refused(self, error: CommitError) -> Completion {
        Completion { worker: self.worker, result: Err(error), batch: self }
    }

    pub(crate) fn payload(&self) -> &[u8] {
        &self.buffer[BATCH_HEADER..BATCH_HEADER + self.payload_length]
    }
}

/// Where a batch stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPlace {
    /// In which segment.
    pub segment: SegmentNo,
    /// Where in its file, in octets.
    pub offset: u32,
    /// Its place in the order of all batches.
    pub sequence: u64,
}

/// A batch whose fate is known.
#[derive(Debug)]
pub struct Completion {
    /// Whose it is.
    pub worker: usize,
    /// Where it stands, as durable as it asked to be; or why it does not count.
    pub result: Result<BatchPlace, CommitError>,
    pub(crate) batch: SealedBatch,
}

impl Completion {
    /// Whether it is a chunk of a large message that is over.
    pub fn is_chunk(&self) -> bool {
        self.batch.is_chunk
    }
}

/// Why a batch does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// There is no room for new messages.  Try later.
    #[error("the disk is full")]
    Full,
    /// The disk refused this batch; the log has moved on to another segment.  Try later.
    #[error("the disk refused a write ({0})")]
    Disk(io::ErrorKind),
    /// It does not fit a segment.  Our bug: the appender's bounds are far below.
    #[error("the batch is longer than a segment")]
    TooLarge,
    /// The log has stopped for good; only a restart, with a working disk, helps.  No disk took the
    /// word that the batch is void, so a restart may find it after all: a message may come twice,
    /// since its client tries again, and is never lost.
    #[error("the log has failed and takes nothing until a restart")]
    Failed,
}
