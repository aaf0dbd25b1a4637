//! Dials to listeners on loopback addresses: some take connections, some refuse, some are silent.

use std::net::{TcpListener, TcpStream};
use std::rc::Rc;

use super::*;
use crate::dns::mail::fixed_host;
use crate::dns::{Answer, RecordType};

const LIMIT: Duration = Duration::from_secs(20);

/// A DNS that nobody runs.
struct Nobody;

impl Lookup for Nobody {
    async fn lookup(&self, _: &Name, _: RecordType) -> Rc<Answer> {
        Rc::new(Answer::temporary("nobody answers", Instant::now(), Duration::from_secs(5)))
    }
}

/// What may stand behind an address.
enum Peer {
    Listening {
        _socket: TcpListener,
    },
    /// Its backlog is full: a SYN is dropped.
    Silent {
        _socket: socket2::Socket,
        _waiting: Vec<TcpStream>,
    },
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([127, 0, 7, last])
}

/// A port that is free on all the addresses, found on the first.
fn free_port() -> u16 {
    TcpListener::bind((address(1), 0))
        .and_then(|socket| socket.local_addr())
        .expect("a port")
        .port()
}

fn listening(last: u8, port: u16) -> Peer {
    Peer::Listening { _socket: TcpListener::bind((address(last), port)).expect("a free port") }
}

fn silent(last: u8, port: u16) -> Peer {
    let to = SocketAddr::new(address(last), port);
    let domain = socket2::Domain::for_address(to);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).expect("a socket");
    socket.bind(&to.into()).expect("a free port");
    socket.listen(0).expect("a listener");
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&to, Duration::from_millis(150)) {
        waiting.push(stream);
        assert!(waiting.len() < 10, "the backlog has no end");
    }
    Peer::Silent { _socket: socket, _waiting: waiting }
}

fn host(preference: u16, last: u8) -> MailHost {
    let expires = Instant::now() + Duration::from_secs(60);
    let name = format!("host{last}.test").into();
    MailHost { preference, name, addresses: vec![address(last)], expires, authentic: false }
}

struct Outcome {
    result: Result<(SocketAddr, Box<str>), DialError>,
    took: Duration,
}

fn dial_now(
    hosts: &[MailHost],
    port: u16,
    source: Option<IpAddr>,
    limit: Duration,
    health: &Mutex<HostHealth>,
) -> Outcome {
    let began = Instant::now();
    let dialled =
        crate::runtime::run(dial(&Nobody, hosts, port, source, limit, health, &|_, _| {}));
    let result = dialled.expect("an event loop").map(|dialled| (dialled.peer, dialled.host));
    Outcome { result, took: began.elapsed() }
}

fn peer_of(outcome: Outcome) -> IpAddr {
    outcome.result.expect("a connection").0.ip()
}

#[test]
fn a_host_that_refuses_is_passed_over_and_avoided() {
    let port = free_port();
    let (hosts, health) = ([host(10, 11), host(20, 12)], Mutex::default());
    let _backup = listening(12, port);
    let first = dial_now(&hosts, port, None, LIMIT, &health);
    assert!(first.took < STEP_MAX, "{:?}", first.took);
    let (peer, name) = first.result.expect("the backup");
    assert_eq!((peer.ip(), &*name), (address(12), "host12.test"));
    // The better host is back, but nobody knows yet.
    let _better = listening(11, port);
    assert_eq!(peer_of(dial_now(&hosts, port, None, LIMIT, &health)), address(12));
    lock(&health).succeeded(SocketAddr::new(address(11), port));
    assert_eq!(peer_of(dial_now(&hosts, port, None, LIMIT, &health)), address(11));
    // It takes connections and greets badly.
    lock(&health).failed(SocketAddr::new(address(11), port), Instant::now());
    assert_eq!(peer_of(dial_now(&hosts, port, None, LIMIT, &health)), address(12));
}

#[test]
fn a_silent_equal_costs_half_a_second_once() {
    let port = free_port();
    let _silent = silent(21, port);
    let _good = listening(22, port);
    let health = Mutex::default();
    // Which of the two is first is left to chance: until the silent one was.
    let hosts = [host(10, 21), host(10, 22)];
    let slow = (0..64).map(|_| dial_now(&hosts, port, None, LIMIT, &health)).find(|outcome| {
        assert_eq!(outcome.result.as_ref().expect("a connection").0.ip(), address(22));
        outcome.took >= STEP_MIN
    });
    assert!(slow.is_some_and(|slow| slow.took < LIMIT / 2));
    let avoided = lock(&health).avoided(Instant::now());
    assert_eq!(avoided[0].0.ip(), address(21));
    for _ in 0..5 {
        assert!(dial_now(&hosts, port, None, LIMIT, &health).took < STEP_MIN);
    }
}

