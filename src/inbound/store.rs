//! A session's way into the log: its chunks as they fill, and the message when it is whole.
//!
//! What the client hears is the log's word.  Between the last octet and the record come the edge
//! filter's last look, rspamd, and the fields that go before the body.

use std::time::{Duration, Instant};

use super::content::{Content, Shown};
use super::step::stored;
use super::verdicts::Mark;
use super::{Session, trace};
use crate::config::Service;
use crate::message::{MessageId, Origin, Recipient};
use crate::smtp::header::HeaderFacts;
use crate::smtp::reply::Refusal;
use crate::smtp::server::ReceivedMessage;
use crate::spool::{NewBody, NewMessage};
use crate::worker::log::{Filing, Upload};

impl Session {
    /// Sends a full chunk to the log and takes an empty one.
    pub(super) async fn next_chunk(&mut self) {
        let began = Instant::now();
        self.change_chunk().await;
        self.excuse_since(began);
    }

    async fn change_chunk(&mut self) {
        let upload = match &mut self.upload {
            Some(upload) => upload,
            None => {
                let id = self.worker.next_id();
                self.upload.insert(Box::new(Upload::new(self.worker.log.clone(), id)))
            }
        };
        let Some(empty) = self.worker.log.chunk_buffer().await else {
            // Too many large messages at once: this one is told to come again.
            self.server.refuse_body(Refusal::Busy);
            return self.drop_body();
        };
        if let Some(full) = self.intake.next_chunk(empty, self.server.in_body()) {
            upload.push(full).await;
        }
    }

    pub(super) async fn store(&mut self) {
        let Some(message) = self.server.take_message() else { return };
        let started = Instant::now();
        let result = self.keep(&message).await;
        self.drop_body();
        self.envelope.give_back();
        // What rspamd takes is its own figure.
        let waited = result.as_ref().map_or(Duration::ZERO, |(_, waited)| *waited);
        let result = result.map(|(id, _)| id);
        let kept = result.as_ref().ok().copied();
        let durability = self.listener.listener.durability;
        if let (Some(_), Some(screening)) = (kept, &mut self.screening) {
            screening.accepted(&message.envelope.reverse_path);
        }
        self.end_judged(kept, result.as_ref().err());
        let result = result.map(|id| (id, durability));
        stored(&mut self.server, &mut self.intake, Instant::now(), result);
        if let Some(id) = kept {
            self.messages += 1;
            let took = started.elapsed();
            let ours = took.saturating_sub(waited);
            self.worker.report_accepted(self.id, self.peer, id, &message, took, ours);
        }
    }

    /// Gives the message's id and how long rspamd was waited for.
    async fn keep(&mut self, message: &ReceivedMessage) -> Result<(MessageId, Duration), Refusal> {
        if let Some(screening) = &mut self.screening {
            screening.whole(&message.envelope)?;
        }
        let mut upload = self.upload.take();
        let id = upload.as_ref().map_or_else(|| self.worker.next_id(), |upload| upload.id());
        let completed = match self.listener.listener.service {
            Service::Submission => Some(&message.header),
            Service::Mx | Service::Relay => None,
        };
        let smtputf8 = message.envelope.parameters.smtputf8;
        let trace = self.trace(id, message.named(), smtputf8, completed);
        let chunks = match &mut upload {
            None => None,
            Some(upload) => {
                if let Some(last) = self.intake.last_chunk() {
                    upload.push(last).await;
                }
                Some(upload.places().await?)
            }
        };
        let shown = Shown { id, message, chunks, trace: &trace };
        // On the heap, and only where there is somebody to ask: the way of all other messages is
        // not to carry what this takes.
        let content = match &self.worker.rspamd {
            Some(_) => Box::pin(self.judge_content(shown)).await?,
            None => Content::default(),
        };
        let judged = self.screening.as_ref().and_then(|screening| screening.judged());
        let mut fields = String::new();
        let mark = judged.and_then(|judged| self.mark(judged, id, &mut fields));
        let extensions = mark.as_ref().map(Mark::extensions).unwrap_or_default();
        let origin = Origin {
            client: self.peer,
            listener: self.listener.address,
            helo: self.server.client().map(|client| client.helo.clone()).unwrap_or_default(),
            accepted_unix_ms: self.worker.now_unix_ms(),
        };
        fields.push_str(&content.fields);
        let trace = trace::with_fields(trace, fields, message.header.begins_folded);
        let body = match (chunks, &content.rewritten) {
            (Some(chunks), _) => NewBody::Chunks(chunks),
            (None, Some(rewritten)) => NewBody::Inline(&rewritten.body),
            (None, None) => NewBody::Inline(self.intake.small_body()),
        };
        let new = NewMessage {
            id,
            durability: self.listener.listener.durability,
            envelope: &message.envelope,
            origin: &origin,
            summary: content.summary(message),
            trace: trace.as_bytes(),
            not_before_unix_ms: None,
            extensions: &extensions,
            body,
        };
        let groups = match mark.as_ref().is_some_and(|mark| mark.is_quarantined) {
            true => self.worker.sites.group_quarantined(&message.routes, &message.envelope),
            false => self.worker.sites.group(&message.routes, &message.envelope),
        };
        let filing = Filing { id, groups };
        let delayed = || self.worker.metrics.appends_delayed.count();
        let receipt = self.worker.log.append_message(&new, filing, delayed).await?;
        // The body is in the batch; the buffer need not wait for the disk.
        self.drop_body();
        let settled = receipt.settled().await;
        // Without its MESSAGE nobody needs the chunks: dropped, the upload gives them up.
        if let (Ok(_), Some(upload)) = (&settled, upload) {
            upload.finished();
        }
        settled.map(|_| (id, content.waited))
    }

    /// The trace header, and for a message of a user the fields that it lacks.
    pub(super) fn trace(
        &self,
        id: MessageId,
        named: &[Recipient],
        smtputf8: bool,
        completed: Option<&HeaderFacts>,
    ) -> String {
        let client = self.server.client();
        let mut text = String::with_capacity(256);
        let received = trace::Received {
            helo: client.map_or("", |client| &client.helo),
            client: (!self.listener.listener.hide_client).then_some(self.peer),
            hostname: &self.worker.config.hostname,
            extended: client.is_some_and(|client| client.extended),
            secured: self.stream.secured(),
            authenticated: client.is_some_and(|client| client.authenticated.is_some()),
            id,
            recipients: named,
            smtputf8,
            date: &self.worker.date(),
        };
        received.write(&mut text);
        if let Some(header) = completed {
            received.complete(header, &mut text);
        }
        text
    }
}
