//! In-line mode: a message goes to the next hop while it arrives, and the next hop's word for each
//! recipient and for the end of the data becomes ours.  Nothing is kept here.
//!
//! Its place: beside the way into the log (`Session::store`), for listeners with `delivery =
//! "inline"`.  The server machine is the same; what differs is who answers.  The connection is
//! made at the first recipient, whose route says where.  Once one is taken, a recipient that goes
//! elsewhere is put off to a transaction of its own, and over LMTP, which answers for each recipient
//! after the data, every further one is.  What one next hop says is never said of another one's
//! recipients: as long as none is taken, each leads to its own.
//!
//! Invariants: our 250 to the end of the data is the next hop's; whatever goes wrong before that
//! is a 4xx.  The client is not read while the next hop does not take what came, so a session
//! holds one receive buffer and one copy of it, and what `exhibit` keeps.  Nothing with a bare CR or
//! LF in it is passed on (RFC 5321 section 2.3.8; a lax next hop could find an end of data in it),
//! nor is the end of the data of a message that we refuse, or rspamd (`exhibit`): its connection is
//! closed in the middle.
//!
//! Not here: aliases and lists, which the next hop expands; notices for a next hop without DSN.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::exhibit::Exhibit;
use super::{Session, trace};
use crate::config::{EightBit, RouteIndex};
use crate::message::{BodyFlags, BodyKind, MailParameters, MessageId};
use crate::outbound::backend::{self, Backend, BackendError};
use crate::queue::site::{SiteId, SiteShared};
use crate::smtp::body::{BodyForm, Reshape, data_ending};
use crate::smtp::capabilities::Capabilities;
use crate::smtp::client::{Protocol, mail_command, rcpt_command};
use crate::smtp::code::ReplyClass;
use crate::smtp::reply::{Passed, Refusal};
use crate::smtp::server::ReceivedMessage;
use crate::worker::{PassedOn, Worker};

/// What a session has under way with a next hop.
#[derive(Default)]
pub(super) struct Inline {
    /// On the heap, as most sessions have none.
    under_way: Option<Box<UnderWay>>,
}

/// A transaction with a next hop, from MAIL on.
struct UnderWay {
    /// The number of our client's transaction.
    transaction: u32,
    id: MessageId,
    /// Whose words they are.  The recipients of our client's transaction are those that it has taken.
    site: SiteId,
    state: State,
    /// What goes to rspamd of it, once the body has begun.
    exhibit: Option<Exhibit>,
}

enum State {
    /// The next hop takes recipients.
    Envelope(Backend),
    /// The next hop takes the body.
    Body(Backend, Reshape),
    /// The next hop takes no more of this message, and this is what our client hears at its end.
    Over(Refusal),
}

impl UnderWay {
    /// The next hop takes no more of it, and rspamd need not either: others wait for its turn.
    /// Gives what the state was.
    fn end(&mut self, refusal: Refusal) -> State {
        self.exhibit = None;
        std::mem::replace(&mut self.state, State::Over(refusal))
    }

    /// Whether a recipient whose next hop is `site` fits in, after others or as the first.
    fn may_have(&self, site: &SiteShared, is_first: bool) -> bool {
        let answers_once = site.reach().protocol() == Some(Protocol::Smtp);
        self.site == site.id() && (answers_once || is_first)
    }
}

