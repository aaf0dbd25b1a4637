//! The SMTP protocol without I/O: bytes and time in, actions out.
//!
//! Nothing in here opens a socket, reads a clock or keeps a file; the server and the client
//! are state machines that [`crate::inbound`] and [`crate::outbound`] drive.

pub mod address;
pub mod capabilities;
pub mod client;
pub mod code;
pub mod command;
pub mod line;
pub mod reply_reader;
