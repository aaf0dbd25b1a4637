//! Starts and stops the gateway: the order in which its parts come up and go down.
//!
//! Up: the sockets, privileges dropped, control (so that `/health` and `/ready` answer while the
//! log is recovered), the log, the workers; then it is ready.  Down: no new sessions, what is
//! under way is finished within a bounded time, the log takes its last batches, everything ends.

mod error;
mod host;
mod log;
mod post;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::auth::Authority;
use crate::config::{self, Config, Events, Rspamd};
use crate::control::admin::{self, AdminServer, AdminSockets};
use crate::control::events::{Event, EventKind, EventLog, EventTarget};
use crate::control::metrics::{Metrics, Sources, WorkerMetrics};
use crate::control::status::{Phase, Status};
use crate::control::workers::{Times, Workers};
use crate::delivery::sites::Sites;
use crate::dns::ResolverConfig;
use crate::edge::lists::Lists;
use crate::edge::memory::Memory;
use crate::edge::memory_file::{self, Keeper};
use crate::edge::rspamd::office::{self, Office};
use crate::inbound::memory::{self, Share};
use crate::listener::SessionCounts;
use crate::queue::allowance::Allowance;
use crate::recipients::Roster;
use crate::runtime;
use crate::runtime::blocking::BlockingPool;
use crate::spool::{Committer, Reader, SpoolStats};
use crate::tls::acceptor::Expiry;
use crate::tls::{Acceptor, AcceptorSettings, CertificateError, Connector};
use crate::worker::{Letter, Post, Seat, now_seconds};
use host::{
    become_user, bind, give_admin_socket, ourselves, prepare_data_dir, raise_descriptors,
    raise_locked_memory,
};
use log::{open_log, spool_figures};
use post::{Port, PostSink, mailboxes};

pub use error::StartError;
pub use host::Bound;

/// A gateway that runs.
pub struct Gateway {
    addresses: Addresses,
    posts: Arc<[Post]>,
    workers: Vec<JoinHandle<()>>,
    committer: Committer,
    reader: Reader,
    admin: AdminServer,
    events: EventLog,
    status: Arc<Status>,
    /// With what it is made of, to be read again.
    acceptor: Option<(Arc<Acceptor>, AcceptorSettings)>,
    authority: Arc<Authority>,
    config: Arc<Config>,
    roster: Arc<Roster>,
    /// Writes down whom the edge filter knows.
    keeper: Option<Keeper>,
    /// Asks rspamd.
    office: Option<Office>,
}

/// Where a gateway can be reached.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// Its listeners, with the ports that they really have.
    pub listeners: Vec<Bound>,
    /// Its admin interface.
    pub admin: SocketAddr,
}

impl std::fmt::Display for Addresses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (listener, address) in &self.listeners {
            write!(f, "smtp://{address} ({}) ", listener.service)?;
        }
        write!(f, "admin http://{}", self.admin)
    }
}

