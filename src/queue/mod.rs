//! The delivery queue: handles of accepted messages, by core, destination and site.
//!
//! A message comes here when its commit completes and leaves with its last outcome.  The queue
//! holds no message: a handle says where in the log it stands.  Nothing in here does I/O or reads
//! a clock; [`crate::delivery`] drives it.
//!
//! Two levels.  A *destination* is what a message is filed under, known without a look-up: the
//! course of its route, and its domain where mail exchangers have to be asked for.  A *site* is
//! what connections lead to: what a destination resolves to.  Many destinations share a site,
//! its connections, its limit and its rests.

pub mod allowance;
pub mod arena;
pub mod destination;
pub mod handle;
mod list;
pub mod scheduler;
pub mod site;
mod timers;
