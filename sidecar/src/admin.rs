//! What the sidecar serves beside traffic: metrics, health and rewritten probes on one port for the cluster; configuration and
//! orders on another, on loopback and with a token.

mod files;
mod guard;
mod orders;
pub mod probe;
mod serve;

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use self::probe::Probes;
pub use self::{
    orders::{Admin, SetLevel, admin},
    serve::serve,
};
use crate::{health::Health, metrics::Metrics};

/// Media type of the metrics page.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the port for the cluster shows.
#[derive(Clone, Debug)]
pub struct Public {
    /// Health of the sidecar.
    pub health: Health,
    /// Its figures.
    pub metrics: Arc<Metrics>,
    /// The probes that were rewritten.
    pub probes: Arc<Probes>,
}

/// The routes of the port for the cluster: `/livez`, `/readyz`, `/metrics`, `/probe/{container}/{kind}`.
pub fn public(public: Public) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/probe/{container}/{kind}", get(probe))
        .with_state(public)
}

async fn readyz(State(public): State<Public>) -> (StatusCode, String) {
    match public.health.readiness() {
        Ok(()) => (StatusCode::OK, format!("{}\n", public.health.remark().unwrap_or("ok"))),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

async fn metrics(State(public): State<Public>) -> Response {
    ([(header::CONTENT_TYPE, OPEN_METRICS)], public.metrics.encode()).into_response()
}

async fn probe(
    State(public): State<Public>,
    Path((container, kind)): Path<(String, String)>,
    headers: HeaderMap,
) -> (StatusCode, String) {
    let Some(original) = public.probes.of(&container, &kind) else {
        return (StatusCode::NOT_FOUND, format!("no probe {kind} of container {container} was rewritten\n"));
    };
    match original.call(headers.get(header::USER_AGENT)).await {
        Ok(answer) => (StatusCode::OK, answer),
        Err(failed) => (failed.status, failed.message),
    }
}

/// Where the admin port is served: on loopback only.
pub fn admin_address(port: u16) -> SocketAddr {
    (std::net::Ipv4Addr::LOCALHOST, port).into()
}

#[cfg(test)]
mod tests;
