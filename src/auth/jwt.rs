//! Signed tokens (RFC 7519) checked against the keys of their issuer (a JWK set, RFC 7517).
//!
//! Invariants: the key says which algorithm it is for, never the token; a token without `exp`, of
//! another issuer or for another audience is nobody's.  RS256, ES256 and EdDSA with Ed25519
//! (RFC 7518, RFC 8037), which is what issuers sign with.

use std::fmt;

use aws_lc_rs::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use data_encoding::BASE64URL_NOPAD;
use serde::Deserialize;

/// Whose tokens count, and what they must say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer {
    /// `iss`, to the octet.
    pub issuer: Box<str>,
    /// One of `aud`.
    pub audience: Box<str>,
    /// The claim that holds the user's name.
    pub claim: Box<str>,
}

/// The keys of an issuer.
pub struct KeySet {
    keys: Vec<Key>,
}

struct Key {
    id: Option<Box<str>>,
    public: Public,
}

enum Public {
    Rsa { modulus: Vec<u8>, exponent: Vec<u8> },
    P256(Vec<u8>),
    Ed25519(Vec<u8>),
}

/// Why a key set cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadKeys {
    /// It is not of the form of RFC 7517.
    #[error("it is no JWK set")]
    Form,
    /// No key in it can check RS256, ES256 or EdDSA.
    #[error("it has no key for RS256, ES256 or EdDSA")]
    NoKey,
    /// More keys than any issuer has.
    #[error("it has more than {KEYS_MAX} keys")]
    TooMany,
}

const KEYS_MAX: usize = 64;
/// How far the clocks of the issuer and of this host may differ, in seconds.
const LEEWAY_S: f64 = 60.0;

#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<Box<str>>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    aud: Audience,
    exp: f64,
    nbf: Option<f64>,
    #[serde(flatten)]
    others: serde_json::Map<String, serde_json::Value>,
}

impl KeySet {
    /// Reads a JWK set; keys of other kinds and for other uses are passed over.
    ///
    /// # Errors
    /// See [`BadKeys`].
    pub fn parse(text: &str) -> Result<KeySet, BadKeys> {
        let set: JwkSet = serde_json::from_str(text).map_err(|_| BadKeys::Form)?;
        let keys: Vec<Key> = set.keys.into_iter().filter_map(Key::read).collect();
        match keys.len() {
            0 => Err(BadKeys::NoKey),
            count if count > KEYS_MAX => Err(BadKeys::TooMany),
            _ => Ok(KeySet { keys }),
        }
    }

    /// Whom the token is for, if it is a good one now.
    pub fn subject(&self, token: &str, issuer: &Issuer, now_unix_s: u64) -> Option<Box<str>> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let header: Header = serde_json::from_slice(&decode(header)?).ok()?;
        if header.crit.is_some() {
            return None;
        }
        let signature = decode(signature)?;
        let id = header.kid.as_deref();
        let fits = |key: &&Key| {
            key.public.algorithm() == header.alg
                && (id.is_none() || key.id.is_none() || key.id.as_deref() == id)
        };
        let mut candidates = self.keys.iter().filter(fits);
        if !candidates.any(|key| key.public.verifies(signed.as_bytes(), &signature)) {
            return None;
        }
        let claims: Claims = serde_json::from_slice(&decode(claims)?).ok()?;
        claims.user(issuer, now_unix_s as f64)
    }
}

impl Claims {
    fn user(self, issuer: &Issuer, now_s: f64) -> Option<Box<str>> {
        let is_for_us = match &self.aud {
            Audience::One(audience) => **audience == *issuer.audience,
            Audience::Several(all) => all.iter().any(|audience| **audience == *issuer.audience),
        };
        let is_now = self.exp + LEEWAY_S > now_s && self.nbf.unwrap_or(0.0) - LEEWAY_S <= now_s;
        if !(is_for_us && is_now && *self.iss == *issuer.issuer) {
            return None;
        }
        match &*issuer.claim {
            "iss" | "aud" | "exp" | "nbf" => None,
            claim => self.others.get(claim)?.as_str().map(Box::from),
        }
    }
}

