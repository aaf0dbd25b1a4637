//! What becomes of a message after an attempt: outcomes are judged, written to the log, told in
//! the events, and given back to the scheduler.
//!
//! The order matters.  The outcome is appended first; the handle goes only then, so that nothing
//! is ever both out of the queue and not on its way to the log.  A bounce's notice and the DONE
//! of its cause are appended as one, and count together or not at all.

use std::net::SocketAddr;
use std::rc::Rc;

use super::message::{LoadError, LoadedMessage, QUOTED_OCTETS};
use super::notice;
use super::outcome::{Attempted, BounceCause, Decision, Progress, Reason};
use super::sites::route_of;
use crate::control::events::{Addressees, Event as LogEvent, EventKind};
use crate::control::moment::Moment;
use crate::message::{Durability, MessageId, Origin};
use crate::outbound::Way;
use crate::queue::arena::Slot;
use crate::queue::handle::{Handle, Recipients, State};
use crate::queue::scheduler::Event;
use crate::queue::site::SiteIndex;
use crate::smtp::client::ConnectionFailure;
use crate::spool::{self, Defer, DeferState, Done, NewBody, NewMessage, RecordPlace};
use crate::worker::Worker;
use crate::worker::log::Filing;

/// One message on its way to one site.
pub struct Attempt {
    slot: Slot,
    handle: Handle,
    peer: Option<SocketAddr>,
}

/// The recipients of an attempt by what is to be done about them.
#[derive(Default)]
struct Judged {
    /// Nothing more, now or after their notice; ascending.
    done: Vec<u16>,
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
        is_ours.then_some(Attempt { slot, handle, peer })
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
    pub fn recipients(&self, message: &LoadedMessage) -> Vec<u16> {
        self.handle.recipients.indices(message.envelope().recipients.len())
    }

    /// The message could not be read: it stays, and somebody has to look.
    pub fn unreadable(self, worker: &Rc<Worker>, error: &LoadError) {
        let message = self.handle.id;
        tracing::error!(%message, %error, "a message could not be read from the log; it is kept");
        let due_unix_ms = worker.now_unix_ms() + UNREADABLE_WAIT_MS;
        let recipients = self.handle.recipients.clone();
        worker.queue_event(Event::Deferred { slot: self.slot, recipients, due_unix_ms });
    }

    /// Takes one outcome for each recipient of the attempt.
    pub fn settle<A: Into<Attempted>>(
        self,
        worker: &Rc<Worker>,
        message: &LoadedMessage,
        outcomes: Vec<(u16, A)>,
    ) {
        let now_unix_ms = worker.now_unix_ms();
        let attempts = self.handle.attempts.saturating_add(1);
        let progress =
            Progress { accepted_unix_ms: message.origin().accepted_unix_ms, attempts };
        let random = fastrand::u32(..);
        let mut judged = Judged::default();
        for (place, outcome) in outcomes {
            judged.add(place, outcome.into(), |attempted| {
                worker.retry.judge(attempted, progress, now_unix_ms, random)
            });
        }
        self.finish(worker, message, judged);
    }

    /// Writes down what was judged.
    fn finish(self, worker: &Rc<Worker>, message: &LoadedMessage, mut judged: Judged) {
        judged.done.sort_unstable();
        self.report(worker, message, &judged);
        let left: Vec<u16> = {
            let deferred = judged.deferred.iter().map(|(place, _)| *place);
            let mut left: Vec<u16> = deferred.chain(judged.at_once.iter().copied()).collect();
            left.sort_unstable();
            left
        };
        let is_last = left.is_empty() && self.handle.is_last_part();
        self.append_done(worker, message, &judged, is_last);
        self.append_defer(worker, &judged);
        if left.is_empty() {
            worker.with_queue(|queue| queue.finish(self.slot));
            return;
        }
        // Those that go at once do not wait for the others; the others then go with them.
        let due_unix_ms = if judged.at_once.is_empty() { judged.due_unix_ms } else { 0 };
        let recipients = if left.len() == message.envelope().recipients.len() {
            Recipients::All
        } else {
            Recipients::Some(left.into())
        };
        worker.queue_event(Event::Deferred { slot: self.slot, recipients, due_unix_ms });
    }

    fn append_done(
        &self,
        worker: &Rc<Worker>,
        message: &LoadedMessage,
        judged: &Judged,
        is_last: bool,
    ) {
        if judged.done.is_empty() {
            return;
        }
        let all = judged.done.len() == message.envelope().recipients.len();
        let done = Done {
            id: self.handle.id,
            segment: self.handle.place.segment,
            recipients: match all {
                true => spool::Recipients::All,
                false => spool::Recipients::Some(&judged.done),
            },
            is_last,
        };
        match self.notice(worker, message, &judged.bounced) {
            Some(notice) if notice.append(worker, &done) => {}
            _ => worker.log.append_done(&done),
        }
    }

