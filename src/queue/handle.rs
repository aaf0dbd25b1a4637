//! What the queue keeps of a message: one small handle for each destination that it has.
//!
//! Envelope and body stay in the log and are read when an attempt is due.

use std::collections::VecDeque;
use std::sync::Arc;

use super::destination::DestinationIndex;
use super::list::{Linked, Links, Timed, Waiting};
use crate::message::MessageId;
use crate::spool::RecordPlace;
use crate::sync::parts::Parts;

/// One message's way to one destination.
#[derive(Debug, Clone)]
pub struct Handle {
    /// The message.
    pub id: MessageId,
    /// Where its MESSAGE record stands in the log.
    pub place: RecordPlace,
    /// Where it goes, in the table of the scheduler that has it, or of the recovery that found it;
    /// set when it is filed.
    pub(super) destination: DestinationIndex,
    /// Those of its recipients that go there and are not done.
    pub recipients: Recipients,
    /// How many handles of the message have not come to an end that is in the log, where it began
    /// with more than one.
    pub parts: Option<Arc<Parts>>,
    /// Attempts that came to a reply or to a failure of this message.
    pub attempts: u16,
    /// Its originator has been told of the delay, or need not be.
    pub delay_told: bool,
    /// An operator has let it go past the routes that hold, which every record of its waits says.
    pub released: bool,
    /// What it waits for.
    pub state: State,
    /// What the last attempt came to; shared by all that heard the same.
    pub reason: Option<Reason>,
    /// Its neighbours in a list of its destination.
    pub(super) links: Links,
    /// Its neighbours among the timers.
    timer_links: Links,
    /// When its wait is over, in milliseconds since 1970 UTC; its key among the timers, and 0 if it
    /// is not among them.
    pub due_unix_ms: u64,
}

/// A line for people, shared.
pub type Reason = Arc<Box<str>>;

/// Reasons that were heard of late, so that a million messages which failed alike share one.
#[derive(Debug, Default)]
pub struct Reasons {
    recent: VecDeque<Reason>,
}

impl Reasons {
    /// How many are remembered.
    const KEPT: usize = 64;

    /// The shared form of a line.
    pub fn share(&mut self, line: &str) -> Reason {
        if let Some(known) = self.recent.iter().rev().find(|known| known.as_ref().as_ref() == line)
        {
            return known.clone();
        }
        if self.recent.len() >= Self::KEPT {
            self.recent.pop_front();
        }
        let reason = Reason::new(line.into());
        self.recent.push_back(reason.clone());
        reason
    }
}

/// What a handle waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// A connection.
    Ready,
    /// The end of the attempt under way.
    Active,
    /// The time of its next attempt.
    Deferred,
    /// An operator, or the end of its lifetime.
    Held,
}

/// Recipients of a message by their place in its envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recipients {
    /// Every one of so many, which is nearly always so.
    All(u16),
    /// These, in order.
    Some(Box<[u16]>),
}

impl Recipients {
    /// The places.
    pub fn places(&self) -> Vec<u16> {
        match self {
            Recipients::All(count) => (0..*count).collect(),
            Recipients::Some(places) => places.to_vec(),
        }
    }

    /// How many they are.
    pub fn count(&self) -> usize {
        match self {
            Recipients::All(count) => usize::from(*count),
            Recipients::Some(places) => places.len(),
        }
    }

    /// Those at `places`, ascending, of an envelope with `count`.
    pub fn of(places: Vec<u16>, count: usize) -> Recipients {
        if places.len() == count {
            return Recipients::All(count as u16);
        }
        Recipients::Some(places.into())
    }
}

impl Handle {
    /// A message that waits for its first attempt.
    pub fn new(
        id: MessageId,
        place: RecordPlace,
        recipients: Recipients,
        parts: Option<Arc<Parts>>,
    ) -> Handle {
        Handle {
            id,
            place,
            destination: DestinationIndex::UNFILED,
            recipients,
            parts,
            attempts: 0,
            delay_told: false,
            released: false,
            state: State::Ready,
            reason: None,
            links: Links::default(),
            timer_links: Links::default(),
            due_unix_ms: 0,
        }
    }

    /// Notes where it goes, in a table of its finder's, until it is filed.
    pub fn lead_to(&mut self, destination: DestinationIndex) {
        self.destination = destination;
    }

    /// Where it goes, in the table of the scheduler that has it.
    pub fn destination(&self) -> DestinationIndex {
        self.destination
    }

    /// Whether the ends of all other parts are in the log.  Only then may the DONE that ends this
    /// part say that it is the message's last: it may reach the disk before a DONE, or a notice,
    /// that another core has appended, and a crash between the two would lose that one.
    pub fn is_only_part(&self) -> bool {
        self.parts.as_ref().is_none_or(|parts| parts.is_one_left())
    }

    /// The end of this part is in the log; tells whether no other is left.
    pub fn end_part(&self) -> bool {
        self.parts.as_ref().is_none_or(|parts| parts.end_one())
    }
}

impl Linked<Waiting> for Handle {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

impl Linked<Timed> for Handle {
    fn links(&mut self) -> &mut Links {
        &mut self.timer_links
    }
}

// A million handles are 88 MB; a field that would make one larger has to be worth it.
const _: () = assert!(size_of::<Handle>() <= 88);
