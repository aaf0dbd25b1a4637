//! One message on its way over one connection: which of its recipients are asked now, which come
//! later, and what has become of the others.

use std::rc::Rc;

use crate::delivery::message::LoadedMessage;
use crate::delivery::settle::Attempt;
use crate::queue::arena::Slot;
use crate::smtp::client::{
    AfterTransaction, Client, Deferral, RecipientOutcome, Transaction, TransactionId,
    TransactionResult,
};

/// See the module's text.
pub(super) struct Job {
    pub(super) slot: Slot,
    pub(super) attempt: Attempt,
    pub(super) message: Rc<LoadedMessage>,
    /// The message as BDAT transfers it.
    pub(super) size_octets: u64,
    /// Nothing had been sent on the connection before it.
    pub(super) is_first: bool,
    /// The transaction under way.
    pub(super) transaction: TransactionId,
    /// Its recipients.
    asked: Vec<u16>,
    /// Those that come in a later transaction.
    left: Vec<u16>,
    pub(super) outcomes: Vec<(u16, RecipientOutcome)>,
    /// Whether the peer has DSN, once a transaction has ended.
    pub(super) peer_has_dsn: bool,
}

impl Job {
    pub(super) fn new(
        slot: Slot,
        attempt: Attempt,
        message: LoadedMessage,
        size_octets: u64,
        client: &Client,
    ) -> Job {
        let left = attempt.recipients();
        let is_first = client.transactions() == 0;
        Job {
            slot,
            attempt,
            message: Rc::new(message),
            size_octets,
            is_first,
            transaction: TransactionId(0),
            asked: Vec::new(),
            left,
            outcomes: Vec::new(),
            peer_has_dsn: false,
        }
    }

    /// The next transaction: as many of those that are left as the peer's limits allow.
    pub(super) fn next_transaction(&mut self, client: &Client) -> Transaction {
        let envelope = self.message.envelope();
        self.asked = client.split(envelope, &mut self.left);
        let flags = self.message.summary().flags;
        let transaction =
            Transaction::new(envelope.clone(), self.asked.clone(), self.size_octets, flags);
        transaction.expect("some of the message's recipients are left")
    }

    /// Takes the end of the transaction.  Tells whether the message wants another one on this
    /// connection, if that `may_go_on`; if not, every recipient now has its outcome.
    pub(super) fn take(&mut self, result: TransactionResult, may_go_on: bool) -> bool {
        self.peer_has_dsn = result.peer_has_dsn;
        let may_go_on = may_go_on && result.connection == AfterTransaction::Usable;
        let took_some = result.outcomes.iter().any(|outcome| !outcome.is_too_many());
        for (place, outcome) in std::mem::take(&mut self.asked).into_iter().zip(result.outcomes) {
            // Those go at once in a transaction of their own, as long as each takes some.
            if may_go_on && took_some && outcome.is_too_many() {
                self.left.push(place);
            } else {
                self.outcomes.push((place, outcome));
            }
        }
        if !may_go_on {
            self.give_up();
        }
        !self.left.is_empty()
    }

    /// Those that are left are not asked on this connection.
    pub(super) fn give_up(&mut self) {
        let not_asked = || RecipientOutcome::Deferred(Deferral::NotAsked);
        self.outcomes.extend(self.left.drain(..).map(|place| (place, not_asked())));
    }

    /// Whether the attempt says nothing: the peer was not asked about any recipient.  A connection
    /// that had been used before may just have been closed meanwhile.  On a fresh one the peer has
    /// greeted us and then not taken this message, which counts against it and not against what
    /// waits behind it.
    pub(super) fn says_nothing(&self) -> bool {
        !self.is_first && self.outcomes.iter().all(|(_, outcome)| outcome.never_began())
    }
}
