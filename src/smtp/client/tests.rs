//! Dialogues, each headed by the danger that it guards against, run for every split of what the
//! server sends.  `S:` is the server, `C:` what the client writes, `>` what the driver does, and
//! the other lines are what the client tells its driver.

use super::*;
use crate::auth::sasl::client::Credentials;
use crate::config::EightBit;
use crate::message::{BodyFlags, BodyKind, Envelope, MailParameters, Notify, Recipient, Ret};
use crate::smtp::address::{ForwardPath, Mailbox, ReversePath};
use proptest::prelude::*;
use std::time::Duration;

const DIALOGUES: &str = include_str!("dialogues.txt");

pub(super) fn config() -> ClientConfig {
    ClientConfig {
        starttls: StartTls::Never,
        is_secured: false,
        login: None,
        ehlo_name: "me.test".into(),
        protocol: Protocol::Smtp,
        timeouts: Timeouts::default(),
        use_chunking: true,
        one_flight: OneFlight::Never,
        messages_in_flight: 3,
        eight_bit: EightBit::Send,
    }
}

/// The user and the nonce of the example in RFC 7677 section 3, whose password is `pencil`.
fn login(secret: &str, is_token: bool) -> Login {
    let credentials = Credentials { name: "user".into(), secret: secret.into(), is_token };
    Login { credentials, nonce: "rOprNGfwEbeRWgbNEkqO".into() }
}

fn mailbox(text: &str) -> Mailbox {
    Mailbox::from_stored(text).expect("a test's address")
}

/// `start a b 8bit` makes a transaction for a@r.test and b@r.test with 8-bit content.
pub(super) fn transaction(words: &str) -> Transaction {
    let mut envelope = Envelope {
        reverse_path: ReversePath::Mailbox(mailbox("s@s.test")),
        parameters: MailParameters::default(),
        recipients: Vec::new(),
    };
    let mut flags = BodyFlags::ENDS_WITH_CRLF;
    let mut size_octets = 1000;
    for word in words.split_whitespace() {
        match word {
            "bounce" => envelope.reverse_path = ReversePath::Null,
            "8bit" => flags.insert(BodyFlags::EIGHT_BIT),
            "declared" => envelope.parameters.body = BodyKind::EightBitMime,
            "bare" => flags.insert(BodyFlags::BARE_LF),
            "open-ended" => flags = BodyFlags(flags.0 & !BodyFlags::ENDS_WITH_CRLF.0),
            "utf8" => envelope.parameters.smtputf8 = true,
            "secure" => envelope.parameters.require_tls = true,
            "large" => size_octets = 5000,
            "huge" => size_octets = 1 << 20,
            "dsn" => {
                envelope.parameters.ret = Some(Ret::Headers);
                envelope.parameters.envid = Some("id+2B1".into());
            }
            name => envelope.recipients.push(recipient(name)),
        }
    }
    let indices = (0..envelope.recipients.len()).map(|index| index as u16).collect();
    Transaction::new(Arc::new(envelope), indices, size_octets, flags).expect("valid")
}

fn recipient(name: &str) -> Recipient {
    let (name, notify) = match name.split_once('/') {
        None => (name, Notify::UNSPECIFIED),
        Some((name, "never")) => (name, Notify::NEVER),
        Some((name, _)) => (name, Notify(Notify::SUCCESS.0 | Notify::DELAY.0)),
    };
    let path = match name {
        "postmaster" => ForwardPath::Postmaster,
        _ => ForwardPath::Mailbox(mailbox(&format!("{name}@r.test"))),
    };
    let orcpt = notify.is_given().then(|| format!("rfc822;{name}@o.test").into());
    Recipient { path, notify, orcpt }
}

