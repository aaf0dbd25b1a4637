//! Real name servers on loopback addresses, unpacked by `.ci/setup`, stopped at the end.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mailrace::dns::{Lookup, Name, RecordType, Resolver, ResolverConfig};
use mailrace::runtime;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::gateway::wait_until;
use crate::postfix::cache;

/// A name server that runs until it is dropped.
pub struct NameServer {
    child: Child,
    address: SocketAddr,
}

/// `nsd` with zones of its own; it can be stopped and started again at the same address.
pub struct Nsd {
    home: TempDir,
    port: u16,
    zones: Vec<String>,
    running: Option<NameServer>,
}

impl NameServer {
    /// Starts `program` with this configuration, and waits until it answers for `zone`.
    pub fn start(home: &Path, program: &str, port: u16, conf: &str, zone: &str) -> NameServer {
        let root = cache("dns").join("root/usr");
        let path = home.join(format!("{program}.conf"));
        fs::write(&path, conf).expect("a file");
        let mut command = Command::new(root.join("sbin").join(program));
        command.args(["-d", "-c"]).arg(&path).env("LD_LIBRARY_PATH", libraries(&root));
        NameServer::run(home, program, &mut command, port, zone)
    }

    /// Runs this command, which is to answer at `port`, and waits until it does for `zone`.
    pub fn run(
        home: &Path,
        program: &str,
        command: &mut Command,
        port: u16,
        zone: &str,
    ) -> NameServer {
        let said = fs::File::create(home.join(format!("{program}.log"))).expect("a file");
        let child = command
            .stdin(Stdio::null())
            .stdout(said.try_clone().expect("a descriptor"))
            .stderr(said)
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        let server = NameServer { child, address: SocketAddr::from(([127, 0, 0, 1], port)) };
        let answers = wait_until(|| server.answers_for(zone).then_some(()));
        let said = || fs::read_to_string(home.join(format!("{program}.log")));
        assert!(answers.is_some(), "{program} does not answer: {:?}", said());
        server
    }

    /// Where it answers.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn answers_for(&self, zone: &str) -> bool {
        let config = ResolverConfig {
            timeout: Duration::from_millis(300),
            ..ResolverConfig::with_servers(vec![self.address])
        };
        let zone = Name::parse(zone).expect("a name");
        in_loop(async { !Resolver::new(config).lookup(&zone, RecordType::Mx).await.is_temporary() })
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        // nsd's helpers end with their parent only if it can tell them to.
        let pid = Pid::from_child(&self.child);
        let _ = kill_process(pid, Signal::TERM);
        let _ = self.child.wait();
    }
}

/// What every zone begins with, and a name server that nobody asks.
const ZONE_HEAD: &str = "
$TTL 300
@   SOA ns x 1 3600 600 86400 60
@   NS  ns
ns  A   192.0.2.53
";

impl Nsd {
    /// Starts it with zones by their names; each gets the head that all have in common.
    pub fn start(zones: &[(&str, &str)]) -> Nsd {
        let home = TempDir::new().expect("a temporary directory");
        for (zone, text) in zones {
            let text = format!("$ORIGIN {zone}.\n{ZONE_HEAD}{text}");
            fs::write(home.path().join(format!("{zone}.zone")), text).expect("a file");
        }
        let zones = zones.iter().map(|(zone, _)| (*zone).to_owned()).collect();
        let mut nsd = Nsd { home, port: free_port(), zones, running: None };
        nsd.start_again();
        nsd
    }

    /// Where it answers.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// From now on nobody answers there.
    pub fn stop(&mut self) {
        self.running = None;
    }

    /// After [`Nsd::stop`].
    pub fn start_again(&mut self) {
        let zones: Vec<&str> = self.zones.iter().map(String::as_str).collect();
        let conf = nsd_conf(self.home.path(), self.port, &zones);
        let server = NameServer::start(self.home.path(), "nsd", self.port, &conf, zones[0]);
        self.running = Some(server);
    }
}

/// The configuration of `nsd` for zones whose files are in `home`.
fn nsd_conf(home: &Path, port: u16, zones: &[&str]) -> String {
    let home = home.display();
    let zone = |zone: &&str| format!("zone:\n name: {zone}\n zonefile: {zone}.zone\n");
    let zones: String = zones.iter().map(zone).collect();
    format!(
        "server:\n ip-address: 127.0.0.1@{port}\n username: \"\"\n database: \"\"\n\
         pidfile: \"{home}/nsd.pid\"\n zonesdir: \"{home}\"\n zonelistfile: \"{home}/zone.list\"\n\
         xfrdfile: \"{home}/xfrd.state\"\n xfrdir: \"{home}\"\n server-count: 1\n\
         remote-control:\n control-enable: no\n{zones}"
    )
}

/// The directories that hold the unpacked shared libraries.
fn libraries(root: &Path) -> String {
    let entries = fs::read_dir(root.join("lib")).expect("a directory").flatten();
    let places = entries.map(|entry| entry.path().display().to_string());
    places.collect::<Vec<_>>().join(":")
}

/// A port that is free for datagrams and streams.
pub fn free_port() -> u16 {
    free_port_of(&[IpAddr::from([127, 0, 0, 1])])
}

/// A port that is free at all of these addresses.  Not one of those that the system gives to
/// sockets that do not care: the many of a busy resolver would meet it before its server does.
pub fn free_port_of(addresses: &[IpAddr]) -> u16 {
    let is_free = |port: &u16| {
        addresses.iter().all(|address| {
            let address = SocketAddr::new(*address, *port);
            UdpSocket::bind(address).is_ok() && TcpListener::bind(address).is_ok()
        })
    };
    std::iter::repeat_with(|| fastrand::u16(12_000..30_000)).find(is_free).expect("endless")
}

/// Runs a future to its end on an event loop of its own.
pub fn in_loop<T>(main: impl Future<Output = T>) -> T {
    runtime::run(async {
        runtime::spawn(runtime::deadline::sweep_forever());
        main.await
    })
    .expect("an event loop")
}
