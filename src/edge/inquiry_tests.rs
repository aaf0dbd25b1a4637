//! What is asked, and what is made of the answers of a table.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::*;
use crate::dns::{Answer, Exchange};
use crate::edge::lists::health::Check;
use crate::edge::lists::watch;
use crate::runtime;
use crate::smtp::address::Utf8;

const CONFIG: &str = r#"
hostname = "mx.ours.test"
[[listener]]
address = "192.0.2.99:25"
service = "mx"
[domains]
accept = ["ours.test", "*.below.test"]
[[route]]
recipient = "*"
to = "hold"
[edge]
[[edge.list]]
zone = "bl.test"
weight = 5
self_check = "0s"
[[edge.list]]
zone = "wl.test"
weight = -3
self_check = "0s"
[[edge.list]]
zone = "dbl.test"
of = "helo"
weight = 2
self_check = "0s"
[[edge.list]]
zone = "dbl.test"
of = "sender"
weight = 3
self_check = "0s"
[[edge.list]]
zone = "dbl.test"
of = "reverse"
weight = 4
self_check = "0s"
[[edge.list]]
zone = "good.test"
of = "reverse"
weight = -2
self_check = "0s"
"#;

/// `owner type value`; `?` as the type for a failure of every question about the owner, `LATE` for
/// answers about it that take longer than the head start of the lists.
const ZONE: &str = "
1.2.0.192.in-addr.arpa PTR host.sender.test
host.sender.test A 192.0.2.1
2.2.0.192.in-addr.arpa PTR forged.good.test
2.2.0.192.in-addr.arpa PTR liar.test
liar.test A 203.0.113.1
forged.good.test.good.test A 127.0.0.2
3.2.0.192.in-addr.arpa PTR fine.test
fine.test A 192.0.2.3
fine.test.good.test A 127.0.0.2
fine.test.dbl.test A 127.0.0.2
4.2.0.192.in-addr.arpa ? SERVFAIL
6.2.0.192.in-addr.arpa PTR dark.test
dark.test ? SERVFAIL
9.2.0.192.bl.test A 127.0.0.2
9.2.0.192.wl.test A 127.0.0.3
10.2.0.192.bl.test A 127.0.0.2
10.2.0.192.wl.test A 127.0.0.3
10.2.0.192.wl.test LATE ?
sender.test MX mx.sender.test
nullmx.test MX .
onlya.test A 192.0.2.77
spam.test MX mx.spam.test
spam.test.dbl.test A 127.0.0.4
below.test.dbl.test A 127.0.0.4
www.below.test A 192.0.2.8
1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa PTR six.test
six.test AAAA 2001:db8::1
2.0.0.127.tested.test A 127.0.0.2
2.0.0.127.wild.test A 127.0.0.2
1.0.0.127.wild.test A 127.0.0.2
test.tested.test A 127.0.0.2
";

type Key = (Name, RecordType);

#[derive(Default)]
struct Zone {
    answers: BTreeMap<Key, Vec<Record>>,
    names: BTreeSet<Name>,
    failing: BTreeSet<Name>,
    late: BTreeSet<Name>,
    asked: Rc<RefCell<Vec<String>>>,
}

impl Zone {
    fn new(text: &str) -> Zone {
        let mut zone = Zone::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let [owner, kind, value]: [&str; 3] =
                line.split(' ').collect::<Vec<_>>().try_into().expect("three words");
            let owner = Name::parse(owner).expect("a name");
            let parse = |value| Name::parse(value).expect("a name");
            let (kind, record) = match kind {
                "A" => (RecordType::A, Record::A(value.parse().expect("IPv4"))),
                "AAAA" => (RecordType::Aaaa, Record::Aaaa(value.parse().expect("IPv6"))),
                "PTR" => (RecordType::Ptr, Record::Ptr(parse(value))),
                "MX" => {
                    let host = || Exchange::Host(parse(value));
                    let exchange = if value == "." { Exchange::Null } else { host() };
                    (RecordType::Mx, Record::Mx { preference: 0, exchange })
                }
                "LATE" => {
                    zone.late.insert(owner);
                    continue;
                }
                _ => {
                    zone.failing.insert(owner);
                    continue;
                }
            };
            zone.names.insert(owner.clone());
            zone.answers.entry((owner, kind)).or_default().push(record);
        }
        zone
    }
}

impl Lookup for Zone {
    async fn lookup(&self, name: &Name, kind: RecordType) -> Rc<Answer> {
        self.asked.borrow_mut().push(format!("{name} {kind:?}"));
        if self.late.contains(name) {
            runtime::sleep(HEAD_START * 2).await;
        }
        let result = match self.answers.get(&(name.clone(), kind)) {
            Some(records) => Ok(records.clone()),
            None if self.failing.contains(name) => {
                Err(LookupError::Temporary { why: "SERVFAIL".into() })
            }
            None if self.names.contains(name) => Err(LookupError::NoData),
            None => Err(LookupError::NoName),
        };
        Rc::new(Answer { result, authentic: false, expires: Instant::now() })
    }
}

