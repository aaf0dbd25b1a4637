//! The last step of a message's way through the gateway: over a connection, or into a Maildir.

pub mod maildir;
