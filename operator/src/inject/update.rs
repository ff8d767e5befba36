//! What may change about a pod that runs where injection is required; pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};

use super::{INIT_CONTAINER, PROXY_CONTAINER, Reason, confine, conflicts};

/// Refuses a change that would take the sidecar away, or let something into the pod that could. Its containers may only go to `image`,
/// which is what a pod would get now.
pub fn check_update(old: &Pod, new: &Pod, namespace_labels: &BTreeMap<String, String>, image: &str) -> Result<(), Reason> {
    let (Some(old), Some(new)) = (&old.spec, &new.spec) else { return Ok(()) };
    ours(old).try_for_each(|was| same_image(was, new, image))?;
    let before = |one: &EphemeralContainer| old.ephemeral_containers.iter().flatten().any(|other| other.name == one.name);
    let added = new.ephemeral_containers.iter().flatten().filter(|one| !before(one));
    added.into_iter().try_for_each(|one| ephemeral(one, new, namespace_labels))
}

fn ours(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    let all = spec.init_containers.iter().flatten();
    all.filter(|container| [INIT_CONTAINER, PROXY_CONTAINER].contains(&container.name.as_str()))
}

fn same_image(was: &Container, new: &PodSpec, image: &str) -> Result<(), Reason> {
    let is = ours(new).find(|container| container.name == was.name).and_then(|container| container.image.as_deref());
    if is == was.image.as_deref() || is == Some(image) {
        return Ok(());
    }
    Err(Reason::SidecarChanged { container: was.name.clone(), image: image.to_owned() })
}

fn ephemeral(one: &EphemeralContainer, spec: &PodSpec, namespace_labels: &BTreeMap<String, String>) -> Result<(), Reason> {
    let (name, context) = (&one.name, one.security_context.as_ref());
    conflicts::user(name, context, spec)?;
    conflicts::volumes(name, one.volume_mounts.as_deref())?;
    if confine::is_allowed(namespace_labels) {
        return Ok(());
    }
    if one.target_container_name.as_deref() == Some(PROXY_CONTAINER) {
        let what = format!("container {name} would share the processes of {PROXY_CONTAINER}");
        return Err(Reason::Privileged { what });
    }
    confine::container(name, context)
}
