//! Cold-start plans: one signed ConfigMap `fetchr-plan` in each namespace whose pods may start while no operator answers.
//!
//! Only the leader writes them, not more often than once a second for a namespace, and only where a plan has changed or somebody else
//! has touched the ConfigMap: a newer position alone is no reason. What has not changed is neither compressed nor signed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crds::plan::{ObjectRef, PlanKey, Position};
use futures::{Stream, StreamExt, stream};
use k8s_openapi::{ByteString, api::core::v1::ConfigMap};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
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
    let mut written = Written::default();
    let mut seen = std::pin::pin!(watch_maps(cx.client.clone()));
    // What is there when this replica begins to lead is not written again.
    while !written.is_listed {
        written.see(seen.next().await);
    }
    let mut pods = index.pods_changed();
    loop {
        let newest = compilations.borrow_and_update().clone();
        let credentials = certs.borrow_and_update().clone();
        pods.mark_unchanged();
        let mut settled = true;
        if let (Some(newest), Some(credentials)) = (newest, credentials) {
            let wanted = wanted(&index.read(), &newest.content, &cx.settings.names.namespace);
            let known = written.digests();
            match tokio::task::spawn_blocking(move || prepare(wanted, &known, &newest, &credentials.signing_key)).await {
                Ok(prepared) => {
                    settled = write(&cx, prepared, &mut written).await;
                    let large = written.too_large();
                    too_large.send_if_modified(|current| std::mem::replace(current, large) != *current);
                }
                Err(error) => warn!(%error, "Could not prepare cold-start plans."),
            }
        }
        let paused = tokio::time::Instant::now() + EVERY;
        let mut stale = !settled;
        while !stale {
            tokio::select! {
                Ok(()) = compilations.changed() => stale = true,
                Ok(()) = certs.changed() => stale = true,
                Ok(()) = pods.changed() => stale = true,
                event = seen.next() => stale = written.see(event),
            }
        }
        tokio::time::sleep_until(paused).await;
    }
}

/// Every ConfigMap of the name, as it comes, changes and goes.
fn watch_maps(client: Client) -> impl Stream<Item = watcher::Result<Event<PartialObjectMeta<ConfigMap>>>> {
    let named = watcher::Config::default().fields(&format!("metadata.name={CONFIG_MAP}"));
    watcher(Api::<PartialObjectMeta<ConfigMap>>::all(client), named).default_backoff()
}

/// The ConfigMaps as this replica knows them, by namespace.
#[derive(Debug, Default)]
struct Written {
    maps: BTreeMap<String, Existing>,
    is_listed: bool,
    /// Namespaces whose ConfigMap a list that is under way has not shown yet.
    unseen: BTreeSet<String>,
}

#[derive(Clone, Debug, Default)]
struct Existing {
    /// Digest of the plans that it was made from; empty if it must be made anew.
    digest: String,
    /// Its version when this replica wrote it last, or saw it first.
    version: Option<String>,
    too_large: TooLarge,
}

impl Written {
    /// Takes what a watch saw; whether something must be written for it.
    fn see(&mut self, event: Option<watcher::Result<Event<PartialObjectMeta<ConfigMap>>>>) -> bool {
        match event {
            Some(Ok(Event::Init)) => {
                self.unseen = self.maps.keys().cloned().collect();
                false
            }
            Some(Ok(Event::InitDone)) => {
                self.is_listed = true;
                let gone = std::mem::take(&mut self.unseen);
                self.maps.retain(|namespace, _| !gone.contains(namespace));
                !gone.is_empty()
            }
            Some(Ok(Event::InitApply(map) | Event::Apply(map))) => self.applied(&map),
            Some(Ok(Event::Delete(map))) => self.maps.remove(&map.namespace().unwrap_or_default()).is_some(),
            Some(Err(error)) => {
                warn!(%error, "Could not watch cold-start plans; trying again.");
                false
            }
            None => false,
        }
    }

    fn applied(&mut self, map: &PartialObjectMeta<ConfigMap>) -> bool {
        let (namespace, version) = (map.namespace().unwrap_or_default(), map.resource_version());
        self.unseen.remove(&namespace);
        match self.maps.get_mut(&namespace) {
            // What this replica has written shows here later than it is known.
            Some(known) if known.version == version || !is_later(version.as_deref(), known.version.as_deref()) => false,
            Some(known) => {
                // Not as it was left: whatever it says about itself, it is made anew.
                *known = Existing { version, ..Existing::default() };
                true
            }
            None => {
                let digest = map.annotations().get(DIGEST).cloned().unwrap_or_default();
                self.maps.insert(namespace, Existing { digest, version, ..Existing::default() });
                false
            }
        }
    }

    fn digests(&self) -> BTreeMap<String, String> {
        self.maps.iter().map(|(namespace, map)| (namespace.clone(), map.digest.clone())).collect()
    }

