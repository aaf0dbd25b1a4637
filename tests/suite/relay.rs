//! Relay control through the real binary: never an open relay, whatever the address looks like.

use std::net::IpAddr;

use crate::client::Client;
use crate::gateway::Gateway;

const CONFIG: &str = r#"
[[listener]]
address = "127.0.0.1:0"
service = "mx"
[[listener]]
address = "127.0.0.1:0"
service = "relay"
[relay]
networks = ["127.0.0.1/32"]
[domains]
accept = ["ours.test", "*.below.test"]
[[route]]
recipient = "closed@ours.test"
to = "reject:Nobody lives here"
[[route]]
recipient = "postmaster@ours.test"
to = "reject:No route may say this of a postmaster"
[[route]]
recipient = "*"
to = "maildir:{dir}/mail"
"#;

const MX: usize = 0;
const RELAY: usize = 1;
/// In `[relay] networks`.
const INSIDE: &str = "127.0.0.1";
/// Loopback too, and in no network that may relay.
const OUTSIDE: &str = "127.0.0.99";

const DENIED: &str = "550 5.7.1";

/// Listener, client, argument of RCPT, and how its reply begins.
const TABLE: &[(usize, &str, &str, &str)] = &[
    // An mx listener takes mail for its own domains, from anybody.
    (MX, OUTSIDE, "<user@ours.test>", "250"),
    (MX, OUTSIDE, "<user@OURS.Test>", "250"),
    (MX, OUTSIDE, "<user@a.below.test>", "250"),
    (MX, OUTSIDE, "<user@a.b.below.test>", "250"),
    (MX, OUTSIDE, "<closed@ours.test>", "550 5.7.1 Nobody lives here"),
    // And for no others: neither for what looks like them, nor for clients that could relay.
    (MX, OUTSIDE, "<user@elsewhere.test>", DENIED),
    (MX, INSIDE, "<user@elsewhere.test>", DENIED),
    (MX, OUTSIDE, "<user@sub.ours.test>", DENIED),
    (MX, OUTSIDE, "<user@notours.test>", DENIED),
    (MX, OUTSIDE, "<user@ours.test.elsewhere.test>", DENIED),
    (MX, OUTSIDE, "<user@below.test>", DENIED),
    (MX, OUTSIDE, "<user@notbelow.test>", DENIED),
    // Address literals are nobody's domain.
    (MX, OUTSIDE, "<user@[127.0.0.1]>", DENIED),
    (MX, OUTSIDE, "<user@[192.0.2.1]>", DENIED),
    (MX, OUTSIDE, "<user@[IPv6:::1]>", DENIED),
    // What a next hop could read as a route of its own.
    (MX, OUTSIDE, "<victim%elsewhere.test@ours.test>", DENIED),
    (MX, OUTSIDE, "<elsewhere.test!victim@ours.test>", DENIED),
    (MX, OUTSIDE, "<\"victim@elsewhere.test\"@ours.test>", DENIED),
    (MX, OUTSIDE, "<\"victim%elsewhere.test\"@ours.test>", DENIED),
    (MX, OUTSIDE, "<\"elsewhere.test!victim\"@ours.test>", DENIED),
    (MX, OUTSIDE, "<victim%elsewhere.test@elsewhere.test>", DENIED),
    (MX, OUTSIDE, "<@ours.test:victim@elsewhere.test>", DENIED),
    (MX, OUTSIDE, "<@ours.test,@elsewhere.test:victim@third.test>", DENIED),
    // A source route before an address of ours is ignored (RFC 5321 appendix C).
    (MX, OUTSIDE, "<@elsewhere.test:user@ours.test>", "250"),
    // A postmaster is always taken (RFC 5321 section 4.5.1).
    (MX, OUTSIDE, "<Postmaster>", "250"),
    (MX, OUTSIDE, "<postMASTER>", "250"),
    (MX, OUTSIDE, "<postmaster@ours.test>", "250"),
    (MX, OUTSIDE, "<postmaster@elsewhere.test>", DENIED),
    // No domain at all, and what is no address.
    (MX, OUTSIDE, "<user>", "501"),
    (MX, OUTSIDE, "<>", "501"),
    (MX, OUTSIDE, "<user@ours.test@elsewhere.test>", "501"),
    (MX, OUTSIDE, "<user@ours.test >", "501"),
    // A relay listener takes mail for anybody, from its networks alone.
    (RELAY, INSIDE, "<user@elsewhere.test>", "250"),
    (RELAY, INSIDE, "<a%b@elsewhere.test>", "250"),
    (RELAY, INSIDE, "<user@[192.0.2.1]>", "250"),
    (RELAY, INSIDE, "<closed@ours.test>", "550 5.7.1 Nobody lives here"),
    (RELAY, OUTSIDE, "<user@elsewhere.test>", DENIED),
    (RELAY, OUTSIDE, "<user@ours.test>", DENIED),
    (RELAY, OUTSIDE, "<\"victim@elsewhere.test\"@ours.test>", DENIED),
    (RELAY, OUTSIDE, "<Postmaster>", "250"),
];

#[test]
fn mail_is_taken_for_our_domains_or_from_our_networks() {
    let mut gateway = Gateway::start(CONFIG);
    let mut wrong = Vec::new();
    for &(listener, source, to, expected) in TABLE {
        let source: IpAddr = source.parse().expect("an address");
        let mut client = Client::connect_from(source, gateway.smtp(listener));
        client.command("EHLO client.test").expect("250");
        client.command("MAIL FROM:<sender@client.test>").expect("250");
        let reply = client.command(&format!("RCPT TO:{to}"));
        if !reply.0.starts_with(expected) {
            wrong.push(format!("{listener} {source} {to}: expected {expected}, got {}", reply.0));
        }
        if !expected.starts_with("250") {
            // What was refused is no recipient either.
            client.command("DATA").expect("503");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    gateway.terminate();
}

#[test]
fn a_refused_recipient_gets_nothing_and_is_told_of_in_the_events() {
    let mut gateway = Gateway::start(CONFIG);
    let outside: IpAddr = OUTSIDE.parse().expect("an address");
    let mut client = Client::connect_from(outside, gateway.smtp(MX));
    client.command("EHLO client.test").expect("250");
    client.command("MAIL FROM:<sender@client.test>").expect("250");
    client.command("RCPT TO:<victim@elsewhere.test>").expect(DENIED);
    client.command("RCPT TO:<user@ours.test>").expect("250");
    client.data(b"Subject: one\r\n\r\nof two\r\n").message_id();
    gateway.maildir("ours.test", "user", 1);
    assert!(!gateway.dir().join("mail/elsewhere.test").exists());
    let refused = gateway.wait_event("the refusal", |event| event["event"] == "refused");
    assert_eq!(refused["to"][0], "victim@elsewhere.test");
    let reply = refused["reply"].as_str().expect("our reply");
    assert!(reply.starts_with(DENIED), "{reply}");
    gateway.terminate();
}
