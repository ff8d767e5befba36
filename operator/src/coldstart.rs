//! Cold-start plans: one signed ConfigMap `fetchr-plan` in each namespace whose pods may start while no operator answers.
//!
//! Only the leader writes them, not more often than once a second for a namespace, and only where a plan has changed: a newer
//! position alone is no reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crds::plan::{ObjectRef, PlanKey};
use futures::{StreamExt, stream};
use k8s_openapi::{ByteString, api::core::v1::ConfigMap};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::{sync::watch, time::timeout};
use tracing::{info, warn};
use wire::signed::{KeyPair, MAX_ENVELOPE, sign};

use crate::{
    certs::Certs,
    compile::{Compilation, Compilations, Content},
    context::Context,
    index::{Index, Shared},
    stamp,
};

/// Name of the ConfigMap in each namespace.
pub const CONFIG_MAP: &str = "fetchr-plan";
/// Annotation with the digest of all plans in it and of the key that signed them.
const DIGEST: &str = "fetchr.sh/plan-digest";
const FIELD_MANAGER: &str = "fetchr-operator-plan";
/// Shortest time between two writes of one ConfigMap.
const EVERY: Duration = Duration::from_secs(1);
/// How long one write may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Writes at a time.
const WRITERS: usize = 8;

/// Proxies whose plan does not fit, with what is wrong.
pub type TooLarge = BTreeMap<ObjectRef, String>;

/// Keeps the ConfigMaps up to date while this replica leads, until shut-down.
pub async fn run(cx: Context, index: Shared, compilations: Compilations, certs: Certs, too_large: watch::Sender<TooLarge>) {
    let shutdown = cx.shutdown.clone();
    shutdown.run_until_cancelled(lead(cx, index, compilations, certs, too_large)).await;
}

async fn lead(
    mut cx: Context,
    index: Shared,
    mut compilations: Compilations,
    mut certs: Certs,
    too_large: watch::Sender<TooLarge>,
) {
    cx.leadership.acquired().await;
    let mut written = existing(&cx.client).await;
    let mut pods = index.pods_changed();
    loop {
        let newest = compilations.borrow_and_update().clone();
        let credentials = certs.borrow_and_update().clone();
        pods.mark_unchanged();
        let mut settled = true;
        if let (Some(newest), Some(credentials)) = (newest, credentials) {
            let wanted = wanted(&index.read(), &newest.content, &cx.settings.namespace);
            match tokio::task::spawn_blocking(move || prepare(wanted, &newest, &credentials.signing_key)).await {
                Ok((maps, large)) => {
                    too_large.send_if_modified(|current| std::mem::replace(current, large) != *current);
                    settled = write(&cx, maps, &mut written).await;
                }
                Err(error) => warn!(%error, "Could not prepare cold-start plans."),
            }
        }
        tokio::time::sleep(EVERY).await;
        if settled {
            tokio::select! {
                Ok(()) = compilations.changed() => {}
                Ok(()) = certs.changed() => {}
                Ok(()) = pods.changed() => {}
            }
        }
    }
}

