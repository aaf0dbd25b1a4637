//! The delivery queue: handles of accepted messages, by core and by site.
//!
//! A message comes here when its commit completes and leaves with its last outcome.  The queue
//! holds no message: a handle says where in the log it stands.  Nothing in here does I/O or reads
//! a clock; [`crate::delivery`] drives it.

pub mod arena;
pub mod handle;
pub mod scheduler;
pub mod site;
