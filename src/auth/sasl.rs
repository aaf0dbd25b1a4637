//! SASL (RFC 4422) as octets: the server's side of each mechanism, and in [`client`] ours towards
//! a smart host.
//!
//! Its place: between [`crate::smtp::server`], which carries the octets as base64, and
//! [`super::Authority`], which knows users.  Pure: nonces and verifiers are arguments, and what
//! costs time is handed out as a [`Claim`].
//!
//! Invariants: an exchange ends after a bounded number of responses; whatever a client sends, it
//! ends as [`Step::Failed`] at worst; a channel binding that the client could have used and did
//! not, because somebody hid our offer, is found out (RFC 5802 section 6).

mod bearer;
pub mod client;
mod plain;
mod scram;

use std::fmt;
use std::str::FromStr;

pub use scram::Binding;

use super::scram::{ScramHash, Verifier};

/// How a client proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mechanism {
    /// RFC 7677 bound to the TLS connection by `tls-exporter` (RFC 9266).
    ScramSha256Plus,
    /// RFC 7677.
    ScramSha256,
    /// RFC 5802.
    ScramSha1,
    /// RFC 7628.
    OAuthBearer,
    /// What came before RFC 7628, and what most programs speak.
    XOAuth2,
    /// RFC 4616.
    Plain,
    /// PLAIN in two steps; never standardised, and what some programs know alone.
    Login,
}

impl Mechanism {
    /// All of them, the best first.
    pub const ALL: [Mechanism; 7] = [
        Mechanism::ScramSha256Plus,
        Mechanism::ScramSha256,
        Mechanism::ScramSha1,
        Mechanism::OAuthBearer,
        Mechanism::XOAuth2,
        Mechanism::Plain,
        Mechanism::Login,
    ];

    /// Its registered name.
    pub fn name(self) -> &'static str {
        match self {
            Mechanism::ScramSha256Plus => "SCRAM-SHA-256-PLUS",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha1 => "SCRAM-SHA-1",
            Mechanism::OAuthBearer => "OAUTHBEARER",
            Mechanism::XOAuth2 => "XOAUTH2",
            Mechanism::Plain => "PLAIN",
            Mechanism::Login => "LOGIN",
        }
    }

    /// Whether whoever reads along learns what lets him log in too.
    pub fn shows_the_secret(self) -> bool {
        self.takes_tokens() || matches!(self, Mechanism::Plain | Mechanism::Login)
    }

    /// Whether it needs keys of a token's issuer instead of users.
    pub fn takes_tokens(self) -> bool {
        matches!(self, Mechanism::OAuthBearer | Mechanism::XOAuth2)
    }
}

/// The name is not one of [`Mechanism::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected one of \"SCRAM-SHA-256-PLUS\", \"SCRAM-SHA-256\", \"SCRAM-SHA-1\", \
     \"OAUTHBEARER\", \"XOAUTH2\", \"PLAIN\" and \"LOGIN\""
)]
pub struct NotAMechanism;

impl FromStr for Mechanism {
    type Err = NotAMechanism;

    fn from_str(text: &str) -> Result<Mechanism, NotAMechanism> {
        let named = |mechanism: &Mechanism| mechanism.name().eq_ignore_ascii_case(text);
        Mechanism::ALL.into_iter().find(named).ok_or(NotAMechanism)
    }
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What happens next in an exchange.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// These octets go to the client, whose response is awaited.
    Challenge(Vec<u8>),
    /// Check this, then call [`Exchange::verified`].
    Verify(Claim),
    /// The client is this user.
    Done(Box<str>),
    /// It is nobody that we know.
    Failed(Failure),
}

/// Why an exchange failed; the client is not told more than [`crate::smtp::reply`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The response is not of the mechanism's form.
    Malformed,
    /// Wrong proof, wrong user, or a user who may not be who he asks to be.
    Credentials,
}

/// What somebody claims to be; checking it takes time.
#[derive(PartialEq, Eq)]
pub enum Claim {
    /// A user with this password, both prepared.
    Password {
        /// The user's name.
        name: Box<str>,
        /// The password.
        password: Box<str>,
    },
    /// Whoever this token is for.
    Token {
        /// Whom the client says that it is for, if it says so.
        name: Option<Box<str>>,
        /// A JWT in its compact form, not checked.
        token: Box<str>,
    },
}

impl Claim {
    /// The name that is claimed, as far as it is said.
    pub fn name(&self) -> Option<&str> {
        match self {
            Claim::Password { name, .. } => Some(name),
            Claim::Token { name, .. } => name.as_deref(),
        }
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Claim({:?}, ..)", self.name())
    }
}

/// Whom an exchange asks for a user's verifier; one comes back for everybody, also for who is not
/// there.
pub type Lookup<'a> = &'a dyn Fn(ScramHash, &str) -> Verifier;

/// The server's side of one AUTH.
pub struct Exchange {
    state: State,
    name: Option<Box<str>>,
}

enum State {
    Plain(plain::Plain),
    Login(plain::Login),
    Scram(scram::Server),
    Bearer(bearer::Bearer),
    Over,
}

impl Exchange {
    /// An exchange at its start.  `nonce` must not be guessable, and hold printable ASCII without
    /// commas.
    pub fn new(mechanism: Mechanism, nonce: &str, binding: Binding) -> Exchange {
        let scram = |hash, plus| State::Scram(scram::Server::new(hash, plus, nonce, binding));
        let state = match mechanism {
            Mechanism::Plain => State::Plain(plain::Plain),
            Mechanism::Login => State::Login(plain::Login::default()),
            Mechanism::ScramSha1 => scram(ScramHash::Sha1, false),
            Mechanism::ScramSha256 => scram(ScramHash::Sha256, false),
            Mechanism::ScramSha256Plus => scram(ScramHash::Sha256, true),
            Mechanism::OAuthBearer => State::Bearer(bearer::Bearer::standard()),
            Mechanism::XOAuth2 => State::Bearer(bearer::Bearer::older()),
        };
        Exchange { state, name: None }
    }

    /// Takes the client's response; `None` at the start if it sent no initial one.
    pub fn respond(&mut self, response: Option<&[u8]>, lookup: Lookup<'_>) -> Step {
        let step = match &mut self.state {
            State::Plain(plain) => plain.respond(response),
            State::Login(login) => login.respond(response),
            State::Scram(scram) => scram.respond(response, lookup),
            State::Bearer(bearer) => bearer.respond(response),
            State::Over => Step::Failed(Failure::Malformed),
        };
        match &step {
            Step::Verify(claim) => self.name = claim.name().map(Box::from),
            Step::Done(name) => self.name = Some(name.clone()),
            _ => {}
        }
        if let State::Scram(scram) = &self.state {
            self.name = scram.name().map(Box::from);
        }
        self.closed(step)
    }

    /// What became of the claim: the user that it proved, if it did.
    pub fn verified(&mut self, user: Option<&str>) -> Step {
        let step = match (user, &mut self.state) {
            (Some(user), State::Plain(_) | State::Login(_) | State::Bearer(_)) => {
                Step::Done(user.into())
            }
            (None, State::Bearer(bearer)) => bearer.refused(),
            _ => Step::Failed(Failure::Credentials),
        };
        self.closed(step)
    }

    /// Who the client says that it is, as far as it has said so.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    fn closed(&mut self, step: Step) -> Step {
        if matches!(step, Step::Done(_) | Step::Failed(_)) {
            self.state = State::Over;
        }
        step
    }
}

#[cfg(test)]
mod tests;
