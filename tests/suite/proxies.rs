//! Clients that come through somebody else, by a PROXY header or XCLIENT: the gateway sees them and
//! not him, and believes only whom the configuration names.

use std::net::IpAddr;
use std::process::Command;

use serde_json::Value;

use crate::client::Client;
use crate::gateway::{CHECKS_WITHOUT_DNS, Gateway};
use crate::interop::{are_here, run};

const MX: &str = r#"
[[listener]]
address = "127.0.0.1:0"
service = "mx"
proxy = ["127.0.9.0/24"]
xclient = ["127.0.8.0/24"]
[domains]
accept = ["ours.test"]
[[route]]
recipient = "*"
to = "maildir:{dir}/mail"
[relay]
networks = ["198.51.100.0/24"]
[edge]
deadline = "100ms"
thresholds = { reject = 9 }
"#;

fn start(more: &str) -> Gateway {
    Gateway::start(&format!("{MX}{CHECKS_WITHOUT_DNS}greeting_wait = \"0s\"\n{more}"))
}

/// A connection from a balancer's address, which has said nothing yet.
fn balancer(gateway: &Gateway) -> Client {
    from(gateway, [127, 0, 9, 1])
}

fn from(gateway: &Gateway, address: [u8; 4]) -> Client {
    Client::connect_silently(gateway.smtp(0), Some(IpAddr::from(address)))
}

/// A header of version 2 with these octets behind its fixed part.
fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).expect("a short one").to_be_bytes();
    [b"\r\n\r\n\0\r\nQUIT\n", &[command, family, length[0], length[1]][..], body].concat()
}

/// From 192.0.2.77:4660, with extensions of 300 octets.
fn v2_with_extensions() -> Vec<u8> {
    let addresses = [192, 0, 2, 77, 127, 0, 0, 1, 0x12, 0x34, 0, 25];
    let extension = [&[0x02, 0x01, 0x29][..], &[b'\n'; 297]].concat();
    v2(0x21, 0x11, &[&addresses[..], &extension].concat())
}

fn own_address(client: &Client) -> String {
    client.stream().local_addr().expect("it is connected").to_string()
}

/// The client of the last connection, and through whom it came.
fn connected(gateway: &Gateway, peer: &str) -> Value {
    gateway.wait_event(&format!("{peer} connects"), |event| {
        event["event"] == "connect" && event["peer"] == *peer
    })
}

fn serve(mut client: Client) {
    client.reply().expect("220");
    send(&mut client);
    client.command("QUIT").expect("221");
}

fn send(client: &mut Client) {
    client.command("EHLO client.test").expect("250");
    client.envelope("a@client.test", &["b@ours.test"]);
    client.data(b"Subject: through another\r\n\r\n").message_id();
}

#[test]
fn a_balancer_says_who_its_clients_are() {
    let mut gateway = start("");
    let headers: [(Vec<u8>, Option<&str>); 6] = [
        (b"PROXY TCP4 192.0.2.7 127.0.0.1 4321 25\r\n".into(), Some("192.0.2.7:4321")),
        (b"PROXY TCP6 2001:db8::7 ::1 4322 25\r\n".into(), Some("[2001:db8::7]:4322")),
        (b"PROXY UNKNOWN\r\n".into(), None),
        (v2_with_extensions(), Some("192.0.2.77:4660")),
        (v2(0x20, 0, b""), None),
        (v2(0x21, 0x31, &[0; 216]), None),
    ];
    for (header, peer) in &headers {
        let mut client = balancer(&gateway);
        client.send(header);
        let own = own_address(&client);
        serve(client);
        let connected = connected(&gateway, peer.unwrap_or(&own));
        assert_eq!(connected["proxy"].as_str(), peer.map(|_| &*own));
    }
    let files = gateway.maildir("ours.test", "b", headers.len());
    let texts: Vec<_> = files.iter().map(|file| String::from_utf8_lossy(file)).collect();
    for client in ["[192.0.2.7]", "[IPv6:2001:db8::7]", "[192.0.2.77]"] {
        assert_eq!(texts.iter().filter(|text| text.contains(client)).count(), 1, "{client}");
    }
    let end = gateway.wait_event("an end", |event| event["event"] == "disconnect");
    assert_eq!(end["peer"], "192.0.2.7:4321");
    gateway.terminate();
}

#[test]
fn a_header_may_come_octet_by_octet() {
    let mut gateway = start("");
    let headers = [b"PROXY TCP4 192.0.2.7 127.0.0.1 4321 25\r\n".to_vec(), v2_with_extensions()];
    for header in headers {
        let mut client = balancer(&gateway);
        for octet in header {
            client.send(&[octet]);
        }
        serve(client);
    }
    gateway.maildir("ours.test", "b", 2);
    gateway.terminate();
}

