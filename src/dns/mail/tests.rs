//! Domains by table, against a zone in memory.

use std::cell::Cell;
use std::collections::HashMap;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::*;
use crate::dns::Answer;

/// Answers from memory, at once; what it does not hold does not exist.
struct Zone {
    start: Instant,
    answers: HashMap<(Name, RecordType), Answer>,
    asked: Cell<usize>,
}

impl Zone {
    /// Lines of `name [ttl] type data`; a name with any line exists, with `-` for its data there
    /// are no such records, with `FAIL` nobody answers.
    fn of(text: &str) -> Zone {
        let start = Instant::now();
        let mut zone = Zone { start, answers: HashMap::new(), asked: Cell::new(0) };
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [name, ttl, kind, data @ ..] = &words[..] else { panic!("{line}") };
            zone.add(name, ttl.parse().expect("seconds"), kind, data);
        }
        zone
    }

    fn add(&mut self, name: &str, ttl: u64, kind: &str, data: &[&str]) {
        let name = Name::parse(name).expect("a name");
        let expires = self.start + Duration::from_secs(ttl);
        for kind in [RecordType::A, RecordType::Aaaa, RecordType::Mx] {
            let nothing = Answer { result: Err(LookupError::NoData), authentic: true, expires };
            self.answers.entry((name.clone(), kind)).or_insert(nothing);
        }
        let (kind, record) = match (kind, data) {
            (_, ["-"]) => return,
            (kind, ["FAIL"]) => {
                let kind = match kind {
                    "A" => RecordType::A,
                    "AAAA" => RecordType::Aaaa,
                    _ => RecordType::Mx,
                };
                let failure = Answer::temporary("SERVFAIL", self.start, Duration::from_secs(ttl));
                self.answers.insert((name, kind), failure);
                return;
            }
            ("A", [address]) => (RecordType::A, Record::A(address.parse().expect("IPv4"))),
            ("AAAA", [address]) => (RecordType::Aaaa, Record::Aaaa(address.parse().expect("IPv6"))),
            ("MX", [preference, host]) => {
                let exchange = match *host {
                    "." => Exchange::Null,
                    "*" => Exchange::Unusable("a b".into()),
                    host => Exchange::Host(Name::parse(host).expect("a name")),
                };
                let preference = preference.parse().expect("a number");
                (RecordType::Mx, Record::Mx { preference, exchange })
            }
            other => panic!("{other:?}"),
        };
        let answer = self.answers.get_mut(&(name, kind)).expect("made above");
        answer.expires = expires;
        match &mut answer.result {
            Ok(records) => records.push(record),
            result => *result = Ok(vec![record]),
        }
    }
}

impl Lookup for Zone {
    async fn lookup(&self, name: &Name, kind: RecordType) -> Rc<Answer> {
        self.asked.set(self.asked.get() + 1);
        let expires = self.start + Duration::from_secs(77);
        let nothing = Answer { result: Err(LookupError::NoName), authentic: false, expires };
        Rc::new(self.answers.get(&(name.clone(), kind)).cloned().unwrap_or(nothing))
    }

    fn now(&self) -> Instant {
        self.start
    }
}

/// The output of a future that never waits.
fn at_once<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("nothing to wait for"),
    }
}

fn ourselves() -> Ourselves {
    let listeners = ["192.0.2.99:25", "127.0.0.1:2525"].map(|text| text.parse().expect("one"));
    Ourselves::new("relay.example", &listeners, &[], 25)
}

