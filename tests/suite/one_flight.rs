//! Deliveries in one flight, through the real gateway to a next hop that is far away: what
//! overlaps, what waits, and that nobody is bounced or doubled for it.
//!
//! Order and counts are judged, never time.

use std::collections::HashMap;
use std::time::Duration;

use crate::client::Client;
use crate::gateway::Gateway;
use crate::sink::{Manners, Sink};

/// One connection to the next hop, so that what overlaps overlaps there.
fn gateway(sink: &Sink) -> Gateway {
    Gateway::start(&format!(
        r#"
workers = 1
[[listener]]
address = "127.0.0.1:0"
service = "relay"
[[route]]
recipient = "*"
to = "smtp://{}"
[delivery]
connections_per_site = 1
"#,
        sink.address()
    ))
}

fn far_away(chunking: bool) -> Manners {
    Manners { chunking, latency: Duration::from_millis(5), ..Manners::default() }
}

/// Sends a message to each of `names` while the next hop holds its replies, so that all of them
/// are waiting when the first one is over.
fn send_all(gateway: &Gateway, sink: &Sink, names: &[&str]) {
    sink.hold(true);
    let mut client = Client::hello(gateway.smtp(0));
    for name in names {
        client.envelope("", &[&format!("{name}@far.test")]);
        let message = format!("Subject: {name}\r\n\r\n{name}\r\n");
        client.data(message.as_bytes()).expect("250");
    }
    sink.hold(false);
}

const NAMES: [&str; 12] = [
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve",
];

#[test]
fn after_one_message_four_are_under_way_at_a_time_and_stay_in_order() {
    let sink = Sink::start(far_away(true));
    let gateway = gateway(&sink);
    send_all(&gateway, &sink, &NAMES);
    let taken = sink.taken(NAMES.len());
    let to: Vec<&str> = taken.iter().map(|taken| taken.to[0].as_str()).collect();
    assert_eq!(to, NAMES.map(|name| format!("{name}@far.test")));
    for (taken, name) in taken.iter().zip(NAMES) {
        let end = format!("\r\n\r\n{name}\r\n");
        assert!(taken.by_bdat && taken.message.ends_with(end.as_bytes()), "{name}");
    }
    assert_eq!(sink.connections(), 1);
    assert_eq!(sink.most_under_way(), 4, "no fewer and no more");
    let journal = sink.journal().join(" ");
    let first = "EHLO MAIL RCPT BDAT MAIL RCPT BDAT RSET MAIL RCPT BDAT";
    assert!(journal.starts_with(first), "{journal}");
}

#[test]
fn without_chunking_one_message_follows_the_other() {
    let sink = Sink::start(far_away(false));
    let gateway = gateway(&sink);
    send_all(&gateway, &sink, &NAMES);
    assert_eq!(sink.taken(NAMES.len()).len(), NAMES.len());
    assert_eq!(sink.most_under_way(), 1);
    assert!(!sink.journal().contains(&"RSET".to_string()));
}

/// The next hop's 503 to a body for nobody says nothing about it, and nothing about the next one.
#[test]
fn a_refused_message_in_the_middle_fails_alone() {
    let replies = [("three", "550 5.1.1 No such user"), ("five", "451 4.7.1 Greylisted")];
    let replies: HashMap<_, _> = replies
        .iter()
        .map(|(name, reply)| (format!("{name}@far.test"), reply.to_string()))
        .collect();
    let sink = Sink::start(Manners { replies, ..far_away(true) });
    let gateway = gateway(&sink);
    send_all(&gateway, &sink, &NAMES);
    let taken = sink.taken(NAMES.len() - 2);
    let to: Vec<String> = taken.iter().map(|taken| taken.to[0].clone()).collect();
    let left = NAMES.iter().filter(|name| !["three", "five"].contains(name));
    assert_eq!(to, left.map(|name| format!("{name}@far.test")).collect::<Vec<_>>());
    assert_eq!(sink.most_under_way(), 4);
    for (event, name, reply) in [("bounced", "three", "550"), ("deferred", "five", "451")] {
        let told = gateway.wait_event(event, |told| told["event"] == event);
        assert_eq!(told["to"].to_string().matches(name).count(), 1, "{told}");
        assert!(told["reply"].as_str().is_some_and(|text| text.starts_with(reply)), "{told}");
    }
    let count = |event| gateway.events().iter().filter(|told| told["event"] == event).count();
    assert_eq!((count("bounced"), count("deferred")), (1, 1));
}

/// A body that does not fit the windows goes while replies come back, and holds up nobody's.
#[test]
fn a_large_message_between_small_ones_waits_its_turn() {
    let sink = Sink::start(far_away(true));
    let gateway = gateway(&sink);
    sink.hold(true);
    let mut client = Client::hello(gateway.smtp(0));
    let large = [b"Subject: large\r\n\r\n".to_vec(), b"x".repeat(70).repeat(1)].concat();
    let large = [large, [b"\r\n".to_vec(), b"y".repeat(70)].concat().repeat(20_000)].concat();
    let large = [large, b"\r\n".to_vec()].concat();
    for number in 0..9 {
        client.envelope("", &[&format!("user{number}@far.test")]);
        if number == 4 {
            client.data(&large).expect("250");
        } else {
            client.data(b"Subject: small\r\n\r\nsmall\r\n").expect("250");
        }
    }
    sink.hold(false);
    let taken = sink.taken(9);
    for (number, taken) in taken.iter().enumerate() {
        assert_eq!(taken.to, [format!("user{number}@far.test")]);
        assert_eq!(taken.octets > large.len(), number == 4);
        assert_eq!(taken.message.ends_with(&large), number == 4);
    }
    assert_eq!(sink.connections(), 1);
}
