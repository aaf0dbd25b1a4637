//! The two sides against each other, and the sending side against servers that misbehave.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::ledger::compare::{Comparison, compare};
use crate::ledger::record::{Side, read};
use crate::report::sink::{Counts, Summary};
use crate::report::tally::{Step, Tally};
use crate::signal::Signals;
use crate::sink::Opened;
use crate::sink::settings::SinkSettings;
use crate::source::plan::Plan;
use crate::source::settings::{Bdat, Begin, Settings};
use crate::units::Span;

/// On loopback, a port that the system chooses.
const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// An address that nobody listens on now.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn span(millis: u64) -> Option<Span> {
    Some(Span(Duration::from_millis(millis)))
}

/// A run to `to`; messages and time are bounded unless the settings say otherwise.
fn send(to: SocketAddr, settings: Settings) -> Tally {
    send_as(7, to, settings)
}

/// The same under another number of run.
fn send_as(run: u16, to: SocketAddr, settings: Settings) -> Tally {
    let settings = Settings {
        to: Some(to.to_string()),
        messages: settings.messages.or(Some(200)),
        time: settings.time.or(span(10_000)),
        grace: span(1_000),
        threads: settings.threads.or(Some(1)),
        seed: Some(1),
        ..settings
    };
    let plan = Plan::new(settings, run).unwrap();
    crate::source::run(plan, &Signals::take_over().unwrap(), true).unwrap().0
}

/// Runs a sink until `work` is done, which is told where it listens.
fn with_sink<T>(
    ledger: Option<&Path>,
    world: &str,
    work: impl FnOnce(SocketAddr) -> T,
) -> (T, Counts) {
    let (worked, summary) = with_sink_on(ANY_PORT, ledger, world, None, |open| work(open.ports[0]));
    (worked, *summary.counts())
}

/// The same on an address of the caller's, and answering for names if an address is given for
/// them.
fn with_sink_on<T>(
    address: SocketAddr,
    ledger: Option<&Path>,
    world: &str,
    dns: Option<SocketAddr>,
    work: impl FnOnce(&Opened) -> T,
) -> (T, Summary) {
    let folder = tempfile::tempdir().unwrap();
    let world_path = folder.path().join("world.toml");
    std::fs::write(&world_path, world).unwrap();
    let ledger = ledger.map(Path::to_path_buf);
    let world = Some(world_path);
    with_sink_as(address, SinkSettings { world, dns, ledger, ..SinkSettings::default() }, work)
}

/// A sink with these settings on a given address.
fn with_sink_as<T>(
    address: SocketAddr,
    settings: SinkSettings,
    work: impl FnOnce(&Opened) -> T,
) -> (T, Summary) {
    let settings = SinkSettings {
        listen: vec![address],
        threads: Some(1),
        // The work's end is the sink's.
        time: span(60_000),
        quiet: true,
        ..settings
    };
    let live = Arc::new(crate::sink::Live::default());
    let shared = live.clone();
    let sink = thread::spawn(move || {
        crate::sink::run_with(&settings, &Signals::take_over().unwrap(), shared).unwrap()
    });
    let opened = loop {
        match live.opened.get() {
            Some(opened) => break opened,
            None if sink.is_finished() => panic!("the sink did not open: {:?}", sink.join()),
            None => thread::sleep(Duration::from_millis(5)),
        }
    };
    let worked = work(opened);
    live.stop.store(true, std::sync::atomic::Ordering::Relaxed);
    (worked, sink.join().unwrap())
}

fn settle(sent: &Path, arrived: &Path) -> Comparison {
    let mut sent = read(sent, Side::Source).unwrap().records;
    let mut arrived = read(arrived, Side::Sink).unwrap().records;
    compare(&mut sent, &mut arrived)
}

