//! One SMTP or LMTP connection: drives `smtp::client` over a stream and sends bodies out of memory
//! or out of the log.
//!
//! A small message leaves in one write with its trace header and, in one flight, its envelope; what
//! goes in one flight leaves together, up to a bound.  A large message goes chunk by chunk as the
//! reader brings it.  While anything is written, replies are read (`duplex`).  The peer's word
//! for each recipient goes to [`crate::delivery::settle`].
//!
//! Invariant: every slot that the lane gave is settled or returned before [`run`] ends, those that
//! are returned in the order in which they came.

mod duplex;
mod job;
mod opening;
pub mod turns;
mod writing;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::Way;
use crate::delivery::reach::Serving;
use crate::delivery::settle::{self, Attempt};
use crate::delivery::settlement::rounds::{Round, Rounds, Verdict};
use crate::delivery::settlement::{Handover, Hop, remote_mta};
use crate::delivery::verp;
use crate::queue::arena::Slot;
use crate::queue::scheduler::Event;
use crate::queue::site::SiteShared;
use crate::runtime::socket::{Sending, Stream, TimeLimit};
use crate::smtp::client::{
    BrokenPromise, Client, ClientAction, ClientConfig, ConnectionFailure, Login, OneFlight,
    Protocol, Timeouts, TransactionId, TransactionResult,
};
use duplex::Inbox;
use job::Job;
pub use opening::Security;
pub(super) use opening::{Trouble, judge, open};
use turns::{Turn, turn};
use writing::Outbox;

/// One connection and its machine.
struct Connection<'a> {
    way: &'a Way,
    peer: Option<SocketAddr>,
    /// The version and the cipher suite, for the events; `None` in clear.
    tls: Option<Rc<str>>,
    limit: TimeLimit,
    sending: Sending,
    inbox: &'a Inbox,
    client: Client,
    outbox: Outbox,
    /// Messages with a transaction under way, in the order of these.
    jobs: VecDeque<Job>,
    /// Messages that want a further transaction.
    again: VecDeque<Job>,
    /// Messages that this connection did not come to.
    returned: Vec<Slot>,
    /// Since the peer has had its word on a message.
    serving: Option<Serving>,
    /// The site has dropped one message after the other without a word.
    is_given_up: bool,
    /// When a piece of a large message began to be written, which holds a buffer of the reader.
    piece: Option<Instant>,
    progress: Progress,
}

/// How far a connection has come.
enum Progress {
    Serving,
    Closed,
}

/// What an idle connection sees first.
enum Next {
    Message(Option<Slot>),
    Peer,
}

/// Introduces itself on a connection that stands and sends what the scheduler gives it.  `peer` is
/// `None` where the next hop has no address: a socket of this machine.
pub async fn run(way: &Way, stream: Stream, peer: Option<SocketAddr>, security: Security) {
    let metrics = &way.worker.metrics;
    metrics.connections_opened.count();
    metrics.connections_open.raise();
    let (worker, reach) = (&way.worker, way.shared().reach());
    let make = |security: &Security, login| new_client(way, security, login);
    match open(worker, reach, &security, stream, make).await {
        Ok((client, stream)) => exchange(way, stream, client, peer).await,
        Err(failure) => not_opened(way, peer, &security, failure.as_ref()),
    }
    metrics.connections_open.lower();
}

/// Sends over a connection whose peer has introduced itself.
async fn exchange(way: &Way, stream: Stream, client: Client, peer: Option<SocketAddr>) {
    let inbox = Inbox::default();
    let tls = stream.secured().map(|secured| secured.to_string().into());
    let (receiving, sending, limit) = stream.split();
    let driver = async {
        let mut connection = Connection::new(way, peer, limit, sending, client, &inbox);
        connection.tls = tls;
        connection.run().await;
        connection.sending.close();
        connection.limit.shut_down();
    };
    duplex::both(&inbox, receiving, driver).await;
}

/// The peer takes no mail on this connection.
fn not_opened(
    way: &Way,
    peer: Option<SocketAddr>,
    security: &Security,
    failure: Option<&ConnectionFailure>,
) {
    let (trouble, words) = judge(&way.worker, way.shared(), peer, security, failure);
    match trouble {
        Trouble::InClear => {}
        Trouble::Host(reason) => way.host_failed(peer, reason, &words),
        Trouble::Site(reason) => settle::site_failed(way, reason, &words),
    }
}

