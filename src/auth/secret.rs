//! Hashes of passwords: argon2id in its PHC string form (RFC 9106).

use std::fmt;
use std::sync::LazyLock;

use argon2::password_hash::{PasswordHashString, SaltString};
use argon2::{Algorithm, Argon2, Params, PasswordHasher, PasswordVerifier, Version};

/// Memory in KiB, passes and lanes of hashes that we make: 19 MiB and two passes, some 30 ms.
pub const HASH_PARAMETERS: (u32, u32, u32) = (19 * 1024, 2, 1);
/// The most memory, in KiB, and passes of a hash that we verify: one of them must not stop the
/// host.
const MEMORY_KIB_MAX: u32 = 256 * 1024;
const PASSES_MAX: u32 = 16;

/// A hash that can be verified.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(PasswordHashString);

/// The hash of no password that anybody has: it costs what a real one costs.
static NOBODY: LazyLock<PasswordHash> = LazyLock::new(|| {
    PasswordHash::make("nobody's password", &[0x5a; 16]).expect("the parameters are valid")
});

impl PasswordHash {
    /// Hashes a prepared password; `None` if argon2 refuses it (it is too long).
    pub fn make(password: &str, salt: &[u8; 16]) -> Option<PasswordHash> {
        let (memory, passes, lanes) = HASH_PARAMETERS;
        let parameters = Params::new(memory, passes, lanes, None).ok()?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters);
        let salt = SaltString::encode_b64(salt).ok()?;
        let hash = argon2.hash_password(password.as_bytes(), &salt).ok()?;
        Some(PasswordHash(hash.serialize()))
    }

    /// Reads the PHC form; `None` unless it is argon2id with bearable parameters.
    pub fn parse(text: &str) -> Option<PasswordHash> {
        let hash = PasswordHashString::new(text).ok()?;
        let parameters = Params::try_from(&hash.password_hash()).ok()?;
        let bearable = parameters.m_cost() <= MEMORY_KIB_MAX && parameters.t_cost() <= PASSES_MAX;
        let complete = hash.salt().is_some() && hash.hash().is_some();
        let is_argon2id = hash.algorithm() == argon2::ARGON2ID_IDENT;
        (bearable && complete && is_argon2id).then_some(PasswordHash(hash))
    }

    /// Whether a prepared password is the one.  Slow on purpose.
    pub fn verify(&self, password: &str) -> bool {
        Argon2::default().verify_password(password.as_bytes(), &self.0.password_hash()).is_ok()
    }

    /// The time of a verification, for somebody who is not there.
    pub fn verify_nobody(password: &str) {
        NOBODY.verify(password);
    }

    /// The PHC form.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_knows_its_password_after_a_round_through_the_file() {
        let made = PasswordHash::make("pencil", &[7; 16]).unwrap();
        let read = PasswordHash::parse(made.as_str()).unwrap();
        assert_eq!(made, read);
        assert!(read.verify("pencil"));
        assert!(!read.verify("pencil "));
        assert!(!format!("{read:?}").contains("argon2"));
        PasswordHash::verify_nobody("pencil");
    }

    #[test]
    fn what_is_no_bearable_argon2id_is_refused() {
        let good = PasswordHash::make("x", &[7; 16]).unwrap().as_str().to_owned();
        for bad in [
            "".to_owned(),
            "pencil".to_owned(),
            good.replace("argon2id", "argon2i"),
            good.replace("m=19456", "m=4000000"),
            good.replace("t=2", "t=1000"),
            good.rsplit_once('$').unwrap().0.to_owned(),
        ] {
            assert!(PasswordHash::parse(&bad).is_none(), "{bad}");
        }
    }
}