impl Session {
    /// Asks the next hop of `route` for the recipient in question; its words, if it takes it.
    ///
    /// # Errors
    /// What our client hears.
    pub(super) async fn pass_recipient(&mut self, route: RouteIndex) -> Result<Passed, Refusal> {
        let (Some(recipient), Some(transaction)) =
            (self.server.rcpt_in_question().cloned(), self.server.transaction_number())
        else {
            return Err(Refusal::Internal);
        };
        let site = self.next_hop_of(route)?;
        let is_first = self.server.is_first_recipient();
        // One that has taken no recipient is in nobody's way.
        let stays = |under_way: &UnderWay| {
            under_way.transaction == transaction && (!is_first || under_way.site == site.id())
        };
        if !self.inline.under_way.as_deref().is_some_and(stays) {
            self.release_next_hop().await;
        }
        match &self.inline.under_way {
            Some(under_way) if !under_way.may_have(&site, is_first) => {
                return Err(Refusal::OtherNextHop);
            }
            Some(_) => {}
            None => {
                let begun = self.begin_passing(&site).await;
                // One that did not come about is not tried again for each recipient.
                let state = begun.map_or_else(State::Over, State::Envelope);
                let (id, site) = (self.worker.next_id(), site.id());
                let under_way = UnderWay { transaction, id, site, state, exhibit: None };
                self.inline.under_way = Some(Box::new(under_way));
            }
        }
        let backend =
            match self.inline.under_way.as_deref_mut().map(|under_way| &mut under_way.state) {
                Some(State::Envelope(backend)) => backend,
                Some(State::Over(refusal)) => return Err(refusal.clone()),
                Some(State::Body(..)) | None => return Err(Refusal::NextHopLost),
            };
        let mut command = Vec::with_capacity(256);
        rcpt_command(&mut command, &recipient, backend.capabilities());
        let reply = backend.say(command).await;
        let reply = reply.map_err(|error| self.next_hop_lost(&error))?;
        let Some(passed) = Passed::of(&reply) else {
            let words = format!("no answer to RCPT: {reply}");
            return Err(self.next_hop_lost(&BackendError::Lost(words.into())));
        };
        if !passed.is_success() {
            return Err(Refusal::NextHop(passed));
        }
        Ok(passed)
    }

    fn next_hop_of(&self, route: RouteIndex) -> Result<Arc<SiteShared>, Refusal> {
        let parameters = self.server.parameters().ok_or(Refusal::Internal)?;
        let site = self.worker.sites.next_hop(route, parameters);
        site.cloned().ok_or_else(|| {
            tracing::error!("a route leads nowhere that in-line mode can reach");
            Refusal::NextHopLost
        })
    }

    /// MAIL to a next hop.
    async fn begin_passing(&self, site: &Arc<SiteShared>) -> Result<Backend, Refusal> {
        let (Some(reverse_path), Some(parameters)) =
            (self.server.reverse_path(), self.server.parameters())
        else {
            return Err(Refusal::Internal);
        };
        let worker = &self.worker;
        let write = |out: &mut Vec<u8>, peer: &Capabilities| {
            mail_command(out, reverse_path, parameters, None, peer);
        };
        let begun = backend::begin(worker, site, write).await;
        let (backend, reply) = begun.map_err(|error| match error {
            // It is we who have no room.
            BackendError::Crowded => Refusal::NextHopsBusy,
            BackendError::Unreachable(_) | BackendError::Lost(_) => {
                report_lost(worker, site.name(), &error);
                Refusal::NextHopLost
            }
        })?;
        if reply.class() != ReplyClass::Success {
            return Err(Passed::of(&reply).map_or(Refusal::NextHopLost, Refusal::NextHop));
        }
        // Dropped with the transaction that was begun on it.
        objection(worker, &backend, parameters)?;
        Ok(backend)
    }

    /// Passes on what has come of the body.
    pub(super) async fn pass_body(&mut self) {
        let began = Instant::now();
        let flags = self.server.body_flags();
        if self.intake.small_body().is_empty() || self.inline.under_way.is_none() {
            return;
        }
        self.pass_piece(flags).await;
        self.intake.drop_body();
        if let Some(UnderWay { state: State::Over(refusal), .. }) = self.inline.under_way.as_deref()
        {
            self.server.refuse_body(refusal.clone());
        }
        // It was not the client that let us wait.
        self.excuse_since(began);
        self.server.go_on(Instant::now());
    }

    /// Passes on the end of a message that has come whole.
    pub(super) async fn pass_end(&mut self) {
        let started = Instant::now();
        // What is begun here, with the next hop or with rspamd, asks for the transaction's envelope.
        self.pass_piece(self.server.body_flags()).await;
        let Some(message) = self.server.take_message() else { return };
        let result = self.pass_rest(&message).await;
        self.drop_body();
        self.envelope.give_back();
        let under_way = self.inline.under_way.take();
        let id = under_way.as_ref().filter(|_| result.is_ok()).map(|under_way| under_way.id);
        if let (Ok(_), Some(screening)) = (&result, &mut self.screening) {
            screening.accepted(&message.envelope.reverse_path);
        }
        self.end_judged(id, result.as_ref().err());
        if let (Ok((passed, backend)), Some(under_way)) = (&result, under_way) {
            self.messages += 1;
            let passed_on = PassedOn {
                id: under_way.id,
                message: &message,
                site: backend.site().name(),
                peer: backend.peer(),
                reply: &passed.to_string(),
                waited: started.elapsed(),
            };
            self.worker.report_passed_on(self.id, &passed_on);
        }
        let answer = result.map(|(passed, backend)| {
            backend::keep(&self.worker, backend);
            passed
        });
        self.server.passed_on(Instant::now(), answer);
    }

