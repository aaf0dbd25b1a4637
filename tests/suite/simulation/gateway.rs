//! The gateway of a world: the library's machines, joined in memory as `worker`, `inbound`,
//! `delivery` and `outbound` join them with threads and sockets.
//!
//! Each worker has an appender and a scheduler; there is one log, with a committer that takes
//! what is sealed, some time later, and whose completions come back later still; and a maintenance
//! that does its chores when it likes.  The gateway may crash between any two errands, and within
//! any write.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use mailrace::config::Config;
use mailrace::delivery::outcome::RetryPolicy;
use mailrace::delivery::recovery::Recovered;
use mailrace::delivery::sites::Sites;
use mailrace::message::{MessageId, MessageIds};
use mailrace::queue::arena::Slot;
use mailrace::queue::handle::Handle;
use mailrace::queue::scheduler::{Action, ConnectionId, Event, Scheduler};
use mailrace::queue::site::SiteIndex;
use mailrace::smtp::reply::Refusal;
use mailrace::smtp::server::ServerConfig;
use mailrace::spool::chore::Chore;
use mailrace::spool::{
    Appender, AppenderOptions, CommitError, Completion, Done, Log, Recipients, RecordPlace,
    RecoveryReport, SealedBatch, SpoolStats, Ticket, WeakBatch, recover,
};
use mailrace::worker::handles;
use mailrace::worker::log::Filing;

use super::books::Key;
use super::disk::TestDisk;
use super::plan::LIFETIME_S;
use super::scene::{End, LinkId, Scene, Task};
use super::sending::Connection;
use super::session::Session;

/// Something that the gateway has to do.
pub enum Errand {
    /// A second has passed.
    Tick,
    /// The committer takes what has been sealed.
    Commit,
    /// A batch's fate reaches its worker.
    Completed(Completion),
    /// The maintenance does a chore.
    Chore,
    /// An appender's deadline.
    Appender(usize),
    /// A session's deadline, or a new look for a chunk.
    Session(LinkId),
    /// A connection is made, or is not.
    Connected { worker: usize, site: SiteIndex, connection: ConnectionId },
    /// The scheduler gives a connection a message.
    Deliver { worker: usize, connection: ConnectionId, slot: Slot },
    /// A connection's deadline.
    Connection(usize, ConnectionId),
    /// The next piece of a large body.
    Piece(usize, ConnectionId),
    /// A message's time is over.
    Expire(usize, Slot),
    /// A message comes from another core.
    Forwarded { core: usize, handle: Handle, batch: Option<WeakBatch> },
}

/// What all workers of one life share.
pub struct Shared {
    pub life: u32,
    pub config: Arc<Config>,
    pub sites: Arc<Sites>,
    pub retry: RetryPolicy,
    pub server: Rc<ServerConfig>,
    pub stats: Arc<SpoolStats>,
    pub disk: Arc<TestDisk>,
    pub table: Arc<mailrace::spool::SegmentTable>,
    /// Messages between two cores.
    forwarding: Cell<usize>,
}

/// One core.
pub struct Worker {
    pub index: usize,
    pub appender: Appender,
    pub queue: Scheduler,
    pub ids: MessageIds,
    /// Who waits for which record.
    pub waiting: BTreeMap<Ticket, Waiting>,
    /// Batches that may still be in memory.
    pub recent: VecDeque<WeakBatch>,
    pub connections: BTreeMap<ConnectionId, Connection>,
    deadline: Option<Instant>,
}

/// Who waits for a record.
pub enum Waiting {
    /// A session, and the queue.
    Message { link: LinkId, filing: Filing },
    /// A session.
    Chunk { link: LinkId },
    /// The queue.
    Notice { filing: Filing },
    /// The books.
    Done {
        keys: Vec<Key>,
        /// The part of a message that ends with it.
        part: Option<Rc<PartEnd>>,
    },
}

/// The end of one part of a message, while other parts are under way.
pub struct PartEnd {
    pub handle: Handle,
    /// Records of the end that are not in the log.
    pub left: Cell<usize>,
}

