//! What was acknowledged is there after a crash, whole and once; a full disk stops new mail and
//! nothing else.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::bytes::behind_trace;
use crate::client::{Client, stuffed};
use crate::gateway::{Gateway, files_in, unshared};
use crate::overload::ask;
use crate::sink::{Manners, Sink};

const SESSIONS: usize = 20;

/// What clients were promised: the number of each message whose final 250 they read.
#[derive(Default)]
struct Ledger {
    next: AtomicU64,
    promised: Mutex<HashSet<u64>>,
}

impl Ledger {
    fn promised(&self) -> usize {
        self.promised.lock().expect("no client panics").len()
    }

    fn promised_numbers(&self) -> Vec<u64> {
        self.promised.lock().expect("no client panics").iter().copied().collect()
    }

    /// Sends by many sessions at once until `enough` more messages are promised, then kills the
    /// gateway in the middle of it all.
    fn load_and_kill(&self, gateway: &mut Gateway, enough: usize) {
        let wanted = self.promised() + enough;
        self.load_and_kill_when(gateway, |_| self.promised() >= wanted);
    }

    /// The same as soon as `is_enough` says so.
    fn load_and_kill_when(&self, gateway: &mut Gateway, is_enough: impl Fn(&Gateway) -> bool) {
        let address = gateway.smtp(0);
        thread::scope(|scope| {
            for _ in 0..SESSIONS {
                scope.spawn(|| self.send_until_it_breaks(address));
            }
            gateway.wait_until("enough messages", || is_enough(gateway).then_some(()));
            gateway.kill9();
        });
    }

    fn send_until_it_breaks(&self, address: SocketAddr) {
        let mut client = Client::hello(address);
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(reply) = send(&mut client, number) else { return };
            assert!(reply.starts_with("250 2.0.0 Ok: queued as "), "{reply}");
            self.promised.lock().expect("no client panics").insert(number);
        }
    }

    /// All that was promised must be among `found`, and how often.
    fn judge(&self, found: &HashMap<u64, usize>, what: &str) {
        let promised = self.promised.lock().expect("no client panics");
        let mut missing: Vec<_> = promised.iter().filter(|n| !found.contains_key(n)).collect();
        missing.sort();
        assert!(
            missing.is_empty(),
            "{what}: {} of {} missing: {missing:?}",
            missing.len(),
            promised.len()
        );
    }
}

/// Sends one message in as few flights as the protocol allows; `None` if the connection breaks.
fn send(client: &mut Client, number: u64) -> Option<String> {
    let message = message(number);
    let site = match number {
        _ if is_kept_waiting(number) => "wait.test",
        _ if number % 4 == 1 => "box.test",
        _ => "hop.test",
    };
    let envelope = format!("MAIL FROM:<sender@client.test>\r\nRCPT TO:<n{number}@{site}>\r\n");
    let by_bdat = number.is_multiple_of(3);
    let mut flight = envelope.into_bytes();
    if by_bdat {
        flight.extend_from_slice(format!("BDAT {} LAST\r\n", message.len()).as_bytes());
        flight.extend_from_slice(&message);
    } else {
        flight.extend_from_slice(b"DATA\r\n");
    }
    client.try_send(&flight).ok()?;
    assert!(client.try_reply()?.0.starts_with("250 2.1.0"));
    assert!(client.try_reply()?.0.starts_with("250 2.1.5"));
    if !by_bdat {
        assert!(client.try_reply()?.0.starts_with("354"));
        client.try_send(&stuffed(&message)).ok()?;
    }
    client.try_reply().map(|reply| reply.0)
}

/// Whether the next hop of a message may be one that takes nothing for a long time: an eighth of
/// the small ones, and half of those of a few chunks.
fn is_kept_waiting(number: u64) -> bool {
    number % 8 == 3 || number % 40 == 20
}

/// The message of that number: always the same octets, of all sizes, some over several chunks.
fn message(number: u64) -> Vec<u8> {
    let octets = match number % 40 {
        0 => 1_000_000,
        10 | 20 => 300_000,
        others => 500 + others * 300,
    };
    let mut message = format!("X-Number: {number}\r\n\r\n").into_bytes();
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while (message.len() as u64) < octets {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        message.extend_from_slice(
            format!("{}{state:016x}\r\n", [".", ""][number as usize % 2]).as_bytes(),
        );
    }
    message
}

/// The number of a stored message, whose octets must be those that were sent.
fn number_of(whole: &[u8]) -> u64 {
    let rest = whole.strip_prefix(b"Return-Path: <sender@client.test>\r\n").unwrap_or(whole);
    let (id, stored) = behind_trace(rest);
    let end = stored.iter().position(|&octet| octet == b'\r').expect("a line");
    let number = std::str::from_utf8(&stored[b"X-Number: ".len()..end]).expect("a number");
    let number = number.parse().expect("a number");
    assert!(stored == message(number), "{id}: message {number} is not what was sent");
    number
}

