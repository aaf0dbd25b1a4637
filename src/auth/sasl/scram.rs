//! SCRAM on the server's side (RFC 5802 section 5).

use std::borrow::Cow;

use data_encoding::BASE64;

use super::{Failure, Lookup, Step};
use crate::auth::prep::prepare;
use crate::auth::scram::{ScramHash, Verifier};

/// What is known of the TLS connection beneath.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Binding {
    /// The octets of `tls-exporter` (RFC 9266), where the connection has them.
    pub exporter: Option<[u8; 32]>,
    /// Whether the client was offered a mechanism with channel binding.
    pub offered: bool,
}

pub(super) struct Server {
    hash: ScramHash,
    plus: bool,
    nonce: Box<str>,
    binding: Binding,
    state: State,
}

enum State {
    First,
    Final(Box<First>),
    Proved { name: Box<str> },
    Failed,
}

/// What the first pair of messages has settled.
struct First {
    name: Box<str>,
    verifier: Verifier,
    gs2_header: Box<str>,
    /// Both nonces.
    nonce: Box<str>,
    /// `client-first-message-bare "," server-first-message ","`.
    messages: String,
}

/// The longest message of a client, in octets.
const MESSAGE_MAX: usize = 4 * 1024;
/// The only binding that we know.
const BINDING_NAME: &str = "p=tls-exporter";

impl Server {
    pub(super) fn new(hash: ScramHash, plus: bool, nonce: &str, binding: Binding) -> Server {
        Server { hash, plus, nonce: nonce.into(), binding, state: State::First }
    }

    pub(super) fn name(&self) -> Option<&str> {
        match &self.state {
            State::Final(first) => Some(&first.name),
            State::Proved { name } => Some(name),
            State::First | State::Failed => None,
        }
    }

    pub(super) fn respond(&mut self, response: Option<&[u8]>, lookup: Lookup<'_>) -> Step {
        let Some(response) = response else { return Step::Challenge(Vec::new()) };
        let Ok(text) = std::str::from_utf8(response) else {
            return Step::Failed(Failure::Malformed);
        };
        if text.len() > MESSAGE_MAX {
            return Step::Failed(Failure::Malformed);
        }
        match std::mem::replace(&mut self.state, State::Failed) {
            State::First => self.first(text, lookup),
            State::Final(first) => self.last(*first, text),
            // The empty response that takes note of our proof.
            State::Proved { name } if text.is_empty() => Step::Done(name),
            State::Proved { .. } | State::Failed => Step::Failed(Failure::Malformed),
        }
    }

    fn first(&mut self, text: &str, lookup: Lookup<'_>) -> Step {
        let Some((gs2_header, bare)) = split_gs2(text) else {
            return Step::Failed(Failure::Malformed);
        };
        let Some((name, client_nonce)) = read_first(bare) else {
            return Step::Failed(Failure::Malformed);
        };
        let (Some(name), true) = (prepare(&name), self.header_fits(gs2_header, &name)) else {
            return Step::Failed(Failure::Credentials);
        };
        let verifier = lookup(self.hash, &name);
        let nonce = format!("{client_nonce}{}", self.nonce);
        let salt = BASE64.encode(verifier.salt());
        let answer = format!("r={nonce},s={salt},i={}", verifier.iterations());
        self.state = State::Final(Box::new(First {
            name: name.into(),
            verifier,
            gs2_header: gs2_header.into(),
            nonce: nonce.into(),
            messages: format!("{bare},{answer},"),
        }));
        Step::Challenge(answer.into_bytes())
    }

    /// Whether the header says of the binding what is so, and asks for no other identity.
    fn header_fits(&self, header: &str, name: &str) -> bool {
        let mut parts = header.split(',');
        let (flag, acting) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
        let binds = match flag {
            "n" => !self.plus,
            // It would have bound if we had offered it: we did, so somebody took the offer out.
            "y" => !self.plus && !self.binding.offered,
            flag => self.plus && flag == BINDING_NAME && self.binding.exporter.is_some(),
        };
        let acting = acting.strip_prefix("a=").map(unescaped);
        binds && acting.is_none_or(|acting| acting.as_deref() == Some(name))
    }

