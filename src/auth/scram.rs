//! The arithmetic of SCRAM (RFC 5802 section 3, RFC 7677) and its verifiers.
//!
//! ```text
//! salted = PBKDF2(password, salt, iterations)
//! client key = HMAC(salted, "Client Key");  stored key = H(client key)
//! server key = HMAC(salted, "Server Key")
//! proof = client key XOR HMAC(stored key, messages);  answer = HMAC(server key, messages)
//! ```
//!
//! What is stored, the verifier, lets a server check a proof and prove itself, and lets nobody log
//! in who has stolen it.

use std::fmt;
use std::num::NonZeroU32;

use aws_lc_rs::{constant_time, digest, hmac, pbkdf2};
use data_encoding::BASE64;

/// The hash of a mechanism.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScramHash {
    /// RFC 5802; for clients that know nothing better.
    Sha1,
    /// RFC 7677.
    Sha256,
}

/// The iterations of verifiers that we make; RFC 7677 section 4 wants 4096 at least.
pub const ITERATIONS: u32 = 10_000;
/// The most iterations that we let a file or a peer ask of us.
pub const ITERATIONS_MAX: u32 = 1_000_000;
/// The longest salt, in octets.
const SALT_MAX: usize = 64;

/// What a server keeps of a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    hash: ScramHash,
    iterations: NonZeroU32,
    salt: Box<[u8]>,
    stored_key: Box<[u8]>,
    server_key: Box<[u8]>,
}

/// What a client makes of its password, once it knows salt and iterations.
pub struct ClientKeys {
    hash: ScramHash,
    client_key: Box<[u8]>,
    stored_key: Box<[u8]>,
    server_key: Box<[u8]>,
}

impl ScramHash {
    /// Octets of its output.
    pub fn octets(self) -> usize {
        match self {
            ScramHash::Sha1 => 20,
            ScramHash::Sha256 => 32,
        }
    }

    fn hmac(self, key: &[u8], data: &[u8]) -> hmac::Tag {
        let algorithm = match self {
            ScramHash::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            ScramHash::Sha256 => hmac::HMAC_SHA256,
        };
        hmac::sign(&hmac::Key::new(algorithm, key), data)
    }

    fn digest(self, data: &[u8]) -> digest::Digest {
        let algorithm = match self {
            ScramHash::Sha1 => &digest::SHA1_FOR_LEGACY_USE_ONLY,
            ScramHash::Sha256 => &digest::SHA256,
        };
        digest::digest(algorithm, data)
    }
}

impl ClientKeys {
    /// Derives them; slow by `iterations`.
    pub fn derive(
        hash: ScramHash,
        password: &str,
        salt: &[u8],
        iterations: NonZeroU32,
    ) -> ClientKeys {
        let algorithm = match hash {
            ScramHash::Sha1 => pbkdf2::PBKDF2_HMAC_SHA1,
            ScramHash::Sha256 => pbkdf2::PBKDF2_HMAC_SHA256,
        };
        let mut salted = [0; 32];
        let salted = &mut salted[..hash.octets()];
        pbkdf2::derive(algorithm, iterations, salt, password.as_bytes(), salted);
        let client_key = hash.hmac(salted, b"Client Key");
        ClientKeys {
            hash,
            stored_key: hash.digest(client_key.as_ref()).as_ref().into(),
            client_key: client_key.as_ref().into(),
            server_key: hash.hmac(salted, b"Server Key").as_ref().into(),
        }
    }

    /// The proof for these messages.
    pub fn proof(&self, messages: &[u8]) -> Vec<u8> {
        xor(&self.client_key, self.hash.hmac(&self.stored_key, messages).as_ref())
    }

    /// What the server must answer to them.
    pub fn answer(&self, messages: &[u8]) -> Vec<u8> {
        self.hash.hmac(&self.server_key, messages).as_ref().to_vec()
    }
}

impl Verifier {
    /// Makes one of a prepared password.
    pub fn make(hash: ScramHash, password: &str, salt: &[u8], iterations: NonZeroU32) -> Verifier {
        let keys = ClientKeys::derive(hash, password, salt, iterations);
        let ClientKeys { stored_key, server_key, .. } = keys;
        Verifier { hash, iterations, salt: salt.into(), stored_key, server_key }
    }