    fn too_large(&self) -> TooLarge {
        self.maps.values().flat_map(|map| map.too_large.clone()).collect()
    }
}

/// Whether a resourceVersion is not lower than another one.
fn is_later(version: Option<&str>, than: Option<&str>) -> bool {
    let position = |version: Option<&str>| version.map(|version| ("map", version)).into_iter().collect::<Position>();
    position(version).may_follow(&position(than))
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
    /// Plans that are left out.
    too_large: TooLarge,
}

/// What is to be written.
#[derive(Debug, Default)]
struct Prepared {
    /// By namespace.
    changed: BTreeMap<String, Map>,
    /// Namespaces that need none any more.
    gone: Vec<String>,
}

/// Signs the wanted plans of those namespaces whose digest is not the one that is `known`.
fn prepare(wanted: BTreeSet<PlanKey>, known: &BTreeMap<String, String>, compilation: &Compilation, key: &KeyPair) -> Prepared {
    let position: BTreeMap<String, String> = compilation.position.clone().into_iter().collect();
    let mut namespaces: BTreeMap<String, Vec<(ObjectRef, Vec<u8>)>> = BTreeMap::new();
    for plan_key in wanted {
        if let Some(plan) = compilation.content.plans.get(&plan_key) {
            namespaces.entry(plan_key.pod_namespace).or_default().push((plan_key.proxy, plan.to_bytes()));
        }
    }
    let gone = known.keys().filter(|namespace| !namespaces.contains_key(*namespace)).cloned().collect();
    let changed = namespaces.into_iter().filter_map(|(namespace, plans)| {
        let digest = digest(key, &plans);
        let is_news = known.get(&namespace) != Some(&digest);
        is_news.then(|| {
            let map = sealed(&namespace, digest, &plans, &position, key);
            (namespace, map)
        })
    });
    Prepared { changed: changed.collect(), gone }
}

/// Digest of the plans of one namespace and of the key that signs them.
fn digest(key: &KeyPair, plans: &[(ObjectRef, Vec<u8>)]) -> String {
    let mut digest = Sha256::new_with_prefix(key.public().as_bytes());
    for (proxy, document) in plans {
        digest.update(format!("{proxy} {}\n", crds::plan::digest_bytes(document)));
    }
    hex(&digest.finalize())
}

/// The plans of one namespace, signed. One that does not fit beside those before it is left out and reported.
fn sealed(
    namespace: &str,
    digest: String,
    plans: &[(ObjectRef, Vec<u8>)],
    position: &BTreeMap<String, String>,
    key: &KeyPair,
) -> Map {
    let mut map = Map { digest, data: BTreeMap::new(), too_large: TooLarge::new() };
    for (proxy, document) in plans {
        match sign(key, namespace, proxy, document, position) {
            Ok(envelope) if map.data.values().map(Vec::len).sum::<usize>() + envelope.len() <= MAX_ENVELOPE => {
                map.data.insert(format!("{}.{}", proxy.namespace, proxy.name), envelope);
            }
            Ok(envelope) => {
                let message = format!(
                    "the plan for pods of {namespace} takes {} bytes, which do not fit beside the other plans of that namespace: together at most {MAX_ENVELOPE}",
                    envelope.len()
                );
                map.too_large.insert(proxy.clone(), message);
            }
            Err(error) => {
                map.too_large.insert(proxy.clone(), error.to_string());
            }
        }
    }
    map
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes what was prepared; whether all went well.
async fn write(cx: &Context, Prepared { changed, gone }: Prepared, written: &mut Written) -> bool {
    let changed = changed.into_iter().map(|(namespace, map)| (namespace, Some(map)));
    let steps: Vec<_> = changed.chain(gone.into_iter().map(|namespace| (namespace, None))).collect();
    let client = &cx.client;
    let mut results = stream::iter(steps)
        .map(|(namespace, map)| async move {
            let result = match map {
                Some(map) => timeout(WRITE_TIMEOUT, apply(client, &namespace, map)).await.map(|done| done.map(Some)),
                None => timeout(WRITE_TIMEOUT, delete(client, &namespace)).await.map(|done| done.map(|()| None)),
            };
            (namespace, result)
        })
        .buffer_unordered(WRITERS);
    let mut all_well = true;
    while let Some((namespace, result)) = results.next().await {
        let ok = matches!(result, Ok(Ok(_)));
        cx.metrics.reconciled("cold_start_plan", ok);
        match result {
            Ok(Ok(existing)) => {
                info!(namespace, removed = existing.is_none(), "Wrote the cold-start plans.");
                match existing {
                    Some(existing) => written.maps.insert(namespace, existing),
                    None => written.maps.remove(&namespace),
                };
            }
            Ok(Err(error)) => warn!(namespace, %error, "Could not write the cold-start plans; trying again."),
            Err(_) => warn!(namespace, "Writing the cold-start plans took too long; trying again."),
        }
        all_well &= ok;
    }
    all_well
}

async fn apply(client: &Client, namespace: &str, map: Map) -> Result<Existing, kube::Error> {
    // Another leader can't tell from the digest what was left out, so it makes such a ConfigMap anew.
    let told = if map.too_large.is_empty() { map.digest.as_str() } else { "" };
    let data: BTreeMap<_, _> = map.data.into_iter().map(|(key, envelope)| (key, ByteString(envelope))).collect();
    let body = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": CONFIG_MAP,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/managed-by": "fetchr-operator"},
            "annotations": {DIGEST: told},
        },
        "binaryData": data,
    });
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let applied = maps.patch_metadata(CONFIG_MAP, &params, &Patch::Apply(&body)).await?;
    Ok(Existing { digest: map.digest, version: applied.resource_version(), too_large: map.too_large })
}

