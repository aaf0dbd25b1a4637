//! What peers are counted by, and what they may spend: shared by whoever has to bound strangers.
//!
//! Pure but for the locks of its bounded tables; time is an argument.  Who is counted, and what
//! follows, is decided where it is asked: [`crate::listener`], [`crate::auth`],
//! [`crate::recipients`], [`crate::edge`].

pub mod allowances;
pub(crate) mod lapsing;
pub mod network;
