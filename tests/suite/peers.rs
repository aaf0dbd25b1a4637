//! Plays every dialogue of `tests/dialogues/peer`: the test is the next hop, which misbehaves, and
//! the gateway is the real program.
//!
//! Each dialogue has a port, a route and a sender of its own, so that all of them are played at
//! once against one gateway; those about time have a second one that waits two seconds where the
//! first would wait for minutes.  What the gateway tells of a site has to be claimed to the last
//! event.

mod books;
mod format;
mod play;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::gateway::Gateway;
use books::Books;
use format::{Dialogue, Patience};
use play::{Stage, domain, play};

#[test]
fn every_bad_peer_is_a_danger_of_its_own() {
    let dialogues = Dialogue::all();
    assert!(dialogues.len() >= 45, "only {} dialogues", dialogues.len());
    let dangers: BTreeSet<&str> = dialogues.iter().map(|d| d.danger.as_str()).collect();
    assert!(dangers.iter().all(|danger| danger.len() > 20), "a danger is told in a sentence");
    assert_eq!(dangers.len(), dialogues.len(), "two dialogues guard against the same");
}

#[test]
fn bad_peers_harm_only_themselves() {
    play_all(Patience::Long);
}

#[test]
fn slow_peers_harm_only_themselves() {
    play_all(Patience::Short);
}

/// Plays all dialogues of a kind at once and shows everything that is wrong.
fn play_all(patience: Patience) {
    let mut dialogues = Dialogue::all();
    // `MAILRACE_PEER=greeting` plays those whose name begins so.
    let only = std::env::var("MAILRACE_PEER").unwrap_or_default();
    dialogues.retain(|d| d.settings.patience == patience && d.name.starts_with(&only));
    let peers: Vec<(Dialogue, TcpListener)> =
        dialogues.into_iter().map(|dialogue| (dialogue, listener())).collect();
    let mut gateway = Gateway::start(&config(patience, &peers));
    let books = Books::new(gateway.dir());
    let stage = Stage { gateway: &gateway, books: &books };
    let mut wrong = Vec::new();
    thread::scope(|scope| {
        let plays: Vec<_> = peers
            .iter()
            .map(|(dialogue, listener)| {
                (dialogue, scope.spawn(|| play(&stage, dialogue, listener)))
            })
            .collect();
        for (dialogue, play) in plays {
            match play.join() {
                Ok(played) => wrong.extend(played.err()),
                Err(_) => wrong.push(format!("{}.txt: the peer panicked", dialogue.name)),
            }
        }
    });
    assert!(wrong.is_empty(), "{} dialogues fail:\n{}", wrong.len(), wrong.join("\n"));
    thread::sleep(EVENTS_ARE_WRITTEN);
    let left =
        peers.iter().filter_map(|(dialogue, listener)| left_over(&books, dialogue, listener));
    let left: Vec<String> = left.collect();
    assert!(left.is_empty(), "more was told than was claimed:\n{}", left.join("\n"));
    // A connection that no dialogue wanted ends with its port, and does not hold up the stop.
    drop(peers);
    gateway.terminate();
}

/// What the gateway has told of a dialogue's site or to its sender beyond the claims.
fn left_over(books: &Books, dialogue: &Dialogue, listener: &TcpListener) -> Option<String> {
    let name = &dialogue.name;
    let (mut events, mut notices) = (0, 0);
    for step in &dialogue.steps {
        events += usize::from(matches!(step.action, format::Action::Told(_)));
        notices += usize::from(matches!(step.action, format::Action::Notice(_)));
    }
    let site = format!("smtp://{}", listener.local_addr().expect("bound"));
    let events = books.told(&site, events);
    let notices = books.notices(name).split_off(notices);
    let is_clean = events.is_empty() && notices.is_empty();
    (!is_clean).then(|| format!("{name}.txt: {events:?}, {} notices", notices.len()))
}

/// A port whose connections have small buffers, so that a peer that does not read is felt.
fn listener() -> TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_recv_buffer_size(64 * 1024).expect("a socket option");
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("a port");
    socket.listen(16).expect("it can listen");
    socket.into()
}

fn config(patience: Patience, peers: &[(Dialogue, TcpListener)]) -> String {
    let timeouts = match patience {
        Patience::Long => r#"{ greeting = "5m", command = "5m", data = "5m" }"#,
        Patience::Short => r#"{ greeting = "2s", command = "2s", data = "2s" }"#,
    };
    let mut config = format!(
        r#"
workers = 2
[[listener]]
address = "127.0.0.1:0"
service = "relay"
durability = "os"
[delivery]
idle_timeout = "5s"
timeouts = {timeouts}
[queue]
retry = ["1h"]
[log]
events = "{{dir}}/events.json"
[[route]]
recipient = "*@home.test"
to = "maildir:{{dir}}/mail"
"#
    );
    for (dialogue, listener) in peers {
        let (domain, address) = (domain(&dialogue.name), listener.local_addr().expect("bound"));
        let _ =
            write!(config, "[[route]]\nrecipient = \"*@{domain}\"\nto = \"smtp://{address}\"\n");
    }
    config
}

/// How long after its cause an event is in the file, at the latest.
const EVENTS_ARE_WRITTEN: Duration = Duration::from_millis(400);