#[test]
fn every_conduct_brings_every_message_home() {
    let conducts: [(bool, bool, Option<Bdat>, Option<u32>); 9] = [
        (false, false, None, None),
        (true, false, None, Some(7)),
        (false, false, Some(Bdat::Strict), None),
        (true, false, Some(Bdat::Strict), Some(1)),
        (true, false, Some(Bdat::Flight), None),
        (false, false, None, Some(1)),
        (true, true, None, None),
        (true, true, None, Some(7)),
        (true, true, None, Some(1)),
    ];
    for (pipeline, ahead, bdat, per_connection) in conducts {
        let folder = tempfile::tempdir().unwrap();
        let (sent, arrived) = (folder.path().join("sent"), folder.path().join("arrived"));
        let settings = Settings {
            sessions: Some(9),
            pipeline,
            ahead,
            bdat,
            per_connection,
            threads: Some(2),
            size: Some(vec!["1KiB-200KiB".parse().unwrap()]),
            recipients: Some(3),
            rcpt: Some(vec!["user{1..9}@{1..3}.example".parse().unwrap()]),
            ledger: Some(sent.clone()),
            ..Settings::default()
        };
        let (tally, counts) = with_sink(Some(&arrived), "", |to| send(to, settings));
        assert_eq!(tally.counts.acknowledged, 200, "{pipeline} {bdat:?}: {:?}", tally.texts);
        assert_eq!((counts.messages, counts.recipients, counts.damaged), (200, 600, 0));
        let found = settle(&sent, &arrived);
        assert!(found.is_clean(), "{found:?}");
        assert_eq!((found.arrived, found.foreign), (200, 0));
        if let Some(most) = per_connection {
            assert!(tally.counts.connections >= u64::from(200 / most), "{:?}", tally.counts);
        }
        assert_eq!(tally.latency(Step::Whole).len(), 200);
    }
}

#[test]
fn encrypted_messages_come_home_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let (chain, key) = (file("chain.pem"), file("key.pem"));
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-subj", "/CN=sink.test", "-days", "30", "-out"])
        .arg(&chain)
        .arg("-keyout")
        .arg(&key)
        .output();
    assert!(made.expect("openssl is installed").status.success());
    for (tls, pipeline, bdat, number) in [
        (Begin::Starttls, false, None, 0),
        (Begin::Starttls, true, Some(Bdat::Flight), 1),
        (Begin::Implicit, true, None, 2),
    ] {
        let (sent, arrived) = (file(&format!("sent{number}")), file(&format!("arrived{number}")));
        let sink = SinkSettings {
            chain: Some(chain.clone()),
            key: Some(key.clone()),
            implicit: tls == Begin::Implicit,
            ledger: Some(arrived.clone()),
            ..SinkSettings::default()
        };
        let settings = Settings {
            sessions: Some(3),
            per_connection: Some(20),
            pipeline,
            bdat,
            size: Some(vec!["1KiB-200KiB".parse().unwrap()]),
            ledger: Some(sent.clone()),
            tls: Some(tls),
            insecure: true,
            time: span(60_000),
            ..Settings::default()
        };
        let trusting = Settings { insecure: false, messages: Some(1), ..settings.clone() };
        let work = |open: &Opened| {
            let to = open.ports[0];
            (send(to, settings), send(to, Settings { time: span(300), ..trusting }))
        };
        let ((tally, refused), _) = with_sink_as(ANY_PORT, sink, work);
        assert_eq!(tally.counts.acknowledged, 200, "{tls:?}: {:?}", tally.texts);
        assert!(settle(&sent, &arrived).is_clean());
        // Nobody vouches for the certificate.
        assert_eq!(refused.counts.acknowledged, 0);
        assert!(refused.counts.connect_failures > 0, "{:?}", refused.texts);
    }
}