impl Gateway {
    /// Starts everything; when it returns, mail is accepted.
    ///
    /// # Errors
    /// See [`StartError`]; nothing goes on running then.
    pub fn start(config: Config) -> Result<Gateway, StartError> {
        let config = Arc::new(config);
        let descriptors = raise_descriptors();
        raise_locked_memory(config.workers);
        let (sockets, listeners) = bind(&config)?;
        prepare_data_dir(&config)?;
        // As root still, for a port below 1024.
        let admin = AdminSockets::bind(config.admin.address, &config.data_dir)?;
        give_admin_socket(&config)?;
        become_user(&config)?;
        // As the user that must be able to read them again at a reload.
        let acceptor = acceptor(&config)?;
        let authority = Arc::new(Authority::new(&config)?);
        let roster = Arc::new(Roster::new(&config)?);
        warn_of_missing_secrets(&config);
        let connector = Arc::new(Connector::new().map_err(CertificateError::Setup)?);
        tell_driver();

        let target = match &config.log.events {
            Events::Stdout => EventTarget::Stdout,
            Events::File(path) => EventTarget::File(path.clone()),
        };
        let events = EventLog::start(target).map_err(StartError::Events)?;
        let metrics: Vec<Arc<WorkerMetrics>> =
            (0..config.workers).map(|_| Arc::default()).collect();
        let stats = Arc::new(SpoolStats::default());
        let status = Arc::new(Status::new(spool_figures(stats.clone())));
        let (posts, inboxes) = mailboxes(config.workers).map_err(StartError::Thread)?;
        let lists = Arc::new(Lists::new(config.edge.as_ref().map_or(&[], |edge| &edge.lists)));
        let sources = Sources {
            workers: metrics.clone(),
            events: events.counters(),
            status: status.clone(),
            lists: lists.clone(),
        };
        let asked = admin::Gateway {
            workers: Workers::new(Arc::new(Port { posts: posts.clone() }), Times::default()),
            metrics: Metrics::new(sources),
            status: status.clone(),
        };
        let admin = admin.serve(&config.hostname, asked)?;

        let sites = Arc::new(Sites::new(&config));
        let ourselves = Arc::new(ourselves(&config, &listeners));
        let (log, recovered, highest) = open_log(&config, &sites, stats.clone())?;
        let disk = log.disk().clone();
        let table = log.table().clone();
        let sink = Arc::new(PostSink { posts: posts.clone() });
        let committer = Committer::start(log, sink.clone()).map_err(StartError::Thread)?;
        let reader = Reader::start(disk, table, stats.clone(), sink, READ_BUFFERS)
            .map_err(StartError::Thread)?;
        let blocking = BlockingPool::start(BLOCKING_THREADS).map_err(StartError::Thread)?;

        let counts = Arc::new(SessionCounts::new(&config.limits));
        let (acquaintances, keeper) = edge_memory(&config)?.unzip();
        let (office, rspamd) = rspamd(&config)?.unzip();
        let default_memory = || memory::default_octets(config.workers);
        let memory = config.limits.memory.map_or_else(default_memory, |memory| memory.0);
        let share = Share::of(memory, config.workers);
        let allowance = Arc::new(Allowance::new(config.delivery.connections));
        let (sessions, connections) = (config.limits.sessions, config.delivery.connections);
        let descriptors = config::descriptors_for_mail(descriptors, config.edge.as_ref());
        let queries = config::queries_for(descriptors, sessions, connections, config.workers);
        let dns = ResolverConfig { queries, ..ResolverConfig::new(&config.dns) };
        let (ready, all_ready) = mpsc::channel();
        let mut workers = Vec::new();
        let seats = inboxes.into_iter().zip(sockets).zip(recovered).enumerate();
        for (index, (((letters, handles), sockets), recovered)) in seats {
            let ready = ready.clone();
            let seat = Seat {
                index,
                config: config.clone(),
                acceptor: acceptor.as_ref().map(|(acceptor, _)| acceptor.clone()),
                authority: authority.clone(),
                roster: roster.clone(),
                connector: connector.clone(),
                sites: sites.clone(),
                dns: dns.clone(),
                ourselves: ourselves.clone(),
                lists: lists.clone(),
                counts: counts.clone(),
                memory: acquaintances.clone(),
                rspamd: rspamd.clone(),
                share,
                allowance: allowance.clone(),
                sockets,
                committer: committer.handle(),
                reader: reader.handle(),
                spool: stats.clone(),
                blocking: blocking.clone(),
                events: events.buffer(),
                metrics: metrics[index].clone(),
                posts: posts.clone(),
                letters,
                handles,
                highest,
                recovered,
                ready: Box::new(move || {
                    let _ = ready.send(());
                }),
            };
            workers.push(start_worker(seat)?);
        }
        drop(ready);
        for _ in &workers {
            let started = all_ready.recv();
            started.map_err(|_| StartError::Thread(io::ErrorKind::UnexpectedEof.into()))?;
        }
        status.enter(Phase::Accepting);
        let addresses = Addresses { listeners, admin: admin.address() };
        let ready = addresses.to_string();
        events.buffer().emit(&Event { addresses: Some(&ready), ..Event::new(EventKind::Ready) });
        Ok(Gateway {
            addresses,
            posts,
            workers,
            committer,
            reader,
            admin,
            events,
            status,
            acceptor,
            authority,
            config,
            roster,
            keeper,
            office,
        })
    }

    /// Where it can be reached.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Its events, to be opened again after a rotation.
    pub fn events(&self) -> &EventLog {
        &self.events
    }

