//! What becomes of a message after an attempt: judged, appended and given back to the scheduler
//! in the order of `delivery::settle`.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use mailrace::delivery::notice::{
    FailedRecipient, Notice, Original, RETURNED_OCTETS, Reporter, failure_notice,
};
use mailrace::delivery::outcome::{Attempted, BounceCause, Decision, Progress, Reason};
use mailrace::delivery::settle::spool_recipients;
use mailrace::delivery::sites::route_of;
use mailrace::message::{Durability, MessageId, Origin};
use mailrace::queue::arena::Slot;
use mailrace::queue::handle::{Handle, Recipients};
use mailrace::queue::scheduler::Event;
use mailrace::queue::site::SiteIndex;
use mailrace::smtp::client::RecipientOutcome;
use mailrace::smtp::data::ChunkScanner;
use mailrace::spool::{self, Defer, DeferState, Done, NewBody, NewMessage, NewRecord, Ticket};
use mailrace::worker::log::Filing;

use super::books::Key;
use super::message::{Loaded, keys, load};
use super::plan::Plant;
use super::scene::Scene;
use super::worker::{PartEnd, Shared, Waiting, Worker};

/// One message on its way to one site.
pub struct Attempt {
    pub slot: Slot,
    pub handle: Handle,
    /// Whether it is made over a connection, and is not an expiry.
    pub has_peer: bool,
}

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
    /// The message could not be read: in a world whose bits do not rot, a mistake of the log.
    pub fn unreadable(self, scene: &mut Scene, worker: &mut Worker, shared: &Shared, words: &str) {
        let Attempt { slot, handle, .. } = self;
        scene.books.problem(format!("{} cannot be read: {words}", handle.id));
        let due_unix_ms = scene.now_unix_ms() + 3_600_000;
        let recipients = handle.recipients;
        worker.queue_event(
            shared,
            scene,
            Event::Deferred { slot, recipients, due_unix_ms, reason: None },
        );
    }

    /// Takes one outcome for each recipient of the attempt.
    pub fn settle(
        self,
        scene: &mut Scene,
        worker: &mut Worker,
        shared: &Shared,
        message: &Loaded,
        outcomes: Vec<(u16, RecipientOutcome)>,
    ) {
        let progress = Progress {
            accepted_unix_ms: message.stored.origin.accepted_unix_ms,
            attempts: self.handle.attempts.saturating_add(1),
        };
        let mut judged = Judged::default();
        let random = scene.random.u32(..);
        for (place, outcome) in outcomes {
            let attempted = Attempted::from(outcome);
            let reason = match &attempted {
                Attempted::Deferred(reason) => Some(reason.clone()),
                _ => None,
            };
            match shared.retry.judge(attempted, progress, scene.now_unix_ms(), random) {
                Decision::Done => judged.delivered.push(place),
                Decision::Bounce(cause) => judged.bounced.push((place, cause)),
                Decision::AtOnce => judged.at_once.push(place),
                Decision::Defer { next_attempt_unix_ms } => {
                    judged.due_unix_ms = next_attempt_unix_ms;
                    judged.deferred.push((place, reason.expect("it was deferred")));
                }
            }
        }
        self.finish(scene, worker, shared, message, judged);
    }

    fn finish(
        self,
        scene: &mut Scene,
        worker: &mut Worker,
        shared: &Shared,
        message: &Loaded,
        mut judged: Judged,
    ) {
        let deferred = judged.deferred.iter().map(|(place, _)| *place);
        let mut left: Vec<u16> = deferred.chain(judged.at_once.iter().copied()).collect();
        left.sort_unstable();
        let is_last = left.is_empty() && self.is_last(scene);
        judged.delivered.sort_unstable();
        let ends = self.append_done(scene, worker, shared, message, &judged, is_last);
        if left.is_empty() && !is_last && scene.plan.plant != Plant::EarlyLast {
            self.end_part(worker, &ends);
        }
        self.append_defer(scene, worker, &judged);
        let slot = self.slot;
        if left.is_empty() && scene.plan.plant == Plant::Twice && scene.chance(100) {
            return worker.queue_event(shared, scene, Event::Returned { slot });
        }
        let forgets = scene.plan.plant == Plant::Forgotten && scene.chance(300);
        if left.is_empty() || forgets {
            worker.queue.finish(slot);
            return;
        }
        let due_unix_ms = if judged.at_once.is_empty() { judged.due_unix_ms } else { 0 };
        let recipients = Recipients::of(left, message.envelope.recipients.len());
        let reason = judged.deferred.first();
        let reason = reason.map(|(_, reason)| Arc::new(reason.to_string().into()));
        let deferred = Event::Deferred { slot, recipients, due_unix_ms, reason };
        worker.queue_event(shared, scene, deferred);
    }

    fn is_last(&self, scene: &Scene) -> bool {
        if scene.plan.plant == Plant::EarlyLast {
            return self.handle.end_part();
        }
        self.handle.is_only_part()
    }

    /// The part ends once these records are in the log; see `delivery::settle::end_part`.
    fn end_part(&self, worker: &mut Worker, ends: &[Ticket]) {
        let end = PartEnd { handle: self.handle.clone(), left: Cell::new(ends.len()) };
        let end = Rc::new(end);
        for ticket in ends {
            if let Some(Waiting::Done { part, .. }) = worker.waiting.get_mut(ticket) {
                *part = Some(end.clone());
            }
        }
    }

    fn append_done(
        &self,
        scene: &mut Scene,
        worker: &mut Worker,
        shared: &Shared,
        message: &Loaded,
        judged: &Judged,
        is_last: bool,
    ) -> Vec<Ticket> {
        let mut ends = Vec::new();
        let count = message.envelope.recipients.len();
        let (id, segment) = (self.handle.id, self.handle.place.segment);
        if !judged.delivered.is_empty() {
            let last = is_last && judged.bounced.is_empty();
            let recipients = spool_recipients(&judged.delivered, count);
            let done = Done { id, segment, recipients, last };
            ends.extend(note_done(scene, worker, message, &judged.delivered, &done));
        }
        if judged.bounced.is_empty() {
            return ends;
        }
        let mut places: Vec<u16> = judged.bounced.iter().map(|(place, _)| *place).collect();
        places.sort_unstable();
        let recipients = spool_recipients(&places, count);
        let done = Done { id, segment, recipients, last: is_last };
        let notice = self.notice(scene, worker, shared, message, &judged.bounced);
        let notice = notice.filter(|_| scene.plan.plant != Plant::LostNotice);
        ends.extend(match notice {
            Some((id, notice)) => {
                Some(append_notice(scene, worker, shared, message, id, &notice, &places, &done))
            }
            None => note_done(scene, worker, message, &places, &done),
        });
        ends
    }

    fn notice(
        &self,
        scene: &mut Scene,
        worker: &mut Worker,
        shared: &Shared,
        message: &Loaded,
        bounced: &[(u16, BounceCause)],
    ) -> Option<(MessageId, Notice)> {
        let (body, complete) = message.beginning(RETURNED_OCTETS + 1);
        let content = [&*message.stored.trace, &body].concat();
        let original = Original {
            envelope: &message.envelope,
            accepted_unix_ms: message.stored.origin.accepted_unix_ms,
            content: &content,
            complete,
        };
        let now_unix_ms = scene.now_unix_ms();
        let id = worker.ids.next(now_unix_ms);
        let reporter = Reporter { hostname: &shared.config.hostname, id, now_unix_ms };
        let failed: Vec<_> = bounced
            .iter()
            .map(|(place, cause)| FailedRecipient {
                index: *place,
                cause,
                remote_mta: self.has_peer.then_some("127.0.0.1"),
                last_attempt_unix_ms: self.has_peer.then_some(now_unix_ms),
            })
            .collect();
        failure_notice(&reporter, &original, &failed).map(|notice| (id, notice))
    }

    fn append_defer(&self, scene: &mut Scene, worker: &mut Worker, judged: &Judged) {
        let Some((_, reason)) = judged.deferred.first() else { return };
        let mut places: Vec<u16> = judged.deferred.iter().map(|(place, _)| *place).collect();
        places.sort_unstable();
        let defer = Defer {
            id: self.handle.id,
            segment: self.handle.place.segment,
            recipients: spool::Recipients::Some(&places),
            state: DeferState::Deferred,
            next_attempt_unix_ms: judged.due_unix_ms,
            attempts: self.handle.attempts.saturating_add(1),
            reply: &reason.to_string(),
        };
        worker.appender.append_defer(&defer, scene.now());
    }
}

