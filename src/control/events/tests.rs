//! What a line looks like, and what a buffer does when the queue is full.

use std::sync::Arc;

use crossbeam::channel;
use proptest::prelude::*;

use super::*;
use crate::edge::verdict::Effect;
use crate::message::Notify;
use crate::smtp::address::ForwardPath;

const AT: Moment = Moment(1_769_862_896_789);

/// A buffer whose writer is the test.
fn buffer(blocks: usize) -> (EventBuffer, Receiver<Vec<u8>>, Arc<EventCounters>) {
    let (full, taken) = channel::bounded(blocks);
    let (_, spare) = channel::bounded(1);
    let counters = Arc::new(EventCounters::default());
    (EventBuffer::new(Link { full, spare, counters: counters.clone() }), taken, counters)
}

fn line(event: &Event<'_>) -> String {
    let (buffer, taken, _) = buffer(1);
    buffer.emit_at(event, AT);
    buffer.flush();
    String::from_utf8(taken.try_recv().unwrap()).unwrap()
}

fn recipients(count: usize) -> Vec<Recipient> {
    let recipient =
        |_| Recipient { path: ForwardPath::Postmaster, notify: Notify::UNSPECIFIED, orcpt: None };
    (0..count).map(recipient).collect()
}

fn finding(check: &str, score: Score) -> Finding {
    let took = std::time::Duration::ZERO;
    Finding {
        check: check.into(),
        fact: "".into(),
        effect: Effect::Score(score),
        reply: None,
        took,
    }
}

#[test]
fn a_full_line() {
    let message = MessageId(1 << 40);
    let mut sessions = SessionIds::new(1);
    let event = Event {
        session: Some(sessions.next(AT.0)),
        message: Some(message),
        listener: Some("127.0.0.1:2525".parse().unwrap()),
        peer: Some("[::1]:9".parse().unwrap()),
        helo: Some("a\"b"),
        from: Some(""),
        to: Addressees::Texts(&["a@example.com".to_owned(), "b@example.com".to_owned()]),
        size: Some(10),
        site: Some("10.0.0.5:25"),
        attempts: Some(2),
        reply: Some("451 4.0.0 later\u{7}"),
        reason: Some("reply"),
        action: Some("tag"),
        score: Some(Score(-150)),
        causes: Some(&[finding("a.example", Score(-150)), finding("quiet", Score(0))]),
        require_tls: Some(true),
        soft_bounce: Some(true),
        delay_ms: Some(3),
        next_attempt: Some(Moment(0)),
        ..Event::new(EventKind::Deferred)
    };
    let expected = concat!(
        r#"{"schema":1,"time":"2026-01-31T12:34:56.789Z","event":"deferred","#,
        r#""session":"SESSION","message":"MESSAGE","listener":"127.0.0.1:2525","#,
        r#""peer":"[::1]:9","helo":"a\"b","from":"","to":["a@example.com","b@example.com"],"#,
        r#""size":10,"site":"10.0.0.5:25","attempts":2,"reply":"451 4.0.0 later\u0007","#,
        r#""reason":"reply","action":"tag","score":-1.5,"causes":["a.example=-1.5"],"require_tls":true,"soft_bounce":true,"delay_ms":3,"next_attempt":"1970-01-01T00:00:00.000Z"}"#,
        "\n"
    );
    let session = event.session.unwrap().to_string();
    assert_eq!(
        line(&event),
        expected.replace("SESSION", &session).replace("MESSAGE", &message.to_string())
    );
}

#[test]
fn what_does_not_apply_is_left_out() {
    assert_eq!(
        line(&Event::new(EventKind::Ready)),
        "{\"schema\":1,\"time\":\"2026-01-31T12:34:56.789Z\",\"event\":\"ready\"}\n"
    );
}

#[test]
fn recipients_are_always_a_list() {
    let three = recipients(3);
    for (to, count) in [
        (Addressees::One("a@example.com"), 1),
        (Addressees::Texts(&[]), 0),
        (Addressees::All(&three), 3),
        (Addressees::Some(&three, &[0, 2]), 2),
        (Addressees::Some(&three, &[0, 7, u16::MAX]), 1),
    ] {
        let line = line(&Event { to, ..Event::new(EventKind::Delivered) });
        let json: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(json["to"].as_array().unwrap().len(), count, "{line}");
    }
}

#[test]
fn a_block_goes_when_it_is_full() {
    let (buffer, taken, _) = buffer(8);
    let line = line(&Event::new(EventKind::Connect)).len();
    for _ in 0..limits::EVENT_BLOCK / line {
        buffer.emit_at(&Event::new(EventKind::Connect), AT);
    }
    assert!(taken.is_empty());
    buffer.emit_at(&Event::new(EventKind::Connect), AT);
    assert_eq!(taken.len(), 1);
    buffer.flush();
    assert_eq!(taken.len(), 1, "there was nothing more");
}

