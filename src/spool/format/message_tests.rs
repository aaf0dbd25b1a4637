use proptest::prelude::*;

use super::*;

fn mailbox(text: &str) -> Mailbox {
    Mailbox::restored(text, text.find('@').unwrap() as u16).unwrap()
}

fn envelope() -> Envelope {
    Envelope {
        reverse_path: ReversePath::Mailbox(mailbox("bounces@example.com")),
        parameters: MailParameters {
            body: BodyKind::EightBitMime,
            smtputf8: true,
            require_tls: true,
            ret: Some(Ret::Headers),
            envid: Some("".into()),
        },
        recipients: vec![
            Recipient { path: ForwardPath::Postmaster, notify: Notify::NEVER, orcpt: None },
            Recipient {
                path: ForwardPath::Mailbox(mailbox("ü@example.org")),
                notify: Notify(6),
                orcpt: Some("rfc822;u@example.org".into()),
            },
        ],
    }
}

fn origin() -> Origin {
    Origin {
        client: "192.0.2.7:4711".parse().unwrap(),
        listener: "[fe80::1%3]:25".parse().unwrap(),
        helo: "client.example.com".into(),
        accepted_unix_ms: 1_760_000_000_123,
    }
}

fn summary(body: &[u8]) -> BodySummary {
    BodySummary {
        octets: body.len() as u64,
        crc32c: crc32c::crc32c(body),
        longest_line: 70,
        flags: BodyFlags::DATA | BodyFlags::ENDS_WITH_CRLF,
    }
}

fn round_trip(message: &NewMessage<'_>) -> (StoredMessage, Vec<u8>) {
    let mut out = vec![0; message.bytes_max()];
    let length = message.put(&mut out).expect("the bound holds");
    out.truncate(length);
    let view = RecordView::parse(&out).unwrap();
    view.verify_body().unwrap();
    assert_eq!(trace(&view).unwrap(), message.trace);
    (StoredMessage::decode(&view).unwrap(), view.body().to_vec())
}

/// A message without anything that it need not have.
fn plain<'a>(
    envelope: &'a Envelope,
    origin: &'a Origin,
    summary: &'a BodySummary,
    body: NewBody<'a>,
) -> NewMessage<'a> {
    NewMessage {
        id: MessageId(1),
        durability: Durability::Fsync,
        envelope,
        origin,
        summary,
        trace: b"",
        not_before_unix_ms: None,
        extensions: &[],
        body,
    }
}

#[test]
fn a_message_reads_back_whole() {
    let (envelope, origin, summary) = (envelope(), origin(), summary(b"body\r\n"));
    let extensions = [Extension { kind: 7, value: b"tenant" }, Extension { kind: 8, value: b"" }];
    let message = NewMessage {
        id: MessageId(42),
        durability: Durability::Os,
        envelope: &envelope,
        origin: &origin,
        summary: &summary,
        trace: b"Received: by us\r\n",
        not_before_unix_ms: Some(5),
        extensions: &extensions,
        body: NewBody::Inline(b"body\r\n"),
    };
    let (stored, body) = round_trip(&message);
    assert_eq!(body, b"body\r\n");
    assert_eq!((stored.id, stored.durability), (MessageId(42), Durability::Os));
    assert_eq!((&stored.envelope, &stored.origin, stored.summary), (&envelope, &origin, summary));
    assert_eq!(&*stored.trace, b"Received: by us\r\n");
    assert_eq!((stored.not_before_unix_ms, stored.body), (Some(5), StoredBody::Inline));
    assert_eq!(stored.extensions, [(7, (*b"tenant").into()), (8, [].into())]);
}