#[test]
fn the_books_find_exactly_what_a_sink_was_told_to_do() {
    for (pipeline, ahead) in [(false, false), (true, false), (true, true)] {
        let folder = tempfile::tempdir().unwrap();
        let (sent, arrived) = (folder.path().join("sent"), folder.path().join("arrived"));
        let settings = Settings {
            messages: Some(1_000),
            ledger: Some(sent.clone()),
            size: Some(vec!["1KiB".parse().unwrap()]),
            pipeline,
            ahead,
            ..Settings::default()
        };
        let world = "[default]\nlose = 0.05\ndamage = 0.05\ndouble = 0.05\nreorder = 0.05\n\
            data = [{ share = 0.05, reply = \"spam\" }]";
        let (tally, counts) = with_sink(Some(&arrived), world, |to| send(to, settings));
        let found = settle(&sent, &arrived);
        assert!(!found.is_clean());
        for (kind, told) in [
            (&found.lost, counts.lost),
            (&found.damaged, counts.damaged),
            (&found.duplicated, counts.doubled),
            (&found.reordered, counts.reordered),
        ] {
            assert_eq!(kind.count, told, "{kind:?}");
            assert!((15..110).contains(&told), "{told}");
        }
        assert_eq!(found.refused, counts.refused);
        assert_eq!(found.refused_but_arrived.count + found.misdirected.count, 0);
        assert_eq!(found.unknown_but_arrived.count + found.foreign, 0);
        assert_eq!(tally.counts.refused_for_good, counts.refused);
        assert_eq!(found.acknowledged, tally.counts.acknowledged);
    }
}

#[test]
fn the_books_of_several_runs_and_sinks_go_together() {
    let folder = tempfile::tempdir().unwrap();
    let (sent, arrived) = (folder.path().join("sent"), folder.path().join("arrived"));
    // How many of the messages a session gets is chance, and the ids follow it: one session.
    let settings =
        || Settings { ledger: Some(sent.clone()), sessions: Some(1), ..Settings::default() };
    for run in [7, 8] {
        // Each with a sink of its own, as after a restart.
        let (tally, _) = with_sink(Some(&arrived), "", |to| send_as(run, to, settings()));
        assert_eq!(tally.counts.acknowledged, 200);
    }
    let found = settle(&sent, &arrived);
    assert!(found.is_clean(), "{found:?}");
    assert_eq!((found.acknowledged, found.arrived, found.foreign), (400, 400, 0));
    // A run that takes the number of another makes books that say nothing.
    with_sink(Some(&arrived), "", |to| send_as(8, to, settings()));
    let found = settle(&sent, &arrived);
    assert_eq!((found.repeated_ids, found.is_clean()), (200, false));
}

#[test]
fn sites_are_told_apart_by_address_and_keep_their_limits() {
    let world = "[[sites]]\nname = \"bulk.example\"\ndomains = 40\ncount = 4\n\
        address = \"127.77.0.1\"\nsessions = 2\n\
        [[sites]]\nname = \"dead.example\"\naddress = \"127.78.0.1\"\n\
        except = [{ share = 1, connect = \"554 5.7.1 Not here\" }]";
    let folder = tempfile::tempdir().unwrap();
    let (sent, arrived) = (folder.path().join("sent"), folder.path().join("arrived"));
    let listen = SocketAddr::from(([0, 0, 0, 0], 0));
    let settings = || Settings {
        sessions: Some(2),
        messages: Some(50),
        ledger: Some(sent.clone()),
        rcpt: Some(vec!["a@d2.bulk.example".parse().unwrap()]),
        ..Settings::default()
    };
    let ((), summary) = with_sink_on(listen, Some(&arrived), world, None, |open| {
        let at = |host: [u8; 4]| SocketAddr::from((host, open.ports[0].port()));
        assert_eq!(send(at([127, 77, 0, 3]), settings()).counts.acknowledged, 50);
        let crowd = Settings { sessions: Some(9), hold: span(300), ..Settings::default() };
        let crowd = send(at([127, 77, 0, 3]), crowd);
        assert_eq!(crowd.counts.refused_for_now, 7, "{:?}", crowd.counts);
        let refused = send_as(8, at([127, 78, 0, 1]), settings());
        assert_eq!(refused.counts.refused_for_good, 50, "{:?}", refused.texts);
        // For d2, but to the site of d3.
        assert_eq!(send_as(9, at([127, 77, 0, 4]), settings()).counts.acknowledged, 50);
    });
    assert_eq!(summary.counts().misrouted, 50);
    let place = |name: &str| {
        let found = summary.places().iter().find(|place| place.name.starts_with(name)).unwrap();
        (found.sessions_max, found.messages)
    };
    assert_eq!(place("mx2.bulk.example"), (2, 50));
    assert_eq!(place("mx3.bulk.example"), (2, 50));
    assert_eq!(place("mx1.bulk.example"), (0, 0));
    let found = settle(&sent, &arrived);
    let mut addresses: Vec<_> = found.by_address.into_iter().collect();
    addresses.sort_unstable();
    assert_eq!(addresses, [(0x7f4d_0003, 50), (0x7f4d_0004, 50)]);
}

