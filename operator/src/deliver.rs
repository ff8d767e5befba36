//! Streams that are open, what each of them is to be told, and commands routed to them.
//!
//! A plan becomes bytes once for all sidecars that know the same features; each stream holds a reference to them and, should it be
//! slow, skips to the newest.

mod document;
mod serve;
mod session;

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use crds::plan::{Identity, ObjectRef, Plan, PlanKey};
use futures::{FutureExt, future::BoxFuture};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use wire::v1;

pub use document::Document;
pub use session::{Hello, Inbox, Report, Session, told};

use crate::{
    api::{CommandError, Sidecar, Sidecars},
    compile::{Compilation, Compilations},
    index::{Index, Shared},
    services::{Set, Wanted},
};

/// Identities and counts follow a change of pods or Services after at most this long: a rollout changes pods many times a second.
const IDENTITIES_EVERY: Duration = Duration::from_millis(250);

/// The plan of a group of streams, as it changes.
pub type Documents = watch::Receiver<Option<Arc<Document>>>;

/// The Services of a group of streams, as they change; None until the index knows them.
pub type Sets = watch::Receiver<Option<Arc<Set>>>;

/// Features of a sidecar: what it announced in its Hello.
pub type Features = BTreeSet<String>;

/// What happens to streams.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    streams: Gauge,
    opened: Counter,
    replaced: Counter,
    expired: Counter,
    answers: Family<Answer, Counter>,
    services: serve::Metrics,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Answer {
    kind: &'static str,
}

impl Metrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register("streams", "Streams of sidecars that are open", metrics.streams.clone());
        registry.register("streams_opened", "Streams of sidecars that said Hello", metrics.opened.clone());
        registry.register("streams_replaced", "Streams closed because their pod opened another", metrics.replaced.clone());
        let help = "Streams closed because the token that opened them has ended";
        registry.register("streams_expired", help, metrics.expired.clone());
        registry.register("plan_answers", "Answers of sidecars to plans", metrics.answers.clone());
        metrics.services.register(registry);
        metrics
    }

    fn answered(&self, kind: &'static str) {
        self.answers.get_or_create(&Answer { kind }).inc();
    }
}

/// The streams of this replica; cheap to clone.
#[derive(Clone, Debug)]
pub struct Hub {
    inner: Arc<Mutex<Inner>>,
    reports: watch::Sender<u64>,
    /// Rings when Services are asked for that nobody asked for before.
    asked: Arc<Notify>,
    metrics: Metrics,
}

#[derive(Debug)]
struct Inner {
    cluster_domain: Arc<str>,
    newest: Option<Arc<Compilation>>,
    groups: HashMap<(PlanKey, Features), Group>,
    sessions: HashMap<ObjectRef, Arc<Session>>,
    /// How many pods of each plan are alive.
    live: HashMap<PlanKey, u32>,
}

/// Streams that are told the same.
#[derive(Debug)]
struct Group {
    plan: watch::Sender<Option<Arc<Document>>>,
    /// What their plan asks for; none if there is no plan.
    wanted: Option<Arc<Wanted>>,
    services: watch::Sender<Option<Arc<Set>>>,
    /// How many they are.
    streams: usize,
}

impl Hub {
    /// No streams yet.
    pub fn new(metrics: Metrics, cluster_domain: &str) -> Self {
        let inner = Inner {
            cluster_domain: cluster_domain.into(),
            newest: None,
            groups: HashMap::new(),
            sessions: HashMap::new(),
            live: HashMap::new(),
        };
        Self { inner: Arc::new(Mutex::new(inner)), reports: watch::Sender::new(0), asked: Arc::default(), metrics }
    }

    /// Keeps streams up to date until shut-down.
    pub async fn run(&self, index: Shared, compilations: Compilations, shutdown: CancellationToken) {
        tokio::join!(self.serve_services(&index, &shutdown), self.serve_plans(&index, compilations, &shutdown));
    }

