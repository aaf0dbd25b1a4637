//! What a session does with rspamd: shows it the message that has come whole, and takes its word
//! before anything of that message is acknowledged.
//!
//! Its place: between the last octet of the data and the record in the log, where the edge filter
//! has looked at the client.  The trace header is in front already, as the next hop will see it.
//! What rspamd found is a [`Finding`] like all others, so that the thresholds, `mailrace why`, the
//! tag and the quarantine know nothing of rspamd.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::Session;
use crate::config::{OnFailure, Rspamd};
use crate::dns::Name;
use crate::edge::rspamd::changes::{Changes, Rewritten};
use crate::edge::rspamd::desk::Desk;
use crate::edge::rspamd::question::{Facts, Question};
use crate::edge::rspamd::{Assessment, Failure, NAME};
use crate::edge::verdict::{Action, Effect, Finding};
use crate::message::{BodySummary, Envelope, MessageId, Recipient};
use crate::runtime;
use crate::smtp::address::ReversePath;
use crate::smtp::body::{BodyForm, Reshape};
use crate::smtp::reply::Refusal;
use crate::smtp::server::ReceivedMessage;
use crate::spool::ChunkPlace;

/// What rspamd has changed of a message that goes on.
#[derive(Default)]
pub(super) struct Content {
    /// Fields that go before the body.
    pub(super) fields: String,
    /// The body in place of the one that came; only ever of a small message.
    pub(super) rewritten: Option<Rewritten>,
    /// How long rspamd was waited for.
    pub(super) waited: Duration,
}

/// A message that has come whole, as rspamd is shown it.
#[derive(Clone, Copy)]
pub(super) struct Shown<'a> {
    pub(super) id: MessageId,
    pub(super) message: &'a ReceivedMessage,
    /// Where its body is in the log; `None` for a small one, which is in the receive buffer.
    pub(super) chunks: Option<&'a [ChunkPlace]>,
    /// What goes before it.
    pub(super) trace: &'a str,
}

impl Content {
    /// What a scan finds of the body that is kept.
    pub(super) fn summary<'a>(&'a self, message: &'a ReceivedMessage) -> &'a BodySummary {
        self.rewritten.as_ref().map_or(&message.summary, |rewritten| &rewritten.summary)
    }
}

impl Session {
    /// Shows a message to rspamd, where it is asked, and gives what becomes of its header section.
    ///
    /// # Errors
    /// What the client hears, if the message does not go on.
    pub(super) async fn judge_content(&mut self, shown: Shown<'_>) -> Result<Content, Refusal> {
        let worker = self.worker.clone();
        let is_screened = self.screening.is_some();
        let (Some(desk), Some(rspamd), true) = (&worker.rspamd, self.rspamd(), is_screened) else {
            return Ok(Content::default());
        };
        let (most, patience, on_failure) = (rspamd.size.0, rspamd.deadline, rspamd.on_failure);
        let octets = shown.message.summary.octets;
        if octets > most {
            return self.not_shown(octets).map(|()| Content::default());
        }
        let began = Instant::now();
        let asked = self.show(desk, shown, began + patience);
        let asked = runtime::timeout(patience, asked).await;
        let took = began.elapsed();
        match self.heard(asked, took) {
            Ok(assessment) => self.follow(assessment, shown, took),
            Err(failure) => {
                self.not_judged(failure, on_failure, took)?;
                Ok(Content { waited: took, ..Content::default() })
            }
        }
    }

    /// What rspamd is asked for, if it is.
    pub(super) fn rspamd(&self) -> Option<&Rspamd> {
        self.worker.config.edge.as_ref().and_then(|edge| edge.rspamd.as_ref())
    }

    /// Takes down what rspamd has said, `None` if it has said nothing in time.
    pub(super) fn heard(
        &self,
        asked: Option<Result<Assessment, Failure>>,
        took: Duration,
    ) -> Result<Assessment, Failure> {
        let metrics = &self.worker.metrics;
        metrics.rspamd_wait.observe(took);
        let heard = asked.unwrap_or(Err(Failure::Late));
        if let Ok(assessment) = &heard {
            metrics.rspamd_verdicts.count(assessment.advice.as_str());
        }
        heard
    }

    /// What follows where a message is too large to be shown.
    pub(super) fn not_shown(&mut self, octets: u64) -> Result<(), Refusal> {
        self.worker.metrics.rspamd_verdicts.count("not_shown");
        let fact = format!("not shown: {octets} octets are more than `size`");
        self.weigh(fact, Effect::None, None, Duration::ZERO)
    }

