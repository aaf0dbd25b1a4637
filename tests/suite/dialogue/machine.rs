//! Drives the pure server as `inbound` does, in memory, and holds it to what it promises its
//! driver: it always leads on, its replies are bounded, its summary is true to the body.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use mailrace::auth::Users;
use mailrace::auth::sasl::{Binding, Claim, Exchange, Failure, Step};
use mailrace::auth::scram::Verifier;
use mailrace::config::Config;
use mailrace::inbound::addressees::{Addressees, addressees};
use mailrace::inbound::relay::{self, Facts};
use mailrace::message::{BodyFlags, BodySummary, Durability, Envelope, MessageId};
use mailrace::recipients::Table;
use mailrace::smtp::reply::{QueueStart, Refusal, Verified};
use mailrace::smtp::server::{AuthAnswer, Event, Response, Server};

use super::settings::{self, Settings};

/// A session in memory.
pub struct Machine {
    server: Server,
    config: Config,
    table: Option<Table>,
    users: Users,
    exchange: Option<Exchange>,
    user: Option<Box<str>>,
    client: IpAddr,
    now: Instant,
    /// What came in; the server has consumed what stands before `start`.
    input: Vec<u8>,
    start: usize,
    body: Vec<u8>,
    /// Everything that the server has sent.
    pub replies: Vec<u8>,
    /// Every message that it has accepted.
    pub messages: Vec<Message>,
    /// The server has closed the connection.
    pub closed: bool,
}

/// A message that was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub envelope: Envelope,
    pub summary: BodySummary,
    pub body: Vec<u8>,
}

impl Machine {
    /// A session under these settings, greeting sent.
    pub fn new(settings: &Settings) -> Machine {
        let machine = Machine::with_config(settings.config(), settings.client);
        Machine { table: settings.table(), ..machine }
    }

    /// A session under this configuration.
    pub fn with_config(config: Config, client: Option<IpAddr>) -> Machine {
        let now = Instant::now();
        let client = client.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let mut server = Server::new(settings::server_config(&config), now);
        if relay::may_start_queues(&config, client) {
            server.permit_etrn();
        }
        server.permit_inquiries(relay::may_inquire(&config, client));
        let mut machine = Machine {
            server,
            users: Users::parse(&settings::users()).expect("a users file"),
            exchange: None,
            user: None,
            table: None,
            config,
            client,
            now,
            input: Vec::new(),
            start: 0,
            body: Vec::new(),
            replies: Vec::new(),
            messages: Vec::new(),
            closed: false,
        };
        machine.flush();
        machine
    }

    /// One read of the server's: everything that was not consumed, with these octets behind it.
    pub fn receive(&mut self, octets: &[u8]) {
        if self.closed {
            return;
        }
        self.input.drain(..self.start);
        self.start = 0;
        self.input.extend_from_slice(octets);
        let mut steps_left = 8 * octets.len() + 64;
        while self.step() {
            steps_left -= 1;
            assert!(steps_left > 0, "the server does not lead on");
        }
        self.flush();
        let kept = self.input.len() - self.start;
        assert!(self.closed || kept < AUTH_LINE, "{kept} octets are left unconsumed");
    }

    /// One call of the server; whether another follows.
    fn step(&mut self) -> bool {
        let input = &mut self.input[self.start..];
        let handled = self.server.handle_bytes(self.now, input);
        assert!(handled.consumed <= input.len());
        let octets = &input[..handled.consumed];
        self.start += handled.consumed;
        match handled.event {
            Event::Body => {
                assert!(!octets.is_empty(), "a piece of no octets");
                self.body.extend_from_slice(octets);
            }
            Event::DropBody => self.body.clear(),
            Event::CheckRecipient => self.check_recipient(),
            Event::EndOfMessage => self.store(),
            // As in a gateway whose queue is empty.
            Event::Introduce => self.server.introduced(self.now, Ok(())),
            Event::StartQueue => self.server.queue_started(self.now, Ok(QueueStart::Nothing)),
            Event::LookUp => {
                let inquiry = self.server.inquiry().expect("there is one");
                let table = self.table.as_ref();
                let answer = table.map_or(Verified::Untold, |table| table.answer(inquiry));
                self.server.inquiry_answered(self.now, &answer);
            }
            Event::StartTls => panic!("no dialogue has TLS"),
            Event::Authenticate => self.authenticate(),
            Event::CheckSender => self.check_sender(),
            Event::Close => self.closed = true,
            Event::Continue | Event::NeedInput => {}
        }
        assert!(self.server.replies().len() < REPLIES_MAX, "replies grow without bound");
        if self.server.replies().len() >= FLUSH_AT {
            self.flush();
        }
        !matches!(handled.event, Event::NeedInput | Event::Close)
    }

