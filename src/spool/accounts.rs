//! Which segments are still needed: the one place where that is decided, fed by the committer
//! with every record that it has written and by recovery with every record that it finds.
//!
//! A segment is dead when nothing live stands in it and nobody needs its outcomes:
//! - A MESSAGE is live until the DONE that says `last`.
//! - A CHUNK is live until its message's end, or until its upload is given up.
//! - A DONE or DEFER is needed until the segment of *its message* has been durably retired, since
//!   until then a recovery would find the message again.  This is kept as a pin from the segment
//!   that holds the outcome to the segment that holds the message; an outcome always comes after
//!   its message, so pins cannot form a circle.  The compaction writes outcomes that are still
//!   needed anew at the head, and then lets the pins on their old segment go.
//! - A segment whose header voids sequences of another one is pinned by that one likewise, and so
//!   is one that holds a message's newer copy by the one with the older copy.  Nothing but the
//!   retirement of the other one lets these go.
//!
//! There is no entry a message (a backlog may have millions), save for those in chunks; a sum over
//! the identities of what is live guards the count: it must be zero when the count is.
//!
//! It does no I/O and trusts its caller to feed it only what is written.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::SegmentNo;
use super::format::record::{Kind, RecordView};
use super::format::{FormatError, outcome};
use crate::message::MessageId;

/// The live counts of all segments.
#[derive(Debug, Default)]
pub struct Accounts {
    segments: BTreeMap<SegmentNo, Segment>,
    /// Segments that hold outcomes (or voided sequences) for messages of the key.
    holders: BTreeMap<SegmentNo, BTreeSet<SegmentNo>>,
    /// Segments that hold a newer copy of a message of the key, or void sequences of it.
    successors: BTreeMap<SegmentNo, BTreeSet<SegmentNo>>,
    /// Where the chunks of unfinished uploads and of live messages stand.
    chunked: HashMap<MessageId, Chunked>,
    live: u64,
    /// Segments that something has been taken from or that were closed since the dead were last
    /// asked for, so that asking after each commit costs nothing when nothing died.
    candidates: BTreeSet<SegmentNo>,
}

#[derive(Debug)]
struct Segment {
    life: Life,
    live: u32,
    /// The wrapping sum of the fingerprints of what is live.
    fingerprints: u64,
    /// Messages and chunks that were ever counted in it.
    counted: u32,
    /// DONEs and DEFERs that were ever counted in it.
    outcomes: u32,
    /// How many other segments need outcomes of this one.
    pins: u32,
    /// How many other segments need it for what cannot be written anew.
    firm_pins: u32,
}

/// What a compaction is chosen by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// Which segment; closed and not dead.
    pub segment: SegmentNo,
    /// Messages and chunks that are live in it.
    pub live: u32,
    /// Messages and chunks that were ever written to it.
    pub counted: u32,
    /// DONEs and DEFERs that were ever written to it.
    pub outcomes: u32,
    /// How many other segments need outcomes that it holds.
    pub pins: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    /// Batches are still appended.
    Head,
    Closed,
    /// Found dead and handed out for retirement.
    Retiring,
}

#[derive(Debug, Default)]
struct Chunked {
    /// One entry a chunk.
    chunks: Vec<SegmentNo>,
    /// Its MESSAGE is there: no longer an upload that can be given up.
    is_message: bool,
}

