//! Each notice is read back by parsers that are not ours.

use std::sync::Arc;

use mail_parser::{MessageParser, MimeHeaders};
use proptest::prelude::*;

use super::*;
use crate::delivery::outcome::Reason;
use crate::message::Ret;
use crate::smtp::address::Utf8;
use crate::smtp::client::{ConnectionCause, ConnectionFailure, Stage, StagedReply};
use crate::smtp::code::EnhancedCode;
use crate::smtp::reply_reader::ReplyReader;

const NOW: u64 = 1_750_000_000_000;
const ORIGINAL: &[u8] = b"Received: by mx.test\r\nSubject: hello\r\n\r\nbody line\r\n";

fn refused(said: &str) -> BounceCause {
    let (_, reply) = ReplyReader::new().read(format!("{said}\r\n").as_bytes());
    let reply = Arc::new(reply.expect("whole").expect("valid"));
    BounceCause::Failed(Reason::Reply(StagedReply { stage: Stage::Rcpt, reply }))
}

fn recipient(path: &str) -> Recipient {
    let path = ForwardPath::parse(path.as_bytes(), Utf8::Allowed).expect("valid");
    Recipient { path, notify: Notify::UNSPECIFIED, orcpt: None }
}

fn envelope_for(recipients: &[&str]) -> Envelope {
    Envelope {
        reverse_path: ReversePath::parse(b"<s@s.test>", Utf8::Allowed).expect("valid"),
        parameters: MailParameters::default(),
        recipients: recipients.iter().map(|path| recipient(path)).collect(),
    }
}

fn notice_of(envelope: &Envelope, content: &[u8], cause: &BounceCause) -> Option<Notice> {
    notice_that(Kind::Failure, envelope, content, Some(Cause::Bounced(cause)))
}

fn notice_that(
    kind: Kind,
    envelope: &Envelope,
    content: &[u8],
    cause: Option<Cause<'_>>,
) -> Option<Notice> {
    let reporter = Reporter { hostname: "mx.test", id: MessageId(99), now_unix_ms: NOW };
    let original = Original { envelope, accepted_unix_ms: NOW - 1, content, complete: true };
    let told: Vec<_> = (0..envelope.recipients.len())
        .map(|index| ToldRecipient {
            index: index as u16,
            cause,
            remote_mta: Some("mx.r.test"),
            last_attempt_unix_ms: Some(NOW),
        })
        .collect();
    let notice = notice(kind, &reporter, &original, &told)?;
    assert_lines(&notice.content);
    Some(notice)
}

/// CRLF only, no line over 998 octets, no NUL.
fn assert_lines(content: &[u8]) {
    assert!(content.ends_with(b"\r\n"));
    for line in content.split_inclusive(|&octet| octet == b'\n') {
        let line = line.strip_suffix(b"\r\n").expect("a line ends with CRLF");
        assert!(line.len() <= 998, "{} octets", line.len());
        assert!(!line.contains(&b'\r') && !line.contains(&0));
    }
}

/// The media type and the octets of each part, as mail-parser finds them.
fn parts(notice: &Notice) -> Vec<(String, String)> {
    let message = MessageParser::default().parse(&notice.content).expect("a message");
    assert_eq!(message.parts[0].sub_parts().expect("a multipart").len(), 3);
    message.parts[0]
        .sub_parts()
        .expect("a multipart")
        .iter()
        .map(|&id| {
            let part = &message.parts[id as usize];
            let kind = part.content_type().expect("a type");
            let octets = &notice.content[part.offset_body as usize..part.offset_end as usize];
            let name = format!("{}/{}", kind.ctype(), kind.subtype().unwrap_or_default());
            (name, String::from_utf8_lossy(octets).into_owned())
        })
        .collect()
}

