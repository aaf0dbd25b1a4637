//! Connections to next hops in in-line mode: how many there may be, who gives way to whom, and which
//! of a next hop's hosts are tried.

use std::collections::HashMap;
use std::fmt::Display;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::mpsc::channel;
use std::thread;

use crate::client::Client;
use crate::gateway::{Gateway, PATIENCE};
use crate::inline::up_to_data;
use crate::interop::are_here;
use crate::nameserver::{Nsd, free_port_of};
use crate::overload::metric;
use crate::sink::{Manners, Sink};

/// One core with two listeners: the first is in-line, the other asks next hops for recipients.
const IN_LINE_AND_ASKING: &str = r#"
workers = 1
[[listener]]
address = "127.0.0.1:0"
service = "mx"
delivery = "inline"
[[listener]]
address = "127.0.0.1:0"
service = "mx"
[recipients]
call_ahead = true
"#;

/// All mail for `in.test` goes there.
fn all_to(target: impl Display) -> String {
    format!(
        r#"[domains]
accept = ["in.test"]
[[route]]
recipient = "*"
to = "smtp://{target}"
"#
    )
}

/// Those that idle make room; who finds none comes again.
#[test]
fn connections_in_line_are_among_those_that_there_may_be() {
    let sinks = [Sink::start(Manners::default()), Sink::start(Manners::default())];
    let [one, other] = [&sinks[0], &sinks[1]].map(|sink| sink.address());
    let gateway = Gateway::start(&format!(
        r#"{IN_LINE_AND_ASKING}[domains]
accept = ["in.test", "out.test"]
[[route]]
recipient = "*@in.test"
to = "smtp://{one}"
[[route]]
recipient = "*@out.test"
to = "smtp://{other}"
[delivery]
connections = 1
idle_timeout = "1h"
"#
    ));
    let asks = |listener: usize, to: &str| {
        let mut client = Client::hello(gateway.smtp(listener));
        assert!(client.command("MAIL FROM:<a@b.example>").0.starts_with("250"));
        (client.command(&format!("RCPT TO:<{to}>")).0, client)
    };
    let (said, mut first) = asks(0, "a@in.test");
    assert_eq!(said, "250 2.1.5 Ok");
    let (said, _second) = asks(0, "b@out.test");
    assert_eq!(said, "451 4.4.5 Too many are served now, try later");
    let (said, _third) = asks(1, "b@out.test");
    assert!(said.starts_with("450 4.1.1"), "{said}");
    assert_eq!(sinks[1].connections(), 0);
    assert_eq!(first.data(b"Subject: x\r\n\r\nx\r\n").expect("250").0, "250 2.0.0 Taken");
    // The connection idles now, and gives way: for another in-line, for a question, for the queue.
    let (said, fourth) = asks(0, "b@out.test");
    assert_eq!(said, "250 2.1.5 Ok");
    drop(fourth);
    gateway.wait_until("a recipient can be asked for", || {
        asks(1, "a@in.test").0.starts_with("250").then_some(())
    });
    let mut client = Client::hello(gateway.smtp(1));
    client.envelope("a@b.example", &["a@in.test"]);
    client.data(b"Subject: y\r\n\r\ny\r\n").expect("250");
    sinks[0].taken(2);
}

/// Sessions on either core want the one connection, each for another next hop than the one before:
/// what is in use stays, and what idles gives way, wherever it is.
#[test]
fn a_connection_that_idles_gives_way_to_every_core() {
    let sinks = [Sink::start(Manners::default()), Sink::start(Manners::default())];
    let gateway = Gateway::start(&format!(
        r#"
workers = 2
[[listener]]
address = "127.0.0.1:0"
service = "mx"
delivery = "inline"
[domains]
accept = ["in.test", "out.test"]
[[route]]
recipient = "*@in.test"
to = "smtp://{}"
[[route]]
recipient = "*@out.test"
to = "smtp://{}"
[delivery]
connections = 1
idle_timeout = "1h"
"#,
        sinks[0].address(),
        sinks[1].address()
    ));
    // Which core has which session is the system's choice.
    let sessions = std::iter::repeat_with(|| Client::hello(gateway.smtp(0))).take(6);
    let mut sessions: Vec<_> = sessions.collect();
    let places = [("a@in.test", "b@out.test", &sinks[1]), ("b@out.test", "a@in.test", &sinks[0])];
    for (client, (to, elsewhere, other)) in sessions.iter_mut().zip(places.iter().cycle()) {
        client.command("MAIL FROM:<a@b.example>").expect("250");
        gateway.wait_until("there is room", || {
            let said = client.command(&format!("RCPT TO:<{to}>")).0;
            if said.starts_with("250") {
                return Some(());
            }
            assert!(said.starts_with("451 4.4.5"), "{said}");
            client.command("RSET").expect("250");
            client.command("MAIL FROM:<a@b.example>").expect("250");
            None
        });
        // It is in use now, and no core has another one.
        let before = other.connections();
        for _ in 0..4 {
            let mut late = Client::hello(gateway.smtp(0));
            late.command("MAIL FROM:<a@b.example>").expect("250");
            late.command(&format!("RCPT TO:<{elsewhere}>")).expect("451 4.4.5");
        }
        assert_eq!(other.connections(), before);
        assert_eq!(client.data(b"Subject: x\r\n\r\nx\r\n").expect("250").0, "250 2.0.0 Taken");
    }
    assert!(sinks.iter().all(|sink| sink.taken(3).len() == 3));
}

