//! What a worker answers to the control thread: counts, lists and changes of its part of the
//! queue.
//!
//! What only the envelope tells is read from the log.  A change is answered once it is in the
//! log, so that what an operator was told is still true after a crash.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::Worker;
use crate::control::events::{Addressees, Event as LogEvent, EventKind};
use crate::control::moment::Moment;
use crate::control::port::{Action, Answer, Entry, Filter, Page, Request, Selection, State, Tally};
use crate::delivery::message::{LoadError, LoadedMessage};
use crate::delivery::notice::original_address;
use crate::delivery::settle::{end_all, spool_recipients};
use crate::delivery::sites::route_of;
use crate::limits;
use crate::message::{Envelope, MessageId, Recipient};
use crate::queue::arena::Slot;
use crate::queue::handle::{Handle, Recipients, State as Waits};
use crate::queue::scheduler::{Event, Scheduler};
use crate::runtime;
use crate::spool::{self, Defer, DeferState, Done, Ticket};
use crate::sync::parts::Parts;

/// Answers one request.
pub async fn answer(worker: Rc<Worker>, request: Request, answer: oneshot::Sender<Answer>) {
    let result = match request {
        Request::Ping => Ok(Answer::Pong),
        Request::Count(filter) => count(&worker, &filter, &answer).await.map(Answer::Counted),
        Request::List(page) => list(&worker, &page, &answer).await.map(Answer::Listed),
        Request::Show(id) => show(&worker, id).await.map(Answer::Listed),
        Request::Why(id) => Ok(Answer::Explained(worker.explanations_of(id).await)),
        Request::Act(action, selection) => act(&worker, action, &selection).await,
    };
    let words = |error: LoadError| Answer::Failed(error.to_string().into());
    // Whoever asked may have given up.
    let _ = answer.send(result.unwrap_or_else(words));
}

async fn count(
    worker: &Rc<Worker>,
    filter: &Filter,
    answer: &oneshot::Sender<Answer>,
) -> Result<Tally, LoadError> {
    let mut tally = Tally::default();
    for (slot, id) in fitting(worker, filter, |_| true) {
        if answer.is_closed() {
            break;
        }
        if !filter.needs_envelope() {
            let found = worker.with_queue(|queue| {
                let handle = queue.get(slot)?;
                Some((handle.clone(), state_of(worker, queue, handle)))
            });
            if let Some((handle, state)) = found {
                add(&mut tally, &handle, state, handle.recipients.count());
            }
            continue;
        }
        let Some((handle, message)) = load(worker, slot, id).await? else { continue };
        let places = fitting_places(filter, &handle, &message);
        if !places.is_empty() {
            add(&mut tally, &handle, people_state(worker, &handle), places.len());
        }
    }
    finish(&mut tally);
    Ok(tally)
}

async fn list(
    worker: &Rc<Worker>,
    page: &Page,
    answer: &oneshot::Sender<Answer>,
) -> Result<Vec<Entry>, LoadError> {
    let mut entries = Vec::new();
    let (mut messages, mut after) = (0, page.after);
    // Each round is a look at all handles, and few envelopes may fit: so each has more candidates
    // than the one before, and the rounds stay few.
    let mut round = CANDIDATES.0;
    while messages < page.limit {
        let candidates = oldest(worker, &page.filter, after, round);
        let is_end = candidates.chunk_by(|a, b| a.0 == b.0).count() < round;
        round = (2 * round).min(CANDIDATES.1);
        for same in candidates.chunk_by(|a, b| a.0 == b.0) {
            if messages == page.limit || answer.is_closed() {
                return Ok(entries);
            }
            let before = entries.len();
            for &(id, slot) in same {
                entries.extend(entry(worker, &page.filter, slot, id).await?);
                after = Some(id);
            }
            messages += usize::from(entries.len() > before);
        }
        if is_end {
            break;
        }
    }
    Ok(entries)
}

