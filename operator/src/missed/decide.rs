//! Which pods were missed, and which of them may be evicted; pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crds::{plan::ObjectRef, proxy::MissedPods};
use k8s_openapi::{
    api::core::v1::ObjectReference,
    jiff::{SignedDuration, Timestamp},
};

use crate::{
    index::{Index, Owner, Pod},
    stamp::OptIn,
};

/// Reason of a pod that no webhook has seen.
pub(super) const NOT_INJECTED: &str = "SidecarMissing";
/// Pause between two evictions of one owner: the replacement must have been born by then.
const PAUSE: SignedDuration = SignedDuration::from_secs(30);
/// After this long an owner's evictions are forgotten.
const FORGET: SignedDuration = SignedDuration::from_secs(3600);
/// A pod younger than this is left alone: what it was missed for may be on its way, such as the label of a new namespace.
const YOUNG: SignedDuration = SignedDuration::from_secs(5);

/// An opted-in pod without a sidecar.
#[derive(Clone, Debug)]
pub(super) struct Missed {
    pub(super) pod: ObjectRef,
    pub(super) uid: String,
    pub(super) regarding: Regarding,
    /// A code in CamelCase.
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) created: Option<Timestamp>,
    /// The proxy asks for eviction, and a new pod would be another story.
    pub(super) evict: bool,
    /// Who will make the pod anew.
    pub(super) owner: Option<Owner>,
}

/// What an event is about.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Regarding {
    namespace: String,
    object: Owner,
}

impl Regarding {
    pub(super) fn reference(&self) -> ObjectReference {
        let Owner { api_version, kind, name, uid } = self.object.clone();
        ObjectReference {
            api_version: Some(api_version),
            kind: Some(kind),
            name: Some(name),
            namespace: Some(self.namespace.clone()),
            uid: Some(uid),
            ..ObjectReference::default()
        }
    }
}

/// All opted-in pods without a sidecar.
pub(super) fn find(index: &Index, operator_namespace: &str) -> Vec<Missed> {
    let bare = index.pods.iter().filter(|(_, pod)| !pod.is_terminating && pod.injected_proxy().is_none());
    bare.filter_map(|(key, pod)| {
        let opt_in = index.opt_in(key, pod, operator_namespace);
        (opt_in != OptIn::No).then(|| missed(index, key, pod, opt_in, operator_namespace))
    })
    .collect()
}

fn missed(index: &Index, key: &ObjectRef, pod: &Pod, opt_in: OptIn, operator_namespace: &str) -> Missed {
    let proxy = index.choose(key, pod, opt_in, operator_namespace);
    let asks = proxy
        .as_ref()
        .and_then(|proxy| index.proxies.get(proxy))
        .and_then(|proxy| proxy.0.object())
        .is_some_and(|proxy| proxy.spec.missed_pods == MissedPods::Evict);
    let skipped = pod.stamp.as_ref().and_then(|stamp| stamp.skipped.clone());
    let never_seen = || {
        let message = match proxy {
            Some(_) => "created before it had opted in, or while fetchr was not asked; restart it",
            None => "no FetchrProxy is for it; create one that selects it, then restart it",
        };
        (NOT_INJECTED.to_owned(), message.to_owned())
    };
    let evict = asks && skipped.is_none();
    let (reason, message) = skipped.map_or_else(never_seen, |skipped| (skipped.reason, skipped.message));
    Missed {
        pod: key.clone(),
        uid: pod.uid.clone(),
        regarding: Regarding { namespace: key.namespace.clone(), object: reported_on(index, key, pod) },
        reason,
        message,
        created: pod.created,
        evict,
        owner: pod.owner.clone(),
    }
}

/// Where people look: the Deployment behind a ReplicaSet, else the pod's controller, else the pod.
fn reported_on(index: &Index, key: &ObjectRef, pod: &Pod) -> Owner {
    let Some(owner) = &pod.owner else {
        return Owner { api_version: "v1".to_owned(), kind: "Pod".to_owned(), name: key.name.clone(), uid: pod.uid.clone() };
    };
    let hash = pod.labels.get("pod-template-hash").filter(|_| owner.kind == "ReplicaSet");
    let deployment = hash.and_then(|hash| {
        let name = owner.name.strip_suffix(hash.as_str())?.strip_suffix('-')?;
        let uid = index.deployment_uid(&ObjectRef::new(&key.namespace, name))?;
        Some(Owner {
            api_version: "apps/v1".to_owned(),
            kind: "Deployment".to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
        })
    });
    deployment.unwrap_or_else(|| owner.clone())
}