    async fn serve_plans(&self, index: &Shared, mut compilations: Compilations, shutdown: &CancellationToken) {
        let mut pods = index.pods_changed();
        compilations.mark_changed();
        let mut identities_due = Instant::now();
        let mut identities_stale = false;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                Ok(()) = compilations.changed() => {
                    let newest = compilations.borrow_and_update().clone();
                    if let Some(newest) = newest {
                        self.publish(newest);
                    }
                }
                Ok(()) = pods.changed(), if !identities_stale => {
                    identities_stale = true;
                    identities_due = identities_due.max(Instant::now());
                }
                () = tokio::time::sleep_until(identities_due), if identities_stale => {
                    identities_stale = false;
                    identities_due = Instant::now() + IDENTITIES_EVERY;
                    pods.mark_unchanged();
                    self.identify(&index.read());
                }
            }
        }
    }

    /// Tells every group of streams its plan, where that changed. A proxy that is gone leaves its sidecars what they have.
    fn publish(&self, newest: Arc<Compilation>) {
        let mut inner = self.lock();
        let same_content = inner.newest.as_ref().is_some_and(|before| Arc::ptr_eq(&before.content, &newest.content));
        let Inner { groups, cluster_domain, .. } = &mut *inner;
        for ((key, features), group) in groups {
            let Some(plan) = newest.content.plans.get(key) else {
                continue;
            };
            if !same_content {
                group.wants(plan, key, cluster_domain, &self.asked);
            }
            group.plan.send_if_modified(|current| {
                let next = match current {
                    Some(current) if same_content => current.at(&newest.position),
                    _ => Document::new(plan, features, &newest.position),
                };
                let changed = current.as_ref().is_none_or(|current| current.digest != next.digest);
                // A newer position alone is no news; whoever asks next gets it.
                *current = Some(Arc::new(next));
                changed
            });
        }
        inner.newest = Some(newest);
        drop(inner);
        self.ring();
    }

    /// Tells every stream its pod's place, where that changed.
    fn identify(&self, index: &Index) {
        let mut inner = self.lock();
        inner.live = live_pods(index);
        for session in inner.sessions.values() {
            session.identify(identity(index, session, &inner.live));
        }
        drop(inner);
        self.ring();
    }

    /// Takes in a sidecar whose pod is proven. An older stream of the same pod ends.
    pub fn join(&self, hello: Hello, index: &Index, shutdown: &CancellationToken) -> (Arc<Session>, Inbox) {
        let mut inner = self.lock();
        let (document, services) = inner.subscribe(&hello.key, &hello.features, &self.asked);
        let (session, inbox) = Session::new(hello, document, services, shutdown.child_token());
        session.identify(identity(index, &session, &inner.live));
        if let Some(before) = inner.sessions.insert(session.pod.clone(), session.clone()) {
            before.end();
            inner.left(&before);
            self.metrics.replaced.inc();
        } else {
            self.metrics.streams.inc();
        }
        self.metrics.opened.inc();
        drop(inner);
        self.ring();
        (session, inbox)
    }

    /// Lets go of a stream that has ended.
    pub fn leave(&self, session: &Arc<Session>) {
        session.end();
        let mut inner = self.lock();
        if inner.sessions.get(&session.pod).is_some_and(|current| Arc::ptr_eq(current, session)) {
            inner.sessions.remove(&session.pod);
            inner.left(session);
            self.metrics.streams.dec();
            drop(inner);
            self.ring();
        }
    }

    /// Counts a stream whose token has ended.
    pub fn expired(&self) {
        self.metrics.expired.inc();
    }

    /// Counts a message about Services.
    pub fn told_services(&self) {
        self.metrics.services.told();
    }

    /// Takes what a sidecar says.
    pub fn hear(&self, session: &Session, up: v1::Up) {
        use v1::up::Message;
        let changed = match up.message {
            Some(Message::Ack(v1::Ack { digest })) => {
                self.metrics.answered("ack");
                session.acked(digest)
            }
            Some(Message::Nack(nack)) => {
                self.metrics.answered("nack");
                session.nacked(nack)
            }
            Some(Message::Status(status)) => session.reported(status),
            Some(Message::CommandAnswer(answer)) => {
                session.answered(answer);
                false
            }
            Some(Message::ServicesAck(_)) => {
                self.metrics.services.acknowledged();
                false
            }
            // A second Hello, or a message of a later version: nothing to do.
            Some(Message::Hello(_)) | None => false,
        };
        if changed {
            self.ring();
        }
    }

    /// How each sidecar stands.
    pub fn reports(&self) -> HashMap<ObjectRef, Report> {
        self.lock().sessions.iter().map(|(pod, session)| (pod.clone(), session.report())).collect()
    }

    /// Rings when a report may have changed.
    pub fn reports_changed(&self) -> watch::Receiver<u64> {
        self.reports.subscribe()
    }

    fn session(&self, pod: &ObjectRef) -> Option<Arc<Session>> {
        self.lock().sessions.get(pod).cloned()
    }

    fn ring(&self) {
        self.reports.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Group {
    /// Takes over what a plan asks for.
    fn wants(&mut self, plan: &Plan, key: &PlanKey, cluster_domain: &str, asked: &Notify) {
        let wanted = Wanted::of(plan, &key.pod_namespace, cluster_domain);
        if self.wanted.as_deref() != Some(&wanted) {
            self.wanted = Some(Arc::new(wanted));
            asked.notify_one();
        }
    }
}

impl Inner {
    /// Plan and Services of a group, which is made if this is its first stream.
    fn subscribe(&mut self, key: &PlanKey, features: &Features, asked: &Notify) -> (Documents, Sets) {
        let newest = self.newest.as_ref();
        let group = self.groups.entry((key.clone(), features.clone())).or_insert_with(|| {
            let plan = newest.and_then(|newest| Some((newest, newest.content.plans.get(key)?)));
            let document = plan.map(|(newest, plan)| Arc::new(Document::new(plan, features, &newest.position)));
            let mut group =
                Group { plan: watch::Sender::new(document), wanted: None, services: watch::Sender::new(None), streams: 0 };
            if let Some((_, plan)) = plan {
                group.wants(plan, key, &self.cluster_domain, asked);
            }
            group
        });
        group.streams += 1;
        let (mut plan, mut services) = (group.plan.subscribe(), group.services.subscribe());
        plan.mark_changed();
        services.mark_changed();
        (plan, services)
    }

    /// A group goes with its last stream.
    fn left(&mut self, session: &Session) {
        if let Entry::Occupied(mut group) = self.groups.entry((session.key.clone(), session.features.clone())) {
            group.get_mut().streams -= 1;
            if group.get().streams == 0 {
                group.remove();
            }
        }
    }
}

impl Sidecars for Hub {
    fn list(&self, namespace: Option<&str>) -> Vec<Sidecar> {
        let inner = self.lock();
        let wanted =
            inner.sessions.values().filter(|session| namespace.is_none_or(|namespace| session.pod.namespace == namespace));
        wanted.map(|session| session.describe()).collect()
    }

    fn command<'a>(
        &'a self,
        namespace: &'a str,
        pod: &'a str,
        verb: &'a str,
        body: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Bytes, CommandError>> {
        async move {
            let session = self.session(&ObjectRef::new(namespace, pod)).ok_or(CommandError::NotConnected)?;
            session.command(verb, body, deadline).await
        }
        .boxed()
    }
}

/// How many pods of each plan are alive.
fn live_pods(index: &Index) -> HashMap<PlanKey, u32> {
    let mut live = HashMap::new();
    for (key, pod) in index.pods.iter().filter(|(_, pod)| !pod.is_terminating) {
        if let Some(plan) = index.plan_key(key, pod) {
            *live.entry(plan).or_default() += 1;
        }
    }
    live
}

/// The place of a stream's pod; None until the index knows the pod.
fn identity(index: &Index, session: &Session, live: &HashMap<PlanKey, u32>) -> Option<Identity> {
    let pod = index.pods.get(&session.pod).filter(|pod| pod.uid == session.uid)?;
    let live_pods = live.get(&session.key).copied().unwrap_or(1);
    Some(Identity { live_pods, ..index.identity(&session.pod, pod) })
}

#[cfg(test)]
mod tests;
