//! What a worker answers to the control thread: counts, lists and changes of its part of the
//! queue.
//!
//! What only the envelope tells is read from the log.  A change is answered once it is in the
//! log, so that what an operator was told is still true after a crash.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;

use super::Worker;
use crate::control::events::{Addressees, Event as LogEvent, EventKind};
use crate::control::moment::Moment;
use crate::control::port::{Action, Answer, Entry, Filter, Page, Request, Selection, State, Tally};
use crate::delivery::message::{LoadError, LoadedMessage};
use crate::delivery::settle::spool_recipients;
use crate::delivery::sites::route_of;
use crate::limits;
use crate::message::MessageId;
use crate::queue::arena::Slot;
use crate::queue::handle::{Handle, Recipients, State as Waits};
use crate::queue::scheduler::Event;
use crate::runtime;
use crate::spool::{Defer, DeferState, Done, Ticket};

/// Answers one request.
pub async fn answer(worker: Rc<Worker>, request: Request, answer: oneshot::Sender<Answer>) {
    let result = match request {
        Request::Ping => Ok(Answer::Pong),
        Request::Count(filter) => count(&worker, &filter).await.map(Answer::Counted),
        Request::List(page) => list(&worker, &page).await.map(Answer::Listed),
        Request::Show(id) => show(&worker, id).await.map(Answer::Listed),
        Request::Act(action, selection) => act(&worker, action, &selection).await,
    };
    let words = |error: LoadError| Answer::Failed(error.to_string().into());
    // Whoever asked may have given up.
    let _ = answer.send(result.unwrap_or_else(words));
}

async fn count(worker: &Rc<Worker>, filter: &Filter) -> Result<Tally, LoadError> {
    let mut tally = Tally::default();
    for (slot, id) in fitting(worker, filter, |_| true) {
        if !filter.needs_envelope() {
            worker.with_queue(|queue| {
                queue.get(slot).map(|handle| add(&mut tally, handle, handle.recipients.count()))
            });
            continue;
        }
        let Some((handle, message)) = load(worker, slot, id).await? else { continue };
        let places = fitting_places(filter, &handle, &message);
        if !places.is_empty() {
            add(&mut tally, &handle, places.len());
        }
    }
    finish(&mut tally);
    Ok(tally)
}

async fn list(worker: &Rc<Worker>, page: &Page) -> Result<Vec<Entry>, LoadError> {
    let after = |id: MessageId| page.after.is_none_or(|after| id > after);
    let mut candidates = fitting(worker, &page.filter, after);
    candidates.sort_unstable_by_key(|&(slot, id)| (id, slot));
    let mut entries = Vec::new();
    let mut messages = 0;
    for same in candidates.chunk_by(|a, b| a.1 == b.1) {
        if messages == page.limit {
            break;
        }
        let before = entries.len();
        for &(slot, id) in same {
            entries.extend(entry(worker, &page.filter, slot, id).await?);
        }
        messages += usize::from(entries.len() > before);
    }
    Ok(entries)
}

