//! Who is here: the recipients of `[recipients]`, asked at RCPT, VRFY and EXPN.
//!
//! [`Table`] is the file, read once and whole: pure, and proved free of loops.  [`Recipients`] is
//! what all workers share of it.  What the file says nothing about it does not judge: a domain
//! without a line takes mail for everybody, as if there were no file.
//!
//! A file that cannot be used stops the start and `check`; at a reload it changes nothing.

mod forward;
mod read;
mod table;
#[cfg(test)]
mod tests;
mod walk;

pub use forward::forwarded;
pub use read::BadTable;
pub use table::{Expansion, Figures, Finding, Table};
