//! The control plane over real sockets: the admin server with workers that the test plays, and
//! `mailrace queue` as its client.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use mailrace::control::admin::{AdminServer, AdminSockets, Gateway, SOCKET_NAME};
use mailrace::control::events::{EventLog, EventTarget};
use mailrace::control::metrics::{Metrics, Sources, WorkerMetrics};
use mailrace::control::moment::Moment;
use mailrace::control::port::{Action, Answer, Entry, Filter, Request, State, Tally, WorkerPort};
use mailrace::control::status::{Phase, SpoolFigures, SpoolHealth, Status};
use mailrace::control::workers::{Times, Workers};
use mailrace::edge::lists::Lists;
use mailrace::message::MessageId;
use mailrace::smtp::address::{ForwardPath, Mailbox, ReversePath};
use serde_json::Value;
use tokio::sync::oneshot;

// ---- workers that the test plays -------------------------------------------------------------

type Letter = (Request, oneshot::Sender<Answer>);

/// Two threads, each with its part of a queue.
struct Fake {
    mailboxes: Vec<mpsc::Sender<Letter>>,
    hangs: Arc<AtomicBool>,
}

impl Fake {
    fn start(queues: Vec<Vec<Entry>>) -> Fake {
        let hangs = Arc::new(AtomicBool::new(false));
        let start = |(number, mut queue): (usize, Vec<Entry>)| {
            let (mailbox, letters) = mpsc::channel::<Letter>();
            let hangs = hangs.clone();
            thread::spawn(move || {
                let mut unanswered = Vec::new();
                for (request, answer) in letters {
                    if number == 1 && hangs.load(Ordering::Relaxed) {
                        unanswered.push(answer);
                        continue;
                    }
                    // Whoever asked may have gone.
                    let _ = answer.send(handle(&mut queue, request));
                }
            });
            mailbox
        };
        let mailboxes = queues.into_iter().enumerate().map(start).collect();
        Fake { mailboxes, hangs }
    }
}

impl WorkerPort for Fake {
    fn workers(&self) -> usize {
        self.mailboxes.len()
    }

    fn ask(&self, worker: usize, request: Request, answer: oneshot::Sender<Answer>) {
        self.mailboxes[worker].send((request, answer)).expect("the worker lives");
    }
}

fn fits(filter: &Filter, entry: &Entry) -> bool {
    let mailbox = |text: &str| Mailbox::from_stored(text).expect("the test's addresses are good");
    let from = match entry.from.as_str() {
        "" => ReversePath::Null,
        from => ReversePath::Mailbox(mailbox(from)),
    };
    let fits_recipient = |to: &String| filter.fits_recipient(&ForwardPath::Mailbox(mailbox(to)));
    filter.fits_entry(entry.state, &entry.site, entry.domain.as_deref())
        && filter.fits_originator(&from)
        && entry.to.iter().any(fits_recipient)
}

fn tally(entries: &[&Entry]) -> Tally {
    let mut tally = Tally::default();
    for entry in entries {
        match entry.parts {
            1 => tally.messages += 1,
            _ => tally.shared.push(entry.id),
        }
        tally.recipients += entry.to.len() as u64;
        tally.by_state.add(entry.state, 1);
    }
    tally.shared.dedup();
    tally
}

fn handle(queue: &mut Vec<Entry>, request: Request) -> Answer {
    match request {
        Request::Ping => Answer::Pong,
        Request::Count(filter) => {
            Answer::Counted(tally(&queue.iter().filter(|e| fits(&filter, e)).collect::<Vec<_>>()))
        }
        Request::List(page) => {
            let is_on_page = |e: &&Entry| Some(e.id) > page.after && fits(&page.filter, e);
            let entries: Vec<Entry> = queue.iter().filter(is_on_page).cloned().collect();
            let messages = entries.chunk_by(|a, b| a.id == b.id).take(page.limit);
            Answer::Listed(messages.flatten().cloned().collect())
        }
        Request::Show(id) => {
            Answer::Listed(queue.iter().filter(|entry| entry.id == id).cloned().collect())
        }
        Request::Why(_) => Answer::Explained(Vec::new()),
        Request::Act(action, selection) => {
            let is_meant = |entry: &Entry| {
                let state = match action {
                    Action::Retry => entry.state == State::Deferred,
                    Action::Release => entry.state == State::Held,
                    Action::Delete => entry.state != State::Active,
                };
                state
                    && (selection.ids.is_empty() || selection.ids.contains(&entry.id))
                    && fits(&selection.filter, entry)
            };
            let changed = tally(&queue.iter().filter(|e| is_meant(e)).collect::<Vec<_>>());
            match action {
                Action::Delete => queue.retain(|entry| !is_meant(entry)),
                Action::Retry | Action::Release => {
                    queue.iter_mut().filter(|entry| is_meant(entry)).for_each(|entry| {
                        entry.state = State::Ready;
                    });
                }
            }
            Answer::Changed(changed)
        }
    }
}

