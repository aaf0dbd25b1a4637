//! Which file a segment's present life is in: written by the committer a few times a minute,
//! read by the reader for each request.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use super::{FileNo, SegmentNo};

/// The table; shared in an `Arc`.
#[derive(Debug, Default)]
pub struct SegmentTable(RwLock<HashMap<SegmentNo, FileNo>>);

impl SegmentTable {
    /// The file of a segment, or nothing once it was retired.
    pub fn file(&self, segment: SegmentNo) -> Option<FileNo> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&segment).copied()
    }

    pub(crate) fn insert(&self, segment: SegmentNo, file: FileNo) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(segment, file);
    }

    pub(crate) fn remove(&self, segment: SegmentNo) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&segment);
    }
}