fn outcome_line(outcome: &RecipientOutcome) -> String {
    match outcome {
        RecipientOutcome::Delivered(reply) => format!("- delivered {}", reply.code),
        RecipientOutcome::Deferred(Deferral::Reply(r)) => {
            format!("- deferred {:?} {}", r.stage, r.reply.code)
        }
        RecipientOutcome::Deferred(Deferral::TooManyRecipients(r)) => format!("- next {}", r.code),
        RecipientOutcome::Deferred(Deferral::ChunkingRefused(r)) => {
            format!("- no-chunking {}", r.code)
        }
        RecipientOutcome::Deferred(Deferral::OneFlightRefused(r)) => {
            format!("- no-flight {}", r.code)
        }
        RecipientOutcome::Deferred(Deferral::Connection(failure)) => {
            let twice = if failure.possible_duplicate() { " perhaps-taken" } else { "" };
            format!("- lost {}{twice}", failure_line(failure))
        }
        RecipientOutcome::Failed(Failure::Reply(r)) => {
            format!("- failed {:?} {}", r.stage, r.reply.code)
        }
        RecipientOutcome::Failed(Failure::Local(refusal)) => {
            let name = format!("{refusal:?}");
            format!("- failed {}", name.split(' ').next().unwrap_or_default())
        }
    }
}

fn failure_line(failure: &ConnectionFailure) -> String {
    let cause = match &failure.cause {
        ConnectionCause::Refused(reply) if failure.stage == Stage::Login => {
            format!("refused {reply}")
        }
        ConnectionCause::Refused(reply) => format!("refused {}", reply.code),
        ConnectionCause::Unexpected(reply) => format!("unexpected {}", reply.code),
        ConnectionCause::Login(LoginTrouble::Refused(reply)) => format!("login refused {reply}"),
        other => format!("{other:?}").to_lowercase(),
    };
    format!("{:?} {cause}", failure.stage)
}

/// A client and the script of what it did.
struct Run {
    client: Client,
    now: Instant,
    written: Vec<u8>,
    lines: Vec<String>,
    /// Bodies that the driver has not written to their end.
    bodies: VecDeque<TransactionId>,
    /// How many transactions have ended.
    done: u32,
}

impl Run {
    fn new() -> Run {
        Run::with(config())
    }

    fn with(config: ClientConfig) -> Run {
        let now = Instant::now();
        Run {
            client: Client::new(config, now),
            now,
            written: Vec::new(),
            lines: Vec::new(),
            bodies: VecDeque::new(),
            done: 0,
        }
    }

    fn flush_written(&mut self) {
        let text = String::from_utf8(std::mem::take(&mut self.written)).expect("ASCII");
        assert!(text.is_empty() || text.ends_with("\r\n"), "{text:?}");
        self.lines.extend(text.split_terminator("\r\n").map(|line| format!("C: {line}")));
    }

    fn drain(&mut self) {
        while let Some(action) = self.client.poll_action() {
            if let ClientAction::Send(octets) = action {
                self.written.extend_from_slice(&octets);
                self.client.recycle(octets);
                continue;
            }
            self.flush_written();
            match action {
                ClientAction::SendBody { id, prefix, form, suffix } => {
                    self.bodies.push_back(id);
                    let prefix = String::from_utf8_lossy(&prefix);
                    // In one flight the envelope stands before the BDAT.
                    let (before, bdat) = prefix.split_at(prefix.find("BDAT").unwrap_or(0));
                    self.lines.extend(before.lines().map(|line| format!("C: {line}")));
                    let suffix = String::from_utf8_lossy(suffix);
                    self.lines
                        .push(format!("BODY {form:?} {bdat:?} {suffix:?}").replace("\"\"", "-"));
                }
                ClientAction::Ready => self.lines.push("READY".into()),
                ClientAction::TransactionDone(result) => {
                    assert_eq!(result.id, TransactionId(self.done), "in their order");
                    self.done += 1;
                    let broken = match result.broken_promise {
                        Some(BrokenPromise::OneFlight) => " remember",
                        _ => "",
                    };
                    self.lines.push(format!("DONE {:?}{broken}", result.connection));
                    self.lines.extend(result.outcomes.iter().map(outcome_line));
                }
                ClientAction::Failed(failure) => {
                    self.lines.push(format!("FAILED {}", failure_line(&failure)));
                }
                ClientAction::StartTls => self.lines.push("TLS".into()),
                ClientAction::Derive(derivation) => {
                    assert_eq!(self.client.deadline(), None, "the peer waits for us");
                    self.client.derived(self.now, Some(&derivation.derive()));
                }
                ClientAction::Close => self.lines.push("CLOSE".into()),
                ClientAction::Send(_) => unreachable!("handled above"),
            }
        }
    }