/// Appends the end of recipients, and lets the books know when it is in the log.
fn note_done(
    scene: &mut Scene,
    worker: &mut Worker,
    message: &Loaded,
    places: &[u16],
    done: &Done<'_>,
) -> Option<Ticket> {
    let keys = keys(message, places);
    keys.iter().for_each(|key| scene.books.told(key));
    scene.tempt(50);
    if scene.plan.plant == Plant::LostDone && scene.chance(100) {
        return None;
    }
    let ticket = worker.appender.append_done(done, scene.now());
    let ends = everybody(message, done);
    worker.waiting.insert(ticket, Waiting::Done { keys, ends, part: None });
    Some(ticket)
}

/// All of a message's recipients, if the DONE ends it.
fn everybody(message: &Loaded, done: &Done<'_>) -> Vec<Key> {
    let count = if done.last { message.envelope.recipients.len() as u16 } else { 0 };
    keys(message, &Vec::from_iter(0..count))
}

/// Appends a notice together with the end of its cause, whose ticket it gives.
#[allow(clippy::too_many_arguments)] // The twin of a method of many fields.
fn append_notice(
    scene: &mut Scene,
    worker: &mut Worker,
    shared: &Shared,
    message: &Loaded,
    id: MessageId,
    notice: &Notice,
    places: &[u16],
    cause: &Done<'_>,
) -> Ticket {
    let paths = notice.envelope.recipients.iter().map(|recipient| &recipient.path);
    let routes: Option<Vec<_>> = paths.map(|path| route_of(&shared.config, path, false)).collect();
    let routes = routes.expect("every sender of a world has a route");
    let mut scanner = ChunkScanner::new();
    scanner.begin_chunk(notice.content.len() as u64);
    scanner.scan(&notice.content);
    let local = SocketAddr::from((IpAddr::V4(Ipv4Addr::LOCALHOST), 0));
    let new = NewMessage {
        id,
        durability: Durability::Fsync,
        envelope: &notice.envelope,
        origin: &Origin {
            client: local,
            listener: local,
            helo: shared.config.hostname.clone(),
            accepted_unix_ms: scene.now_unix_ms(),
        },
        summary: &scanner.summary(),
        trace: &[],
        not_before_unix_ms: None,
        extensions: &[],
        body: NewBody::Inline(&notice.content),
    };
    let filing = Filing { id, groups: shared.sites.group(&routes) };
    let keys = keys(message, places);
    scene.trace(|| format!("notice {id} for {keys:?}"));
    keys.iter().for_each(|key| scene.books.told(key));
    scene.tempt(200);
    let records = [NewRecord::Message(new), NewRecord::Done(*cause)];
    let ticket = worker.appender.append_group(&records, scene.now());
    let ticket = ticket.expect("a notice is far shorter than a record may be");
    worker.waiting.insert(ticket, Waiting::Notice { filing });
    let end = Ticket(ticket.0 + 1);
    let ends = everybody(message, cause);
    worker.waiting.insert(end, Waiting::Done { keys, ends, part: None });
    end
}

