//! Probes and hooks that the kubelet sends over the network.
//!
//! On an intercepted port they would be requests like any other: limited, logged, and refused while the pod drains. So they go
//! to the sidecar's health port, which asks the application from its own user, by the description recorded here.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{Container, GRPCAction, HTTPGetAction, LifecycleHandler, PodSpec, Probe, TCPSocketAction},
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde::{Deserialize, Serialize};

use super::{is_native_sidecar, ports};

/// The original of a rewritten probe or hook; exactly one is set, with the port as a number.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Original {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    http_get: Option<HTTPGetAction>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tcp_socket: Option<TCPSocketAction>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grpc: Option<GRPCAction>,
}

/// Originals by `container/kind`.
pub(super) type Originals = BTreeMap<String, Original>;

/// Points every probe and hook on an intercepted port at the sidecar, and returns what they were.
pub(super) fn rewrite(spec: &mut PodSpec, intercepted: &BTreeSet<i32>, health_port: i32) -> Originals {
    let mut originals = Originals::new();
    for container in probed(spec) {
        let snapshot = container.clone();
        for (kind, handler) in handlers(container) {
            let at = format!("{}/{kind}", snapshot.name);
            let Some(original) = handler.original(&snapshot).filter(|original| original.is_on(intercepted)) else { continue };
            handler.put(Original { http_get: Some(asked_of_the_sidecar(&at, health_port)), ..Original::default() });
            originals.insert(at, original);
        }
    }
    originals
}

/// Puts back the originals where a probe or hook still points at the sidecar.
pub(super) fn restore(spec: &mut PodSpec, originals: &Originals) {
    for container in probed(spec) {
        let name = container.name.clone();
        for (kind, handler) in handlers(container) {
            let at = format!("{name}/{kind}");
            let ours = handler.http_get().is_some_and(|action| action.path.as_deref() == Some(&path(&at)));
            if let Some(original) = originals.get(&at).filter(|_| ours) {
                handler.put(original.clone());
            }
        }
    }
}

/// Containers that can have probes and hooks.
fn probed(spec: &mut PodSpec) -> impl Iterator<Item = &mut Container> {
    let sidecars = spec.init_containers.iter_mut().flatten().filter(|container| is_native_sidecar(container));
    spec.containers.iter_mut().chain(sidecars)
}

fn path(at: &str) -> String {
    format!("/probe/{at}")
}

fn asked_of_the_sidecar(at: &str, health_port: i32) -> HTTPGetAction {
    HTTPGetAction { port: IntOrString::Int(health_port), path: Some(path(at)), ..HTTPGetAction::default() }
}

impl Original {
    fn is_on(&self, intercepted: &BTreeSet<i32>) -> bool {
        let http = self.http_get.as_ref().map(|action| &action.port);
        let tcp = self.tcp_socket.as_ref().map(|action| &action.port);
        let port = match (http.or(tcp), &self.grpc) {
            (Some(IntOrString::Int(port)), _) => *port,
            (None, Some(grpc)) => grpc.port,
            _ => return false,
        };
        intercepted.contains(&port)
    }
}

/// A probe or a hook, whichever has the handler.
enum Handler<'a> {
    Probe(&'a mut Probe),
    Hook(&'a mut LifecycleHandler),
}

fn handlers(container: &mut Container) -> Vec<(&'static str, Handler<'_>)> {
    let lifecycle = container.lifecycle.as_mut();
    let (post_start, pre_stop) = lifecycle.map_or((None, None), |hooks| (hooks.post_start.as_mut(), hooks.pre_stop.as_mut()));
    let probes = [
        ("startup", container.startup_probe.as_mut().map(Handler::Probe)),
        ("liveness", container.liveness_probe.as_mut().map(Handler::Probe)),
        ("readiness", container.readiness_probe.as_mut().map(Handler::Probe)),
        ("postStart", post_start.map(Handler::Hook)),
        ("preStop", pre_stop.map(Handler::Hook)),
    ];
    probes.into_iter().filter_map(|(kind, handler)| Some((kind, handler?))).collect()
}

impl Handler<'_> {
    fn http_get(&self) -> Option<&HTTPGetAction> {
        match self {
            Self::Probe(probe) => probe.http_get.as_ref(),
            Self::Hook(hook) => hook.http_get.as_ref(),
        }
    }

    /// What is to be asked, with the port resolved. None: nothing over the network, or not of this pod (a `host` is set: the
    /// kubelet asks it from the node, and the sidecar must not be made to ask elsewhere).
    fn original(&self, container: &Container) -> Option<Original> {
        let here = |host: &Option<String>| host.as_deref().unwrap_or_default().is_empty();
        let number = |port: &IntOrString| ports::number(port, container).map(IntOrString::Int);
        if let Some(action) = self.http_get() {
            let resolved = HTTPGetAction { port: number(&action.port)?, ..action.clone() };
            return here(&action.host).then(|| Original { http_get: Some(resolved), ..Original::default() });
        }
        // A hook's tcpSocket never worked: Kubernetes keeps the field and fails the hook.
        let Self::Probe(probe) = self else { return None };
        if let Some(action) = &probe.tcp_socket {
            let resolved = TCPSocketAction { port: number(&action.port)?, ..action.clone() };
            return here(&action.host).then(|| Original { tcp_socket: Some(resolved), ..Original::default() });
        }
        probe.grpc.clone().map(|grpc| Original { grpc: Some(grpc), ..Original::default() })
    }

    fn put(self, original: Original) {
        match self {
            Self::Probe(probe) => {
                probe.http_get = original.http_get;
                probe.tcp_socket = original.tcp_socket;
                probe.grpc = original.grpc;
            }
            Self::Hook(hook) => hook.http_get = original.http_get,
        }
    }
}
