//! Messages are shown to rspamd before they are acknowledged: a server of this file says what a test
//! wants to hear, and the real one from Debian finds what it is known to find.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::client::Client;
use crate::gateway::{CHECKS_WITHOUT_DNS, Gateway, PATIENCE, wait_until};
use crate::interop::are_here;
use crate::nameserver::free_port;
use crate::overload::ask;
use crate::postfix::cache;

const CONFIG: &str = r#"
[[listener]]
address = "127.0.0.1:0"
service = "mx"
[relay]
networks = []
[domains]
accept = ["here.test"]
[[route]]
recipient = "*"
to = "maildir:{dir}/mail"
[edge]
greeting_wait = "0s"
tarpit = "0s"
checks.pipelining = "off"
checks.helo_bare = "off"
checks.helo_forged = "off"
checks.helo_literal = "off"
"#;

/// A gateway that asks the rspamd at this address; `more` goes into `[edge.rspamd]`.
fn start(rspamd: &str, more: &str) -> Gateway {
    Gateway::start(&format!("{}{more}", config(rspamd)))
}

pub fn config(rspamd: &str) -> String {
    format!("{CONFIG}{CHECKS_WITHOUT_DNS}[edge.rspamd]\nurl = \"http://{rspamd}\"\n")
}

// ---- a server that says what a test wants to hear ------------------------------------------

/// What it was shown.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The lines of the request's head, in lower case but for their values.
    head: Vec<(String, String)>,
    pub message: Vec<u8>,
}

impl Shown {
    pub fn values(&self, name: &str) -> Vec<&str> {
        let named = self.head.iter().filter(|(known, _)| known == name);
        named.map(|(_, value)| &**value).collect()
    }

    pub fn holds(&self, text: &str) -> bool {
        self.message.windows(text.len()).any(|part| part == text.as_bytes())
    }
}

/// It listens until the test ends.
pub struct Fake {
    pub authority: String,
    shown: Arc<Mutex<Vec<Shown>>>,
}

impl Fake {
    /// Gives what `answer` has for a message: a status and a body; with `None` it says nothing.
    pub fn start(answer: impl Fn(&Shown) -> Option<(u16, String)> + Send + Sync + 'static) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let authority = listener.local_addr().expect("bound").to_string();
        let shown: Arc<Mutex<Vec<Shown>>> = Arc::default();
        let (all, answer) = (shown.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (all, answer) = (all.clone(), answer.clone());
                std::thread::spawn(move || while visit(&stream, &all, &*answer).is_some() {});
            }
        });
        Fake { authority, shown }
    }

    /// Says this to every message.
    pub fn saying(answer: Value) -> Fake {
        Fake::start(move |_| Some((200, answer.to_string())))
    }

    pub fn shown(&self) -> Vec<Shown> {
        self.shown.lock().expect("no panic").clone()
    }
}

/// One request of a connection; `None` if there is none.
fn visit(
    stream: &TcpStream,
    all: &Mutex<Vec<Shown>>,
    answer: &dyn Fn(&Shown) -> Option<(u16, String)>,
) -> Option<()> {
    let shown = request(&mut BufReader::new(stream))?;
    all.lock().expect("no panic").push(shown.clone());
    let Some((status, body)) = answer(&shown) else {
        // Until the other side has had enough.
        let mut stream = stream;
        let _ = stream.read(&mut [0]);
        return None;
    };
    let length = body.len();
    let text = format!("HTTP/1.1 {status} So\r\nContent-Length: {length}\r\n\r\n{body}");
    let mut stream = stream;
    stream.write_all(text.as_bytes()).ok()
}

