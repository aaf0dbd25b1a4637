//! Compaction: what is still needed of old, mostly dead segments is written again at the log's
//! head, so that they die and their files are used again.
//!
//! Without it one message that waits for days would keep its whole segment, and every later
//! segment with an outcome of one of its neighbours, and so on without end.
//!
//! A job goes through these steps, each a [`Chore`](super::chore::Chore) of bounded work that the
//! maintenance performs, driven by [`Log`](super::Log):
//! 1. *Survey*: the heads of all records from the oldest candidate on are read, through the
//!    indexes where there are any, and what they say of the messages in the candidates is folded
//!    together ([`Survey`]).  Nothing of the kind is kept in memory otherwise: there is no entry
//!    a message in the log.
//! 2. *Plan*: candidates of which more than half is needed are left alone; of the others each
//!    live message becomes an [`Item`], and each message elsewhere whose outcomes stand in them.
//! 3. *Copy*: items are read, verified and put into batches of the compaction's own, which the
//!    log commits like any other.  A copy has the same id and the same octets, its recipients'
//!    outcomes so far follow it in its batch; of a large message the chunks that stand in
//!    candidates are copied first.
//! 4. When all outcomes of a candidate stand at the head, its pins are let go.
//!
//! What may happen meanwhile: an outcome of a message that was surveyed is committed.  The log
//! keeps the ids of those since the job began, and an item that was touched is not committed but
//! left to the next job.  So what a copy says was true when it was committed.
//!
//! It fails by doing nothing: what cannot be read or committed stays where it is.

mod copy;
mod survey;

use std::collections::{BTreeMap, BTreeSet};

pub use self::copy::{Made, Work};
pub use self::survey::{Survey, Task};
use super::format::message::ChunkPlace;
use super::format::outcome::{StoredDefer, StoredRecipients};
use super::{RecordPlace, SegmentNo};
use crate::message::MessageId;

/// The worker number that the compaction's own batches carry.
pub(crate) const COMPACTOR: usize = usize::MAX;
/// Octets of records that are copied at a time: worth a write, and too little to hold up a commit.
pub(crate) const COPY_OCTETS: usize = 512 * 1024;

/// Something that is to be written again.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) id: MessageId,
    /// The message itself; without it only its outcomes are written.
    pub(crate) message: Option<Move>,
    /// The segment that outcomes without a message name.
    pub(crate) of: SegmentNo,
    /// The recipients that are done, and whether the message has ended.
    pub(crate) done: Option<(StoredRecipients, bool)>,
    /// In the order of the log.
    pub(crate) deferrals: Vec<StoredDefer>,
    /// The candidates that hold these outcomes.
    pub(crate) holders: Vec<SegmentNo>,
}

/// A message that is to stand elsewhere.
#[derive(Debug)]
pub(crate) struct Move {
    /// Where it stands.
    pub(crate) place: RecordPlace,
    /// Its chunks, in order; those that were copied are already at their new places.
    pub(crate) chunks: Vec<ChunkPlace>,
    /// Which of these are still to be copied.
    pub(crate) to_copy: Vec<usize>,
    /// The segments of the copies.
    pub(crate) copies: Vec<SegmentNo>,
    /// The segments from which these were copied.
    pub(crate) copied_from: Vec<SegmentNo>,
}

/// What a survey comes to.
#[derive(Debug, Default)]
pub struct Plan {
    /// The candidates that will be emptied.
    pub(crate) chosen: BTreeSet<SegmentNo>,
    /// What is to be written, in the order of the places from which it is read.
    pub(crate) items: Vec<Item>,
    /// Octets that are needed of each candidate.
    pub(crate) needed_octets: BTreeMap<SegmentNo, u64>,
}

/// What a batch of the compaction's own holds.
#[derive(Debug)]
pub(crate) enum Written {
    /// The copy of one chunk.
    Chunk {
        /// Whose.
        item: Box<Item>,
        /// Which.
        index: usize,
    },
    /// The records of these items, one after the other.
    Items(Vec<Item>),
}

impl Written {
    /// The items.
    pub(crate) fn items(&self) -> &[Item] {
        match self {
            Written::Chunk { item, .. } => std::slice::from_ref(&**item),
            Written::Items(items) => items,
        }
    }

    /// The items.
    pub(crate) fn into_items(self) -> Vec<Item> {
        match self {
            Written::Chunk { item, .. } => vec![*item],
            Written::Items(items) => items,
        }
    }
}

impl Item {
    /// The segments that keep something of it for as long as it is not written again.
    pub(crate) fn sources(&self) -> impl Iterator<Item = SegmentNo> + '_ {
        let message = self.message.iter().flat_map(|message| {
            let to_copy = message.to_copy.iter().map(|&index| message.chunks[index].place.segment);
            to_copy.chain(message.copied_from.iter().copied()).chain([message.place.segment])
        });
        self.holders.iter().copied().chain(message)
    }

    /// About how many octets it takes in a batch; never less than it does.
    pub(crate) fn octets_max(&self) -> usize {
        use super::format::outcome::outcome_bytes_max;
        let count = |recipients: &StoredRecipients| match recipients {
            StoredRecipients::All => 0,
            StoredRecipients::Some(list) => list.len(),
        };
        let message = self.message.as_ref().map_or(0, |message| message.place.length as usize);
        let done = self.done.iter().map(|(done, _)| outcome_bytes_max(count(done)));
        let waits = self.deferrals.iter().map(|defer| outcome_bytes_max(count(&defer.recipients)));
        message + done.chain(waits).sum::<usize>()
    }
}

#[cfg(test)]
#[path = "compaction_tests.rs"]
mod tests;
