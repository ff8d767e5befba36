//! Who stands behind Services, as an operator has told: apart from the configuration, for pods come and go more often than rules change.
//! One immutable value, swapped whole; the last one stays for ever when the streams are cut.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crds::plan::ObjectRef;
use serde_json::{Value, json};
use wire::{
    service::of_host,
    speaker::{Speaker, Spoken},
    v1,
};

/// Most Services and endpoints that are taken from an operator.
const MAX: (usize, usize) = (4096, 65_536);

/// The Services in force.
#[derive(Debug, Default)]
pub struct Services {
    version: String,
    /// Namespace of the pod, whose Services are called by their first name.
    namespace: String,
    cluster_domain: String,
    left_out: u32,
    /// Services, ports, addresses and endpoints of the last message that can't be used.
    unusable: usize,
    all: BTreeMap<ObjectRef, Arc<Service>>,
    /// Ports by namespace and name of their Service.
    named: HashMap<String, HashMap<String, Arc<Service>>>,
    /// Ports by the address of their Service.
    at: HashMap<SocketAddr, Arc<Port>>,
    /// Where HTTP/2 is spoken.
    h2c: HashSet<SocketAddr>,
}

/// A Service.
#[derive(Debug, PartialEq)]
pub(crate) struct Service {
    cluster_ips: Vec<IpAddr>,
    ports: Vec<Arc<Port>>,
}

/// A port of a Service.
#[derive(Debug, PartialEq)]
pub(crate) struct Port {
    pub(crate) port: u16,
    spoken: Option<Spoken>,
    /// By the families of addresses, the first one of the Service first.
    endpoints: [Endpoints; 2],
}

/// The endpoints of a port that are of one family.
#[derive(Debug, PartialEq)]
pub(crate) struct Endpoints {
    family: Family,
    /// What they are known by from one message to the next, whatever a request calls the Service. No host is called so.
    pub(crate) name: Arc<str>,
    /// In ascending order.
    pub(crate) addresses: Arc<[SocketAddr]>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Family {
    V4,
    V6,
}

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadServices {
    /// It is more than anybody needs.
    #[error("more than {} Services or {} endpoints", MAX.0, MAX.1)]
    TooMany,
    /// It says what is new since a message that was not taken, or never came.
    #[error("a change of what is not known")]
    Unfounded,
}

impl Services {
    /// What a message of a stream makes of the Services that the stream told before, for a pod of `namespace`. What `known` has and what
    /// stayed the same in it is shared, so that those who follow it see no change. What can't be used in it is left out and counted:
    /// one wrong object must not keep from all sidecars what is told of others.
    pub fn after(before: Option<&Self>, message: v1::Services, namespace: &str, known: &Self) -> Result<Self, BadServices> {
        let mut all = match before {
            Some(before) if !message.whole => before.all.clone(),
            _ => BTreeMap::new(),
        };
        let mut unusable = 0;
        for name in message.gone {
            all.remove(&ObjectRef::new(name.namespace, name.name));
        }
        for service in message.changed {
            let Some((key, service)) = Service::read(service, &mut unusable) else { continue };
            let same = known.all.get(&key).filter(|known| ***known == service);
            let service = same.cloned().unwrap_or_else(|| Arc::new(service));
            all.insert(key, service);
        }
        let services = Self::of(all, message.version, message.cluster_domain, namespace, message.left_out);
        let services = Self { unusable, ..services };
        let fits = services.len() <= MAX.0 && services.endpoints() <= MAX.1;
        if fits { Ok(services) } else { Err(BadServices::TooMany) }
    }

    fn of(
        all: BTreeMap<ObjectRef, Arc<Service>>,
        version: String,
        cluster_domain: String,
        namespace: &str,
        left_out: u32,
    ) -> Self {
        let mut services = Self { version, namespace: namespace.to_owned(), cluster_domain, left_out, ..Self::default() };
        for (key, service) in &all {
            let named = services.named.entry(key.namespace.clone()).or_default();
            named.insert(key.name.clone(), Arc::clone(service));
            for port in &service.ports {
                for ip in &service.cluster_ips {
                    let address = SocketAddr::new(*ip, port.port);
                    services.at.insert(address, Arc::clone(port));
                    if port.spoken == Some(Spoken::H2c) {
                        services.h2c.insert(address);
                    }
                }
            }
        }
        services.all = all;
        services
    }

    /// The port of a Service at one of its own addresses.
    pub(crate) fn at(&self, address: SocketAddr) -> Option<&Arc<Port>> {
        self.at.get(&address)
    }

    /// The port of a Service by a host, in lower case.
    pub(crate) fn named(&self, host: &str, port: u16) -> Option<&Arc<Port>> {
        if self.all.is_empty() {
            return None;
        }
        let (namespace, name) = of_host(host, &self.namespace, &self.cluster_domain)?;
        self.named.get(namespace)?.get(name)?.ports.iter().find(|one| one.port == port)
    }