fn request(from: &mut impl BufRead) -> Option<Shown> {
    let mut line = || {
        let mut line = String::new();
        from.read_line(&mut line).ok().filter(|&octets| octets > 0)?;
        Some(line.trim_end().to_owned())
    };
    assert_eq!(line()?, "POST /checkv2 HTTP/1.1");
    let mut head = Vec::new();
    loop {
        let line = line()?;
        match line.split_once(':') {
            Some((name, value)) => head.push((name.to_lowercase(), value.trim().to_owned())),
            None => break,
        }
    }
    let mut shown = Shown { head, message: Vec::new() };
    if let [length] = shown.values("content-length")[..] {
        let mut message = vec![0; length.parse().expect("a number")];
        from.read_exact(&mut message).ok()?;
        shown.message = message;
        return Some(shown);
    }
    loop {
        let mut length = String::new();
        from.read_line(&mut length).ok()?;
        let length = usize::from_str_radix(length.trim_end(), 16).ok()?;
        let mut chunk = vec![0; length + 2];
        from.read_exact(&mut chunk).ok()?;
        shown.message.extend_from_slice(&chunk[..length]);
        if length == 0 {
            return Some(shown);
        }
    }
}

// ---- what is asked of the gateway ----------------------------------------------------------

pub fn client(gateway: &Gateway) -> Client {
    let mut client = Client::connect(gateway.smtp(0));
    client.command("EHLO client.test").expect("250");
    client
}

/// The one message in a Maildir of `here.test`.
fn delivered(gateway: &Gateway, local: &str) -> String {
    String::from_utf8(gateway.maildir("here.test", local, 1).remove(0)).expect("text")
}

pub const SUBJECT: &str = "X-Spam: No\r\nSubject: cheap\r\n pills\r\nX-Old: 1\r\nX-Old: 2\r\n";
const BODY: &str = "\r\n.Buy them.\r\n";

/// The message says itself how it is answered: by the name of its recipient.
#[test]
fn what_rspamd_advises_is_done() {
    let fake = Fake::start(|shown| {
        let to = shown.values("rcpt")[0].split('@').next().expect("a local part");
        let answer = match to {
            "plain" => json!({"action": "no action", "score": 0.5, "required_score": 15}),
            "grey" => json!({"action": "greylist", "score": 4.5}),
            "marked" => json!({
                "action": "add header", "score": 7.25, "required_score": 15,
                "symbols": {"BAD_THING": {"score": 7.25}},
                "milter": {
                    "add_headers": {"X-Rspamd": {"value": "a\n\tb", "order": 1}},
                    "remove_headers": {"X-Old": 1},
                },
            }),
            "subject" => json!({"action": "rewrite subject", "score": 9, "subject": "*** \u{e4}"}),
            "later" => json!({
                "action": "soft reject", "messages": {"smtp_message": "Come again\r\n250 Ok"},
            }),
            "never" | "postmaster" => json!({
                "action": "reject", "score": 20, "messages": {"smtp_message": "Gtube pattern"},
            }),
            "kept" => json!({"action": "reject", "milter": {"reject": "quarantine"}}),
            to => panic!("{to}"),
        };
        Some((200, answer.to_string()))
    });
    let mut gateway = start(&fake.authority, "");
    let mut client = client(&gateway);
    let message = format!("{SUBJECT}{BODY}");
    let mut send = |to: &str| {
        client.envelope("a@there.test", &[&format!("{to}@here.test")]);
        client.data(message.as_bytes())
    };

    let id = send("plain").message_id();
    let plain = delivered(&gateway, "plain");
    let begin = "Return-Path: <a@there.test>\r\nReceived: ";
    assert!(plain.starts_with(begin) && plain.ends_with(&message), "{plain}");
    assert!(!plain.contains("X-Mailrace-Verdict"), "{plain}");
    let shown = fake.shown().remove(0);
    for (name, value) in [
        ("ip", "127.0.0.1"),
        ("helo", "client.test"),
        ("from", "a@there.test"),
        ("rcpt", "plain@here.test"),
        ("deliver-to", "plain@here.test"),
        ("queue-id", &id),
    ] {
        assert_eq!(shown.values(name), [value], "{name}");
    }
    assert!(
        shown.message.starts_with(b"Received: ") && shown.message.ends_with(message.as_bytes())
    );
    let why = gateway.said(&["why", &id]);
    assert!(why.contains("rspamd") && why.contains("no action, score 0.5 of 15"), "{why}");

    send("grey").expect("250");
    assert!(delivered(&gateway, "grey").ends_with(&message));

    let id = send("marked").message_id();
    let marked = delivered(&gateway, "marked");
    let body = format!("Subject: cheap\r\n pills\r\nX-Old: 2\r\n{BODY}");
    assert!(marked.ends_with(&body), "{marked}");
    for field in ["; rspamd=tag\r\n", "\r\nX-Spam: Yes\r\n", "\r\nX-Rspamd: a\r\n\tb\r\n"] {
        assert!(marked.contains(field), "{field}{marked}");
    }
    assert!(!marked.contains("X-Spam: No"), "{marked}");
    let why = gateway.said(&["why", &id]);
    assert!(why.contains("add header, score 7.25 of 15: BAD_THING 7.25"), "{why}");

    send("subject").expect("250");
    let rewritten = delivered(&gateway, "subject");
    let body =
        format!("X-Spam: No\r\nSubject: =?UTF-8?B?KioqIMOk?=\r\nX-Old: 1\r\nX-Old: 2\r\n{BODY}");
    assert!(rewritten.ends_with(&body), "{rewritten}");

    assert_eq!(send("later").0, "450 4.7.1 Come again  250 Ok");
    assert_eq!(send("never").0, "554 5.7.1 Gtube pattern");
    // The postmaster hears whatever comes for him.
    send("postmaster").expect("250");
    assert!(delivered(&gateway, "postmaster").contains("; rspamd=reject\r\n"));
    let id = send("kept").message_id();
    let list = gateway.said(&["queue", "list", "--state", "quarantined"]);
    assert!(list.contains(&id), "{list}");

    let page = ask(&gateway, "/metrics");
    for line in [
        "mailrace_rspamd_verdicts_total{advice=\"no_action\"} 1\n",
        "mailrace_rspamd_verdicts_total{advice=\"reject\"} 2\n",
        "mailrace_rspamd_verdicts_total{advice=\"quarantine\"} 1\n",
        "mailrace_findings_total{check=\"rspamd\"} 6\n",
        "mailrace_rspamd_seconds_count 8\n",
    ] {
        assert!(page.contains(line), "{line}{page}");
    }
    gateway.terminate();
}

