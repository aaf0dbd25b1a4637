//! What happens to a message between the queue and a connection: routes resolved to sites,
//! attempts judged, notices written, and what a restart finds taken up again.

pub mod course;
pub mod message;
pub mod notice;
pub mod outcome;
pub mod reach;
pub mod recovery;
pub mod settle;
pub mod settlement;
pub mod sites;
pub mod verp;
