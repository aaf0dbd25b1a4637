//! A connection to a next hop: `smtp::client` and the scheduler driven as `outbound::smtp` drives
//! them, but that every wait is a state.

use std::sync::Arc;
use std::time::Instant;

use mailrace::config::EightBit;
use mailrace::delivery::settlement::rounds::{Round, Rounds, Verdict};
use mailrace::delivery::settlement::{Handover, Hop};
use mailrace::delivery::verp;
use mailrace::queue::arena::Slot;
use mailrace::queue::handle::State as HandleState;
use mailrace::queue::scheduler::{ConnectionId, Event};
use mailrace::queue::site::{SiteIndex, SiteShared};
use mailrace::smtp::body::{BodyForm, Reshape};
use mailrace::smtp::client::{
    BrokenPromise, Client, ClientAction, ClientConfig, OneFlight, Protocol, Timeouts,
    TransactionId, TransactionResult,
};
use mailrace::spool::{ChunkPlace, Kind, RecordView, StoredBody};

use super::gateway::Errand;
use super::message::{Loaded, keys, load, octets_unstuffed, read};
use super::outcome::Attempt;
use super::plan::SITE_PORT;
use super::scene::{Between, End, LinkId, Scene, Task};
use super::worker::{Shared, Worker};

/// See the module's text.
pub struct Connection {
    id: ConnectionId,
    site: SiteIndex,
    state_of_site: Arc<SiteShared>,
    link: LinkId,
    client: Client,
    state: State,
    messages: usize,
    /// What arrived while nobody read, and whether the peer has closed.
    input: Vec<u8>,
    has_ended: bool,
    idle_until: Option<Instant>,
    armed: Option<Instant>,
    /// The peer has answered.
    is_established: bool,
}

enum State {
    /// Greeting and EHLO.
    Opening,
    /// The scheduler knows that it can take a message.
    Idle,
    Sending(Box<Job>),
    Quitting,
    Over,
}

/// A message on its way.
struct Job {
    attempt: Attempt,
    message: Arc<Loaded>,
    size_octets: u64,
    rounds: Rounds,
    transaction: TransactionId,
    body: Option<Body>,
}

/// What of a large body is still to be sent.
struct Body {
    reshape: Reshape,
    left: Vec<ChunkPlace>,
    suffix: &'static [u8],
}

impl Connection {
    /// Opens it; `None` if the peer cannot be reached.
    pub fn open(
        scene: &mut Scene,
        shared: &Shared,
        (site, state_of_site): (SiteIndex, Arc<SiteShared>),
        id: ConnectionId,
    ) -> Option<Connection> {
        let place = place_of(&state_of_site);
        if scene.plan.dead_site == Some(place) || scene.trouble(scene.plan.peer_trouble) {
            return None;
        }
        let link = scene.connect(Between::Peer { site: place }, shared.life);
        let delivery = &shared.config.delivery;
        let config = ClientConfig {
            starttls: Default::default(),
            is_secured: false,
            login: None,
            ehlo_name: "gateway.example".into(),
            timeouts: Timeouts {
                greeting: delivery.timeouts.greeting,
                command: delivery.timeouts.command,
                data: delivery.timeouts.data,
            },
            protocol: Protocol::Smtp,
            use_chunking: !state_of_site.chunking_is_broken(),
            one_flight: OneFlight::Never,
            messages_in_flight: 1,
            eight_bit: EightBit::Send,
        };
        scene.trace(|| format!("{link:?} is {id:?} to {site:?}"));
        Some(Connection {
            id,
            site,
            state_of_site,
            link,
            client: Client::new(config, scene.now()),
            state: State::Opening,
            messages: 0,
            input: Vec::new(),
            has_ended: false,
            idle_until: None,
            armed: None,
            is_established: false,
        })
    }

    pub fn link(&self) -> LinkId {
        self.link
    }

