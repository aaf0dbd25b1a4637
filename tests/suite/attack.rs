//! The edge filter under attack: listed addresses by the thousand, a dictionary of names, clients
//! of an octet a second, and beside them a sender whose mail is wanted.
//!
//! The sender is not refused, memory stays within bounds, and the lists' server is asked each
//! question once.  This is the short form; `benches/attack.sh` runs 50,000 clients in a minute
//! against a release build and judges times too, with a generator that is one: a debug build of it
//! takes more of the machine than the gateway does.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use mailrace_loadtest::report::tally::Tally;
use mailrace_loadtest::signal::Signals;
use mailrace_loadtest::source;
use mailrace_loadtest::source::plan::Plan;
use mailrace_loadtest::source::settings::Settings;
use tempfile::TempDir;

use crate::gateway::Gateway;
use crate::interop::are_here;
use crate::lists::{List, Lists, Recursor};
use crate::overload::alone;

const MIB: u64 = 1024 * 1024;
/// What the gateway may take more than before the attack.
const MEMORY_MAX: u64 = 192 * MIB;
const LISTED: &str = "127.20.0.0/16";

/// Listed addresses, names that resolve, and a gateway that looks at its clients.
struct Edge {
    lists: Lists,
    _recursor: Recursor,
    _home: TempDir,
    gateway: Gateway,
}

impl Edge {
    fn start() -> Edge {
        let home = TempDir::new().expect("a temporary directory");
        let recipients = home.path().join("recipients");
        fs::write(&recipients, "user@target.test\n").expect("a file");
        // Beyond the end of any run, so that a question asked twice is one too many.
        let ttl_seconds = 3_600;
        let entries = format!("{LISTED} :127.0.0.4:listed\n");
        let lists =
            Lists::start(&[List { ttl_seconds, ..List::of_addresses("block.test", &entries) }]);
        let recursor = Recursor::start_patient(&[("block.test", lists.address())]);
        let gateway = Gateway::start(&configuration(&recursor, &recipients));
        Edge { lists, _recursor: recursor, _home: home, gateway }
    }

    /// Runs a scenario against it; its parties by their names.
    fn send(&self, scenario: &str) -> HashMap<String, Tally> {
        let file: Settings = toml::from_str(scenario).expect("a scenario");
        let to = Some(self.gateway.smtp(0).to_string());
        let parties = Settings { to, ..Settings::default() }.over(file).parties();
        let parties = parties.expect("parties");
        let names: Vec<String> = parties.iter().map(|party| party.name.clone()).collect();
        let plan = |settings| Plan::new(settings, fastrand::u16(..)).expect("a plan");
        let plans = parties.into_iter().map(|party| plan(party.settings)).collect();
        let signals = Signals::take_over().expect("a descriptor");
        let ran = source::run_all(plans, &signals, true).expect("it runs");
        names.into_iter().zip(ran.into_iter().map(|(tally, _)| tally)).collect()
    }
}

fn configuration(recursor: &Recursor, recipients: &Path) -> String {
    format!(
        r#"
[[listener]]
address = "127.0.0.1:0"
service = "mx"
[relay]
networks = []
[domains]
accept = ["target.test"]
[[route]]
recipient = "*"
to = "discard"
[dns]
servers = ["{}"]
[limits]
sessions = 16000
[recipients]
file = "{}"
[edge]
greeting_wait = "1s"
tarpit = "1s"
thresholds = {{ tag = 4, reject = 5 }}
[edge.checks]
sender_unknown = "off"
[[edge.list]]
zone = "block.test"
weight = 5
"#,
        recursor.address(),
        recipients.display()
    )
}

/// A sender whose mail is wanted, from addresses that nobody has anything against.
const CLEAN: &str = r#"
[[party]]
name = "clean"
sessions = 40
rate = 40
one = true
size = ["4KiB-40KiB"]
source = "127.0.13.1-127.0.13.20"
helo = "mail.firm.test"
from = ["person{1..200}@firm.test"]
rcpt = ["user@target.test"]
"#;

/// Those whose mail is not wanted.
const ATTACKERS: &str = include_str!("../../benches/attack.toml");

/// How long.
const SECONDS: u64 = 4;
/// Connections a second from listed addresses.
const RATE: u64 = 250;
/// Clients of an octet a second.
const SLOW: u64 = 300;

/// The sender beside all the others.
fn attack(edge: &Edge) {
    let mut attackers = ATTACKERS.to_owned();
    let (rate, slow) = (RATE.to_string(), SLOW.to_string());
    for (name, value) in [("{rate}", &*rate), ("{slow}", &slow), ("{network}", LISTED)] {
        attackers = attackers.replace(name, value);
    }
    let before = edge.gateway.memory_bytes();
    let mut parties = HashMap::new();
    let peak = edge.gateway.peak_while(|| {
        let head = format!("time = \"{SECONDS}s\"\nthreads = 1\n");
        parties = edge.send(&format!("{head}{CLEAN}{attackers}"));
    });
    for (name, tally) in &parties {
        println!("{name}: {:?}, refused {:?}", tally.counts, tally.refusals);
    }
    let after = edge.gateway.memory_bytes();
    println!("memory: {} MiB, {} at most, {} afterwards", before / MIB, peak / MIB, after / MIB);
    assert!(peak.saturating_sub(before) < MEMORY_MAX, "{peak} bytes, {before} before");
    let listed = &parties["listed"];
    assert_eq!((listed.counts.acknowledged, listed.counts.abandoned), (0, 0), "one was let in");
    let refused: u64 = listed.refusals.values().sum();
    assert!(refused >= SECONDS * RATE * 95 / 100, "{refused} refused: {:?}", listed.texts);
    let clean = &parties["clean"];
    let all = clean.counts.finished() + clean.counts.unfinished;
    assert_eq!(clean.counts.acknowledged, all, "{:?}", clean.texts);
}

/// Its addresses get a good record first: the wait before the greeting is for strangers.
fn become_known(edge: &Edge) {
    let known = edge.send(&format!("messages = 200\nthreads = 1\n{CLEAN}"));
    assert_eq!(known["clean"].counts.acknowledged, 200, "{:?}", known["clean"].texts);
}

/// Every question came to the lists' server once; there were about as many as clients.
fn asked_once(lists: &Lists, clients: u64) {
    let mut asked: HashMap<String, u64> = HashMap::new();
    for question in lists.questions() {
        *asked.entry(question).or_default() += 1;
    }
    let twice: Vec<_> = asked.iter().filter(|(_, count)| **count > 1).take(5).collect();
    assert!(twice.is_empty(), "asked more than once: {twice:?}");
    let about_listed =
        asked.keys().filter(|question| question.ends_with(".127.block.test A")).count();
    println!("{} questions, {about_listed} about {clients} listed clients", asked.len());
    assert!(about_listed as u64 >= clients * 95 / 100, "{about_listed} of {clients}");
}

#[test]
fn an_attack_costs_a_clean_sender_no_message() {
    if !are_here(&["dns", "lists"]) {
        return;
    }
    let _alone = alone(12_000);
    let mut edge = Edge::start();
    become_known(&edge);
    attack(&edge);
    asked_once(&edge.lists, SECONDS * RATE);
    edge.gateway.terminate();
}
