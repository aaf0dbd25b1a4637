//! What the admin server answers: paths, parameters, status codes.
//!
//! Every answer but the metrics is JSON; every refusal is `{"error": "…"}` with a sentence that a
//! person can act on.  No answer carries a CORS header, so no web page can read any of them.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use axum::{Json, Router};
use serde_json::json;

use super::{Gateway, host};
use crate::control::metrics::exposition::CONTENT_TYPE;
use crate::control::port::{self, Action, Change, Changed, Listing, QueueCount};
use crate::control::workers::AskError;
use crate::edge::explanation::Explanation;
use crate::limits;
use crate::message::{MessageId, NotAMessageId};

/// Messages on a page of the list where the query does not say.
const PAGE_DEFAULT: usize = 100;

/// What is served over TCP: nothing that changes anything, and only to requests for this host.
pub(super) fn read_only(gateway: Arc<Gateway>, hostname: &str) -> Router {
    let hostname: Arc<str> = hostname.into();
    let check = move |request: Request, next: Next| {
        let hostname = hostname.clone();
        async move {
            match names_us(&request, &hostname) {
                true => next.run(request).await,
                false => Refusal::ForeignHost.into_response(),
            }
        }
    };
    routes(gateway, get(show)).layer(middleware::from_fn(check))
}

/// What is served over the Unix socket: the same, and what changes the queue.
pub(super) fn full(gateway: Arc<Gateway>) -> Router {
    routes(gateway, get(show).post(act))
}

/// `message` answers `/api/v1/queue/NAME`, where a name is a message's id or an action.
fn routes(gateway: Arc<Gateway>, message: MethodRouter<Arc<Gateway>>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/api/v1/queue", get(list))
        .route("/api/v1/queue/count", get(count))
        .route("/api/v1/queue/{name}", message)
        .route("/api/v1/why/{name}", get(why))
        .fallback(async || Refusal::NoSuchPath)
        .method_not_allowed_fallback(async || Refusal::Method)
        .layer(DefaultBodyLimit::max(limits::ADMIN_BODY))
        .layer(middleware::map_response(with_headers))
        .with_state(gateway)
}

/// Everything here is of this moment, and none of it is a page.
async fn with_headers(mut response: Response) -> Response {
    const HEADERS: [(HeaderName, HeaderValue); 2] = [
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    response.headers_mut().extend(HEADERS);
    response
}

fn names_us(request: &Request, hostname: &str) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().is_ok_and(|host| host::is_ours(host, hostname)),
        // Browsers always send one; HTTP/1.0 has none.
        (None, _) => true,
        (Some(_), Some(_)) => false,
    }
}

async fn metrics(State(gateway): State<Arc<Gateway>>) -> Response {
    match gateway.metrics.render() {
        Ok(page) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], page).into_response(),
        Err(error) => Refusal::Bug(error.to_string()).into_response(),
    }
}

/// Whether every worker answers; restarting the process would be the mend if one does not.
async fn health(State(gateway): State<Arc<Gateway>>) -> Response {
    match gateway.workers.ping().await {
        Ok(workers) => Json(json!({ "status": "ok", "workers": workers })).into_response(),
        Err(error) => unavailable("failing", &error),
    }
}

/// Whether to send mail here.
async fn ready(State(gateway): State<Arc<Gateway>>) -> Response {
    match gateway.status.readiness() {
        Ok(()) => Json(json!({ "status": "ready" })).into_response(),
        Err(reason) => unavailable("not ready", &reason),
    }
}

fn unavailable(status: &str, reason: &dyn std::error::Error) -> Response {
    let answer = json!({ "status": status, "reason": reason.to_string() });
    (StatusCode::SERVICE_UNAVAILABLE, Json(answer)).into_response()
}

async fn list(
    State(gateway): State<Arc<Gateway>>,
    query: Result<Query<port::Query>, QueryRejection>,
) -> Result<Json<Listing>, Refusal> {
    let Query(query) = query?;
    let page = port::Page {
        after: query.after,
        limit: query.limit.unwrap_or(PAGE_DEFAULT).min(limits::ADMIN_PAGE),
        filter: query.into_filter(),
    };
    Ok(Json(gateway.workers.list(page).await?))
}

