//! Many domains on many sites of which a tenth fail, each in its own way: every message is
//! delivered, bounced or queued, no site has more connections than it may, and whoever is well gets
//! all of its mail while the others do not; also over a crash.
//!
//! The world, its names and the books are those of the load generator, which shares no code with
//! the gateway.  The same with a hundred thousand messages is in `loadtest/README.md`.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use mailrace_loadtest::ledger::compare::{Comparison, compare};
use mailrace_loadtest::ledger::record::{Side, read};
use mailrace_loadtest::message::mix::Weighted;
use mailrace_loadtest::report::sink::Summary;
use mailrace_loadtest::signal::Signals;
use mailrace_loadtest::sink;
use mailrace_loadtest::sink::settings::SinkSettings;
use mailrace_loadtest::source;
use mailrace_loadtest::source::plan::Plan;
use mailrace_loadtest::source::settings::{Settings, Size};
use mailrace_loadtest::units::Span;
use serde_json::Value;
use tempfile::TempDir;

use crate::gateway::{Gateway, wait_until};
use crate::nameserver::free_port_of;

/// Connections that a site may have; the world's hosts turn none away, so what they saw counts.
const CONNECTIONS_PER_SITE: usize = 3;
/// Domains of the sites that are well, and of the others.
const WELL_DOMAINS: u64 = 360;
const ILL_DOMAINS: u64 = 80;
/// Messages to either.
const WELL_MESSAGES: u64 = 1_800;
const ILL_MESSAGES: u64 = 200;
/// How often the books are looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Thirty-six sites that are well and eight that are not, one of each kind.
const WORLD: &str = r#"
[[sites]]
name = "home.example"
address = "127.29.0.1"
[[sites]]
name = "well.example"
domains = 360
count = 36
address = "127.30.0.1"
messages = { latency = "1ms-10ms" }
[[sites]]
name = "ill.example"
domains = 80
count = 8
address = "127.31.0.1"
except = [
    { share = 0.125, connect = "reset" },
    { share = 0.125, connect = "silent" },
    { share = 0.125, connect = "421 4.3.2 Too busy; come back later" },
    { share = 0.125, messages = { rcpt = [{ share = 1, reply = "busy" }] } },
    { share = 0.125, messages = { rcpt = [{ share = 0.5, reply = "unknown-user" }] } },
    { share = 0.125, messages = { drop = 0.4 } },
    { share = 0.125, dns = "servfail" },
    { share = 0.125, dns = "silence" },
]
"#;

/// A world that runs until it is asked for its summary.
struct World {
    home: TempDir,
    port: u16,
    names: SocketAddr,
    live: Arc<sink::Live>,
    running: JoinHandle<Summary>,
}

impl World {
    fn start() -> World {
        let home = TempDir::new().expect("a temporary directory");
        std::fs::write(home.path().join("world.toml"), WORLD).expect("a file");
        let (port, names) = (free_port(), SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())));
        let settings = SinkSettings {
            listen: vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))],
            world: Some(home.path().join("world.toml")),
            dns: Some(names),
            ledger: Some(home.path().join("arrived")),
            threads: Some(1),
            time: span(Duration::from_secs(300)),
            quiet: true,
            ..SinkSettings::default()
        };
        let live = Arc::new(sink::Live::default());
        let shared = live.clone();
        let running = thread::spawn(move || {
            let signals = Signals::take_over().expect("a descriptor");
            sink::run_with(&settings, &signals, shared).expect("the world opens")
        });
        // The names are the last thing that it opens; a host that is not there yet would rest.
        let opens = wait_until(|| TcpStream::connect(names).ok());
        assert!(opens.is_some(), "the world does not open");
        World { home, port, names, live, running }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// What became of the messages in the ledger `sent` so far.
    fn books(&self, sent: &str) -> Comparison {
        let read = |path: &Path, side| read(path, side).expect("a ledger").records;
        let mut arrived = read(&self.file("arrived"), Side::Sink);
        compare(&mut read(&self.file(sent), Side::Source), &mut arrived)
    }

    fn end(self) -> Summary {
        self.live.stop.store(true, Ordering::Relaxed);
        self.running.join().expect("the world does not panic")
    }
}

/// A port that is free everywhere, for the world has many addresses.
fn free_port() -> u16 {
    free_port_of(&[Ipv4Addr::UNSPECIFIED.into()])
}

fn span(time: Duration) -> Option<Span> {
    Some(Span(time))
}

/// A gateway that listens on `port`, or on any for 0, and has so many messages on their way over
/// one connection.
fn configuration(world: &World, port: u16, in_flight: u32) -> String {
    format!(
        r#"
workers = 2
[[listener]]
address = "127.0.0.1:{port}"
service = "relay"
[[route]]
recipient = "*"
to = "mx"
[delivery]
port = {}
connections_per_site = {CONNECTIONS_PER_SITE}
messages_in_flight = {in_flight}
timeouts = {{ connect = "2s", greeting = "2s", command = "5s", data = "5s" }}
[queue]
retry = ["1h"]
[dns]
servers = ["{}"]
timeout = "1s"
"#,
        world.port, world.names
    )
}