/// A large message is shown as it was sent, without stuffed dots; its fields stay as they are.
#[test]
fn a_large_message_is_shown_whole_and_marked_in_front() {
    let subject = json!({"action": "rewrite subject", "score": 9, "subject": "*** cheap"});
    let fake = Fake::saying(subject);
    let mut gateway = start(&fake.authority, "size = \"3MiB\"");
    let mut client = client(&gateway);
    let line = ".a line that begins with a dot, as one in a thousand does\r\n";
    let plain = "a line as most are, with nothing special in it at all\r\n";
    for (to, lines) in [("dots", line), ("plain", plain)] {
        let message = format!("Subject: cheap\r\n\r\n{}", lines.repeat(40_000));
        client.envelope("a@there.test", &[&format!("{to}@here.test")]);
        let id = client.data(message.as_bytes()).message_id();
        let why = gateway.said(&["why", &id]);
        assert!(why.contains("too large for its fields to be changed"), "{why}");
        let shown = fake.shown().pop().expect("it was asked");
        assert!(shown.message.starts_with(b"Received: "));
        assert!(shown.message.ends_with(message.as_bytes()), "{} octets", shown.message.len());
        let marked = delivered(&gateway, to);
        assert!(marked.ends_with(&message) && marked.contains("\r\nX-Spam: Yes\r\n"), "{to}");
        assert!(!marked.contains("*** cheap"), "{to}");
    }

    client.envelope("a@there.test", &["huge@here.test"]);
    let message = format!("Subject: cheap\r\n\r\n{}", plain.repeat(80_000));
    client.data(message.as_bytes()).expect("250");
    assert!(!delivered(&gateway, "huge").contains("X-Spam"));
    assert_eq!(fake.shown().len(), 2);
    assert!(
        ask(&gateway, "/metrics")
            .contains("mailrace_rspamd_verdicts_total{advice=\"not_shown\"} 1\n")
    );
    gateway.terminate();
}

