//! What happened, as JSON lines: one object a line for every session, message and attempt.
//!
//! A worker formats an [`Event`] into a block of its own ([`EventBuffer`]); full blocks go to the
//! one thread that writes them ([`EventLog`], in `events/writer.rs`).  So an event costs its
//! message a few hundred nanoseconds and never a system call.
//!
//! Nothing is dropped because the reader of the events is slow: the queue to the writer fills,
//! then the worker keeps its blocks and [`EventBuffer::must_wait`] tells it to take no new
//! sessions until they are gone.  Lost, and counted, is only what an end of all bounds forces:
//! events beyond [`limits::EVENT_BACKLOG`] of a worker, and those that cannot be written at all
//! while the queue is full (a disk that stays full, a closed pipe): mail goes on without them.
//!
//! The fields and their meaning are in `docs/operations.md`.

mod line;
mod writer;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crossbeam::channel::{Receiver, Sender, TrySendError};

use super::moment::{Moment, Stamp};
use crate::edge::verdict::{Finding, Score};
use crate::limits;
use crate::message::{MessageId, MessageIds, NotAMessageId, Recipient};

pub use writer::{EventLog, EventTarget};

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A client connected.
    Connect,
    /// A session is encrypted from here on.
    Secured,
    /// A TLS handshake came to nothing.
    TlsFailed,
    /// A client has proved who it is.
    Authenticated,
    /// A client could not prove who it is.
    AuthFailed,
    /// A session, a sender, a recipient or a message was refused.
    Refused,
    /// The edge filter has judged a transaction, or a session that came to none.
    Verdict,
    /// A message was accepted: its 250 is on the way.
    Accepted,
    /// A message went straight to the next hop, which has taken it; nothing of it is here.
    PassedOn,
    /// Recipients were taken over by the next hop, or put into their Maildir.
    Delivered,
    /// Recipients will be tried again.
    Deferred,
    /// Recipients are late; whoever of their originators wants to know is told.
    Delayed,
    /// Recipients failed for good.
    Bounced,
    /// Recipients were given up at the end of the message's lifetime.
    Expired,
    /// Recipients wait for an operator.
    Held,
    /// Recipients wait for an operator because of the edge filter's verdict.
    Quarantined,
    /// An operator let held recipients go.
    Released,
    /// An operator had deferred recipients tried at once.
    Retried,
    /// An operator deleted recipients without a notice.
    Deleted,
    /// A DNS list does not count any more.
    ListOff,
    /// A DNS list counts again.
    ListOn,
    /// A session ended.
    Disconnect,
    /// The gateway accepts mail.
    Ready,
    /// The gateway takes no new sessions and ends.
    Stopping,
}

impl EventKind {
    /// Its name in the lines.
    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::Connect => "connect",
            EventKind::Secured => "secured",
            EventKind::Authenticated => "authenticated",
            EventKind::AuthFailed => "auth_failed",
            EventKind::TlsFailed => "tls_failed",
            EventKind::Refused => "refused",
            EventKind::Verdict => "verdict",
            EventKind::Accepted => "accepted",
            EventKind::PassedOn => "passed_on",
            EventKind::Delivered => "delivered",
            EventKind::Deferred => "deferred",
            EventKind::Delayed => "delayed",
            EventKind::Bounced => "bounced",
            EventKind::Expired => "expired",
            EventKind::Held => "held",
            EventKind::Quarantined => "quarantined",
            EventKind::Released => "released",
            EventKind::Retried => "retried",
            EventKind::Deleted => "deleted",
            EventKind::ListOff => "list_off",
            EventKind::ListOn => "list_on",
            EventKind::Disconnect => "disconnect",
            EventKind::Ready => "ready",
            EventKind::Stopping => "stopping",
        }
    }
}

