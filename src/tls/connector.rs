//! The client's side: what a connection to a next hop demands of it.

use std::sync::{Arc, OnceLock};

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};

use super::verifiers::AnyCertificate;
use crate::runtime::tls::exporter::ExporterSecrets;

/// How a site's connections are encrypted; decided by its route (and, in a later step, by what
/// DANE and MTA-STS say of its domain).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TlsPolicy {
    /// Never.
    Off,
    /// Where the next hop offers it and it works; in clear elsewhere.  It says nothing about who
    /// the next hop is (RFC 7435).
    #[default]
    Opportunistic,
    /// Always, with whomever.
    Required,
    /// Always, and the next hop proves its name by an authority that this system trusts.
    Verified,
}

impl TlsPolicy {
    /// Whether a message may go in clear when TLS does not come about.
    pub fn allows_clear(self) -> bool {
        matches!(self, TlsPolicy::Off | TlsPolicy::Opportunistic)
    }

    /// As the configuration writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            TlsPolicy::Off => "off",
            TlsPolicy::Opportunistic => "opportunistic",
            TlsPolicy::Required => "required",
            TlsPolicy::Verified => "verified",
        }
    }
}

/// The rustls configurations of a process's outgoing connections.
#[derive(Debug)]
pub struct Connector {
    any: Arc<ClientConfig>,
    /// Made when the first connection needs it: reading the authorities takes milliseconds.
    verified: OnceLock<Result<Arc<ClientConfig>, NoAuthorities>>,
}

/// The system's authorities cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this system has no authorities to trust: {0}; install ca-certificates, or set SSL_CERT_FILE"
)]
pub struct NoAuthorities(Arc<str>);

impl Connector {
    /// With the sessions of earlier connections kept for resumption.
    ///
    /// # Errors
    /// rustls and its cryptography do not fit together.
    pub fn new() -> Result<Connector, rustls::Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut any = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate::new(provider)))
            .with_no_client_auth();
        any.resumption = Resumption::in_memory_sessions(SESSIONS_KEPT);
        any.key_log = Arc::new(ExporterSecrets);
        Ok(Connector { any: Arc::new(any), verified: OnceLock::new() })
    }

    /// What a connection under `policy` uses.
    ///
    /// # Errors
    /// `Verified` without authorities.
    pub fn config(&self, policy: TlsPolicy) -> Result<Arc<ClientConfig>, NoAuthorities> {
        match policy {
            TlsPolicy::Verified => self.verified.get_or_init(verified).clone(),
            TlsPolicy::Off | TlsPolicy::Opportunistic | TlsPolicy::Required => Ok(self.any.clone()),
        }
    }
}

fn verified() -> Result<Arc<ClientConfig>, NoAuthorities> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map_or("none were found".into(), ToString::to_string);
        return Err(NoAuthorities(why.into()));
    }
    client_config(roots).map_err(|error| NoAuthorities(error.to_string().into()))
}

fn client_config(roots: RootCertStore) -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::in_memory_sessions(SESSIONS_KEPT);
    config.key_log = Arc::new(ExporterSecrets);
    Ok(Arc::new(config))
}

/// Next hops whose sessions are kept.
const SESSIONS_KEPT: usize = 1_024;
