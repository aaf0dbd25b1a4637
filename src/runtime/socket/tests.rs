//! What is done at once, and what is left to the loop.

use std::io::{Read, Write};
use std::thread;

use super::*;
use crate::runtime;
use crate::runtime::buffer::{Buffer, SMALL};

/// More than both windows hold.
const MUCH: usize = 32 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

fn pattern() -> Vec<u8> {
    (0..MUCH).map(|place| (place / 4_099) as u8 ^ place as u8).collect()
}

/// Runs `ours` with a stream to a peer that does `theirs`; what both gave.
fn with_peer<O, T: Send + 'static>(
    theirs: impl FnOnce(std::net::TcpStream) -> T + Send + 'static,
    ours: impl AsyncFnOnce(Stream) -> O,
) -> (O, T) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let peer = thread::spawn(move || theirs(listener.accept().expect("a connection").0));
    let given = runtime::run(async move {
        let stream = Stream::connect(address, None, PATIENCE).await.expect("it listens");
        ours(stream).await
    });
    (given.expect("a loop"), peer.join().expect("no panic"))
}

#[test]
fn what_the_kernel_does_not_take_at_once_follows_in_order() {
    let read_all = |mut peer: std::net::TcpStream| {
        let mut octets = Vec::new();
        peer.read_to_end(&mut octets).expect("it is sent");
        octets
    };
    let (written, read) = with_peer(read_all, async |mut stream| {
        let (result, bytes) = stream.write_all(pattern(), Instant::now() + PATIENCE).await;
        (result.is_ok(), bytes.len())
    });
    assert_eq!(written, (true, MUCH));
    assert!(read == pattern(), "{} octets, in another order", read.len());
}

#[test]
fn a_peer_that_takes_nothing_ends_a_write_at_its_deadline() {
    let (until, ended) = std::sync::mpsc::channel::<()>();
    let take_nothing = move |peer: std::net::TcpStream| {
        let _ = ended.recv();
        drop(peer);
    };
    let (result, ()) = with_peer(take_nothing, async move |mut stream| {
        runtime::spawn(crate::runtime::deadline::sweep_forever());
        let deadline = Instant::now() + Duration::from_millis(100);
        let (result, _) = stream.write_all(pattern(), deadline).await;
        drop(until);
        result
    });
    assert!(matches!(result, Err(StreamError::TimedOut)), "{result:?}");
}

#[test]
fn what_is_there_is_read_at_once_and_nothing_else_is_waited_for() {
    let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
    let say_twice = move |mut peer: std::net::TcpStream| {
        peer.write_all(b"one").expect("it listens");
        may_go_on.recv().expect("it has read that");
        peer.write_all(b"two").expect("it listens");
        let _ = may_go_on.recv();
    };
    let (read, ()) = with_peer(say_twice, async move |mut stream| {
        let deadline = Instant::now() + PATIENCE;
        stream.readable(deadline).await.expect("it writes");
        assert!(!stream.is_read_out());
        let mut buffer = Buffer::new(SMALL);
        let first = stream.read_now(&mut buffer).expect("it has come").ok();
        assert!(stream.is_read_out() && stream.read_now(&mut buffer).is_none());
        go_on.send(()).expect("it waits");
        let (second, buffer) = stream.read(buffer, deadline).await;
        (first, second.ok(), buffer.bytes().to_vec())
    });
    assert_eq!(read, (Some(3), Some(3), b"onetwo".to_vec()));
}
