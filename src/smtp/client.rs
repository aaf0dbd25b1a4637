//! The client's side of an SMTP or LMTP connection as a state machine: octets and time in, actions
//! out (RFC 5321 and 2033, with PIPELINING, RFC 2920, CHUNKING, RFC 3030, and LIMITS, RFC 9422).
//!
//! It stands between `outbound`, which owns the socket and the message, and the peer.  Its twin
//! is `smtp::server`.  The message never passes through it: it says when and in which form the
//! body goes out.
//!
//! How a driver uses it: make a [`Client`] when the connection stands; feed what arrives to
//! [`Client::handle_bytes`]; after every call, take actions from [`Client::poll_action`] until
//! there is none; watch [`Client::deadline`].  Three duties are the driver's.  It reads while it
//! writes, or two full windows wait for each other.  It calls [`Client::body_sent`] before it
//! feeds what arrived after the body's last octet was written.  And when a write fails it first
//! feeds what can still be read, for a peer that gives up says why, and only then calls
//! [`Client::handle_closed`].
//!
//! **One flight.**  Where the peer has PIPELINING and CHUNKING, a message goes out whole, envelope
//! and body, before any reply: one round trip.  [`Client::start`] may then be called while earlier
//! transactions are under way, as long as [`Client::can_start`] says so; each that follows another
//! begins with RSET, so that what became of the one before it matters to none.  The first message
//! to a site goes the strict way, body after the replies to the envelope, and so do large ones,
//! large envelopes, and LMTP, whose peers are near and disagree on the number of replies when
//! nobody was taken.  A peer that is out of step once is not tried in one flight again: the
//! connection takes no further transaction, and the results tell the driver to remember it.  A
//! peer that refuses something and throws away what came with it, silently, would answer the next
//! message in place of this one: after a refusal nothing is told, and nothing started, until every
//! reply that is owed has come.  Where the peer was out of step since, even that proves nothing, for
//! it may have answered the octets of a body: then the reply to QUIT shows whether all are in their
//! places.
//!
//! Invariants: transactions end in the order in which they were started; every transaction that is
//! started ends in exactly one [`ClientAction::TransactionDone`] with one outcome for each recipient;
//! a recipient counts as delivered only by a 2xx that answers the end of a body that was sent to its
//! end; what a peer decided about a recipient stands when the connection fails later, and the failure
//! decides nothing, but for what came behind a refusal in one flight, which is as doubtful then as
//! the rest.  After [`ClientAction::Close`] there is no further action but the end of a transaction
//! that is started all the same.
//!
//! **STARTTLS** (RFC 3207) is the driver's to do when the machine says so
//! ([`ClientAction::StartTls`]); what the peer said before is forgotten then, and what it sent in
//! clear behind its 220 ends the connection, since nobody knows who sent it.
//!
//! **AUTH** (RFC 4954) follows EHLO where the configuration has a [`Login`]; without
//! success there the connection takes no mail.
//!
//! What it does not do: choosing peers, retrying, judging what an outcome means for
//! the queue; splitting recipients by the peer's limits (`capabilities::Limits::split`; the driver
//! starts each part).

mod envelope;
mod exchange;
mod login;
mod opening;
#[cfg(test)]
mod oracle;
mod result;
mod settings;
#[cfg(test)]
mod tests;
mod turns;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use envelope::{mail_command, rcpt_command};
pub use login::Login;
pub use result::{
    AfterTransaction, BrokenPromise, ConnectionCause, ConnectionFailure, Deferral, Failure,
    LocalRefusal, LoginTrouble, RecipientOutcome, Stage, StagedReply, TlsTrouble,
    TransactionResult,
};
pub use settings::{
    ClientConfig, OneFlight, Protocol, StartTls, Timeouts, Transaction, TransactionId,
};

use crate::auth::sasl::client::{ClientError, ClientExchange, Derivation};
use crate::limits;
use crate::smtp::body::BodyForm;
use crate::smtp::capabilities::Capabilities;
use crate::smtp::code::ReplyClass;
use crate::smtp::reply_reader::{PeerReply, ReplyReader};
use exchange::{Exchange, Manner, Next};

/// What the driver is to do.
#[derive(Debug)]
pub enum ClientAction {
    /// Write these octets.  The buffer may come back through [`Client::recycle`].
    Send(Vec<u8>),
    /// Write, for this transaction, `prefix`, the trace header, the body in this form and `suffix`, best in one go; call
    /// [`Client::body_progress`] as it goes and [`Client::body_sent`] at its end.  A following
    /// `Close` means: stop at once.
    SendBody {
        /// Whose body it is.
        id: TransactionId,
        /// What comes first: the BDAT command, in one flight the whole envelope, or nothing.
        prefix: Vec<u8>,
        /// How the body goes.
        form: BodyForm,
        /// What comes last: the final dot, or nothing.
        suffix: &'static [u8],
    },
    /// Shake hands, then call [`Client::tls_started`] or [`Client::tls_failed`].
    StartTls,
    /// Derive these keys where nobody waits for it, then call [`Client::derived`].
    Derive(Derivation),
    /// The peer has introduced itself; [`Client::start`] may be called.
    Ready,
    /// A transaction is over: the oldest of those that were not.
    TransactionDone(TransactionResult),
    /// The connection failed outside a transaction.
    Failed(ConnectionFailure),
    /// Close the connection and throw away what is still to be written.
    Close,
}