    fn last(&mut self, first: First, text: &str) -> Step {
        let Some(last) = read_last(text) else { return Step::Failed(Failure::Malformed) };
        let mut bound = first.gs2_header.as_bytes().to_vec();
        if self.plus {
            bound.extend_from_slice(self.binding.exporter.as_ref().map_or(&[], |b| &b[..]));
        }
        let messages = [first.messages.as_bytes(), last.without_proof.as_bytes()].concat();
        let is_ours = last.binding == bound && last.nonce == &*first.nonce;
        // The proof is looked at in any case, for the time that it takes.
        if !(first.verifier.accepts(&last.proof, &messages) && is_ours) {
            self.state = State::Final(Box::new(first));
            return Step::Failed(Failure::Credentials);
        }
        let answer = format!("v={}", BASE64.encode(&first.verifier.answer(&messages)));
        self.state = State::Proved { name: first.name };
        Step::Challenge(answer.into_bytes())
    }
}

/// The GS2 header with its second comma, and the rest.
fn split_gs2(text: &str) -> Option<(&str, &str)> {
    let flag_end = text.find(',')?;
    let end = flag_end + 1 + text[flag_end + 1..].find(',')? + 1;
    let acting = &text[flag_end + 1..end - 1];
    (acting.is_empty() || acting.starts_with("a=")).then(|| text.split_at(end))
}

/// Name and nonce of `n=name,r=nonce[,extensions]`.
fn read_first(bare: &str) -> Option<(Cow<'_, str>, &str)> {
    let mut parts = bare.split(',');
    let name = unescaped(parts.next()?.strip_prefix("n=")?)?;
    let nonce = parts.next()?.strip_prefix("r=")?;
    (is_nonce(nonce) && parts.all(is_extension)).then_some((name, nonce))
}

struct Last<'a> {
    without_proof: &'a str,
    binding: Vec<u8>,
    nonce: &'a str,
    proof: Vec<u8>,
}

/// `c=binding,r=nonce[,extensions],p=proof`.
fn read_last(text: &str) -> Option<Last<'_>> {
    let (without_proof, proof) = text.rsplit_once(",p=")?;
    let mut parts = without_proof.split(',');
    let binding = BASE64.decode(parts.next()?.strip_prefix("c=")?.as_bytes()).ok()?;
    let nonce = parts.next()?.strip_prefix("r=")?;
    let proof = BASE64.decode(proof.as_bytes()).ok()?;
    parts.all(is_extension).then_some(Last { without_proof, binding, nonce, proof })
}

/// Printable ASCII without the comma.
pub(super) fn is_nonce(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_graphic() && octet != b',')
}

/// An extension may be passed over unless it is `m`, the mandatory one that nobody has defined.
fn is_extension(part: &str) -> bool {
    let mut octets = part.bytes();
    octets.next().is_some_and(|name| name.is_ascii_alphabetic() && name != b'm')
        && octets.next() == Some(b'=')
}

/// A name with `=2C` and `=3D` put back (section 5.1); `None` if another `=` is in it.
pub(super) fn unescaped(name: &str) -> Option<Cow<'_, str>> {
    if !name.contains('=') {
        return Some(name.into());
    }
    let mut parts = name.split('=');
    let mut plain = parts.next()?.to_owned();
    for part in parts {
        let (octet, rest) = match part.as_bytes().first_chunk() {
            Some(b"2C") => (',', &part[2..]),
            Some(b"3D") => ('=', &part[2..]),
            _ => return None,
        };
        plain.push(octet);
        plain.push_str(rest);
    }
    Some(plain.into())
}