/// See the module's text.
pub struct Gateway {
    pub shared: Shared,
    log: Log<TestDisk>,
    pub workers: Vec<Worker>,
    sessions: BTreeMap<LinkId, (usize, Session)>,
    pub outbound: BTreeMap<LinkId, (usize, ConnectionId)>,
    /// Sealed, and not yet taken by the committer.
    inbox: Vec<SealedBatch>,
    committer_is_called: bool,
    chores: VecDeque<Chore>,
    maintenance_is_called: bool,
    pub report: RecoveryReport,
}

impl Gateway {
    /// Recovers the log and starts; `None` if the disk does not let it.
    pub fn start(scene: &mut Scene, disk: &Arc<TestDisk>) -> Option<Gateway> {
        let cores = scene.random.usize(1..4);
        let config = Arc::new(scene.plan.config(cores));
        let sites = Arc::new(Sites::new(&config));
        let stats = Arc::new(SpoolStats::default());
        let mut recovered = Recovered::new(&config, &sites);
        let mut random = scene.random.fork();
        let result = recover(
            disk.clone(),
            scene.plan.log,
            stats.clone(),
            &mut || random.u64(..),
            &mut recovered,
        );
        let (log, report) = match result {
            Ok(found) => found,
            Err(error) => {
                scene.trace(|| format!("the log cannot be recovered: {error}"));
                return None;
            }
        };
        scene.trace(|| format!("the gateway starts with {cores} cores: {report:?}"));
        if report.damage_count > 0 && !scene.books.may_find_damage() {
            scene.books.problem(format!("recovery found damage: {:?}", report.damage));
        }
        let life = scene.books.life;
        let highest = report.highest_id.unwrap_or(MessageId(0));
        let workers = (0..cores).map(|index| {
            let options = AppenderOptions { worker: index, ..scene.plan.appender };
            Worker {
                index,
                appender: Appender::new(options),
                queue: Scheduler::new(
                    index as u32,
                    cores as u32,
                    LIFETIME_S * 1000,
                    sites.shared().clone(),
                    sites.kinds(),
                ),
                ids: MessageIds::new(index as u8, highest),
                waiting: BTreeMap::new(),
                recent: VecDeque::new(),
                connections: BTreeMap::new(),
                deadline: None,
            }
        });
        let retry = RetryPolicy::new(&config.queue.retry, config.queue.lifetime);
        let server = ServerConfig {
            hostname: config.hostname.clone(),
            message_size: config.limits.message_size.0,
            recipients: config.limits.recipients,
            received: config.limits.received as u32,
            bare_newline: config.listeners[0].bare_newline,
        };
        let mut gateway = Gateway {
            workers: workers.collect(),
            shared: Shared {
                life,
                retry: retry.expect("the plan's configuration has waits"),
                server: Rc::new(server),
                stats,
                disk: disk.clone(),
                table: log.table().clone(),
                sites: sites.clone(),
                config: config.clone(),
                forwarding: Cell::new(0),
            },
            log,
            sessions: BTreeMap::new(),
            outbound: BTreeMap::new(),
            inbox: Vec::new(),
            committer_is_called: false,
            chores: VecDeque::new(),
            maintenance_is_called: false,
            report,
        };
        let handles = recovered.into_handles();
        for (worker, handles) in gateway.workers.iter_mut().zip(handles) {
            for handle in handles {
                let filed = Event::Filed { handle, stay: true };
                worker.queue_event(&gateway.shared, scene, filed);
            }
        }
        gateway.shared.errand(scene, 0, Errand::Tick);
        gateway.settle(scene);
        Some(gateway)
    }

    /// Handles of all queues.
    pub fn queued(&self) -> usize {
        self.workers.iter().map(|worker| worker.queue.len()).sum()
    }

    /// Whether nothing is on its way through it.
    pub fn is_quiet(&self) -> bool {
        self.queued() + self.shared.forwarding.get() == 0
            && self.sessions.is_empty()
            && self.inbox.is_empty()
            && self.chores.is_empty()
            && !self.log.is_waiting()
            && !self.log.has_unsynced()
            && self.workers.iter().all(|worker| {
                worker.appender.is_idle()
                    && worker.waiting.is_empty()
                    && worker.connections.is_empty()
            })
    }