const ZONE: &str = "
    plain.test      300 MX   10 mx1.test
    plain.test      300 MX   20 mx2.test
    mx1.test        200 A    192.0.2.1
    mx1.test        100 AAAA 2001:db8::1
    mx2.test         50 A    192.0.2.2
    equal.test      300 MX   10 mx2.test
    equal.test      300 MX   10 mx1.test
    equal.test      300 MX   20 mx1.test
    null.test       300 MX   0 .
    mixednull.test  300 MX   0 .
    mixednull.test  300 MX   5 mx1.test
    implicit.test   300 A    192.0.2.3
    sixonly.test    300 AAAA 2001:db8::3
    empty.test      300 TXT  -
    gone.test       300 MX   10 nowhere.test
    gone.test       300 MX   20 empty.test
    half.test       300 MX   10 nowhere.test
    half.test       300 MX   20 mx1.test
    unsure.test     300 MX   10 nowhere.test
    unsure.test     300 MX   20 broken.test
    broken.test       5 A    FAIL
    broken.test       5 AAAA FAIL
    hopeful.test    300 MX   10 broken.test
    hopeful.test    300 MX   20 mx1.test
    halfhost.test   300 A    192.0.2.5
    halfhost.test     5 AAAA FAIL
    servfail.test     5 MX   FAIL
    servfail.test   300 A    192.0.2.4
    backup.test     300 MX   10 mx1.test
    backup.test     300 MX   20 relay.example
    backup.test     300 MX   20 mx2.test
    backup.test     300 MX   30 mx3.test
    relay.example   300 A    198.51.100.1
    ours.test       300 MX   10 relay.example
    ours.test       300 MX   10 mx1.test
    byaddress.test  300 MX   10 mx1.test
    byaddress.test  300 MX   20 alias.test
    alias.test      300 A    192.0.2.99
    selfhost.test   300 A    192.0.2.99
    onlybad.test    300 MX   10 *
    loopback.test   300 MX   10 lo.test
    lo.test         300 A    127.0.0.1
    zero.test       300 MX   10 zerohost.test
    zerohost.test   300 A    0.0.0.0
    zerohost.test   300 AAAA ::
    xn--bcher-kva.test 300 MX 10 mx1.test
";

fn resolve(domain: &str) -> Resolved {
    at_once(mail_hosts(&Zone::of(ZONE), domain, &ourselves()))
}

/// `preference name address,address ...` of each host.
fn hosts(domain: &str) -> Vec<String> {
    let found = resolve(domain).result.unwrap_or_else(|error| panic!("{domain}: {error}"));
    let host = |host: MailHost| {
        let addresses: Vec<String> = host.addresses.iter().map(IpAddr::to_string).collect();
        format!("{} {} {}", host.preference, host.name, addresses.join(","))
    };
    found.hosts.into_iter().map(host).collect()
}

#[test]
fn the_hosts_of_a_domain() {
    const MX1: &str = "mx1.test 2001:db8::1,192.0.2.1";
    for (domain, expected) in [
        ("plain.test", &[&format!("10 {MX1}")[..], "20 mx2.test 192.0.2.2"][..]),
        ("PLAIN.Test.", &[&format!("10 {MX1}"), "20 mx2.test 192.0.2.2"]),
        ("equal.test", &[&format!("10 {MX1}"), "10 mx2.test 192.0.2.2"]),
        ("mixednull.test", &[&format!("5 {MX1}")]),
        ("implicit.test", &["0 implicit.test 192.0.2.3"]),
        ("sixonly.test", &["0 sixonly.test 2001:db8::3"]),
        ("half.test", &[&format!("20 {MX1}")]),
        ("hopeful.test", &["10 broken.test ", &format!("20 {MX1}")]),
        ("halfhost.test", &["0 halfhost.test 192.0.2.5"]),
        ("backup.test", &[&format!("10 {MX1}")]),
        ("byaddress.test", &[&format!("10 {MX1}")]),
        ("loopback.test", &["10 lo.test 127.0.0.1"]),
        ("b\u{fc}cher.test", &[&format!("10 {MX1}")]),
        ("[192.0.2.7]", &["0 192.0.2.7 192.0.2.7"]),
        ("[IPv6:2001:DB8::7]", &["0 2001:db8::7 2001:db8::7"]),
    ] {
        assert_eq!(hosts(domain), expected, "{domain}");
    }
}

