//! What can't work together.

use std::collections::BTreeMap;

use crds::{
    FetchrProxy,
    proxy::{FetchrProxySpec, InterceptionMode},
};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, SecurityContext, Volume, VolumeMount};

use super::{INIT_CONTAINER, PROXY_CONTAINER, Reason, containers, is_native_sidecar, proxy_ref};

/// Label by which a namespace enforces a pod security standard.
const ENFORCE: &str = "pod-security.kubernetes.io/enforce";

/// Refuses pods that no sidecar can stand in.
pub(super) fn can_hold_a_sidecar(pod: &Pod) -> Result<(), Reason> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    let os = spec.os.as_ref().map(|os| os.name.as_str());
    let node_os = spec.node_selector.as_ref().and_then(|selector| selector.get("kubernetes.io/os")).map(String::as_str);
    if spec.host_network == Some(true) {
        Err(Reason::HostNetwork)
    } else if os == Some("windows") || node_os == Some("windows") {
        Err(Reason::Windows)
    } else {
        Ok(())
    }
}

/// Refuses a pod that clashes with the sidecar of this proxy. The pod carries nothing of ours.
pub(super) fn check(pod: &Pod, proxy: &FetchrProxy, namespace_labels: &BTreeMap<String, String>) -> Result<(), Reason> {
    pod_security(proxy, namespace_labels)?;
    let Some(spec) = &pod.spec else { return Ok(()) };
    tokens(spec)?;
    let ours = own_ports(&proxy.spec);
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        name(container)?;
        user(&container.name, container.security_context.as_ref(), spec)?;
        volumes(&container.name, container.volume_mounts.as_deref())?;
    }
    let serving = spec.init_containers.iter().flatten().filter(|container| is_native_sidecar(container));
    spec.containers.iter().chain(serving).try_for_each(|container| ports(container, &ours))
}

/// TCP ports that the sidecar of this proxy listens on.
pub(super) fn own_ports(spec: &FetchrProxySpec) -> Vec<i32> {
    let mut ports = vec![containers::ADMIN_PORT, spec.telemetry.metrics_port];
    match spec.interception.mode {
        InterceptionMode::Init => {
            ports.extend([containers::INBOUND_PORT, containers::OUTBOUND_PORT, containers::FORWARD_PORT]);
        }
        InterceptionMode::Explicit => ports.extend(spec.interception.listeners.iter().map(|listener| listener.port)),
    }
    ports
}

fn pod_security(proxy: &FetchrProxy, namespace_labels: &BTreeMap<String, String>) -> Result<(), Reason> {
    match namespace_labels.get(ENFORCE) {
        Some(level)
            if matches!(level.as_str(), "baseline" | "restricted") && proxy.spec.interception.mode == InterceptionMode::Init =>
        {
            Err(Reason::PodSecurity { level: level.clone(), proxy: proxy_ref(proxy).to_string() })
        }
        _ => Ok(()),
    }
}

fn name(container: &Container) -> Result<(), Reason> {
    let taken = [INIT_CONTAINER, PROXY_CONTAINER].contains(&container.name.as_str());
    if taken { Err(Reason::NameTaken { container: container.name.clone() }) } else { Ok(()) }
}

/// Refuses the sidecar's user.
pub(super) fn user(container: &str, context: Option<&SecurityContext>, spec: &PodSpec) -> Result<(), Reason> {
    let own = context.and_then(|context| context.run_as_user);
    let user = own.or_else(|| spec.security_context.as_ref()?.run_as_user);
    if user == Some(containers::PROXY_UID) { Err(Reason::UserTaken { container: container.to_owned() }) } else { Ok(()) }
}

/// Refuses the sidecar's volumes.
pub(super) fn volumes(container: &str, mounts: Option<&[VolumeMount]>) -> Result<(), Reason> {
    let mounts = mounts.unwrap_or_default().iter();
    match mounts.map(|mount| &mount.name).find(|name| containers::VOLUMES.contains(&name.as_str())) {
        Some(volume) => Err(Reason::VolumeTaken { container: container.to_owned(), volume: volume.clone() }),
        None => Ok(()),
    }
}

/// Refuses a token like the sidecar's: whoever has one opens the pod's stream, and ends the sidecar's by that.
fn tokens(spec: &PodSpec) -> Result<(), Reason> {
    let projects = |volume: &&Volume| {
        let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        let tokens = sources.filter_map(|source| source.service_account_token.as_ref());
        tokens.into_iter().any(|token| token.audience.as_deref() == Some(containers::TOKEN_AUDIENCE))
    };
    match spec.volumes.iter().flatten().find(projects) {
        Some(volume) => Err(Reason::TokenTaken { volume: volume.name.clone() }),
        None => Ok(()),
    }
}

fn ports(container: &Container, ours: &[i32]) -> Result<(), Reason> {
    let tcp = super::ports::tcp(container);
    match tcp.into_iter().find(|port| ours.contains(port)) {
        Some(port) => Err(Reason::PortTaken { container: container.name.clone(), port }),
        None => Ok(()),
    }
}
