//! What threads share without a lock: handshakes that are small enough to be looked at in every
//! order of their steps.
//!
//! Each stands in a file of its own that needs nothing but atomics, and takes those from
//! `atomic`.  The models of `tests/suite/models` compile the same files over loom's atomics and
//! run them in every order that the memory model of C11 allows, up to a bound on preemptions.

pub mod doorbell;
pub mod parts;

/// The real ones; the models have others in this place.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
}
