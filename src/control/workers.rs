//! Asks all workers and puts their answers together.
//!
//! Every question has a deadline, so that a worker that hangs costs an operator seconds and not
//! the command.  Runs on the control thread; a worker sees one request at a time from each
//! command, and nothing here waits for one worker before it has asked the others.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::port::{
    Action, Answer, Change, Entry, Filter, Listing, Page, QueueCount, Request, Selection, Tally,
    WorkerPort,
};
use crate::edge::explanation::Explanation;
use crate::limits;
use crate::message::MessageId;

/// All workers, as the control thread sees them.
#[derive(Clone)]
pub struct Workers {
    port: Arc<dyn WorkerPort>,
    times: Times,
}

/// What workers may take; tests shorten it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// For a ping or a count.
    pub answer: Duration,
    /// For a list or a change.
    pub work: Duration,
}

impl Default for Times {
    fn default() -> Times {
        Times { answer: limits::WORKER_ANSWER, work: limits::WORKER_WORK }
    }
}

/// Why there is no answer from all workers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Some did not answer in time, or could not be asked.
    #[error("no answer within {} s from {}", .within.as_secs_f32(), numbered(.workers))]
    Silent {
        /// Their numbers.
        workers: Vec<usize>,
        /// How long they had.
        within: Duration,
    },
    /// One could not do it.
    #[error("worker {worker}: {reason}")]
    Failed {
        /// Its number.
        worker: usize,
        /// Why.
        reason: Box<str>,
    },
    /// Our bug: one answered another question.
    #[error("worker {worker} answered another question")]
    Confused {
        /// Its number.
        worker: usize,
    },
}

impl Workers {
    /// The workers behind a port.
    pub fn new(port: Arc<dyn WorkerPort>, times: Times) -> Workers {
        Workers { port, times }
    }

    /// Whether every worker works; gives their number.
    ///
    /// # Errors
    /// Those that did not answer.
    pub async fn ping(&self) -> Result<usize, AskError> {
        let pong = |answer| matches!(answer, Answer::Pong).then_some(());
        Ok(self.ask(Request::Ping, self.times.answer, pong).await?.len())
    }

    /// Messages and recipients that the filter fits.
    ///
    /// # Errors
    /// A worker did not answer.
    pub async fn count(&self, filter: Filter) -> Result<QueueCount, AskError> {
        // Without the envelope it is a walk in memory; with it, reads of the log.
        let within = match filter.needs_envelope() {
            true => self.times.work,
            false => self.times.answer,
        };
        let counted = |answer| match answer {
            Answer::Counted(tally) => Some(tally),
            _ => None,
        };
        Ok(total(self.ask(Request::Count(filter), within, counted).await?))
    }

    /// One page of the list.
    ///
    /// # Errors
    /// A worker did not answer.
    pub async fn list(&self, page: Page) -> Result<Listing, AskError> {
        let limit = page.limit;
        let lists = self.ask(Request::List(page), self.times.work, listed).await?;
        Ok(merge(lists, limit))
    }

    /// The entries of a message; none if it is not in the queue.
    ///
    /// # Errors
    /// A worker did not answer.
    pub async fn show(&self, id: MessageId) -> Result<Vec<Entry>, AskError> {
        let lists = self.ask(Request::Show(id), self.times.work, listed).await?;
        Ok(merge(lists, usize::MAX).entries)
    }

    /// How transactions of a session, or of a message, were judged, the oldest first; none if no
    /// worker remembers any.
    ///
    /// # Errors
    /// A worker did not answer.
    pub async fn why(&self, id: MessageId) -> Result<Vec<Explanation>, AskError> {
        let explained = |answer| match answer {
            Answer::Explained(explanations) => Some(explanations),
            _ => None,
        };
        let all = self.ask(Request::Why(id), self.times.work, explained).await?;
        let mut all: Vec<Explanation> = all.into_iter().flatten().collect();
        all.sort_by_key(|explanation| (explanation.time, explanation.message));
        // A message's own stands in its record and is remembered; workers share its handles.  A
        // session may have several without a message in one millisecond.
        all.dedup_by(|one, other| one.message.is_some() && one.message == other.message);
        Ok(all)
    }

