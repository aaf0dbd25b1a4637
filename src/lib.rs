//! mailrace: a durable, fast mail gateway.
//!
//! The modules stand in the order in which a message meets them; `docs/flow.md` tells its way.

pub mod cli;
pub mod config;
pub mod limits;
pub mod message;
pub mod units;

pub mod runtime;
pub mod smtp;

/// The way in; so far only who may send where.
pub mod inbound {
    pub mod relay;
}