impl Key {
    fn read(jwk: Jwk) -> Option<Key> {
        let part = |text: &Option<String>| text.as_deref().and_then(decode);
        let public = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", _) => {
                let (modulus, exponent) = (part(&jwk.n)?, part(&jwk.e)?);
                Public::Rsa { modulus, exponent }
            }
            ("EC", Some("P-256")) => {
                let (x, y) = (part(&jwk.x)?, part(&jwk.y)?);
                let whole = x.len() == 32 && y.len() == 32;
                Public::P256(whole.then(|| [&[4][..], &x, &y].concat())?)
            }
            ("OKP", Some("Ed25519")) => {
                Public::Ed25519(part(&jwk.x).filter(|octets| octets.len() == 32)?)
            }
            _ => return None,
        };
        let is_for_signing = jwk.usage.as_deref().is_none_or(|usage| usage == "sig");
        let is_for_this = jwk.alg.as_deref().is_none_or(|alg| alg == public.algorithm());
        (is_for_signing && is_for_this).then_some(Key { id: jwk.kid, public })
    }
}

impl Public {
    fn algorithm(&self) -> &'static str {
        match self {
            Public::Rsa { .. } => "RS256",
            Public::P256(_) => "ES256",
            Public::Ed25519(_) => "EdDSA",
        }
    }

    fn verifies(&self, message: &[u8], given: &[u8]) -> bool {
        match self {
            Public::Rsa { modulus, exponent } => {
                let key = RsaPublicKeyComponents { n: modulus, e: exponent };
                key.verify(&signature::RSA_PKCS1_2048_8192_SHA256, message, given).is_ok()
            }
            Public::P256(point) => {
                let key = UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point);
                key.verify(message, given).is_ok()
            }
            Public::Ed25519(point) => {
                UnparsedPublicKey::new(&signature::ED25519, point).verify(message, given).is_ok()
            }
        }
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeySet({} keys)", self.keys.len())
    }
}

