//! How an `mx` listener treats those it does not know: the wait at the greeting, being told to come
//! again, the wait for refused recipients, the rates of new connections; and that it remembers.

use std::fs;
use std::net::IpAddr;

use serde_json::Value;

use crate::client::{Client, Reply};
use crate::gateway::{CHECKS_WITHOUT_DNS, Gateway, PATIENCE};

const MX: &str = r#"
[[listener]]
address = "127.0.0.1:0"
service = "mx"
[relay]
networks = ["127.0.0.1/32"]
[domains]
accept = ["ours.test"]
[[route]]
recipient = "*"
to = "discard"
"#;

const EDGE: &str = r#"
[edge]
deadline = "100ms"
thresholds = { reject = 9 }
"#;

/// An `mx` listener and its filter.
fn config(more: &str) -> String {
    format!("{MX}{EDGE}{CHECKS_WITHOUT_DNS}{more}")
}

fn start(more: &str) -> Gateway {
    Gateway::start(&config(more))
}

/// The client's address: a network of its own for each number.
fn stranger(number: u8) -> Option<IpAddr> {
    Some(IpAddr::from([127, 0, number, 2]))
}

fn connect(gateway: &Gateway, number: u8) -> (Client, Reply) {
    let mut client = Client::connect_silently(gateway.smtp(0), stranger(number));
    let greeting = client.reply();
    (client, greeting)
}

/// MAIL and one RCPT of a session that has said EHLO; the reply to RCPT.
fn envelope(client: &mut Client, from: &str, to: &str) -> Reply {
    client.command(&format!("MAIL FROM:<{from}>")).expect("250");
    client.command(&format!("RCPT TO:<{to}>"))
}

fn send(gateway: &Gateway, number: u8) -> Reply {
    let (mut client, greeting) = connect(gateway, number);
    client.command("EHLO client.test").expect("250");
    envelope(&mut client, "a@client.test", "b@ours.test").expect("250");
    client.data(b"Subject: here I am\r\n\r\n").message_id();
    client.command("QUIT").expect("221");
    greeting
}

#[test]
fn who_talks_into_the_greeting_is_refused_and_obeyed_in_order() {
    let mut gateway = start("greeting_wait = \"1m\"\n");
    let mut client = Client::connect_silently(gateway.smtp(0), stranger(1));
    assert!(client.first_line().starts_with("220-"), "and no more for a minute");
    client.send(b"EHLO client.test\r\nMAIL FROM:<a@client.test>\r\n");
    assert_eq!(client.reply().expect("220").0.lines().count(), 2);
    client.reply().expect("250");
    client.reply().expect("250");
    client.command("RCPT TO:<b@ours.test>").expect("554 5.7.1");
    client.command("RCPT TO:<postmaster@ours.test>").expect("250");
    // One that leaves in the middle has said nothing.
    drop(Client::connect_silently(gateway.smtp(0), stranger(2)));
    let end = gateway.wait_event("an end", |e| {
        e["event"] == "disconnect" && e["peer"].as_str().is_some_and(|p| p.starts_with("127.0.2."))
    });
    assert_eq!(end["reason"], "closed_by_peer");
    // Nor has an exempt one to wait.
    Client::hello(gateway.smtp(0));
    drop(client);
    gateway.terminate();
}

#[test]
fn who_talks_into_the_greeting_can_be_turned_away_there() {
    let edge = "greeting_wait = \"1m\"\nrefuse_at = \"greeting\"\n";
    let mut gateway = start(edge);
    let mut client = Client::connect_silently(gateway.smtp(0), stranger(1));
    assert!(client.first_line().starts_with("220-"));
    client.send(b"EHLO client.test\r\n");
    let greeting = client.reply();
    assert!(greeting.0.lines().last().is_some_and(|l| l.starts_with("554 5.7.1")), "{greeting:?}");
    client.expect_end();
    gateway.terminate();
}

