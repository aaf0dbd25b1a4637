//! The SMTP protocol without I/O: bytes and time in, actions out.
//!
//! Nothing in here opens a socket, reads a clock or keeps a file; the server and the client
//! are state machines that [`crate::inbound`] and [`crate::outbound`] drive.

pub mod address;
pub mod body;
pub mod capabilities;
pub mod client;
pub mod code;
pub mod command;
pub mod data;
pub mod header;
pub mod line;
pub mod reply;
pub mod reply_reader;
pub mod server;
pub mod xclient;
