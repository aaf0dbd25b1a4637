//! The bodies of a session: what follows DATA, what follows BDAT, what is thrown away, and what
//! becomes of a message that is whole.
//!
//! Its place: the second half of [`Server`], entered by DATA and BDAT and left at the end of the
//! chunk, or with the answer to the message.  Here too nothing is kept: an event says which octets
//! are the body's.
//!
//! Invariant: every octet that a client has announced as body is consumed as body, whatever was
//! refused meanwhile.  Two bounds end the session instead, for the client is either broken or
//! hostile: a chunk of more than twice the largest message, and data of more than four times it.

use std::time::Instant;

use super::{Event, Handled, Phase, ReceivedMessage, Server, Transaction};
use crate::config::BareNewline;
use crate::limits;
use crate::message::{BodyFlags, BodySummary, Durability, Envelope, MessageId};
use crate::smtp::body::BodyForm;
use crate::smtp::data::{ChunkScanner, Scanned};
use crate::smtp::header::HeaderWatch;
use crate::smtp::reply::{self, Passed, Refusal, Replies};

/// The part of a transaction that exists once BDAT was given.
#[derive(Default)]
pub(super) struct Chunking {
    scanner: ChunkScanner,
    /// The first thing that was wrong, until it was told, then [`Refusal::ChunkingFailed`]; the
    /// rest of the chunks are read and thrown away.
    refusal: Option<Refusal>,
}

impl Server {
    /// The body under way cannot be kept.  The rest of it is read and thrown away, and the client
    /// hears of it at its end.
    pub fn refuse_body(&mut self, because: Refusal) {
        let refusal = match (&mut self.phase, &mut self.transaction) {
            (Phase::Data { refusal, .. }, _) => refusal,
            (Phase::Chunk { .. }, Some(transaction)) => &mut transaction.begin_chunking().refusal,
            _ => return,
        };
        refusal.get_or_insert(because);
    }

    /// What is certain of the body under way, whatever follows.
    pub fn body_flags(&self) -> BodyFlags {
        match (&self.phase, self.transaction.as_deref()) {
            (Phase::Data { scanner, .. }, _) => scanner.flags_so_far(),
            (Phase::DataEnd { summary, .. } | Phase::Storing { summary }, _) => summary.flags,
            (_, Some(Transaction { chunking: Some(chunking), .. })) => {
                chunking.scanner.flags_so_far()
            }
            _ => BodyFlags::default(),
        }
    }

    /// The driver did not listen for a while, which is not the client's fault: it has its time
    /// for the next piece of a body from now on.
    pub fn go_on(&mut self, now: Instant) {
        if let Phase::Data { started, .. } | Phase::Chunk { started, .. } = self.phase {
            self.deadline = data_deadline(now, started);
        } else {
            self.deadline = self.deadline.max(now + limits::SERVER_COMMAND);
        }
    }

    /// The message that waits at [`Event::EndOfMessage`]; `None` at any other time.
    pub fn take_message(&mut self) -> Option<ReceivedMessage> {
        let Phase::Storing { summary } = self.phase else { return None };
        let mut transaction = self.transaction.take()?;
        transaction.merge();
        let header = transaction.header.as_ref().map(HeaderWatch::facts).unwrap_or_default();
        Some(ReceivedMessage {
            header,
            envelope: Envelope {
                reverse_path: transaction.reverse_path,
                parameters: transaction.parameters,
                recipients: transaction.recipients,
            },
            routes: transaction.routes,
            summary,
            is_expanded: transaction.is_expanded,
        })
    }

    /// The fate of the message that was taken.
    pub fn stored(&mut self, now: Instant, result: Result<(MessageId, Durability), Refusal>) {
        self.end_storing(now, result, |replies, (id, durability)| replies.queued(id, durability));
    }

    /// What the next hop said to the message that was taken.
    pub fn passed_on(&mut self, now: Instant, result: Result<Passed, Refusal>) {
        self.end_storing(now, result, |replies, words| replies.passed(&words));
    }

    fn end_storing<T>(
        &mut self,
        now: Instant,
        result: Result<T, Refusal>,
        tell: impl FnOnce(&mut Replies, T),
    ) {
        let asked = self.resume(now, |phase| match phase {
            Phase::Storing { .. } => Ok(()),
            phase => Err(phase),
        });
        if asked.is_none() {
            return;
        }
        self.transaction = None;
        match result {
            Ok(accepted) => {
                // A client that delivers may go on for days; only one that does not is counted.
                self.idle_commands = 0;
                self.errors = 0;
                tell(&mut self.replies, accepted);
            }
            Err(refusal) => self.refuse(refusal),
        }
    }

    // ---- DATA ----------------------------------------------------------------------------

