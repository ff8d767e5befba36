//! Admission: `/inject` gives pods their sidecar, `/guard` sees to it that they keep it, `/validate` checks FetchrProxies and
//! FetchrPolicies.
//!
//! Nothing is written here (`sideEffects: None`), so a dry run is answered like any other request.

mod cluster;
mod guard;
mod lookup;
mod mutate;
mod review;
mod validate;
mod workers;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::post,
};
use kube::core::{
    DynamicObject,
    admission::{AdmissionRequest, AdmissionResponse},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};
use tokio::time::{Instant, timeout_at};

pub use cluster::{ApiServer, Cluster, Fallback, LookupError};
pub use lookup::Lookup;
pub use workers::Workers;

use crate::{
    certs::Certs,
    https::{self, Deadline},
    inject::Injector,
};

/// Largest review, in bytes: an object may have 1.5 MiB, and an update carries the old one too.
const MAX_BODY: usize = 3 << 20;

/// What admission works with.
pub struct Webhook {
    /// What it asks about the cluster.
    pub lookup: Lookup,
    /// What sidecars are injected with.
    pub injector: Injector,
    /// Where CA bundle and plan keys come from.
    pub certs: Certs,
    /// Who checks FetchrProxies and FetchrPolicies.
    pub workers: Workers,
    /// What is counted.
    pub metrics: Metrics,
}

/// Requests and how long they took.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Family<Answered, Counter>,
    duration: Family<Asked, Histogram>,
    overloaded: Family<Overload, Counter>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Overload {
    reason: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Answered {
    webhook: &'static str,
    allowed: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Asked {
    webhook: &'static str,
}

impl Metrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let buckets = || Histogram::new([0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0]);
        let metrics =
            Self { requests: Family::default(), duration: Family::new_with_constructor(buckets), overloaded: Family::default() };
        registry.register("webhook_requests", "Requests for admission", metrics.requests.clone());
        let help = "How long a request for admission took";
        registry.register_with_unit("webhook_request_duration", help, Unit::Seconds, metrics.duration.clone());
        let help = "Objects that were refused because they could not be checked in time";
        registry.register("webhook_overloaded", help, metrics.overloaded.clone());
        metrics
    }

    fn answered(&self, webhook: &'static str, allowed: bool, took: Duration) {
        let allowed = if allowed { "true" } else { "false" };
        self.requests.get_or_create(&Answered { webhook, allowed }).inc();
        self.duration.get_or_create(&Asked { webhook }).observe(took.as_secs_f64());
    }

    fn overloaded(&self, reason: &'static str) {
        self.overloaded.get_or_create(&Overload { reason }).inc();
    }
}

/// The three paths. Anything but a POST of JSON is refused before it is read.
pub fn router(webhook: Arc<Webhook>) -> Router {
    Router::new()
        .route("/inject", post(inject))
        .route("/guard", post(guard))
        .route("/validate", post(validate))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(webhook)
}

async fn inject(State(webhook): State<Arc<Webhook>>, until: Deadline, headers: HeaderMap, body: https::Body) -> Response {
    let decide = async |request| mutate::decide(&webhook, request).await;
    answer(&webhook.metrics, "inject", until, &headers, &body, decide).await
}

async fn guard(State(webhook): State<Arc<Webhook>>, until: Deadline, headers: HeaderMap, body: https::Body) -> Response {
    let decide = async |request| guard::decide(&webhook, request).await;
    answer(&webhook.metrics, "guard", until, &headers, &body, decide).await
}

async fn validate(State(webhook): State<Arc<Webhook>>, until: Deadline, headers: HeaderMap, body: https::Body) -> Response {
    let decide = async |request| validate::decide(&webhook, request, until).await;
    answer(&webhook.metrics, "validate", until, &headers, &body, decide).await
}

/// From bytes to bytes: reads the review, has it decided in time, counts it.
async fn answer(
    metrics: &Metrics,
    webhook: &'static str,
    Deadline(until): Deadline,
    headers: &HeaderMap,
    body: &[u8],
    decide: impl AsyncFnOnce(AdmissionRequest<DynamicObject>) -> AdmissionResponse,
) -> Response {
    let started = Instant::now();
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !content_type.trim_start().starts_with("application/json") {
        metrics.answered(webhook, false, started.elapsed());
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, "send an AdmissionReview as application/json\n").into_response();
    }
    let request = match review::read(body) {
        Ok(request) => request,
        Err(reason) => {
            metrics.answered(webhook, false, started.elapsed());
            return (StatusCode::BAD_REQUEST, format!("not an AdmissionReview of admission.k8s.io/v1: {reason}\n"))
                .into_response();
        }
    };
    let empty = AdmissionResponse::from(&request);
    let response = timeout_at(until, decide(request)).await.unwrap_or_else(|_| {
        let message = "fetchr could not decide in time, for the API server did not answer; try again".to_owned();
        review::refused(empty, 504, "Timeout", message)
    });
    metrics.answered(webhook, response.allowed, started.elapsed());
    axum::Json(review::write(response)).into_response()
}

#[cfg(test)]
mod tests;
