//! mailrace: a durable, fast mail gateway.
//!
//! The modules stand in the order in which a message meets them; `docs/flow.md` tells its way.

pub mod cli;
pub mod config;
pub mod gateway;
pub mod limits;
pub mod message;
pub mod units;

pub mod dns;
pub mod runtime;
pub mod smtp;
pub mod sync;

pub mod peers;

pub mod auth;
pub mod tls;

pub mod listener;

pub mod recipients;

pub mod inbound;

pub mod edge;

pub mod spool;

pub mod queue;

pub mod delivery;

pub mod pool;

pub mod outbound;

pub mod control;
pub mod worker;