async fn delete(client: &Client, namespace: &str) -> Result<(), kube::Error> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    match maps.delete(CONFIG_MAP, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crds::plan::Plan;

    use super::*;

    fn key(namespace: &str) -> PlanKey {
        PlanKey { pod_namespace: namespace.to_owned(), proxy: ObjectRef::new("fetchr-system", "default") }
    }

    fn compilation(position: &str) -> Compilation {
        let plan = |namespace| {
            let key = key(namespace);
            (key.clone(), Plan { proxy: key.proxy, ..Plan::default() })
        };
        let content = Content::for_test([plan("bank"), plan("shop")].into());
        let position: Position = [("policies", position)].into_iter().collect();
        Compilation { position, content: Arc::new(content) }
    }

    fn map(namespace: &str, version: &str, digest: &str) -> PartialObjectMeta<ConfigMap> {
        let metadata =
            json!({"namespace": namespace, "name": CONFIG_MAP, "resourceVersion": version, "annotations": {DIGEST: digest}});
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    #[test]
    fn only_what_differs_is_signed() {
        let signer = KeyPair::generate().unwrap();
        let wanted = BTreeSet::from([key("bank"), key("shop")]);
        let first = prepare(wanted.clone(), &BTreeMap::new(), &compilation("1"), &signer);
        assert_eq!(first.changed.keys().collect::<Vec<_>>(), ["bank", "shop"]);
        let mut known: BTreeMap<_, _> =
            first.changed.iter().map(|(namespace, map)| (namespace.clone(), map.digest.clone())).collect();
        assert!(prepare(wanted.clone(), &known, &compilation("2"), &signer).changed.is_empty(), "a position is no news");
        known.insert("shop".to_owned(), String::new());
        known.insert("gone".to_owned(), "d".to_owned());
        let next = prepare(wanted.clone(), &known, &compilation("2"), &signer);
        assert_eq!((next.changed.into_keys().collect(), next.gone), (vec!["shop".to_owned()], vec!["gone".to_owned()]));
        let other = KeyPair::generate().unwrap();
        assert_eq!(prepare(wanted, &known, &compilation("2"), &other).changed.len(), 2, "another key signs all anew");
    }

    #[test]
    fn map_that_somebody_else_touched_is_made_anew() {
        let mut written = Written::default();
        written.see(Some(Ok(Event::InitApply(map("shop", "1", "d1")))));
        written.see(Some(Ok(Event::InitDone)));
        assert!(written.is_listed);
        assert_eq!(written.digests()["shop"], "d1", "what was there is kept");
        assert!(!written.see(Some(Ok(Event::Apply(map("shop", "1", "d1"))))));
        let own = Existing { digest: "d2".to_owned(), version: Some("2".to_owned()), ..Existing::default() };
        written.maps.insert("shop".to_owned(), own);
        assert!(!written.see(Some(Ok(Event::Apply(map("shop", "2", "d2"))))), "its own write");
        assert!(!written.see(Some(Ok(Event::Apply(map("shop", "1", "d1"))))), "an older one, seen late");
        assert!(written.see(Some(Ok(Event::Apply(map("shop", "3", "d2"))))));
        assert_eq!(written.digests()["shop"], "");
        assert!(written.see(Some(Ok(Event::Delete(map("shop", "4", "d2"))))));
        assert!(written.digests().is_empty());
    }

    #[test]
    fn map_that_went_in_a_gap_of_the_watch_is_missed() {
        let mut written = Written::default();
        for event in
            [Event::Init, Event::InitApply(map("bank", "1", "d")), Event::InitApply(map("shop", "1", "d")), Event::InitDone]
        {
            assert!(!written.see(Some(Ok(event))));
        }
        written.see(Some(Ok(Event::Init)));
        written.see(Some(Ok(Event::InitApply(map("shop", "1", "d")))));
        assert!(written.see(Some(Ok(Event::InitDone))));
        assert_eq!(written.digests().into_keys().collect::<Vec<_>>(), ["shop"]);
    }
}
