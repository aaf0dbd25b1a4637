//! Deliveries that need no peer: Maildirs, `discard`, and what a `reject` route left in the queue.

use std::sync::Arc;

use super::Way;
use super::maildir::{self, MaildirError, MaildirMessage, Stored};
use crate::config::{Maildir, Target};
use crate::delivery::message::{LoadError, LoadedMessage};
use crate::delivery::outcome::{Attempted, Reason};
use crate::delivery::settle::Attempt;
use crate::queue::arena::Slot;
use crate::smtp::body::{BodyForm, Reshape};
use crate::smtp::code::EnhancedCode;
use crate::worker::Worker;

/// Takes one message after the other until none comes.
pub async fn run(way: &Way, target: Target) {
    while let Some(slot) = way.next().await {
        deliver(way, &target, slot).await;
    }
}

async fn deliver(way: &Way, target: &Target, slot: Slot) {
    let worker = &way.worker;
    let Some(attempt) = Attempt::begin(worker, way.site, None, slot) else { return };
    let message = match worker.load(attempt.id(), attempt.place()).await {
        Ok(message) => message,
        Err(error) => return attempt.unreadable(worker, &error),
    };
    let mut outcomes = Vec::new();
    for place in attempt.recipients() {
        let attempted = match target {
            Target::Maildir(maildir) => {
                // Before this start it may have been delivered and not written down.
                let is_older = attempt.id() <= worker.highest_recovered;
                let perhaps_delivered = is_older || attempt.attempts_before() > 0;
                into_maildir(worker, maildir, &message, place, perhaps_delivered).await
            }
            Target::Discard => Attempted::Delivered,
            Target::Reject { text } => Attempted::Failed(local_reason((5, 7, 1), text)),
            // The scheduler opens no connection for a hold, and `smtp` has a driver of its own.
            Target::Hold
            | Target::Mx
            | Target::Smtp { .. }
            | Target::Smtps { .. }
            | Target::Lmtp { .. }
            | Target::LmtpUnix { .. } => {
                Attempted::Deferred(local_reason((4, 3, 5), "no way to deliver"))
            }
        };
        outcomes.push((place, attempted));
    }
    attempt.settle(worker, &message, outcomes).await;
}

/// Writes the message into one recipient's Maildir, on the blocking pool.
async fn into_maildir(
    worker: &Worker,
    maildir: &Maildir,
    message: &LoadedMessage,
    place: u16,
    perhaps_delivered: bool,
) -> Attempted {
    let envelope = message.envelope().clone();
    let recipient = &envelope.recipients[usize::from(place)].path;
    let (local, domain) = maildir::template_names(recipient, &worker.config.hostname);
    let path = maildir.path(&local, &domain);
    let trace: Box<[u8]> = message.trace().into();
    let Ok(octets) = message.octets_unstuffed(&worker.log).await else { return unreadable() };
    let (id, config) = (message.id(), worker.config.clone());
    let accepted_unix_ms = message.origin().accepted_unix_ms;
    let (body, feed) = body_of(message);
    let job = move || {
        let envelope = Arc::clone(&envelope);
        let message = MaildirMessage {
            id,
            recipient: place,
            accepted_unix_ms,
            return_path: &envelope.reverse_path,
            trace: &trace,
            body_octets: octets - trace.len() as u64,
            hostname: &config.hostname,
            perhaps_delivered,
        };
        maildir::deliver(&path, &message, body)
    };
    let written = worker.blocking.run(job);
    let feeding = feed.run(worker, message);
    match both(written, feeding).await {
        Some(Ok(Stored::Written(_) | Stored::AlreadyThere)) => Attempted::Delivered,
        Some(Err(error)) => {
            tracing::warn!(message = %id, %error, "a message could not be put into its Maildir");
            MaildirError::attempted(&error)
        }
        None => Attempted::Deferred(local_reason((4, 3, 0), "the file system took too long")),
    }
}

/// The pieces of a body on their way to the blocking thread: all at once for a small one, as the
/// reader brings them for a large one.
struct Feed(Option<crossbeam::channel::Sender<Vec<u8>>>);

fn body_of(message: &LoadedMessage) -> (crossbeam::channel::IntoIter<Vec<u8>>, Feed) {
    let (sender, receiver) = crossbeam::channel::bounded(PIECES);
    let Some(body) = message.inline_body() else {
        return (receiver.into_iter(), Feed(Some(sender)));
    };
    let mut whole = Vec::new();
    Reshape::new(message.summary().flags, BodyForm::Bdat).write(body, &mut whole);
    sender.send(whole).expect("the channel is empty and its other end is here");
    (receiver.into_iter(), Feed(None))
}

impl Feed {
    /// Reads the chunks and hands them over; ends early when one cannot be read, and the writer
    /// then finds that octets are missing.
    async fn run(self, worker: &Worker, message: &LoadedMessage) {
        let Some(sender) = self.0 else { return };
        let mut reshape = Reshape::new(message.summary().flags, BodyForm::Bdat);
        let mut pieces = message.pieces();
        while let Some(piece) = pieces.next(&worker.log).await {
            let piece: Result<_, LoadError> = piece;
            let Ok(piece) = piece else { return };
            let mut octets = Vec::new();
            reshape.write(piece.0.view().body(), &mut octets);
            let mut next = octets;
            loop {
                match sender.try_send(next) {
                    Ok(()) => break,
                    Err(crossbeam::channel::TrySendError::Full(back)) => next = back,
                    // The writer gave up; it says why.
                    Err(crossbeam::channel::TrySendError::Disconnected(_)) => return,
                }
                crate::runtime::sleep(WRITER_POLL).await;
            }
        }
    }
}

/// Runs the second beside the first for as long as that one takes; gives what that one gives.
async fn both<A, B>(first: impl Future<Output = A>, second: impl Future<Output = B>) -> A {
    use std::pin::pin;
    use std::task::Poll;
    let (mut first, mut second) = (pin!(first), pin!(second));
    let mut is_second_done = false;
    std::future::poll_fn(move |context| {
        if let Poll::Ready(output) = first.as_mut().poll(context) {
            return Poll::Ready(output);
        }
        if !is_second_done {
            is_second_done = second.as_mut().poll(context).is_ready();
        }
        Poll::Pending
    })
    .await
}

fn unreadable() -> Attempted {
    Attempted::Deferred(local_reason((4, 3, 0), "the message could not be read here"))
}

fn local_reason((class, subject, detail): (u8, u16, u16), text: &str) -> Reason {
    let status = EnhancedCode::new(class, subject, detail).expect("written in this file");
    Reason::Local { status, text: text.into() }
}

/// Pieces of a large body between the reader and the writer.
const PIECES: usize = 2;
/// How often it is looked whether the writer has taken one.
const WRITER_POLL: std::time::Duration = std::time::Duration::from_millis(2);
