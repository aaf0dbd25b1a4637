//! Floods that need the whole machine: ignored in the suite, run by `.ci/run` on the release build.
//!
//! The gateway runs in a control group of its own, which caps its memory (the kernel's for its
//! sockets included) or slows its disk down.  Where this system has none to give, memory is
//! measured instead, and the slow disk is left out; what was done is said.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crate::gateway::{Gateway, PATIENCE};
use crate::overload::{alone, ask, begin_bodies, crowd, metric, send_many, tries_to_get_through};

const MIB: u64 = 1024 * 1024;
/// What the gateway may have.
const CAP: u64 = 256 * MIB;

const INTO_NOTHING: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"relay\"\n\
    [[route]]\nrecipient = \"*\"\nto = \"discard\"\n[limits]\nsessions = 16000\n";

/// A control group for one gateway, which goes when this is dropped.
struct Group {
    path: PathBuf,
}

impl Group {
    /// A new one below the controller's root, of version 1 or 2.
    fn new(controller: &str) -> Option<Group> {
        let root = PathBuf::from("/sys/fs/cgroup");
        let old = root.join(controller);
        let root = if old.is_dir() { old } else { root };
        let path = root.join(format!("mailrace-test-{}-{controller}", std::process::id()));
        fs::create_dir(&path).ok()?;
        let group = Group { path };
        // Version 2 gives its children only what the parent says.
        let _ = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"));
        Some(group)
    }

    /// One with so much memory.
    fn of_memory(octets: u64) -> Option<Group> {
        let group = Group::new("memory")?;
        let is_set = ["memory.max", "memory.limit_in_bytes"]
            .iter()
            .any(|file| fs::write(group.path.join(file), octets.to_string()).is_ok());
        is_set.then_some(group)
    }

    /// The command that runs another one in it.
    fn wrapper(&self) -> Vec<String> {
        let script = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", self.path.display());
        ["sh", "-c", &script, "sh"].map(str::to_owned).into()
    }

    fn figure(&self, files: &[&str]) -> u64 {
        let read = |file: &&str| fs::read_to_string(self.path.join(file)).ok()?.trim().parse().ok();
        files.iter().find_map(read).unwrap_or(0)
    }

