//! The connections of one core by name, and how each is given its next message.
//!
//! Which connection gets which message is the scheduler's decision
//! ([`crate::queue::scheduler`]); here stands only the place where the message is handed over.
//! Invariant: a lane is in the table from its opening to its `ConnectionClosed`.

pub mod dial;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use crate::queue::arena::Slot;
use crate::queue::scheduler::ConnectionId;
use crate::runtime::notify::Handover;

/// The connections of this core.
#[derive(Default)]
pub struct Pool {
    lanes: RefCell<HashMap<ConnectionId, Rc<Lane>>>,
}

/// Where one connection waits for its next message.
#[derive(Default)]
pub struct Lane {
    next: Handover<Option<Slot>>,
    /// It has been ready for a message: its peer has greeted us.
    was_ready: Cell<bool>,
}

impl Pool {
    /// A new connection.
    pub fn open(&self, connection: ConnectionId) -> Rc<Lane> {
        let lane = Rc::new(Lane::default());
        self.lanes.borrow_mut().insert(connection, lane.clone());
        lane
    }

    /// Hands a message to a connection; `false` if there is none of that name.
    pub fn give(&self, connection: ConnectionId, slot: Slot) -> bool {
        let lanes = self.lanes.borrow();
        lanes.get(&connection).map(|lane| lane.next.give(Some(slot))).is_some()
    }

    /// Tells a connection that waits for a message to end.
    pub fn end(&self, connection: ConnectionId) {
        if let Some(lane) = self.lanes.borrow().get(&connection) {
            lane.next.give_if_empty(None);
        }
    }

    /// The connection is gone.
    pub fn close(&self, connection: ConnectionId) {
        self.lanes.borrow_mut().remove(&connection);
    }

    /// Tells every connection that waits to end.
    pub fn end_waiting(&self) {
        for lane in self.lanes.borrow().values() {
            lane.next.give_if_empty(None);
        }
    }

    /// Whether there are none that a stop has to wait for.  One that was never ready has no
    /// message and nobody to say good-bye to, and its peer may be silent for minutes yet.
    pub fn is_quiet(&self) -> bool {
        !self.lanes.borrow().values().any(|lane| lane.was_ready.get())
    }
}

impl Lane {
    /// The next message, if it was handed over already.
    pub fn take_now(&self) -> Option<Slot> {
        self.next.take_now().flatten()
    }

    /// The next message; `None` when none came in time, or when the service stops.
    pub async fn next(&self, idle_timeout: Duration) -> Option<Slot> {
        self.was_ready.set(true);
        // Nearly always the message is there already: no timer for that.
        if let Some(next) = self.next.take_now() {
            return next;
        }
        let next = crate::runtime::timeout(idle_timeout, self.next.take()).await.flatten();
        // One that was given while the timer fired must not be lost.
        next.or_else(|| self.next.take_now().flatten())
    }
}
