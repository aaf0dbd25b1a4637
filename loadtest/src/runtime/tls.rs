//! TLS without I/O: plain octets in, records out, and back.
//!
//! It uses rustls in its buffered form, not as the gateway does, so that one bug cannot hide on
//! both sides.  [`super::link`] does the reading and writing.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, Connection, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};

/// What is read at once: a whole record.
const ROOM: usize = 17 * 1024;

/// The state of one connection.
pub struct Tls {
    connection: Connection,
    /// Records that came.
    incoming: Vec<u8>,
    /// What of them rustls has.
    fed: usize,
}

impl Tls {
    /// Of a connection that is about to shake hands.
    pub fn new(mut connection: Connection) -> Tls {
        connection.set_buffer_limit(None);
        Tls { connection, incoming: Vec::new(), fed: 0 }
    }

    /// Whether the handshake is not over.
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// The records that wait to be sent.
    pub fn outgoing(&mut self) -> Vec<u8> {
        let mut records = Vec::new();
        while self.connection.wants_write() {
            self.connection.write_tls(&mut records).expect("a vector takes all octets");
        }
        records
    }

    /// `plain` as records, behind those that wait.
    pub fn encrypt(&mut self, plain: &[u8]) -> Vec<u8> {
        self.connection.writer().write_all(plain).expect("the buffer has no limit");
        self.outgoing()
    }

    /// Says that nothing more comes.
    pub fn close(&mut self) -> Vec<u8> {
        self.connection.send_close_notify();
        self.outgoing()
    }

    /// A buffer to read records into.
    pub fn lend(&mut self) -> Vec<u8> {
        self.incoming.drain(..self.fed);
        self.fed = 0;
        self.incoming.reserve(ROOM);
        std::mem::take(&mut self.incoming)
    }

    /// The buffer after the read.
    pub fn give_back(&mut self, records: Vec<u8>) {
        self.incoming = records;
    }

    /// Lets rustls have what has come, as much as it takes before plaintext is taken.
    ///
    /// # Errors
    /// The peer broke the protocol, or its certificate does not do.
    pub fn feed(&mut self) -> Result<(), Error> {
        while self.fed < self.incoming.len() {
            let mut rest = &self.incoming[self.fed..];
            let taken = self.connection.read_tls(&mut rest).unwrap_or(0);
            self.fed += taken;
            let state = self.connection.process_new_packets()?;
            if taken == 0 || state.plaintext_bytes_to_read() > 0 {
                break;
            }
        }
        Ok(())
    }

    /// Puts plaintext behind what `buffer` holds, without growing it: how many octets; 0 at the
    /// peer's end; None when more must be read first.
    ///
    /// # Errors
    /// As [`Tls::feed`].
    pub fn take(&mut self, buffer: &mut Vec<u8>) -> Result<Option<usize>, Error> {
        let room = buffer.capacity() - buffer.len();
        loop {
            let mut reader = self.connection.reader();
            if let Ok(plain) = reader.fill_buf() {
                let octets = plain.len().min(room);
                buffer.extend_from_slice(&plain[..octets]);
                reader.consume(octets);
                return Ok(Some(octets));
            }
            if self.fed == self.incoming.len() {
                return Ok(None);
            }
            self.feed()?;
        }
    }
}

/// Why TLS cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of a certificate or key.
    #[error("cannot read {0}: {1}")]
    Unreadable(String, #[source] io::Error),
    /// What is in it.
    #[error("cannot use {0}: {1}")]
    Unusable(String, String),
    /// Certificate and key, or the system's authorities.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] Error),
}

/// What a sender's connections use.  Sessions are kept and resumed; `is_insecure` takes whatever
/// certificate a server shows.
///
/// # Errors
/// See [`TlsError`].
pub fn client_config(is_insecure: bool) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .dangerous();
    let verifier: Arc<dyn ServerCertVerifier> = match is_insecure {
        true => Arc::new(Anyone(provider)),
        false => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.build().map_err(|error| Error::General(error.to_string()))?
        }
    };
    Ok(Arc::new(builder.with_custom_certificate_verifier(verifier).with_no_client_auth()))
}

/// What a sink's connections use.
///
/// # Errors
/// See [`TlsError`].
pub fn server_config(chain: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let unusable =
        |path: &Path, words: String| TlsError::Unusable(path.display().to_string(), words);
    let text = read(chain)?;
    let certificates: Result<Vec<CertificateDer>, _> =
        CertificateDer::pem_slice_iter(&text).collect();
    let certificates = certificates.map_err(|error| unusable(chain, error.to_string()))?;
    let private = PrivateKeyDer::from_pem_slice(&read(key)?);
    let private = private.map_err(|error| unusable(key, error.to_string()))?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth();
    Ok(Arc::new(builder.with_single_cert(certificates, private)?))
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| BufReader::new(file).read_to_end(&mut text))
        .map_err(|error| TlsError::Unreadable(path.display().to_string(), error))?;
    Ok(text)
}

/// Takes any certificate whose holder proves to have its key.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
