//! TLS without I/O: records in, octets out, and back (RFC 8446, RFC 5246).
//!
//! [`Records`] wraps one rustls connection of either direction in its unbuffered form: what came
//! from the peer is decrypted where it was received, and what is to be sent is encrypted into a
//! buffer of the caller's.  [`inflow`] keeps what was received; `socket` does the reading and
//! writing.
//!
//! Invariants: records leave in the order in which they were encrypted, because everything that
//! rustls wants sent goes through one queue that the next [`Records::encrypt`] puts in front.  A
//! connection that idles holds no buffer.  Nothing is given out before its record was
//! authenticated, and nothing after the peer's close_notify.
//!
//! It fails by [`TlsError`], the peer's fault always; the alert that says so waits in
//! [`Records::take_outgoing`].  It decides nothing about certificates, which is `tls`'s business,
//! and it has no early data, no renegotiation and no compression.
//!
//! rustls 0.23 decrypts in place and then copies the plaintext once into a vector of its own
//! (its documentation keeps the in-place form for a later release).  The copy out of that vector
//! is the one that removes the records' framing, which any form would need.

pub mod exporter;
pub mod inflow;
pub mod link;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
};
use rustls::{ClientConfig, CommonState, HandshakeKind, ServerConfig};

use super::buffer::{Account, Buffer};
use exporter::ChannelBinding;

/// What a record adds to its plaintext at most: header, explicit nonce, inner type, tag.
const RECORD_OVERHEAD: usize = 5 + 8 + 1 + 16;
/// The plaintext of a full record (RFC 8446 section 5.1).
const RECORD_PLAIN: usize = 16 * 1024;
/// What one call of [`Records::encrypt`] takes: full records that fit a large buffer, with room
/// for what rustls puts in front.
pub const ENCRYPT_OCTETS: usize = 3 * RECORD_PLAIN;
/// Attempts to encrypt: as it is, after a change of keys, and once to spare.
const ENCRYPT_TRIES: usize = 3;
/// A record's header (RFC 8446 section 5.1).
const HEADER: usize = 5;

const _: () = assert!(ENCRYPT_OCTETS + 3 * RECORD_OVERHEAD + 8 * 1024 <= super::buffer::LARGE);

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The peer broke the protocol, showed a certificate that does not do, or has nothing in
    /// common with us.
    #[error("{0}")]
    Protocol(#[from] rustls::Error),
    /// A handshake message is larger than any true one.
    #[error("a handshake message is too large")]
    TooLarge,
    /// We wanted to send while half of a message that may change the keys had come.
    #[error("a message after the handshake came in fragments")]
    Fragmented,
    /// The keys have protected as much as they may, and the protocol has no way to change them.
    #[error("the keys are used up")]
    Exhausted,
}

/// One connection's records, in either direction.
pub struct Records {
    side: Side,
    /// Encoded records that wait to be sent.
    outgoing: Vec<u8>,
    /// The front of a handshake message lies in the input, not consumed: rustls must see it again.
    holds_fragment: bool,
    is_established: bool,
    binding: Option<ChannelBinding>,
}

enum Side {
    Server(Box<UnbufferedServerConnection>),
    Client(Box<UnbufferedClientConnection>),
}

/// What a call of [`Records::receive`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Octets of the input that are used up.
    pub consumed: usize,
    /// What to do next.
    pub progress: Progress,
}

/// What to do after [`Records::receive`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// A record's plaintext was given out; call again.
    Plaintext,
    /// Send what waits, then read more.
    NeedsInput,
    /// The peer has said that nothing more comes.
    Ended,
}

/// One step of rustls.
enum Turn {
    Again,
    Plaintext,
    Blocked,
    Ready,
    Ended,
}

impl Records {
    /// The server's side of a new connection.
    ///
    /// # Errors
    /// The configuration contradicts itself.
    pub fn server(config: Arc<ServerConfig>) -> Result<Records, TlsError> {
        let connection = UnbufferedServerConnection::new(config)?;
        Ok(Records::new(Side::Server(Box::new(connection))))
    }

