//! Asks the next hop of a recipient's route whether the recipient is there, before it is accepted.
//!
//! MAIL FROM:<>, RCPT and RSET over a connection that is kept for the next question.  Who asks
//! the same while the question is under way, on whatever core, waits for the same answer; answers
//! are remembered ([`crate::recipients::ahead`]).  A next hop that cannot be asked is no reason to
//! refuse for good: the client comes again, or what was known counts.
//!
//! A question is a task of its own, which ends in its own time: a client that has gone leaves no
//! half-used connection behind.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use crate::dns::flight::{Flight, Prospect, Turns};
use crate::limits;
use crate::message::{MailParameters, Notify, Recipient};
use crate::outbound::backend::{self, Backend, BackendError};
use crate::queue::site::{SiteId, SiteShared};
use crate::recipients::ahead::{Asked, Remembered};
use crate::runtime;
use crate::smtp::address::{ForwardPath, ReversePath};
use crate::smtp::client::{mail_command, rcpt_command};
use crate::smtp::code::ReplyClass;
use crate::smtp::reply::{Passed, Refusal};
use crate::worker::{Letter, Worker};

/// The questions of one core that are under way.
#[derive(Default)]
pub struct Questions {
    flights: RefCell<HashMap<Asked, Rc<Flight<Verdict>>>>,
    turns: RefCell<HashMap<SiteId, Rc<Turns>>>,
}

/// What became of a question.
pub type Verdict = Result<(), Refusal>;

impl Questions {
    /// What is waited for here has been answered, to this worker or another one.
    pub fn answered(&self, asked: &Asked, verdict: Verdict) {
        let flight = self.flights.borrow_mut().remove(asked);
        if let Some(flight) = flight {
            flight.land(&Rc::new(verdict));
        }
    }
}

/// Whether the recipient is there, as far as the next hop or the memory of its answers can tell.
///
/// # Errors
/// `UnknownRecipient`; `UnverifiedRecipient` where nobody can tell now; `NextHop` with its words
/// where it refuses the recipient for another reason than that it is not there.
pub async fn ask(worker: &Rc<Worker>, site: &Arc<SiteShared>, path: &ForwardPath) -> Verdict {
    let asked = Asked::new(site.id(), path);
    let known = worker.roster.answers.recall(&asked, Instant::now());
    match known {
        Some(Remembered::There) => return Ok(()),
        Some(Remembered::NotThere) => return Err(Refusal::UnknownRecipient),
        Some(Remembered::WasThere) | None => {}
    }
    let flight = worker.questions.flights.borrow().get(&asked).cloned();
    let flight = flight.unwrap_or_else(|| begin(worker, site, path, asked));
    let verdict = Box::pin(runtime::timeout(limits::CALL_AHEAD, flight.landed())).await;
    let verdict = verdict.map_or(Err(Refusal::UnverifiedRecipient), |verdict| (*verdict).clone());
    match verdict {
        Err(Refusal::UnverifiedRecipient) if known == Some(Remembered::WasThere) => Ok(()),
        verdict => verdict,
    }
}

/// Whether nobody need be asked.
pub fn is_known(worker: &Rc<Worker>, site: &Arc<SiteShared>, path: &ForwardPath) -> bool {
    let known = worker.roster.answers.recall(&Asked::new(site.id(), path), Instant::now());
    matches!(known, Some(Remembered::There | Remembered::NotThere))
}

/// Starts the question, unless another worker asks it: that one will tell.
fn begin(
    worker: &Rc<Worker>,
    site: &Arc<SiteShared>,
    path: &ForwardPath,
    asked: Asked,
) -> Rc<Flight<Verdict>> {
    let flight = Rc::new(Flight::default());
    worker.questions.flights.borrow_mut().insert(asked.clone(), flight.clone());
    if worker.roster.claims.claim(&asked, worker.index) {
        let (worker, site, path) = (worker.clone(), site.clone(), path.clone());
        runtime::spawn(async move { ask_for_all(&worker, &site, path, asked).await });
    }
    flight
}

