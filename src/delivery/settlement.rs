//! Decides everything about a message's part once an attempt is over, or its time, or its patience
//! with a late delivery: what is told, what is written to the log and in which order, and what the
//! scheduler hears.
//!
//! It stands between what was said for each recipient ([`outcome`](super::outcome)) and the thin
//! shell that carries the [`Effect`]s out ([`settle`](super::settle), and the simulation).  Pure:
//! facts, clock, random number and ids are arguments.
//!
//! Invariants: the effects end with exactly one of [`Effect::Finish`] and [`Effect::Wait`], and
//! all that goes to the log stands before it, so nothing is ever both out of the queue and not on
//! its way to the log.  Each recipient of the attempt is in exactly one DONE, or waits.  A notice
//! shares its batch with its cause: they count together or not at all.  A notice is about at most
//! [`RECIPIENTS_PER_NOTICE`](notice::RECIPIENTS_PER_NOTICE) recipients, and what has more gets
//! more notices.  It cannot fail.
//!
//! What it does not do: judging replies, writing the text of notices, choosing when to try.

pub mod parcel;
pub mod rounds;
pub mod site;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;

use super::notice::{self, Cause, Kind, ToldRecipient};
use super::outcome::{Attempted, BounceCause, Decision, Progress, Reason, RetryPolicy};
use crate::message::{Envelope, MessageId};
use crate::queue::handle::Recipients;
use crate::spool::appender::NewRecord;
use crate::spool::{self, Defer, DeferState, Done, SegmentNo};
use parcel::Parcel;

/// What is known of the part of a message that an attempt was about.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// The message.
    pub id: MessageId,
    /// Its whole envelope; recipients are named by their place in it.
    pub envelope: &'a Envelope,
    /// Attempts before this one.
    pub attempts_before: u16,
    /// The originator has been told of the delay, or need not be.
    pub delay_told: bool,
    /// An operator has let it go past the routes that hold.
    pub released: bool,
}

/// By what an attempt is judged.
#[derive(Debug, Clone, Copy)]
pub struct Judge<'a> {
    /// When to try again, and for how long.
    pub retry: &'a RetryPolicy,
    /// What fails for good is tried again all the same.
    pub soft_bounce: bool,
    /// The wall clock, in milliseconds since 1970 UTC.
    pub now_unix_ms: u64,
    /// Spreads the next attempt.
    pub random: u32,
}

/// Where an attempt led.
#[derive(Debug, Clone, Default)]
pub struct Hop {
    /// The next hop as `Remote-MTA` names it; `None` where there is none.
    pub remote_mta: Option<Box<str>>,
    /// What it means that the message was taken.
    pub handover: Handover,
    /// What the next hop said to the recipients that it took.
    pub taken: Option<String>,
}

/// Who tells the originator of success once a message was taken (RFC 3461 section 5.2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Handover {
    /// We: it is where the recipient's mail is kept (a Maildir, LMTP).
    #[default]
    Final,
    /// We, that it is relayed: the next hop does not have DSN.
    Relayed,
    /// The next hop, which has DSN and was given NOTIFY.
    PassedOn,
}

/// What becomes of a message that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreadable {
    /// It waits: the disk may answer later, or somebody may mend it.
    Wait {
        /// Until when, in milliseconds since 1970 UTC.
        until_unix_ms: u64,
    },
    /// It leaves the queue.  Nobody can be told, for who sent it cannot be read either; its record
    /// stays in the log as it is, and a restart looks at it again.
    SetAside,
}

impl Unreadable {
    /// Before its end, at which its originator is told, or is to be told: `is_end`.  `may_pass` is
    /// whether the disk refused, in place of giving out what was not written.
    pub fn judge(
        expires_unix_ms: u64,
        is_end: bool,
        may_pass: bool,
        now_unix_ms: u64,
    ) -> Unreadable {
        let later_unix_ms = now_unix_ms + UNREADABLE_WAIT_MS;
        let is_patient = may_pass && now_unix_ms < expires_unix_ms + UNREADABLE_PATIENCE_MS;
        match is_end {
            true if is_patient => Unreadable::Wait { until_unix_ms: later_unix_ms },
            true => Unreadable::SetAside,
            // What is due after its end is ended, and not attempted.
            false => {
                let until_unix_ms = later_unix_ms.min(expires_unix_ms).max(now_unix_ms + 1);
                Unreadable::Wait { until_unix_ms }
            }
        }
    }
}

