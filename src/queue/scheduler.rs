//! Which message goes next, on which connection: the delivery scheduler of one core.
//!
//! A pure state machine: [`Scheduler::handle`] takes what happened and the time,
//! [`Scheduler::poll_action`] gives what to do.  It owns the core's handles and keeps each in
//! exactly one place: a list of its destination (ready, deferred), an attempt (active), or an
//! operator's hands (held).  Deferred and held ones have a timer besides.  What the cores share of
//! a site is [`SiteShared`].
//!
//! A "connection" is whatever takes one message after the other to a site: an SMTP connection,
//! or a writer of Maildirs.
//!
//! Invariants: a message's lifetime is looked at wherever it waits; nothing expires before one
//! attempt since the start, except on hold; no event and no tick walks all sites, destinations or
//! messages, so a dead destination with a million of them costs the others nothing.
//!
//! Where to look: `filing` puts handles into their lists, `resolving` finds out where
//! destinations lead, `connections` gives messages to connections, `time` sees to what is due.

mod connections;
mod filing;
mod resolving;
mod time;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use super::allowance::Allowance;
use super::arena::{Arena, Slot};
use super::destination::{
    CourseIndex, CourseRules, Destination, DestinationIndex, DestinationQueue, Destinations, Lead,
    Resolution, Standing, Verdict,
};
use super::handle::{Handle, Reason, Recipients, State};
use super::site::{SiteId, SiteIndex, SiteShared};
use super::timers::Timers;
use crate::message::MessageId;
use crate::sync::parts::Parts;
use connections::SiteQueue;

/// A connection of this core, named by the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// What happened.
pub enum Event {
    /// A message was accepted, recovered, or handed over by another core.
    Filed {
        /// Where it goes.
        destination: Destination,
        /// It.
        handle: Handle,
        /// Whether this core keeps it if it can serve the site at all: it came from another core,
        /// or by recovery.
        stay: bool,
    },
    /// The answer to [`Action::Resolve`].
    Resolved {
        /// Whose site was asked for.
        destination: DestinationIndex,
        /// What was found.
        resolution: Resolution,
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
    /// An operator, or ETRN (RFC 1985), wants everything for a domain tried now, where mail
    /// exchangers take it.
    RetryDomain {
        /// In A-labels and lower case.
        domain: Arc<str>,
    },
    /// The same for one destination.
    RetryDestination {
        /// Which.
        destination: Destination,
    },
    /// An operator moves a message to another destination, from hold above all.
    Reroute {
        /// Its handle.
        slot: Slot,
        /// Where it goes now.
        destination: Destination,
    },
    /// Time has passed.
    Tick,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Find out where a destination's mail goes; answer with `Resolved`.
    Resolve {
        /// Which; see [`Scheduler::destination`].
        destination: DestinationIndex,
    },
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
    /// End a connection that was ready: other cores need it more.
    Close {
        /// Which.
        connection: ConnectionId,
    },
    /// The message's lifetime is over: tell its sender and end it.
    Expire {
        /// Which.
        slot: Slot,
    },
    /// The message waits for a destination that cannot be reached, and is late: tell its sender.
    /// It is active until `Deferred`, or `Returned` once it is noted that he need not be told.
    Delay {
        /// Which.
        slot: Slot,
        /// How long it may wait after that.
        due_unix_ms: u64,
    },
    /// Nobody will ever take the message: tell its sender and end it.
    Refuse {
        /// Which.
        slot: Slot,
        /// Why.
        verdict: Arc<Verdict>,
    },
    /// Another core serves the site; the handle is no longer ours.
    Forward {
        /// The core.
        core: u32,
    },
}

/// The scheduler of one core.
pub struct Scheduler {
    core: u32,
    cores: u32,
    courses: Vec<CourseRules>,
    destinations: Destinations,
    sites: Arena<SiteQueue>,
    site_by_id: HashMap<SiteId, SiteIndex>,
    handles: Arena<Handle>,
    /// When a handle is due.
    timers: Timers,
    /// When a destination or a site is to be looked at, earliest first.
    alarms: BTreeSet<(u64, Alarm)>,
    /// Destinations whose site is to be asked for, and those for which nobody could tell the last
    /// time: they come last.  Those that are asked for are counted.
    to_ask: VecDeque<DestinationIndex>,
    to_ask_again: VecDeque<DestinationIndex>,
    asked: u32,
    /// Destinations whose messages go back.
    refused: VecDeque<DestinationIndex>,
    /// Destinations whose deferred messages are all to be tried now.
    hurried: VecDeque<DestinationIndex>,
    actions: VecDeque<Action>,
    /// Notices that the present tick may still begin, of either kind.
    expiries_left: u32,
    refusals_left: u32,
    counts: Counts,
    /// Handles that go to other cores, in the order of their [`Action::Forward`].
    leaving: VecDeque<(Destination, Handle)>,
    connections: u64,
    /// The connections that all cores may have together.
    allowance: Arc<Allowance>,
    /// Those of this core.
    counted: u32,
    /// Sites that wait for one of those, in their order.
    in_line: VecDeque<SiteIndex>,
    #[cfg(test)]
    steps: u64,
}

/// What is to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Alarm {
    Destination(DestinationIndex),
    Site(SiteIndex),
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

/// Why a ready message is not on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rest {
    /// When it goes on.
    pub until_unix_ms: u64,
    /// What happened, for people.
    pub reason: String,
}

