//! The index -> plans and verdicts, coalesced; the thinking is in `crds::plan`.

mod unreadable;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crds::{
    FetchrProxy,
    plan::{Memory, ObjectRef, Plan, PlanKey, PolicyVerdict, Position, ProxyVerdict},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use crate::index::{Kind, Shared, Snapshot};

/// The first change is compiled at once; those of a burst, such as `kubectl apply -f folder/`, after this pause, together.
const PAUSE: Duration = Duration::from_millis(40);
/// Compiling takes at most one part in so many of the time.
const SHARE: u32 = 5;
/// The longest pause: plans must not fall behind for longer, whatever they cost.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How often plans that stayed the same get a newer position.
const ADVANCE: Duration = Duration::from_secs(5);

/// Plans and verdicts of one moment.
#[derive(Debug)]
pub struct Compilation {
    /// Up to where each kind was seen.
    pub position: Position,
    /// What follows from what was seen; shared between compilations that differ in their position only.
    pub content: Arc<Content>,
}

/// What follows from the objects of one moment.
#[derive(Debug)]
pub struct Content {
    /// The index's revision of that moment.
    revision: u64,
    /// One plan for each namespace with each proxy that may serve its pods.
    pub plans: BTreeMap<PlanKey, Plan>,
    /// One verdict for each policy and target, also for policies that can't be read.
    pub policy_verdicts: Vec<PolicyVerdict>,
    /// One verdict for each proxy, also for those that can't be read.
    pub proxy_verdicts: Vec<ProxyVerdict>,
    /// All policies, with the generation that the verdicts are about.
    pub policies: BTreeMap<ObjectRef, Option<i64>>,
    /// All proxies, likewise.
    pub proxies: BTreeMap<ObjectRef, Option<i64>>,
    /// The proxies that were compiled.
    pub compiled_proxies: Vec<Arc<FetchrProxy>>,
}

/// The newest compilation; None until every kind was listed.
pub type Compilations = watch::Receiver<Option<Arc<Compilation>>>;

/// What compiling costs.
#[derive(Clone, Debug)]
pub struct Metrics {
    duration: Histogram,
    plans: Gauge,
    unreadable: Family<ByKind, Gauge>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ByKind {
    kind: &'static str,
}

impl Metrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let buckets = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];
        let metrics = Self { duration: Histogram::new(buckets), plans: Gauge::default(), unreadable: Family::default() };
        let help = "Time from a snapshot of the index to plans and verdicts";
        registry.register_with_unit("plan_compile_duration", help, Unit::Seconds, metrics.duration.clone());
        registry.register("plans", "Plans compiled", metrics.plans.clone());
        let help = "FetchrProxies and FetchrPolicies that can't be read, so that they count as invalid";
        registry.register("unreadable_objects", help, metrics.unreadable.clone());
        metrics
    }

    fn saw(&self, snapshot: &Snapshot) {
        let show = |kind: Kind, count: usize| {
            self.unreadable.get_or_create(&ByKind { kind: kind.name() }).set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        show(Kind::Proxies, snapshot.proxies.iter().filter(|proxy| proxy.object().is_none()).count());
        show(Kind::Policies, snapshot.policies.iter().filter(|policy| policy.object().is_none()).count());
    }
}

/// Compiles on change until shut-down.
pub async fn run(
    index: Shared,
    operator_namespace: String,
    newest: watch::Sender<Option<Arc<Compilation>>>,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let mut changes = index.plans_changed();
    changes.mark_changed();
    let mut advance = interval(ADVANCE);
    advance.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut memory = Memory::default();
    let mut due = Instant::now();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = changes.changed() => {
                if changed.is_err() || shutdown.run_until_cancelled(sleep_until(due)).await.is_none() {
                    return;
                }
                changes.mark_unchanged();
                let begun = Instant::now();
                if let Some(compilation) = compile(&index, &operator_namespace, &mut memory, &metrics).await {
                    newest.send_replace(Some(Arc::new(compilation)));
                }
                due = Instant::now() + pause_after(begun.elapsed());
            }
            _ = advance.tick() => {
                newest.send_if_modified(|newest| advance_position(&index, newest));
            }
        }
    }
}

/// How long to wait after a compilation that took so long.
fn pause_after(took: Duration) -> Duration {
    (took * (SHARE - 1)).clamp(PAUSE, LONGEST_PAUSE)
}

