//! The edge filter: what is asked about a client before its mail costs anything.
//!
//! Only for listeners with `service = "mx"`, and only where the configuration has `[edge]`.  Facts
//! are fetched while the session goes on, all those of a stage at the same time and under one
//! deadline; every check is a pure function of facts and configuration, and gives a
//! [`Finding`](verdict::Finding) or nothing; a [`Verdict`](verdict::Verdict) adds the findings up
//! and can explain itself.
//!
//! Invariants: a fact that could not be had is no finding, so that no failure of ours or of the
//! DNS refuses mail; the postmaster is taken whatever the verdict, unless clients are refused in
//! place of the greeting; no wait is without a deadline.
//!
//! Not here: relay control (`inbound::relay`), which decides first and whatever the filter says.

pub mod checks;
pub mod explanation;
pub mod gathering;
pub mod inquiry;
pub mod lists;
pub mod memory;
pub mod memory_file;
pub mod rspamd;
pub mod screening;
pub mod slots;
pub mod tag;
pub mod tarpit;
pub mod verdict;
