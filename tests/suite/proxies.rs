//! Clients that come through somebody else, by a PROXY header or XCLIENT: the gateway sees them and
//! not him, and believes only whom the configuration names.

use std::net::IpAddr;

use serde_json::Value;

use crate::client::Client;
use crate::gateway::Gateway;

/// Nothing is asked of the DNS of whatever host the tests run on.
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
checks = { helo_unknown = "off", reverse_missing = "off", reverse_unconfirmed = "off", sender_unknown = "off", sender_null_mx = "off" }
"#;

fn start(more: &str) -> Gateway {
    Gateway::start(&format!("{MX}greeting_wait = \"0s\"\n{more}"))
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
    client.command("EHLO client.test").expect("250");
    client.envelope("a@client.test", &["b@ours.test"]);
    client.data(b"Subject: through another\r\n\r\n").message_id();
    client.command("QUIT").expect("221");
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
    let mut gateway = Gateway::start(&format!("{MX}{more}"));
    let introduced = |header: &[u8]| {
        let mut client = balancer(&gateway);
        client.send(header);
        client
    };
    let of =
        |address: &str| introduced(format!("PROXY TCP4 {address} 127.0.0.1 43 25\r\n").as_bytes());
    let first = of("192.0.2.7");
    assert!(first_line(&first).starts_with("220-"), "a stranger waits");
    of("192.0.2.7").reply().expect("421 4.7.0");
    assert!(first_line(&of("192.0.2.8")).starts_with("220-"));
    for _ in 0..2 {
        introduced(&v2(0x20, 0, b"")).reply().expect("220");
    }
    drop(first);
    gateway.wait_event("its end", |event| {
        event["event"] == "disconnect" && event["peer"] == "192.0.2.7:43"
    });
    assert!(first_line(&of("192.0.2.7")).starts_with("220-"), "there is room again");
    gateway.terminate();
}

/// The greeting's first line, while the last one may not be there yet.
fn first_line(client: &Client) -> String {
    let mut octets = [0; 256];
    let count = client.stream().peek(&mut octets).expect("a first line");
    String::from_utf8_lossy(&octets[..count]).into_owned()
}
