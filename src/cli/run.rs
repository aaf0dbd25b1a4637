//! `mailrace run`: the gateway itself.

use super::{Failure, RunArgs, load};

/// Runs until a signal ends it.
pub fn run(arguments: &RunArgs) -> Result<(), Failure> {
    let _config = load(arguments.config.as_deref())?;
    Err(Failure::Failed("`run` is not wired yet".to_owned()))
}
