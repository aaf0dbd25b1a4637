//! Which file a segment's present life is in, and where messages stand that were moved: written by
//! the committer a few times a minute, read by the reader for each request.
//!
//! A message that the compaction moved is known in the queue by its old place for as long as it
//! lives.  Whoever reads it asks here for the place that counts ([`SegmentTable::place_of`]);
//! whoever reads one chunk after the other holds its segments meanwhile ([`SegmentTable::pin`]).
//! An entry lasts until the segment that it names is retired.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{FileNo, RecordPlace, SegmentNo};
use crate::message::MessageId;

/// Parts of the map of moved messages, each with a lock of its own: so a part that grows, which
/// copies it, holds up nobody for long.
const SHARDS: usize = 256;

/// The table; shared in an `Arc`.
#[derive(Debug)]
pub struct SegmentTable {
    files: RwLock<HashMap<SegmentNo, Entry>>,
    moved: Box<[RwLock<HashMap<MessageId, RecordPlace>>]>,
    /// Entries in all of `moved`; nearly always none, and then nobody takes a lock.
    moved_count: AtomicUsize,
}

#[derive(Debug)]
struct Entry {
    file: FileNo,
    /// One more than there are [`SegmentPin`]s.
    readers: Arc<()>,
}

/// Keeps a segment from being retired.
#[derive(Debug, Clone)]
pub struct SegmentPin {
    _reader: Arc<()>,
}

impl Default for SegmentTable {
    fn default() -> Self {
        SegmentTable {
            files: RwLock::default(),
            moved: (0..SHARDS).map(|_| RwLock::default()).collect(),
            moved_count: AtomicUsize::new(0),
        }
    }
}

impl SegmentTable {
    /// The file of a segment, or nothing once it was retired.
    pub fn file(&self, segment: SegmentNo) -> Option<FileNo> {
        self.files().get(&segment).map(|entry| entry.file)
    }

    /// Keeps a segment from being retired; nothing if it is too late for that.
    pub fn pin(&self, segment: SegmentNo) -> Option<SegmentPin> {
        self.files().get(&segment).map(|entry| SegmentPin { _reader: entry.readers.clone() })
    }

    /// Where a message stands now that was told to stand at `place`.
    pub fn place_of(&self, id: MessageId, place: RecordPlace) -> RecordPlace {
        self.moved(id).unwrap_or(place)
    }

    /// Where a message stands that was moved, or was thought to be elsewhere by one of its records.
    pub(crate) fn moved(&self, id: MessageId) -> Option<RecordPlace> {
        if self.moved_count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.shard(id).read().unwrap_or_else(PoisonError::into_inner).get(&id).copied()
    }

    pub(crate) fn insert(&self, segment: SegmentNo, file: FileNo) {
        self.files_mut().insert(segment, Entry { file, readers: Arc::default() });
    }

    /// Takes the segment out unless somebody reads in it; gives whether it is out.
    pub(crate) fn remove_unread(&self, segment: SegmentNo) -> bool {
        let mut files = self.files_mut();
        let is_read =
            files.get(&segment).is_some_and(|entry| Arc::strong_count(&entry.readers) > 1);
        if !is_read {
            files.remove(&segment);
        }
        !is_read
    }

    pub(crate) fn set_moved(&self, id: MessageId, place: RecordPlace) {
        let mut shard = self.shard(id).write().unwrap_or_else(PoisonError::into_inner);
        if shard.insert(id, place).is_none() {
            self.moved_count.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Forgets where a message stands if that is in `segment`.
    pub(crate) fn forget_moved(&self, id: MessageId, segment: SegmentNo) {
        let mut shard = self.shard(id).write().unwrap_or_else(PoisonError::into_inner);
        if shard.get(&id).is_some_and(|place| place.segment == segment) {
            shard.remove(&id);
            self.moved_count.fetch_sub(1, Ordering::AcqRel);
        }
    }

    fn shard(&self, id: MessageId) -> &RwLock<HashMap<MessageId, RecordPlace>> {
        // The counter's bits and the time's: ids differ in both.
        &self.moved[(id.0 ^ id.0 >> 23) as usize % SHARDS]
    }

    fn files(&self) -> RwLockReadGuard<'_, HashMap<SegmentNo, Entry>> {
        self.files.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn files_mut(&self) -> RwLockWriteGuard<'_, HashMap<SegmentNo, Entry>> {
        self.files.write().unwrap_or_else(PoisonError::into_inner)
    }
}
