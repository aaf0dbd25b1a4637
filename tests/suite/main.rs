//! The integration tests, linked once.

mod addresses;
mod config;
mod control;
mod dialogue;
mod dialogues;
mod simulation;
mod soup;