#[test]
fn names_are_answered_by_udp_and_tcp() {
    use hickory_proto::op::{Message, Query};
    use hickory_proto::rr::{Name, RecordType};
    use std::io::Read;
    let world = "[[sites]]\nname = \"bulk.example\"\ndomains = 40\ncount = 4\n\
        address = \"127.77.1.1\"\naddresses = 60";
    let mut asked = Message::query();
    let host = Name::from_ascii("mx3.bulk.example.").unwrap();
    asked.add_query(Query::query(host, RecordType::A));
    let packet = asked.to_vec().unwrap();
    let ((), _) = with_sink_on(ANY_PORT, None, world, Some(ANY_PORT), |open| {
        let dns = open.names.unwrap();
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        udp.send_to(&packet, dns).unwrap();
        let mut buffer = [0; 2_000];
        let length = udp.recv(&mut buffer).unwrap();
        assert!(Message::from_vec(&buffer[..length]).unwrap().metadata.truncation);
        let mut tcp = std::net::TcpStream::connect(dns).unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let framed = [&(packet.len() as u16).to_be_bytes()[..], &packet].concat();
        // Two questions, the second in pieces.
        tcp.write_all(&framed).unwrap();
        tcp.write_all(&framed[..5]).unwrap();
        for _ in 0..2 {
            let mut length = [0; 2];
            tcp.read_exact(&mut length).unwrap();
            let mut reply = vec![0; usize::from(u16::from_be_bytes(length))];
            tcp.read_exact(&mut reply).unwrap();
            assert_eq!(Message::from_vec(&reply).unwrap().answers.len(), 60);
            let _ = tcp.write_all(&framed[5..]);
        }
    });
}

#[test]
fn a_sink_that_breaks_and_turns_away_does_not_stop_a_run() {
    let world = "[default]\ndrop = 0.1\nrcpt = [{ share = 0.1, reply = \"rate-limited\" }]";
    let settings = Settings { pipeline: true, messages: Some(300), ..Settings::default() };
    let (tally, counts) = with_sink(None, world, |to| send(to, settings));
    assert_eq!(tally.counts.finished(), 300, "{:?} {:?}", tally.counts, tally.texts);
    // A reset that overtakes the replies looks like a connection that was closed while idle, and
    // the message is sent again: how many count as broken is the kernel's affair.
    assert!(counts.broken > 5 && tally.counts.refused_for_now > 5, "{:?}", tally.counts);
    assert!(tally.counts.broken <= counts.broken, "{:?}", tally.counts);
    assert_eq!(tally.counts.acknowledged, counts.messages);
}

