//! Starts and stops the gateway: the order in which its parts come up and go down.
//!
//! Up: the sockets, privileges dropped, control (so that `/health` and `/ready` answer while the
//! log is recovered), the log, the workers; then it is ready.  Down: no new sessions, what is
//! under way is finished within a bounded time, the log takes its last batches, everything ends.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::auth::{Authority, AuthorityError};
use crate::config::{self, Config, Events, Listener, Rspamd, Spool};
use crate::control::admin::{self, AdminError, AdminServer, AdminSockets};
use crate::control::events::{Event, EventKind, EventLog, EventTarget};
use crate::control::metrics::{HistogramFigures, Metrics, Sources, WorkerMetrics};
use crate::control::port::{Answer, Request, WorkerPort};
use crate::control::status::{Phase, SpoolFigures, SpoolHealth, Status};
use crate::control::workers::{Times, Workers};
use crate::delivery::recovery::{Recovered, RecoveredHandles};
use crate::delivery::sites::Sites;
use crate::dns::ResolverConfig;
use crate::dns::ourselves::{Ourselves, interface_addresses};
use crate::edge::lists::Lists;
use crate::edge::memory::Memory;
use crate::edge::memory_file::{self, Keeper};
use crate::edge::rspamd::office::{self, Office};
use crate::inbound::memory::{self, Share};
use crate::limits;
use crate::listener::SessionCounts;
use crate::message::MessageId;
use crate::queue::allowance::Allowance;
use crate::recipients::{RecipientsError, Roster};
use crate::runtime;
use crate::runtime::blocking::BlockingPool;
use crate::runtime::mailbox::{Inbox, mailbox};
use crate::runtime::socket;
use crate::spool::committer::random_generation;
use crate::spool::file_disk::OpenError;
use crate::spool::stats::{COMMIT_BUCKETS_US, Health};
use crate::spool::{
    Committer, Completion, CompletionSink, FileDisk, Log, LogOptions, ReadAnswer, ReadSink, Reader,
    RecoveryError, SpoolStats, recover,
};
use crate::tls::acceptor::Expiry;
use crate::tls::{Acceptor, AcceptorSettings, CertificateError, Connector};
use crate::worker::{Forwarded, Letter, MAILBOX_HANDLES, Post, Seat, now_seconds};

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

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error("cannot use the data directory {path}: {source}; `data_dir` must be writable")]
    DataDirectory {
        /// Which.
        path: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The log cannot be opened.
    #[error("cannot open the log of messages: {0}")]
    Open(#[from] OpenError),
    /// The log cannot be recovered.
    #[error("cannot recover the log of messages: {0}")]
    Recover(#[from] RecoveryError),
    /// A listener cannot be bound.
    #[error("cannot listen on {address}: {source}{}", hint(source))]
    Bind {
        /// Where.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The admin interface cannot be set up.
    #[error("{}", with_source(.0))]
    Admin(#[from] AdminError),
    /// TLS cannot be set up.
    #[error("{0}")]
    Tls(#[from] CertificateError),
    /// Users or keys cannot be read.
    #[error("{0}")]
    Auth(#[from] AuthorityError),
    /// The recipients cannot be read.
    #[error("{0}")]
    Recipients(#[from] RecipientsError),
    /// The events cannot be written.
    #[error("cannot write the events: {0}")]
    Events(#[source] io::Error),
    /// The privileges cannot be dropped.
    #[error("cannot become the user {user}: {source}")]
    User {
        /// Whom.
        user: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A thread, or what it needs, is not to be had.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
}

fn with_source(error: &AdminError) -> String {
    match error {
        AdminError::Tcp { source, .. } => format!("{error}: {source}{}", hint(source)),
        AdminError::Unix { source, .. } | AdminError::Thread(source) => {
            format!("{error}: {source}")
        }
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; is another server, or another mailrace, running there?",
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need root, or the capability cap_net_bind_service"
        }
        _ => "",
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

/// One worker's sockets.
type Sockets = Vec<(Listener, TcpListener)>;

/// A listener with the port that it really has.
pub type Bound = (Listener, SocketAddr);

/// Binds every listener once for each worker.
fn bind(config: &Config) -> Result<(Vec<Sockets>, Vec<Bound>), StartError> {
    let mut sockets: Vec<Sockets> = (0..config.workers).map(|_| Vec::new()).collect();
    let mut addresses = Vec::new();
    for listener in &config.listeners {
        let mut address = listener.address;
        refuse_shared(address)?;
        for own in &mut sockets {
            let failed = |source| StartError::Bind { address, source };
            let socket = socket::bind(address).map_err(failed)?;
            // With port 0 the first one chooses and the others follow.
            address = socket.local_addr().map_err(failed)?;
            own.push((listener.clone(), socket));
        }
        addresses.push((listener.clone(), address));
    }
    Ok((sockets, addresses))
}

/// With SO_REUSEPORT a second gateway could bind the same address and take half the mail; a bind
/// without it finds out.
fn refuse_shared(address: SocketAddr) -> Result<(), StartError> {
    if address.port() == 0 {
        return Ok(());
    }
    let probe = || -> io::Result<()> {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(address),
            socket2::Type::STREAM,
            None,
        )?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())
    };
    let deadline = Instant::now() + ADDRESS_PATIENCE;
    loop {
        match probe() {
            Ok(()) => return Ok(()),
            Err(error) if is_in_use(&error) && Instant::now() < deadline => {
                thread::sleep(ADDRESS_POLL);
            }
            Err(source) => return Err(StartError::Bind { address, source }),
        }
    }
}

fn is_in_use(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}

fn prepare_data_dir(config: &Config) -> Result<(), StartError> {
    let path = &config.data_dir;
    let failed = |source| StartError::DataDirectory { path: path.display().to_string(), source };
    let is_new = !path.exists();
    let ancestors: Vec<&Path> =
        path.ancestors().filter(|ancestor| !ancestor.as_os_str().is_empty()).collect();
    let missing = ancestors.iter().take_while(|ancestor| !ancestor.exists()).count();
    for (place, directory) in ancestors.iter().enumerate().take(missing).rev() {
        let mode = if place == 0 { 0o700 } else { 0o777 };
        // A name lasts when the directory that it stands in was synced.  The lowest one that was
        // there may have been made by a run that died before it came to that.
        if let Some(above) = ancestors.get(place + 1) {
            sync_name(above).map_err(failed)?;
        }
        make_directory(directory, mode).map_err(failed)?;
    }
    make_directory(path, 0o700).and_then(|()| sync_name(path)).map_err(failed)?;
    if is_new && let Some(user) = &config.user {
        let (uid, gid) = user_ids(user)?;
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).map_err(failed)?;
    }
    Ok(())
}

/// Makes a directory, unless it is there.
fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

/// Makes the name of a directory durable.  Where we may not look into the one above it, we did
/// not make it.
fn sync_name(directory: &Path) -> io::Result<()> {
    let above = match directory.parent() {
        None => return Ok(()),
        Some(above) if above.as_os_str().is_empty() => Path::new("."),
        Some(above) => above,
    };
    match std::fs::File::open(above) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        opened => opened?.sync_all(),
    }
}

/// The admin socket is the user's, who alone may open it.
fn give_admin_socket(config: &Config) -> Result<(), StartError> {
    let Some(user) = config.user.as_ref().filter(|_| nix::unistd::geteuid().is_root()) else {
        return Ok(());
    };
    let (uid, gid) = user_ids(user)?;
    let path = config.data_dir.join(admin::SOCKET_NAME);
    std::os::unix::fs::chown(&path, Some(uid), Some(gid))
        .map_err(|source| StartError::DataDirectory { path: path.display().to_string(), source })
}

/// What mail is not to be sent to, since it would come back.
fn ourselves(config: &Config, listeners: &[Bound]) -> Ourselves {
    let addresses: Vec<SocketAddr> = listeners.iter().map(|(_, address)| *address).collect();
    let interfaces = interface_addresses().unwrap_or_else(|error| {
        tracing::warn!(%error, "the addresses of this host are not to be had: a loop is only found by its name");
        Vec::new()
    });
    Ourselves::new(&config.hostname, &addresses, &interfaces, config.delivery.port)
}

/// Which event loop the workers run on.
fn tell_driver() {
    match runtime::driver_name() {
        "io_uring" => tracing::info!("the workers run on io_uring"),
        other => tracing::warn!("io_uring is not to be had here; the workers run on {other}"),
    }
}

fn user_ids(user: &str) -> Result<(u32, u32), StartError> {
    let failed = |source| StartError::User { user: user.to_owned(), source };
    let known = nix::unistd::User::from_name(user).map_err(|errno| failed(errno.into()))?;
    let known = known.ok_or_else(|| failed(io::Error::other("there is no such user")))?;
    Ok((known.uid.as_raw(), known.gid.as_raw()))
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

/// Drops the privileges of root, before any thread is started.
fn become_user(config: &Config) -> Result<(), StartError> {
    use nix::unistd::{Gid, Uid, geteuid, initgroups, setgid, setuid};
    let Some(user) = &config.user else { return Ok(()) };
    if !geteuid().is_root() {
        return Ok(());
    }
    let (uid, gid) = user_ids(user)?;
    let failed =
        |errno: nix::Error| StartError::User { user: user.to_string(), source: errno.into() };
    let name = std::ffi::CString::new(user.as_bytes()).map_err(|_| failed(nix::Error::EINVAL))?;
    initgroups(&name, Gid::from_raw(gid)).map_err(failed)?;
    setgid(Gid::from_raw(gid)).map_err(failed)?;
    setuid(Uid::from_raw(uid)).map_err(failed)
}

/// As many descriptors as the system lets us have, but for those that the admin interface raises
/// the limit for; the default of sessions counts on them.  Gives how many there are.
fn raise_descriptors() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| {
        setrlimit(Resource::RLIMIT_NOFILE, hard.saturating_sub(limits::ADMIN_DESCRIPTORS), hard)
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft)
}

/// Room for the workers' rings, and once more: those of a gateway that was here a moment ago are
/// not freed at once.  Root may go above the hard limit, before it becomes the user that is
/// counted against it; a worker that finds too little says so itself.
fn raise_locked_memory(workers: usize) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let wanted = 2 * (workers as u64 + 1) * runtime::RING_OCTETS;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_MEMLOCK) else { return };
    if soft < wanted {
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, wanted, hard.max(wanted))
            .or_else(|_| setrlimit(Resource::RLIMIT_MEMLOCK, wanted.min(hard), hard));
    }
}

/// The log's figures for whoever asks.
fn spool_figures(stats: Arc<SpoolStats>) -> impl Fn() -> SpoolFigures + Send + Sync {
    move || {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SpoolFigures {
            commits: value(&stats.commits),
            batches: value(&stats.batches),
            records: value(&stats.records),
            written_octets: value(&stats.octets),
            commit: HistogramFigures {
                bounds_us: &COMMIT_BUCKETS_US,
                counts: stats.commit_us.iter().map(value).collect(),
                sum_us: value(&stats.commit_us_sum),
            },
            commit_failures: value(&stats.commit_failures),
            rolls: value(&stats.rolls),
            retired: value(&stats.retired),
            chore_failures: value(&stats.chore_failures),
            segments_used: value(&stats.segments_used),
            segments_spare: value(&stats.segments_spare),
            segments_damaged: value(&stats.segments_damaged),
            live_records: value(&stats.live_records),
            compactions: value(&stats.compactions),
            messages_moved: value(&stats.messages_moved),
            compacted_octets: value(&stats.compacted_octets),
            reads: value(&stats.reads),
            read_failures: value(&stats.read_failures),
            health: match stats.health() {
                Health::Good => SpoolHealth::Good,
                Health::Full => SpoolHealth::Full,
                Health::Failed => SpoolHealth::Failed,
            },
        }
    }
}

/// What recovery leaves: the log, each core's handles, the highest message id.
type Opened = (Log<FileDisk>, Vec<RecoveredHandles>, MessageId);

/// Recovers the log in a thread of its own: what a large queue takes in passing goes back to the
/// system with the thread, where an allocator may keep it for one that lives on.
fn open_log(config: &Config, sites: &Sites, stats: Arc<SpoolStats>) -> Result<Opened, StartError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("recovery".into());
        let recovery = thread.spawn_scoped(scope, || recover_log(config, sites, stats));
        let recovered = recovery.map_err(StartError::Thread)?.join();
        recovered.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn recover_log(
    config: &Config,
    sites: &Sites,
    stats: Arc<SpoolStats>,
) -> Result<Opened, StartError> {
    let started = Instant::now();
    let disk = Arc::new(FileDisk::open(&config.spool_dir())?);
    let mut recovered = Recovered::new(config, sites);
    let mut random = random_generation;
    let options = log_options(&config.spool);
    let (log, report) = recover(disk, options, stats, &mut random, &mut recovered)?;
    if report.live_messages > 0 || report.damage_count > 0 {
        tracing::info!(
            messages = report.live_messages,
            segments = report.segments,
            damage = report.damage_count,
            seconds = started.elapsed().as_secs_f64(),
            "recovered the log"
        );
    }
    Ok((log, recovered.into_handles(), report.highest_id.unwrap_or(MessageId(0))))
}

/// The log as it is configured.
fn log_options(spool: &Spool) -> LogOptions {
    let whole = |value: u64| u32::try_from(value).expect("the configuration has bounds");
    LogOptions {
        segment_bytes: whole(spool.segment_size.0),
        compact_after_ticks: whole(spool.compact_after.as_secs()),
        ..LogOptions::default()
    }
}

/// A worker's receiving ends.
type Inboxes = (Inbox<Letter>, Inbox<Forwarded>);

fn mailboxes(workers: usize) -> io::Result<(Arc<[Post]>, Vec<Inboxes>)> {
    let mut posts = Vec::new();
    let mut inboxes = Vec::new();
    for _ in 0..workers {
        let (letters, letters_inbox) = mailbox(None)?;
        let (handles, handles_inbox) = mailbox(Some(MAILBOX_HANDLES))?;
        posts.push(Post { letters, handles });
        inboxes.push((letters_inbox, handles_inbox));
    }
    Ok((posts.into(), inboxes))
}

/// Takes what the log's threads have done to the workers.
struct PostSink {
    posts: Arc<[Post]>,
}

impl PostSink {
    fn put(&self, worker: usize, letter: Letter) {
        let pushed = self.posts[worker].letters.push(letter);
        debug_assert!(pushed.is_ok(), "the mailbox for answers has no bound");
    }
}

impl CompletionSink for PostSink {
    fn complete(&self, worker: usize, completion: Completion) {
        self.put(worker, Letter::Committed(completion));
    }

    fn wake(&self, worker: usize) {
        self.posts[worker].letters.wake();
    }
}

impl ReadSink for PostSink {
    fn answer(&self, worker: usize, answer: ReadAnswer) {
        self.put(worker, Letter::Read(answer));
    }

    fn wake(&self, worker: usize) {
        self.posts[worker].letters.wake();
    }
}

/// How control reaches the workers.
struct Port {
    posts: Arc<[Post]>,
}

impl WorkerPort for Port {
    fn workers(&self) -> usize {
        self.posts.len()
    }

    fn ask(&self, worker: usize, request: Request, answer: oneshot::Sender<Answer>) {
        let letters = &self.posts[worker].letters;
        if letters.push(Letter::Asked(request, answer)).is_ok() {
            letters.wake();
        }
    }
}

/// How long an address may still be in use at the start.  The kernel takes the rings of a process
/// down after it has ended, and what they held open with them; a restart comes that soon.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(2);
const ADDRESS_POLL: Duration = Duration::from_millis(20);
/// Buffers of the reader, 264 KiB each, made as they are needed.
const READ_BUFFERS: usize = 128;
/// Threads for files of Maildirs.
const BLOCKING_THREADS: usize = 4;
/// What a stop gives the log for its last batches.
const COMMIT_PATIENCE: Duration = Duration::from_secs(5);
/// What a stop gives the reader of the events.
const EVENT_PATIENCE: Duration = Duration::from_secs(3);
