//! Dialogues: protocol tests as text, played against the pure server and over TCP.
//!
//! `format` reads a file of `tests/dialogues` (its `README.md` describes the language), `settings`
//! makes the configuration that it asks for, `machine` drives the server without I/O, `judge`
//! holds a dialogue against what happened, `tcp` plays it to a running gateway.

pub mod format;
pub mod judge;
pub mod machine;
pub mod settings;
pub mod tcp;