impl<'a> Connection<'a> {
    fn new(
        way: &'a Way,
        peer: Option<SocketAddr>,
        limit: TimeLimit,
        sending: Sending,
        client: Client,
        inbox: &'a Inbox,
    ) -> Connection<'a> {
        Connection {
            way,
            peer,
            tls: None,
            limit,
            sending,
            inbox,
            client,
            outbox: Outbox::default(),
            jobs: VecDeque::new(),
            again: VecDeque::new(),
            returned: Vec::new(),
            serving: None,
            is_given_up: false,
            piece: None,
            progress: Progress::Serving,
        }
    }

    async fn run(&mut self) {
        let established = self.way.shared().establish();
        self.serve().await;
        drop(established);
        self.serving = None;
        if self.is_given_up {
            settle::site_silent(self.way);
        }
        // Each goes to the head of its list: the last one first.
        for slot in self.returned.drain(..).rev() {
            self.way.worker.queue_event(Event::Returned { slot });
        }
    }

    /// Messages, within the bounds of a connection, as many at a time as the peer allows.
    async fn serve(&mut self) {
        let most = self.way.worker.config.delivery.messages_per_connection;
        let opened = Instant::now();
        let mut messages = 0;
        while self.is_serving() {
            let wants_more = messages < most && opened.elapsed() < AGE_MAX;
            let (is_busy, has_again) = (!self.jobs.is_empty(), !self.again.is_empty());
            let next = match turn(&self.client, is_busy, has_again, wants_more) {
                Turn::Again => {
                    let job = self.again.pop_front().expect("it has one");
                    self.start(job).await;
                    continue;
                }
                Turn::AskOrWait => self.way.next_at_once(),
                Turn::Wait => None,
                Turn::Idle => match self.next().await {
                    Next::Message(None) => break,
                    Next::Message(slot) => slot,
                    Next::Peer => None,
                },
                Turn::Quit => break,
            };
            match next {
                Some(slot) => {
                    messages += 1;
                    self.begin(slot).await;
                }
                None => self.go_on().await,
            }
        }
        self.client.quit(Instant::now());
        while self.is_serving() {
            self.go_on().await;
        }
        for mut job in std::mem::take(&mut self.again) {
            job.rounds.give_up();
            self.job_done(job).await;
        }
    }

    fn is_serving(&self) -> bool {
        matches!(self.progress, Progress::Serving)
    }

    /// The next message while nothing is under way, or what the peer does first.
    async fn next(&mut self) -> Next {
        self.outbox.release();
        self.limit.set(None);
        let first = {
            let mut next = pin!(self.way.next());
            poll_fn(|context| match next.as_mut().poll(context) {
                Poll::Ready(slot) => Poll::Ready(Next::Message(slot)),
                Poll::Pending if self.inbox.has_arrived() => Poll::Ready(Next::Peer),
                Poll::Pending => Poll::Pending,
            })
            .await
        };
        if matches!(first, Next::Peer) {
            self.way.leave();
        }
        first
    }

    /// Takes a message up.
    async fn begin(&mut self, slot: Slot) {
        let worker = &self.way.worker;
        let Some(mut attempt) = Attempt::begin(worker, self.way.site, self.peer, slot) else {
            return;
        };
        attempt.over_tls(self.tls.clone());
        let message = match worker.load(attempt.id(), attempt.place()).await {
            Ok(message) => message,
            Err(error) => return attempt.unreadable(worker, &error),
        };
        let size_octets = match message.octets_unstuffed(&worker.log).await {
            Ok(size_octets) => size_octets,
            Err(error) => return attempt.unreadable(worker, &error),
        };
        let envelope = message.envelope().clone();
        let (together, alone) = verp::split(&worker.config, &envelope, attempt.recipients());
        let is_fresh = self.client.transactions() == 0;
        let limits = self.client.capabilities().limits;
        let job = Job {
            slot,
            attempt,
            message: Rc::new(message),
            size_octets,
            rounds: Rounds::new(envelope, together, alone, is_fresh, limits),
            transaction: TransactionId(0),
            peer_has_dsn: false,
        };
        self.start(job).await;
    }

    /// Starts its next transaction.
    async fn start(&mut self, mut job: Job) {
        job.transaction = self.client.start(Instant::now(), job.next_transaction());
        self.jobs.push_back(job);
        self.act().await;
    }

    /// Writes what is to be written and waits for what the peer says to it.
    async fn go_on(&mut self) {
        self.act().await;
        self.flush().await;
        self.act().await;
        if self.is_serving() && self.outbox.is_empty() {
            self.limit.set(self.client.deadline());
            let arrived = self.inbox.next().await;
            writing::take_in(&mut self.client, arrived);
            self.act().await;
        }
    }

    /// Does what the machine wants done.
    async fn act(&mut self) {
        while let Some(action) = self.client.poll_action() {
            match action {
                ClientAction::Send(octets) => {
                    let spare = self.outbox.add(octets);
                    self.client.recycle(spare);
                }
                ClientAction::SendBody { id, prefix, form, suffix } => {
                    self.send_body(id, prefix, form, suffix).await;
                }
                ClientAction::TransactionDone(result) => self.transaction_done(result).await,
                ClientAction::Failed(_) | ClientAction::Close => {
                    self.outbox.release();
                    self.progress = Progress::Closed;
                }
                // The opening is over.
                ClientAction::StartTls | ClientAction::Derive(_) | ClientAction::Ready => {}
            }
        }
    }

    async fn transaction_done(&mut self, result: TransactionResult) {
        remember(self.way.shared(), &result);
        let Some(mut job) = self.jobs.pop_front() else { return };
        debug_assert_eq!(job.transaction, result.id, "they end in their order");
        job.peer_has_dsn = result.peer_has_dsn;
        if job.rounds.ended(result) == Round::Again {
            return self.again.push_back(job);
        }
        self.job_done(job).await;
    }

    async fn job_done(&mut self, job: Job) {
        let handover = match self.way.protocol() {
            Protocol::Lmtp => Handover::Final,
            Protocol::Smtp if job.peer_has_dsn => Handover::PassedOn,
            Protocol::Smtp => Handover::Relayed,
        };
        let Job { slot, mut attempt, message, rounds, .. } = job;
        let (outcomes, taken) = match rounds.verdict() {
            Verdict::Returned => return self.returned.push(slot),
            Verdict::Unheard { .. } if self.way.is_passed_over(self.peer) => {
                return self.returned.push(slot);
            }
            // Perhaps the message is why: it may not go round for ever.  If it is the site, others
            // need not find out one by one.
            Verdict::Unheard { outcomes } => {
                self.is_given_up = self.way.shared().stays_silent();
                (outcomes, None)
            }
            Verdict::Settled { outcomes, taken, has_word } => {
                if has_word {
                    self.is_well();
                }
                (outcomes, taken)
            }
        };
        let remote_mta = self.peer.map(|peer| remote_mta(peer.ip()));
        attempt.led_to(Hop { remote_mta, handover, taken });
        attempt.settle(&self.way.worker, &message, outcomes).await;
    }

    /// Not at its greeting: a peer that greets and then drops every transaction is not well.
    fn is_well(&mut self) {
        self.way.shared().recover();
        if self.serving.is_none() {
            self.serving = self.way.host_succeeded(self.peer);
        }
    }
}