/// A name server that never answers.
struct Silence;

impl Lookup for Silence {
    async fn lookup(&self, _: &Name, _: RecordType) -> Rc<Answer> {
        // A task that nothing could wake would be dropped at once.
        loop {
            runtime::sleep(Duration::from_secs(3_600)).await;
        }
    }
}

fn inquiry_by<L: Lookup + 'static>(resolver: L) -> Inquiry<L> {
    inquiry_of(CONFIG, resolver)
}

fn inquiry_of<L: Lookup + 'static>(config: &str, resolver: L) -> Inquiry<L> {
    let config = Config::for_test(config);
    let lists = Lists::new(&config.edge.as_ref().expect("a filter").lists);
    let listeners: Vec<_> = config.listeners.iter().map(|listener| listener.address).collect();
    let ourselves = Ourselves::new(&config.hostname, &listeners, &[], 25);
    let inquiry = Inquiry::new(Arc::new(config), Arc::new(ourselves), Arc::new(lists), resolver);
    inquiry.expect("there is a filter")
}

/// What was found, with an effect: `check score-or-action`.
fn found(ask: impl FnOnce(&Inquiry<Zone>, &Rc<Gathering>)) -> (BTreeSet<String>, Vec<String>) {
    found_by(CONFIG, ask)
}

fn found_by(
    config: &str,
    ask: impl FnOnce(&Inquiry<Zone>, &Rc<Gathering>),
) -> (BTreeSet<String>, Vec<String>) {
    let zone = Zone::new(ZONE);
    let asked = zone.asked.clone();
    let inquiry = inquiry_of(config, zone);
    let findings = runtime::run(async {
        let gathering = Gathering::new(Instant::now() + Duration::from_secs(30));
        ask(&inquiry, &gathering);
        gathering.settle().await;
        gathering.found()
    });
    let effective = findings.expect("a loop").into_iter().filter_map(|finding| {
        let effect = match finding.effect {
            Effect::None => return None,
            Effect::Score(score) => score.to_string(),
            Effect::Action(action) => action.to_string(),
        };
        Some(format!("{} {effect}", finding.check))
    });
    let effective = effective.collect();
    (effective, asked.take())
}

fn set(texts: &[&str]) -> BTreeSet<String> {
    texts.iter().map(|text| text.to_string()).collect()
}

#[test]
fn a_client_is_looked_up() {
    for (client, expected) in [
        ("192.0.2.1", &[][..]),
        ("::ffff:192.0.2.1", &[]),
        ("2001:db8::1", &[]),
        // Its name is on an allow list, and not its own.
        ("192.0.2.2", &["reverse_unconfirmed 1"]),
        ("192.0.2.3", &["good.test -2", "dbl.test 4"]),
        ("192.0.2.4", &[]),
        ("192.0.2.5", &["reverse_missing 2"]),
        ("192.0.2.6", &[]),
        ("192.0.2.9", &["reverse_missing 2", "bl.test 5", "wl.test -3"]),
    ] {
        let address = client.parse().expect("an address");
        let (findings, _) = found(|inquiry, stage| inquiry.connection(stage, address));
        assert_eq!(findings, set(expected), "{client}");
    }
}

/// One that the lists reject, score 2: its name is not asked for, unless something that is asked
/// later may speak for it, or a list that has not answered yet.
#[test]
fn nobody_is_asked_for_the_name_of_a_client_that_is_rejected_whatever_it_is() {
    let never_lifts = CONFIG.replace("weight = -2", "weight = 2");
    for (config, client, reject, checks, is_asked) in [
        (&*never_lifts, 9, 2, "", false),
        (&never_lifts, 9, 3, "", true),
        (&never_lifts, 9, 2, "reverse_missing = -1", true),
        (&never_lifts, 9, 2, "helo_bare = -1", true),
        (&never_lifts, 10, 2, "", true),
        (CONFIG, 9, 2, "", true),
    ] {
        let edge =
            format!("[edge]\nthresholds = {{ reject = {reject} }}\n[edge.checks]\n{checks}\n");
        let address = Ipv4Addr::new(192, 0, 2, client).into();
        let ask = |inquiry: &Inquiry<Zone>, stage: &Rc<Gathering>| inquiry.arrival(stage, address);
        let (_, asked) = found_by(&config.replacen("[edge]\n", &edge, 1), ask);
        let name = format!("{client}.2.0.192.in-addr.arpa Ptr");
        assert_eq!(asked.contains(&name), is_asked, "{client} {reject} {checks}");
    }
}

