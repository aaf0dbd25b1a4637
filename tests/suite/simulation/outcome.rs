//! The shell around the library's settlement: what `delivery::settle` carries out with a log and a
//! loop, carried out in memory; and the mistakes that a test may plant there.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use mailrace::delivery::notice::RETURNED_OCTETS;
use mailrace::delivery::outcome::Attempted;
use mailrace::delivery::outcome::Reason;
use mailrace::delivery::settlement::parcel::Parcel;
use mailrace::delivery::settlement::site::{SiteFacts, SiteVerdict, after_failed_connection};
use mailrace::delivery::settlement::{
    Effect, Hop, Judge, Paper, Part, Record, Settlement, Unreadable,
};
use mailrace::queue::arena::Slot;
use mailrace::queue::destination::Verdict;
use mailrace::queue::handle::Handle;
use mailrace::queue::scheduler::Event;
use mailrace::queue::site::{SiteIndex, SiteShared};
use mailrace::smtp::code::EnhancedCode;
use mailrace::spool::{self, NewRecord, Ticket};
use mailrace::worker::log::Filing;

use super::books::Key;
use super::message::{Loaded, Unread, keys, load, load_envelope};
use super::plan::{LIFETIME_S, Plant};
use super::scene::Scene;
use super::worker::{PartEnd, Shared, Waiting, Worker};

/// One message on its way to one site.
pub struct Attempt {
    pub slot: Slot,
    pub handle: Handle,
}

impl Attempt {
    /// The message could not be read: in a world whose bits do not rot, a mistake of the log.
    pub fn unreadable(
        self,
        scene: &mut Scene,
        worker: &mut Worker,
        shared: &Shared,
        error: &Unread,
        is_end: bool,
    ) {
        let id = self.handle.id;
        if !scene.books.may_be_damaged() {
            scene.books.problem(format!("{id} cannot be read: {error}"));
        }
        let now_unix_ms = scene.now_unix_ms();
        let ever = scene.plan.plant == Plant::EverWaiting;
        let expires_unix_ms = id.unix_ms() + LIFETIME_S * 1000;
        match Unreadable::judge(expires_unix_ms, is_end, ever, now_unix_ms) {
            Unreadable::Wait { until_unix_ms: due_unix_ms } => {
                let (slot, recipients) = (self.slot, self.handle.recipients);
                let reason = Some(Arc::new(error.to_string().into()));
                let deferred = Event::Deferred { slot, recipients, due_unix_ms, reason };
                worker.queue_event(shared, scene, deferred);
            }
            Unreadable::SetAside => {
                scene.happens("a message is set aside");
                scene.books.set_aside(id);
                worker.queue.finish(self.slot);
            }
        }
    }

    /// Takes one outcome for each recipient of the attempt.
    pub fn settle(
        self,
        scene: &mut Scene,
        worker: &mut Worker,
        shared: &Shared,
        message: &Loaded,
        hop: Hop,
        mut outcomes: Vec<(u16, Attempted)>,
    ) {
        if scene.plan.plant == Plant::HopefulLoss {
            outcomes.iter_mut().for_each(|(_, attempted)| hope(attempted));
        }
        if scene.plan.plant == Plant::HalfHeard && outcomes.len() > 1 {
            outcomes.pop();
        }
        let judge = shared.judge(scene, worker, &self.handle);
        let settlement = Settlement::of_attempt(self.part(message), &judge, hop, outcomes);
        self.conclude(scene, worker, shared, message, settlement);
    }

