//! What all workers share to find out who a client is: users, keys, failures, rates.
//!
//! Files are read at the start and at a reload, users and keys as one: a file that cannot be used
//! changes nothing.

use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use aws_lc_rs::rand::{self, SystemRandom};
use data_encoding::BASE64_NOPAD;

use super::jwt::{BadKeys, KeySet};
use super::sasl::Claim;
use super::scram::{ScramHash, Verifier};
use super::secret::PasswordHash;
use super::throttle::{Failures, Rates};
use super::users::{BadUsers, SenderRule, Users};
use crate::config::{Auth, Config};
use crate::limits;

/// See the module's text.
pub struct Authority {
    settings: Auth,
    directory: ArcSwap<Directory>,
    /// Makes the salts of users who are not there; new with each start.
    secret: [u8; 32],
    /// Verifications that wait or run.
    verifying: AtomicUsize,
    /// Who has failed, and how often.
    pub failures: Failures,
    /// Who has sent, and how much.
    pub rates: Rates,
}

/// What the files say.
#[derive(Default)]
struct Directory {
    users: Users,
    keys: Option<KeySet>,
}

/// Who a client has proved to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The user's name as the file has it.
    pub name: Arc<str>,
    /// Whose mail it may send.
    pub senders: SenderRule,
}

/// Why a claim was not found to be true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// It is not.
    Credentials,
    /// Nobody could look, or it was too early to try again.
    Later,
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A file with secrets can be read by others.
    #[error("{} can be read by others than its owner; say chmod 600 on it", path.display())]
    Mode {
        /// Which.
        path: PathBuf,
    },
    /// A file that is to hold a secret holds none.
    #[error("{} is empty", path.display())]
    Empty {
        /// Which.
        path: PathBuf,
    },
    /// The environment has no secret of this name.
    #[error("the environment has no {name}, or an empty one")]
    NoVariable {
        /// Which.
        name: Box<str>,
    },
    /// A line of the users file.
    #[error("{}, {source}", path.display())]
    Users {
        /// Which.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: BadUsers,
    },
    /// The key set.
    #[error("{}: {source}", path.display())]
    Keys {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: BadKeys,
    },
}

/// A users file of a hundred thousand users fits.
const FILE_OCTETS_MAX: u64 = 64 << 20;

impl Authority {
    /// Reads the files that the configuration names.
    ///
    /// # Errors
    /// See [`AuthorityError`].
    pub fn new(config: &Config) -> Result<Authority, AuthorityError> {
        Ok(Authority {
            directory: ArcSwap::from_pointee(Directory::read(&config.auth)?),
            settings: config.auth.clone(),
            secret: random(),
            verifying: AtomicUsize::new(0),
            failures: Failures::default(),
            rates: Rates::new(&config.limits),
        })
    }

    /// Reads the files again.
    ///
    /// # Errors
    /// See [`AuthorityError`]; what was read before stays in use.
    pub fn reload(&self) -> Result<(), AuthorityError> {
        self.directory.store(Arc::new(Directory::read(&self.settings)?));
        Ok(())
    }

    /// The verifier for a prepared name; one that nothing fits for who is not there.
    pub fn verifier(&self, hash: ScramHash, name: &str) -> Verifier {
        let directory = self.directory.load();
        let known = directory.users.find(name).and_then(|user| user.verifier(hash));
        known
            .cloned()
            .unwrap_or_else(|| Verifier::nobody(hash, &name.to_ascii_lowercase(), &self.secret))
    }

    /// A place among the verifications, of which there is a bounded number.
    pub fn place(self: &Arc<Authority>) -> Option<Place> {
        let taken = self.verifying.fetch_add(1, Ordering::Relaxed);
        // Made first, so that a place that is one too many is given back.
        let place = Place(self.clone());
        (taken < limits::AUTH_VERIFICATIONS).then_some(place)
    }

