//! The queue as an operator meets it: held, deferred and dead mail, looked at and changed with
//! `mailrace queue` while the gateway runs; connections that are used again.

use std::collections::HashMap;

use serde_json::Value;

use crate::client::Client;
use crate::gateway::Gateway;
use crate::overload::ask;
use crate::sink::{Manners, Sink};

const MESSAGE: &[u8] = b"Subject: queued\r\n\r\nBy and by.\r\n";

/// A gateway that holds, one next hop that answers, and one that does not exist.
fn start(sink: &Sink) -> Gateway {
    let config = format!(
        r#"
[[listener]]
address = "127.0.0.1:0"
service = "relay"
[[route]]
recipient = "*@held.test"
to = "hold"
[[route]]
recipient = "*@nowhere.test"
to = "discard"
[[route]]
recipient = "*@dead.test"
to = "smtp://127.0.0.1:1"
[[route]]
recipient = "*@hop.test"
to = "smtp://{}"
[[route]]
recipient = "*"
to = "maildir:{{dir}}/mail"
[queue]
retry = ["1h"]
"#,
        sink.address()
    );
    Gateway::start(&config)
}

/// What a command of `mailrace queue` prints.
#[track_caller]
fn said(gateway: &Gateway, arguments: &[&str]) -> String {
    gateway.said(&[&["queue"], arguments].concat())
}

fn counts(gateway: &Gateway) -> (u64, u64) {
    let count = gateway.said_json(&["queue", "count"]);
    let figure = |name: &str| count[name].as_u64().expect("a number");
    (figure("messages"), figure("recipients"))
}

fn send(gateway: &Gateway, to: &[&str]) -> String {
    let mut client = Client::hello(gateway.smtp(0));
    client.envelope("sender@home.test", to);
    client.data(MESSAGE).message_id()
}

#[test]
fn held_mail_is_counted_shown_released_and_deleted() {
    let sink = Sink::start(Manners::default());
    let mut gateway = start(&sink);
    let first = send(&gateway, &["a@held.test", "b@held.test"]);
    let second = send(&gateway, &["c@held.test"]);
    gateway.wait_until("both in the queue", || (counts(&gateway) == (2, 3)).then_some(()));

    let shown = said(&gateway, &["show", &first]);
    for part in [first.as_str(), "a@held.test", "b@held.test", "sender@home.test", "held"] {
        assert!(shown.contains(part), "{part} is missing:\n{shown}");
    }
    said(&gateway, &["release", &first]);
    let released = gateway.maildir("held.test", "a", 1);
    assert!(released[0].ends_with(MESSAGE));
    gateway.maildir("held.test", "b", 1);
    // The file is there before the log says so.
    gateway.wait_until("both delivered", || (counts(&gateway) == (1, 1)).then_some(()));

    // What an operator was told outlives a crash.
    said(&gateway, &["delete", "--to", "c@held.test"]);
    assert_eq!(counts(&gateway), (0, 0));
    gateway.kill9();
    let config = std::fs::read_to_string(gateway.config_file()).expect("as it was started");
    let mut gateway = gateway.restart(&config);
    assert_eq!(counts(&gateway), (0, 0), "{second} is back");
    gateway.maildir("held.test", "a", 1);
    gateway.terminate();
}

#[test]
fn what_is_discarded_counts_as_delivered() {
    let sink = Sink::start(Manners::default());
    let mut gateway = start(&sink);
    let id = send(&gateway, &["a@nowhere.test"]);
    gateway.wait_event("its end", |event| {
        event["event"] == "delivered"
            && event["message"] == *id
            && event["to"][0] == "a@nowhere.test"
    });
    gateway.wait_until("nothing in the queue", || (counts(&gateway) == (0, 0)).then_some(()));
    gateway.terminate();
}

