//! Certificates and the rules about them: ours, chosen by the name that a client asks for, and
//! what is asked of a peer's.
//!
//! It stands beside a message's path: a listener's sessions take their rustls configuration from
//! an [`Acceptor`], a connection to a next hop from a [`Connector`] by its [`TlsPolicy`].  The
//! octets are `runtime::tls`'s business.
//!
//! Invariants: a configuration that cannot be used never replaces one that can (a reload that
//! fails leaves all as it was); sessions that run keep what they have.  TLS 1.2 and 1.3 only, by
//! the suites that rustls has, none of which is without forward secrecy.  A certificate that a
//! client shows opens nothing by itself: whoever decides compares its [`Fingerprint`].
//!
//! It fails at the start and at a reload, by [`CertificateError`], which names the file, what
//! was expected there, what was found, and the mend.

pub mod acceptor;
pub mod certificate;
pub mod connector;
mod der;
pub mod fingerprint;
mod resolver;
pub mod self_signed;
#[cfg(test)]
pub(crate) mod test_kit;
mod verifiers;

pub use acceptor::{Acceptor, AcceptorSettings};
pub use certificate::{CertificateError, CertificateFiles};
pub use connector::{Connector, TlsPolicy};
pub use fingerprint::Fingerprint;
