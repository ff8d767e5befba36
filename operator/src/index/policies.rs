//! FetchrPolicies.

use std::sync::Arc;

use crds::{FetchrPolicy, plan::ObjectRef};
use kube::ResourceExt;

use super::{Index, Indexed, Kind, Objects, Touched};

/// A policy without its managed fields; its status is there so that nothing is written twice.
#[derive(Clone, Debug)]
pub struct Policy(pub Arc<FetchrPolicy>);

impl Indexed for Policy {
    type Resource = FetchrPolicy;
    const KIND: Kind = Kind::Policies;

    fn read(mut object: FetchrPolicy) -> Option<(ObjectRef, Self)> {
        object.metadata.managed_fields = None;
        let key = ObjectRef::new(object.namespace().unwrap_or_default(), object.name_any());
        Some((key, Self(Arc::new(object))))
    }

    fn objects(index: &mut Index) -> &mut Objects<Self> {
        &mut index.policies
    }

    fn touched(old: Option<&Self>, new: Option<&Self>) -> Touched {
        let same = match (old, new) {
            (Some(old), Some(new)) => old.0.metadata.uid == new.0.metadata.uid && old.0.spec == new.0.spec,
            (old, new) => old.is_none() && new.is_none(),
        };
        Touched { plans: !same, pods: false }
    }
}
