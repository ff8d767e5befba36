//! The admin port: what is in force, why a request gets what it gets, drain, log level.

use std::{fmt, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Query, State},
    middleware::from_fn_with_state,
    routing::{get, post},
};
use serde_json::{Value, json};

use super::{
    files,
    guard::{Token, guard},
};
use crate::{
    PodCache, PodPurges, PurgeAnswer, PurgeRequest,
    ask::{self, ExplainRequest, Refused},
    cache,
    config::Shared,
    drain,
    limit::{Limiter, show::Forgotten},
    route::Explanation,
    throttle::{PodThrottles, ThrottleFigures},
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
    /// Who waits for upstreams.
    pub throttles: PodThrottles,
    /// What the limits count.
    pub limiter: Arc<Limiter>,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("shared", &self.shared).field("drain", &self.drain).finish_non_exhaustive()
    }
}

/// The routes of the admin port; every one needs the token.
pub fn admin(admin: Admin, token: &str) -> Router {
    let shown = ask::cache::routes(admin.shared.clone(), admin.cache.clone())
        .merge(ask::limits::routes(admin.shared.clone(), Arc::clone(&admin.limiter)));
    Router::new()
        .route("/config", get(config))
        .route("/explain", get(explain))
        .route("/throttles", get(throttles))
        .route("/drain", post(drain))
        .route("/loglevel", post(log_level))
        .route("/cache/purge", post(purge))
        .route("/cache/export", get(files::export))
        .route("/cache/import", post(files::import))
        .route("/limits/reset", post(reset))
        .with_state(admin)
        .merge(shown)
        .layer(from_fn_with_state(Token::new(token), guard))
}

async fn config(State(admin): State<Admin>) -> Json<Value> {
    Json(ask::describe(&admin.shared))
}

/// How the throttles stand: see [`ThrottleFigures`].
async fn throttles(State(admin): State<Admin>) -> Json<Vec<ThrottleFigures>> {
    Json(admin.throttles.figures())
}

async fn explain(State(admin): State<Admin>, Query(parts): Query<Vec<(String, String)>>) -> Result<Json<Explanation>, Refused> {
    let request = ExplainRequest::in_parts(parts).map_err(Refused::wrong)?;
    request.explain(admin.shared.load().routes(request.direction)).map(Json).map_err(Refused::wrong)
}

/// Drains inbound traffic as the FetchrProxy says, and answers when it is over.
async fn drain(State(admin): State<Admin>) -> Json<Value> {
    let settings = admin.shared.load().settings().drain.clone();
    let left = admin.drain.drain_inbound(settings.delay.0, settings.timeout.0).await;
    Json(json!({"connectionsLeft": left}))
}

async fn log_level(State(admin): State<Admin>, filter: String) -> Result<String, Refused> {
    let filter = filter.trim();
    (admin.set_level)(filter).map_err(|error| Refused::wrong(format!("{filter:?}: {error}")))?;
    tracing::info!(filter, "What is logged was changed through the admin port.");
    Ok(format!("{filter}\n"))
}

/// `{"tag": "news", "soft": true}`: see [`PurgeRequest`]. Answered when no later request gets what went, or when that takes too long.
async fn purge(State(admin): State<Admin>, request: String) -> Result<Json<PurgeAnswer>, Refused> {
    let request: PurgeRequest = serde_json::from_str(&request).map_err(|error| Refused::wrong(error.to_string()))?;
    let config = Arc::clone(&admin.shared.load());
    Ok(Json(admin.purges.purge_forms(&request, |url| cache::forms(&config, url), Duration::MAX).await?))
}

/// `{"limit": "shop/web/all/per-client", "values": ["10.0.0.1"]}`: forgets that count.
async fn reset(State(admin): State<Admin>, request: String) -> Result<Json<Forgotten>, Refused> {
    ask::limits::reset(Arc::clone(&admin.shared.load()), &admin.limiter, request.as_bytes()).await.map(Json)
}
