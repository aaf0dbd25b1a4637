//! Mail to domains through the real binary: their mail exchangers are asked for, hosts that fail
//! are passed over, domains with the same hosts share a site, and what nobody takes goes back.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::thread;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, MX};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use serde_json::Value;

use crate::client::Client;
use crate::gateway::Gateway;
use crate::sink::{Manners, Sink};

const MESSAGE: &[u8] = b"Subject: abroad\r\n\r\nFar and wide.\r\n";

/// The mail exchangers of the test's domains; `.` is the null MX.
const EXCHANGERS: [(&str, u16, &str); 6] = [
    ("one.test", 10, "dead.hosts.test"),
    ("one.test", 20, "mx.hosts.test"),
    ("two.test", 10, "dead.hosts.test"),
    ("two.test", 20, "mx.hosts.test"),
    ("gone.test", 10, "dead.hosts.test"),
    ("null.test", 0, "."),
];
/// Nobody listens at the first one.
const HOSTS: [(&str, Ipv4Addr); 2] = [
    ("dead.hosts.test", Ipv4Addr::new(127, 0, 0, 9)),
    ("mx.hosts.test", Ipv4Addr::new(127, 0, 0, 1)),
];

/// A name server of this world; it ends with the process.
fn name_server() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("bound");
    thread::spawn(move || {
        let mut octets = [0; 2_048];
        while let Ok((length, from)) = socket.recv_from(&mut octets) {
            let question = Message::from_vec(&octets[..length]).expect("a question");
            let answer = answer(&question).to_vec().expect("an answer");
            socket.send_to(&answer, from).expect("it is sent");
        }
    });
    address
}

fn answer(question: &Message) -> Message {
    let query = question.queries.first().expect("one question");
    assert_eq!(query.query_class(), DNSClass::IN);
    let name = query.name().to_ascii().trim_end_matches('.').to_owned();
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    answer.metadata.recursion_desired = question.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.queries.clone_from(&question.queries);
    let record = |data| Record::from_rdata(query.name().clone(), 60, data);
    let records: Vec<Record> = match query.query_type() {
        RecordType::MX => {
            let of_domain = EXCHANGERS.iter().filter(|(domain, ..)| *domain == name);
            let data = |&(_, preference, host): &(&str, u16, &str)| {
                RData::MX(MX::new(preference, Name::from_ascii(host).expect("a name")))
            };
            of_domain.map(data).map(record).collect()
        }
        RecordType::A => {
            let of_host = HOSTS.iter().filter(|(host, _)| *host == name);
            of_host.map(|&(_, address)| record(RData::A(A(address)))).collect()
        }
        _ => Vec::new(),
    };
    let is_known = EXCHANGERS.iter().any(|(domain, ..)| *domain == name)
        || HOSTS.iter().any(|(host, _)| *host == name);
    answer.metadata.response_code = match name.as_str() {
        "lame.test" => ResponseCode::ServFail,
        _ if is_known => ResponseCode::NoError,
        _ => ResponseCode::NXDomain,
    };
    answer.answers = records;
    answer
}

fn start(sink: &Sink) -> Gateway {
    Gateway::start(&format!(
        r#"
[[listener]]
address = "127.0.0.1:0"
service = "relay"
[[route]]
recipient = "*@home.test"
to = "maildir:{{dir}}/mail"
[[route]]
recipient = "*"
to = "mx"
[delivery]
port = {}
connections_per_site = 2
[queue]
retry = ["1h"]
[dns]
servers = ["{}"]
timeout = "2s"
"#,
        sink.address().port(),
        name_server()
    ))
}

fn send(gateway: &Gateway, from: &str, to: &[&str]) {
    let mut client = Client::hello(gateway.smtp(0));
    client.envelope(from, to);
    client.data(MESSAGE).expect("250");
}

fn entries(gateway: &Gateway, filter: &[&str]) -> Vec<Value> {
    let list = gateway.said_json(&[&["queue", "list"], filter].concat());
    list.as_array().expect("a list").clone()
}

fn event(gateway: &Gateway, kind: &str, to: &str) -> Value {
    gateway.wait_event(&format!("{kind} {to}"), |event| {
        event["event"] == kind && event["to"].as_array().is_some_and(|all| all.contains(&to.into()))
    })
}

#[test]
fn domains_with_the_same_hosts_share_a_site_and_a_dead_host_is_passed_over() {
    let sink = Sink::start(Manners::default());
    let gateway = start(&sink);
    send(&gateway, "sender@home.test", &["a@one.test", "b@one.test", "c@two.test"]);
    let mut taken = sink.taken(2);
    taken.sort_by(|a, b| a.to.cmp(&b.to));
    assert_eq!(taken[0].to, ["a@one.test", "b@one.test"]);
    assert_eq!(taken[1].to, ["c@two.test"]);
    let (one, two) =
        (event(&gateway, "delivered", "a@one.test"), event(&gateway, "delivered", "c@two.test"));
    let port = sink.address().port();
    let site = format!("dead.hosts.test,mx.hosts.test:{port}");
    assert_eq!((&one["site"], &one["domain"]), (&site.as_str().into(), &"one.test".into()));
    assert_eq!((&two["site"], &two["domain"]), (&site.as_str().into(), &"two.test".into()));
    assert!(sink.connections() <= 2, "the limit is the site's, not the domain's");
}

#[test]
fn what_nobody_takes_goes_back_and_what_nobody_can_tell_waits() {
    let sink = Sink::start(Manners::default());
    let gateway = start(&sink);
    for (from, to, status) in [("one", "x@null.test", "5.1.10"), ("two", "x@none.test", "5.1.2")] {
        send(&gateway, &format!("{from}@home.test"), &[to]);
        let bounced = event(&gateway, "bounced", to);
        let notice = String::from_utf8(gateway.maildir("home.test", from, 1).remove(0));
        let notice = notice.expect("text");
        assert!(notice.contains(&format!("Status: {status}")), "{to}: {bounced}\n{notice}");
    }
    send(&gateway, "sender@home.test", &["x@lame.test", "x@gone.test"]);
    let lame = gateway.wait_event("an unresolved domain", |event| {
        event["reason"] == "domain_unresolved" && event["domain"] == "lame.test"
    });
    assert!(lame["next_attempt"].is_string(), "{lame}");
    gateway.wait_event("a dead site", |event| event["reason"] == "site_unreachable");
    for (domain, site) in [("lame.test", "lame.test"), ("gone.test", "dead.hosts.test")] {
        let listed = entries(&gateway, &["--site", domain]);
        assert_eq!(listed.len(), 1, "{domain}: {listed:?}");
        assert_eq!(
            (&listed[0]["state"], &listed[0]["domain"]),
            (&"deferred".into(), &domain.into())
        );
        assert!(listed[0]["site"].as_str().is_some_and(|name| name.starts_with(site)));
        assert!(listed[0]["reason"].is_string() && listed[0]["next_attempt"].is_string());
    }
}