/// When pods of each owner were evicted last, by the owner's UID.
#[derive(Debug, Default)]
pub(super) struct Evictions(HashMap<String, Timestamp>);

impl Evictions {
    pub(super) fn note(&mut self, missed: &Missed, now: Timestamp) {
        if let Some(owner) = &missed.owner {
            self.0.insert(owner.uid.clone(), now);
        }
    }

    pub(super) fn forget(&mut self, now: Timestamp) {
        self.0.retain(|_, last| now.duration_since(*last) < FORGET);
    }
}

/// Pods that may be evicted now: one of each owner at a time. Where a pod that was born after an eviction has no sidecar either,
/// eviction does not help, and there is no other one.
pub(super) fn evictable<'a>(missed: &'a [Missed], evictions: &Evictions, now: Timestamp) -> Vec<&'a Missed> {
    let mut futile = BTreeSet::new();
    let mut candidates: BTreeMap<&str, &Missed> = BTreeMap::new();
    for one in missed.iter().filter(|one| one.evict) {
        let (Some(owner), Some(created)) = (&one.owner, one.created) else {
            continue;
        };
        match evictions.0.get(&owner.uid) {
            Some(last) if created > *last => {
                futile.insert(owner.uid.as_str());
            }
            Some(last) if now.duration_since(*last) < PAUSE => {}
            _ if now.duration_since(created) < YOUNG => {}
            _ => {
                candidates.entry(&owner.uid).or_insert(one);
            }
        }
    }
    candidates.into_iter().filter(|(uid, _)| !futile.contains(uid)).map(|(_, one)| one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    fn pod(name: &str, owner: Option<&str>, created: i64) -> Missed {
        let owner = owner.map(|uid| Owner {
            api_version: "apps/v1".to_owned(),
            kind: "ReplicaSet".to_owned(),
            name: uid.to_owned(),
            uid: uid.to_owned(),
        });
        let object = Owner { api_version: "v1".to_owned(), kind: "Pod".to_owned(), name: name.to_owned(), uid: name.to_owned() };
        Missed {
            pod: ObjectRef::new("shop", name),
            uid: name.to_owned(),
            regarding: Regarding { namespace: "shop".to_owned(), object },
            reason: NOT_INJECTED.to_owned(),
            message: String::new(),
            created: Some(at(created)),
            evict: true,
            owner,
        }
    }

    fn names(missed: &[Missed], evictions: &Evictions, now: i64) -> Vec<String> {
        evictable(missed, evictions, at(now)).into_iter().map(|one| one.pod.name.clone()).collect()
    }

    #[test]
    fn one_pod_of_each_owner_is_evicted_at_a_time() {
        let missed = [pod("a-1", Some("a"), 0), pod("a-2", Some("a"), 0), pod("b-1", Some("b"), 0)];
        let mut evictions = Evictions::default();
        assert_eq!(names(&missed, &evictions, 60), ["a-1", "b-1"]);
        evictions.note(&missed[0], at(60));
        assert_eq!(names(&missed[1..], &evictions, 70), ["b-1"]);
        assert_eq!(names(&missed[1..], &evictions, 100), ["a-2", "b-1"]);
    }

    #[test]
    fn pod_that_nobody_makes_anew_is_never_evicted() {
        assert!(names(&[pod("alone", None, 0)], &Evictions::default(), 60).is_empty());
    }

    #[test]
    fn eviction_that_did_not_help_is_the_last_one() {
        let mut evictions = Evictions::default();
        evictions.note(&pod("a-1", Some("a"), 0), at(60));
        let missed = [pod("a-2", Some("a"), 0), pod("a-3", Some("a"), 61)];
        assert!(names(&missed, &evictions, 600).is_empty());
    }

    #[test]
    fn newborn_pod_is_left_alone() {
        assert!(names(&[pod("a-1", Some("a"), 56)], &Evictions::default(), 60).is_empty());
    }
}