    /// What keeps it from being quiet, for a report.
    pub fn describe(&self) -> String {
        let queues: Vec<_> = self
            .workers
            .iter()
            .map(|worker| {
                let handles: Vec<_> = worker.queue.iter().map(|(_, handle)| handle).collect();
                let idle = worker.appender.is_idle();
                let (waiting, connections) = (worker.waiting.len(), worker.connections.len());
                format!("{handles:?}, idle {idle}, waiting {waiting}, connections {connections}")
            })
            .collect();
        let links: Vec<_> = self.sessions.keys().collect();
        let (inbox, chores) = (self.inbox.len(), self.chores.len());
        let is_waiting = self.log.is_waiting();
        format!("{queues:?}, sessions {links:?}, inbox {inbox}, chores {chores}, log {is_waiting}")
    }

    /// Messages and chunks that the log holds as live, and segments in use.
    pub fn live(&self) -> (u64, usize) {
        (self.log.accounts().live(), self.log.accounts().segments())
    }

    /// Whether the log has stopped for good.
    pub fn has_failed(&self) -> bool {
        self.shared.stats.refusal() == Some(CommitError::Failed)
    }

    /// A client has connected.
    pub fn accept(&mut self, scene: &mut Scene, link: LinkId) {
        let worker = scene.random.usize(0..self.workers.len());
        let session = Session::new(&self.shared, scene, link);
        self.sessions.insert(link, (worker, session));
        self.session(scene, link, |_, _| ());
        self.settle(scene);
    }

    /// Octets arrive on a link, or its other end closes.
    pub fn arrive(&mut self, scene: &mut Scene, link: LinkId, octets: Option<Vec<u8>>) {
        if let Some(&(worker, connection)) = self.outbound.get(&link) {
            self.connection(scene, worker, connection, |connection, scene, worker, shared| {
                connection.arrive(scene, worker, shared, octets);
            });
        } else {
            self.session(scene, link, |session, scene| session.arrive(scene, octets));
        }
        self.settle(scene);
    }

    /// Does an errand.
    pub fn run(&mut self, scene: &mut Scene, errand: Errand) {
        match errand {
            Errand::Tick => self.tick(scene),
            Errand::Commit => {
                self.committer_is_called = false;
                let batches = std::mem::take(&mut self.inbox);
                let done = self.log.commit(batches);
                self.complete(scene, done);
            }
            Errand::Completed(completion) => self.completed(scene, completion),
            Errand::Chore => self.chore(scene),
            Errand::Appender(worker) => self.workers[worker].deadline = None,
            Errand::Session(link) => {
                self.session(scene, link, |session, scene| session.look(scene));
            }
            Errand::Connected { worker, site, connection } => {
                let opened = Connection::open(scene, &self.shared, site, connection);
                match opened {
                    Some(opened) => {
                        self.outbound.insert(opened.link(), (worker, connection));
                        self.workers[worker].connections.insert(connection, opened);
                        self.connection(scene, worker, connection, Connection::look);
                    }
                    None => {
                        let worker = &mut self.workers[worker];
                        worker.site_failed(&self.shared, scene, site, "no connection");
                        let closed = Event::ConnectionClosed { site, connection };
                        worker.queue_event(&self.shared, scene, closed);
                    }
                }
            }
            Errand::Deliver { worker, connection, slot } => {
                if self.workers[worker].connections.contains_key(&connection) {
                    self.connection(
                        scene,
                        worker,
                        connection,
                        |connection, scene, worker, shared| {
                            connection.deliver(scene, worker, shared, slot);
                        },
                    );
                } else {
                    let returned = Event::Returned { slot };
                    self.workers[worker].queue_event(&self.shared, scene, returned);
                }
            }
            Errand::Connection(worker, connection) => {
                self.connection(scene, worker, connection, Connection::timer);
            }
            Errand::Piece(worker, connection) => {
                self.connection(scene, worker, connection, Connection::piece);
            }
            Errand::Expire(worker, slot) => self.workers[worker].expire(&self.shared, scene, slot),
            Errand::Forwarded { core, handle, batch } => {
                let worker = &mut self.workers[core];
                self.shared.forwarding.update(|count| count - 1);
                worker.recent.extend(batch);
                let filed = Event::Filed { handle, stay: true };
                worker.queue_event(&self.shared, scene, filed);
            }
        }
        self.settle(scene);
    }

