//! The client's side of every mechanism, for smart hosts.
//!
//! Pure as the server's side, and what takes time is handed out too, as a [`Derivation`].  It ends
//! by itself when the server proves to be somebody else: a server that does not know the
//! password's verifier cannot answer a SCRAM proof, and a client that would not look could be made
//! to hand its mail to anybody.

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
    /// The password, or the token.
    pub secret: Box<str>,
    /// The secret is a token that somebody else has issued.
    pub is_token: bool,
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

/// What follows from a challenge.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Send this response.
    Respond(Vec<u8>),
    /// Derive the keys, then call [`ClientExchange::derived`].
    Derive(Derivation),
}

/// The work that SCRAM makes of a password on purpose: the server chooses how much, up to
/// [`ITERATIONS_MAX`], which is most of a second.
#[derive(PartialEq, Eq)]
pub struct Derivation {
    hash: ScramHash,
    password: Box<str>,
    salt: Box<[u8]>,
    iterations: NonZeroU32,
}

impl Derivation {
    /// Does it; for the blocking pool.
    pub fn derive(&self) -> ClientKeys {
        ClientKeys::derive(self.hash, &self.password, &self.salt, self.iterations)
    }
}

impl fmt::Debug for Derivation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Derivation({:?}, {} iterations, ..)", self.hash, self.iterations)
    }
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
    /// The keys are being derived.
    Deriving {
        without_proof: String,
        messages: String,
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
        // A token is no text for people: it goes as it is, if it can stand between the separators.
        let secret = match mechanism.takes_tokens() {
            true => is_token(&credentials.secret).then(|| credentials.secret.clone()),
            false => prepared(&credentials.secret),
        };
        let secret = secret.ok_or(ClientError::Credentials)?;
        let credentials = Credentials { name, secret, is_token: credentials.is_token };
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
            mechanism.takes_tokens() == is_token
                && offered(mechanism.name())
                && (secured || !mechanism.shows_the_secret())
                && (*mechanism != Mechanism::ScramSha256Plus || binding.exporter.is_some())
        })
    }

    /// The initial response, for the AUTH command itself; none for LOGIN, which many servers take
    /// in two steps only.
    pub fn initial(&mut self) -> Option<Vec<u8>> {
        let Credentials { name, secret, .. } = &self.credentials;
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

    /// Which mechanism it is.
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// What follows from a challenge (334).
    ///
    /// # Errors
    /// See [`ClientError`]; the exchange is to be cancelled with `*`.
    pub fn respond(&mut self, challenge: &[u8]) -> Result<Answer, ClientError> {
        let respond = |octets: &[u8]| Ok(Answer::Respond(octets.to_vec()));
        match std::mem::replace(&mut self.state, State::Over) {
            // The server's error in JSON is taken note of by an empty response, and the refusal
            // follows as a reply.
            State::Start if self.mechanism == Mechanism::XOAuth2 => respond(b""),
            State::Start if self.mechanism == Mechanism::OAuthBearer => respond(b"\x01"),
            State::Start if self.mechanism == Mechanism::Login => {
                self.state = State::Answered(1);
                respond(self.credentials.name.as_bytes())
            }
            State::Answered(1) => respond(self.credentials.secret.as_bytes()),
            State::First { bare, gs2_header } => {
                self.derivation(&bare, gs2_header, challenge).map(Answer::Derive)
            }
            State::Last { answer } => {
                let given = challenge.strip_prefix(b"v=").ok_or(ClientError::NotTheServer)?;
                let given = BASE64.decode(given).map_err(|_| ClientError::Malformed)?;
                if given != answer {
                    return Err(ClientError::NotTheServer);
                }
                respond(b"")
            }
            State::Start | State::Answered(_) | State::Deriving { .. } | State::Over => {
                Err(ClientError::Malformed)
            }
        }
    }

    /// The keys are derived: our response, with the proof.
    ///
    /// # Errors
    /// Nothing was to be derived.
    pub fn derived(&mut self, keys: &ClientKeys) -> Result<Vec<u8>, ClientError> {
        let State::Deriving { without_proof, messages } =
            std::mem::replace(&mut self.state, State::Over)
        else {
            return Err(ClientError::Malformed);
        };
        let proof = BASE64.encode(&keys.proof(messages.as_bytes()));
        self.state = State::Last { answer: keys.answer(messages.as_bytes()) };
        Ok(format!("{without_proof},p={proof}").into_bytes())
    }

    /// The server says that we are in (235).
    ///
    /// # Errors
    /// It says so without having proved that it knows us.
    pub fn succeeded(&self) -> Result<(), ClientError> {
        match &self.state {
            State::First { .. } | State::Deriving { .. } | State::Last { .. } => {
                Err(ClientError::NotTheServer)
            }
            _ => Ok(()),
        }
    }

    fn derivation(
        &mut self,
        bare: &str,
        gs2_header: &str,
        challenge: &[u8],
    ) -> Result<Derivation, ClientError> {
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
        self.state = State::Deriving { without_proof, messages };
        let (password, salt) = (self.credentials.secret.clone(), salt.into());
        Ok(Derivation { hash, password, salt, iterations })
    }
}

impl fmt::Debug for ClientExchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientExchange({}, ..)", self.mechanism)
    }
}

/// The octets of RFC 6750 section 2.1, and whatever else is printable without a space.
fn is_token(secret: &str) -> bool {
    !secret.is_empty() && secret.bytes().all(|octet| octet.is_ascii_graphic())
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
