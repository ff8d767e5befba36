//! What admission writes on a pod and the rest of the operator reads back: annotations and labels.

use serde::{Deserialize, Serialize};

/// Annotation on pods (`enabled`, `disabled`) and label on namespaces (`enabled`, `required`).
pub const INJECT: &str = "fetchr.sh/inject";
/// Annotation on pods: name of the FetchrProxy to use.
pub const PROXY: &str = "fetchr.sh/proxy";
/// Annotation on pods: a [`Stamp`] as JSON.
pub const STATUS: &str = "fetchr.sh/status";
/// Label on pods with a sidecar; its value is `true`.
pub const INJECTED: &str = "fetchr.sh/injected";

/// What admission did to a pod: the value of the annotation `fetchr.sh/status`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stamp {
    /// Version of the operator that did it.
    pub version: String,
    /// `namespace/name` of the FetchrProxy, if one was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    /// `Kind/name` of the pod's workload, resolved at admission (ReplicaSet to Deployment, Job to CronJob).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// Digest of all that decides how a sidecar is injected: settings, image, version. Another one now: the pod is outdated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<String>,
    /// Why there is no sidecar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Skipped>,
}

/// Why an opted-in pod got no sidecar.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Skipped {
    /// A code in CamelCase; the reason of the event on the owner.
    pub reason: String,
    /// What is wrong, and what would be right.
    pub message: String,
}
