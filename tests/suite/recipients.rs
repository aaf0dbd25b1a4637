//! Who is here, through the real binary: the file and its reload, harvesters, and next hops that
//! are asked first.  What the file says is held to in `tests/dialogues/recipients_*.txt`.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use crate::client::Client;
use crate::gateway::Gateway;
use crate::sink::{Manners, Sink};

/// A client that is no friend: not of `[relay] networks`.
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

fn config(more: &str) -> String {
    config_of(1, more)
}

fn config_of(workers: u32, more: &str) -> String {
    format!(
        r#"
workers = {workers}
[[listener]]
address = "127.0.0.1:0"
service = "mx"
[relay]
networks = ["192.0.2.0/24"]
[domains]
accept = ["in.test"]
{more}
"#
    )
}

fn hello(gateway: &Gateway) -> Client {
    let mut client = Client::connect_from(STRANGER, gateway.smtp(0));
    assert!(client.command("EHLO stranger.test").0.contains("250 "));
    assert!(client.command("MAIL FROM:<a@b.example>").0.starts_with("250"));
    client
}

fn rcpt(client: &mut Client, to: &str) -> String {
    client.command(&format!("RCPT TO:<{to}>")).0
}

#[test]
fn a_new_file_counts_after_a_reload_and_a_bad_one_changes_nothing() {
    let home = std::sync::Arc::new(tempfile::TempDir::new().expect("a directory"));
    let file = home.path().join("who");
    let write = |text: &str| std::fs::write(&file, text).expect("a file");
    let config =
        config("[recipients]\nfile = \"who\"\n[[route]]\nrecipient = \"*\"\nto = \"discard\"");
    write("a@in.test\nloop@in.test: pool@in.test\npool@in.test: loop@in.test\n");
    let (code, said) = Gateway::fail_to_start(home.path(), &config);
    assert_ne!(code, 0);
    let drawn = "line 2: the aliases form a loop: loop@in.test (line 2) -> pool@in.test (line 3)";
    assert!(said.contains("who") && said.contains(drawn), "{said}");
    write("a@in.test\n");
    let gateway = Gateway::start_on(&home, &config).expect("it starts");
    let mut client = hello(&gateway);
    assert!(rcpt(&mut client, "a@in.test").starts_with("250 2.1.5"));
    assert!(rcpt(&mut client, "b@in.test").starts_with("550 5.1.1"));
    write("b@in.test\n");
    gateway.signal(Signal::HUP);
    gateway.wait_until("the new file counts", || {
        rcpt(&mut hello(&gateway), "b@in.test").starts_with("250 2.1.5").then_some(())
    });
    assert!(rcpt(&mut client, "a@in.test").starts_with("550 5.1.1"));
    write("b@in.test: nowhere@in.test\n");
    gateway.signal(Signal::HUP);
    gateway.wait_until("the bad file is told of", || {
        gateway.errors().contains("the recipients from before stay in use").then_some(())
    });
    assert!(rcpt(&mut client, "b@in.test").starts_with("250 2.1.5"));
}