    /// The client's side of a new connection to `name`, which goes out as SNI and is what a
    /// verifier compares.
    ///
    /// # Errors
    /// The configuration contradicts itself.
    pub fn client(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Records, TlsError> {
        let connection = UnbufferedClientConnection::new(config, name)?;
        Ok(Records::new(Side::Client(Box::new(connection))))
    }

    fn new(side: Side) -> Records {
        Records {
            side,
            outgoing: Vec::new(),
            holds_fragment: false,
            is_established: false,
            binding: None,
        }
    }

    /// For whom what comes and goes is: a server's connection is a session's.
    pub fn account(&self) -> Account {
        match self.side {
            Side::Server(_) => Account::Inbound,
            Side::Client(_) => Account::Outbound,
        }
    }

    /// Takes records off the front of `incoming` until one of them held plaintext, which goes to
    /// `sink`, or more octets are needed.
    ///
    /// `incoming` is everything received and not yet consumed; it is decrypted in place, and its
    /// octets must not be changed before they are consumed.
    ///
    /// # Errors
    /// See [`TlsError`]; the connection is then over.
    pub fn receive(
        &mut self,
        incoming: &mut [u8],
        mut sink: impl FnMut(&[u8]),
    ) -> Result<Received, TlsError> {
        let received = self.receive_records(incoming, &mut sink);
        // At once, before another connection of this thread leaves its own.
        if let Some(secret) = exporter::take() {
            self.binding = secret.channel_binding();
        }
        received
    }

    fn receive_records(
        &mut self,
        incoming: &mut [u8],
        sink: &mut impl FnMut(&[u8]),
    ) -> Result<Received, TlsError> {
        let mut consumed = 0;
        self.holds_fragment = false;
        let progress = loop {
            let (octets, turn) = self.turn(&mut incoming[consumed..], sink);
            consumed += octets;
            match turn {
                Ok(Turn::Again) => {}
                Ok(Turn::Plaintext) => {
                    // It may come with the last message of the handshake.
                    self.is_established = true;
                    break Progress::Plaintext;
                }
                Ok(Turn::Blocked) => break Progress::NeedsInput,
                Ok(Turn::Ended) => break Progress::Ended,
                Ok(Turn::Ready) => {
                    self.is_established = true;
                    self.holds_fragment = begins_with_record(&incoming[consumed..]);
                    break Progress::NeedsInput;
                }
                Err(error) => {
                    self.collect_alert(&mut incoming[consumed..]);
                    return Err(error);
                }
            }
        };
        Ok(Received { consumed, progress })
    }

    /// Encrypts the front of `plain` behind what is in `out`, with what waits to be sent before
    /// it, and tells how many octets it took: all, or [`ENCRYPT_OCTETS`].
    ///
    /// # Errors
    /// See [`TlsError`]; `Fragmented` is the only one that passes by itself.
    pub fn encrypt(&mut self, plain: &[u8], out: &mut Buffer) -> Result<usize, TlsError> {
        if self.holds_fragment {
            return Err(TlsError::Fragmented);
        }
        let taken = plain.len().min(ENCRYPT_OCTETS);
        let plain = &plain[..taken];
        let mut room = taken + (taken / RECORD_PLAIN + 1) * RECORD_OVERHEAD;
        for _ in 0..ENCRYPT_TRIES {
            self.drain_outgoing(out);
            let start = out.bytes().len();
            let written = self.write(out.extend_zeroed(room).ok_or(TlsError::TooLarge)?, plain);
            out.truncate(start + written.as_ref().map_or(0, |&octets| octets));
            match written {
                Ok(_) => return Ok(taken),
                Err(EncryptError::InsufficientSize(needed)) => {
                    room = room.max(needed.required_size);
                }
                Err(EncryptError::EncryptExhausted) => {}
            }
            // A change of keys goes first, by itself.
            while let (_, Ok(Turn::Again)) = self.turn(&mut [], &mut |_| {}) {}
        }
        Err(TlsError::Exhausted)
    }

    /// Puts our close_notify behind what waits to be sent: nothing more will be encrypted.
    pub fn close(&mut self) {
        if self.holds_fragment || !self.is_established {
            return;
        }
        let mut notice = [0; 2 * RECORD_OVERHEAD];
        let written = match &mut self.side {
            Side::Server(connection) => {
                close_notify(connection.process_tls_records(&mut []), &mut notice)
            }
            Side::Client(connection) => {
                close_notify(connection.process_tls_records(&mut []), &mut notice)
            }
        };
        self.outgoing.extend_from_slice(&notice[..written]);
    }

    /// The encoded records that wait: to be sent before anything else, in this order.
    pub fn take_outgoing(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.outgoing)
    }

    /// How many octets of them there are.
    pub fn outgoing_octets(&self) -> usize {
        self.outgoing.len()
    }

    /// Whether the handshake is over and octets can be sent.
    pub fn is_established(&self) -> bool {
        self.is_established
    }

    /// What was agreed on, once the handshake is over.
    pub fn session(&self) -> Secured {
        let state = self.state();
        Secured {
            version: match state.protocol_version() {
                Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
                Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
                _ => "unknown",
            },
            cipher: state.negotiated_cipher_suite().map_or("unknown", |suite| cipher_name(&suite)),
            resumed: state.handshake_kind() == Some(HandshakeKind::Resumed),
            binding: self.binding,
        }
    }