#[test]
fn a_notice_tells_people_and_programs_what_happened() {
    let mut envelope = envelope_for(&["<bob@r.test>"]);
    envelope.parameters.envid = Some("QQ+2B1".into());
    envelope.recipients[0].orcpt = Some("rfc822;bob+2Bx@o.test".into());
    let cause = refused("550-5.1.1 No such user\r\n550 5.1.1 here");
    let notice = notice_of(&envelope, ORIGINAL, &cause).expect("a notice");
    let head = "From: Mail Delivery System <MAILER-DAEMON@mx.test>\r\nTo: <s@s.test>\r\n";
    assert!(notice.content.starts_with(head.as_bytes()));

    let message = MessageParser::default().parse(&notice.content).expect("a message");
    assert_eq!(message.message_id(), Some(&*format!("{}@mx.test", MessageId(99))));
    assert_eq!(message.date().expect("a date").to_timestamp(), (NOW / 1000) as i64);
    let kind = message.content_type().expect("a type");
    assert_eq!(kind.attribute("report-type"), Some("delivery-status"));

    let parts = parts(&notice);
    assert_eq!(parts[0].0, "text/plain");
    assert_eq!(
        parts[0].1.trim_end(),
        "This is the mail gateway at mx.test.\r\n\r\n\
         Your message could not be delivered to the recipient below. It will not be\r\n\
         tried again.\r\n\r\n\
         <bob@r.test>\r\n\
         \x20   mx.r.test refused it at RCPT TO and said:\r\n\
         \x20       550 5.1.1 No such user\r\n\
         \x20       550 5.1.1 here\r\n\r\n\
         A report for programs and the header of your message follow."
    );
    assert_eq!(parts[1].0, "message/delivery-status");
    assert_eq!(
        parts[1].1.trim_end(),
        "Reporting-MTA: dns; mx.test\r\n\
         Original-Envelope-Id: QQ+1\r\n\
         Arrival-Date: Sun, 15 Jun 2025 15:06:39 -0000\r\n\r\n\
         Original-Recipient: rfc822; bob+x@o.test\r\n\
         Final-Recipient: rfc822; bob@r.test\r\n\
         Action: failed\r\n\
         Status: 5.1.1\r\n\
         Remote-MTA: dns; mx.r.test\r\n\
         Diagnostic-Code: smtp; 550 5.1.1 No such user 5.1.1 here\r\n\
         Last-Attempt-Date: Sun, 15 Jun 2025 15:06:40 -0000"
    );
    assert_eq!(parts[2].0, "text/rfc822-headers");
    assert_eq!(parts[2].1.trim_end(), "Received: by mx.test\r\nSubject: hello");
}

#[test]
fn delays_and_deliveries_are_told_with_their_own_words() {
    let mut envelope = envelope_for(&["<bob@r.test>", "<never@r.test>"]);
    envelope.parameters.ret = Some(Ret::Full);
    envelope.recipients[0].notify = Notify(Notify::SUCCESS.0 | Notify::DELAY.0);
    envelope.recipients[1].notify = Notify::NEVER;
    let BounceCause::Failed(full) = refused("452 4.2.2 full") else { unreachable!() };
    let BounceCause::Failed(unknown) = refused("550 5.1.1 who") else { unreachable!() };
    let delay = Kind::Delay { until_unix_ms: NOW + 1000 };
    let cases = [
        (delay, Some(&full), "delayed", "4.2.2", "tried again until Sun, 15 Jun 2025"),
        (delay, Some(&unknown), "delayed", "4.0.0", "550 5.1.1 who"),
        (delay, None, "delayed", "4.0.0", "You need not do"),
        (Kind::Delivery, None, "delivered", "2.0.0", "was delivered to the recipient below"),
        (Kind::Relay, None, "relayed", "2.0.0", "does not report deliveries"),
    ];
    for (kind, reason, action, status, words) in cases {
        let cause = reason.map(Cause::Waits);
        let notice = notice_that(kind, &envelope, ORIGINAL, cause).expect("a notice");
        let parts = parts(&notice);
        let text = parts[0].1.replace("\r\n", " ");
        assert!(text.contains(words), "{text}");
        let fields = &parts[1].1;
        assert!(fields.contains(&format!("Action: {action}\r\nStatus: {status}\r\n")), "{fields}");
        assert_eq!(fields.matches("Final-Recipient").count(), 1, "{fields}");
        let until = fields.contains("Will-Retry-Until: Sun, 15 Jun 2025 15:06:41 -0000");
        assert_eq!(until, kind == delay);
        // RET=FULL is about failures.
        assert_eq!(parts[2].0, "text/rfc822-headers");
    }
    assert!(notice_that(Kind::Failure, &envelope, ORIGINAL, None).is_none());
}

