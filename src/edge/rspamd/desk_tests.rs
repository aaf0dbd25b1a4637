//! Desk and office against a server of this file, over a real mailbox and loopback.

use std::future::Future;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::super::office::Office;
use super::super::question::Facts;
use super::*;
use crate::config::WORKERS_MAX;
use crate::edge::verdict::{Action, Effect};
use crate::message::MessageId;
use crate::runtime;
use crate::runtime::mailbox::mailbox;
use crate::smtp::address::ReversePath;

/// A test's patience with what is sure to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to the server, whose handler reads requests and writes answers as it likes.
struct Visitor(BufReader<TcpStream>);

/// What a handler was shown.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    head: Vec<String>,
    /// Nothing of one that was cut off.
    body: Option<Vec<u8>>,
}

impl Visitor {
    /// The lines of a head; none if the connection has ended.
    fn head(&mut self) -> Option<Vec<String>> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).ok()? == 0 {
                return None;
            }
            match line.trim_end() {
                "" => return Some(lines),
                line => lines.push(line.to_lowercase()),
            }
        }
    }

    fn body(&mut self, head: &[String]) -> Option<Vec<u8>> {
        let length = head.iter().find_map(|line| line.strip_prefix("content-length: "));
        if let Some(length) = length {
            let mut body = vec![0; length.parse().expect("a number")];
            return self.0.read_exact(&mut body).ok().map(|()| body);
        }
        assert!(head.iter().any(|line| line == "transfer-encoding: chunked"), "{head:?}");
        let mut body = Vec::new();
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).ok()?;
            let length = usize::from_str_radix(line.trim_end(), 16).ok()?;
            let mut chunk = vec![0; length + 2];
            self.0.read_exact(&mut chunk).ok()?;
            body.extend_from_slice(&chunk[..length]);
            if length == 0 {
                return Some(body);
            }
        }
    }

    fn request(&mut self) -> Option<Request> {
        let head = self.head()?;
        let body = self.body(&head);
        Some(Request { head, body })
    }

    fn answer(&mut self, status: &str, body: &str) {
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
        // Who has gone hears nothing.
        let _ = self.0.get_mut().write_all(format!("{head}{body}").as_bytes());
    }
}

/// A server of so many connections, one after the other; gives what its handler gave for each.
fn serve<T: Send + 'static>(
    connections: usize,
    mut handle: impl FnMut(usize, Visitor) -> T + Send + 'static,
) -> (String, JoinHandle<Vec<T>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let authority = listener.local_addr().expect("bound").to_string();
    let thread = std::thread::spawn(move || {
        let next = |place| {
            let (stream, _) = listener.accept().expect("a connection");
            stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
            handle(place, Visitor(BufReader::new(stream)))
        };
        (0..connections).map(next).collect()
    });
    (authority, thread)
}

/// Runs a test at a desk with an office behind it.
fn at_desk<F: Future + 'static>(authority: &str, test: impl FnOnce(Rc<Desk>) -> F) -> F::Output {
    let (office, handle) = Office::start(authority).expect("a thread");
    let (letters, inbox) = mailbox::<(u64, News)>(None).expect("two descriptors");
    let announce: Announce = Arc::new(move |token, news| {
        if letters.push((token, news)).is_ok() {
            letters.wake();
        }
    });
    let done = runtime::run(async move {
        let desk = Rc::new(Desk::new(handle, announce, 1));
        let opener = desk.clone();
        runtime::spawn(async move {
            let open = |(token, news)| opener.opened(token, news);
            let _ = inbox.open_forever(open, || ()).await;
        });
        runtime::timeout(PATIENCE, test(desk)).await
    });
    office.stop();
    done.expect("a loop").expect("it does not hang")
}

fn question() -> Question {
    Question::new(&Facts {
        id: MessageId(7),
        client: "192.0.2.1".parse().unwrap(),
        helo: "client.example",
        hostname: None,
        user: None,
        secured: None,
        our_name: "mx.example.com",
        reverse_path: &ReversePath::Null,
        recipients: &[],
    })
}

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

const REJECT: &str = r#"{"action": "reject", "score": 20.5}"#;