/// The wait before a message is looked at again that could not be read.
const UNREADABLE_WAIT_MS: u64 = 3_600_000;
/// How long after the end of its lifetime a disk may still refuse to give a message out.
const UNREADABLE_PATIENCE_MS: u64 = 24 * 3_600_000;

/// One thing to do.  They are carried out in their order, without a pause between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Put it into the events and count it.
    Report(Report),
    /// Append the record; with a notice, both in one batch, the notice first.
    Append {
        /// The outcome.
        record: Record,
        /// What the originator hears of it.
        notice: Option<Box<Parcel>>,
    },
    /// The part ends, and others of its message may be under way: once all records that were
    /// appended before this are in the log, it counts no more.
    EndPart,
    /// The handle goes.
    Finish,
    /// The handle goes back to the scheduler.
    Wait {
        /// Who is left.
        recipients: Recipients,
        /// When to try again, in milliseconds since 1970 UTC.
        due_unix_ms: u64,
        /// What the attempt came to; `None` if it does not count as one.
        reason: Option<String>,
        /// The originator has been told of the delay, or need not be.
        delay_told: bool,
    },
}

/// An outcome as the log keeps it; places ascend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// These recipients need nothing more.
    Done {
        /// Who.
        places: Vec<u16>,
        /// With them the whole message ends.
        last: bool,
    },
    /// These recipients wait.
    Defer {
        /// Who.
        places: Vec<u16>,
        /// Until when, in milliseconds since 1970 UTC.
        next_attempt_unix_ms: u64,
        /// After so many attempts.
        attempts: u16,
        /// The originator has been told of the delay, or need not be.
        delay_told: bool,
        /// An operator has let them go; only the latest record of a recipient counts, so each has
        /// to say it again.
        released: bool,
        /// Why.
        reply: String,
    },
}

/// What the events say of some recipients of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What happened to them.
    pub told: Told,
    /// Who.
    pub places: Vec<u16>,
    /// Attempts that were made for them.
    pub attempts: u16,
    /// What was said.
    pub reply: Option<String>,
}

/// What happened to recipients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// They are delivered.
    Delivered,
    /// They wait.
    Deferred {
        /// Until when, in milliseconds since 1970 UTC.
        next_attempt_unix_ms: u64,
        /// They would have bounced.
        soft_bounce: bool,
    },
    /// They have waited for long.
    Delayed,
    /// They are given up because of what was said.
    Bounced,
    /// They are given up because their time is over.
    Expired,
}

/// What the notices of a settlement are made of.
#[derive(Debug, Clone, Copy)]
pub struct Paper<'a> {
    /// Our host name.
    pub hostname: &'a str,
    /// When the message was accepted, in milliseconds since 1970 UTC.
    pub accepted_unix_ms: u64,
    /// Trace header and body without stuffed dots, or their beginning; empty where
    /// [`Settlement::needs_content`] said no, or where it could not be read.
    pub content: &'a [u8],
    /// Whether that is all of the message.
    pub complete: bool,
}

/// The recipients of a part by what is to be done about them.
#[derive(Debug)]
pub struct Settlement<'a> {
    part: Part<'a>,
    now_unix_ms: u64,
    hop: Hop,
    /// An attempt was made for it.
    is_attempt: bool,
    delivered: Vec<u16>,
    bounced: Vec<(u16, BounceCause)>,
    deferred: Vec<Waiting>,
    /// When to try these again.
    due_unix_ms: u64,
    at_once: Vec<u16>,
    /// The end of the lifetime, if this is the time to tell of the delay.
    late_until_unix_ms: Option<u64>,
}

/// A recipient that waits for its next attempt.
#[derive(Debug)]
struct Waiting {
    place: u16,
    reason: Reason,
    soft_bounce: bool,
}