    /// What it has of memory, and what of it is the kernel's.
    fn memory(&self) -> (u64, u64) {
        let all = self.figure(&["memory.current", "memory.usage_in_bytes"]);
        let stat = fs::read_to_string(self.path.join("memory.stat")).unwrap_or_default();
        let of = |name: &str| {
            let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|figure| figure.parse::<u64>().ok())
        };
        let sockets = self.figure(&["memory.kmem.tcp.usage_in_bytes"]);
        let kernel = of("kernel").map(|kernel| kernel + of("sock").unwrap_or(0));
        (all, kernel.unwrap_or_else(|| self.figure(&["memory.kmem.usage_in_bytes"]) + sockets))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process that has ended may stay in it for a moment.
        for _ in 0..100 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A gateway whose memory is capped, where the system can do that.
fn start_capped(config: &str) -> (Option<Group>, Gateway) {
    let group = Group::of_memory(CAP);
    let words = group.as_ref().map(Group::wrapper).unwrap_or_default();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let gateway = Gateway::start_under(&words, config);
    (group, gateway)
}

/// Prints what it takes now; fails if that is more than the cap.
fn tell_memory(what: &str, group: Option<&Group>, gateway: &Gateway) {
    let own = gateway.memory_bytes();
    match group {
        Some(group) => {
            let (all, kernel) = group.memory();
            println!(
                "{what}: {} MiB of {} MiB in its control group, {} MiB its own, {} MiB the kernel's",
                all / MIB,
                CAP / MIB,
                own / MIB,
                kernel / MIB
            );
        }
        None => println!("{what}: {} MiB its own; no control group to be had here", own / MIB),
    }
    assert!(own < CAP, "{own} bytes");
}

/// Messages a second that one client gets through.
fn rate(gateway: &Gateway) -> f64 {
    let started = Instant::now();
    send_many(gateway, "user@rate.test", RATE_MESSAGES, 18);
    RATE_MESSAGES as f64 / started.elapsed().as_secs_f64()
}

const RATE_MESSAGES: usize = 2_000;

/// After a flood mail goes on, as fast as before, and nothing holds it back.  A tenth of the rate is
/// asked for, in the best of five rounds: a machine that does other work besides is not judged with
/// the gateway, and whatever a flood leaves behind that slows each message down costs more.
fn recovers(gateway: &Gateway, before: f64) {
    let started = Instant::now();
    gateway.wait_until("the end of their sessions, and of what they held", || {
        let sessions = metric(gateway, "mailrace_sessions_open");
        let octets = metric(gateway, "mailrace_receive_memory_bytes");
        (sessions < 100 && octets < MIB).then_some(())
    });
    let held_back = HOLDING_BACK.map(|name| metric(gateway, name));
    let mut after = rate(gateway);
    for _ in 0..4 {
        if after > before / 2.0 {
            break;
        }
        after = after.max(rate(gateway));
    }
    println!("{before:.0} messages a second before, {after:.0} after, {:?}", started.elapsed());
    assert!(after > before / 10.0, "{before:.0} messages a second before, {after:.0} after");
    assert_eq!(HOLDING_BACK.map(|name| metric(gateway, name)), held_back, "{HOLDING_BACK:?}");
}

/// What counts those that had to wait, or were turned away.
const HOLDING_BACK: [&str; 4] = [
    "mailrace_messages_delayed_total",
    "mailrace_reads_paused_total",
    "mailrace_refused_total{reason=\"busy\"}",
    "mailrace_sessions_cut_total",
];

/// The admin interface answers, whatever it has to say.
fn answers(gateway: &Gateway) {
    let started = Instant::now();
    let answer = ask(gateway, "/health");
    let first = answer.lines().next().unwrap_or("nothing");
    assert!(first.starts_with("HTTP/1.1 "), "{answer}");
    println!("/health: {first} after {:?}", started.elapsed());
}

fn is_over(stream: &mut TcpStream) -> bool {
    let mut piece = [0; 4096];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != ErrorKind::WouldBlock,
        }
    }
}

#[test]
#[ignore = "needs the whole machine; .ci/run has it"]
fn fifteen_thousand_clients_of_an_octet_a_second() {
    const SESSIONS: usize = 15_000;
    const SECONDS: usize = 10;
    let _alone = alone(SESSIONS as u64 + 1_000);
    let (group, mut gateway) = start_capped(INTO_NOTHING);
    rate(&gateway);
    let before = rate(&gateway);
    tell_memory("before", group.as_ref(), &gateway);
    let mut clients = crowd(&gateway, SESSIONS);
    begin_bodies(&mut clients);
    let text = b"Subject: slow\r\n\r\n";
    for second in 0..SECONDS {
        let started = Instant::now();
        for client in &mut clients {
            let _ = client.write(&text[second..=second]);
        }
        answers(&gateway);
        thread::sleep(Duration::from_secs(1).saturating_sub(started.elapsed()));
    }
    tell_memory("fifteen thousand sessions", group.as_ref(), &gateway);
    println!("{:.0} messages a second beside them", rate(&gateway));
    assert_eq!(metric(&gateway, "mailrace_sessions_open"), SESSIONS as u64);
    assert!(!clients.iter_mut().step_by(97).any(is_over), "one of them was cut off");
    drop(clients);
    recovers(&gateway, before);
    tell_memory("afterwards", group.as_ref(), &gateway);
    assert!(gateway.is_running());
    gateway.terminate();
}

