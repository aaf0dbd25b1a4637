//! A certificate's identity: the SHA-256 of all of it, as operators compare it.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest;

/// The SHA-256 of a certificate in DER; written `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

/// What was expected of a [`Fingerprint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected \"sha256:\" and 64 hexadecimal digits, as \
     `openssl x509 -in FILE -noout -fingerprint -sha256` prints them"
)]
pub struct BadFingerprint;

impl Fingerprint {
    /// Of a certificate in DER.
    pub fn of(certificate: &[u8]) -> Fingerprint {
        let digest = digest::digest(&digest::SHA256, certificate);
        Fingerprint(digest.as_ref().try_into().expect("SHA-256 has 32 octets"))
    }
}

impl FromStr for Fingerprint {
    type Err = BadFingerprint;

    /// Digits in either case, with or without the colons of openssl.
    fn from_str(text: &str) -> Result<Fingerprint, BadFingerprint> {
        let digits = text.strip_prefix("sha256:").ok_or(BadFingerprint)?;
        let mut octets = [0; 32];
        let mut count = 0;
        for digit in digits.chars().filter(|&c| c != ':') {
            let digit = digit.to_digit(16).ok_or(BadFingerprint)?;
            let octet: &mut u8 = octets.get_mut(count / 2).ok_or(BadFingerprint)?;
            *octet = *octet << 4 | u8::try_from(digit).expect("a digit is below 16");
            count += 1;
        }
        if count == 64 { Ok(Fingerprint(octets)) } else { Err(BadFingerprint) }
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_openssl_writes_it() {
        let plain = Fingerprint::of(b"a certificate").to_string();
        assert_eq!(plain.parse(), Ok(Fingerprint::of(b"a certificate")));
        let digits = plain.strip_prefix("sha256:").unwrap().to_uppercase();
        let pairs: Vec<&str> = (0..32).map(|place| &digits[2 * place..2 * place + 2]).collect();
        let spelled = format!("sha256:{}", pairs.join(":"));
        assert_eq!(spelled.parse(), Ok(Fingerprint::of(b"a certificate")));
        for bad in ["", "sha256:", &plain[7..], &plain[..70], &format!("{plain}0"), "sha1:00"] {
            assert_eq!(bad.parse::<Fingerprint>(), Err(BadFingerprint), "{bad}");
        }
    }
}
