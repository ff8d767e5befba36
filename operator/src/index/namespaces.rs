//! Namespaces.

use std::collections::BTreeMap;

use crds::plan::ObjectRef;
use k8s_openapi::api::core::v1;
use kube::core::PartialObjectMeta;

use super::{Index, Indexed, Kind, Objects, Touched};
use crate::stamp;

/// A namespace.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Namespace {
    /// Value of the label `fetchr.sh/inject`.
    pub inject: Option<String>,
    /// All labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it is being deleted: nothing can be created in it any more.
    pub is_terminating: bool,
}

impl Indexed for Namespace {
    type Resource = PartialObjectMeta<v1::Namespace>;
    const KIND: Kind = Kind::Namespaces;

    fn read(object: Self::Resource) -> Option<(ObjectRef, Self)> {
        let metadata = object.metadata;
        let labels = metadata.labels.unwrap_or_default();
        let namespace =
            Self { inject: labels.get(stamp::INJECT).cloned(), labels, is_terminating: metadata.deletion_timestamp.is_some() };
        Some((ObjectRef::new("", metadata.name?), namespace))
    }

    fn objects(index: &mut Index) -> &mut Objects<Self> {
        &mut index.namespaces
    }

    fn touched(old: Option<&Self>, new: Option<&Self>) -> Touched {
        let same = old.map(|old| (&old.inject, old.is_terminating)) == new.map(|new| (&new.inject, new.is_terminating));
        Touched { plans: old.is_some() != new.is_some(), pods: !same, ..Touched::NOTHING }
    }
}
