//! What becomes of a message after an attempt: outcomes are judged, written to the log, told in
//! the events, and given back to the scheduler.
//!
//! The order matters.  The outcome is appended first; the handle goes only then, so that nothing
//! is ever both out of the queue and not on its way to the log.  A bounce's notice and the DONE
//! of its cause are appended as one, and count together or not at all.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use super::message::{LoadError, LoadedMessage};
use super::notice::{self, Notice};
use super::outcome::{Attempted, BounceCause, Decision, Progress, Reason};
use super::sites::route_of;
use crate::config::Target;
use crate::control::events::{Addressees, Event as LogEvent, EventKind};
use crate::control::moment::Moment;
use crate::message::{Durability, MessageId, Origin};
use crate::outbound::Way;
use crate::queue::arena::Slot;
use crate::queue::handle::{Handle, Recipients, State};
use crate::queue::scheduler::Event;
use crate::queue::site::SiteIndex;
use crate::runtime;
use crate::smtp::client::{ConnectionFailure, RecipientOutcome};
use crate::smtp::data::ChunkScanner;
use crate::spool::{self, Defer, DeferState, Done, NewBody, NewMessage, RecordPlace, Ticket};
use crate::worker::Worker;
use crate::worker::log::{Filing, Receipt};

/// One message on its way to one site.
pub struct Attempt {
    slot: Slot,
    handle: Handle,
    peer: Option<SocketAddr>,
    /// What the peer said to the recipients that it took.
    taken: Option<String>,
}

/// A notice and the id under which it will be stored.
type Identified = (MessageId, Notice);

/// The recipients of an attempt by what is to be done about them.
#[derive(Default)]
struct Judged {
    delivered: Vec<u16>,
    bounced: Vec<(u16, BounceCause)>,
    deferred: Vec<(u16, Reason)>,
    due_unix_ms: u64,
    at_once: Vec<u16>,
}

impl Attempt {
    /// The attempt that the scheduler has asked for; `None` if the message has gone meanwhile.
    pub fn begin(
        worker: &Rc<Worker>,
        site: SiteIndex,
        peer: Option<SocketAddr>,
        slot: Slot,
    ) -> Option<Attempt> {
        let handle = worker.with_queue(|queue| queue.get(slot).cloned())?;
        let is_ours = handle.state == State::Active && handle.site == site;
        is_ours.then_some(Attempt { slot, handle, peer, taken: None })
    }

    /// The message.
    pub fn id(&self) -> MessageId {
        self.handle.id
    }

    /// Where its record stands.
    pub fn place(&self) -> RecordPlace {
        self.handle.place
    }

    /// Attempts before this one.
    pub fn attempts_before(&self) -> u16 {
        self.handle.attempts
    }

    /// The recipients that are left, by their place in the envelope.
    pub fn recipients(&self) -> Vec<u16> {
        self.handle.recipients.places()
    }

    /// The message could not be read: it stays, and somebody has to look.
    pub fn unreadable(self, worker: &Rc<Worker>, error: &LoadError) {
        let message = self.handle.id;
        tracing::error!(%message, %error, "a message could not be read from the log; it is kept");
        let due_unix_ms = worker.now_unix_ms() + UNREADABLE_WAIT_MS;
        let recipients = self.handle.recipients.clone();
        let reason = Some(worker.shared_reason("the message could not be read from the log"));
        worker.queue_event(Event::Deferred { slot: self.slot, recipients, due_unix_ms, reason });
    }

    /// Keeps what the peer said when it took the message, for the events.
    pub fn taken_with(&mut self, outcomes: &[(u16, RecipientOutcome)]) {
        self.taken = outcomes.iter().find_map(|(_, outcome)| match outcome {
            RecipientOutcome::Delivered(reply) => Some(reply.to_string()),
            _ => None,
        });
    }

    /// Takes one outcome for each recipient of the attempt.
    pub async fn settle<A: Into<Attempted>>(
        self,
        worker: &Rc<Worker>,
        message: &LoadedMessage,
        outcomes: Vec<(u16, A)>,
    ) {
        let now_unix_ms = worker.now_unix_ms();
        let attempts = self.handle.attempts.saturating_add(1);
        let progress = Progress { accepted_unix_ms: self.handle.id.unix_ms(), attempts };
        let random = fastrand::u32(..);
        let mut judged = Judged::default();
        for (place, outcome) in outcomes {
            judged.add(place, outcome.into(), |attempted| {
                worker.retry.judge(attempted, progress, now_unix_ms, random)
            });
        }
        self.finish(worker, message, judged).await;
    }