    fn command(&mut self, words: &str) {
        let (verb, rest) = words.split_once(' ').unwrap_or((words, ""));
        match verb {
            "start" => {
                self.client.start(self.now, transaction(rest));
            }
            "sent" => {
                let id = self.bodies.pop_front().expect("a body");
                self.client.body_sent(self.now, id);
            }
            "full" => assert!(!self.client.can_start()),
            "room" => assert!(self.client.can_start()),
            "last" => assert!(!self.client.may_go_on()),
            "progress" => self.client.body_progress(self.now),
            "quit" => self.client.quit(self.now),
            "closed" => self.client.handle_closed(),
            "abandon" => self.client.abandon(),
            "timeout" => {
                let deadline = self.client.deadline().expect("something is awaited");
                self.client.handle_timeout(deadline - Duration::from_millis(1));
                assert!(self.client.poll_action().is_none(), "too early");
                self.now = deadline;
                self.client.handle_timeout(deadline);
            }
            other => panic!("no driver's action {other}"),
        }
        self.drain();
    }

    fn feed(&mut self, octets: &[u8]) {
        self.client.handle_bytes(self.now, octets);
        self.drain();
    }
}

/// Runs a dialogue; `split` cuts what the server sends.
fn run(dialogue: &str, split: &dyn Fn(&[u8]) -> Vec<Vec<u8>>) -> Vec<String> {
    let mut config = config();
    let words = dialogue.lines().find_map(|line| line.strip_prefix("! ")).unwrap_or_default();
    for word in words.split(' ') {
        match word {
            "" => {}
            "flight" => config.one_flight = OneFlight::AtOnce,
            "flight-later" => config.one_flight = OneFlight::AfterOne,
            "lmtp" => config.protocol = Protocol::Lmtp,
            "bounce-8bit" => config.eight_bit = EightBit::Bounce,
            "secured" => config.is_secured = true,
            "password" => config.login = Some(login("pencil", false)),
            "token" => config.login = Some(login("t.o.k.e.n", true)),
            "unsendable" => config.login = Some(login("pen\u{7}cil", false)),
            other => panic!("no setting {other}"),
        }
    }
    let mut run = Run::with(config);
    let mut server = Vec::new();
    for line in dialogue.lines().filter(|line| !line.is_empty()).chain(["."]) {
        if let Some(text) = line.strip_prefix("S: ") {
            server.extend_from_slice(text.replace("\\r", "\r").as_bytes());
            server.extend_from_slice(b"\r\n");
            continue;
        }
        for piece in split(&std::mem::take(&mut server)) {
            run.feed(&piece);
        }
        if let Some(words) = line.strip_prefix("> ") {
            run.command(words);
        }
    }
    run.flush_written();
    run.lines
}

fn expected(dialogue: &str) -> Vec<String> {
    let ours =
        |line: &&str| !(line.is_empty() || ["S: ", "> ", "! "].iter().any(|s| line.starts_with(s)));
    dialogue.lines().filter(ours).map(String::from).collect()
}

#[test]
fn dialogues_go_as_written_for_every_split() {
    let mut count = 0;
    for case in DIALOGUES.split("\n# ").skip(1) {
        let (danger, dialogue) = case.split_once('\n').expect("a heading and its dialogue");
        // `~` opens with what nearly every dialogue opens with.
        let dialogue = &dialogue
            .replace("~data", "S: 220 hi\nC: EHLO me.test\nS: 250-hi\nS: 250 PIPELINING\nREADY")
            .replace("~slow", "S: 220 hi\nC: EHLO me.test\nS: 250 hi\nREADY")
            .replace(
                "~bdat",
                "S: 220 hi\nC: EHLO me.test\nS: 250-hi\nS: 250-PIPELINING\nS: 250 CHUNKING\nREADY",
            );
        let expected = expected(dialogue);
        let whole = |octets: &[u8]| vec![octets.to_vec()];
        assert_eq!(run(dialogue, &whole), expected, "{danger}");
        let single = |octets: &[u8]| octets.iter().map(|&octet| vec![octet]).collect();
        assert_eq!(run(dialogue, &single), expected, "octet by octet: {danger}");
        for place in 1..100 {
            let two = |octets: &[u8]| {
                let (left, right) = octets.split_at(place.min(octets.len()));
                vec![left.to_vec(), right.to_vec()]
            };
            assert_eq!(run(dialogue, &two), expected, "split at {place}: {danger}");
        }
        count += 1;
    }
    assert!(count >= 80, "{count} dialogues");
}

