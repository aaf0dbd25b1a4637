//! `mailrace spool`: reading the log of a stopped gateway.

use super::{Failure, SpoolCommand};

/// Reads the log that the arguments name.
pub fn spool(_command: &SpoolCommand) -> Result<(), Failure> {
    Err(Failure::Failed("`spool` is not wired yet".to_owned()))
}