    /// What follows where rspamd has said nothing.
    pub(super) fn not_judged(
        &mut self,
        failure: Failure,
        on_failure: OnFailure,
        took: Duration,
    ) -> Result<(), Refusal> {
        self.worker.metrics.rspamd_failures.count(failure.as_str());
        tracing::debug!(session = %self.id, %failure, "rspamd has not judged a message");
        if let Some(desk) = &self.worker.rspamd {
            desk.warn(failure);
        }
        let effect = match on_failure {
            OnFailure::Accept => Effect::None,
            OnFailure::Defer => Effect::Action(Action::Defer),
        };
        self.weigh(format!("not judged: {failure}"), effect, None, took).map_err(|refusal| {
            match refusal {
                // Put off for that alone, and not for what is known of the client.
                Refusal::PutOff(_) => Refusal::Unchecked,
                refusal => refusal,
            }
        })
    }

    /// Does what follows from what rspamd has said.
    fn follow(
        &mut self,
        assessment: Assessment,
        shown: Shown<'_>,
        took: Duration,
    ) -> Result<Content, Refusal> {
        let Assessment { effect, fact, reply, mut changes, .. } = assessment;
        let mut fact = fact.into_string();
        if shown.chunks.is_some() && changes.concern_body() {
            fact.push_str("; too large for its fields to be changed");
            if changes.subject.is_some() {
                changes.mark();
            }
        }
        self.weigh(fact, effect, reply, took)?;
        Ok(self.change(&changes, shown, took))
    }

    fn change(&self, changes: &Changes, shown: Shown<'_>, waited: Duration) -> Content {
        let mut content = Content { waited, ..Content::default() };
        changes.write(&mut content.fields);
        if shown.chunks.is_none() && changes.concern_body() {
            let flags = shown.message.summary.flags;
            content.rewritten = changes.apply(self.intake.small_body(), flags, shown.trace);
        }
        content
    }

    /// Takes what was found of the message.
    pub(super) fn weigh(
        &mut self,
        fact: String,
        effect: Effect,
        reply: Option<Box<str>>,
        took: Duration,
    ) -> Result<(), Refusal> {
        let check = NAME.into();
        let finding = Finding { check, fact: fact.into(), effect, reply, took };
        self.screening.as_mut().map_or(Ok(()), |screening| screening.content(finding))
    }

    /// Shows a message without its stuffed dots: a small one at once, a large one chunk by chunk as
    /// the log has it.
    async fn show(
        &self,
        desk: &Rc<Desk>,
        shown: Shown<'_>,
        deadline: Instant,
    ) -> Result<Assessment, Failure> {
        let Shown { id, message, chunks, trace } = shown;
        let turn = match chunks {
            Some(_) => desk.turn_to_read().await,
            None => desk.turn().await,
        };
        let Envelope { reverse_path, recipients, .. } = &message.envelope;
        let question = self.question(id, reverse_path, recipients);
        let mut reshape = Reshape::new(message.summary.flags, BodyForm::Bdat);
        let Some(chunks) = chunks else {
            let body = self.intake.small_body();
            let mut octets = Vec::with_capacity(trace.len() + body.len());
            octets.extend_from_slice(trace.as_bytes());
            reshape.write(body, &mut octets);
            return desk.show(turn, question, octets, deadline).assessment().await;
        };
        let log = &self.worker.log;
        let pins = chunks.iter().map(|chunk| log.pin(chunk.place.segment));
        let _pins: Vec<_> = pins.collect::<Option<_>>().ok_or(Failure::Unreadable)?;
        let whole = trace.len() as u64 + message.summary.octets;
        let octets = reshape.is_identity().then_some(whole);
        let mut showing = desk.begin_showing(turn, question, octets, deadline);
        let mut piece = trace.as_bytes().to_vec();
        for chunk in chunks {
            let record = log.read_chunk(id, chunk.place).await;
            reshape.write(record.map_err(|_| Failure::Unreadable)?.view().body(), &mut piece);
            // The reader's buffer is free again: rspamd may be slow.
            showing.pass(std::mem::take(&mut piece)).await;
        }
        showing.assessment().await
    }

    pub(super) fn question(
        &self,
        id: MessageId,
        reverse_path: &ReversePath,
        recipients: &[Recipient],
    ) -> Question {
        let client = self.server.client();
        let screening = self.screening.as_deref();
        Question::new(&Facts {
            id,
            client: self.peer.ip(),
            helo: client.map_or("", |client| &client.helo),
            hostname: screening.and_then(|screening| screening.client_name()).map(Name::as_str),
            user: client.and_then(|client| client.authenticated.as_deref()),
            secured: self.stream.secured(),
            our_name: &self.worker.config.hostname,
            reverse_path,
            recipients,
        })
    }
}