impl<'a> Settlement<'a> {
    /// After an attempt, with one outcome for each of its recipients.
    pub fn of_attempt(
        part: Part<'a>,
        judge: &Judge<'_>,
        hop: Hop,
        outcomes: impl IntoIterator<Item = (u16, Attempted)>,
    ) -> Settlement<'a> {
        let mut settlement = Settlement::empty(part, judge.now_unix_ms);
        settlement.is_attempt = true;
        settlement.hop = hop;
        for (place, attempted) in outcomes {
            settlement.judge(judge, place, attempted);
        }
        settlement.delivered.sort_unstable();
        // The others of the part would not be in the notice, so it waits for a time without any.
        let may_be_late = !settlement.deferred.is_empty() && settlement.at_once.is_empty();
        settlement.late_until_unix_ms = late(&part, judge).filter(|_| may_be_late);
        settlement
    }

    /// At the end of the message's lifetime, without an attempt.
    pub fn of_end(
        part: Part<'a>,
        places: &[u16],
        last: Option<&Reason>,
        now_unix_ms: u64,
    ) -> Settlement<'a> {
        let cause = BounceCause::Expired { last: last.cloned() };
        Settlement::given_up(part, places, &cause, now_unix_ms)
    }

    /// These recipients can never be delivered to, as was found without an attempt.
    pub fn of_refusal(
        part: Part<'a>,
        places: &[u16],
        reason: &Reason,
        judge: &Judge<'_>,
    ) -> Settlement<'a> {
        if !judge.soft_bounce {
            let cause = BounceCause::Failed(reason.clone());
            return Settlement::given_up(part, places, &cause, judge.now_unix_ms);
        }
        let outcomes = places.iter().map(|&place| (place, Attempted::Failed(reason.clone())));
        Settlement::of_attempt(part, judge, Hop::default(), outcomes)
    }

    /// The part has waited for so long that its originator may want to know, without an attempt:
    /// its site cannot be reached.  `due_unix_ms` is when it is looked at again.
    ///
    /// `None` where that is switched off, done already, or not due yet.
    pub fn of_delay(
        part: Part<'a>,
        places: &[u16],
        reason: &Reason,
        due_unix_ms: u64,
        judge: &Judge<'_>,
    ) -> Option<Settlement<'a>> {
        let late_until_unix_ms = Some(late(&part, judge)?);
        let waiting = |&place: &u16| Waiting { place, reason: reason.clone(), soft_bounce: false };
        Some(Settlement {
            deferred: places.iter().map(waiting).collect(),
            due_unix_ms,
            late_until_unix_ms,
            ..Settlement::empty(part, judge.now_unix_ms)
        })
    }

    /// Whether there is a notice to write that returns something of the message.
    pub fn needs_content(&self) -> bool {
        let wants = |kind: Kind, place| kind.is_wanted(self.part.envelope, place);
        let is_told = |kind: Option<Kind>| {
            kind.is_some_and(|kind| self.delivered.iter().any(|&place| wants(kind, place)))
        };
        self.bounced.iter().any(|(place, _)| wants(Kind::Failure, *place))
            || is_told(self.success())
            || self
                .late_kind()
                .is_some_and(|kind| self.deferred.iter().any(|waiting| wants(kind, waiting.place)))
    }

    /// What is to be done.  `is_only_part` is whether the ends of all other parts are in the log
    /// now ([`Handle::is_only_part`](crate::queue::handle::Handle::is_only_part)).
    pub fn effects(
        self,
        is_only_part: bool,
        paper: &Paper<'_>,
        mut next_id: impl FnMut() -> MessageId,
    ) -> Vec<Effect> {
        let mut effects = Vec::with_capacity(4);
        self.report(&mut effects);
        let mut left: Vec<u16> = self.deferred.iter().map(|waiting| waiting.place).collect();
        left.extend_from_slice(&self.at_once);
        left.sort_unstable();
        let is_last = left.is_empty() && is_only_part;
        let mut write =
            |kind, told: &[ToldRecipient<'_>]| self.write(kind, paper, told, &mut next_id);
        let mut ends = self.ends_of_delivered(&mut write);
        ends.extend(self.ends_of_bounced(&mut write));
        let count = ends.len();
        for (number, (places, notice)) in ends.into_iter().enumerate() {
            let record = Record::Done { places, last: is_last && number + 1 == count };
            effects.push(Effect::Append { record, notice });
        }
        self.waits(&mut effects, &mut write);
        effects.extend((left.is_empty() && !is_last).then_some(Effect::EndPart));
        effects.push(if left.is_empty() { Effect::Finish } else { self.wait(left) });
        effects
    }

    // ---- judging -------------------------------------------------------------------------

    fn empty(part: Part<'a>, now_unix_ms: u64) -> Settlement<'a> {
        Settlement {
            part,
            now_unix_ms,
            hop: Hop::default(),
            is_attempt: false,
            delivered: Vec::new(),
            bounced: Vec::new(),
            deferred: Vec::new(),
            due_unix_ms: 0,
            at_once: Vec::new(),
            late_until_unix_ms: None,
        }
    }

    fn given_up(
        part: Part<'a>,
        places: &[u16],
        cause: &BounceCause,
        now_unix_ms: u64,
    ) -> Settlement<'a> {
        let bounced = places.iter().map(|&place| (place, cause.clone())).collect();
        Settlement { bounced, ..Settlement::empty(part, now_unix_ms) }
    }

    fn judge(&mut self, judge: &Judge<'_>, place: u16, attempted: Attempted) {
        let (attempted, soft_bounce) = match attempted {
            Attempted::Failed(reason) if judge.soft_bounce => (Attempted::Deferred(reason), true),
            attempted => (attempted, false),
        };
        let progress =
            Progress { accepted_unix_ms: self.part.id.unix_ms(), attempts: self.attempts() };
        match judge.retry.judge(attempted, progress, judge.now_unix_ms, judge.random) {
            Decision::Done => self.delivered.push(place),
            Decision::Bounce(cause) => self.bounced.push((place, cause)),
            Decision::AtOnce => self.at_once.push(place),
            Decision::Defer { next_attempt_unix_ms, reason } => {
                self.due_unix_ms = next_attempt_unix_ms;
                self.deferred.push(Waiting { place, reason, soft_bounce });
            }
        }
    }

    /// Attempts, this one counted if it was one.
    fn attempts(&self) -> u16 {
        self.part.attempts_before.saturating_add(u16::from(self.is_attempt))
    }

    /// Those that wait, by what they heard; places ascend.
    fn alike(waiting: &[Waiting]) -> Vec<(String, bool, Vec<u16>)> {
        let mut alike: Vec<(String, bool, Vec<u16>)> = Vec::new();
        for Waiting { place, reason, soft_bounce } in waiting {
            let reply = reason.to_string();
            match alike.iter_mut().find(|group| group.0 == reply && group.1 == *soft_bounce) {
                Some(group) => group.2.push(*place),
                None => alike.push((reply, *soft_bounce, vec![*place])),
            }
        }
        alike.iter_mut().for_each(|group| group.2.sort_unstable());
        alike
    }

    // ---- what is told --------------------------------------------------------------------

    fn report(&self, effects: &mut Vec<Effect>) {
        let attempts = self.attempts();
        let mut report = |told, places, attempts, reply| {
            effects.push(Effect::Report(Report { told, places, attempts, reply }));
        };
        if !self.delivered.is_empty() {
            report(Told::Delivered, self.delivered.clone(), attempts, self.hop.taken.clone());
        }
        if self.is_attempt {
            for (reply, soft_bounce, places) in Self::alike(&self.deferred) {
                let next_attempt_unix_ms = self.due_unix_ms;
                let told = Told::Deferred { next_attempt_unix_ms, soft_bounce };
                report(told, places, attempts, Some(reply));
            }
        }
        if self.late_until_unix_ms.is_some() {
            let mut places: Vec<u16> = self.deferred.iter().map(|waiting| waiting.place).collect();
            places.sort_unstable();
            let reason = self.deferred.first().map(|waiting| waiting.reason.to_string());
            report(Told::Delayed, places, attempts, reason);
        }
        for (place, cause) in &self.bounced {
            let (told, attempts) = match cause {
                BounceCause::Failed(_) => (Told::Bounced, attempts),
                // What brought it to its end was the clock.
                BounceCause::Expired { .. } => (Told::Expired, self.part.attempts_before),
            };
            report(told, vec![*place], attempts, cause.reason().map(ToString::to_string));
        }
    }

    /// The kind of notice for those that were delivered, if we owe one.
    fn success(&self) -> Option<Kind> {
        match self.hop.handover {
            Handover::Final => Some(Kind::Delivery),
            Handover::Relayed => Some(Kind::Relay),
            Handover::PassedOn => None,
        }
    }

    fn late_kind(&self) -> Option<Kind> {
        self.late_until_unix_ms.map(|until_unix_ms| Kind::Delay { until_unix_ms })
    }

    fn told<'b>(&'b self, index: u16, cause: Option<Cause<'b>>) -> ToldRecipient<'b> {
        let remote_mta = self.hop.remote_mta.as_deref();
        let last_attempt_unix_ms = self.is_attempt.then_some(self.now_unix_ms);
        ToldRecipient { index, cause, remote_mta, last_attempt_unix_ms }
    }

    /// The notice for these, if any of them is to be told of.
    fn write(
        &self,
        kind: Kind,
        paper: &Paper<'_>,
        told: &[ToldRecipient<'_>],
        next_id: &mut dyn FnMut() -> MessageId,
    ) -> Option<Box<Parcel>> {
        let envelope = self.part.envelope;
        if !told.iter().any(|told| kind.is_wanted(envelope, told.index)) {
            return None;
        }
        let (id, now_unix_ms) = (next_id(), self.now_unix_ms);
        let reporter = notice::Reporter { hostname: paper.hostname, id, now_unix_ms };
        let original = notice::Original {
            envelope,
            accepted_unix_ms: paper.accepted_unix_ms,
            content: paper.content,
            complete: paper.complete,
        };
        let notice = notice::notice(kind, &reporter, &original, told)?;
        Some(Box::new(Parcel::new(&reporter, notice)))
    }

    // ---- what is written -----------------------------------------------------------------

    /// One DONE for those that were delivered, nearly always; with notices one for each.
    fn ends_of_delivered(&self, write: &mut Writer<'_>) -> Vec<End> {
        let delivered = &self.delivered;
        if delivered.is_empty() {
            return Vec::new();
        }
        let wants =
            |kind: &Kind| delivered.iter().any(|&place| kind.is_wanted(self.part.envelope, place));
        let Some(kind) = self.success().filter(wants) else {
            return vec![(delivered.clone(), None)];
        };
        let end = |places: &[u16]| {
            let told: Vec<_> = places.iter().map(|&place| self.told(place, None)).collect();
            (places.to_vec(), write(kind, &told))
        };
        delivered.chunks(notice::RECIPIENTS_PER_NOTICE).map(end).collect()
    }

    /// One DONE with each notice for those that failed.
    fn ends_of_bounced(&self, write: &mut Writer<'_>) -> Vec<End> {
        let end = |group: &[(u16, BounceCause)]| {
            let mut told = Vec::with_capacity(group.len());
            for (place, cause) in group {
                told.push(self.told(*place, Some(Cause::Bounced(cause))));
            }
            let mut places: Vec<u16> = group.iter().map(|(place, _)| *place).collect();
            places.sort_unstable();
            (places, write(Kind::Failure, &told))
        };
        self.bounced.chunks(notice::RECIPIENTS_PER_NOTICE).map(end).collect()
    }

    /// One DEFER for those that heard the same; a notice of delay shares the batch of the first
    /// DEFER of its recipients.  The others follow: a crash between them makes one more notice.
    fn waits(&self, effects: &mut Vec<Effect>, write: &mut Writer<'_>) {
        let Some(kind) = self.late_kind() else {
            if self.is_attempt {
                self.defer(&self.deferred, None, effects);
            }
            return;
        };
        for group in self.deferred.chunks(notice::RECIPIENTS_PER_NOTICE) {
            let mut told = Vec::with_capacity(group.len());
            for Waiting { place, reason, .. } in group {
                told.push(self.told(*place, Some(Cause::Waits(reason))));
            }
            let notice = write(kind, &told);
            // Without a notice only an attempt is worth a record: nothing is lost with the rest.
            if self.is_attempt || notice.is_some() {
                self.defer(group, notice, effects);
            }
        }
    }

    fn defer(
        &self,
        waiting: &[Waiting],
        mut notice: Option<Box<Parcel>>,
        effects: &mut Vec<Effect>,
    ) {
        for (reply, _, places) in Self::alike(waiting) {
            let record = Record::Defer {
                places,
                next_attempt_unix_ms: self.due_unix_ms,
                attempts: self.attempts(),
                delay_told: self.delay_told(),
                released: self.part.released,
                reply,
            };
            effects.push(Effect::Append { record, notice: notice.take() });
        }
    }

    fn delay_told(&self) -> bool {
        self.part.delay_told || self.late_until_unix_ms.is_some()
    }

    fn wait(&self, left: Vec<u16>) -> Effect {
        // Those that could go at once wait with the others, if there are any: else what the peer
        // may have taken without a word would be sent again and again.
        let due_unix_ms = if self.deferred.is_empty() { 0 } else { self.due_unix_ms };
        let reason = self.deferred.first().filter(|_| self.is_attempt);
        Effect::Wait {
            recipients: Recipients::of(left, self.part.envelope.recipients.len()),
            due_unix_ms,
            reason: reason.map(|waiting| waiting.reason.to_string()),
            delay_told: self.delay_told(),
        }
    }
}

/// Recipients that end together, and the notice of that.
type End = (Vec<u16>, Option<Box<Parcel>>);

/// Writes a notice.
type Writer<'w> = dyn FnMut(Kind, &[ToldRecipient<'_>]) -> Option<Box<Parcel>> + 'w;