/// One event; what does not apply stays `None` and is left out of the line.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// What happened.
    pub kind: EventKind,
    /// The session that it happened in.
    pub session: Option<SessionId>,
    /// The message that it happened to.
    pub message: Option<MessageId>,
    /// Our address that the session came in on.
    pub listener: Option<SocketAddr>,
    /// The client; for attempts the next hop's host.
    pub peer: Option<SocketAddr>,
    /// The balancer or proxy that the client came through.
    pub proxy: Option<SocketAddr>,
    /// What the client called itself.
    pub helo: Option<&'a str>,
    /// The version of TLS and its cipher suite, with a blank between.
    pub tls: Option<&'a str>,
    /// The fingerprint of the certificate that the client has shown.
    pub certificate: Option<&'a str>,
    /// The user that the client is, or says that it is.
    pub user: Option<&'a str>,
    /// How it proved, or tried to prove, who it is.
    pub mechanism: Option<&'static str>,
    /// The reverse-path without its brackets: empty for `<>`.
    pub from: Option<&'a str>,
    /// The recipients that it is about.
    pub to: Addressees<'a>,
    /// The message's size in octets.
    pub size: Option<u64>,
    /// Where the recipients go.
    pub site: Option<&'a str>,
    /// Their domain, where its mail exchangers take it.
    pub domain: Option<&'a str>,
    /// The zone of a DNS list.
    pub list: Option<&'a str>,
    /// Attempts made so far, this one counted.
    pub attempts: Option<u32>,
    /// The reply of the side that decided: the next hop's for an attempt, else ours.
    pub reply: Option<&'a str>,
    /// Why, as a short name that does not change.
    pub reason: Option<&'a str>,
    /// What the edge filter decided.
    pub action: Option<&'static str>,
    /// The score of its findings.
    pub score: Option<Score>,
    /// The findings; those that did something are told.
    pub causes: Option<&'a [Finding]>,
    /// From acceptance to now, in milliseconds.
    pub delay_ms: Option<u64>,
    /// Its sender requires TLS all the way (RFC 8689).
    pub require_tls: Option<bool>,
    /// Without `[delivery] soft_bounce` these recipients would have bounced.
    pub soft_bounce: Option<bool>,
    /// When recipients are tried again.
    pub next_attempt: Option<Moment>,
    /// Where the gateway can be reached.
    pub addresses: Option<&'a str>,
}

/// The recipients that an event is about, in whatever form its author has them; always a list of
/// addresses without brackets in the line.
#[derive(Debug, Clone, Copy, Default)]
pub enum Addressees<'a> {
    /// None: the field is left out.
    #[default]
    None,
    /// One address.
    One(&'a str),
    /// Addresses.
    Texts(&'a [String]),
    /// The same, borrowed.
    Words(&'a [&'a str]),
    /// A whole envelope.
    All(&'a [Recipient]),
    /// Those at some places of an envelope; a place that is not there is passed over.
    Some(&'a [Recipient], &'a [u16]),
}

/// A session's name in the events: unique over all workers and restarts, sorted by time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(MessageId);

/// Makes the session ids of one worker.
#[derive(Debug)]
pub struct SessionIds(MessageIds);

/// What went wrong with events, over all threads; see [`EventLog::counters`].
#[derive(Debug, Default)]
pub struct EventCounters {
    /// Octets that are with the writer or on the way to it.
    queued_octets: AtomicUsize,
    /// Times that a worker found the queue full and began to wait.
    waits: AtomicU64,
    /// Events that were given up.
    lost: AtomicU64,
    /// Events that were written.
    written: AtomicU64,
    /// Writes and reopenings that failed.
    failures: AtomicU64,
}

/// A copy of [`EventCounters`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EventFigures {
    /// Octets that wait for the writer.
    pub queued_bytes: u64,
    /// Times that a worker began to wait for the writer.
    pub waits: u64,
    /// Events that were given up.
    pub lost: u64,
    /// Events that were written.
    pub written: u64,
    /// Writes and reopenings that failed.
    pub failures: u64,
}

/// The events of one thread on their way to the writer.
///
/// Not `Sync`: each thread has its own.  What is in it when it is dropped is handed over.
#[derive(Debug)]
pub struct EventBuffer {
    filling: RefCell<Filling>,
    link: Link,
}

#[derive(Debug)]
struct Filling {
    /// Whole lines; below [`limits::EVENT_BLOCK`] but for the last one.
    block: Vec<u8>,
    /// Blocks that found the queue full, the oldest first.
    backlog: VecDeque<Vec<u8>>,
    backlog_octets: usize,
    stamp: Stamp,
}

/// A buffer's way to the writer.
#[derive(Debug, Clone)]
struct Link {
    full: Sender<Vec<u8>>,
    /// Blocks that come back empty.
    spare: Receiver<Vec<u8>>,
    counters: Arc<EventCounters>,
}

impl<'a> Event<'a> {
    /// An event of which nothing else is known.
    pub fn new(kind: EventKind) -> Event<'a> {
        Event {
            kind,
            session: None,
            message: None,
            listener: None,
            peer: None,
            proxy: None,
            helo: None,
            tls: None,
            certificate: None,
            user: None,
            mechanism: None,
            from: None,
            to: Addressees::None,
            size: None,
            site: None,
            domain: None,
            list: None,
            attempts: None,
            reply: None,
            reason: None,
            action: None,
            score: None,
            causes: None,
            require_tls: None,
            soft_bounce: None,
            delay_ms: None,
            next_attempt: None,
            addresses: None,
        }
    }
}

