//! What a person is told, where no name has to be looked up.  Domains of every kind, against a
//! real name server, are in the suite.

use std::rc::Rc;
use std::time::Instant;

use super::*;
use crate::dns::{Answer, LookupError, Name, RecordType};

const CONFIG: &str = r#"
hostname = "gateway.test"
[[listener]]
address = "127.0.0.1:2525"
service = "relay"
[[listener]]
address = "127.0.0.2:25"
service = "mx"
[relay]
networks = ["192.0.2.0/24"]
[domains]
accept = ["ours.test"]
[[route]]
recipient = "gone@ours.test"
to = "reject:Moved away"
[[route]]
recipient = "*@hold.test"
to = "hold"
[[route]]
recipient = "*@null.test"
to = "discard"
[[route]]
recipient = "*@ours.test"
to = "maildir:/mail"
retry = ["1m"]
lifetime = "1h"
delay_notice = "off"
[[route]]
recipient = "*@hop.test"
to = "smtp://192.0.2.7:2526"
source = "192.0.2.99"
[[route]]
recipient = "*@local.test"
to = "smtp://localhost:2524"
verp = true
[[route]]
recipient = "*@[*]"
to = "mx"
"#;

/// Nobody answers.
struct Silence;

impl Lookup for Silence {
    async fn lookup(&self, _: &Name, _: RecordType) -> Rc<Answer> {
        let failure = LookupError::Temporary { why: "SERVFAIL".into() };
        Rc::new(Answer { result: Err(failure), authentic: false, expires: Instant::now() })
    }
}

fn ask(address: &str, from: Option<&str>) -> Findings {
    let config = Config::for_test(CONFIG);
    let servers = vec![SocketAddr::from(([192, 0, 2, 53], 53))];
    let ourselves = ourselves(&config);
    let inquirer = Inquirer { config: &config, servers, ourselves, resolver: Silence };
    runtime::run(inquirer.findings(address, from)).expect("an event loop")
}

/// The text, of which every line of `parts` must be a line.
#[track_caller]
fn tells(address: &str, from: Option<&str>, parts: &[&str], code: u8) {
    let found = ask(address, from);
    let text = Text(&found).to_string();
    for part in parts {
        assert!(text.lines().any(|line| line == *part), "{part}\nis not in\n{text}");
    }
    assert_eq!(found.verdict.exit_code(), code, "{text}");
    let last = text.lines().last().expect("a verdict");
    assert!(last.starts_with("verdict     it would "), "{text}");
    serde_json::to_string(&found).expect("all of it is JSON");
}

#[test]
fn every_kind_of_route_is_told() {
    tells(
        "User@Ours.test",
        None,
        &[
            "recipient   User@Ours.test",
            "taken by    127.0.0.1:2525 (relay), from 192.0.2.0/24",
            "            127.0.0.2:25 (mx), from anybody",
            "route       4 of 7: *@ours.test -> maildir:/mail/{domain}/{local}",
            "            not 1: gone@ours.test",
            "schedule    tried again every 1m; its sender not told before; returned after 1h",
            "maildir     /mail/ours.test/User",
            "verdict     it would go to /mail/ours.test/User now",
        ],
        0,
    );
    let refused = "verdict     it would be refused: 550 5.7.1 Moved away";
    tells(
        "gone@ours.test",
        None,
        &["route       1 of 7: gone@ours.test -> reject:Moved away", refused],
        1,
    );
    let held = "verdict     it would be accepted and held until `mailrace queue release`";
    tells("a@hold.test", None, &["            127.0.0.2:25 (mx), from nobody", held], 0);
    tells("a@null.test", None, &["verdict     it would be accepted and thrown away"], 0);
    tells(
        "a@elsewhere.test",
        None,
        &["verdict     it would be refused: 550 5.1.2 No route to this address"],
        1,
    );
}

#[test]
fn next_hops_without_the_dns() {
    tells(
        "a@hop.test",
        None,
        &[
            "source      192.0.2.99",
            "next hop    192.0.2.7, smtp, port 2526",
            "tried       192.0.2.7:2526  192.0.2.7",
            "verdict     it would go to 192.0.2.7 now",
        ],
        0,
    );
    tells(
        "a@local.test",
        None,
        &[
            "next hop    localhost, smtp, port 2524  ::1, 127.0.0.1",
            "site        smtp://localhost:2524",
            "            at most 20 connections, 100 messages on each, 4 at a time",
            "tried       [::1]:2524      localhost",
            "            127.0.0.1:2524  localhost",
            "verdict     it would go to localhost now",
        ],
        0,
    );
    tells(
        "a@[192.0.2.9]",
        None,
        &[
            "mx          [192.0.2.9] is an address: nothing is looked up",
            "tried       192.0.2.9:25  192.0.2.9",
        ],
        0,
    );
    let ours = "verdict     it would be accepted and come back with 5.4.6: mail for the domain loops back to this host (127.0.0.2)";
    tells("a@[127.0.0.2]", None, &[ours], 1);
}

#[test]
fn the_originator_is_told_as_the_next_hop_sees_it() {
    let seen = "            the next hop sees <list+a=local.test@s.test>";
    for from in ["list@s.test", "<list@s.test>"] {
        tells("a@local.test", Some(from), &["originator  <list@s.test>", seen], 0);
    }
    let notice = "            a notice: nobody is told if it is late or cannot be delivered";
    for from in ["<>", ""] {
        tells("a@local.test", Some(from), &["originator  <>", notice], 0);
    }
    // Not where the route does not ask for it.
    let found = ask("a@hold.test", Some("list@s.test"));
    assert_eq!(found.originator.and_then(|one| one.sent_as).as_deref(), Some("list@s.test"));
}

#[test]
fn what_is_wrong_with_an_address_is_told() {
    let bad = "verdict     it would be refused: 501 5.1.3 Syntax error in the recipient's address";
    tells("a b@ours.test", None, &["            the local part is malformed", bad], 1);
    tells("ours.test", None, &["            the address has no domain", bad], 1);
    tells("a\u{1b}[2J@ours.test", None, &["recipient   a\u{fffd}[2J@ours.test", bad], 1);
    let bad = "verdict     it would be refused: 501 5.1.7 Syntax error in the sender's address";
    tells("a@ours.test", Some("a@@b"), &[bad], 1);
    let utf8 = "            only a next hop with SMTPUTF8 can take it; from others it comes back with 5.6.7";
    tells("\u{f6}@ours.test", None, &[utf8], 0);
    tells("Postmaster", None, &["taken by    127.0.0.1:2525 (relay), from anybody"], 0);
}
