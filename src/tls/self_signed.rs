//! A self-signed certificate for a first try (`mailrace cert self-signed`): ECDSA P-256, one year.
//!
//! Nobody trusts it but who is told to; opportunistic TLS does not ask.  It is written by hand in
//! DER, because the crates for it bring ten others for these sixty lines.

use std::net::IpAddr;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use jiff::{SignedDuration, Timestamp};

use super::der::{SUBJECT_ALT_NAME, tag, value};

/// How long it is valid.
pub const VALIDITY: SignedDuration = SignedDuration::from_hours(365 * 24);

/// 1.2.840.10045.4.3.2, ecdsa-with-SHA256.
const ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
/// 1.2.840.10045.2.1, id-ecPublicKey.
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
/// 1.2.840.10045.3.1.7, prime256v1.
const PRIME256V1: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// 2.5.4.3, the common name.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// 2.5.29.19, basic constraints; empty, so that it is no authority.
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];

/// A certificate with its key.
pub struct SelfSigned {
    /// The certificate in DER.
    pub certificate: Vec<u8>,
    /// The private key in PKCS #8 (RFC 5208).
    pub key: Vec<u8>,
}

/// The key could not be made: the system has no randomness.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no random numbers for a key")]
pub struct NoKey;

/// Makes a certificate for `names`, DNS names or IP addresses, the first of them its subject,
/// valid from an hour before `now`.
///
/// # Errors
/// The system gives no random numbers.
pub fn generate(names: &[&str], now: Timestamp) -> Result<SelfSigned, NoKey> {
    let random = SystemRandom::new();
    let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random)
        .map_err(|_| NoKey)?;
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.as_ref())
        .map_err(|_| NoKey)?;
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| NoKey)?;
    // Positive and without a leading zero, as DER wants it.
    serial[0] = serial[0] & 0x3f | 0x40;
    let to_sign = to_be_signed(names, now, pair.public_key().as_ref(), &serial);
    let signature = pair.sign(&random, &to_sign).map_err(|_| NoKey)?;
    let certificate = value(
        tag::SEQUENCE,
        &[&to_sign, &algorithm(), &value(tag::BIT_STRING, &[&[0], signature.as_ref()])],
    );
    Ok(SelfSigned { certificate, key: key.as_ref().to_vec() })
}

/// TBSCertificate of RFC 5280 section 4.1.
fn to_be_signed(names: &[&str], now: Timestamp, public_key: &[u8], serial: &[u8]) -> Vec<u8> {
    let subject = subject(names.first().copied().unwrap_or("localhost"));
    let key_algorithm = value(
        tag::SEQUENCE,
        &[
            &value(tag::OBJECT_IDENTIFIER, &[EC_PUBLIC_KEY]),
            &value(tag::OBJECT_IDENTIFIER, &[PRIME256V1]),
        ],
    );
    let public_key = value(tag::BIT_STRING, &[&[0], public_key]);
    value(
        tag::SEQUENCE,
        &[
            &value(tag::VERSION, &[&value(tag::INTEGER, &[&[2]])]),
            &value(tag::INTEGER, &[serial]),
            &algorithm(),
            &subject,
            &validity(now),
            &subject,
            &value(tag::SEQUENCE, &[&key_algorithm, &public_key]),
            &value(
                tag::EXTENSIONS,
                &[&value(tag::SEQUENCE, &extensions(names).each_ref().map(|e| &e[..]))],
            ),
        ],
    )
}

fn algorithm() -> Vec<u8> {
    value(tag::SEQUENCE, &[&value(tag::OBJECT_IDENTIFIER, &[ECDSA_SHA256])])
}

fn subject(name: &str) -> Vec<u8> {
    let name = value(tag::UTF8_STRING, &[name.as_bytes()]);
    let attribute = value(tag::SEQUENCE, &[&value(tag::OBJECT_IDENTIFIER, &[COMMON_NAME]), &name]);
    value(tag::SEQUENCE, &[&value(tag::SET, &[&attribute])])
}

fn validity(now: Timestamp) -> Vec<u8> {
    let written = |moment: Timestamp| {
        // RFC 5280 section 4.1.2.5 wants the short form through 2049.
        let short = moment.strftime("%y%m%d%H%M%SZ").to_string();
        let long = moment.strftime("%Y%m%d%H%M%SZ").to_string();
        match long.as_str() < "2050" {
            true => value(tag::UTC_TIME, &[short.as_bytes()]),
            false => value(tag::GENERALIZED_TIME, &[long.as_bytes()]),
        }
    };
    let begin = now.saturating_sub(SignedDuration::from_hours(1)).unwrap_or(now);
    let end = now.saturating_add(VALIDITY).unwrap_or(now);
    value(tag::SEQUENCE, &[&written(begin), &written(end)])
}

fn extensions(names: &[&str]) -> [Vec<u8>; 2] {
    let names: Vec<Vec<u8>> = names
        .iter()
        .map(|name| match name.parse::<IpAddr>() {
            Ok(IpAddr::V4(address)) => value(tag::IP_ADDRESS, &[&address.octets()]),
            Ok(IpAddr::V6(address)) => value(tag::IP_ADDRESS, &[&address.octets()]),
            Err(_) => value(tag::DNS_NAME, &[name.as_bytes()]),
        })
        .collect();
    let names: Vec<&[u8]> = names.iter().map(Vec::as_slice).collect();
    [
        extension(SUBJECT_ALT_NAME, &value(tag::SEQUENCE, &names)),
        extension(BASIC_CONSTRAINTS, &value(tag::SEQUENCE, &[])),
    ]
}

fn extension(identifier: &[u8], content: &[u8]) -> Vec<u8> {
    let identifier = value(tag::OBJECT_IDENTIFIER, &[identifier]);
    value(tag::SEQUENCE, &[&identifier, &value(tag::OCTET_STRING, &[content])])
}

/// `der` as PEM (RFC 7468) under `label`.
pub fn pem(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let octet = |place: usize| u32::from(group.get(place).copied().unwrap_or(0));
            let bits = octet(0) << 16 | octet(1) << 8 | octet(2);
            for place in 0..4 {
                let sextet = (bits >> (18 - 6 * place) & 63) as usize;
                text.push(if place <= group.len() { ALPHABET[sextet].into() } else { '=' });
            }
        }
        text.push('\n');
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    use super::*;
    use crate::tls::der;

    #[test]
    fn what_is_written_can_be_read() {
        let now: Timestamp = "2026-11-22T02:30:00Z".parse().unwrap();
        let made = generate(&["Mail.example.com", "127.0.0.1"], now).unwrap();
        let facts = der::facts(&made.certificate).expect("it is a certificate");
        assert_eq!(facts.not_after, "20271122023000Z");
        assert_eq!(facts.names, ["mail.example.com"]);
        let later = generate(&["a.example"], "2049-06-01T00:00:00Z".parse().unwrap()).unwrap();
        assert_eq!(der::facts(&later.certificate).unwrap().not_after, "20500601000000Z");
    }

    #[test]
    fn the_pem_is_read_back() {
        let made = generate(&["a.example"], Timestamp::now()).unwrap();
        let text = pem("CERTIFICATE", &made.certificate);
        assert_eq!(
            CertificateDer::from_pem_slice(text.as_bytes()).unwrap().as_ref(),
            made.certificate
        );
        let text = pem("PRIVATE KEY", &made.key);
        assert_eq!(PrivateKeyDer::from_pem_slice(text.as_bytes()).unwrap().secret_der(), made.key);
    }
}
