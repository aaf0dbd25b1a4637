//! AUTH, and the decision on senders that follows from it.

use super::tests::{config, last_line, replies, say, session};
use super::*;
use crate::auth::sasl::Mechanism;

fn auth_session(offer: AuthOffer, tls: ListenerTls, said: &[u8]) -> (Server, Event) {
    let config = ServerConfig { auth: Some(offer), tls, ..(*config()).clone() };
    let mut server = Server::new(Rc::new(config), Instant::now());
    let (event, _) = say(&mut server, Instant::now(), said);
    (server, event)
}

fn offer(mechanisms: &[Mechanism]) -> AuthOffer {
    AuthOffer {
        mechanisms: mechanisms.into(),
        only_secured: false,
        secrets_in_clear: true,
        required: true,
    }
}

const PLAIN_LOGIN: [Mechanism; 2] = [Mechanism::Plain, Mechanism::Login];

/// What is refused before any mechanism hears of it.
#[test]
fn auth_where_it_cannot_be() {
    for (said, reply) in [
        (&b"AUTH PLAIN AGEAYg==\r\n"[..], "503 5.5.1 Send EHLO or HELO first"),
        (b"HELO c\r\nAUTH PLAIN AGEAYg==\r\n", "503 5.5.1 Send EHLO or HELO first"),
        (b"EHLO c\r\nAUTH\r\n", "501 5.5.4"),
        (b"EHLO c\r\nAUTH PLAIN a b\r\n", "501 5.5.4"),
        (b"EHLO c\r\nAUTH CRAM-MD5\r\n", "504 5.5.4 No such mechanism"),
        (b"EHLO c\r\nAUTH SCRAM-SHA-1\r\n", "504 5.5.4 No such mechanism"),
        (b"EHLO c\r\nAUTH PLAIN AGEAYg=\r\n", "501 5.5.2 Cannot read the response"),
        (b"EHLO c\r\nAUTH PLAIN ==\r\n", "501 5.5.2 Cannot read the response"),
        (b"EHLO c\r\nMAIL FROM:<a@b.example>\r\n", "530 5.7.0 Authentication required"),
    ] {
        let (mut server, event) = auth_session(offer(&PLAIN_LOGIN), ListenerTls::Off, said);
        let last = last_line(&mut server);
        assert!(last.starts_with(reply), "{}: {last}", said.escape_ascii());
        assert_eq!(event, Event::NeedInput);
    }
    let mut server = session(Instant::now(), b"EHLO c\r\nAUTH PLAIN AGEAYg==\r\n");
    assert_eq!(last_line(&mut server), "502 5.5.1 Not offered here");
}

#[test]
fn an_exchange_from_auth_to_mail() {
    let now = Instant::now();
    let said = b"EHLO c\r\nauth login\r\n";
    let (mut server, event) = auth_session(offer(&PLAIN_LOGIN), ListenerTls::Off, said);
    assert_eq!(event, Event::Authenticate);
    assert!(replies(&mut server).contains("250-AUTH PLAIN LOGIN\r\n"));
    let start = Response { mechanism: Mechanism::Login, is_first: true, octets: None };
    assert_eq!(server.response(), Some(start));
    server.auth_answered(now, AuthAnswer::Challenge(b"Username:".to_vec()));
    assert_eq!(replies(&mut server), "334 VXNlcm5hbWU6\r\n");
    assert_eq!(say(&mut server, now, b"dXNl").0, Event::NeedInput);
    let (event, rest) = say(&mut server, now, b"dXNlcg==\r\nMAIL FROM:<a@b.example>\r\n");
    assert_eq!(event, Event::Authenticate);
    let next = Response { is_first: false, octets: Some(b"user"), ..start };
    assert_eq!(server.response(), Some(next));
    server.auth_answered(now, AuthAnswer::Succeeded("user".into()));
    assert_eq!(replies(&mut server), "235 2.7.0 Authentication succeeded\r\n");
    assert_eq!(server.client().unwrap().authenticated.as_deref(), Some("user"));
    server.auth_answered(now, AuthAnswer::Succeeded("other".into()));
    assert_eq!(replies(&mut server), "", "one response, one answer");
    say(&mut server, now, &rest);
    assert_eq!(last_line(&mut server), "250 2.1.0 Sender ok");
    say(&mut server, now, b"AUTH PLAIN AGEAYg==\r\n");
    assert_eq!(last_line(&mut server), "503 5.5.1 Not now");
    say(&mut server, now, b"EHLO c\r\nAUTH PLAIN AGEAYg==\r\n");
    assert_eq!(last_line(&mut server), "503 5.5.1 Not now", "EHLO leaves who it is");
    say(&mut server, now, b"MAIL FROM:<a@b.example> AUTH=<>\r\n");
    assert_eq!(last_line(&mut server), "250 2.1.0 Sender ok");
}

