//! The two sides against each other, and the sending side against servers that misbehave.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::ledger::compare::{Comparison, compare};
use crate::ledger::record::{Side, read};
use crate::report::sink::Counts;
use crate::report::tally::{Step, Tally};
use crate::signal::Signals;
use crate::sink::settings::SinkSettings;
use crate::source::plan::Plan;
use crate::source::settings::{Bdat, Settings};
use crate::units::Span;

/// An address that nobody listens on now.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn span(millis: u64) -> Option<Span> {
    Some(Span(Duration::from_millis(millis)))
}

/// A run to `to`; messages and time are bounded unless the settings say otherwise.
fn send(to: SocketAddr, settings: Settings) -> Tally {
    let settings = Settings {
        to: Some(to.to_string()),
        messages: settings.messages.or(Some(200)),
        time: settings.time.or(span(10_000)),
        grace: span(1_000),
        threads: settings.threads.or(Some(1)),
        seed: Some(1),
        ..settings
    };
    let plan = Plan::new(settings, 7).unwrap();
    crate::source::run(plan, &Signals::take_over().unwrap(), true).unwrap().0
}

/// Runs a sink until `work` is done, which is told where it listens.
fn with_sink<T>(
    ledger: Option<&Path>,
    world: &str,
    work: impl FnOnce(SocketAddr) -> T,
) -> (T, Counts) {
    let folder = tempfile::tempdir().unwrap();
    let world_path = folder.path().join("world.toml");
    std::fs::write(&world_path, world).unwrap();
    let address = free_address();
    let settings = SinkSettings {
        listen: vec![address],
        world: Some(world_path),
        dns: None,
        ledger: ledger.map(Path::to_path_buf),
        threads: Some(1),
        time: span(60_000),
        // A last message of the test's own ends it.
        messages: None,
        quiet: true,
        json: false,
    };
    let live = Arc::new(crate::sink::Live::default());
    let shared = live.clone();
    let sink = thread::spawn(move || {
        crate::sink::run_with(&settings, &Signals::take_over().unwrap(), shared).unwrap()
    });
    let until = Instant::now() + Duration::from_secs(10);
    while std::net::TcpStream::connect(address).is_err() && Instant::now() < until {
        thread::sleep(Duration::from_millis(5));
    }
    let worked = work(address);
    live.stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let summary = sink.join().unwrap();
    (worked, *summary.counts())
}

fn settle(sent: &Path, arrived: &Path) -> Comparison {
    let mut sent = read(sent, Side::Source).unwrap().records;
    let mut arrived = read(arrived, Side::Sink).unwrap().records;
    compare(&mut sent, &mut arrived)
}

#[test]
fn every_conduct_brings_every_message_home() {
    let conducts: [(bool, Option<Bdat>, Option<u32>); 6] = [
        (false, None, None),
        (true, None, Some(7)),
        (false, Some(Bdat::Strict), None),
        (true, Some(Bdat::Strict), Some(1)),
        (true, Some(Bdat::Flight), None),
        (false, None, Some(1)),
    ];
    for (pipeline, bdat, per_connection) in conducts {
        let folder = tempfile::tempdir().unwrap();
        let (sent, arrived) = (folder.path().join("sent"), folder.path().join("arrived"));
        let settings = Settings {
            sessions: Some(9),
            pipeline,
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
fn the_books_find_what_a_sink_lost_damaged_and_doubled() {
    let folder = tempfile::tempdir().unwrap();
    let (sent, arrived) = (folder.path().join("sent"), folder.path().join("arrived"));
    let settings = Settings {
        messages: Some(1_000),
        ledger: Some(sent.clone()),
        size: Some(vec!["1KiB".parse().unwrap()]),
        ..Settings::default()
    };
    let world = "[default]\nlose = 0.05\ndamage = 0.05\ndouble = 0.05\n\
        data = [{ share = 0.05, reply = \"spam\" }]";
    let (tally, counts) = with_sink(Some(&arrived), world, |to| send(to, settings));
    let found = settle(&sent, &arrived);
    assert!(!found.is_clean());
    for kind in [&found.lost, &found.damaged, &found.duplicated] {
        assert!((15..110).contains(&kind.count), "{kind:?}");
    }
    assert_eq!(found.refused, counts.refused);
    assert_eq!(found.refused_but_arrived.count + found.misdirected.count, 0);
    assert_eq!(tally.counts.refused_for_good, counts.refused);
    assert_eq!(found.acknowledged, tally.counts.acknowledged);
}

#[test]
fn a_sink_that_breaks_and_turns_away_does_not_stop_a_run() {
    let world = "[default]\ndrop = 0.1\nrcpt = [{ share = 0.1, reply = \"rate-limited\" }]";
    let settings = Settings { pipeline: true, messages: Some(300), ..Settings::default() };
    let (tally, counts) = with_sink(None, world, |to| send(to, settings));
    assert_eq!(tally.counts.finished(), 300, "{:?} {:?}", tally.counts, tally.texts);
    assert!(tally.counts.broken > 5 && tally.counts.refused_for_now > 5, "{:?}", tally.counts);
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
        assert!(tally.counts.connections <= 10, "a refusal costs no connection");
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
