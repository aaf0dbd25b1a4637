//! Memory that the disk can take from and put into directly: aligned, pooled, shared once sealed.
//!
//! A buffer is owned by one thread at a time: the worker fills it, the committer writes it, the
//! worker gets it back in the completion.  Only then may it become a [`SharedBatch`], read by
//! whoever holds a clone, and it returns to its pool when the last clone is gone.  A pool never
//! makes more buffers than it was told to, which is what bounds the spool's memory.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use crossbeam::queue::SegQueue;

use super::direct::AlignedBuf;
use super::format::{BATCH_HEADER, RECORD_ALIGN};
use super::{RecordPlace, round_to_block};
use crate::limits;

/// A bounded set of buffers of one size; clones are handles to the same set.
#[derive(Clone, Debug)]
pub struct BufferPool(Arc<Shelf>);

#[derive(Debug)]
struct Shelf {
    free: SegQueue<AlignedBuf>,
    /// `free.len() <= made <= made_max`
    made: AtomicUsize,
    made_max: usize,
    octets: usize,
}

impl BufferPool {
    /// At most `buffers` of `octets` each, made as they are first needed.
    pub fn new(octets: usize, buffers: usize) -> BufferPool {
        BufferPool(Arc::new(Shelf {
            free: SegQueue::new(),
            made: AtomicUsize::new(0),
            made_max: buffers,
            octets: round_to_block(octets),
        }))
    }

    /// A buffer with whatever its last user left in it, or nothing when all are in use.
    pub fn take(&self) -> Option<PooledBuf> {
        let shelf = &self.0;
        let inner = shelf.free.pop().or_else(|| {
            shelf
                .made
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |made| {
                    (made < shelf.made_max).then_some(made + 1)
                })
                .ok()
                .map(|_| AlignedBuf::new(shelf.octets))
        })?;
        Some(PooledBuf { inner: Some(inner), shelf: Arc::downgrade(shelf) })
    }

    /// What each buffer holds, in octets.
    pub fn buffer_octets(&self) -> usize {
        self.0.octets
    }

    /// How many more [`Self::take`] would give now.
    pub fn available(&self) -> usize {
        self.0.free.len() + self.0.made_max.saturating_sub(self.0.made.load(Ordering::Relaxed))
    }
}

/// A buffer that goes back to its pool when dropped, on whichever thread that is.
pub struct PooledBuf {
    /// Always there until the drop.
    inner: Option<AlignedBuf>,
    /// Nothing for a buffer made for a single use.
    shelf: Weak<Shelf>,
}

impl PooledBuf {
    /// A buffer outside every pool, for what is longer than pooled ones are.
    pub fn single(octets: usize) -> PooledBuf {
        PooledBuf { inner: Some(AlignedBuf::new(octets)), shelf: Weak::new() }
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.inner.as_mut().expect("held until the drop").as_mut_ptr()
    }
}

impl Deref for PooledBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.inner.as_ref().expect("held until the drop")
    }
}

impl DerefMut for PooledBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.inner.as_mut().expect("held until the drop")
    }
}

impl Drop for PooledBuf {
    fn drop(&mut self) {
        if let (Some(inner), Some(shelf)) = (self.inner.take(), self.shelf.upgrade()) {
            shelf.free.push(inner);
        }
    }
}

impl std::fmt::Debug for PooledBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PooledBuf({} octets)", self.len())
    }
}

/// A committed batch that is still in memory: a body can be sent out of it without a read.
///
/// It occupies a buffer of its worker's pool for as long as a clone lives, so hold a
/// [`WeakBatch`] while a message waits and upgrade it for the sending.
#[derive(Clone, Debug)]
pub struct SharedBatch(pub(crate) Arc<SharedInner>);

#[derive(Debug)]
pub(crate) struct SharedInner {
    pub(crate) buffer: PooledBuf,
    /// Header and payload without the last block's padding.
    pub(crate) used: usize,
    /// Where the batch begins in its segment file.
    pub(crate) place: super::BatchPlace,
}

impl SharedBatch {
    /// The record at `place`, or nothing if it does not lie in this batch.
    pub fn record(&self, place: RecordPlace) -> Option<&[u8]> {
        if place.segment != self.0.place.segment {
            return None;
        }
        let start = place.offset.checked_sub(self.0.place.offset)? as usize;
        let end = start.checked_add(place.length as usize)?;
        if start < BATCH_HEADER || end > self.0.used {
            return None;
        }
        self.0.buffer.get(start..end)
    }

    /// A reference that does not keep the buffer from being used again.
    pub fn downgrade(&self) -> WeakBatch {
        WeakBatch(Arc::downgrade(&self.0))
    }
}

/// A batch that may still be in memory.
#[derive(Clone, Debug, Default)]
pub struct WeakBatch(Weak<SharedInner>);

impl WeakBatch {
    /// The batch, if its buffer has not been used again.
    pub fn upgrade(&self) -> Option<SharedBatch> {
        self.0.upgrade().map(SharedBatch)
    }
}

