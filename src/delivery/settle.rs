//! What becomes of a message after an attempt: carries out what
//! [`settlement`] decides - appends to the log, events, the scheduler.
//!
//! Nothing is decided here, so that the simulation, which has a shell of its own, runs the same
//! decisions.  The order of the effects matters and is theirs: the outcome is appended first; the
//! handle goes only then.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::message::{LoadError, LoadedMessage};
use super::notice;
use super::outcome::{Attempted, Reason};
use super::settlement::parcel::Parcel;
use super::settlement::site::{
    SiteFacts, SiteVerdict, after_failed_connection, after_own_shortage,
};
use super::settlement::{
    self, Effect, Handover, Hop, Judge, Paper, Part, Settlement, Told, Unreadable,
};
use crate::control::events::{Addressees, Event as LogEvent, EventKind};
use crate::control::moment::Moment;
use crate::message::MessageId;
use crate::outbound::Way;
use crate::queue::arena::Slot;
use crate::queue::handle::{Handle, State};
use crate::queue::scheduler::Event;
use crate::queue::site::{SiteIndex, SiteShared};
use crate::runtime;
use crate::smtp::client::ConnectionFailure;
use crate::smtp::code::EnhancedCode;
use crate::spool::appender::NewRecord;
use crate::spool::{self, Done, ReadError, RecordPlace, Ticket};
use crate::worker::Worker;
use crate::worker::log::{Filing, Receipt};

pub use super::settlement::spool_recipients;

/// One message on its way to one destination.
pub struct Attempt {
    slot: Slot,
    handle: Handle,
    /// Where the connection leads, which the destination may have left since; `None` without one.
    site: Option<Arc<SiteShared>>,
    peer: Option<SocketAddr>,
    /// The version and the cipher suite of its connection; `None` in clear.
    tls: Option<Rc<str>>,
    hop: Hop,
}

impl Attempt {
    /// The attempt that the scheduler has asked for; `None` if the message has gone meanwhile.
    pub fn begin(
        worker: &Rc<Worker>,
        site: SiteIndex,
        peer: Option<SocketAddr>,
        slot: Slot,
    ) -> Option<Attempt> {
        let (handle, site) = worker
            .with_queue(|queue| Some((queue.get(slot).cloned()?, queue.site(site).cloned())))?;
        let is_ours = handle.state == State::Active;
        let hop = Hop {
            remote_mta: peer.map(|peer| settlement::remote_mta(peer.ip())),
            handover: if peer.is_some() { Handover::Relayed } else { Handover::Final },
            taken: None,
        };
        is_ours.then_some(Attempt { slot, handle, site, peer, tls: None, hop })
    }