fn effect(result: Result<Assessment, Failure>) -> Result<Effect, Failure> {
    result.map(|assessment| assessment.effect)
}

const REJECTED: Result<Effect, Failure> = Ok(Effect::Action(Action::Reject));

/// The second message goes over the connection of the first; the third finds it closed and comes
/// again over a new one.
#[test]
fn a_connection_is_kept_and_one_that_was_closed_is_replaced() {
    let (authority, server) = serve(2, |_, mut visitor| {
        let mut bodies = Vec::new();
        for _ in 0..2 {
            let Some(request) = visitor.request() else { break };
            assert_eq!(request.head[0], "post /checkv2 http/1.1");
            assert!(request.head.contains(&"ip: 192.0.2.1".to_owned()), "{:?}", request.head);
            bodies.push(request.body);
            visitor.answer("200 OK", REJECT);
        }
        bodies
    });
    at_desk(&authority, |desk| async move {
        for message in ["one", "two", "three"] {
            let shown = desk.show(desk.turn().await, question(), message.into(), soon());
            assert_eq!(effect(shown.assessment().await), REJECTED, "{message}");
        }
        assert!(desk.open.borrow().is_empty());
    });
    let shown = |texts: &[&str]| -> Vec<Option<Vec<u8>>> {
        texts.iter().map(|text| Some(text.as_bytes().to_vec())).collect()
    };
    assert_eq!(server.join().expect("it served"), [shown(&["one", "two"]), shown(&["three"])]);
}

#[test]
fn a_large_message_arrives_whole_whether_its_length_is_known_or_not() {
    let (authority, server) = serve(2, |_, mut visitor| {
        let request = visitor.request().expect("a request");
        visitor.answer("200 OK", REJECT);
        request.body.expect("all of it")
    });
    let message: Vec<u8> = (0..1_000_000u32).map(|octet| octet as u8).collect();
    let octets = message.clone();
    at_desk(&authority, |desk| async move {
        for length in [Some(octets.len() as u64), None] {
            let mut showing = desk.begin_showing(desk.turn().await, question(), length, soon());
            for piece in octets.chunks(300_000) {
                showing.pass(piece.to_vec()).await;
            }
            assert_eq!(effect(showing.assessment().await), REJECTED);
        }
    });
    for shown in server.join().expect("it served") {
        assert!(shown == message, "{} octets", shown.len());
    }
}

/// A message that its session has given up must not look like a shorter one.
#[test]
fn a_message_that_is_given_up_is_cut_off() {
    let (authority, server) = serve(2, |_, mut visitor| {
        let head = visitor.head().expect("a head");
        visitor.body(&head)
    });
    at_desk(&authority, |desk| async move {
        for length in [Some(200_000), None] {
            let mut showing = desk.begin_showing(desk.turn().await, question(), length, soon());
            showing.pass(vec![b'x'; 100_000]).await;
            drop(showing);
            assert!(desk.open.borrow().is_empty());
        }
    });
    assert_eq!(server.join().expect("it served"), [None, None]);
}

