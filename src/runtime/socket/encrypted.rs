//! TLS on a stream: the handshake, and records in place of octets.
//!
//! Both are driven in turns, as a session reads and writes; the two halves of a stream that does
//! both at once have their own loops in `halves`.  What goes wrong with TLS itself is told to the
//! peer by an alert, as far as the kernel takes it, and ends the connection.

use std::sync::Arc;
use std::time::Instant;

use rustls::pki_types::{CertificateDer, ServerName};

use super::super::buffer::Fill;
use super::super::deadline::Cut;
use super::super::tls::inflow::Drained;
use super::super::tls::link::Link;
use super::super::tls::{Records, Secured, TlsError};
use super::{Stream, StreamError};

/// Why a connection is not encrypted as it should be; it is dead then.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The two sides did not come to terms.
    #[error("the TLS handshake failed: {0}")]
    Tls(#[from] TlsError),
    /// The peer closed the connection in the middle.
    #[error("the peer closed the connection in the TLS handshake")]
    Closed,
    /// The connection broke or took too long.
    #[error("the TLS handshake came to no end: {0}")]
    Stream(#[source] StreamError),
}

impl Stream {
    /// Becomes the server's side of a TLS connection.
    ///
    /// # Errors
    /// See [`HandshakeError`]; the peer was told by an alert where it can be told.
    pub async fn accept_tls(
        &mut self,
        config: Arc<rustls::ServerConfig>,
        deadline: Instant,
    ) -> Result<Secured, HandshakeError> {
        self.shake_hands(Records::server(config)?, deadline).await
    }

    /// Becomes the client's side of a TLS connection to `name`, which goes out as SNI.
    ///
    /// # Errors
    /// See [`HandshakeError`]; the peer was told by an alert where it can be told.
    pub async fn connect_tls(
        &mut self,
        config: Arc<rustls::ClientConfig>,
        name: ServerName<'static>,
        deadline: Instant,
    ) -> Result<Secured, HandshakeError> {
        self.shake_hands(Records::client(config, name)?, deadline).await
    }

    /// What the handshake agreed on; none in clear.
    pub fn secured(&self) -> Option<Secured> {
        self.tls.as_ref().map(|tls| tls.records.session())
    }

    /// The certificate that the peer has proved to hold the key of.
    pub fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.tls.as_ref()?.records.peer_certificate()
    }

    async fn shake_hands(
        &mut self,
        records: Records,
        deadline: Instant,
    ) -> Result<Secured, HandshakeError> {
        let mut link = Box::new(Link::new(records));
        loop {
            let progress = link.inflow.shake_hands(&mut link.records);
            let outgoing = link.records.take_outgoing();
            if !outgoing.is_empty() {
                let (written, _) = self.write_socket(outgoing, deadline).await;
                // What went wrong first counts, and is why nobody takes the alert.
                progress.as_ref().map_or(Ok(()), |_| written).map_err(HandshakeError::Stream)?;
            }
            if progress? {
                return Err(HandshakeError::Closed);
            }
            if link.records.is_established() {
                let session = link.records.session();
                self.tls = Some(link);
                return Ok(session);
            }
            let buffer = link.inflow.take_buffer()?;
            let (result, buffer) = self.read_socket(buffer, deadline, Cut::Both).await;
            link.inflow.put_buffer(buffer);
            if result.map_err(HandshakeError::Stream)? == 0 {
                return Err(HandshakeError::Closed);
            }
        }
    }

    /// Reads records until one of them holds plaintext.
    pub(super) async fn read_plain<B: Fill>(
        &mut self,
        mut buffer: B,
        deadline: Instant,
    ) -> (Result<usize, StreamError>, B) {
        loop {
            let drained = match &mut self.tls {
                Some(tls) => tls.drain(&mut buffer),
                None => Ok(Drained::Ended),
            };
            match drained {
                Ok(Drained::Octets(octets)) => return (Ok(octets), buffer),
                Ok(Drained::Ended) => return (Ok(0), buffer),
                Ok(Drained::NeedsInput) => {}
                Err(error) => {
                    let alert = self.tls.as_mut().map(|tls| tls.records.take_outgoing());
                    self.send_now(&alert.unwrap_or_default());
                    return (Err(StreamError::Io(error)), buffer);
                }
            }
            match self.read_records(deadline).await {
                Ok(0) => return (Ok(0), buffer),
                Ok(_) => {}
                Err(error) => return (Err(error), buffer),
            }
        }
    }

    async fn read_records(&mut self, deadline: Instant) -> Result<usize, StreamError> {
        let Some(tls) = &mut self.tls else { return Ok(0) };
        let records = tls.take_buffer().map_err(StreamError::Io)?;
        let (result, records) = self.read_socket(records, deadline, Cut::Receiving).await;
        if let Some(tls) = &mut self.tls {
            tls.inflow.put_buffer(records);
        }
        result
    }

    pub(super) async fn write_plain(
        &mut self,
        plain: &[u8],
        deadline: Instant,
    ) -> Result<(), StreamError> {
        let mut taken = 0;
        while taken < plain.len() {
            let Some(tls) = &mut self.tls else { break };
            let (records, more) = tls.encrypt(&plain[taken..]).map_err(StreamError::Io)?;
            taken += more;
            self.write_socket(records, deadline).await.0?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::runtime;
    use crate::tls::test_kit;

    /// A peer that begins a hello, or says nothing at all, and then waits.
    #[test]
    fn a_stalled_handshake_ends_at_its_deadline() {
        for beginning in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"] {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let address = listener.local_addr().expect("bound");
            let peer = thread::spawn(move || {
                let mut stream = listener.accept().expect("a connection").0;
                stream.write_all(beginning).expect("the other side reads");
                let mut rest = Vec::new();
                // Cut off: the end, or a reset.
                let _ = stream.read_to_end(&mut rest);
                rest
            });
            let result = runtime::run(async move {
                runtime::spawn(crate::runtime::deadline::sweep_forever());
                let stream = Stream::connect(address, None, Duration::from_secs(30)).await;
                let deadline = Instant::now() + Duration::from_millis(50);
                let config = test_kit::acceptor_config(false);
                stream.expect("it listens").accept_tls(config, deadline).await
            });
            let error = result.expect("a loop").expect_err("there is no handshake");
            assert!(matches!(error, HandshakeError::Stream(StreamError::TimedOut)), "{error}");
            peer.join().expect("it hears of the end");
        }
    }
}