    /// Writes down what was judged.
    async fn finish(self, worker: &Rc<Worker>, message: &LoadedMessage, mut judged: Judged) {
        let notices = self.notices(worker, message, &judged.bounced).await;
        self.report(worker, message, &judged);
        let deferred = judged.deferred.iter().map(|(place, _)| *place);
        let mut left: Vec<u16> = deferred.chain(judged.at_once.iter().copied()).collect();
        left.sort_unstable();
        let is_last = left.is_empty() && self.handle.is_only_part();
        judged.delivered.sort_unstable();
        let ends = self.append_done(worker, message, &judged.delivered, notices, is_last);
        self.append_defer(worker, &judged);
        if left.is_empty() {
            if !is_last {
                end_part(worker, &self.handle, &ends);
            }
            worker.with_queue(|queue| queue.finish(self.slot));
            return;
        }
        // Those that could go at once wait with the others, if there are any: else what the peer may
        // have taken without a word would be sent again and again.
        let due_unix_ms = if judged.deferred.is_empty() { 0 } else { judged.due_unix_ms };
        let recipients = Recipients::of(left, message.envelope().recipients.len());
        let reason =
            judged.deferred.first().map(|(_, reason)| worker.shared_reason(&reason.to_string()));
        worker.queue_event(Event::Deferred { slot: self.slot, recipients, due_unix_ms, reason });
    }

    /// One DONE for those that were delivered, and one with each notice for those that failed;
    /// gives the tickets of these.
    fn append_done(
        &self,
        worker: &Rc<Worker>,
        message: &LoadedMessage,
        delivered: &[u16],
        notices: Vec<(Vec<u16>, Option<Identified>)>,
        is_last: bool,
    ) -> Vec<Ticket> {
        let mut ends = Vec::new();
        let recipients = message.envelope().recipients.len();
        let (id, segment) = (self.handle.id, self.handle.place.segment);
        if !delivered.is_empty() {
            let last = is_last && notices.is_empty();
            let recipients = spool_recipients(delivered, recipients);
            ends.push(worker.log.append_done(&Done { id, segment, recipients, last }));
        }
        let count = notices.len();
        for (number, (places, notice)) in notices.into_iter().enumerate() {
            let last = is_last && number + 1 == count;
            let recipients = spool_recipients(&places, recipients);
            let done = Done { id, segment, recipients, last };
            let told = notice.and_then(|notice| append_notice(worker, &notice, &done));
            ends.push(told.unwrap_or_else(|| worker.log.append_done(&done)));
        }
        ends
    }

    /// The notices for recipients that failed, a bounded number of them in each; none where
    /// nobody wants one.
    async fn notices(
        &self,
        worker: &Rc<Worker>,
        message: &LoadedMessage,
        bounced: &[(u16, BounceCause)],
    ) -> Vec<(Vec<u16>, Option<Identified>)> {
        if bounced.is_empty() {
            return Vec::new();
        }
        let trace = message.trace();
        let beginning = message.beginning(&worker.log, notice::RETURNED_OCTETS + 1).await;
        // A notice without the message is better than none.
        let (body, is_whole) = beginning.unwrap_or_default();
        let content = [trace, &body].concat();
        let original = notice::Original {
            envelope: message.envelope(),
            accepted_unix_ms: message.origin().accepted_unix_ms,
            content: &content,
            complete: is_whole,
        };
        let now_unix_ms = worker.now_unix_ms();
        let peer = self.peer.map(|peer| peer.ip().to_string());
        let group = |group: &[(u16, BounceCause)]| {
            let id = worker.next_id();
            let reporter = notice::Reporter { hostname: &worker.config.hostname, id, now_unix_ms };
            let failed: Vec<_> = group
                .iter()
                .map(|(place, cause)| notice::FailedRecipient {
                    index: *place,
                    cause,
                    remote_mta: peer.as_deref(),
                    last_attempt_unix_ms: self.peer.map(|_| now_unix_ms),
                })
                .collect();
            let mut places: Vec<u16> = group.iter().map(|(place, _)| *place).collect();
            places.sort_unstable();
            let notice = notice::failure_notice(&reporter, &original, &failed);
            (places, notice.map(|notice| (id, notice)))
        };
        bounced.chunks(notice::RECIPIENTS_PER_NOTICE).map(group).collect()
    }

    /// One DEFER for those that heard the same.
    fn append_defer(&self, worker: &Rc<Worker>, judged: &Judged) {
        for (reply, places) in judged.deferred_alike() {
            worker.log.append_defer(&Defer {
                id: self.handle.id,
                segment: self.handle.place.segment,
                recipients: spool::Recipients::Some(&places),
                state: DeferState::Deferred,
                next_attempt_unix_ms: judged.due_unix_ms,
                attempts: self.handle.attempts.saturating_add(1),
                reply: &reply,
            });
        }
    }