/// A message that begins with white space continues the field in front of it: never one of ours.
#[test]
fn a_sender_adds_nothing_to_what_marks_its_message() {
    let fake = Fake::saying(json!({"action": "add header", "score": 9}));
    let mut gateway = start(&fake.authority, "");
    let mut client = client(&gateway);
    let plain = "a line as most are, with nothing special in it at all\r\n";
    for (to, begin) in [("blank", " No, it is not\r\n"), ("dot", ".\tNo, it is not\r\n")] {
        for (size, lines) in [("small", 1), ("large", 2_000)] {
            let to = format!("{to}{size}");
            let message = format!("{begin}Subject: cheap\r\n\r\n{}", plain.repeat(lines));
            client.envelope("a@there.test", &[&format!("{to}@here.test")]);
            // As it is: the dot is one that its reader takes away.
            client.command("DATA").expect("354");
            client.send(format!("{message}.\r\n").as_bytes());
            client.reply().expect("250");
            let marked = delivered(&gateway, &to);
            assert!(marked.contains("X-Spam: Yes\r\nReceived: "), "{to}{marked}");
            let received = marked.find("\r\nReceived: ").expect("it is there");
            assert!(marked.find("No, it is not") > Some(received), "{to}{marked}");
            assert!(marked.find("X-Mailrace-Verdict: ") < Some(received), "{to}{marked}");
        }
    }
    gateway.terminate();
}

#[test]
fn a_failure_is_no_verdict() {
    let fake = Fake::start(|shown| {
        let answers = [("status", 500, "{}"), ("strange", 200, "<html>")];
        let found = answers.into_iter().find(|(word, ..)| shown.holds(word));
        found.map(|(_, status, body)| (status, body.to_owned()))
    });
    for (deadline, cases) in [
        ("60s", &[("status", "status"), ("strange", "strange")][..]),
        ("500ms", &[("silent", "late")]),
    ] {
        let mut taking = start(&fake.authority, &format!("deadline = \"{deadline}\""));
        let mut sender = client(&taking);
        for (to, reason) in cases {
            sender.envelope("a@there.test", &[&format!("{to}@here.test")]);
            sender.data(format!("Subject: {to}\r\n\r\n").as_bytes()).expect("250");
            assert!(!delivered(&taking, to).contains("X-Mailrace-Verdict"));
            let page = ask(&taking, "/metrics");
            let line = format!("mailrace_rspamd_failures_total{{reason=\"{reason}\"}} 1\n");
            assert!(page.contains(&line), "{line}{page}");
        }
        taking.terminate();
    }

    let mut strict = start(&fake.authority, "deadline = \"500ms\"\non_failure = \"defer\"");
    let mut sender = client(&strict);
    for to in ["status", "strange", "silent"] {
        sender.envelope("a@there.test", &[&format!("{to}@here.test")]);
        let reply = sender.data(format!("Subject: {to}\r\n\r\n").as_bytes());
        assert_eq!(reply.0, "451 4.7.1 Cannot check the message now, try later", "{to}");
    }
    // A large one too, and the session goes on.
    sender.envelope("a@there.test", &["silent@here.test"]);
    let large = format!("Subject: silent\r\n\r\n{}", "a line\r\n".repeat(100_000));
    sender.data(large.as_bytes()).expect("451 4.7.1");
    strict.terminate();

    let nobody = format!("127.0.0.1:{}", free_port());
    let mut alone = start(&nobody, "");
    let mut sender = client(&alone);
    sender.envelope("a@there.test", &["alone@here.test"]);
    sender.data(b"Subject: alone\r\n\r\n").expect("250");
    delivered(&alone, "alone");
    let line = "mailrace_rspamd_failures_total{reason=\"unreachable\"} 1\n";
    let page = ask(&alone, "/metrics");
    assert!(page.contains(line), "{page}");
    alone.terminate();
}

