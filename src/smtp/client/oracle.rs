//! The client against our own server, octet by octet, with whatever may happen on the way: the
//! server says what was really taken, and the client must not believe anything else.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use proptest::prelude::*;

use super::tests::{config, transaction};
use super::*;
use crate::config::{BareNewline, ListenerTls, RouteIndex};
use crate::message::{Durability, MessageId};
use crate::smtp::reply::Refusal;
use crate::smtp::server::{Event, Server, ServerConfig};

/// What the server thinks of a recipient or a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Take,
    Later,
    Never,
}

/// One message: its recipients, and what becomes of its body.
#[derive(Debug, Clone)]
struct Plan {
    recipients: Vec<Verdict>,
    body: Verdict,
    /// Too large for one flight.
    is_large: bool,
}

/// What happens to one of the server's replies to transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Nothing,
    /// In its place comes this.
    Replaced(&'static str),
    /// The connection ends before it.
    Cut,
}

/// One step of the world.
#[derive(Debug, Clone, Copy)]
enum Step {
    Start,
    /// So many octets reach the server.
    Up(usize),
    /// So many octets reach the client.
    Down(usize),
}

struct World {
    now: Instant,
    client: Client,
    server: Server,
    plans: Vec<Plan>,
    started: usize,
    /// On the way to the server, and where in all that was ever sent bodies end.
    up: VecDeque<u8>,
    sent: usize,
    ends: VecDeque<(usize, TransactionId)>,
    arrived: usize,
    input: Vec<u8>,
    /// On the way to the client.
    down: VecDeque<u8>,
    body: Vec<u8>,
    /// Bodies that the server took, with their recipients.
    stored: Vec<(Vec<u8>, Vec<String>)>,
    replies: usize,
    trouble: (usize, Trouble),
    is_cut: bool,
    results: Vec<TransactionResult>,
    is_closed: bool,
}

const LARGE: usize = limits::CHUNK + 1;

fn name(message: usize, place: usize, verdict: Verdict) -> String {
    format!("m{message}p{place}{}", format!("{verdict:?}").to_lowercase())
}

/// The message's octets, told apart by their first; they hold lines that look like commands.
fn octets(number: usize, plan: &Plan) -> Vec<u8> {
    let mut body =
        format!("Subject: {number} {:?}\r\n\r\nRSET\r\nMAIL FROM:<x@x.test>\r\n", plan.body);
    if plan.is_large {
        body.push_str(&"0123456789abcdef\r\n".repeat(LARGE / 18 + 1));
    }
    body.into_bytes()
}

