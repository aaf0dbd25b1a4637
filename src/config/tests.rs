//! Values that fit, defaults, and the pure helpers; what does not fit is in `tests/suite`.

use proptest::prelude::*;

use super::*;

impl Environment {
    /// A host for the unit tests of all modules.
    pub(crate) fn for_test() -> Environment {
        Environment {
            host_name: "mx.example.net".to_owned(),
            cores: 1,
            descriptors: 1_024,
            directory: PathBuf::from("/srv"),
            user_exists: |_| true,
        }
    }
}

impl Config {
    /// What a file says for that host, which must be good; it stands in /etc.
    #[track_caller]
    pub(crate) fn for_test(text: &str) -> Config {
        let checked =
            Config::parse(text, Path::new("/etc/mailrace.toml"), &Environment::for_test());
        checked.unwrap_or_else(|report| panic!("{}", report.render(false))).config
    }
}

fn environment() -> Environment {
    Environment {
        host_name: "mx7.example.net".to_owned(),
        cores: 4,
        descriptors: 4_352,
        directory: PathBuf::from("/srv/here"),
        user_exists: |_| true,
    }
}

fn parse(text: &str) -> Result<Checked, Report> {
    Config::parse(text, Path::new("/etc/mailrace/mailrace.toml"), &environment())
}

const LEAST: &str = r#"
[[listener]]
address = "127.0.0.1:0"
service = "relay"
[[route]]
recipient = "*"
to = "discard"
"#;

#[test]
fn the_least_file_has_the_defaults() {
    let checked = parse(LEAST).unwrap();
    assert_eq!(checked.report.problems(), []);
    let config = checked.config;
    let route = Route::new("*".parse().unwrap(), Target::Discard);
    let expected = Config {
        listeners: vec![Listener::new("127.0.0.1:0".parse().unwrap(), Service::Relay)],
        routes: Routes::new(vec![route]),
        ..Config::defaults(&environment())
    };
    assert_eq!(config, expected);
    assert_eq!((&*config.hostname, config.workers), ("mx7.example.net", 4));
    assert_eq!(config.limits.sessions, 3_072);
}

#[test]
fn every_key_reaches_its_place() {
    let text = r#"
hostname = "MX1.bücher.example"
data_dir = "data"
workers = 3
user = "mail"
[[listener]]
address = "[::1]:25"
service = "mx"
tls = "off"
durability = "os"
bare_newline = "space"
[relay]
networks = ["10.0.0.0/8", "192.0.2.7", "::ffff:198.51.100.0/120"]
[domains]
accept = ["example.com", "*.example.org"]
[limits]
message_size = 2048
recipients = 200
sessions = 0x64
sessions_per_address = 7
sessions_per_network = 9
connections = "1/1s"
connections_per_address = "2/1s"
connections_per_network = "3/1s"
memory = "96MiB"
received = 50
messages_per_user = "5/1s"
recipients_per_user = "6/1m"
messages_per_address = "7/1h"
recipients_per_address = "8/1d"
[[route]]
recipient = "*@example.com"
to = "smtp://192.0.2.9:26"
source = "192.0.2.1"
tls = "off"
retry = ["7s"]
lifetime = "8m"
delay_notice = "9s"
verp = true
[[route]]
recipient = "*"
to = "maildir:mail/{local}"
[delivery]
port = 26
connections = 300
connections_per_site = 2
messages_per_connection = 3
messages_in_flight = 16
idle_timeout = "4s"
eight_bit = "bounce"
soft_bounce = true
timeouts = { connect = "1s", greeting = "2s", command = "3s", data = "4s" }
[queue]
retry = ["1s", "2s"]
lifetime = "1h"
delay_notice = "off"
[spool]
segment_size = "16MiB"
compact_after = "90s"
[dns]
servers = ["192.0.2.53", "127.0.0.1:5353", "2001:db8::53", "[::1]:54"]
trusted = ["::ffff:192.0.2.53", "2001:db8::53"]
timeout = "6s"
[log]
events = "events.json"
[admin]
address = "[::1]:80"
"#;
    let config = parse(text).unwrap_or_else(|report| panic!("{}", report.render(false))).config;
    let second = Duration::from_secs(1);
    assert_eq!(&*config.hostname, "mx1.xn--bcher-kva.example");
    assert_eq!(config.data_dir, Path::new("/etc/mailrace/data"));
    assert_eq!((config.workers, config.user.as_deref()), (3, Some("mail")));
    let listener = Listener {
        durability: Durability::Os,
        bare_newline: BareNewline::Space,
        ..Listener::new("[::1]:25".parse().unwrap(), Service::Mx)
    };
    assert_eq!(config.listeners, [listener]);
    let networks = ["10.0.0.0/8", "192.0.2.7/32", "198.51.100.0/24"];
    assert_eq!(config.relay.networks, networks.map(|n| n.parse::<IpNet>().unwrap()));
    assert_eq!(config.domains.len(), 2);
    let limits = Limits {
        message_size: ByteSize(2_048),
        recipients: 200,
        sessions: 100,
        sessions_per_address: 7,
        sessions_per_network: Some(9),
        connections: Some(Rate { count: 1, period: second }),
        connections_per_address: Some(Rate { count: 2, period: second }),
        connections_per_network: Some(Rate { count: 3, period: second }),
        memory: Some(ByteSize(96 << 20)),
        received: 50,
        messages_per_user: Some(Rate { count: 5, period: second }),
        recipients_per_user: Some(Rate { count: 6, period: 60 * second }),
        messages_per_address: Some(Rate { count: 7, period: 3_600 * second }),
        recipients_per_address: Some(Rate { count: 8, period: 86_400 * second }),
    };
    assert_eq!(config.limits, limits);
    let shown: Vec<String> =
        config.routes.iter().map(|r| format!("{} {}", r.recipient, r.to)).collect();
    assert_eq!(
        shown,
        ["*@example.com smtp://192.0.2.9:26", "* maildir:/etc/mailrace/mail/{local}"]
    );
    assert_eq!(config.routes[RouteIndex(0)].source, Some("192.0.2.1".parse().unwrap()));
    let own = Schedule {
        retry: vec![7 * second],
        lifetime: 480 * second,
        delay_notice: DelayNotice::After(9 * second),
    };
    assert_eq!(config.routes[RouteIndex(0)].schedule(&config.queue), own);
    assert_eq!(config.routes[RouteIndex(1)].schedule(&config.queue), config.queue);
    assert_eq!(config.routes.iter().map(|r| r.verp).collect::<Vec<_>>(), [true, false]);
    let delivery = Delivery {
        port: 26,
        connections: 300,
        connections_per_site: 2,
        messages_per_connection: 3,
        messages_in_flight: 16,
        idle_timeout: 4 * second,
        eight_bit: EightBit::Bounce,
        soft_bounce: true,
        timeouts: Timeouts {
            connect: second,
            greeting: 2 * second,
            command: 3 * second,
            data: 4 * second,
        },
    };
    assert_eq!(config.delivery, delivery);
    let queue = Schedule {
        retry: vec![second, 2 * second],
        lifetime: 3_600 * second,
        delay_notice: DelayNotice::Off,
    };
    assert_eq!(config.queue, queue);
    let spool = Spool { segment_size: ByteSize(16 << 20), compact_after: 90 * second };
    assert_eq!(config.spool, spool);
    let servers = ["192.0.2.53:53", "127.0.0.1:5353", "[2001:db8::53]:53", "[::1]:54"];
    let dns = Dns {
        servers: servers.map(|server| server.parse().unwrap()).into(),
        trusted: ["192.0.2.53", "2001:db8::53"].map(|server| server.parse().unwrap()).into(),
        timeout: 6 * second,
    };
    assert_eq!(config.dns, dns);
    assert_eq!(config.log.events, Events::File("/etc/mailrace/events.json".into()));
    assert_eq!(config.admin.address, "[::1]:80".parse().unwrap());
}

