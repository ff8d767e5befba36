//! The pod as its author wrote it: without what an earlier injection added.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};

use super::{INIT_CONTAINER, PROXY_CONTAINER, containers, probes};
use crate::stamp::{self, Stamp};

/// A pod with nothing of ours in it, and what is worth remembering of what was.
#[derive(Debug)]
pub(super) struct Plain {
    /// The pod.
    pub(super) pod: Pod,
    stamp: Option<Stamp>,
    resources: BTreeMap<String, ResourceRequirements>,
}

impl Plain {
    /// Resources that our containers had, by name, if they were injected with the same settings: a LimitRange may have added
    /// some since, and would refuse the pod without them.
    pub(super) fn resources_if(&self, settings: &str) -> BTreeMap<String, ResourceRequirements> {
        let same = self.stamp.as_ref().is_some_and(|stamp| stamp.settings.as_deref() == Some(settings));
        if same { self.resources.clone() } else { BTreeMap::new() }
    }
}

/// Takes out what stands under our names. Nothing that is found there is trusted: the most that it can do is to set a probe, a
/// grace period or resources, all of which are the author's to set anyway.
pub(super) fn without_ours(pod: &Pod) -> Plain {
    let mut pod = pod.clone();
    if let Some(labels) = &mut pod.metadata.labels {
        labels.remove(stamp::INJECTED);
    }
    let stamp = pod.metadata.annotations.as_mut().and_then(|annotations| annotations.remove(stamp::STATUS));
    let stamp: Option<Stamp> = stamp.and_then(|stamp| serde_json::from_str(&stamp).ok());
    let Some(spec) = &mut pod.spec else { return Plain { pod, stamp, resources: BTreeMap::new() } };

    let ours = take_containers(spec);
    if let Some(proxy) = ours.iter().find(|container| container.name == PROXY_CONTAINER) {
        probes::restore(spec, &recorded_probes(proxy));
    }
    if let Some(volumes) = &mut spec.volumes {
        volumes.retain(|volume| !containers::VOLUMES.contains(&volume.name.as_str()));
    }
    if let Some(grace) = stamp.as_ref().and_then(|stamp| stamp.grace_period)
        && spec.termination_grace_period_seconds == Some(grace.is)
    {
        spec.termination_grace_period_seconds = grace.was;
    }
    let resources = ours.into_iter().filter_map(|container| Some((container.name, container.resources?))).collect();
    Plain { pod, stamp, resources }
}

fn take_containers(spec: &mut PodSpec) -> Vec<Container> {
    let Some(init) = spec.init_containers.take() else { return Vec::new() };
    let is_ours = |container: &Container| [INIT_CONTAINER, PROXY_CONTAINER].contains(&container.name.as_str());
    let (ours, others): (Vec<_>, Vec<_>) = init.into_iter().partition(is_ours);
    spec.init_containers = Some(others);
    ours
}

fn recorded_probes(proxy: &Container) -> probes::Originals {
    let recorded = proxy.env.iter().flatten().find(|env| env.name == wire::env::PROBES).and_then(|env| env.value.as_deref());
    recorded.and_then(|json| serde_json::from_str(&containers::unescape(json)).ok()).unwrap_or_default()
}
