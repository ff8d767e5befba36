//! Answers in the shapes of Kubernetes: objects, lists, Tables, and a Status for each failure.

use axum::{
    http::{HeaderMap, StatusCode, header::ACCEPT},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{CommandError, GROUP, Sidecar, Unanswered, VERSION};

/// Why a request has no other answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the operator does not know the API server's front proxy yet; try again")]
    NoFrontProxy,
    #[error("Unauthorized: {0}; reach this API through the API server")]
    Unauthenticated(&'static str),
    #[error("User \"{user}\" cannot {action}")]
    Forbidden { user: String, action: String },
    #[error(transparent)]
    Unauthorizable(Unanswered),
    #[error(
        "sidecars.api.fetchr.sh \"{pod}\" not found: no sidecar of a pod of this name is connected to this replica of the operator"
    )]
    NoSidecar { pod: String },
    #[error("the sidecar of {pod} did not answer in time")]
    NoAnswer { pod: String },
    #[error("the sidecar of {pod} says: {why}")]
    Refused { pod: String, status: u16, why: String },
    #[error("the sidecar of {pod} answered what is not JSON")]
    Garbled { pod: String },
    #[error("the body is not JSON: {0}")]
    NotJson(String),
    #[error("{0} is not supported for sidecars; leave it out")]
    Query(String),
    #[error("the server could not find the requested resource")]
    NoSuchPath,
    #[error("the server does not allow this method on the requested resource")]
    Method,
}

impl Failure {
    pub(super) fn command(error: CommandError, pod: &str) -> Self {
        let pod = pod.to_owned();
        match error {
            CommandError::NotConnected => Self::NoSidecar { pod },
            CommandError::NoAnswer => Self::NoAnswer { pod },
            CommandError::Refused { status, why } => Self::Refused { pod, status, why },
        }
    }

    fn code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::NoFrontProxy | Self::Unauthorizable(_) | Self::Refused { status: 503, .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable")
            }
            Self::Unauthenticated(_) => (StatusCode::UNAUTHORIZED, "Unauthorized"),
            Self::Forbidden { .. } => (StatusCode::FORBIDDEN, "Forbidden"),
            Self::NoSidecar { .. } | Self::NoSuchPath | Self::Refused { status: 404, .. } => (StatusCode::NOT_FOUND, "NotFound"),
            Self::NoAnswer { .. } => (StatusCode::GATEWAY_TIMEOUT, "Timeout"),
            Self::Refused { .. } | Self::NotJson(_) | Self::Query(_) => (StatusCode::BAD_REQUEST, "BadRequest"),
            Self::Garbled { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        }
    }

    /// What a client tells a pod without a sidecar by, and a sidecar that has nothing to show.
    fn details(&self) -> Option<Value> {
        let of = |pod: &str, causes: Value| json!({"name": pod, "group": GROUP, "kind": "sidecars", "causes": causes});
        match self {
            Self::NoSidecar { pod } => Some(of(pod, json!([]))),
            Self::Refused { pod, why, .. } => Some(of(pod, json!([{"reason": "Refused", "message": why}]))),
            _ => None,
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (code, reason) = self.code();
        let mut status = json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
            "message": self.to_string(), "reason": reason, "code": code.as_u16()});
        if let Some(details) = self.details() {
            status["details"] = details;
        }
        (code, axum::Json(status)).into_response()
    }
}

/// Refuses what would change the answer and isn't done here.
pub(super) fn check_query(query: &str) -> Result<(), Failure> {
    for pair in query.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let asks = match key {
            "labelSelector" | "fieldSelector" | "continue" => !value.is_empty(),
            "watch" => value != "false" && value != "0",
            _ => false,
        };
        if asks {
            return Err(Failure::Query(format!("{key}={value}")));
        }
    }
    Ok(())
}

