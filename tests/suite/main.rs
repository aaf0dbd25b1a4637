//! The integration tests, linked once.

mod addresses;
mod config;
mod control;
mod simulation;
