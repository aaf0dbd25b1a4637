//! The edge filter with real lists: `rbldnsd` behind `unbound`, clients at addresses of
//! 127.0.0.0/8, lists that break in every way, and `mailrace test-client`.

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;

use serde_json::Value;

use crate::client::Client;
use crate::gateway::{Gateway, binary};
use crate::interop::are_here;
use crate::lists::{List, Lists, Recursor};
use crate::nameserver::Nsd;
use crate::overload::metric;

/// What is sound of the list of addresses.
const TEST_ENTRY: &str = "127.0.0.2 :127.0.0.2:test\n";
const LISTED: &str = "127.20.0.0/16 :127.0.0.4:\n127.21.0.0/16 :127.0.0.9:\n";

const CONFIG: &str = r#"
workers = 2
[[listener]]
address = "127.0.0.1:0"
service = "mx"
[domains]
accept = ["ours.test"]
[relay]
networks = []
[[route]]
recipient = "*"
to = "maildir:{dir}/mail"
[dns]
servers = ["SERVER"]
timeout = "2s"
[edge]
greeting_wait = "0s"
tarpit = "0s"
deadline = "10s"
thresholds = { tag = 3, defer = 5, reject = 8 }
[edge.checks]
reverse_missing = "off"
[[edge.list]]
zone = "block.test"
codes = ["127.0.0.4"]
weight = 5
self_check = "1s"
[[edge.list]]
zone = "block.test"
codes = ["127.0.0.9"]
weight = 9
reply = "Go away, {ip}: see https://{list}"
self_check = "1s"
[[edge.list]]
zone = "allow.test"
weight = -3
[[edge.list]]
zone = "names.test"
of = "sender"
codes = ["127.0.1.2"]
weight = 9
"#;

/// The lists, the names of the world, and who is asked for both.
struct World {
    lists: Lists,
    _nsd: Nsd,
    recursor: Recursor,
}

impl World {
    fn start() -> World {
        let lists = Lists::start(&[
            List { ttl_seconds: 1, ..List::of_addresses("block.test", LISTED) },
            List::of_addresses("allow.test", "127.20.9.0/24 :127.0.0.3:\n"),
            List::of_names("names.test", ".spam.test :127.0.1.2:\n"),
        ]);
        let nsd = Nsd::start(&[
            ("mail.test", "@ MX 1 good\ngood A 127.30.0.1\n"),
            ("spam.test", "@ MX 1 good.mail.test.\n"),
            ("null.test", "@ MX 0 .\n"),
            ("127.in-addr.arpa", "1.0.30 PTR good.mail.test.\n2.0.30 PTR good.mail.test.\n"),
        ]);
        let (by_list, by_nsd) = (lists.address(), nsd.address());
        let recursor = Recursor::start(&[
            ("block.test", by_list),
            ("allow.test", by_list),
            ("names.test", by_list),
            ("mail.test", by_nsd),
            ("spam.test", by_nsd),
            ("null.test", by_nsd),
            ("127.in-addr.arpa", by_nsd),
        ]);
        World { lists, _nsd: nsd, recursor }
    }

    fn config(&self) -> String {
        CONFIG.replace("SERVER", &self.recursor.address().to_string())
    }

    /// A gateway whose lists have all been checked.
    fn gateway(&self) -> Gateway {
        let gateway = Gateway::start(&self.config());
        for (list, of) in [("block", "address"), ("allow", "address"), ("names", "domain")] {
            let name = format!("mailrace_list_on{{list=\"{list}.test\",of=\"{of}\"}}");
            let is_on = || (metric(&gateway, &name) == 1).then_some(());
            gateway.wait_until("the list counts", is_on);
        }
        gateway
    }
}

/// The replies to these recipients of a transaction.
fn recipients(gateway: &Gateway, client: Ipv4Addr, from: &str, to: &[&str]) -> Vec<String> {
    let mut session = Client::connect_from(client.into(), gateway.smtp(0));
    session.command("EHLO good.mail.test").expect("250");
    session.command(&format!("MAIL FROM:<{from}>")).expect("250");
    to.iter().map(|to| session.command(&format!("RCPT TO:<{to}@ours.test>")).0).collect()
}