    /// Finds out whether a claim is true.  Takes some 30 ms of a core and 19 MiB: for the blocking
    /// pool.
    ///
    /// # Errors
    /// `Credentials`; `Later` if `deadline` has passed before it began.
    pub fn verify(
        &self,
        claim: &Claim,
        deadline: Instant,
        now_unix_s: u64,
    ) -> Result<Identity, Denied> {
        if Instant::now() > deadline {
            return Err(Denied::Later);
        }
        let directory = self.directory.load_full();
        match claim {
            Claim::Password { name, password } => match directory.users.find(name) {
                Some(user) if user.verify(password) => {
                    Ok(Identity { name: user.name.as_ref().into(), senders: user.senders.clone() })
                }
                Some(_) => Err(Denied::Credentials),
                None => {
                    PasswordHash::verify_nobody(password);
                    Err(Denied::Credentials)
                }
            },
            Claim::Token { name, token } => {
                let (Some(keys), Some(oauth)) = (&directory.keys, &self.settings.oauth) else {
                    return Err(Denied::Credentials);
                };
                let subject = keys.subject(token, &oauth.issuer, now_unix_s);
                let subject = subject.ok_or(Denied::Credentials)?;
                let fits = name.as_deref().is_none_or(|name| name.eq_ignore_ascii_case(&subject));
                if fits { Ok(self.identity(&subject)) } else { Err(Denied::Credentials) }
            }
        }
    }

    /// What a user who has proved the name may do.
    pub fn identity(&self, name: &str) -> Identity {
        match self.directory.load().users.find(name) {
            Some(user) => {
                Identity { name: user.name.as_ref().into(), senders: user.senders.clone() }
            }
            // The issuer of a token knows users that our file need not list.
            None => Identity { name: name.into(), senders: SenderRule::Own(name.into()) },
        }
    }

    /// A nonce for an exchange.
    pub fn nonce(&self) -> String {
        BASE64_NOPAD.encode(&random::<18>())
    }

    /// Whether this address may try to log in now.
    pub fn admits(&self, user: Option<&str>, address: IpAddr, now: Instant) -> bool {
        self.failures.admits_address(address, now)
            && user.is_none_or(|user| {
                self.failures.admits_user(&user.to_ascii_lowercase(), address, now)
            })
    }

    /// A login came to its end.
    pub fn ended(&self, user: Option<&str>, succeeded: bool, address: IpAddr, now: Instant) {
        let user = user.map(str::to_ascii_lowercase);
        match (succeeded, user) {
            (true, Some(user)) => self.failures.succeeded(&user, address, now),
            (_, user) => self.failures.failed(user.as_deref(), address, now),
        }
    }
}

/// A verification that waits or runs.
pub struct Place(Arc<Authority>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.verifying.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Directory {
    fn read(settings: &Auth) -> Result<Directory, AuthorityError> {
        let users = match &settings.users {
            None => Users::default(),
            Some(path) => {
                let text = read(path, 0o077)?;
                Users::parse(&text)
                    .map_err(|source| AuthorityError::Users { path: path.clone(), source })?
            }
        };
        let keys = match &settings.oauth {
            None => None,
            Some(oauth) => {
                let path = &oauth.keys;
                let keys = KeySet::parse(&read(path, 0)?);
                Some(keys.map_err(|source| AuthorityError::Keys { path: path.clone(), source })?)
            }
        };
        Ok(Directory { users, keys })
    }
}

/// Reads a file, whose mode must have none of the bits of `forbidden`.
pub(super) fn read(path: &Path, forbidden: u32) -> Result<String, AuthorityError> {
    let failed = |source| AuthorityError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.mode();
    if mode & forbidden != 0 {
        return Err(AuthorityError::Mode { path: path.to_owned() });
    }
    let mut text = String::new();
    file.take(FILE_OCTETS_MAX).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// Octets that nobody can guess.
fn random<const N: usize>() -> [u8; N] {
    let mut octets = [0; N];
    let source = SystemRandom::new();
    rand::SecureRandom::fill(&source, &mut octets).expect("the system has random octets");
    octets
}
