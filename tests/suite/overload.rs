//! More than can be kept: crowds, bodies that never end, next hops without number, no descriptors.
//! Each rung of the ladder (`docs/operations.md`, "Under load") does what it says, memory stays
//! within its bounds, the admin interface answers, and once the flood is over mail goes on.
//!
//! What needs the whole machine is ignored here; `.ci/run` has it on the release build.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::process::{Pid, Rlimit, prlimit};

use crate::client::{Client, Reply};
use crate::gateway::{Gateway, INTO_MAILDIRS, PATIENCE};
use crate::sink::{Manners, Sink};

const MIB: u64 = 1024 * 1024;

/// One crowd at a time: two would need more descriptors than a process has.  Raises the limit of
/// open files, which must not be below `needed` by decree.
pub fn alone(needed: u64) -> MutexGuard<'static, ()> {
    static CROWD: Mutex<()> = Mutex::new(());
    let guard = CROWD.lock().unwrap_or_else(PoisonError::into_inner);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    assert!(hard >= needed, "`ulimit -Hn` is {hard}; this test needs {needed} open files");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("up to the hard limit");
    guard
}

/// A client's address in 127.0.0.0/8, one for each hundred sessions.
fn loopback(index: usize) -> IpAddr {
    let hundred = u8::try_from(index / 100).expect("below 25,600 sessions");
    Ipv4Addr::new(127, 0, 8, hundred).into()
}

/// `count` connections whose greeting has not been read.
pub fn crowd(gateway: &Gateway, count: usize) -> Vec<TcpStream> {
    let connect = |index| {
        let client = Client::connect_silently(gateway.smtp(0), Some(loopback(index)));
        client.stream().try_clone().expect("a descriptor")
    };
    (0..count).map(connect).collect()
}

/// Memory is short: what bodies on their way in may take is taken.
const BUSY: &str = "452 4.4.5 ";
/// The log has no room: without descriptors it makes no segments.
const NO_ROOM: &str = "452 4.3.1 ";

/// A message goes through.
fn get_through(gateway: &Gateway, to: &str) {
    offer(gateway, to).message_id();
}

/// Whether a message goes through, or is refused for want of memory.
pub fn tries_to_get_through(gateway: &Gateway, to: &str) -> bool {
    is_taken_or(BUSY, gateway, to)
}

/// Whether a message goes through, or is refused like this.
fn is_taken_or(refusal: &str, gateway: &Gateway, to: &str) -> bool {
    let reply = offer(gateway, to);
    let is_refused = reply.0.starts_with(refusal);
    if !is_refused {
        reply.message_id();
    }
    !is_refused
}

/// The reply to a message, or to its recipient if that is refused.
fn offer(gateway: &Gateway, to: &str) -> Reply {
    let mut client = Client::hello(gateway.smtp(0));
    client.command("MAIL FROM:<sender@client.test>").expect("250");
    let reply = client.command(&format!("RCPT TO:<{to}>"));
    match reply.0.starts_with("250") {
        true => client.data(b"Subject: room\r\n\r\n"),
        false => reply,
    }
}

/// Sends `count` messages of so many lines in flights of fifty, as fast as they are taken.
pub fn send_many(gateway: &Gateway, to: &str, count: usize, lines: usize) {
    let mut client = Client::hello(gateway.smtp(0));
    let line = b"a line of one of many messages that are all the same\r\n";
    let body = [b"Subject: one of many\r\n\r\n".as_slice(), &line.repeat(lines)].concat();
    let mut one = format!("MAIL FROM:<sender@client.test>\r\nRCPT TO:<{to}>\r\n").into_bytes();
    one.extend_from_slice(format!("BDAT {} LAST\r\n", body.len()).as_bytes());
    one.extend_from_slice(&body);
    let mut left = count;
    while left > 0 {
        let flight = left.min(50);
        client.send(&one.repeat(flight));
        for _ in 0..3 * flight {
            client.reply().expect("250");
        }
        left -= flight;
    }
}