/// Digest of the ConfigMap of each namespace that has one.
async fn existing(client: &Client) -> BTreeMap<String, String> {
    let maps: Api<ConfigMap> = Api::all(client.clone());
    let params = ListParams::default().fields(&format!("metadata.name={CONFIG_MAP}"));
    loop {
        match timeout(WRITE_TIMEOUT, maps.list_metadata(&params)).await {
            Ok(Ok(list)) => {
                let digest = |map: &dyn Fn(&str) -> Option<String>| map(DIGEST).unwrap_or_default();
                let entry = |map: kube::core::PartialObjectMeta<ConfigMap>| {
                    (map.namespace().unwrap_or_default(), digest(&|key| map.annotations().get(key).cloned()))
                };
                return list.items.into_iter().map(entry).collect();
            }
            Ok(Err(error)) => warn!(%error, "Could not list cold-start plans; trying again."),
            Err(_) => warn!("Listing cold-start plans took too long; trying again."),
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// The plans that each namespace's ConfigMap holds: those of namespaces where pods with a sidecar are or may come to be.
fn wanted(index: &Index, content: &Content, operator_namespace: &str) -> BTreeSet<PlanKey> {
    let mut namespaces: BTreeSet<&str> = BTreeSet::new();
    let labelled =
        index.namespaces.iter().filter(|(_, namespace)| matches!(namespace.inject.as_deref(), Some("enabled" | "required")));
    namespaces.extend(labelled.map(|(key, _)| key.name.as_str()));
    namespaces.extend(index.proxies.keys().map(|key| key.namespace.as_str()));
    namespaces.extend(index.policies.keys().map(|key| key.namespace.as_str()));
    let injected = index.pods.iter().filter(|(_, pod)| pod.injected_proxy().is_some());
    namespaces.extend(injected.map(|(key, _)| key.namespace.as_str()));
    namespaces.retain(|name| {
        let known = index.namespaces.get(&ObjectRef::new("", *name));
        known.is_some_and(|namespace| !namespace.is_terminating) && !stamp::is_exempt(name, operator_namespace)
    });
    content.plans.keys().filter(|key| namespaces.contains(key.pod_namespace.as_str())).cloned().collect()
}

/// A ConfigMap to be.
#[derive(Debug)]
struct Map {
    digest: String,
    data: BTreeMap<String, Vec<u8>>,
}

/// Signs the wanted plans, by namespace. A plan that does not fit beside those before it is left out and reported.
fn prepare(wanted: BTreeSet<PlanKey>, compilation: &Compilation, key: &KeyPair) -> (BTreeMap<String, Map>, TooLarge) {
    let position: BTreeMap<String, String> = compilation.position.clone().into_iter().collect();
    let mut maps: BTreeMap<String, (Sha256, BTreeMap<String, Vec<u8>>)> = BTreeMap::new();
    let mut too_large = TooLarge::new();
    for PlanKey { pod_namespace, proxy } in wanted {
        let plan_key = PlanKey { pod_namespace: pod_namespace.clone(), proxy: proxy.clone() };
        let Some(plan) = compilation.content.plans.get(&plan_key) else {
            continue;
        };
        let document = plan.to_bytes();
        let (digest, data) = maps
            .entry(pod_namespace.clone())
            .or_insert_with(|| (Sha256::new_with_prefix(key.public().as_bytes()), BTreeMap::new()));
        match sign(key, &pod_namespace, &proxy, &document, &position) {
            Ok(envelope) if data.values().map(Vec::len).sum::<usize>() + envelope.len() <= MAX_ENVELOPE => {
                digest.update(format!("{proxy} {}\n", crds::plan::digest_bytes(&document)));
                data.insert(format!("{}.{}", proxy.namespace, proxy.name), envelope);
            }
            Ok(envelope) => {
                let message = format!(
                    "the plan for pods of {pod_namespace} takes {} bytes, which do not fit beside the other plans of that namespace: together at most {MAX_ENVELOPE}",
                    envelope.len()
                );
                too_large.insert(proxy, message);
            }
            Err(error) => {
                too_large.insert(proxy, error.to_string());
            }
        }
    }
    let finish = |(digest, data): (Sha256, _)| Map { digest: hex(&digest.finalize()), data };
    (maps.into_iter().map(|(namespace, map)| (namespace, finish(map))).collect(), too_large)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes what differs from `written`; whether all went well.
async fn write(cx: &Context, maps: BTreeMap<String, Map>, written: &mut BTreeMap<String, String>) -> bool {
    let gone: Vec<_> = written.keys().filter(|namespace| !maps.contains_key(*namespace)).cloned().collect();
    let changed = maps.into_iter().filter(|(namespace, map)| written.get(namespace) != Some(&map.digest));
    let steps = changed.map(|(namespace, map)| (namespace, Some(map))).chain(gone.into_iter().map(|namespace| (namespace, None)));
    let client = &cx.client;
    let mut results = stream::iter(steps.collect::<Vec<_>>())
        .map(|(namespace, map)| async move {
            let digest = map.as_ref().map(|map| map.digest.clone());
            let result = match map {
                Some(map) => timeout(WRITE_TIMEOUT, apply(client, &namespace, map)).await,
                None => timeout(WRITE_TIMEOUT, delete(client, &namespace)).await,
            };
            (namespace, digest, result)
        })
        .buffer_unordered(WRITERS);
    let mut all_well = true;
    while let Some((namespace, digest, result)) = results.next().await {
        let ok = matches!(result, Ok(Ok(())));
        cx.metrics.reconciled("cold_start_plan", ok);
        match result {
            Ok(Ok(())) => {
                info!(namespace, removed = digest.is_none(), "Wrote the cold-start plans.");
                match digest {
                    Some(digest) => written.insert(namespace, digest),
                    None => written.remove(&namespace),
                };
            }
            Ok(Err(error)) => warn!(namespace, %error, "Could not write the cold-start plans; trying again."),
            Err(_) => warn!(namespace, "Writing the cold-start plans took too long; trying again."),
        }
        all_well &= ok;
    }
    all_well
}

async fn apply(client: &Client, namespace: &str, map: Map) -> Result<(), kube::Error> {
    let data: BTreeMap<_, _> = map.data.into_iter().map(|(key, envelope)| (key, ByteString(envelope))).collect();
    let body = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": CONFIG_MAP,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/managed-by": "fetchr-operator"},
            "annotations": {DIGEST: map.digest},
        },
        "binaryData": data,
    });
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    maps.patch_metadata(CONFIG_MAP, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&body)).await.map(|_| ())
}

async fn delete(client: &Client, namespace: &str) -> Result<(), kube::Error> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    match maps.delete(CONFIG_MAP, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}