#[test]
fn an_envelope_goes_in_one_write_and_its_buffer_is_used_again() {
    let mut run = Run::new();
    run.feed(b"220 hi\r\n");
    run.feed(b"250-hi\r\n250 PIPELINING\r\n");
    run.client.start(run.now, transaction("a b c"));
    let Some(ClientAction::Send(group)) = run.client.poll_action() else { panic!("a write") };
    assert!(group.starts_with(b"MAIL FROM:") && group.ends_with(b"DATA\r\n"));
    assert!(run.client.poll_action().is_none());
    let place = group.as_ptr();
    run.client.recycle(group);
    run.feed(b"250 ok\r\n550 no\r\n550 no\r\n550 no\r\n554 none\r\n");
    run.client.start(run.now, transaction("a"));
    let Some(ClientAction::Send(group)) = run.client.poll_action() else { panic!("a write") };
    assert_eq!(group.as_ptr(), place);
}

/// The rest of the line would be taken for the reply to MAIL.
#[test]
fn half_a_reply_that_nobody_asked_for_ends_an_idle_connection() {
    let mut run = Run::new();
    run.feed(b"220 hi\r\n");
    run.feed(b"250 hi\r\n");
    run.feed(b"250 stra");
    run.command("start a");
    let end = ["FAILED Idle abandoned", "CLOSE", "DONE MustClose", "- lost Idle closed"];
    assert_eq!(run.lines[run.lines.len() - 4..], end);
}

/// A large envelope goes in groups, or both sides stand in a write (RFC 2920 section 3.1).
#[test]
fn a_large_envelope_waits_for_replies_between_groups() {
    let names: Vec<String> = (0..2000).map(|number| format!("recipient{number}")).collect();
    let mut run = Run::new();
    run.feed(b"220 hi\r\n");
    run.feed(b"250-hi\r\n250 PIPELINING\r\n");
    run.written.clear();
    run.client.start(run.now, transaction(&names.join(" ")));
    let (mut sent, mut groups) = (String::new(), 0);
    while let Some(ClientAction::Send(group)) = run.client.poll_action() {
        assert!(group.len() < limits::CLIENT_GROUP + limits::COMMAND_LINE);
        let group = String::from_utf8(group).expect("ASCII");
        sent.push_str(&group);
        groups += 1;
        for _ in group.lines().filter(|&line| line != "DATA") {
            run.client.handle_bytes(run.now, b"250 ok\r\n");
        }
    }
    assert_eq!(sent.lines().count(), 2002);
    assert!(sent.ends_with("<recipient1999@r.test>\r\nDATA\r\n"));
    assert!(groups > 2);
}

/// What a peer's EHLO reply offers, and what MAIL and RCPT then carry.
#[test]
fn parameters_go_only_to_peers_that_know_them() {
    let words = "a/sd b/never postmaster 8bit utf8 dsn";
    let cases = [
        ("", "MAIL FROM:<s@s.test>", "RCPT TO:<b@r.test>"),
        ("SIZE 0", "MAIL FROM:<s@s.test> SIZE=1000", "RCPT TO:<b@r.test>"),
        ("8BITMIME", "MAIL FROM:<s@s.test> BODY=8BITMIME", "RCPT TO:<b@r.test>"),
        (
            "DSN",
            "MAIL FROM:<s@s.test> RET=HDRS ENVID=id+2B1",
            "RCPT TO:<b@r.test> NOTIFY=NEVER ORCPT=rfc822;b@o.test",
        ),
    ];
    for (offer, mail, rcpt) in cases {
        let mut run = Run::new();
        run.feed(b"220 hi\r\n");
        let reply = format!("250-hi\r\n250-{offer}\r\n250-SMTPUTF8\r\n250 PIPELINING\r\n");
        run.feed(reply.as_bytes());
        run.command(&format!("start {words}"));
        run.flush_written();
        let (address, parameters) = mail.split_once('>').expect("a path");
        let parameters = match parameters.find(" RET") {
            Some(place) => format!("{} SMTPUTF8{}", &parameters[..place], &parameters[place..]),
            None => format!("{parameters} SMTPUTF8"),
        };
        assert!(run.lines.contains(&format!("C: {address}>{parameters}")), "{:?}", run.lines);
        assert!(run.lines.contains(&format!("C: {rcpt}")), "{:?}", run.lines);
        assert!(run.lines.contains(&"C: RCPT TO:<Postmaster>".to_string()));
        let both = "C: RCPT TO:<a@r.test> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a@o.test";
        assert_eq!(run.lines.contains(&both.to_string()), offer == "DSN");
    }
}