#[test]
fn nothing_is_acknowledged_before_the_verdict_and_others_are_served_meanwhile() {
    let (arrived, arrival) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let (arrived, released) = (Mutex::new(arrived), Mutex::new(released));
    let fake = Fake::start(move |shown| {
        if shown.holds("Subject: slow") {
            arrived.lock().expect("no panic").send(()).expect("the test waits");
            let _ = released.lock().expect("no panic").recv_timeout(PATIENCE);
        }
        Some((200, json!({"action": "no action"}).to_string()))
    });
    let mut gateway = start(&fake.authority, "deadline = \"60s\"");
    let mut slow = client(&gateway);
    slow.envelope("a@there.test", &["slow@here.test"]);
    slow.command("DATA").expect("354");
    let began = Instant::now();
    slow.send(b"Subject: slow\r\n\r\n.\r\n");
    arrival.recv_timeout(PATIENCE).expect("rspamd is asked");
    let mut quick = client(&gateway);
    quick.envelope("a@there.test", &["quick@here.test"]);
    let quick_began = Instant::now();
    quick.data(b"Subject: quick\r\n\r\n").expect("250");
    let mut took = quick_began.elapsed();
    delivered(&gateway, "quick");
    slow.stream().set_nonblocking(true).expect("a socket option");
    let early = slow.stream().peek(&mut [0]).expect_err("nothing yet");
    assert_eq!(early.kind(), ErrorKind::WouldBlock);
    slow.stream().set_nonblocking(false).expect("a socket option");
    release.send(()).expect("it waits");
    slow.reply().expect("250");
    took += began.elapsed();
    delivered(&gateway, "slow");
    // What both clients have waited for is either rspamd's or ours, and no part of it both.
    let page = ask(&gateway, "/metrics");
    let sum = |name: &str| {
        let line = page.lines().find_map(|line| line.strip_prefix(name)).expect(name);
        line.trim().parse::<f64>().expect("a number")
    };
    let (theirs, ours) = (sum("mailrace_rspamd_seconds_sum"), sum("mailrace_accept_seconds_sum"));
    assert!(theirs + ours <= took.as_secs_f64(), "{theirs} + {ours} of {took:?}");
    gateway.terminate();
}

// ---- the real one --------------------------------------------------------------------------

/// rspamd from Debian, unpacked by `.ci/setup`, with a mount namespace of its own in which it is
/// installed; it ends with the test.
struct Rspamd {
    home: TempDir,
    child: Child,
    authority: String,
}

const SCRIPT: &str = r#"set -e
mount -t overlay overlay -o lowerdir="$2/usr:/usr" /usr
exec /usr/bin/rspamd -f -i -c "$1/rspamd.conf"
"#;

/// No modules, no DNS, no statistics: the patterns that every rspamd knows.
const RSPAMD_CONF: &str = r#"
options {
    pidfile = "{home}/pid";
    url_tld = "{home}/tld";
    filters = "";
    tempdir = "{home}";
    hs_cache_dir = "{home}";
    cache_file = "{home}/symbols.cache";
    enable_test_patterns = true;
    control_socket = "{home}/control mode=0600";
    dns { nameserver = ["127.0.0.1:9"]; timeout = 100ms; }
}
logging { type = "console"; level = "info"; }
actions { reject = 15; rewrite_subject = 8; add_header = 6; greylist = 4; subject = "[pills] %s"; }
worker "normal" { bind_socket = "127.0.0.1:{port}"; count = 1; }
"#;

