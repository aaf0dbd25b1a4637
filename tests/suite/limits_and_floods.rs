//! Clients by the thousand, clients that do not read, clients that dawdle: each harms only its own
//! session, and memory stays within its bounds.

use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::gateway::{Gateway, INTO_MAILDIRS};
use crate::overload::alone;
use crate::sink::{Manners, Sink};

const MIB: u64 = 1024 * 1024;

/// A client's address in 127.0.0.0/8, one for each hundred sessions.
fn loopback(index: usize) -> IpAddr {
    let hundred = u8::try_from(index / 100).expect("below 25,600 sessions");
    Ipv4Addr::new(127, 0, 7, hundred).into()
}

#[test]
fn ten_thousand_idle_sessions_take_at_most_8_kib_each() {
    const SESSIONS: usize = 10_000;
    let _alone = alone(SESSIONS as u64 + 1_000);
    let config = format!("{INTO_MAILDIRS}\n[limits]\nsessions = 12000\n");
    let mut gateway = Gateway::start(&config);
    // What is there for the first sessions is there for all.
    let warm: Vec<Client> = (0..100).map(|_| Client::hello(gateway.smtp(0))).collect();
    let before = gateway.memory_bytes();
    let mut clients = Vec::with_capacity(SESSIONS);
    for index in 0..SESSIONS {
        let mut client = Client::connect_from(loopback(index), gateway.smtp(0));
        client.command("EHLO client.test").expect("250");
        clients.push(client);
    }
    let each = (gateway.memory_bytes() - before) / SESSIONS as u64;
    println!("{each} bytes for each of {SESSIONS} idle sessions");
    assert!(each <= 8 * 1024, "{each} bytes for each idle session");

    // All of them still live, and a message gets through beside them.
    for client in clients.iter_mut().step_by(997) {
        client.command("NOOP").expect("250");
    }
    let mut client = Client::hello(gateway.smtp(0));
    client.envelope("sender@client.test", &["user@crowd.test"]);
    client.data(b"Subject: room\r\n\r\n").message_id();
    gateway.maildir("crowd.test", "user", 1);
    drop((clients, warm));
    gateway.terminate();
}

#[test]
fn an_address_has_its_share_of_sessions_and_so_have_all_together() {
    let config = r#"
[[listener]]
address = "127.0.0.1:0"
service = "mx"
[relay]
networks = ["127.0.0.1/32"]
[domains]
accept = ["ours.test"]
[limits]
sessions = 12
sessions_per_address = 3
[[route]]
recipient = "*"
to = "discard"
"#;
    let mut gateway = Gateway::start(config);
    let address = gateway.smtp(0);
    let from = |last: u8| Some(IpAddr::from([127, 0, 0, last]));
    let connect = |source| {
        let mut client = Client::connect_silently(address, source);
        let greeting = client.reply();
        (client, greeting)
    };
    let mut three = Vec::new();
    for _ in 0..3 {
        let (client, greeting) = connect(from(2));
        greeting.expect("220");
        three.push(client);
    }
    let (mut fourth, greeting) = connect(from(2));
    greeting.expect("421 4.7.0");
    fourth.expect_end();
    // Another address has its own share, and one of ours needs none.
    let (_neighbour, greeting) = connect(from(3));
    greeting.expect("220");
    let ours: Vec<Client> = (0..8)
        .map(|_| {
            let (client, greeting) = connect(from(1));
            greeting.expect("220");
            client
        })
        .collect();
    // That makes twelve; the thirteenth is one too many, whoever it is.
    connect(from(1)).1.expect("421 4.3.2");
    let refused =
        gateway.wait_event("too many of one", |e| e["reason"] == "too_many_sessions_from_address");
    assert!(refused["peer"].as_str().expect("a peer").starts_with("127.0.0.2:"));
    // What is given back can be had again.
    drop((three, ours));
    gateway.wait_until("a place for the address", || {
        let (_client, greeting) = connect(from(2));
        greeting.0.starts_with("220").then_some(())
    });
    gateway.terminate();
}

/// A client that sends commands and never reads a reply, until the gateway reads no more.
fn flood(gateway: &Gateway, index: usize) -> Client {
    let mut client = Client::connect(gateway.smtp(0));
    let line: &[u8] = [b"EHLO client.test\r\n".as_slice(), b"HELP\r\n", b"VRFY x\r\n"][index % 3];
    let many = line.repeat(64 * 1024 / line.len());
    let short = Some(Duration::from_millis(100));
    client.stream().set_write_timeout(short).expect("a socket option");
    let mut sent = 0;
    while client.try_send(&many).is_ok() {
        sent += many.len() as u64;
        assert!(sent < 64 * MIB, "the gateway reads on without end");
    }
    client
}

#[test]
fn a_client_that_never_reads_is_held_back_and_costs_little() {
    let mut gateway = Gateway::start(INTO_MAILDIRS);
    drop(Client::hello(gateway.smtp(0)));
    let mut floods = Vec::new();
    for index in 0..8 {
        floods.push(flood(&gateway, index));
    }
    // The first ones pay for what all use.
    let before = gateway.memory_bytes();
    for index in 0..32 {
        floods.push(flood(&gateway, index));
    }
    let each = gateway.memory_bytes().saturating_sub(before) / 32;
    println!("{each} bytes for each client that does not read");
    assert!(each <= 128 * 1024, "{each} bytes for a client that does not read");
    let mut client = Client::hello(gateway.smtp(0));
    client.envelope("sender@client.test", &["user@flood.test"]);
    client.data(b"Subject: unharmed\r\n\r\n").message_id();
    gateway.maildir("flood.test", "user", 1);
    drop(floods);
    gateway.terminate();
}

