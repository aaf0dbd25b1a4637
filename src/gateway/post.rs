//! The workers' mailboxes, and how the log's threads and control reach them.

use std::io;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::control::port::{Answer, Request, WorkerPort};
use crate::runtime::mailbox::{Inbox, mailbox};
use crate::spool::{Completion, CompletionSink, ReadAnswer, ReadSink};
use crate::worker::{Forwarded, Letter, MAILBOX_HANDLES, Post};

/// A worker's receiving ends.
pub(super) type Inboxes = (Inbox<Letter>, Inbox<Forwarded>);

pub(super) fn mailboxes(workers: usize) -> io::Result<(Arc<[Post]>, Vec<Inboxes>)> {
    let mut posts = Vec::new();
    let mut inboxes = Vec::new();
    for _ in 0..workers {
        let (letters, letters_inbox) = mailbox(None)?;
        let (handles, handles_inbox) = mailbox(Some(MAILBOX_HANDLES))?;
        posts.push(Post { letters, handles });
        inboxes.push((letters_inbox, handles_inbox));
    }
    Ok((posts.into(), inboxes))
}

/// Takes what the log's threads have done to the workers.
pub(super) struct PostSink {
    pub(super) posts: Arc<[Post]>,
}

impl PostSink {
    fn put(&self, worker: usize, letter: Letter) {
        let pushed = self.posts[worker].letters.push(letter);
        debug_assert!(pushed.is_ok(), "the mailbox for answers has no bound");
    }
}

impl CompletionSink for PostSink {
    fn complete(&self, worker: usize, completion: Completion) {
        self.put(worker, Letter::Committed(completion));
    }

    fn wake(&self, worker: usize) {
        self.posts[worker].letters.wake();
    }
}

impl ReadSink for PostSink {
    fn answer(&self, worker: usize, answer: ReadAnswer) {
        self.put(worker, Letter::Read(answer));
    }

    fn wake(&self, worker: usize) {
        self.posts[worker].letters.wake();
    }
}

/// How control reaches the workers.
pub(super) struct Port {
    pub(super) posts: Arc<[Post]>,
}

impl WorkerPort for Port {
    fn workers(&self) -> usize {
        self.posts.len()
    }

    fn ask(&self, worker: usize, request: Request, answer: oneshot::Sender<Answer>) {
        let letters = &self.posts[worker].letters;
        if letters.push(Letter::Asked(request, answer)).is_ok() {
            letters.wake();
        }
    }
}