/// One connection to a peer.
#[derive(Debug)]
pub struct Client {
    config: ClientConfig,
    state: State,
    peer: Capabilities,
    reader: ReplyReader,
    /// What is to be written after the actions.
    output: Vec<u8>,
    /// What the driver is to do, in order.
    actions: VecDeque<ClientAction>,
    deadline: Option<Instant>,
    /// The connection runs over TLS.
    is_secured: bool,
    /// What SCRAM-PLUS binds to, where the connection has it.
    exporter: Option<[u8; 32]>,
    /// Transactions under way, oldest first.  More than one only in one flight, or decided, or
    /// waiting at the end.
    under_way: VecDeque<UnderWay>,
    next_id: u32,
    /// Transactions that put a command on the wire.
    transactions: u32,
    /// The peer lost count: what is under way comes to its end, and nothing follows.
    is_draining: bool,
    /// What the peer has refused in one flight.  It may have thrown away what came with it:
    /// nothing follows until every reply that is owed has come.
    suspicion: Option<Arc<PeerReply>>,
    /// What ended since, to be told when nothing is owed any more.
    withheld: VecDeque<TransactionResult>,
    /// Whether the next transaction begins with RSET.  It then costs no round trip of its own.
    reset_first: bool,
}

#[derive(Debug)]
enum State {
    /// The connection stands; the 220 has not come.
    Greeting,
    /// EHLO is out.
    Ehlo,
    /// EHLO was refused; HELO is out.
    Helo,
    /// STARTTLS is out.
    StartTls,
    /// The driver shakes hands.
    Handshake,
    /// AUTH is out, or the response to a challenge, or the driver derives keys.
    Login(Box<ClientExchange>),
    /// We have given AUTH up.
    LoginCancelled(ClientError),
    /// Between transactions, or in some.
    Serving,
    /// QUIT is out, and results are withheld until its reply shows that those before it were in
    /// step.
    Confirming,
    /// QUIT is out.
    Quitting,
    /// Over.
    Closed,
}

#[derive(Debug)]
enum UnderWay {
    /// Its commands are out, or some of them.
    Running { id: TransactionId, exchange: Exchange },
    /// Its turn comes when nothing is before it: it goes the strict way.
    Waiting { id: TransactionId, transaction: Transaction },
    /// It was over before it began; told in its turn.
    Decided(TransactionResult),
}

impl Client {
    /// A connection that was just made.
    pub fn new(config: ClientConfig, now: Instant) -> Client {
        let deadline = Some(now + config.timeouts.greeting);
        Client {
            is_secured: config.is_secured,
            config,
            state: State::Greeting,
            peer: Capabilities::default(),
            reader: ReplyReader::new(),
            output: Vec::new(),
            actions: VecDeque::new(),
            deadline,
            exporter: None,
            under_way: VecDeque::new(),
            next_id: 0,
            transactions: 0,
            is_draining: false,
            suspicion: None,
            withheld: VecDeque::new(),
            reset_first: false,
        }
    }

    /// Takes what the peer sent.
    pub fn handle_bytes(&mut self, now: Instant, input: &[u8]) {
        let mut taken = 0;
        while taken < input.len() && !matches!(self.state, State::Closed) {
            let (consumed, reply) = self.reader.read(&input[taken..]);
            taken += consumed;
            match reply {
                None => {}
                Some(Ok(reply)) => self.handle_reply(now, reply),
                Some(Err(error)) => self.fail(ConnectionCause::Malformed(error)),
            }
            if matches!(self.state, State::Handshake) && taken < input.len() {
                self.actions.clear();
                return self.fail(ConnectionCause::Tls(TlsTrouble::Injected));
            }
        }
    }

    /// The handshake is done: from here on the peer is another one than it was in clear.
    pub fn tls_started(&mut self, now: Instant) {
        if matches!(self.state, State::Handshake) {
            self.is_secured = true;
            self.peer = Capabilities::default();
            self.reader = ReplyReader::new();
            self.reader.expect_ehlo();
            self.hello(now, self.verb(), State::Ehlo);
        }
    }

    /// The handshake came to nothing.
    pub fn tls_failed(&mut self, words: &str) {
        if matches!(self.state, State::Handshake) {
            self.fail(ConnectionCause::Tls(TlsTrouble::Handshake(words.into())));
        }
    }