    /// Whether HTTP/2 in clear is spoken at an address of a Service.
    pub(crate) fn speaks_h2c(&self, address: SocketAddr) -> bool {
        !self.h2c.is_empty() && self.h2c.contains(&address)
    }

    /// The resourceVersion of EndpointSlices up to which the operator had seen.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// How many Services there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// How many Services, ports, addresses and endpoints of the last message can't be used.
    pub fn unusable(&self) -> usize {
        self.unusable
    }

    /// How many endpoints they have.
    pub fn endpoints(&self) -> usize {
        let ports = self.all.values().flat_map(|service| &service.ports);
        ports.map(|port| port.count()).sum()
    }

    /// For people: each Service with its ports, and how many endpoints they have.
    pub(crate) fn describe(&self) -> Value {
        let port = |port: &Arc<Port>| {
            let endpoints = port.count();
            json!({"port": port.port, "speaks": port.spoken.map(|spoken| format!("{spoken:?}")), "endpoints": endpoints})
        };
        let one = |(key, service): (&ObjectRef, &Arc<Service>)| json!({"service": key.to_string(), "ports": service.ports.iter().map(port).collect::<Vec<_>>()});
        json!({"version": self.version, "leftOut": self.left_out, "services": self.all.iter().map(one).collect::<Vec<_>>()})
    }
}

impl Service {
    /// None without a name.
    fn read(service: v1::Service, unusable: &mut usize) -> Option<(ObjectRef, Self)> {
        let name = service.name.filter(|name| !name.name.is_empty() && !name.namespace.is_empty());
        let v1::ServiceName { namespace, name } = usable(name, unusable)?;
        let cluster_ips: Vec<_> = service.cluster_ips.iter().filter_map(|octets| usable(ip(octets), unusable)).collect();
        let first = cluster_ips.first().map_or(Family::V4, Family::of);
        let key = ObjectRef::new(namespace, name);
        let ports = service.ports.iter().filter_map(|port| Port::read(&key, port, first, unusable).map(Arc::new)).collect();
        Some((key, Self { cluster_ips, ports }))
    }
}

/// Counts what can't be used.
fn usable<T>(read: Option<T>, unusable: &mut usize) -> Option<T> {
    *unusable += usize::from(read.is_none());
    read
}

impl Port {
    /// None without a number.
    fn read(service: &ObjectRef, port: &v1::ServicePort, first: Family, unusable: &mut usize) -> Option<Self> {
        let spoken = match port.spoken() {
            v1::Spoken::Unknown => None,
            v1::Spoken::ClientFirst => Some(Spoken::ClientFirst),
            v1::Spoken::ServerFirst => Some(Spoken::ServerFirst),
            v1::Spoken::H2c => Some(Spoken::H2c),
        };
        let mut of = |family| Endpoints {
            family,
            name: format!("{service} {family:?}").into(),
            addresses: addresses(&port.endpoints, family, unusable),
        };
        let endpoints = [of(first), of(first.other())];
        Some(Self { port: usable(number(port.port), unusable)?, spoken, endpoints })
    }

    /// The endpoints for who asked for the Service by an address or by its name: of the same family. None if nobody is there.
    pub(crate) fn endpoints(&self, asked: Option<SocketAddr>) -> Option<&Endpoints> {
        let mut families = self.endpoints.iter();
        let endpoints = match asked {
            Some(address) => families.find(|endpoints| endpoints.family == Family::of(&address.ip())),
            None => families.find(|endpoints| !endpoints.addresses.is_empty()),
        };
        endpoints.filter(|endpoints| !endpoints.addresses.is_empty())
    }

    fn count(&self) -> usize {
        self.endpoints.iter().map(|endpoints| endpoints.addresses.len()).sum()
    }

    /// Who speaks first, if that is known.
    pub(crate) fn speaker(&self) -> Option<Speaker> {
        self.spoken.map(Spoken::speaker)
    }

    /// Whether HTTP/2 in clear is spoken.
    pub(crate) fn speaks_h2c(&self) -> bool {
        self.spoken == Some(Spoken::H2c)
    }
}

impl Family {
    fn of(ip: &IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

fn addresses(told: &[v1::Endpoints], family: Family, unusable: &mut usize) -> Arc<[SocketAddr]> {
    let mut addresses = Vec::new();
    for v1::Endpoints { port, v4, v6 } in told {
        let (packed, length) = match family {
            Family::V4 => (v4, 4),
            Family::V6 => (v6, 16),
        };
        // If it ends in the middle of an address, nobody knows where the others begin.
        let whole = number(*port).filter(|_| packed.len() % length == 0);
        let Some(port) = (if packed.is_empty() { None } else { usable(whole, unusable) }) else { continue };
        addresses.extend(packed.chunks(length).filter_map(ip).map(|ip| SocketAddr::new(ip, port)));
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses.into()
}

fn number(port: u32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}

fn ip(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests;