    fn part<'a>(&self, message: &'a Loaded) -> Part<'a> {
        Part {
            id: self.handle.id,
            envelope: &message.envelope,
            attempts_before: self.handle.attempts,
            delay_told: self.handle.delay_told,
            released: self.handle.released,
        }
    }

    fn conclude(
        self,
        scene: &mut Scene,
        worker: &mut Worker,
        shared: &Shared,
        message: &Loaded,
        settlement: Settlement<'_>,
    ) {
        let (body, complete) = message.beginning(RETURNED_OCTETS + 1);
        let content = [&*message.stored.trace, &body].concat();
        let paper = Paper {
            hostname: &shared.config.hostname,
            accepted_unix_ms: message.stored.origin.accepted_unix_ms,
            content: &content,
            complete,
        };
        let is_only_part = match scene.plan.plant {
            Plant::EarlyLast => self.handle.end_part(),
            _ => self.handle.is_only_part(),
        };
        let now_unix_ms = scene.now_unix_ms();
        let ids = &mut worker.ids;
        let effects = settlement.effects(is_only_part, &paper, || ids.next(now_unix_ms));
        let mut appended = Vec::new();
        for effect in effects {
            self.carry_out(scene, worker, shared, message, effect, &mut appended);
        }
    }

    fn carry_out(
        &self,
        scene: &mut Scene,
        worker: &mut Worker,
        shared: &Shared,
        message: &Loaded,
        effect: Effect,
        appended: &mut Vec<Ticket>,
    ) {
        let (slot, plant) = (self.slot, scene.plan.plant);
        match effect {
            Effect::Report(_) => {}
            Effect::Append { record, notice } => {
                let notice = notice.filter(|_| plant != Plant::LostNotice);
                appended.extend(self.append(scene, worker, shared, message, &record, notice));
            }
            Effect::EndPart if plant == Plant::EarlyLast => {}
            Effect::EndPart => self.end_part(worker, appended),
            Effect::Finish if plant == Plant::Twice && scene.chance(100) => {
                worker.queue_event(shared, scene, Event::Returned { slot });
            }
            Effect::Finish => drop(worker.queue.finish(slot)),
            Effect::Wait { .. } if plant == Plant::Forgotten && scene.chance(300) => {
                worker.queue.finish(slot);
            }
            Effect::Wait { recipients, due_unix_ms, reason, delay_told } => {
                if delay_told && plant != Plant::TwiceLate {
                    worker.queue.delay_told(slot);
                }
                let reason = reason.map(|reason| Arc::new(reason.into()));
                let deferred = Event::Deferred { slot, recipients, due_unix_ms, reason };
                worker.queue_event(shared, scene, deferred);
            }
        }
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

    /// Appends an outcome, and lets the books know of an end now and when it is in the log.
    fn append(
        &self,
        scene: &mut Scene,
        worker: &mut Worker,
        shared: &Shared,
        message: &Loaded,
        record: &Record,
        notice: Option<Box<Parcel>>,
    ) -> Option<Ticket> {
        let count = message.envelope.recipients.len();
        let mut for_log = record.for_log(self.handle.id, self.handle.place.segment, count);
        let plant = scene.plan.plant;
        if let (Plant::DoneForAll, NewRecord::Done(done)) = (plant, &mut for_log) {
            done.recipients = spool::Recipients::All;
        }
        let (ended, last) = match record {
            Record::Done { places, last } => (keys(message, places), *last),
            Record::Defer { .. } => (Vec::new(), false),
        };
        if let Record::Defer { places, next_attempt_unix_ms, .. } = record {
            scene.books.is_to_wait(&keys(message, places), *next_attempt_unix_ms);
        }
        ended.iter().for_each(|key| scene.books.told(key));
        scene.tempt(if notice.is_some() { 200 } else { 50 });
        let ticket = match notice {
            Some(notice) => append_notice(scene, worker, shared, &notice, for_log),
            None => {
                let loses_permil = match (record, plant) {
                    (Record::Done { .. }, Plant::LostDone) => 100,
                    (Record::Defer { .. }, Plant::LostDefer) => 500,
                    _ => 0,
                };
                if loses_permil > 0 && scene.chance(loses_permil) {
                    return None;
                }
                match for_log {
                    NewRecord::Done(done) => worker.appender.append_done(&done, scene.now()),
                    NewRecord::Defer(defer) => worker.appender.append_defer(&defer, scene.now()),
                    NewRecord::Message(_) => unreachable!("an outcome is no message"),
                }
            }
        };
        if let Record::Done { .. } = record {
            let ends = everybody(message, last);
            worker.waiting.insert(ticket, Waiting::Done { keys: ended, ends, part: None });
        }
        if let Record::Defer { places, next_attempt_unix_ms, .. } = record {
            let (keys, until_unix_ms) = (keys(message, places), *next_attempt_unix_ms);
            worker.waiting.insert(ticket, Waiting::Defer { keys, until_unix_ms });
        }
        Some(ticket)
    }
}

/// All of a message's recipients, if the DONE ends it.
fn everybody(message: &Loaded, last: bool) -> Vec<Key> {
    let count = if last { message.envelope.recipients.len() as u16 } else { 0 };
    keys(message, &Vec::from_iter(0..count))
}

/// Appends a notice together with its cause, whose ticket it gives.
fn append_notice(
    scene: &mut Scene,
    worker: &mut Worker,
    shared: &Shared,
    notice: &Parcel,
    cause: NewRecord<'_>,
) -> Ticket {
    scene.trace(|| format!("notice {} about {cause:?}", notice.id));
    let routes = notice.routes(&shared.config).expect("every sender of a world has a route");
    let groups = shared.sites.group(&routes, &notice.notice.envelope);
    let filing = Filing { id: notice.id, groups };
    scene.books.notice_appended();
    if scene.plan.plant == Plant::LoneNotice {
        let alone = [NewRecord::Message(notice.message())];
        let ticket = worker.appender.append_group(&alone, scene.now());
        worker.waiting.insert(ticket.expect("it is short"), Waiting::Notice { filing });
        // Somebody else's batch goes in between.
        while let Some(batch) = worker.appender.flush(scene.now()) {
            worker.sealed.push(batch);
        }
        return match cause {
            NewRecord::Done(done) => worker.appender.append_done(&done, scene.now()),
            NewRecord::Defer(defer) => worker.appender.append_defer(&defer, scene.now()),
            NewRecord::Message(_) => unreachable!("a message is no cause"),
        };
    }
    let records = [NewRecord::Message(notice.message()), cause];
    let ticket = worker.appender.append_group(&records, scene.now());
    let ticket = ticket.expect("a notice is far shorter than a record may be");
    worker.waiting.insert(ticket, Waiting::Notice { filing });
    Ticket(ticket.0 + 1)
}

