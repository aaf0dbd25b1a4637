//! The client's side of PLAIN, LOGIN, SCRAM and XOAUTH2, for smart hosts.
//!
//! Pure as the server's side.  It ends by itself when the server proves to be somebody else: a
//! server that does not know the password's verifier cannot answer a SCRAM proof, and a client
//! that would not look could be made to hand its mail to anybody.

use std::fmt;
use std::num::NonZeroU32;

use data_encoding::BASE64;

use super::{Binding, Mechanism};
use crate::auth::prep::prepare;
use crate::auth::scram::{ClientKeys, ITERATIONS_MAX, ScramHash};

/// What we log in with; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name at the smart host.
    pub name: Box<str>,
    /// The password, or the token for XOAUTH2.
    pub secret: Box<str>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({:?}, ..)", self.name)
    }
}

/// Why our side gives up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The challenge is not of the mechanism's form.
    #[error("the server's challenge cannot be read")]
    Malformed,
    /// The server could not prove that it knows our password.
    #[error("the server could not prove who it is")]
    NotTheServer,
    /// Name or password hold what SASLprep prohibits.
    #[error("the user's name or secret cannot be sent")]
    Credentials,
}

/// Our side of one AUTH.
pub struct ClientExchange {
    mechanism: Mechanism,
    credentials: Credentials,
    binding: Binding,
    nonce: Box<str>,
    state: State,
}

enum State {
    Start,
    /// Responses given so far, for LOGIN.
    Answered(u32),
    First {
        bare: String,
        gs2_header: &'static str,
    },
    Last {
        answer: Vec<u8>,
    },
    Over,
}

impl ClientExchange {
    /// An exchange at its start; `nonce` as for [`super::Exchange::new`].
    ///
    /// # Errors
    /// The credentials cannot be sent.
    pub fn new(
        mechanism: Mechanism,
        credentials: &Credentials,
        nonce: &str,
        binding: Binding,
    ) -> Result<ClientExchange, ClientError> {
        let prepared = |text: &str| prepare(text).map(Box::<str>::from);
        let name = prepared(&credentials.name).ok_or(ClientError::Credentials)?;
        let secret = match mechanism.takes_tokens() {
            true => Some(credentials.secret.clone()),
            false => prepared(&credentials.secret),
        };
        let credentials = Credentials { name, secret: secret.ok_or(ClientError::Credentials)? };
        Ok(ClientExchange {
            mechanism,
            credentials,
            binding,
            nonce: nonce.into(),
            state: State::Start,
        })
    }

    /// The best of what a server offers that fits: no secret is shown without TLS.
    pub fn choose(
        offered: impl Fn(&str) -> bool,
        is_token: bool,
        secured: bool,
        binding: Binding,
    ) -> Option<Mechanism> {
        Mechanism::ALL.into_iter().find(|mechanism| {
            *mechanism != Mechanism::OAuthBearer
                && mechanism.takes_tokens() == is_token
                && offered(mechanism.name())
                && (secured || !mechanism.shows_the_secret())
                && (*mechanism != Mechanism::ScramSha256Plus || binding.exporter.is_some())
        })
    }

    /// The initial response, for the AUTH command itself; none for LOGIN, which many servers take
    /// in two steps only.
    pub fn initial(&mut self) -> Option<Vec<u8>> {
        let Credentials { name, secret } = &self.credentials;
        match self.mechanism {
            Mechanism::Plain => Some(format!("\0{name}\0{secret}").into_bytes()),
            Mechanism::XOAuth2 => {
                Some(format!("user={name}\u{1}auth=Bearer {secret}\u{1}\u{1}").into_bytes())
            }
            Mechanism::OAuthBearer => {
                let name = escaped(name);
                Some(format!("n,a={name},\u{1}auth=Bearer {secret}\u{1}\u{1}").into_bytes())
            }
            Mechanism::Login => None,
            Mechanism::ScramSha1 | Mechanism::ScramSha256 | Mechanism::ScramSha256Plus => {
                let gs2_header = match (self.mechanism, self.binding.exporter) {
                    (Mechanism::ScramSha256Plus, _) => "p=tls-exporter,,",
                    (_, Some(_)) if !self.binding.offered => "y,,",
                    _ => "n,,",
                };
                let bare = format!("n={},r={}", escaped(name), self.nonce);
                let message = format!("{gs2_header}{bare}").into_bytes();
                self.state = State::First { bare, gs2_header };
                Some(message)
            }
        }
    }

