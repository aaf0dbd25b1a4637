//! Looking at a stopped spool: is it sound, what stands in it, and the messages out of it.
//!
//! Read-only, one pass, nothing is applied to a log.  Each function gives how much damage it met,
//! which is what a command's exit code says.  Files that recovery set aside are read too.