#[test]
fn a_transaction_names_only_recipients_of_its_envelope() {
    let envelope = transaction("a b").envelope;
    let make = |indices: &[u16]| {
        Transaction::new(envelope.clone(), indices.to_vec(), 1, BodyFlags::default())
    };
    assert!(make(&[1, 0]).is_some());
    assert!(make(&[]).is_none());
    assert!(make(&[2]).is_none());
}

/// Whatever a parameter holds, it cannot begin a command of its own.
#[test]
fn a_stored_value_with_a_line_end_is_left_out() {
    let mut transaction = transaction("a dsn");
    let mut envelope = (*transaction.envelope).clone();
    envelope.parameters.envid = Some("x\r\nRCPT TO:<evil@r.test>".into());
    transaction.envelope = Arc::new(envelope);
    let mut run = Run::new();
    run.feed(b"220 hi\r\n");
    run.feed(b"250-hi\r\n250-DSN\r\n250 PIPELINING\r\n");
    run.client.start(run.now, transaction);
    run.drain();
    run.flush_written();
    assert!(run.lines.contains(&"C: MAIL FROM:<s@s.test> RET=HDRS".to_string()));
    assert!(!run.lines.iter().any(|line| line.contains("evil")));
}

fn any_reply() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => prop_oneof![
            Just("220 hi"), Just("250 ok"), Just("250-a\r\n250-PIPELINING\r\n250 CHUNKING"),
            Just("250-a\r\n250 PIPELINING"), Just("354 go"), Just("450 later"),
            Just("452 4.5.3 many"), Just("550 no"), Just("503 order"), Just("552 many"),
        ].prop_map(|text| format!("{text}\r\n")),
        1 => Just("421 bye\r\n".to_string()),
        1 => "[0-9]{3}[ -][a-z]{0,4}\r\n",
    ]
}

proptest! {
    /// The promises of the module's head, for any server and any driver.
    #[test]
    fn every_transaction_ends_once_with_an_outcome_for_each_recipient(
        steps in proptest::collection::vec((any_reply(), 0u8..12), 1..60),
    ) {
        let mut run = Run::new();
        let (mut started, mut done, mut body_ended, mut closed) = (0, 0, false, false);
        for (reply, driver) in steps {
            if run.client.is_ready() {
                run.client.start(run.now, transaction("a b c"));
                started += 1;
                body_ended = false;
            }
            match driver {
                0 => run.client.handle_closed(),
                1 => run.client.handle_timeout(run.now + Duration::from_secs(36_000)),
                2 => run.client.quit(run.now),
                _ => { run.client.handle_bytes(run.now, reply.as_bytes()); }
            }
            while let Some(action) = run.client.poll_action() {
                prop_assert!(!closed, "nothing comes after Close");
                match action {
                    ClientAction::SendBody { id, .. } if driver % 2 == 0 => {
                        run.client.body_sent(run.now, id);
                        body_ended = true;
                    }
                    ClientAction::TransactionDone(result) => {
                        done += 1;
                        prop_assert_eq!(result.outcomes.len(), 3);
                        let delivered = |o: &RecipientOutcome| matches!(o, RecipientOutcome::Delivered(_));
                        prop_assert!(body_ended || !result.outcomes.iter().any(delivered));
                        prop_assert_eq!(
                            result.connection == AfterTransaction::Usable,
                            run.client.is_ready()
                        );
                    }
                    ClientAction::StartTls => panic!("it was not asked for"),
                    ClientAction::Close => closed = true,
                    _ => {}
                }
            }
            prop_assert_eq!(run.client.deadline().is_none(), run.client.is_ready() || closed);
        }
        run.client.handle_closed();
        while let Some(action) = run.client.poll_action() {
            done += u32::from(matches!(action, ClientAction::TransactionDone(_)));
        }
        prop_assert_eq!(started, done);
    }
}

