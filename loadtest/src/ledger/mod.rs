//! The books: what was acknowledged, what arrived, and what follows from comparing the two.
//!
//! Both sides write records of 24 octets, appended in blocks, so that ten million messages are
//! 240 MB and a process that is killed loses at most the last second of its own records.  The
//! server between knows nothing of it.

pub mod compare;
pub mod record;
