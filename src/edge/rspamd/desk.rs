//! A worker's end of the [`office`](super::office): sessions show their messages here and wait for
//! what rspamd says.
//!
//! No more messages of a worker are with rspamd than may be; others wait for their turn, the one
//! that came first in front: who comes later passes nobody for whom there is room.  Of those that are
//! shown while they come, and may take their time, there are half as many at most; when there are,
//! the others pass them.  Who waits sets the deadline, and who gives up leaves nothing behind.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::Instant;

use hyper::body::Bytes;
use tokio::sync::mpsc::{self, error::TrySendError};
use tokio::sync::oneshot;

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
    at_once: usize,
    /// Of those under way, the ones that are shown while they come.
    following: Cell<usize>,
    waiting: RefCell<Waiting>,
}

/// Who waits for a turn, by a number that grows: the first came first.
#[derive(Default)]
struct Waiting {
    next: u64,
    whole: BTreeMap<u64, Rc<Notify>>,
    following: BTreeMap<u64, Rc<Notify>>,
}

/// What somebody waits to do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Whole,
    Following,
}

/// Somebody's place among those who wait; left when dropped, whether or not it came to a turn.
struct Place<'a> {
    desk: &'a Desk,
    purpose: Purpose,
    number: u64,
    woken: Rc<Notify>,
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
    follows: bool,
    /// Dropped with this, it ends the errand.
    _waits: oneshot::Sender<()>,
}

impl Desk {
    /// The desk of one of `workers`, whose news `announce` brings to [`Desk::opened`].
    pub fn new(office: Handle, announce: Announce, workers: usize) -> Desk {
        Desk {
            office,
            announce,
            open: RefCell::default(),
            next: Cell::new(0),
            at_once: (limits::RSPAMD_AT_ONCE / workers.max(1)).max(1),
            following: Cell::new(0),
            waiting: RefCell::default(),
        }
    }

    /// Waits until one more message may be shown.
    pub async fn turn(&self) {
        self.turn_for(Purpose::Whole).await;
    }

    /// Waits until one more message may be shown while it comes.
    pub async fn turn_to_follow(&self) {
        self.turn_for(Purpose::Following).await;
    }

    async fn turn_for(&self, purpose: Purpose) {
        if self.first().is_none() && self.has_room(purpose) {
            return;
        }
        let place = Place::last(self, purpose);
        while self.first().is_none_or(|(number, _)| number != place.number) {
            place.woken.notified().await;
        }
    }

    fn has_room(&self, purpose: Purpose) -> bool {
        let is_free = self.open.borrow().len() < self.at_once;
        let most = (self.at_once / 2).max(1);
        is_free && (purpose == Purpose::Whole || self.following.get() < most)
    }

    /// The first of those who wait for whom there is room.
    fn first(&self) -> Option<(u64, Rc<Notify>)> {
        let waiting = self.waiting.borrow();
        let first = |purpose| match self.has_room(purpose) {
            true => waiting.of(purpose).first_key_value(),
            false => None,
        };
        let firsts = [first(Purpose::Whole), first(Purpose::Following)];
        let first = firsts.into_iter().flatten().min_by_key(|(number, _)| **number);
        first.map(|(number, woken)| (*number, woken.clone()))
    }

    /// Lets the first of those who wait look, if there is room.  It wakes the next one when it
    /// leaves its place, so that no room that is left over is forgotten.
    fn wake(&self) {
        if let Some((_, woken)) = self.first() {
            woken.notify();
        }
    }

    /// Shows a whole message; it is this one's [`Desk::turn`].
    pub fn show(
        self: &Rc<Desk>,
        question: Question,
        octets: Vec<u8>,
        deadline: Instant,
    ) -> Showing {
        self.begin(question, Message::Whole(octets.into()), None, deadline)
    }

    /// Begins to show a message of so many octets, if that is known; [`Showing::pass`] brings them.
    pub fn begin_showing(
        self: &Rc<Desk>,
        question: Question,
        octets: Option<u64>,
        deadline: Instant,
    ) -> Showing {
        let (pieces, taken) = mpsc::channel(1);
        let message = Message::Pieces { octets, pieces: taken };
        self.begin(question, message, Some(pieces), deadline)
    }

    /// Begins to show a message that has not come whole; it is its [`Desk::turn_to_follow`].
    pub fn begin_following(self: &Rc<Desk>, question: Question, deadline: Instant) -> Showing {
        let mut showing = self.begin_showing(question, None, deadline);
        self.following.update(|following| following + 1);
        showing.follows = true;
        showing
    }

    fn begin(
        self: &Rc<Desk>,
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
        Showing { desk: self.clone(), token, open, pieces, follows: false, _waits: waits }
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
        if self.follows {
            self.desk.following.update(|following| following - 1);
        }
        self.desk.wake();
    }
}

impl Waiting {
    fn of(&self, purpose: Purpose) -> &BTreeMap<u64, Rc<Notify>> {
        match purpose {
            Purpose::Whole => &self.whole,
            Purpose::Following => &self.following,
        }
    }

    fn of_mut(&mut self, purpose: Purpose) -> &mut BTreeMap<u64, Rc<Notify>> {
        match purpose {
            Purpose::Whole => &mut self.whole,
            Purpose::Following => &mut self.following,
        }
    }
}

impl<'a> Place<'a> {
    /// The place behind all others.
    fn last(desk: &'a Desk, purpose: Purpose) -> Place<'a> {
        let mut waiting = desk.waiting.borrow_mut();
        let (number, woken) = (waiting.next, Rc::<Notify>::default());
        waiting.next += 1;
        waiting.of_mut(purpose).insert(number, woken.clone());
        Place { desk, purpose, number, woken }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.desk.waiting.borrow_mut().of_mut(self.purpose).remove(&self.number);
        self.desk.wake();
    }
}

#[cfg(test)]
#[path = "desk_tests.rs"]
mod tests;
