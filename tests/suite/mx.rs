//! Mail to the world: `mx` routes through the real gateway, with a real name server and next hops
//! at several loopback addresses, all at the port that `[delivery]` names.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::client::Client;
use crate::gateway::Gateway;
use crate::interop::are_here;
use crate::nameserver::{Nsd, free_port_of};
use crate::sink::{Manners, Sink};

/// Where `h1` to `h3` are.
const HOSTS: [Ipv4Addr; 3] =
    [Ipv4Addr::new(127, 0, 5, 1), Ipv4Addr::new(127, 0, 5, 2), Ipv4Addr::new(127, 0, 5, 3)];
/// Where nobody listens.
const CLOSED: Ipv4Addr = Ipv4Addr::new(127, 0, 5, 9);

const ZONE: &str = "
h1          A     127.0.5.1
h2          A     127.0.5.2
h3          A     127.0.5.3
closed      A     127.0.5.9
first       MX    20 h2
first       MX    10 h1
down        MX    10 closed
down        MX    20 h2
busy        MX    10 h3
busy        MX    20 h2
brief 1     MX    10 brief3
brief 1     MX    20 brief2
brief2 1    A     127.0.5.2
brief3 1    A     127.0.5.3
equal       MX    10 h1
equal       MX    10 h2
one         MX    10 h1
two         MX    10 h1
implicit    A     127.0.5.2
aliased     CNAME first
xn--bcher-kva MX  10 h2
backup      MX    10 h2
backup      MX    20 gateway
ours        MX    10 gateway
ours        MX    20 h1
null        MX    0 .
empty       TXT   \"no mail here\"
gone        MX    10 nowhere
hopeful     MX    10 host.elsewhere.
hopeful     MX    20 h2
";

/// A gateway, the name server that it asks, and the port of all mail hosts.
struct World {
    nsd: Nsd,
    gateway: Gateway,
    port: u16,
}

impl World {
    /// With these lines in `[delivery]`.
    fn start(delivery: &str) -> World {
        let hosts = HOSTS.iter().chain([&CLOSED]);
        let hosts: Vec<IpAddr> = hosts.map(|host| IpAddr::V4(*host)).collect();
        let port = free_port_of(&hosts);
        let nsd = Nsd::start(&[("test", ZONE)]);
        let config = format!(
            r#"
workers = 2
[[listener]]
address = "127.0.0.1:0"
service = "relay"
[[route]]
recipient = "*@sender.test"
to = "maildir:{{dir}}/mail"
[[route]]
recipient = "*"
to = "mx"
[dns]
servers = ["{}"]
timeout = "1s"
[queue]
retry = ["1s"]
[delivery]
port = {port}
{delivery}
"#,
            nsd.address()
        );
        World { nsd, gateway: Gateway::start(&config), port }
    }

    /// The next hop `h1`, `h2` or `h3`.
    fn sink(&self, number: usize, manners: Manners) -> Sink {
        Sink::start_at(SocketAddr::from((HOSTS[number - 1], self.port)), manners)
    }

    /// Sends a message each over one session.
    fn send(&self, from: &str, recipients: &[&str]) {
        let mut client = Client::hello(self.gateway.smtp(0));
        for to in recipients {
            if to.is_ascii() {
                client.envelope(from, &[to]);
            } else {
                client.command(&format!("MAIL FROM:<{from}> SMTPUTF8")).expect("250");
                client.command(&format!("RCPT TO:<{to}>")).expect("250");
            }
            client.data(b"Subject: to the world\r\n\r\nHello.\r\n").expect("250");
        }
    }

    /// What `mailrace route` says of a recipient, and its exit code.
    fn route(&self, to: &str) -> (String, i32) {
        let output = self.gateway.command(&["route", to]);
        let told = String::from_utf8(output.stdout).expect("text");
        (told, output.status.code().expect("an exit code"))
    }

    /// The failure notice that a sender got.
    fn notice(&self, local: &str) -> String {
        let mut notices = self.gateway.maildir("sender.test", local, 1);
        String::from_utf8(notices.remove(0)).expect("notices are text")
    }
}

const SENDER: &str = "sender@sender.test";

/// The recipients that a sink has taken, sorted.
fn recipients(sink: &Sink, count: usize) -> Vec<String> {
    let mut found: Vec<String> = sink.taken(count).into_iter().flat_map(|one| one.to).collect();
    found.sort();
    found
}

#[test]
fn hosts_are_tried_by_their_preference() {
    if !are_here(&["dns"]) {
        return;
    }
    let mut world = World::start("");
    let (h1, h2) = (world.sink(1, Manners::default()), world.sink(2, Manners::default()));
    let too_busy = Some("421 4.3.2 too many connections".to_owned());
    let h3 = world.sink(3, Manners { greeting: too_busy, ..Manners::default() });
    world.send(
        SENDER,
        &[
            "a@first.test",
            "b@aliased.test",
            "c@FIRST.test",
            "d@[127.0.5.1]",
            "e@down.test",
            "f@busy.test",
            "g@implicit.test",
            "h@b\u{fc}cher.test",
            "i@backup.test",
            "j@hopeful.test",
        ],
    );
    assert_eq!(
        recipients(&h1, 4),
        ["a@first.test", "b@aliased.test", "c@FIRST.test", "d@[127.0.5.1]"]
    );
    let second = [
        "e@down.test",
        "f@busy.test",
        "g@implicit.test",
        "h@b\u{fc}cher.test",
        "i@backup.test",
        "j@hopeful.test",
    ];
    assert_eq!(recipients(&h2, 6), second);
    assert!(h3.connections() > 0 && h3.count() == 0, "the busy one was asked first");
    world.gateway.terminate();
}

