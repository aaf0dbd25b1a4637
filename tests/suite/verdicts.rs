//! What becomes of mail that the edge filter does not simply let through, and how an operator finds
//! out why.

use serde_json::Value;

use crate::client::Client;
use crate::gateway::{CHECKS_WITHOUT_DNS, Gateway, files_in};
use crate::overload::ask;

const MESSAGE: &[u8] = b"Subject: judged\r\n\r\nSo or so.\r\n";

const CONFIG: &str = r#"
[[listener]]
address = "127.0.0.1:0"
service = "mx"
[relay]
networks = []
[domains]
accept = ["here.test", "held.test"]
[[route]]
recipient = "*@held.test"
to = "hold"
[[route]]
recipient = "*"
to = "maildir:{dir}/mail"
[edge]
greeting_wait = "0s"
tarpit = "0s"
checks.pipelining = "off"
checks.helo_bare = "{action}"
checks.helo_forged = "off"
checks.helo_literal = "off"
"#;

/// The configuration of a filter that does this to clients that are not called by a full name.
fn config(action: &str) -> String {
    format!("{}{CHECKS_WITHOUT_DNS}", CONFIG.replace("{action}", action))
}

/// A gateway whose filter does this to clients that are not called by a full name.
fn start(action: &str) -> Gateway {
    Gateway::start(&config(action))
}

/// A client that is not.
fn client(gateway: &Gateway) -> Client {
    let mut client = Client::connect(gateway.smtp(0));
    client.command("EHLO bare").expect("250");
    client
}

#[test]
fn tagged_mail_says_why_and_so_does_the_gateway() {
    let mut gateway = start("tag");
    let mut client = client(&gateway);
    client.envelope("a@there.test", &["b@here.test"]);
    let id = client.data(MESSAGE).message_id();
    let delivered = gateway.maildir("here.test", "b", 1).remove(0);
    let delivered = String::from_utf8(delivered).expect("text");
    let field = delivered.find("X-Mailrace-Verdict: ").expect(&delivered);
    assert!(field > delivered.find("Received: ").expect(&delivered), "{delivered}");
    assert!(field < delivered.find("Subject: ").expect(&delivered), "{delivered}");

    let event = gateway.wait_event("its verdict", |event| event["event"] == "verdict");
    assert_eq!((&event["action"], &event["message"]), (&"tag".into(), &(&*id).into()), "{event}");
    let session = event["session"].as_str().expect("an id");
    for name in [&id, session] {
        let why = gateway.said(&["why", name]);
        for part in [session, &id, "a@there.test", "b@here.test: accepted", "verdict   tag"] {
            assert!(why.contains(part), "{part}:\n{why}");
        }
    }
    let unknown = gateway.command(&["why", "0000000000001"]);
    assert_eq!(unknown.status.code(), Some(1));
    let told = String::from_utf8_lossy(&unknown.stderr);
    assert!(told.contains("`verdict` event"), "{told}");
    gateway.terminate();
}

#[test]
fn quarantined_mail_stays_so_through_a_crash_until_it_is_released() {
    let mut gateway = start("quarantine");
    let mut client = client(&gateway);
    client.envelope("a@there.test", &["b@here.test"]);
    client.command("RCPT TO:<c@held.test> ORCPT=rfc822;team@held.test").expect("250");
    let first = client.data(MESSAGE).message_id();
    let mut send = |to: &[&str]| {
        client.envelope("a@there.test", to);
        client.data(MESSAGE).message_id()
    };
    let second = send(&["d@here.test"]);
    // The postmaster hears whatever comes for him.
    let third = send(&["e@here.test", "postmaster@here.test"]);
    gateway.maildir("here.test", "postmaster", 1);
    let config = std::fs::read_to_string(gateway.config_file()).expect("as it was started");
    for _ in 0..2 {
        gateway.wait_until("all quarantined", || {
            let count = gateway.said_json(&["queue", "count", "--state", "quarantined"]);
            let found = (&count["messages"], &count["recipients"], &count["by_state"]["held"]);
            (found == (&3.into(), &4.into(), &0.into())).then_some(())
        });
        let list = gateway.said(&["queue", "list", "--state", "quarantined"]);
        assert!(list.contains(&first) && list.contains("quarantine: score 0: "), "{list}");
        let shown = gateway.said(&["queue", "show", &first]);
        assert!(shown.contains("state     quarantined\n"), "{shown}");
        assert!(shown.contains("to        c@held.test (team@held.test)\n"), "{shown}");
        assert!(shown.contains("verdict   quarantine, score 0"), "{shown}");
        let why = gateway.said(&["why", &first]);
        assert!(why.contains("kept back until an operator releases it"), "{why}");
        gateway.kill9();
        gateway = gateway.restart(&config);
    }
    gateway.said(&["queue", "release", &first]);
    gateway.said(&["queue", "delete", "--state", "quarantined", "--to", "e@here.test"]);
    // Past a route that holds, too.
    for (domain, local) in [("here.test", "b"), ("held.test", "c")] {
        let released = gateway.maildir(domain, local, 1).remove(0);
        assert!(released.ends_with(MESSAGE));
    }
    gateway.wait_until("one is left", || {
        let count = gateway.said_json(&["queue", "count"]);
        (count["by_state"]["quarantined"] == 1 && count["messages"] == 1).then_some(())
    });
    gateway.kill9();
    let mut gateway = gateway.restart(&config);
    let list = gateway.said(&["queue", "list"]);
    assert!(list.contains(&second) && !list.contains(&first) && !list.contains(&third), "{list}");
    gateway.terminate();
}