/// One GET of the admin interface: status line, head and body as they come.
pub fn ask(gateway: &Gateway, path: &str) -> String {
    let mut stream = TcpStream::connect(gateway.admin()).expect("the admin port listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket option");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the admin port answers");
    answer
}

/// A metric's value, that of its first line.
pub fn metric(gateway: &Gateway, name: &str) -> u64 {
    let page = ask(gateway, "/metrics");
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

// ---- clients ---------------------------------------------------------------------------------

#[test]
fn a_crowd_in_the_middle_of_a_command_costs_little() {
    const SESSIONS: usize = 6_000;
    let _alone = alone(SESSIONS as u64 + 1_000);
    let config = format!("{INTO_MAILDIRS}\n[limits]\nsessions = 12000\nmemory = \"16MiB\"\n");
    let mut gateway = Gateway::start(&config);
    drop(crowd(&gateway, 100));
    let before = gateway.memory_bytes();
    let mut clients = crowd(&gateway, SESSIONS);
    for client in &mut clients {
        client.write_all(b"EHLO a-name-that-is-never-").expect("the gateway reads");
    }
    gateway.wait_until("all sessions", || {
        (metric(&gateway, "mailrace_sessions_open") >= SESSIONS as u64).then_some(())
    });
    let held = metric(&gateway, "mailrace_receive_memory_bytes");
    assert!(held <= 8 * MIB, "receive buffers of {held} bytes");
    get_through(&gateway, "user@crowd.test");
    let each = gateway.memory_bytes().saturating_sub(before) / SESSIONS as u64;
    println!("{each} bytes for each of {SESSIONS} sessions in the middle of a command");
    assert!(each <= 10 * 1024, "{each} bytes for each session");
    // They go on where they stood.
    for client in clients.iter_mut().step_by(499) {
        client.write_all(b"ending.test\r\n").expect("the gateway reads");
        client.set_read_timeout(Some(PATIENCE)).expect("a socket option");
        let mut replies = String::new();
        while !replies.contains("250 ") {
            let mut piece = [0; 1024];
            let octets = client.read(&mut piece).expect("the gateway answers");
            assert!(octets > 0, "it ended after {replies}");
            replies += std::str::from_utf8(&piece[..octets]).expect("ASCII");
        }
    }
    drop(clients);
    gateway.maildir("crowd.test", "user", 1);
    gateway.terminate();
}

/// Nothing is read between them that would end one before the next begins.
#[test]
fn envelopes_of_pipelined_transactions_are_counted_one_at_a_time() {
    const TRANSACTIONS: usize = 300;
    const RECIPIENTS: usize = 100;
    let mut gateway = Gateway::start(INTO_MAILDIRS);
    let mut client = Client::hello(gateway.smtp(0)).stream().try_clone().expect("a descriptor");
    client.set_read_timeout(Some(PATIENCE)).expect("a socket option");
    let recipients = |count: usize| -> String {
        (0..count).map(|no| format!("RCPT TO:<recipient-{no}@pipelined.test>\r\n")).collect()
    };
    let mail = "MAIL FROM:<sender@client.test>\r\n";
    let half = recipients(RECIPIENTS / 2);
    let first = format!("{mail}{half}");
    let next = format!("{half}RSET\r\n{mail}{half}");
    for transaction in 0..TRANSACTIONS {
        let said = if transaction == 0 { &first } else { &next };
        client.write_all(said.as_bytes()).expect("the gateway reads");
        let mut owed = said.lines().count();
        while owed > 0 {
            let mut piece = [0; 16 * 1024];
            let octets = client.read(&mut piece).expect("the gateway answers");
            assert!(octets > 0, "it ended");
            owed -= piece[..octets].iter().filter(|&&octet| octet == b'\n').count();
        }
    }
    // A hundred octets for each of fifty recipients, and the buffer of who is in a transaction.
    let held = || metric(&gateway, "mailrace_receive_memory_bytes");
    gateway.wait_until("one envelope to be counted", || {
        (4 * 1024..48 * 1024).contains(&held()).then_some(())
    });
    drop(client);
    gateway.wait_until("none to be counted", || (held() == 0).then_some(()));
    gateway.terminate();
}

/// Brings every client to the middle of a transaction, where a body is to follow.
pub fn begin_bodies(clients: &mut [TcpStream]) {
    let envelope = b"EHLO slow.test\r\nMAIL FROM:<slow@client.test>\r\n\
        RCPT TO:<user@slow.test>\r\nDATA\r\n";
    for client in clients.iter_mut() {
        client.write_all(envelope).expect("the gateway reads");
    }
    for client in clients {
        let mut replies = String::new();
        while !replies.contains("354 ") {
            let mut piece = [0; 1024];
            let octets = client.read(&mut piece).expect("the gateway answers");
            assert!(octets > 0, "it ended after {replies}");
            replies += std::str::from_utf8(&piece[..octets]).expect("ASCII");
        }
        client.set_nonblocking(true).expect("a socket option");
    }
}

#[test]
fn bodies_that_do_not_end_take_no_more_memory_than_they_may_and_give_way() {
    const SESSIONS: usize = 1_500;
    let _alone = alone(SESSIONS as u64 + 1_000);
    let config = format!("{INTO_MAILDIRS}\n[limits]\nsessions = 2000\nmemory = \"8MiB\"\n");
    let mut gateway = Gateway::start(&config);
    drop(crowd(&gateway, 100));
    get_through(&gateway, "user@first.test");
    let before = gateway.memory_bytes();
    let mut clients = crowd(&gateway, SESSIONS);
    begin_bodies(&mut clients);
    let body = [b"x".repeat(78), b"\r\n".to_vec()].concat().repeat(300);
    let peak = gateway.peak_while(|| {
        for client in &mut clients {
            // What it does not read stays in the socket's buffers, as far as they go.
            let _ = client.write(&body);
        }
        // 34 MiB are on their way, which take 94 MiB of buffers, and 4 MiB may be.
        gateway.wait_until("sessions that are not read", || {
            (metric(&gateway, "mailrace_reads_paused_total") > 0).then_some(())
        });
        // Who comes now is told to come again.
        gateway.wait_until("a refusal for want of memory", || {
            (!tries_to_get_through(&gateway, "user@early.test")).then_some(())
        });
    });
    let growth = peak.saturating_sub(before);
    println!("{} KiB for {SESSIONS} bodies of 23 KiB", growth / 1024);
    assert!(growth <= 40 * MIB, "{} KiB more", growth / 1024);
    // They do not come on: those that hold memory are cut off, or refused, and then there is room.
    gateway.wait_until("a message that is taken", || {
        tries_to_get_through(&gateway, "user@after.test").then_some(())
    });
    drop(clients);
    gateway.maildir("after.test", "user", 1);
    gateway.wait_until("all memory given back", || {
        (metric(&gateway, "mailrace_receive_memory_bytes") < 256 * 1024).then_some(())
    });
    gateway.terminate();
}

#[test]
fn large_uploads_that_trickle_give_way_to_one_that_does_not() {
    // One worker, since a client cannot choose: it has sixteen chunks.
    let config = format!("workers = 1\n{INTO_MAILDIRS}\n[limits]\nmemory = \"8MiB\"\n");
    let mut gateway = Gateway::start(&config);
    let mut slow: Vec<Client> = (0..18).map(|_| Client::hello(gateway.smtp(0))).collect();
    for client in &mut slow {
        client.envelope("slow@client.test", &["user@slow.test"]);
        client.command("DATA").expect("354");
        let _ = client.try_send(&b"a line that is not the last one\r\n".repeat(1_200));
    }
    let all = 16 * 256 * 1024;
    gateway.wait_until("no chunk left", || {
        (metric(&gateway, "mailrace_chunk_memory_bytes") >= all).then_some(())
    });
    let message = b"a line of somebody who goes on\r\n".repeat(40_000);
    let started = Instant::now();
    let mut client = Client::hello(gateway.smtp(0));
    client.envelope("sender@client.test", &["user@large.test"]);
    client.data(&message).message_id();
    println!("a large message was taken after {:?}", started.elapsed());
    // Workers set it ten times a second.
    gateway.wait_until("the count of those that gave way", || {
        (metric(&gateway, "mailrace_sessions_cut_total") > 0).then_some(())
    });
    drop(slow);
    let stored = gateway.maildir("large.test", "user", 1);
    assert!(stored[0].ends_with(&message));
    gateway.terminate();
}

// ---- descriptors -----------------------------------------------------------------------------

/// The most open files that a process may have from now on, and what it was.
fn limit_descriptors(gateway: &Gateway, most: Option<u64>) -> Option<u64> {
    let pid = Pid::from_raw(gateway.pid().cast_signed()).expect("a process id");
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    let limit = Rlimit { current: most, maximum: Some(hard) };
    prlimit(Some(pid), rustix::process::Resource::Nofile, limit).expect("a child of ours").current
}

#[test]
fn without_descriptors_the_admin_port_answers_and_mail_goes_on_afterwards() {
    let mut gateway = Gateway::start(INTO_MAILDIRS);
    get_through(&gateway, "user@before.test");
    gateway.maildir("before.test", "user", 1);
    let open = || {
        let files = std::fs::read_dir(format!("/proc/{}/fd", gateway.pid()));
        files.expect("the process runs").count() as u64
    };
    gateway.wait_until("no connection but the listeners", || {
        (metric(&gateway, "mailrace_sessions_open") == 0).then_some(())
    });
    let before = limit_descriptors(&gateway, Some(open()));
    let mut waiting: Vec<Client> =
        (0..20).map(|_| Client::connect_silently(gateway.smtp(0), None)).collect();
    // More than one descriptor may be free: what was open for a moment counted too.
    for _ in 0..5 {
        assert!(ask(&gateway, "/health").starts_with("HTTP/1.1 200"));
    }
    gateway.wait_until("a listener that waits", || {
        (metric(&gateway, "mailrace_accept_pauses_total") > 0).then_some(())
    });
    assert!(metric(&gateway, "mailrace_accept_errors_total") > 0);
    limit_descriptors(&gateway, before);
    for client in &mut waiting {
        client.reply().expect("220");
    }
    gateway.wait_until("a message that is taken", || {
        is_taken_or(NO_ROOM, &gateway, "user@after.test").then_some(())
    });
    gateway.maildir("after.test", "user", 1);
    drop(waiting);
    gateway.terminate();
}

/// The command that runs a gateway that may lock so many octets of memory and no more.
fn with_locked_memory(octets: u64) -> Vec<String> {
    let mut words = Vec::new();
    if rustix::process::geteuid().is_root() {
        // What lets root lock what it likes, and what would let it raise the limit.
        words.extend(["setpriv".to_owned(), "--bounding-set=-ipc_lock,-sys_resource".to_owned()]);
    }
    words.extend(["prlimit".to_owned(), format!("--memlock={octets}:{octets}")]);
    words
}

#[test]
fn workers_without_memory_for_their_rings_take_smaller_ones_or_do_without() {
    let config = format!("workers = 3\n{INTO_MAILDIRS}");
    let small = (640 * 1024, "this worker has small rings");
    let none = (64 * 1024, "this worker runs on epoll");
    for (octets, what) in [small, none] {
        let wrapper = with_locked_memory(octets);
        let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
        let mut gateway = Gateway::start_under(&wrapper, &config);
        for number in 0..6 {
            get_through(&gateway, &format!("user{number}@rings.test"));
            gateway.maildir("rings.test", &format!("user{number}"), 1);
        }
        gateway.terminate();
        let said = gateway.errors();
        let has_rings = !said.contains("the workers run on epoll");
        assert!(!has_rings || said.contains(what), "{octets} octets: {said}");
    }
}

// ---- next hops -------------------------------------------------------------------------------

/// A route to each of `hops`, for `user@hopN.test`.
fn routes_to(hops: &[SocketAddr]) -> String {
    let route = |(number, hop): (usize, &SocketAddr)| {
        format!("[[route]]\nrecipient = \"*@hop{number}.test\"\nto = \"smtp://{hop}\"\n")
    };
    hops.iter().enumerate().map(route).collect()
}

const RELAY: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"relay\"\n";

#[test]
fn all_next_hops_together_have_no_more_connections_than_they_may() {
    let slow = || Manners { pause: Duration::from_millis(100), ..Manners::default() };
    let sinks: Vec<Sink> = (0..12).map(|_| Sink::start(slow())).collect();
    let hops: Vec<SocketAddr> = sinks.iter().map(Sink::address).collect();
    let config = format!("{RELAY}{}[delivery]\nconnections = 4\n", routes_to(&hops));
    let mut gateway = Gateway::start(&config);
    for number in 0..12 {
        send_many(&gateway, &format!("user@hop{number}.test"), 6, 1);
    }
    let (mut most, mut waiting) = (0, 0);
    gateway.wait_until("every message delivered", || {
        most = most.max(metric(&gateway, "mailrace_connections_open"));
        waiting = waiting.max(metric(&gateway, "mailrace_sites_waiting"));
        sinks.iter().all(|sink| sink.count() == 6).then_some(())
    });
    assert!((1..=4).contains(&most), "{most} connections at a time");
    assert!(waiting > 0, "nobody ever stood in line");
    gateway.terminate();
}

/// A peer that greets, says EHLO, and closes at MAIL without a word.
fn sullen() -> (SocketAddr, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            counted.fetch_add(1, Ordering::Relaxed);
            let _ = stream.write_all(b"220 sullen.test\r\n");
            let mut line = [0; 512];
            if stream.read(&mut line).is_ok_and(|octets| octets > 0) {
                let _ = stream.write_all(b"250 sullen.test\r\n");
                let _ = stream.read(&mut line);
            }
        }
    });
    (address, connections)
}