#[test]
#[ignore = "needs the whole machine; .ci/run has it"]
fn ten_thousand_bodies_that_do_not_end_in_256_mib() {
    const SESSIONS: usize = 10_000;
    let _alone = alone(SESSIONS as u64 + 1_000);
    let (group, mut gateway) = start_capped(INTO_NOTHING);
    rate(&gateway);
    let before = rate(&gateway);
    let mut clients = crowd(&gateway, SESSIONS);
    begin_bodies(&mut clients);
    let line = b"a line of a body, seventy octets of it, and never the last one\r\n";
    let body = [b"Subject: never ends\r\n\r\n".as_slice(), &line.repeat(370)].concat();
    for client in &mut clients {
        // What is not taken now comes never: 240 MiB in all, if all of it were.
        let _ = client.write(&body);
    }
    answers(&gateway);
    gateway.wait_until("sessions that are not read", || {
        (metric(&gateway, "mailrace_reads_paused_total") > 0).then_some(())
    });
    tell_memory("ten thousand bodies", group.as_ref(), &gateway);
    gateway.wait_until("room for others again", || {
        tries_to_get_through(&gateway, "user@after.test").then_some(())
    });
    println!(
        "{} sessions cut off, {} refused",
        metric(&gateway, "mailrace_sessions_cut_total"),
        metric(&gateway, "mailrace_refused_total{reason=\"busy\"}")
    );
    tell_memory("with room again", group.as_ref(), &gateway);
    drop(clients);
    recovers(&gateway, before);
    assert!(gateway.is_running());
    gateway.terminate();
}

#[test]
#[ignore = "needs the whole machine; .ci/run has it"]
fn senders_faster_than_the_disk_wait_for_it() {
    const SESSIONS: usize = 2_000;
    let _alone = alone(SESSIONS as u64 + 1_000);
    let Some(group) = Group::new("blkio") else {
        println!("no control group for disks here: left out");
        return;
    };
    let words = group.wrapper();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut gateway = Gateway::start_under(&words, INTO_NOTHING);
    rate(&gateway);
    let before = rate(&gateway);
    let device = fs::metadata(gateway.dir()).expect("it is there").dev();
    let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let throttle = group.path.join("blkio.throttle.write_bps_device");
    if fs::write(&throttle, format!("{device} {}", 8 * MIB)).is_err() {
        println!("the disk cannot be slowed down here: left out");
        return gateway.terminate();
    }
    let own = gateway.memory_bytes();
    let started = Instant::now();
    let mut clients = crowd(&gateway, SESSIONS);
    let peak = gateway.peak_while(|| {
        begin_bodies(&mut clients);
        let line = b"a line of a body, seventy octets of it, and one of many more\r\n";
        let body = [b"Subject: many\r\n\r\n".as_slice(), &line.repeat(215), b".\r\n"].concat();
        for client in &mut clients {
            // 13 KiB each, 26 MiB in all, and the workers' batches have 16: three seconds of the
            // disk.
            client.write_all(&body).expect("room in the socket's buffer");
        }
        for client in &mut clients {
            client.set_nonblocking(false).expect("a socket option");
            let mut reply = [0; 512];
            let octets = client.read(&mut reply).expect("a reply to every message");
            let reply = String::from_utf8_lossy(&reply[..octets]);
            assert!(reply.starts_with("250 "), "{reply}");
        }
    });
    let waited = metric(&gateway, "mailrace_messages_delayed_total");
    println!(
        "{SESSIONS} messages in {:?}: {} MiB more, {waited} waited for room in a batch",
        started.elapsed(),
        peak.saturating_sub(own) / MIB
    );
    assert!(waited > 0, "nobody waited");
    assert!(peak.saturating_sub(own) < 128 * MIB);
    assert_eq!(metric(&gateway, "mailrace_refused_total{reason=\"busy\"}"), 0);
    fs::write(&throttle, format!("{device} 0")).expect("as above");
    drop(clients);
    recovers(&gateway, before);
    gateway.terminate();
}

/// The patience of the suite covers what the tests above wait for.
const _: () = assert!(PATIENCE.as_secs() >= 30);
