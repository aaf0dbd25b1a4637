//! ETRN from one of our networks, with mail waiting on every worker.

use serde_json::Value;

use crate::client::Client;
use crate::gateway::Gateway;
use crate::sink::{Manners, Sink};

/// One next hop for two domains, one that is down, and one for everybody else.
fn start(one: &Sink, both: &Sink, all: &Sink) -> Gateway {
    Gateway::start(&format!(
        r#"
workers = 2
[[listener]]
address = "127.0.0.1:0"
service = "relay"
[[route]]
recipient = "*@one.test"
to = "smtp://{}"
[[route]]
recipient = "*@two.test"
to = "smtp://{}"
[[route]]
recipient = "*@three.test"
to = "smtp://{}"
[[route]]
recipient = "*@down.test"
to = "smtp://127.0.0.1:1"
[[route]]
recipient = "*"
to = "smtp://{}"
[queue]
retry = ["1h"]
"#,
        one.address(),
        both.address(),
        both.address(),
        all.address()
    ))
}

fn send(gateway: &Gateway, to: &str) -> String {
    let mut client = Client::hello(gateway.smtp(0));
    client.envelope("sender@home.test", &[to]);
    client.data(b"Subject: waits\r\n\r\nFor a call.\r\n").message_id()
}

#[test]
fn a_domain_calls_for_its_mail() {
    let sinks: [Sink; 3] = std::array::from_fn(|_| Sink::start(Manners::default()));
    let [one, both, all] = &sinks;
    sinks.iter().for_each(|sink| sink.set_busy(true));
    let mut gateway = start(one, both, all);
    let is_deferred = |event: &Value| event["event"] == "deferred";
    // Each from a connection of its own, so that both workers have some of them.
    for to in ["a@one.test", "b@one.test", "c@one.test", "d@one.test", "a@two.test", "a@x.test"] {
        let id = send(&gateway, to);
        gateway.wait_event("a deferral", |event| is_deferred(event) && event["message"] == *id);
    }
    send(&gateway, "a@down.test");
    gateway.wait_event("a dead site", |event| event["reason"] == "site_unreachable");
    sinks.iter().for_each(|sink| sink.set_busy(false));

    let mut client = Client::connect(gateway.smtp(0));
    assert!(client.command("EHLO client.test").expect("250").0.contains("250-ETRN\n"));
    client.command("ETRN #one.test").expect("459 4.5.4");
    client.command("ETRN one").expect("252");
    client.command("ETRN One.Test").expect("253 2.0.0 4 pending messages started");
    assert_eq!(one.taken(4).len(), 4);
    assert_eq!((both.count(), all.count()), (0, 1));
    client.command("ETRN one.test").expect("251");
    // Its mail shares a next hop with another domain's, so nobody can tell the number.
    client.command("ETRN three.test").expect("252");
    both.taken(1);
    client.command("ETRN down.test").expect("253 2.0.0 1 pending messages started");
    let again = |event: &Value| event["reason"] == "site_unreachable" && event["attempts"] == 2;
    gateway.wait_event("another attempt at the dead site", again);
    client.command("QUIT").expect("221");
    gateway.terminate();
}