/// Nothing that a client sends behind the header is taken for a part of it, nor lost.
#[test]
fn what_comes_with_the_header_is_the_clients() {
    let mut gateway = start("");
    let mut client = balancer(&gateway);
    client.send(b"PROXY TCP4 192.0.2.7 127.0.0.1 4321 25\r\nEHLO client.test\r\nQUIT\r\n");
    for code in ["220", "250", "221"] {
        client.reply().expect(code);
    }
    gateway.terminate();
}

#[test]
fn who_brings_no_header_from_a_balancers_address_is_closed() {
    let mut gateway = start("");
    for header in
        [&b"EHLO client.test\r\n"[..], b"PROXY TCP4 192.0.2.7\r\n", b"\r\n\r\n\0\r\nQUIT\r"]
    {
        let mut client = balancer(&gateway);
        client.send(header);
        client.expect_end();
    }
    drop(balancer(&gateway));
    let of_it = |event: &Value| event["event"] == "refused" && event["reason"] == "proxy_header";
    gateway.wait_until("every one is told", || {
        (gateway.events().iter().filter(|event| of_it(event)).count() == 4).then_some(())
    });
    assert!(gateway.events().iter().all(|event| event["event"] != "connect"));
    gateway.terminate();
}

#[test]
fn nobody_else_can_say_who_he_is() {
    let mut gateway = start("");
    let mut client = from(&gateway, [127, 0, 7, 1]);
    client.reply().expect("220");
    client.command("PROXY TCP4 198.51.100.7 127.0.0.1 4321 25").expect("500");
    client.command("XCLIENT ADDR=198.51.100.7").expect("500");
    let offers = client.command("EHLO client.test").expect("250").0;
    assert!(!offers.contains("XCLIENT"), "{offers}");
    client.command("MAIL FROM:<a@client.test>").expect("250");
    client.command("RCPT TO:<b@elsewhere.test>").expect("550 5.7.1");
    drop(client);
    gateway.terminate();
}

/// Limits, rates and what the filter makes of a client are the client's, and none the balancer's.
#[test]
fn clients_behind_a_balancer_count_by_themselves() {
    let more = "greeting_wait = \"1m\"\n[limits]\nsessions_per_address = 1\n";
    let mut gateway = Gateway::start(&format!("{MX}{CHECKS_WITHOUT_DNS}{more}"));
    let introduced = |header: &[u8]| {
        let mut client = balancer(&gateway);
        client.send(header);
        client
    };
    let of =
        |address: &str| introduced(format!("PROXY TCP4 {address} 127.0.0.1 43 25\r\n").as_bytes());
    let first = of("192.0.2.7");
    assert!(first.first_line().starts_with("220-"), "a stranger waits");
    of("192.0.2.7").reply().expect("421 4.7.0");
    assert!(of("192.0.2.8").first_line().starts_with("220-"));
    for _ in 0..2 {
        introduced(&v2(0x20, 0, b"")).reply().expect("220");
    }
    drop(first);
    gateway.wait_event("its end", |event| {
        event["event"] == "disconnect" && event["peer"] == "192.0.2.7:43"
    });
    assert!(of("192.0.2.7").first_line().starts_with("220-"), "there is room again");
    gateway.terminate();
}

/// A connection of somebody who may send XCLIENT, greeted.
fn proxy(gateway: &Gateway) -> Client {
    let mut client = from(gateway, [127, 0, 8, 1]);
    let greeting = client.reply().expect("220");
    assert_eq!(greeting.0.lines().count(), 1, "a proxy is no stranger");
    let offers = client.command("EHLO proxy.test").expect("250").0;
    assert!(offers.contains("XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT"));
    client
}

#[test]
fn a_proxy_says_who_its_clients_are() {
    let mut gateway = start("");
    let mut client = proxy(&gateway);
    let clients = [
        ("NAME=a.test ADDR=192.0.2.7 PORT=4321 LOGIN=root", "192.0.2.7:4321", "[192.0.2.7]"),
        ("ADDR=IPV6:2001:db8::7 NAME=[UNAVAILABLE]", "[2001:db8::7]:0", "[IPv6:2001:db8::7]"),
    ];
    for (told, peer, _) in clients {
        client.command("XCLIENT ADDR=nowhere").expect("501 5.5.4");
        client.command(&format!("XCLIENT {told}")).expect("220");
        client.command("MAIL FROM:<a@client.test>").expect("503 5.5.1");
        send(&mut client);
        let connected = connected(&gateway, peer);
        assert_eq!(connected["proxy"], *own_address(&client));
        gateway.wait_event("its message", |e| e["event"] == "accepted" && e["peer"] == *peer);
    }
    client.command("QUIT").expect("221");
    let end = gateway.wait_event("an end", |event| event["event"] == "disconnect");
    assert_eq!(end["peer"], "[2001:db8::7]:0");
    let files = gateway.maildir("ours.test", "b", clients.len());
    let texts: Vec<_> = files.iter().map(|file| String::from_utf8_lossy(file)).collect();
    for (_, _, client) in clients {
        assert_eq!(texts.iter().filter(|text| text.contains(client)).count(), 1, "{client}");
    }
    gateway.terminate();
}