#[test]
fn development_keeps_to_this_machine() {
    let config = Config::development(&environment());
    assert!(config.listeners.iter().all(|listener| listener.address.ip().is_loopback()));
    assert!(config.admin.address.ip().is_loopback());
    let (_, route) = config.routes.first_match("postmaster", "").unwrap();
    assert_eq!(route.to.to_string(), "maildir:/srv/here/mailrace-data/mail/{domain}/{local}");
    assert_eq!(config.spool_dir(), Path::new("/srv/here/mailrace-data/spool"));
}

#[test]
fn sessions_leave_room_for_deliveries() {
    for (descriptors, sessions) in
        [(0, 16), (256, 16), (1_024, 576), (4_352, 3_072), (1 << 20, 20_000), (u64::MAX, 20_000)]
    {
        assert_eq!(sessions_for(descriptors), sessions, "{descriptors}");
    }
}

#[test]
fn what_sessions_leave_is_for_deliveries_and_look_ups() {
    for (descriptors, workers, connections, queries) in [
        (0, 1, 16, 128),
        (1_024, 2, 96, 128),
        (20_000, 2, 2_468, 1_234),
        (65_536, 2, 20_000, 4_096),
        (65_536, 32, 20_000, 512),
        (u64::MAX, 128, 20_000, 128),
    ] {
        let sessions = sessions_for(descriptors);
        let found = connections_for(descriptors, sessions);
        assert_eq!(found, connections, "{descriptors}");
        assert_eq!(queries_for(descriptors, sessions, found, workers), queries, "{descriptors}");
    }
}