#[test]
fn good_senders_wait_once_also_after_a_restart() {
    let config = config("greeting_wait = \"200ms\"\n");
    let mut gateway = Gateway::start(&config);
    let lines = |greeting: Reply| greeting.expect("220").0.lines().count();
    assert_eq!(lines(send(&gateway, 1)), 2, "a stranger");
    assert_eq!(lines(send(&gateway, 1)), 1, "a good sender");
    assert_eq!(lines(send(&gateway, 2)), 2, "another stranger");
    gateway.terminate();
    let mut gateway = gateway.restart(&config);
    assert_eq!(lines(send(&gateway, 1)), 1, "known still");
    gateway.terminate();

    let file = gateway.dir().join("data/state/senders");
    let mut octets = fs::read(&file).expect("it was written");
    let middle = octets.len() / 2;
    octets[middle] ^= 1;
    fs::write(&file, octets).expect("it is ours");
    let mut gateway = gateway.restart(&config);
    assert!(gateway.errors().contains("begins anew"), "{}", gateway.errors());
    assert_eq!(lines(send(&gateway, 1)), 2, "forgotten, and no more than that");
    gateway.terminate();
}

#[test]
fn strangers_come_again_and_are_known_from_then_on() {
    let edge = "greeting_wait = \"0s\"\n[edge.greylist]\nfrom = 0\ndelay = \"1s\"\n";
    let config = config(edge);
    let mut gateway = Gateway::start(&config);
    let hello = |gateway: &Gateway, number| {
        let (mut client, _) = connect(gateway, number);
        client.command("EHLO client.test").expect("250");
        client
    };
    let mut client = hello(&gateway, 1);
    // As many as there may be errors, and more: being new is none.
    client.command("MAIL FROM:<a@client.test>").expect("250");
    for number in 0..30 {
        client.command(&format!("RCPT TO:<b{number}@ours.test>")).expect("451 4.7.1");
    }
    client.command("RCPT TO:<postmaster@ours.test>").expect("250");
    client.command("RSET").expect("250");
    gateway.wait_until("an end of the delay", || {
        let reply = envelope(&mut client, "a@client.test", "b7@ours.test");
        client.command("RSET").expect("250");
        reply.0.starts_with("250").then_some(())
    });
    let known = |client: &mut Client| {
        let reply = envelope(client, "c@client.test", "new@ours.test");
        client.command("RSET").expect("250");
        reply
    };
    known(&mut client).expect("250");
    known(&mut hello(&gateway, 2)).expect("451 4.7.1");
    let refused = gateway.wait_event("a stranger", |e| e["reason"] == "greylisted");
    assert_eq!(refused["to"][0], "b0@ours.test");
    drop(client);
    gateway.terminate();
    let mut gateway = gateway.restart(&config);
    known(&mut hello(&gateway, 1)).expect("250");
    gateway.terminate();
}

#[test]
fn who_pipelines_before_it_may_is_refused() {
    let mut gateway = start("greeting_wait = \"0s\"\ntarpit = \"0s\"\n");
    let (mut client, _) = connect(&gateway, 1);
    client.send(b"EHLO c\r\nMAIL FROM:<a@client.test>\r\nRCPT TO:<b@ours.test>\r\n");
    let replies = ["250", "250", "554 5.7.1"].map(|code| client.reply().expect(code));
    assert!(replies[0].0.contains("PIPELINING"));
    drop(client);
    let (mut client, _) = connect(&gateway, 1);
    client.command("HELO c").expect("250");
    client.send(b"MAIL FROM:<a@client.test>\r\nRCPT TO:<b@ours.test>\r\n");
    for code in ["250", "554 5.7.1"] {
        client.reply().expect(code);
    }
    drop(client);
    // It is told also of one that leaves before there is anything to refuse.
    let (mut client, _) = connect(&gateway, 3);
    client.send(b"EHLO c\r\nQUIT\r\n");
    client.reply().expect("250");
    client.reply().expect("221");
    let of_it = |e: &Value| e["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.3."));
    let verdict = gateway.wait_event("it is told", |e| e["event"] == "verdict" && of_it(e));
    assert_eq!(verdict["action"], "reject");
    drop(client);
    // After the reply to EHLO it may.
    let (mut client, _) = connect(&gateway, 1);
    client.command("EHLO c").expect("250");
    client.send(b"MAIL FROM:<a@client.test>\r\nRCPT TO:<b@ours.test>\r\nRSET\r\nQUIT\r\n");
    for code in ["250", "250", "250", "221"] {
        client.reply().expect(code);
    }
    gateway.terminate();
}

