//! The gateway of a world: the library's machines, joined in memory as `worker`, `inbound`,
//! `delivery` and `outbound` join them with threads and sockets.
//!
//! Each worker has an appender and a scheduler; there is one log, with a committer that takes
//! what is sealed, some time later, and whose completions come back later still; and a maintenance
//! that does its chores when it likes.  The gateway may crash between any two errands, and within
//! any write.

mod bounds;
mod log;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use mailrace::delivery::recovery::Recovered;
use mailrace::delivery::sites::Sites;
use mailrace::message::{MessageId, MessageIds};
use mailrace::queue::arena::Slot;
use mailrace::queue::destination::{Destination, DestinationIndex, Verdict};
use mailrace::queue::handle::Handle;
use mailrace::queue::scheduler::{ConnectionId, Event, Scheduler};
use mailrace::queue::site::SiteIndex;
use mailrace::smtp::server::ServerConfig;
use mailrace::spool::chore::Chore;
use mailrace::spool::sim_disk::Faults;
use mailrace::spool::{
    Appender, AppenderOptions, CommitError, Completion, Log, RecoveryReport, SealedBatch,
    SpoolStats, WeakBatch, recover,
};

use super::disk::TestDisk;
use super::scene::{End, LinkId, Scene};
use super::sending::Connection;
use super::session::Session;
use super::worker::{Shared, Worker};

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
    /// A message is late and its destination cannot be reached.
    Delay(usize, Slot, u64),
    /// Nobody takes a message.
    Refuse(usize, Slot, Arc<Verdict>),
    /// The DNS answers.
    Resolve(usize, DestinationIndex),
    /// Other cores need a connection more.
    Leave(usize, ConnectionId),
    /// A message comes from another core.
    Forwarded { core: usize, destination: Destination, handle: Handle, batch: Option<WeakBatch> },
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
    started_unix_ms: u64,
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
        // Whoever recovers a log from a memory that lies will set good segments aside.
        disk.sim.set_faults(Faults { read_flips_permil: 0, ..disk.sim.faults() });
        let result = recover(
            disk.clone(),
            scene.plan.log,
            stats.clone(),
            &mut || random.u64(..),
            &mut recovered,
        );
        if scene.is_rough {
            disk.sim.set_faults(scene.plan.faults);
        }
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
        scene.books.started(cores);
        let life = scene.books.life;
        let highest = report.highest_id.unwrap_or(MessageId(0));
        let workers = (0..cores).map(|index| {
            let options = AppenderOptions { worker: index, ..scene.plan.appender };
            Worker {
                index,
                appender: Appender::new(options),
                queue: Scheduler::new(index as u32, cores as u32, sites.rules()),
                ids: MessageIds::new(index as u8, highest),
                waiting: BTreeMap::new(),
                recent: VecDeque::new(),
                connections: BTreeMap::new(),
                sealed: Vec::new(),
                deadline: None,
            }
        });
        let server = ServerConfig {
            hostname: config.hostname.clone(),
            message_size: config.limits.message_size.0,
            recipients: config.limits.recipients,
            received: config.limits.received as u32,
            bare_newline: config.listeners[0].bare_newline,
            tls: config.listeners[0].tls,
            auth: None,
            checks_senders: false,
        };
        let mut gateway = Gateway {
            workers: workers.collect(),
            shared: Shared {
                life,
                established: RefCell::default(),
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
            started_unix_ms: scene.now_unix_ms(),
        };
        let handles = recovered.into_handles();
        for (worker, handles) in gateway.workers.iter_mut().zip(handles) {
            for (destination, handle) in handles {
                let filed = Event::Filed { destination, handle, stay: true };
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

    /// Messages that its compactions have written again.
    pub fn moved(&self) -> usize {
        self.shared.stats.messages_moved.load(Relaxed) as usize
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
                let session = self.sessions.get(&link);
                if !session.is_some_and(|(_, session)| session.is_due(scene)) {
                    return;
                }
                self.session(scene, link, |session, scene| session.look(scene));
            }
            Errand::Connected { worker, site, connection } => {
                let state = self.workers[worker].queue.site(site).cloned();
                let state = state.expect("a site with a connection stays");
                let opened =
                    Connection::open(scene, &self.shared, (site, state.clone()), connection);
                match opened {
                    Some(opened) => {
                        self.outbound.insert(opened.link(), (worker, connection));
                        self.workers[worker].connections.insert(connection, opened);
                        self.connection(scene, worker, connection, Connection::look);
                    }
                    None => {
                        let worker = &mut self.workers[worker];
                        worker.site_failed(&self.shared, scene, (site, &state), "no connection");
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
            Errand::Delay(worker, slot, due_unix_ms) => {
                self.workers[worker].delay(&self.shared, scene, slot, due_unix_ms);
            }
            Errand::Refuse(worker, slot, verdict) => {
                self.workers[worker].refuse(&self.shared, scene, slot, &verdict);
            }
            Errand::Resolve(worker, destination) => {
                self.workers[worker].resolve(&self.shared, scene, destination);
            }
            Errand::Leave(worker, connection) => {
                self.connection(scene, worker, connection, Connection::leave);
            }
            Errand::Forwarded { core, destination, handle, batch } => {
                let worker = &mut self.workers[core];
                self.shared.forwarding.update(|count| count - 1);
                worker.recent.extend(batch);
                let filed = Event::Filed { destination, handle, stay: true };
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
        self.look_at_bounds(scene);
        self.shared.errand(scene, 1_000_000, Errand::Tick);
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
}
