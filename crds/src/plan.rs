//! The plan: what the sidecars of one proxy are told.
//!
//! `compile` is a pure function from the documents of a cluster, or of a folder on a laptop, to plans and verdicts.

use std::fmt;

use serde::{Deserialize, Serialize};

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
    /// Its rules, in the order of the document.
    pub rules: Vec<PolicyRule>,
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

/// A pod's place: which attachments of a plan are its own.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
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
