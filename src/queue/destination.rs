//! Where messages are filed: destinations, and one core's table of them.
//!
//! A destination is known as soon as a recipient's route is, so filing never waits for DNS.  What
//! it resolves to is its `Standing`, which belongs to the whole destination: a million messages
//! for a domain that is dead, or that has moved, are one entry here.
//!
//! Each core has a table of its own, and a destination's identity is its content, not its place
//! in a table: a handle that goes to another core takes its [`Destination`] with it and is filed
//! there anew.  So no table is shared and nothing is locked.
//!
//! Invariant: an entry with handles stays; one without is kept as a memory of what it resolved
//! to, within a bound, the longest unused forgotten first.

use std::collections::HashMap;
use std::sync::Arc;

use super::arena::{Arena, Slot};
use super::handle::Reason;
use super::list::{Linked, Links, List};
use super::site::{SiteIndex, SiteShared};
use crate::smtp::code::EnhancedCode;

/// A course's place among those of the configuration: what routes say about going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CourseIndex(pub u32);

/// What a message is filed under.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Destination {
    /// How its route says that mail goes on.
    pub course: CourseIndex,
    /// The domain whose mail exchangers take it, in A-labels and lower case, or an address
    /// literal; `None` where the course names its next hop itself.
    pub domain: Option<Arc<str>>,
}

/// A destination's place in the table of one core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DestinationIndex(pub(super) u32);

impl DestinationIndex {
    /// Of a handle that no scheduler has yet.
    pub(super) const UNFILED: DestinationIndex = DestinationIndex(u32::MAX);

    /// The place of a destination in a table that is no scheduler's.
    pub fn at(place: usize) -> DestinationIndex {
        DestinationIndex(u32::try_from(place).expect("fewer destinations than messages"))
    }

    /// Its place in such a table.
    pub fn place(self) -> usize {
        self.0 as usize
    }

    pub(super) fn slot(self) -> Slot {
        Slot(self.0)
    }
}

/// What the queue has to know of a course.
#[derive(Clone)]
pub struct CourseRules {
    /// Where it leads.
    pub lead: Lead,
    /// How long a message may stay, in milliseconds from its acceptance.
    pub lifetime_ms: u64,
    /// The age at which its sender is told that it is late, in milliseconds; `None`: never.
    pub late_ms: Option<u64>,
}

/// Where a course leads.
#[derive(Clone)]
pub enum Lead {
    /// To this site, always.
    Site(Arc<SiteShared>),
    /// To the mail exchangers of each domain, which have to be asked for.
    Exchangers,
    /// Nowhere until an operator says so.
    Hold,
}

/// Why nobody will ever take mail for a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The status of RFC 3463.
    pub status: EnhancedCode,
    /// What is wrong, as a clause.
    pub text: Box<str>,
}

/// What asking for a destination's site came to.
#[derive(Clone)]
pub enum Resolution {
    /// Its mail goes there.
    Site {
        /// Where.
        shared: Arc<SiteShared>,
        /// How long that holds.
        until_unix_ms: u64,
    },
    /// Nobody takes its mail, and nobody will.
    NoMail {
        /// Why.
        verdict: Arc<Verdict>,
        /// How long that holds.
        until_unix_ms: u64,
    },
    /// It could not be found out.
    Later {
        /// Why.
        reason: Reason,
        /// When to ask again: by the course's schedule, with jitter.
        until_unix_ms: u64,
    },
}

/// What is known of a destination.
pub(super) enum Standing {
    /// Its messages wait for an operator.
    Hold,
    /// Nothing is known.
    Unresolved,
    /// Its mail goes to a site.
    Resolved { site: SiteIndex, until_unix_ms: u64 },
    /// It could not be found out; nobody asks again before then.
    Resting { until_unix_ms: u64, reason: Reason },
    /// Its mail goes to a site that another core serves: messages that came before that was known
    /// are handed over a bounded number at a time.
    Elsewhere { shared: Arc<SiteShared>, until_unix_ms: u64 },
    /// Its messages go back, a few at a time.
    Refusing { verdict: Arc<Verdict>, until_unix_ms: u64 },
}

/// Whether the destination's site is being asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asking {
    No,
    /// Others are asked for first.
    Waiting,
    /// The driver is at it.
    Asked,
}

/// Which list a destination stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Listed {
    No,
    /// The ring of the site that it is resolved to: it has ready messages.
    Ring,
    /// The list of those without messages.
    Idle,
}

/// One destination and its messages on this core.
pub(super) struct DestinationQueue {
    pub(super) key: Destination,
    pub(super) standing: Standing,
    pub(super) asking: Asking,
    /// Times in a row that it could not be found out where its mail goes.
    pub(super) failures: u32,
    /// Until when the answer held by which it has its site.
    pub(super) held_until_unix_ms: u64,
    /// Messages that wait for a connection, or for it to be known where they go.
    pub(super) ready: List,
    /// Messages that wait for their next attempt.
    pub(super) deferred: List,
    /// All messages of this destination, held and active ones too.
    pub(super) handles: u32,
    /// The latest time at which the age of any of those matters that were put into `ready` since
    /// it was empty: what comes behind them and matters sooner has a timer of its own.
    pub(super) newest_unix_ms: u64,
    /// When it is to be looked at: at the latest when the first in `ready` expires.
    pub(super) alarm_unix_ms: Option<u64>,
    /// Deferred ones that are still to be made ready on an operator's word, a bounded number a
    /// tick.
    pub(super) hurried: u32,
    /// Whether it stands in the queue of those whose messages go back.
    pub(super) is_refused: bool,
    pub(super) listed: Listed,
    links: Links,
}

