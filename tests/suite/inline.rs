//! In-line mode through the real binary: the next hop's words become ours, its death costs a 451
//! and never a message, its slowness is the client's.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use crate::client::Client;
use crate::gateway::{Gateway, PATIENCE, wait_until};
use crate::interop::are_here;
use crate::postfix::{Ports, Postfix};
use crate::sink::{Manners, Sink};

/// A gateway that passes mail for `in.test` on there, and mail for `out.test` elsewhere.
fn gateway(target: &str) -> Gateway {
    Gateway::start(&format!(
        r#"
[[listener]]
address = "127.0.0.1:0"
service = "mx"
delivery = "inline"
[domains]
accept = ["in.test", "out.test"]
[[route]]
recipient = "*@in.test"
to = "{target}"
[[route]]
recipient = "*@out.test"
to = "smtp://127.0.0.1:9"
"#
    ))
}

/// A next hop that is polite up to the data, then does as `in_data` says; it ends with the first
/// connection that comes so far, and tells what `in_data` found.
pub fn backend<T: Send + 'static>(
    in_data: impl FnOnce(BufReader<TcpStream>, TcpStream) -> T + Send + 'static,
) -> (SocketAddr, Receiver<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let (tell, told) = channel();
    thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a connection");
        drop(listener);
        let (input, output) = up_to_data(stream);
        // Nobody may be there any more to hear it.
        let _ = tell.send(in_data(input, output));
    });
    (address, told)
}

/// Is polite until DATA has its 354.
pub fn up_to_data(stream: TcpStream) -> (BufReader<TcpStream>, TcpStream) {
    let mut output = stream.try_clone().expect("a descriptor");
    let mut input = BufReader::new(stream);
    output.write_all(b"220 backend.test\r\n").expect("it is there");
    loop {
        let mut line = String::new();
        input.read_line(&mut line).expect("a command");
        match line.split_whitespace().next().unwrap_or_default() {
            "EHLO" => output.write_all(b"250-backend.test\r\n250 8BITMIME\r\n"),
            "DATA" => break,
            _ => output.write_all(b"250 2.0.0 Ok\r\n"),
        }
        .expect("it is there");
    }
    output.write_all(b"354 Go on\r\n").expect("it is there");
    (input, output)
}

fn begin(gateway: &Gateway) -> Client {
    let mut client = Client::hello(gateway.smtp(0));
    client.envelope("a@b.example", &["a@in.test"]);
    assert!(client.command("DATA").0.starts_with("354"));
    client
}

/// Ends the gateway's only session; no event up to there tells of a message that was taken.
fn nothing_was_accepted(gateway: &Gateway, client: Client) {
    drop(client);
    gateway.wait_event("the session's end", |event| event["event"] == "disconnect");
    let kinds = gateway.events().into_iter().map(|event| event["event"].clone());
    let kept = kinds.filter(|kind| kind == "accepted" || kind == "passed_on");
    assert_eq!(kept.count(), 0);
}