fn tls_run(starttls: StartTls) -> Run {
    Run::with(ClientConfig { starttls, ..config() })
}

fn hear(run: &mut Run, words: &str) {
    // Line by line, so that each reply comes to a command that has left.
    for line in words.split_inclusive('\n').chain([""]) {
        run.client.handle_bytes(run.now, line.as_bytes());
        run.drain();
        run.flush_written();
    }
}

fn told(run: &mut Run) -> String {
    std::mem::take(&mut run.lines).join("|")
}

const OFFERS: &str = "220 x\r\n250-x\r\n250 STARTTLS\r\n";

/// RFC 3207 section 4.2: what was said in clear counts for nothing afterwards.
#[test]
fn a_peer_is_asked_again_under_tls() {
    for starttls in [StartTls::IfOffered, StartTls::Demanded] {
        let mut run = tls_run(starttls);
        hear(&mut run, "220 x\r\n");
        hear(&mut run, "250-x\r\n250-CHUNKING\r\n250 STARTTLS\r\n");
        hear(&mut run, "220 go\r\n");
        assert_eq!(told(&mut run), "C: EHLO me.test|C: STARTTLS|TLS");
        assert_eq!(run.client.deadline(), None, "the handshake has a deadline of its own");
        run.client.tls_started(run.now);
        hear(&mut run, "");
        hear(&mut run, "250-x\r\n250 STARTTLS\r\n");
        assert_eq!(told(&mut run), "C: EHLO me.test|READY", "TLS is not begun twice");
        assert!(!run.client.capabilities().chunking);
    }
}

#[test]
fn what_comes_in_clear_behind_the_220_ends_the_connection() {
    let mut run = tls_run(StartTls::IfOffered);
    hear(&mut run, OFFERS);
    told(&mut run);
    run.client.handle_bytes(run.now, b"220 go\r\n250 x\r\n");
    hear(&mut run, "");
    assert_eq!(told(&mut run), "FAILED StartTls tls(injected)|CLOSE");
}

#[test]
fn without_tls_it_depends_on_who_asks() {
    let offers_nothing = "220 x\r\n250 x\r\n";
    let old = "220 x\r\n500 what\r\n250 x\r\n";
    let not_offered = "FAILED Hello tls(notoffered)|CLOSE";
    for (starttls, said, last) in [
        (StartTls::Never, OFFERS, "C: EHLO me.test|READY"),
        (StartTls::IfOffered, offers_nothing, "C: EHLO me.test|READY"),
        (StartTls::Demanded, offers_nothing, not_offered),
        (StartTls::IfOffered, old, "READY"),
        (StartTls::Demanded, old, not_offered),
    ] {
        let mut run = tls_run(starttls);
        hear(&mut run, said);
        let told = told(&mut run);
        assert!(told.contains(last) && !told.contains("STARTTLS"), "{starttls:?} {said:?} {told}");
    }
}

#[test]
fn a_refusal_or_a_failed_handshake_ends_the_connection() {
    for code in ["454", "502"] {
        let mut run = tls_run(StartTls::IfOffered);
        hear(&mut run, OFFERS);
        hear(&mut run, &format!("{code} no\r\n"));
        assert!(told(&mut run).contains("FAILED StartTls tls(refused("), "{code}");
    }
    let mut run = tls_run(StartTls::Demanded);
    hear(&mut run, OFFERS);
    hear(&mut run, "220 go\r\n");
    told(&mut run);
    run.client.tls_failed("bad certificate");
    hear(&mut run, "");
    assert_eq!(told(&mut run), "FAILED StartTls tls(handshake(\"bad certificate\"))|CLOSE");
}
