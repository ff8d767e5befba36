//! What the cluster looks like now: one file per kind, plain structs with `apply`, `delete`, `reset`.
//!
//! Only what is asked of an object is kept of it, so that ten thousand pods fit in a few MiB. References that do not resolve are kept
//! as they are: the view heals when the target appears.

mod namespaces;
mod objects;
mod pods;
mod policies;
mod proxies;
mod services;
mod shared;
mod slices;
mod stored;
mod workloads;

use std::collections::BTreeSet;

use crds::{
    FetchrPolicy, FetchrProxy,
    plan::{Choice, Identity, Inputs, ObjectRef, PlanKey, PodFacts, Position, TargetObject, choose_proxy},
    policy::FEATURES,
    target::TargetKind,
};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};

pub use namespaces::Namespace;
pub use objects::Objects;
pub use pods::{Owner, Pod};
pub use policies::Policy;
pub use proxies::Proxy;
pub use services::{Service, ServicePort};
pub use shared::{Change, Shared};
pub use slices::Slice;
pub use stored::{Raw, Stored, Unreadable};
pub use workloads::Workload;

use crate::stamp::{self, OptIn};

/// Kinds that are watched.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// FetchrProxies.
    Proxies,
    /// FetchrPolicies.
    Policies,
    /// Namespaces.
    Namespaces,
    /// Services.
    Services,
    /// Deployments.
    Deployments,
    /// StatefulSets.
    StatefulSets,
    /// DaemonSets.
    DaemonSets,
    /// Pods that have not ended.
    Pods,
    /// EndpointSlices of Services.
    EndpointSlices,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Proxies,
        Self::Policies,
        Self::Namespaces,
        Self::Services,
        Self::Deployments,
        Self::StatefulSets,
        Self::DaemonSets,
        Self::Pods,
        Self::EndpointSlices,
    ];

    /// The name in the position of a plan and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Proxies => "proxies",
            Self::Policies => "policies",
            Self::Namespaces => "namespaces",
            Self::Services => "services",
            Self::Deployments => "deployments",
            Self::StatefulSets => "statefulsets",
            Self::DaemonSets => "daemonsets",
            Self::Pods => "pods",
            Self::EndpointSlices => "endpointslices",
        }
    }

    /// Whether plans are compiled from this kind. The place of a pod is its identity's, and who stands behind a Service is told apart.
    fn is_input(self) -> bool {
        !matches!(self, Self::Pods | Self::EndpointSlices)
    }
}

/// A kind as the index keeps it.
pub trait Indexed: Sized + Send + Sync + 'static {
    /// What the API server sends.
    type Resource;
    /// Which kind this is.
    const KIND: Kind;

    /// Keeps what is asked of the object; None if it has no name, which no API server sends.
    fn read(object: Self::Resource) -> Option<(ObjectRef, Self)>;

    /// Where the objects of this kind are kept.
    fn objects(index: &mut Index) -> &mut Objects<Self>;

    /// What must be looked at again when `old` becomes `new`. None: absent.
    fn touched(old: Option<&Self>, new: Option<&Self>) -> Touched;

    /// What this is to policies that are attached to it; None where plans depend on the kind otherwise.
    fn target(_: &ObjectRef) -> Option<TargetObject> {
        None
    }
}

/// What a change makes stale.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Touched {
    /// Plans must be compiled anew.
    pub plans: bool,
    /// Identities and counts of pods must be computed anew.
    pub pods: bool,
    /// What stands behind Services must be computed anew.
    pub services: bool,
}

impl Touched {
    const NOTHING: Self = Self { plans: false, pods: false, services: false };
}

/// What the cluster looks like now.
#[derive(Debug, Default)]
pub struct Index {
    /// All proxies.
    pub proxies: Objects<Proxy>,
    /// All policies.
    pub policies: Objects<Policy>,
    /// All namespaces.
    pub namespaces: Objects<Namespace>,
    /// All Services with a selector or without.
    pub services: Objects<Service>,
    /// All pods that have not ended.
    pub pods: Objects<Pod>,
    /// The EndpointSlices of Services.
    pub slices: Objects<Slice>,
    /// Up to where EndpointSlices were seen.
    slices_seen: String,
    deployments: Objects<Workload<Deployment>>,
    stateful_sets: Objects<Workload<StatefulSet>>,
    daemon_sets: Objects<Workload<DaemonSet>>,
    position: Position,
    revision: u64,
    listed: BTreeSet<Kind>,
}

