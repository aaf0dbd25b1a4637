//! What the dialogues cannot show: time, shutdown, the driver's side of the machine.

use std::time::Duration;

use super::*;
use crate::message::{BodyFlags, Durability, MessageId};
use crate::smtp::reply::QueueStart;

const ENVELOPE: &[u8] = b"EHLO c\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n";

pub(super) fn config() -> Rc<ServerConfig> {
    Rc::new(ServerConfig {
        hostname: "mx.example.com".into(),
        message_size: 1_024,
        recipients: 100,
        received: 10,
        bare_newline: BareNewline::Reject,
        tls: ListenerTls::Off,
        auth: None,
        checks_senders: false,
    })
}

/// A session that has said this, every recipient taken.
pub(super) fn session(now: Instant, octets: &[u8]) -> Server {
    let mut server = Server::new(config(), now);
    say(&mut server, now, octets);
    server
}

/// Feeds the octets until the server wants more or somebody; the last event, and what is left.
pub(super) fn say(server: &mut Server, now: Instant, octets: &[u8]) -> (Event, Vec<u8>) {
    let mut input = octets.to_vec();
    loop {
        let handled = server.handle_bytes(now, &mut input);
        input.drain(..handled.consumed);
        match handled.event {
            Event::CheckRecipient => server.recipient_checked(now, Ok(RouteIndex(0))),
            Event::Continue | Event::Body | Event::DropBody => {}
            event => return (event, input),
        }
    }
}

pub(super) fn replies(server: &mut Server) -> String {
    String::from_utf8(server.replies().take()).expect("replies are ASCII")
}

