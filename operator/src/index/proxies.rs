//! FetchrProxies.

use crds::{FetchrProxy, plan::ObjectRef};
use kube::ResourceExt;

use super::{Index, Indexed, Kind, Objects, Raw, Stored, Touched};

/// A proxy.
#[derive(Clone, Debug)]
pub struct Proxy(pub Stored<FetchrProxy>);

impl Indexed for Proxy {
    type Resource = Raw<FetchrProxy>;
    const KIND: Kind = Kind::Proxies;

    fn read(object: Self::Resource) -> Option<(ObjectRef, Self)> {
        Stored::read(object).map(|(key, stored)| (key, Self(stored)))
    }

    fn objects(index: &mut Index) -> &mut Objects<Self> {
        &mut index.proxies
    }

    fn touched(old: Option<&Self>, new: Option<&Self>) -> Touched {
        let same = match (old, new) {
            (Some(old), Some(new)) => old.0.is_same(&new.0),
            (old, new) => old.is_none() && new.is_none(),
        };
        Touched { plans: !same, pods: !same, ..Touched::NOTHING }
    }
}

pub(super) fn reference(proxy: &FetchrProxy) -> ObjectRef {
    ObjectRef::new(proxy.namespace().unwrap_or_default(), proxy.name_any())
}