#[test]
fn a_silent_better_host_is_given_longer_than_an_equal() {
    let port = free_port();
    let _silent = silent(31, port);
    let _backup = listening(32, port);
    let hosts = [host(10, 31), host(20, 32)];
    let outcome = dial_now(&hosts, port, None, LIMIT, &Mutex::default());
    assert!(outcome.took >= STEP_MAX && outcome.took < LIMIT, "{:?}", outcome.took);
    assert_eq!(peer_of(outcome), address(32));
}

#[test]
fn silence_ends_with_the_limit() {
    let port = free_port();
    let _silent = silent(41, port);
    let limit = Duration::from_millis(300);
    let outcome = dial_now(&[host(10, 41)], port, None, limit, &Mutex::default());
    let error = outcome.result.expect_err("nobody takes it");
    assert_eq!(
        &*error.words,
        format!("no connection to host41.test ({}:{port}) in time", address(41))
    );
    assert!(!error.dns_only && outcome.took >= limit && outcome.took < LIMIT);
}

#[test]
fn every_refusal_is_told() {
    let port = free_port();
    let hosts = [host(10, 51), host(20, 52)];
    let error =
        dial_now(&hosts, port, None, LIMIT, &Mutex::default()).result.expect_err("nobody listens");
    assert!(error.words.contains("host51.test") && error.words.contains("host52.test"), "{error}");
    assert!(error.words.contains("onnection refused") && !error.dns_only, "{error}");
}

#[test]
fn the_source_is_bound_and_decides_the_family() {
    let port = free_port();
    let socket = TcpListener::bind((address(61), port)).expect("a free port");
    let mut both = host(10, 61);
    both.addresses.insert(0, "::1".parse().expect("IPv6"));
    let source = Some(address(69));
    let outcome = dial_now(&[both], port, source, LIMIT, &Mutex::default());
    assert_eq!(peer_of(outcome), address(61));
    assert_eq!(socket.accept().expect("a connection").1.ip(), address(69));
    let source = Some("::1".parse().expect("IPv6"));
    let outcome = dial_now(&[host(10, 61)], port, source, LIMIT, &Mutex::default());
    let error = outcome.result.expect_err("no such family");
    assert_eq!(&*error.words, "no host has an address that ::1 can connect to");
    assert!(error.dns_only);
}

#[test]
fn a_name_without_an_address_says_why() {
    let relay = fixed_host("relay.test", Instant::now()).expect("a host");
    let error = dial_now(&[relay], 25, None, LIMIT, &Mutex::default()).result.expect_err("no DNS");
    assert_eq!(&*error.words, "no address of relay.test: nobody answers");
    assert!(error.dns_only);
}

#[test]
fn localhost_needs_no_dns() {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = socket.local_addr().expect("bound").port();
    let next_hop = fixed_host("localhost", Instant::now()).expect("a host");
    let outcome = dial_now(&[next_hop], port, None, LIMIT, &Mutex::default());
    let (peer, host) = outcome.result.expect("a connection");
    assert_eq!((peer, &*host), (socket.local_addr().expect("bound"), "localhost"));
}

#[test]
fn the_words_of_many_failures_are_bounded() {
    let mut problems = Problems::default();
    for number in 0..100 {
        problems.of_dns(format!("no address of host{number}.test: nobody answers"));
    }
    let words = problems.error(None).words;
    assert!(words.len() <= KEPT_REPLY && words.starts_with("no address of host0.test"));
}

#[test]
fn what_this_machine_lacks_says_nothing_of_the_peer() {
    let v4 = SocketAddr::new(address(1), 25);
    let v6 = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 25));
    let of = |errno: Errno| StreamError::Io(std::io::Error::from_raw_os_error(errno as i32));
    for errno in [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS] {
        assert!(is_own_shortage(&of(errno), v6, Some(address(2))), "{errno}");
    }
    let no_port = of(Errno::EADDRNOTAVAIL);
    assert!(is_own_shortage(&no_port, v4, None));
    assert!(!is_own_shortage(&no_port, v4, Some(address(2))), "perhaps not our address");
    assert!(!is_own_shortage(&no_port, v6, None), "perhaps there is no IPv6");
    assert!(!is_own_shortage(&of(Errno::ECONNREFUSED), v4, None));
    assert!(!is_own_shortage(&StreamError::TimedOut, v4, None));
}