#[test]
fn the_next_hops_words_are_ours() {
    let replies = [
        ("nobody@in.test", "550-5.1.1 Nobody\r\n550 5.1.1 of that name"),
        ("later@in.test", "450 4.2.0 Later"),
        ("bare@in.test", "553 No"),
    ];
    let replies: HashMap<String, String> =
        replies.map(|(to, reply)| (to.to_owned(), reply.to_owned())).into();
    let sink = Sink::start(Manners { replies, dsn: true, chunking: true, ..Manners::default() });
    let gateway = gateway(&format!("smtp://{}", sink.address()));
    let mut client = Client::hello(gateway.smtp(0));
    assert!(client.command("MAIL FROM:<a@b.example> RET=HDRS ENVID=x").0.starts_with("250"));
    for (to, expected) in [
        ("nobody@in.test", "550 5.1.1 Nobody of that name"),
        ("later@in.test", "450 4.2.0 Later"),
        ("bare@in.test", "553 5.0.0 No"),
        ("a@in.test", "250 2.1.5 Ok"),
        ("b@out.test", "452 4.5.3 This recipient needs a transaction of its own"),
        ("b@else.test", "550 5.7.1 Relaying denied"),
    ] {
        let said = client.command(&format!("RCPT TO:<{to}> NOTIFY=NEVER"));
        assert_eq!(said.0, expected, "{to}");
    }
    let body = b"Subject: x\r\n\r\n.dots\r\n..two\r\n\r\nend\r\n";
    let said = client.data(body).expect("250");
    assert_eq!(said.0, "250 2.0.0 Taken");
    // In chunks, with no newline at its end, and in the next transaction of the same session.
    client.envelope("", &["a@in.test", "c@in.test"]);
    let said = client.bdat(b"X: y\r\n\r\n.a\r\n.b", &[7, 3, 5]).expect("250");
    assert_eq!(said.0, "250 2.0.0 Taken");
    let taken = sink.taken(2);
    let text = |place: usize| String::from_utf8(taken[place].message.clone()).expect("text");
    assert!(text(0).starts_with("Received: from "), "{}", text(0));
    assert!(text(0).contains("for <a@in.test>"), "{}", text(0));
    assert!(taken[0].message.ends_with(body), "{}", text(0));
    assert_eq!(taken[0].to, ["a@in.test"]);
    assert_eq!(taken[0].parameters, ["RET=HDRS ENVID=x", "NOTIFY=NEVER"]);
    assert!(text(1).ends_with("X: y\r\n\r\n.a\r\n.b\r\n"), "{}", text(1));
    assert!(!text(1).contains("for <"), "{}", text(1));
    assert_eq!(taken[1].to, ["a@in.test", "c@in.test"]);
    assert_eq!(sink.connections(), 1, "one connection carries both");
    let told = gateway.wait_event("passed_on", |event| event["event"] == "passed_on");
    assert_eq!(told["reply"], "250 2.0.0 Taken");
    assert_eq!(told["to"], serde_json::json!(["a@in.test"]));
    let kept = gateway.events().iter().any(|event| event["event"] == "accepted");
    assert!(!kept, "nothing is kept here");
}

/// The next hop must not see them, nor the end of a message that has one.
#[test]
fn a_bare_newline_ends_the_next_hops_part() {
    for by_bdat in [false, true] {
        let (address, told) = backend(|mut input, _| {
            let mut came = Vec::new();
            let _ = input.read_to_end(&mut came);
            came
        });
        let gateway = gateway(&format!("smtp://{address}"));
        // More than waits for its end here, in front and behind: some is at the next hop when the
        // rest comes, which goes there before the end of it is known.
        let good = b"good\r\n".repeat(20_000);
        let smuggled = [b"bad\n.\nMAIL FROM:<evil@in.test>\r\n".as_slice(), &good].concat();
        let (reply, client) = match by_bdat {
            false => {
                let mut client = begin(&gateway);
                client.send(&good);
                client.send(&smuggled);
                client.send(b".\r\n");
                (client.reply(), client)
            }
            true => {
                let mut client = Client::hello(gateway.smtp(0));
                client.envelope("a@b.example", &["a@in.test"]);
                client.send(format!("BDAT {}\r\n", good.len()).as_bytes());
                client.send(&good);
                client.reply().expect("250");
                client.send(format!("BDAT {} LAST\r\n", smuggled.len()).as_bytes());
                client.send(&smuggled);
                (client.reply(), client)
            }
        };
        assert!(reply.0.starts_with("550 5.6.0"), "{}", reply.0);
        nothing_was_accepted(&gateway, client);
        drop(gateway);
        let came = told.recv_timeout(PATIENCE).expect("it got as far as the data");
        let came = String::from_utf8_lossy(&came).into_owned();
        assert!(came.starts_with("Received: ") && came.contains("\r\ngood\r\n"), "{came}");
        assert!(!came.contains("bad") && !came.contains("\r\n.\r\n"), "{came}");
    }
}

