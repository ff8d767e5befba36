//! Pods that have not ended.

use std::collections::BTreeMap;

use crds::plan::ObjectRef;
use k8s_openapi::{
    api::core::v1,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
    jiff::Timestamp,
};
use kube::core::PartialObjectMeta;

use super::{Index, Indexed, Kind, Objects, Touched};
use crate::stamp::{self, Stamp};

/// Annotation of pods that the kubelet reads from its own disk.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What is kept of a pod's metadata.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Pod {
    /// UID.
    pub uid: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Value of the annotation `fetchr.sh/inject`.
    pub inject: Option<String>,
    /// Value of the annotation `fetchr.sh/proxy`.
    pub proxy: Option<String>,
    /// What admission wrote down about the pod.
    pub stamp: Option<Stamp>,
    /// Its controller.
    pub owner: Option<Owner>,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Whether it is being deleted.
    pub is_terminating: bool,
    /// Whether it mirrors a static pod of a node, which no webhook can change.
    pub is_mirror: bool,
}

/// The controller of a pod.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Owner {
    /// Such as `apps/v1`.
    pub api_version: String,
    /// Such as `ReplicaSet`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

impl Pod {
    /// The proxy of the pod's sidecar, if it has one.
    pub fn injected_proxy(&self) -> Option<ObjectRef> {
        if !self.labels.contains_key(stamp::INJECTED) {
            return None;
        }
        let (namespace, name) = self.stamp.as_ref()?.proxy.as_deref()?.split_once('/')?;
        Some(ObjectRef::new(namespace, name))
    }

    /// Kind and name of the workload that admission resolved.
    pub fn workload(&self) -> Option<(&str, &str)> {
        self.stamp.as_ref()?.workload.as_deref()?.split_once('/')
    }
}

impl Indexed for Pod {
    type Resource = PartialObjectMeta<v1::Pod>;
    const KIND: Kind = Kind::Pods;

    fn read(object: Self::Resource) -> Option<(ObjectRef, Self)> {
        let ObjectMeta {
            namespace,
            name,
            uid,
            labels,
            annotations,
            owner_references,
            creation_timestamp,
            deletion_timestamp,
            ..
        } = object.metadata;
        let mut annotations = annotations.unwrap_or_default();
        let pod = Self {
            uid: uid.unwrap_or_default(),
            labels: labels.unwrap_or_default(),
            is_mirror: annotations.contains_key(MIRROR),
            inject: annotations.remove(stamp::INJECT),
            proxy: annotations.remove(stamp::PROXY),
            // A stamp that somebody has overwritten is none: the pod counts as one without a sidecar of ours.
            stamp: annotations.get(stamp::STATUS).and_then(|json| serde_json::from_str(json).ok()),
            owner: owner_references.into_iter().flatten().find(|owner| owner.controller == Some(true)).map(Owner::from),
            created: creation_timestamp.map(|time| time.0),
            is_terminating: deletion_timestamp.is_some(),
        };
        Some((ObjectRef::new(namespace?, name?), pod))
    }

    fn objects(index: &mut Index) -> &mut Objects<Self> {
        &mut index.pods
    }

    fn touched(old: Option<&Self>, new: Option<&Self>) -> Touched {
        Touched { pods: old != new, ..Touched::NOTHING }
    }
}

impl From<OwnerReference> for Owner {
    fn from(owner: OwnerReference) -> Self {
        Self { api_version: owner.api_version, kind: owner.kind, name: owner.name, uid: owner.uid }
    }
}