async fn count(
    State(gateway): State<Arc<Gateway>>,
    query: Result<Query<port::Query>, QueryRejection>,
) -> Result<Json<QueueCount>, Refusal> {
    let Query(query) = query?;
    if query.after.is_some() || query.limit.is_some() {
        return Err(Refusal::Request("a count has no `after` and no `limit`".to_owned()));
    }
    Ok(Json(gateway.workers.count(query.into_filter()).await?))
}

async fn show(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
) -> Result<Json<Listing>, Refusal> {
    let id: MessageId =
        name.parse().map_err(|error: NotAMessageId| Refusal::Request(error.to_string()))?;
    let entries = gateway.workers.show(id).await?;
    match entries.is_empty() {
        true => Err(Refusal::NoSuchMessage),
        false => Ok(Json(Listing { entries, next: None })),
    }
}

async fn why(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
) -> Result<Json<Vec<Explanation>>, Refusal> {
    let id: MessageId =
        name.parse().map_err(|error: NotAMessageId| Refusal::Request(error.to_string()))?;
    let explanations = gateway.workers.why(id).await?;
    match explanations.is_empty() {
        true => Err(Refusal::NotRemembered),
        false => Ok(Json(explanations)),
    }
}

async fn act(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Changed>, Refusal> {
    let action: Action = name.parse().map_err(|_| Refusal::NoSuchAction)?;
    let body = body.map_err(|error| Refusal::Body(error.status(), error.body_text()))?;
    let change: Change = serde_json::from_slice(&body)
        .map_err(|error| Refusal::Request(format!("the body is not a change: {error}")))?;
    if change.ids.is_empty() && change.filter.is_empty() && !change.all {
        return Err(Refusal::Request(
            "name messages by `ids`, by `filter`, or with `\"all\": true`".to_owned(),
        ));
    }
    Ok(Json(gateway.workers.act(action, change).await?))
}

/// Why a request was not answered as asked.
enum Refusal {
    NoSuchPath,
    NoSuchMessage,
    NotRemembered,
    NoSuchAction,
    Method,
    ForeignHost,
    Request(String),
    Body(StatusCode, String),
    Workers(AskError),
    Bug(String),
}

impl From<QueryRejection> for Refusal {
    fn from(rejection: QueryRejection) -> Refusal {
        Refusal::Request(rejection.body_text())
    }
}

impl From<AskError> for Refusal {
    fn from(error: AskError) -> Refusal {
        match error {
            AskError::Confused { .. } => Refusal::Bug(error.to_string()),
            AskError::Silent { .. } | AskError::Failed { .. } => Refusal::Workers(error),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, error) = match self {
            Refusal::NoSuchPath => (StatusCode::NOT_FOUND, "nothing is served here".to_owned()),
            Refusal::NoSuchMessage => {
                (StatusCode::NOT_FOUND, "no such message in the queue".to_owned())
            }
            Refusal::NotRemembered => (
                StatusCode::NOT_FOUND,
                "no verdict on a session or message of this id is remembered; its `verdict` event \
                 has the causes"
                    .to_owned(),
            ),
            Refusal::NoSuchAction => (StatusCode::NOT_FOUND, port::NotAnAction.to_string()),
            Refusal::Method => (
                StatusCode::METHOD_NOT_ALLOWED,
                "not by this method; changes are POSTed over data_dir/admin.sock".to_owned(),
            ),
            Refusal::ForeignHost => (
                StatusCode::MISDIRECTED_REQUEST,
                "the Host header names another host; use an address or the configured hostname"
                    .to_owned(),
            ),
            Refusal::Request(error) => (StatusCode::BAD_REQUEST, error),
            Refusal::Body(status, error) => (status, error),
            Refusal::Workers(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
            Refusal::Bug(error) => (StatusCode::INTERNAL_SERVER_ERROR, error),
        };
        (status, Json(json!({ "error": error }))).into_response()
    }
}
