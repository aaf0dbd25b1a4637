//! The resolver against real servers: `nsd` with zones of every kind, asked directly and through
//! `unbound`, and scripted ones that are slow, forge, or know nothing of EDNS.
//!
//! Both are unpacked by `.ci/setup`, listen on loopback addresses, and are killed at the end.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mailrace::dns::mail::{MailError, NoMail, mail_hosts};
use mailrace::dns::ourselves::Ourselves;
use mailrace::dns::{Lookup, LookupError, Name, Record, RecordType, Resolver, ResolverConfig};
use mailrace::runtime;
use tempfile::TempDir;

use crate::interop::are_here;
use crate::nameserver::{NameServer, Nsd, free_port, in_loop};

/// `nsd` with the zones below and `unbound` in front of it.
struct Servers {
    _home: TempDir,
    nsd: Nsd,
    unbound: NameServer,
}

impl Servers {
    fn start() -> Servers {
        let home = TempDir::new().expect("a temporary directory");
        let nsd = Nsd::start(&[("test", &zone()), ("second", SECOND_ZONE)]);
        let (recursor, dead) = (free_port(), free_port());
        let conf = unbound_conf(home.path(), recursor, nsd.address().port(), dead);
        let unbound = NameServer::start(home.path(), "unbound", recursor, &conf, "test");
        Servers { _home: home, nsd, unbound }
    }
}

fn unbound_conf(home: &Path, port: u16, authority: u16, dead: u16) -> String {
    let home = home.display();
    format!(
        "server:\n interface: 127.0.0.1@{port}\n username: \"\"\n chroot: \"\"\n\
         directory: \"{home}\"\n pidfile: \"\"\n use-syslog: no\n do-daemonize: no\n\
         do-not-query-localhost: no\n do-ip6: no\n module-config: \"iterator\"\n num-threads: 1\n\
         local-zone: \"test.\" nodefault\n local-zone: \"2.0.192.in-addr.arpa.\" nodefault\n\
         local-data: \"1.2.0.192.in-addr.arpa. PTR mx1.test.\"\n\
         remote-control:\n control-enable: no\n\
         stub-zone:\n name: test\n stub-addr: 127.0.0.1@{authority}\n\
         stub-zone:\n name: second\n stub-addr: 127.0.0.1@{authority}\n\
         stub-zone:\n name: lame\n stub-addr: 127.0.0.1@{authority}\n\
         stub-zone:\n name: dead\n stub-addr: 127.0.0.1@{dead}\n"
    )
}

const ZONE: &str = "
plain       MX    20 mx2
plain       MX    10 mx1
mx1         A     192.0.2.1
mx1    100  AAAA  2001:db8::1
mx2         A     192.0.2.2
equal       MX    10 mx1
equal       MX    10 mx2
null        MX    0 .
implicit    A     192.0.2.3
sixonly     AAAA  2001:db8::3
empty       TXT   \"no mail here\"
gone        MX    10 nowhere
gone        MX    20 empty
aliased     CNAME second-alias
second-alias CNAME plain
hostalias   MX    10 mxalias
mxalias     CNAME mx2
loop        CNAME pool
pool        CNAME loop
far         CNAME there.second.
xn--bcher-kva MX  10 mx1
ours        MX    10 relay.example.
backup      MX    10 mx1
backup      MX    20 relay.example.
literal     MX    10 192.0.2.9
lost        MX    10 host.dead.
hopeful     MX    10 host.dead.
hopeful     MX    20 mx1
";

const SECOND_ZONE: &str = "
$TTL 200
there  MX    10 mx
mx     A     192.0.2.20
";

/// With sets that fit no datagram.
fn zone() -> String {
    let mut zone = ZONE.to_owned();
    for number in 0..60 {
        let host = format!("a-long-name-of-a-mail-host-number-{number:02}");
        zone += &format!("big MX {} {host}\n{host} A 192.0.2.100\n", 100 + number);
        zone += &format!("bigtext TXT \"{number:02}{}\"\n", "x".repeat(200));
    }
    zone
}

/// Runs a question to its end on an event loop of its own.
fn ask(config: ResolverConfig, name: &str, kind: RecordType) -> Result<Vec<Record>, LookupError> {
    let name = Name::parse(name).expect("a name");
    in_loop(async move { Resolver::new(config).lookup(&name, kind).await.result.clone() })
}

