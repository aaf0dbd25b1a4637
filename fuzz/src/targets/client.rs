//! The client against a peer that says anything at any time: each transaction ends once, in its
//! turn, with a verdict for each recipient; nothing counts as delivered that was not sent.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use mailrace::config::EightBit;
use mailrace::message::{BodyFlags, Envelope, MailParameters, Notify, Recipient};
use mailrace::smtp::address::{ForwardPath, ReversePath, Utf8};
use mailrace::smtp::client::{
    Client, ClientAction, ClientConfig, OneFlight, Protocol, RecipientOutcome, StartTls, Timeouts,
    Transaction, TransactionId, TransactionResult,
};

use super::Input;

/// What a peer may say that leads somewhere.
const WORDS: &[&str] = &[
    "220 hop.test ESMTP\r\n",
    "250-hop.test\r\n250-PIPELINING\r\n250-CHUNKING\r\n250-DSN\r\n250 SMTPUTF8\r\n",
    "250-hop.test\r\n250-PIPELINING\r\n250-CHUNKING\r\n250 LIMITS RCPTMAX=1 MAILMAX=2\r\n",
    "250-hop.test\r\n250-PIPELINING\r\n250 SIZE 1000\r\n",
    "250 hop.test\r\n",
    "250 2.0.0 Ok\r\n",
    "250 2.0.0 Ok\r\n250 2.0.0 Ok\r\n250 2.0.0 Ok\r\n",
    "354 go on\r\n",
    "421 4.3.2 going down\r\n",
    "450 4.2.0 later\r\n",
    "452 4.5.3 too many recipients\r\n",
    "500 5.5.1 what?\r\n",
    "503 5.5.1 out of order\r\n",
    "550 5.1.1 nobody\r\n",
    "554 5.0.0 no\r\n",
    "250-half of a\r\n",
    "221 bye\r\n",
    "25",
    "250-hop.test\r\n250-PIPELINING\r\n250-CHUNKING\r\n250 STARTTLS\r\n",
    "220 2.0.0 go ahead\r\n",
    "220 2.0.0 go ahead\r\n250 2.0.0 Ok\r\n",
];

/// The connection's settings, and what happens on it.
pub fn run(octets: &[u8]) {
    let mut input = Input(octets);
    let (bits, more) = (input.octet(), input.octet());
    let mut driver = Driver::new(bits, more >> 1);
    // A peer that behaves, so that what is said later meets a client that sends mail.
    if more & 1 == 0 {
        for word in &WORDS[..2] {
            driver.hear(word.as_bytes());
        }
    }
    while !input.is_empty() {
        driver.step(&mut input);
    }
    driver.client.handle_closed();
    driver.act();
    assert!(driver.under_way.is_empty(), "transactions without an end");
    assert!(driver.client.is_over() && driver.client.poll_action().is_none());
}

struct Driver {
    client: Client,
    now: Instant,
    /// Started and not ended: how many recipients each has.
    under_way: VecDeque<(TransactionId, usize)>,
    /// Bodies that the client wants to be sent, and are not yet.
    bodies: VecDeque<TransactionId>,
    sent: BTreeSet<TransactionId>,
    is_closed: bool,
}

impl Driver {
    fn new(bits: u8, more: u8) -> Driver {
        let has = |bit: u8| bits & 1 << bit != 0;
        let config = ClientConfig {
            ehlo_name: "mx.example".into(),
            protocol: if has(0) { Protocol::Lmtp } else { Protocol::Smtp },
            timeouts: Timeouts::default(),
            use_chunking: !has(1),
            one_flight: match bits >> 2 & 3 {
                0 => OneFlight::Never,
                1 => OneFlight::AfterOne,
                _ => OneFlight::AtOnce,
            },
            messages_in_flight: usize::from(bits >> 4 & 3),
            starttls: match more % 3 {
                0 => StartTls::Never,
                1 => StartTls::IfOffered,
                _ => StartTls::Demanded,
            },
            eight_bit: if has(6) { EightBit::Bounce } else { EightBit::Send },
        };
        let now = Instant::now();
        let mut driver = Driver {
            client: Client::new(config, now),
            now,
            under_way: VecDeque::new(),
            bodies: VecDeque::new(),
            sent: BTreeSet::new(),
            is_closed: false,
        };
        driver.act();
        driver
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.octet() % 12 {
            0..=5 => self.hear(WORDS[input.below(WORDS.len())].as_bytes()),
            6 => {
                let octets = input.below(40);
                self.hear(input.take(octets));
            }
            7 | 8 => self.start(input.octet()),
            9 => self.body_goes_out(),
            10 => {
                self.now = self.client.deadline().unwrap_or(self.now);
                self.client.handle_timeout(self.now);
            }
            _ => match input.octet() % 6 {
                0 => self.client.quit(self.now),
                1 => self.client.abandon(),
                2 => self.client.body_progress(self.now),
                4 => self.client.tls_started(self.now),
                5 => self.client.tls_failed("no"),
                _ => self.client.recycle(vec![0; 100]),
            },
        }
        self.act();
    }

    fn hear(&mut self, octets: &[u8]) {
        self.client.handle_bytes(self.now, octets);
        self.act();
    }

    fn start(&mut self, bits: u8) {
        let recipients = 1 + usize::from(bits & 3);
        let flags = if bits & 4 != 0 { BodyFlags::EIGHT_BIT } else { BodyFlags::default() };
        let octets = if bits & 8 != 0 { 2_000_000 } else { 500 };
        let places = (0..recipients as u16).collect();
        let transaction = Transaction::new(envelope(recipients), places, octets, flags);
        let id = self.client.start(self.now, transaction.expect("it has recipients"));
        self.under_way.push_back((id, recipients));
    }

    fn body_goes_out(&mut self) {
        if let Some(id) = self.bodies.pop_front() {
            self.sent.insert(id);
            self.client.body_sent(self.now, id);
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.client.poll_action() {
            // Whoever starts one all the same is told that it did not go.
            let is_refusal = matches!(action, ClientAction::TransactionDone(_));
            assert!(!self.is_closed || is_refusal, "after the end: {action:?}");
            match action {
                ClientAction::Send(octets) => self.client.recycle(octets),
                ClientAction::SendBody { id, .. } => self.bodies.push_back(id),
                ClientAction::TransactionDone(result) => self.ended(&result),
                ClientAction::Ready | ClientAction::StartTls | ClientAction::Failed(_) => {}
                ClientAction::Close => {
                    self.is_closed = true;
                    self.bodies.clear();
                }
            }
        }
    }

    fn ended(&mut self, result: &TransactionResult) {
        let (id, recipients) = self.under_way.pop_front().expect("one that was started");
        assert_eq!((result.id, result.outcomes.len()), (id, recipients), "in their turn");
        let is_delivered = |outcome| matches!(outcome, &RecipientOutcome::Delivered(_));
        if result.outcomes.iter().any(is_delivered) {
            assert!(self.sent.contains(&id), "delivered, and its body was not sent: {result:?}");
        }
        self.bodies.retain(|&body| body != id);
    }
}

fn envelope(recipients: usize) -> Arc<Envelope> {
    let recipient = |no| Recipient {
        path: ForwardPath::parse(format!("<r{no}@hop.test>").as_bytes(), Utf8::Refused)
            .expect("an address"),
        notify: Notify::UNSPECIFIED,
        orcpt: None,
    };
    Arc::new(Envelope {
        reverse_path: ReversePath::Null,
        parameters: MailParameters::default(),
        recipients: (0..recipients).map(recipient).collect(),
    })
}
