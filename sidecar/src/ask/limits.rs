//! Questions about limits, and the order to forget a count. The admin port serves them as paths, and the operator's stream relays them.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    routing::get,
};

use super::Refused;
use crate::{
    config::{Config, Shared},
    limit::{
        Limiter,
        show::{CountNamed, Forgotten, LimitCount, LimitList, LimitTop, ShowError, TopRequest, list},
    },
};

/// What questions are about.
#[derive(Clone)]
struct Shown {
    shared: Shared,
    limiter: Arc<Limiter>,
}

/// The paths, each a question; none changes anything.
pub(crate) fn routes(shared: Shared, limiter: Arc<Limiter>) -> Router {
    Router::new()
        .route("/limits", get(limits))
        .route("/limits/count", get(count))
        .route("/limits/top", get(top))
        .with_state(Shown { shared, limiter })
}

/// Forgets a count: `{"limit": "shop/web/all/per-client", "values": ["10.0.0.1"]}`, see [`CountNamed`].
pub(crate) async fn reset(config: Arc<Config>, limiter: &Limiter, body: &[u8]) -> Result<Forgotten, Refused> {
    let named: CountNamed = serde_json::from_slice(body).map_err(|error| Refused::wrong(format!("not a count: {error}")))?;
    let found = limiter.forget(named.find(&config)?, &named.values).await?;
    tracing::info!(limit = named.limit, found, "A count of a limit was forgotten by order.");
    Ok(Forgotten { found })
}

async fn limits(State(shown): State<Shown>) -> Json<LimitList> {
    Json(list(&shown.shared.load(), &shown.limiter))
}

/// `?limit=shop/web/all/per-client&value=10.0.0.1`: see [`CountNamed`].
async fn count(State(shown): State<Shown>, Query(parts): Query<Vec<(String, String)>>) -> Result<Json<LimitCount>, Refused> {
    let named = CountNamed::in_parts(parts)?;
    let config = Arc::clone(&shown.shared.load());
    Ok(Json(shown.limiter.count(named.find(&config)?, &named.values).await?))
}

/// `?limit=shop/web/all/per-client&order=left&most=20`: see [`TopRequest`].
async fn top(State(shown): State<Shown>, Query(request): Query<TopRequest>) -> Json<LimitTop> {
    Json(shown.limiter.top(&request))
}

impl From<ShowError> for Refused {
    fn from(error: ShowError) -> Self {
        let why = error.to_string();
        match error {
            ShowError::Wrong(_) => Self::wrong(why),
            ShowError::NoLimit(_) => Self { status: StatusCode::NOT_FOUND, why },
            ShowError::Unanswered(_) => Self::later(why),
        }
    }
}
