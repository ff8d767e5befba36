//! The admin port: what is in force, why a request gets what it gets, drain, log level.

use std::{collections::BTreeMap, convert::Infallible, fmt, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{Query, State},
    http::{StatusCode, header},
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};

use super::guard::{Token, guard};
use crate::{
    PodCache, PodPurges, PurgeAnswer, PurgeError, PurgeRequest,
    ask::{self, ExplainRequest},
    cache,
    config::Shared,
    drain,
    route::Explanation,
    show::{CacheExplanation, Figures, ListRequest, Objects, ShowError, StoredAnswer},
};

/// Sets what is logged, by a level or a filter such as `info,sidecar::limit=debug`. The error says what is wrong with it.
pub type SetLevel = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// What the admin port works on.
#[derive(Clone)]
pub struct Admin {
    /// The configuration in force.
    pub shared: Shared,
    /// Starts the drain.
    pub drain: drain::Handle,
    /// Sets what is logged.
    pub set_level: SetLevel,
    /// What was purged from the cache.
    pub purges: PodPurges,
    /// What the cache holds.
    pub cache: PodCache,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("shared", &self.shared).field("drain", &self.drain).finish_non_exhaustive()
    }
}

/// What is wrong with a request of the administrator.
type Wrong = (StatusCode, String);

/// The routes of the admin port; every one needs the token.
pub fn admin(admin: Admin, token: &str) -> Router {
    Router::new()
        .route("/config", get(config))
        .route("/explain", get(explain))
        .route("/drain", post(drain))
        .route("/loglevel", post(log_level))
        .route("/cache/purge", post(purge))
        .route("/cache/stats", get(figures))
        .route("/cache/objects", get(objects))
        .route("/cache/object", get(object))
        .route("/cache/explain", get(explain_cache))
        .with_state(admin)
        .layer(from_fn_with_state(Token::new(token), guard))
}

async fn config(State(admin): State<Admin>) -> Json<Value> {
    Json(ask::describe(&admin.shared))
}

/// A request in parts: see [`imagined`].
type Imagined = Query<Vec<(String, String)>>;

async fn explain(State(admin): State<Admin>, Query(parts): Imagined) -> Result<Json<Explanation>, Wrong> {
    let request = imagined(parts)?;
    request.explain(admin.shared.load().routes(request.direction)).map(Json).map_err(wrong)
}

/// `?url=http://shop/products&method=GET&direction=Inbound&client=10.0.0.1&header=x-tier:gold`; `header` may stand several times.
fn imagined(parts: Vec<(String, String)>) -> Result<ExplainRequest, Wrong> {
    let mut fields = serde_json::Map::new();
    let mut headers = BTreeMap::new();
    for (name, value) in parts {
        if name == "header" {
            let (name, value) =
                value.split_once(':').ok_or_else(|| wrong(format!("header: {value:?} is not like x-tier:gold")))?;
            headers.insert(name.trim().to_ascii_lowercase(), value.trim().to_owned());
        } else {
            fields.insert(name, value.into());
        }
    }
    fields.insert("headers".to_owned(), json!(headers));
    serde_json::from_value(fields.into()).map_err(|error| wrong(error.to_string()))
}

fn wrong(message: String) -> Wrong {
    (StatusCode::BAD_REQUEST, message + "\n")
}

/// Drains inbound traffic as the FetchrProxy says, and answers when it is over.
async fn drain(State(admin): State<Admin>) -> Json<Value> {
    let settings = admin.shared.load().settings().drain.clone();
    let left = admin.drain.drain_inbound(settings.delay.0, settings.timeout.0).await;
    Json(json!({"connectionsLeft": left}))
}

async fn log_level(State(admin): State<Admin>, filter: String) -> Result<String, Wrong> {
    let filter = filter.trim();
    (admin.set_level)(filter).map_err(|error| (StatusCode::BAD_REQUEST, format!("{filter:?}: {error}\n")))?;
    tracing::info!(filter, "What is logged was changed through the admin port.");
    Ok(format!("{filter}\n"))
}

/// `{"tag": "news", "soft": true}`: see [`PurgeRequest`]. Answered when no later request gets what went, or when that takes too long.
async fn purge(State(admin): State<Admin>, request: String) -> Result<Json<PurgeAnswer>, Wrong> {
    let request: PurgeRequest =
        serde_json::from_str(&request).map_err(|error| (StatusCode::BAD_REQUEST, format!("{error}\n")))?;
    let config = Arc::clone(&admin.shared.load());
    let answer = admin.purges.purge_forms(&request, |url| cache::forms(&config, url), Duration::MAX).await;
    answer.map(Json).map_err(|error| {
        let status = match error {
            PurgeError::Wrong(_) => StatusCode::BAD_REQUEST,
            PurgeError::Unreachable(_) | PurgeError::Busy => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, format!("{error}\n"))
    })
}

async fn figures(State(admin): State<Admin>) -> Result<Json<Figures>, Wrong> {
    admin.cache.figures().map(Json).map_err(unshown)
}

/// `?prefix=http://shop/products/&limit=1000`: see [`ListRequest`].
async fn objects(State(admin): State<Admin>, Query(request): Query<ListRequest>) -> Result<Json<Objects>, Wrong> {
    admin.cache.list(request).await.map(Json).map_err(unshown)
}

/// The parts of a request, and `body=true` for more than the head: a message of HTTP/1.1 then, and else JSON.
async fn object(State(admin): State<Admin>, Query(mut parts): Imagined) -> Result<Response, Wrong> {
    let body = parts.iter().position(|(name, _)| name == "body").map(|at| parts.swap_remove(at).1);
    let request = imagined(parts)?;
    let config = admin.shared.load();
    match body.as_deref() {
        None | Some("false") => admin.cache.head(&config, &request).map(|head| Json(head).into_response()).map_err(unshown),
        Some("true") => admin.cache.answer(&config, &request).map(message).map_err(unshown),
        Some(other) => Err(wrong(format!("body: {other:?} is neither true nor false"))),
    }
}

fn message(StoredAnswer { head, body }: StoredAnswer) -> Response {
    let length = head.len() + body.iter().map(bytes::Bytes::len).sum::<usize>();
    let pieces = std::iter::once(head).chain(body).map(Ok::<_, Infallible>);
    let fields = [(header::CONTENT_TYPE, "message/http".to_owned()), (header::CONTENT_LENGTH, length.to_string())];
    (fields, Body::from_stream(futures::stream::iter(pieces))).into_response()
}

async fn explain_cache(State(admin): State<Admin>, Query(parts): Imagined) -> Result<Json<CacheExplanation>, Wrong> {
    let request = imagined(parts)?;
    admin.cache.explain(&admin.shared.load(), &request).map(Json).map_err(unshown)
}

fn unshown(error: ShowError) -> Wrong {
    match error {
        ShowError::Wrong(why) => wrong(why),
        ShowError::Nothing(why) => (StatusCode::NOT_FOUND, why + "\n"),
        closed @ ShowError::Closed => (StatusCode::SERVICE_UNAVAILABLE, format!("{closed}\n")),
    }
}
