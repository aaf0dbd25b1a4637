//! What binds an authentication to its TLS connection: `tls-exporter` (RFC 9266).
//!
//! rustls has no exporter in its unbuffered form, but it shows the exporter's secret to a
//! connection's [`KeyLog`] in the middle of the handshake, on the thread that drives it.  The one
//! here keeps the latest until the same call of [`super::Records::receive`] picks it up, and
//! never writes it anywhere.  For TLS 1.3 only: TLS 1.2 would need the extended master secret
//! (RFC 9266 section 4.2), and what speaks SCRAM-PLUS speaks 1.3.

use std::cell::Cell;

use aws_lc_rs::{digest, hkdf};
use rustls::KeyLog;

/// The 32 octets of `tls-exporter`.
pub type ChannelBinding = [u8; 32];

/// The label of RFC 9266 section 2.
const LABEL: &[u8] = b"EXPORTER-Channel-Binding";

/// Takes the exporter's secret of each handshake of its thread.
#[derive(Debug)]
pub struct ExporterSecrets;

/// A secret of the exporter (RFC 8446 section 7.5); 32 or 48 octets by the suite's hash.
#[derive(Clone, Copy)]
pub(super) struct ExporterSecret {
    octets: [u8; 48],
    length: usize,
}

thread_local! {
    static LATEST: Cell<Option<ExporterSecret>> = const { Cell::new(None) };
}

impl KeyLog for ExporterSecrets {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        if self.will_log(label) && secret.len() <= 48 {
            let mut octets = [0; 48];
            octets[..secret.len()].copy_from_slice(secret);
            LATEST.set(Some(ExporterSecret { octets, length: secret.len() }));
        }
    }

    fn will_log(&self, label: &str) -> bool {
        label == "EXPORTER_SECRET"
    }
}

/// Takes the secret that the step of a handshake which has just been made left, if it left one.
pub(super) fn take() -> Option<ExporterSecret> {
    LATEST.take()
}

impl ExporterSecret {
    /// TLS-Exporter("EXPORTER-Channel-Binding", "", 32) of RFC 8446 section 7.5.
    pub(super) fn channel_binding(&self) -> Option<ChannelBinding> {
        let (hash, algorithm) = match self.length {
            32 => (&digest::SHA256, hkdf::HKDF_SHA256),
            48 => (&digest::SHA384, hkdf::HKDF_SHA384),
            _ => return None,
        };
        let empty = digest::digest(hash, b"");
        let mut derived = [0; 48];
        let derived = &mut derived[..self.length];
        expand_label(algorithm, &self.octets[..self.length], LABEL, empty.as_ref(), derived)?;
        let mut binding = [0; 32];
        expand_label(algorithm, derived, b"exporter", empty.as_ref(), &mut binding)?;
        Some(binding)
    }
}

/// HKDF-Expand-Label of RFC 8446 section 7.1.
fn expand_label(
    algorithm: hkdf::Algorithm,
    secret: &[u8],
    label: &[u8],
    context: &[u8],
    out: &mut [u8],
) -> Option<()> {
    struct Length(usize);
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let length = u16::try_from(out.len()).ok()?.to_be_bytes();
    let label_length = [u8::try_from(b"tls13 ".len() + label.len()).ok()?];
    let context_length = [u8::try_from(context.len()).ok()?];
    let info = [&length[..], &label_length, b"tls13 ", label, &context_length, context];
    let prk = hkdf::Prk::new_less_safe(algorithm, secret);
    prk.expand(&info, Length(out.len())).ok()?.fill(out).ok()
}
