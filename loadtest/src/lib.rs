//! mailrace-loadtest: a load generator for SMTP that sends, sinks and keeps the books.
//!
//! Works against any server.  It shares no code with the gateway, so that one bug cannot hide on
//! both sides.  `source` and `sink` are twins: the one plans and sends, the other receives and
//! behaves as the world does; `ledger` holds what the one was promised against what the other got.

pub mod cli;
pub mod units;

pub mod runtime;
pub mod signal;
pub mod wire;

pub mod message;

pub mod source;

pub mod sink;

pub mod ledger;
pub mod report;

#[cfg(test)]
mod tests;