impl Record {
    /// As the log takes it, for a message with so many recipients.
    pub fn for_log(&self, id: MessageId, segment: SegmentNo, recipients: usize) -> NewRecord<'_> {
        match self {
            Record::Done { places, last } => {
                let recipients = spool_recipients(places, recipients);
                NewRecord::Done(Done { id, segment, recipients, last: *last })
            }
            Record::Defer {
                places,
                next_attempt_unix_ms,
                attempts,
                delay_told,
                released,
                reply,
            } => {
                let state = if *released { DeferState::Released } else { DeferState::Deferred };
                NewRecord::Defer(Defer {
                    id,
                    segment,
                    recipients: spool_recipients(places, recipients),
                    state,
                    next_attempt_unix_ms: *next_attempt_unix_ms,
                    attempts: *attempts,
                    delay_told: *delay_told,
                    reply,
                })
            }
        }
    }
}

/// Recipients as the log names them.
pub fn spool_recipients(places: &[u16], count: usize) -> spool::Recipients<'_> {
    if places.len() == count { spool::Recipients::All } else { spool::Recipients::Some(places) }
}

/// A next hop without a name as `Remote-MTA` has it (RFC 3464 section 2.3.5, and an address
/// literal of RFC 5321 section 4.1.3).
pub fn remote_mta(address: IpAddr) -> Box<str> {
    struct Literal(IpAddr);
    impl fmt::Display for Literal {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match self.0 {
                IpAddr::V4(address) => write!(f, "[{address}]"),
                IpAddr::V6(address) => write!(f, "[IPv6:{address}]"),
            }
        }
    }
    Literal(address).to_string().into()
}

/// The end of the part's lifetime, if its originator is to hear now that it is late.
fn late(part: &Part<'_>, judge: &Judge<'_>) -> Option<u64> {
    let accepted_unix_ms = part.id.unix_ms();
    let late_unix_ms = judge.retry.late_unix_ms(accepted_unix_ms)?;
    let is_due = !part.delay_told && late_unix_ms <= judge.now_unix_ms;
    is_due.then(|| judge.retry.expires_unix_ms(accepted_unix_ms))
}
