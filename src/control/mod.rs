//! The control plane: what operators see of the gateway, and the few things they change in it.

pub mod events;
pub mod metrics;
pub mod moment;
pub mod port;
pub mod status;
pub mod workers;

pub mod admin;
pub mod client;
