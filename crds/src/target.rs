//! What a policy is attached to.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Kinds that a policy can be attached to.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum TargetKind {
    /// All opted-in pods of a namespace. In the operator's own namespace the name may be any namespace, or `*` for all.
    Namespace,
    /// All pods of a FetchrProxy.
    FetchrProxy,
    /// All pods that a Service selects.
    Service,
    /// All pods of a Deployment.
    Deployment,
    /// All pods of a StatefulSet.
    StatefulSet,
    /// All pods of a DaemonSet.
    DaemonSet,
    /// Requests to a host outside of the cluster; only with direction `Outbound`. The name is the host, `*.example.org` allowed.
    ExternalHost,
}

impl TargetKind {
    /// API group of the kind.
    pub fn group(self) -> &'static str {
        match self {
            Self::Namespace | Self::Service => "",
            Self::Deployment | Self::StatefulSet | Self::DaemonSet => "apps",
            Self::FetchrProxy | Self::ExternalHost => crate::GROUP,
        }
    }
}

/// A reference to what a policy is attached to, in the policy's own namespace.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetRef {
    /// API group of the kind. Default: the group that the kind belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub group: Option<String>,
    /// Kind of the target.
    pub kind: TargetKind,
    /// Name of the target.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}
