//! Reading what is to be written again, and putting it into a batch.

use std::io;

use super::super::buffer::PooledBuf;
use super::super::disk::Disk;
use super::super::format::batch::Digest;
use super::super::format::message;
use super::super::format::outcome::{Defer, Done, Recipients, StoredRecipients};
use super::super::format::record::{Kind, RecordView};
use super::super::format::{BATCH_HEADER, FormatError, index};
use super::super::scan::{Unreadable, Window};
use super::super::sealed::SealedBatch;
use super::super::segments::SegmentTable;
use super::super::{RecordPlace, SegmentNo, round_to_block};
use super::{COMPACTOR, Item, Written};
use crate::message::{Durability, MessageId};

/// A batch to be made.
#[derive(Debug)]
pub struct Work {
    pub(crate) written: Written,
    pub(crate) segment_bytes: u32,
}

/// What was made of it.
#[derive(Debug)]
pub struct Made {
    /// Nothing when there was nothing left to write.
    pub(crate) batch: Option<SealedBatch>,
    /// What could not be read, and why.
    pub(crate) failed: Vec<(Item, io::Error)>,
}

/// The records of a batch while they are put together.
struct Batch {
    buffer: PooledBuf,
    at: usize,
    digest: Digest,
    index_octets: usize,
}

impl Work {
    /// Reads, verifies and puts together.
    pub(crate) fn perform<D: Disk>(self, disk: &D, table: &SegmentTable) -> Made {
        let mut reads = Reads { disk, table, segment_bytes: self.segment_bytes, window: None };
        match self.written {
            Written::Chunk { item, index } => reads.chunk(item, index),
            Written::Items(items) => reads.items(items),
        }
    }
}

struct Reads<'a, D> {
    disk: &'a D,
    table: &'a SegmentTable,
    segment_bytes: u32,
    /// Neighbours are read together.
    window: Option<(SegmentNo, Window<'a, D>)>,
}

impl<D: Disk> Reads<'_, D> {
    fn chunk(&mut self, item: Box<Item>, index: usize) -> Made {
        let message = item.message.as_ref().expect("only messages have chunks");
        let place = message.chunks[index].place;
        let mut batch = Batch::new(place.length as usize);
        let copied = self
            .record(item.id, Kind::Chunk, place)
            .and_then(|record| batch.push(record).ok_or_else(too_long));
        match copied {
            Ok(()) => {
                let batch = batch.seal(Written::Chunk { item, index }, Durability::Os);
                Made { batch: Some(batch), failed: Vec::new() }
            }
            Err(error) => Made { batch: None, failed: vec![(*item, error)] },
        }
    }

    fn items(&mut self, items: Vec<Item>) -> Made {
        let mut batch = Batch::new(items.iter().map(Item::octets_max).sum());
        let (mut kept, mut failed) = (Vec::with_capacity(items.len()), Vec::new());
        for item in items {
            let before = (batch.at, batch.digest, batch.index_octets);
            match self.item(&item, &mut batch) {
                Ok(()) => kept.push(item),
                Err(error) => {
                    (batch.at, batch.digest, batch.index_octets) = before;
                    failed.push((item, error));
                }
            }
        }
        let batch = (!kept.is_empty()).then(|| batch.seal(Written::Items(kept), Durability::Fsync));
        Made { batch, failed }
    }

    fn item(&mut self, item: &Item, batch: &mut Batch) -> io::Result<()> {
        if let Some(message) = &item.message {
            let record = self.record(item.id, Kind::Message, message.place)?;
            let start = batch.at;
            batch.push_unsealed(record).ok_or_else(too_long)?;
            if !message.copies.is_empty() {
                message::set_chunks(&mut batch.buffer[start..batch.at], &message.chunks)
                    .map_err(damaged)?;
            }
            batch.count(start).ok_or_else(too_long)?;
        }
        let (id, segment) = (item.id, item.of);
        if let Some((recipients, last)) = &item.done {
            let done = Done { id, segment, recipients: borrowed(recipients), last: *last };
            batch.put(|out| done.put(out)).ok_or_else(too_long)?;
        }
        for wait in &item.deferrals {
            let defer = Defer {
                id,
                segment,
                recipients: borrowed(&wait.recipients),
                state: wait.state,
                next_attempt_unix_ms: wait.next_attempt_unix_ms,
                attempts: wait.attempts,
                delay_told: wait.delay_told,
                reply: &wait.reply,
            };
            batch.put(|out| defer.put(out)).ok_or_else(too_long)?;
        }
        Ok(())
    }

    /// A whole record, verified.
    fn record(&mut self, id: MessageId, kind: Kind, place: RecordPlace) -> io::Result<&[u8]> {
        if self.window.as_ref().is_none_or(|(segment, _)| *segment != place.segment) {
            let file = self.table.file(place.segment).ok_or(io::ErrorKind::NotFound)?;
            self.window = Some((
                place.segment,
                Window::new(self.disk, file, self.segment_bytes, Unreadable::Fails),
            ));
        }
        let (_, window) = self.window.as_mut().expect("it was just made");
        let bytes = window.bytes(place.offset as usize, place.length as usize)?;
        let record = RecordView::parse(bytes).map_err(damaged)?;
        record.verify_body().map_err(damaged)?;
        let is_it = record.id() == id
            && record.kind() == kind
            && record.total_length() == place.length as usize;
        is_it.then_some(bytes).ok_or_else(|| damaged(FormatError::Malformed("record's place")))
    }
}

impl Batch {
    fn new(octets: usize) -> Batch {
        Batch {
            buffer: PooledBuf::single(round_to_block(BATCH_HEADER + octets)),
            at: BATCH_HEADER,
            digest: Digest::default(),
            index_octets: 0,
        }
    }

    fn push(&mut self, record: &[u8]) -> Option<()> {
        let start = self.at;
        self.push_unsealed(record)?;
        self.count(start)
    }

    fn push_unsealed(&mut self, record: &[u8]) -> Option<()> {
        let end = self.at.checked_add(record.len())?;
        self.buffer.get_mut(self.at..end)?.copy_from_slice(record);
        self.at = end;
        Some(())
    }

    fn put(&mut self, put: impl FnOnce(&mut [u8]) -> Option<usize>) -> Option<()> {
        let start = self.at;
        self.at += put(&mut self.buffer[start..])?;
        self.count(start)
    }

    /// Takes the record that begins at `start` into the digest.
    fn count(&mut self, start: usize) -> Option<()> {
        let record = &self.buffer[start..self.at];
        self.index_octets += index::entry_bytes(RecordView::head_length_of(record).ok()?);
        self.digest.add(record);
        Some(())
    }

    fn seal(mut self, written: Written, durability: Durability) -> SealedBatch {
        // What an item that failed has left behind is no business of the disk.
        let used = self.at;
        let end = round_to_block(used).min(self.buffer.len());
        self.buffer[used..end].fill(0);
        SealedBatch {
            worker: COMPACTOR,
            payload_length: used - BATCH_HEADER,
            buffer: self.buffer,
            digest: self.digest,
            durability,
            // A full disk is helped by it.
            has_messages: false,
            is_chunk: false,
            index_octets: self.index_octets,
            notes: Vec::new(),
            abandoned: Vec::new(),
            compaction: Some(written),
        }
    }
}

fn borrowed(recipients: &StoredRecipients) -> Recipients<'_> {
    match recipients {
        StoredRecipients::All => Recipients::All,
        StoredRecipients::Some(list) => Recipients::Some(list),
    }
}

fn damaged(error: FormatError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn too_long() -> io::Error {
    damaged(FormatError::Malformed("record's length"))
}