    fn append_defer(&self, worker: &Rc<Worker>, judged: &Judged) {
        let Some((_, reason)) = judged.deferred.first() else { return };
        let mut places: Vec<u16> = judged.deferred.iter().map(|(place, _)| *place).collect();
        places.sort_unstable();
        worker.log.append_defer(&Defer {
            id: self.handle.id,
            segment: self.handle.place.segment,
            recipients: spool::Recipients::Some(&places),
            state: DeferState::Deferred,
            next_attempt_unix_ms: judged.due_unix_ms,
            attempts: self.handle.attempts.saturating_add(1),
            reply: &reason.to_string(),
        });
    }

    // ---- telling -------------------------------------------------------------------------

    fn report(&self, worker: &Rc<Worker>, message: &LoadedMessage, judged: &Judged) {
        let delay_ms =
            worker.now_unix_ms().saturating_sub(message.origin().accepted_unix_ms);
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
            worker.events.emit(&LogEvent { to, ..event });
            worker.metrics.delivered(judged.delivered.len() as u64, delay_ms);
        }
        if let Some((_, reason)) = judged.deferred.first() {
            let places: Vec<u16> = judged.deferred.iter().map(|(place, _)| *place).collect();
            worker.events.emit(&LogEvent {
                kind: EventKind::Deferred,
                to: Addressees::Some(recipients, &places),
                reply: Some(&reason.to_string()),
                next_attempt: Some(Moment::from_unix_ms(judged.due_unix_ms)),
                ..event
            });
            worker.metrics.deferred(places.len() as u64);
        }
        for (place, cause) in &judged.bounced {
            let kind = match cause {
                BounceCause::Failed(_) => EventKind::Bounced,
                BounceCause::Expired { .. } => EventKind::Expired,
            };
            let reply = cause.reason().map(ToString::to_string);
            let places = [*place];
            let to = Addressees::Some(recipients, &places);
            worker.events.emit(&LogEvent { kind, to, reply: reply.as_deref(), ..event });
            worker.metrics.bounced(kind == EventKind::Expired);
        }
    }
}

impl Judged {
    fn add(
        &mut self,
        place: u16,
        attempted: Attempted,
        judge: impl FnOnce(Attempted) -> Decision,
    ) {
        let reason = match &attempted {
            Attempted::Deferred(reason) => Some(reason.clone()),
            _ => None,
        };
        match judge(attempted) {
            Decision::Done => {
                self.done.push(place);
                self.delivered.push(place);
            }
            Decision::Bounce(cause) => {
                self.done.push(place);
                self.bounced.push((place, cause));
            }
            Decision::AtOnce => self.at_once.push(place),
            Decision::Defer { next_attempt_unix_ms } => {
                self.due_unix_ms = next_attempt_unix_ms;
                let reason = reason.expect("only what was deferred is tried again");
                self.deferred.push((place, reason));
            }
        }
    }
}

/// The message's lifetime is over: its sender hears of it.
pub async fn expire(worker: Rc<Worker>, slot: Slot) {
    let Some(handle) = worker.with_queue(|queue| queue.get(slot).cloned()) else { return };
    let site = handle.site;
    let attempt = Attempt { slot, handle, peer: None };
    let message = match worker.load(attempt.id(), attempt.place()).await {
        Ok(message) => message,
        Err(error) => return attempt.unreadable(&worker, &error),
    };
    let last = worker.sites.shared()[site.0 as usize].last_failure();
    let last = (!last.is_empty()).then(|| site_reason(&last));
    let mut judged = Judged::default();
    for place in attempt.recipients(&message) {
        judged.done.push(place);
        judged.bounced.push((place, BounceCause::Expired { last: last.clone() }));
    }
    attempt.finish(&worker, &message, judged);
}

/// A site could not be reached or does not take mail: no connection is tried for a while.
pub fn site_failed(way: &Way, words: &str) {
    let worker = &way.worker;
    let shared = &worker.sites.shared()[way.site.0 as usize];
    let now_unix_ms = worker.now_unix_ms();
    let attempts = u16::try_from(shared.failures() + 1).unwrap_or(u16::MAX);
    let until_unix_ms = worker.retry.next_attempt(attempts, now_unix_ms, fastrand::u32(..));
    shared.fail(until_unix_ms, words);
    worker.metrics.outbound_failed();
    let site = worker.sites.name(way.site);
    worker.events.emit(&LogEvent {
        site: Some(&site),
        reply: Some(words),
        reason: Some("site_unreachable"),
        attempts: Some(u32::from(attempts)),
        next_attempt: Some(Moment::from_unix_ms(until_unix_ms)),
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

/// The wait before a message is looked at again that could not be read.
const UNREADABLE_WAIT_MS: u64 = 3_600_000;
