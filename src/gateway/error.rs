//! Why a gateway did not start, in words that say what to do.

use std::io;
use std::net::SocketAddr;

use crate::auth::AuthorityError;
use crate::control::admin::AdminError;
use crate::recipients::RecipientsError;
use crate::spool::RecoveryError;
use crate::spool::file_disk::OpenError;
use crate::tls::CertificateError;

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error("cannot use the data directory {path}: {source}; `data_dir` must be writable")]
    DataDirectory {
        /// Which.
        path: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The log cannot be opened.
    #[error("cannot open the log of messages: {0}")]
    Open(#[from] OpenError),
    /// The log cannot be recovered.
    #[error("cannot recover the log of messages: {0}")]
    Recover(#[from] RecoveryError),
    /// A listener cannot be bound.
    #[error("cannot listen on {address}: {source}{}", hint(source))]
    Bind {
        /// Where.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The admin interface cannot be set up.
    #[error("{}", with_source(.0))]
    Admin(#[from] AdminError),
    /// TLS cannot be set up.
    #[error("{0}")]
    Tls(#[from] CertificateError),
    /// Users or keys cannot be read.
    #[error("{0}")]
    Auth(#[from] AuthorityError),
    /// The recipients cannot be read.
    #[error("{0}")]
    Recipients(#[from] RecipientsError),
    /// The events cannot be written.
    #[error("cannot write the events: {0}")]
    Events(#[source] io::Error),
    /// The privileges cannot be dropped.
    #[error("cannot become the user {user}: {source}")]
    User {
        /// Whom.
        user: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// A thread, or what it needs, is not to be had.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
}

fn with_source(error: &AdminError) -> String {
    match error {
        AdminError::Tcp { source, .. } => format!("{error}: {source}{}", hint(source)),
        AdminError::Unix { source, .. } | AdminError::Thread(source) => {
            format!("{error}: {source}")
        }
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; is another server, or another mailrace, running there?",
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need root, or the capability cap_net_bind_service"
        }
        _ => "",
    }
}