    /// Its connection is encrypted.
    pub fn over_tls(&mut self, tls: Option<Rc<str>>) {
        self.tls = tls;
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

    /// What the next hop said when it took the message, and what that means for notices.
    /// Without this word a peer is one without DSN, known by its address.
    pub fn led_to(&mut self, hop: Hop) {
        self.hop = hop;
    }

    /// The message could not be read: it stays until its lifetime is over, and somebody has to
    /// look.
    pub fn unreadable(self, worker: &Rc<Worker>, error: &LoadError) {
        self.unread(worker, error, false);
    }

    fn unread(self, worker: &Rc<Worker>, error: &LoadError, is_end: bool) {
        let (message, slot) = (self.handle.id, self.slot);
        let now_unix_ms = worker.now_unix_ms();
        if let LoadError::Read(ReadError::Late) = error {
            tracing::warn!(%message, %error, "a message is tried again in a minute");
            let recipients = self.handle.recipients.clone();
            let due_unix_ms = now_unix_ms + LATE_WAIT_MS;
            let deferred = Event::Deferred { slot, recipients, due_unix_ms, reason: None };
            return worker.queue_event(deferred);
        }
        let expires_unix_ms = self.judge(worker).retry.expires_unix_ms(message.unix_ms());
        let may_pass = error.may_pass();
        match Unreadable::judge(expires_unix_ms, is_end, may_pass, now_unix_ms) {
            Unreadable::Wait { until_unix_ms: due_unix_ms } => {
                let what = "a message could not be read from the log; it is kept";
                tracing::error!(%message, %error, "{what}");
                let recipients = self.handle.recipients.clone();
                let reason = Some(worker.shared_reason(UNREADABLE));
                worker.queue_event(Event::Deferred { slot, recipients, due_unix_ms, reason });
            }
            Unreadable::SetAside => {
                let what = "a message is damaged and its time is over; nobody can be told, and \
                            its record stays in the log";
                tracing::error!(%message, %error, "{what}");
                let (site, domain) = self.names(worker);
                worker.events.emit(&LogEvent {
                    message: Some(message),
                    site: Some(&site),
                    domain: domain.as_deref(),
                    attempts: Some(u32::from(self.handle.attempts)),
                    reply: Some(UNREADABLE),
                    reason: Some("damaged"),
                    ..LogEvent::new(EventKind::Expired)
                });
                let count = self.handle.recipients.count() as u64;
                worker.metrics.recipients_expired.add(count);
                worker.with_queue(|queue| drop(queue.finish(slot)));
            }
        }
    }

    /// Takes one outcome for each recipient of the attempt.
    pub async fn settle<A: Into<Attempted>>(
        mut self,
        worker: &Rc<Worker>,
        message: &LoadedMessage,
        outcomes: Vec<(u16, A)>,
    ) {
        let hop = std::mem::take(&mut self.hop);
        let outcomes = outcomes.into_iter().map(|(place, outcome)| (place, outcome.into()));
        let settlement =
            Settlement::of_attempt(self.part(message), &self.judge(worker), hop, outcomes);
        self.conclude(worker, message, settlement).await;
    }

    fn part<'a>(&self, message: &'a LoadedMessage) -> Part<'a> {
        Part {
            id: self.handle.id,
            envelope: message.envelope(),
            attempts_before: self.handle.attempts,
            delay_told: self.handle.delay_told,
            released: self.handle.released,
        }
    }

    /// Does what was decided.
    async fn conclude(
        &self,
        worker: &Rc<Worker>,
        message: &LoadedMessage,
        settlement: Settlement<'_>,
    ) {
        let (content, complete) = match settlement.needs_content() {
            true => content(worker, message).await,
            false => (Vec::new(), false),
        };
        let paper = Paper {
            hostname: &worker.config.hostname,
            accepted_unix_ms: message.origin().accepted_unix_ms,
            content: &content,
            complete,
        };
        // From here on nothing is awaited: nobody sees the message between two effects.
        let is_only_part = self.handle.is_only_part();
        let effects = settlement.effects(is_only_part, &paper, || worker.next_id());
        let mut appended = Vec::new();
        for effect in effects {
            self.carry_out(worker, message, effect, &mut appended);
        }
    }

    fn carry_out(
        &self,
        worker: &Rc<Worker>,
        message: &LoadedMessage,
        effect: Effect,
        appended: &mut Vec<Ticket>,
    ) {
        let slot = self.slot;
        match effect {
            Effect::Report(report) => self.report(worker, message, &report),
            Effect::Append { record, notice } => {
                let (id, segment) = (self.handle.id, self.handle.place.segment);
                let record = record.for_log(id, segment, message.envelope().recipients.len());
                let told = notice.and_then(|notice| append_notice(worker, &notice, record));
                appended.push(told.unwrap_or_else(|| append(worker, record)));
            }
            Effect::EndPart => end_part(worker, &self.handle, appended),
            Effect::Finish => drop(worker.with_queue(|queue| queue.finish(slot))),
            Effect::Wait { recipients, due_unix_ms, reason, delay_told } => {
                if delay_told {
                    worker.with_queue(|queue| queue.delay_told(slot));
                }
                let reason = reason.map(|reason| worker.shared_reason(&reason));
                worker.queue_event(Event::Deferred { slot, recipients, due_unix_ms, reason });
            }
        }
    }

    // ---- telling -------------------------------------------------------------------------

    fn report(&self, worker: &Rc<Worker>, message: &LoadedMessage, report: &settlement::Report) {
        let delay_ms = worker.now_unix_ms().saturating_sub(message.origin().accepted_unix_ms);
        let (site, domain) = self.names(worker);
        let count = report.places.len() as u64;
        let mut event = LogEvent {
            message: Some(self.handle.id),
            from: Some(message.envelope().reverse_path.as_str()),
            to: Addressees::Some(&message.envelope().recipients, &report.places),
            peer: self.peer,
            tls: self.tls.as_deref(),
            site: Some(&site),
            domain: domain.as_deref(),
            attempts: Some(u32::from(report.attempts)),
            size: Some(message.summary().octets),
            delay_ms: Some(delay_ms),
            reply: report.reply.as_deref(),
            ..LogEvent::new(EventKind::Delivered)
        };
        match report.told {
            Told::Delivered => {
                worker.metrics.messages_delivered.count();
                worker.metrics.recipients_delivered.add(count);
                worker.metrics.delivery_delay.observe(Duration::from_millis(delay_ms));
            }
            Told::Deferred { next_attempt_unix_ms, soft_bounce } => {
                event.kind = EventKind::Deferred;
                event.next_attempt = Some(Moment(next_attempt_unix_ms));
                event.soft_bounce = soft_bounce.then_some(true);
                worker.metrics.recipients_deferred.add(count);
            }
            Told::Delayed => event.kind = EventKind::Delayed,
            Told::Bounced => {
                event.kind = EventKind::Bounced;
                worker.metrics.recipients_bounced.add(count);
            }
            Told::Expired => {
                event.kind = EventKind::Expired;
                worker.metrics.recipients_expired.add(count);
            }
        }
        worker.events.emit(&event);
    }
}