    /// The certificate that the peer has shown and proved to hold the key of.
    pub fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.state().peer_certificates()?.first()
    }

    fn state(&self) -> &CommonState {
        match &self.side {
            Side::Server(connection) => connection,
            Side::Client(connection) => connection,
        }
    }

    fn turn(
        &mut self,
        incoming: &mut [u8],
        sink: &mut impl FnMut(&[u8]),
    ) -> (usize, Result<Turn, TlsError>) {
        let outgoing = &mut self.outgoing;
        match &mut self.side {
            Side::Server(connection) => {
                handle(connection.process_tls_records(incoming), outgoing, sink)
            }
            Side::Client(connection) => {
                handle(connection.process_tls_records(incoming), outgoing, sink)
            }
        }
    }

    fn write(&mut self, room: &mut [u8], plain: &[u8]) -> Result<usize, EncryptError> {
        match &mut self.side {
            Side::Server(connection) => {
                encrypt(connection.process_tls_records(&mut []), plain, room)
            }
            Side::Client(connection) => {
                encrypt(connection.process_tls_records(&mut []), plain, room)
            }
        }
    }

    /// The alert that rustls has made of an error.
    fn collect_alert(&mut self, incoming: &mut [u8]) {
        // Once: it comes out before anything else, and another step would go on with the input.
        let _ = self.turn(incoming, &mut |_| {});
    }

    fn drain_outgoing(&mut self, out: &mut Buffer) {
        let pushed = out.push(&self.outgoing);
        self.outgoing.drain(..pushed);
    }
}

/// What a handshake has agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Secured {
    /// As the registry of events names it: `TLSv1.2`, `TLSv1.3`.
    pub version: &'static str,
    /// IANA's name of the cipher suite.
    pub cipher: &'static str,
    /// A session from before went on: no certificate was shown.
    pub resumed: bool,
    /// What binds an authentication to this connection; TLS 1.3 only.
    pub binding: Option<ChannelBinding>,
}

/// As events and trace headers have it: the version and the suite.
impl fmt::Display for Secured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.version, self.cipher)
    }
}

fn handle<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    outgoing: &mut Vec<u8>,
    sink: &mut impl FnMut(&[u8]),
) -> (usize, Result<Turn, TlsError>) {
    let mut discard = status.discard;
    let turn = match status.state {
        Err(error) => Err(error.into()),
        Ok(ConnectionState::ReadTraffic(mut traffic)) => loop {
            match traffic.next_record() {
                None => break Ok(Turn::Plaintext),
                Some(Ok(record)) => {
                    discard += record.discard;
                    sink(record.payload);
                }
                Some(Err(error)) => break Err(error.into()),
            }
        },
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            let start = outgoing.len();
            if let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) =
                data.encode(&mut [])
            {
                outgoing.resize(start + required_size, 0);
                let written = data.encode(&mut outgoing[start..]).unwrap_or(0);
                outgoing.truncate(start + written);
            }
            Ok(Turn::Again)
        }
        Ok(ConnectionState::TransmitTlsData(sent)) => {
            // They are in the queue, which keeps their order from here on.
            sent.done();
            Ok(Turn::Again)
        }
        Ok(ConnectionState::BlockedHandshake) => Ok(Turn::Blocked),
        Ok(ConnectionState::WriteTraffic(_)) => Ok(Turn::Ready),
        Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Ok(Turn::Ended),
        // Early data, which no configuration of ours allows, and states of later releases.
        Ok(_) => Err(rustls::Error::General("an unknown state of the connection".into()).into()),
    };
    (discard, turn)
}

fn encrypt<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    plain: &[u8],
    room: &mut [u8],
) -> Result<usize, EncryptError> {
    match status.state {
        Ok(ConnectionState::WriteTraffic(mut traffic)) => traffic.encrypt(plain, room),
        Ok(ConnectionState::TransmitTlsData(mut sent)) => match sent.may_encrypt_app_data() {
            Some(mut traffic) => traffic.encrypt(plain, room),
            None => Err(EncryptError::EncryptExhausted),
        },
        _ => Err(EncryptError::EncryptExhausted),
    }
}

fn close_notify<Data>(status: UnbufferedStatus<'_, '_, Data>, notice: &mut [u8]) -> usize {
    match status.state {
        Ok(ConnectionState::WriteTraffic(mut traffic)) => {
            traffic.queue_close_notify(notice).unwrap_or(0)
        }
        _ => 0,
    }
}

/// Whether a whole record stands at the front of `incoming`.
fn begins_with_record(incoming: &[u8]) -> bool {
    record_octets(incoming).is_some_and(|octets| incoming.len() >= octets)
}

/// The length of the record at the front of `incoming` with its header, once that has come.
fn record_octets(incoming: &[u8]) -> Option<usize> {
    let length = incoming.get(3..HEADER)?;
    Some(HEADER + usize::from(u16::from_be_bytes([length[0], length[1]])))
}

/// IANA's name; rustls spells TLS 1.3's suites in a way of its own.
fn cipher_name(suite: &rustls::SupportedCipherSuite) -> &'static str {
    use rustls::CipherSuite;
    match suite.suite() {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => "TLS_AES_128_GCM_SHA256",
        CipherSuite::TLS13_AES_256_GCM_SHA384 => "TLS_AES_256_GCM_SHA384",
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => "TLS_CHACHA20_POLY1305_SHA256",
        other => other.as_str().unwrap_or("unknown"),
    }
}