    /// One for somebody who is not there: always the same for a name, and no proof fits.
    pub fn nobody(hash: ScramHash, name: &str, secret: &[u8]) -> Verifier {
        let derive = |what: &[u8]| {
            ScramHash::Sha256.hmac(secret, &[what, name.as_bytes()].concat()).as_ref().to_vec()
        };
        Verifier {
            hash,
            iterations: NonZeroU32::new(ITERATIONS).expect("not zero"),
            salt: derive(b"salt")[..16].into(),
            stored_key: derive(b"stored")[..hash.octets()].into(),
            server_key: derive(b"server")[..hash.octets()].into(),
        }
    }

    /// Reads `iterations,salt,stored key,server key`, the last three in base64.
    pub fn parse(hash: ScramHash, text: &str) -> Option<Verifier> {
        let mut parts = text.split(',');
        let iterations: NonZeroU32 = parts.next()?.parse().ok()?;
        let mut octets = || BASE64.decode(parts.next()?.as_bytes()).ok().map(Vec::into_boxed_slice);
        let (salt, stored_key, server_key) = (octets()?, octets()?, octets()?);
        let keys = [&stored_key, &server_key];
        let valid = iterations.get() <= ITERATIONS_MAX
            && (8..=SALT_MAX).contains(&salt.len())
            && keys.iter().all(|key| key.len() == hash.octets())
            && parts.next().is_none();
        valid.then_some(Verifier { hash, iterations, salt, stored_key, server_key })
    }

    /// As [`Verifier::parse`] reads it.
    pub fn to_text(&self) -> String {
        let [salt, stored, server] =
            [&self.salt, &self.stored_key, &self.server_key].map(|octets| BASE64.encode(octets));
        format!("{},{salt},{stored},{server}", self.iterations)
    }

    /// Whether the proof for these messages shows the client's key.
    pub fn accepts(&self, proof: &[u8], messages: &[u8]) -> bool {
        if proof.len() != self.hash.octets() {
            return false;
        }
        let client_key = xor(proof, self.hash.hmac(&self.stored_key, messages).as_ref());
        let stored = self.hash.digest(&client_key);
        constant_time::verify_slices_are_equal(stored.as_ref(), &self.stored_key).is_ok()
    }

    /// What proves to the client that we know its verifier.
    pub fn answer(&self, messages: &[u8]) -> Vec<u8> {
        self.hash.hmac(&self.server_key, messages).as_ref().to_vec()
    }

    /// Whether a prepared password is the one.  Slow by its iterations.
    pub fn verify(&self, password: &str) -> bool {
        let keys = ClientKeys::derive(self.hash, password, &self.salt, self.iterations);
        constant_time::verify_slices_are_equal(&keys.stored_key, &self.stored_key).is_ok()
    }

    /// Its salt.
    pub fn salt(&self) -> &[u8] {
        &self.salt
    }

    /// Its iterations.
    pub fn iterations(&self) -> u32 {
        self.iterations.get()
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({:?}, ..)", self.hash)
    }
}

fn xor(left: &[u8], right: &[u8]) -> Vec<u8> {
    left.iter().zip(right).map(|(left, right)| left ^ right).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verifier_survives_its_text_and_knows_its_password() {
        for hash in [ScramHash::Sha1, ScramHash::Sha256] {
            let iterations = NonZeroU32::new(4096).unwrap();
            let made = Verifier::make(hash, "pencil", b"0123456789abcdef", iterations);
            let read = Verifier::parse(hash, &made.to_text()).unwrap();
            assert_eq!(made, read);
            assert!(read.verify("pencil") && !read.verify("Pencil"));
            let other = if hash == ScramHash::Sha1 { ScramHash::Sha256 } else { ScramHash::Sha1 };
            assert!(Verifier::parse(other, &made.to_text()).is_none());
        }
        for bad in ["", "4096", "0,,,", "x,AAAAAAAAAAA=,A,A", "4096,AAAAAAAAAAA=,AA==,AA=="] {
            assert!(Verifier::parse(ScramHash::Sha256, bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn nobody_has_a_salt_that_stays_and_no_password() {
        let nobody = |name| Verifier::nobody(ScramHash::Sha1, name, b"secret");
        assert_eq!(nobody("a"), nobody("a"));
        assert_ne!(nobody("a").salt(), nobody("b").salt());
        assert!(!nobody("a").accepts(&[0; 20], b"") && !nobody("a").accepts(&[], b""));
    }
}
