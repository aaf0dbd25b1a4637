//! A large body on its way to the disk.

use std::collections::VecDeque;

use mailrace::message::MessageId;
use mailrace::smtp::reply::Refusal;
use mailrace::spool::appender::ChunkTicket;
use mailrace::spool::{ChunkBuffer, ChunkPlace};

use super::scene::LinkId;
use super::worker::{Waiting, Worker};

/// A large body on its way to the disk.
pub struct Upload {
    pub id: MessageId,
    pub next: u32,
    pub pending: VecDeque<(ChunkTicket, Option<ChunkPlace>)>,
    pub places: Vec<ChunkPlace>,
    pub failed: Option<Refusal>,
}

impl Upload {
    pub fn new(id: MessageId) -> Upload {
        Upload { id, next: 0, pending: VecDeque::new(), places: Vec::new(), failed: None }
    }

    pub fn push(&mut self, worker: &mut Worker, chunk: ChunkBuffer, link: LinkId) {
        if chunk.is_empty() {
            return;
        }
        let ticket = worker.appender.append_chunk(chunk, self.id, self.next);
        worker.waiting.insert(ticket.ticket, Waiting::Chunk { link });
        self.pending.push_back((ticket, None));
        self.next += 1;
    }
}
