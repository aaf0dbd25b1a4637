//! `mailrace queue`: questions to a running gateway, over its admin socket.

use super::{Failure, QueueCommand};

/// Asks the gateway and prints its answer.
pub fn queue(_command: &QueueCommand) -> Result<(), Failure> {
    Err(Failure::Failed("`queue` is not wired yet".to_owned()))
}