    fn tick(&mut self, scene: &mut Scene) {
        let done = self.log.tick();
        self.complete(scene, done);
        for worker in &mut self.workers {
            worker.queue_event(&self.shared, scene, Event::Tick);
        }
        self.shared.errand(scene, 1_000_000, Errand::Tick);
    }

    // ---- the log -------------------------------------------------------------------------

    /// The completions go to their workers, after as long as the disk took.
    fn complete(&mut self, scene: &mut Scene, done: Vec<Completion>) {
        // Now and then a disk takes its time.
        let is_slow = scene.chance(50);
        let wait_us = scene.wait_us(if is_slow { 3_000..400_000 } else { 100..3_000 });
        for completion in done {
            self.shared.errand(scene, wait_us, Errand::Completed(completion));
        }
    }

    fn completed(&mut self, scene: &mut Scene, completion: Completion) {
        let worker = &mut self.workers[completion.worker];
        let settled = worker.appender.completed(completion, scene.now());
        if let Some(batch) = &settled.batch {
            worker.remember(batch.downgrade());
        }
        let index = worker.index;
        let mut woken = Vec::new();
        for record in settled.records {
            let worker = &mut self.workers[index];
            let Some(waiting) = worker.waiting.remove(&record.ticket) else { continue };
            match (waiting, record.result) {
                (Waiting::Message { link, filing }, result) => {
                    if let Ok(place) = result {
                        worker.file(&self.shared, scene, filing, place);
                    }
                    woken.push((link, record));
                }
                (Waiting::Chunk { link }, _) => woken.push((link, record)),
                (Waiting::Notice { filing }, Ok(place)) => {
                    worker.file(&self.shared, scene, filing, place);
                }
                (Waiting::Done { keys, part }, Ok(_)) => {
                    keys.iter().for_each(|key| scene.books.kept(key));
                    if let Some(part) = part {
                        worker.part_kept(scene, &part);
                    }
                }
                // The log has stopped for good; a restart finds things as they were.
                (Waiting::Notice { .. } | Waiting::Done { .. }, Err(_)) => {}
            }
        }
        drop(settled.batch);
        for (link, record) in woken {
            self.session(scene, link, |session, scene| session.settled(scene, record));
        }
    }

    fn chore(&mut self, scene: &mut Scene) {
        self.maintenance_is_called = false;
        let Some(chore) = self.chores.pop_front() else { return };
        let mut random = scene.random.fork();
        let result = chore.perform(&*self.shared.disk, &mut || random.u64(..));
        let done = self.log.chore_done(result);
        self.complete(scene, done);
    }

    // ---- sessions and connections --------------------------------------------------------

    /// Lets a session do something, and then as much more as it can.
    fn session(
        &mut self,
        scene: &mut Scene,
        link: LinkId,
        act: impl FnOnce(&mut Session, &mut Scene),
    ) {
        let Some((worker, mut session)) = self.sessions.remove(&link) else { return };
        act(&mut session, scene);
        if session.go_on(scene, &mut self.workers[worker], &self.shared) {
            self.sessions.insert(link, (worker, session));
        } else {
            session.end(&mut self.workers[worker]);
            scene.close(link, End::Taker);
        }
    }

    fn connection(
        &mut self,
        scene: &mut Scene,
        index: usize,
        id: ConnectionId,
        act: impl FnOnce(&mut Connection, &mut Scene, &mut Worker, &Shared),
    ) {
        let worker = &mut self.workers[index];
        let Some(mut connection) = worker.connections.remove(&id) else { return };
        act(&mut connection, scene, worker, &self.shared);
        if !connection.is_over() {
            connection.arm(scene, &self.shared, index);
            worker.connections.insert(id, connection);
            return;
        }
        self.outbound.remove(&connection.link());
        scene.close(connection.link(), End::Opener);
        let closed = Event::ConnectionClosed { site: connection.site(), connection: id };
        worker.queue_event(&self.shared, scene, closed);
    }

