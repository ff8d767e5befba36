//! What the API needs of the streams.

use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use serde::Serialize;

/// One sidecar that has a stream to this replica; as JSON, the `status` of a `Sidecar`.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sidecar {
    /// Namespace of the pod.
    #[serde(skip)]
    pub namespace: String,
    /// Name of the pod.
    #[serde(skip)]
    pub pod: String,
    /// UID of the pod.
    #[serde(skip)]
    pub pod_uid: String,
    /// `namespace/name` of the FetchrProxy.
    pub proxy: String,
    /// `Kind/name` of the workload.
    pub workload: String,
    /// Version of the sidecar.
    pub version: String,
    /// Digest of the plan in force; empty if there is none.
    pub plan_digest: String,
    /// Whether that is the newest plan.
    pub in_sync: bool,
    /// Whether the sidecar says it is ready.
    pub ready: bool,
    /// Why the newest plan was not applied, if it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nack: Option<String>,
}

/// The sidecars that have a stream to this replica.
pub trait Sidecars: Send + Sync + 'static {
    /// Those of one namespace, or all; in any order.
    fn list(&self, namespace: Option<&str>) -> Vec<Sidecar>;

    /// Sends a command down a sidecar's stream and waits for its answer, at most until the deadline.
    fn command<'a>(
        &'a self,
        namespace: &'a str,
        pod: &'a str,
        verb: &'a str,
        body: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Bytes, CommandError>>;
}

/// Why a command has no answer.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CommandError {
    /// No sidecar of that name has a stream to this replica.
    #[error("no sidecar of this pod is connected")]
    NotConnected,
    /// The sidecar did not answer in time, or its stream ended before it did.
    #[error("the sidecar did not answer in time")]
    NoAnswer,
    /// The sidecar has none.
    #[error("the sidecar refused the command: {why}")]
    Refused {
        /// A status of HTTP: 400, 404 or 503.
        status: u16,
        /// In its words.
        why: String,
    },
}
