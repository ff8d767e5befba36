//! What a policy is attached to.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::check_host_pattern,
    problems::{FieldPath, Problems},
    rule::Rule,
};

const GROUP_OF_KIND: Rule = Rule::new(
    "!has(self.group) || self.group == (self.kind in ['Namespace', 'Service'] ? '' : self.kind in ['FetchrProxy', 'ExternalHost'] ? \
     'fetchr.sh' : 'apps')",
    "is not the group of the kind: leave it out, or write '' for Namespace and Service, apps for workloads, fetchr.sh for FetchrProxy \
     and ExternalHost",
)
.at(".group");
const WILDCARD_OF_KIND: Rule = Rule::new(
    "!self.name.startsWith('*') || self.kind == (self.name == '*' ? 'Namespace' : 'ExternalHost')",
    "only a Namespace may be named *, and only an ExternalHost may begin with *.",
)
.at(".name");

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
#[schemars(extend("x-kubernetes-validations" = [GROUP_OF_KIND, WILDCARD_OF_KIND]))]
#[serde(rename_all = "camelCase")]
pub struct TargetRef {
    /// API group of the kind. Default: the group that the kind belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub group: Option<String>,
    /// Kind of the target.
    pub kind: TargetKind,
    /// Name of the target.
    #[schemars(length(min = 1, max = 253), regex(pattern = "^(\\*|(\\*\\.)?[a-z0-9]([-.a-z0-9]*[a-z0-9])?)$"))]
    pub name: String,
}

impl fmt::Display for TargetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The name of the variant is the name of the kind.
        fmt::Debug::fmt(self, f)
    }
}

impl TargetRef {
    pub(crate) fn check(&self, at: &FieldPath, problems: &mut Problems) {
        let Self { group, kind, name } = self;
        GROUP_OF_KIND.check(group.as_ref().is_none_or(|group| group == kind.group()), at, problems);
        let wildcard = match name.as_str() {
            "*" => *kind == TargetKind::Namespace,
            _ => !name.starts_with('*') || *kind == TargetKind::ExternalHost,
        };
        WILDCARD_OF_KIND.check(wildcard, at, problems);
        if *kind == TargetKind::ExternalHost {
            check_host_pattern(name, &at.field("name"), problems);
        }
    }
}