/// Two bodies under one length would be mail and commands to who reads them.
#[test]
fn a_body_that_is_not_the_measured_one_is_not_written() {
    let (envelope, origin, summary) = (envelope(), origin(), summary(b"body\r\n"));
    let message = plain(&envelope, &origin, &summary, NewBody::Inline(b"body\r\nand another\r\n"));
    assert_eq!(message.put(&mut [0; 4096]), None);
    let message = NewMessage { body: NewBody::Chunks(&[]), ..message };
    assert_eq!(message.put(&mut [0; 4096]), None);
}

#[test]
fn chunks_are_named_by_their_places() {
    let (envelope, origin) = (envelope(), origin());
    let place = RecordPlace { segment: SegmentNo(9), offset: 4096 + 64, length: 8192 };
    let chunks = [ChunkPlace { place, octets: 8000, crc32c: 1 }; 3];
    let summary = BodySummary { octets: 24_000, ..BodySummary::default() };
    let message = plain(&envelope, &origin, &summary, NewBody::Chunks(&chunks));
    let (stored, body) = round_trip(&message);
    assert_eq!((stored.body, body.len()), (StoredBody::Chunks(chunks.into()), 0));
}

#[test]
fn what_is_quarantined_stays_so_with_its_explanation() {
    let (envelope, origin, summary) = (envelope(), origin(), summary(b""));
    let explanation = Extension { kind: Extension::EXPLANATION, value: b"{}" };
    let quarantined = Extension { kind: Extension::QUARANTINED, value: b"" };
    let message = |extensions| {
        let body = NewBody::Inline(b"");
        NewMessage { extensions, ..plain(&envelope, &origin, &summary, body) }
    };
    let both = [explanation, quarantined];
    let (stored, _) = round_trip(&message(&both));
    assert!(stored.is_quarantined());
    assert_eq!(stored.extension(Extension::EXPLANATION), Some(&b"{}"[..]));
    let (stored, _) = round_trip(&message(&both[..1]));
    assert!(!stored.is_quarantined());
}

#[test]
fn an_extension_that_must_be_understood_is_not_passed_over() {
    let (envelope, origin, summary) = (envelope(), origin(), summary(b""));
    let extensions = [Extension { kind: 7 | Extension::MUST_UNDERSTAND, value: b"" }];
    let message = plain(&envelope, &origin, &summary, NewBody::Inline(b""));
    let message = NewMessage { extensions: &extensions, ..message };
    let mut out = vec![0; message.bytes_max()];
    message.put(&mut out).unwrap();
    let view = RecordView::parse(&out).unwrap();
    assert!(matches!(StoredMessage::decode(&view), Err(FormatError::MustUnderstand(_))));
}

proptest! {
    /// A head whose CRC agrees may still hold anything: a bug of ours, or an attacker with the
    /// disk.  It must decode or be refused, never panic.
    #[test]
    fn no_head_panics(head in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut out = vec![0; 1024];
        put_record(&mut out, Kind::Message, MessageId(1), PutBody::Copy(&[], 0), |put| {
            put.bytes(&head);
        })
        .unwrap();
        let view = RecordView::parse(&out).unwrap();
        let _ = StoredMessage::decode(&view);
        let _ = (trace(&view), chunks(&view).map(|chunks| chunks.count()), recipient_count(&view));
    }

    #[test]
    fn a_hurt_message_never_panics(at in 0usize..200, value in any::<u8>()) {
        let (envelope, origin, summary) = (envelope(), origin(), summary(b""));
        let message = plain(&envelope, &origin, &summary, NewBody::Inline(b""));
        let mut out = vec![0; message.bytes_max()];
        message.put(&mut out).unwrap();
        let mut head = RecordView::parse(&out).unwrap().head().to_vec();
        if let Some(byte) = head.get_mut(at) {
            *byte = value;
        }
        let mut hurt = vec![0; 1024];
        put_record(&mut hurt, Kind::Message, MessageId(1), PutBody::Copy(&[], 0), |put| {
            put.bytes(&head);
        })
        .unwrap();
        let _ = StoredMessage::decode(&RecordView::parse(&hurt).unwrap());
    }
}
