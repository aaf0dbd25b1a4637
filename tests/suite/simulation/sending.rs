//! A connection to a next hop: `smtp::client` and the scheduler driven as `outbound::smtp` drives
//! them, but that every wait is a state.
//!
//! As there, several messages may be under way, a body that is written is told of when its last
//! octet has left, and what arrives while something is still to be written is heard at once.  A
//! peer takes what is written in one go, or makes it wait ([`Outbox`]).

mod outbox;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use mailrace::config::EightBit;
use mailrace::delivery::settlement::rounds::{Round, Rounds, Verdict};
use mailrace::delivery::settlement::{Handover, Hop};
use mailrace::delivery::verp;
use mailrace::outbound::smtp::turns::{Turn, turn};
use mailrace::queue::arena::Slot;
use mailrace::queue::handle::State as HandleState;
use mailrace::queue::scheduler::{ConnectionId, Event};
use mailrace::queue::site::{SiteIndex, SiteShared};
use mailrace::smtp::client::{
    BrokenPromise, Client, ClientAction, ClientConfig, OneFlight, Protocol, RecipientOutcome,
    Timeouts, TransactionId, TransactionResult,
};

use super::gateway::Errand;
use super::message::{Loaded, keys, load, octets_unstuffed};
use super::outcome::Attempt;
use super::plan::{Plant, SITE_PORT};
use super::scene::{Between, LinkId, Scene, Task};
use super::worker::{Shared, Worker};
use outbox::{Outbox, Pieces};

