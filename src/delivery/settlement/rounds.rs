//! One attempt over one connection: as many transactions as it takes to ask about every recipient.
//!
//! Usually one.  More where the peer takes only some recipients at a time (452, RFC 5321 section
//! 4.5.3.1.10, or by its word beforehand, RFC 9422), and one for each recipient where each has a
//! reverse-path of its own ([`verp`]): that is decided here, so that neither the scheduler nor the
//! client machine knows of it.
//!
//! Invariants: each recipient ends with exactly one outcome; each further transaction comes after
//! one that decided at least one recipient, so there is an end.

use std::sync::Arc;

use crate::delivery::outcome::Attempted;
use crate::delivery::verp;
use crate::message::{BodyFlags, Envelope};
use crate::smtp::capabilities::Limits;
use crate::smtp::client::{
    AfterTransaction, Deferral, Failure, RecipientOutcome, Transaction, TransactionResult,
};

/// See the module's text.
#[derive(Debug)]
pub struct Rounds {
    envelope: Arc<Envelope>,
    /// The connection has carried no transaction before.
    is_fresh: bool,
    /// The recipients of the present transaction, and whether it has a reverse-path of its own.
    asked: Vec<u16>,
    is_verp: bool,
    /// Those that share the next one.
    together: Vec<u16>,
    /// Those that have one each, after all others; the next one last.
    alone: Vec<u16>,
    /// How many recipients the peer takes in one transaction (RFC 9422).
    limits: Limits,
    outcomes: Vec<(u16, Attempted)>,
    /// The peer was asked about a recipient, or may have been.
    has_begun: bool,
    /// The peer said something about a recipient.
    has_word: bool,
    taken: Option<String>,
}

/// What follows a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    /// The next one.
    Again,
    /// Nothing.
    Over {
        /// Whether the connection takes another message.
        usable: bool,
    },
}

/// What an attempt over a connection came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The connection had been used before and was closed meanwhile: that says nothing.  The
    /// message goes back to where it was.
    Returned,
    /// A fresh connection ended before the peer was asked about a recipient: it has greeted and
    /// then not taken this message.  Another host may have it at once; where none is left this
    /// counts against the message, and not against what waits behind it.
    Unheard {
        /// One for each recipient.
        outcomes: Vec<(u16, Attempted)>,
    },
    /// There is something to judge.
    Settled {
        /// One for each recipient.
        outcomes: Vec<(u16, Attempted)>,
        /// What the peer said to the first that it took.
        taken: Option<String>,
        /// The peer said something about a recipient, good or bad.
        has_word: bool,
    },
}

impl Rounds {
    /// The recipients over a connection that is `fresh` if it has carried no transaction before:
    /// those `together` may share one, each of `alone` has one under a reverse-path that names it.
    /// All are in the envelope, and there is at least one.  No transaction has more of them than
    /// `limits` allow.
    pub fn new(
        envelope: Arc<Envelope>,
        together: Vec<u16>,
        mut alone: Vec<u16>,
        fresh: bool,
        limits: Limits,
    ) -> Rounds {
        alone.reverse();
        let mut rounds = Rounds {
            envelope,
            is_fresh: fresh,
            asked: Vec::new(),
            is_verp: false,
            together,
            alone,
            limits,
            outcomes: Vec::new(),
            has_begun: false,
            has_word: false,
            taken: None,
        };
        rounds.begin();
        rounds
    }

    /// The recipients of the present transaction.
    pub fn asked(&self) -> &[u16] {
        &self.asked
    }

    /// The present transaction; arguments as for [`Transaction::new`].
    pub fn transaction(&self, size_octets: u64, flags: BodyFlags) -> Transaction {
        let own = match &*self.asked {
            [place] if self.is_verp => verp::envelope(&self.envelope, *place),
            _ => None,
        };
        let transaction = match own {
            Some(own) => Transaction::new(Arc::new(own), vec![0], size_octets, flags),
            None => {
                let (envelope, asked) = (self.envelope.clone(), self.asked.clone());
                Transaction::new(envelope, asked, size_octets, flags)
            }
        };
        transaction.expect("the places are those of the message's recipients")
    }

    /// The present transaction came to its end.
    pub fn ended(&mut self, result: TransactionResult) -> Round {
        let usable = result.connection == AfterTransaction::Usable;
        let took_some = result.outcomes.iter().any(|outcome| !outcome.is_too_many());
        for (place, outcome) in std::mem::take(&mut self.asked).into_iter().zip(result.outcomes) {
            // Those go at once in a transaction of their own, as long as each takes some.
            if usable && took_some && outcome.is_too_many() {
                self.together.push(place);
                continue;
            }
            self.has_begun |= !outcome.never_began();
            self.has_word |= is_word(&outcome);
            if let (RecipientOutcome::Delivered(reply), None) = (&outcome, &self.taken) {
                self.taken = Some(reply.to_string());
            }
            self.outcomes.push((place, Attempted::from(outcome)));
        }
        if usable && !(self.together.is_empty() && self.alone.is_empty()) {
            self.begin();
            return Round::Again;
        }
        self.leave_rest();
        Round::Over { usable }
    }

