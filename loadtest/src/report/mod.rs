//! What a run has to tell: counts and latencies as they are gathered, a line while it goes on,
//! a summary as text and as JSON when it is over.

pub mod books;
pub mod progress;
pub mod send;
pub mod sink;
pub mod tally;
pub mod usage;