#[test]
fn lists_and_the_senders_domain_decide() {
    if !are_here(&["dns", "lists"]) {
        return;
    }
    let world = World::start();
    let gateway = world.gateway();
    for (client, from, expected) in [
        ([127, 30, 0, 1], "a@mail.test", "250 "),
        ([127, 30, 0, 1], "", "250 "),
        ([127, 20, 0, 7], "a@mail.test", "450 4.7.1 127.20.0.7 is listed by block.test"),
        // Good enough with another list's word for it.
        ([127, 20, 9, 7], "a@mail.test", "250 "),
        ([127, 21, 0, 7], "", "554 5.7.1 Go away, 127.21.0.7: see https://block.test"),
        ([127, 30, 0, 1], "a@spam.test", "554 5.7.1 127.30.0.1 is listed by names.test"),
        ([127, 30, 0, 1], "a@null.test", "550 5.7.27 "),
        ([127, 30, 0, 1], "a@missing.mail.test", "550 5.1.8 "),
        ([127, 30, 0, 1], "a@dark.example", "550 5.1.8 "),
    ] {
        let replies = recipients(&gateway, client.into(), from, &["user", "postmaster"]);
        assert!(replies[0].starts_with(expected), "{client:?} <{from}>: {replies:?}");
        assert!(replies[1].starts_with("250 "), "{client:?} <{from}>: {replies:?}");
    }
    let mut session = Client::connect_from([127, 20, 9, 8].into(), gateway.smtp(0));
    session.command("EHLO good.mail.test").expect("250");
    session.envelope("a@mail.test", &["user@ours.test"]);
    session.data(b"Subject: well\r\n\r\nHello.\r\n").expect("250");
    gateway.maildir("ours.test", "user", 1);
    let listed = "mailrace_list_listed_total{list=\"block.test\",of=\"address\"}";
    assert!(metric(&gateway, listed) >= 3);
}

#[test]
fn a_list_that_breaks_is_off_until_it_is_well() {
    if !are_here(&["dns", "lists"]) {
        return;
    }
    let mut world = World::start();
    let gateway = world.gateway();
    let everything = |code: &str| {
        format!("{TEST_ENTRY}0.0.0.0/1 :{code}:\n128.0.0.0/1 :{code}:\n::/0 :{code}:\n")
    };
    let ways = [
        ("test_entry_missing", Some(LISTED.to_owned())),
        ("lists_everything", Some(everything("127.0.0.4"))),
        ("refuses", Some(everything("127.255.255.254"))),
        ("foreign_answers", Some(everything("203.0.113.7"))),
        ("no_answers", None),
    ];
    let count = |kind: &str| {
        let events = gateway.events();
        events.iter().filter(|event| event["event"] == *kind).count()
    };
    for (round, (reason, entries)) in ways.into_iter().enumerate() {
        // Nobody has asked about it before, so no cache knows it.
        let listed = Ipv4Addr::new(127, 20, round as u8, 7);
        match &entries {
            Some(entries) => world.lists.set("block.test", entries),
            None => world.lists.stop(),
        }
        gateway.wait_event(&format!("list_off: {reason}"), |event| {
            event["event"] == "list_off"
                && event["list"] == "block.test"
                && event["reason"] == reason
        });
        assert_eq!(metric(&gateway, "mailrace_list_on{list=\"block.test\",of=\"address\"}"), 0);
        for client in [listed, Ipv4Addr::new(127, 30, 0, 1)] {
            let replies = recipients(&gateway, client, "a@mail.test", &["user"]);
            assert!(replies[0].starts_with("250 "), "{reason}, {client}: {replies:?}");
        }
        if entries.is_none() {
            world.lists.start_again();
        }
        world.lists.set("block.test", &format!("{TEST_ENTRY}{LISTED}"));
        let is_on = || (count("list_on") == round + 1).then_some(());
        gateway.wait_until(&format!("list_on after {reason}"), is_on);
        let replies = recipients(&gateway, listed, "a@mail.test", &["user"]);
        assert!(replies[0].starts_with("450 4.7.1 "), "after {reason}: {replies:?}");
        assert_eq!(count("list_off"), round + 1, "told once");
    }
}