/// The handles that may fit of the `count` oldest messages after one, by id.
fn oldest(
    worker: &Rc<Worker>,
    filter: &Filter,
    after: Option<MessageId>,
    count: usize,
) -> Vec<(MessageId, Slot)> {
    let mut oldest: BTreeMap<MessageId, Vec<Slot>> = BTreeMap::new();
    each_fitting(worker, filter, |slot, id| {
        let is_full = oldest.len() == count;
        let is_late = is_full && oldest.last_key_value().is_some_and(|(&last, _)| id > last);
        if is_late || after.is_some_and(|after| id <= after) {
            return;
        }
        oldest.entry(id).or_default().push(slot);
        if oldest.len() > count {
            oldest.pop_last();
        }
    });
    let flat = |(id, slots): (MessageId, Vec<Slot>)| slots.into_iter().map(move |slot| (id, slot));
    oldest.into_iter().flat_map(flat).collect()
}

async fn show(worker: &Rc<Worker>, id: MessageId) -> Result<Vec<Entry>, LoadError> {
    let filter = Filter::default();
    let mut entries = Vec::new();
    for (slot, id) in fitting(worker, &filter, |other| other == id) {
        let Some((handle, message)) = load(worker, slot, id).await? else { continue };
        let verdict = message.explanation().map(Box::new);
        entries.push(Entry { verdict, ..entry_of(worker, &handle, &message) });
    }
    Ok(entries)
}

// ---- what fits -------------------------------------------------------------------------------

/// Handles that fit a filter as far as they tell by themselves, with the ids that they have now.
fn fitting(
    worker: &Rc<Worker>,
    filter: &Filter,
    wanted: impl Fn(MessageId) -> bool,
) -> Vec<(Slot, MessageId)> {
    let mut found = Vec::new();
    each_fitting(worker, filter, |slot, id| {
        if wanted(id) {
            found.push((slot, id));
        }
    });
    found
}

fn each_fitting(worker: &Rc<Worker>, filter: &Filter, mut take: impl FnMut(Slot, MessageId)) {
    worker.with_queue(|queue| {
        // A name for each destination, not for each message.
        let mut names = HashMap::new();
        for (slot, handle) in queue.iter() {
            let (site, domain) = names
                .entry(handle.destination())
                .or_insert_with(|| worker.sites.names(queue, handle.destination()));
            let state = state_of(worker, queue, handle);
            if filter.fits_entry(state, site, domain.as_deref()) {
                take(slot, handle.id);
            }
        }
    });
}

