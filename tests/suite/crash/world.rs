//! What stands around the gateway during a campaign: next hops, Maildirs and the books.
//!
//! - `hop.test` takes what it gets, but puts off a part of it.
//! - `refused.test`, on the same host, refuses everybody: each message must bounce.
//! - `waiting.test` is a host that is not there until the end: its mail grows old in the log.
//! - `box.test` and the senders' `home.test` are Maildirs on the gateway's own disk.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};

use mailrace_loadtest::signal::Signals;
use mailrace_loadtest::sink::{self, settings::SinkSettings};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use crate::gateway::wait_until;

const HOPS: &str = r#"
[default]
latency = "0ms-3ms"
rcpt = [{ share = 0.02, reply = "busy" }]
data = [{ share = 0.02, reply = "over-quota" }]
[[domain]]
name = "refused.test"
rcpt = [{ share = 1.0, reply = "unknown-user" }]
"#;

/// The ledgers of the next hops.
pub const ARRIVED: [&str; 2] = ["arrived-hop", "arrived-waiting"];

/// It stands until it is dropped.
pub struct World {
    home: Arc<TempDir>,
    hop: Place,
    waiting: Place,
    sinks: Vec<RunningSink>,
}

/// An address that is ours, whether anybody listens there or not.
struct Place {
    address: SocketAddr,
    _reserved: Socket,
}

struct RunningSink {
    live: Arc<sink::Live>,
    thread: JoinHandle<()>,
}

impl World {
    /// All but `waiting.test`.
    pub fn start() -> World {
        let home = Arc::new(TempDir::new().expect("a folder"));
        let mut world =
            World { home, hop: Place::reserve(), waiting: Place::reserve(), sinks: Vec::new() };
        let hops = world.file("hops.toml");
        std::fs::write(&hops, HOPS).expect("a file");
        world.open(world.hop.address, Some(hops), "arrived-hop");
        world
    }

    /// `waiting.test` comes up at last.
    pub fn end_the_wait(&mut self) {
        self.open(self.waiting.address, None, "arrived-waiting");
    }

    /// The folder of the books and the gateway's own.
    pub fn home(&self) -> &Arc<TempDir> {
        &self.home
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// The gateway's configuration, for so many workers and its data and Maildirs on `disk`.
    /// Both folders are its own to make, the one of the data below another one.  `all_waits` if
    /// `hop.test` is not to be there until the end either.
    pub fn configuration(&self, workers: usize, disk: &Path, all_waits: bool) -> String {
        let (waiting, disk) = (self.waiting.address, disk.display());
        let hop = if all_waits { waiting } else { self.hop.address };
        format!(
            r#"
data_dir = "{disk}/var/data"
workers = {workers}
[[listener]]
address = "127.0.0.1:0"
service = "relay"
[[route]]
recipient = "*@box.test"
to = "maildir:{disk}/mail"
[[route]]
recipient = "*@home.test"
to = "maildir:{disk}/mail"
[[route]]
recipient = "*@waiting.test"
to = "smtp://{waiting}"
[[route]]
recipient = "*"
to = "smtp://{hop}"
[queue]
retry = ["1s"]
[spool]
segment_size = "4MiB"
compact_after = "1s"
"#
        )
    }

    /// Waits until the sinks are done with all that a gateway which is dead had sent.
    pub fn wait_until_read(&self) {
        let ports = [self.hop.address.port(), self.waiting.address.port()];
        let quiet = wait_until(|| (!has_connections(&ports)).then_some(()));
        assert!(quiet.is_some(), "connections outlive their client");
    }

    /// Ends the sinks; their books are complete.
    pub fn end(&mut self) {
        for sink in self.sinks.drain(..) {
            sink.live.stop.store(true, Ordering::Relaxed);
            sink.thread.join().expect("sinks do not panic");
        }
    }

    fn open(&mut self, address: SocketAddr, world: Option<PathBuf>, ledger: &str) {
        let settings = SinkSettings {
            listen: vec![address],
            world,
            ledger: Some(self.file(ledger)),
            threads: Some(1),
            quiet: true,
            ..SinkSettings::default()
        };
        let live = Arc::new(sink::Live::default());
        let shared = live.clone();
        let thread = thread::spawn(move || {
            let signals = Signals::take_over().expect("a descriptor");
            sink::run_with(&settings, &signals, shared).expect("a sink");
        });
        let opens = wait_until(|| TcpStream::connect(address).ok());
        assert!(opens.is_some(), "the sink does not open");
        self.sinks.push(RunningSink { live, thread });
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for sink in &self.sinks {
            sink.live.stop.store(true, Ordering::Relaxed);
        }
    }
}

impl Place {
    /// Bound and not listening: nobody gets the port, and who connects is refused.
    fn reserve() -> Place {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_reuse_port(true).expect("shared with the sink");
        socket.set_reuse_address(true).expect("shared with the sink");
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("a port");
        let address = socket.local_addr().expect("an address").as_socket().expect("of IPv4");
        Place { address, _reserved: socket }
    }
}

/// Whether anybody has a connection to one of these ports whose end the server has not read.
fn has_connections(ports: &[u16]) -> bool {
    const ESTABLISHED: &str = "01";
    const CLOSE_WAIT: &str = "08";
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the system's connections");
    table.lines().skip(1).any(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (local, state) = (words.next().unwrap_or_default(), words.nth(1).unwrap_or_default());
        let port = local.split_once(':').and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
        [ESTABLISHED, CLOSE_WAIT].contains(&state) && port.is_some_and(|port| ports.contains(&port))
    })
}