    fn check_recipient(&mut self) {
        let facts = Facts {
            service: self.config.listeners[0].service,
            client: self.client,
            is_balancer: false,
            certificate: None,
            authenticated: self.user.is_some(),
        };
        let recipient = self.server.rcpt_in_question().expect("there is one");
        let route = relay::decide(&self.config, facts, &recipient.path);
        let taken = route.and_then(|route| match &self.table {
            Some(table) => {
                let smtputf8 = self.server.parameters().is_some_and(|asked| asked.smtputf8);
                addressees(&self.config, table, recipient, route, smtputf8)
            }
            None => Ok(Addressees::Itself(route)),
        });
        match taken {
            Ok(Addressees::Itself(route)) => self.server.recipient_checked(self.now, Ok(route)),
            Ok(Addressees::Others(others)) => {
                self.server.recipient_expanded(self.now, others);
            }
            Err(refusal) => self.server.recipient_checked(self.now, Err(refusal)),
        }
    }

    /// Takes the exchange further, as `inbound` does but at once.
    fn authenticate(&mut self) {
        let Response { mechanism, is_first, octets } = self.server.response().expect("one waits");
        if is_first {
            self.exchange = None;
        }
        let exchange = self
            .exchange
            .get_or_insert_with(|| Exchange::new(mechanism, "nonce", Binding::default()));
        let nobody = |hash, name: &str| Verifier::nobody(hash, name, b"secret");
        let mut step = exchange.respond(octets, &nobody);
        if let Step::Verify(Claim::Password { name, password }) = &step {
            let user = self.users.find(name).filter(|user| user.verify(password));
            step = exchange.verified(user.map(|user| &*user.name));
        }
        let answer = match step {
            Step::Challenge(octets) => AuthAnswer::Challenge(octets),
            Step::Done(user) => {
                self.user = Some(user.clone());
                AuthAnswer::Succeeded(user)
            }
            Step::Failed(Failure::Malformed) => AuthAnswer::Failed(Refusal::BadResponse),
            Step::Failed(Failure::Credentials) => AuthAnswer::Failed(Refusal::AuthFailed),
            Step::Verify(_) => panic!("no dialogue has tokens"),
        };
        self.server.auth_answered(self.now, answer);
    }

    fn check_sender(&mut self) {
        let path = self.server.sender_in_question().expect("there is one");
        let user = self.user.as_deref().and_then(|user| self.users.find(user));
        let is_theirs = user.is_some_and(|user| user.senders.allows(path));
        let verdict = is_theirs.then_some(()).ok_or(Refusal::SenderDenied);
        self.server.sender_checked(self.now, verdict);
    }

    fn store(&mut self) {
        let message = self.server.take_message().expect("there is one");
        let body = std::mem::take(&mut self.body);
        check_summary(&message.summary, &body);
        assert_eq!(message.routes.len(), message.envelope.recipients.len());
        let summary = message.summary;
        self.messages.push(Message { envelope: message.envelope, summary, body });
        let id = MessageId(self.messages.len() as u64);
        self.server.stored(self.now, Ok((id, Durability::Os)));
    }

    fn flush(&mut self) {
        let refusals = self.server.take_refusals();
        assert!(refusals.len() <= REPLIES_MAX / 8, "a refusal has a reply");
        let sent = self.server.replies().take();
        self.replies.extend_from_slice(&sent);
        self.server.replies().recycle(sent);
    }
}

/// The summary tells of exactly these octets.
fn check_summary(summary: &BodySummary, body: &[u8]) {
    assert_eq!(summary.octets, body.len() as u64);
    assert_eq!(summary.crc32c, crc32c_plain(body));
    let has = |flag| summary.flags.contains(flag);
    assert_eq!(has(BodyFlags::NUL), body.contains(&0));
    assert_eq!(has(BodyFlags::EIGHT_BIT), !body.is_ascii());
    assert_eq!(has(BodyFlags::ENDS_WITH_CRLF), body.is_empty() || body.ends_with(b"\r\n"));
    assert!(!has(BodyFlags::BARE_CR) && !has(BodyFlags::BARE_LF), "these are refused or replaced");
}

/// CRC-32C bit by bit.
fn crc32c_plain(octets: &[u8]) -> u32 {
    !octets.iter().fold(!0, |crc, &octet| {
        (0..8).fold(crc ^ u32::from(octet), |crc, _| {
            crc >> 1 ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

/// As the driver does.
const FLUSH_AT: usize = 16 * 1024;
/// The mark at which the server stops by itself, and one reply to EHLO.
const REPLIES_MAX: usize = FLUSH_AT + 1024;
/// What the server may leave in the receive buffer: less than a line of AUTH, the longest.
const AUTH_LINE: usize = 12_288;