fn new_client(way: &Way, security: &Security, login: Option<Login>) -> Client {
    let config = ClientConfig { login, ..client_config(way, security) };
    Client::new(config, Instant::now())
}

/// What the site's past allows.
fn client_config(way: &Way, security: &Security) -> ClientConfig {
    let delivery = &way.worker.config.delivery;
    let shared = way.shared();
    let one_flight = match (shared.one_flight_is_broken(), shared.has_behaved()) {
        (true, _) => OneFlight::Never,
        (false, false) => OneFlight::AfterOne,
        (false, true) => OneFlight::AtOnce,
    };
    ClientConfig {
        ehlo_name: Arc::from(&*way.worker.config.hostname),
        protocol: way.protocol(),
        is_secured: security.is_implicit,
        login: None,
        starttls: security.starttls(shared.tls_is_broken(way.worker.now_unix_ms())),
        timeouts: Timeouts {
            greeting: delivery.timeouts.greeting,
            command: delivery.timeouts.command,
            data: delivery.timeouts.data,
        },
        use_chunking: !shared.chunking_is_broken(),
        one_flight,
        messages_in_flight: delivery.messages_in_flight,
        eight_bit: delivery.eight_bit,
    }
}

/// Keeps for the site what a transaction showed of it.
pub fn remember(shared: &SiteShared, result: &TransactionResult) {
    match result.broken_promise {
        Some(BrokenPromise::Chunking) => shared.remember_broken_chunking(),
        Some(BrokenPromise::OneFlight) => shared.remember_broken_one_flight(),
        None => {}
    }
    if result.has_behaved {
        shared.remember_behaviour();
    }
}

/// A connection is closed at this age, so that a next hop which changes its address is followed.
const AGE_MAX: Duration = Duration::from_secs(300);