#[test]
fn connections_to_rspamd_are_left_room() {
    let read = |more: &str| {
        let text = format!("hostname = \"mx.example.com\"\n[edge]\n{more}\n");
        let environment = Environment { descriptors: 20_000, ..environment() };
        let text = format!(
            "{text}[[listener]]\naddress = \"127.0.0.1:0\"\nservice = \"relay\"\n\
             [[route]]\nrecipient = \"*\"\nto = \"hold\"\n"
        );
        Config::parse(&text, Path::new("/test.toml"), &environment).expect("it is good").config
    };
    let without = read("");
    let with = read("[edge.rspamd]\nurl = \"http://127.0.0.1:11333\"");
    let taken = limits::RSPAMD_AT_ONCE + limits::RSPAMD_KEPT;
    let of = |config: &Config| config.limits.sessions + config.delivery.connections;
    assert_eq!(without.limits.sessions - with.limits.sessions, taken / 4 * 3);
    assert_eq!(of(&without) - of(&with), taken / 4 * 3 + taken / 8);
    let (descriptors, edge) = (20_000, with.edge.as_ref());
    assert_eq!(descriptors_for_mail(descriptors, edge), descriptors - taken as u64);
}

#[test]
fn a_host_without_a_full_name_is_localhost() {
    for (host_name, expected) in [
        ("mx.example.com", "mx.example.com"),
        ("MX.example.com", "mx.example.com"),
        ("laptop", "localhost"),
        ("", "localhost"),
        ("bad name.example", "localhost"),
        ("[192.0.2.1]", "localhost"),
    ] {
        assert_eq!(default_hostname(host_name), expected);
    }
}

#[test]
fn relay_networks_see_through_mapped_addresses() {
    let relay = Relay::default();
    for (client, expected) in [
        ("127.0.0.1", true),
        ("::ffff:127.0.0.1", true),
        ("::1", true),
        ("192.0.2.1", false),
        ("::ffff:192.0.2.1", false),
    ] {
        assert_eq!(relay.contains(client.parse().unwrap()), expected, "{client}");
    }
}

#[test]
fn a_route_takes_from_the_queue_what_it_does_not_give() {
    let minutes = |count: u64| Duration::from_secs(60 * count);
    let queue = Schedule {
        retry: vec![minutes(5), minutes(10)],
        lifetime: minutes(600),
        delay_notice: DelayNotice::After(minutes(60)),
    };
    let table = [
        (GivenSchedule::default(), queue.clone()),
        (
            GivenSchedule { retry: Some(vec![minutes(1)]), ..GivenSchedule::default() },
            Schedule { retry: vec![minutes(1)], ..queue.clone() },
        ),
        (
            GivenSchedule { lifetime: Some(minutes(9)), ..GivenSchedule::default() },
            Schedule { lifetime: minutes(9), ..queue.clone() },
        ),
        (
            GivenSchedule { delay_notice: Some(DelayNotice::Off), ..GivenSchedule::default() },
            Schedule { delay_notice: DelayNotice::Off, ..queue.clone() },
        ),
    ];
    for (given, expected) in table {
        let route = Route { given, ..Route::new("*".parse().unwrap(), Target::Mx) };
        assert_eq!(route.schedule(&queue), expected);
    }
}

/// Whoever sits between us and a server could set the bit, so a server is trusted by its address
/// only, and only where somebody said so.
#[test]
fn answers_are_authentic_from_this_machine_or_a_trusted_server() {
    let dns = Dns {
        servers: Vec::new(),
        trusted: vec!["192.0.2.53".parse().unwrap(), "2001:db8::53".parse().unwrap()],
        timeout: Duration::from_secs(5),
    };
    for (server, expected) in [
        ("127.0.0.1", true),
        ("127.0.0.53", true),
        ("::1", true),
        ("::ffff:127.0.0.1", true),
        ("192.0.2.53", true),
        ("::ffff:192.0.2.53", true),
        ("2001:db8::53", true),
        ("192.0.2.54", false),
        ("8.8.8.8", false),
    ] {
        assert_eq!(dns.trusts(server.parse().unwrap()), expected, "{server}");
    }
}

/// A key that is in the list is read somewhere: a value that cannot be right is noticed.
#[test]
fn no_known_key_is_ignored() {
    for section in SECTIONS.iter() {
        for key in section.keys {
            let nested = SECTIONS.iter().any(|other| other.name == section.path(key));
            if nested {
                continue;
            }
            let header = match (section.name, section.repeats) {
                ("", _) => String::new(),
                (name, true) => format!("[[{name}]]"),
                (name, false) => format!("[{name}]"),
            };
            let text = format!("{header}\n{key} = 1979-05-27\n");
            let report = parse(&text).expect_err("a date is never right");
            let path = format!("`{}`", section.path(key));
            let refused = report.problems().iter().any(|problem| problem.title.starts_with(&path));
            assert!(refused, "{path} is read nowhere:\n{}", report.render(false));
        }
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in "[a-z\\[\\]=\"'.,{}#é\\n\\r\\t 0-9_-]{0,120}") {
        if let Err(report) = parse(&text) {
            report.render(true);
        }
    }

    /// Cut or changed anywhere, a file is taken or refused with a report that can be drawn.
    #[test]
    fn no_injury_panics(place in 0usize..400, change in "\\PC?") {
        let text = include_str!("../../tests/data/config/bad_values.toml");
        let at = (0..=place.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap();
        for injured in [text[..at].to_owned() + &change, text[..at].to_owned() + &change + &text[at..]] {
            if let Err(report) = parse(&injured) {
                report.render(false);
            }
        }
    }
}
