//! Sidecars through the operator's aggregated API; it works with any kubeconfig and touches no pod.

use http::Request;
use kube::{Client, api::ObjectMeta};
use serde::{Deserialize, de::DeserializeOwned};

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

/// Asks the sidecar of a pod what it would do to the request that `body` describes.
pub(crate) async fn explain<T: DeserializeOwned>(client: &Client, namespace: &str, pod: &str, body: Vec<u8>) -> kube::Result<T> {
    let path = format!("{BASE}/namespaces/{namespace}/sidecars/{pod}/explain");
    call(client, Request::post(path).header("content-type", "application/json"), body).await
}

async fn call<T: DeserializeOwned>(client: &Client, request: http::request::Builder, body: Vec<u8>) -> kube::Result<T> {
    client.request(request.body(body).map_err(kube::Error::HttpError)?).await
}
