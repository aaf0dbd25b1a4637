//! Delivery by LMTP through the real binary, over TCP and over a Unix socket: one reply for each
//! recipient, and a success of some.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use crate::client::Client;
use crate::gateway::{Gateway, PATIENCE};

/// A store that takes `a`, has no room for `b`, knows no `c`, and refuses `d` at its end.
fn serve(input: impl BufRead, mut output: impl Write) -> Vec<String> {
    let mut said = Vec::new();
    let mut say = |text: &str| output.write_all(format!("{text}\r\n").as_bytes()).is_ok();
    say("220 store.test LMTP");
    let (mut accepted, mut in_data) = (Vec::new(), false);
    for line in input.lines() {
        let Ok(line) = line else { break };
        let line = line.trim_end().to_owned();
        if in_data {
            in_data = line != ".";
            let answered = if in_data { Vec::new() } else { std::mem::take(&mut accepted) };
            for name in answered {
                say(match name {
                    'a' => "250 2.0.0 Stored",
                    'b' => "452 4.2.2 Full",
                    _ => "550 5.7.1 Not this",
                });
            }
            continue;
        }
        said.push(line.clone());
        match line.split(' ').next().unwrap_or_default() {
            "LHLO" => say("250-store.test\r\n250-PIPELINING\r\n250 8BITMIME"),
            "RCPT" if line.contains("<c@") => say("550 5.1.1 Nobody"),
            "RCPT" => {
                accepted.extend(line.chars().nth("RCPT TO:<".len()));
                say("250 2.1.5 Ok")
            }
            "DATA" => {
                in_data = true;
                say("354 Go on")
            }
            "QUIT" => {
                say("221 2.0.0 Bye");
                break;
            }
            _ => say("250 2.0.0 Ok"),
        };
    }
    said
}

fn judge(target: &str, said: &Receiver<Vec<String>>) {
    let gateway = Gateway::start(&format!(
        r#"
[[listener]]
address = "127.0.0.1:0"
service = "relay"
[[route]]
recipient = "*"
to = "{target}"
[delivery]
idle_timeout = "1s"
"#
    ));
    let mut client = Client::hello(gateway.smtp(0));
    client.envelope("", &["a@in.test", "b@in.test", "c@in.test", "d@in.test"]);
    client.data(b"Subject: x\r\n\r\nx\r\n").expect("250");
    for (event, to, reply) in [
        ("delivered", "a@in.test", "250 2.0.0 Stored"),
        ("deferred", "b@in.test", "452 4.2.2 Full"),
        ("bounced", "c@in.test", "550 5.1.1 Nobody"),
        ("bounced", "d@in.test", "550 5.7.1 Not this"),
    ] {
        let what = format!("{event} {to}");
        let told = gateway.wait_event(&what, |told| {
            told["event"] == event && told["to"].to_string().contains(to)
        });
        assert!(told["reply"].as_str().is_some_and(|text| text.starts_with(reply)), "{told}");
    }
    let said = said.recv_timeout(PATIENCE).expect("the connection ends when it is idle");
    let verbs: Vec<&str> = said.iter().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(verbs.join(" "), "LHLO MAIL RCPT RCPT RCPT RCPT DATA QUIT");
}

#[test]
fn over_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let target = format!("lmtp://{}", listener.local_addr().expect("bound"));
    let (sender, said) = channel();
    thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a connection");
        let _ = stream.set_read_timeout(Some(Duration::from_secs(60)));
        let input = BufReader::new(stream.try_clone().expect("a descriptor"));
        let _ = sender.send(serve(input, stream));
    });
    judge(&target, &said);
}

#[test]
fn over_a_unix_socket() {
    let home = tempfile::TempDir::new().expect("a directory");
    let path = home.path().join("lmtp");
    let listener = UnixListener::bind(&path).expect("a path");
    let (sender, said) = channel();
    thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a connection");
        let _ = stream.set_read_timeout(Some(Duration::from_secs(60)));
        let input = BufReader::new(stream.try_clone().expect("a descriptor"));
        let _ = sender.send(serve(input, stream));
    });
    judge(&format!("lmtp+unix:{}", path.display()), &said);
}