    /// After every errand: what was appended goes to the committer, chores to the maintenance.
    fn settle(&mut self, scene: &mut Scene) {
        for worker in &mut self.workers {
            while let Some(batch) = worker.appender.seal(scene.now()) {
                self.inbox.push(batch);
            }
            let deadline = worker.appender.deadline();
            if let Some(time) = deadline
                && worker.deadline != deadline
            {
                worker.deadline = deadline;
                let errand = Errand::Appender(worker.index);
                scene.at(time, Task::Gateway(self.shared.life, errand));
            }
        }
        if !self.inbox.is_empty() && !self.committer_is_called {
            self.committer_is_called = true;
            let wait_us = scene.wait_us(10..2_000);
            self.shared.errand(scene, wait_us, Errand::Commit);
        }
        self.chores.extend(std::iter::from_fn(|| self.log.poll_chore()));
        if !self.chores.is_empty() && !self.maintenance_is_called {
            self.maintenance_is_called = true;
            let wait_us = scene.wait_us(10..20_000);
            self.shared.errand(scene, wait_us, Errand::Chore);
        }
    }
}

impl Shared {
    /// Puts an errand on the agenda.
    pub fn errand(&self, scene: &mut Scene, wait_us: u64, errand: Errand) {
        scene.after(wait_us, Task::Gateway(self.life, errand));
    }
}

impl Worker {
    /// Tells the scheduler what happened, and sees to what it wants done.
    pub fn queue_event(&mut self, shared: &Shared, scene: &mut Scene, event: Event) {
        self.queue.handle(event, scene.now_unix_ms());
        let worker = self.index;
        while let Some(action) = self.queue.poll_action() {
            match action {
                Action::Open { site, connection } => {
                    let wait_us = scene.wait_us(50..3_000);
                    shared.errand(scene, wait_us, Errand::Connected { worker, site, connection });
                }
                Action::Deliver { connection, slot } => {
                    shared.errand(scene, 0, Errand::Deliver { worker, connection, slot });
                }
                Action::Expire { slot } => shared.errand(scene, 0, Errand::Expire(worker, slot)),
                Action::Forward { core } => {
                    let handle = self.queue.take_leaving();
                    let handle = handle.expect("a handle leaves with each of these");
                    let batch = self.in_memory(handle.place).map(|batch| batch.downgrade());
                    let wait_us = scene.wait_us(0..500);
                    let core = core as usize;
                    shared.forwarding.update(|count| count + 1);
                    shared.errand(scene, wait_us, Errand::Forwarded { core, handle, batch });
                }
            }
        }
    }

    /// Files a message that is now in the log.
    fn file(&mut self, shared: &Shared, scene: &mut Scene, filing: Filing, place: RecordPlace) {
        for handle in handles(filing, place) {
            self.queue_event(shared, scene, Event::Filed { handle, stay: false });
        }
    }

    /// A record of the end of a part is in the log; see `delivery::settle::end_part`.
    fn part_kept(&mut self, scene: &mut Scene, part: &PartEnd) {
        part.left.update(|left| left - 1);
        if part.left.get() == 0 && part.handle.end_part() {
            let (id, segment) = (part.handle.id, part.handle.place.segment);
            let recipients = Recipients::Some(&[]);
            let done = Done { id, segment, recipients, last: true };
            self.appender.append_done(&done, scene.now());
        }
    }

    fn remember(&mut self, batch: WeakBatch) {
        if self.recent.len() >= 8 {
            self.recent.pop_front();
        }
        self.recent.push_back(batch);
    }

    /// The batch that holds a record, if it is still in memory.
    pub fn in_memory(&self, place: RecordPlace) -> Option<mailrace::spool::SharedBatch> {
        let batches = self.recent.iter().rev().filter_map(WeakBatch::upgrade);
        batches.into_iter().find(|batch| batch.record(place).is_some())
    }
}

/// Why the log would not keep a message, as a session tells it.
pub fn refusal(error: CommitError) -> Refusal {
    Refusal::from(error)
}