/// A client may do what its address allows, whoever brings it, and a login that a proxy tells of
/// allows nothing.
#[test]
fn a_proxys_clients_have_their_own_rights() {
    let limits = "[limits]\nsessions_per_address = 1\n";
    let config = MX.replace("service = \"mx\"", "service = \"relay\"");
    let mut gateway = Gateway::start(&format!("{config}{limits}"));
    let relay = |client: &mut Client, told: &str| {
        client.command(&format!("XCLIENT {told}")).expect("220");
        client.command("EHLO client.test").expect("250");
        client.command("MAIL FROM:<a@client.test>").expect("250");
        let reply = client.command("RCPT TO:<b@elsewhere.test>");
        client.command("XCLIENT ADDR=192.0.2.9").expect("503 5.5.1");
        client.command("RSET").expect("250");
        reply
    };
    let mut first = proxy(&gateway);
    relay(&mut first, "ADDR=198.51.100.7").expect("250");
    relay(&mut first, "ADDR=192.0.2.7 LOGIN=root").expect("550 5.7.1");
    let mut second = proxy(&gateway);
    second.command("XCLIENT ADDR=192.0.2.7").expect("421 4.7.0");
    second.expect_end();
    relay(&mut first, "ADDR=192.0.2.8").expect("550 5.7.1");
    let mut third = proxy(&gateway);
    relay(&mut third, "ADDR=192.0.2.7").expect("550 5.7.1");
    gateway.terminate();
}

/// An address in `[relay] networks` is worth what it proves: nothing where the balancer speaks for
/// somebody whom it does not name.
#[test]
fn who_is_not_named_does_not_relay_by_the_balancers_address() {
    let mut gateway = Gateway::start(
        r#"
[[listener]]
address = "127.0.0.1:0"
service = "relay"
proxy = ["127.0.9.1/32"]
xclient = ["127.0.9.1/32"]
[relay]
networks = ["127.0.9.0/24"]
[[route]]
recipient = "*"
to = "maildir:{dir}/mail"
"#,
    );
    let introduced = |header: &[u8]| {
        let mut client = balancer(&gateway);
        client.send(header);
        client.reply().expect("220");
        client.command("EHLO client.test").expect("250");
        client
    };
    let relay = |client: &mut Client| {
        client.command("MAIL FROM:<a@client.test>").expect("250");
        client.command("RCPT TO:<b@elsewhere.test>")
    };
    for header in [&b"PROXY UNKNOWN\r\n"[..], &v2(0x20, 0, b""), &v2(0x21, 0x31, &[0; 216])] {
        let mut client = introduced(header);
        relay(&mut client).expect("550 5.7.1");
        client.command("RSET").expect("250");
        client.command("ETRN elsewhere.test").expect("550 5.7.1");
        // Nor may it say that it is somebody else, who may.
        client.command("XCLIENT ADDR=127.0.9.7").expect("500");
        let offers = client.command("EHLO client.test").expect("250").0;
        assert!(!offers.contains("XCLIENT"), "{offers}");
        relay(&mut client).expect("550 5.7.1");
    }
    let mut named = introduced(b"PROXY TCP4 127.0.9.7 127.0.0.1 4321 25\r\n");
    relay(&mut named).expect("250");
    // A proxy behind the balancer that it names is a proxy.
    let mut proxy = introduced(b"PROXY TCP4 127.0.9.1 127.0.0.1 4321 25\r\n");
    proxy.command("XCLIENT ADDR=192.0.2.7").expect("220");
    proxy.command("EHLO client.test").expect("250");
    relay(&mut proxy).expect("550 5.7.1");
    // Who is no balancer is who he is.
    let mut other = from(&gateway, [127, 0, 9, 2]);
    other.reply().expect("220");
    other.command("EHLO client.test").expect("250");
    relay(&mut other).expect("250");
    drop((named, proxy, other));
    gateway.terminate();
}