impl World {
    fn new(plans: Vec<Plan>, trouble: (usize, Trouble)) -> World {
        let now = Instant::now();
        let server = ServerConfig {
            hostname: "mx.test".into(),
            message_size: 10 << 20,
            recipients: 100,
            received: 10,
            bare_newline: BareNewline::Reject,
            tls: ListenerTls::Off,
            auth: None,
            checks_senders: false,
        };
        let client = ClientConfig { one_flight: OneFlight::AtOnce, ..config() };
        let mut world = World {
            now,
            client: Client::new(client, now),
            server: Server::new(Rc::new(server), now),
            plans,
            started: 0,
            up: VecDeque::new(),
            sent: 0,
            ends: VecDeque::new(),
            arrived: 0,
            input: Vec::new(),
            down: VecDeque::new(),
            body: Vec::new(),
            stored: Vec::new(),
            replies: 0,
            trouble: (usize::MAX, Trouble::Nothing),
            is_cut: false,
            results: Vec::new(),
            is_closed: false,
        };
        world.take_replies();
        while !world.client.is_ready() {
            world.step(Step::Up(1000));
            world.step(Step::Down(1000));
        }
        world.replies = 0;
        world.trouble = trouble;
        world
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Start if self.started < self.plans.len() && self.client.can_start() => {
                let plan = &self.plans[self.started];
                let names: Vec<String> = (plan.recipients.iter().enumerate())
                    .map(|(place, &verdict)| name(self.started, place, verdict))
                    .collect();
                let mut transaction = transaction(&names.join(" "));
                transaction.size_octets = octets(self.started, plan).len() as u64;
                self.started += 1;
                self.client.start(self.now, transaction);
            }
            Step::Start => {}
            Step::Up(count) => self.reach_server(count),
            Step::Down(count) => self.reach_client(count),
        }
        self.act();
    }

    fn act(&mut self) {
        while let Some(action) = self.client.poll_action() {
            assert!(!self.is_closed, "nothing comes after Close");
            match action {
                ClientAction::Send(octets) => self.send(&octets),
                ClientAction::SendBody { id, prefix, form, suffix } => {
                    assert_eq!((form, suffix), (BodyForm::Bdat, &b""[..]));
                    let number = id.0 as usize;
                    self.send(&prefix);
                    let body = octets(number, &self.plans[number]);
                    self.send(&body);
                    self.ends.push_back((self.sent, id));
                }
                ClientAction::TransactionDone(result) => {
                    assert_eq!(result.id.0 as usize, self.results.len(), "in their order");
                    let plan = &self.plans[self.results.len()];
                    assert_eq!(result.outcomes.len(), plan.recipients.len());
                    self.results.push(result);
                }
                ClientAction::StartTls => panic!("the server offers none"),
                ClientAction::Close => self.is_closed = true,
                ClientAction::Derive(_) | ClientAction::Ready | ClientAction::Failed(_) => {}
            }
        }
    }

    fn send(&mut self, octets: &[u8]) {
        self.up.extend(octets);
        self.sent += octets.len();
    }

    /// What leaves the client's window arrives at once: so "written" and "arrived" are one.
    fn reach_server(&mut self, count: usize) {
        if self.is_closed {
            return;
        }
        let count = count.min(self.up.len());
        self.input.extend(self.up.drain(..count));
        self.arrived += count;
        while self.ends.front().is_some_and(|(end, _)| *end <= self.arrived) {
            let (_, id) = self.ends.pop_front().expect("it was looked at");
            self.client.body_progress(self.now);
            self.client.body_sent(self.now, id);
        }
        self.serve();
    }

    fn serve(&mut self) {
        loop {
            let handled = self.server.handle_bytes(self.now, &mut self.input);
            let consumed: Vec<u8> = self.input.drain(..handled.consumed).collect();
            match handled.event {
                Event::Body => self.body.extend(consumed),
                Event::DropBody => self.body.clear(),
                Event::StartTls
                | Event::StartQueue
                | Event::Introduce
                | Event::LookUp
                | Event::Authenticate
                | Event::CheckSender => {
                    panic!("it is not offered")
                }
                Event::CheckRecipient => {
                    let path = format!("{:?}", self.server.recipient_in_question());
                    let verdict = match () {
                        () if path.contains("take@") => Ok(RouteIndex(0)),
                        () if path.contains("later@") => Err(Refusal::StorageFull),
                        () => Err(Refusal::NoRoute),
                    };
                    self.server.recipient_checked(self.now, verdict);
                }
                Event::EndOfMessage => self.store(),
                Event::Continue => {}
                Event::NeedInput | Event::Close => break,
            }
        }
        self.take_replies();
    }

    fn store(&mut self) {
        let message = self.server.take_message().expect("it is whole");
        let body = std::mem::take(&mut self.body);
        let first = String::from_utf8_lossy(body.split(|&o| o == b'\r').next().expect("one"));
        let result = match () {
            () if first.ends_with("Take") => Ok((MessageId(1), Durability::Fsync)),
            () if first.ends_with("Later") => Err(Refusal::StorageFull),
            () => Err(Refusal::Loop),
        };
        if result.is_ok() {
            let names = message.envelope.recipients.iter().map(|one| format!("{:?}", one.path));
            self.stored.push((body, names.collect()));
        }
        self.server.stored(self.now, result);
    }

    /// The server's replies go on their way, but for what happens to one of them.
    fn take_replies(&mut self) {
        let octets = self.server.replies().take();
        for line in octets.split_inclusive(|&octet| octet == b'\n') {
            let is_last = line.get(3) != Some(&b'-');
            if self.is_cut {
                return;
            }
            match self.trouble.1 {
                Trouble::Cut if self.replies == self.trouble.0 => self.is_cut = true,
                Trouble::Replaced(with) if self.replies == self.trouble.0 => {
                    self.down.extend(with.bytes());
                }
                _ => self.down.extend(line),
            }
            self.replies += usize::from(is_last);
        }
    }

    fn reach_client(&mut self, count: usize) {
        let count = count.min(self.down.len());
        let octets: Vec<u8> = self.down.drain(..count).collect();
        self.client.handle_bytes(self.now, &octets);
        if self.is_cut && self.down.is_empty() {
            self.client.handle_closed();
        }
    }

    /// Everything comes to its end.
    fn finish(&mut self) {
        for _ in 0..10_000 {
            if self.results.len() == self.started
                && (self.started == self.plans.len() || !self.client.may_go_on())
            {
                return;
            }
            self.step(Step::Start);
            self.step(Step::Up(usize::MAX));
            self.step(Step::Down(usize::MAX));
        }
        panic!("{} of {} transactions ended: {:?}", self.results.len(), self.started, self.client);
    }

    /// Whether the server took this message for this recipient.
    fn took(&self, message: usize, place: usize) -> bool {
        let plan = &self.plans[message];
        let name = format!("{}@", name(message, place, plan.recipients[place]));
        let body = octets(message, plan);
        self.stored.iter().any(|(stored, names)| {
            *stored == body && names.iter().any(|stored| stored.contains(&name))
        })
    }

    fn judge(&self) {
        for (message, result) in self.results.iter().enumerate() {
            let plan = &self.plans[message];
            for (place, outcome) in result.outcomes.iter().enumerate() {
                let ours = (plan.recipients[place], plan.body);
                let told = format!("message {message} place {place} {ours:?}: {outcome:?}");
                self.judge_outcome(ours, self.took(message, place), outcome, &told);
            }
        }
        let mut bodies: Vec<&[u8]> = self.stored.iter().map(|(body, _)| &body[..]).collect();
        bodies.sort_unstable();
        bodies.dedup();
        assert_eq!(bodies.len(), self.stored.len(), "each body was taken once");
    }

    fn judge_outcome(
        &self,
        ours: (Verdict, Verdict),
        took: bool,
        outcome: &RecipientOutcome,
        told: &str,
    ) {
        use Verdict::{Later, Never, Take};
        let lies = matches!(self.trouble.1, Trouble::Replaced(_));
        match outcome {
            RecipientOutcome::Delivered(_) => assert!(took, "{told}"),
            // By the server's own word, and by no echo.
            RecipientOutcome::Failed(_) => {
                assert!(matches!(ours, (Never, _) | (Take, Never)), "{told}");
            }
            RecipientOutcome::Deferred(Deferral::Reply(_)) => {
                assert!(matches!(ours, (Later, _) | (Take, Later)), "{told}");
            }
            RecipientOutcome::Deferred(deferral) => {
                assert_ne!(self.trouble.1, Trouble::Nothing, "{told}");
                // Without lies nothing that was taken is believed not to be.
                assert!(lies || !took || deferral.possible_duplicate(), "{told}");
                assert!(lies || !took || !outcome.never_began(), "{told}");
            }
        }
    }
}