/// The next hop puts it off, and only the latest record of a wait counts.
#[test]
fn what_was_released_and_then_deferred_is_not_held_again() {
    let replies = HashMap::from([("a@held.test".into(), "450 4.2.1 Not now".into())]);
    let sink = Sink::start(Manners { replies, ..Manners::default() });
    let config = format!(
        r#"
[[listener]]
address = "127.0.0.1:0"
service = "relay"
[[route]]
recipient = "*@held.test"
to = "hold"
[[route]]
recipient = "*"
to = "smtp://{}"
[queue]
retry = ["1h"]
"#,
        sink.address()
    );
    let mut gateway = Gateway::start(&config);
    let held = send(&gateway, &["a@held.test"]);
    gateway.wait_until("it is held", || (counts(&gateway) == (1, 1)).then_some(()));
    said(&gateway, &["release", &held]);
    gateway.wait_event("the deferral", |event| {
        event["event"] == "deferred" && event["message"] == *held
    });
    let deferred = |gateway: &Gateway| said(gateway, &["list", "--state", "deferred"]);
    assert!(deferred(&gateway).contains(&held));
    std::thread::sleep(std::time::Duration::from_millis(200));
    gateway.kill9();
    let config = std::fs::read_to_string(gateway.config_file()).expect("as it was started");
    let mut gateway = gateway.restart(&config);
    let listed = deferred(&gateway);
    assert!(listed.contains(&held) && listed.contains("450 4.2.1 Not now"), "{listed}");
    gateway.terminate();
}

#[test]
fn a_dead_site_says_why_and_a_retry_tries_it_at_once() {
    let replies = HashMap::from([("busy@hop.test".into(), "450 4.2.1 Not now".into())]);
    let sink = Sink::start(Manners { replies, ..Manners::default() });
    let mut gateway = start(&sink);
    let dead = send(&gateway, &["a@dead.test"]);
    let busy = send(&gateway, &["busy@hop.test"]);
    gateway.wait_event("the dead site", |event| event["reason"] == "site_unreachable");
    gateway.wait_event("the deferral", |event| {
        event["event"] == "deferred" && event["message"] == *busy
    });
    let listed = said(&gateway, &["list", "--state", "deferred"]);
    assert!(listed.contains(&dead) && listed.contains("refused"), "{listed}");
    assert!(listed.contains(&busy) && listed.contains("450 4.2.1 Not now"), "{listed}");

    let attempts = |gateway: &Gateway| {
        let is_attempt = |event: &&Value| event["event"] == "deferred" && event["message"] == *busy;
        gateway.events().iter().filter(is_attempt).count()
    };
    assert_eq!(attempts(&gateway), 1);
    said(&gateway, &["retry", &busy]);
    gateway.wait_until("a second attempt", || (attempts(&gateway) == 2).then_some(()));
    said(&gateway, &["delete", "--all"]);
    assert_eq!(counts(&gateway), (0, 0));
    gateway.terminate();
}

#[test]
fn connections_are_used_again() {
    let sink = Sink::start(Manners::default());
    let mut gateway = start(&sink);
    let mut client = Client::hello(gateway.smtp(0));
    for _ in 0..60 {
        client.envelope("sender@home.test", &["a@hop.test"]);
        client.data(MESSAGE).message_id();
    }
    sink.taken(60);
    assert!(sink.connections() <= 20, "{} connections for 60 messages", sink.connections());
    gateway.terminate();
}

#[test]
fn the_admin_interface_says_how_it_is() {
    let sink = Sink::start(Manners::default());
    let mut gateway = start(&sink);
    send(&gateway, &["a@held.test"]);
    assert!(ask(&gateway, "/health").starts_with("HTTP/1.1 200"));
    assert!(ask(&gateway, "/ready").starts_with("HTTP/1.1 200"));
    let metrics = ask(&gateway, "/metrics");
    assert!(metrics.contains("\nmailrace_messages_accepted_total 1\n"), "{metrics}");
    gateway.terminate();
    let said = gateway.command(&["queue", "count"]);
    assert_eq!(said.status.code(), Some(1));
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("is mailrace running"), "{said}");
}