#[test]
fn a_next_hop_that_dies_costs_a_451() {
    let in_the_middle = |mut input: BufReader<TcpStream>, _: TcpStream| {
        let mut piece = [0; 1024];
        input.read_exact(&mut piece).expect("some of it");
    };
    let at_the_end = |mut input: BufReader<TcpStream>, _: TcpStream| {
        let mut line = String::new();
        while line != ".\r\n" {
            line.clear();
            input.read_line(&mut line).expect("a line");
        }
    };
    let with_421 = |mut input: BufReader<TcpStream>, mut output: TcpStream| {
        let mut piece = [0; 1024];
        input.read_exact(&mut piece).expect("some of it");
        output.write_all(b"421 4.3.2 Going down\r\n").expect("it is there");
    };
    let backends = [backend(in_the_middle).0, backend(at_the_end).0, backend(with_421).0];
    for address in backends {
        let gateway = gateway(&format!("smtp://{address}"));
        let mut client = begin(&gateway);
        for _ in 0..64 {
            client.send(&b"Some text that fills a line.\r\n".repeat(64));
        }
        client.send(b".\r\n");
        let reply = client.reply();
        assert_eq!(reply.0, "451 4.4.1 The next hop does not answer, try later");
        // The session goes on: nobody listens there now.
        assert!(client.command("MAIL FROM:<a@b.example>").0.starts_with("250"));
        let reply = client.command("RCPT TO:<a@in.test>");
        assert!(reply.0.starts_with("451 4.4.1"), "{}", reply.0);
        nothing_was_accepted(&gateway, client);
    }
}

/// Whatever it says before it has seen the end is not about the message.
#[test]
fn a_next_hop_that_says_farewell_has_taken_nothing() {
    let (address, told) = backend(|mut input, mut output| {
        let mut line = String::new();
        while !line.starts_with("Some text") {
            line.clear();
            input.read_line(&mut line).expect("a line");
        }
        output.write_all(b"221 2.0.0 Bye\r\n").expect("it is there");
    });
    let gateway = gateway(&format!("smtp://{address}"));
    let mut client = begin(&gateway);
    client.send(b"Subject: x\r\n\r\nSome text\r\nand more of it\r\n");
    told.recv_timeout(PATIENCE).expect("it gets so far");
    client.send(b".\r\n");
    assert_eq!(client.reply().0, "451 4.4.1 The next hop does not answer, try later");
    nothing_was_accepted(&gateway, client);
}

/// The sink would take what it has for a message if it saw its end.
#[test]
fn a_client_that_vanishes_leaves_no_message() {
    let (address, told) = backend(|mut input, _| {
        let mut came = Vec::new();
        let ended = input.read_to_end(&mut came);
        (came, ended.is_ok())
    });
    let gateway = gateway(&format!("smtp://{address}"));
    let mut client = begin(&gateway);
    client.send(b"Subject: half\r\n\r\nhalf a");
    nothing_was_accepted(&gateway, client);
    let (came, _) = told.recv_timeout(PATIENCE).expect("it is closed");
    let came = String::from_utf8(came).expect("text");
    assert!(came.starts_with("Received: "), "{came}");
    assert!(!came.contains("\r\n.\r\n"), "{came}");
}

/// More than all sockets on the way hold, twice as much as the gateway may grow by.
#[test]
fn a_slow_next_hop_holds_its_client_back() {
    const OCTETS: usize = 48 << 20;
    let goes_on = Arc::new(AtomicBool::new(false));
    let may_go_on = goes_on.clone();
    let (address, told) = backend(move |mut input, mut output| {
        wait_until(|| may_go_on.load(Ordering::Relaxed).then_some(()));
        let mut octets = 0;
        let mut line = Vec::new();
        loop {
            line.clear();
            octets += input.read_until(b'\n', &mut line).expect("a line");
            if line == b".\r\n" {
                break;
            }
        }
        output.write_all(b"250 2.6.0 All of it\r\n").expect("it is there");
        octets
    });
    let gateway = gateway(&format!("smtp://{address}"));
    let mut client = begin(&gateway);
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = sent.clone();
    let sending = thread::spawn(move || {
        let piece = [[b'x'; 1022].as_slice(), b"\r\n"].concat().repeat(64);
        while counter.load(Ordering::Relaxed) < OCTETS {
            client.send(&piece);
            counter.fetch_add(piece.len(), Ordering::Relaxed);
        }
        client.send(b".\r\n");
        client.reply()
    });
    let before = gateway.memory_bytes();
    let memory = gateway.peak_while(|| {
        let mut last = 0;
        // It has stopped once nothing more goes out for a second.
        wait_until(|| {
            thread::sleep(Duration::from_secs(1));
            let now = sent.load(Ordering::Relaxed);
            (std::mem::replace(&mut last, now) == now).then_some(())
        });
        let stopped_at = sent.load(Ordering::Relaxed);
        assert!(stopped_at < OCTETS, "the client was not held back");
        goes_on.store(true, Ordering::Relaxed);
        assert_eq!(sending.join().expect("no panic").0, "250 2.6.0 All of it");
    });
    assert!(told.recv_timeout(PATIENCE).expect("it is told") > OCTETS);
    let grown = memory.saturating_sub(before);
    assert!(grown < OCTETS as u64 / 4, "{grown} octets more");
}