    /// Does this to what the change selects; what is counted was done and is in the log.
    ///
    /// # Errors
    /// A worker did not answer; others may have done their part, and it may still do its own.
    pub async fn act(&self, action: Action, change: Change) -> Result<QueueCount, AskError> {
        let Change { ids, filter, limit, all: _ } = change;
        let ids = match limit {
            Some(limit) => self.first(&ids, &filter, limit).await?,
            None => ids,
        };
        if ids.is_empty() && limit.is_some() {
            // No ids would mean any message.
            return Ok(QueueCount::default());
        }
        let request = Request::Act(action, Selection { ids, filter });
        let changed = |answer| match answer {
            Answer::Changed(tally) => Some(tally),
            _ => None,
        };
        Ok(total(self.ask(request, self.times.work, changed).await?))
    }

    /// The first `limit` messages that the filter fits; of `ids`, if there are any.
    async fn first(
        &self,
        ids: &[MessageId],
        filter: &Filter,
        limit: usize,
    ) -> Result<Vec<MessageId>, AskError> {
        if !ids.is_empty() {
            return Ok(ids.iter().copied().take(limit).collect());
        }
        let mut found: Vec<MessageId> = Vec::new();
        while found.len() < limit {
            let limit = (limit - found.len()).min(limits::ADMIN_PAGE);
            let page = Page { filter: filter.clone(), after: found.last().copied(), limit };
            let Listing { entries, next } = self.list(page).await?;
            found.extend(entries.iter().map(|entry| entry.id));
            found.dedup();
            if next.is_none() {
                break;
            }
        }
        Ok(found)
    }

    /// Asks every worker the same and waits for all answers; `read` takes the right kind.
    async fn ask<T>(
        &self,
        request: Request,
        within: Duration,
        read: impl Fn(Answer) -> Option<T>,
    ) -> Result<Vec<T>, AskError> {
        let deadline = Instant::now() + within;
        let asked: Vec<oneshot::Receiver<Answer>> = (0..self.port.workers())
            .map(|worker| {
                let (answer, answered) = oneshot::channel();
                self.port.ask(worker, request.clone(), answer);
                answered
            })
            .collect();
        let (mut answers, mut silent) = (Vec::with_capacity(asked.len()), Vec::new());
        for (worker, answered) in asked.into_iter().enumerate() {
            match timeout_at(deadline, answered).await {
                Ok(Ok(Answer::Failed(reason))) => return Err(AskError::Failed { worker, reason }),
                Ok(Ok(answer)) => answers.push(read(answer).ok_or(AskError::Confused { worker })?),
                Ok(Err(_)) | Err(_) => silent.push(worker),
            }
        }
        match silent.is_empty() {
            true => Ok(answers),
            false => Err(AskError::Silent { workers: silent, within }),
        }
    }
}

fn listed(answer: Answer) -> Option<Vec<Entry>> {
    match answer {
        Answer::Listed(entries) => Some(entries),
        _ => None,
    }
}

/// `worker 1`, or `workers 1, 2`.
fn numbered(workers: &[usize]) -> String {
    let numbers: Vec<String> = workers.iter().map(ToString::to_string).collect();
    let s = if workers.len() == 1 { "" } else { "s" };
    format!("worker{s} {}", numbers.join(", "))
}

/// Adds up what the workers found; a message whose entries are with several counts once.
fn total(tallies: Vec<Tally>) -> QueueCount {
    let mut sum = QueueCount::default();
    let mut shared: HashSet<MessageId> = HashSet::new();
    for tally in tallies {
        sum.messages += tally.messages;
        sum.recipients += tally.recipients;
        sum.by_state.merge(tally.by_state);
        shared.extend(tally.shared);
    }
    sum.messages += shared.len() as u64;
    sum
}