    /// The end of the data, and the next hop's word on it.
    async fn pass_rest(&mut self, message: &ReceivedMessage) -> Result<(Passed, Backend), Refusal> {
        let flags = message.summary.flags;
        let Some(under_way) = &mut self.inline.under_way else { return Err(Refusal::NextHopLost) };
        let exhibit = under_way.exhibit.take();
        let mut backend = match under_way.end(Refusal::NextHopLost) {
            State::Body(backend, _) => backend,
            State::Over(refusal) => return Err(refusal),
            State::Envelope(_) => return Err(Refusal::NextHopLost),
        };
        if let Some(exhibit) = exhibit {
            // Refused, it goes with the connection, in the middle.
            self.judge_exhibit(exhibit, &message.envelope).await?;
        }
        if let Err(error) = backend.send(data_ending(flags).to_vec()).await {
            return Err(self.parting_word(backend, &error).await);
        }
        let reply = backend.last_reply().await.map_err(|error| {
            report_lost(&self.worker, backend.site().name(), &error);
            Refusal::NextHopLost
        })?;
        // It closes, and may have said so before it saw the end.
        let is_farewell = reply.code.value() == 221;
        match Passed::of(&reply).filter(|_| !is_farewell) {
            Some(passed) if passed.is_success() => Ok((passed, backend)),
            Some(passed) => {
                backend::keep(&self.worker, backend);
                Err(Refusal::NextHop(passed))
            }
            None => Err(Refusal::NextHopLost),
        }
    }

    /// Passes on the piece of the body that the receive buffer holds, before the first one DATA
    /// and the trace header.
    async fn pass_piece(&mut self, flags: BodyFlags) {
        self.begin_body(flags).await;
        let Some(under_way) = &mut self.inline.under_way else { return };
        if !matches!(under_way.state, State::Body(..)) {
            return;
        }
        let bare = [BodyFlags::BARE_CR, BodyFlags::BARE_LF];
        if bare.iter().any(|&flag| flags.contains(flag)) {
            // The client hears of it at the end of its data; the next hop hears nothing more.
            under_way.end(Refusal::BareNewline);
            return;
        }
        if self.intake.small_body().is_empty() {
            return;
        }
        if let Some(mut exhibit) = under_way.exhibit.take() {
            self.exhibit(&mut exhibit).await;
            self.inline.under_way.as_deref_mut().expect("it was there").exhibit = Some(exhibit);
        }
        let piece = self.intake.small_body();
        let Some(under_way) = &mut self.inline.under_way else { return };
        let State::Body(backend, reshape) = &mut under_way.state else { return };
        let mut octets = Vec::with_capacity(piece.len());
        reshape.write(piece, &mut octets);
        if let Err(error) = backend.send(octets).await {
            self.broken_off(error).await;
        }
    }

    /// DATA and the trace header.
    async fn begin_body(&mut self, flags: BodyFlags) {
        let Some(mut under_way) = self.inline.under_way.take() else { return };
        let State::Envelope(mut backend) = under_way.state else {
            self.inline.under_way = Some(under_way);
            return;
        };
        // As if it began many lines with dots: nobody knows yet.
        let kept = match BodyForm::kept(flags) {
            BodyForm::Data => BodyFlags::DATA | BodyFlags::LEADING_DOTS,
            BodyForm::Bdat => BodyFlags::LEADING_DOTS,
        };
        let begun = match backend.say(b"DATA\r\n".to_vec()).await {
            Ok(reply) if reply.class() == ReplyClass::Intermediate => {
                let smtputf8 = self.server.parameters().is_some_and(|asked| asked.smtputf8);
                let trace = self.trace(under_way.id, self.server.recipients(), smtputf8, None);
                let mut fields = String::new();
                self.tag(&mut fields);
                // Nobody knows yet how the body begins.
                let trace = trace::with_fields(trace, fields, true);
                under_way.exhibit = self.begin_exhibit(under_way.id, &trace, kept);
                match backend.send(trace.into_bytes()).await {
                    Ok(()) => Ok(backend),
                    Err(error) => Err(self.parting_word(backend, &error).await),
                }
            }
            Ok(reply) => Err(match Passed::of(&reply).filter(|passed| !passed.is_success()) {
                Some(passed) => Refusal::NextHop(passed),
                None => Refusal::NextHopLost,
            }),
            Err(error) => {
                report_lost(&self.worker, backend.site().name(), &error);
                Err(Refusal::NextHopLost)
            }
        };
        under_way.state = match begun {
            Ok(backend) => State::Body(backend, Reshape::new(kept, BodyForm::Data)),
            Err(refusal) => {
                under_way.exhibit = None;
                State::Over(refusal)
            }
        };
        self.inline.under_way = Some(under_way);
    }