    /// Reads the certificates, users, keys and recipients again.  What fails stays as it was.
    pub fn reload(&self) {
        match self.authority.reload() {
            Ok(()) => tracing::info!("users and keys were read again"),
            Err(error) => tracing::error!("{error}; users and keys from before stay in use"),
        }
        match self.roster.reload(&self.config) {
            Ok(true) => tracing::info!("the recipients were read again"),
            Ok(false) => {}
            Err(error) => tracing::error!("{error}; the recipients from before stay in use"),
        }
        let Some((acceptor, settings)) = &self.acceptor else { return };
        match acceptor.reload(settings) {
            Ok(expiries) => {
                tracing::info!("the certificates were read again; new sessions use them");
                tell_expiries(&expiries);
            }
            Err(error) => tracing::error!("{error}; the certificates from before stay in use"),
        }
    }

    /// Stops it: transactions and attempts under way are finished, within a bounded time.
    pub fn stop(self) {
        self.status.enter(Phase::Stopping);
        self.events.buffer().emit(&Event::new(EventKind::Stopping));
        for post in self.posts.iter() {
            if post.letters.push(Letter::Stop).is_ok() {
                post.letters.wake();
            }
        }
        for worker in self.workers {
            worker.join().expect("a panic would have aborted the process");
        }
        self.reader.stop();
        self.committer.stop(COMMIT_PATIENCE);
        if let Some(keeper) = self.keeper {
            keeper.stop();
        }
        if let Some(office) = self.office {
            office.stop();
        }
        self.admin.stop();
        if let Err(error) = self.events.close(Instant::now() + EVENT_PATIENCE) {
            tracing::warn!(%error, "some events could not be written before the end");
        }
    }
}

fn acceptor(
    config: &Config,
) -> Result<Option<(Arc<Acceptor>, AcceptorSettings)>, CertificateError> {
    let Some(settings) = config.acceptor() else { return Ok(None) };
    let (acceptor, expiries) = Acceptor::new(&settings)?;
    tell_expiries(&expiries);
    Ok(Some((Arc::new(acceptor), settings)))
}

/// Whom the edge filter knows, and who writes it down; nothing without an edge filter.
fn edge_memory(config: &Config) -> Result<Option<(Arc<Memory>, Keeper)>, StartError> {
    let Some(edge) = &config.edge else { return Ok(None) };
    let state = config.data_dir.join("state");
    let settings = edge.greylist.unwrap_or_default();
    let memory = memory_file::load(&state, &settings, now_seconds()).map_err(StartError::Thread)?;
    let memory = Arc::new(memory);
    let keeper = Keeper::start(state, memory.clone(), now_seconds).map_err(StartError::Thread)?;
    Ok(Some((memory, keeper)))
}

/// Who asks rspamd; nobody where it is not asked.
fn rspamd(config: &Config) -> Result<Option<(Office, office::Handle)>, StartError> {
    let rspamd = config.edge.as_ref().and_then(|edge| edge.rspamd.as_ref());
    let start = |rspamd: &Rspamd| Office::start(rspamd.authority()).map_err(StartError::Thread);
    rspamd.map(start).transpose()
}

fn tell_expiries(expiries: &[Expiry]) {
    for expiry in expiries {
        tracing::warn!("{expiry}");
    }
}

fn start_worker(seat: Seat) -> Result<JoinHandle<()>, StartError> {
    let name = format!("worker-{}", seat.index);
    let body = move || {
        let _abort = AbortOnPanic;
        if let Err(error) = crate::worker::serve(seat) {
            tracing::error!(%error, "a worker could not go on");
            std::process::abort();
        }
    };
    thread::Builder::new().name(name).spawn(body).map_err(StartError::Thread)
}

/// A panic outside a session leaves nobody who could say what was promised; recovery can.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

/// Which event loop the workers run on.
fn tell_driver() {
    match runtime::driver_name() {
        "io_uring" => tracing::info!("the workers run on io_uring"),
        other => tracing::warn!("io_uring is not to be had here; the workers run on {other}"),
    }
}

/// Mail for a smart host whose secret cannot be read waits until it can, so the start does not: all
/// other mail goes on.
fn warn_of_missing_secrets(config: &Config) {
    for login in config.routes.iter().filter_map(|route| route.login.as_ref()) {
        if let Err(error) = login.credentials() {
            tracing::warn!(user = &*login.user, %error, "mail for this smart host will wait");
        }
    }
}

/// Buffers of the reader, 264 KiB each, made as they are needed.
const READ_BUFFERS: usize = 128;
/// Threads for files of Maildirs.
const BLOCKING_THREADS: usize = 4;
/// What a stop gives the log for its last batches.
const COMMIT_PATIENCE: Duration = Duration::from_secs(5);
/// What a stop gives the reader of the events.
const EVENT_PATIENCE: Duration = Duration::from_secs(3);