#[test]
fn a_mail_store_answers_for_one_recipient_at_a_time() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a connection");
        let mut output = stream.try_clone().expect("a descriptor");
        let mut in_data = false;
        let mut say = |text: &str| output.write_all(text.as_bytes()).expect("it is there");
        say("220 store.test\r\n");
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            match line.as_str() {
                "." => {
                    in_data = false;
                    say("552 5.2.2 Full\r\n");
                }
                "DATA" => {
                    in_data = true;
                    say("354 Go on\r\n");
                }
                _ if in_data => {}
                _ => say("250 2.0.0 Ok\r\n"),
            }
        }
    });
    let gateway = gateway(&format!("lmtp://{address}"));
    let mut client = Client::hello(gateway.smtp(0));
    client.envelope("a@b.example", &["a@in.test"]);
    let reply = client.command("RCPT TO:<b@in.test>");
    assert!(reply.0.starts_with("452 4.5.3"), "{}", reply.0);
    assert!(client.command("DATA").0.starts_with("354"));
    client.send(b"Subject: x\r\n\r\n.\r\n");
    assert_eq!(client.reply().0, "552 5.2.2 Full");
    // It is well all the same.
    client.envelope("a@b.example", &["b@in.test"]);
    nothing_was_accepted(&gateway, client);
}

/// What one next hop says, or that it says nothing, is no word about another one's recipients.
#[test]
fn each_recipient_is_answered_by_its_own_next_hop() {
    let saying = |replies: &[(&str, &str)]| {
        let replies = replies.iter().map(|(to, reply)| ((*to).to_owned(), (*reply).to_owned()));
        Sink::start(Manners { replies: replies.collect(), ..Manners::default() })
    };
    let picky =
        saying(&[("later@picky.test", "450 4.2.0 Later"), ("no@picky.test", "550 5.1.1 No")]);
    let refusing = TcpListener::bind("127.0.0.1:0").expect("a port");
    let refuser = refusing.local_addr().expect("bound");
    thread::spawn(move || {
        for stream in refusing.incoming() {
            let stream = stream.expect("a connection");
            let mut output = stream.try_clone().expect("a descriptor");
            let mut say = |words: &str| output.write_all(words.as_bytes()).expect("it is there");
            say("220 refuser.test\r\n");
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                match line.starts_with("MAIL") {
                    true => say("550 5.7.1 Nothing from you\r\n"),
                    false => say("250 Ok\r\n"),
                }
            }
        }
    });
    let well = Sink::start(Manners { dsn: true, ..Manners::default() });
    let dead = SocketAddr::from(([127, 0, 0, 1], 9));
    let routes = [
        ("picky.test", picky.address()),
        ("refuser.test", refuser),
        ("dead.test", dead),
        ("well.test", well.address()),
    ];
    let routes = routes.map(|(domain, address)| {
        format!("[[route]]\nrecipient = \"*@{domain}\"\nto = \"smtp://{address}\"\n")
    });
    let gateway = Gateway::start(&format!(
        r#"
[[listener]]
address = "127.0.0.1:0"
service = "mx"
delivery = "inline"
[domains]
accept = ["picky.test", "refuser.test", "dead.test", "well.test"]
[delivery]
idle_timeout = "1h"
{}"#,
        routes.concat()
    ));
    let mut client = Client::hello(gateway.smtp(0));
    client.command("MAIL FROM:<a@b.example>").expect("250");
    for (to, expected) in [
        ("a@refuser.test", "550 5.7.1 Nothing from you"),
        ("a@dead.test", "451 4.4.1 The next hop does not answer, try later"),
        ("later@picky.test", "450 4.2.0 Later"),
        ("no@picky.test", "550 5.1.1 No"),
        ("a@refuser.test", "550 5.7.1 Nothing from you"),
        ("a@well.test", "250 2.1.5 Ok"),
        ("b@refuser.test", "452 4.5.3 This recipient needs a transaction of its own"),
        ("a@picky.test", "452 4.5.3 This recipient needs a transaction of its own"),
        ("b@well.test", "250 2.1.5 Ok"),
    ] {
        let said = client.command(&format!("RCPT TO:<{to}>"));
        assert_eq!(said.0, expected, "{to}");
    }
    assert_eq!(client.data(b"Subject: x\r\n\r\nx\r\n").expect("250").0, "250 2.0.0 Taken");
    // The one that was left for another is well, and so is its connection.
    client.envelope("a@b.example", &["a@picky.test"]);
    assert_eq!(client.data(b"Subject: y\r\n\r\ny\r\n").expect("250").0, "250 2.0.0 Taken");
    let taken = well.taken(1);
    assert_eq!(taken[0].to, ["a@well.test", "b@well.test"]);
    assert_eq!(picky.taken(1)[0].to, ["a@picky.test"]);
    assert_eq!((picky.connections(), well.connections()), (1, 1));
}

