//! What a session does next: the server machine is given what has come until it needs somebody.
//!
//! Pure, and the one place where [`Server`] and [`Intake`] meet, so that the session with its
//! socket and the simulation's session take the same steps.

use std::time::Instant;

use super::intake::Intake;
use crate::limits;
use crate::smtp::server::{Event, Server};

/// What a session does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Send what replies there are, and read.
    Read,
    /// Send the replies: enough of them wait.
    Flush,
    /// Take an empty chunk; the present one is full and more of the body lies in the buffer.
    FullChunk,
    /// Throw the body away, and what of it is on its way to the disk.
    DropBody,
    /// Say whether the recipient in question is accepted.
    CheckRecipient,
    /// Store the message.
    Store,
    /// Take the client's response to AUTH further.
    Authenticate,
    /// Decide on the sender in question.
    CheckSender,
    /// Look up whom the client asks for.
    LookUp,
    /// Start the queue for the node in question.
    StartQueue,
    /// Send what replies there are, throw away what else has come, and shake hands.
    StartTls,
    /// Send what replies there are, and close.
    Close,
}

/// Lets the server have what has come, until it needs somebody.
pub fn step(server: &mut Server, intake: &mut Intake, now: Instant) -> Step {
    loop {
        if server.replies().len() >= limits::REPLIES_WAITING {
            return Step::Flush;
        }
        let in_body = server.in_body();
        let room = intake.body_room();
        let input = intake.unconsumed();
        let available = if in_body { input.len().min(room) } else { input.len() };
        let is_all = available == input.len();
        let handled = server.handle_bytes(now, &mut input[..available]);
        match handled.event {
            Event::Body => intake.keep(handled.consumed),
            _ if handled.consumed > 0 => intake.consume(handled.consumed),
            _ => {}
        }
        match handled.event {
            Event::Body | Event::Continue => {}
            Event::NeedInput if is_all => return Step::Read,
            Event::NeedInput => return Step::FullChunk,
            Event::DropBody => return Step::DropBody,
            Event::CheckRecipient => return Step::CheckRecipient,
            Event::EndOfMessage => return Step::Store,
            Event::Authenticate => return Step::Authenticate,
            Event::CheckSender => return Step::CheckSender,
            Event::StartQueue => return Step::StartQueue,
            Event::LookUp => return Step::LookUp,
            Event::StartTls => return Step::StartTls,
            Event::Close => return Step::Close,
        }
    }
}
