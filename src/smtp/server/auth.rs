//! AUTH (RFC 4954) as its server sees it: when it may come, its base64 and its replies.
//!
//! What the octets mean is the mechanism's, which the driver runs (`crate::auth::sasl`): it takes
//! [`Server::response`] and gives an [`AuthAnswer`].

use std::time::Instant;

use data_encoding::BASE64;

use super::{Client, Event, Handled, Phase, Refusal, Server};
use crate::auth::sasl::Mechanism;
use crate::limits;
use crate::smtp::line::{LineScanner, LineStep};
use crate::smtp::reply;

/// What a listener offers to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthOffer {
    /// In this order.
    pub mechanisms: Box<[Mechanism]>,
    /// Nothing at all is offered in clear; else only what does not show the secret, and with
    /// `secrets_in_clear` that too.
    pub only_secured: bool,
    /// Passwords and tokens may come in clear: for tests, and for networks that are trusted.
    pub secrets_in_clear: bool,
    /// MAIL waits for AUTH.
    pub required: bool,
}

/// A response that waits to be taken further.
#[derive(Debug)]
pub(super) struct Pending {
    mechanism: Mechanism,
    /// It came with the AUTH command, or is missing from it.
    is_first: bool,
    /// Decoded; `None` at the start without an initial one.
    response: Option<Vec<u8>>,
}

/// What a client says in an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response<'a> {
    /// The mechanism that it has chosen.
    pub mechanism: Mechanism,
    /// An exchange begins; one from before, which the client may have cancelled, is over.
    pub is_first: bool,
    /// What it says; `None` at the start if the command had no initial response.
    pub octets: Option<&'a [u8]>,
}

/// What the mechanism says to a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthAnswer {
    /// Ask the client on.
    Challenge(Vec<u8>),
    /// The client is this user.
    Succeeded(Box<str>),
    /// It is not, or nobody can tell now: `AuthFailed`, `BadResponse`, `AuthLater`.
    Failed(Refusal),
}

impl Server {
    /// The connection has what SCRAM-PLUS binds to, so that it may be offered.
    pub fn permit_binding(&mut self) {
        self.can_bind = true;
    }

    /// Whether EHLO offers this mechanism now.
    pub fn offers(&self, mechanism: Mechanism) -> bool {
        let Some(offer) = &self.config.auth else { return false };
        let is_safe = self.is_secured
            || (!offer.only_secured && (offer.secrets_in_clear || !mechanism.shows_the_secret()));
        let binds = mechanism != Mechanism::ScramSha256Plus || self.can_bind;
        is_safe && binds && offer.mechanisms.contains(&mechanism)
    }

