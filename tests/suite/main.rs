//! The integration tests, linked once.

mod config;
