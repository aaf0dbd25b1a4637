//! One worker: what a core's thread owns, and how others reach it.
//!
//! Everything in here is the thread's own and unsynchronised but for what is behind an `Arc`:
//! configuration, sites, counts, and the mailboxes of all workers.  What the scheduler wants done
//! is done here; finding out who takes a domain's mail has a file of its own, `resolve`.

pub mod admin;
mod etrn;
pub mod log;
mod report;
mod resolve;
mod room;
mod serve;
mod verdicts;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::oneshot;

use crate::auth::Authority;
use crate::config::{Config, Target};
use crate::control::events::{EventBuffer, SessionId, SessionIds};
use crate::control::metrics::WorkerMetrics;
use crate::control::port::{Answer, Request};
use crate::delivery::course::Course;
use crate::delivery::message::{LoadError, LoadedMessage};
use crate::delivery::settle;
use crate::delivery::sites::Sites;
use crate::dns::Resolver;
use crate::dns::ourselves::Ourselves;
use crate::edge::explanation::Explanations;
use crate::edge::inquiry::Inquiry;
use crate::edge::memory::Memory;
use crate::edge::rspamd::desk::Desk;
use crate::edge::rspamd::office::News;
use crate::edge::slots::Seconds;
use crate::inbound::ahead::{Questions, Verdict};
use crate::inbound::memory::Share;
use crate::listener::SessionCounts;
use crate::message::{MessageId, MessageIds};
use crate::outbound;
use crate::outbound::backend::Backends;
use crate::pool::Pool;
use crate::queue::destination::Destination;
use crate::queue::handle::{Handle, Reason, Reasons, Recipients};
use crate::queue::scheduler::{Action, Event, Scheduler};
use crate::recipients::Roster;
use crate::recipients::ahead::Asked;
use crate::runtime;
use crate::runtime::blocking::Blocking;
use crate::runtime::mailbox::Mailbox;
use crate::runtime::notify::WaitingList;
use crate::spool::{Completion, ReadAnswer, RecordPlace, WeakBatch};
use crate::sync::parts::Parts;
use crate::tls::{Acceptor, Connector};
use log::{Filing, LocalLog};

pub use report::PassedOn;
pub use serve::{Seat, serve};

/// See the module's text.
pub struct Worker {
    /// Its number, from 0.
    pub index: usize,
    /// What the operator asked for.
    pub config: Arc<Config>,
    /// What sessions are encrypted with; none where no listener asks for it.
    pub acceptor: Option<Arc<Acceptor>>,
    /// Who users are.
    pub authority: Arc<Authority>,
    /// Who is here.
    pub roster: Arc<Roster>,
    /// Questions to next hops about who is there.
    pub questions: Questions,
    /// What connections to next hops are encrypted with.
    pub connector: Arc<Connector>,
    /// Where mail goes, and what the cores share of it.
    pub sites: Arc<Sites>,
    /// Who takes the mail of which domain.
    pub resolver: Resolver,
    /// Who asks for what the edge filter wants to know; none without one.
    pub inquiry: Option<Inquiry>,
    /// What this gateway is called, and where it listens.
    pub ourselves: Arc<Ourselves>,
    /// Where rspamd is shown messages; none where it is not asked.
    pub rspamd: Option<Rc<Desk>>,
    /// Sessions of all workers.
    pub counts: Arc<SessionCounts>,
    /// Whom the edge filter knows; `None` without it.
    pub memory: Option<Arc<Memory>>,
    /// The log.
    pub log: Rc<LocalLog>,
    /// Connections to sites.
    pub pool: Pool,
    /// Connections that sessions ask next hops over.
    pub backends: Backends,
    /// The events of this thread.
    pub events: EventBuffer,
    /// The figures of this thread.
    pub metrics: Arc<WorkerMetrics>,
    /// Work that blocks.
    pub blocking: Blocking,
    /// The highest id that recovery saw: what was accepted before this start.
    pub highest_recovered: MessageId,
    /// Why the latest transactions were judged as they were.
    explanations: RefCell<Explanations>,
    queue: RefCell<Scheduler>,
    reasons: RefCell<Reasons>,
    posts: Arc<[Post]>,
    /// ETRN of this core's sessions.
    etrn: etrn::Desk,
    /// Handles for the other cores, of each in their order: more than fit its mailbox wait here.
    leaving: RefCell<Vec<VecDeque<Forwarded>>>,
    ids: RefCell<MessageIds>,
    session_ids: RefCell<SessionIds>,
    sessions: Cell<usize>,
    /// What messages on their way in may take.
    share: Share,
    /// What the envelopes of transactions under way take, in octets.
    envelope_octets: Cell<usize>,
    /// For how many ticks in a row there has been no room.
    full_ticks: Cell<u32>,
    /// Sessions that wait for room.
    receivers: WaitingList,
    stopping: Cell<bool>,
    date: RefCell<(u64, Rc<str>)>,
}

