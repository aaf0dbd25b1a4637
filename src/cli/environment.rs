//! What the configuration takes from this host.

use std::io;
use std::thread;

use nix::unistd::User;
use rustix::process::{Resource, getrlimit};

use super::Failure;
use crate::config::Environment;

/// Asks the system; fails only if the working directory is gone.
pub(super) fn environment() -> Result<Environment, Failure> {
    let directory = std::env::current_dir()
        .map_err(|error: io::Error| Failure::Failed(format!("no working directory: {error}")))?;
    Ok(Environment {
        host_name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        cores: thread::available_parallelism().map_or(1, usize::from),
        // No limit at all reads as none: the default of sessions has a bound of its own.
        descriptors: getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX),
        directory,
        user_exists,
    })
}

/// A user database that cannot be read is not proof that the user is unknown.
fn user_exists(name: &str) -> bool {
    !matches!(User::from_name(name), Ok(None))
}
