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
    /// How the pod's grace period was changed, so that a second injection starts from the author's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_period: Option<GracePeriod>,
    /// Why there is no sidecar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Skipped>,
}

/// `terminationGracePeriodSeconds` before and after injection.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct GracePeriod {
    /// Before; absent if the pod did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was: Option<i64>,
    /// After.
    pub is: i64,
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

/// Whether a pod asked for a sidecar, or its namespace did for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OptIn {
    /// Nobody asked, or the pod declined.
    No,
    /// The pod or its namespace asked.
    Yes,
    /// The namespace requires it: neither the pod's opt-out nor its choice of a proxy counts.
    Required,
}

impl OptIn {
    /// From the label [`INJECT`] of the namespace and the annotation [`INJECT`] of the pod.
    pub fn of(namespace: Option<&str>, pod: Option<&str>) -> Self {
        match (namespace, pod) {
            (Some("required"), _) => Self::Required,
            (_, Some("disabled")) => Self::No,
            (_, Some("enabled")) | (Some("enabled"), _) => Self::Yes,
            _ => Self::No,
        }
    }
}

/// Whether the webhooks leave all pods of a namespace alone: the cluster's own and the operator's.
pub fn is_exempt(namespace: &str, operator_namespace: &str) -> bool {
    namespace == "kube-system" || namespace == operator_namespace
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_decides_unless_its_namespace_requires() {
        assert_eq!(OptIn::of(None, None), OptIn::No);
        assert_eq!(OptIn::of(None, Some("enabled")), OptIn::Yes);
        assert_eq!(OptIn::of(Some("enabled"), None), OptIn::Yes);
        assert_eq!(OptIn::of(Some("enabled"), Some("disabled")), OptIn::No);
        assert_eq!(OptIn::of(Some("required"), Some("disabled")), OptIn::Required);
    }

    #[test]
    fn values_that_nobody_knows_opt_nobody_in() {
        assert_eq!(OptIn::of(Some("true"), Some("yes")), OptIn::No);
    }
}