/// How to reach a worker from another thread.
pub struct Post {
    /// Answers of the other threads, each bounded by its requests.
    pub letters: Arc<Mailbox<Letter>>,
    /// Messages that this core is to deliver.
    pub handles: Arc<Mailbox<Forwarded>>,
}

/// What other threads tell a worker.
pub enum Letter {
    /// A batch was committed, or refused.
    Committed(Completion),
    /// A record was read.
    Read(ReadAnswer),
    /// Work on the blocking pool is over.
    Unblocked(u64),
    /// rspamd has taken a piece of a message, or has judged one.
    Rspamd(u64, News),
    /// The control thread asks.
    Asked(Request, oneshot::Sender<Answer>),
    /// A session of some worker wants the queue of some nodes started.
    Etrn(etrn::Errand),
    /// What another worker found for those that this one sent.
    EtrnDone(Box<[etrn::Found]>),
    /// What a next hop has said to another worker's question whether a recipient is there.
    AnsweredAhead(Box<(Asked, Verdict)>),
    /// The service stops.
    Stop,
}

/// A message for another core.
pub struct Forwarded {
    destination: Destination,
    handle: Handle,
    /// Where its body may still be in memory.
    batch: Option<WeakBatch>,
}

/// Handles that may wait in a core's mailbox.
pub const MAILBOX_HANDLES: usize = 4_096;

impl Worker {
    /// Sends a letter to a worker, this one or another.
    pub(crate) fn tell(&self, to: usize, letter: Letter) {
        let letters = &self.posts[to].letters;
        // Who waits for an answer asked once, so there are no more letters than questions.
        let pushed = letters.push(letter);
        debug_assert!(pushed.is_ok(), "the mailbox for letters has no bound");
        letters.wake();
    }

    /// Whether the service is stopping.
    pub fn is_stopping(&self) -> bool {
        self.stopping.get()
    }

    /// Sessions of this worker.
    pub fn sessions(&self) -> usize {
        self.sessions.get()
    }

    /// A new message's id.
    pub fn next_id(&self) -> MessageId {
        self.ids.borrow_mut().next(self.now_unix_ms())
    }

    /// A new session's name.
    pub fn next_session(&self) -> SessionId {
        self.session_ids.borrow_mut().next(self.now_unix_ms())
    }

    /// The wall clock, in milliseconds since 1970 UTC.
    pub fn now_unix_ms(&self) -> u64 {
        now_unix_ms()
    }

    /// The wall clock in whole seconds, as the edge filter's memory has it.
    pub fn now_seconds(&self) -> Seconds {
        now_seconds()
    }

    /// The date as trace headers write it; made once a second.
    pub fn date(&self) -> Rc<str> {
        let second = self.now_unix_ms() / 1000;
        let mut date = self.date.borrow_mut();
        if date.0 != second {
            *date = (second, rfc5322_date(second).into());
        }
        date.1.clone()
    }

    // ---- the queue -----------------------------------------------------------------------

    /// Tells the scheduler what happened and does what it wants done.
    pub fn queue_event(self: &Rc<Self>, event: Event) {
        self.queue.borrow_mut().handle(event, self.now_unix_ms());
        self.act();
    }

    /// A look at the queue.
    pub fn with_queue<T>(&self, look: impl FnOnce(&mut Scheduler) -> T) -> T {
        look(&mut self.queue.borrow_mut())
    }

    /// The shared form of what an attempt came to.
    pub fn shared_reason(&self, line: &str) -> Reason {
        self.reasons.borrow_mut().share(line)
    }

