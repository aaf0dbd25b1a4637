//! Certificates and configurations for tests.

use std::sync::{Arc, LazyLock};

use jiff::Timestamp;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};

use super::acceptor::config_of;
use super::certificate::Certificate;
use super::self_signed;

/// A self-signed certificate for `names`.
pub(crate) fn certificate(names: &[&str]) -> Certificate {
    let made = self_signed::generate(names, Timestamp::now()).unwrap();
    let key = PrivateKeyDer::Pkcs8(made.key.into());
    let key = provider().key_provider.load_private_key(key).unwrap();
    Certificate {
        certified: Arc::new(CertifiedKey::new(vec![made.certificate.into()], key)),
        names: names.iter().map(|name| name.to_ascii_lowercase()).collect(),
        not_after: None,
    }
}

/// What a server of these tests runs with: a certificate for `mx.example.com`.
pub(crate) fn acceptor_config(asks_for_certificates: bool) -> Arc<ServerConfig> {
    Arc::new(config_of(std::slice::from_ref(&OURS), asks_for_certificates).unwrap())
}

/// A client that takes that certificate and no other.
pub(crate) fn trusting_config(versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider());
    let builder = builder.with_protocol_versions(versions).unwrap();
    Arc::new(builder.with_root_certificates(roots()).with_no_client_auth())
}

/// The same with a certificate of its own.
pub(crate) fn client_with_certificate(
    version: &'static SupportedProtocolVersion,
) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider());
    let builder = builder.with_protocol_versions(&[version]).unwrap();
    let own = Arc::unwrap_or_clone(certificate(&["client.example"]).certified);
    let resolver = Arc::new(SingleCertAndKey::from(own));
    Arc::new(builder.with_root_certificates(roots()).with_client_cert_resolver(resolver))
}

/// The certificate of [`acceptor_config`] as an authority.
pub(crate) fn roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(OURS.certified.cert[0].clone()).unwrap();
    roots
}

static OURS: LazyLock<Certificate> = LazyLock::new(|| certificate(&["mx.example.com"]));

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}