fn entry(id: u64, state: State, to: &[&str], site: &str, parts: u32) -> Entry {
    Entry {
        domain: None,
        id: MessageId(id),
        state,
        from: if id.is_multiple_of(2) { String::new() } else { "sender@example.com".to_owned() },
        to: to.iter().map(ToString::to_string).collect(),
        named: Vec::new(),
        site: site.to_owned(),
        size: 10_240,
        attempts: u32::from(state == State::Deferred),
        accepted: Moment(1_769_862_896_789),
        age_seconds: 90,
        next_attempt: (state == State::Deferred).then_some(Moment(1_769_863_000_000)),
        reason: (state == State::Deferred).then(|| "451 4.0.0 later".to_owned()),
        tls: None,
        verdict: None,
        parts,
    }
}

/// Message 1 is held, 2 ready, 3 deferred at one site of the first worker and ready at another of
/// the second.
fn queues() -> Vec<Vec<Entry>> {
    vec![
        vec![
            entry(1, State::Held, &["a@example.org"], "hold", 1),
            entry(3, State::Deferred, &["a@example.org", "b@example.org"], "example.org", 2),
        ],
        vec![
            entry(2, State::Ready, &["c@example.net"], "example.net", 1),
            entry(3, State::Ready, &["d@example.net"], "example.net", 2),
        ],
    ]
}

// ---- a gateway around them -------------------------------------------------------------------

struct Rig {
    directory: tempfile::TempDir,
    server: AdminServer,
    status: Arc<Status>,
    health: Arc<Mutex<SpoolHealth>>,
    hangs: Arc<AtomicBool>,
    metrics: Vec<Arc<WorkerMetrics>>,
}

fn rig() -> Rig {
    let directory = tempfile::tempdir().unwrap();
    let fake = Fake::start(queues());
    let hangs = fake.hangs.clone();
    let health = Arc::new(Mutex::new(SpoolHealth::Good));
    let shown = health.clone();
    let status = Arc::new(Status::new(move || SpoolFigures {
        health: *shown.lock().unwrap(),
        ..SpoolFigures::default()
    }));
    let metrics: Vec<_> = (0..2).map(|_| Arc::new(WorkerMetrics::default())).collect();
    let events = EventLog::start(EventTarget::File("/dev/null".into())).unwrap();
    let sources = Sources {
        workers: metrics.clone(),
        events: events.counters(),
        status: status.clone(),
        lists: Arc::new(Lists::new(&[])),
    };
    let times = Times { answer: Duration::from_millis(300), work: Duration::from_millis(600) };
    let gateway = Gateway {
        workers: Workers::new(Arc::new(fake), times),
        metrics: Metrics::new(sources),
        status: status.clone(),
    };
    let sockets = AdminSockets::bind("127.0.0.1:0".parse().unwrap(), directory.path()).unwrap();
    let server = sockets.serve("mx1.example.com", gateway).unwrap();
    events.close(Instant::now() + Duration::from_secs(5)).unwrap();
    Rig { directory, server, status, health, hangs, metrics }
}

impl Rig {
    fn tcp(&self, request: &str) -> Reply {
        exchange(TcpStream::connect(self.server.address()).unwrap(), request)
    }

