//! What a session does next: the server machine is given what has come until it needs somebody.
//!
//! Pure, and the one place where [`Server`] and [`Intake`] meet, so that the session with its
//! socket and the simulation's session take the same steps.

use std::time::Instant;

use super::intake::Intake;
use crate::limits;
use crate::message::{Durability, MessageId};
use crate::smtp::reply::Refusal;
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
    /// Change the client for the one that a proxy names.
    Introduce,
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
            Event::Introduce => return Step::Introduce,
            Event::LookUp => return Step::LookUp,
            Event::StartTls => return Step::StartTls,
            Event::Close => return Step::Close,
        }
    }
}

/// Tells the server what became of its message.  The body of one that was refused may be here
/// still, and the next message must not begin with it.
pub fn stored(
    server: &mut Server,
    intake: &mut Intake,
    now: Instant,
    result: Result<(MessageId, Durability), Refusal>,
) {
    intake.drop_body();
    server.stored(now, result);
}

/// What the sessions of unit tests tell their clients.
#[cfg(test)]
pub(crate) fn test_config() -> std::rc::Rc<crate::smtp::server::ServerConfig> {
    std::rc::Rc::new(crate::smtp::server::ServerConfig {
        hostname: "mx.example.com".into(),
        message_size: 1_024,
        recipients: 100,
        received: 10,
        bare_newline: crate::config::BareNewline::Reject,
        tls: crate::config::ListenerTls::Off,
        auth: None,
        checks_senders: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RouteIndex;

    /// Both messages come in one read, as pipelining allows, and the log refuses the first.
    #[test]
    fn a_message_behind_one_that_was_refused_is_not_mixed_with_it() {
        let envelope = "MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n";
        let forms = [
            ["DATA\r\nthe first\r\n.\r\n", "DATA\r\nthe second\r\n.\r\n"],
            ["BDAT 11 LAST\r\nthe first\r\n", "BDAT 12 LAST\r\nthe second\r\n"],
        ];
        for first in 0..2 {
            for second in 0..2 {
                let (first, second) = (forms[first][0], forms[second][1]);
                let octets = format!("EHLO c\r\n{envelope}{first}{envelope}{second}");
                let now = Instant::now();
                let mut server = Server::new(test_config(), now);
                let mut intake = Intake::default();
                intake.make_room(false);
                let mut buffer = intake.take_buffer();
                assert_eq!(buffer.push(octets.as_bytes()), octets.len());
                intake.put_buffer(buffer);
                let mut results =
                    [Err(Refusal::Busy), Ok((MessageId(7), Durability::Fsync))].into_iter();
                let mut bodies = Vec::new();
                loop {
                    match step(&mut server, &mut intake, now) {
                        Step::CheckRecipient => server.recipient_checked(now, Ok(RouteIndex(0))),
                        Step::Store => {
                            server.take_message().expect("it is whole");
                            bodies.push(intake.small_body().to_vec());
                            let result = results.next().expect("two messages");
                            stored(&mut server, &mut intake, now, result);
                        }
                        Step::Read => break,
                        Step::Flush => drop(server.replies().take()),
                        step => panic!("{step:?}"),
                    }
                }
                assert_eq!(bodies, [b"the first\r\n".to_vec(), b"the second\r\n".to_vec()]);
                assert!(intake.is_empty());
            }
        }
    }
}