#[test]
fn responses_that_end_an_exchange() {
    let now = Instant::now();
    let long = [&b"QUJD".repeat(3_072)[..], b"\r\n"].concat();
    for (response, reply) in [
        (&b"*\r\n"[..], "501 5.7.0 Authentication cancelled"),
        (b"not base64!\r\n", "501 5.5.2 Cannot read the response"),
        (b"AGEAYg=\r\n", "501 5.5.2 Cannot read the response"),
        (&long, "500 5.5.2 Line too long"),
    ] {
        for cut in [0, 1, response.len() / 2, response.len() - 1] {
            let (mut server, _) =
                auth_session(offer(&PLAIN_LOGIN), ListenerTls::Off, b"EHLO c\r\nAUTH PLAIN\r\n");
            server.auth_answered(now, AuthAnswer::Challenge(Vec::new()));
            assert_eq!(last_line(&mut server), "334 ");
            let (_, left) = say(&mut server, now, &response[..cut]);
            say(&mut server, now, &[&left, &response[cut..]].concat());
            assert_eq!(last_line(&mut server), reply);
            say(&mut server, now, b"NOOP\r\n");
            assert_eq!(last_line(&mut server), "250 2.0.0 Ok");
        }
    }
}

#[test]
fn an_auth_line_may_be_longer_than_others() {
    let token = "QUJD".repeat(3_000);
    let said = format!("EHLO c\r\nAUTH PLAIN {token}\r\n");
    let (server, event) = auth_session(offer(&PLAIN_LOGIN), ListenerTls::Off, said.as_bytes());
    assert_eq!(event, Event::Authenticate);
    let octets = server.response().and_then(|response| response.octets);
    assert_eq!(octets.map(<[u8]>::len), Some(9_000));
    let said = format!("EHLO c\r\nAUTH PLAIN {token}{token}\r\n");
    let (mut server, _) = auth_session(offer(&PLAIN_LOGIN), ListenerTls::Off, said.as_bytes());
    assert_eq!(last_line(&mut server), "500 5.5.2 Line too long");
    let mut server = session(Instant::now(), said.as_bytes());
    assert_eq!(last_line(&mut server), "500 5.5.2 Line too long", "where there is no AUTH");
}

#[test]
fn a_guesser_is_shown_the_door() {
    let now = Instant::now();
    let (mut server, _) = auth_session(offer(&PLAIN_LOGIN), ListenerTls::Off, b"EHLO c\r\n");
    for attempt in 1..=limits::AUTH_FAILURES {
        replies(&mut server);
        assert_eq!(say(&mut server, now, b"AUTH PLAIN AGEAYg==\r\n").0, Event::Authenticate);
        server.auth_answered(now, AuthAnswer::Failed(Refusal::AuthFailed));
        let said = replies(&mut server);
        assert!(said.starts_with("535 5.7.8 Authentication failed\r\n"), "{said}");
        assert_eq!(said.contains("421 4.7.0"), attempt == limits::AUTH_FAILURES);
    }
    assert_eq!(say(&mut server, now, b"NOOP\r\n").0, Event::Close);
}

/// Passwords go nowhere in clear, by what is offered and by what is obeyed.
#[test]
fn what_is_offered_in_clear_and_under_tls() {
    let now = Instant::now();
    let all = [Mechanism::ScramSha256Plus, Mechanism::ScramSha256, Mechanism::Plain];
    let safe = AuthOffer { secrets_in_clear: false, ..offer(&all) };
    let only_tls = AuthOffer { only_secured: true, ..safe.clone() };
    for (offer, clear) in [(safe, "250-AUTH SCRAM-SHA-256\r\n"), (only_tls, "250-STARTTLS\r\n")] {
        let (mut server, _) = auth_session(offer, ListenerTls::StartTls, b"EHLO c\r\n");
        let said = replies(&mut server);
        assert!(said.contains(clear), "{said}");
        assert!(!said.contains("PLAIN") && !said.contains("PLUS"));
        assert_eq!(said.contains("AUTH"), clear.contains("AUTH"));
        say(&mut server, now, b"AUTH PLAIN AGEAYg==\r\n");
        assert_eq!(last_line(&mut server), "538 5.7.11 Send STARTTLS first");
        say(&mut server, now, b"STARTTLS\r\n");
        server.tls_started(now);
        server.permit_binding();
        replies(&mut server);
        say(&mut server, now, b"EHLO c\r\n");
        let said = replies(&mut server);
        assert!(said.contains("250-AUTH SCRAM-SHA-256-PLUS SCRAM-SHA-256 PLAIN\r\n"), "{said}");
        assert_eq!(say(&mut server, now, b"AUTH PLAIN AGEAYg==\r\n").0, Event::Authenticate);
    }
}

#[test]
fn a_sender_waits_for_its_verdict() {
    let now = Instant::now();
    let config = ServerConfig { checks_senders: true, ..(*config()).clone() };
    let mut server = Server::new(Rc::new(config), now);
    for (verdict, reply) in [
        (Err(Refusal::SenderDenied), "553 5.7.1 Sender address is not yours"),
        (Err(Refusal::TooManyMessages), "450 4.7.1 Too much mail, try later"),
        (Ok(()), "250 2.1.0 Sender ok"),
    ] {
        let (event, _) = say(&mut server, now, b"EHLO c\r\nMAIL FROM:<a@b.example>\r\n");
        assert_eq!(event, Event::CheckSender);
        assert_eq!(server.sender_in_question().unwrap().as_str(), "a@b.example");
        server.sender_checked(now, verdict);
        assert_eq!(last_line(&mut server), reply);
        assert_eq!(server.in_transaction(), reply.starts_with("250"));
    }
}