/// Else each message that a rspamd hangs on would hold a descriptor for as long as a body may come.
#[test]
fn a_rspamd_that_hangs_is_hung_up_on() {
    let (took, taken) = std::sync::mpsc::channel();
    let (authority, server) = serve(1, move |_, mut visitor| {
        let request = visitor.request().expect("a request");
        took.send(request.body.map(|body| body.len())).expect("the test waits");
        // It has taken all of it, and never answers.
        visitor.0.read_to_end(&mut Vec::new()).is_ok()
    });
    at_desk(&authority, |desk| async move {
        let tomorrow = Instant::now() + Duration::from_secs(24 * 3_600);
        let mut showing =
            desk.begin_showing(desk.turn_to_follow().await, question(), None, tomorrow);
        showing.pass(vec![b'x'; 100_000]).await;
        showing.pass_piece(Piece::End).await;
        let all = loop {
            match taken.try_recv() {
                Ok(octets) => break octets,
                Err(_) => runtime::sleep(Duration::from_millis(10)).await,
            }
        };
        assert_eq!(all, Some(100_000));
        drop(showing);
        // The office stands meanwhile: nothing else closes a connection.
        while !server.is_finished() {
            runtime::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(server.join().expect("it served"), [true]);
    });
}

/// The rest of it would wait for room for ever.
#[test]
fn an_answer_in_the_middle_of_a_message_is_taken() {
    let (authority, server) = serve(1, |_, mut visitor| {
        visitor.head().expect("a head");
        visitor.answer("413 Too large", "{}");
        // Open until the other side has heard it.
        let mut rest = Vec::new();
        visitor.0.read_to_end(&mut rest).is_ok()
    });
    let failure = at_desk(&authority, |desk| async move {
        let mut showing = desk.begin_showing(desk.turn().await, question(), Some(1 << 30), soon());
        for _ in 0..100 {
            showing.pass(vec![b'x'; 1 << 20]).await;
        }
        showing.assessment().await
    });
    assert!(matches!(failure, Err(Failure::Status(413) | Failure::Broken)), "{failure:?}");
    server.join().expect("it served");
}

#[test]
fn every_failure_has_its_name() {
    let long = format!("{{\"action\": \"reject\", \"x\": \"{}\"}}", "x".repeat(8 << 20));
    let (authority, server) = serve(6, move |place, mut visitor| {
        visitor.request().expect("a request");
        match place {
            0 => visitor.answer("500 Oops", REJECT),
            1 => visitor.answer("200 OK", "<html>"),
            2 => visitor.answer("200 OK", &long),
            3 => drop(visitor.0.get_mut().write_all(b"250 2.0.0 Ok\r\n")),
            4 => drop(
                visitor.0.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"),
            ),
            _ => {
                // Until the other side has had enough.
                let _ = visitor.0.read_to_end(&mut Vec::new());
            }
        }
    });
    let (failures, unreachable) = at_desk(&authority, |desk| async move {
        let mut failures = Vec::new();
        for place in 0..6 {
            let patience = if place == 5 { Duration::from_millis(300) } else { PATIENCE };
            let shown =
                desk.show(desk.turn().await, question(), b"a".to_vec(), Instant::now() + patience);
            failures.push(shown.assessment().await);
        }
        let closed = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = closed.local_addr().expect("bound").to_string();
        drop(closed);
        (failures, address)
    });
    let right = [
        Failure::Status(500),
        Failure::Strange,
        Failure::TooLarge,
        Failure::Broken,
        Failure::Broken,
        Failure::Late,
    ];
    let failures: Vec<_> = failures.into_iter().map(|failure| failure.expect_err("none")).collect();
    assert_eq!(failures, right);
    server.join().expect("it served");
    let failure = at_desk(&unreachable, |desk| async move {
        desk.show(desk.turn().await, question(), b"a".to_vec(), soon()).assessment().await
    });
    assert_eq!(failure, Err(Failure::Unreachable));
}

/// The URLs of a message are in its answer; more of such answers than may be read at a time come
/// one after the other.
#[test]
fn an_answer_full_of_urls_is_an_answer() {
    let most = limits::RSPAMD_LARGE_ANSWERS + 2;
    let url = format!("\"http://{}.example/\"", "x".repeat(240));
    let urls = vec![url; 10_240].join(",");
    let answer = format!("{{\"urls\": [{urls}], \"action\": \"reject\", \"emails\": [{urls}]}}");
    let (authority, server) = serve(most, move |_, mut visitor| {
        visitor.request().expect("a request");
        let answer = answer.clone();
        std::thread::spawn(move || visitor.answer("200 OK", &answer))
    });
    at_desk(&authority, |desk| async move {
        let mut shown = Vec::new();
        for _ in 0..most {
            shown.push(desk.show(desk.turn().await, question(), b"a".to_vec(), soon()));
        }
        for shown in shown {
            assert_eq!(effect(shown.assessment().await), REJECTED);
        }
    });
    for answering in server.join().expect("it served") {
        answering.join().expect("it answered");
    }
}

/// An office that is gone answers all the same.
#[test]
fn without_an_office_nobody_waits() {
    let (office, handle) = Office::start("127.0.0.1:9").expect("a thread");
    office.stop();
    let (told, news) = crossbeam::channel::unbounded();
    let announce: Announce = Arc::new(move |token, news| drop(told.send((token, news))));
    let message = Message::Whole(Bytes::from_static(b"a"));
    let teller = Teller::new(announce, 7);
    let (_waits, given_up) = oneshot::channel();
    handle.send(Errand { question: question(), message, deadline: soon(), given_up, teller });
    let (token, news) = news.recv_timeout(PATIENCE).expect("news");
    let News::Done(result) = news else { panic!("{news:?}") };
    assert_eq!((token, *result), (7, Err(Failure::Broken)));
}

#[test]
fn no_more_are_with_rspamd_than_may_be() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let authority = listener.local_addr().expect("bound").to_string();
    at_desk(&authority, |desk| async move {
        let Desk { office, announce, .. } = &*desk;
        let new = |workers| Rc::new(Desk::new(office.clone(), announce.clone(), workers));
        let desk = new(limits::RSPAMD_AT_ONCE);
        let first = desk.show(desk.turn().await, question(), b"a".to_vec(), soon());
        let early = runtime::timeout(Duration::from_millis(50), desk.turn()).await;
        assert!(early.is_none(), "the first is still there");
        drop(first);
        drop(desk.turn().await);
        // Those that come slowly, or are read from the log, leave half of it to the others.
        let desk = new(limits::RSPAMD_AT_ONCE / 2);
        for is_read in [false, true] {
            let turn_to_show = || async {
                if is_read { desk.turn_to_read().await } else { desk.turn_to_follow().await }
            };
            let first = desk.begin_showing(turn_to_show().await, question(), None, soon());
            let early = runtime::timeout(Duration::from_millis(50), turn_to_show()).await;
            assert!(early.is_none(), "the first is still there");
            drop(desk.turn().await);
            drop(first);
            drop(turn_to_show().await);
        }
    });
}

