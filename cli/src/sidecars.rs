//! Sidecars through the operator's aggregated API; it works with any kubeconfig and touches no pod.

use http::Request;
use kube::{Client, api::ObjectMeta};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{cluster::Cluster, failure::Failure};

const BASE: &str = "/apis/api.fetchr.sh/v1alpha1";

/// A sidecar that has a stream to an operator.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub(crate) struct Sidecar {
    /// Name and namespace of its pod.
    pub(crate) metadata: ObjectMeta,
    /// What it says.
    pub(crate) status: SidecarStatus,
}

/// What a sidecar says through its stream. A field that is not there is an error, not a no.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SidecarStatus {
    /// `Kind/name` of the pod's workload; empty until the operator knows it.
    pub(crate) workload: String,
    /// Its version.
    pub(crate) version: String,
    /// Whether the newest plan is in force.
    pub(crate) in_sync: bool,
    /// Whether it says that it is ready.
    pub(crate) ready: bool,
    /// Why the newest plan was not applied.
    pub(crate) nack: Option<String>,
}

#[derive(Deserialize)]
struct List {
    items: Vec<Sidecar>,
}

/// The sidecars of a namespace, or of all.
pub(crate) async fn list(client: &Client, namespace: Option<&str>) -> kube::Result<Vec<Sidecar>> {
    let path = match namespace {
        Some(namespace) => format!("{BASE}/namespaces/{namespace}/sidecars"),
        None => format!("{BASE}/sidecars"),
    };
    Ok(call::<List>(client, Request::get(path), Vec::new()).await?.items)
}

/// Gives the sidecar of a pod an order: `explain`, `purge` or `reset`, of what `body` describes.
pub(crate) async fn order<T: DeserializeOwned>(
    client: &Client,
    namespace: &str,
    pod: &str,
    verb: &str,
    body: Vec<u8>,
) -> kube::Result<T> {
    let path = format!("{BASE}/namespaces/{namespace}/sidecars/{pod}/{verb}");
    call(client, Request::post(path).header("content-type", "application/json"), body).await
}

/// Asks the sidecar of a pod; `target` is the path of the admin port with a query.
pub(crate) async fn look_up<T: DeserializeOwned>(client: &Client, namespace: &str, pod: &str, target: &str) -> kube::Result<T> {
    call(client, Request::get(format!("{BASE}/namespaces/{namespace}/sidecars/{pod}{target}")), Vec::new()).await
}

/// What the sidecar itself said, if it is the one that refused.
pub(crate) fn said(error: &kube::Error) -> Option<(u16, &str)> {
    let kube::Error::Api(status) = error else { return None };
    let details = status.details.as_ref().filter(|details| details.kind == "sidecars")?;
    details.causes.first().map(|cause| (status.code, cause.message.as_str()))
}

/// What it means that sidecars can't be asked. `right`: what the question needs, such as `get sidecars/cache`.
pub(crate) fn failure(cluster: &Cluster, what: &str, right: &str, error: &kube::Error) -> Failure {
    let kube::Error::Api(status) = error else { return cluster.failure(what, error) };
    let no_sidecar = status.details.as_ref().is_some_and(|details| details.kind == "sidecars" && !details.name.is_empty());
    match (status.code, said(error)) {
        (400, Some((_, why))) => Failure::usage(why),
        (_, Some((_, why))) => Failure::new(format!("{what}: {why}")),
        (403, None) => {
            let hint = format!("ask for the right to {right} in the API group api.fetchr.sh: {}", granted_by(right));
            Failure::new(format!("{what}: {}", status.message)).hint(hint)
        }
        (404, None) if no_sidecar => Failure::new(format!("{what}: no sidecar of this pod is connected to the operator"))
            .hint("does the pod run, and was it injected? `fetchr status -o wide` shows it"),
        (404, None) => Failure::new(format!("{what}: {}", status.message))
            .at(&cluster.url)
            .hint("is fetchr installed, and its API api.fetchr.sh? `fetchr check` looks closer"),
        (502 | 503, None) => Failure::unreachable(format!("{what}: the operator can't be asked: {}", status.message))
            .at(&cluster.url)
            .hint("`fetchr check` looks closer"),
        _ => cluster.failure(what, error),
    }
}

/// Which role of the chart has a right.
fn granted_by(right: &str) -> &'static str {
    match right {
        "get sidecars/cache" | "get sidecars/limits" | "create sidecars/purge" | "create sidecars/reset" => {
            "the ClusterRole fetchr-edit has it"
        }
        _ => "the ClusterRole fetchr-view has it",
    }
}

async fn call<T: DeserializeOwned>(client: &Client, request: http::request::Builder, body: Vec<u8>) -> kube::Result<T> {
    client.request(request.body(body).map_err(kube::Error::HttpError)?).await
}
