//! A worker's end of the [`office`](super::office): sessions show their messages here and wait for
//! what rspamd says.
//!
//! No more messages of a worker are with rspamd than may be; others wait for their [`Turn`], the one
//! that came first in front.  Half of them at most are shown while they come, and may take their time,
//! and half of them are read back from the log, and take memory for it: more of either kind wait among
//! themselves first, and the others pass them.  Who waits sets the deadline, and who gives up leaves
//! nothing behind.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use hyper::body::Bytes;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::office::{Announce, Errand, Handle, Message, News, Piece, Teller};
use super::question::Question;
use super::{Assessment, Failure};
use crate::limits;
use crate::runtime::notify::{Handover, Notify};

/// See the module's text.
pub struct Desk {
    office: Handle,
    announce: Announce,
    /// Errands under way, by the number that the office has of them.
    open: RefCell<HashMap<u64, Rc<Open>>>,
    next: Cell<u64>,
    /// For each message that may be with rspamd at a time.
    turns: Arc<Semaphore>,
    /// For each of those that may be read back from the log.
    reading: Arc<Semaphore>,
    /// For each of those that may be shown while it comes.
    following: Arc<Semaphore>,
}

/// Leave to show one message; given back when dropped.
#[must_use]
pub struct Turn {
    _of_all: OwnedSemaphorePermit,
    /// Of one that is read back, or shown while it comes.
    _of_kind: Option<OwnedSemaphorePermit>,
}

/// One errand, as far as its session has heard.
#[derive(Default)]
struct Open {
    taken: Notify,
    is_done: Cell<bool>,
    done: Handover<Result<Assessment, Failure>>,
}

/// A message on its way to rspamd; given up when dropped before its end.
pub struct Showing {
    desk: Rc<Desk>,
    token: u64,
    open: Rc<Open>,
    pieces: Option<mpsc::Sender<Piece>>,
    /// Dropped with this, it ends the errand.
    _waits: oneshot::Sender<()>,
    /// Dropped after it: whoever has the next turn finds one errand less.
    _turn: Turn,
}

impl Desk {
    /// The desk of one of `workers`, whose news `announce` brings to [`Desk::opened`].
    pub fn new(office: Handle, announce: Announce, workers: usize) -> Desk {
        let at_once = (limits::RSPAMD_AT_ONCE / workers.max(1)).max(1);
        let half = (at_once / 2).max(1);
        Desk {
            office,
            announce,
            open: RefCell::default(),
            next: Cell::new(0),
            turns: Arc::new(Semaphore::new(at_once)),
            reading: Arc::new(Semaphore::new(half)),
            following: Arc::new(Semaphore::new(half)),
        }
    }

    /// Waits until one more message may be shown, which is in memory.
    pub async fn turn(&self) -> Turn {
        Turn { _of_all: permit(&self.turns).await, _of_kind: None }
    }

    /// Waits until one more message may be shown that is read back from the log for it.
    pub async fn turn_to_read(&self) -> Turn {
        self.turn_among(&self.reading).await
    }

    /// Waits until one more message may be shown while it comes.
    pub async fn turn_to_follow(&self) -> Turn {
        self.turn_among(&self.following).await
    }

    async fn turn_among(&self, kind: &Arc<Semaphore>) -> Turn {
        let of_kind = permit(kind).await;
        Turn { _of_all: permit(&self.turns).await, _of_kind: Some(of_kind) }
    }

    /// Shows a whole message.
    pub fn show(
        self: &Rc<Desk>,
        turn: Turn,
        question: Question,
        octets: Vec<u8>,
        deadline: Instant,
    ) -> Showing {
        self.begin(turn, question, Message::Whole(octets.into()), None, deadline)
    }

    /// Begins to show a message of so many octets, if that is known; [`Showing::pass`] brings them.
    pub fn begin_showing(
        self: &Rc<Desk>,
        turn: Turn,
        question: Question,
        octets: Option<u64>,
        deadline: Instant,
    ) -> Showing {
        let (pieces, taken) = mpsc::channel(1);
        let message = Message::Pieces { octets, pieces: taken };
        self.begin(turn, question, message, Some(pieces), deadline)
    }

    fn begin(
        self: &Rc<Desk>,
        turn: Turn,
        question: Question,
        message: Message,
        pieces: Option<mpsc::Sender<Piece>>,
        deadline: Instant,
    ) -> Showing {
        let token = self.next.replace(self.next.get() + 1);
        let open: Rc<Open> = Rc::default();
        self.open.borrow_mut().insert(token, open.clone());
        let teller = Teller::new(self.announce.clone(), token);
        let (waits, given_up) = oneshot::channel();
        self.office.send(Errand { question, message, deadline, given_up, teller });
        Showing { desk: self.clone(), token, open, pieces, _waits: waits, _turn: turn }
    }

    /// Tells the operator that a message was not judged, once in a while.
    pub fn warn(&self, failure: Failure) {
        self.office.warn(failure);
    }

    /// Takes what the office tells of an errand; what nobody waits for any more is passed over.
    pub fn opened(&self, token: u64, news: News) {
        let Some(open) = self.open.borrow().get(&token).cloned() else { return };
        if let News::Done(result) = news {
            open.is_done.set(true);
            open.done.give_if_empty(*result);
        }
        open.taken.notify();
    }
}

impl Showing {
    /// Passes on octets, as soon as there is room; they are for nothing once rspamd has answered.
    pub async fn pass(&mut self, octets: Vec<u8>) {
        if octets.is_empty() {
            return;
        }
        let octets = Bytes::from(octets);
        let mut from = 0;
        while from < octets.len() {
            let until = octets.len().min(from + limits::RSPAMD_PIECE);
            self.pass_piece(Piece::Octets(octets.slice(from..until))).await;
            from = until;
        }
    }

    /// The message ends here: waits for what rspamd says.
    ///
    /// # Errors
    /// It says nothing that could be understood.
    pub async fn assessment(mut self) -> Result<Assessment, Failure> {
        self.pass_piece(Piece::End).await;
        self.open.done.take().await
    }

    async fn pass_piece(&mut self, mut piece: Piece) {
        let Some(pieces) = &self.pieces else { return };
        loop {
            piece = match pieces.try_send(piece) {
                Ok(()) => return,
                Err(TrySendError::Full(piece)) if !self.open.is_done.get() => piece,
                Err(TrySendError::Full(_) | TrySendError::Closed(_)) => break,
            };
            self.open.taken.notified().await;
        }
        self.pieces = None;
    }
}

impl Drop for Showing {
    fn drop(&mut self) {
        self.desk.open.borrow_mut().remove(&self.token);
    }
}

/// Waits for one of `permits`.  They go in the order in which they were asked for, however long that
/// takes: one that comes free belongs to the first who waits before anybody else can look.
async fn permit(permits: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    permits.clone().acquire_owned().await.expect("nobody closes it")
}

#[cfg(test)]
#[path = "desk_tests.rs"]
mod tests;