/// Asks, and tells all who wait for the answer: each step before that has a deadline, and there is
/// no way out in between.
async fn ask_for_all(worker: &Rc<Worker>, site: &Arc<SiteShared>, path: ForwardPath, asked: Asked) {
    let answers = &worker.roster.answers;
    // Another worker may have been told since it was looked up.
    let verdict = match answers.recall(&asked, Instant::now()) {
        Some(Remembered::There) => Ok(()),
        Some(Remembered::NotThere) => Err(Refusal::UnknownRecipient),
        Some(Remembered::WasThere) | None => in_turn(worker, site, path).await,
    };
    let now = Instant::now();
    match &verdict {
        Ok(()) => answers.learn(&asked, true, now),
        Err(Refusal::UnknownRecipient) => answers.learn(&asked, false, now),
        Err(_) => {}
    }
    for other in worker.roster.claims.settle(&asked) {
        let answer = Box::new((asked.clone(), verdict.clone()));
        worker.tell(other, Letter::AnsweredAhead(answer));
    }
    worker.questions.answered(&asked, verdict);
}

/// A few questions at a time for each site.
async fn in_turn(worker: &Rc<Worker>, site: &Arc<SiteShared>, path: ForwardPath) -> Verdict {
    let began = Instant::now();
    let turns = {
        let mut turns = worker.questions.turns.borrow_mut();
        let fresh = || Rc::new(Turns::new(limits::CALLS_AHEAD, 0));
        turns.entry(site.id()).or_insert_with(fresh).clone()
    };
    let _turn = turns.take(Prospect::Hopeful).await;
    // Who asked has been told already that nobody can say.
    if began.elapsed() > limits::CALL_AHEAD {
        return Err(Refusal::UnverifiedRecipient);
    }
    match inquire(worker, site, path).await {
        Ok(verdict) => {
            worker.metrics.calls_ahead.count();
            verdict
        }
        Err(error) => {
            worker.metrics.calls_ahead_failed.count();
            tracing::info!(site = site.name(), %error, "a next hop could not be asked");
            Err(Refusal::UnverifiedRecipient)
        }
    }
}

async fn inquire(
    worker: &Rc<Worker>,
    site: &Arc<SiteShared>,
    path: ForwardPath,
) -> Result<Verdict, BackendError> {
    let parameters = MailParameters {
        smtputf8: path.mailbox().is_some_and(|mailbox| !mailbox.is_ascii()),
        ..MailParameters::default()
    };
    let (mut backend, mail) = backend::begin(worker, site, |mail, peer| {
        mail_command(mail, &ReversePath::Null, &parameters, None, peer);
    })
    .await?;
    if mail.class() != ReplyClass::Success {
        tracing::info!(site = site.name(), %mail, "a next hop does not let itself be asked");
        return Ok(Err(Refusal::UnverifiedRecipient));
    }
    let recipient = Recipient { path, notify: Notify::UNSPECIFIED, orcpt: None };
    let mut command = Vec::with_capacity(limits::COMMAND_LINE);
    rcpt_command(&mut command, &recipient, backend.capabilities());
    let reply = backend.say(command).await?;
    put_back(worker, backend).await;
    // 5.1.x is the address; another subject speaks of a mailbox that is there (RFC 3463).
    let is_of_address = reply.enhanced.is_none_or(|enhanced| enhanced.subject() <= 1);
    Ok(match (reply.class(), Passed::of(&reply)) {
        (ReplyClass::Success, _) => Ok(()),
        (ReplyClass::PermanentFailure, Some(passed)) if !is_of_address => {
            Err(Refusal::NextHop(passed))
        }
        (ReplyClass::PermanentFailure, _) => Err(Refusal::UnknownRecipient),
        _ => Err(Refusal::UnverifiedRecipient),
    })
}

/// Ends the transaction; the connection stays, if all is well with it.
async fn put_back(worker: &Rc<Worker>, mut backend: Backend) {
    if let Ok(reply) = backend.say(b"RSET\r\n".to_vec()).await
        && reply.class() == ReplyClass::Success
    {
        backend::keep(worker, backend);
    }
}