impl Index {
    /// Replaces all objects of a kind by what a list showed.
    pub fn reset<T: Indexed>(&mut self, objects: Vec<(ObjectRef, T)>, version: String) -> Touched {
        self.seen::<T>(version);
        let first = self.listed.insert(T::KIND);
        let (mut pods, mut services, mut changed) = (first, first, Vec::new());
        for (key, old, new) in T::objects(self).reset(objects) {
            let touched = T::touched(old.as_ref(), new);
            pods |= touched.pods;
            services |= touched.services;
            changed.extend(touched.plans.then_some(key));
        }
        let plans = changed.iter().any(|key| self.is_asked_for(T::target(key).as_ref()));
        // The first list ends a time in which nothing could be said.
        self.note(Touched { plans: plans || first, pods, services })
    }

    /// Adds an object or replaces it.
    pub fn apply<T: Indexed>(&mut self, key: ObjectRef, object: T, version: String) -> Touched {
        self.seen::<T>(version);
        let target = T::target(&key);
        let (old, new) = T::objects(self).apply(key, object);
        let touched = T::touched(old.as_ref(), Some(new));
        self.note_of(target.as_ref(), touched)
    }

    /// Removes an object.
    pub fn delete<T: Indexed>(&mut self, key: &ObjectRef, version: String) -> Touched {
        self.seen::<T>(version);
        let touched = T::objects(self).delete(key).map_or(Touched::NOTHING, |old| T::touched(Some(&old), None));
        self.note_of(T::target(key).as_ref(), touched)
    }

    fn note_of(&mut self, target: Option<&TargetObject>, touched: Touched) -> Touched {
        let plans = touched.plans && self.is_asked_for(target);
        self.note(Touched { plans, ..touched })
    }

    /// Whether plans depend on an object. Clusters have many Services and workloads, and few of them are targets.
    fn is_asked_for(&self, target: Option<&TargetObject>) -> bool {
        target.is_none_or(|target| {
            let mut policies = self.policies.in_namespace(&target.namespace).filter_map(|(_, policy)| policy.0.object());
            policies.any(|policy| targets_of(policy).any(|one| one == *target))
        })
    }

    /// Notes that nothing else happened to this kind up to `version`.
    pub fn seen<T: Indexed>(&mut self, version: String) {
        if T::KIND.is_input() {
            self.position.set(T::KIND.name(), version);
        } else if T::KIND == Kind::EndpointSlices {
            self.slices_seen = version;
        }
    }

    /// The resourceVersion up to which EndpointSlices were seen.
    pub fn slices_seen(&self) -> &str {
        &self.slices_seen
    }

    fn note(&mut self, touched: Touched) -> Touched {
        self.revision += u64::from(touched.plans);
        touched
    }

    /// Up to where each kind that plans are compiled from was seen.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// Whether every kind was listed once. Before that, what is missing here may well exist.
    pub fn is_complete(&self) -> bool {
        self.listed.len() == Kind::ALL.len()
    }