    /// Time has passed.  Before the [deadline](Client::deadline) this does nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.fail(ConnectionCause::TimedOut);
        }
    }

    /// The peer closed the connection, or a read or write failed.
    pub fn handle_closed(&mut self) {
        self.fail(ConnectionCause::Closed);
    }

    /// Gives up: the body cannot be read, or the gateway stops.  Whoever is undecided is
    /// deferred.  The body is left without its end, so that the peer does not take a part of it
    /// for the message.
    pub fn abandon(&mut self) {
        self.fail(ConnectionCause::Abandoned);
    }

    /// The peer took a piece of a body: it has time for the next (RFC 5321 section 4.5.3.2.5), or
    /// for what it owes us already.
    pub fn body_progress(&mut self, now: Instant) {
        if !self.under_way.is_empty() {
            let later = now + self.patience();
            self.deadline = Some(self.deadline.map_or(later, |deadline| deadline.max(later)));
        }
    }

    /// The body of this transaction, its prefix and its suffix are written.
    pub fn body_sent(&mut self, now: Instant, id: TransactionId) {
        let running = self.under_way.iter_mut().enumerate().find_map(|(place, one)| match one {
            UnderWay::Running { id: this, exchange } if *this == id => Some((place, exchange)),
            _ => None,
        });
        let Some((place, exchange)) = running.filter(|(_, exchange)| exchange.is_sending_body())
        else {
            return;
        };
        let next = exchange.body_sent();
        if place > 0 {
            return;
        }
        match next {
            Next::Wait => self.deadline = Some(now + self.patience()),
            next => self.go_on(now, next),
        }
    }

    /// Begins a transaction, whose name it gives.  Where [`Client::can_start`] does not hold,
    /// since the connection may have failed a moment ago, the transaction ends at once with every
    /// recipient deferred.
    pub fn start(&mut self, now: Instant, transaction: Transaction) -> TransactionId {
        let id = TransactionId(self.next_id);
        self.next_id = self.next_id.wrapping_add(1);
        // Half a reply that nobody asked for: the next one would be taken for its rest.
        if self.is_ready() && self.reader.is_within_reply() {
            self.fail(ConnectionCause::Abandoned);
        }
        if !self.can_start() {
            let result = self.declined(id, &transaction);
            self.under_way.push_back(UnderWay::Decided(result));
        } else if let Err(refusal) = self.check(&transaction) {
            let outcome = RecipientOutcome::Failed(Failure::Local(refusal));
            let outcomes = vec![outcome; transaction.recipients.len()];
            let result = self.result(id, outcomes, AfterTransaction::Usable);
            self.under_way.push_back(UnderWay::Decided(result));
        } else if self.goes_in_one_flight(&transaction) {
            self.begin(now, id, transaction, Manner::OneFlight);
        } else {
            self.under_way.push_back(UnderWay::Waiting { id, transaction });
        }
        self.take_turns(now);
        id
    }

    /// Ends the connection politely; in the middle of something, at once.
    pub fn quit(&mut self, now: Instant) {
        match self.state {
            State::Serving if self.under_way.is_empty() => {
                self.say_quit(now, State::Quitting, limits::CLIENT_QUIT);
            }
            State::Confirming | State::Quitting | State::Closed => {}
            _ => self.abandon(),
        }
    }

    /// Says QUIT; until its reply, or at the latest `patience` from now, the connection is in `state`.
    fn say_quit(&mut self, now: Instant, state: State, patience: Duration) {
        self.output.extend_from_slice(b"QUIT\r\n");
        self.state = state;
        self.deadline = Some(now + self.config.timeouts.command.min(patience));
    }

    /// The next thing to do, or `None` until something else is fed in.
    pub fn poll_action(&mut self) -> Option<ClientAction> {
        if let Some(action) = self.actions.pop_front() {
            return Some(action);
        }
        // An empty one stays: it may be a buffer that came back.
        (!self.output.is_empty()).then(|| ClientAction::Send(std::mem::take(&mut self.output)))
    }

    /// Gives a buffer back that a `Send` or `SendBody` carried, to be written to again.
    pub fn recycle(&mut self, mut buffer: Vec<u8>) {
        if self.output.capacity() == 0 && buffer.capacity() <= 2 * limits::CLIENT_GROUP {
            buffer.clear();
            self.output = buffer;
        }
    }

    /// When [`Client::handle_timeout`] is to be called, if nothing else happens.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether the connection stands and nothing is under way.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Serving) && self.under_way.is_empty()
    }

    /// Whether the connection is over.
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// Whether a transaction may start now.
    pub fn can_start(&self) -> bool {
        let has_room = || match self.under_way.back() {
            None => true,
            Some(UnderWay::Running { exchange, .. }) => {
                exchange.is_one_flight()
                    && self.under_way.len() < self.config.messages_in_flight.max(1)
            }
            Some(UnderWay::Waiting { .. } | UnderWay::Decided(_)) => false,
        };
        self.may_go_on() && self.suspicion.is_none() && has_room()
    }

    /// Whether a transaction may still start on this connection, now or after those under way:
    /// it stands, the peer keeps count, and its MAILMAX is not used up (RFC 9422).
    pub fn may_go_on(&self) -> bool {
        let mail_max = self.peer.limits.mail_max;
        matches!(self.state, State::Serving)
            && !self.is_draining
            && mail_max.is_none_or(|most| self.transactions < most)
    }

    /// What the peer offers; nothing before [`ClientAction::Ready`].
    pub fn capabilities(&self) -> &Capabilities {
        &self.peer
    }

    /// Transactions that this connection has carried, the present one included.
    pub fn transactions(&self) -> u32 {
        self.transactions
    }

    /// How a body goes to this peer.
    pub fn body_form(&self) -> BodyForm {
        if self.peer.chunking && self.config.use_chunking { BodyForm::Bdat } else { BodyForm::Data }
    }

    /// A reply that ends the connection, as others may read it.
    fn presentable(&self, reply: PeerReply) -> Arc<PeerReply> {
        Arc::new(match self.state {
            State::Login(_) | State::LoginCancelled(_) => self.without_secrets(reply),
            _ => reply,
        })
    }

    fn handle_reply(&mut self, now: Instant, reply: PeerReply) {
        // RFC 5321 section 3.8: the service may end at any time.
        if reply.code.value() == 421 && !matches!(self.state, State::Quitting) {
            return self.fail(ConnectionCause::Refused(self.presentable(reply)));
        }
        // It came with the reply before it, while the command that it would answer is still here:
        // counted, it would be somebody else's verdict.
        if !self.output.is_empty() && !matches!(self.state, State::Quitting | State::Closed) {
            return self.fail(ConnectionCause::Unexpected(self.presentable(reply)));
        }
        match self.state {
            State::Greeting => self.greeting(now, reply),
            State::Ehlo => self.ehlo_reply(now, reply),
            State::Helo => self.helo_reply(now, reply),
            State::StartTls => self.starttls_reply(reply),
            State::Handshake => self.fail(ConnectionCause::Tls(TlsTrouble::Injected)),
            State::Login(_) => self.login_reply(now, reply),
            State::LoginCancelled(error) => self.cancelled_reply(error),
            State::Serving => match self.under_way.front_mut() {
                Some(UnderWay::Running { exchange, .. }) => {
                    let next = exchange.handle_reply(reply, &self.peer, &mut self.output);
                    if self.suspicion.is_none() && exchange.is_one_flight() {
                        self.suspicion = exchange.refusal().cloned();
                    }
                    self.go_on(now, next);
                }
                _ => self.fail(ConnectionCause::Unexpected(Arc::new(reply))),
            },
            State::Confirming => self.confirmed(reply),
            // Whatever it says to QUIT, it is over.
            State::Quitting => self.close(),
            State::Closed => {}
        }
    }

    /// Ends the connection where it stands.
    fn fail(&mut self, cause: ConnectionCause) {
        match self.state {
            State::Closed => {}
            State::Serving if !self.under_way.is_empty() => self.end(&cause, Some(0)),
            State::Confirming => self.end(&cause, None),
            State::Quitting => self.close(),
            _ => {
                let failure = ConnectionFailure { stage: self.stage(), cause };
                self.actions.push_back(ClientAction::Failed(failure));
                self.close();
            }
        }
    }

    fn close(&mut self) {
        self.state = State::Closed;
        self.deadline = None;
        self.output = Vec::new();
        self.actions.push_back(ClientAction::Close);
    }

    fn stage(&self) -> Stage {
        match (&self.state, self.under_way.front()) {
            (State::Greeting, _) => Stage::Greeting,
            (State::Ehlo | State::Helo, _) => Stage::Hello,
            (State::StartTls | State::Handshake, _) => Stage::StartTls,
            (State::Login(_) | State::LoginCancelled(_), _) => Stage::Login,
            (State::Serving, Some(UnderWay::Running { exchange, .. })) => exchange.stage(),
            (State::Serving | State::Closed, _) => Stage::Idle,
            (State::Confirming | State::Quitting, _) => Stage::Quit,
        }
    }

    /// How long the peer may take for what comes next.
    fn patience(&self) -> Duration {
        let timeouts = &self.config.timeouts;
        match self.stage() {
            Stage::Body => timeouts.data.min(limits::CLIENT_DATA_BLOCK),
            Stage::EndOfData => timeouts.data,
            _ => timeouts.command,
        }
    }
}