/// At its end the sender hears nothing: he is forged more often than not.
#[test]
fn quarantined_mail_ends_with_its_lifetime_and_without_a_notice() {
    let config = format!("{}[queue]\nlifetime = \"2s\"\nretry = [\"1s\"]\n", config("quarantine"));
    let mut gateway = Gateway::start(&config);
    let mut client = client(&gateway);
    client.envelope("a@here.test", &["b@here.test"]);
    let id = client.data(MESSAGE).message_id();
    let ended = gateway.wait_event("its end", |event| event["event"] == "expired");
    assert_eq!((&ended["message"], &ended["reason"]), (&(&*id).into(), &"quarantined".into()));
    // A notice would be in the queue before its cause leaves it.
    gateway.wait_until("nothing in the queue", || {
        (gateway.said_json(&["queue", "count"])["messages"] == 0).then_some(())
    });
    let kinds: Vec<Value> = gateway.events().iter().map(|event| event["event"].clone()).collect();
    assert!(!kinds.iter().any(|kind| kind == "delivered" || kind == "bounced"), "{kinds:?}");
    gateway.kill9();
    let mut gateway = gateway.restart(&config);
    assert_eq!(gateway.said_json(&["queue", "count"])["messages"], 0);
    assert!(files_in(&gateway.dir().join("mail/here.test")).is_empty());
    gateway.terminate();
}

/// Who was refused has no message: his session tells why, and so do the events where they go to a
/// file, after a restart too.
#[test]
fn a_refused_session_is_explained_by_its_name() {
    let config = config("reject");
    let config = format!("{config}[log]\nevents = \"{{dir}}/events\"\n");
    let mut gateway = Gateway::start(&config);
    let mut client = client(&gateway);
    client.command("MAIL FROM:<a@there.test>").expect("250");
    client.command("RCPT TO:<b@here.test>").expect("554 5.7.1");
    client.command("RCPT TO:<c@elsewhere.test>").expect("550 5.7.1");
    client.command("QUIT").expect("221");
    let session = gateway.wait_until("its verdict in the file", || {
        let events = std::fs::read_to_string(gateway.dir().join("events")).ok()?;
        let line = events.lines().find(|line| line.contains("\"event\":\"verdict\""))?;
        let event: Value = serde_json::from_str(line).ok()?;
        Some(event["session"].as_str()?.to_owned())
    });
    let why = gateway.said(&["why", &session]);
    for part in ["b@here.test: 554 5.7.1", "c@elsewhere.test: 550 5.7.1", "verdict   reject"] {
        assert!(why.contains(part), "{part}:\n{why}");
    }
    assert!(why.contains("refused at its recipients\n"), "{why}");
    let page = ask(&gateway, "/metrics");
    for line in [
        "mailrace_verdicts_total{action=\"reject\"} 1\n",
        "mailrace_findings_total{check=\"helo_bare\"} 1\n",
    ] {
        assert!(page.contains(line), "{line}{page}");
    }
    gateway.terminate();
    let why = gateway.said(&["why", &session]);
    assert!(why.contains("causes    helo_bare=reject"), "{why}");
}