/// A handle and its message; `None` if the message left the queue meanwhile.
async fn load(
    worker: &Rc<Worker>,
    slot: Slot,
    id: MessageId,
) -> Result<Option<(Handle, LoadedMessage)>, LoadError> {
    let current = |slot| worker.with_queue(|queue| queue.get(slot).cloned());
    let Some(handle) = current(slot).filter(|handle| handle.id == id) else { return Ok(None) };
    let message = match worker.load(id, handle.place).await {
        Ok(message) => message,
        // Its record may have been retired while it was read.
        Err(_) if current(slot).is_none_or(|handle| handle.id != id) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(current(slot).filter(|handle| handle.id == id).map(|handle| (handle, message)))
}

/// The recipients of a handle that a filter fits.
fn fitting_places(filter: &Filter, handle: &Handle, message: &LoadedMessage) -> Vec<u16> {
    let envelope = message.envelope();
    if !filter.fits_originator(&envelope.reverse_path) {
        return Vec::new();
    }
    let mut places = handle.recipients.places();
    places.retain(|&place| filter.fits_recipient(&envelope.recipients[usize::from(place)].path));
    places
}

async fn entry(
    worker: &Rc<Worker>,
    filter: &Filter,
    slot: Slot,
    id: MessageId,
) -> Result<Option<Entry>, LoadError> {
    let Some((handle, message)) = load(worker, slot, id).await? else { return Ok(None) };
    let fits = !fitting_places(filter, &handle, &message).is_empty();
    Ok(fits.then(|| entry_of(worker, &handle, &message)))
}

fn entry_of(worker: &Worker, handle: &Handle, message: &LoadedMessage) -> Entry {
    let now_unix_ms = worker.now_unix_ms();
    let accepted_unix_ms = message.origin().accepted_unix_ms;
    let state = people_state(worker, handle);
    let rest = worker.with_queue(|queue| queue.rest_of(handle.destination(), now_unix_ms));
    let (next_attempt, reason) = match (state, handle.state) {
        (State::Deferred, Waits::Ready) => {
            (rest.as_ref().map(|rest| rest.until_unix_ms), rest.map(|rest| rest.reason))
        }
        (State::Deferred, _) => {
            let reason = handle.reason.as_ref().map(|reason| reason.to_string());
            (Some(handle.due_unix_ms), reason)
        }
        (State::Held, _) => (
            None,
            Some(format!("held; bounces at {} if nobody releases it", Moment(handle.due_unix_ms))),
        ),
        (State::Quarantined, _) => {
            let end = Moment(handle.due_unix_ms);
            let causes = message.explanation().map(|explanation| explanation.causes());
            let causes = causes.unwrap_or_else(|| "the reasons are not known".to_owned());
            (None, Some(format!("{causes}; deleted at {end} if nobody releases it")))
        }
        _ => (None, handle.reason.as_ref().map(|reason| reason.to_string())),
    };
    let recipients = &message.envelope().recipients;
    let places = handle.recipients.places();
    let to = || places.iter().map(|&place| &recipients[usize::from(place)]);
    let (site, domain) = worker.names_of(handle);
    Entry {
        id: handle.id,
        state,
        from: message.envelope().reverse_path.as_str().to_owned(),
        to: to().map(|recipient| recipient.path.as_str().to_owned()).collect(),
        named: named(to()),
        site,
        domain: domain.map(|domain| domain.to_string()),
        size: message.summary().octets,
        attempts: u32::from(handle.attempts),
        accepted: Moment(accepted_unix_ms),
        age_seconds: now_unix_ms.saturating_sub(accepted_unix_ms) / 1000,
        next_attempt: next_attempt.map(Moment),
        reason,
        tls: tls_note(worker, handle, now_unix_ms),
        parts: handle.parts.as_ref().map_or(1, |parts| parts.left()),
        verdict: None,
    }
}

/// Whom the sender named, where he named others: those that a list or an alias stands for.
fn named<'a>(recipients: impl Iterator<Item = &'a Recipient>) -> Vec<String> {
    let mut has_others = false;
    let name = |recipient: &Recipient| {
        let path = recipient.path.as_str();
        let named = recipient.orcpt.as_deref().and_then(original_address);
        let named = named.unwrap_or_else(|| path.to_owned());
        has_others |= !named.eq_ignore_ascii_case(path);
        named
    };
    let named: Vec<String> = recipients.map(name).collect();
    if has_others { named } else { Vec::new() }
}

/// What people should know of the encryption at a handle's site.
fn tls_note(worker: &Worker, handle: &Handle, now_unix_ms: u64) -> Option<String> {
    let (until, words) =
        worker.with_queue(|queue| queue.site_of(handle.destination())?.tls_failure(now_unix_ms))?;
    Some(format!("in clear until {}, since TLS failed there: {words}", Moment(until)))
}

/// What people call the state: a message that stands in the list of a destination which rests is
/// deferred to them.
fn state_of(worker: &Worker, queue: &Scheduler, handle: &Handle) -> State {
    let destination = handle.destination();
    match handle.state {
        Waits::Ready => match queue.rests(destination, worker.now_unix_ms()) {
            true => State::Deferred,
            false => State::Ready,
        },
        Waits::Active => State::Active,
        Waits::Deferred => State::Deferred,
        Waits::Held => match queue.destination(destination) == Some(&worker.sites.quarantine()) {
            true => State::Quarantined,
            false => State::Held,
        },
    }
}

fn people_state(worker: &Worker, handle: &Handle) -> State {
    worker.with_queue(|queue| state_of(worker, queue, handle))
}

