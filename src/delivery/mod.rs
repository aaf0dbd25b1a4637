//! What happens to a message between the queue and the next hop: pure judgement and the notices
//! that come of it.

pub mod notice;
pub mod outcome;