impl Scheduler {
    /// An empty queue for `core` of `cores`.
    pub fn new(core: u32, cores: u32, courses: Vec<CourseRules>) -> Scheduler {
        let mut scheduler = Scheduler {
            core,
            cores,
            destinations: Destinations::new(courses.iter().map(|course| match course.lead {
                Lead::Hold => Standing::Hold,
                Lead::Site(_) | Lead::Exchangers => Standing::Unresolved,
            })),
            courses,
            sites: Arena::default(),
            site_by_id: HashMap::new(),
            handles: Arena::default(),
            timers: Timers::default(),
            alarms: BTreeSet::new(),
            to_ask: VecDeque::new(),
            to_ask_again: VecDeque::new(),
            asked: 0,
            refused: VecDeque::new(),
            hurried: VecDeque::new(),
            actions: VecDeque::new(),
            expiries_left: time::EXPIRIES_PER_TICK,
            refusals_left: time::REFUSALS_PER_TICK,
            counts: Counts::default(),
            leaving: VecDeque::new(),
            // Names are unique over the cores, for the events.
            connections: u64::from(core) << 48,
            allowance: Arc::default(),
            counted: 0,
            in_line: VecDeque::new(),
            #[cfg(test)]
            steps: 0,
        };
        scheduler.resolve_fixed();
        scheduler
    }

    /// The same with no more connections than `allowance` has for all cores.
    pub fn within(self, allowance: Arc<Allowance>) -> Scheduler {
        Scheduler { allowance, ..self }
    }

    /// Takes note of what happened.
    pub fn handle(&mut self, event: Event, now_unix_ms: u64) {
        match event {
            Event::Filed { destination, handle, stay } => {
                self.file(destination, handle, stay, now_unix_ms);
            }
            Event::Resolved { destination, resolution } => {
                self.resolved(destination, resolution, now_unix_ms);
            }
            Event::ConnectionReady { site, connection } => {
                self.connection_ready(site, connection, now_unix_ms);
            }
            Event::ConnectionLeaving { site, connection } => self.leave_idle(site, connection),
            Event::ConnectionClosed { site, connection } => {
                self.connection_closed(site, connection, now_unix_ms);
            }
            Event::Returned { slot } => self.give_back(slot, now_unix_ms),
            Event::Deferred { slot, recipients, due_unix_ms, reason } => {
                let Some(handle) = self.handles.get_mut(slot) else { return };
                handle.recipients = recipients;
                if reason.is_some() {
                    handle.attempts = handle.attempts.saturating_add(1);
                    handle.reason = reason;
                }
                // What waits for an operator goes on waiting for one, and for the end of its time.
                let index = handle.destination;
                let is_hold = matches!(self.destinations.entry(index).standing, Standing::Hold);
                let state = if is_hold { State::Held } else { State::Deferred };
                self.wait(slot, state, due_unix_ms);
            }
            Event::Retry { slot } => self.retry(slot, now_unix_ms),
            Event::RetryDomain { domain } => self.retry_domain(&domain, now_unix_ms),
            Event::RetryDestination { destination } => {
                self.retry_destination(&destination, now_unix_ms);
            }
            Event::Reroute { slot, destination } => self.reroute(slot, destination, now_unix_ms),
            Event::Tick => self.tick(now_unix_ms),
        }
        self.forget_excess();
    }

