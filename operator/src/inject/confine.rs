//! What a pod may not have where injection is required: its containers could pass by their sidecar, or take it over.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PodSpec, SecurityContext};

use super::Reason;

/// Label on a namespace by which the platform lets its pods have all of this.
const ALLOWED: &str = "fetchr.sh/privileged-pods";
/// What the pod security standard `baseline` lets a container add.
const HARMLESS: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Refuses a pod that could escape. It carries nothing of ours.
pub(super) fn pod(spec: &PodSpec, namespace_labels: &BTreeMap<String, String>) -> Result<(), Reason> {
    if is_allowed(namespace_labels) {
        return Ok(());
    }
    let shared = [("hostPID", spec.host_pid), ("shareProcessNamespace", spec.share_process_namespace)];
    if let Some((field, _)) = shared.iter().find(|(_, value)| *value == Some(true)) {
        return Err(Reason::Privileged { what: format!("the pod has {field}: true") });
    }
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    containers.into_iter().try_for_each(|one| container(&one.name, one.security_context.as_ref()))
}

/// Whether the platform lets the namespace's pods escape.
pub(super) fn is_allowed(namespace_labels: &BTreeMap<String, String>) -> bool {
    namespace_labels.get(ALLOWED).is_some_and(|value| value == "allowed")
}

/// Refuses a container that could escape.
pub(super) fn container(name: &str, context: Option<&SecurityContext>) -> Result<(), Reason> {
    let Some(context) = context else { return Ok(()) };
    if context.privileged == Some(true) {
        return Err(Reason::Privileged { what: format!("container {name} has privileged: true") });
    }
    let added = context.capabilities.iter().flat_map(|capabilities| capabilities.add.iter().flatten());
    let plain = |capability: &String| capability.trim_start_matches("CAP_").to_ascii_uppercase();
    match added.map(plain).find(|capability| !HARMLESS.contains(&capability.as_str())) {
        Some(capability) => Err(Reason::Privileged { what: format!("container {name} adds the capability {capability}") }),
        None => Ok(()),
    }
}