/// A host that greets well and then drops every transaction is passed over, before the message
/// has counted one attempt; so is one that greets badly while its address stands for a second.
#[test]
fn a_host_that_takes_no_message_is_passed_over() {
    if !are_here(&["dns"]) {
        return;
    }
    let mut world = World::start("");
    let farewell = Some("421 4.3.0 not today".to_owned());
    let h1 = world.sink(1, Manners { farewell, ..Manners::default() });
    let h2 = world.sink(2, Manners::default());
    let refusal = Some("554 5.3.2 no".to_owned());
    let h3 = world.sink(3, Manners { greeting: refusal, ..Manners::default() });
    world.send(SENDER, &["a@first.test", "b@first.test", "c@brief.test"]);
    assert_eq!(recipients(&h2, 3), ["a@first.test", "b@first.test", "c@brief.test"]);
    assert!(h1.connections() > 0 && h3.connections() > 0, "they were asked first");
    let events = world.gateway.events();
    assert!(events.iter().all(|event| event["event"] != "deferred"), "{events:?}");
    world.gateway.terminate();
}

#[test]
fn equals_share_the_load() {
    if !are_here(&["dns"]) {
        return;
    }
    let mut world = World::start("messages_per_connection = 1\n");
    let (h1, h2) = (world.sink(1, Manners::default()), world.sink(2, Manners::default()));
    world.send(SENDER, &["a@equal.test"; 32]);
    world.gateway.wait_until("all delivered", || (h1.count() + h2.count() >= 32).then_some(()));
    // That one of them has at most two is as likely as 1 to eight million.
    let counts = (h1.taken_so_far().len(), h2.taken_so_far().len());
    assert!(counts.0 > 2 && counts.1 > 2 && counts.0 + counts.1 == 32, "{counts:?}");
    world.gateway.terminate();
}

#[test]
fn domains_with_the_same_hosts_share_connections() {
    if !are_here(&["dns"]) {
        return;
    }
    let mut world = World::start("connections_per_site = 2\nmessages_per_connection = 5\n");
    let pause = Duration::from_millis(10);
    let h1 = world.sink(1, Manners { pause, ..Manners::default() });
    std::thread::scope(|scope| {
        for domain in ["one.test", "two.test"] {
            for _ in 0..2 {
                let world = &world;
                scope.spawn(move || world.send(SENDER, &[format!("a@{domain}").as_str(); 20]));
            }
        }
    });
    assert_eq!(recipients(&h1, 80).iter().filter(|to| *to == "a@one.test").count(), 40);
    assert_eq!(h1.connections_most(), 2);
    assert!(h1.connections() >= 16, "five messages a connection: {}", h1.connections());
    world.gateway.terminate();
}

#[test]
fn what_nobody_takes_comes_back_with_the_reason() {
    if !are_here(&["dns"]) {
        return;
    }
    let mut world = World::start("");
    let cases = [
        ("null", "null.test", "5.1.10"),
        ("nothing", "nothing.test", "5.1.2"),
        ("empty", "empty.test", "5.4.4"),
        ("gone", "gone.test", "5.4.4"),
        ("ours", "ours.test", "5.4.6"),
    ];
    for (local, domain, _) in cases {
        world.send(&format!("{local}@sender.test"), &[&format!("user@{domain}")]);
    }
    for (local, domain, status) in cases {
        let notice = world.notice(local);
        assert!(notice.contains(&format!("\r\nStatus: {status}\r\n")), "{domain}: {notice}");
        assert!(notice.contains(&format!("rfc822; user@{domain}\r\n")), "{domain}: {notice}");
    }
    world.gateway.terminate();
}

#[test]
fn mail_waits_until_the_dns_is_back() {
    if !are_here(&["dns"]) {
        return;
    }
    let mut world = World::start("");
    let h1 = world.sink(1, Manners::default());
    world.nsd.stop();
    // Nobody refuses the questions, and nobody answers them.
    let silence = UdpSocket::bind(world.nsd.address()).expect("nsd is gone");
    world.send(SENDER, &["a@first.test", "b@elsewhere.invalid"]);
    let event = world.gateway.wait_event("the domain waits", |event| {
        event["reason"] == "domain_unresolved" && event["domain"] == "first.test"
    });
    assert_eq!((&event["event"], h1.count()), (&"deferred".into(), 0), "{event}");
    assert!(
        event["reply"].as_str().is_some_and(|why| why.contains("no answer in time")),
        "{event}"
    );
    let (told, code) = world.route("b@first.test");
    assert_eq!(code, 75, "{told}");
    assert!(told.contains("\nqueue       1 message for first.test\n"), "{told}");
    let heard = "; last heard: the mail hosts of first.test could not be looked up: ";
    assert!(told.contains(" is deferred, tried again at ") && told.contains(heard), "{told}");
    drop(silence);
    world.nsd.start_again();
    assert_eq!(recipients(&h1, 1), ["a@first.test"]);
    // This server refuses to say anything of others' domains, which is no reason to bounce.
    world.gateway.wait_event("a refusal is heard", |event| {
        event["domain"] == "elsewhere.invalid"
            && event["reply"].as_str().is_some_and(|reply| reply.contains("REFUSED"))
    });
    assert!(world.gateway.events().iter().all(|event| event["event"] != "bounced"));
    world.gateway.terminate();
}