/// Puts the workers' pages together and keeps the first `limit` messages.
///
/// Each worker gave its own first `limit`, so what all of them have up to the last kept one is
/// there in full, whichever worker has which entry of a message.
fn merge(lists: Vec<Vec<Entry>>, limit: usize) -> Listing {
    let is_full = |entries: &Vec<Entry>| messages(entries) >= limit;
    let mut has_more = lists.iter().any(is_full);
    let mut entries: Vec<Entry> = lists.into_iter().flatten().collect();
    entries.sort_by(|a, b| (a.id, &a.site).cmp(&(b.id, &b.site)));
    let mut count = 0;
    let mut last = None;
    let kept = entries
        .iter()
        .take_while(|entry| {
            count += usize::from(last != Some(entry.id));
            last = Some(entry.id);
            count <= limit
        })
        .count();
    has_more |= kept < entries.len();
    entries.truncate(kept);
    let next = entries.last().map(|entry| entry.id).filter(|_| has_more);
    Listing { entries, next }
}

/// Messages in a list by id.
fn messages(entries: &[Entry]) -> usize {
    entries.chunk_by(|a, b| a.id == b.id).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::moment::Moment;
    use crate::control::port::{ByState, State};
    use proptest::prelude::*;

    fn entry(id: u64, site: u8) -> Entry {
        Entry {
            id: MessageId(id),
            state: State::Ready,
            from: String::new(),
            to: vec!["a@example.com".to_owned()],
            named: Vec::new(),
            site: site.to_string(),
            domain: None,
            size: 1,
            attempts: 0,
            accepted: Moment(0),
            age_seconds: 0,
            next_attempt: None,
            reason: None,
            tls: None,
            parts: 1,
            verdict: None,
        }
    }

    #[test]
    fn a_shared_message_counts_once() {
        let tally = |messages, shared: &[u64], recipients| Tally {
            messages,
            shared: shared.iter().map(|&id| MessageId(id)).collect(),
            recipients,
            by_state: ByState { ready: messages, held: shared.len() as u64, ..ByState::default() },
        };
        let sum = total(vec![tally(2, &[7, 8], 9), tally(3, &[8], 4), Tally::default()]);
        let by_state = ByState { ready: 5, held: 3, ..ByState::default() };
        assert_eq!(sum, QueueCount { messages: 7, recipients: 13, by_state });
    }

    #[test]
    fn the_names_of_workers() {
        assert_eq!(numbered(&[1]), "worker 1");
        assert_eq!(numbered(&[0, 2]), "workers 0, 2");
    }

    proptest! {
        /// Page after page gives every entry once and in order, however they are spread.
        #[test]
        fn pages_give_everything_once(
            spread in prop::collection::vec((0u64..30, 0u8..4, 0usize..3), 0..60),
            limit in 1usize..7,
        ) {
            let mut workers = vec![Vec::new(); 3];
            for &(id, site, worker) in &spread {
                workers[worker].push(entry(id, site));
            }
            for entries in &mut workers {
                entries.sort_by_key(|entry| (entry.id, entry.site.clone()));
            }
            let page = |entries: &Vec<Entry>, after: Option<MessageId>| -> Vec<Entry> {
                let rest = entries.iter().filter(|entry| Some(entry.id) > after);
                let rest: Vec<Entry> = rest.cloned().collect();
                rest.chunk_by(|a, b| a.id == b.id).take(limit).flatten().cloned().collect()
            };
            let (mut seen, mut after) = (Vec::new(), None);
            loop {
                let lists = workers.iter().map(|entries| page(entries, after)).collect();
                let listing = merge(lists, limit);
                prop_assert!(messages(&listing.entries) <= limit);
                seen.extend(listing.entries);
                after = listing.next;
                if after.is_none() {
                    break;
                }
            }
            let mut expected: Vec<Entry> = workers.concat();
            expected.sort_by_key(|entry| (entry.id, entry.site.clone()));
            prop_assert_eq!(seen, expected);
        }
    }
}
