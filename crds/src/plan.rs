//! The plan: what the sidecars of one proxy are told.
//!
//! `compile` is a pure function from the documents of a cluster, or of a folder on a laptop, to plans and verdicts.

mod choose;
mod compile;
mod cover;
mod memory;
mod order;
mod position;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, fmt, sync::Arc};

use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use kube::core::ObjectMeta;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use choose::{Choice, ChosenBy, DEFAULT_PROXY, PodFacts, choose_proxy, selects};
pub use compile::{Compiled, Inputs, PlanKey, PolicyVerdict, ProxyVerdict, TargetObject, Verdict, compile, compile_with};
pub use memory::Memory;
pub use order::ordered_matches;
pub use position::Position;

use crate::{
    policy::{Direction, PolicyRule},
    proxy::FetchrProxySpec,
};

/// `namespace/name` of an object.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectRef {
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
}

impl ObjectRef {
    /// A reference to `namespace/name`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// All that the sidecars of one proxy need to know. A sidecar drops what is not for its own [`Identity`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The proxy that this plan is for.
    pub proxy: ObjectRef,
    /// Its settings, defaults filled in.
    pub settings: FetchrProxySpec,
    /// Policies, the most specific first; the order decides between sections that shape.
    #[serde(default)]
    pub policies: Vec<AttachedPolicy>,
}

impl Plan {
    /// The plan for a sidecar that knows only these features: policies with a section that it doesn't know are left out, whole, and
    /// named.
    #[must_use]
    pub fn for_features(mut self, known: &BTreeSet<String>) -> (Self, Vec<ObjectRef>) {
        let (kept, left_out): (Vec<_>, Vec<_>) = self.policies.into_iter().partition(|policy| policy.is_known_to(known));
        self.policies = kept;
        let left_out: BTreeSet<_> = left_out.into_iter().map(|policy| policy.policy).collect();
        (self, left_out.into_iter().collect())
    }

    /// The plan as canonical JSON: keys sorted, no white space, so that equal plans are equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        // `Value` keeps its keys sorted; the structs themselves would write them in the order of their declaration.
        serde_json::to_value(self).expect("a plan has string keys only").to_string().into_bytes()
    }
}

/// SHA-256 of the plan's canonical JSON ([`Plan::to_bytes`]), in lower-case hexadecimal.
pub fn digest(plan: &Plan) -> String {
    digest_bytes(&plan.to_bytes())
}

/// SHA-256 of a plan that is serialized already, in lower-case hexadecimal.
pub fn digest_bytes(document: &[u8]) -> String {
    Sha256::digest(document).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A policy at one of its targets.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachedPolicy {
    /// The policy.
    pub policy: ObjectRef,
    /// Where it is attached.
    pub attachment: Attachment,
    /// Which way its requests go.
    pub direction: Direction,
    /// Its rules, in the order of the document; shared between plans.
    pub rules: Arc<[PolicyRule]>,
}

impl AttachedPolicy {
    fn is_known_to(&self, features: &BTreeSet<String>) -> bool {
        self.rules.iter().flat_map(PolicyRule::sections).all(|section| features.contains(section.name))
    }
}

/// Where a policy is attached, from the least to the most specific.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Attachment {
    /// A platform's policy from the operator's namespace; for the namespace of the pod, or for all.
    Platform,
    /// The pod's namespace.
    Namespace,
    /// The pod's proxy.
    Proxy,
    /// Pods behind a Service of the pod's namespace.
    #[serde(rename_all = "camelCase")]
    Service {
        /// Name of the Service.
        name: String,
    },
    /// Pods of a workload of the pod's namespace.
    #[serde(rename_all = "camelCase")]
    Workload {
        /// Kind of the workload, such as `Deployment`.
        workload_kind: String,
        /// Name of the workload.
        name: String,
    },
    /// Requests to a host outside of the cluster.
    #[serde(rename_all = "camelCase")]
    ExternalHost {
        /// The host; `*.example.org` stands for one label or more.
        host: String,
    },
}

impl Attachment {
    /// How specific the attachment is; more wins. A workload and a host outside of the cluster stand on one level.
    pub fn specificity(&self) -> u8 {
        match self {
            Self::Platform => 0,
            Self::Namespace => 1,
            Self::Proxy => 2,
            Self::Service { .. } => 3,
            Self::Workload { .. } | Self::ExternalHost { .. } => 4,
        }
    }
}

impl fmt::Display for Attachment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Platform => f.write_str("the platform"),
            Self::Namespace => f.write_str("its Namespace"),
            Self::Proxy => f.write_str("its FetchrProxy"),
            Self::Service { name } => write!(f, "Service {name}"),
            Self::Workload { workload_kind, name } => write!(f, "{workload_kind} {name}"),
            Self::ExternalHost { host } => write!(f, "ExternalHost {host}"),
        }
    }
}

/// A pod's place: which attachments of a plan are its own.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Namespace of the pod, which need not be its proxy's; empty on a laptop.
    #[serde(default)]
    pub namespace: String,
    /// Kind of the pod's workload, such as `Deployment`; empty on a laptop.
    #[serde(default)]
    pub workload_kind: String,
    /// Name of the pod's workload.
    #[serde(default)]
    pub workload_name: String,
    /// Services that select the pod.
    #[serde(default)]
    pub services: Vec<String>,
    /// Pods of the proxy that are alive, this one included.
    #[serde(default)]
    pub live_pods: u32,
}

impl Identity {
    /// Whether a policy with this attachment is for the pod. Hosts are matched for each request.
    pub fn has(&self, attachment: &Attachment) -> bool {
        match attachment {
            Attachment::Platform | Attachment::Namespace | Attachment::Proxy | Attachment::ExternalHost { .. } => true,
            Attachment::Service { name } => self.services.iter().any(|service| service == name),
            Attachment::Workload { workload_kind, name } => *workload_kind == self.workload_kind && *name == self.workload_name,
        }
    }
}

/// What decides between objects of one level: the older, then the first by name. Objects without a time, as on a laptop, come last.
fn seniority(metadata: &ObjectMeta) -> (bool, Option<&Timestamp>, &str, &str) {
    let created = metadata.creation_timestamp.as_ref().map(|Time(created)| created);
    (created.is_none(), created, name(metadata), namespace(metadata))
}

fn namespace(metadata: &ObjectMeta) -> &str {
    metadata.namespace.as_deref().unwrap_or_default()
}

fn name(metadata: &ObjectMeta) -> &str {
    metadata.name.as_deref().unwrap_or_default()
}