    /// Loads a message for an attempt.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub async fn load(
        &self,
        id: MessageId,
        place: RecordPlace,
    ) -> Result<LoadedMessage, LoadError> {
        LoadedMessage::load(&self.log, id, place).await
    }

    fn act(self: &Rc<Self>) {
        // A stopping worker begins nothing: each connection that it opened would end at once and
        // make the scheduler ask for the next, without end and without a turn for I/O.  What
        // waits is in the log.
        // Nor does one whose log has failed: what it delivered could not be written down, and
        // would be delivered again after the restart that such a log needs.
        if self.is_stopping() || self.log.has_failed() {
            return;
        }
        loop {
            let action = self.queue.borrow_mut().poll_action();
            match action {
                None => return,
                Some(Action::Resolve { destination }) => {
                    runtime::spawn(resolve::resolve(self.clone(), destination));
                }
                Some(Action::Open { site, connection }) => {
                    let lane = self.pool.open(connection);
                    runtime::spawn(outbound::run(self.clone(), site, connection, lane));
                }
                Some(Action::Deliver { connection, slot }) => {
                    if !self.pool.give(connection, slot) {
                        let returned = Event::Returned { slot };
                        self.queue.borrow_mut().handle(returned, self.now_unix_ms());
                    }
                }
                Some(Action::Close { connection }) => self.pool.end(connection),
                Some(Action::Expire { slot }) => {
                    runtime::spawn(settle::expire(self.clone(), slot));
                }
                Some(Action::Delay { slot, due_unix_ms }) => {
                    runtime::spawn(settle::delay(self.clone(), slot, due_unix_ms));
                }
                Some(Action::Refuse { slot, verdict }) => {
                    let text = verdict.text.clone();
                    runtime::spawn(settle::refuse(self.clone(), slot, verdict.status, text));
                }
                Some(Action::Forward { core }) => {
                    let leaving = self.queue.borrow_mut().take_leaving();
                    if let Some((destination, handle)) = leaving {
                        let batch = self.log.in_memory(handle.place).map(|b| b.downgrade());
                        let forwarded = Forwarded { destination, handle, batch };
                        self.leaving.borrow_mut()[core as usize].push_back(forwarded);
                    }
                }
            }
        }
    }

    /// Files a message that is now in the log: one handle for each destination.
    fn file(self: &Rc<Self>, filing: Filing, place: RecordPlace) {
        for (destination, handle) in handles(filing, place) {
            if destination == self.sites.quarantine() {
                self.report_quarantined(&handle);
            } else if self.sites.course(destination.course).target == Target::Hold {
                self.report_held(&handle);
            }
            self.queue_event(Event::Filed { destination, handle, stay: false });
        }
    }

    /// How a message of the queue goes on.
    pub fn course_of(&self, handle: &Handle) -> &Course {
        let course = self
            .with_queue(|queue| queue.destination(handle.destination()).map(|known| known.course));
        self.sites.course(course.unwrap_or(self.sites.unrouted().course))
    }

    /// The name of the site where a message goes, or of its destination as long as no site is
    /// known; and its domain, where mail exchangers take it.
    pub fn names_of(&self, handle: &Handle) -> (String, Option<Arc<str>>) {
        self.with_queue(|queue| self.sites.names(queue, handle.destination()))
    }

    /// Hands messages to the cores that serve their sites, as far as there is room.
    fn forward(&self) {
        for (post, leaving) in self.posts.iter().zip(self.leaving.borrow_mut().iter_mut()) {
            let before = leaving.len();
            while let Some(forwarded) = leaving.pop_front() {
                if let Err(forwarded) = post.handles.push(forwarded) {
                    leaving.push_front(forwarded);
                    break;
                }
            }
            if leaving.len() < before {
                post.handles.wake();
            }
        }
    }

    fn take_forwarded(self: &Rc<Self>, forwarded: Forwarded) {
        if let Some(batch) = forwarded.batch {
            self.log.remember(batch);
        }
        let Forwarded { destination, handle, .. } = forwarded;
        self.queue_event(Event::Filed { destination, handle, stay: true });
    }
}

/// One handle for each destination of a message.
pub fn handles(filing: Filing, place: RecordPlace) -> impl Iterator<Item = (Destination, Handle)> {
    let count = filing.groups.len() as u32;
    let parts = (count > 1).then(|| Arc::new(Parts::new(count)));
    filing.groups.into_iter().map(move |(destination, recipients): (_, Recipients)| {
        (destination, Handle::new(filing.id, place, recipients, parts.clone()))
    })
}

/// The wall clock, in milliseconds since 1970 UTC.
pub fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The wall clock in whole seconds; it stands still in 2106.
pub fn now_seconds() -> Seconds {
    Seconds(u32::try_from(now_unix_ms() / 1000).unwrap_or(u32::MAX))
}

/// A date of RFC 5322 section 3.3 in UTC.
fn rfc5322_date(unix_s: u64) -> String {
    let timestamp = jiff::Timestamp::from_second(unix_s as i64).unwrap_or_default();
    timestamp.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string()
}
