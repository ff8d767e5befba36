//! Which ports are intercepted.

use std::collections::BTreeSet;

use crds::{FetchrProxy, proxy::InterceptionMode};
use k8s_openapi::{
    api::core::v1::{Container, PodSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use wire::speaker::{Speaker, Speakers};

use super::{conflicts, is_native_sidecar};

/// Warning for a pod whose inbound traffic can't be seen.
pub(super) const NOTHING_INBOUND: &str = "no TCP container port is declared and the FetchrProxy names none in \
     spec.interception.inbound.ports: requests to this pod pass by the sidecar";

/// TCP ports of the pod whose inbound traffic goes to the sidecar: those that the proxy names, else the ports that containers
/// and native sidecars declare; never a port of the sidecar.
pub(super) fn intercepted(spec: &PodSpec, proxy: &FetchrProxy) -> BTreeSet<i32> {
    let interception = &proxy.spec.interception;
    if interception.mode == InterceptionMode::Explicit {
        return BTreeSet::new();
    }
    let mut ports: BTreeSet<i32> = match &interception.inbound.ports {
        Some(ports) => ports.iter().copied().collect(),
        None => {
            let sidecars = spec.init_containers.iter().flatten().filter(|container| is_native_sidecar(container));
            spec.containers.iter().chain(sidecars).flat_map(tcp).collect()
        }
    };
    for port in interception.inbound.skip_ports.iter().chain(&conflicts::own_ports(&proxy.spec)) {
        ports.remove(port);
    }
    ports
}

/// Who speaks first on intercepted ports, as far as their names say.
pub(super) fn speakers(spec: &PodSpec, intercepted: &BTreeSet<i32>) -> Speakers {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let named = ports.filter(|port| intercepted.contains(&port.container_port)).filter_map(|port| {
        let speaker = Speaker::of_port_name(port.name.as_deref()?)?;
        Some((u16::try_from(port.container_port).ok()?, speaker))
    });
    Speakers(named.collect())
}

/// TCP ports that a container declares.
pub(super) fn tcp(container: &Container) -> Vec<i32> {
    let ports = container.ports.iter().flatten();
    ports.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP").map(|port| port.container_port).collect()
}

/// The number of a probe's port; its name is one of the container's own ports. None: the kubelet could not resolve it either.
pub(super) fn number(port: &IntOrString, container: &Container) -> Option<i32> {
    match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            let named = ports.find(|port| port.name.as_deref() == Some(name)).map(|port| port.container_port);
            named.or_else(|| name.parse().ok())
        }
    }
}