impl Rspamd {
    fn start() -> Rspamd {
        let root = cache("rspamd").join("root");
        assert!(rustix::process::geteuid().is_root(), "mounting needs root");
        let home = TempDir::new().expect("a temporary directory");
        let port = free_port();
        let conf = RSPAMD_CONF.replace("{home}", &home.path().display().to_string());
        let conf = conf.replace("{port}", &port.to_string());
        fs::write(home.path().join("rspamd.conf"), conf).expect("a file");
        // The list of Debian takes it some ten seconds to compile.
        fs::write(home.path().join("tld"), "com\norg\ntest\n").expect("a file");
        let log = fs::File::create(home.path().join("log")).expect("a file");
        let child = Command::new("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", SCRIPT, "rspamd"])
            .arg(home.path())
            .arg(root)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .expect("unshare is there");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let rspamd = Rspamd { home, child, authority: address.to_string() };
        let answers = wait_until(|| ping(address).then_some(()));
        assert!(answers.is_some(), "rspamd does not answer:\n{}", rspamd.log());
        rspamd
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.home.path().join("log")).unwrap_or_default()).into()
    }
}

impl Drop for Rspamd {
    fn drop(&mut self) {
        // With the first process of the namespace go all others.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ping(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    let mut answer = Vec::new();
    let asked = stream.write_all(b"GET /ping HTTP/1.0\r\n\r\n");
    asked.is_ok() && stream.read_to_end(&mut answer).is_ok() && answer.ends_with(b"pong\r\n")
}

/// The pattern that is made for tests, in the form whose first letter asks for an action.
fn gtube(first: char) -> String {
    format!("{first}JS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X\r\n")
}

#[test]
fn the_real_rspamd_rejects_marks_and_lets_through() {
    if !are_here(&["rspamd", "unshare"]) {
        return;
    }
    let rspamd = Rspamd::start();
    let mut gateway = start(&rspamd.authority, "");
    let mut client = client(&gateway);
    let mut send = |to: &str, body: &str| {
        client.envelope("a@there.test", &[&format!("{to}@here.test")]);
        let header = "From: a@there.test\r\nTo: b@here.test\r\nSubject: cheap\r\n\
                      MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n";
        let message = format!("{header}Message-ID: <{to}@there.test>\r\n\r\n--b\r\n\r\n{body}");
        client.data(message.as_bytes())
    };
    for to in ["clean", "again"] {
        send(to, "How are you?\r\n").expect("250");
        let clean = delivered(&gateway, to);
        assert!(!clean.contains("X-Spam") && clean.contains("Subject: cheap\r\n"), "{clean}");
    }
    send("never", &gtube('X')).expect("554 5.7.1 Gtube pattern");
    send("marked", &gtube('Y')).expect("250");
    assert!(delivered(&gateway, "marked").contains("\r\nX-Spam: Yes\r\n"));
    send("subject", &gtube('Z')).expect("250");
    let rewritten = delivered(&gateway, "subject");
    assert!(rewritten.contains("\r\nSubject: [pills] cheap\r\n"), "{rewritten}");
    // Large ones, with dots and without: in the two ways in which a message is sent.  The pattern is
    // only looked for in short parts.
    for (to, line) in [("large", "all work and no play\r\n"), ("dotted", ".all work\r\n")] {
        let parts = |text: &str| format!("{text}--b\r\n\r\n{}--b--\r\n", line.repeat(30_000));
        send(to, &parts("How are you?\r\n")).expect("250");
        delivered(&gateway, to);
        send("never", &parts(&gtube('X'))).expect("554 5.7.1");
    }
    let page = ask(&gateway, "/metrics");
    for line in [
        "mailrace_rspamd_verdicts_total{advice=\"no_action\"} 4\n",
        "mailrace_rspamd_verdicts_total{advice=\"reject\"} 3\n",
        "mailrace_rspamd_verdicts_total{advice=\"add_header\"} 1\n",
        "mailrace_rspamd_verdicts_total{advice=\"rewrite_subject\"} 1\n",
    ] {
        assert!(page.contains(line), "{line}{page}\n{}", rspamd.log());
    }
    gateway.terminate();
}