/// A server of one thread a client that lets `answer` write the reply to each line.
fn serve(answer: impl Fn(&str) -> Option<&'static str> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, answer) = (stream.unwrap(), answer.clone());
            thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().unwrap());
                let _ = stream.write_all(b"220 test\r\n");
                let mut line = String::new();
                let mut in_data = false;
                while matches!(lines.read_line(&mut line), Ok(1..)) {
                    if !in_data || line == ".\r\n" {
                        let reply = if in_data { Some("250 Ok\r\n") } else { answer(&line) };
                        in_data = reply.is_some_and(|reply| reply.starts_with("354"));
                        match reply {
                            Some(reply) => drop(stream.write_all(reply.as_bytes())),
                            None => return,
                        }
                    }
                    line.clear();
                }
            });
        }
    });
    address
}

fn plain_answer(line: &str) -> &'static str {
    match &line[..4] {
        "DATA" => "354 Go\r\n",
        _ => "250 Ok\r\n",
    }
}

#[test]
fn a_stall_shows_in_every_message_that_was_due_during_it() {
    let begun = Instant::now();
    let to = serve(move |line| {
        // From 300 ms to 700 ms nothing is answered.
        let since = begun.elapsed();
        let (from, to) = (Duration::from_millis(300), Duration::from_millis(700));
        if since > from && since < to {
            thread::sleep(to - since);
        }
        Some(plain_answer(line))
    });
    let settings = Settings {
        sessions: Some(4),
        rate: Some(200.0),
        messages: Some(200),
        size: Some(vec!["1KiB".parse().unwrap()]),
        ..Settings::default()
    };
    let tally = send(to, settings);
    assert_eq!(tally.counts.acknowledged, 200, "{:?}", tally.texts);
    // Eighty messages were due in those 400 ms; a closed loop would have seen four.
    let whole = tally.latency(Step::Whole);
    let late = whole.count_between(100_000, 1_000_000);
    assert!(late >= 40, "{late} messages were late");
    assert!(whole.value_at_quantile(0.99) >= 300_000, "{}", whole.value_at_quantile(0.99));
}

#[test]
fn a_server_that_closes_between_messages_costs_none() {
    let to = serve(|line| (!line.starts_with("RSET")).then(|| plain_answer(line)));
    let tally = send(to, Settings { messages: Some(20), ..Settings::default() });
    assert_eq!((tally.counts.acknowledged, tally.counts.broken), (20, 0));
    let closing = serve(|line| match line {
        "QUIT\r\n" => None,
        _ => Some(plain_answer(line)),
    });
    let settings = Settings { messages: Some(20), one: true, ..Settings::default() };
    assert_eq!(send(closing, settings).counts.acknowledged, 20);
}