/// A next hop that is lost with recipients of its own says nothing of another one's.
#[test]
fn who_goes_elsewhere_hears_nothing_of_a_loss() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a connection");
        let mut output = stream.try_clone().expect("a descriptor");
        output.write_all(b"220 backend.test\r\n").expect("it is there");
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            let words = match line.contains("last@") {
                true => "421 4.3.2 Going down\r\n",
                false => "250 Ok\r\n",
            };
            output.write_all(words.as_bytes()).expect("it is there");
        }
    });
    let gateway = gateway(&format!("smtp://{address}"));
    let mut client = Client::hello(gateway.smtp(0));
    client.command("MAIL FROM:<a@b.example>").expect("250");
    client.command("RCPT TO:<a@in.test>").expect("250");
    client.command("RCPT TO:<last@in.test>").expect("451 4.4.1");
    client.command("RCPT TO:<b@in.test>").expect("451 4.4.1");
    client.command("RCPT TO:<b@out.test>").expect("452 4.5.3");
}

#[test]
fn postfix_speaks_through_us() {
    if !are_here(&["postfix", "unshare"]) {
        return;
    }
    let (ports, others) = (Ports::choose(), Sink::start(Manners::default()));
    let postfix = Postfix::start(ports, others.address(), others.address());
    let ways = [("chunking.test", ports.chunking), ("data.test", ports.data)];
    for (number, (domain, port)) in ways.into_iter().enumerate() {
        let gateway = Gateway::start(&format!(
            r#"
[[listener]]
address = "127.0.0.1:0"
service = "mx"
delivery = "inline"
[domains]
accept = ["{domain}"]
[[route]]
recipient = "*"
to = "smtp://127.0.0.1:{port}"
"#
        ));
        let mut client = Client::hello(gateway.smtp(0));
        client.command("MAIL FROM:<a@b.example>").expect("250");
        let said = client.command(&format!("RCPT TO:<nobody@{domain}>"));
        let said = said.expect("550 5.1.1");
        assert!(said.0.contains("Nobody of that name"), "{}\n{}", said.0, postfix.log());
        client.command(&format!("RCPT TO:<somebody@{domain}>")).expect("250 2.1.5");
        let said = client.data(b"Subject: unwanted\r\n\r\nhello\r\n");
        assert_eq!(said.0, "550 5.7.1 Unwanted here", "{}", postfix.log());
        // The session and its next transaction are well.
        client.envelope("a@b.example", &[&format!("somebody@{domain}")]);
        let body = b"Subject: wanted\r\n\r\n.dots\r\n..two\r\n";
        let said = client.data(body);
        let said = said.expect("250 2.0.0");
        assert!(said.0.contains("queued as"), "{}", said.0);
        let taken = others.taken(number + 1).pop().expect("one");
        assert!(taken.message.ends_with(body), "{}", String::from_utf8_lossy(&taken.message));
        assert_eq!(taken.to, [format!("somebody@{domain}")]);
    }
}
