//! Opted-in pods that were born without a sidecar: reported on their owner, evicted where the proxy says so.

mod decide;

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{
    Api, Client,
    api::{DeleteParams, EvictParams, Preconditions},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::{context::Context, index::Shared, inject};

use decide::{Evictions, Missed, NOT_INJECTED, evictable, find};

/// How often pods are looked at while something may have to be evicted.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A burst of changes becomes one look.
const COALESCE: Duration = Duration::from_secs(1);
/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Pods that one event names.
const NAMED: usize = 3;

/// Longest reason and note of an event that the API server takes, in bytes.
const EVENT_REASON: usize = 128;
const EVENT_NOTE: usize = 1024;

/// What was missed.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    missed: Gauge,
    reported: Family<Reported, Counter>,
    evicted: Family<Evicted, Counter>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Reported {
    reason: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Evicted {
    result: &'static str,
}

impl Metrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("missed_pods", "Opted-in pods without a sidecar, as the leader sees them", metrics.missed.clone());
        registry.register("missed_pods_reported", "Such pods reported on their owner, by reason", metrics.reported.clone());
        registry.register("missed_pods_evicted", "Such pods that were to be evicted, by result", metrics.evicted.clone());
        metrics
    }
}

/// Looks for such pods while this replica leads, until shut-down.
/// `evictor` must not retry by itself: a disruption budget says no with 429, and that is an answer.
pub async fn run(cx: Context, evictor: Client, index: Shared, metrics: Metrics) {
    let shutdown = cx.shutdown.clone();
    shutdown.run_until_cancelled(Seeker::new(cx, evictor, index, metrics).lead()).await;
}

struct Seeker {
    cx: Context,
    evictor: Client,
    index: Shared,
    metrics: Metrics,
    recorder: Recorder,
    /// UIDs of pods that were reported.
    reported: HashSet<String>,
    evictions: Evictions,
}

impl Seeker {
    fn new(cx: Context, evictor: Client, index: Shared, metrics: Metrics) -> Self {
        let reporter = Reporter { controller: crds::CONTROLLER.to_owned(), instance: Some(cx.settings.pod_name.clone()) };
        let recorder = Recorder::new(cx.client.clone(), reporter);
        Self { cx, evictor, index, metrics, recorder, reported: HashSet::new(), evictions: Evictions::default() }
    }

    async fn lead(mut self) {
        self.cx.leadership.acquired().await;
        let mut pods = self.index.pods_changed();
        loop {
            pods.mark_unchanged();
            let now = Timestamp::now();
            let missed = {
                let index = self.index.read();
                if index.is_complete() { find(&index, &self.cx.settings.names.namespace) } else { Vec::new() }
            };
            self.metrics.missed.set(i64::try_from(missed.len()).unwrap_or(i64::MAX));
            self.reported.retain(|uid| missed.iter().any(|one| one.uid == *uid));
            self.report(&missed).await;
            self.evict(&missed, now).await;
            sleep(COALESCE).await;
            // Evictions go on without a change; so do reports that failed.
            let pause = if missed.is_empty() { Duration::MAX } else { LOOK_EVERY };
            let _ = timeout(pause, pods.changed()).await;
        }
    }

    /// One event for each owner and reason, about pods that were not reported yet.
    async fn report(&mut self, missed: &[Missed]) {
        let mut groups: BTreeMap<_, Vec<&Missed>> = BTreeMap::new();
        for one in missed.iter().filter(|one| !self.reported.contains(&one.uid)) {
            groups.entry((&one.regarding, &one.reason)).or_default().push(one);
        }
        for ((regarding, reason), pods) in groups {
            let reference = regarding.reference();
            let event = Event {
                type_: EventType::Warning,
                reason: cut(reason.clone(), EVENT_REASON),
                note: Some(cut(note(&pods), EVENT_NOTE)),
                action: "Inject".to_owned(),
                secondary: None,
            };
            let result = timeout(TIMEOUT, self.recorder.publish(&event, &reference)).await;
            self.cx.metrics.reconciled("missed_pod", matches!(result, Ok(Ok(()))));
            match result {
                Ok(Ok(())) => {
                    info!(owner = ?regarding, reason, pods = pods.len(), "Reported pods without a sidecar.");
                    self.metrics.reported.get_or_create(&Reported { reason: label(reason) }).inc_by(pods.len() as u64);
                    self.reported.extend(pods.into_iter().map(|one| one.uid.clone()));
                }
                Ok(Err(error)) => warn!(owner = ?regarding, %error, "Could not report pods without a sidecar."),
                Err(_) => warn!(owner = ?regarding, "Reporting pods without a sidecar took too long."),
            }
        }
    }

    async fn evict(&mut self, missed: &[Missed], now: Timestamp) {
        self.evictions.forget(now);
        for one in evictable(missed, &self.evictions, now) {
            let pods: Api<Pod> = Api::namespaced(self.evictor.clone(), &one.pod.namespace);
            // Not the one that has taken its name.
            let only = Preconditions { uid: Some(one.uid.clone()), resource_version: None };
            let delete_options = Some(DeleteParams { preconditions: Some(only), ..DeleteParams::default() });
            let params = EvictParams { delete_options, ..EvictParams::default() };
            let result = match timeout(TIMEOUT, pods.evict(&one.pod.name, &params)).await {
                Ok(Ok(_)) => "evicted",
                // A disruption budget says: not now.
                Ok(Err(kube::Error::Api(status))) if status.code == 429 => "postponed",
                Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => "gone",
                Ok(Err(error)) => {
                    warn!(pod = %one.pod, %error, "Could not evict a pod without a sidecar.");
                    "error"
                }
                Err(_) => "error",
            };
            info!(pod = %one.pod, result, "Evicting a pod without a sidecar, as its FetchrProxy says.");
            self.metrics.evicted.get_or_create(&Evicted { result }).inc();
            self.evictions.note(one, now);
        }
    }
}

/// A reason as a label: the stamp that it was read from is the pod's to write, so only known ones count.
fn label(reason: &str) -> &'static str {
    inject::REASONS.iter().chain([&NOT_INJECTED]).find(|known| **known == reason).copied().unwrap_or("Other")
}

/// At most so many bytes.
fn cut(mut text: String, most: usize) -> String {
    text.truncate(text.floor_char_boundary(most));
    text
}

/// What an event says.
fn note(pods: &[&Missed]) -> String {
    let names: Vec<_> = pods.iter().take(NAMED).map(|one| one.pod.name.as_str()).collect();
    let more = pods.len().saturating_sub(NAMED);
    let names = if more > 0 { format!("{} and {more} more", names.join(", ")) } else { names.join(", ") };
    let why = pods.first().map(|one| one.message.as_str()).unwrap_or_default();
    format!("No sidecar in {names}: {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_that_a_pod_makes_up_is_no_label() {
        assert_eq!(label("HostNetwork"), "HostNetwork");
        assert_eq!(label(NOT_INJECTED), NOT_INJECTED);
        assert_eq!(label("made-up-7"), "Other");
    }

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(cut("aäb".to_owned(), 2), "a");
        assert_eq!(cut("ab".to_owned(), 2), "ab");
    }
}
