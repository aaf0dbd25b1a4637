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

use mailrace_loadtest::report::tally::{Step, Tally};
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
        let entries = "127.20.0.0/16 :127.0.0.4:listed\n";
        let lists =
            Lists::start(&[List { ttl_seconds, ..List::of_addresses("block.test", entries) }]);
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

/// Those whose mail is not; `{rate}` connections a second from listed addresses, all others.
const ATTACKERS: &str = r#"
[[party]]
name = "listed"
grace = "15s"
sessions = 5000
rate = {rate}
one = true
no_data = true
source = "127.20.0.0/16"
helo = "host.listed.test"
from = ["{1..99999999}@{1..999999}.spam.test"]
rcpt = ["user@target.test", "3 {1..9999}@target.test"]

[[party]]
name = "dictionary"
grace = "0s"
sessions = 20
per_connection = 4
no_data = true
recipients = 50
source = "127.0.10.1-127.0.10.4"
from = [""]
rcpt = ["a{1..100000}@target.test", "info{1..100}@target.test"]

[[party]]
name = "slow"
grace = "0s"
sessions = {slow}
messages = {slow}
one = true
size = ["1KiB"]
trickle = "1B"
trickle_every = "1s"
trickle_all = true
source = "127.0.12.0/24"
"#;

/// How hard, and for how long.
#[derive(Debug, Clone, Copy)]
struct Force {
    seconds: u64,
    /// Connections a second from listed addresses.
    rate: u64,
    /// Clients of an octet a second.
    slow: u64,
}

/// The sender alone and beside all the others, for the same time; the two tallies.
fn attack(edge: &Edge, force: Force) -> (Tally, Tally) {
    let Force { seconds, rate, slow } = force;
    let head = format!("time = \"{seconds}s\"\nthreads = 1\n");
    let alone = edge.send(&format!("{head}{CLEAN}")).remove("clean").expect("a party");
    let mut attackers = ATTACKERS.to_owned();
    for (name, value) in [("{rate}", rate), ("{slow}", slow)] {
        attackers = attackers.replace(name, &value.to_string());
    }
    let before = edge.gateway.memory_bytes();
    let mut beside = HashMap::new();
    let peak = edge.gateway.peak_while(|| {
        beside = edge.send(&format!("{head}{CLEAN}{attackers}"));
    });
    for (name, tally) in &beside {
        println!("{name}: {:?}, refused {:?}", tally.counts, tally.refusals);
    }
    let after = edge.gateway.memory_bytes();
    println!("memory: {} MiB, {} at most, {} afterwards", before / MIB, peak / MIB, after / MIB);
    assert!(peak.saturating_sub(before) < MEMORY_MAX, "{peak} bytes, {before} before");
    let listed = &beside["listed"];
    assert_eq!((listed.counts.acknowledged, listed.counts.abandoned), (0, 0), "one was let in");
    let refused: u64 = listed.refusals.values().sum();
    assert!(refused >= seconds * rate * 95 / 100, "{refused} refused: {:?}", listed.texts);
    let clean = beside.remove("clean").expect("a party");
    for tally in [&alone, &clean] {
        let all = tally.counts.finished() + tally.counts.unfinished;
        assert_eq!(tally.counts.acknowledged, all, "{:?}", tally.texts);
    }
    (alone, clean)
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

fn p99_us(tally: &Tally) -> u64 {
    tally.latency(Step::Whole).value_at_quantile(0.99)
}

#[test]
fn an_attack_costs_a_clean_sender_no_message() {
    if !are_here(&["dns", "lists"]) {
        return;
    }
    let _alone = alone(12_000);
    let mut edge = Edge::start();
    become_known(&edge);
    let force = Force { seconds: 4, rate: 250, slow: 300 };
    let (alone, beside) = attack(&edge, force);
    println!("p99 to the final reply: {} us alone, {} us beside", p99_us(&alone), p99_us(&beside));
    asked_once(&edge.lists, force.seconds * force.rate);
    edge.gateway.terminate();
}
