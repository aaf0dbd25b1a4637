//! What a connection writes, as `outbound::smtp::writing` does it: gathered, and taken by the peer
//! at once or piece by piece, while what arrives is heard.

use std::collections::VecDeque;

use mailrace::message::MessageId;
use mailrace::smtp::body::{BodyForm, Reshape};
use mailrace::smtp::client::TransactionId;
use mailrace::spool::{ChunkPlace, Kind, RecordView, StoredBody};

use super::super::gateway::Errand;
use super::super::message::read;
use super::super::scene::{End, Scene};
use super::super::worker::{Shared, Worker};
use super::Connection;

/// Octets that wait to be written, and where in them bodies end.
#[derive(Default)]
pub struct Outbox {
    octets: Vec<u8>,
    ends: VecDeque<(usize, TransactionId)>,
    /// The peer's window is full: it goes on with an errand.
    is_stuck: bool,
}

/// What of a large body is still to be sent.
pub struct Pieces {
    id: MessageId,
    transaction: TransactionId,
    reshape: Reshape,
    left: VecDeque<ChunkPlace>,
    suffix: &'static [u8],
}

impl Outbox {
    pub fn add(&mut self, octets: &[u8]) {
        self.octets.extend_from_slice(octets);
    }
}

impl Connection {
    /// Whether something is to be written before anything else.
    pub(super) fn is_writing(&self) -> bool {
        self.pieces.is_some() || self.outbox.is_stuck
    }

    pub(super) fn send_body(
        &mut self,
        scene: &mut Scene,
        shared: &Shared,
        worker: usize,
        id: TransactionId,
        form: BodyForm,
        suffix: &'static [u8],
    ) {
        let Some(job) = self.jobs.iter().find(|job| job.transaction == id) else { return };
        let stored = &job.message.stored;
        let mut reshape = Reshape::new(stored.summary.flags, form);
        self.outbox.octets.extend_from_slice(&stored.trace);
        match &stored.body {
            StoredBody::Inline => {
                reshape.write(&job.message.inline, &mut self.outbox.octets);
                self.end_body(id, suffix);
            }
            StoredBody::Chunks(chunks) => {
                let (left, message) = (chunks.iter().copied().collect(), stored.id);
                let transaction = id;
                self.pieces = Some(Pieces { id: message, transaction, reshape, left, suffix });
                self.call_for_piece(scene, shared, worker);
            }
        }
    }

    fn end_body(&mut self, id: TransactionId, suffix: &'static [u8]) {
        self.outbox.octets.extend_from_slice(suffix);
        self.outbox.ends.push_back((self.outbox.octets.len(), id));
    }

    /// Writes what waits, or as much as the peer takes now.
    pub(super) fn flush(&mut self, scene: &mut Scene, shared: &Shared, worker: usize) {
        if self.outbox.is_stuck || self.outbox.octets.is_empty() || self.client.is_over() {
            return;
        }
        let is_slow = self.outbox.octets.len() > 1 && scene.chance(60);
        let octets = match is_slow {
            true => scene.random.usize(0..self.outbox.octets.len()),
            false => self.outbox.octets.len(),
        };
        self.write(scene, octets);
        if is_slow {
            scene.happens("a next hop takes what is written piece by piece");
            self.outbox.is_stuck = true;
            let wait_us = scene.wait_us(10..50_000);
            shared.errand(scene, wait_us, Errand::Piece(worker, self.id));
        }
    }

    fn write(&mut self, scene: &mut Scene, octets: usize) {
        let written: Vec<u8> = self.outbox.octets.drain(..octets).collect();
        scene.send(self.link, End::Opener, &written);
        self.client.body_progress(scene.now());
        for (end, _) in &mut self.outbox.ends {
            *end = end.saturating_sub(octets);
        }
        while let Some((_, id)) = self.outbox.ends.pop_front_if(|(end, _)| *end == 0) {
            self.client.body_sent(scene.now(), id);
        }
    }

    fn call_for_piece(&self, scene: &mut Scene, shared: &Shared, worker: usize) {
        let wait_us = scene.wait_us(10..30_000);
        shared.errand(scene, wait_us, Errand::Piece(worker, self.id));
    }

    /// The peer takes more, or the reader brings the next piece.
    pub fn piece(&mut self, scene: &mut Scene, worker: &mut Worker, shared: &Shared) {
        if self.outbox.is_stuck {
            self.outbox.is_stuck = false;
            if !self.client.is_over() {
                let rest = self.outbox.octets.len();
                self.write(scene, rest);
            }
            if self.pieces.is_some() {
                self.call_for_piece(scene, shared, worker.index);
            }
            return self.look(scene, worker, shared);
        }
        let Some(mut pieces) = self.pieces.take().filter(|_| !self.client.is_over()) else {
            return;
        };
        let chunk = pieces.left.pop_front().expect("it is over with its last one");
        match read(scene, worker, shared, pieces.id, chunk.place, Kind::Chunk) {
            Ok(record) => {
                let record = RecordView::parse(&record).expect("it was parsed before");
                pieces.reshape.write(record.body(), &mut self.outbox.octets);
                match pieces.left.is_empty() {
                    true => self.end_body(pieces.transaction, pieces.suffix),
                    false => self.pieces = Some(pieces),
                }
                self.flush(scene, shared, worker.index);
                if self.pieces.is_some() && !self.outbox.is_stuck {
                    self.call_for_piece(scene, shared, worker.index);
                }
            }
            Err(words) => {
                if !scene.books.may_be_damaged() {
                    scene.books.problem(format!("a chunk is gone: {words}"));
                }
                self.client.abandon();
            }
        }
        self.look(scene, worker, shared);
    }
}
