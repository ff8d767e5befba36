//! Services.

use std::{collections::BTreeMap, net::IpAddr};

use crds::{
    plan::{ObjectRef, TargetObject},
    target::TargetKind,
};
use k8s_openapi::api::core::v1;
use wire::speaker::Spoken;

use super::{Index, Indexed, Kind, Objects, Touched};

/// A Service.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Service {
    selector: BTreeMap<String, String>,
    /// Addresses of its own, that of its first family first. None: headless, or another name for something.
    pub cluster_ips: Vec<IpAddr>,
    /// Its TCP ports.
    pub ports: Vec<ServicePort>,
    /// Whether clients may reach pods of their own node only.
    pub is_local: bool,
    /// Whether each client is to stay with one pod.
    pub is_sticky: bool,
}

/// A TCP port of a Service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServicePort {
    /// Its name, by which EndpointSlices know it; empty for an only one without.
    pub name: String,
    /// Its number.
    pub port: u16,
    /// What is spoken there, if it says so.
    pub spoken: Option<Spoken>,
}

impl Service {
    /// Whether pods with these labels stand behind it. One without a selector has no pods of its own.
    pub fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        !self.selector.is_empty() && self.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    }

    /// Whether requests to it can be spread: they go to an address that stands for its pods, all of which are as good for any client.
    pub fn is_spreadable(&self) -> bool {
        !self.cluster_ips.is_empty() && !self.is_local && !self.is_sticky
    }
}

impl ServicePort {
    fn read(port: v1::ServicePort) -> Option<Self> {
        let is_tcp = port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
        let spoken = Spoken::of_service_port(port.app_protocol.as_deref(), port.name.as_deref());
        let number = u16::try_from(port.port).ok().filter(|number| is_tcp && *number != 0)?;
        Some(Self { name: port.name.unwrap_or_default(), port: number, spoken })
    }
}

impl Indexed for Service {
    type Resource = v1::Service;
    const KIND: Kind = Kind::Services;

    fn read(object: v1::Service) -> Option<(ObjectRef, Self)> {
        let key = ObjectRef::new(object.metadata.namespace?, object.metadata.name?);
        let spec = object.spec.unwrap_or_default();
        let service = Self {
            selector: spec.selector.unwrap_or_default(),
            // A headless one has the word None here.
            cluster_ips: spec.cluster_ips.iter().flatten().filter_map(|ip| ip.parse().ok()).collect(),
            ports: spec.ports.into_iter().flatten().filter_map(ServicePort::read).collect(),
            is_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            is_sticky: spec.session_affinity.as_deref() == Some("ClientIP"),
        };
        Some((key, service))
    }

    fn objects(index: &mut Index) -> &mut Objects<Self> {
        &mut index.services
    }

    fn touched(old: Option<&Self>, new: Option<&Self>) -> Touched {
        let selector = |service: Option<&Self>| service.map(|service| service.selector.clone());
        Touched { plans: old.is_some() != new.is_some(), pods: selector(old) != selector(new), services: old != new }
    }

    fn target(key: &ObjectRef) -> Option<TargetObject> {
        Some(TargetObject { namespace: key.namespace.clone(), kind: TargetKind::Service, name: key.name.clone() })
    }
}
