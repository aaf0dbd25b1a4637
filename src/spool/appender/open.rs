//! A batch while records are still written into it.

use std::time::Instant;

use super::super::buffer::PooledBuf;
use super::super::format::batch::Digest;
use super::super::format::record::RecordView;
use super::super::format::{BATCH_HEADER, index};
use super::super::round_to_block;
use super::super::sealed::SealedBatch;
use super::{NewRecord, Note, Pending, Ticket};
use crate::message::Durability;

#[derive(Debug)]
pub(super) struct OpenBatch {
    pub(super) buffer: PooledBuf,
    /// The end of what is written.
    pub(super) at: usize,
    pub(super) digest: Digest,
    pub(super) index_octets: usize,
    pub(super) notes: Vec<Note>,
    /// What its messages ask for; nothing while it has none.
    pub(super) durability: Option<Durability>,
    /// Somebody waits for it, or should not be kept waiting: seal as soon as possible.
    pub(super) is_urgent: bool,
    pub(super) has_messages: bool,
    /// It holds outcomes that were refused before: new messages would put them at risk again.
    pub(super) is_closed_to_messages: bool,
    pub(super) first_record: Instant,
}

impl OpenBatch {
    pub(super) fn new(buffer: PooledBuf, now: Instant) -> OpenBatch {
        OpenBatch {
            buffer,
            at: BATCH_HEADER,
            digest: Digest::default(),
            index_octets: 0,
            notes: Vec::new(),
            durability: None,
            is_urgent: false,
            has_messages: false,
            is_closed_to_messages: false,
            first_record: now,
        }
    }

    pub(super) fn room(&self) -> usize {
        self.buffer.len() - self.at
    }

    /// Writes all of `records` or none; gives the first one's ticket.
    pub(super) fn put(
        &mut self,
        records: &[NewRecord<'_>],
        next_ticket: &mut u64,
        is_refusable: bool,
    ) -> Option<Ticket> {
        let group = Ticket(*next_ticket);
        let notes = self.notes.len();
        let mut at = self.at;
        for (place, record) in records.iter().enumerate() {
            let Some(length) = record.put(&mut self.buffer[at..]) else {
                self.notes.truncate(notes);
                return None;
            };
            self.notes.push(Note {
                ticket: Ticket(group.0 + place as u64),
                offset: at as u32,
                length: length as u32,
                group,
                is_refusable,
            });
            at += length;
        }
        *next_ticket += records.len() as u64;
        for record in records {
            if let NewRecord::Message(message) = record {
                self.is_urgent = true;
                self.raise(message.durability);
            }
        }
        self.has_messages |= is_refusable;
        self.count_records(notes, at);
        Some(group)
    }

    pub(super) fn put_pending(&mut self, pending: &Pending) {
        let (start, notes) = (self.at, self.notes.len());
        self.buffer[start..start + pending.bytes.len()].copy_from_slice(&pending.bytes);
        self.notes.extend(
            pending.notes.iter().map(|note| Note { offset: note.offset + start as u32, ..*note }),
        );
        self.is_closed_to_messages |= pending.was_refused;
        // A group may hold a message of any durability: what is kept waiting is synced.
        self.raise(Durability::Fsync);
        self.count_records(notes, start + pending.bytes.len());
    }

    /// Takes the records behind the first `notes` into the digest; they end at `end`.
    fn count_records(&mut self, notes: usize, end: usize) {
        self.at = end;
        for note in &self.notes[notes..] {
            let record = &self.buffer[note.offset as usize..];
            let head_length = RecordView::head_length_of(record).expect("just written");
            self.digest.add(record);
            self.index_octets += index::entry_bytes(head_length);
        }
    }

    fn raise(&mut self, durability: Durability) {
        if self.durability != Some(Durability::Fsync) {
            self.durability = Some(durability);
        }
    }

    pub(super) fn seal(mut self, worker: usize) -> SealedBatch {
        zero_tail(&mut self.buffer, self.at);
        SealedBatch {
            worker,
            payload_length: self.at - BATCH_HEADER,
            digest: self.digest,
            // Outcomes alone are synced; beside messages they ask for nothing more than those.
            durability: self.durability.unwrap_or(Durability::Fsync),
            has_messages: self.has_messages,
            is_chunk: false,
            index_octets: self.index_octets,
            notes: self.notes,
            abandoned: Vec::new(),
            compaction: None,
            buffer: self.buffer,
        }
    }
}

/// Clears the last block behind `used`: what an earlier user of the buffer left there is no
/// business of the disk.
pub(super) fn zero_tail(buffer: &mut [u8], used: usize) {
    let end = round_to_block(used).min(buffer.len());
    buffer[used..end].fill(0);
}