    pub(super) fn data(&mut self, now: Instant) -> Event {
        let Some(transaction) = &mut self.transaction else {
            return self.refused(Refusal::NeedsMail);
        };
        if transaction.chunking.is_some() {
            return self.refused(Refusal::ChunkingUnderWay);
        }
        if transaction.recipients.is_empty() {
            return self.refused(Refusal::NeedsRecipient);
        }
        transaction.header = Some(HeaderWatch::new(BodyForm::Data));
        self.replies.push(reply::START_DATA);
        self.deadline = now + limits::SERVER_DATA_BLOCK;
        self.phase = Phase::Data { scanner: Box::default(), started: now, refusal: None };
        Event::Continue
    }

    pub(super) fn data_bytes(&mut self, now: Instant, input: &mut [u8]) -> Handled {
        let (Phase::Data { scanner, started, refusal }, Some(transaction)) =
            (&mut self.phase, &mut self.transaction)
        else {
            return Handled { consumed: 0, event: Event::Continue };
        };
        if !input.is_empty() {
            self.deadline = data_deadline(now, *started);
        }
        let Scanned { consumed, body, end } = match self.config.bare_newline {
            BareNewline::Reject => scanner.scan(input),
            BareNewline::Space => scanner.scan_replacing(input),
        };
        if let Some(header) = &mut transaction.header {
            header.feed(&input[..body]);
        }
        let summary = scanner.summary();
        if summary.octets > self.config.message_size.saturating_mul(4) {
            // Somebody who sends without end is not listened to for an hour.
            self.close(Refusal::TooLarge);
            return Handled { consumed: input.len(), event: Event::Close };
        }
        let keeps = refusal.is_none();
        if keeps && summary.octets > self.config.message_size {
            *refusal = Some(Refusal::TooLarge);
        }
        let fails_now = keeps && refusal.is_some();
        if end {
            let refusal = refusal.take().or_else(|| transaction.objection(&self.config, &summary));
            let octets = consumed - body;
            self.phase = Phase::DataEnd { octets, summary, refusal };
        }
        let event = match (fails_now, keeps && body > 0, end) {
            (true, ..) => Event::DropBody,
            (_, true, _) => Event::Body,
            (.., true) => Event::Continue,
            _ => Event::NeedInput,
        };
        Handled { consumed: body, event }
    }

    pub(super) fn data_end(&mut self, now: Instant, available: usize) -> Handled {
        let Phase::DataEnd { octets, summary, refusal } = &mut self.phase else {
            return Handled { consumed: 0, event: Event::Continue };
        };
        debug_assert!(available >= *octets, "the driver keeps what was not consumed");
        let consumed = *octets;
        let (summary, refusal) = (*summary, refusal.take());
        let event = self.end_of_message(now, summary, refusal);
        Handled { consumed, event }
    }

    // ---- BDAT ----------------------------------------------------------------------------

    pub(super) fn bdat(&mut self, now: Instant, octets: u64, last: bool) -> Event {
        // The octets of a chunk follow whatever we think of it; one that is far beyond what we
        // would take is not waited for.
        if octets > self.chunk_octets_max() {
            self.close(Refusal::TooLarge);
            return Event::Close;
        }
        self.deadline = now + limits::SERVER_DATA_BLOCK;
        self.phase = Phase::Chunk { left: octets, last, started: now };
        let Some(transaction) = &mut self.transaction else { return Event::Continue };
        let chunking = transaction.begin_chunking();
        if chunking.refusal.is_some() {
            return Event::Continue;
        }
        if chunking.scanner.octets().saturating_add(octets) > self.config.message_size {
            chunking.refusal = Some(Refusal::TooLarge);
            return Event::DropBody;
        }
        chunking.scanner.begin_chunk(octets);
        Event::Continue
    }

    /// A BDAT that cannot be obeyed: its octets follow all the same, and are no commands.
    pub(super) fn skip_bdat(&mut self, now: Instant, octets: Option<u64>) -> Event {
        let Some(octets) = octets.filter(|&octets| octets <= self.chunk_octets_max()) else {
            self.close(Refusal::BadArgument);
            return Event::Close;
        };
        self.deadline = now + limits::SERVER_DATA_BLOCK;
        self.phase = Phase::Skip { left: octets, started: now };
        if let Some(transaction) = &mut self.transaction {
            // Without these octets the rest would be another message than the client meant.
            transaction.begin_chunking().refusal = Some(Refusal::ChunkingFailed);
        }
        Event::DropBody
    }

    pub(super) fn chunk_bytes(&mut self, now: Instant, input: &mut [u8]) -> Handled {
        let Phase::Chunk { left, last, started } = &mut self.phase else {
            return Handled { consumed: 0, event: Event::Continue };
        };
        if !input.is_empty() {
            self.deadline = data_deadline(now, *started);
        }
        let octets = take(left, input.len());
        let (left, last) = (*left, *last);
        let keeps = self.transaction.as_mut().is_some_and(|t| t.take_chunk(&input[..octets]));
        if octets > 0 && keeps {
            return Handled { consumed: octets, event: Event::Body };
        }
        if left > 0 {
            return Handled { consumed: octets, event: Event::NeedInput };
        }
        Handled { consumed: octets, event: self.chunk_end(now, last) }
    }