/// `preference name addresses` of each host, or why there are none.
fn hosts(server: SocketAddr, domain: &str) -> Result<String, MailError> {
    let ourselves = Ourselves::new("relay.example", &[], &[], 25);
    let timeout = Duration::from_secs(3);
    let resolver = ResolverConfig { timeout, ..ResolverConfig::with_servers(vec![server]) };
    let resolved =
        in_loop(async { mail_hosts(&Resolver::new(resolver), domain, &ourselves).await });
    assert!(resolved.ttl <= Duration::from_secs(300), "{domain}: {:?}", resolved.ttl);
    let host = |host: &mailrace::dns::mail::MailHost| {
        let addresses: Vec<String> = host.addresses.iter().map(ToString::to_string).collect();
        format!("{} {} {}", host.preference, host.name, addresses.join(","))
    };
    resolved.result.map(|found| found.hosts.iter().map(host).collect::<Vec<_>>().join("; "))
}

#[test]
fn domains_of_every_kind() {
    if !are_here(&["dns"]) {
        return;
    }
    const MX1: &str = "10 mx1.test 2001:db8::1,192.0.2.1";
    const MX2: &str = "mx2.test 192.0.2.2";
    let plain = format!("{MX1}; 20 {MX2}");
    let servers = Servers::start();
    for (domain, expected) in [
        ("plain.test", &plain[..]),
        ("aliased.test", &plain),
        ("equal.test", &format!("{MX1}; 10 {MX2}")),
        ("implicit.test", "0 implicit.test 192.0.2.3"),
        ("sixonly.test", "0 sixonly.test 2001:db8::3"),
        ("hostalias.test", "10 mxalias.test 192.0.2.2"),
        ("b\u{fc}cher.test", MX1),
        ("far.test", "10 mx.second 192.0.2.20"),
        ("backup.test", MX1),
    ] {
        for server in [servers.nsd.address(), servers.unbound.address()] {
            assert_eq!(hosts(server, domain).as_deref(), Ok(expected), "{domain}");
        }
    }
    let ours = NoMail::LoopsBack { host: "relay.example".into() };
    for (domain, reason) in [
        ("null.test", NoMail::NullMx),
        ("nothing.test", NoMail::NoSuchDomain),
        ("empty.test", NoMail::NoMailHost),
        ("gone.test", NoMail::NoMailHost),
        ("literal.test", NoMail::NoMailHost),
        ("ours.test", ours),
    ] {
        let result = hosts(servers.unbound.address(), domain);
        assert_eq!(result, Err(MailError::Permanent(reason)), "{domain}");
    }
    for domain in ["x.lame", "x.dead", "loop.test", "lost.test"] {
        let result = hosts(servers.unbound.address(), domain);
        assert!(matches!(result, Err(MailError::Temporary { .. })), "{domain}: {result:?}");
    }
    let hopeful = format!("10 host.dead ; {}", MX1.replacen("10", "20", 1));
    assert_eq!(hosts(servers.unbound.address(), "hopeful.test"), Ok(hopeful));
    let big = hosts(servers.unbound.address(), "big.test").expect("over TCP");
    assert_eq!(big.matches("192.0.2.100").count(), mailrace::limits::MAIL_HOSTS);
    for server in [servers.nsd.address(), servers.unbound.address()] {
        let config = ResolverConfig::with_servers(vec![server]);
        let texts = ask(config, "bigtext.test", RecordType::Txt).expect("over TCP");
        assert_eq!(texts.len(), 60);
    }
    let config = ResolverConfig::with_servers(vec![servers.unbound.address()]);
    let name =
        in_loop(async { Resolver::new(config).ptr([192, 0, 2, 1].into()).await.result.clone() });
    assert_eq!(name, Ok(vec![Record::Ptr(Name::parse("mx1.test").expect("a name"))]));
}