    /// What to do next; `None` when nothing is left to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The handle that the last [`Action::Forward`] was about, and where it goes.
    pub fn take_leaving(&mut self) -> Option<(Destination, Handle)> {
        self.leaving.pop_front()
    }

    // ---- looks ---------------------------------------------------------------------------

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

    /// How many of them are filed under a destination.
    pub fn count_for(&self, destination: &Destination) -> u64 {
        let entry = self.destinations.find(destination).and_then(|at| self.destinations.get(at));
        entry.map_or(0, |entry| u64::from(entry.handles))
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.handles.is_empty()
    }

    /// Destinations that this core knows, with messages or without.
    pub fn destination_count(&self) -> usize {
        self.destinations.len()
    }

    /// Sites that wait for a connection because all cores together have as many as they may.
    pub fn sites_waiting(&self) -> usize {
        self.in_line.len()
    }

    /// Sites that this core knows.
    pub fn site_count(&self) -> usize {
        self.sites.len()
    }

    /// Timers of messages, of which each has one at most, and alarms of destinations and sites.
    pub fn armed(&self) -> (usize, usize) {
        (self.timers.len(), self.alarms.len())
    }

    /// What messages are filed under there.
    pub fn destination(&self, index: DestinationIndex) -> Option<&Destination> {
        self.destinations.get(index).map(|entry| &entry.key)
    }

    /// Times in a row that it could not be found out where a destination's mail goes.
    pub fn resolution_failures(&self, index: DestinationIndex) -> u32 {
        self.destinations.get(index).map_or(0, |entry| entry.failures)
    }

    /// What the cores share of a site.
    pub fn site(&self, site: SiteIndex) -> Option<&Arc<SiteShared>> {
        self.sites.get(site.slot()).map(|queue| &queue.shared)
    }

    /// Where a destination's mail goes, as far as that is known.
    pub fn site_of(&self, index: DestinationIndex) -> Option<&Arc<SiteShared>> {
        match &self.destinations.get(index)?.standing {
            Standing::Resolved { site, .. } => self.site(*site),
            Standing::Elsewhere { shared, .. } => Some(shared),
            _ => None,
        }
    }

    /// The course by which the message goes that is next at a site: its schedule is the site's.
    pub fn course_of_site(&self, site: SiteIndex) -> Option<CourseIndex> {
        let first = self.sites.get(site.slot())?.ring.first()?;
        let entry = self.destinations.get(DestinationIndex(first.0))?;
        Some(entry.key.course)
    }

    /// Until when nothing for a destination is tried, and why; `None` if it may be now.
    pub fn rest_of(&self, index: DestinationIndex, now_unix_ms: u64) -> Option<Rest> {
        match &self.destinations.get(index)?.standing {
            Standing::Resting { until_unix_ms, reason } => (*until_unix_ms > now_unix_ms)
                .then(|| Rest { until_unix_ms: *until_unix_ms, reason: reason.to_string() }),
            Standing::Resolved { site, .. } => {
                let shared = self.site(*site)?;
                let until_unix_ms = shared.rests_until(now_unix_ms)?;
                Some(Rest { until_unix_ms, reason: shared.last_failure() })
            }
            _ => None,
        }
    }

    /// Whether nothing for a destination is tried now; see [`Scheduler::rest_of`].
    pub fn rests(&self, index: DestinationIndex, now_unix_ms: u64) -> bool {
        match self.destinations.get(index).map(|entry| &entry.standing) {
            Some(Standing::Resting { until_unix_ms, .. }) => *until_unix_ms > now_unix_ms,
            Some(Standing::Resolved { site, .. }) => {
                self.site(*site).is_some_and(|shared| shared.rests_until(now_unix_ms).is_some())
            }
            _ => false,
        }
    }

    /// What the last failure to reach a destination was; empty if there was none.
    pub fn last_failure_of(&self, index: DestinationIndex) -> String {
        match self.destinations.get(index).map(|entry| &entry.standing) {
            Some(Standing::Resting { reason, .. }) => reason.to_string(),
            Some(Standing::Resolved { site, .. }) => {
                self.site(*site).map(|shared| shared.last_failure()).unwrap_or_default()
            }
            _ => String::new(),
        }
    }