impl Worker {
    /// The message's lifetime is over: its sender hears of it.
    pub fn expire(&mut self, shared: &Shared, scene: &mut Scene, slot: Slot) {
        let Some(handle) = self.queue.get(slot).cloned() else { return };
        let attempt = Attempt { slot, handle, has_peer: false };
        let message = match load(self, shared, attempt.handle.id, attempt.handle.place) {
            Ok(message) => message,
            Err(words) => return attempt.unreadable(scene, self, shared, &words),
        };
        let places = attempt.handle.recipients.places();
        scene.books.attempt(&keys(&message, &places));
        let mut judged = Judged::default();
        let expired = |place| (place, BounceCause::Expired { last: None });
        judged.bounced = places.into_iter().map(expired).collect();
        attempt.finish(scene, self, shared, &message, judged);
    }

    /// A site could not be reached or does not take mail: it rests for a while.
    pub fn site_failed(
        &mut self,
        shared: &Shared,
        scene: &mut Scene,
        site: SiteIndex,
        words: &str,
    ) {
        let state = &shared.sites.shared()[site.0 as usize];
        let attempts = u16::try_from(state.failures() + 1).unwrap_or(u16::MAX);
        let random = scene.random.u32(..);
        state.fail(shared.retry.next_attempt(attempts, scene.now_unix_ms(), random), words);
    }
}
