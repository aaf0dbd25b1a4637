//! From the greeting to the first transaction: EHLO or LHLO, HELO where that is all there is, and
//! STARTTLS as it is asked for.  Logging in is `login`'s.

use std::sync::Arc;
use std::time::Instant;

use super::{Client, ClientAction, ConnectionCause, Protocol, StartTls, State, TlsTrouble};
use crate::smtp::capabilities::Capabilities;
use crate::smtp::code::ReplyClass;
use crate::smtp::reply_reader::PeerReply;

impl Client {
    pub(super) fn greeting(&mut self, now: Instant, reply: PeerReply) {
        match reply.class() {
            ReplyClass::Success => {
                self.reader.expect_ehlo();
                self.hello(now, self.verb(), State::Ehlo);
            }
            ReplyClass::Intermediate => self.fail(ConnectionCause::Unexpected(Arc::new(reply))),
            _ => self.fail(ConnectionCause::Refused(Arc::new(reply))),
        }
    }

    pub(super) fn ehlo_reply(&mut self, now: Instant, reply: PeerReply) {
        match reply.class() {
            ReplyClass::Success => {
                self.peer = Capabilities::from_ehlo(&reply);
                self.introduced(now);
            }
            // RFC 5321 section 3.2: a server without extensions knows HELO.  LMTP has none.
            ReplyClass::PermanentFailure if self.config.protocol == Protocol::Smtp => {
                self.hello(now, "HELO ", State::Helo)
            }
            ReplyClass::Intermediate => self.fail(ConnectionCause::Unexpected(Arc::new(reply))),
            _ => self.fail(ConnectionCause::Refused(Arc::new(reply))),
        }
    }

    pub(super) fn helo_reply(&mut self, now: Instant, reply: PeerReply) {
        match reply.class() {
            ReplyClass::Success if self.config.starttls == StartTls::Demanded => {
                self.fail(ConnectionCause::Tls(TlsTrouble::NotOffered));
            }
            ReplyClass::Success => self.log_in(now),
            ReplyClass::Intermediate => self.fail(ConnectionCause::Unexpected(Arc::new(reply))),
            _ => self.fail(ConnectionCause::Refused(Arc::new(reply))),
        }
    }

    /// The peer has said what it can: is this the connection that we want?
    fn introduced(&mut self, now: Instant) {
        match (self.config.starttls, self.peer.starttls) {
            _ if self.is_secured => self.log_in(now),
            (StartTls::Never, _) | (StartTls::IfOffered, false) => self.log_in(now),
            (StartTls::IfOffered | StartTls::Demanded, true) => {
                self.output.extend_from_slice(b"STARTTLS\r\n");
                self.state = State::StartTls;
                self.deadline = Some(now + self.config.timeouts.command);
            }
            (StartTls::Demanded, false) => {
                self.fail(ConnectionCause::Tls(TlsTrouble::NotOffered));
            }
        }
    }

    pub(super) fn starttls_reply(&mut self, reply: PeerReply) {
        match reply.class() {
            ReplyClass::Success => {
                self.state = State::Handshake;
                self.deadline = None;
                self.actions.push_back(ClientAction::StartTls);
            }
            ReplyClass::Intermediate => self.fail(ConnectionCause::Unexpected(Arc::new(reply))),
            _ => self.fail(ConnectionCause::Tls(TlsTrouble::Refused(Arc::new(reply)))),
        }
    }

    pub(super) fn verb(&self) -> &'static str {
        match self.config.protocol {
            Protocol::Smtp => "EHLO ",
            Protocol::Lmtp => "LHLO ",
        }
    }

    pub(super) fn hello(&mut self, now: Instant, verb: &str, state: State) {
        self.output.extend_from_slice(verb.as_bytes());
        self.output.extend_from_slice(self.config.ehlo_name.as_bytes());
        self.output.extend_from_slice(b"\r\n");
        self.state = state;
        self.deadline = Some(now + self.config.timeouts.command);
    }

    pub(super) fn become_ready(&mut self) {
        self.state = State::Serving;
        self.deadline = None;
        self.actions.push_back(ClientAction::Ready);
    }
}
