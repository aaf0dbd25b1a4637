//! AUTH and what follows from it: runs the exchange of a session, and decides on its senders.
//!
//! Every failure is answered at the same time after its last response, whatever the reason and
//! however long the look-up took; meanwhile the session waits and the worker does not.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::Session;
use crate::auth::sasl::{Binding, Claim, Exchange, Failure, Mechanism, Step};
use crate::auth::{Denied, Identity};
use crate::config::Service;
use crate::limits;
use crate::runtime;
use crate::smtp::address::ReversePath;
use crate::smtp::reply::Refusal;
use crate::smtp::server::{AuthAnswer, Response};

/// What a session knows of who its client is.
#[derive(Default)]
pub(super) struct Login {
    exchange: Option<Exchange>,
    identity: Option<Identity>,
}

impl Login {
    /// The user's name.
    pub(super) fn user(&self) -> Option<&str> {
        self.identity.as_ref().map(|identity| &*identity.name)
    }
}

impl Session {
    /// Takes the response that waits one step further.
    pub(super) async fn authenticate(&mut self) {
        let received = Instant::now();
        let Some(Response { mechanism, is_first, octets }) = self.server.response() else { return };
        let response = octets.map(<[u8]>::to_vec);
        if is_first {
            // The one from before may have been cancelled.
            self.login = Login::default();
        }
        let answer = self.answer(mechanism, response.as_deref(), received).await;
        if !matches!(answer, AuthAnswer::Challenge(_)) {
            self.login_ended(mechanism, &answer);
        }
        if matches!(answer, AuthAnswer::Failed(_)) {
            let waited = received.elapsed();
            let left = limits::AUTH_FAILURE_WAIT.saturating_sub(waited);
            runtime::sleep(left.max(Duration::from_millis(1))).await;
        }
        self.server.auth_answered(Instant::now(), answer);
    }

    async fn answer(
        &mut self,
        mechanism: Mechanism,
        response: Option<&[u8]>,
        now: Instant,
    ) -> AuthAnswer {
        let authority = self.worker.authority.clone();
        let binding = self.binding();
        let exchange = self
            .login
            .exchange
            .get_or_insert_with(|| Exchange::new(mechanism, &authority.nonce(), binding));
        let step = exchange.respond(response, &|hash, name| authority.verifier(hash, name));
        // Before anything is looked up that costs time or tells something.
        if !authority.admits(exchange.name(), self.peer.ip(), now) {
            return AuthAnswer::Failed(Refusal::AuthLater);
        }
        let step = match step {
            Step::Verify(claim) => match self.verify(claim).await {
                Err(Denied::Later) => return AuthAnswer::Failed(Refusal::AuthLater),
                Err(Denied::Credentials) => {
                    if mechanism.takes_tokens() {
                        // The client may cancel when it hears of it, and that must count too.
                        let claimed = self.login.exchange.as_ref().and_then(Exchange::name);
                        authority.ended(claimed, false, self.peer.ip(), now);
                    }
                    self.conclude(None)
                }
                Ok(identity) => {
                    let step = self.conclude(Some(&identity.name));
                    self.login.identity = Some(identity);
                    step
                }
            },
            step => step,
        };
        match step {
            Step::Challenge(octets) => AuthAnswer::Challenge(octets),
            Step::Done(name) => {
                let identity = &mut self.login.identity;
                let identity = identity.get_or_insert_with(|| authority.identity(&name));
                AuthAnswer::Succeeded((&*identity.name).into())
            }
            Step::Failed(Failure::Malformed) => AuthAnswer::Failed(Refusal::BadResponse),
            Step::Failed(Failure::Credentials) => AuthAnswer::Failed(Refusal::AuthFailed),
            Step::Verify(_) => AuthAnswer::Failed(Refusal::Internal),
        }
    }

    fn conclude(&mut self, user: Option<&str>) -> Step {
        match &mut self.login.exchange {
            Some(exchange) => exchange.verified(user),
            None => Step::Failed(Failure::Credentials),
        }
    }

    /// Checks a claim on the blocking pool.
    async fn verify(&self, claim: Claim) -> Result<Identity, Denied> {
        let authority = self.worker.authority.clone();
        let place = authority.place().ok_or(Denied::Later)?;
        let deadline = Instant::now() + limits::AUTH_PATIENCE;
        let now_unix_s = self.worker.now_unix_ms() / 1000;
        let verified = self.worker.blocking.run(move || {
            // Kept to the end of the work, also where nobody waits for it any more.
            let _place = place;
            authority.verify(&claim, deadline, now_unix_s)
        });
        verified.await.unwrap_or(Err(Denied::Later))
    }

    fn binding(&self) -> Binding {
        let exporter = self.stream.secured().and_then(|secured| secured.binding);
        Binding { exporter, offered: self.server.offers(Mechanism::ScramSha256Plus) }
    }

    fn login_ended(&mut self, mechanism: Mechanism, answer: &AuthAnswer) {
        let exchange = self.login.exchange.take();
        let claimed = exchange.as_ref().and_then(Exchange::name);
        let (address, now) = (self.peer.ip(), Instant::now());
        match answer {
            AuthAnswer::Succeeded(user) => {
                self.worker.authority.ended(Some(user), true, address, now);
                self.worker.report_login(self.id, self.peer, mechanism, Some(user), None);
            }
            AuthAnswer::Failed(refusal) => {
                if *refusal == Refusal::AuthFailed && !mechanism.takes_tokens() {
                    self.worker.authority.ended(claimed, false, address, now);
                }
                self.login.identity = None;
                self.worker.report_login(self.id, self.peer, mechanism, claimed, Some(refusal));
            }
            AuthAnswer::Challenge(_) => {}
        }
    }

    // ---- what a user may do --------------------------------------------------------------

    /// Decides on the sender of a transaction.
    pub(super) fn check_sender(&mut self) {
        let now = Instant::now();
        // The transaction before it may have come to nothing.
        self.end_judged(None, None);
        let Some(path) = self.server.sender_in_question() else { return };
        let verdict = self.judge_sender(path, now);
        if let (Some(screening), Ok(())) = (&mut self.screening, &verdict) {
            screening.sender(path);
        }
        self.server.sender_checked(now, verdict);
    }

    fn judge_sender(&self, path: &ReversePath, now: Instant) -> Result<(), Refusal> {
        if let Some(identity) = &self.login.identity
            && self.listener.listener.service == Service::Submission
            && !identity.senders.allows(path)
        {
            return Err(Refusal::SenderDenied);
        }
        let (user, address) = self.who_counts();
        match self.worker.authority.rates.message(user, address, now) {
            true => Ok(()),
            false => Err(Refusal::TooManyMessages),
        }
    }

    /// Whether one more recipient is within the rates.
    pub(super) fn counts_recipient(&self, now: Instant) -> Result<(), Refusal> {
        let (user, address) = self.who_counts();
        match self.worker.authority.rates.recipient(user, address, now) {
            true => Ok(()),
            false => Err(Refusal::TooManyMessages),
        }
    }

    /// Whose rates what the client does is counted under.  Hosts of our own networks are not
    /// counted by address: many users may be behind one.
    fn who_counts(&self) -> (Option<&str>, Option<IpAddr>) {
        let address = self.peer.ip();
        let is_ours = self.worker.config.relay.contains(address);
        (self.login.user(), (!is_ours).then_some(address))
    }
}
