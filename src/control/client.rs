//! The other end of the admin socket: how `mailrace queue` asks a running gateway.

use std::io;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};

use super::admin::SOCKET_NAME;
use super::port::{Action, Change, Changed, Filter, Listing, Query, QueueCount};
use crate::edge::explanation::Explanation;
use crate::limits;
use crate::message::MessageId;

/// A client of one gateway; blocks its thread.
#[derive(Debug)]
pub struct AdminClient {
    socket: PathBuf,
    runtime: Runtime,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "nothing answers at {}: is mailrace running with this configuration?",
        socket.display()
    )]
    NotRunning {
        /// Where.
        socket: PathBuf,
    },
    /// The socket is somebody else's.
    #[error("{} may only be used by the user that mailrace runs as", socket.display())]
    NotAllowed {
        /// Where.
        socket: PathBuf,
    },
    /// The connection could not be used, or broke.
    #[error("the connection to {} failed", socket.display())]
    Broken {
        /// Where.
        socket: PathBuf,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("mailrace did not answer within {} s", limits::ADMIN_CONNECTION_TIME.as_secs())]
    Late,
    /// The gateway refused, and said why.
    #[error("{error}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// Its sentence.
        error: String,
    },
    /// The answer is not one of ours: another version, or another program.
    #[error("mailrace answered something else than expected: is it of this version?")]
    Strange(#[source] serde_json::Error),
    /// No event loop for this process.
    #[error("cannot start")]
    Start(#[source] io::Error),
}

impl AdminClient {
    /// A client of the gateway that has this data directory.
    ///
    /// # Errors
    /// The system has no event loop for us.  Whether the gateway runs shows at the first request.
    pub fn new(data_dir: &Path) -> Result<AdminClient, ClientError> {
        let runtime =
            Builder::new_current_thread().enable_all().build().map_err(ClientError::Start)?;
        Ok(AdminClient { socket: data_dir.join(SOCKET_NAME), runtime })
    }

    /// Messages and recipients that the filter fits.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn count(&self, filter: Filter) -> Result<QueueCount, ClientError> {
        self.get("/api/v1/queue/count", &Query::from(filter))
    }

    /// One page of the list: `limit` messages after `after`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn list(
        &self,
        filter: Filter,
        after: Option<MessageId>,
        limit: usize,
    ) -> Result<Listing, ClientError> {
        self.get("/api/v1/queue", &Query { after, limit: Some(limit), ..Query::from(filter) })
    }

    /// The entries of one message.
    ///
    /// # Errors
    /// See [`ClientError`]; `Refused` with 404 if it is not in the queue.
    pub fn show(&self, id: MessageId) -> Result<Listing, ClientError> {
        self.get(&format!("/api/v1/queue/{id}"), &Query::default())
    }

    /// How transactions of a session, or of a message, were judged; none if nothing is remembered.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn why(&self, id: MessageId) -> Result<Vec<Explanation>, ClientError> {
        let path = format!("/api/v1/why/{id}");
        match self.request(Method::GET, &path, Vec::new()) {
            Err(ClientError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(Vec::new()),
            answer => answer,
        }
    }

    /// Changes the queue; returns what was changed.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn act(&self, action: Action, change: &Change) -> Result<Changed, ClientError> {
        let body = serde_json::to_vec(change).map_err(ClientError::Strange)?;
        self.request(Method::POST, &format!("/api/v1/queue/{}", action.as_str()), body)
    }

    fn get<T: DeserializeOwned>(&self, path: &str, query: &Query) -> Result<T, ClientError> {
        let query = serde_urlencoded::to_string(query)
            .expect("every field of a query is a number or a string");
        let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
        self.request(Method::GET, &target, Vec::new())
    }

    fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        target: &str,
        body: Vec<u8>,
    ) -> Result<T, ClientError> {
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .expect("a target that we wrote is one");
        let (status, body) = self.runtime.block_on(async {
            let exchange = exchange(&self.socket, request);
            match tokio::time::timeout(limits::ADMIN_CONNECTION_TIME, exchange).await {
                Ok(answer) => answer,
                Err(_) => Err(ClientError::Late),
            }
        })?;
        match status.is_success() {
            true => serde_json::from_slice(&body).map_err(ClientError::Strange),
            false => Err(ClientError::Refused { status, error: sentence(status, &body) }),
        }
    }
}

async fn exchange(
    socket: &Path,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), ClientError> {
    let broken = |source| ClientError::Broken { socket: socket.to_owned(), source };
    let stream = UnixStream::connect(socket).await.map_err(|error| {
        let socket = socket.to_owned();
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { socket }
            }
            io::ErrorKind::PermissionDenied => ClientError::NotAllowed { socket },
            _ => ClientError::Broken { socket, source: error.into() },
        }
    })?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(error.into()))?;
    // Ends when the answer is here; its errors show in the answer.
    tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(|error| broken(error.into()))?;
    let status = answer.status();
    let body = answer.into_body().collect().await.map_err(|error| broken(error.into()))?;
    Ok((status, body.to_bytes()))
}

/// The sentence of a refusal.
fn sentence(status: StatusCode, body: &[u8]) -> String {
    let answer: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    match answer.as_ref().and_then(|answer| answer["error"].as_str()) {
        Some(error) => error.to_owned(),
        None => format!("mailrace answered {status}"),
    }
}