    /// What waits at [`Event::Authenticate`].
    pub fn response(&self) -> Option<Response<'_>> {
        let Phase::Authenticating(pending) = &self.phase else { return None };
        let Pending { mechanism, is_first, response } = &**pending;
        let (mechanism, is_first) = (*mechanism, *is_first);
        Some(Response { mechanism, is_first, octets: response.as_deref() })
    }

    /// What became of the response.
    pub fn auth_answered(&mut self, now: Instant, answer: AuthAnswer) {
        let Phase::Authenticating(pending) = &self.phase else { return };
        let mechanism = pending.mechanism;
        self.phase = Phase::Command;
        self.deadline = now + limits::SERVER_COMMAND;
        match answer {
            AuthAnswer::Challenge(octets) => {
                self.replies.challenge(&octets);
                self.lines = LineScanner::new(limits::AUTH_LINE);
                let pending = Pending { mechanism, is_first: false, response: None };
                self.phase = Phase::Response(Box::new(pending));
            }
            AuthAnswer::Succeeded(user) => {
                if let Some(client) = &mut self.client {
                    client.authenticated = Some(user);
                }
                self.replies.push(reply::AUTHENTICATED);
            }
            AuthAnswer::Failed(refusal) => self.auth_failed(refusal),
        }
    }

    /// How long the line may be that the input begins with.  Only AUTH has an argument that
    /// outgrows others: a token.
    pub(super) fn line_limit(&self, input: &[u8]) -> usize {
        let verb = b"AUTH ";
        let is_auth = input.len() >= verb.len()
            && input[..verb.len()].eq_ignore_ascii_case(verb)
            && self.config.auth.is_some();
        if is_auth { limits::AUTH_LINE } else { limits::COMMAND_LINE }
    }

    /// `AUTH` with the mechanisms that can be used now.
    pub(super) fn auth_keyword(&self) -> Option<String> {
        let offer = self.config.auth.as_ref()?;
        let usable = offer.mechanisms.iter().filter(|mechanism| self.offers(**mechanism));
        let words: String = usable.map(|mechanism| format!(" {mechanism}")).collect();
        (!words.is_empty()).then(|| format!("AUTH{words}"))
    }

    /// Whether MAIL must wait for AUTH.
    pub(super) fn lacks_auth(&self) -> bool {
        let is_required = self.config.auth.as_ref().is_some_and(|offer| offer.required);
        is_required && self.client.as_ref().is_none_or(|client| client.authenticated.is_none())
    }

    pub(super) fn auth(&mut self, _: Instant, name: &str, initial: Option<&str>) -> Event {
        match self.may_authenticate(name) {
            Err(refusal) => self.refused(refusal),
            Ok(mechanism) => {
                let response = match initial {
                    None => None,
                    // An initial response that is there and empty.
                    Some("=") => Some(Vec::new()),
                    Some(text) => match BASE64.decode(text.as_bytes()) {
                        Ok(octets) => Some(octets),
                        Err(_) => return self.refused(Refusal::BadResponse),
                    },
                };
                let pending = Pending { mechanism, is_first: true, response };
                self.phase = Phase::Authenticating(Box::new(pending));
                Event::Authenticate
            }
        }
    }

    fn may_authenticate(&self, name: &str) -> Result<Mechanism, Refusal> {
        let Some(offer) = &self.config.auth else { return Err(Refusal::NotOffered) };
        match &self.client {
            // AUTH comes with EHLO alone.
            None | Some(Client { extended: false, .. }) => return Err(Refusal::NeedsHello),
            Some(Client { authenticated: Some(_), .. }) => return Err(Refusal::AuthOutOfPlace),
            Some(_) if self.transaction.is_some() => return Err(Refusal::AuthOutOfPlace),
            Some(_) => {}
        }
        let mechanism: Mechanism = name.parse().map_err(|_| Refusal::NoSuchMechanism)?;
        let is_known = offer.mechanisms.contains(&mechanism);
        match self.offers(mechanism) {
            true => Ok(mechanism),
            false if is_known && !self.is_secured => Err(Refusal::MechanismNeedsTls),
            false => Err(Refusal::NoSuchMechanism),
        }
    }

    /// The client's response to a challenge, a line of base64.
    pub(super) fn response_bytes(&mut self, now: Instant, input: &[u8]) -> Handled {
        match self.lines.next(input) {
            LineStep::Incomplete => Handled { consumed: 0, event: Event::NeedInput },
            LineStep::Discard { consumed } => Handled { consumed, event: Event::NeedInput },
            LineStep::TooLong { consumed } => {
                self.end_exchange(now);
                self.fault(Refusal::LineTooLong);
                Handled { consumed, event: Event::Continue }
            }
            LineStep::Line { length, consumed } => {
                let event = self.response_line(now, &input[..length]);
                Handled { consumed, event }
            }
        }
    }

    fn response_line(&mut self, now: Instant, line: &[u8]) -> Event {
        let Some(mut pending) = self.end_exchange(now) else { return Event::Continue };
        if line == b"*" {
            return self.refused(Refusal::AuthCancelled);
        }
        match BASE64.decode(line) {
            Err(_) => self.refused(Refusal::BadResponse),
            Ok(octets) => {
                pending.response = Some(octets);
                self.phase = Phase::Authenticating(pending);
                Event::Authenticate
            }
        }
    }

    fn end_exchange(&mut self, now: Instant) -> Option<Box<Pending>> {
        self.deadline = now + limits::SERVER_COMMAND;
        self.lines = LineScanner::default();
        match std::mem::replace(&mut self.phase, Phase::Command) {
            Phase::Response(pending) => Some(pending),
            other => {
                self.phase = other;
                None
            }
        }
    }

    fn auth_failed(&mut self, refusal: Refusal) {
        self.fault(refusal);
        self.auth_failures += 1;
        if self.auth_failures >= limits::AUTH_FAILURES {
            self.close(Refusal::TooManyErrors);
        }
    }
}
