//! One Service as sidecars are told of it.

use std::net::IpAddr;

use crds::plan::ObjectRef;
use wire::{speaker::Spoken, v1};

use crate::index::{Service, ServicePort, Slice};

/// A Service with its endpoints, out of its slices.
pub(super) fn spread(key: &ObjectRef, service: &Service, slices: &[&Slice]) -> v1::Service {
    tell(key, service, |port| endpoints(&port.name, slices))
}

/// A Service of which only matters what it speaks.
pub(super) fn spoken(key: &ObjectRef, service: &Service) -> v1::Service {
    tell(key, service, |_| Vec::new())
}

/// How many endpoints it has, over all ports.
pub(super) fn count(service: &v1::Service) -> usize {
    let endpoints = service.ports.iter().flat_map(|port| &port.endpoints);
    endpoints.map(|endpoints| endpoints.v4.len() / 4 + endpoints.v6.len() / 16).sum()
}

fn tell(key: &ObjectRef, service: &Service, endpoints: impl Fn(&ServicePort) -> Vec<v1::Endpoints>) -> v1::Service {
    let port = |port: &ServicePort| v1::ServicePort {
        port: port.port.into(),
        spoken: word(port.spoken).into(),
        endpoints: endpoints(port),
    };
    v1::Service {
        name: Some(v1::ServiceName { namespace: key.namespace.clone(), name: key.name.clone() }),
        cluster_ips: service.cluster_ips.iter().map(|ip| octets(*ip).into()).collect(),
        ports: service.ports.iter().map(port).collect(),
    }
}

fn word(spoken: Option<Spoken>) -> v1::Spoken {
    match spoken {
        None => v1::Spoken::Unknown,
        Some(Spoken::ClientFirst) => v1::Spoken::ClientFirst,
        Some(Spoken::ServerFirst) => v1::Spoken::ServerFirst,
        Some(Spoken::H2c) => v1::Spoken::H2c,
    }
}

/// The endpoints of a port. For each family those that are ready; if there is none, those that still serve while they end.
fn endpoints(port_name: &str, slices: &[&Slice]) -> Vec<v1::Endpoints> {
    let mut chosen: Vec<(u16, IpAddr)> = Vec::new();
    for is_family in [IpAddr::is_ipv4 as fn(&IpAddr) -> bool, IpAddr::is_ipv6] {
        let before = chosen.len();
        chosen.extend(addresses(port_name, slices, |slice| &slice.ready).filter(|(_, ip)| is_family(ip)));
        if chosen.len() == before {
            chosen.extend(addresses(port_name, slices, |slice| &slice.ending).filter(|(_, ip)| is_family(ip)));
        }
    }
    // For a short while the same endpoint may stand in two slices.
    chosen.sort_unstable();
    chosen.dedup();
    chosen.chunk_by(|(left, _), (right, _)| left == right).map(packed).collect()
}

/// Some of the addresses of the slices that have a port of this name, with its number there.
fn addresses(port_name: &str, slices: &[&Slice], some: fn(&Slice) -> &[IpAddr]) -> impl Iterator<Item = (u16, IpAddr)> {
    let numbered = slices.iter().filter_map(move |slice| {
        let (_, number) = slice.ports.iter().find(|(name, _)| name == port_name)?;
        Some((*number, some(slice)))
    });
    numbered.flat_map(|(number, addresses)| addresses.iter().map(move |ip| (number, *ip)))
}

/// Endpoints of one port.
fn packed(endpoints: &[(u16, IpAddr)]) -> v1::Endpoints {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for (_, ip) in endpoints {
        match ip {
            IpAddr::V4(ip) => v4.extend(ip.octets()),
            IpAddr::V6(ip) => v6.extend(ip.octets()),
        }
    }
    v1::Endpoints { port: endpoints.first().map_or(0, |(port, _)| (*port).into()), v4: v4.into(), v6: v6.into() }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