    /// Our response to a challenge (334).
    ///
    /// # Errors
    /// See [`ClientError`]; the exchange is to be cancelled with `*`.
    pub fn respond(&mut self, challenge: &[u8]) -> Result<Vec<u8>, ClientError> {
        match std::mem::replace(&mut self.state, State::Over) {
            // The server's error in JSON is taken note of by an empty response, and the refusal
            // follows as a reply.
            State::Start if self.mechanism == Mechanism::XOAuth2 => Ok(Vec::new()),
            State::Start if self.mechanism == Mechanism::OAuthBearer => Ok(vec![1]),
            State::Start if self.mechanism == Mechanism::Login => {
                self.state = State::Answered(1);
                Ok(self.credentials.name.as_bytes().to_vec())
            }
            State::Answered(1) => Ok(self.credentials.secret.as_bytes().to_vec()),
            State::First { bare, gs2_header } => self.prove(&bare, gs2_header, challenge),
            State::Last { answer } => {
                let given = challenge.strip_prefix(b"v=").ok_or(ClientError::NotTheServer)?;
                let given = BASE64.decode(given).map_err(|_| ClientError::Malformed)?;
                if given != answer {
                    return Err(ClientError::NotTheServer);
                }
                Ok(Vec::new())
            }
            State::Start | State::Answered(_) | State::Over => Err(ClientError::Malformed),
        }
    }

    /// The server says that we are in (235).
    ///
    /// # Errors
    /// It says so without having proved that it knows us.
    pub fn succeeded(&self) -> Result<(), ClientError> {
        match &self.state {
            State::First { .. } | State::Last { .. } => Err(ClientError::NotTheServer),
            _ => Ok(()),
        }
    }

    fn prove(
        &mut self,
        bare: &str,
        gs2_header: &str,
        challenge: &[u8],
    ) -> Result<Vec<u8>, ClientError> {
        let text = std::str::from_utf8(challenge).map_err(|_| ClientError::Malformed)?;
        let (nonce, salt, iterations) =
            read_server_first(text, &self.nonce).ok_or(ClientError::Malformed)?;
        let hash = match self.mechanism {
            Mechanism::ScramSha1 => ScramHash::Sha1,
            _ => ScramHash::Sha256,
        };
        let mut bound = gs2_header.as_bytes().to_vec();
        if gs2_header.starts_with('p') {
            bound.extend_from_slice(self.binding.exporter.as_ref().map_or(&[], |b| &b[..]));
        }
        let without_proof = format!("c={},r={nonce}", BASE64.encode(&bound));
        let messages = format!("{bare},{text},{without_proof}");
        let keys = ClientKeys::derive(hash, &self.credentials.secret, &salt, iterations);
        let proof = BASE64.encode(&keys.proof(messages.as_bytes()));
        self.state = State::Last { answer: keys.answer(messages.as_bytes()) };
        Ok(format!("{without_proof},p={proof}").into_bytes())
    }
}

/// `r=nonce,s=salt,i=iterations`; the nonce begins with ours and goes on.
fn read_server_first<'a>(text: &'a str, ours: &str) -> Option<(&'a str, Vec<u8>, NonZeroU32)> {
    let mut parts = text.split(',');
    let nonce = parts.next()?.strip_prefix("r=")?;
    let salt = BASE64.decode(parts.next()?.strip_prefix("s=")?.as_bytes()).ok()?;
    let iterations: NonZeroU32 = parts.next()?.strip_prefix("i=")?.parse().ok()?;
    let theirs = nonce.strip_prefix(ours)?;
    let bearable = iterations.get() <= ITERATIONS_MAX && super::scram::is_nonce(theirs);
    bearable.then_some((nonce, salt, iterations))
}

/// A name with its commas and equals signs in their escapes (RFC 5802 section 5.1).
fn escaped(name: &str) -> String {
    name.replace('=', "=3D").replace(',', "=2C")
}
