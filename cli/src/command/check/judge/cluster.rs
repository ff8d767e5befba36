//! The cluster itself, and the caller.

use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::ResourceExt;

use super::{names, unseen};
use crate::command::{
    check::{
        Finding,
        facts::{BeforeInstall, Common, Gap},
    },
    version::minor,
};

/// The first minor version of Kubernetes 1 with native sidecars as a stable feature.
const OLDEST_MINOR: u64 = 33;

pub(super) fn server(common: &Common) -> Finding {
    let version = &common.server.git_version;
    match minor(version) {
        Some((major, minor)) if (major, minor) >= (1, OLDEST_MINOR) => {
            Finding::ok("API server", format!("{} answers, Kubernetes {version}", common.url))
        }
        _ => Finding::failed(
            "API server",
            format!("{} runs Kubernetes {version}", common.url),
            format!("fetchr needs native sidecars as they are since 1.{OLDEST_MINOR}: upgrade the cluster"),
        ),
    }
}

pub(super) fn nodes(facts: &BeforeInstall) -> Finding {
    let nodes = match &facts.nodes {
        Ok(nodes) => nodes,
        Err(gap) => return Finding::warning("nodes", format!("nodes: {gap}"), unseen("list nodes")),
    };
    let version = |node: &Node| {
        node.status
            .as_ref()
            .and_then(|status| status.node_info.as_ref())
            .map(|info| info.kubelet_version.clone())
            .unwrap_or_default()
    };
    let old: Vec<String> = nodes
        .iter()
        .filter(|node| minor(&version(node)).is_none_or(|found| found < (1, OLDEST_MINOR)))
        .map(ResourceExt::name_any)
        .collect();
    if old.is_empty() {
        Finding::ok("nodes", format!("{} nodes, each with a kubelet of 1.{OLDEST_MINOR} or newer", nodes.len()))
    } else {
        Finding::failed(
            "nodes",
            format!("kubelet older than 1.{OLDEST_MINOR}: {}", names(&old)),
            "upgrade these nodes, or keep opted-in pods off them",
        )
    }
}

pub(super) fn front_proxy(facts: &BeforeInstall) -> Finding {
    let key = "requestheader-client-ca-file";
    let present = |map: &ConfigMap| map.data.as_ref().is_some_and(|data| data.contains_key(key));
    match &facts.front_proxy {
        Ok(map) if present(map) => Finding::ok("aggregation", "the API server forwards to extension API servers"),
        Ok(_) => Finding::failed(
            "aggregation",
            format!("kube-system/extension-apiserver-authentication has no {key}"),
            "start the API server with --requestheader-client-ca-file and --proxy-client-cert-file",
        ),
        Err(gap) => {
            Finding::warning("aggregation", format!("kube-system/extension-apiserver-authentication: {gap}"), unseen("read it"))
        }
    }
}

pub(super) fn namespace_to_be(facts: &BeforeInstall) -> Finding {
    let name = &facts.operator_namespace;
    match &facts.namespace {
        Err(Gap::NotFound) => Finding::ok("namespace", format!("{name} is not there yet; helm makes it with --create-namespace")),
        Err(gap) => Finding::warning("namespace", format!("{name}: {gap}"), unseen("get namespaces")),
        Ok(namespace) if namespace.metadata.deletion_timestamp.is_some() => Finding::failed(
            "namespace",
            format!("{name} is being deleted"),
            format!("wait: kubectl wait --for=delete namespace/{name}"),
        ),
        Ok(_) => Finding::ok("namespace", format!("{name} is there")),
    }
}

pub(super) fn rights(common: &Common, hint: &str, needed: bool) -> Finding {
    const WHAT: &str = "your rights";
    let refused: Vec<String> =
        common.rights.iter().filter(|(_, allowed)| *allowed == Ok(false)).map(|(right, _)| right.to_string()).collect();
    let unknown = common.rights.iter().filter(|(_, allowed)| allowed.is_err()).count();
    if !refused.is_empty() {
        let message = format!("you may not {}", refused.join(", "));
        if needed { Finding::failed(WHAT, message, hint) } else { Finding::warning(WHAT, message, hint) }
    } else if unknown > 0 {
        Finding::warning(
            WHAT,
            format!("{unknown} of {} are not known", common.rights.len()),
            "the API server did not answer an access review",
        )
    } else {
        Finding::ok(WHAT, format!("all {} that are needed", common.rights.len()))
    }
}