async fn show(worker: &Rc<Worker>, id: MessageId) -> Result<Vec<Entry>, LoadError> {
    let filter = Filter::default();
    let mut entries = Vec::new();
    for (slot, id) in fitting(worker, &filter, |other| other == id) {
        entries.extend(entry(worker, &filter, slot, id).await?);
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
    let site_names: Vec<String> = worker.sites.names();
    worker.with_queue(|queue| {
        let fits = |handle: &Handle| {
            let site = &site_names[handle.site.0 as usize];
            wanted(handle.id) && filter.fits_entry(state_of(worker, handle), site)
        };
        queue.iter().filter(|(_, handle)| fits(handle)).map(|(slot, h)| (slot, h.id)).collect()
    })
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
    if fitting_places(filter, &handle, &message).is_empty() {
        return Ok(None);
    }
    let now_unix_ms = worker.now_unix_ms();
    let accepted_unix_ms = message.origin().accepted_unix_ms;
    let state = state_of(worker, &handle);
    let shared = &worker.sites.shared()[handle.site.0 as usize];
    let rests_until = shared.rests_until(now_unix_ms);
    let (next_attempt, reason) = match (state, handle.state) {
        (State::Deferred, Waits::Ready) => (rests_until, Some(shared.last_failure())),
        (State::Deferred, _) => {
            let reason = handle.reason.as_ref().map(|reason| reason.to_string());
            (Some(handle.due_unix_ms), reason)
        }
        _ => (None, handle.reason.as_ref().map(|reason| reason.to_string())),
    };
    let recipients = &message.envelope().recipients;
    let to = handle.recipients.places();
    Ok(Some(Entry {
        id,
        state,
        from: message.envelope().reverse_path.as_str().to_owned(),
        to: to
            .iter()
            .map(|&place| recipients[usize::from(place)].path.as_str().to_owned())
            .collect(),
        site: worker.sites.name(handle.site),
        size: message.summary().octets,
        attempts: u32::from(handle.attempts),
        accepted: Moment(accepted_unix_ms),
        age_seconds: now_unix_ms.saturating_sub(accepted_unix_ms) / 1000,
        next_attempt: next_attempt.map(Moment),
        reason,
        parts: handle.parts.as_ref().map_or(1, |parts| parts.load(Ordering::Relaxed)),
    }))
}

/// What people call the state: a message that stands in the list of a site which rests is
/// deferred to them.
fn state_of(worker: &Worker, handle: &Handle) -> State {
    match handle.state {
        Waits::Ready => {
            let shared = &worker.sites.shared()[handle.site.0 as usize];
            match shared.rests_until(worker.now_unix_ms()) {
                Some(_) => State::Deferred,
                None => State::Ready,
            }
        }
        Waits::Active => State::Active,
        Waits::Deferred => State::Deferred,
        Waits::Held => State::Held,
    }
}

fn add(tally: &mut Tally, handle: &Handle, recipients: usize) {
    match handle.parts {
        None => tally.messages += 1,
        Some(_) => tally.shared.push(handle.id),
    }
    tally.recipients += recipients as u64;
    let state = match handle.state {
        Waits::Ready => State::Ready,
        Waits::Active => State::Active,
        Waits::Deferred => State::Deferred,
        Waits::Held => State::Held,
    };
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
    let is_named = |id| selection.ids.is_empty() || selection.ids.contains(&id);
    let mut tally = Tally::default();
    let mut last = None;
    for (slot, id) in fitting(worker, filter, is_named) {
        let Some((handle, message)) = load(worker, slot, id).await? else { continue };
        let places = fitting_places(filter, &handle, &message);
        if places.is_empty() {
            continue;
        }
        let done = match action {
            Action::Retry => retry(worker, slot, &handle),
            Action::Release => release(worker, slot, &handle, &message),
            Action::Delete => delete(worker, slot, &handle, &message, &places),
        };
        if let Some(record) = done {
            last = record.or(last);
            let count =
                if action == Action::Delete { places.len() } else { handle.recipients.count() };
            add(&mut tally, &handle, count);
            report(worker, action, &handle, &message, &places);
        }
    }
    finish(&mut tally);
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

fn retry(worker: &Rc<Worker>, slot: Slot, handle: &Handle) -> Change {
    let waits = matches!(handle.state, Waits::Deferred | Waits::Ready);
    waits.then(|| {
        worker.queue_event(Event::Retry { slot });
        None
    })
}

/// Lets a held message go where it would have gone without the hold.
fn release(worker: &Rc<Worker>, slot: Slot, handle: &Handle, message: &LoadedMessage) -> Change {
    if handle.state != Waits::Held {
        return None;
    }
    let recipients = &message.envelope().recipients;
    let places = handle.recipients.places();
    let mut groups: BTreeMap<_, Vec<u16>> = BTreeMap::new();
    for &place in &places {
        let path = &recipients[usize::from(place)].path;
        let route = route_of(&worker.config, path, true)?;
        groups.entry(worker.sites.of(route)).or_default().push(place);
    }
    let record = worker.log.append_defer(&Defer {
        id: handle.id,
        segment: handle.place.segment,
        recipients: spool_recipients(&places, recipients.len()),
        state: DeferState::Released,
        next_attempt_unix_ms: worker.now_unix_ms(),
        attempts: handle.attempts,
        reply: "released",
    });
    let more = groups.len() as u32 - 1;
    let parts = match (&handle.parts, more) {
        (parts, 0) => parts.clone(),
        (None, more) => Some(Arc::new(AtomicU32::new(more + 1))),
        (Some(parts), more) => {
            parts.fetch_add(more, Ordering::AcqRel);
            Some(parts.clone())
        }
    };
    // The first group keeps the handle; each further one has a handle of its own.
    let mut groups = groups.into_iter();
    let (site, kept) = groups.next()?;
    worker.with_queue(|queue| {
        queue.split(slot, Recipients::of(kept, recipients.len()), parts.clone())
    });
    worker.queue_event(Event::Reroute { slot, site });
    for (site, places) in groups {
        let recipients = Recipients::of(places, recipients.len());
        let handle = Handle::new(handle.id, handle.place, site, recipients, parts.clone());
        worker.queue_event(Event::Filed { handle, stay: true });
    }
    Some(Some(record))
}

fn delete(
    worker: &Rc<Worker>,
    slot: Slot,
    handle: &Handle,
    message: &LoadedMessage,
    places: &[u16],
) -> Change {
    // What is being sent cannot be called back.
    if handle.state == Waits::Active {
        return None;
    }
    let count = message.envelope().recipients.len();
    let mut left = handle.recipients.places();
    left.retain(|place| !places.contains(place));
    let last = left.is_empty() && handle.is_last_part();
    let record = worker.log.append_done(&Done {
        id: handle.id,
        segment: handle.place.segment,
        recipients: spool_recipients(places, count),
        last,
    });
    worker.with_queue(|queue| match left.is_empty() {
        true => drop(queue.finish(slot)),
        false => queue.split(slot, Recipients::of(left, count), handle.parts.clone()),
    });
    Some(Some(record))
}

fn report(
    worker: &Worker,
    action: Action,
    handle: &Handle,
    message: &LoadedMessage,
    places: &[u16],
) {
    let kind = match action {
        Action::Retry => EventKind::Retried,
        Action::Release => EventKind::Released,
        Action::Delete => EventKind::Deleted,
    };
    worker.events.emit(&LogEvent {
        message: Some(handle.id),
        from: Some(message.envelope().reverse_path.as_str()),
        to: Addressees::Some(&message.envelope().recipients, places),
        ..LogEvent::new(kind)
    });
}

/// How long a change waits to be in the log.
const CHANGE_PATIENCE: Duration = Duration::from_secs(10);

const _: () = assert!(CHANGE_PATIENCE.as_secs() < limits::WORKER_WORK.as_secs());
