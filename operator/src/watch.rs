//! What is watched, with which selectors.
//!
//! kube's `watcher` keeps bookmarks to itself, and a plan must say up to which resourceVersion each kind was seen. So the loop of list
//! and watch is ours; its backoff is kube's.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures::StreamExt;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{ListParams, WatchEvent, WatchParams},
    runtime::{utils::Backoff, watcher::DefaultBackoff},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    health::Heart,
    index::{Change, Indexed, Namespace, Pod, Policy, Proxy, Service, Shared, Slice, Workload},
};

/// Objects in one page of a list.
const PAGE: u32 = 500;
/// How long one page of a list may take.
const LIST_TIMEOUT: Duration = Duration::from_secs(60);
/// After this long without an event or a bookmark (the API server sends one each minute) a watch counts as dead.
const IDLE_TIMEOUT: Duration = Duration::from_secs(150);
/// A watch that has stayed open for this long, or has brought something, is one; the API server ends a hopeless one at once.
const STEADY_AFTER: Duration = Duration::from_secs(5);
/// After this long without a watch a replica is not ready. Shorter breaks come with every restart of an API server.
const STALE_AFTER: Duration = Duration::from_secs(30);
/// How often a loop must be seen alive.
const ALIVE_WITHIN: Duration = Duration::from_secs(300);
/// Pods that have ended are of no interest.
const NOT_ENDED: &str = "status.phase!=Succeeded,status.phase!=Failed";

/// Counters of the watches.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    lists: Family<ByKind, Counter>,
    failures: Family<ByKind, Counter>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ByKind {
    kind: &'static str,
}

impl Metrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("watch_lists", "Full lists of a kind", metrics.lists.clone());
        registry.register("watch_failures", "Lists and watches that failed", metrics.failures.clone());
        metrics
    }
}

/// Since when which kinds can't be watched; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Outages(Arc<Mutex<BTreeMap<&'static str, Instant>>>);

impl Outages {
    /// Whether a kind could not be watched for so long that what this replica says may be out of date.
    pub fn is_stale(&self, now: Instant) -> bool {
        self.lock().values().any(|since| now.saturating_duration_since(*since) > STALE_AFTER)
    }

    fn begin(&self, kind: &'static str, now: Instant) {
        self.lock().entry(kind).or_insert(now);
    }

