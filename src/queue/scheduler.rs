//! Which message goes next, on which connection: the delivery scheduler of one core.
//!
//! A pure state machine: [`Scheduler::handle`] takes what happened and the time,
//! [`Scheduler::poll_action`] gives what to do.  It owns the core's handles and keeps each in
//! exactly one place: its site's list (ready), an attempt (active), or the timers (deferred,
//! held).  What the cores share of a site is [`SiteShared`].
//!
//! A "connection" is whatever takes one message after the other to a site: an SMTP connection,
//! or a writer of Maildirs.
//!
//! Invariant: a message's lifetime is looked at wherever it waits; nothing expires before one
//! attempt since the start, except on hold.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use super::arena::{Arena, Slot};
use super::handle::{Handle, Reason, Recipients, State};
use super::site::{SiteIndex, SiteShared};

/// A connection of this core, named by the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A message was accepted, recovered, or handed over by another core.
    Filed {
        /// It.
        handle: Handle,
        /// Whether this core must keep it: it came from another core, or by recovery.
        stay: bool,
    },
    /// A connection is open and can take a message.
    ConnectionReady {
        /// Where it leads.
        site: SiteIndex,
        /// Which one.
        connection: ConnectionId,
    },
    /// A connection that was ready takes no more messages; it is about to close.
    ConnectionLeaving {
        /// Where it leads.
        site: SiteIndex,
        /// Which one.
        connection: ConnectionId,
    },
    /// A connection is gone, or was never made.
    ConnectionClosed {
        /// Where it led.
        site: SiteIndex,
        /// Which one.
        connection: ConnectionId,
    },
    /// The attempt never came to the message: it goes back to the head of its list.
    Returned {
        /// Its handle.
        slot: Slot,
    },
    /// Some recipients are left for a later attempt.
    Deferred {
        /// Its handle.
        slot: Slot,
        /// Who is left.
        recipients: Recipients,
        /// When to try again.
        due_unix_ms: u64,
        /// What the attempt came to; `None` if it does not count as one.
        reason: Option<Reason>,
    },
    /// An operator wants a message tried now.
    Retry {
        /// Its handle.
        slot: Slot,
    },
    /// An operator moves a message to another site, from hold above all.
    Reroute {
        /// Its handle.
        slot: Slot,
        /// Where it goes now.
        site: SiteIndex,
    },
    /// Time has passed.
    Tick,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Open a connection; answer with `ConnectionReady` or `ConnectionClosed` under this id.
    Open {
        /// Where to.
        site: SiteIndex,
        /// Its name.
        connection: ConnectionId,
    },
    /// Deliver a message over a connection that is ready.
    Deliver {
        /// Over which.
        connection: ConnectionId,
        /// Which message.
        slot: Slot,
    },
    /// The message's lifetime is over: tell its sender and end it.
    Expire {
        /// Which.
        slot: Slot,
    },
    /// Another core serves the site; the handle is no longer ours.
    Forward {
        /// The core.
        core: u32,
    },
}

/// How a site takes mail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SiteKind {
    /// Over connections.
    Open,
    /// Not at all until an operator says so.
    Hold,
}

/// The scheduler of one core.
pub struct Scheduler {
    core: u32,
    cores: u32,
    lifetime_ms: u64,
    shared: Arc<[SiteShared]>,
    sites: Vec<SiteQueue>,
    handles: Arena<Handle>,
    /// When something is due, earliest first.
    timers: BTreeSet<(u64, Slot)>,
    actions: VecDeque<Action>,
    /// Expiries that the present tick may still begin.
    expiries_left: u32,
    counts: Counts,
    /// Handles that go to other cores, in the order of their [`Action::Forward`].
    leaving: VecDeque<Handle>,
    connections: u64,
}

/// Handles by what they wait for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts([u64; 4]);

impl Counts {
    /// Handles in a state.
    pub fn of(&self, state: State) -> u64 {
        self.0[state as usize]
    }

    fn change(&mut self, from: State, to: State) {
        self.0[from as usize] -= 1;
        self.0[to as usize] += 1;
    }
}

/// What this core keeps of a site.
struct SiteQueue {
    kind: SiteKind,
    first: Option<Slot>,
    last: Option<Slot>,
    ready: u32,
    /// Connections of ours: opening, busy and idle.  `idle + opening <= open`
    open: u32,
    opening: u32,
    idle: Vec<ConnectionId>,
}

/// Expiries that one tick begins: each reads its message and writes a notice, and a long queue may
/// come to its end at one moment.
const EXPIRIES_PER_TICK: u32 = 64;
/// Ready messages from which a member counts as busy, so that other cores join it.
const BUSY: u32 = 64;