#[test]
fn the_filter_looks_at_a_proxys_clients_anew() {
    let more = "greeting_wait = \"1m\"\ntarpit = \"0s\"\n";
    let mut gateway = Gateway::start(&format!("{MX}{CHECKS_WITHOUT_DNS}{more}"));
    let mut client = proxy(&gateway);
    client.command("MAIL FROM:<a@client.test>").expect("250");
    client.command("RCPT TO:<b@ours.test>").expect("250");
    client.command("RSET").expect("250");
    client.send(b"XCLIENT ADDR=192.0.2.7\r\n");
    assert!(client.first_line().starts_with("220-"), "a stranger waits");
    client.send(b"EHLO client.test\r\n");
    client.reply().expect("220");
    client.reply().expect("250");
    client.command("MAIL FROM:<a@client.test>").expect("250");
    client.command("RCPT TO:<b@ours.test>").expect("554 5.7.1");
    drop(client);
    gateway.terminate();
}

/// What was found of a client is told when another one takes its place, as if it had gone: of its
/// transaction, or of itself where it began none.
#[test]
fn what_was_found_of_a_proxys_client_is_told_before_the_next_one() {
    let more = "greeting_wait = \"1m\"\ntarpit = \"0s\"\n";
    let mut gateway = Gateway::start(&format!("{MX}{CHECKS_WITHOUT_DNS}{more}"));
    let mut client = proxy(&gateway);
    let hasty = |client: &mut Client, address: &str| {
        client.send(format!("XCLIENT ADDR={address} PORT=7\r\n").as_bytes());
        assert!(client.first_line().starts_with("220-"), "a stranger waits");
        client.send(format!("EHLO of-{address}.test\r\n").as_bytes());
        client.reply().expect("220");
        client.reply().expect("250");
    };
    hasty(&mut client, "192.0.2.7");
    hasty(&mut client, "192.0.2.8");
    client.command("MAIL FROM:<a@client.test>").expect("250");
    client.command("RCPT TO:<b@ours.test>").expect("554 5.7.1");
    client.command("RSET").expect("250");
    hasty(&mut client, "192.0.2.9");
    client.command("XCLIENT ADDR=[UNAVAILABLE]").expect("421");
    client.expect_end();
    gateway.wait_event("its end", |event| event["event"] == "disconnect");
    let told = gateway.events().into_iter().filter(|event| event["event"] == "verdict");
    let told: Vec<_> = told
        .map(|event| {
            assert!(event["causes"].to_string().contains("early_talk="), "{event}");
            [&event["peer"], &event["helo"], &event["to"][0], &event["action"]].map(Value::clone)
        })
        .collect();
    let of = |host: u8, to: Value| {
        [format!("192.0.2.{host}:7").into(), format!("of-192.0.2.{host}.test").into(), to]
    };
    let expected = [of(7, Value::Null), of(8, "b@ours.test".into()), of(9, Value::Null)];
    let expected = expected.map(|[peer, helo, to]| [peer, helo, to, "reject".into()]);
    assert_eq!(told, expected);
    gateway.terminate();
}

#[test]
fn swaks_comes_through_proxies() {
    if !are_here(&["swaks"]) {
        return;
    }
    let mut gateway = start("");
    let (header, xclient) = ("127.0.9.1", "127.0.8.1");
    let addresses = "--proxy-family TCP4 --proxy-source 192.0.2.7 --proxy-source-port 4321 \
                     --proxy-dest 192.0.2.1 --proxy-dest-port 25";
    let ways = [
        (header, addresses.to_owned()),
        (header, format!("--proxy-version 2 {}", addresses.replace("TCP4", "AF_INET"))),
        (
            xclient,
            "--xclient-addr 192.0.2.7 --xclient-port 4321 --xclient-name a.test \
             --xclient-helo told.test --xclient-login root@ours.test --xclient-proto ESMTP"
                .to_owned(),
        ),
    ];
    for (source, options) in &ways {
        let mut swaks = Command::new("swaks");
        swaks.arg("--server").arg(gateway.smtp(0).to_string());
        swaks.args(["--local-interface", source]).args(options.split_whitespace());
        swaks.args(["--helo", "client.test", "--from", "a@client.test", "--to", "b@ours.test"]);
        let said = run(swaks.args(["--data", "Subject: x\\n\\nby swaks"]));
        assert!(said.contains("queued as "), "{said}");
    }
    let of_client =
        |event: &Value| event["event"] == "accepted" && event["peer"] == "192.0.2.7:4321";
    gateway.wait_until("all came from it", || {
        (gateway.events().iter().filter(|event| of_client(event)).count() == 3).then_some(())
    });
    gateway.terminate();
}