/// Who is made to wait keeps nobody from stopping.
#[test]
fn a_stop_ends_every_wait() {
    let edge = "greeting_wait = \"1m\"\ntarpit = \"1m\"\n";
    let mut gateway = start(edge);
    let mut silent = Client::connect_silently(gateway.smtp(0), stranger(1));
    assert!(silent.first_line().starts_with("220-"));
    let mut trapped = Client::connect_silently(gateway.smtp(0), stranger(2));
    assert!(trapped.first_line().starts_with("220-"));
    trapped.send(b"EHLO c\r\nMAIL FROM:<a@client.test>\r\nRCPT TO:<b@ours.test>\r\n");
    trapped.reply().expect("220");
    trapped.reply().expect("250");
    trapped.reply().expect("250");
    gateway.ask_to_stop();
    let last = silent.reply().0;
    assert!(last.ends_with("421 4.3.2 Service is stopping, try later"), "{last}");
    trapped.reply().expect("554 5.7.1");
    drop(trapped);
    gateway.wait_for_end(PATIENCE);
}

#[test]
fn new_connections_come_no_faster_than_they_may() {
    let limits = "[limits]\nconnections_per_address = \"2/1h\"\nconnections_per_network = \"3/1h\"\n\
                  connections = \"5/1h\"\nsessions_per_network = 1\n";
    let mut gateway = start(limits);
    let from = |host: u8, network: u8| {
        let source = Some(IpAddr::from([127, 0, network, host]));
        let mut client = Client::connect_silently(gateway.smtp(0), source);
        let reply = client.reply();
        (client, reply)
    };
    let (first, greeting) = from(2, 1);
    greeting.expect("220");
    let reason = |reason: &str| {
        gateway.wait_event(reason, |e| e["event"] == "refused" && e["reason"] == reason);
    };
    from(3, 1).1.expect("421 4.7.0");
    reason("too_many_sessions_from_network");
    drop(first);
    gateway.wait_event("its end", |e| e["event"] == "disconnect");
    from(2, 1).1.expect("220");
    from(2, 1).1.expect("421 4.7.0");
    reason("too_many_connections_from_address");
    from(4, 1).1.expect("421 4.7.0");
    reason("too_many_connections_from_network");
    from(2, 2).1.expect("220");
    from(2, 3).1.expect("220");
    from(2, 4).1.expect("421 4.3.2");
    reason("too_many_connections");
    // Our own come as they like.
    for _ in 0..3 {
        Client::connect(gateway.smtp(0));
    }
    gateway.terminate();
}

/// Each transaction costs look-ups, so one that comes to nothing again and again ends the session.
#[test]
fn who_begins_a_hundred_transactions_for_nothing_is_cut_off() {
    let mut gateway = start("greeting_wait = \"0s\"\n");
    let (mut client, _) = connect(&gateway, 30);
    client.command("EHLO c.test").expect("250");
    for _ in 0..100 {
        envelope(&mut client, "a@b.test", "user@ours.test").expect("250");
        client.command("RSET").expect("250");
    }
    // The sender alone costs nothing.
    client.command("MAIL FROM:<a@b.test>").expect("250");
    client.command("RSET").expect("250");
    envelope(&mut client, "a@b.test", "user@ours.test").expect("421");
    gateway.terminate();
}

/// What is found once a recipient has been taken counts for its message all the same.
#[test]
fn who_is_found_out_after_a_recipient_is_refused_at_the_end() {
    let mut gateway = start("greeting_wait = \"0s\"\n");
    let (mut client, _) = connect(&gateway, 31);
    client.command("HELO c.test").expect("250");
    envelope(&mut client, "a@b.test", "user@ours.test").expect("250");
    client.send(b"NOOP\r\nRCPT TO:<postmaster@ours.test>\r\n");
    client.reply().expect("250");
    client.reply().expect("250");
    client.command("DATA").expect("354");
    client.send(b"Subject: x\r\n\r\nx\r\n.\r\n");
    client.reply().expect("554");
    drop(client);
    gateway.terminate();
}