/// A name server that does with each question, numbered from 0, what a function says: none to
/// several datagrams.
struct Scripted {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl Scripted {
    fn start(script: impl Fn(usize, &[u8]) -> Vec<Vec<u8>> + Send + 'static) -> Scripted {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let socket = UdpSocket::bind(address).expect("a free port");
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        // Ends with the process; it holds nothing but its socket.
        thread::spawn(move || {
            let mut octets = [0; 2_048];
            while let Ok((length, from)) = socket.recv_from(&mut octets) {
                let number = count.fetch_add(1, Ordering::SeqCst);
                for answer in script(number, &octets[..length]) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Scripted { address, asked }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// A stream server beside it, which answers each connection with these octets before it closes, a
/// few at a time; without any it never answers.
fn on_stream(server: &Scripted, answer: fn(&[u8]) -> Vec<u8>) {
    let listener = TcpListener::bind(server.address).expect("the port is free for streams");
    thread::spawn(move || {
        let mut held = Vec::new();
        while let Ok((mut stream, _)) = listener.accept() {
            let mut question = [0; 512];
            let length = stream.read(&mut question).expect("a question");
            let octets = answer(&question[2..length]);
            for piece in octets.chunks(7) {
                let _ = stream.write_all(piece);
                thread::sleep(Duration::from_millis(2));
            }
            if octets.is_empty() {
                held.push(stream);
            }
        }
    });
}

/// Says that the answer did not fit.
fn cut_off() -> Scripted {
    Scripted::start(|_, question| {
        let mut answer = head(question, 0);
        answer[2] |= 2;
        vec![answer]
    })
}

#[test]
fn a_long_answer_comes_in_pieces() {
    let server = cut_off();
    on_stream(&server, |question| {
        let message = answer(question, 7);
        [&(message.len() as u16).to_be_bytes()[..], &message].concat()
    });
    assert_eq!(ask(servers(&[&server]), "a.test", RecordType::A), address(7));
}

#[test]
fn a_stream_that_does_not_answer_ends_in_time() {
    let silent = cut_off();
    on_stream(&silent, |_| Vec::new());
    let refusing = cut_off();
    let short = cut_off();
    on_stream(&short, |question| vec![0xff; question.len().min(9)]);
    for (server, words) in [
        (&silent, "no answer in time"),
        (&refusing, "refused"),
        (&short, "the connection was closed without an answer"),
    ] {
        let mut config = servers(&[server]);
        config.timeout = Duration::from_secs(1);
        let began = Instant::now();
        match ask(config, "a.test", RecordType::A) {
            Err(LookupError::Temporary { why }) => assert!(why.contains(words), "{why}"),
            other => panic!("{other:?}"),
        }
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}

/// The answer to a question for addresses: 192.0.2.`last`, for 60 seconds.
fn answer(question: &[u8], last: u8) -> Vec<u8> {
    let mut answer = head(question, 0);
    answer[7] = 1;
    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, last]);
    answer
}

/// An answer with this response code and no records, its EDNS part left out.
fn head(question: &[u8], code: u8) -> Vec<u8> {
    let name = question[12..].iter().position(|octet| *octet == 0).expect("a name's end");
    let mut answer = question[..12 + name + 5].to_vec();
    answer[2] = 0x81;
    answer[3] = 0x80 | code;
    answer[11] = 0;
    answer
}

fn servers(scripted: &[&Scripted]) -> ResolverConfig {
    ResolverConfig::with_servers(scripted.iter().map(|server| server.address).collect())
}

fn address(last: u8) -> Result<Vec<Record>, LookupError> {
    Ok(vec![Record::A([192, 0, 2, last].into())])
}

#[test]
fn forged_and_late_answers_are_passed_over() {
    let server = Scripted::start(|_, question| {
        let mut other_id = answer(question, 66);
        other_id[0] ^= 1;
        let mut other_name = answer(question, 66);
        other_name[13] ^= 1;
        vec![vec![], vec![0; 11], other_id, other_name, question.to_vec(), answer(question, 1)]
    });
    assert_eq!(ask(servers(&[&server]), "a.test", RecordType::A), address(1));
}

#[test]
fn a_server_without_edns_is_asked_without() {
    let server = Scripted::start(|_, question| {
        let has_edns = question[11] == 1;
        vec![if has_edns { head(question, 1) } else { answer(question, 2) }]
    });
    assert_eq!(ask(servers(&[&server]), "a.test", RecordType::A), address(2));
    assert_eq!(server.asked(), 2);
}

#[test]
fn the_next_server_is_asked_at_once_after_a_failure_and_later_after_silence() {
    let failing = Scripted::start(|_, question| vec![head(question, 2)]);
    let silent = Scripted::start(|_, _| Vec::new());
    let good = Scripted::start(|_, question| vec![answer(question, 3)]);
    let mut config = servers(&[&failing, &silent, &good]);
    config.timeout = Duration::from_secs(3);
    let began = Instant::now();
    in_loop(async {
        let resolver = Resolver::new(config);
        for name in ["a.test", "b.test", "c.test"] {
            let name = Name::parse(name).expect("a name");
            let found = resolver.lookup(&name, RecordType::A).await;
            assert_eq!(found.result, address(3));
            assert!(!found.authentic);
        }
    });
    // Only the first question met the others.
    assert_eq!((failing.asked(), silent.asked(), good.asked()), (1, 1, 3));
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(3), "{took:?}");
}

#[test]
fn a_lost_datagram_is_sent_again() {
    let server = Scripted::start(|number, question| match number {
        0 => Vec::new(),
        _ => vec![answer(question, 4)],
    });
    let mut config = servers(&[&server]);
    config.timeout = Duration::from_millis(900);
    assert_eq!(ask(config, "a.test", RecordType::A), address(4));
}

#[test]
fn a_failure_is_remembered_and_says_who_failed() {
    let server = Scripted::start(|_, question| vec![head(question, 5)]);
    let address = server.address;
    let why = in_loop(async {
        let resolver = Resolver::new(servers(&[&server]));
        let name = Name::parse("a.test").expect("a name");
        let (first, is_first) = resolver.lookup_first(&name, RecordType::A).await;
        assert!(is_first);
        let left = first.expires.saturating_duration_since(Instant::now());
        assert!(left > Duration::from_secs(4) && left <= Duration::from_secs(5), "{left:?}");
        assert_eq!(resolver.lookup(&name, RecordType::A).await, first);
        assert_eq!(resolver.lookup_first(&name, RecordType::A).await, (first.clone(), false));
        first.result.clone()
    });
    assert_eq!(why, Err(LookupError::Temporary { why: format!("REFUSED ({address})").into() }));
    assert_eq!(server.asked(), 1);
    // A port that nobody listens on is known at once.
    let config =
        ResolverConfig::with_servers(vec![SocketAddr::from(([127, 0, 0, 1], free_port()))]);
    let began = Instant::now();
    assert!(matches!(ask(config, "a.test", RecordType::A), Err(LookupError::Temporary { .. })));
    // With epoll that is certain only of an idle machine.
    let may_be_slow = std::env::var_os("MONOIO_FORCE_LEGACY_DRIVER").is_some();
    assert!(may_be_slow || began.elapsed() < Duration::from_secs(2));
}

#[test]
fn who_asks_the_same_shares_one_question() {
    let server = Scripted::start(|_, question| {
        thread::sleep(Duration::from_millis(100));
        vec![answer(question, 5)]
    });
    in_loop(async {
        let resolver = Resolver::new(servers(&[&server]));
        let name = Name::parse("a.test").expect("a name");
        // One that is given up takes nothing from the others.
        let impatient = resolver.lookup(&name, RecordType::A);
        assert!(runtime::timeout(Duration::from_millis(5), impatient).await.is_none());
        let found = std::rc::Rc::new(std::cell::Cell::new(0));
        for _ in 0..100 {
            let (resolver, name, found) = (resolver.clone(), name.clone(), found.clone());
            runtime::spawn(async move {
                let answer = resolver.lookup(&name, RecordType::A).await;
                found.set(found.get() + usize::from(answer.result == address(5)));
            });
        }
        assert_eq!(resolver.lookup(&name, RecordType::A).await.result, address(5));
        runtime::sleep(Duration::from_millis(20)).await;
        assert_eq!((found.get(), resolver.cached()), (100, 1));
    });
    assert_eq!(server.asked(), 1);
}

#[test]
fn a_thousand_questions_at_once_are_answered_in_turn() {
    let server = Scripted::start(|_, question| vec![answer(question, 6)]);
    in_loop(async {
        let resolver = Resolver::new(servers(&[&server]));
        let found = std::rc::Rc::new(std::cell::Cell::new(0));
        for number in 0..1_000 {
            let (resolver, found) = (resolver.clone(), found.clone());
            runtime::spawn(async move {
                let name = Name::parse(&format!("n{number}.test")).expect("a name");
                let answer = resolver.lookup(&name, RecordType::A).await;
                found.set(found.get() + usize::from(answer.result == address(6)));
            });
        }
        for _ in 0..200 {
            runtime::sleep(Duration::from_millis(50)).await;
            if found.get() == 1_000 {
                break;
            }
        }
        assert_eq!((found.get(), resolver.cached()), (1_000, 1_000));
    });
}