pub(super) fn last_line(server: &mut Server) -> String {
    replies(server).lines().last().unwrap_or_default().to_owned()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn each_phase_has_its_deadline() {
    let start = Instant::now();
    let table: [(&[u8], Duration); 6] = [
        (b"", limits::SERVER_COMMAND),
        (b"EHLO c\r\n", limits::SERVER_COMMAND),
        (b"NOO", limits::SERVER_COMMAND),
        (b"DATA\r\n", limits::SERVER_DATA_BLOCK),
        (b"BDAT 5\r\nab", limits::SERVER_DATA_BLOCK),
        (b"BDAT 5 X\r\nab", limits::SERVER_DATA_BLOCK),
    ];
    for (octets, wait) in table {
        let later = start + seconds(60);
        let mut server = session(start, ENVELOPE);
        say(&mut server, later, octets);
        // Half a command does not prolong the wait for its end.
        let since =
            if octets.ends_with(b"\n") || wait != limits::SERVER_COMMAND { later } else { start };
        assert_eq!(server.deadline(), since + wait, "{}", octets.escape_ascii());
    }
}

#[test]
fn a_trickle_of_data_ends() {
    let start = Instant::now();
    for begins in [&b"DATA\r\n"[..], b"BDAT 1000 LAST\r\n"] {
        let mut server = session(start, &[ENVELOPE, begins].concat());
        let mut now = start;
        for _ in 0..60 {
            now += seconds(100);
            say(&mut server, now, b"x");
        }
        assert_eq!(server.deadline(), start + limits::SERVER_DATA_TOTAL);
    }
}

#[test]
fn a_line_that_trickles_ends() {
    let start = Instant::now();
    let mut server = session(start, b"EHLO c\r\n");
    for step in 1..100 {
        say(&mut server, start + seconds(step), &b"x".repeat(100));
    }
    assert_eq!(server.deadline(), start + limits::SERVER_COMMAND);
}

#[test]
fn a_deadline_that_passed_ends_the_session_with_a_word() {
    let now = Instant::now();
    for octets in [&b""[..], b"EHLO c\r\nMAIL FR", b"BDAT 10\r\nabc"] {
        let mut server = session(now, octets);
        replies(&mut server);
        server.handle_timeout();
        assert_eq!(replies(&mut server), "421 4.4.2 Timed out\r\n");
        assert_eq!(say(&mut server, now, b"NOOP\r\n").0, Event::Close);
        server.handle_timeout();
        server.close(Refusal::ShuttingDown);
        assert_eq!(replies(&mut server), "", "an end is told once");
    }
    let mut server = session(now, b"QUIT\r\n");
    replies(&mut server);
    server.handle_timeout();
    assert_eq!(replies(&mut server), "", "it had ended already");
}

#[test]
fn a_shutdown_lets_a_transaction_end() {
    let now = Instant::now();
    let mut server = session(now, ENVELOPE);
    replies(&mut server);
    assert!(!server.handle_shutdown());
    assert_eq!(say(&mut server, now, b"DATA\r\nx\r\n.\r\n").0, Event::EndOfMessage);
    assert!(!server.handle_shutdown());
    assert!(server.take_message().is_some());
    server.stored(now, Ok((MessageId(1), Durability::Fsync)));
    assert!(server.handle_shutdown());
    assert_eq!(last_line(&mut server), "421 4.3.2 Service is stopping, try later");
    let mut server = session(now, ENVELOPE);
    server.handle_shutdown_now();
    assert_eq!(last_line(&mut server), "421 4.3.2 Service is stopping, try later");
    assert!(!server.in_transaction());
}

#[test]
fn nothing_moves_while_somebody_decides() {
    let now = Instant::now();
    let mut server = session(now, b"EHLO c\r\nMAIL FROM:<a@b.example>\r\n");
    replies(&mut server);
    let mut input = *b"RCPT TO:<c@d.example>\r\nQUIT\r\n";
    let handled = server.handle_bytes(now, &mut input);
    assert_eq!(handled, Handled { consumed: 23, event: Event::CheckRecipient });
    assert_eq!(server.recipient_in_question().map(|path| path.as_str()), Some("c@d.example"));
    let again = server.handle_bytes(now, &mut input[23..]);
    assert_eq!(again, Handled { consumed: 0, event: Event::CheckRecipient });
    assert_eq!(replies(&mut server), "");
    server.recipient_checked(now, Err(Refusal::RelayDenied));
    let refused: Vec<Refusal> = server.take_refusals().into_iter().map(|it| it.refusal).collect();
    assert_eq!(refused, [Refusal::RelayDenied]);
    assert_eq!(server.recipient_in_question(), None);
    server.recipient_checked(now, Ok(RouteIndex(0)));
    assert_eq!(replies(&mut server), "550 5.7.1 Relaying denied\r\n", "one question, one answer");

    let mut server = session(now, &[ENVELOPE, b"DATA\r\nx\r\n.\r\n"].concat());
    let again = server.handle_bytes(now, &mut input);
    assert_eq!(again, Handled { consumed: 0, event: Event::EndOfMessage });
}

/// The routes, the envelope and the summary come out as they went in.
#[test]
fn a_message_is_handed_over_once() {
    let now = Instant::now();
    let mut server = session(now, &[ENVELOPE, b"DATA\r\n..x\r\n.\r\n"].concat());
    let message = server.take_message().expect("it is whole");
    assert_eq!(message.routes, [RouteIndex(0)]);
    assert_eq!(message.envelope.reverse_path.as_str(), "a@b.example");
    assert_eq!(message.summary.octets, 5);
    let flags = BodyFlags::DATA | BodyFlags::LEADING_DOTS | BodyFlags::ENDS_WITH_CRLF;
    assert_eq!(message.summary.flags, flags);
    assert!(server.take_message().is_none());
}

#[test]
fn a_message_that_could_not_be_kept_is_the_clients_again() {
    let now = Instant::now();
    for (refusal, reply) in [
        (Refusal::StorageFailed, "451 4.3.0 Could not keep the message, try later"),
        (Refusal::StorageFull, "452 4.3.1 No room now, try again later"),
        (Refusal::Busy, "452 4.4.5 Too much is under way, try again later"),
    ] {
        let mut server = session(now, &[ENVELOPE, b"BDAT 3 LAST\r\nx\r\n"].concat());
        assert!(server.take_message().is_some());
        server.stored(now, Err(refusal));
        assert_eq!(last_line(&mut server), reply);
        assert!(!server.in_transaction());
        assert_eq!(say(&mut server, now, b"MAIL FROM:<>\r\n").0, Event::NeedInput);
        assert_eq!(last_line(&mut server), "250 2.1.0 Sender ok");
        server.stored(now, Ok((MessageId(1), Durability::Os)));
        assert_eq!(replies(&mut server), "", "no message waits, so none is acknowledged");
    }
}

/// What is refused in its middle is read to its end, and nothing of it is kept.
#[test]
fn a_body_that_finds_no_memory_is_refused_at_its_end() {
    let now = Instant::now();
    for (begin, end) in [
        (b"DATA\r\nx\r\n".as_slice(), b"y\r\n.\r\n".as_slice()),
        (b"BDAT 6 LAST\r\nx\r\n", b"y\r\n"),
    ] {
        let mut server = session(now, &[ENVELOPE, begin].concat());
        assert!(server.keeps_body());
        server.refuse_body(Refusal::Busy);
        assert!(server.in_body() && !server.keeps_body());
        say(&mut server, now, end);
        assert_eq!(last_line(&mut server), "452 4.4.5 Too much is under way, try again later");
        assert!(!server.in_transaction() && server.take_message().is_none());
    }
}

/// A client that sends and never reads: one call stops near the mark, and its driver sends before
/// it calls again.
#[test]
fn a_client_that_never_reads_fills_no_memory() {
    let now = Instant::now();
    let mut server = session(now, b"");
    replies(&mut server);
    let mut input = b"EHLO c\r\n".repeat(9_000);
    let mut consumed = 0;
    while consumed < input.len() {
        let handled = server.handle_bytes(now, &mut input[consumed..]);
        consumed += handled.consumed;
        let waiting = server.replies().take().len();
        assert!(waiting < limits::REPLIES_WAITING + 512, "{waiting} octets of replies");
        server.take_refusals();
    }
}

/// Where a body begins and ends in the input, call by call: what the driver relies on.
#[test]
fn a_body_begins_the_input_of_its_own_call() {
    let now = Instant::now();
    let mut server = session(now, ENVELOPE);
    let mut input = *b"NOOP\r\nDATA\r\nab\r\n.\r\nNOOP\r\n";
    let mut at = 0;
    for (consumed, event) in [(12, Event::Continue), (4, Event::Body), (3, Event::EndOfMessage)] {
        assert!(server.in_body() == (event == Event::Body));
        let handled = server.handle_bytes(now, &mut input[at..]);
        assert_eq!(handled, Handled { consumed, event });
        at += consumed;
    }
    let mut server = session(now, ENVELOPE);
    let mut input = *b"BDAT 2\r\nabBDAT 1 LAST\r\ncNOOP\r\n";
    let mut at = 0;
    for (consumed, event) in [
        (8, Event::Continue),
        (2, Event::Body),
        (13, Event::Continue),
        (1, Event::Body),
        (0, Event::EndOfMessage),
    ] {
        let handled = server.handle_bytes(now, &mut input[at..]);
        assert_eq!((handled.consumed, handled.event), (consumed, event), "at {at}");
        at += consumed;
    }
}

/// A refused body is dropped at once, so that the driver does not gather it to the end.
#[test]
fn a_body_is_dropped_when_it_is_refused() {
    let now = Instant::now();
    let mut server = session(now, &[ENVELOPE, b"DATA\r\n"].concat());
    let mut piece = b"x".repeat(1_000);
    let handled = server.handle_bytes(now, &mut piece);
    assert_eq!(handled, Handled { consumed: 1_000, event: Event::Body });
    let handled = server.handle_bytes(now, &mut piece);
    assert_eq!(handled, Handled { consumed: 1_000, event: Event::DropBody });
    let handled = server.handle_bytes(now, &mut piece);
    assert_eq!(handled, Handled { consumed: 1_000, event: Event::NeedInput });

    let mut server = session(now, &[ENVELOPE, b"BDAT 3\r\nabc"].concat());
    let mut input = *b"BDAT 1022\r\n";
    let handled = server.handle_bytes(now, &mut input);
    assert_eq!(handled, Handled { consumed: 11, event: Event::DropBody });

    let mut server = session(now, &[ENVELOPE, b"BDAT 3\r\nabc"].concat());
    let handled = server.handle_bytes(now, &mut b"RSET\r\n".to_owned());
    assert_eq!(handled, Handled { consumed: 6, event: Event::DropBody });
}

fn tls_session(tls: ListenerTls, now: Instant, octets: &[u8]) -> Server {
    let config = ServerConfig { tls, ..(*config()).clone() };
    let mut server = Server::new(Rc::new(config), now);
    say(&mut server, now, octets);
    server
}

/// RFC 3207: the whole command injection family depends on what is left over of the clear part.
#[test]
fn starttls_forgets_all_that_was_said_before() {
    let now = Instant::now();
    let mut server = tls_session(ListenerTls::StartTls, now, b"EHLO clear.example\r\n");
    assert!(replies(&mut server).contains("250-STARTTLS\r\n"));
    let (event, left) = say(&mut server, now, b"STARTTLS\r\nMAIL FROM:<evil@b.example>\r\nNOO");
    assert_eq!(event, Event::StartTls);
    assert_eq!(left, b"MAIL FROM:<evil@b.example>\r\nNOO", "the driver's to throw away");
    assert_eq!(last_line(&mut server), "220 2.0.0 Ready to start TLS");
    assert_eq!(server.deadline(), now + limits::TLS_HANDSHAKE);
    assert_eq!(say(&mut server, now, b"NOOP\r\n").0, Event::StartTls, "nothing is read meanwhile");
    assert!(replies(&mut server).is_empty());
    server.tls_started(now);
    assert!(server.client().is_none());
    say(&mut server, now, b"MAIL FROM:<a@b.example>\r\n");
    assert_eq!(last_line(&mut server), "503 5.5.1 Send EHLO or HELO first");
    say(&mut server, now, b"EHLO tls.example\r\n");
    assert!(!replies(&mut server).contains("STARTTLS"));
    assert!(server.client().is_some_and(|client| client.secured));
    say(&mut server, now, b"STARTTLS\r\n");
    assert_eq!(last_line(&mut server), "503 5.5.1 TLS is under way");
}

#[test]
fn what_stands_before_starttls_in_the_same_read_is_answered_first() {
    let now = Instant::now();
    let mut server = tls_session(ListenerTls::StartTls, now, b"EHLO c\r\n");
    replies(&mut server);
    let (event, _) = say(&mut server, now, b"NOOP\r\nSTARTTLS\r\n");
    assert_eq!(event, Event::StartTls);
    assert_eq!(replies(&mut server), "250 2.0.0 Ok\r\n220 2.0.0 Ready to start TLS\r\n");
}

#[test]
fn starttls_where_it_cannot_be() {
    let now = Instant::now();
    for (tls, said, reply) in [
        (ListenerTls::Off, &b"EHLO c\r\nSTARTTLS\r\n"[..], "502 5.5.1 Not offered here"),
        (ListenerTls::StartTls, b"EHLO c\r\nSTARTTLS now\r\n", "501 5.5.4"),
        (ListenerTls::StartTls, b"EHLO c\r\nMAIL FROM:<a@b.example>\r\nSTARTTLS\r\n", "503 5.5.1"),
        (ListenerTls::Implicit, b"EHLO c\r\nSTARTTLS\r\n", "503 5.5.1 TLS is under way"),
    ] {
        let mut server = tls_session(tls, now, said);
        let last = last_line(&mut server);
        assert!(last.starts_with(reply), "{last} is not {reply}");
        assert_eq!(say(&mut server, now, b"NOOP\r\n").0, Event::NeedInput);
    }
}

/// RFC 3207 section 4: all but NOOP, EHLO, STARTTLS and QUIT get 530.
#[test]
fn where_tls_is_required_nothing_else_comes_before_it() {
    let now = Instant::now();
    let mut server = tls_session(ListenerTls::Required, now, b"");
    for said in [
        &b"HELO c\r\n"[..],
        b"MAIL FROM:<a@b.example>\r\n",
        b"RCPT TO:<a@b.example>\r\n",
        b"DATA\r\n",
        b"BDAT 6 LAST\r\nNOOP\r\n",
        b"RSET\r\n",
        b"VRFY a\r\n",
        b"HELP\r\n",
        b"AUTH PLAIN AGEAYg==\r\n",
    ] {
        replies(&mut server);
        assert_eq!(say(&mut server, now, said).0, Event::NeedInput);
        assert_eq!(replies(&mut server), "530 5.7.0 Send STARTTLS first\r\n", "{said:?}");
    }
    say(&mut server, now, b"EHLO c\r\nNOOP\r\n");
    assert!(replies(&mut server).ends_with("250-STARTTLS\r\n250 HELP\r\n250 2.0.0 Ok\r\n"));
    assert_eq!(say(&mut server, now, b"STARTTLS\r\n").0, Event::StartTls);
    server.tls_started(now);
    say(&mut server, now, b"EHLO c\r\nMAIL FROM:<a@b.example>\r\n");
    assert_eq!(last_line(&mut server), "250 2.1.0 Sender ok");
}

/// What the front of a line over the limit makes of the session, wherever the line is cut.
#[test]
fn a_long_line_ends_the_session_if_its_octets_are_not_ours_to_read() {
    let now = Instant::now();
    for (front, ends) in
        [("BDAT 5 ", true), ("bdat", true), ("GET /", true), ("NOOP ", false), ("BDATA ", false)]
    {
        let line = [front.as_bytes(), &b" ".repeat(2_100), b"x\r\n"].concat();
        for cut in [1, 2_046, 2_047, 2_048, 2_049, line.len()] {
            let mut server = session(now, b"");
            let mut buffer = Vec::new();
            let mut event = Event::NeedInput;
            for piece in [&line[..cut], &line[cut..]] {
                buffer.extend_from_slice(piece);
                (event, buffer) = say(&mut server, now, &buffer);
            }
            assert_eq!(event == Event::Close, ends, "{front} cut at {cut}");
        }
    }
}

#[test]
fn etrn_waits_for_its_answer_and_is_offered_to_whom_it_is_permitted() {
    let now = Instant::now();
    let mut stranger = session(now, b"EHLO c\r\nETRN d.example\r\n");
    let said = replies(&mut stranger);
    assert!(!said.contains("ETRN\r\n") && said.ends_with("550 5.7.1 ETRN denied\r\n"), "{said}");

    for (result, line) in [
        (Ok(QueueStart::Unknown), "250 2.0.0 Queue started"),
        (Ok(QueueStart::Nothing), "251 2.0.0 No messages waiting"),
        (Ok(QueueStart::Something), "252 2.0.0 Pending messages started"),
        (Ok(QueueStart::Messages(7)), "253 2.0.0 7 pending messages started"),
        (Err(Refusal::QueueBusy), "458 4.3.2 Cannot start the queue now, try later"),
    ] {
        let mut server = Server::new(config(), now);
        server.permit_etrn();
        let flight = b"EHLO c\r\nETRN @D.example\r\nNOOP\r\n";
        let (event, rest) = say(&mut server, now, flight);
        assert_eq!((event, rest.as_slice()), (Event::StartQueue, &b"NOOP\r\n"[..]));
        assert!(replies(&mut server).contains("250-ETRN\r\n"));
        assert_eq!(server.node_in_question(), Some(&Node::Subdomains("d.example".into())));
        // Not ended by a stop while it waits, as little as a message that is being stored.
        assert!(!server.handle_shutdown());
        let later = now + seconds(60);
        server.queue_started(later, result);
        assert_eq!(server.deadline(), later + limits::SERVER_COMMAND);
        assert_eq!(server.node_in_question(), None);
        say(&mut server, later, &rest);
        assert_eq!(replies(&mut server), format!("{line}\r\n250 2.0.0 Ok\r\n"));
        // An answer that nobody waits for changes nothing.
        server.queue_started(later, Ok(QueueStart::Nothing));
        assert_eq!(replies(&mut server), "");
    }
}

#[test]
fn etrn_without_end_ends_the_session() {
    let now = Instant::now();
    let mut server = Server::new(config(), now);
    server.permit_etrn();
    say(&mut server, now, b"EHLO c\r\n");
    for _ in 0..limits::IDLE_COMMANDS {
        say(&mut server, now, b"ETRN d.example\r\n");
        server.queue_started(now, Ok(QueueStart::Nothing));
    }
    assert!(replies(&mut server).ends_with("421 4.7.0 Too many errors\r\n"));
}

// ---- XCLIENT ---------------------------------------------------------------------------------

#[test]
fn a_proxy_introduces_a_client() {
    let now = Instant::now();
    let mut server = Server::new(config(), now);
    server.permit_xclient();
    server.permit_etrn();
    say(&mut server, now, b"EHLO proxy.example\r\n");
    let said = replies(&mut server);
    assert!(said.contains("250-XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT\r\n"));
    for (line, reply) in [
        ("XCLIENT ADDR=host", "501 5.5.4"),
        ("XCLIENT", "501 5.5.4"),
        ("MAIL FROM:<>", "250"),
        ("XCLIENT ADDR=192.0.2.7", "503 5.5.1"),
        ("RSET", "250"),
    ] {
        say(&mut server, now, format!("{line}\r\n").as_bytes());
        assert!(replies(&mut server).starts_with(reply), "{line}");
    }
    let (event, rest) =
        say(&mut server, now, b"XCLIENT ADDR=192.0.2.7 LOGIN=root\r\nMAIL FROM:<>\r\n");
    assert_eq!((event, rest.as_slice()), (Event::Introduce, &b"MAIL FROM:<>\r\n"[..]));
    let told = server.introduction().expect("it waits");
    assert_eq!(told.address, Some("192.0.2.7".parse().unwrap()));
    assert!(!server.handle_shutdown());
    server.introduced(now, Ok(()));
    assert_eq!(server.introduction(), None);
    assert!(server.client().is_none(), "nobody has said who he is");
    say(&mut server, now, &rest);
    let said = replies(&mut server);
    assert!(said.starts_with("220 ") && said.contains("\r\n503 5.5.1 "), "{said}");
    say(&mut server, now, b"EHLO client.example\r\n");
    let said = replies(&mut server);
    assert!(said.contains("XCLIENT") && !said.contains("ETRN"), "{said}");

    // What is told of HELO holds until the client says its own.
    say(&mut server, now, b"XCLIENT HELO=told.example PROTO=SMTP\r\n");
    server.introduced(now, Ok(()));
    let client = server.client().expect("it was told");
    assert_eq!((&*client.helo, client.extended), ("told.example", false));
    assert_eq!(client.authenticated, None);

    say(&mut server, now, b"XCLIENT ADDR=192.0.2.8\r\n");
    server.introduced(now, Err(Refusal::TooManySessionsFromAddress));
    assert!(
        replies(&mut server)
            .ends_with("421 4.7.0 Too many connections from your address, try later\r\n")
    );
}

#[test]
fn xclient_without_end_ends_the_session() {
    let now = Instant::now();
    let mut server = Server::new(config(), now);
    server.permit_xclient();
    for _ in 0..=limits::IDLE_COMMANDS {
        say(&mut server, now, b"XCLIENT NAME=a\r\n");
        server.introduced(now, Ok(()));
    }
    assert!(replies(&mut server).ends_with("421 4.7.0 Too many errors\r\n"));
}

/// A list that is named until nothing more fits takes no room, and not without end.
#[test]
fn a_list_that_has_no_room_is_an_error() {
    let now = Instant::now();
    let mut server = session(now, b"EHLO c\r\nMAIL FROM:<a@b.example>\r\n");
    replies(&mut server);
    let mut taken = Vec::new();
    let mut ended = false;
    while !ended {
        let mut input = b"RCPT TO:<list@d.example>\r\n".to_vec();
        let handled = server.handle_bytes(now, &mut input);
        assert_eq!(handled.event, Event::CheckRecipient);
        let member = (server.rcpt_in_question().expect("a recipient").clone(), RouteIndex(0));
        taken.push(server.recipient_expanded(now, vec![member; 20_000]));
        ended = replies(&mut server).contains("421 ");
    }
    assert!(taken[0] && taken[1..].iter().all(|taken| !taken), "{taken:?}");
    assert_eq!(taken.len(), 2 + limits::SESSION_ERRORS as usize);
}

/// Whom a name stands for is not to be read in the trace header.
#[test]
fn recipients_are_named_where_the_client_has_named_them() {
    for (is_expanded, named) in [(false, 1), (true, 0)] {
        let now = Instant::now();
        let mut server = session(now, b"EHLO c\r\nMAIL FROM:<a@b.example>\r\n");
        let handled = server.handle_bytes(now, &mut b"RCPT TO:<c@d.example>\r\n".to_vec());
        assert_eq!(handled.event, Event::CheckRecipient);
        let recipient = server.rcpt_in_question().expect("a recipient").clone();
        match is_expanded {
            true => assert!(server.recipient_expanded(now, vec![(recipient, RouteIndex(0))])),
            false => server.recipient_checked(now, Ok(RouteIndex(0))),
        }
        assert_eq!(say(&mut server, now, b"DATA\r\nx\r\n.\r\n").0, Event::EndOfMessage);
        let message = server.take_message().expect("it is whole");
        assert_eq!((message.named().len(), message.envelope.recipients.len()), (named, 1));
    }
}

#[test]
fn nobody_else_has_such_a_command() {
    let mut stranger = session(Instant::now(), b"XCLIENT ADDR=192.0.2.7\r\nEHLO c\r\n");
    let said = replies(&mut stranger);
    assert!(said.contains("500 5.5.2 Unknown command") && !said.contains("XCLIENT"), "{said}");
}

/// Only who sends a command before it can have read the reply to the one before is hasty, and after
/// the reply to EHLO nobody is.
#[test]
fn haste_is_what_comes_before_the_reply() {
    let caught = |flights: &[&str]| {
        let now = Instant::now();
        let mut server = session(now, b"");
        for flight in flights {
            // What waits has been sent before more is read.
            server.replies().take();
            say(&mut server, now, flight.as_bytes());
        }
        server.was_hasty()
    };
    assert!(!caught(&["EHLO c\r\n", "MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n"]));
    assert!(caught(&["EHLO c\r\nMAIL FROM:<a@b.example>\r\n"]));
    assert!(caught(&["EHLO c\r\nMAIL FROM:<a@b.example>\r\n", "NOOP\r\n"]), "once is enough");
    assert!(caught(&["NOOP\r\nNOOP\r\n"]));
    assert!(caught(&["HELO c\r\n", "NOOP\r\nNOOP\r\n"]), "nobody offered it");
    assert!(!caught(&["HELO c\r\n", "NOOP\r\n", "EHLO c\r\n", "NOOP\r\nNOOP\r\n"]));
    // However an honest client's octets were cut.
    assert!(!caught(&["EH", "LO c\r", "\n", "NO", "OP\r\n", "NOOP\r\nNO", "OP\r\n"]));
}