    fn end(&self, kind: &'static str) {
        self.lock().remove(kind);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What all watches are given.
#[derive(Clone)]
pub struct Watches {
    /// Client of the API server.
    pub client: Client,
    /// Where changes go.
    pub index: Shared,
    /// Counters.
    pub metrics: Metrics,
    /// Told that the loops are alive.
    pub heart: Heart,
    /// Told what can't be watched.
    pub outages: Outages,
    /// Ends them.
    pub shutdown: CancellationToken,
}

impl Watches {
    /// Watches every kind until shut-down.
    pub async fn run(&self) {
        tokio::join!(
            self.follow::<Proxy>(None),
            self.follow::<Policy>(None),
            self.follow::<Namespace>(None),
            self.follow::<Service>(None),
            self.follow::<Workload<Deployment>>(None),
            self.follow::<Workload<StatefulSet>>(None),
            self.follow::<Workload<DaemonSet>>(None),
            self.follow::<Pod>(Some(NOT_ENDED)),
            self.follow::<Slice>(None),
        );
    }

    async fn follow<T>(&self, fields: Option<&'static str>)
    where
        T: Indexed,
        T::Resource: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send,
    {
        let watch = Watch::<T> { api: Api::all(self.client.clone()), fields, shared: self };
        self.shutdown.run_until_cancelled(Box::pin(watch.run())).await;
    }
}

/// The loop of list and watch of one kind.
struct Watch<'a, T: Indexed> {
    api: Api<T::Resource>,
    fields: Option<&'static str>,
    shared: &'a Watches,
}

/// Why a watch has to begin again.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the history after the last version seen is gone")]
    Expired,
    #[error("nothing was heard for {} s", IDLE_TIMEOUT.as_secs())]
    Idle,
    #[error("a list took longer than {} s", LIST_TIMEOUT.as_secs())]
    Slow,
    #[error(transparent)]
    Api(#[from] kube::Error),
}

impl From<kube::core::Status> for Broken {
    fn from(status: kube::core::Status) -> Self {
        kube::Error::Api(Box::new(status)).into()
    }
}

impl<T> Watch<'_, T>
where
    T: Indexed,
    T::Resource: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send,
{
    async fn run(&self) {
        let kind = T::KIND.name();
        let mut backoff = DefaultBackoff::default();
        // Up to where the index has seen this kind; None: it must be listed.
        let mut version = None;
        loop {
            self.shared.heart.beat(kind, ALIVE_WITHIN);
            let Err(broken) = self.step(&mut version, &mut backoff).await else {
                continue;
            };
            self.shared.metrics.failures.get_or_create(&ByKind { kind }).inc();
            self.shared.outages.begin(kind, Instant::now());
            if matches!(&broken, Broken::Expired) || is_gone(&broken) {
                version = None;
            }
            let pause = backoff.next().unwrap_or(Duration::from_secs(30));
            warn!(kind, error = %broken, pause = ?pause, "A watch broke off; trying again.");
            tokio::time::sleep(pause).await;
        }
    }

    async fn step(&self, version: &mut Option<String>, backoff: &mut DefaultBackoff) -> Result<(), Broken> {
        let from = match version {
            Some(version) => version,
            None => version.insert(self.list().await?),
        };
        self.watch(from, backoff).await
    }

    /// Reads all objects and returns the version of the list.
    async fn list(&self) -> Result<String, Broken> {
        let kind = T::KIND.name();
        self.shared.metrics.lists.get_or_create(&ByKind { kind }).inc();
        let mut params =
            ListParams { field_selector: self.fields.map(str::to_owned), limit: Some(PAGE), ..ListParams::default() };
        let mut objects = Vec::new();
        loop {
            let page = tokio::time::timeout(LIST_TIMEOUT, self.api.list(&params)).await.map_err(|_| Broken::Slow)??;
            objects.extend(page.items.into_iter().filter_map(T::read));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => {
                    let version = page.metadata.resource_version.unwrap_or_default();
                    debug!(kind, objects = objects.len(), version, "Listed.");
                    self.shared.index.change(Change::Reset(objects), version.clone());
                    return Ok(version);
                }
            }
        }
    }

    /// Follows changes until the API server ends the watch, as it does every few minutes.
    async fn watch(&self, version: &mut String, backoff: &mut DefaultBackoff) -> Result<(), Broken> {
        let params = WatchParams { field_selector: self.fields.map(str::to_owned), bookmarks: true, ..WatchParams::default() };
        let opening = tokio::time::timeout(LIST_TIMEOUT, self.api.watch(&params, version));
        let mut events = Box::pin(opening.await.map_err(|_| Broken::Slow)??);
        let mut is_steady = false;
        loop {
            let patience = if is_steady { IDLE_TIMEOUT } else { STEADY_AFTER };
            let event = match tokio::time::timeout(patience, events.next()).await {
                Ok(Some(event)) => event?,
                Ok(None) => return Ok(()),
                Err(_) if is_steady => return Err(Broken::Idle),
                Err(_) => {
                    is_steady = true;
                    self.shared.outages.end(T::KIND.name());
                    continue;
                }
            };
            self.shared.heart.beat(T::KIND.name(), ALIVE_WITHIN);
            backoff.reset();
            self.take(event, version)?;
            if !is_steady {
                is_steady = true;
                self.shared.outages.end(T::KIND.name());
            }
        }
    }

    fn take(&self, event: WatchEvent<T::Resource>, version: &mut String) -> Result<(), Broken> {
        let change = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                *version = object.resource_version().unwrap_or_default();
                T::read(object).map(|(key, object)| Change::Apply(key, object))
            }
            WatchEvent::Deleted(object) => {
                *version = object.resource_version().unwrap_or_default();
                T::read(object).map(|(key, _)| Change::Delete(key))
            }
            WatchEvent::Bookmark(bookmark) => {
                *version = bookmark.metadata.resource_version;
                Some(Change::Seen)
            }
            WatchEvent::Error(status) if status.code == 410 => return Err(Broken::Expired),
            WatchEvent::Error(status) => return Err(kube::Error::Api(status).into()),
        };
        self.shared.index.change(change.unwrap_or(Change::Seen), version.clone());
        Ok(())
    }
}

fn is_gone(broken: &Broken) -> bool {
    matches!(broken, Broken::Api(kube::Error::Api(status)) if status.code == 410)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_break_of_a_watch_is_no_outage() {
        let (outages, start) = (Outages::default(), Instant::now());
        outages.begin("pods", start);
        outages.begin("pods", start + Duration::from_secs(25));
        assert!(!outages.is_stale(start + Duration::from_secs(30)));
        assert!(outages.is_stale(start + Duration::from_secs(31)), "it counts from its begin");
        outages.end("pods");
        assert!(!outages.is_stale(start + Duration::from_secs(60)));
    }
}