    /// What plans are compiled from, in one moment.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            revision: self.revision,
            position: self.position.clone(),
            proxies: self.proxies.values().map(|proxy| proxy.0.clone()).collect(),
            policies: self.policies.values().map(|policy| policy.0.clone()).collect(),
            namespaces: self.namespaces.keys().map(|key| key.name.clone()).collect(),
            targets: self.targets(),
        }
    }

    /// Counts the changes that make plans stale.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The targets of policies that exist.
    fn targets(&self) -> BTreeSet<TargetObject> {
        let exists = |target: &TargetObject| {
            let key = ObjectRef::new(&target.namespace, &target.name);
            match target.kind {
                TargetKind::Service => self.services.get(&key).is_some(),
                TargetKind::Deployment => self.deployments.get(&key).is_some(),
                TargetKind::StatefulSet => self.stateful_sets.get(&key).is_some(),
                TargetKind::DaemonSet => self.daemon_sets.get(&key).is_some(),
                TargetKind::Namespace | TargetKind::FetchrProxy | TargetKind::ExternalHost => false,
            }
        };
        let policies = self.policies.values().filter_map(|policy| policy.0.object());
        policies.flat_map(|policy| targets_of(policy)).filter(exists).collect()
    }

    /// Whether a pod asked for a sidecar, or its namespace did.
    pub fn opt_in(&self, key: &ObjectRef, pod: &Pod, operator_namespace: &str) -> OptIn {
        if pod.is_mirror || stamp::is_exempt(&key.namespace, operator_namespace) {
            return OptIn::No;
        }
        let namespace = self.namespaces.get(&ObjectRef::new("", &key.namespace));
        OptIn::of(namespace.and_then(|namespace| namespace.inject.as_deref()), pod.inject.as_deref())
    }

    /// The proxy that a pod with this opt-in would get now.
    pub fn choose(&self, key: &ObjectRef, pod: &Pod, opt_in: OptIn, operator_namespace: &str) -> Option<ObjectRef> {
        let facts = PodFacts {
            namespace: &key.namespace,
            labels: &pod.labels,
            annotation: pod.proxy.as_deref().filter(|_| opt_in != OptIn::Required),
        };
        // No other namespace's proxies can be chosen, so only these are looked through.
        let namespaces = BTreeSet::from([key.namespace.as_str(), operator_namespace]);
        let candidates: Vec<_> = namespaces
            .into_iter()
            .flat_map(|namespace| self.proxies.in_namespace(namespace))
            .filter_map(|(_, proxy)| proxy.0.object().map(|object| &**object))
            .collect();
        match choose_proxy(&facts, operator_namespace, &candidates) {
            Choice::Proxy { proxy, .. } => Some(proxies::reference(proxy)),
            Choice::Missing | Choice::None => None,
        }
    }

    /// UID of a Deployment.
    pub fn deployment_uid(&self, key: &ObjectRef) -> Option<&str> {
        self.deployments.get(key).map(|deployment| deployment.uid.as_str())
    }

    /// A pod's place in the cluster. `live_pods` is the caller's to fill in, for it is the same for many.
    pub fn identity(&self, key: &ObjectRef, pod: &Pod) -> Identity {
        let (workload_kind, workload_name) = pod.workload().unwrap_or_default();
        let services = self.services.in_namespace(&key.namespace).filter(|(_, service)| service.selects(&pod.labels));
        Identity {
            namespace: key.namespace.clone(),
            workload_kind: workload_kind.to_owned(),
            workload_name: workload_name.to_owned(),
            services: services.map(|(key, _)| key.name.clone()).collect(),
            live_pods: 0,
        }
    }

    /// The plan of a pod that has a sidecar.
    pub fn plan_key(&self, key: &ObjectRef, pod: &Pod) -> Option<PlanKey> {
        Some(PlanKey { pod_namespace: key.namespace.clone(), proxy: pod.injected_proxy()? })
    }
}

/// What a policy is attached to.
fn targets_of(policy: &FetchrPolicy) -> impl Iterator<Item = TargetObject> {
    let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
    let refs = policy.spec.target_refs.iter();
    refs.map(move |target| TargetObject { namespace: namespace.to_owned(), kind: target.kind, name: target.name.clone() })
}

/// What plans are compiled from, in one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Changes up to then.
    pub revision: u64,
    /// Up to where each kind was seen.
    pub position: Position,
    /// All proxies.
    pub proxies: Vec<Stored<FetchrProxy>>,
    /// All policies.
    pub policies: Vec<Stored<FetchrPolicy>>,
    namespaces: BTreeSet<String>,
    targets: BTreeSet<TargetObject>,
}

impl Snapshot {
    /// The snapshot as the compiler takes it: of what can be read.
    pub fn inputs<'a>(&'a self, operator_namespace: &'a str) -> Inputs<'a> {
        Inputs {
            operator_namespace,
            proxies: self.proxies.iter().filter_map(|proxy| proxy.object().map(|object| &**object)).collect(),
            policies: self.policies.iter().filter_map(|policy| policy.object().map(|object| &**object)).collect(),
            namespaces: self.namespaces.clone(),
            targets: Some(self.targets.clone()),
            features: FEATURES.iter().map(|&feature| feature.to_owned()).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