impl Attempt {
    fn judge<'a>(&self, worker: &'a Worker) -> Judge<'a> {
        Judge {
            retry: &worker.course_of(&self.handle).retry,
            soft_bounce: worker.config.delivery.soft_bounce,
            now_unix_ms: worker.now_unix_ms(),
            random: fastrand::u32(..),
        }
    }

    /// Its site's name, or its destination's where there was no connection, and its domain where
    /// mail exchangers take it.
    fn names(&self, worker: &Worker) -> (String, Option<Arc<str>>) {
        let (name, domain) = worker.names_of(&self.handle);
        let site = self.site.as_ref().map(|site| site.name().to_owned());
        (site.unwrap_or(name), domain)
    }
}

/// The beginning of a message as a notice may return it, and whether it is all of it.
async fn content(worker: &Worker, message: &LoadedMessage) -> (Vec<u8>, bool) {
    // A notice without the message is better than none.
    let beginning = message.beginning(&worker.log, notice::RETURNED_OCTETS + 1).await;
    let (body, is_whole) = beginning.unwrap_or_default();
    ([message.trace(), &body].concat(), is_whole)
}

fn append(worker: &Worker, record: NewRecord<'_>) -> Ticket {
    match record {
        NewRecord::Done(done) => worker.log.append_done(&done),
        NewRecord::Defer(defer) => worker.log.append_defer(&defer),
        NewRecord::Message(_) => unreachable!("an outcome is no message"),
    }
}