/// Spreads ids that differ in few bits over the whole word.
fn fingerprint(id: MessageId) -> u64 {
    (id.0 ^ id.0 >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

impl Accounts {
    /// A new segment at the log's head.
    pub fn open(&mut self, segment: SegmentNo) {
        let fresh = Segment {
            life: Life::Head,
            live: 0,
            fingerprints: 0,
            counted: 0,
            outcomes: 0,
            pins: 0,
            firm_pins: 0,
        };
        self.segments.insert(segment, fresh);
    }

    /// Nothing more is appended to the segment.
    pub fn close(&mut self, segment: SegmentNo) {
        self.candidates.insert(segment);
        if let Some(segment) = self.segments.get_mut(&segment) {
            segment.life = Life::Closed;
        }
    }

    /// Counts a record that has been written to `segment`; `moved` knows of messages that are
    /// not where their outcomes say.
    pub fn record(
        &mut self,
        segment: SegmentNo,
        record: &RecordView<'_>,
        moved: impl FnOnce(MessageId) -> Option<SegmentNo>,
    ) -> Result<(), FormatError> {
        match record.kind() {
            Kind::Message => self.message(segment, record.id()),
            Kind::Chunk => self.chunk(segment, record.id()),
            Kind::Done | Kind::Defer => {
                let (named, last) = outcome::subject(record)?;
                let of = moved(record.id()).unwrap_or(named);
                self.outcome(segment, of);
                if last {
                    self.finished(of, record.id());
                }
            }
            Kind::Control | Kind::Unknown(_) => {}
        }
        Ok(())
    }

    /// A MESSAGE stands in `segment`.
    pub fn message(&mut self, segment: SegmentNo, id: MessageId) {
        self.add(segment, id);
        if let Some(chunked) = self.chunked.get_mut(&id) {
            chunked.is_message = true;
        }
    }

    /// A CHUNK stands in `segment`.
    pub fn chunk(&mut self, segment: SegmentNo, id: MessageId) {
        self.add(segment, id);
        self.chunked.entry(id).or_default().chunks.push(segment);
    }

    /// `holder` holds an outcome of a message of segment `of`.
    pub fn outcome(&mut self, holder: SegmentNo, of: SegmentNo) {
        if let Some(holder) = self.segments.get_mut(&holder) {
            holder.outcomes = holder.outcomes.saturating_add(1);
        }
        if holder == of || !self.segments.contains_key(&of) {
            return;
        }
        let is_new = self.holders.entry(of).or_default().insert(holder);
        if is_new && let Some(holder) = self.segments.get_mut(&holder) {
            holder.pins += 1;
        }
    }

    /// `holder` holds a newer copy of a message of segment `of`, or voids sequences of it.
    pub fn succeeds(&mut self, holder: SegmentNo, of: SegmentNo) {
        if holder == of || !self.segments.contains_key(&of) {
            return;
        }
        let is_new = self.successors.entry(of).or_default().insert(holder);
        if is_new && let Some(holder) = self.segments.get_mut(&holder) {
            holder.firm_pins += 1;
        }
    }

    /// A copy of a message of segment `from` stands in `to` and counts from now on; `chunks` are
    /// the segments of the chunks that it names, one entry a chunk.  [`Self::succeeds`] is told apart.
    pub fn moved(&mut self, id: MessageId, from: SegmentNo, to: SegmentNo, chunks: &[SegmentNo]) {
        self.add(to, id);
        self.subtract(from, id);
        self.retain_chunks(id, chunks);
    }

    /// Where a message's chunks stand, one entry a chunk.
    pub fn chunk_segments(&self, id: MessageId) -> Vec<SegmentNo> {
        self.chunked.get(&id).map(|chunked| chunked.chunks.clone()).unwrap_or_default()
    }

    /// Of a message's chunks only those in `named` count, one entry a chunk.
    pub fn retain_chunks(&mut self, id: MessageId, named: &[SegmentNo]) {
        let Some(chunked) = self.chunked.get_mut(&id) else { return };
        let mut named = named.to_vec();
        let mut gone = std::mem::take(&mut chunked.chunks);
        gone.retain(|segment| match named.iter().position(|one| one == segment) {
            Some(place) => {
                chunked.chunks.push(named.swap_remove(place));
                false
            }
            None => true,
        });
        gone.into_iter().for_each(|segment| self.subtract(segment, id));
    }

    /// Copies of a message's chunks in `copies` came to nothing.
    pub fn forget_chunks(&mut self, id: MessageId, copies: &[SegmentNo]) {
        let Some(chunked) = self.chunked.get_mut(&id) else { return };
        let mut gone = Vec::new();
        for copy in copies {
            if let Some(place) = chunked.chunks.iter().position(|segment| segment == copy) {
                gone.push(chunked.chunks.swap_remove(place));
            }
        }
        if chunked.chunks.is_empty() {
            self.chunked.remove(&id);
        }
        gone.into_iter().for_each(|segment| self.subtract(segment, id));
    }

    /// Every outcome of `holder` that others need stands at the head too, save for those of
    /// messages in `except`, which are about to die.
    pub fn carried(&mut self, holder: SegmentNo, except: &BTreeSet<SegmentNo>) {
        let Some(segment) = self.segments.get_mut(&holder) else { return };
        self.holders.retain(|of, holders| {
            if !except.contains(of) && holders.remove(&holder) {
                segment.pins -= 1;
            }
            !holders.is_empty()
        });
        self.candidates.insert(holder);
    }

    /// The closed segments that could die if what is needed of them stood elsewhere, oldest first.
    pub fn fills(&self) -> impl Iterator<Item = Fill> {
        let closed = self
            .segments
            .iter()
            .filter(|(_, segment)| segment.life == Life::Closed && segment.firm_pins == 0);
        closed.map(|(&no, &Segment { live, counted, outcomes, pins, .. })| Fill {
            segment: no,
            live,
            counted,
            outcomes,
            pins,
        })
    }

    /// The message, whose MESSAGE stands in `segment`, has ended.
    pub fn finished(&mut self, segment: SegmentNo, id: MessageId) {
        self.subtract(segment, id);
        self.release_chunks(id);
    }

    /// One MESSAGE of two with the same id need not be kept; its chunks are the other's too.
    pub fn subtract_message(&mut self, segment: SegmentNo, id: MessageId) {
        self.subtract(segment, id);
    }

    /// The upload will never get its MESSAGE.
    pub fn abandoned(&mut self, id: MessageId) {
        if self.chunked.get(&id).is_some_and(|chunked| !chunked.is_message) {
            self.release_chunks(id);
        }
    }

    /// Gives up every upload without a MESSAGE: after a recovery there is nobody to finish it.
    pub fn abandon_all_uploads(&mut self) {
        let uploads: Vec<MessageId> = self
            .chunked
            .iter()
            .filter(|(_, chunked)| !chunked.is_message)
            .map(|(&id, _)| id)
            .collect();
        uploads.into_iter().for_each(|id| self.release_chunks(id));
    }

    fn release_chunks(&mut self, id: MessageId) {
        for segment in self.chunked.remove(&id).unwrap_or_default().chunks {
            self.subtract(segment, id);
        }
    }

    fn add(&mut self, segment: SegmentNo, id: MessageId) {
        if let Some(segment) = self.segments.get_mut(&segment) {
            segment.live += 1;
            segment.counted = segment.counted.saturating_add(1);
            segment.fingerprints = segment.fingerprints.wrapping_add(fingerprint(id));
            self.live += 1;
        }
    }

    fn subtract(&mut self, no: SegmentNo, id: MessageId) {
        let Some(segment) = self.segments.get_mut(&no) else {
            return;
        };
        match segment.live.checked_sub(1) {
            Some(live) => {
                segment.live = live;
                segment.fingerprints = segment.fingerprints.wrapping_sub(fingerprint(id));
                self.live -= 1;
                if live == 0 {
                    self.candidates.insert(no);
                }
            }
            None => tracing::error!(%id, segment = %no, "a message ended that was not live"),
        }
    }

    /// The segments that have died since they were last asked for; each is given once, for
    /// retirement.
    pub fn take_dead(&mut self) -> Vec<SegmentNo> {
        let mut dead = Vec::new();
        for no in std::mem::take(&mut self.candidates) {
            let Some(segment) = self.segments.get_mut(&no) else {
                continue;
            };
            let needs = (segment.live, segment.pins, segment.firm_pins);
            if segment.life != Life::Closed || needs != (0, 0, 0) {
                continue;
            }
            if segment.fingerprints != 0 {
                // Some message ended twice and another has not: keep it all until a restart
                // counts anew from the records.
                tracing::error!(segment = %no, "live counts do not agree; the segment is kept");
                continue;
            }
            segment.life = Life::Retiring;
            dead.push(no);
        }
        dead
    }

    /// The segment's header says durably that it is free: the outcomes that others hold for it
    /// are needed no more.
    pub fn retired(&mut self, segment: SegmentNo) {
        self.segments.remove(&segment);
        for no in self.holders.remove(&segment).unwrap_or_default() {
            if let Some(holder) = self.segments.get_mut(&no) {
                holder.pins -= 1;
                self.candidates.insert(no);
            }
        }
        for no in self.successors.remove(&segment).unwrap_or_default() {
            if let Some(successor) = self.segments.get_mut(&no) {
                successor.firm_pins -= 1;
                self.candidates.insert(no);
            }
        }
    }

    /// A segment that was given for retirement could not be retired yet.
    pub fn not_retired(&mut self, segment: SegmentNo) {
        self.close(segment);
    }

    /// Messages and chunks that are live.
    pub fn live(&self) -> u64 {
        self.live
    }

    /// The numbers of the segments in use, the head's too.
    pub fn in_use(&self) -> impl Iterator<Item = SegmentNo> {
        self.segments.keys().copied()
    }

    /// Segments in use, the head counted.
    pub fn segments(&self) -> usize {
        self.segments.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SegmentNo = SegmentNo(1);
    const B: SegmentNo = SegmentNo(2);
    const C: SegmentNo = SegmentNo(3);

    fn accounts(closed: &[SegmentNo]) -> Accounts {
        let mut accounts = Accounts::default();
        for &segment in closed {
            accounts.open(segment);
        }
        accounts
    }

    fn close_all(accounts: &mut Accounts) {
        [A, B, C].into_iter().for_each(|segment| accounts.close(segment));
    }

    #[test]
    fn dead_segment_is_retired_before_its_dones_are_released() {
        let mut accounts = accounts(&[A, B]);
        accounts.message(A, MessageId(1));
        close_all(&mut accounts);
        assert_eq!(accounts.take_dead(), [B], "B holds nothing yet");
        let mut accounts = self::accounts(&[A, B]);
        accounts.message(A, MessageId(1));
        accounts.outcome(B, A);
        accounts.finished(A, MessageId(1));
        close_all(&mut accounts);
        assert_eq!(accounts.take_dead(), [A], "B holds the DONE that A still needs");
        assert_eq!(accounts.take_dead(), [], "each is given once");
        accounts.retired(A);
        assert_eq!(accounts.take_dead(), [B]);
    }

    #[test]
    fn an_upload_pins_its_chunks_until_it_is_given_up() {
        let mut accounts = accounts(&[A, B]);
        accounts.chunk(A, MessageId(1));
        accounts.chunk(A, MessageId(2));
        accounts.chunk(B, MessageId(2));
        accounts.message(B, MessageId(2));
        close_all(&mut accounts);
        accounts.abandoned(MessageId(2));
        assert_eq!(accounts.live(), 4, "a message is not an upload");
        accounts.abandoned(MessageId(1));
        assert_eq!(accounts.take_dead(), []);
        accounts.finished(B, MessageId(2));
        assert_eq!(accounts.take_dead(), [A, B]);
        assert_eq!(accounts.live(), 0);
    }

    #[test]
    fn a_message_that_ends_twice_does_not_take_another_with_it() {
        let mut accounts = accounts(&[A]);
        accounts.message(A, MessageId(1));
        accounts.message(A, MessageId(2));
        accounts.finished(A, MessageId(1));
        accounts.finished(A, MessageId(1));
        close_all(&mut accounts);
        assert_eq!(accounts.take_dead(), [], "message 2 is still in it");
    }

    #[test]
    fn a_copy_outlasts_what_it_was_copied_from() {
        let mut accounts = accounts(&[A, B, C]);
        accounts.message(A, MessageId(1));
        accounts.moved(MessageId(1), A, B, &[]);
        accounts.succeeds(B, A);
        accounts.outcome(C, B);
        accounts.finished(B, MessageId(1));
        close_all(&mut accounts);
        assert_eq!(accounts.take_dead(), [A], "B holds what supersedes A's copy, C the end of B's");
        accounts.retired(A);
        assert_eq!(accounts.take_dead(), [B]);
        accounts.retired(B);
        assert_eq!(accounts.take_dead(), [C]);
    }

    #[test]
    fn carried_outcomes_let_their_holder_go_but_for_what_dies_anyway() {
        let mut accounts = accounts(&[A, B, C]);
        accounts.message(A, MessageId(1));
        accounts.message(B, MessageId(2));
        accounts.outcome(C, A);
        accounts.outcome(C, B);
        close_all(&mut accounts);
        accounts.carried(C, &BTreeSet::from([B]));
        assert_eq!(accounts.take_dead(), [], "B still needs it");
        accounts.finished(B, MessageId(2));
        assert_eq!(accounts.take_dead(), [B]);
        accounts.retired(B);
        assert_eq!(accounts.take_dead(), [C], "and A does not");
    }

    #[test]
    fn chunks_that_a_message_does_not_name_do_not_count() {
        let mut accounts = accounts(&[A, B, C]);
        accounts.chunk(A, MessageId(1));
        accounts.chunk(A, MessageId(1));
        accounts.message(A, MessageId(1));
        accounts.chunk(B, MessageId(1));
        accounts.moved(MessageId(1), A, C, &[A, B]);
        accounts.succeeds(C, A);
        assert_eq!(accounts.live(), 3);
        accounts.forget_chunks(MessageId(1), &[B]);
        assert_eq!(accounts.live(), 2);
        accounts.finished(C, MessageId(1));
        close_all(&mut accounts);
        assert_eq!(accounts.take_dead(), [A, B], "C outlasts A");
        assert_eq!(accounts.live(), 0);
    }

    #[test]
    fn an_outcome_for_a_retired_segment_pins_nothing() {
        let mut accounts = accounts(&[B, C]);
        accounts.outcome(B, A);
        accounts.outcome(C, B);
        accounts.outcome(C, B);
        close_all(&mut accounts);
        assert_eq!(accounts.take_dead(), [B]);
        accounts.retired(B);
        assert_eq!(accounts.take_dead(), [C]);
    }
}