#[test]
fn clients_that_send_an_octet_at_a_time_are_served_and_hold_nobody_up() {
    let mut gateway = Gateway::start(INTO_MAILDIRS);
    let address = gateway.smtp(0);
    let dawdlers: Vec<_> = (0..8)
        .map(|_| {
            thread::spawn(move || {
                let mut client = Client::connect(address);
                for octet in b"EHLO slow.test\r\n" {
                    client.send(&[*octet]);
                    thread::sleep(Duration::from_millis(100));
                }
                client.reply().expect("250");
                client.envelope("sender@slow.test", &["user@slow.test"]);
                client.command("DATA").expect("354");
                for octet in b"a: b\r\n\r\n..\r\n.\r\n" {
                    client.send(&[*octet]);
                    thread::sleep(Duration::from_millis(100));
                }
                client.reply().message_id();
            })
        })
        .collect();
    let started = Instant::now();
    for _ in 0..20 {
        let mut client = Client::hello(address);
        client.envelope("sender@client.test", &["user@quick.test"]);
        client.data(b"Subject: quick\r\n\r\n").message_id();
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(2), "twenty messages beside slow clients took {took:?}");
    for dawdler in dawdlers {
        dawdler.join().expect("it was served");
    }
    for message in gateway.maildir("slow.test", "user", 8) {
        assert!(message.ends_with(b"+0000\r\na: b\r\n\r\n.\r\n"));
    }
    gateway.terminate();
}

#[test]
fn a_message_of_50_mib_costs_a_mebibyte_of_memory() {
    let sink_data = Sink::start(Manners { forgets_bodies: true, ..Manners::default() });
    let sink_bdat =
        Sink::start(Manners { forgets_bodies: true, chunking: true, ..Manners::default() });
    let config = format!(
        r#"
[[listener]]
address = "127.0.0.1:0"
service = "relay"
[limits]
message_size = "60MiB"
[[route]]
recipient = "*@data.test"
to = "smtp://{}"
[[route]]
recipient = "*@bdat.test"
to = "smtp://{}"
[[route]]
recipient = "*"
to = "maildir:{{dir}}/mail"
"#,
        sink_data.address(),
        sink_bdat.address()
    );
    // In huge pages a few octets more can look like 2 MiB.
    let mut gateway = Gateway::start_under(&["env", "MIMALLOC_ALLOW_THP=0"], &config);
    // The buffers of the log, of its reader and of connections are made at their first use, on
    // every worker.
    let large = message_of(4 * MIB as usize);
    const WARM: usize = 6;
    for _ in 0..WARM {
        let mut client = Client::hello(gateway.smtp(0));
        for to in ["user@box.test", "a@data.test", "a@bdat.test"] {
            client.envelope("sender@client.test", &[to]);
            client.bdat(&large, &[usize::MAX]).message_id();
        }
    }
    gateway.maildir("box.test", "user", WARM);
    sink_data.taken(WARM);
    sink_bdat.taken(WARM);

    let mut client = Client::hello(gateway.smtp(0));
    let message = message_of(50 * MIB as usize);
    let crc = crc32c::crc32c(&message);
    let legs: [(&str, bool, Option<&Sink>); 6] = [
        ("user@hold.test", false, None),
        ("user@hold.test", true, None),
        ("a@data.test", false, Some(&sink_data)),
        ("a@bdat.test", true, Some(&sink_bdat)),
        ("a@data.test", true, Some(&sink_data)),
        ("a@bdat.test", false, Some(&sink_bdat)),
    ];
    let mut wrong = Vec::new();
    for (number, (to, by_bdat, sink)) in legs.into_iter().enumerate() {
        let before = gateway.memory_bytes();
        let peak = gateway.peak_while(|| {
            client.envelope("sender@client.test", &[to]);
            let reply = match by_bdat {
                true => client.bdat(&message, &[8 * MIB as usize, 1, 300_001, usize::MAX]),
                false => client.data(&message),
            };
            let id = reply.message_id();
            gateway.wait_event("its delivery", |event| {
                event["event"] == "delivered" && event["message"] == *id
            });
        });
        let growth = peak.saturating_sub(before);
        println!("to {to}, BDAT {by_bdat}: {} KiB more", growth / 1024);
        if growth > GROWTH_MAX {
            wrong.push(format!("{to}, BDAT {by_bdat}: {} KiB more", growth / 1024));
        }
        if let Some(sink) = sink {
            let taken = sink.taken(WARM + if number < 4 { 1 } else { 2 });
            let last = taken.last().expect("one");
            assert_eq!(last.crc32c, crc, "{to}, BDAT {by_bdat}");
        }
    }
    for stored in gateway.maildir("hold.test", "user", 2) {
        assert!(stored.ends_with(&message), "changed on its way");
    }
    assert!(wrong.is_empty(), "{wrong:?}");
    gateway.terminate();
}

/// What one message may cost, whatever its size.
const GROWTH_MAX: u64 = MIB;

/// A message of that many octets whose lines begin with dots, each different.
fn message_of(octets: usize) -> Vec<u8> {
    let mut message = b"Subject: large\r\n\r\n".to_vec();
    let mut number = 0;
    while message.len() + 74 < octets {
        message.extend_from_slice(format!(".{number:>069}\r\n").as_bytes());
        number += 1;
    }
    message.resize(octets - 2, b'e');
    message.extend_from_slice(b"\r\n");
    message
}
