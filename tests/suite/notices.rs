//! What originators hear: of success, delay and failure, through the real binary, and what
//! `soft_bounce` and `verp` make of it.

use std::collections::HashMap;
use std::time::Duration;

use crate::client::Client;
use crate::gateway::Gateway;
use crate::sink::{Manners, Sink};

/// Routes to sinks at `{sink0}`, `{sink1}`, ..; mail for originators goes into Maildirs.
const CONFIG: &str = r#"
[[listener]]
address = "127.0.0.1:0"
service = "relay"
[relay]
networks = ["127.0.0.0/8"]
[queue]
retry = ["1s"]
delay_notice = "2s"
[[route]]
recipient = "*@plain.test"
to = "smtp://{sink0}"
[[route]]
recipient = "*@dsn.test"
to = "smtp://{sink1}"
[[route]]
recipient = "*@each.test"
to = "smtp://{sink0}"
verp = true
[[route]]
recipient = "*"
to = "maildir:{dir}/mail"
"#;

fn config(sinks: &[&Sink]) -> String {
    sinks.iter().enumerate().fold(CONFIG.to_owned(), |text, (number, sink)| {
        text.replace(&format!("{{sink{number}}}"), &sink.address().to_string())
    })
}

/// Sends a message to recipients, each with what follows its path.
fn send(gateway: &Gateway, from: &str, recipients: &[&str]) {
    let mut client = Client::hello(gateway.smtp(0));
    client.command(&format!("MAIL FROM:<{from}> RET=FULL ENVID=QQ314")).expect("250");
    for recipient in recipients {
        client.command(&format!("RCPT TO:{recipient}")).expect("250");
    }
    client.command("DATA").expect("354");
    client.send(b"Subject: hello\r\n\r\nthe body\r\n.\r\n");
    client.reply().expect("250");
}

/// The notices in an originator's Maildir, by recipient and action, once there are so many.
fn notices(gateway: &Gateway, count: usize) -> Vec<(String, String)> {
    let mails = gateway.maildir("home.test", "s", count);
    let mut told: Vec<_> = mails.iter().flat_map(|mail| named(mail)).collect();
    told.sort();
    told
}

fn named(mail: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(mail);
    assert!(text.contains("Return-Path: <>"), "a notice comes from nobody: {text}");
    assert!(
        text.contains("\r\nOriginal-Envelope-Id: QQ314\r\n")
            || text.contains("Original-Envelope-Id: QQ314")
    );
    let fields = |name: &'static str| {
        text.lines().filter_map(move |line| line.strip_prefix(name)).map(str::to_owned)
    };
    fields("Final-Recipient: rfc822; ").zip(fields("Action: ")).collect()
}

fn pair(address: &str, action: &str) -> (String, String) {
    (address.to_owned(), action.to_owned())
}

/// RFC 3461 section 5.2: who tells of success depends on what the next hop can do.
#[test]
fn success_is_told_where_nobody_behind_us_will() {
    let plain = Sink::start(Manners::default());
    let with_dsn = Sink::start(Manners { dsn: true, ..Manners::default() });
    let gateway = Gateway::start(&config(&[&plain, &with_dsn]));
    let recipients = [
        "<here@home.test> NOTIFY=SUCCESS",
        "<a@plain.test> NOTIFY=SUCCESS,FAILURE",
        "<quiet@plain.test> NOTIFY=FAILURE",
        "<b@dsn.test> NOTIFY=SUCCESS ORCPT=rfc822;first@dsn.test",
    ];
    send(&gateway, "s@home.test", &recipients);
    assert_eq!(
        notices(&gateway, 2),
        [pair("a@plain.test", "relayed"), pair("here@home.test", "delivered")]
    );
    let taken = with_dsn.taken(1);
    assert!(taken[0].parameters.iter().any(|line| line.contains("NOTIFY=SUCCESS")), "{taken:?}");
    assert!(taken[0].parameters.iter().any(|line| line.contains("ENVID=QQ314")), "{taken:?}");
    assert!(plain.taken(1)[0].parameters.iter().all(|line| !line.contains("NOTIFY")));
}