    fn get(&self, target: &str) -> Reply {
        self.tcp(&format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    }

    fn unix(&self, method: &str, target: &str, body: &str) -> Reply {
        let stream = UnixStream::connect(self.directory.path().join(SOCKET_NAME)).unwrap();
        let length = body.len();
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        exchange(stream, &request)
    }

    /// Runs `mailrace queue` with a configuration that names this gateway.
    fn cli(&self, arguments: &[&str]) -> Output {
        let file = self.directory.path().join("mailrace.toml");
        fs::write(&file, configuration(self.directory.path())).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_mailrace"));
        command.arg("queue").args(arguments).arg("--config").arg(file).output().unwrap()
    }
}

fn configuration(data_dir: &Path) -> String {
    format!(
        "hostname = \"mx1.example.com\"\ndata_dir = \"{}\"\n\
         [[listener]]\naddress = \"127.0.0.1:2525\"\nservice = \"relay\"\n\
         [[route]]\nrecipient = \"*\"\nto = \"hold\"\n",
        data_dir.display()
    )
}

/// What came back over HTTP.
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{}\n{}", self.head, self.body))
    }

    fn error(&self) -> String {
        self.json()["error"].as_str().unwrap().to_owned()
    }
}

fn exchange(mut stream: impl Read + Write, request: &str) -> Reply {
    // A server that refuses early may close before it has read all; what it said still counts.
    let _ = stream.write_all(request.as_bytes());
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    let text = String::from_utf8(text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no reply: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Reply { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

// ---- health and metrics ----------------------------------------------------------------------

#[test]
fn ready_says_why_not() {
    let rig = rig();
    let ready = || {
        let reply = rig.get("/ready");
        (reply.status, reply.json()["reason"].as_str().map(str::to_owned))
    };
    assert_eq!(ready(), (503, Some("reading the log of messages".to_owned())));
    rig.status.enter(Phase::Accepting);
    assert_eq!(ready(), (200, None));
    *rig.health.lock().unwrap() = SpoolHealth::Full;
    assert_eq!(ready(), (503, Some("the disk of the log is full".to_owned())));
    *rig.health.lock().unwrap() = SpoolHealth::Failed;
    assert_eq!(ready(), (503, Some("the log cannot be written".to_owned())));
    rig.status.enter(Phase::Stopping);
    assert_eq!(ready(), (503, Some("stopping".to_owned())));
    rig.server.stop();
}

#[test]
fn health_names_the_worker_that_hangs() {
    let rig = rig();
    let reply = rig.get("/health");
    assert_eq!((reply.status, reply.json()["workers"].as_u64()), (200, Some(2)));
    rig.hangs.store(true, Ordering::Relaxed);
    let reply = rig.get("/health");
    assert_eq!(reply.status, 503);
    assert_eq!(reply.json()["reason"], "no answer within 0.3 s from worker 1");
    let reply = rig.get("/api/v1/queue/count");
    assert_eq!((reply.status, reply.error().contains("worker 1")), (503, true));
    assert_eq!(rig.get("/metrics").status, 200, "metrics need no answer");
    rig.server.stop();
}

#[test]
fn metrics_are_served_as_text() {
    let rig = rig();
    rig.metrics[0].messages_accepted.count();
    rig.metrics[1].messages_accepted.count();
    let reply = rig.get("/metrics");
    assert_eq!(reply.status, 200);
    assert!(reply.head.contains("content-type: application/openmetrics-text; version=1.0.0"));
    assert!(reply.body.contains("\nmailrace_messages_accepted_total 2\n"), "{}", reply.body);
    assert!(reply.body.ends_with("# EOF\n"));
    rig.server.stop();
}

// ---- the queue -------------------------------------------------------------------------------

#[test]
fn counts_and_lists_put_workers_together() {
    let rig = rig();
    let count = rig.get("/api/v1/queue/count").json();
    assert_eq!(
        count,
        serde_json::json!({
            "messages": 3, "recipients": 5,
            "by_state": { "ready": 2, "active": 0, "deferred": 1, "held": 1, "quarantined": 0 },
        })
    );
    for (query, messages, recipients) in [
        ("state=held", 1, 1),
        ("to=*%40example.org", 2, 3),
        ("from=%3C%3E", 1, 1),
        ("site=example.net", 2, 2),
        ("site=example.net&state=held", 0, 0),
    ] {
        let count = rig.get(&format!("/api/v1/queue/count?{query}")).json();
        let found = (count["messages"].as_u64(), count["recipients"].as_u64());
        assert_eq!(found, (Some(messages), Some(recipients)), "{query}");
    }
    let ids = |listing: &Value| -> Vec<String> {
        let entries = listing["entries"].as_array().unwrap().iter();
        entries.map(|entry| entry["id"].as_str().unwrap()[11..].to_owned()).collect()
    };
    let all = rig.get("/api/v1/queue").json();
    assert_eq!(ids(&all), ["01", "02", "03", "03"]);
    assert!(all.get("next").is_none());
    let first = rig.get("/api/v1/queue?limit=2").json();
    assert_eq!(ids(&first), ["01", "02"]);
    let next = first["next"].as_str().unwrap();
    let second = rig.get(&format!("/api/v1/queue?limit=2&after={next}")).json();
    assert_eq!(ids(&second), ["03", "03"]);
    assert_eq!(second["entries"][1]["next_attempt"], "2026-01-31T12:36:40.000Z");
    assert_eq!(
        rig.get("/api/v1/queue/0000000000003").json()["entries"].as_array().unwrap().len(),
        2
    );
    rig.server.stop();
}

#[test]
fn what_is_not_a_question_is_refused_with_a_sentence() {
    let rig = rig();
    for (target, status, part) in [
        ("/nowhere", 404, "nothing"),
        ("/api/v1/queue/0000000000009", 404, "no such message"),
        ("/api/v1/queue/xyz", 400, "13 letters"),
        ("/api/v1/queue?staet=held", 400, "staet"),
        ("/api/v1/queue?to=example.org", 400, "`*`"),
        ("/api/v1/queue?limit=many", 400, "limit"),
        ("/api/v1/queue/count?limit=1", 400, "limit"),
    ] {
        let reply = rig.get(target);
        assert_eq!(reply.status, status, "{target}");
        assert!(reply.error().contains(part), "{target}: {}", reply.error());
    }
    rig.server.stop();
}

#[test]
fn tcp_changes_nothing() {
    let rig = rig();
    for action in ["retry", "release", "delete"] {
        let body = r#"{"all":true}"#;
        let reply = rig.tcp(&format!(
            "POST /api/v1/queue/{action} HTTP/1.1\r\nHost: localhost\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        assert_eq!(reply.status, 405);
        assert!(reply.error().contains("admin.sock"));
    }
    assert_eq!(rig.get("/api/v1/queue/count").json()["messages"], 3);
    rig.server.stop();
}

#[test]
fn a_foreign_host_is_refused_over_tcp() {
    let rig = rig();
    let ask =
        |host: &str| rig.tcp(&format!("GET /api/v1/queue/count HTTP/1.1\r\n{host}\r\n")).status;
    assert_eq!(ask("Host: evil.example:8025\r\n"), 421);
    assert_eq!(ask("Host: localhost\r\nHost: evil.example\r\n"), 421);
    assert_eq!(ask("Host: 127.0.0.1:8025\r\n"), 200);
    assert_eq!(ask("Host: mx1.example.com\r\n"), 200);
    let reply = rig.get("/api/v1/queue/count");
    assert!(!reply.head.contains("access-control"), "no page may read this");
    assert!(reply.head.contains("x-content-type-options: nosniff"));
    rig.server.stop();
}

#[test]
fn the_unix_socket_changes_the_queue() {
    let rig = rig();
    let act = |action: &str, body: &str| {
        let reply = rig.unix("POST", &format!("/api/v1/queue/{action}"), body);
        let json = reply.json();
        (reply.status, json["messages"].as_u64(), json["recipients"].as_u64())
    };
    assert_eq!(act("retry", r#"{"ids":["0000000000003"]}"#), (200, Some(1), Some(2)));
    assert_eq!(act("retry", r#"{"all":true}"#), (200, Some(0), Some(0)));
    assert_eq!(act("release", r#"{"filter":{"state":"held"}}"#), (200, Some(1), Some(1)));
    assert_eq!(act("delete", r#"{"all":true,"limit":2}"#), (200, Some(2), Some(2)));
    assert_eq!(act("delete", r#"{"all":true,"limit":0}"#), (200, Some(0), Some(0)));
    assert_eq!(rig.get("/api/v1/queue/count").json()["messages"], 1);
    assert_eq!(act("delete", r#"{"all":true}"#), (200, Some(1), Some(3)));
    for (action, body, status) in [
        ("delete", "", 400),
        ("delete", "{}", 400),
        ("delete", r#"{"limit":5}"#, 400),
        ("delete", r#"{"filter":{"staet":"held"}}"#, 400),
        ("explode", r#"{"all":true}"#, 404),
    ] {
        let reply = rig.unix("POST", &format!("/api/v1/queue/{action}"), body);
        assert_eq!(reply.status, status, "{action} {body}");
        assert!(!reply.error().is_empty());
    }
    rig.server.stop();
}

#[test]
fn bodies_and_heads_are_bounded() {
    let rig = rig();
    let body = format!("{{\"all\":true{}}}", " ".repeat(2 << 20));
    assert_eq!(rig.unix("POST", "/api/v1/queue/delete", &body).status, 413);
    let head =
        format!("GET /ready HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(64 << 10));
    assert_eq!(rig.tcp(&head).status, 431);
    rig.server.stop();
}

#[test]
fn silent_connections_do_not_shut_others_out_for_long() {
    let rig = rig();
    let address: SocketAddr = rig.server.address();
    let silent: Vec<_> = (0..80).map(|_| TcpStream::connect(address).unwrap()).collect();
    rig.status.enter(Phase::Accepting);
    let start = Instant::now();
    assert_eq!(rig.get("/ready").status, 200);
    assert!(start.elapsed() < Duration::from_secs(30));
    drop(silent);
    rig.server.stop();
}

#[test]
fn the_end_removes_the_socket() {
    let rig = rig();
    let path = rig.directory.path().join(SOCKET_NAME);
    assert!(path.exists());
    let (address, server) = (rig.server.address(), rig.server);
    server.stop();
    assert!(!path.exists());
    assert!(TcpStream::connect(address).is_err());
}

// ---- mailrace queue --------------------------------------------------------------------------

fn text(output: &[u8]) -> String {
    String::from_utf8(output.to_vec()).unwrap()
}

#[test]
fn the_queue_command_counts_lists_and_shows() {
    let rig = rig();
    let json = rig.cli(&["count", "--json"]);
    assert!(json.status.success(), "{}", text(&json.stderr));
    let count: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&count["messages"], &count["recipients"]), (&3.into(), &5.into()));
    let count = rig.cli(&["count"]);
    assert_eq!(text(&count.stdout), "3 messages, 5 recipients (2 ready, 1 deferred, 1 held)\n");

    let list = text(&rig.cli(&["list"]).stdout);
    assert_eq!(list.lines().count(), 5, "{list}");
    assert!(list.starts_with("ID "), "{list}");
    assert!(!list.contains('\x1b'), "no colour into a pipe");
    let held = rig.cli(&["list", "--state", "held", "--json"]);
    let held: Value = serde_json::from_slice(&held.stdout).unwrap();
    assert_eq!(held.as_array().unwrap().len(), 1);
    let none = rig.cli(&["list", "--to", "*@nowhere.example", "--json"]);
    assert_eq!(text(&none.stdout), "[]\n");
    let limited = rig.cli(&["list", "--limit", "2", "--json"]);
    let limited: Value = serde_json::from_slice(&limited.stdout).unwrap();
    assert_eq!(limited.as_array().unwrap().len(), 2);

    let show = text(&rig.cli(&["show", "0000000000003"]).stdout);
    assert!(show.contains("451 4.0.0 later") && show.contains("d@example.net"), "{show}");
    let missing = rig.cli(&["show", "0000000000009"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("no such message"));
    rig.server.stop();
}

#[test]
fn the_queue_command_changes() {
    let rig = rig();
    let retry = rig.cli(&["retry", "--site", "example.org"]);
    assert_eq!(text(&retry.stdout), "tried again: 1 message, 2 recipients (1 deferred)\n");
    let release = rig.cli(&["release", "0000000000001"]);
    assert_eq!(text(&release.stdout), "released: 1 message, 1 recipient (1 held)\n");
    let again = rig.cli(&["release", "0000000000001"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("none of these"), "{}", text(&again.stderr));
    let delete = rig.cli(&["delete", "--all", "--json"]);
    let deleted: Value = serde_json::from_slice(&delete.stdout).unwrap();
    assert_eq!(deleted["messages"], 3);
    rig.server.stop();
}

#[test]
fn the_queue_command_says_that_nobody_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mailrace.toml");
    fs::write(&file, configuration(directory.path())).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mailrace"));
    let output = command.args(["queue", "count", "--config"]).arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("admin.sock: is mailrace running with this configuration?"), "{said}");
}