/// How often each message lies in the Maildirs.
fn in_maildirs(gateway: &Gateway) -> HashMap<u64, usize> {
    let mut found = HashMap::new();
    for maildir in files_in(&gateway.dir().join("mail/box.test")) {
        for file in files_in(&maildir.join("new")) {
            let number = number_of(&std::fs::read(file).expect("a delivered message"));
            *found.entry(number).or_insert(0) += 1;
        }
    }
    found
}

fn at_sink(sink: &Sink) -> HashMap<u64, usize> {
    let mut found = HashMap::new();
    for taken in sink.taken_so_far() {
        *found.entry(number_of(&taken.message)).or_insert(0) += 1;
    }
    found
}

/// Messages in the queue, as the command counts them.
fn queued(gateway: &Gateway) -> u64 {
    let count = gateway.said_json(&["queue", "count"]);
    count["messages"].as_u64().expect("a number of messages")
}

/// Nothing in the log of a gateway that was killed may count as damage.
fn assert_no_damage(gateway: &Gateway) {
    let output = gateway.command(&["spool", "verify"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn config(workers: usize, durability: &str, routes: &str) -> String {
    format!(
        r#"
workers = {workers}
[[listener]]
address = "127.0.0.1:0"
service = "relay"
durability = "{durability}"
{routes}
[queue]
retry = ["1s"]
"#
    )
}

const HOLD: &str = "[[route]]\nrecipient = \"*\"\nto = \"hold\"\n";

/// Maildirs for one domain, a next hop for the rest.
fn delivering_to(sink: &Sink) -> String {
    format!(
        "[[route]]\nrecipient = \"*@box.test\"\nto = \"maildir:{{dir}}/mail\"\n\
         [[route]]\nrecipient = \"*\"\nto = \"smtp://{}\"\n",
        sink.address()
    )
}

#[test]
fn what_was_acknowledged_survives_kill_9_again_and_again() {
    let ledger = Ledger::default();
    // The number of workers changes from run to run: a message belongs to none of them.
    let mut gateway = Gateway::start(&config(2, "fsync", HOLD));
    for workers in [1, 3, 2] {
        ledger.load_and_kill(&mut gateway, 300);
        assert_no_damage(&gateway);
        gateway = gateway.restart(&config(workers, "fsync", HOLD));
        let (queued, promised) = (queued(&gateway), ledger.promised() as u64);
        assert!(queued >= promised, "{queued} messages in the queue, {promised} promised");
        // What was on the way in when the crash came may be there, and no more than that.
        let sent = ledger.next.load(Ordering::Relaxed);
        assert!(queued <= sent, "{queued} messages in the queue, {sent} sent");
    }
    gateway.terminate();

    let sink = Sink::start(Manners { chunking: true, ..Manners::default() });
    let mut gateway = gateway.restart(&config(2, "fsync", &delivering_to(&sink)));
    gateway.wait_until("an empty queue", || (queued(&gateway) == 0).then_some(()));
    let mut found = at_sink(&sink);
    found.extend(in_maildirs(&gateway));
    ledger.judge(&found, "after three crashes");
    let doubled: Vec<_> = found.iter().filter(|(_, count)| **count > 1).collect();
    assert!(doubled.is_empty(), "nothing was under delivery, and yet: {doubled:?}");
    gateway.terminate();
}

#[test]
fn a_crash_while_mail_is_delivered_loses_nothing() {
    let ledger = Ledger::default();
    let sink = Sink::start(Manners { chunking: true, ..Manners::default() });
    let delivering = config(2, "fsync", &delivering_to(&sink));
    let mut gateway = Gateway::start(&delivering);
    for _ in 0..3 {
        ledger.load_and_kill(&mut gateway, 200);
        assert_no_damage(&gateway);
        gateway = gateway.restart(&delivering);
    }
    gateway.wait_until("an empty queue", || (queued(&gateway) == 0).then_some(()));
    let at_sink = at_sink(&sink);
    let in_maildirs = in_maildirs(&gateway);
    let doubled = at_sink.values().filter(|count| **count > 1).count();
    println!("{} at the next hop, {doubled} of them twice", at_sink.len());
    // A Maildir's file is named by the message, so there a crash cannot double it.
    assert!(in_maildirs.values().all(|count| *count == 1), "twice in a Maildir");
    // The next hop may get again what it took just before a crash: at most what its 20
    // connections to each of 2 workers did within one commit or two.
    assert!(doubled <= 3 * 2 * 2 * 20, "{doubled} messages were sent twice");
    let mut found = at_sink;
    found.extend(in_maildirs);
    ledger.judge(&found, "after three crashes while delivering");
    gateway.terminate();
}

#[test]
fn the_weaker_durability_names_itself_and_survives_kill_9_too() {
    let ledger = Ledger::default();
    let mut gateway = Gateway::start(&config(2, "os", HOLD));
    let mut client = Client::hello(gateway.smtp(0));
    let reply = send(&mut client, u64::MAX / 40 * 40 + 1).expect("a reply");
    assert!(reply.ends_with(" (os)"), "{reply}");
    ledger.load_and_kill(&mut gateway, 300);
    let mut gateway = gateway.restart(&config(2, "fsync", HOLD));
    assert!(queued(&gateway) >= ledger.promised() as u64);
    let mut client = Client::hello(gateway.smtp(0));
    let reply = send(&mut client, u64::MAX / 40 * 40 + 2).expect("a reply");
    assert!(reply.ends_with(" (fsync)"), "{reply}");
    gateway.terminate();
}

// ---- old mail among new ----------------------------------------------------------------------

/// Segments of 4 MiB that are old after a second.
fn compacting_config(busy: &Sink, sink: &Sink) -> String {
    let routes = format!(
        "[[route]]\nrecipient = \"*@wait.test\"\nto = \"smtp://{}\"\n{}",
        busy.address(),
        delivering_to(sink)
    );
    let config = config(2, "fsync", &routes).replace("\"1s\"", "\"4s\"");
    config + "[spool]\nsegment_size = \"4MiB\"\ncompact_after = \"1s\"\n"
}

const SEGMENT_OCTETS: u64 = 4 << 20;

/// A figure of `/metrics`.
fn figure(gateway: &Gateway, name: &str) -> u64 {
    let page = ask(gateway, "/metrics");
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = value.unwrap_or_else(|| panic!("no {name}:\n{page}"));
    value.parse::<f64>().expect("a number") as u64
}

/// Mail that waits stands among ten times as much that goes; only the compaction frees the disk.
/// The gateway is killed while it moves messages, again and again.
#[test]
fn a_crash_while_old_mail_is_moved_loses_and_doubles_nothing() {
    let ledger = Ledger::default();
    let manners = || Manners { chunking: true, ..Manners::default() };
    let (busy, sink) = (Sink::start(manners()), Sink::start(manners()));
    busy.set_busy(true);
    let config = compacting_config(&busy, &sink);
    let mut gateway = Gateway::start(&config);
    for round in 1..=4 {
        let wanted = ledger.promised() + 300;
        ledger.load_and_kill_when(&mut gateway, |gateway| {
            ledger.promised() >= wanted
                && figure(gateway, "mailrace_spool_messages_moved_total") >= 20 * round
        });
        assert_no_damage(&gateway);
        gateway = gateway.restart(&config);
    }
    let waiting = ledger.promised_numbers().into_iter().filter(|&number| is_kept_waiting(number));
    let live: u64 = waiting.map(|number| message(number).len() as u64).sum();
    gateway.wait_until("a log of hardly more than what waits", || {
        let used = figure(&gateway, "mailrace_spool_segments{state=\"used\"}") * SEGMENT_OCTETS;
        (used <= live * 22 / 10 + 4 * SEGMENT_OCTETS).then_some(())
    });
    println!("{live} octets wait, of {}", figure(&gateway, "mailrace_spool_live_records"));
    gateway.kill9();
    gateway = gateway.restart(&config);
    assert_eq!(busy.count(), 0, "it took nothing so far");
    busy.set_busy(false);
    gateway.wait_until("an empty queue", || (queued(&gateway) == 0).then_some(()));
    // No attempt of it came before a crash, so each copy but one would be a resurrection.
    let late = at_sink(&busy);
    let doubled: Vec<_> = late.iter().filter(|(_, count)| **count > 1).collect();
    assert!(doubled.is_empty(), "the compaction doubled {doubled:?}");
    let mut found = at_sink(&sink);
    found.extend(in_maildirs(&gateway));
    found.extend(late);
    ledger.judge(&found, "after five crashes");
    gateway.terminate();
}

// ---- a disk that fills up --------------------------------------------------------------------

/// Mounts a disk of so many MiB for the data directory, seen by this gateway alone, with a file of
/// `ballast` MiB on it.
fn on_a_small_disk(mib: u32, ballast_mib: u32) -> Vec<String> {
    let script = format!(
        "mkdir {{dir}}/data && mount -t tmpfs -o size={mib}m,mode=700 tmpfs {{dir}}/data && \
         head -c {ballast_mib}M /dev/zero > {{dir}}/data/ballast && exec \"$@\""
    );
    unshared(&["sh", "-c", &script, "sh"])
}

/// Sends messages of 1 MiB until one is refused for want of room; gives how many were accepted.
fn fill(gateway: &Gateway, to: &str) -> usize {
    let mut client = Client::hello(gateway.smtp(0));
    let message = message(0);
    for accepted in 0..1_000 {
        client.command("MAIL FROM:<sender@client.test>").expect("250");
        let reply = client.command(&format!("RCPT TO:<{to}>"));
        if !reply.0.starts_with("250") {
            reply.expect("452 4.3.1");
            return accepted;
        }
        let reply = client.data(&message);
        if !reply.0.starts_with("250") {
            reply.expect("452 4.3.1");
            return accepted;
        }
    }
    panic!("the disk does not fill up");
}

fn wait_for_room(gateway: &Gateway, to: &str) {
    gateway.wait_until("room on the disk", || {
        let mut client = Client::hello(gateway.smtp(0));
        client.command("MAIL FROM:<sender@client.test>").expect("250");
        client.command(&format!("RCPT TO:<{to}>")).0.starts_with("250").then_some(())
    });
    let mut client = Client::hello(gateway.smtp(0));
    client.envelope("sender@client.test", &[to]);
    client.data(&message(2)).message_id();
}

#[test]
fn a_full_disk_refuses_mail_before_its_data_and_the_queue_drains() {
    let sink = Sink::start(Manners::default());
    sink.set_busy(true);
    let wrapper = on_a_small_disk(330, 0);
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let routes = delivering_to(&sink);
    let mut gateway = Gateway::start_under(&wrapper, &config(2, "fsync", &routes));
    let accepted = fill(&gateway, "user@hop.test");
    assert!(accepted >= 50, "only {accepted} MiB on a disk of 330");
    // From now on it is said before the data, again and again, and nothing falls over.
    for _ in 0..3 {
        let mut client = Client::hello(gateway.smtp(0));
        client.command("MAIL FROM:<sender@client.test>").expect("250");
        client.command("RCPT TO:<user@hop.test>").expect("452 4.3.1");
        client.command("RSET").expect("250");
    }
    sink.set_busy(false);
    gateway.wait_until("the queue's end", || (sink.count() >= accepted).then_some(()));
    assert_eq!(at_sink(&sink), HashMap::from([(0, accepted)]));
    wait_for_room(&gateway, "user@hop.test");
    sink.taken(accepted + 1);
    assert!(gateway.is_running());
    gateway.terminate();
}

#[test]
fn mail_is_taken_again_once_there_is_room_on_the_disk() {
    let wrapper = on_a_small_disk(490, 160);
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let mut gateway = Gateway::start_under(&wrapper, &config(2, "fsync", HOLD));
    let accepted = fill(&gateway, "user@hop.test");
    assert!(accepted >= 50, "only {accepted} MiB on a disk of 330");
    let root = format!("/proc/{}/root", gateway.pid());
    let ballast = format!("{root}{}/data/ballast", gateway.dir().display());
    std::fs::remove_file(&ballast).unwrap_or_else(|error| panic!("{ballast}: {error}"));
    wait_for_room(&gateway, "user@hop.test");
    assert!(gateway.is_running());
    gateway.terminate();
}

/// The octets of all sources below a folder, one behind the other, and of their names.
fn sources(folder: &Path, into: &mut String) {
    for path in files_in(folder) {
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.file_stem().expect("it has an extension").to_string_lossy();
            *into += &format!("mod {name};\n{}\n", std::fs::read_to_string(&path).expect("text"));
        }
    }
}

/// What `docs/durability.md` promises, it proves by tests that it names.
#[test]
fn every_test_that_the_page_names_is_there() {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut code = String::new();
    for folder in ["src", "tests/suite"] {
        sources(&home.join(folder), &mut code);
    }
    let page = std::fs::read_to_string(home.join("docs/durability.md")).expect("text");
    let quoted = page.split('`').skip(1).step_by(2).flat_map(str::split_whitespace);
    let is_name = |word: &&str| {
        let is_plain = |octet| matches!(octet, b'a'..=b'z' | b'0'..=b'9' | b'_' | b':');
        word.bytes().all(is_plain) && (word.contains("::") || word.matches('_').count() > 2)
    };
    let mut names = 0;
    for name in quoted.filter(is_name) {
        let mut parts: Vec<&str> = name.split("::").filter(|part| !part.is_empty()).collect();
        // The last is a test, its beginning or a module; the others are modules.
        let last = parts.pop().expect("no word is empty");
        let has_module = |part: &str| code.contains(&format!("mod {part};"));
        let is_there = code.contains(&format!("fn {last}")) || has_module(last);
        assert!(is_there && parts.into_iter().all(has_module), "there is no {name}");
        names += 1;
    }
    assert!(names > 40, "{names} names found");
}