    pub fn site(&self) -> SiteIndex {
        self.site
    }

    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// Other cores need it more.
    pub fn leave(&mut self, scene: &mut Scene, worker: &mut Worker, shared: &Shared) {
        if matches!(self.state, State::Idle) {
            let (site, connection) = (self.site, self.id);
            worker.queue_event(shared, scene, Event::ConnectionLeaving { site, connection });
            self.quit(scene);
            self.look(scene, worker, shared);
        }
    }

    /// Octets arrive, or the peer closes.
    pub fn arrive(
        &mut self,
        scene: &mut Scene,
        worker: &mut Worker,
        shared: &Shared,
        octets: Option<Vec<u8>>,
    ) {
        match octets {
            Some(octets) => self.input.extend(octets),
            None => self.has_ended = true,
        }
        self.look(scene, worker, shared);
    }

    /// Reads what has come, if it reads at all, and does what follows.
    pub fn look(&mut self, scene: &mut Scene, worker: &mut Worker, shared: &Shared) {
        self.act(scene, worker, shared);
        // An idle connection is not read until it is used again.
        while !matches!(self.state, State::Idle | State::Over)
            && (!self.input.is_empty() || self.has_ended)
        {
            if self.input.is_empty() {
                self.client.handle_closed();
            } else {
                let input = std::mem::take(&mut self.input);
                self.client.handle_bytes(scene.now(), &input);
            }
            self.act(scene, worker, shared);
        }
    }

    /// Time has passed.
    pub fn timer(&mut self, scene: &mut Scene, worker: &mut Worker, shared: &Shared) {
        self.armed = None;
        let now = scene.now();
        if matches!(self.state, State::Idle) && self.idle_until.is_some_and(|end| end <= now) {
            let (site, connection) = (self.site, self.id);
            worker.queue_event(shared, scene, Event::ConnectionLeaving { site, connection });
            self.quit(scene);
        }
        self.client.handle_timeout(now);
        self.look(scene, worker, shared);
    }

    /// Sees to it that it is looked at again: whatever waits for a peer has a deadline.
    pub fn arm(&mut self, scene: &mut Scene, shared: &Shared, worker: usize) {
        let deadline = match self.state {
            State::Idle => self.idle_until,
            _ => self.client.deadline(),
        };
        let Some(deadline) = deadline else {
            let link = self.link;
            return scene.books.problem(format!("{link:?} waits without a deadline"));
        };
        if self.armed != Some(deadline) {
            self.armed = Some(deadline);
            let errand = Errand::Connection(worker, self.id);
            scene.at(deadline, Task::Gateway(shared.life, errand));
        }
    }

    /// The scheduler's message for this connection.
    pub fn deliver(&mut self, scene: &mut Scene, worker: &mut Worker, shared: &Shared, slot: Slot) {
        if !matches!(self.state, State::Idle) {
            return worker.queue_event(shared, scene, Event::Returned { slot });
        }
        self.begin(scene, worker, shared, slot);
        self.look(scene, worker, shared);
    }

    fn begin(&mut self, scene: &mut Scene, worker: &mut Worker, shared: &Shared, slot: Slot) {
        self.messages += 1;
        let handle = worker.queue.get(slot).cloned();
        let ours = handle.filter(|handle| handle.state == HandleState::Active);
        let Some(handle) = ours else {
            scene.books.problem(format!("{slot:?} was given to {:?} and is not its", self.id));
            return self.next(scene, worker, shared);
        };
        let attempt = Attempt { slot, handle };
        let loaded = load(worker, shared, attempt.handle.id, attempt.handle.place);
        let sized = loaded.and_then(|message| {
            let size_octets = octets_unstuffed(&message, shared)?;
            Ok((Arc::new(message), size_octets))
        });
        let (message, size_octets) = match sized {
            Ok(sized) => sized,
            Err(words) => {
                attempt.unreadable(scene, worker, shared, &words);
                return self.next(scene, worker, shared);
            }
        };
        let places = attempt.handle.recipients.places();
        scene.books.attempt(&keys(&message, &places));
        let (together, alone) = verp::split(&shared.config, &message.envelope, places);
        let is_fresh = self.client.transactions() == 0;
        let limits = self.client.capabilities().limits;
        let rounds = Rounds::new(message.envelope.clone(), together, alone, is_fresh, limits);
        let transaction = TransactionId(0);
        self.ask(scene, Job { attempt, message, size_octets, rounds, transaction, body: None });
    }

