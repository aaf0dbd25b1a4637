//! Who a client is: SASL both ways, users and their secrets, keys of token issuers, and what keeps
//! guessing slow.
//!
//! Its place: [`crate::smtp::server`] reads AUTH and its base64 and knows no mechanism;
//! [`crate::inbound`] runs the exchange of [`sasl`] over it; what costs time ([`Authority::verify`])
//! runs on the blocking pool.  [`Authority`] is the one object that all workers share.
//!
//! Invariants: a password, a token or a key never appears in an error, an event or `Debug`; a
//! user who is not there costs a client the same time and the same reply as a wrong password; a
//! file that cannot be used never replaces one that can; every table that a peer can fill has a
//! bound.
//!
//! It fails as [`Denied`]: the client's fault (535) or for now (454).  It does not decide who may
//! send where; [`crate::inbound::relay`] does.

mod authority;
mod jwt;
mod prep;
pub mod sasl;
pub mod scram;
mod secret;
mod smart_host;
pub mod throttle;
pub mod users;

pub use authority::{Authority, AuthorityError, Denied, Identity};
pub use jwt::{BadKeys, Issuer, KeySet};
pub use prep::prepare;
pub use secret::{HASH_PARAMETERS, PasswordHash};
pub use smart_host::{SecretPlace, SmartHostLogin};
pub use users::{SenderRule, User, Users};