#[test]
fn a_lone_host_that_drops_every_message_rests() {
    let (hop, connections) = sullen();
    let config = format!(
        "{RELAY}{}[delivery]\nconnections_per_site = 5\n[queue]\nretry = [\"1h\"]\n",
        routes_to(&[hop])
    );
    let mut gateway = Gateway::start(&config);
    send_many(&gateway, "user@hop0.test", 40, 1);
    gateway.wait_event("the site rests", |event| event["reason"] == "site_unreachable");
    // Those that were tried wait for their own time, the others for the site.
    let tried = connections.load(std::sync::atomic::Ordering::Relaxed);
    assert!((3..=15).contains(&tried), "{tried} connections for forty messages");
    assert!(metric(&gateway, "mailrace_attempts_total") <= 15);
    gateway.terminate();
}

/// An hour in which a next hop takes nothing is no more than a longer queue.
#[test]
fn a_next_hop_that_takes_nothing_costs_a_queue_and_nothing_else() {
    const MESSAGES: usize = 3_000;
    let dead = TcpListener::bind("127.0.0.1:0").expect("a port");
    let well = Sink::start(Manners::default());
    let hop = dead.local_addr().expect("bound");
    let config = format!(
        "{RELAY}{}[delivery]\ntimeouts = {{ greeting = \"1s\", connect = \"1s\" }}\n\
         [queue]\nretry = [\"1s\"]\n",
        routes_to(&[hop, well.address()])
    );
    let mut gateway = Gateway::start(&config);
    send_many(&gateway, "user@hop0.test", 500, 160);
    send_many(&gateway, "user@hop1.test", 100, 1);
    well.taken(100);
    let before = gateway.memory_bytes();
    send_many(&gateway, "user@hop0.test", MESSAGES, 160);
    let each = gateway.memory_bytes().saturating_sub(before) / MESSAGES as u64;
    println!("{each} bytes for each message that waits");
    // Each has more than 8 KiB, and its events may wait for their reader.
    assert!(each <= 4 * 1024, "{each} bytes for each message that waits");
    // Others get theirs meanwhile.
    send_many(&gateway, "user@hop1.test", 100, 1);
    well.taken(200);
    drop(dead);
    let back = Sink::start_at(hop, Manners { forgets_bodies: true, ..Manners::default() });
    back.taken(500 + MESSAGES);
    gateway.terminate();
}
