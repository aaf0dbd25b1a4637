//! The control plane: what operators see of the gateway, and the few things they change in it.

pub mod events;
pub mod moment;