/// See the module's text.
pub struct Connection {
    id: ConnectionId,
    site: SiteIndex,
    state_of_site: Arc<SiteShared>,
    protocol: Protocol,
    link: LinkId,
    client: Client,
    state: State,
    messages: usize,
    /// Messages with a transaction under way, in the order of these.
    jobs: VecDeque<Job>,
    /// Messages that want a further transaction.
    again: VecDeque<Job>,
    /// Messages that this connection did not come to, in the order in which they came.
    returned: Vec<Slot>,
    /// What arrived while nobody read, and whether the peer has closed.
    input: Vec<u8>,
    has_ended: bool,
    outbox: Outbox,
    /// The large body that is being sent.
    pieces: Option<Pieces>,
    idle_until: Option<Instant>,
    armed: Option<Instant>,
    /// The peer has answered.
    is_established: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Greeting and EHLO.
    Opening,
    /// The scheduler knows that it can take a message.
    Idle,
    /// Messages are under way.
    Serving,
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
    peer_has_dsn: bool,
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
            scene.happens("a next hop cannot be reached");
            return None;
        }
        let link = scene.connect(Between::Peer { site: place }, shared.life);
        let delivery = &shared.config.delivery;
        let protocol = state_of_site.reach().protocol().expect("every site has a peer");
        let one_flight = match (state_of_site.one_flight_is_broken(), state_of_site.has_behaved()) {
            (true, _) => OneFlight::Never,
            (false, false) => OneFlight::AfterOne,
            (false, true) => OneFlight::AtOnce,
        };
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
            protocol,
            use_chunking: !state_of_site.chunking_is_broken(),
            one_flight,
            messages_in_flight: delivery.messages_in_flight,
            eight_bit: EightBit::Send,
        };
        scene.trace(|| format!("{link:?} is {id:?} to {site:?}"));
        Some(Connection {
            id,
            site,
            state_of_site,
            protocol,
            link,
            client: Client::new(config, scene.now()),
            state: State::Opening,
            messages: 0,
            jobs: VecDeque::new(),
            again: VecDeque::new(),
            returned: Vec::new(),
            input: Vec::new(),
            has_ended: false,
            outbox: Outbox::default(),
            pieces: None,
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
        self.state == State::Over
    }

    /// Other cores need it more.
    pub fn leave(&mut self, scene: &mut Scene, worker: &mut Worker, shared: &Shared) {
        if self.state == State::Idle {
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

    /// Does what the machine wants, hears what has come, and takes the next turn, until there is
    /// nothing left to do.
    pub fn look(&mut self, scene: &mut Scene, worker: &mut Worker, shared: &Shared) {
        loop {
            self.act(scene, worker, shared);
            if self.is_over() {
                return self.end(scene, worker, shared);
            }
            if self.state == State::Serving && self.take_turn(scene, worker, shared) {
                continue;
            }
            // What arrives on an idle connection ends it, as `Next::Peer` does.
            let has_input = !self.input.is_empty() || self.has_ended;
            if !has_input {
                return;
            }
            if self.state == State::Idle {
                let (site, connection) = (self.site, self.id);
                worker.queue_event(shared, scene, Event::ConnectionLeaving { site, connection });
                self.state = State::Serving;
            }
            if self.input.is_empty() {
                self.client.handle_closed();
            } else {
                let input = std::mem::take(&mut self.input);
                self.client.handle_bytes(scene.now(), &input);
            }
        }
    }

    /// Time has passed.
    pub fn timer(&mut self, scene: &mut Scene, worker: &mut Worker, shared: &Shared) {
        self.armed = None;
        let now = scene.now();
        if self.state == State::Idle && self.idle_until.is_some_and(|end| end <= now) {
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
            let (link, state) = (self.link, self.state);
            return scene.books.problem(format!("{link:?} waits without a deadline, {state:?}"));
        };
        if self.armed != Some(deadline) {
            self.armed = Some(deadline);
            let errand = Errand::Connection(worker, self.id);
            scene.at(deadline, Task::Gateway(shared.life, errand));
        }
    }

    // ---- turns ---------------------------------------------------------------------------

    /// Takes the turn that `outbound::smtp` takes; `false` if that is to wait.
    fn take_turn(&mut self, scene: &mut Scene, worker: &mut Worker, shared: &Shared) -> bool {
        // There the task is busy as long as anything is to be written.
        if self.is_writing() {
            return false;
        }
        let wants_more = self.messages < shared.config.delivery.messages_per_connection;
        let (is_busy, has_again) = (!self.jobs.is_empty(), !self.again.is_empty());
        let (site, connection) = (self.site, self.id);
        match turn(&self.client, is_busy, has_again, wants_more) {
            Turn::Again => {
                let job = self.again.pop_front().expect("it has one");
                self.ask(scene, job);
                true
            }
            Turn::AskOrWait => {
                let ready = Event::ConnectionReady { site, connection };
                match worker.queue_event_for(shared, scene, ready, Some(connection)) {
                    Some(slot) => {
                        self.begin(scene, worker, shared, slot);
                        true
                    }
                    None => {
                        let leaving = Event::ConnectionLeaving { site, connection };
                        worker.queue_event(shared, scene, leaving);
                        false
                    }
                }
            }
            Turn::Wait => false,
            Turn::Idle => {
                self.state = State::Idle;
                self.idle_until = Some(scene.now() + shared.config.delivery.idle_timeout);
                worker.queue_event(shared, scene, Event::ConnectionReady { site, connection });
                false
            }
            Turn::Quit => {
                self.quit(scene);
                true
            }
        }
    }

    fn quit(&mut self, scene: &mut Scene) {
        self.state = State::Quitting;
        self.client.quit(scene.now());
    }

    /// The scheduler's message for this connection.
    pub fn deliver(&mut self, scene: &mut Scene, worker: &mut Worker, shared: &Shared, slot: Slot) {
        if self.state != State::Idle {
            return worker.queue_event(shared, scene, Event::Returned { slot });
        }
        self.state = State::Serving;
        self.begin(scene, worker, shared, slot);
        self.look(scene, worker, shared);
    }

    fn begin(&mut self, scene: &mut Scene, worker: &mut Worker, shared: &Shared, slot: Slot) {
        self.messages += 1;
        let handle = worker.queue.get(slot).cloned();
        let ours = handle.filter(|handle| handle.state == HandleState::Active);
        let Some(handle) = ours else {
            return scene.books.problem(format!("{slot:?} was given to {:?}, not its", self.id));
        };
        let attempt = Attempt { slot, handle };
        let loaded = load(scene, worker, shared, attempt.handle.id, attempt.handle.place);
        let sized = loaded.and_then(|message| {
            let size_octets = octets_unstuffed(scene, &message, shared)?;
            Ok((Arc::new(message), size_octets))
        });
        let (message, size_octets) = match sized {
            Ok(sized) => sized,
            Err(words) => return attempt.unreadable(scene, worker, shared, &words, false),
        };
        let places = attempt.handle.recipients.places();
        let names = keys(&message, &places);
        scene.books.attempt(&names);
        scene.books.attempt_is_due(&names, scene.now_unix_ms());
        let (together, alone) = verp::split(&shared.config, &message.envelope, places);
        let is_fresh = self.client.transactions() == 0;
        let limits = self.client.capabilities().limits;
        let rounds = Rounds::new(message.envelope.clone(), together, alone, is_fresh, limits);
        let transaction = TransactionId(0);
        let peer_has_dsn = false;
        let job = Job { attempt, message, size_octets, rounds, transaction, peer_has_dsn };
        self.ask(scene, job);
    }

    /// The next transaction of a message.
    fn ask(&mut self, scene: &mut Scene, mut job: Job) {
        scene.books.asks(self.link, &keys(&job.message, job.rounds.asked()));
        let flags = job.message.stored.summary.flags;
        let transaction = job.rounds.transaction(job.size_octets, flags);
        job.transaction = self.client.start(scene.now(), transaction);
        self.jobs.push_back(job);
        if self.jobs.len() > 1 {
            scene.happens("several messages are under way over one connection");
        }
    }

    // ---- what the machine wants ----------------------------------------------------------

    fn act(&mut self, scene: &mut Scene, worker: &mut Worker, shared: &Shared) {
        // While a large body goes out nothing else does; only its end may come.
        while let Some(action) = self.client.poll_action() {
            match action {
                ClientAction::Send(octets) => {
                    if octets.starts_with(b"QUIT") && !self.jobs.is_empty() {
                        scene.happens("replies are held against the answer to QUIT");
                    }
                    self.outbox.add(&octets);
                }
                ClientAction::SendBody { id, prefix, form, suffix } => {
                    if prefix.starts_with(b"MAIL") || prefix.starts_with(b"RSET") {
                        scene.happens("a message goes in one flight");
                    }
                    self.outbox.add(&prefix);
                    self.send_body(scene, shared, worker.index, id, form, suffix);
                }
                ClientAction::Ready => {
                    self.is_established = true;
                    let id = self.state_of_site.id();
                    *shared.established.borrow_mut().entry(id).or_default() += 1;
                    self.state = State::Serving;
                }
                ClientAction::TransactionDone(result) => self.done(scene, worker, shared, result),
                ClientAction::Failed(failure) => {
                    if self.state == State::Opening {
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
        self.flush(scene, shared, worker.index);
    }

    fn done(
        &mut self,
        scene: &mut Scene,
        worker: &mut Worker,
        shared: &Shared,
        result: TransactionResult,
    ) {
        match result.broken_promise {
            Some(BrokenPromise::Chunking) => {
                scene.happens("a next hop does not know the BDAT that it offers");
                self.state_of_site.remember_broken_chunking();
            }
            Some(BrokenPromise::OneFlight) => {
                scene.happens("a next hop loses count in one flight");
                self.state_of_site.remember_broken_one_flight();
            }
            None => {}
        }
        if result.has_behaved {
            self.state_of_site.remember_behaviour();
        }
        let mixes_up = scene.plan.plant == Plant::MixedFlight && self.jobs.len() > 1;
        let first = if mixes_up { self.jobs.pop_back() } else { self.jobs.pop_front() };
        let Some(mut job) = first else {
            return scene.books.problem(format!("{:?} ended what it had not begun", self.link));
        };
        if job.transaction != result.id && !mixes_up {
            scene.books.problem(format!("{:?} ends its messages in another order", self.link));
        }
        job.peer_has_dsn = result.peer_has_dsn;
        let keys = keys(&job.message, job.rounds.asked());
        for (key, outcome) in keys.iter().zip(&result.outcomes) {
            scene.trace(|| format!("{key}: {outcome:?}"));
            if matches!(outcome, RecipientOutcome::Deferred(why) if why.possible_duplicate()) {
                scene.happens("nobody can know whether a next hop took a message");
            }
            scene.books.outcome(self.link, key, outcome);
        }
        match job.rounds.ended(result) {
            Round::Again => {
                scene.happens("a message takes several transactions");
                self.again.push_back(job);
            }
            Round::Over { .. } => self.conclude(scene, worker, shared, job),
        }
    }

    fn conclude(&mut self, scene: &mut Scene, worker: &mut Worker, shared: &Shared, job: Job) {
        let Job { attempt, message, rounds, peer_has_dsn, .. } = job;
        let (outcomes, taken, has_word) = match rounds.verdict() {
            Verdict::Returned => {
                scene.happens("a message goes back to where it was");
                return self.returned.push(attempt.slot);
            }
            // A site has one host here.
            Verdict::Unheard { outcomes } => (outcomes, None, false),
            Verdict::Settled { outcomes, taken, has_word } => (outcomes, taken, has_word),
        };
        if has_word {
            self.state_of_site.recover();
        }
        let handover = match self.protocol {
            Protocol::Lmtp => Handover::Final,
            Protocol::Smtp if peer_has_dsn => Handover::PassedOn,
            Protocol::Smtp => Handover::Relayed,
        };
        let hop = Hop { remote_mta: Some("[127.0.0.1]".into()), handover, taken };
        attempt.settle(scene, worker, shared, &message, hop, outcomes);
    }

    /// It is over: what waited for a transaction of its own ends, what it did not come to goes
    /// back, and it counts no more.
    fn end(&mut self, scene: &mut Scene, worker: &mut Worker, shared: &Shared) {
        if let Some(job) = self.jobs.front() {
            let id = job.attempt.handle.id;
            scene.books.problem(format!("{:?} is over and {id} is under way", self.link));
        }
        for mut job in std::mem::take(&mut self.again) {
            job.rounds.give_up();
            self.conclude(scene, worker, shared, job);
        }
        if std::mem::take(&mut self.is_established) {
            let id = self.state_of_site.id();
            *shared.established.borrow_mut().entry(id).or_default() -= 1;
        }
        // Each goes to the head of its list: the last one first.
        for slot in std::mem::take(&mut self.returned).into_iter().rev() {
            worker.queue_event(shared, scene, Event::Returned { slot });
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
