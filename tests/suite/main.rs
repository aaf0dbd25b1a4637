//! The integration tests, linked once.

mod addresses;
mod config;
mod dialogue;
mod dialogues;
mod soup;