impl Scheduler {
    /// An empty queue for `core` of `cores`, with the sites of `kinds`.
    pub fn new(
        core: u32,
        cores: u32,
        lifetime_ms: u64,
        shared: Arc<[SiteShared]>,
        kinds: impl IntoIterator<Item = SiteKind>,
    ) -> Scheduler {
        let site = |kind| SiteQueue {
            kind,
            first: None,
            last: None,
            ready: 0,
            open: 0,
            opening: 0,
            idle: Vec::new(),
        };
        Scheduler {
            core,
            cores,
            lifetime_ms,
            shared,
            sites: kinds.into_iter().map(site).collect(),
            handles: Arena::default(),
            timers: BTreeSet::new(),
            actions: VecDeque::new(),
            expiries_left: 0,
            counts: Counts::default(),
            leaving: VecDeque::new(),
            // Names are unique over the cores, for the events.
            connections: u64::from(core) << 48,
        }
    }

    /// Takes note of what happened.
    pub fn handle(&mut self, event: Event, now_unix_ms: u64) {
        match event {
            Event::Filed { handle, stay } => self.file(handle, stay, now_unix_ms),
            Event::ConnectionReady { site, connection } => {
                let queue = self.site(site);
                queue.opening = queue.opening.saturating_sub(1);
                queue.idle.push(connection);
                self.pump(site, now_unix_ms);
            }
            Event::ConnectionLeaving { site, connection } => self.leave_idle(site, connection),
            Event::ConnectionClosed { site, connection } => {
                self.connection_closed(site, connection);
                self.pump(site, now_unix_ms);
            }
            Event::Returned { slot } => self.give_back(slot, now_unix_ms),
            Event::Deferred { slot, recipients, due_unix_ms, reason } => {
                let Some(handle) = self.handles.get_mut(slot) else { return };
                handle.recipients = recipients;
                if reason.is_some() {
                    handle.attempts = handle.attempts.saturating_add(1);
                    handle.reason = reason;
                }
                self.wait(slot, State::Deferred, due_unix_ms);
            }
            Event::Retry { slot } => self.retry(slot, now_unix_ms),
            Event::Reroute { slot, site } => self.reroute(slot, site, now_unix_ms),
            Event::Tick => self.tick(now_unix_ms),
        }
    }

    /// What to do next; `None` when nothing is left to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The handle that the last [`Action::Forward`] was about.
    pub fn take_leaving(&mut self) -> Option<Handle> {
        self.leaving.pop_front()
    }

    /// The handle in `slot`.
    pub fn get(&self, slot: Slot) -> Option<&Handle> {
        self.handles.get(slot)
    }