    /// Messages of this core that wait for a domain's mail exchangers.
    pub fn waiting_for(&self, domain: &str) -> u64 {
        let of_course = |course| self.destinations.find(&destination(course, domain));
        let found = self.exchanger_courses().filter_map(of_course);
        found.filter_map(|index| self.destinations.get(index)).map(|d| u64::from(d.handles)).sum()
    }

    /// When a message's lifetime ends, by its id.
    pub fn expires_unix_ms(&self, handle: &Handle) -> u64 {
        self.expiry(handle.destination, handle.id)
    }

    /// The places of this core's table of destinations, free ones too: for those who walk it.
    pub fn destination_places(&self) -> u32 {
        self.destinations.places()
    }

    /// The destination at a place, with how many of its messages wait for a time; `None` if none
    /// does.
    pub fn waiting_at(&self, place: u32, now_unix_ms: u64) -> Option<(&Destination, u64)> {
        let index = DestinationIndex(place);
        let entry = self.destinations.get(index)?;
        let is_resting = !entry.ready.is_empty() && self.rests(index, now_unix_ms);
        let ready = if is_resting { entry.ready.len() } else { 0 };
        let waiting = u64::from(entry.deferred.len()) + u64::from(ready);
        (waiting > 0).then_some((&entry.key, waiting))
    }

    // ---- what operators change -----------------------------------------------------------

    /// An operator leaves only some recipients to a message that is not being sent; the others
    /// are deleted, or have handles of their own.
    pub fn split(&mut self, slot: Slot, left: Recipients, parts: Option<Arc<Parts>>) {
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

    /// Notes that an operator has let it go.
    pub fn released(&mut self, slot: Slot) {
        if let Some(handle) = self.handles.get_mut(slot) {
            handle.released = true;
        }
    }

    /// Takes out a handle whose recipients are all done, or that an operator deletes.
    pub fn finish(&mut self, slot: Slot) -> Option<Handle> {
        let state = self.handles.get(slot)?.state;
        match state {
            State::Deferred => self.undefer(slot),
            State::Held => self.unset_timer(slot),
            State::Ready => self.unready(slot),
            State::Active => self.unset_timer(slot),
        }
        self.counts.0[state as usize] -= 1;
        let handle = self.handles.remove(slot)?;
        self.destinations.count_out(handle.destination);
        Some(handle)
    }

    // ---- parts ---------------------------------------------------------------------------

    fn exchanger_courses(&self) -> impl Iterator<Item = CourseIndex> {
        let is_mail = |(place, course): (usize, &CourseRules)| {
            matches!(course.lead, Lead::Exchangers).then_some(CourseIndex(place as u32))
        };
        self.courses.iter().enumerate().filter_map(is_mail)
    }

    fn expiry(&self, index: DestinationIndex, id: MessageId) -> u64 {
        let course = self.course_of(index);
        id.unix_ms().saturating_add(course.map_or(u64::MAX, |course| course.lifetime_ms))
    }

    /// When a message's age matters next: it is late, or its lifetime is over.
    fn look_unix_ms(&self, slot: Slot) -> u64 {
        let Some(handle) = self.handles.get(slot) else { return u64::MAX };
        let late_ms = self.course_of(handle.destination).and_then(|course| course.late_ms);
        let late = late_ms.filter(|_| !handle.delay_told);
        let late = late.map_or(u64::MAX, |ms| handle.id.unix_ms().saturating_add(ms));
        late.min(self.expires_unix_ms(handle))
    }

    fn course_of(&self, index: DestinationIndex) -> Option<&CourseRules> {
        self.courses.get(self.destinations.get(index)?.key.course.0 as usize)
    }

    /// Counts one step of work, so that tests can hold what an event costs against a bound.
    #[inline]
    fn step(&mut self) {
        #[cfg(test)]
        {
            self.steps += 1;
        }
    }
}

fn destination(course: CourseIndex, domain: &str) -> Destination {
    Destination { course, domain: Some(domain.into()) }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "scheduler_model_tests.rs"]
mod model_tests;
