//! rspamd and messages that are passed on in-line: it has its say before the end of the data is passed
//! on, and hears of the envelope as for any other.

use std::io::{BufRead, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc;

use mailrace::limits;
use serde_json::json;

use crate::gateway::{Gateway, PATIENCE};
use crate::inline::backend;
use crate::overload::ask;
use crate::rspamd::{Fake, SUBJECT, client, config};
use crate::sink::{Manners, Sink};

/// Messages go on to `next_hop` while they come.
fn in_line(rspamd: &str, next_hop: SocketAddr) -> String {
    let config = config(rspamd);
    let config = config.replace("service = \"mx\"", "service = \"mx\"\ndelivery = \"inline\"");
    config.replace("maildir:{dir}/mail", &format!("smtp://{next_hop}"))
}

/// The next hop sees the end of those alone that rspamd lets through, small and large.
#[test]
fn messages_in_line_wait_for_the_verdict_before_their_end() {
    let fake = Fake::start(|shown| {
        let answer = match shown.values("rcpt")[0].split('@').next().expect("a local part") {
            "fine" => json!({"action": "rewrite subject", "score": 9, "subject": "*** x"}),
            "later" => json!({"action": "soft reject"}),
            "never" => json!({
                "action": "reject", "messages": {"smtp_message": "Gtube pattern"},
            }),
            _ => return Some((500, "{}".to_owned())),
        };
        Some((200, answer.to_string()))
    });
    // Of those that are refused it sees no end.
    let sink = Sink::start(Manners { forgives_ends: true, ..Manners::default() });
    let config = in_line(&fake.authority, sink.address());
    let more = "size = \"3MiB\"\ndeadline = \"60s\"\non_failure = \"defer\"";
    let mut gateway = Gateway::start(&format!("{config}{more}"));
    let mut client = client(&gateway);
    let dots = ".a line that begins with a dot, as one in a thousand does\r\n";
    let plain = "a line as most are, with nothing special in it at all\r\n";
    let mut taken = 0;
    for lines in [plain.to_owned(), dots.to_owned(), plain.repeat(20_000), dots.repeat(20_000)] {
        let message = format!("{SUBJECT}\r\n{lines}");
        for (to, expected) in [
            ("fine", "250 2.0.0 Taken"),
            ("later", "450 4.7.1 Not now, try later"),
            ("never", "554 5.7.1 Gtube pattern"),
            ("broken", "451 4.7.1 Cannot check the message now, try later"),
            ("postmaster", "250 2.0.0 Taken"),
        ] {
            client.envelope("a@there.test", &[&format!("{to}@here.test")]);
            assert_eq!(client.data(message.as_bytes()).0, expected, "{to}, {}", lines.len());
            let shown = fake.shown().pop().expect("it was asked");
            assert!(shown.message.starts_with(b"Received: "));
            assert!(shown.message.ends_with(message.as_bytes()), "{} octets", shown.message.len());
            if expected.starts_with("250") {
                taken += 1;
                let last = sink.taken(taken).pop().expect("one");
                assert!(last.message.ends_with(message.as_bytes()), "{to}, {}", lines.len());
            }
        }
    }
    // By chunks, and too large to be shown.
    client.envelope("a@there.test", &["never@here.test"]);
    assert_eq!(client.bdat(plain.as_bytes(), &[7, 20]).0, "554 5.7.1 Gtube pattern");
    let asked = fake.shown().len();
    client.envelope("a@there.test", &["never@here.test"]);
    client.data(format!("{SUBJECT}\r\n{}", plain.repeat(80_000)).as_bytes()).expect("250");
    assert_eq!(fake.shown().len(), asked);
    sink.taken(taken + 1);
    let page = ask(&gateway, "/metrics");
    for line in [
        "mailrace_rspamd_verdicts_total{advice=\"rewrite_subject\"} 4\n",
        "mailrace_rspamd_verdicts_total{advice=\"reject\"} 5\n",
        "mailrace_rspamd_verdicts_total{advice=\"not_shown\"} 1\n",
        "mailrace_rspamd_failures_total{reason=\"status\"} 8\n",
    ] {
        assert!(page.contains(line), "{line}{page}");
    }
    gateway.terminate();
}

/// However the message comes: here it is the last piece, and the end with it, that makes it too large
/// to be shown in one go.
#[test]
fn rspamd_is_told_of_the_envelope_of_a_message_in_line() {
    let fake = Fake::saying(json!({"action": "no action"}));
    let (at_first, first) = mpsc::channel();
    let (address, _) = backend(move |mut input, mut output| {
        let mut line = String::new();
        while line != ".\r\n" {
            line.clear();
            input.read_line(&mut line).expect("a line");
            if line.starts_with("first") {
                at_first.send(()).expect("the test waits");
            }
        }
        output.write_all(b"250 2.0.0 Taken\r\n").expect("it is there");
    });
    let config = in_line(&fake.authority, address);
    let mut gateway = Gateway::start(&format!("{config}deadline = \"60s\""));
    let mut client = client(&gateway);
    let to = ["one@here.test", "two@here.test"];
    client.envelope("a@there.test", &to);
    client.command("DATA").expect("354");
    let begin = format!("Subject: x\r\n\r\n{}\r\nfirst\r\nsecond\r\n", "x".repeat(12_000));
    let rest = format!("{}\r\n", "y".repeat(58_000));
    client.send(begin.as_bytes());
    first.recv_timeout(PATIENCE).expect("it is passed on");
    client.send(format!("{rest}.\r\n").as_bytes());
    client.reply().expect("250");
    let shown = fake.shown().pop().expect("it was asked");
    assert_eq!(shown.values("from"), ["a@there.test"]);
    assert_eq!(shown.values("rcpt"), to);
    let whole = format!("{begin}{rest}");
    assert!(shown.message.ends_with(whole.as_bytes()), "{} octets", shown.message.len());
    gateway.terminate();
}

/// Clients that take their time with large messages have all turns that there are for such.  Whoever
/// comes then is not let through unseen, though failures are no verdict here.
#[test]
fn a_large_message_in_line_that_finds_no_turn_is_put_off() {
    let rspamd = TcpListener::bind("127.0.0.1:0").expect("a port");
    let authority = rspamd.local_addr().expect("bound").to_string();
    let (at_asked, asked) = mpsc::channel();
    std::thread::spawn(move || {
        // It says nothing, and hangs up on nobody until the test has ended.
        let mut connections = Vec::new();
        for connection in rspamd.incoming() {
            connections.push(connection);
            if at_asked.send(()).is_err() {
                return;
            }
        }
    });
    let sink = Sink::start(Manners { forgives_ends: true, ..Manners::default() });
    let config = in_line(&authority, sink.address());
    let turns = limits::RSPAMD_AT_ONCE / 2;
    let more = format!(
        r#"
deadline = "5s"
on_failure = "accept"
[limits]
sessions_per_address = {most}
[delivery]
connections = {most}
connections_per_site = {most}
"#,
        most = 2 * turns
    );
    let mut gateway = Gateway::start(&format!("workers = 1\n{config}{more}"));
    let large = format!("Subject: x\r\n\r\n{}", "a line\r\n".repeat(9_000));
    let slow: Vec<_> = (0..turns)
        .map(|_| {
            let mut slow = client(&gateway);
            slow.envelope("a@there.test", &["slow@here.test"]);
            slow.command("DATA").expect("354");
            slow.send(large.as_bytes());
            asked.recv_timeout(PATIENCE).expect("rspamd is asked");
            slow
        })
        .collect();
    let mut late = client(&gateway);
    late.envelope("a@there.test", &["late@here.test"]);
    let reply = late.data(large.as_bytes());
    assert_eq!(reply.0, "451 4.7.1 Cannot check the message now, try later");
    assert!(asked.try_recv().is_err(), "rspamd has not been asked");
    let page = ask(&gateway, "/metrics");
    for line in [
        "mailrace_rspamd_failures_total{reason=\"no_turn\"} 1\n",
        "mailrace_rspamd_seconds_count 0\n",
        "mailrace_messages_passed_on_total 0\n",
    ] {
        assert!(page.contains(line), "{line}{page}");
    }
    drop(slow);
    gateway.terminate();
}