/// RFC 3461 section 4.1, and section 6.2 for the null reverse-path.
#[test]
fn each_kind_asks_notify() {
    let kinds = [Kind::Failure, Kind::Delay { until_unix_ms: 0 }, Kind::Delivery, Kind::Relay];
    let cases = [
        (Notify::UNSPECIFIED, [true, true, false, false]),
        (Notify::NEVER, [false; 4]),
        (Notify::SUCCESS, [false, false, true, true]),
        (Notify::FAILURE, [true, false, false, false]),
        (Notify::DELAY, [false, true, false, false]),
        (Notify(7), [true; 4]),
    ];
    for (notify, wanted) in cases {
        let mut envelope = envelope_for(&["<bob@r.test>"]);
        envelope.recipients[0].notify = notify;
        assert_eq!(kinds.map(|kind| kind.is_wanted(&envelope, 0)), wanted, "{notify:?}");
        assert_eq!(kinds.map(|kind| kind.is_wanted(&envelope, 1)), [false; 4]);
        envelope.reverse_path = ReversePath::Null;
        assert_eq!(kinds.map(|kind| kind.is_wanted(&envelope, 0)), [false; 4]);
    }
}

#[test]
fn a_notice_goes_from_nobody_and_asks_for_none() {
    let notice = notice_of(&envelope_for(&["<b@r.test>"]), ORIGINAL, &refused("550 no"));
    let envelope = notice.expect("a notice").envelope;
    assert_eq!(envelope.reverse_path, ReversePath::Null);
    assert_eq!(envelope.recipients.len(), 1);
    assert_eq!(envelope.recipients[0].path.to_string(), "<s@s.test>");
    assert_eq!(envelope.recipients[0].notify, Notify::NEVER);
    assert_eq!(envelope.parameters, MailParameters::default());
}

/// Two gateways that bounce each other's bounces.
#[test]
fn nobody_who_does_not_want_a_notice_gets_one() {
    let cause = refused("550 no");
    let mut envelope = envelope_for(&["<a@r.test>", "<b@r.test>", "<c@r.test>"]);
    envelope.recipients[0].notify = Notify::NEVER;
    envelope.recipients[1].notify = Notify(Notify::SUCCESS.0 | Notify::DELAY.0);
    envelope.recipients[2].notify = Notify::FAILURE;
    let notice = notice_of(&envelope, ORIGINAL, &cause).expect("one of them wants it");
    let text = String::from_utf8(notice.content).expect("UTF-8");
    assert!(text.contains("c@r.test") && !text.contains("a@r.test") && !text.contains("b@r.test"));

    envelope.recipients.truncate(2);
    assert_eq!(notice_of(&envelope, ORIGINAL, &cause), None);
    let mut bounce = envelope_for(&["<a@r.test>"]);
    bounce.reverse_path = ReversePath::Null;
    assert_eq!(notice_of(&bounce, ORIGINAL, &cause), None);
    assert_eq!(notice_of(&envelope_for(&[]), ORIGINAL, &cause), None);
}

