//! SMTP as it stands on the wire, read and written with code of this package's own: the gateway
//! must not be judged by the parser that it was built with.
//!
//! Pure: bytes in, meaning out, right at whatever place the network cut them.

pub mod command;
pub mod data;
pub mod reply;