/// Who has the one connection and says nothing more is sent away once somebody wants it.
#[test]
fn a_client_that_says_nothing_gives_its_connection_up() {
    let sink = Sink::start(Manners::default());
    let gateway = Gateway::start(&format!(
        r#"{IN_LINE_AND_ASKING}{}[delivery]
connections = 1
"#,
        all_to(sink.address())
    ));
    let mut silent = Client::hello(gateway.smtp(0));
    silent.envelope("a@b.example", &["a@in.test"]);
    let mut client = gateway.wait_until("the silent one is gone", || {
        let mut client = Client::hello(gateway.smtp(0));
        client.command("MAIL FROM:<c@b.example>").expect("250");
        let said = client.command("RCPT TO:<c@in.test>").0;
        assert!(said.starts_with("250") || said.starts_with("451 4.4.5"), "{said}");
        said.starts_with("250").then_some(client)
    });
    silent.reply().expect("421 4.4.2");
    silent.expect_end();
    client.data(b"Subject: x\r\n\r\nx\r\n").expect("250 2.0.0 Taken");
    gateway.wait_until("it is counted", || {
        (metric(&gateway, "mailrace_sessions_cut_total") == 1).then_some(())
    });
}

/// One host of three is well; each of the others is waited for once, in-line and by questions alike.
#[test]
fn a_host_that_hangs_is_waited_for_once() {
    if !are_here(&["dns"]) {
        return;
    }
    let hosts = [1, 2, 3].map(|last| Ipv4Addr::new(127, 0, 9, last));
    let port = free_port_of(&hosts.map(IpAddr::V4));
    // The system takes connections for them, and nobody says a word.
    let hung = [0, 1].map(|place| TcpListener::bind((hosts[place], port)).expect("a port"));
    let sink = Sink::start_at(SocketAddr::from((hosts[2], port)), Manners::default());
    let zone = "three A 127.0.9.1\nthree A 127.0.9.2\nthree A 127.0.9.3\n";
    let nsd = Nsd::start(&[("test", zone)]);
    let gateway = Gateway::start(&format!(
        r#"{IN_LINE_AND_ASKING}{}[dns]
servers = ["{}"]
[delivery]
timeouts = {{ greeting = "5s" }}
"#,
        all_to(format!("three.test:{port}")),
        nsd.address()
    ));
    let mut sessions = Vec::new();
    // Each has a connection of its own.
    for number in 0..12 {
        let mut client = Client::hello(gateway.smtp(number % 2));
        client.envelope("a@b.example", &[&format!("{number}@in.test")]);
        sessions.push(client);
    }
    for listener in hung {
        listener.set_nonblocking(true).expect("a socket option");
        let came = std::iter::from_fn(|| listener.accept().ok()).count();
        assert!(came <= 1, "{came} connections to a host that hangs");
    }
    for client in sessions.iter_mut().step_by(2) {
        assert_eq!(client.data(b"Subject: x\r\n\r\nx\r\n").expect("250").0, "250 2.0.0 Taken");
    }
    sink.taken(6);
}

/// What it does not want of one message says nothing about the next one.
#[test]
fn a_host_that_refuses_in_the_middle_is_not_avoided() {
    if !are_here(&["dns"]) {
        return;
    }
    let hosts = [1, 2].map(|last| Ipv4Addr::new(127, 0, 10, last));
    let port = free_port_of(&hosts.map(IpAddr::V4));
    let (tell, told) = channel();
    let choosy = TcpListener::bind((hosts[0], port)).expect("a port");
    thread::spawn(move || {
        for stream in choosy.incoming() {
            let tell = tell.clone();
            thread::spawn(move || {
                let (mut input, mut output) = up_to_data(stream.expect("a connection"));
                input.read_exact(&mut [0; 64]).expect("some of it");
                output.write_all(b"552 5.3.4 Too much of it\r\n").expect("it is there");
                drop((input, output));
                let _ = tell.send(());
            });
        }
    });
    let replies = HashMap::from([("a@in.test".to_owned(), "250 2.1.5 The other".to_owned())]);
    let manners = Manners { replies, forgives_ends: true, ..Manners::default() };
    let _sink = Sink::start_at(SocketAddr::from((hosts[1], port)), manners);
    let nsd = Nsd::start(&[("test", "two A 127.0.10.1\ntwo A 127.0.10.2\n")]);
    let gateway = Gateway::start(&format!(
        r#"
workers = 1
[[listener]]
address = "127.0.0.1:0"
service = "mx"
delivery = "inline"
[domains]
accept = ["in.test"]
[[route]]
recipient = "*"
to = "smtp://two.test:{port}"
[dns]
servers = ["{}"]
"#,
        nsd.address()
    ));
    let (mut refused, mut others) = (0, Vec::new());
    // Which host a session draws is chance: that one is never drawn again is one in 2^61.
    while refused < 3 && others.len() < 64 {
        let mut client = Client::hello(gateway.smtp(0));
        client.command("MAIL FROM:<a@b.example>").expect("250");
        if client.command("RCPT TO:<a@in.test>").expect("250").0.ends_with("The other") {
            // Its connection stays in use: the next session draws anew.
            others.push(client);
            continue;
        }
        client.command("DATA").expect("354");
        client.send(&b"Some text that fills a line.\r\n".repeat(64));
        told.recv_timeout(PATIENCE).expect("it has refused");
        client.send(&b"Some text that fills a line.\r\n".repeat(64));
        client.send(b".\r\n");
        assert_eq!(client.reply().0, "552 5.3.4 Too much of it");
        refused += 1;
    }
    assert_eq!(refused, 3, "{} went to the other host", others.len());
}