#[test]
fn a_delay_is_told_once_in_two_lives() {
    let sink = Sink::start(Manners::default());
    sink.set_busy(true);
    let config = config(&[&sink, &sink]);
    let mut gateway = Gateway::start(&config);
    send(&gateway, "s@home.test", &["<a@plain.test>", "<never@plain.test> NOTIFY=NEVER"]);
    assert_eq!(notices(&gateway, 1), [pair("a@plain.test", "delayed")]);
    let delayed = gateway.wait_event("the delay", |event| event["event"] == "delayed");
    assert_eq!(delayed["to"].as_array().map(Vec::len), Some(2));
    gateway.terminate();
    let gateway = gateway.restart(&config);
    // Two more attempts, each of them late.
    let tries = |gateway: &Gateway| {
        let is_retry = |event: &&serde_json::Value| event["event"] == "deferred";
        gateway.events().iter().filter(is_retry).count()
    };
    gateway.wait_until("two more attempts", || (tries(&gateway) >= 2).then_some(()));
    sink.set_busy(false);
    assert_eq!(sink.taken(1)[0].to, ["a@plain.test", "never@plain.test"]);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(notices(&gateway, 1), [pair("a@plain.test", "delayed")]);
}

/// A dead next hop refuses no message: what tells of the delay is the wait for its site.
#[test]
fn mail_for_a_site_that_does_not_answer_is_told_of_too() {
    let sink = Sink::start(Manners::default());
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = nobody.local_addr().expect("bound").to_string();
    drop(nobody);
    let config = config(&[&sink]).replace("{sink1}", &address);
    let gateway = Gateway::start(&config);
    send(&gateway, "s@home.test", &["<a@dsn.test>", "<here@home.test>"]);
    send(&gateway, "", &["<b@dsn.test>"]);
    assert_eq!(notices(&gateway, 1), [pair("a@dsn.test", "delayed")]);
}

#[test]
fn a_failure_is_told_with_what_the_next_hop_said() {
    let replies = HashMap::from([("a@plain.test".to_owned(), "550 5.1.1 Nobody".to_owned())]);
    let sink = Sink::start(Manners { replies, ..Manners::default() });
    let gateway = Gateway::start(&config(&[&sink, &sink]));
    send(&gateway, "s@home.test", &["<a@plain.test>", "<b@plain.test>"]);
    assert_eq!(notices(&gateway, 1), [pair("a@plain.test", "failed")]);
    let mail = gateway.maildir("home.test", "s", 1).remove(0);
    let text = String::from_utf8_lossy(&mail);
    for field in
        ["Status: 5.1.1", "Remote-MTA: dns; [127.0.0.1]", "smtp; 550 5.1.1 Nobody", "the body"]
    {
        assert!(text.contains(field), "{field}: {text}");
    }
}

#[test]
fn a_soft_bounce_stays_and_says_so() {
    let replies = HashMap::from([("a@plain.test".to_owned(), "550 5.1.1 Nobody".to_owned())]);
    let sink = Sink::start(Manners { replies, ..Manners::default() });
    let soft = format!("[delivery]\nsoft_bounce = true\n{}", config(&[&sink, &sink]));
    let gateway = Gateway::start(&soft);
    send(&gateway, "s@home.test", &["<a@plain.test>", "<b@plain.test>"]);
    let deferred = gateway.wait_event("the deferral", |event| event["event"] == "deferred");
    assert_eq!(deferred["soft_bounce"], true);
    assert_eq!(deferred["to"][0], "a@plain.test");
    assert_eq!(sink.taken(1)[0].to, ["b@plain.test"]);
    assert!(!gateway.events().iter().any(|event| event["event"] == "bounced"));
}

#[test]
fn with_verp_each_recipient_is_named_in_its_reverse_path() {
    let sink = Sink::start(Manners::default());
    let gateway = Gateway::start(&config(&[&sink, &sink]));
    send(&gateway, "list@home.test", &["<a@each.test>", "<b@each.test>", "<c@plain.test>"]);
    let mut taken: Vec<_> = sink.taken(3).into_iter().map(|mail| (mail.from, mail.to)).collect();
    taken.sort();
    let mail = |from: &str, to: &str| (from.to_owned(), vec![to.to_owned()]);
    assert_eq!(
        taken,
        [
            mail("list+a=each.test@home.test", "a@each.test"),
            mail("list+b=each.test@home.test", "b@each.test"),
            mail("list@home.test", "c@plain.test"),
        ]
    );
    send(&gateway, "", &["<a@each.test>"]);
    assert!(sink.taken(4).iter().any(|mail| mail.from.is_empty()), "a null path stays null");
}