/// A `SidecarList`, or a Table if the client asks for one.
pub(super) fn list(sidecars: &[Sidecar], headers: &HeaderMap) -> Value {
    if wants_table(headers) {
        return table(sidecars);
    }
    let items: Vec<Value> = sidecars.iter().map(object).collect();
    json!({"apiVersion": format!("{GROUP}/{VERSION}"), "kind": "SidecarList", "metadata": {}, "items": items})
}

/// A `Sidecar`, or a Table of it.
pub(super) fn one(sidecar: &Sidecar, headers: &HeaderMap) -> Value {
    if wants_table(headers) { table(std::slice::from_ref(sidecar)) } else { object(sidecar) }
}

fn object(sidecar: &Sidecar) -> Value {
    json!({"apiVersion": format!("{GROUP}/{VERSION}"), "kind": "Sidecar", "metadata": metadata(sidecar), "status": sidecar})
}

fn metadata(sidecar: &Sidecar) -> Value {
    json!({"name": sidecar.pod, "namespace": sidecar.namespace, "uid": sidecar.pod_uid})
}

/// Whether the first acceptable form is a Table of `meta.k8s.io/v1`, as `kubectl get` asks.
fn wants_table(headers: &HeaderMap) -> bool {
    let accept = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let first = accept.flat_map(|value| value.split(',')).map(str::trim).find(|form| {
        let media = form.split(';').next().unwrap_or_default().trim();
        matches!(media, "application/json" | "application/*" | "*/*")
    });
    let Some(form) = first else { return false };
    ["as=Table", "g=meta.k8s.io", "v=v1"].iter().all(|wanted| form.split(';').any(|parameter| parameter.trim() == *wanted))
}

fn table(sidecars: &[Sidecar]) -> Value {
    let column = |name: &str, description: &str, priority: u8| {
        json!({"name": name, "type": "string", "format": if name == "Name" { "name" } else { "" },
            "description": description, "priority": priority})
    };
    let columns = [
        column("Name", "Name of the pod", 0),
        column("Proxy", "FetchrProxy, namespace/name", 0),
        column("Workload", "Workload of the pod, Kind/name", 0),
        column("Version", "Version of the sidecar", 0),
        column("In Sync", "Whether the newest plan is in force", 0),
        column("Ready", "Whether the sidecar says it is ready", 0),
        column("Plan", "Digest of the plan in force", 1),
        column("Problem", "Why the newest plan was not applied", 1),
    ];
    let rows: Vec<Value> = sidecars.iter().map(row).collect();
    json!({"apiVersion": "meta.k8s.io/v1", "kind": "Table", "metadata": {}, "columnDefinitions": columns, "rows": rows})
}

fn row(sidecar: &Sidecar) -> Value {
    let yes = |value: bool| if value { "True" } else { "False" };
    let short = sidecar.plan_digest.get(..12).unwrap_or(&sidecar.plan_digest);
    let cells = json!([
        sidecar.pod,
        sidecar.proxy,
        sidecar.workload,
        sidecar.version,
        yes(sidecar.in_sync),
        yes(sidecar.ready),
        short,
        sidecar.nack.as_deref().unwrap_or_default()
    ]);
    let object = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata(sidecar)});
    json!({"cells": cells, "object": object})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_only_if_it_is_the_first_choice() {
        let wants = |accept: &str| wants_table(&HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]));
        let kubectl =
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert!(wants(kubectl));
        assert!(wants(&format!("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,{kubectl}")));
        assert!(!wants("application/json"));
        assert!(!wants(&format!("application/json,{kubectl}")));
        assert!(!wants("application/json;as=Table;v=v1beta1;g=meta.k8s.io"));
        assert!(!wants_table(&HeaderMap::new()));
    }

    #[test]
    fn selectors_and_watches_are_refused_by_name() {
        assert!(check_query("limit=500&resourceVersion=0&watch=false&labelSelector=").is_ok());
        for query in ["watch=true", "limit=1&labelSelector=a%3Db", "fieldSelector=x", "watch"] {
            assert!(matches!(check_query(query), Err(Failure::Query(_))), "{query}");
        }
    }
}
