//! What a connection that serves does next: a pure decision, so that the simulation's connections,
//! which have a loop of their own, take the same turns.

use crate::smtp::client::Client;

/// What a connection does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Start the next transaction of a message that wants a further one.
    Again,
    /// Ask for one more message beside those under way; where there is none, wait for the peer.
    AskOrWait,
    /// Wait for the peer.
    Wait,
    /// Wait for a message, or for what the peer does first.
    Idle,
    /// Say good-bye.
    Quit,
}

/// What comes next for a connection with messages under way or not, with messages that want a
/// further transaction or not, and that may still carry other messages or not.
pub fn turn(client: &Client, is_busy: bool, has_again: bool, wants_more: bool) -> Turn {
    match is_busy {
        _ if has_again && client.can_start() => Turn::Again,
        true if wants_more && client.can_start() => Turn::AskOrWait,
        true => Turn::Wait,
        false if wants_more && client.may_go_on() => Turn::Idle,
        false => Turn::Quit,
    }
}