    // ---- telling -------------------------------------------------------------------------

    fn report(&self, worker: &Rc<Worker>, message: &LoadedMessage, judged: &Judged) {
        let delay_ms = worker.now_unix_ms().saturating_sub(message.origin().accepted_unix_ms);
        let site = worker.sites.name(self.handle.site);
        let event = LogEvent {
            message: Some(self.handle.id),
            from: Some(message.envelope().reverse_path.as_str()),
            peer: self.peer,
            site: Some(&site),
            attempts: Some(u32::from(self.handle.attempts) + 1),
            size: Some(message.summary().octets),
            delay_ms: Some(delay_ms),
            ..LogEvent::new(EventKind::Delivered)
        };
        let recipients = &message.envelope().recipients;
        if !judged.delivered.is_empty() {
            let to = Addressees::Some(recipients, &judged.delivered);
            let reply = self.taken.as_deref();
            worker.events.emit(&LogEvent { to, reply, ..event });
            worker.metrics.messages_delivered.count();
            worker.metrics.recipients_delivered.add(judged.delivered.len() as u64);
            worker.metrics.delivery_delay.observe(Duration::from_millis(delay_ms));
        }
        for (reply, places) in judged.deferred_alike() {
            worker.events.emit(&LogEvent {
                kind: EventKind::Deferred,
                to: Addressees::Some(recipients, &places),
                reply: Some(&reply),
                next_attempt: Some(Moment(judged.due_unix_ms)),
                ..event
            });
            worker.metrics.recipients_deferred.add(places.len() as u64);
        }
        for (place, cause) in &judged.bounced {
            let (kind, attempts) = match cause {
                BounceCause::Failed(_) => (EventKind::Bounced, event.attempts),
                // What brought it to its end was the clock.
                BounceCause::Expired { .. } => {
                    (EventKind::Expired, Some(u32::from(self.handle.attempts)))
                }
            };
            let reply = cause.reason().map(ToString::to_string);
            let places = [*place];
            let to = Addressees::Some(recipients, &places);
            let reply = reply.as_deref();
            worker.events.emit(&LogEvent { kind, to, reply, attempts, ..event });
            match cause {
                BounceCause::Failed(_) => worker.metrics.recipients_bounced.count(),
                BounceCause::Expired { .. } => worker.metrics.recipients_expired.count(),
            }
        }
    }
}

impl Judged {
    /// Those that were deferred, by what they heard; places ascending.
    fn deferred_alike(&self) -> Vec<(String, Vec<u16>)> {
        let mut alike: Vec<(String, Vec<u16>)> = Vec::new();
        for (place, reason) in &self.deferred {
            let reply = reason.to_string();
            match alike.iter_mut().find(|group| group.0 == reply) {
                Some(group) => group.1.push(*place),
                None => alike.push((reply, vec![*place])),
            }
        }
        alike.iter_mut().for_each(|group| group.1.sort_unstable());
        alike
    }

    fn add(&mut self, place: u16, attempted: Attempted, judge: impl FnOnce(Attempted) -> Decision) {
        let reason = match &attempted {
            Attempted::Deferred(reason) => Some(reason.clone()),
            _ => None,
        };
        match judge(attempted) {
            Decision::Done => self.delivered.push(place),
            Decision::Bounce(cause) => self.bounced.push((place, cause)),
            Decision::AtOnce => self.at_once.push(place),
            Decision::Defer { next_attempt_unix_ms } => {
                self.due_unix_ms = next_attempt_unix_ms;
                let reason = reason.expect("only what was deferred is tried again");
                self.deferred.push((place, reason));
            }
        }
    }
}

/// Ends a part of a message of which other parts may be under way: once the records of its end
/// are in the log it counts no more, and if it was the last one, a DONE of its own ends the message.
pub fn end_part(worker: &Rc<Worker>, handle: &Handle, ends: &[Ticket]) {
    let receipts: Vec<Receipt> = ends.iter().map(|&end| worker.log.watch(end)).collect();
    let (worker, handle) = (worker.clone(), handle.clone());
    runtime::spawn(async move {
        for receipt in receipts {
            // Refused only when the log has stopped for good: a restart finds what it holds.
            if receipt.settled().await.is_err() {
                return;
            }
        }
        if handle.end_part() {
            let (id, segment) = (handle.id, handle.place.segment);
            let recipients = spool::Recipients::Some(&[]);
            worker.log.append_done(&Done { id, segment, recipients, last: true });
        }
    });
}