fn add(tally: &mut Tally, handle: &Handle, state: State, recipients: usize) {
    match handle.parts {
        None => tally.messages += 1,
        Some(_) => tally.shared.push(handle.id),
    }
    tally.recipients += recipients as u64;
    tally.by_state.add(state, 1);
}

/// Each message once.
fn finish(tally: &mut Tally) {
    tally.shared.sort_unstable();
    tally.shared.dedup();
}

// ---- changes ---------------------------------------------------------------------------------

async fn act(
    worker: &Rc<Worker>,
    action: Action,
    selection: &Selection,
) -> Result<Answer, LoadError> {
    let filter = &selection.filter;
    let named: HashSet<MessageId> = selection.ids.iter().copied().collect();
    let is_named = |id| named.is_empty() || named.contains(&id);
    let mut tally = Tally::default();
    let (mut last, mut stuck, mut changes) = (None, 0u64, 0u64);
    for (slot, id) in fitting(worker, filter, is_named) {
        let Some(target) = Target::find(worker, slot, id, action, filter).await? else { continue };
        let state = people_state(worker, &target.handle);
        let done = match action {
            Action::Retry => target.retry(worker),
            Action::Release => target.release(worker),
            Action::Delete => target.delete(worker),
        };
        stuck += u64::from(action == Action::Release && done.is_none() && target.is_held());
        if let Some(record) = done {
            last = record.or(last);
            let whole = target.handle.recipients.count();
            let count = if action == Action::Delete { target.places.len() } else { whole };
            add(&mut tally, &target.handle, state, count);
            target.report(worker, action);
            changes += 1;
            if changes.is_multiple_of(CHANGES_A_TURN) {
                runtime::sleep(TURN_PAUSE).await;
            }
        }
    }
    finish(&mut tally);
    if stuck > 0 && tally.recipients == 0 {
        let words = "held, but no route other than `hold` takes these recipients: add one below it";
        return Ok(Answer::Failed(words.into()));
    }
    if let Some(record) = last {
        let settled = worker.log.watch(record).settled();
        if runtime::timeout(CHANGE_PATIENCE, settled).await.is_none() {
            return Ok(Answer::Failed("the log did not take the change in time".into()));
        }
    }
    Ok(Answer::Changed(tally))
}

/// What a change did: nothing, or something, with the last record that it wrote.
type Change = Option<Option<Ticket>>;

/// A handle to which something is to be done.
struct Target {
    slot: Slot,
    handle: Handle,
    /// Read only where the envelope matters: a change of a million messages is no million reads.
    message: Option<LoadedMessage>,
    /// The recipients that the filter fits.
    places: Vec<u16>,
}

impl Target {
    async fn find(
        worker: &Rc<Worker>,
        slot: Slot,
        id: MessageId,
        action: Action,
        filter: &Filter,
    ) -> Result<Option<Target>, LoadError> {
        if !filter.needs_envelope() && action != Action::Release {
            let handle = worker.with_queue(|queue| queue.get(slot).cloned());
            return Ok(handle.filter(|handle| handle.id == id).map(|handle| {
                let places = handle.recipients.places();
                Target { slot, handle, message: None, places }
            }));
        }
        let Some((handle, message)) = load(worker, slot, id).await? else { return Ok(None) };
        let places = fitting_places(filter, &handle, &message);
        let fits = !places.is_empty();
        Ok(fits.then_some(Target { slot, handle, message: Some(message), places }))
    }

    fn is_held(&self) -> bool {
        self.handle.state == Waits::Held
    }

    fn retry(&self, worker: &Rc<Worker>) -> Change {
        let waits = matches!(self.handle.state, Waits::Deferred | Waits::Ready);
        waits.then(|| {
            worker.queue_event(Event::Retry { slot: self.slot });
            None
        })
    }

