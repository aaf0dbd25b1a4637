//! What DONE and DEFER records come to: which of a message's recipients are done, what the others
//! wait for.  Shared by recovery, which folds all of them, and by the compaction, which folds
//! those that it is about to write anew.
//!
//! The order in which records are folded in is the order of the log: of several DEFERs that speak
//! of a recipient the latest counts, and a DONE counts whatever comes after it.

use super::SegmentNo;
use super::format::outcome::{StoredDefer, StoredDone, StoredRecipients};

/// What is known of a message's recipients.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcomes {
    /// Those that are done one by one, ascending.
    pub(crate) done: Vec<u16>,
    /// The message has ended.
    pub(crate) is_ended: bool,
    /// A DONE said `last`.
    pub(crate) is_last_said: bool,
    /// In the order of the log.
    pub(crate) deferrals: Vec<Deferral>,
}

/// A DEFER, and the segment in which it stands.
#[derive(Debug, Clone)]
pub(crate) struct Deferral {
    pub(crate) defer: StoredDefer,
    pub(crate) holder: SegmentNo,
}

impl Outcomes {
    /// Takes a DONE in; `all` is how many recipients the message has, if that is known.
    pub(crate) fn done(&mut self, done: &StoredDone, all: Option<u32>) {
        if let StoredRecipients::Some(list) = &done.recipients {
            self.done.extend(list);
            self.done.sort_unstable();
            self.done.dedup();
        }
        self.is_last_said |= done.last;
        self.is_ended |= done.last
            || done.recipients == StoredRecipients::All
            || all.is_some_and(|all| self.done.len() as u64 >= u64::from(all));
        if self.is_ended {
            self.deferrals = Vec::new();
        }
    }

    /// Takes a DEFER in that stands in `holder`.
    pub(crate) fn defer(&mut self, defer: StoredDefer, holder: SegmentNo, all: Option<u32>) {
        for earlier in &mut self.deferrals {
            let left = &mut earlier.defer.recipients;
            // Without their number, "all but these" cannot be said; the order says it then.
            if all.is_some() || *left != StoredRecipients::All || is_all(&defer.recipients) {
                *left = without(left, &defer.recipients, all.unwrap_or(0));
            }
        }
        self.deferrals.retain(|earlier| !is_empty(&earlier.defer.recipients));
        self.deferrals.push(Deferral { defer, holder });
    }

    /// The deferrals without what is done.
    pub(crate) fn waits(mut self, all: Option<u32>) -> (Vec<u16>, Vec<StoredDefer>) {
        let done = StoredRecipients::Some(self.done.clone().into());
        for Deferral { defer, .. } in &mut self.deferrals {
            if all.is_some() || defer.recipients != StoredRecipients::All {
                defer.recipients = without(&defer.recipients, &done, all.unwrap_or(0));
            }
        }
        let waits = self.deferrals.into_iter().map(|deferral| deferral.defer);
        (self.done, waits.filter(|defer| !is_empty(&defer.recipients)).collect())
    }
}

/// The recipients of `from` that are not in `taken`; `all` is how many the message has.
fn without(from: &StoredRecipients, taken: &StoredRecipients, all: u32) -> StoredRecipients {
    let StoredRecipients::Some(taken) = taken else {
        return StoredRecipients::Some([].into());
    };
    if taken.is_empty() {
        return from.clone();
    }
    let keep = |recipient: &u16| taken.binary_search(recipient).is_err();
    StoredRecipients::Some(match from {
        StoredRecipients::All => (0..=u16::MAX).take(all as usize).filter(keep).collect(),
        StoredRecipients::Some(list) => list.iter().copied().filter(keep).collect(),
    })
}

fn is_empty(recipients: &StoredRecipients) -> bool {
    matches!(recipients, StoredRecipients::Some(list) if list.is_empty())
}

fn is_all(recipients: &StoredRecipients) -> bool {
    *recipients == StoredRecipients::All
}