/// Takes a loss behind the last octet for a word of the peer.
fn hope(attempted: &mut Attempted) {
    if let Attempted::Deferred(Reason::Connection(failure)) = attempted
        && failure.possible_duplicate()
    {
        *attempted = Attempted::Delivered;
    }
}

impl Shared {
    fn judge(&self, scene: &mut Scene, worker: &Worker, handle: &Handle) -> Judge<'_> {
        let destination = worker.queue.destination(handle.destination());
        let course = destination.expect("one with messages stays").course;
        Judge {
            retry: &self.sites.course(course).retry,
            soft_bounce: self.config.delivery.soft_bounce,
            now_unix_ms: scene.now_unix_ms(),
            random: scene.random.u32(..),
        }
    }
}

impl Worker {
    /// The message's lifetime is over: its sender hears of it.
    pub fn expire(&mut self, shared: &Shared, scene: &mut Scene, slot: Slot) {
        let unattempted = self.unattempted(shared, scene, slot, true);
        let Some((attempt, message)) = unattempted else { return };
        scene.happens("a message expires");
        let places = attempt.handle.recipients.places();
        scene.books.attempt(&keys(&message, &places));
        let part = attempt.part(&message);
        let settlement = Settlement::of_end(part, &places, None, scene.now_unix_ms());
        attempt.conclude(scene, self, shared, &message, settlement);
    }

    /// The message can never be delivered, as its domain's DNS says.
    pub fn refuse(&mut self, shared: &Shared, scene: &mut Scene, slot: Slot, verdict: &Verdict) {
        let unattempted = self.unattempted(shared, scene, slot, false);
        let Some((attempt, message)) = unattempted else { return };
        let places = attempt.handle.recipients.places();
        scene.books.attempt(&keys(&message, &places));
        let reason = Reason::Local { status: verdict.status, text: verdict.text.clone() };
        let judge = shared.judge(scene, self, &attempt.handle);
        let settlement = Settlement::of_refusal(attempt.part(&message), &places, &reason, &judge);
        attempt.conclude(scene, self, shared, &message, settlement);
    }

    /// The message waits for a destination that cannot be reached, and is late.
    pub fn delay(&mut self, shared: &Shared, scene: &mut Scene, slot: Slot, due_unix_ms: u64) {
        let unattempted = self.unattempted(shared, scene, slot, false);
        let Some((attempt, message)) = unattempted else { return };
        let places = attempt.handle.recipients.places();
        let status = EnhancedCode::new(4, 4, 1).expect("a status of RFC 3463");
        let reason = Reason::Local { status, text: "nobody answers".into() };
        let judge = shared.judge(scene, self, &attempt.handle);
        let part = attempt.part(&message);
        match Settlement::of_delay(part, &places, &reason, due_unix_ms, &judge) {
            Some(settlement) => attempt.conclude(scene, self, shared, &message, settlement),
            None => {
                self.queue.delay_told(slot);
                self.queue_event(shared, scene, Event::Returned { slot });
            }
        }
    }

    /// A handle that the scheduler has taken out of its lists, and its message, or its envelope.
    fn unattempted(
        &mut self,
        shared: &Shared,
        scene: &mut Scene,
        slot: Slot,
        is_end: bool,
    ) -> Option<(Attempt, Loaded)> {
        let attempt = Attempt { slot, handle: self.queue.get(slot).cloned()? };
        let (id, place) = (attempt.handle.id, attempt.handle.place);
        let mut loaded = load(scene, self, shared, id, place);
        if loaded.is_err() && scene.plan.plant != Plant::EverWaiting {
            loaded = load_envelope(scene, shared, id, place);
        }
        match loaded {
            Ok(message) => Some((attempt, message)),
            Err(error) => {
                attempt.unreadable(scene, self, shared, &error, is_end);
                None
            }
        }
    }

    /// A site could not be reached or does not take mail: it rests for a while.
    pub fn site_failed(
        &mut self,
        shared: &Shared,
        scene: &mut Scene,
        (site, state): (SiteIndex, &SiteShared),
        words: &str,
    ) {
        let now_unix_ms = scene.now_unix_ms();
        let facts = SiteFacts {
            rests: state.rests_until(now_unix_ms).is_some(),
            established: shared.established.borrow().get(&state.id()).copied().unwrap_or(0),
            failures: state.failures(),
        };
        let course = self.queue.course_of_site(site).unwrap_or(shared.sites.unrouted().course);
        let (retry, random) = (&shared.sites.course(course).retry, scene.random.u32(..));
        match after_failed_connection(facts, retry, now_unix_ms, random) {
            SiteVerdict::Nothing => {}
            SiteVerdict::Pause { until_unix_ms } => state.pause(until_unix_ms),
            SiteVerdict::Rest { until_unix_ms, .. } => state.fail(until_unix_ms, words),
        }
    }
}