#[test]
fn a_client_is_tested_without_its_mail() {
    if !are_here(&["dns", "lists"]) {
        return;
    }
    let mut world = World::start();
    let home = tempfile::TempDir::new().expect("a temporary directory");
    let file = home.path().join("mailrace.toml");
    let config = world.config().replace("maildir:{dir}/mail", "hold");
    let write = |config: &str| fs::write(&file, format!("hostname = \"gw.test\"\n{config}"));
    write(&format!("{config}[recipients]\nfile = \"recipients\"\n")).expect("a file");
    fs::write(home.path().join("recipients"), "u@ours.test\n").expect("a file");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(binary());
        command.arg("test-client").args(arguments).arg("--config").arg(&file);
        let output = command.output().expect("the binary is there");
        let text = |octets| String::from_utf8(octets).expect("text");
        (text(output.stdout), text(output.stderr), output.status.code().expect("an exit code"))
    };

    let everything =
        ["127.20.0.7", "--helo", "gw.test", "--from", "a@spam.test", "--to", "u@ours.test"];
    let (text, errors, code) = run(&everything);
    let without_times: Vec<&str> = text.lines().map(without_time).collect();
    let expected: Vec<&str> = EVERYTHING.trim().lines().collect();
    assert_eq!((without_times, &*errors, code), (expected, "", 0), "{text}");

    let (json, _, code) = run(&["127.21.0.9", "--to", "<u@elsewhere.test>", "--json"]);
    let told: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((&told["verdict"], &told["score"], code), (&"reject".into(), &9.0.into(), 0));
    assert_eq!(told["cause"], "block.test");
    assert_eq!(told["reply"], "554 5.7.1 Go away, 127.21.0.9: see https://block.test");
    assert_eq!(told["recipient"]["reply"].as_str().map(|reply| &reply[..9]), Some("550 5.7.1"));

    for (to, kind, reply) in [
        ("nobody@ours.test", "unknown", Some("550 5.1.1")),
        ("postmaster@ours.test", "mailbox", None),
    ] {
        let (json, ..) = run(&["127.30.0.1", "--to", to, "--json"]);
        let told: Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(told["recipient"]["kind"], kind, "{to}");
        assert_eq!(told["recipient"]["reply"].as_str().map(|reply| &reply[..9]), reply, "{to}");
    }

    // A list that is broken says nothing; nobody's mail suffers.
    world.lists.set("block.test", "0.0.0.0/1 :127.0.0.4:\n128.0.0.0/1 :127.0.0.4:\n");
    world.lists.stop();
    world.lists.start_again();
    let told = || -> Value {
        let (json, ..) = run(&["127.21.0.10", "--json"]);
        serde_json::from_str(&json).expect("JSON")
    };
    // Until the recursor has forgotten what the list was.
    let told = crate::gateway::wait_until(|| {
        Some(told()).filter(|told| told["lists"][0]["state"] == "off")
    });
    let told = told.expect("the list is seen to be broken");
    assert_eq!(told["lists"][0]["fact"], "it lists what no list may hold");
    assert_eq!((&told["verdict"], &told["score"]), (&"accept".into(), &0.0.into()));

    write(&config.replace("[relay]\nnetworks = []", "[relay]\nnetworks = [\"127.21.0.0/16\"]"))
        .expect("a file");
    let (text, _, code) = run(&["127.21.0.9"]);
    assert!(text.contains("none: it is in 127.21.0.0/16 of `relay.networks`"), "{text}");
    assert_eq!(code, 0);

    let (before, _) = config.split_once("[edge]").expect("there is one");
    write(before).expect("a file");
    let (text, errors, code) = run(&["127.21.0.9"]);
    assert!(text.is_empty() && errors.contains("no `[edge]`") && code == 1, "{text}{errors}");
}

/// A line without how long it took.
fn without_time(line: &str) -> &str {
    let time = line.rfind(" (").filter(|_| line.ends_with(" ms)"));
    &line[..time.unwrap_or(line.len())]
}

const EVERYTHING: &str = "
client    127.20.0.7
helo      gw.test
from      <a@spam.test>
lists     block.test (address) is on: its test entries are as they must be
          allow.test (address) is on: its test entries are as they must be
          names.test (domain) is on: its test entries are as they must be
checks    reverse_unconfirmed  -           127.20.0.7 has no name
          helo_bare            -           gw.test is a full name or an address literal
          helo_forged          reject      gw.test is our own name
          helo_literal         -           gw.test is no address literal
          helo_unknown         +1          gw.test has neither addresses nor mail exchangers
          sender_unknown       -           spam.test takes mail
          sender_null_mx       -           spam.test takes mail
          block.test           +5          127.20.0.7 is listed: 127.0.0.4
          block.test           -           127.20.0.7: 127.0.0.4 is no code that counts here
          allow.test           -           127.20.0.7 is not listed
          names.test           +9          spam.test is listed: 127.0.1.2
score     15
verdict   reject, mainly for helo_forged
          554 5.7.1 HELO is not your name
to        u@ours.test, a mailbox, by route 1: hold
";
