//! The server's side: our certificates and what is asked of clients, changed as one at a reload.

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, ServerSessionMemoryCache};

use super::certificate::{Certificate, CertificateError, CertificateFiles};
use super::resolver::ByName;
use super::verifiers::AnyCertificate;
use crate::runtime::tls::exporter::ExporterSecrets;

/// What an [`Acceptor`] is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AcceptorSettings {
    /// Our certificates; the first is the default.
    pub certificates: Vec<CertificateFiles>,
    /// Whether clients are asked for a certificate; one without goes on all the same.
    pub asks_for_certificates: bool,
}

/// What all sessions of a process take their TLS from.
#[derive(Debug)]
pub struct Acceptor {
    config: ArcSwap<ServerConfig>,
}

/// A certificate that is about to be of no use, or is already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiry {
    /// The file.
    pub chain: PathBuf,
    /// The end of its validity.
    pub not_after: Timestamp,
    /// Whether that is past.
    pub has_passed: bool,
}

impl std::fmt::Display for Expiry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verb = if self.has_passed { "has expired on" } else { "expires on" };
        let (chain, day) = (self.chain.display(), self.not_after.strftime("%Y-%m-%d"));
        write!(f, "the certificate in {chain} {verb} {day}; renew it and send SIGHUP")
    }
}

impl Acceptor {
    /// Reads everything; what expires soon is told beside.
    ///
    /// # Errors
    /// See [`CertificateError`].
    pub fn new(settings: &AcceptorSettings) -> Result<(Acceptor, Vec<Expiry>), CertificateError> {
        let (config, expiries) = server_config(settings, Timestamp::now())?;
        Ok((Acceptor { config: ArcSwap::from_pointee(config) }, expiries))
    }

    /// What a new session uses.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }

    /// Reads everything again; sessions that run keep what they have, and new ones cannot resume
    /// what was begun before.
    ///
    /// # Errors
    /// See [`CertificateError`]; all stays as it was.
    pub fn reload(&self, settings: &AcceptorSettings) -> Result<Vec<Expiry>, CertificateError> {
        let (config, expiries) = server_config(settings, Timestamp::now())?;
        self.config.store(Arc::new(config));
        Ok(expiries)
    }
}

fn server_config(
    settings: &AcceptorSettings,
    now: Timestamp,
) -> Result<(ServerConfig, Vec<Expiry>), CertificateError> {
    let provider = aws_lc_rs::default_provider();
    let load = |files| Certificate::load(files, &provider);
    let certificates: Vec<Certificate> =
        settings.certificates.iter().map(load).collect::<Result<_, _>>()?;
    let files = settings.certificates.iter().zip(&certificates);
    let expiries = files.filter_map(|(files, certificate)| expiry(files, certificate, now));
    let expiries = expiries.collect();
    let config = config_of(&certificates, settings.asks_for_certificates)?;
    Ok((config, expiries))
}

/// The configuration of rustls for these certificates.
pub(super) fn config_of(
    certificates: &[Certificate],
    asks_for_certificates: bool,
) -> Result<ServerConfig, rustls::Error> {
    let none = || rustls::Error::General("there is no certificate".into());
    let by_name = ByName::new(certificates).ok_or_else(none)?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier(asks_for_certificates, provider))
        .with_cert_resolver(Arc::new(by_name));
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    config.session_storage = ServerSessionMemoryCache::new(SESSIONS_KEPT);
    // One ticket: a client that keeps its connection needs none, one that comes back needs one.
    config.send_tls13_tickets = 1;
    config.key_log = Arc::new(ExporterSecrets);
    Ok(config)
}

fn verifier(
    asks_for_certificates: bool,
    provider: Arc<CryptoProvider>,
) -> Arc<dyn ClientCertVerifier> {
    match asks_for_certificates {
        true => Arc::new(AnyCertificate::new(provider)),
        false => Arc::new(NoClientAuth),
    }
}

fn expiry(files: &CertificateFiles, certificate: &Certificate, now: Timestamp) -> Option<Expiry> {
    let not_after = certificate.not_after?;
    let is_near = not_after.duration_since(now) < EXPIRY_NOTICE;
    let chain = files.chain.clone();
    is_near.then_some(Expiry { chain, not_after, has_passed: not_after < now })
}

