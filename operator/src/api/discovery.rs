//! What clients ask to find their way around: which group, which version, which resources, in which shapes.
//!
//! Plain discovery and OpenAPI documents, all constant. The API server falls back to them where it would like newer forms.

use std::sync::Arc;

use axum::{Json, Router, routing::get};
use serde_json::{Value, json};

use super::{Api, GROUP, VERSION};

pub(super) fn router() -> Router<Arc<Api>> {
    let group_path = format!("/apis/{GROUP}");
    let version_path = format!("{group_path}/{VERSION}");
    Router::new()
        .route("/apis", get(async || Json(json!({"apiVersion": "v1", "kind": "APIGroupList", "groups": [group()]}))))
        .route(&group_path, get(async || Json(group())))
        .route(&version_path, get(async || Json(resources())))
        .route("/openapi/v2", get(async || Json(openapi_v2())))
        .route("/openapi/v3", get(async || Json(openapi_v3_index())))
        .route(&format!("/openapi/v3{version_path}"), get(async || Json(openapi_v3())))
}

fn group() -> Value {
    let version = json!({"groupVersion": format!("{GROUP}/{VERSION}"), "version": VERSION});
    json!({"apiVersion": "v1", "kind": "APIGroup", "name": GROUP, "versions": [version], "preferredVersion": version})
}

fn resources() -> Value {
    json!({"apiVersion": "v1", "kind": "APIResourceList", "groupVersion": format!("{GROUP}/{VERSION}"), "resources": [
        {"name": "sidecars", "singularName": "sidecar", "namespaced": true, "kind": "Sidecar", "verbs": ["get", "list"],
            "categories": ["fetchr"]},
        {"name": "sidecars/config", "singularName": "", "namespaced": true, "kind": "Sidecar", "verbs": ["get"]},
        {"name": "sidecars/throttles", "singularName": "", "namespaced": true, "kind": "Sidecar", "verbs": ["get"]},
        {"name": "sidecars/cache", "singularName": "", "namespaced": true, "kind": "Sidecar", "verbs": ["get"]},
        {"name": "sidecars/limits", "singularName": "", "namespaced": true, "kind": "Sidecar", "verbs": ["get"]},
        {"name": "sidecars/explain", "singularName": "", "namespaced": true, "kind": "Sidecar", "verbs": ["create"]},
        {"name": "sidecars/purge", "singularName": "", "namespaced": true, "kind": "Sidecar", "verbs": ["create"]},
        {"name": "sidecars/reset", "singularName": "", "namespaced": true, "kind": "Sidecar", "verbs": ["create"]},
    ]})
}

fn info() -> Value {
    json!({"title": "fetchr", "version": VERSION})
}

fn openapi_v2() -> Value {
    json!({"swagger": "2.0", "info": info(), "paths": {}, "definitions": {}})
}

fn openapi_v3_index() -> Value {
    let path = format!("apis/{GROUP}/{VERSION}");
    json!({"paths": {path.clone(): {"serverRelativeURL": format!("/openapi/v3/{path}?hash={}", env!("CARGO_PKG_VERSION"))}}})
}

fn openapi_v3() -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    let yes_no = |description: &str| json!({"type": "boolean", "description": description});
    let status = json!({"type": "object", "description": "How the sidecar is.", "properties": {
        "proxy": text("FetchrProxy of the sidecar, namespace/name."),
        "workload": text("Workload of the pod, Kind/name."),
        "version": text("Version of the sidecar."),
        "planDigest": text("Digest of the plan in force."),
        "inSync": yes_no("Whether that is the newest plan."),
        "ready": yes_no("Whether the sidecar says it is ready."),
        "nack": text("Why the newest plan was not applied."),
    }});
    let sidecar = json!({"type": "object", "description": "A sidecar that is connected to the operator.",
        "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}, "status": status},
        "x-kubernetes-group-version-kind": [{"group": GROUP, "version": VERSION, "kind": "Sidecar"}]});
    json!({"openapi": "3.0.0", "info": info(), "paths": {},
        "components": {"schemas": {"sh.fetchr.api.v1alpha1.Sidecar": sidecar}}})
}