#[test]
fn helo_and_sender_are_looked_up() {
    for (helo, from, expected) in [
        ("host.sender.test", "<a@sender.test>", &[][..]),
        ("host.sender.test", "<>", &[]),
        ("host.sender.test", "<a@onlya.test>", &[]),
        ("host.sender.test", "<a@dark.test>", &[]),
        ("host.sender.test", "<a@[192.0.2.200]>", &[]),
        ("host.sender.test", "<a@nullmx.test>", &["sender_null_mx reject"]),
        ("host.sender.test", "<a@missing.test>", &["sender_unknown reject"]),
        ("host.sender.test", "<a@SPAM.test>", &["dbl.test 3"]),
        // Ours: no need to ask anybody, though somebody lists it.
        ("host.sender.test", "<a@ours.test>", &[]),
        ("sender.test", "<>", &[]),
        ("missing.test", "<>", &["helo_unknown 1"]),
        ("dark.test", "<>", &[]),
        ("spam.test", "<>", &["dbl.test 2"]),
        ("mx.ours.test", "<>", &["helo_forged reject", "helo_unknown 1"]),
        ("ours.test", "<>", &["helo_forged reject", "helo_unknown 1"]),
        ("[192.0.2.99]", "<>", &["helo_forged reject", "helo_literal 1"]),
        ("192.0.2.99", "<>", &["helo_forged reject", "helo_bare 1"]),
        ("[192.0.2.8]", "<>", &[]),
        ("www.below.test", "<>", &[]),
        ("localhost", "<>", &["helo_bare 1"]),
    ] {
        let client = "192.0.2.8".parse().expect("an address");
        let path = ReversePath::parse(from.as_bytes(), Utf8::Allowed).expect(from);
        let (findings, _) = found(|inquiry, stage| inquiry.sender(stage, client, helo, &path));
        assert_eq!(findings, set(expected), "{helo} {from}");
    }
}

#[test]
fn a_list_that_is_off_is_not_asked_and_finds_nothing() {
    use crate::edge::lists::health::{State, Trouble};
    let (findings, asked) = found(|inquiry, stage| {
        for zone in inquiry.lists().zones() {
            zone.board.publish(State::Off(Trouble::ListsEverything));
        }
        inquiry.connection(stage, "192.0.2.9".parse().expect("an address"));
    });
    assert_eq!(findings, set(&["reverse_missing 2"]));
    assert_eq!(asked, ["9.2.0.192.in-addr.arpa Ptr"]);
}

#[test]
fn what_nobody_answers_is_told_and_has_no_effect() {
    let findings = runtime::run(async {
        let inquiry = inquiry_by(Silence);
        let gathering = Gathering::new(Instant::now() + Duration::from_millis(20));
        let client = "192.0.2.9".parse().expect("an address");
        let path = ReversePath::parse(b"<a@nullmx.test>", Utf8::Allowed).expect("a path");
        inquiry.connection(&gathering, client);
        inquiry.sender(&gathering, client, "missing.test", &path);
        gathering.settle().await;
        gathering.found()
    })
    .expect("a loop");
    let missed = findings.iter().filter(|finding| *finding.fact == *"no answer in time");
    let missed: Vec<&str> = missed.map(|finding| &*finding.check).collect();
    let expected = [
        "bl.test",
        "wl.test",
        "reverse_missing",
        "reverse_unconfirmed",
        "dbl.test",
        "helo_forged",
        "helo_unknown",
        "dbl.test",
        "sender_unknown",
        "sender_null_mx",
    ];
    assert_eq!(missed, expected);
    assert!(findings.iter().all(|finding| finding.effect == Effect::None));
}

#[test]
fn test_entries_are_asked_for() {
    let resolver = Zone::new(ZONE);
    let list = |zone: &str, of| List {
        zone: zone.into(),
        of,
        codes: Vec::new(),
        weight: crate::edge::verdict::Score(1),
        reply: "".into(),
        self_check: Duration::from_secs(60),
    };
    let checks = [
        list("tested.test", ListSubject::Address),
        list("tested.test", ListSubject::Sender),
        list("wild.test", ListSubject::Address),
        list("nothing.test", ListSubject::Address),
        list("nothing.test", ListSubject::Helo),
    ];
    let lists = Lists::new(&checks);
    let checks = runtime::run(async {
        let mut found = Vec::new();
        for zone in lists.zones() {
            found.push(watch::check(zone, &resolver).await);
        }
        found
    });
    use crate::edge::lists::health::Trouble::{ListsEverything, TestEntryMissing};
    let missing = Check::Bad(TestEntryMissing);
    let expected = [Check::Good, Check::Good, Check::Bad(ListsEverything), missing, missing];
    assert_eq!(checks.expect("a loop"), expected);
    let asked = resolver.asked.take();
    assert_eq!(
        asked[..5],
        [
            "2.0.0.127.tested.test A",
            "1.0.0.127.tested.test A",
            "1.0.0.0.0.0.f.7.f.f.f.f.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.tested.test A",
            "test.tested.test A",
            "invalid.tested.test A",
        ]
    );
}

#[test]
fn checks_that_wait_for_answers_are_checks() {
    for check in REVERSE.iter().chain(&SENDER) {
        assert!(checks::NAMES.contains(check), "{check}");
    }
}