    pub(super) fn skip_bytes(&mut self, now: Instant, input: &[u8]) -> Handled {
        let Phase::Skip { left, started } = &mut self.phase else {
            return Handled { consumed: 0, event: Event::Continue };
        };
        if !input.is_empty() {
            self.deadline = data_deadline(now, *started);
        }
        let consumed = take(left, input.len());
        if *left > 0 {
            return Handled { consumed, event: Event::NeedInput };
        }
        self.phase = Phase::Command;
        self.deadline = now + limits::SERVER_COMMAND;
        Handled { consumed, event: self.refused(Refusal::BadArgument) }
    }

    fn chunk_end(&mut self, now: Instant, last: bool) -> Event {
        self.phase = Phase::Command;
        self.deadline = now + limits::SERVER_COMMAND;
        let chunking = self.transaction.as_mut().and_then(|t| t.chunking.as_mut());
        let Some(chunking) = chunking else {
            let refusal = if self.lacks_tls() { Refusal::NeedsTls } else { Refusal::NeedsMail };
            return self.refused(refusal);
        };
        if chunking.refusal.is_some() {
            return self.failed_chunk_end(last);
        }
        if !last {
            self.replies.push(reply::CHUNK_OK);
            return Event::Continue;
        }
        let summary = chunking.scanner.summary();
        let refusal = self.transaction.as_ref().and_then(|t| t.objection(&self.config, &summary));
        self.end_of_message(now, summary, refusal)
    }

    /// The end of a chunk that was thrown away.
    ///
    /// What failed first is told once; what follows in the pipeline is answered with 503, until
    /// RSET (RFC 3030 section 2) or the chunk that says LAST: behind it nothing of this message
    /// can come, and a client that goes on with MAIL must not lose its next message too.
    fn failed_chunk_end(&mut self, last: bool) -> Event {
        let chunking = self.transaction.as_mut().and_then(|t| t.chunking.as_mut());
        let refusal = chunking.and_then(|c| c.refusal.replace(Refusal::ChunkingFailed));
        if last {
            self.transaction = None;
        }
        self.refused(refusal.unwrap_or(Refusal::ChunkingFailed))
    }

    fn chunk_octets_max(&self) -> u64 {
        self.config.message_size.saturating_mul(2)
    }

    // ---- both ----------------------------------------------------------------------------

    fn end_of_message(
        &mut self,
        now: Instant,
        summary: BodySummary,
        refusal: Option<Refusal>,
    ) -> Event {
        self.deadline = now + limits::SERVER_COMMAND;
        match refusal {
            Some(refusal) => {
                self.phase = Phase::Command;
                self.transaction = None;
                self.refuse(refusal);
                Event::DropBody
            }
            None => {
                self.phase = Phase::Storing { summary };
                Event::EndOfMessage
            }
        }
    }
}

impl Transaction {
    /// What speaks against a message that has come to its end.
    fn objection(&self, config: &super::ServerConfig, summary: &BodySummary) -> Option<Refusal> {
        let bare = [BodyFlags::BARE_CR, BodyFlags::BARE_LF];
        if bare.iter().any(|&flag| summary.flags.contains(flag)) {
            return Some(Refusal::BareNewline);
        }
        let received = self.header.as_ref().map_or(0, |header| header.facts().received);
        (received > config.received).then_some(Refusal::Loop)
    }

    /// From the first BDAT on, the transaction takes no other way to its message.
    fn begin_chunking(&mut self) -> &mut Chunking {
        let no_recipient = self.recipients.is_empty();
        self.header.get_or_insert_with(|| HeaderWatch::new(BodyForm::Bdat));
        self.chunking.get_or_insert_with(|| Chunking {
            refusal: no_recipient.then_some(Refusal::NeedsRecipient),
            ..Chunking::default()
        })
    }

    /// Whether the octets of a chunk are of any use.
    pub(super) fn keeps_chunks(&self) -> bool {
        self.chunking.as_ref().is_some_and(|chunking| chunking.refusal.is_none())
    }

    /// Scans octets of a chunk; whether they are of any use.
    fn take_chunk(&mut self, octets: &[u8]) -> bool {
        match (&mut self.chunking, &mut self.header) {
            (Some(Chunking { scanner, refusal: None }), Some(header)) => {
                scanner.scan(octets);
                header.feed(octets);
                true
            }
            _ => false,
        }
    }
}

/// Takes as many octets off a count as there are here.
fn take(left: &mut u64, available: usize) -> usize {
    let octets = usize::try_from(*left).unwrap_or(usize::MAX).min(available);
    *left -= octets as u64;
    octets
}

/// The end of the wait for the next piece of a body: a block's time, within the whole body's.
fn data_deadline(now: Instant, started: Instant) -> Instant {
    (now + limits::SERVER_DATA_BLOCK).min(started + limits::SERVER_DATA_TOTAL)
}