#[test]
fn a_full_queue_makes_wait_and_keeps_the_order() {
    let (buffer, taken, counters) = buffer(1);
    for step in 0..5 {
        buffer.emit_at(&Event { size: Some(step), ..Event::new(EventKind::Accepted) }, AT);
        buffer.flush();
        assert_eq!(buffer.must_wait(), step > 0);
    }
    assert_eq!(counters.figures().waits, 1);
    let mut sizes = Vec::new();
    while let Ok(block) = taken.try_recv() {
        // What the writer does.
        counters.queued_octets.fetch_sub(block.len(), Ordering::Relaxed);
        for line in String::from_utf8(block).unwrap().lines() {
            let json: serde_json::Value = serde_json::from_str(line).unwrap();
            sizes.push(json["size"].as_u64().unwrap());
        }
        buffer.flush();
    }
    assert_eq!(sizes, [0, 1, 2, 3, 4]);
    assert!(!buffer.must_wait());
    assert_eq!(counters.figures(), EventFigures { waits: 1, ..EventFigures::default() });
}

#[test]
fn a_backlog_without_end_is_bounded_and_counted() {
    let (buffer, _taken, counters) = buffer(1);
    let text = "x".repeat(limits::EVENT_BLOCK);
    let event = Event { reply: Some(&text), ..Event::new(EventKind::Bounced) };
    for _ in 0..limits::EVENT_BACKLOG / limits::EVENT_BLOCK + 20 {
        buffer.emit_at(&event, AT);
    }
    let held = buffer.filling.borrow().backlog_octets;
    assert!(held < limits::EVENT_BACKLOG + 2 * limits::EVENT_BLOCK, "{held}");
    assert!((18..=21).contains(&counters.figures().lost), "{:?}", counters.figures());
}

#[test]
fn the_queue_is_bounded_in_octets() {
    let (buffer, taken, counters) = buffer(10_000);
    let text = "x".repeat(limits::EVENT_BLOCK);
    let event = Event { reply: Some(&text), ..Event::new(EventKind::Bounced) };
    while !buffer.must_wait() {
        buffer.emit_at(&event, AT);
    }
    let queued: usize = taken.try_iter().map(|block| block.len()).sum();
    assert!(queued <= limits::EVENT_QUEUE);
    assert_eq!(counters.figures().queued_bytes, queued as u64);
}

proptest! {
    /// Whatever a peer says, a line is one line and reads back.
    #[test]
    fn any_text_makes_one_line(
        reply in any::<String>(),
        helo in any::<String>(),
        to in prop::collection::vec(any::<String>(), 0..4),
        size in any::<u64>(),
        peer in any::<std::net::SocketAddr>(),
    ) {
        let event = Event {
            reply: Some(&reply),
            helo: Some(&helo),
            to: Addressees::Texts(&to),
            size: Some(size),
            peer: Some(peer),
            ..Event::new(EventKind::Refused)
        };
        let line = line(&event);
        prop_assert_eq!(line.find('\n'), Some(line.len() - 1));
        let json: serde_json::Value = serde_json::from_str(&line).unwrap();
        prop_assert_eq!(json["reply"].as_str(), Some(reply.as_str()));
        prop_assert_eq!(json["helo"].as_str(), Some(helo.as_str()));
        prop_assert_eq!(&json["to"], &serde_json::json!(to));
        prop_assert_eq!(json["size"].as_u64(), Some(size));
        prop_assert_eq!(&json["peer"], &serde_json::json!(peer.to_string()));
    }
}

/// Not a test of anything: `cargo test --release -- --ignored --nocapture cost_of_an_event`.
#[test]
#[ignore = "a measurement"]
fn cost_of_an_event() {
    let (buffer, taken, counters) = buffer(10_000);
    let mut sessions = SessionIds::new(1);
    let event = Event {
        session: Some(sessions.next(AT.0)),
        message: Some(MessageId(1 << 62)),
        peer: Some("192.0.2.17:40123".parse().unwrap()),
        from: Some("sender@example.com"),
        to: Addressees::One("recipient@example.org"),
        size: Some(10_240),
        reply: Some("250 2.0.0 Ok: queued as 0000100000000 (fsync)"),
        delay_ms: Some(12),
        ..Event::new(EventKind::Accepted)
    };
    let count = 1_000_000;
    let start = std::time::Instant::now();
    for _ in 0..count {
        buffer.emit(&event);
        if let Ok(block) = taken.try_recv() {
            counters.queued_octets.fetch_sub(block.len(), Ordering::Relaxed);
        }
    }
    println!("{:?} an event", start.elapsed() / count);
}