    /// A next hop takes no more of a message.
    async fn broken_off(&mut self, error: BackendError) {
        let Some(under_way) = &mut self.inline.under_way else { return };
        let state = under_way.end(Refusal::NextHopLost);
        let State::Body(backend, _) = state else { return };
        let refusal = self.parting_word(backend, &error).await;
        if let Some(under_way) = &mut self.inline.under_way {
            under_way.end(refusal);
        }
    }

    /// A next hop that gives up in the middle says why before it closes.  It has not seen the end of
    /// the message, so what is no refusal (221, say) is not about it.
    async fn parting_word(&self, mut backend: Backend, error: &BackendError) -> Refusal {
        let last = backend.last_word().await.and_then(|reply| Passed::of(&reply));
        last.filter(|passed| !passed.is_success()).map_or_else(
            || {
                report_lost(&self.worker, backend.site().name(), error);
                Refusal::NextHopLost
            },
            Refusal::NextHop,
        )
    }

    /// The connection is of no further use, and the transaction with it.
    fn next_hop_lost(&mut self, error: &BackendError) -> Refusal {
        if let Some(under_way) = &mut self.inline.under_way {
            let state = under_way.end(Refusal::NextHopLost);
            if let State::Envelope(backend) | State::Body(backend, _) = state {
                report_lost(&self.worker, backend.site().name(), error);
            }
        }
        Refusal::NextHopLost
    }

    /// Our client's transaction is over without a message: so is the next hop's.
    pub(super) async fn release_next_hop(&mut self) {
        let Some(under_way) = self.inline.under_way.take() else { return };
        let State::Envelope(mut backend) = under_way.state else { return };
        if let Ok(reply) = backend.say(b"RSET\r\n".to_vec()).await
            && reply.class() == ReplyClass::Success
        {
            backend::keep(&self.worker, backend);
        }
    }

    /// What came of a body is of no use: if some of it was passed on, the next hop must not take
    /// that for a message.
    pub(super) fn drop_passed_body(&mut self) {
        let is_body = |under_way: &UnderWay| !matches!(under_way.state, State::Envelope(_));
        if self.inline.under_way.as_deref().is_some_and(is_body) {
            self.inline.under_way = None;
        }
    }

    /// Whether the next hop has a transaction of ours open.
    pub(super) fn has_next_hop(&self) -> bool {
        self.inline.under_way.is_some()
    }

    /// Whether a next hop waits for the client's next command.
    pub(super) fn keeps_next_hop_waiting(&self) -> bool {
        let under_way = self.inline.under_way.as_ref();
        under_way.is_some_and(|under_way| matches!(under_way.state, State::Envelope(_)))
    }
}

/// What the next hop cannot do for this message, in our words.
fn objection(
    worker: &Worker,
    backend: &Backend,
    parameters: &MailParameters,
) -> Result<(), Refusal> {
    let peer = backend.capabilities();
    let words = if parameters.smtputf8 && !peer.smtputf8 {
        "5.6.7 The next hop does not take internationalised mail"
    } else if parameters.require_tls
        && backend.protocol() == Protocol::Smtp
        && !(backend.is_secured() && peer.require_tls)
    {
        "5.7.30 The next hop cannot keep to REQUIRETLS"
    } else if parameters.body == BodyKind::EightBitMime
        && !peer.eight_bit_mime
        && worker.config.delivery.eight_bit == EightBit::Bounce
    {
        "5.6.3 The next hop takes no 8-bit data"
    } else {
        return Ok(());
    };
    Err(Refusal::NextHop(Passed::ours(550, words)))
}

fn report_lost(worker: &Rc<Worker>, site: &str, error: &BackendError) {
    worker.metrics.next_hops_lost.count();
    tracing::warn!(site, %error, "a message could not be passed on");
}