/// Ends all recipients that a handle has left, without a word to their originator; gives the ticket
/// of the record that says so.
pub fn end_all(
    worker: &Rc<Worker>,
    slot: Slot,
    handle: &Handle,
    recipients: spool::Recipients<'_>,
) -> Ticket {
    let (id, segment) = (handle.id, handle.place.segment);
    let last = handle.is_only_part();
    let record = worker.log.append_done(&Done { id, segment, recipients, last });
    if !last {
        end_part(worker, handle, &[record]);
    }
    worker.with_queue(|queue| drop(queue.finish(slot)));
    record
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

/// Appends a notice together with its cause, whose ticket it gives; `None` if it cannot be sent
/// anywhere.
fn append_notice(worker: &Worker, notice: &Parcel, cause: NewRecord<'_>) -> Option<Ticket> {
    let message = notice.id;
    let Some(routes) = notice.routes(&worker.config) else {
        tracing::warn!(%message, "no route leads to the sender; this notice is not sent");
        return None;
    };
    let groups = worker.sites.group(&routes, &notice.notice.envelope);
    let filing = Filing { id: notice.id, groups };
    let appended = worker.log.append_notice(&notice.message(), filing, cause);
    if appended.is_err() {
        tracing::warn!(%message, "a notice is too large for the log; it is not sent");
    }
    appended.ok()
}

// ---- without an attempt ----------------------------------------------------------------------

/// The message's lifetime is over: its sender hears of it.
pub async fn expire(worker: Rc<Worker>, slot: Slot) {
    let Some((attempt, message)) = unattempted(&worker, slot, true).await else { return };
    if worker.is_kept_back(&attempt.handle) {
        return attempt.delete(&worker, &message);
    }
    let last = attempt.last_words(&worker);
    let places = attempt.recipients();
    let part = attempt.part(&message);
    let settlement = Settlement::of_end(part, &places, last.as_ref(), worker.now_unix_ms());
    attempt.conclude(&worker, &message, settlement).await;
}

/// The message can never be delivered, as was found without an attempt: its domain does not exist
/// or takes no mail (RFC 7505), say.  `text` is a clause that says why.
pub async fn refuse(worker: Rc<Worker>, slot: Slot, status: EnhancedCode, text: Box<str>) {
    let Some((attempt, message)) = unattempted(&worker, slot, false).await else { return };
    let (part, places) = (attempt.part(&message), attempt.recipients());
    let reason = Reason::Local { status, text };
    let settlement = Settlement::of_refusal(part, &places, &reason, &attempt.judge(&worker));
    attempt.conclude(&worker, &message, settlement).await;
}

/// The message has waited for long and no attempt comes: its sender hears of it if he wants to.
/// It then waits until `due_unix_ms`.
pub async fn delay(worker: Rc<Worker>, slot: Slot, due_unix_ms: u64) {
    let Some((attempt, message)) = unattempted(&worker, slot, false).await else { return };
    let (part, places) = (attempt.part(&message), attempt.recipients());
    let reason = attempt.last_words(&worker).unwrap_or_else(|| site_reason("it could not be sent"));
    let judge = attempt.judge(&worker);
    match Settlement::of_delay(part, &places, &reason, due_unix_ms, &judge) {
        Some(settlement) => attempt.conclude(&worker, &message, settlement).await,
        None => {
            // Else the scheduler would ask again.
            worker.with_queue(|queue| queue.delay_told(slot));
            worker.queue_event(Event::Returned { slot });
        }
    }
}

/// A handle that the scheduler has taken out of its lists, and its message, or as much of it as is
/// needed to tell its originator.  `is_end` is whether its lifetime is over.
async fn unattempted(
    worker: &Rc<Worker>,
    slot: Slot,
    is_end: bool,
) -> Option<(Attempt, LoadedMessage)> {
    let handle = worker.with_queue(|queue| queue.get(slot).cloned())?;
    let attempt = Attempt { slot, handle, site: None, peer: None, tls: None, hop: Hop::default() };
    let (id, place) = (attempt.id(), attempt.place());
    let mut loaded = worker.load(id, place).await;
    if loaded.as_ref().is_err_and(|error| !error.may_pass()) {
        loaded = LoadedMessage::load_envelope(&worker.log, id, place).await;
    }
    match loaded {
        Ok(message) => Some((attempt, message)),
        Err(error) => {
            attempt.unread(worker, &error, is_end);
            None
        }
    }
}

impl Attempt {
    /// Nobody has released a message that the edge filter kept back: it ends, and nobody is told,
    /// since its originator is forged more often than not.
    fn delete(&self, worker: &Rc<Worker>, message: &LoadedMessage) {
        let places = self.recipients();
        let recipients = spool_recipients(&places, message.envelope().recipients.len());
        end_all(worker, self.slot, &self.handle, recipients);
        worker.metrics.recipients_expired.add(places.len() as u64);
        worker.events.emit(&LogEvent {
            message: Some(self.handle.id),
            from: Some(message.envelope().reverse_path.as_str()),
            to: Addressees::Some(&message.envelope().recipients, &places),
            site: Some("quarantine"),
            reason: Some("quarantined"),
            ..LogEvent::new(EventKind::Expired)
        });
    }

    /// What was said of this message, else what became of its site.
    fn last_words(&self, worker: &Worker) -> Option<Reason> {
        let own = self.handle.reason.as_ref().map(|reason| reason.to_string());
        let destination = self.handle.destination();
        let last =
            own.unwrap_or_else(|| worker.with_queue(|queue| queue.last_failure_of(destination)));
        (!last.is_empty()).then(|| site_reason(&last))
    }
}

/// The reason in the events of a site that cannot be reached or takes no mail.
pub const UNREACHABLE: &str = "site_unreachable";
/// The reason in the events of a site where TLS is demanded and does not come about.
pub const TLS_FAILED: &str = "tls_failed";
/// The reason in the events of a smart host that does not let us in.  Nothing is said of any
/// message, whatever class its reply has, for the operator can mend it.
pub const LOGIN_FAILED: &str = "login_failed";

/// A site could not be reached or does not take mail: no connection is tried for a while.
/// `reason` is the short name for the events.
pub fn site_failed(way: &Way, reason: &'static str, words: &str) {
    site_failed_beside(way, reason, words, way.shared().established());
}

/// A site greets, and drops one message after the other without a word: it rests, although it has
/// other connections, which are no better as long as none of them has brought a word.
pub fn site_silent(way: &Way) {
    site_failed_beside(way, UNREACHABLE, "it drops every message without a word", 0);
}

fn site_failed_beside(way: &Way, reason: &'static str, words: &str, established: u32) {
    let worker = &way.worker;
    let shared = way.shared();
    let now_unix_ms = worker.now_unix_ms();
    worker.metrics.connections_failed.count();
    let facts = SiteFacts {
        rests: shared.rests_until(now_unix_ms).is_some(),
        established,
        failures: shared.failures(),
    };
    match after_failed_connection(facts, way.retry(), now_unix_ms, fastrand::u32(..)) {
        SiteVerdict::Nothing => {}
        SiteVerdict::Pause { until_unix_ms } => {
            tracing::info!(site = %way.site_name(), words, "no further connection for now");
            shared.pause(until_unix_ms);
        }
        SiteVerdict::Rest { until_unix_ms, failures } => {
            shared.fail(until_unix_ms, words);
            let site = way.site_name();
            worker.events.emit(&LogEvent {
                site: Some(site),
                reply: Some(words),
                reason: Some(reason),
                attempts: Some(u32::from(failures)),
                next_attempt: Some(Moment(until_unix_ms)),
                ..LogEvent::new(EventKind::Deferred)
            });
        }
    }
}

/// This machine had nothing left for a connection: the site is not to blame, and pauses.
pub fn own_shortage(way: &Way, words: &str) {
    let (worker, shared) = (&way.worker, way.shared());
    let now_unix_ms = worker.now_unix_ms();
    worker.metrics.connections_failed.count();
    let rests = shared.rests_until(now_unix_ms).is_some();
    if let SiteVerdict::Pause { until_unix_ms } = after_own_shortage(rests, now_unix_ms) {
        tracing::warn!(site = %way.site_name(), words, "this machine is short of resources");
        shared.pause(until_unix_ms);
    }
}

/// A connection's failure in one line.
pub fn words_of_failure(failure: &ConnectionFailure) -> String {
    Reason::Connection(failure.clone()).to_string()
}

/// Words about a site as a reason: with the status at their front, else that of a host which
/// does not answer (RFC 3463).
fn site_reason(words: &str) -> Reason {
    let given = EnhancedCode::at_front(words.as_bytes()).filter(|status| status.class() == 4);
    let text = given.and_then(|_| words.split_once(' ')).map_or(words, |(_, text)| text);
    let no_answer = || EnhancedCode::new(4, 4, 1).expect("a status of RFC 3463");
    Reason::Local { status: given.unwrap_or_else(no_answer), text: text.into() }
}

/// What a message waits for that cannot be read.
const UNREADABLE: &str = "the message could not be read from the log";
/// The wait before a message is looked at again whose reading took too long.
const LATE_WAIT_MS: u64 = 60_000;