fn decode(text: &str) -> Option<Vec<u8>> {
    BASE64URL_NOPAD.decode(text.as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{EcdsaKeyPair, Ed25519KeyPair, KeyPair};

    use super::*;

    const NOW_S: u64 = 1_800_000_000;

    fn issuer() -> Issuer {
        Issuer {
            issuer: "https://id.example".into(),
            audience: "mail".into(),
            claim: "email".into(),
        }
    }

    fn encode(octets: &[u8]) -> String {
        BASE64URL_NOPAD.encode(octets)
    }

    /// The keys of the tests: an Ed25519 and a P-256 one.
    struct Mint {
        edwards: Ed25519KeyPair,
        nist: EcdsaKeyPair,
    }

    impl Mint {
        fn new() -> Mint {
            Mint {
                edwards: Ed25519KeyPair::generate().unwrap(),
                nist: EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
            }
        }

        fn keys(&self) -> KeySet {
            let (x, point) = (self.edwards.public_key(), self.nist.public_key().as_ref());
            let text = format!(
                r#"{{"keys":[{{"kty":"oct","k":"AAAA"}},
                {{"kty":"OKP","crv":"Ed25519","kid":"one","x":"{}"}},
                {{"kty":"EC","crv":"P-256","kid":"two","use":"sig","x":"{}","y":"{}"}}]}}"#,
                encode(x.as_ref()),
                encode(&point[1..33]),
                encode(&point[33..])
            );
            KeySet::parse(&text).unwrap()
        }

        fn token(&self, header: &str, claims: &str) -> String {
            let signed = format!("{}.{}", encode(header.as_bytes()), encode(claims.as_bytes()));
            let signature = if header.contains("ES256") {
                self.nist.sign(&SystemRandom::new(), signed.as_bytes()).unwrap().as_ref().to_vec()
            } else {
                self.edwards.sign(signed.as_bytes()).as_ref().to_vec()
            };
            format!("{signed}.{}", encode(&signature))
        }
    }

    const CLAIMS: &str = r#"{"iss":"https://id.example","aud":"mail","exp":1800000100,
        "email":"a@b.example"}"#;

    #[test]
    fn a_good_token_names_its_user() {
        let mint = Mint::new();
        for header in [
            r#"{"alg":"EdDSA","kid":"one"}"#,
            r#"{"alg":"ES256","kid":"two"}"#,
            r#"{"alg":"ES256"}"#,
        ] {
            let token = mint.token(header, CLAIMS);
            let subject = mint.keys().subject(&token, &issuer(), NOW_S);
            assert_eq!(subject.as_deref(), Some("a@b.example"), "{header}");
        }
    }

    #[test]
    fn a_token_that_says_something_else_is_nobodys() {
        let mint = Mint::new();
        let header = r#"{"alg":"EdDSA"}"#;
        for (from, to, good) in [
            ("\"mail\"", r#"["web","mail"]"#, true),
            ("1800000100", "1799999950", true),
            ("1800000100", "1799999930", false),
            ("1800000100", "\"1800000100\"", false),
            ("\"exp\"", "\"exq\"", false),
            ("\"mail\"", "\"web\"", false),
            ("\"mail\"", r#"["web"]"#, false),
            ("id.example", "evil.example", false),
            ("\"email\"", "\"mail\"", false),
            ("\"email\"", "\"nbf\":1800000050,\"email\"", true),
            ("\"email\"", "\"nbf\":1800000100,\"email\"", false),
            ("\"a@b.example\"", "7", false),
        ] {
            let token = mint.token(header, &CLAIMS.replace(from, to));
            let subject = mint.keys().subject(&token, &issuer(), NOW_S);
            assert_eq!(subject.is_some(), good, "{from} to {to}");
        }
    }

    #[test]
    fn a_token_with_another_signature_is_nobodys() {
        let mint = Mint::new();
        let keys = mint.keys();
        let good = mint.token(r#"{"alg":"EdDSA","kid":"one"}"#, CLAIMS);
        assert!(keys.subject(&good, &issuer(), NOW_S).is_some());
        let (head, signature) = good.rsplit_once('.').unwrap();
        let none = encode(br#"{"alg":"none"}"#);
        let forged = [
            format!("{head}."),
            format!("{head}.{}", signature.replacen(&signature[..1], "_", 1)),
            format!("{none}.{}.", encode(CLAIMS.as_bytes())),
            head.to_owned(),
            String::new(),
            "..".to_owned(),
            mint.token(r#"{"alg":"EdDSA","kid":"two"}"#, CLAIMS),
            mint.token(r#"{"alg":"HS256","kid":"one"}"#, CLAIMS),
            mint.token(r#"{"alg":"EdDSA","crit":["b64"]}"#, CLAIMS),
            Mint::new().token(r#"{"alg":"EdDSA","kid":"one"}"#, CLAIMS),
        ];
        for token in forged {
            if token != good {
                assert!(keys.subject(&token, &issuer(), NOW_S).is_none(), "{token}");
            }
        }
    }

    /// The example of RFC 7515 appendix A.2: its key and signature are good, its claims not ours.
    #[test]
    fn the_rsa_example_of_the_rfc() {
        let modulus = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2\
            mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-\
            bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5\
            ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRW\
            yuXpoQ";
        let signed = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6\
            Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
        let signature = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh\
            -0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK\
            5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6B\
            fI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlU\
            PQGe77Rw";
        let jwk: Jwk =
            serde_json::from_str(&format!(r#"{{"kty":"RSA","n":"{modulus}","e":"AQAB"}}"#))
                .unwrap();
        let key = Key::read(jwk).unwrap();
        let signature = decode(signature).unwrap();
        assert!(key.public.verifies(signed.as_bytes(), &signature));
        assert!(!key.public.verifies(&signed.as_bytes()[1..], &signature));
    }

    #[test]
    fn key_sets_that_cannot_be_used() {
        for (text, error) in [
            ("", BadKeys::Form),
            ("[]", BadKeys::Form),
            (r#"{"keys":[]}"#, BadKeys::NoKey),
            (r#"{"keys":[{"kty":"oct","k":"AA"}]}"#, BadKeys::NoKey),
            (r#"{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}"#, BadKeys::NoKey),
        ] {
            assert_eq!(KeySet::parse(text).err(), Some(error), "{text}");
        }
    }
}