#[test]
fn an_originator_cannot_write_fields_or_parts() {
    let mut envelope = envelope_for(&["<b@r.test>"]);
    envelope.parameters.envid = Some("x+0D+0AAction:+20delivered".into());
    envelope.recipients[0].orcpt = Some("rfc822;x+0D+0A+0D+0AStatus:+202.0.0".into());
    let boundary = format!("--=_{}_0", MessageId(99));
    let forged = format!("Subject: x\r\n{boundary}\r\nA: b\r\n\r\n{boundary}--\r\n");
    envelope.parameters.ret = Some(Ret::Full);
    let notice = notice_of(&envelope, forged.as_bytes(), &refused("550 no")).expect("a notice");
    let parts = parts(&notice);
    let count = |name: &str| parts[1].1.lines().filter(|line| line.starts_with(name)).count();
    assert_eq!((count("Action:"), count("Status:")), (1, 1));
    assert!(parts[1].1.contains("x+0D+0A"), "told as it came");
    assert_eq!(parts[2].0, "message/rfc822");
    assert_eq!(parts[2].1, forged);
}

#[test]
fn what_is_returned_is_small_and_clean() {
    let long = [b"Subject: ".as_slice(), &[b'x'; 5000], b"\r\n\r\nbody\r\n"].concat();
    let huge_header = b"A: b\r\n".repeat(100_000);
    let huge_body = [ORIGINAL, &b"line\r\n".repeat(20_000)].concat();
    let cases: [(&[u8], &str); 10] = [
        (ORIGINAL, "message/rfc822"),
        (&long, "text/rfc822-headers"),
        (&huge_header, "text/rfc822-headers"),
        (&huge_body, "text/rfc822-headers"),
        (b"A: b\r\n\r\nbare\nnewline\r\n", "text/rfc822-headers"),
        (b"A: b\r\n\r\nbare\rreturn\r\n", "text/rfc822-headers"),
        (b"A: b\r\n\r\nends with\r", "text/rfc822-headers"),
        (b"A: b\n\n\0\r\n", "text/rfc822-headers"),
        (b"A: b\0c\r\n\r\n", "text/rfc822-headers"),
        (b"", "message/rfc822"),
    ];
    let mut envelope = envelope_for(&["<b@r.test>"]);
    for (content, expected) in cases {
        envelope.parameters.ret = Some(Ret::Full);
        let notice = notice_of(&envelope, content, &refused("550 no")).expect("a notice");
        assert_eq!(parts(&notice)[2].0, expected);
        assert!(notice.content.len() < RETURNED_OCTETS + 4096);
        envelope.parameters.ret = Some(Ret::Headers);
        let notice = notice_of(&envelope, content, &refused("550 no")).expect("a notice");
        assert_eq!(parts(&notice)[2].0, "text/rfc822-headers");
        assert!(notice.content.len() < 20 * 1024);
    }
}

#[test]
fn addresses_beyond_ascii_take_the_global_forms() {
    let mut envelope = envelope_for(&["<\u{f6}@r.test>"]);
    envelope.parameters.smtputf8 = true;
    envelope.reverse_path =
        ReversePath::parse("<s\u{e4}@s.test>".as_bytes(), Utf8::Allowed).expect("valid");
    envelope.recipients[0].orcpt = Some("utf-8;\\x{F6}@o.test".into());
    let header = "Subject: \u{e4}\r\n\r\n".as_bytes();
    let notice = notice_of(&envelope, header, &refused("550 kein \u{f6}")).expect("a notice");
    let parts = parts(&notice);
    assert_eq!(parts[1].0, "message/global-delivery-status");
    assert!(parts[1].1.contains("Final-Recipient: utf-8; \u{f6}@r.test\r\n"));
    assert!(parts[1].1.contains("Original-Recipient: utf-8; \\x{F6}@o.test\r\n"));
    assert!(parts[1].1.contains("smtp; 550 kein \u{f6}"));
    assert_eq!(parts[2].0, "message/global-headers");
    assert!(notice.envelope.parameters.smtputf8);
    assert_eq!(notice.envelope.parameters.body, BodyKind::EightBitMime);
}