#[test]
fn who_guesses_is_cut_off_and_does_not_help_itself_by_a_new_connection() {
    let home = std::sync::Arc::new(tempfile::TempDir::new().expect("a directory"));
    std::fs::write(home.path().join("who"), "a@in.test\n").expect("a file");
    let config = config(
        "[recipients]\nfile = \"who\"\n[edge]\ntarpit = \"1ms\"\nunknown_recipients = 3\n\
         greeting_wait = \"0s\"\n[edge.checks]\nhelo_bare = \"off\"\nhelo_forged = \"off\"\n\
         helo_literal = \"off\"\nhelo_unknown = \"off\"\nreverse_missing = \"off\"\n\
         reverse_unconfirmed = \"off\"\nsender_unknown = \"off\"\nsender_null_mx = \"off\"\n\
         [[route]]\nrecipient = \"*\"\nto = \"discard\"",
    );
    let gateway = Gateway::start_on(&home, &config).expect("it starts");
    let mut client = hello(&gateway);
    assert!(rcpt(&mut client, "a@in.test").starts_with("250"));
    for name in ["b", "c", "d"] {
        assert!(rcpt(&mut client, &format!("{name}@in.test")).starts_with("550 5.1.1"));
    }
    assert!(client.reply().0.starts_with("421 4.7.0"));
    client.expect_end();
    let mut client = hello(&gateway);
    assert!(rcpt(&mut client, "e@in.test").starts_with("550 5.1.1"));
    assert!(client.reply().0.starts_with("421 4.7.0"));
    client.expect_end();
    // Who is there is there for everybody.
    let mut client = hello(&gateway);
    assert!(rcpt(&mut client, "a@in.test").starts_with("250"));
    gateway.wait_event("the end is told", |event| event["reason"] == "too_many_unknown");
}

#[test]
fn a_next_hop_is_asked_once_and_believed() {
    let replies = [
        ("nobody@in.test", "550 5.1.1 Nobody"),
        ("full@in.test", "552 5.2.2 Full"),
        ("later@in.test", "450 4.2.0 Later"),
    ];
    let replies: HashMap<String, String> =
        replies.map(|(to, reply)| (to.to_owned(), reply.to_owned())).into();
    let latency = Duration::from_millis(200);
    let sink = Sink::start(Manners { replies, latency, ..Manners::default() });
    let more = format!(
        "[recipients]\ncall_ahead = true\n[[route]]\nrecipient = \"*\"\nto = \"smtp://{}\"\n\
         [delivery]\nidle_timeout = \"60s\"",
        sink.address()
    );
    // Also those of another core.
    let gateway = Gateway::start(&config_of(3, &more));
    let asked = |sink: &Sink| sink.journal().iter().filter(|verb| *verb == "RCPT").count();
    // A burst asks once, also from many sessions.
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let mut client = hello(&gateway);
                assert!(rcpt(&mut client, "a@in.test").starts_with("250 2.1.5"));
                assert!(rcpt(&mut client, "nobody@in.test").starts_with("550 5.1.1"));
            });
        }
    });
    assert_eq!(asked(&sink), 2);
    let mut client = hello(&gateway);
    assert_eq!(rcpt(&mut client, "full@in.test"), "552 5.2.2 Full");
    assert!(rcpt(&mut client, "later@in.test").starts_with("450 4.1.1"));
    assert!(rcpt(&mut client, "postmaster@in.test").starts_with("250 2.1.5"));
    assert_eq!(asked(&sink), 4, "a postmaster is always there");
    assert_eq!(sink.count(), 0);
    // A session's questions are those of one core, which keeps its connection.
    let before = sink.connections();
    for name in ["b", "c"] {
        assert!(rcpt(&mut client, &format!("{name}@in.test")).starts_with("250 2.1.5"));
    }
    assert!(sink.connections() <= before + 1, "connections are kept");
}

#[test]
fn what_was_known_counts_while_the_next_hop_is_out_of_order() {
    let sink = Sink::start(Manners::default());
    let gateway = Gateway::start(&config(&format!(
        "[recipients]\ncall_ahead = true\npositive = \"0s\"\n[[route]]\nrecipient = \"*\"\n\
         to = \"smtp://{}\"",
        sink.address()
    )));
    assert!(rcpt(&mut hello(&gateway), "a@in.test").starts_with("250 2.1.5"));
    sink.set_busy(true);
    assert!(rcpt(&mut hello(&gateway), "b@in.test").starts_with("450 4.1.1"));
    assert!(rcpt(&mut hello(&gateway), "a@in.test").starts_with("250 2.1.5"));
    sink.set_busy(false);
    assert!(rcpt(&mut hello(&gateway), "b@in.test").starts_with("250 2.1.5"));
}