/// Sessions of TLS 1.2 clients without tickets that are kept for resumption, 200 octets each.
const SESSIONS_KEPT: usize = 4_096;
/// How long before a certificate's end it is spoken of; renewals come 30 days before.
const EXPIRY_NOTICE: SignedDuration = SignedDuration::from_hours(14 * 24);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::self_signed::{self, pem};

    struct Files {
        directory: tempfile::TempDir,
    }

    impl Files {
        fn new() -> Files {
            Files { directory: tempfile::tempdir().unwrap() }
        }

        fn put(&self, name: &str, text: &str) -> PathBuf {
            let path = self.directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        }

        fn pair(&self, name: &str, now: Timestamp) -> CertificateFiles {
            let made = self_signed::generate(&[name], now).unwrap();
            CertificateFiles {
                chain: self.put(&format!("{name}.chain"), &pem("CERTIFICATE", &made.certificate)),
                key: self.put(&format!("{name}.key"), &pem("PRIVATE KEY", &made.key)),
            }
        }
    }

    fn settings(certificates: &[CertificateFiles]) -> AcceptorSettings {
        AcceptorSettings { certificates: certificates.to_vec(), asks_for_certificates: true }
    }

    #[test]
    fn every_bad_file_says_what_is_wrong_with_it() {
        let files = Files::new();
        let good = files.pair("good.example", Timestamp::now());
        let other = files.pair("other.example", Timestamp::now());
        let empty = files.put("empty.pem", "nothing here\n");
        let torn = files.put("torn.pem", "-----BEGIN CERTIFICATE-----\nMIIB\n");
        let locked = files.put(
            "locked.pem",
            "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n",
        );
        let no_x509 = files.put("no-x509.pem", &pem("CERTIFICATE", b"\x30\x03\x02\x01\x01"));
        let bad_key = files.put("bad-key.pem", &pem("PRIVATE KEY", b"\x30\x03\x02\x01\x01"));
        let absent = files.directory.path().join("absent.pem");
        let chain = |chain: &PathBuf| CertificateFiles { chain: chain.clone(), ..good.clone() };
        let key = |key: &PathBuf| CertificateFiles { key: key.clone(), ..good.clone() };
        for (given, words) in [
            (chain(&absent), "cannot read"),
            (chain(&empty), "holds no certificate; expected"),
            (chain(&good.key), "found a key: are `chain` and `key` exchanged?"),
            (chain(&torn), "is not good PEM"),
            (chain(&no_x509), "cannot be read as X.509"),
            (key(&empty), "holds no private key; expected"),
            (key(&good.chain), "found a certificate: are `chain` and `key` exchanged?"),
            (key(&locked), "take it off with `openssl pkey"),
            (key(&bad_key), "cannot be used"),
            (key(&other.key), "is not that of the first certificate"),
        ] {
            let error = Acceptor::new(&settings(&[given])).expect_err(words).to_string();
            assert!(error.contains(words), "{error} does not say {words}");
        }
    }

    #[test]
    fn a_reload_that_fails_changes_nothing() {
        let files = Files::new();
        let now = Timestamp::now();
        let (first, second) = (files.pair("a.example", now), files.pair("b.example", now));
        let (acceptor, expiries) = Acceptor::new(&settings(std::slice::from_ref(&first))).unwrap();
        assert_eq!(expiries, []);
        let before = acceptor.config();
        let mixed = CertificateFiles { key: second.key.clone(), ..first };
        assert!(acceptor.reload(&settings(&[mixed])).is_err());
        assert!(acceptor.reload(&settings(&[])).is_err());
        assert!(Arc::ptr_eq(&before, &acceptor.config()));
        acceptor.reload(&settings(&[second])).unwrap();
        assert!(!Arc::ptr_eq(&before, &acceptor.config()));
    }

    #[test]
    fn an_end_that_is_near_is_spoken_of() {
        let files = Files::new();
        let year = self_signed::VALIDITY;
        let at = |made: SignedDuration| {
            let pair = files.pair("a.example", Timestamp::now() - made);
            server_config(&settings(&[pair]), Timestamp::now()).unwrap().1
        };
        assert_eq!(at(year - SignedDuration::from_hours(24 * 20)), []);
        let near = at(year - SignedDuration::from_hours(24));
        assert!(near[0].to_string().contains("expires on"), "{}", near[0]);
        let past = at(year + SignedDuration::from_hours(24));
        assert!(past[0].to_string().contains("has expired on"), "{}", past[0]);
    }
}
