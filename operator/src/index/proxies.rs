//! FetchrProxies.

use std::sync::Arc;

use crds::{FetchrProxy, plan::ObjectRef};
use kube::ResourceExt;

use super::{Index, Indexed, Kind, Objects, Touched};

/// A proxy without its managed fields; its status is there so that nothing is written twice.
#[derive(Clone, Debug)]
pub struct Proxy(pub Arc<FetchrProxy>);

impl Indexed for Proxy {
    type Resource = FetchrProxy;
    const KIND: Kind = Kind::Proxies;

    fn read(mut object: FetchrProxy) -> Option<(ObjectRef, Self)> {
        object.metadata.managed_fields = None;
        Some((reference(&object), Self(Arc::new(object))))
    }

    fn objects(index: &mut Index) -> &mut Objects<Self> {
        &mut index.proxies
    }

    fn touched(old: Option<&Self>, new: Option<&Self>) -> Touched {
        let same = match (old, new) {
            (Some(old), Some(new)) => old.0.metadata.uid == new.0.metadata.uid && old.0.spec == new.0.spec,
            (old, new) => old.is_none() && new.is_none(),
        };
        Touched { plans: !same, pods: !same }
    }
}

pub(super) fn reference(proxy: &FetchrProxy) -> ObjectRef {
    ObjectRef::new(proxy.namespace().unwrap_or_default(), proxy.name_any())
}
