//! Reads a certificate chain and its key out of their files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::der;

/// Where a certificate of ours lies (`[[tls.certificate]]`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate and then those that lead to its authority, in PEM.
    pub chain: PathBuf,
    /// Its private key in PEM: PKCS #8, PKCS #1 or SEC 1, without a password.
    pub key: PathBuf,
}

/// A certificate of ours, ready for use.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// With its key.
    pub certified: Arc<CertifiedKey>,
    /// The DNS names that it is for, in lower case.
    pub names: Vec<String>,
    /// The end of its validity; none where it cannot be read.
    pub not_after: Option<Timestamp>,
}

/// Why a certificate of ours cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}; it must be readable by the user that mailrace runs as", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A file is larger than any chain.
    #[error("{} has more than {MAX} octets; expected certificates or a key in PEM", path.display(), MAX = FILE_OCTETS_MAX)]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// The PEM is damaged.
    #[error("{} is not good PEM: {source}; copy the file again from where it was issued", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: pem::Error,
    },
    /// There is no certificate in the file.
    #[error("{} holds no certificate; expected \"-----BEGIN CERTIFICATE-----\"{}", path.display(), if *.has_key { ", found a key: are `chain` and `key` exchanged?" } else { "" })]
    NoCertificate {
        /// Which.
        path: PathBuf,
        /// A private key was found instead.
        has_key: bool,
    },
    /// There is no key in the file.
    #[error("{} holds no private key; expected \"-----BEGIN PRIVATE KEY-----\"{}", path.display(), mend_of(*.found))]
    NoKey {
        /// Which.
        path: PathBuf,
        /// What was found instead.
        found: InsteadOfKey,
    },
    /// The certificate or the key is of a kind that cannot be used.
    #[error("the key in {} cannot be used: {source}; expected ECDSA (P-256, P-384), RSA (2048 bits or more) or Ed25519", path.display())]
    UnknownKey {
        /// Which.
        path: PathBuf,
        /// What rustls says.
        source: rustls::Error,
    },
    /// The certificate cannot be read.
    #[error("the first certificate in {} cannot be read as X.509", path.display())]
    NotX509 {
        /// Which.
        path: PathBuf,
    },
    /// The key belongs to another certificate.
    #[error(
        "the key in {} is not that of the first certificate in {}; the server's own certificate comes first, those of its authorities after it",
        files.key.display(), files.chain.display()
    )]
    Mismatch {
        /// Which.
        files: CertificateFiles,
    },
    /// TLS cannot be set up with what was read.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}

/// What a key file holds that has no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InsteadOfKey {
    /// A certificate.
    Certificate,
    /// A key under a password.
    Encrypted,
    /// Nothing known.
    Nothing,
}

fn mend_of(found: InsteadOfKey) -> &'static str {
    match found {
        InsteadOfKey::Certificate => ", found a certificate: are `chain` and `key` exchanged?",
        InsteadOfKey::Encrypted => {
            ", found one under a password: take it off with `openssl pkey -in FILE -out NEW`"
        }
        InsteadOfKey::Nothing => "",
    }
}

impl Certificate {
    /// Reads and checks both files.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub fn load(
        files: &CertificateFiles,
        provider: &CryptoProvider,
    ) -> Result<Certificate, CertificateError> {
        let chain = read_chain(&files.chain)?;
        let key = read_key(&files.key)?;
        let unknown = |source| CertificateError::UnknownKey { path: files.key.clone(), source };
        let key = provider.key_provider.load_private_key(key).map_err(unknown)?;
        let facts = der::facts(&chain[0]);
        let facts = facts.ok_or_else(|| CertificateError::NotX509 { path: files.chain.clone() })?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            // A key whose public half rustls cannot tell is tried in the handshake.
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(CertificateError::Mismatch { files: files.clone() });
            }
            Err(_) => return Err(CertificateError::NotX509 { path: files.chain.clone() }),
        }
        Ok(Certificate {
            certified: Arc::new(certified),
            names: facts.names,
            not_after: moment(&facts.not_after),
        })
    }
}

/// Reads every certificate of a PEM file; at least one.
///
/// # Errors
/// See [`CertificateError`].
pub(super) fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let text = read(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let chain = chain.map_err(|source| CertificateError::Pem { path: path.to_owned(), source })?;
    if chain.is_empty() {
        let has_key = PrivateKeyDer::from_pem_slice(&text).is_ok();
        return Err(CertificateError::NoCertificate { path: path.to_owned(), has_key });
    }
    Ok(chain)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, CertificateError> {
    let text = read(path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        pem::Error::NoItemsFound => {
            let has = |words: &[u8]| memchr::memmem::find(&text, words).is_some();
            let found = if has(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") {
                InsteadOfKey::Encrypted
            } else if has(b"-----BEGIN CERTIFICATE-----") {
                InsteadOfKey::Certificate
            } else {
                InsteadOfKey::Nothing
            };
            CertificateError::NoKey { path: path.to_owned(), found }
        }
        source => CertificateError::Pem { path: path.to_owned(), source },
    })
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    let failed = |source| CertificateError::Read { path: path.to_owned(), source };
    if fs::metadata(path).map_err(failed)?.len() > FILE_OCTETS_MAX {
        return Err(CertificateError::TooLarge { path: path.to_owned() });
    }
    fs::read(path).map_err(failed)
}

/// A time as X.509 writes it.
fn moment(text: &str) -> Option<Timestamp> {
    let civil = jiff::civil::DateTime::strptime("%Y%m%d%H%M%SZ", text).ok()?;
    Some(civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
}

/// A chain has a few certificates of two kibibytes.
const FILE_OCTETS_MAX: u64 = 1 << 20;