#[test]
fn what_a_server_does_not_offer_ends_the_run() {
    let to = serve(|line| Some(plain_answer(line)));
    let begun = Instant::now();
    let tally = send(to, Settings { bdat: Some(Bdat::Flight), ..Settings::default() });
    assert_eq!(tally.counts.finished(), 0);
    assert!(tally.texts.keys().any(|text| text.contains("PIPELINING")), "{:?}", tally.texts);
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn refusals_are_counted_where_they_happen() {
    for (verb, refused_at) in [("MAIL", Step::Mail), ("RCPT", Step::Rcpt), ("DATA", Step::Data)] {
        let to = serve(move |line| match line.starts_with(verb) {
            true => Some("550 5.7.1 No\r\n"),
            false => Some(plain_answer(line)),
        });
        let tally = send(to, Settings { messages: Some(20), ..Settings::default() });
        assert_eq!(tally.counts.refused_for_good, 20, "{verb}");
        assert_eq!(tally.latency(refused_at).len(), 20, "{verb}");
        assert_eq!(tally.latency(Step::Message).len(), 0, "{verb}");
        assert_eq!(tally.texts.get("550 5.7.1 No"), Some(&20), "{:?}", tally.texts);
        assert_eq!(tally.refusals, [((refused_at, 550), 20)].into(), "{verb}");
        assert!(tally.counts.connections <= 10, "a refusal costs no connection");
    }
}

#[test]
fn parties_send_at_the_same_time_and_are_told_apart() {
    let to = serve(|line| match line.contains("nobody@") {
        true => Some("550 5.1.1 No\r\n"),
        false => Some(plain_answer(line)),
    });
    let text = "threads = 1\ntime = \"10s\"\nmessages = 30\n\
        [[party]]\nname = \"guesses\"\nno_data = true\none = true\nrcpt = [\"nobody@x.example\"]\n\
        [[party]]\nname = \"slow\"\nmessages = 2\none = true\nsize = [\"100B\"]\n\
        trickle = \"5B\"\ntrickle_every = \"1ms\"\ntrickle_all = true\n\
        [[party]]\nname = \"clean\"\nwanted = true";
    let file: Settings = toml::from_str(text).unwrap();
    let line = Settings { to: Some(to.to_string()), ..Settings::default() };
    let parties = line.over(file).parties().unwrap();
    let plans = parties.into_iter().map(|party| Plan::new(party.settings, 7).unwrap()).collect();
    let ran = crate::source::run_all(plans, &Signals::take_over().unwrap(), true).unwrap();
    let tallies: Vec<&Tally> = ran.iter().map(|(tally, _)| tally).collect();
    let told = |tally: &&Tally| (tally.counts.acknowledged, tally.counts.refused_for_good);
    assert_eq!(tallies.iter().map(told).collect::<Vec<_>>(), [(0, 30), (2, 0), (30, 0)]);
    assert_eq!(tallies[0].refusals, [((Step::Rcpt, 550), 30)].into());
    // Each command of the slow ones went out in pieces, all of MAIL in five at least.
    assert!(tallies[1].latency(Step::Mail).min() >= 5_000);
}

#[test]
fn who_is_refused_on_its_last_message_only_says_quit() {
    let resets = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let seen = resets.clone();
    let to = serve(move |line| {
        if line.starts_with("RSET") {
            seen.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        match line.starts_with("RCPT") {
            true => Some("550 5.7.1 No\r\n"),
            false => Some(plain_answer(line)),
        }
    });
    let settings = Settings { messages: Some(6), per_connection: Some(3), ..Settings::default() };
    let settings = Settings { sessions: Some(1), ..settings };
    assert_eq!(send(to, settings).counts.refused_for_good, 6);
    assert_eq!(resets.load(std::sync::atomic::Ordering::Relaxed), 4);
}

#[test]
fn a_run_that_is_over_leaves_no_connection_open() {
    let open = Arc::new(std::sync::atomic::AtomicI64::new(0));
    let counted = open.clone();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, counted) = (stream.unwrap(), counted.clone());
            thread::spawn(move || {
                counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let _ = stream.write_all(b"220 test\r\n");
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
                counted.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
            });
        }
    });
    let text = "messages = 5\nsessions = 5\nthreads = 1\ntime = \"500ms\"\ngrace = \"0s\"\n\
        trickle = \"1B\"\ntrickle_every = \"1h\"\ntrickle_all = true";
    let file: Settings = toml::from_str(text).unwrap();
    let line = Settings { to: Some(to.to_string()), ..Settings::default() };
    let plan = Plan::new(line.over(file), 7).unwrap();
    let (tally, _) = crate::source::run(plan, &Signals::take_over().unwrap(), true).unwrap();
    assert_eq!(tally.counts.finished(), 0);
    let until = Instant::now() + Duration::from_secs(30);
    while open.load(std::sync::atomic::Ordering::SeqCst) > 0 {
        assert!(Instant::now() < until, "connections are still open");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_run_without_a_server_ends_in_time() {
    let begun = Instant::now();
    let tally = send(free_address(), Settings { time: span(500), ..Settings::default() });
    assert_eq!((tally.counts.finished(), tally.counts.connections), (0, 0));
    assert!(tally.counts.connect_failures > 0);
    assert!(begun.elapsed() < Duration::from_secs(4));
}