    /// The next transaction of a message.
    fn ask(&mut self, scene: &mut Scene, mut job: Job) {
        scene.books.asks(self.link, &keys(&job.message, job.rounds.asked()));
        let flags = job.message.stored.summary.flags;
        let transaction = job.rounds.transaction(job.size_octets, flags);
        job.transaction = self.client.start(scene.now(), transaction);
        self.state = State::Sending(Box::new(job));
    }

    /// Does what the machine wants done.
    fn act(&mut self, scene: &mut Scene, worker: &mut Worker, shared: &Shared) {
        while let Some(action) = self.client.poll_action() {
            match action {
                ClientAction::Send(octets) => scene.send(self.link, End::Opener, &octets),
                ClientAction::SendBody { prefix, form, suffix, .. } => {
                    self.send_body(scene, worker, shared, prefix, form, suffix);
                }
                ClientAction::Ready => {
                    self.is_established = true;
                    let id = self.state_of_site.id();
                    *shared.established.borrow_mut().entry(id).or_default() += 1;
                    self.next(scene, worker, shared);
                }
                ClientAction::TransactionDone(result) => self.done(scene, worker, shared, result),
                ClientAction::Failed(failure) => {
                    if matches!(self.state, State::Opening) {
                        let site = (self.site, &*self.state_of_site);
                        worker.site_failed(shared, scene, site, &failure.to_string());
                    }
                    self.state = State::Over;
                }
                ClientAction::StartTls | ClientAction::Derive(_) => {
                    panic!("no simulated peer has TLS or AUTH")
                }
                ClientAction::Close => self.state = State::Over,
            }
        }
    }

    /// It takes another message, or has had enough.
    fn next(&mut self, scene: &mut Scene, worker: &mut Worker, shared: &Shared) {
        if self.messages >= shared.config.delivery.messages_per_connection {
            return self.quit(scene);
        }
        self.state = State::Idle;
        self.idle_until = Some(scene.now() + shared.config.delivery.idle_timeout);
        let (site, connection) = (self.site, self.id);
        worker.queue_event(shared, scene, Event::ConnectionReady { site, connection });
    }

    fn quit(&mut self, scene: &mut Scene) {
        self.state = State::Quitting;
        self.client.quit(scene.now());
    }

    // ---- the end of a transaction --------------------------------------------------------

    fn done(
        &mut self,
        scene: &mut Scene,
        worker: &mut Worker,
        shared: &Shared,
        result: TransactionResult,
    ) {
        let State::Sending(mut job) = std::mem::replace(&mut self.state, State::Over) else {
            return scene.books.problem(format!("{:?} ended what it had not begun", self.link));
        };
        if result.broken_promise == Some(BrokenPromise::Chunking) {
            self.state_of_site.remember_broken_chunking();
        }
        let keys = keys(&job.message, job.rounds.asked());
        for (key, outcome) in keys.iter().zip(&result.outcomes) {
            scene.trace(|| format!("{key}: {outcome:?}"));
            scene.books.outcome(self.link, key, outcome);
        }
        let usable = match job.rounds.ended(result) {
            Round::Again => return self.ask(scene, *job),
            Round::Over { usable } => usable,
        };
        let (outcomes, taken, has_word) = match job.rounds.verdict() {
            Verdict::Returned => {
                let slot = job.attempt.slot;
                return worker.queue_event(shared, scene, Event::Returned { slot });
            }
            // A site has one host here.
            Verdict::Unheard { outcomes } => (outcomes, None, false),
            Verdict::Settled { outcomes, taken, has_word } => (outcomes, taken, has_word),
        };
        if has_word {
            self.state_of_site.recover();
        }
        let has_dsn = self.client.capabilities().dsn;
        let hop = Hop {
            remote_mta: Some("[127.0.0.1]".into()),
            handover: if has_dsn { Handover::PassedOn } else { Handover::Relayed },
            taken,
        };
        job.attempt.settle(scene, worker, shared, &job.message, hop, outcomes);
        if usable {
            self.next(scene, worker, shared);
        }
    }

