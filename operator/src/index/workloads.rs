//! Deployments, StatefulSets and DaemonSets: that they exist is nearly all that is asked of them.

use std::marker::PhantomData;

use crds::{
    plan::{ObjectRef, TargetObject},
    target::TargetKind,
};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use kube::core::PartialObjectMeta;

use super::{Index, Indexed, Kind, Objects, Touched};

/// A workload of type `K`.
#[derive(Clone, Debug)]
pub struct Workload<K> {
    /// UID, for events about it.
    pub uid: String,
    kind: PhantomData<fn() -> K>,
}

macro_rules! workload {
    ($($resource:ty: $kind:expr, $target:expr, $field:ident;)*) => {
        $(impl Indexed for Workload<$resource> {
            type Resource = PartialObjectMeta<$resource>;
            const KIND: Kind = $kind;

            fn read(object: Self::Resource) -> Option<(ObjectRef, Self)> {
                let workload = Self { uid: object.metadata.uid.unwrap_or_default(), kind: PhantomData };
                Some((ObjectRef::new(object.metadata.namespace?, object.metadata.name?), workload))
            }

            fn objects(index: &mut Index) -> &mut Objects<Self> {
                &mut index.$field
            }

            fn touched(old: Option<&Self>, new: Option<&Self>) -> Touched {
                Touched { plans: old.is_some() != new.is_some(), ..Touched::NOTHING }
            }

            fn target(key: &ObjectRef) -> Option<TargetObject> {
                Some(TargetObject { namespace: key.namespace.clone(), kind: $target, name: key.name.clone() })
            }
        })*
    };
}

workload! {
    Deployment: Kind::Deployments, TargetKind::Deployment, deployments;
    StatefulSet: Kind::StatefulSets, TargetKind::StatefulSet, stateful_sets;
    DaemonSet: Kind::DaemonSets, TargetKind::DaemonSet, daemon_sets;
}