    /// Every handle of this core.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, &Handle)> {
        self.handles.iter()
    }

    /// How many handles this core has.
    pub fn len(&self) -> usize {
        self.handles.len()
    }

    /// How many of them wait for what.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.handles.is_empty()
    }

    /// What the cores share of a site.
    pub fn shared(&self, site: SiteIndex) -> &SiteShared {
        &self.shared[site.0 as usize]
    }

    /// When a message's lifetime ends, by its id.
    pub fn expires_unix_ms(&self, handle: &Handle) -> u64 {
        handle.id.unix_ms().saturating_add(self.lifetime_ms)
    }

    /// An operator leaves only some recipients to a message that is not being sent; the others
    /// are deleted, or have handles of their own.
    pub fn split(&mut self, slot: Slot, left: Recipients, parts: Option<Arc<AtomicU32>>) {
        if let Some(handle) = self.handles.get_mut(slot) {
            handle.recipients = left;
            handle.parts = parts;
        }
    }

    /// Notes that the originator has been told of the delay, or need not be.
    pub fn delay_told(&mut self, slot: Slot) {
        if let Some(handle) = self.handles.get_mut(slot) {
            handle.delay_told = true;
        }
    }

    /// Takes out a handle whose recipients are all done, or that an operator deletes.
    pub fn finish(&mut self, slot: Slot) -> Option<Handle> {
        let (state, due) =
            self.handles.get(slot).map(|handle| (handle.state, handle.due_unix_ms))?;
        match state {
            State::Deferred | State::Held => {
                self.timers.remove(&(due, slot));
            }
            State::Ready => self.unlink(slot),
            State::Active => {}
        }
        self.counts.0[state as usize] -= 1;
        self.handles.remove(slot)
    }

    // ---- filing --------------------------------------------------------------------------

    fn file(&mut self, mut handle: Handle, stay: bool, now_unix_ms: u64) {
        let site = handle.site;
        if self.sites[site.0 as usize].kind == SiteKind::Hold {
            handle.state = State::Held;
            let expires = self.expires_unix_ms(&handle);
            let slot = self.insert(handle);
            return self.wait(slot, State::Held, expires);
        }
        if !stay {
            let member = self.shared(site).member_for(self.core, self.cores);
            if member != self.core {
                self.leaving.push_back(handle);
                return self.actions.push_back(Action::Forward { core: member });
            }
        }
        let held = handle.state == State::Held;
        let expires = self.expires_unix_ms(&handle);
        // A longer schedule of an earlier configuration may have set it beyond the end.
        let due = handle.due_unix_ms.min(expires);
        let slot = self.insert(handle);
        if held {
            self.wait(slot, State::Held, expires);
        } else if due > now_unix_ms {
            self.wait(slot, State::Deferred, due);
        } else {
            self.make_ready(slot);
            self.pump(site, now_unix_ms);
        }
    }

    fn insert(&mut self, handle: Handle) -> Slot {
        self.counts.0[handle.state as usize] += 1;
        self.handles.insert(handle)
    }

    fn wait(&mut self, slot: Slot, state: State, due_unix_ms: u64) {
        let Some(handle) = self.handles.get_mut(slot) else { return };
        self.counts.change(handle.state, state);
        handle.state = state;
        handle.due_unix_ms = due_unix_ms;
        self.timers.insert((due_unix_ms, slot));
    }

    fn retry(&mut self, slot: Slot, now_unix_ms: u64) {
        let Some(handle) = self.handles.get(slot) else { return };
        let (site, state, due) = (handle.site, handle.state, handle.due_unix_ms);
        self.shared(site).wake();
        if state == State::Deferred {
            self.timers.remove(&(due, slot));
            self.make_ready(slot);
        }
        self.pump(site, now_unix_ms);
    }

    fn reroute(&mut self, slot: Slot, site: SiteIndex, now_unix_ms: u64) {
        let Some(handle) = self.handles.get_mut(slot) else { return };
        if handle.state != State::Held {
            return;
        }
        handle.site = site;
        let due = handle.due_unix_ms;
        self.timers.remove(&(due, slot));
        self.make_ready(slot);
        self.pump(site, now_unix_ms);
    }

    // ---- time ----------------------------------------------------------------------------

    fn tick(&mut self, now_unix_ms: u64) {
        self.expiries_left = EXPIRIES_PER_TICK;
        while let Some(&(due, slot)) = self.timers.first() {
            if due > now_unix_ms || self.expiries_left == 0 {
                break;
            }
            self.timers.pop_first();
            self.due(slot, now_unix_ms);
        }
        for index in 0..self.sites.len() {
            let site = SiteIndex(index as u32);
            self.expire_waiting(site, now_unix_ms);
            self.pump(site, now_unix_ms);
        }
    }

    fn due(&mut self, slot: Slot, now_unix_ms: u64) {
        let Some(handle) = self.handles.get(slot) else { return };
        let (site, expires) = (handle.site, self.expires_unix_ms(handle));
        let held = handle.state == State::Held;
        let tried = held || handle.attempts > 0 || self.shared(site).failures() > 0;
        // What is due at the very end of its lifetime has one last attempt.
        let is_late = held || handle.due_unix_ms > expires;
        if tried && is_late && expires <= now_unix_ms {
            return self.expire(slot);
        }
        if held {
            return self.wait(slot, State::Held, expires);
        }
        // Behind a site that rests it would stand in a list that nobody looks through.
        match self.shared(site).rests_until(now_unix_ms) {
            Some(until) => {
                let end = expires.saturating_add(1).max(now_unix_ms + 1);
                self.wait(slot, State::Deferred, until.min(end));
            }
            None => self.make_ready(slot),
        }
    }

    /// The list of a site that does not answer is in the order of age, so its head tells.
    fn expire_waiting(&mut self, site: SiteIndex, now_unix_ms: u64) {
        if self.shared(site).failures() == 0 {
            return;
        }
        while self.expiries_left > 0
            && let Some(slot) = self.site(site).first
        {
            let expires = self.handles.get(slot).map(|handle| self.expires_unix_ms(handle));
            if expires.is_some_and(|expires| expires > now_unix_ms) {
                return;
            }
            self.sites[site.0 as usize].pop(&self.handles);
            self.expire(slot);
        }
    }

    fn expire(&mut self, slot: Slot) {
        self.expiries_left = self.expiries_left.saturating_sub(1);
        if let Some(handle) = self.handles.get_mut(slot) {
            self.counts.change(handle.state, State::Active);
            handle.state = State::Active;
            self.actions.push_back(Action::Expire { slot });
        }
    }

    // ---- connections ---------------------------------------------------------------------

    fn leave_idle(&mut self, site: SiteIndex, connection: ConnectionId) {
        let idle = &mut self.site(site).idle;
        if let Some(place) = idle.iter().position(|&idle| idle == connection) {
            idle.swap_remove(place);
        }
    }

    fn connection_closed(&mut self, site: SiteIndex, connection: ConnectionId) {
        self.leave_idle(site, connection);
        let shared = &self.shared[site.0 as usize];
        let queue = &mut self.sites[site.0 as usize];
        queue.open = queue.open.saturating_sub(1);
        // One that never became ready was still counted as opening.
        queue.opening = queue.opening.min(queue.open);
        shared.release();
        if queue.ready == 0 && queue.open == 0 {
            shared.leave(self.core, self.cores);
        }
    }

    /// Gives ready messages to idle connections, and opens more while that helps.
    fn pump(&mut self, site: SiteIndex, now_unix_ms: u64) {
        let shared = &self.shared[site.0 as usize];
        let queue = &mut self.sites[site.0 as usize];
        while let Some(&connection) = queue.idle.last() {
            let Some(slot) = queue.pop(&self.handles) else { break };
            queue.idle.pop();
            if let Some(handle) = self.handles.get_mut(slot) {
                self.counts.change(handle.state, State::Active);
                handle.state = State::Active;
            }
            self.actions.push_back(Action::Deliver { connection, slot });
        }
        shared.report_backlog(queue.ready > BUSY);
        if shared.rests_until(now_unix_ms).is_some() {
            return;
        }
        // After a failure one connection finds out whether the site is back.
        let most = if shared.failures() > 0 { 1 } else { shared.quota() };
        loop {
            if queue.ready <= queue.opening || queue.open >= most {
                return;
            }
            if !shared.acquire() {
                if queue.open == 0 {
                    // The others use up the limit: as a member this core has its share of it.
                    shared.join(self.core, self.cores);
                }
                return;
            }
            queue.open += 1;
            queue.opening += 1;
            self.connections += 1;
            let connection = ConnectionId(self.connections);
            self.actions.push_back(Action::Open { site, connection });
        }
    }

    fn site(&mut self, site: SiteIndex) -> &mut SiteQueue {
        &mut self.sites[site.0 as usize]
    }

    // ---- the list of ready messages ------------------------------------------------------

    fn make_ready(&mut self, slot: Slot) {
        let Some(handle) = self.handles.get_mut(slot) else { return };
        self.counts.change(handle.state, State::Ready);
        handle.state = State::Ready;
        handle.next = None;
        let queue = &mut self.sites[handle.site.0 as usize];
        queue.ready += 1;
        match queue.last.replace(slot) {
            None => queue.first = Some(slot),
            Some(last) => {
                if let Some(last) = self.handles.get_mut(last) {
                    last.next = Some(slot);
                }
            }
        }
    }

    fn give_back(&mut self, slot: Slot, now_unix_ms: u64) {
        let Some(handle) = self.handles.get_mut(slot) else { return };
        let site = handle.site;
        let queue = &mut self.sites[site.0 as usize];
        self.counts.change(handle.state, State::Ready);
        handle.state = State::Ready;
        handle.next = queue.first.replace(slot);
        queue.last.get_or_insert(slot);
        queue.ready += 1;
        self.pump(site, now_unix_ms);
    }

    /// Takes one out of the middle of its list; an operator's act, so a walk is good enough.
    fn unlink(&mut self, slot: Slot) {
        let Some(handle) = self.handles.get(slot) else { return };
        let (site, next) = (handle.site, handle.next);
        let mut before = None;
        let mut at = self.site(site).first;
        while let Some(here) = at.filter(|&here| here != slot) {
            before = at;
            at = self.handles.get(here).and_then(|handle| handle.next);
        }
        if at.is_none() {
            return;
        }
        if let Some(handle) = before.and_then(|before| self.handles.get_mut(before)) {
            handle.next = next;
        }
        let queue = self.site(site);
        queue.ready -= 1;
        if before.is_none() {
            queue.first = next;
        }
        if next.is_none() {
            queue.last = before;
        }
    }
}

impl SiteQueue {
    /// Takes the head of the list of ready messages.
    fn pop(&mut self, handles: &Arena<Handle>) -> Option<Slot> {
        let slot = self.first?;
        self.first = handles.get(slot).and_then(|handle| handle.next);
        self.ready -= 1;
        if self.first.is_none() {
            self.last = None;
        }
        Some(slot)
    }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