    /// It is over: it counts no more.
    pub fn end(&mut self, shared: &Shared) {
        if std::mem::take(&mut self.is_established) {
            let id = self.state_of_site.id();
            *shared.established.borrow_mut().entry(id).or_default() -= 1;
        }
    }

    // ---- bodies --------------------------------------------------------------------------

    fn send_body(
        &mut self,
        scene: &mut Scene,
        worker: &mut Worker,
        shared: &Shared,
        prefix: Vec<u8>,
        form: BodyForm,
        suffix: &'static [u8],
    ) {
        let State::Sending(job) = &mut self.state else { return };
        let stored = &job.message.stored;
        let mut reshape = Reshape::new(stored.summary.flags, form);
        let mut out = prefix;
        out.extend_from_slice(&stored.trace);
        match &stored.body {
            StoredBody::Inline => {
                reshape.write(&job.message.inline, &mut out);
                out.extend_from_slice(suffix);
                scene.send(self.link, End::Opener, &out);
                self.client.body_sent(scene.now(), job.transaction);
            }
            StoredBody::Chunks(chunks) => {
                scene.send(self.link, End::Opener, &out);
                job.body = Some(Body { reshape, left: chunks.to_vec(), suffix });
                self.call_for_piece(scene, worker, shared);
            }
        }
    }

    fn call_for_piece(&self, scene: &mut Scene, worker: &Worker, shared: &Shared) {
        let wait_us = scene.wait_us(10..30_000);
        shared.errand(scene, wait_us, Errand::Piece(worker.index, self.id));
    }

    /// The reader brings the next piece.
    pub fn piece(&mut self, scene: &mut Scene, worker: &mut Worker, shared: &Shared) {
        let is_sending = self.client.deadline().is_some();
        let State::Sending(job) = &mut self.state else { return };
        let Some(body) = job.body.as_mut().filter(|_| is_sending) else { return };
        self.client.body_progress(scene.now());
        let chunk = body.left.remove(0);
        match read(worker, shared, job.attempt.handle.id, chunk.place, Kind::Chunk) {
            Ok(record) => {
                let record = RecordView::parse(&record).expect("it was parsed before");
                let mut out = Vec::new();
                body.reshape.write(record.body(), &mut out);
                if !body.left.is_empty() {
                    scene.send(self.link, End::Opener, &out);
                    return self.call_for_piece(scene, worker, shared);
                }
                out.extend_from_slice(body.suffix);
                scene.send(self.link, End::Opener, &out);
                job.body = None;
                self.client.body_sent(scene.now(), job.transaction);
            }
            Err(words) => {
                scene.books.problem(format!("a chunk is gone: {words}"));
                self.client.abandon();
                self.look(scene, worker, shared);
            }
        }
    }
}

/// The number of the next hop that a site stands for.
fn place_of(site: &SiteShared) -> usize {
    let hosts = site.reach().hosts();
    let number = hosts.first().and_then(|host| host.name.strip_prefix("mx")?.split('.').next());
    match number.and_then(|number| number.parse().ok()) {
        Some(place) => place,
        None => usize::from(site.reach().port) - SITE_PORT,
    }
}