    /// The connection takes no further transaction, though it stands: whoever is asked in the one
    /// that was to be next, and everybody after them, goes at once over another.
    pub fn give_up(&mut self) {
        self.together.append(&mut self.asked);
        self.leave_rest();
    }

    fn leave_rest(&mut self) {
        let unasked = self.together.drain(..).chain(self.alone.drain(..).rev());
        self.outcomes.extend(unasked.map(|place| (place, Attempted::AtOnce)));
    }

    /// What all of it came to.
    pub fn verdict(self) -> Verdict {
        let Rounds { outcomes, taken, has_word, .. } = self;
        match (self.has_begun, self.is_fresh) {
            (false, false) => Verdict::Returned,
            (false, true) => Verdict::Unheard { outcomes },
            (true, _) => Verdict::Settled { outcomes, taken, has_word },
        }
    }

    fn begin(&mut self) {
        self.is_verp = self.together.is_empty();
        self.asked = match self.is_verp {
            true => self.alone.pop().into_iter().collect(),
            false => self.limits.split(&self.envelope, &mut self.together),
        };
    }
}

/// Whether the peer said it, rather than its silence or ourselves.
fn is_word(outcome: &RecipientOutcome) -> bool {
    !matches!(
        outcome,
        RecipientOutcome::Deferred(Deferral::Connection(_))
            | RecipientOutcome::Failed(Failure::Local(_))
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::outcome::Reason;
    use crate::message::{MailParameters, Notify, Recipient};
    use crate::smtp::address::{ForwardPath, ReversePath, Utf8};
    use crate::smtp::client::{
        ConnectionCause, ConnectionFailure, Stage, StagedReply, TransactionId,
    };
    use crate::smtp::reply_reader::{PeerReply, ReplyReader};

    fn envelope(recipients: u16) -> Arc<Envelope> {
        let recipient = |number| Recipient {
            path: ForwardPath::parse(format!("<r{number}@r.test>").as_bytes(), Utf8::Refused)
                .expect("valid"),
            notify: Notify::UNSPECIFIED,
            orcpt: None,
        };
        Arc::new(Envelope {
            reverse_path: ReversePath::parse(b"<s@s.test>", Utf8::Refused).expect("valid"),
            parameters: MailParameters::default(),
            recipients: (0..recipients).map(recipient).collect(),
        })
    }

    fn reply(text: &str) -> Arc<PeerReply> {
        let (_, reply) = ReplyReader::new().read(format!("{text}\r\n").as_bytes());
        Arc::new(reply.expect("whole").expect("valid"))
    }

    /// `ok`, `many`, `later`, `never`, or the stage at which the connection was lost.
    fn outcome(word: &str) -> RecipientOutcome {
        let staged = |text| StagedReply { stage: Stage::Rcpt, reply: reply(text) };
        let lost = |stage| {
            let cause = match stage {
                Stage::Mail => ConnectionCause::Refused(reply("421 4.3.2 closing")),
                _ => ConnectionCause::Closed,
            };
            RecipientOutcome::Deferred(Deferral::Connection(ConnectionFailure { stage, cause }))
        };
        match word {
            "ok" => RecipientOutcome::Delivered(reply("250 2.0.0 taken")),
            "many" => RecipientOutcome::Deferred(Deferral::TooManyRecipients(reply("452 x"))),
            "later" => RecipientOutcome::Deferred(Deferral::Reply(staged("450 later"))),
            "never" => RecipientOutcome::Failed(Failure::Reply(staged("550 who"))),
            "idle" => lost(Stage::Idle),
            "reset" => lost(Stage::Reset),
            "mail" => lost(Stage::Mail),
            "rcpt" => lost(Stage::Rcpt),
            "end" => lost(Stage::EndOfData),
            other => panic!("{other}"),
        }
    }

    /// Transactions as `outcome outcome`, `!` behind the words of one that ends the connection.
    fn run(rounds: &mut Rounds, transactions: &[&str]) -> Vec<Round> {
        let result = |words: &str| TransactionResult {
            id: TransactionId(0),
            peer_has_dsn: false,
            broken_promise: None,
            has_behaved: false,
            outcomes: words.trim_end_matches('!').split_whitespace().map(outcome).collect(),
            connection: match words.ends_with('!') {
                true => AfterTransaction::MustClose,
                false => AfterTransaction::Usable,
            },
        };
        transactions.iter().map(|words| rounds.ended(result(words))).collect()
    }

    fn words(verdict: &Verdict) -> String {
        let (Verdict::Settled { outcomes, .. } | Verdict::Unheard { outcomes }) = verdict else {
            return "returned".into();
        };
        let word = |(place, attempted): &(u16, Attempted)| {
            let word = match attempted {
                Attempted::Delivered => "ok",
                Attempted::AtOnce => "at once",
                Attempted::Deferred(Reason::Connection(_)) => "lost",
                Attempted::Deferred(_) => "later",
                Attempted::Failed(_) => "never",
            };
            format!("{place} {word}")
        };
        outcomes.iter().map(word).collect::<Vec<_>>().join(", ")
    }

    enum How {
        Together,
        Verp,
        Mixed,
    }

    #[test]
    fn every_recipient_has_its_turn_and_one_outcome() {
        use How::{Mixed, Together, Verp};
        let cases: [(How, bool, &[&str], &str); 18] = [
            (Together, true, &["ok never later"], "0 ok, 1 never, 2 later"),
            (Together, true, &["ok many many", "ok many", "later"], "0 ok, 1 ok, 2 later"),
            // Nobody was taken: the next transaction would be the same.
            (Together, true, &["many many many"], "0 at once, 1 at once, 2 at once"),
            (Together, true, &["ok many many!"], "0 ok, 1 at once, 2 at once"),
            (Together, true, &["ok never many", "idle!"], "0 ok, 1 never, 2 lost"),
            // A used connection that was closed meanwhile says nothing, a fresh one does.
            (Together, false, &["idle idle idle!"], "returned"),
            (Together, false, &["reset reset reset!"], "returned"),
            (Together, false, &["mail mail mail!"], "returned"),
            (Together, true, &["mail mail mail!"], "0 lost, 1 lost, 2 lost"),
            (Together, false, &["mail rcpt rcpt!"], "0 lost, 1 lost, 2 lost"),
            (Together, false, &["end end end!"], "0 lost, 1 lost, 2 lost"),
            (Verp, true, &["ok", "never", "later"], "0 ok, 1 never, 2 later"),
            (Verp, true, &["ok", "rcpt!"], "0 ok, 1 lost, 2 at once"),
            (Verp, false, &["mail!"], "returned"),
            (Verp, true, &["mail!"], "0 lost, 1 at once, 2 at once"),
            (Verp, false, &["later!"], "0 later, 1 at once, 2 at once"),
            (Mixed, true, &["ok many", "never", "ok"], "1 ok, 2 never, 0 ok"),
            (Mixed, true, &["ok many!"], "1 ok, 2 at once, 0 at once"),
        ];
        for (how, fresh, transactions, expected) in cases {
            let (together, alone) = match how {
                Together => (vec![0, 1, 2], vec![]),
                Verp => (vec![], vec![0, 1, 2]),
                Mixed => (vec![1, 2], vec![0]),
            };
            let mut rounds = Rounds::new(envelope(3), together, alone, fresh, Limits::default());
            let said = run(&mut rounds, transactions);
            let (last, before) = said.split_last().expect("there are transactions");
            assert!(before.iter().all(|round| *round == Round::Again), "{transactions:?}");
            let usable = !transactions.last().expect("there is one").ends_with('!');
            assert_eq!(*last, Round::Over { usable }, "{transactions:?}");
            let verdict = rounds.verdict();
            assert_eq!(words(&verdict), expected, "{transactions:?}");
            let is_unheard = fresh && transactions[0].starts_with("mail");
            assert_eq!(matches!(verdict, Verdict::Unheard { .. }), is_unheard, "{transactions:?}");
            if let Verdict::Settled { taken, has_word, .. } = verdict {
                let said = ["ok", "many", "later", "never"];
                let is_said = |words: &&str| said.iter().any(|word| words.contains(word));
                assert_eq!(has_word, transactions.iter().any(is_said), "{transactions:?}");
                let took = transactions.iter().any(|words| words.contains("ok"));
                assert_eq!(taken.as_deref(), took.then_some("250 2.0.0 taken"));
            }
        }
    }

    #[test]
    fn no_transaction_has_more_recipients_than_the_peer_takes() {
        let limits = Limits { recipients_max: Some(2), ..Limits::default() };
        let mut rounds = Rounds::new(envelope(6), vec![0, 1, 2, 3, 4], vec![5], true, limits);
        let mut asked = Vec::new();
        for words in ["ok ok", "ok many", "never ok"] {
            asked.push(rounds.asked().to_vec());
            assert_eq!(run(&mut rounds, &[words]), [Round::Again]);
        }
        assert_eq!(asked, [vec![0, 1], vec![2, 3], vec![4, 3]]);
        // The connection has had enough: the last one goes over another.
        assert_eq!(rounds.asked(), [5]);
        rounds.give_up();
        let all = "0 ok, 1 ok, 2 ok, 4 never, 3 ok, 5 at once";
        assert_eq!(words(&rounds.verdict()), all);
    }

    #[test]
    fn each_recipient_alone_has_a_transaction_with_its_own_reverse_path() {
        let mut rounds = Rounds::new(envelope(3), vec![], vec![0, 2], true, Limits::default());
        assert_eq!(rounds.asked(), [0]);
        assert_eq!(rounds.transaction(10, BodyFlags::default()).recipients(), [0]);
        run(&mut rounds, &["ok"]);
        assert_eq!(rounds.asked(), [2]);
        // The only recipient of an envelope that was made for it.
        assert_eq!(rounds.transaction(10, BodyFlags::default()).recipients(), [0]);
        let rounds = Rounds::new(envelope(3), vec![0, 2], vec![], true, Limits::default());
        assert_eq!(rounds.transaction(10, BodyFlags::default()).recipients(), [0, 2]);
    }
}
