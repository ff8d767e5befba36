//! `FetchrPolicy`: what sidecars do to requests.

pub mod headers;
pub mod matches;
pub mod rate_limits;
pub mod timeouts;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use headers::Headers;
pub use matches::Match;
pub use rate_limits::RateLimit;
pub use timeouts::Timeouts;

use crate::target::TargetRef;

/// What sidecars do to requests: rules with matches and sections, attached to workloads, Services, proxies or namespaces.
#[derive(Clone, CustomResource, Debug, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "fetchr.sh",
    version = "v1alpha1",
    kind = "FetchrPolicy",
    plural = "fetchrpolicies",
    shortname = "fxpol",
    category = "fetchr",
    namespaced,
    status = "FetchrPolicyStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Direction","type":"string","jsonPath":".spec.direction"}"#,
    printcolumn = r#"{"name":"Accepted","type":"string","jsonPath":".status.ancestors[0].conditions[?(@.type==\"Accepted\")].status"}"#,
    printcolumn = r#"{"name":"Programmed","type":"string","jsonPath":".status.ancestors[0].conditions[?(@.type==\"Programmed\")].status"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct FetchrPolicySpec {
    /// What the policy is attached to. Several targets: each as if the policy were written once for it.
    #[schemars(length(min = 1, max = 16))]
    pub target_refs: Vec<TargetRef>,
    /// Requests that come to the application (Inbound) or that it sends (Outbound).
    #[serde(default)]
    pub direction: Direction,
    /// Rules. Of the sections that protect (`rateLimits`), those of every rule that matches hold; of the sections that shape
    /// (`headers`, `timeouts`), that of the best match.
    #[schemars(length(min = 1, max = 64))]
    pub rules: Vec<PolicyRule>,
}

/// Which way a request goes, seen from the application.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Direction {
    /// To the application.
    #[default]
    Inbound,
    /// From the application.
    Outbound,
}

/// Whether a section acts.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Mode {
    /// Decide and act.
    #[default]
    Enforce,
    /// Decide, count and log what would have been done; change nothing.
    Shadow,
    /// As if the section were not there, but it still takes its place where the most specific one wins.
    Disabled,
}

/// Sections for the requests that match.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyRule {
    /// Name of the rule, unique in the policy; it appears in metrics and logs.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// The rule holds for a request that any of these matches. None: for every request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub matches: Vec<Match>,
    /// Changes to header fields. Shapes: the best match wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<Headers>,
    /// Limits. Protect: all that match hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub rate_limits: Vec<RateLimit>,
    /// Time limits. Shape: the best match wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
}

/// What the operator reports for a policy, in the shape of the Gateway API.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FetchrPolicyStatus {
    /// One entry for each target.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub ancestors: Vec<Ancestor>,
}

/// How a policy stands at one target.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ancestor {
    /// The target.
    pub target_ref: TargetRef,
    /// Who reports: `fetchr.sh/operator`.
    #[schemars(length(max = 253))]
    pub controller_name: String,
    /// `Accepted`, `Attached`, `Programmed`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}