/// With as many workers as there may be none has so few turns that one slow message takes them all.
#[test]
fn every_worker_has_a_turn_beside_one_that_is_taken_slowly() {
    at_desk("127.0.0.1:9", |desk| async move {
        let Desk { office, announce, .. } = &*desk;
        let desk = Desk::new(office.clone(), announce.clone(), WORKERS_MAX);
        let _slow = desk.turn_to_follow().await;
        drop(desk.turn().await);
    });
}

/// However long they wait, and whoever comes or goes meanwhile.
#[test]
fn turns_are_taken_in_the_order_in_which_they_were_asked_for() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let authority = listener.local_addr().expect("bound").to_string();
    at_desk(&authority, |desk| async move {
        let Desk { office, announce, .. } = &*desk;
        let workers = limits::RSPAMD_AT_ONCE;
        let desk = Rc::new(Desk::new(office.clone(), announce.clone(), workers));
        let first = desk.show(desk.turn().await, question(), b"a".to_vec(), soon());
        let order: Rc<RefCell<Vec<u32>>> = Rc::default();
        for number in 0..4 {
            let (desk, order) = (desk.clone(), order.clone());
            runtime::spawn(async move {
                // One of them gives up.
                let patience = if number == 1 { Duration::from_millis(20) } else { PATIENCE };
                let turn = async {
                    match number {
                        2 => desk.turn_to_follow().await,
                        3 => desk.turn_to_read().await,
                        _ => desk.turn().await,
                    }
                };
                if let Some(turn) = runtime::timeout(patience, turn).await {
                    order.borrow_mut().push(number);
                    let _shown = desk.show(turn, question(), b"a".to_vec(), soon());
                    runtime::sleep(Duration::from_millis(1)).await;
                }
            });
            // It is in its place before the next one comes; and the wait is longer than any poll.
            runtime::sleep(Duration::from_millis(100)).await;
        }
        drop(first);
        // Who comes now, while the first of them has been woken only, passes nobody.
        drop(desk.turn().await);
        assert_eq!(*order.borrow(), [0, 2, 3]);
        let all = [&desk.turns, &desk.reading, &desk.following];
        assert_eq!(all.map(|permits| permits.available_permits()), [1, 1, 1]);
    });
}