/// A peer's reply in UTF-8 about an ASCII address: RFC 3464 fields are ASCII.
#[test]
fn a_reply_beyond_ascii_is_told_to_people_alone() {
    let envelope = envelope_for(&["<b@r.test>"]);
    let notice = notice_of(&envelope, ORIGINAL, &refused("550 kein \u{f6}")).expect("a notice");
    let parts = parts(&notice);
    assert!(parts[0].1.contains("kein \u{f6}"));
    assert!(parts[1].1.contains("kein ?") && parts[1].1.is_ascii());
    assert!(!notice.envelope.parameters.smtputf8);
    assert_eq!(notice.envelope.parameters.body, BodyKind::EightBitMime);
}

#[test]
fn every_cause_is_told() {
    let failure = |cause| Reason::Connection(ConnectionFailure { stage: Stage::EndOfData, cause });
    let local = Reason::Local {
        status: EnhancedCode::new(5, 7, 1).expect("valid"),
        text: "the route says no".into(),
    };
    let expired = |last| BounceCause::Expired { last };
    let cases = [
        (BounceCause::Failed(local), "5.7.1", "The reason: the route says no."),
        (expired(None), "4.4.7", "It could not be delivered in the time allowed."),
        (
            expired(Some(failure(ConnectionCause::Closed))),
            "4.4.7",
            "With mx.r.test: the connection was lost at the end of the message.",
        ),
    ];
    for (cause, status, sentence) in cases {
        let notice = notice_of(&envelope_for(&["<b@r.test>"]), ORIGINAL, &cause).expect("a notice");
        let parts = parts(&notice);
        assert!(parts[0].1.contains(sentence), "{}", parts[0].1);
        assert!(parts[1].1.contains(&format!("Status: {status}\r\n")));
        assert!(!parts[1].1.contains("Diagnostic-Code"));
    }
}

#[test]
fn a_long_list_is_told_in_part_and_reported_in_full() {
    let paths: Vec<String> = (0..200).map(|n| format!("<r{n}@r.test>")).collect();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let notice = notice_of(&envelope_for(&paths), ORIGINAL, &refused("550 no")).expect("a notice");
    let parts = parts(&notice);
    assert!(parts[0].1.contains("and 150 more"));
    assert_eq!(parts[1].1.matches("Final-Recipient").count(), 200);
}

/// Python's parser reads the fields of the second part as messages of their own.
#[test]
fn python_reads_the_same() {
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    const SCRIPT: &str = "
import email, email.policy, sys
m = email.message_from_bytes(sys.stdin.buffer.read(), policy=email.policy.SMTP)
parts = list(m.iter_parts())
assert not any(p.defects for p in m.walk()), [p.defects for p in m.walk()]
report = parts[1].get_payload()
print(m.get_content_type(), m['To'].addresses[0].addr_spec, [p.get_content_type() for p in parts],
      report[0]['Reporting-MTA'], report[1]['Status'], report[1]['Final-Recipient'])
";
    let envelope = envelope_for(&["<b@r.test>"]);
    let notice = notice_of(&envelope, ORIGINAL, &refused("550 5.1.1 no")).expect("a notice");
    let mut python = Command::new("python3")
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 is installed");
    python.stdin.take().expect("piped").write_all(&notice.content).expect("written");
    let output = python.wait_with_output().expect("it ends");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).trim_end(),
        "multipart/report s@s.test ['text/plain', 'message/delivery-status', \
         'text/rfc822-headers'] dns; mx.test 5.1.1 rfc822; b@r.test"
    );
}

proptest! {
    /// Whatever the original and the reply hold, the notice is a clean message of three parts.
    #[test]
    fn any_original_makes_a_clean_notice(
        content in proptest::collection::vec(
            prop_oneof![Just(b'\r'), Just(b'\n'), Just(b':'), Just(b'-'), any::<u8>()], 0..3000),
        said in "[ -~\u{e0}-\u{ff}]{0,400}",
        full: bool,
    ) {
        let mut envelope = envelope_for(&["<b@r.test>"]);
        envelope.parameters.ret = Some(if full { Ret::Full } else { Ret::Headers });
        let notice = notice_of(&envelope, &content, &refused(&format!("550 {said}")))
            .expect("a notice");
        prop_assert_eq!(parts(&notice).len(), 3);
    }
}
