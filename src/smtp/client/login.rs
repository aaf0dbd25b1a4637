//! Logging in at a smart host (RFC 4954), between EHLO and the first transaction.
//!
//! The machine chooses the best mechanism that the peer offers and that shows nothing to who reads
//! along, and goes on only when the peer has proved itself as far as the mechanism lets it.  What
//! takes time, a derivation of keys, is the driver's ([`ClientAction::Derive`]).
//!
//! Invariant: no secret is in a reply that leaves the machine.  A peer that repeats what it was
//! sent ("unknown command AUTH PLAIN ...") would else write our password into our log and into
//! notices; its words are then withheld.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use data_encoding::BASE64;

use super::{Client, ClientAction, ConnectionCause, LoginTrouble, PeerReply, ReplyClass, State};
use crate::auth::sasl::client::{Answer, ClientError, ClientExchange, Credentials};
use crate::auth::sasl::{Binding, Mechanism};
use crate::auth::scram::ClientKeys;

/// What a connection logs in with.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// Whom we are at the peer, and how we prove it.
    pub credentials: Credentials,
    /// Not to be guessed; printable ASCII without commas.
    pub nonce: Box<str>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({:?}, ..)", self.credentials)
    }
}

impl Client {
    /// The connection has what SCRAM-PLUS binds to (RFC 9266).  To be told before the greeting, or
    /// before [`Client::tls_started`].
    pub fn bind(&mut self, exporter: [u8; 32]) {
        self.exporter = Some(exporter);
    }

    /// The keys of [`ClientAction::Derive`]; `None` if nobody could derive them.
    pub fn derived(&mut self, now: Instant, keys: Option<&ClientKeys>) {
        let State::Login(exchange) = &mut self.state else { return };
        let response = keys.ok_or(ClientError::Credentials).and_then(|keys| exchange.derived(keys));
        match response {
            Ok(response) => self.respond(now, &response),
            Err(error) => self.cancel(now, error),
        }
    }

    /// Logs in, if the connection is to; else it is ready.
    pub(super) fn log_in(&mut self, now: Instant) {
        let Some(login) = &self.config.login else { return self.become_ready() };
        let offers = |name: &str| self.peer.auth.iter().any(|offered| **offered == *name);
        let plus = Mechanism::ScramSha256Plus;
        let binding = Binding { exporter: self.exporter, offered: offers(plus.name()) };
        let is_token = login.credentials.is_token;
        let Some(mechanism) = ClientExchange::choose(offers, is_token, self.is_secured, binding)
        else {
            return self.fail(ConnectionCause::Login(LoginTrouble::NotOffered));
        };
        match ClientExchange::new(mechanism, &login.credentials, &login.nonce, binding) {
            Ok(exchange) => self.begin_login(now, exchange),
            Err(error) => self.fail(ConnectionCause::Login(LoginTrouble::Ours(error))),
        }
    }

    fn begin_login(&mut self, now: Instant, mut exchange: ClientExchange) {
        self.output.extend_from_slice(b"AUTH ");
        self.output.extend_from_slice(exchange.mechanism().name().as_bytes());
        if let Some(initial) = exchange.initial() {
            self.output.push(b' ');
            // No mechanism has an empty one, for which RFC 4954 section 4 writes `=`.
            self.output.extend_from_slice(BASE64.encode(&initial).as_bytes());
        }
        self.output.extend_from_slice(b"\r\n");
        self.state = State::Login(Box::new(exchange));
        self.deadline = Some(now + self.config.timeouts.command);
    }

    /// What the peer says in the exchange.
    pub(super) fn login_reply(&mut self, now: Instant, reply: PeerReply) {
        let State::Login(exchange) = &mut self.state else { return };
        match reply.class() {
            ReplyClass::Success => match exchange.succeeded() {
                Ok(()) => self.become_ready(),
                Err(error) => self.fail(ConnectionCause::Login(LoginTrouble::Ours(error))),
            },
            ReplyClass::Intermediate => match exchange.respond(&challenge(exchange, &reply)) {
                Ok(Answer::Respond(response)) => self.respond(now, &response),
                Ok(Answer::Derive(derivation)) => {
                    self.deadline = None;
                    self.actions.push_back(ClientAction::Derive(derivation));
                }
                Err(error) => self.cancel(now, error),
            },
            _ => {
                let reply = Arc::new(self.without_secrets(reply));
                self.fail(ConnectionCause::Login(LoginTrouble::Refused(reply)));
            }
        }
    }

    /// We have given the exchange up; whatever the peer says to that, it is over.
    pub(super) fn cancelled_reply(&mut self, error: ClientError) {
        self.fail(ConnectionCause::Login(LoginTrouble::Ours(error)));
    }

    fn respond(&mut self, now: Instant, response: &[u8]) {
        self.output.extend_from_slice(BASE64.encode(response).as_bytes());
        self.output.extend_from_slice(b"\r\n");
        self.deadline = Some(now + self.config.timeouts.command);
    }

    fn cancel(&mut self, now: Instant, error: ClientError) {
        self.output.extend_from_slice(b"*\r\n");
        self.state = State::LoginCancelled(error);
        self.deadline = Some(now + self.config.timeouts.command);
    }

    /// The reply, without its words if they repeat what we have sent.
    pub(super) fn without_secrets(&self, reply: PeerReply) -> PeerReply {
        let Some(login) = &self.config.login else { return reply };
        let Credentials { name, secret, .. } = &login.credentials;
        // The secret as it is, as LOGIN sends it, and as the initial responses begin.
        let encoded = |octets: String| BASE64.encode(octets.as_bytes());
        let sent = [
            secret.to_string(),
            encoded(secret.to_string()),
            encoded(format!("\0{name}\0{secret}")),
            encoded(format!("user={name}\u{1}")),
            encoded(format!("n,a={name},")),
        ];
        let text = reply.text.to_ascii_lowercase();
        let repeats = |sent: &String| {
            let front: String = sent.to_ascii_lowercase().chars().take(REPEATED).collect();
            text.contains(front.trim_end_matches('='))
        };
        match sent.iter().any(repeats) {
            true => PeerReply { text: WITHHELD.into(), ..reply },
            false => reply,
        }
    }
}

/// The octets of a challenge.  The bearer mechanisms' is an error in JSON, in which nothing is for
/// us, and which may be longer than what is kept of a reply.
fn challenge(exchange: &ClientExchange, reply: &PeerReply) -> Vec<u8> {
    if exchange.mechanism().takes_tokens() {
        return Vec::new();
    }
    // What is no base64 is no challenge of any mechanism either, and LOGIN's says nothing.
    BASE64.decode(reply.text.trim().as_bytes()).unwrap_or_default()
}

/// So many characters of what was sent are enough to know it again, also where a peer repeats
/// only the beginning.
const REPEATED: usize = 8;
/// What stands in place of a peer's words.
const WITHHELD: &str = "(its words are withheld: they repeat what was sent)";
