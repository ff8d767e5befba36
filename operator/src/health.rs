//! `/livez`, `/readyz`, `/metrics`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use prometheus_client::{encoding::text::encode, registry::Registry};

/// Told by loops that they are alive; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Heart(Arc<Mutex<BTreeMap<&'static str, Beat>>>);

#[derive(Clone, Copy, Debug)]
struct Beat {
    last: Instant,
    within: Duration,
}

impl Heart {
    /// `task` is alive, and will say so again within that time.
    pub fn beat(&self, task: &'static str, within: Duration) {
        let beat = Beat { last: Instant::now(), within };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(task, beat);
    }

    /// Loops that should have been heard of by `now`.
    fn silent(&self, now: Instant) -> Vec<&'static str> {
        let beats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let silent = beats.iter().filter(|(_, beat)| now.saturating_duration_since(beat.last) > beat.within);
        silent.map(|(task, _)| *task).collect()
    }
}

/// Says what is not ready yet; nothing when it is.
pub type Check = Arc<dyn Fn() -> Option<&'static str> + Send + Sync>;

/// What the port for probes and metrics tells.
#[derive(Clone)]
pub struct Health {
    /// Loops that must be alive.
    pub heart: Heart,
    /// All must be silent for `/readyz`.
    pub checks: Vec<Check>,
    /// What `/metrics` shows.
    pub registry: Arc<Registry>,
}

/// The three paths.
pub fn router(health: Health) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Arc::new(health))
}

async fn livez(State(health): State<Arc<Health>>) -> impl IntoResponse {
    let silent = health.heart.silent(Instant::now());
    if silent.is_empty() {
        (StatusCode::OK, "ok".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not heard of for too long: {}", silent.join(", ")))
    }
}

async fn readyz(State(health): State<Arc<Health>>) -> impl IntoResponse {
    let missing: Vec<_> = health.checks.iter().filter_map(|check| check()).collect();
    if missing.is_empty() {
        (StatusCode::OK, "ok".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for {}", missing.join(", ")))
    }
}

async fn metrics(State(health): State<Arc<Health>>) -> impl IntoResponse {
    let mut text = String::new();
    match encode(&mut text, &health.registry) {
        Ok(()) => (StatusCode::OK, [(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, [(CONTENT_TYPE, "text/plain; charset=utf-8")], error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_that_falls_silent_is_named() {
        let heart = Heart::default();
        heart.beat("pods", Duration::from_secs(10));
        heart.beat("lease", Duration::from_secs(100));
        let now = Instant::now();
        assert!(heart.silent(now).is_empty());
        assert_eq!(heart.silent(now + Duration::from_secs(30)), ["pods"]);
        heart.beat("pods", Duration::from_secs(60));
        assert!(heart.silent(now + Duration::from_secs(30)).is_empty());
    }
}