async fn compile(index: &Shared, operator_namespace: &str, memory: &mut Memory, metrics: &Metrics) -> Option<Compilation> {
    let snapshot = {
        let index = index.read();
        index.is_complete().then(|| index.snapshot())?
    };
    metrics.saw(&snapshot);
    let position = snapshot.position.clone();
    let namespace = operator_namespace.to_owned();
    let start = Instant::now();
    let mut known = std::mem::take(memory);
    // Many policies take a while, and streams must not wait for them.
    let content = tokio::task::spawn_blocking(move || (content_of(snapshot, &namespace, &mut known), known)).await;
    metrics.duration.observe(start.elapsed().as_secs_f64());
    match content {
        Ok((content, known)) => {
            *memory = known;
            metrics.plans.set(i64::try_from(content.plans.len()).unwrap_or(i64::MAX));
            debug!(plans = content.plans.len(), took = ?start.elapsed(), "Compiled.");
            Some(Compilation { position, content: Arc::new(content) })
        }
        Err(error) => {
            error!(%error, "Could not compile; the plans before stay in force.");
            None
        }
    }
}

fn content_of(snapshot: Snapshot, operator_namespace: &str, memory: &mut Memory) -> Content {
    let mut compiled = crds::plan::compile_with(&snapshot.inputs(operator_namespace), memory);
    compiled.policies.extend(unreadable::policies(&snapshot.policies));
    compiled.proxies.extend(unreadable::proxies(&snapshot.proxies));
    Content {
        revision: snapshot.revision,
        plans: compiled.plans,
        policy_verdicts: compiled.policies,
        proxy_verdicts: compiled.proxies,
        policies: snapshot.policies.iter().map(|policy| (policy.key(), policy.generation())).collect(),
        proxies: snapshot.proxies.iter().map(|proxy| (proxy.key(), proxy.generation())).collect(),
        compiled_proxies: snapshot.proxies.into_iter().filter_map(|proxy| proxy.object().cloned()).collect(),
    }
}

/// Gives the plans the index's position, if nothing that they are compiled from has changed up to there.
fn advance_position(index: &Shared, newest: &mut Option<Arc<Compilation>>) -> bool {
    let Some(compilation) = newest else {
        return false;
    };
    let index = index.read();
    if index.revision() != compilation.content.revision || *index.position() == compilation.position {
        return false;
    }
    *newest = Some(Arc::new(Compilation { position: index.position().clone(), content: compilation.content.clone() }));
    true
}

#[cfg(test)]
impl Content {
    /// Plans without the objects that they come from.
    pub(crate) fn for_test(plans: BTreeMap<PlanKey, Plan>) -> Self {
        Self {
            revision: 0,
            plans,
            policy_verdicts: Vec::new(),
            proxy_verdicts: Vec::new(),
            policies: BTreeMap::new(),
            proxies: BTreeMap::new(),
            compiled_proxies: Vec::new(),
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};

    use super::*;
    use crate::index::{Change, Indexed, Namespace, Pod, Policy, Proxy, Service, Slice, Workload};

    fn list<T: Indexed>(index: &Shared) {
        index.change(Change::<T>::Reset(Vec::new()), "1".to_owned());
    }

    /// An index of an empty cluster, of which every kind was listed.
    pub(crate) fn complete() -> Shared {
        let index = Shared::default();
        list::<Proxy>(&index);
        list::<Policy>(&index);
        list::<Namespace>(&index);
        list::<Service>(&index);
        list::<Workload<Deployment>>(&index);
        list::<Workload<StatefulSet>>(&index);
        list::<Workload<DaemonSet>>(&index);
        list::<Pod>(&index);
        list::<Slice>(&index);
        index
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::complete, *};
    use crate::index::{Change, Namespace};

    #[tokio::test(start_paused = true)]
    async fn first_change_is_compiled_at_once_and_a_burst_together() {
        let (index, shutdown) = (complete(), CancellationToken::new());
        let (newest, mut compilations) = watch::channel(None);
        let metrics = Metrics::register(&mut Registry::default());
        let running = tokio::spawn(run(index.clone(), "fetchr-system".to_owned(), newest, metrics, shutdown.clone()));
        compilations.changed().await.unwrap();
        tokio::time::sleep(LONGEST_PAUSE).await;
        compilations.mark_unchanged();

        let begun = Instant::now();
        let mut seen = 0;
        for change in 0..20 {
            index.change(Change::Apply(ObjectRef::new("", format!("n{change}")), Namespace::default()), "2".to_owned());
            tokio::time::sleep(Duration::from_millis(2)).await;
            seen += u32::from(compilations.has_changed().unwrap());
            compilations.mark_unchanged();
            assert!(change > 0 || seen == 1, "at once, not {:?} later", begun.elapsed());
        }
        tokio::time::sleep(LONGEST_PAUSE).await;
        seen += u32::from(compilations.has_changed().unwrap());
        assert!(seen <= 3, "{seen} compilations of one burst");
        shutdown.cancel();
        running.await.unwrap();
    }

    #[test]
    fn dear_compilations_are_rare() {
        assert_eq!(pause_after(Duration::from_millis(1)), PAUSE);
        assert_eq!(pause_after(Duration::from_millis(100)), Duration::from_millis(400));
        assert_eq!(pause_after(Duration::from_secs(60)), LONGEST_PAUSE);
    }
}
