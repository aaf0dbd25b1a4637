//! One message on its way over one connection.

use std::rc::Rc;

use crate::delivery::message::LoadedMessage;
use crate::delivery::settle::Attempt;
use crate::delivery::settlement::rounds::Rounds;
use crate::queue::arena::Slot;
use crate::smtp::client::{Transaction, TransactionId};

/// See the module's text.
pub(super) struct Job {
    pub(super) slot: Slot,
    pub(super) attempt: Attempt,
    pub(super) message: Rc<LoadedMessage>,
    /// The message as BDAT transfers it.
    pub(super) size_octets: u64,
    /// Which recipients are asked when, and what has become of them.
    pub(super) rounds: Rounds,
    /// The transaction under way.
    pub(super) transaction: TransactionId,
    /// Whether the peer has DSN; known once a transaction has ended.
    pub(super) peer_has_dsn: bool,
}

impl Job {
    /// The transaction of the present round.
    pub(super) fn next_transaction(&self) -> Transaction {
        self.rounds.transaction(self.size_octets, self.message.summary().flags)
    }
}
