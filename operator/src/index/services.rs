//! Services.

use std::collections::BTreeMap;

use crds::{
    plan::{ObjectRef, TargetObject},
    target::TargetKind,
};
use k8s_openapi::api::core::v1;

use super::{Index, Indexed, Kind, Objects, Touched};

/// A Service.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Service {
    selector: BTreeMap<String, String>,
}

impl Service {
    /// Whether pods with these labels stand behind it. One without a selector has no pods of its own.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        !self.selector.is_empty() && self.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

impl Indexed for Service {
    type Resource = v1::Service;
    const KIND: Kind = Kind::Services;

    fn read(object: v1::Service) -> Option<(ObjectRef, Self)> {
        let key = ObjectRef::new(object.metadata.namespace?, object.metadata.name?);
        let selector = object.spec.and_then(|spec| spec.selector).unwrap_or_default();
        Some((key, Self { selector }))
    }

    fn objects(index: &mut Index) -> &mut Objects<Self> {
        &mut index.services
    }

    fn touched(old: Option<&Self>, new: Option<&Self>) -> Touched {
        Touched { plans: old.is_some() != new.is_some(), pods: old != new }
    }

    fn target(key: &ObjectRef) -> Option<TargetObject> {
        Some(TargetObject { namespace: key.namespace.clone(), kind: TargetKind::Service, name: key.name.clone() })
    }
}