    /// Lets a held message go where it would have gone without the hold.
    fn release(&self, worker: &Rc<Worker>) -> Change {
        let (handle, slot) = (&self.handle, self.slot);
        let Envelope { recipients, parameters, .. } = &**self.message.as_ref()?.envelope();
        if handle.state != Waits::Held {
            return None;
        }
        let places = handle.recipients.places();
        let mut groups: BTreeMap<_, Vec<u16>> = BTreeMap::new();
        for &place in &places {
            let path = &recipients[usize::from(place)].path;
            let route = route_of(&worker.config, path, true)?;
            let destination = worker.sites.destination(route, path, parameters);
            groups.entry(destination).or_default().push(place);
        }
        let record = worker.log.append_defer(&Defer {
            id: handle.id,
            segment: handle.place.segment,
            recipients: spool_recipients(&places, recipients.len()),
            state: DeferState::Released,
            next_attempt_unix_ms: worker.now_unix_ms(),
            attempts: handle.attempts,
            delay_told: handle.delay_told,
            reply: "released",
        });
        let parts = more_parts(handle, groups.len() as u32 - 1);
        // The first group keeps the handle; each further one has a handle of its own.
        let mut groups = groups.into_iter();
        let (destination, kept) = groups.next()?;
        let kept = Recipients::of(kept, recipients.len());
        worker.with_queue(|queue| {
            queue.split(slot, kept, parts.clone());
            queue.released(slot);
        });
        worker.queue_event(Event::Reroute { slot, destination });
        for (destination, places) in groups {
            let recipients = Recipients::of(places, recipients.len());
            let mut handle = Handle::new(handle.id, handle.place, recipients, parts.clone());
            handle.released = true;
            worker.queue_event(Event::Filed { destination, handle, stay: true });
        }
        Some(Some(record))
    }

    fn delete(&self, worker: &Rc<Worker>) -> Change {
        let handle = &self.handle;
        // What is being sent cannot be called back.
        if handle.state == Waits::Active {
            return None;
        }
        let mut left = handle.recipients.places();
        left.retain(|place| self.places.binary_search(place).is_err());
        let recipients = match (&handle.recipients, left.is_empty()) {
            (Recipients::All(_), true) => spool::Recipients::All,
            _ => spool::Recipients::Some(&self.places),
        };
        if left.is_empty() {
            return Some(Some(end_all(worker, self.slot, handle, recipients)));
        }
        let (id, segment) = (handle.id, handle.place.segment);
        let record = worker.log.append_done(&Done { id, segment, recipients, last: false });
        worker.with_queue(|queue| {
            queue.split(self.slot, Recipients::Some(left.into()), handle.parts.clone());
        });
        Some(Some(record))
    }

    fn report(&self, worker: &Worker, action: Action) {
        let kind = match action {
            Action::Retry => EventKind::Retried,
            Action::Release => EventKind::Released,
            Action::Delete => EventKind::Deleted,
        };
        let envelope = self.message.as_ref().map(|message| message.envelope());
        let to = envelope.map(|envelope| Addressees::Some(&envelope.recipients, &self.places));
        worker.events.emit(&LogEvent {
            message: Some(self.handle.id),
            from: envelope.map(|envelope| envelope.reverse_path.as_str()),
            to: to.unwrap_or_default(),
            ..LogEvent::new(kind)
        });
    }
}

/// The counter of a message's handles, when it gets `more` of them.
fn more_parts(handle: &Handle, more: u32) -> Option<Arc<Parts>> {
    match (&handle.parts, more) {
        (parts, 0) => parts.clone(),
        (None, more) => Some(Arc::new(Parts::new(more + 1))),
        (Some(parts), more) => {
            parts.add(more);
            Some(parts.clone())
        }
    }
}

/// Candidates of the first round of a listing, at least a page, and of any round at most.
const CANDIDATES: (usize, usize) = (limits::ADMIN_PAGE, 64 * limits::ADMIN_PAGE);
/// Changes after which a worker's sessions have a turn, and how long that is at least.
const CHANGES_A_TURN: u64 = 1_000;
const TURN_PAUSE: Duration = Duration::from_millis(1);

/// How long a change waits to be in the log.
const CHANGE_PATIENCE: Duration = Duration::from_secs(10);

const _: () = assert!(CHANGE_PATIENCE.as_secs() < limits::WORKER_WORK.as_secs());