impl EventBuffer {
    fn new(link: Link) -> EventBuffer {
        let filling = Filling {
            block: Vec::with_capacity(limits::EVENT_BLOCK + limits::EVENT_BLOCK / 8),
            backlog: VecDeque::new(),
            backlog_octets: 0,
            stamp: Stamp::new(),
        };
        EventBuffer { filling: RefCell::new(filling), link }
    }

    /// Writes the event with the time of now; see [`EventBuffer::emit_at`].
    pub fn emit(&self, event: &Event<'_>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.emit_at(event, Moment(u64::try_from(now.as_millis()).unwrap_or(u64::MAX)));
    }

    /// Writes the event into the block, and hands the block over if that fills it.
    ///
    /// Never blocks and never fails; beyond [`limits::EVENT_BACKLOG`] the event is lost and
    /// counted.
    pub fn emit_at(&self, event: &Event<'_>, at: Moment) {
        let mut filling = self.filling.borrow_mut();
        let filling = &mut *filling;
        if filling.backlog_octets >= limits::EVENT_BACKLOG {
            self.link.counters.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        line::write(event, filling.stamp.write(at), &mut filling.block);
        if filling.block.len() >= limits::EVENT_BLOCK {
            filling.hand_over(&self.link);
        }
    }

    /// Hands over what there is; the worker does this ten times a second, so that events of
    /// quiet times come out too, and so that blocks which found the queue full get on.
    pub fn flush(&self) {
        self.filling.borrow_mut().hand_over(&self.link);
    }

    /// Whether the writer is so far behind that no new sessions may be taken.  Only a
    /// [`EventBuffer::flush`] finds out that it has caught up.
    pub fn must_wait(&self) -> bool {
        !self.filling.borrow().backlog.is_empty()
    }
}

impl Drop for EventBuffer {
    fn drop(&mut self) {
        self.flush();
    }
}

impl Filling {
    fn hand_over(&mut self, link: &Link) {
        while let Some(block) = self.backlog.pop_front() {
            let octets = block.len();
            if let Err(block) = link.send(block) {
                self.backlog.push_front(block);
                break;
            }
            self.backlog_octets -= octets;
        }
        if self.block.is_empty() {
            return;
        }
        let block = std::mem::replace(&mut self.block, link.empty_block());
        // Behind a backlog there is no way past it, so that lines stay in order.
        let refused = match self.backlog.is_empty() {
            true => link.send(block).err(),
            false => Some(block),
        };
        if let Some(block) = refused {
            if self.backlog.is_empty() {
                link.counters.waits.fetch_add(1, Ordering::Relaxed);
            }
            self.backlog_octets += block.len();
            self.backlog.push_back(block);
        }
    }
}

impl Link {
    /// Sends a block if the queue has room for it; a single one always has, so that a line longer
    /// than the whole queue gets through.
    fn send(&self, block: Vec<u8>) -> Result<(), Vec<u8>> {
        let octets = block.len();
        let queued = self.counters.queued_octets.fetch_add(octets, Ordering::Relaxed);
        let sent = if queued == 0 || queued + octets <= limits::EVENT_QUEUE {
            self.full.try_send(block)
        } else {
            Err(TrySendError::Full(block))
        };
        sent.map_err(|error| {
            self.counters.queued_octets.fetch_sub(octets, Ordering::Relaxed);
            error.into_inner()
        })
    }

    fn empty_block(&self) -> Vec<u8> {
        self.spare.try_recv().unwrap_or_default()
    }
}

impl EventCounters {
    /// What the counters stand at.
    pub fn figures(&self) -> EventFigures {
        EventFigures {
            queued_bytes: self.queued_octets.load(Ordering::Relaxed) as u64,
            waits: self.waits.load(Ordering::Relaxed),
            lost: self.lost.load(Ordering::Relaxed),
            written: self.written.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }
}

impl SessionId {
    /// Whether it is the one that is written like this message id.
    pub fn is(self, id: MessageId) -> bool {
        self.0 == id
    }
}

impl FromStr for SessionId {
    type Err = NotAMessageId;

    fn from_str(text: &str) -> Result<Self, NotAMessageId> {
        text.parse().map(SessionId)
    }
}

impl SessionIds {
    /// Ids of `worker`; those of an earlier process are older by the clock, or else may repeat.
    pub fn new(worker: u8) -> SessionIds {
        SessionIds(MessageIds::new(worker, MessageId(0)))
    }

    /// The next one.
    pub fn next(&mut self, now_unix_ms: u64) -> SessionId {
        SessionId(self.0.next(now_unix_ms))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests;