fn verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![3 => Just(Verdict::Take), 1 => Just(Verdict::Later), 1 => Just(Verdict::Never)]
}

fn plan() -> impl Strategy<Value = Plan> {
    let recipients = proptest::collection::vec(verdict(), 1..4);
    let large = prop_oneof![12 => Just(false), 1 => Just(true)];
    (recipients, verdict(), large).prop_map(|(recipients, body, is_large)| Plan {
        recipients,
        body,
        is_large,
    })
}

fn trouble() -> impl Strategy<Value = Trouble> {
    prop_oneof![
        2 => Just(Trouble::Nothing),
        2 => Just(Trouble::Cut),
        1 => Just(Trouble::Replaced("421 4.3.2 going\r\n")),
        1 => Just(Trouble::Replaced("garbage\r\n")),
        1 => Just(Trouble::Replaced("354 go on\r\n")),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => Just(Step::Start),
        2 => (1usize..400).prop_map(Step::Up),
        2 => (1usize..100).prop_map(Step::Down),
    ]
}

fn run(plans: Vec<Plan>, steps: Vec<Step>, trouble: (usize, Trouble)) -> World {
    let mut world = World::new(plans, trouble);
    for step in steps {
        world.step(step);
    }
    world.finish();
    world.judge();
    world
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever the server decides, however octets are cut, whenever the connection ends.
    #[test]
    fn what_the_client_reports_is_what_the_server_did(
        plans in proptest::collection::vec(plan(), 1..9),
        steps in proptest::collection::vec(step(), 0..120),
        at in 0usize..40,
        trouble in trouble(),
    ) {
        let count = plans.len();
        let world = run(plans, steps, (at, trouble));
        if trouble == Trouble::Nothing {
            prop_assert_eq!(world.results.len(), count);
            prop_assert!(world.client.may_go_on());
        }
    }

    /// A server that speaks of the order of commands, at any place, makes no message bounce.
    #[test]
    fn a_sequence_error_bounces_nobody_in_one_flight(
        plans in proptest::collection::vec(plan(), 1..6),
        steps in proptest::collection::vec(step(), 0..60),
        at in 0usize..24,
        code in prop_oneof![Just("503 5.5.1 order\r\n"), Just("500 what\r\n"), Just("502 no\r\n")],
    ) {
        let small = plans.into_iter().map(|plan| Plan { is_large: false, ..plan }).collect();
        run(small, steps, (at, Trouble::Replaced(code)));
    }
}
