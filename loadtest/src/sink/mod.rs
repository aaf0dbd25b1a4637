//! The receiving side: a world of servers in one process.
//!
//! `settings` is what the user says, `world` how its servers behave (`manners` towards messages,
//! `sites` by address), `zone` answers for their names (pure: a packet in, a packet out) and
//! `nameserver` has its sockets, `dialogue` is the protocol (pure: bytes in, replies and pauses
//! out), `session` a connection, `worker` a thread.

pub mod dialogue;
pub mod manners;
mod nameserver;
mod session;
pub mod settings;
pub mod sites;
mod worker;
pub mod world;
pub mod zone;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crate::ledger::record::{LedgerFile, Side};
use crate::report::progress::Progress;
use crate::report::sink::Summary;
use crate::report::usage::CpuTime;
use crate::runtime::link::bind;
use crate::signal::Signals;
use crate::units::grouped;
use settings::SinkSettings;
use sites::Traffic;
use world::{Port, World};

/// How often the coordinating thread looks.
const LOOK: Duration = Duration::from_millis(20);

/// What all threads share; written a few times a second at most, but for the sessions.
#[derive(Debug, Default)]
pub struct Live {
    /// The sink is to end.
    pub stop: AtomicBool,
    /// Messages that were accepted.
    pub messages: AtomicU64,
    /// Connections that came.
    pub connections: AtomicU64,
    /// Where it listens, once it does.
    pub opened: OnceLock<Opened>,
}

/// The addresses that a sink listens on, with the ports that the system chose.
#[derive(Debug)]
pub struct Opened {
    /// For mail, in the order of the settings and of the world.
    pub ports: Vec<SocketAddr>,
    /// For names.
    pub names: Option<SocketAddr>,
}

/// A port and its sessions, of all threads together.
#[derive(Debug)]
pub struct OpenPort {
    /// How it behaves.
    pub port: Port,
    /// Its sessions.
    pub traffic: Traffic,
}

/// Why a sink could not be opened or its books are worthless.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The description of the world.
    #[error(transparent)]
    World(#[from] world::WorldError),
    /// An address that cannot be listened on.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, #[source] io::Error),
    /// The ledger cannot be opened, or a record of it was not written.
    #[error("the ledger cannot be written: {0}")]
    Ledger(#[source] io::Error),
    /// A thread or its event loop could not be started.
    #[error("a thread could not be started: {0}")]
    Thread(#[source] io::Error),
    /// A thread panicked: our bug.
    #[error("a thread ended by a bug of this program")]
    Panicked,
}

/// Receives until the bounds are reached or a signal comes.
///
/// # Errors
/// See [`SinkError`].
pub fn run(settings: &SinkSettings, signals: &Signals) -> Result<Summary, SinkError> {
    run_with(settings, signals, Arc::new(Live::default()))
}

/// As [`run`], with the numbers and the stop flag in the caller's hands.
///
/// # Errors
/// See [`SinkError`].
pub fn run_with(
    settings: &SinkSettings,
    signals: &Signals,
    live: Arc<Live>,
) -> Result<Summary, SinkError> {
    let mut world = World::new(settings)?;
    let ledger = match &settings.ledger {
        None => None,
        Some(path) => Some(LedgerFile::append(path, Side::Sink).map_err(SinkError::Ledger)?),
    };
    let threads = settings.thread_count();
    let mut ports = Vec::new();
    // A socket for each thread on each port, bound before the first client can come.
    let mut sockets: Vec<Vec<std::net::TcpListener>> = (0..threads).map(|_| Vec::new()).collect();
    for mut port in std::mem::take(&mut world.ports) {
        for thread in &mut sockets {
            let failed = |error| SinkError::Listen(port.listen, error);
            let socket = bind(port.listen).map_err(failed)?;
            // Port 0 becomes the one that the system chose, for the other threads too.
            port.listen = socket.local_addr().map_err(failed)?;
            thread.push(socket);
        }
        eprintln!("listening on {}", port.listen);
        ports.push(Arc::new(OpenPort { port, traffic: Traffic::default() }));
    }
    let names = world.naming.listen.map(nameserver::Sockets::bind).transpose()?;
    if let Some(names) = &names {
        eprintln!("answering for names on {}", names.address);
    }
    let opened = Opened {
        ports: ports.iter().map(|port| port.port.listen).collect(),
        names: names.as_ref().map(|names| names.address),
    };
    live.opened.set(opened).expect("a sink is opened once");
    let world = Arc::new(world);
    let (begun, before) = (Instant::now(), CpuTime::now());
    let mut running = Vec::new();
    for (place, sockets) in sockets.into_iter().enumerate() {
        let (world, live, ledger) = (world.clone(), live.clone(), ledger.clone());
        let places = ports.iter().cloned().zip(sockets).collect();
        let main = move || worker::run(world, live, ledger, places, place);
        let name = format!("sink-{place}");
        running.push(thread::Builder::new().name(name).spawn(main).map_err(SinkError::Thread)?);
    }
    let name_server = match names {
        None => None,
        Some(sockets) => {
            let (world, live) = (world.clone(), live.clone());
            let main = move || nameserver::run(world, live, sockets);
            let named = thread::Builder::new().name("sink-names".into());
            Some(named.spawn(main).map_err(SinkError::Thread)?)
        }
    };
    watch(settings, &live, signals, begun);
    let mut summary = Summary::default();
    for thread in running {
        summary.add(thread.join().map_err(|_| SinkError::Panicked)??);
    }
    if let Some(thread) = name_server {
        thread.join().map_err(|_| SinkError::Panicked)??;
    }
    for port in &ports {
        summary.place(port.port.listen.to_string(), &port.traffic);
    }
    for (number, site) in world.sites.all() {
        let address = world.sites.addresses(number).next().expect("a site has an address");
        summary.place(format!("{} {address}", world.sites.host(number)), &site.traffic);
    }
    summary.finish(begun.elapsed(), CpuTime::now().since(before));
    Ok(summary)
}

/// Draws the progress until a bound is reached, then tells the threads to stop.
fn watch(settings: &SinkSettings, live: &Live, signals: &Signals, begun: Instant) {
    let mut progress = Progress::new(settings.quiet);
    loop {
        let messages = live.messages.load(Ordering::Relaxed);
        let is_full = settings.messages.is_some_and(|most| messages >= most);
        let is_late = settings.time.is_some_and(|most| begun.elapsed() >= most.0);
        let is_stopped = live.stop.load(Ordering::Relaxed);
        if is_full || is_late || is_stopped || signals.wait(LOOK) {
            break;
        }
        progress.draw(messages, |rate| {
            let connections = live.connections.load(Ordering::Relaxed);
            format!(
                "{} messages  {}/s  {} connections",
                grouped(messages),
                grouped(rate as u64),
                grouped(connections)
            )
        });
    }
    live.stop.store(true, Ordering::Relaxed);
    progress.clear();
}
