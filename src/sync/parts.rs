//! How many parts of a message are still under way, counted down by several cores.
//!
//! Each part ends with records in the log.  Exactly one of them says that the whole message is
//! over, and only when the ends of all other parts are in the log: on the disk the batches of two
//! cores may stand in either order, and a crash between them must not lose the other's end.

use super::atomic::{AtomicU32, Ordering};

/// The parts of one message; shared by their handles.
#[derive(Debug)]
pub struct Parts(AtomicU32);

impl Parts {
    /// So many, of which none has ended.
    pub fn new(count: u32) -> Parts {
        Parts(AtomicU32::new(count))
    }

    /// How many have not ended.
    pub fn left(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether the ends of all parts but one are in the log.  Whoever asks has a part that has not
    /// ended, and so knows which one it is.
    pub fn is_one_left(&self) -> bool {
        self.0.load(Ordering::Acquire) == 1
    }

    /// The end of a part is in the log; tells whether it was the last one.
    #[must_use]
    pub fn end_one(&self) -> bool {
        self.0.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// A part has become several: there are so many more.
    pub fn add(&self, more: u32) {
        self.0.fetch_add(more, Ordering::AcqRel);
    }
}
