//! A pod and its proxy -> the pod with a sidecar. Pure: admission and `fetchr inject -f` call the same function.
//!
//! Injection starts from the pod without anything of ours: what stands under our names is taken out and written anew. So a pod
//! that was injected before, by us or by hand, comes out as the settings of now say, and injecting twice changes nothing.

mod ask;
mod confine;
mod conflicts;
mod containers;
mod graft;
mod ports;
mod probes;
mod reason;
mod termination;
mod undo;
mod update;
mod workload;

use std::collections::BTreeMap;

use crds::{FetchrProxy, plan::ObjectRef, proxy::InterceptionMode};
use k8s_openapi::api::core::v1::{Container, Pod};

pub use ask::Ask;
pub use containers::settings_digest;
pub use graft::graft;
pub use reason::{REASONS, Reason};
pub use update::check_update;
pub use workload::Workload;

use crate::{
    settings::Settings,
    stamp::{self, Skipped, Stamp},
};

/// Container that sets the redirect rules.
pub const INIT_CONTAINER: &str = "fetchr-init";
/// The sidecar's container.
pub const PROXY_CONTAINER: &str = "fetchr-proxy";

/// What a sidecar is injected with, the same for all pods of an installation.
#[derive(Clone, Debug)]
pub struct Injector {
    /// Image of the sidecar and of `fetchr-init`.
    pub image: String,
    /// Pull policy of that image.
    pub image_pull_policy: String,
    /// `host:port` of the config streams.
    pub operator_address: String,
    /// Version of the operator.
    pub version: String,
}

impl From<&Settings> for Injector {
    fn from(settings: &Settings) -> Self {
        Self {
            image: settings.sidecar_image.clone(),
            image_pull_policy: settings.sidecar_image_pull_policy.clone(),
            operator_address: format!("{}.{}.svc:{}", settings.stream_service, settings.names.namespace, settings.stream_port),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// What a pod is injected with.
#[derive(Clone, Copy, Debug)]
pub struct InjectContext<'a> {
    /// Labels of the namespace.
    pub namespace_labels: &'a BTreeMap<String, String>,
    /// The proxy that was chosen for the pod, if there is one.
    pub proxy: Option<&'a FetchrProxy>,
    /// The pod's workload.
    pub workload: &'a Workload,
    /// What is the same for all pods.
    pub injector: &'a Injector,
    /// PEM bundle of the operator's CA.
    pub ca_bundle: &'a str,
    /// Ed25519 public keys that may sign cold-start plans, base64.
    pub plan_keys: &'a [String],
}

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// It gets a sidecar.
    Patch {
        /// The pod with a sidecar.
        pod: Box<Pod>,
        /// What the author should know.
        warnings: Vec<String>,
    },
    /// It is created without one.
    Skip {
        /// The pod, with the reason in `fetchr.sh/status` unless it never asked for a sidecar.
        pod: Box<Pod>,
        /// Why.
        reason: Reason,
    },
    /// It is not created.
    Refuse {
        /// Why.
        reason: Reason,
    },
}

/// Decides about one pod. In a namespace where injection is required, a pod that would be skipped is refused.
pub fn inject(pod: &Pod, cx: &InjectContext<'_>) -> Decision {
    let ask = Ask::of(pod, cx.namespace_labels);
    if let Some(reason) = ask.declined() {
        return skip(pod, reason, cx);
    }
    let plain = undo::without_ours(pod);
    match sidecar_for(&plain, ask, cx) {
        Ok((pod, warnings)) => Decision::Patch { pod: Box::new(pod), warnings },
        Err(reason) if reason.is_conflict() || ask == Ask::Required => Decision::Refuse { reason },
        Err(reason) => skip(pod, reason, cx),
    }
}

/// The value of `FETCHR_PROXY` and of the stamp.
pub fn proxy_ref(proxy: &FetchrProxy) -> ObjectRef {
    let metadata = &proxy.metadata;
    ObjectRef::new(metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

/// The pod as its author wrote it, plus a sidecar.
fn sidecar_for(plain: &undo::Plain, ask: Ask, cx: &InjectContext<'_>) -> Result<(Pod, Vec<String>), Reason> {
    conflicts::can_hold_a_sidecar(&plain.pod)?;
    if let (Ask::Required, Some(spec)) = (ask, &plain.pod.spec) {
        confine::pod(spec, cx.namespace_labels)?;
    }
    let proxy = cx.proxy.ok_or(Reason::NoProxy)?;
    conflicts::check(&plain.pod, proxy, cx.namespace_labels)?;

    let mut pod = plain.pod.clone();
    let spec = pod.spec.get_or_insert_default();
    let inbound = ports::intercepted(spec, proxy);
    let speakers = ports::speakers(spec, &inbound);
    let probes = probes::rewrite(spec, &inbound, proxy.spec.telemetry.metrics_port);
    termination::adjust(spec, &proxy.spec.drain);
    let settings = settings_digest(proxy, cx.injector, ask == Ask::Required);
    let kept = plain.resources_if(&settings);
    containers::Sidecar { cx, proxy, ask, inbound: &inbound, speakers: &speakers, probes: &probes, kept: &kept }.add_to(spec);

    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(stamp::INJECTED.to_owned(), "true".to_owned());
    let stamp = Stamp {
        version: cx.injector.version.clone(),
        proxy: Some(proxy_ref(proxy).to_string()),
        workload: Some(cx.workload.to_string()),
        settings: Some(settings),
        grace_period: termination::stamp(&plain.pod, &pod),
        ..Default::default()
    };
    write_stamp(&mut pod, &stamp);
    let nothing_inbound = proxy.spec.interception.mode == InterceptionMode::Init && inbound.is_empty();
    let warnings = nothing_inbound.then(|| ports::NOTHING_INBOUND.to_owned()).into_iter().collect();
    Ok((pod, warnings))
}

fn skip(pod: &Pod, reason: Reason, cx: &InjectContext<'_>) -> Decision {
    let mut pod = pod.clone();
    if reason.is_stamped() {
        let skipped = Skipped { reason: reason.code().to_owned(), message: reason.to_string() };
        let stamp = Stamp {
            version: cx.injector.version.clone(),
            workload: Some(cx.workload.to_string()),
            skipped: Some(skipped),
            ..Default::default()
        };
        write_stamp(&mut pod, &stamp);
    }
    Decision::Skip { pod: Box::new(pod), reason }
}

fn write_stamp(pod: &mut Pod, stamp: &Stamp) {
    let stamp = serde_json::to_string(stamp).expect("strings and numbers are always JSON");
    pod.metadata.annotations.get_or_insert_default().insert(stamp::STATUS.to_owned(), stamp);
}

/// Whether an init container is a native sidecar.
fn is_native_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

#[cfg(test)]
mod tests;
