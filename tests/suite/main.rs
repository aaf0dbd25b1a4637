//! The integration tests, linked once.
//!
//! `gateway` starts the real binary, `client` and `sink` are what stands on both sides of it.

mod addresses;
mod bytes;
mod client;
mod config;
mod gateway;
mod sink;