/// What stands before a chunk's body: the batch's header, and the record's header and head.
pub(crate) const CHUNK_FRONT: usize = BATCH_HEADER + RECORD_ALIGN;

/// A piece of a large body, received straight into the place from which it is written.
///
/// It is a whole batch whose front is left free for the headers.  The body's pointer is aligned
/// to 64 octets and does not move with the value, so the buffer can be lent to a ring.
#[derive(Debug)]
pub struct ChunkBuffer {
    pub(crate) buffer: PooledBuf,
    len: usize,
}

impl ChunkBuffer {
    /// The most body octets a chunk holds.
    pub const CAPACITY: usize = limits::CHUNK - CHUNK_FRONT;

    pub(crate) fn new(buffer: PooledBuf) -> ChunkBuffer {
        debug_assert!(buffer.len() >= limits::CHUNK);
        ChunkBuffer { buffer, len: 0 }
    }

    /// The body so far.
    pub fn body(&self) -> &[u8] {
        &self.buffer[CHUNK_FRONT..CHUNK_FRONT + self.len]
    }

    /// The same, to be changed in place.
    pub fn body_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        &mut self.buffer[CHUNK_FRONT..CHUNK_FRONT + len]
    }

    /// Adds to the body what fits and tells how much that was.
    pub fn push(&mut self, octets: &[u8]) -> usize {
        let spare = self.spare();
        let fits = octets.len().min(spare.len());
        spare[..fits].copy_from_slice(&octets[..fits]);
        self.len += fits;
        fits
    }

    /// The room behind the body so far; fill some and call [`Self::advance`].
    pub fn spare(&mut self) -> &mut [u8] {
        let len = self.len;
        &mut self.buffer[CHUNK_FRONT + len..limits::CHUNK]
    }

    /// Counts `octets` of the spare room to the body.
    ///
    /// # Panics
    /// If there is not that much spare room.
    pub fn advance(&mut self, octets: usize) {
        self.set_len(self.len.checked_add(octets).expect("a chunk is short"));
    }

    /// Octets of body.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no body yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets the body's length; all octets up to [`Self::CAPACITY`] are initialised memory.
    ///
    /// # Panics
    /// Beyond [`Self::CAPACITY`].
    pub fn set_len(&mut self, octets: usize) {
        assert!(octets <= Self::CAPACITY, "a chunk's body fits its buffer");
        self.len = octets;
    }

    /// The body's first octet, valid for [`Self::capacity`] octets while `self` lives.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.buffer[CHUNK_FRONT..].as_mut_ptr()
    }

    /// The most body octets it holds.
    pub fn capacity(&self) -> usize {
        Self::CAPACITY
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::{BLOCK, BatchPlace, SegmentNo};

    #[test]
    fn a_pool_gives_no_more_than_it_may_and_takes_back() {
        let pool = BufferPool::new(5000, 2);
        let first = pool.take().unwrap();
        let second = pool.take().unwrap();
        assert_eq!(first.len(), 8192);
        assert_eq!(first.as_ptr() as usize % BLOCK, 0);
        assert!(pool.take().is_none());
        drop(second);
        assert_eq!(pool.available(), 1);
        assert!(pool.take().is_some());
    }

    #[test]
    fn a_shared_batch_gives_only_what_lies_in_it() {
        let pool = BufferPool::new(BLOCK, 1);
        let place = BatchPlace { segment: SegmentNo(3), offset: 8192, sequence: 1 };
        let batch =
            SharedBatch(Arc::new(SharedInner { buffer: pool.take().unwrap(), used: 192, place }));
        let at =
            |segment, offset, length| RecordPlace { segment: SegmentNo(segment), offset, length };
        assert_eq!(batch.record(at(3, 8192 + 64, 128)).unwrap().len(), 128);
        for outside in [
            at(2, 8192 + 64, 64),
            at(3, 8192, 64),
            at(3, 8192 + 64, 192),
            at(3, 64, 64),
            at(3, u32::MAX, u32::MAX),
        ] {
            assert!(batch.record(outside).is_none(), "{outside:?}");
        }
        let weak = batch.downgrade();
        assert!(weak.upgrade().is_some() && pool.take().is_none());
        drop(batch);
        assert!(weak.upgrade().is_none() && pool.take().is_some());
    }

    #[test]
    fn a_chunk_is_filled_in_place() {
        let pool = BufferPool::new(limits::CHUNK, 1);
        let mut chunk = ChunkBuffer::new(pool.take().unwrap());
        assert_eq!(chunk.as_mut_ptr() as usize % RECORD_ALIGN, 0);
        assert_eq!(chunk.spare().len(), ChunkBuffer::CAPACITY);
        chunk.spare()[..5].copy_from_slice(b"hello");
        chunk.advance(5);
        assert_eq!(chunk.body(), b"hello");
        assert_eq!(chunk.spare().len(), chunk.capacity() - 5);
    }
}