impl Linked for DestinationQueue {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

impl DestinationQueue {
    fn new(key: Destination, standing: Standing) -> DestinationQueue {
        DestinationQueue {
            key,
            standing,
            asking: Asking::No,
            failures: 0,
            held_until_unix_ms: 0,
            ready: List::default(),
            deferred: List::default(),
            handles: 0,
            newest_unix_ms: 0,
            alarm_unix_ms: None,
            hurried: 0,
            is_refused: false,
            listed: Listed::No,
            links: Links::default(),
        }
    }

    /// The site that its mail goes to, if that is known.
    pub(super) fn site(&self) -> Option<SiteIndex> {
        match self.standing {
            Standing::Resolved { site, .. } => Some(site),
            _ => None,
        }
    }

    /// Whether it may be forgotten once it has no messages.
    fn is_memory(&self) -> bool {
        self.key.domain.is_some() && self.handles == 0
    }
}

/// The destinations of one core.  Those of courses that name their next hop stand first, in the
/// order of the courses, and stay.
pub(super) struct Destinations {
    entries: Arena<DestinationQueue>,
    by_key: HashMap<Destination, DestinationIndex>,
    /// Those without messages, the longest unused first.
    idle: List,
}

impl Destinations {
    /// A table with an entry for each course; `standing` says what is known of it.
    pub(super) fn new(standings: impl IntoIterator<Item = Standing>) -> Destinations {
        let mut entries = Arena::default();
        for (place, standing) in standings.into_iter().enumerate() {
            let course = CourseIndex(place as u32);
            let key = Destination { course, domain: None };
            let slot = entries.insert(DestinationQueue::new(key, standing));
            assert_eq!(slot.0, course.0, "a new arena fills its slots in order");
        }
        Destinations { entries, by_key: HashMap::new(), idle: List::default() }
    }

    pub(super) fn find(&self, key: &Destination) -> Option<DestinationIndex> {
        match key.domain {
            // Nearly every message of a relay with one smart host: no look-up.
            None => Some(DestinationIndex(key.course.0)),
            Some(_) => self.by_key.get(key).copied(),
        }
    }

    /// The place of a destination, which may be new.
    pub(super) fn place(&mut self, key: &Destination) -> DestinationIndex {
        if let Some(index) = self.find(key) {
            return index;
        }
        let slot = self.entries.insert(DestinationQueue::new(key.clone(), Standing::Unresolved));
        let index = DestinationIndex(slot.0);
        self.by_key.insert(key.clone(), index);
        self.list_idle(index);
        index
    }

    pub(super) fn get(&self, index: DestinationIndex) -> Option<&DestinationQueue> {
        self.entries.get(index.slot())
    }

    pub(super) fn entry(&mut self, index: DestinationIndex) -> &mut DestinationQueue {
        self.entries.get_mut(index.slot()).expect("a destination with messages or a task stays")
    }

    pub(super) fn entries(&mut self) -> &mut Arena<DestinationQueue> {
        &mut self.entries
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (DestinationIndex, &DestinationQueue)> {
        self.entries.iter().map(|(slot, entry)| (DestinationIndex(slot.0), entry))
    }

    /// One message more.
    pub(super) fn count_in(&mut self, index: DestinationIndex) {
        let entry = self.entry(index);
        entry.handles += 1;
        if entry.listed == Listed::Idle {
            entry.listed = Listed::No;
            self.idle.remove(&mut self.entries, index.slot());
        }
    }

    /// One message less.
    pub(super) fn count_out(&mut self, index: DestinationIndex) {
        self.entry(index).handles -= 1;
        self.list_idle(index);
    }

    /// Lists a destination as one that may be forgotten, if it is.
    pub(super) fn list_idle(&mut self, index: DestinationIndex) {
        let entry = self.entry(index);
        if entry.is_memory() && entry.listed == Listed::No {
            entry.listed = Listed::Idle;
            self.idle.push_back(&mut self.entries, index.slot());
        }
    }

    /// One that is to be forgotten because `most` are remembered; it must leave its site first.
    pub(super) fn excess(&mut self, most: u32) -> Option<DestinationIndex> {
        let first = self.idle.first().filter(|_| self.idle.len() > most)?;
        let index = DestinationIndex(first.0);
        // One that is being asked for is needed for the answer; it goes to the end of the list.
        if self.entry(index).asking != Asking::No {
            self.idle.rotate(&mut self.entries);
            return None;
        }
        Some(index)
    }

    /// Forgets one of [`Destinations::excess`].
    pub(super) fn forget(&mut self, index: DestinationIndex) {
        self.idle.remove(&mut self.entries, index.slot());
        let entry = self.entries.remove(index.slot());
        self.by_key.remove(&entry.expect("it was in a list").key);
    }

    /// The places of the table, free ones too.
    pub(super) fn places(&self) -> u32 {
        self.entries.places()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}