#[test]
fn the_domains_that_take_no_mail() {
    let loops = |host: &str| NoMail::LoopsBack { host: host.into() };
    for (domain, reason, code) in [
        ("null.test", NoMail::NullMx, "5.1.10"),
        ("nowhere.test", NoMail::NoSuchDomain, "5.1.2"),
        ("empty.test", NoMail::NoMailHost, "5.4.4"),
        ("gone.test", NoMail::NoMailHost, "5.4.4"),
        ("onlybad.test", NoMail::NoMailHost, "5.4.4"),
        ("zero.test", NoMail::NoMailHost, "5.4.4"),
        ("[0.0.0.0]", NoMail::NoMailHost, "5.4.4"),
        ("ours.test", loops("relay.example"), "5.4.6"),
        ("selfhost.test", loops("selfhost.test"), "5.4.6"),
        ("[192.0.2.99]", loops("192.0.2.99"), "5.4.6"),
        ("[IPv6:::ffff:192.0.2.99]", loops("::ffff:192.0.2.99"), "5.4.6"),
        ("", NoMail::BadDomain, "5.1.2"),
        ("a..b", NoMail::BadDomain, "5.1.2"),
        ("[192.0.2.7", NoMail::BadDomain, "5.1.2"),
        ("[x:192.0.2.7]", NoMail::BadDomain, "5.1.2"),
        ("[\u{fc}\u{fc}\u{fc}]", NoMail::BadDomain, "5.1.2"),
    ] {
        assert_eq!(resolve(domain).result, Err(MailError::Permanent(reason.clone())), "{domain}");
        assert_eq!(reason.enhanced().to_string(), code);
    }
}

#[test]
fn what_nobody_can_say_is_temporary() {
    for (domain, why) in [
        ("servfail.test", "the mail hosts of servfail.test could not be looked up: SERVFAIL"),
        ("unsure.test", "the address of broken.test could not be looked up: SERVFAIL"),
    ] {
        let resolved = resolve(domain);
        assert_eq!(resolved.result, Err(MailError::Temporary { why: why.into() }));
        assert_eq!(resolved.ttl, Duration::from_secs(5), "{domain}");
    }
}

#[test]
fn a_set_of_hosts_stands_as_long_as_its_answer() {
    for (domain, ttl_seconds) in
        [("plain.test", 300), ("hopeful.test", 5), ("half.test", 77), ("nowhere.test", 77)]
    {
        assert_eq!(resolve(domain).ttl, Duration::from_secs(ttl_seconds), "{domain}");
    }
    let zone = Zone::of(ZONE);
    let found = at_once(mail_hosts(&zone, "plain.test", &ourselves())).result.expect("hosts");
    let seconds = found.hosts.iter().map(|host| (host.expires - zone.start).as_secs());
    assert_eq!(seconds.collect::<Vec<_>>(), [100, 50]);
    assert!(found.authentic && found.hosts[0].authentic);
}

#[test]
fn a_domain_with_many_hosts_is_cut_to_the_best() {
    let lines = (0..100).map(|number| {
        let host = format!("host{number:03}.test");
        format!("many.test 300 MX {} {host}\n{host} 300 A 192.0.2.8\n", 1_000 - number)
    });
    let zone = Zone::of(&lines.collect::<String>());
    let found = at_once(mail_hosts(&zone, "many.test", &ourselves())).result.expect("hosts");
    assert_eq!(found.hosts.len(), MAIL_HOSTS);
    assert_eq!(&*found.hosts[0].name, "host099.test");
    assert_eq!(zone.asked.get(), 1 + 2 * MAIL_HOSTS);
}

#[test]
fn the_listener_of_another_port_is_somebody_else() {
    let listeners = ["127.0.0.1:2525".parse().expect("one")];
    for (port, loops) in [(25, false), (2525, true)] {
        let ourselves = Ourselves::new("relay.example", &listeners, &[], port);
        let resolved = at_once(mail_hosts(&Zone::of(ZONE), "loopback.test", &ourselves));
        assert_eq!(resolved.result.is_err(), loops, "{port}");
    }
}

#[test]
fn a_next_hop_is_one_host() {
    let now = Instant::now();
    let relay = fixed_host("Relay.Example", now).expect("a host");
    assert_eq!(
        (&*relay.name, &relay.addresses[..], relay.expires),
        ("relay.example", &[][..], now)
    );
    for text in ["192.0.2.7", "[192.0.2.7]"] {
        let host = fixed_host(text, now).expect("a host");
        assert_eq!((&*host.name, host.addresses.len()), ("192.0.2.7", 1));
    }
    for text in ["2001:db8::7", "[2001:db8::7]", "[IPv6:2001:db8::7]"] {
        assert_eq!(&*fixed_host(text, now).expect("a host").name, "2001:db8::7");
    }
    assert_eq!(fixed_host("a b", now), None);
}