/// Appends a notice together with the end of its cause, whose ticket it gives; `None` if it
/// cannot be sent anywhere.
fn append_notice(
    worker: &Rc<Worker>,
    (id, notice): &Identified,
    cause: &Done<'_>,
) -> Option<Ticket> {
    let routes: Option<Vec<_>> = notice
        .envelope
        .recipients
        .iter()
        .map(|recipient| {
            let route = route_of(&worker.config, &recipient.path, false)?;
            let takes_mail = !matches!(worker.config.routes[route].to, Target::Reject { .. });
            takes_mail.then_some(route)
        })
        .collect();
    let Some(routes) = routes else {
        tracing::warn!(message = %cause.id, "no route leads to the sender; its notice is not sent");
        return None;
    };
    let mut scanner = ChunkScanner::new();
    scanner.begin_chunk(notice.content.len() as u64);
    scanner.scan(&notice.content);
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    let new = NewMessage {
        id: *id,
        durability: Durability::Fsync,
        envelope: &notice.envelope,
        origin: &Origin {
            client: local,
            listener: local,
            helo: worker.config.hostname.clone(),
            accepted_unix_ms: worker.now_unix_ms(),
        },
        summary: &scanner.summary(),
        trace: &[],
        not_before_unix_ms: None,
        extensions: &[],
        body: NewBody::Inline(&notice.content),
    };
    let filing = Filing { id: *id, groups: worker.sites.group(&routes) };
    let appended = worker.log.append_notice(&new, filing, cause);
    if appended.is_err() {
        tracing::warn!(message = %cause.id, "a notice is too large for the log; it is not sent");
    }
    appended.ok()
}

/// Recipients as the log names them.
pub fn spool_recipients(places: &[u16], count: usize) -> spool::Recipients<'_> {
    if places.len() == count { spool::Recipients::All } else { spool::Recipients::Some(places) }
}

/// The message's lifetime is over: its sender hears of it.
pub async fn expire(worker: Rc<Worker>, slot: Slot) {
    let Some(handle) = worker.with_queue(|queue| queue.get(slot).cloned()) else { return };
    let site = handle.site;
    let attempt = Attempt { slot, handle, peer: None, taken: None };
    let message = match worker.load(attempt.id(), attempt.place()).await {
        Ok(message) => message,
        Err(error) => return attempt.unreadable(&worker, &error),
    };
    // What was said of this message, else what became of its site.
    let own = attempt.handle.reason.as_ref().map(|reason| reason.to_string());
    let last = own.unwrap_or_else(|| worker.sites.shared()[site.0 as usize].last_failure());
    let last = (!last.is_empty()).then(|| site_reason(&last));
    let mut judged = Judged::default();
    for place in attempt.recipients() {
        judged.bounced.push((place, BounceCause::Expired { last: last.clone() }));
    }
    attempt.finish(&worker, &message, judged).await;
}

/// A site could not be reached or does not take mail: no connection is tried for a while.
pub fn site_failed(way: &Way, words: &str) {
    let worker = &way.worker;
    let shared = way.shared();
    let now_unix_ms = worker.now_unix_ms();
    worker.metrics.connections_failed.count();
    // The connections that were opened together fail together: that is one failure of the site.
    if shared.rests_until(now_unix_ms).is_some() {
        return;
    }
    // A site that serves other connections is well: it has enough of them (421, most likely).
    if shared.established() > 0 {
        tracing::info!(site = %way.site_name(), words, "no further connection for now");
        return shared.pause(now_unix_ms + CONNECTION_PAUSE_MS);
    }
    let attempts = u16::try_from(shared.failures() + 1).unwrap_or(u16::MAX);
    let until_unix_ms = worker.retry.next_attempt(attempts, now_unix_ms, fastrand::u32(..));
    shared.fail(until_unix_ms, words);
    let site = way.site_name();
    worker.events.emit(&LogEvent {
        site: Some(&site),
        reply: Some(words),
        reason: Some("site_unreachable"),
        attempts: Some(u32::from(attempts)),
        next_attempt: Some(Moment(until_unix_ms)),
        ..LogEvent::new(EventKind::Deferred)
    });
}

/// A connection's failure in one line.
pub fn words_of_failure(failure: &ConnectionFailure) -> String {
    Reason::Connection(failure.clone()).to_string()
}

fn site_reason(words: &str) -> Reason {
    use crate::smtp::code::EnhancedCode;
    let status = EnhancedCode::new(4, 4, 1).expect("a status of RFC 3463");
    Reason::Local { status, text: words.into() }
}

/// How long a site that has connections enough is asked for no further one.
const CONNECTION_PAUSE_MS: u64 = 2_000;
/// The wait before a message is looked at again that could not be read.
const UNREADABLE_WAIT_MS: u64 = 3_600_000;