/// Sends to all domains below `group` and writes down what was acknowledged.
fn send(world: &World, gateway: SocketAddr, group: &str, domains: u64, messages: u64, run: u16) {
    let rcpt = format!("user{{n}}@d{{0..{}}}.{group}.example", domains - 1);
    let only = |pattern: &str| Some(vec![pattern.parse::<Weighted>().expect("a pattern")]);
    let settings = Settings {
        to: Some(gateway.to_string()),
        sessions: Some(8),
        messages: Some(messages),
        time: span(Duration::from_secs(60)),
        threads: Some(1),
        pipeline: true,
        size: Some(vec!["2KiB".parse::<Size>().expect("a size")]),
        from: only("list{n}@d0.home.example"),
        rcpt: only(&rcpt),
        ledger: Some(world.file(group)),
        seed: Some(u64::from(run)),
        ..Settings::default()
    };
    let plan = Plan::new(settings, run).expect("a plan");
    let signals = Signals::take_over().expect("a descriptor");
    source::run(plan, &signals, true).expect("it runs");
}

/// What is in the queue.
fn queued(gateway: &Gateway) -> Value {
    gateway.said_json(&["queue", "count"])
}

/// Messages that bounced so far, each of which had one recipient.
fn bounced(gateway: &Gateway) -> u64 {
    let bounced = gateway.events().into_iter().filter(|event| event["event"] == "bounced");
    let ids = bounced.map(|event| event["message"].as_str().expect("an id").to_owned());
    ids.collect::<HashSet<String>>().len() as u64
}

/// Waits until everything for sites that are well has arrived.
fn wait_for_the_well(world: &World, gateway: &Gateway) {
    gateway.wait_until("all mail of those who are well", || {
        thread::sleep(LOOK);
        (world.books("well").lost.count == 0).then_some(())
    });
}

/// How many more messages have not arrived than are in the queue: those that bounced.  Looks once
/// everything has been tried, notices too; the next attempts are an hour away.
fn neither_arrived_nor_queued(world: &World, gateway: &Gateway) -> u64 {
    let queued = gateway.wait_until("the end of all attempts", || {
        thread::sleep(LOOK);
        let queued = queued(gateway);
        let waiting = &queued["by_state"];
        (waiting["ready"] == 0 && waiting["active"] == 0).then_some(queued)
    });
    // The books are written a few times a second.
    thread::sleep(5 * LOOK);
    let queued = queued["messages"].as_u64().expect("a number");
    world.books("ill").lost.count.saturating_sub(queued)
}

/// No host saw more connections than a site may have, nor mail of others; gives what came home:
/// the notices.
fn check_the_hosts(summary: &Summary) -> u64 {
    assert_eq!(summary.counts().misrouted, 0, "each host gets the mail of its domains");
    for host in summary.places().iter().filter(|place| place.name.starts_with("mx")) {
        let most = host.sessions_max;
        assert!(most <= CONNECTIONS_PER_SITE, "{}: {most} connections", host.name);
    }
    let home = summary.places().iter().find(|place| place.name.contains("home.example"));
    home.expect("it has a host").messages
}

/// Sends to all at once.
fn send_to_all<'scope>(
    senders: &'scope thread::Scope<'scope, '_>,
    world: &'scope World,
    gateway: SocketAddr,
    run: u16,
) {
    senders.spawn(move || send(world, gateway, "ill", ILL_DOMAINS, ILL_MESSAGES, run));
    senders.spawn(move || send(world, gateway, "well", WELL_DOMAINS, WELL_MESSAGES, run + 1));
}

#[test]
fn all_is_accounted_for_where_a_tenth_of_the_world_fails() {
    let world = World::start();
    // With more than one a host may have taken what it had not answered when it broke off: such a
    // message is in the queue and has arrived, and the account would not be exact.
    let mut gateway = Gateway::start(&configuration(&world, 0, 1));
    thread::scope(|senders| send_to_all(senders, &world, gateway.smtp(0), 1));
    wait_for_the_well(&world, &gateway);
    let gone = neither_arrived_nor_queued(&world, &gateway);
    assert!(gone > 0, "some were refused for good");
    assert_eq!(gone, bounced(&gateway));
    let (well, ill) = (world.books("well"), world.books("ill"));
    assert_eq!((well.acknowledged, ill.acknowledged), (WELL_MESSAGES, ILL_MESSAGES));
    assert!(well.is_clean(), "{well:?}");
    assert_eq!((ill.duplicated.count, ill.damaged.count, ill.misdirected.count), (0, 0, 0));
    gateway.terminate();
    assert_eq!(check_the_hosts(&world.end()), gone, "a notice for each bounce");
}

#[test]
fn all_is_accounted_for_over_a_crash_in_such_a_world() {
    let world = World::start();
    let configuration = configuration(&world, free_port(), 4);
    let mut gateway = Gateway::start(&configuration);
    let gateway = thread::scope(|senders| {
        send_to_all(senders, &world, gateway.smtp(0), 3);
        gateway.wait_until("half of the load", || {
            (world.live.messages.load(Ordering::Relaxed) > WELL_MESSAGES / 2).then_some(())
        });
        gateway.kill9();
        gateway.restart(&configuration)
    });
    wait_for_the_well(&world, &gateway);
    let gone = neither_arrived_nor_queued(&world, &gateway);
    let (well, ill) = (world.books("well"), world.books("ill"));
    for books in [&well, &ill] {
        let broken = (&books.damaged, &books.misdirected, &books.refused_but_arrived);
        assert_eq!((broken.0.count, broken.1.count, broken.2.count), (0, 0, 0), "{books:?}");
        // What the last commit before the crash did not know of comes twice.
        assert!(books.duplicated.count <= (WELL_MESSAGES + ILL_MESSAGES) / 10, "{books:?}");
    }
    drop(gateway);
    let notices = check_the_hosts(&world.end());
    // The crash took the last events along, so notices are what tells; some may have come twice.
    assert!(gone <= notices, "{gone} are neither delivered nor queued, {notices} notices came");
}
