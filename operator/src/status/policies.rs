//! The status of a FetchrPolicy; pure.

use std::collections::BTreeMap;

use crds::{
    conditions::{ACCEPTED, ATTACHED, PROGRAMMED, reasons},
    plan::{Identity, ObjectRef, PolicyVerdict, Verdict},
    policy::{Ancestor, FetchrPolicyStatus},
    target::{TargetKind, TargetRef},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{
    Survey,
    conditions::Says,
    survey::{Sidecar, refusal},
};
use crate::{compile::Content, index::Index};

/// The status that each policy should have.
/// Times of transition go on from what the index has: `content` holds objects as of the last compile, before status was written.
pub(super) fn statuses(
    survey: &Survey<'_>,
    index: &Index,
    content: &Content,
    now: &Time,
) -> Vec<(ObjectRef, FetchrPolicyStatus)> {
    let mut verdicts: BTreeMap<&ObjectRef, Vec<&PolicyVerdict>> = BTreeMap::new();
    for verdict in &content.policy_verdicts {
        verdicts.entry(&verdict.policy).or_default().push(verdict);
    }
    let status = |(key, generation): (&ObjectRef, &Option<i64>)| {
        let verdicts = verdicts.get(key).into_iter().flatten();
        let current = index.policies.get(key).and_then(|policy| policy.0.status());
        let ancestors = verdicts.map(|verdict| ancestor(survey, *generation, current, verdict, now)).collect();
        (key.clone(), FetchrPolicyStatus { ancestors })
    };
    content.policies.iter().map(status).collect()
}

fn ancestor(
    survey: &Survey<'_>,
    generation: Option<i64>,
    current: Option<&FetchrPolicyStatus>,
    verdict: &PolicyVerdict,
    now: &Time,
) -> Ancestor {
    let before = conditions_before(current, &verdict.target);
    let mut says = vec![told(ACCEPTED, &verdict.accepted)];
    if let Some(attached) = &verdict.attached {
        says.push(told(ATTACHED, attached));
        says.push(Count::of(survey, verdict).programmed());
    }
    Ancestor {
        target_ref: verdict.target.clone(),
        controller_name: crds::CONTROLLER.to_owned(),
        conditions: says.into_iter().map(|says| says.condition(generation, before, now)).collect(),
    }
}

fn conditions_before<'a>(current: Option<&'a FetchrPolicyStatus>, target: &TargetRef) -> &'a [Condition] {
    let ancestors = current.map(|status| status.ancestors.as_slice()).unwrap_or_default();
    ancestors
        .iter()
        .find(|ancestor| ancestor.target_ref == *target)
        .map(|ancestor| ancestor.conditions.as_slice())
        .unwrap_or_default()
}

fn told(kind: &'static str, Verdict { ok, reason, message }: &Verdict) -> Says {
    Says { kind, ok: *ok, reason, message: message.clone() }
}

/// How the sidecars at one target stand to the policy.
#[derive(Debug, Default)]
struct Count {
    all: usize,
    in_force: usize,
    too_old: usize,
    nack: Option<String>,
    away: Option<String>,
}

impl Count {
    fn of(survey: &Survey<'_>, verdict: &PolicyVerdict) -> Self {
        let mut count = Self::default();
        for plan in &verdict.plans {
            let is_own = plan.pod_namespace == verdict.policy.namespace;
            let counts = |sidecar: &&Sidecar<'_>| (is_own || sidecar.is_proven) && is_at(&sidecar.identity, &verdict.target);
            for sidecar in survey.sidecars(plan).iter().filter(counts) {
                count.add(sidecar, &verdict.policy);
            }
        }
        count
    }

    fn add(&mut self, Sidecar { pod, report, .. }: &Sidecar<'_>, policy: &ObjectRef) {
        self.all += 1;
        let Some(report) = report else {
            self.away.get_or_insert_with(|| pod.to_string());
            return;
        };
        if report.left_out.contains(policy) {
            self.too_old += 1;
        } else if report.in_sync {
            self.in_force += 1;
        } else if let Some(nack) = &report.nack {
            self.nack.get_or_insert_with(|| refusal(pod, nack));
        }
    }

    fn programmed(self) -> Says {
        let Self { all, in_force, too_old, nack, away } = self;
        let says = |ok, reason, message| Says { kind: PROGRAMMED, ok, reason, message };
        let so_far = format!("{in_force} of {all} sidecars have applied it");
        match (nack, away) {
            (Some(nack), _) => says(false, reasons::REJECTED, format!("{so_far}; {nack}")),
            _ if too_old > 0 => {
                let message =
                    format!("{so_far}; {too_old} pods have a sidecar that does not know one of its sections: restart them");
                says(false, reasons::SIDECAR_TOO_OLD, message)
            }
            (None, Some(away)) => says(false, reasons::NOT_CONNECTED, format!("{so_far}; pod {away} is not connected")),
            _ if all == 0 => says(true, reasons::NO_PODS, "No pod of the target has a sidecar.".to_owned()),
            _ if in_force == all => says(true, reasons::PROGRAMMED, format!("All {all} sidecars have applied it.")),
            _ => says(false, reasons::PENDING, so_far),
        }
    }
}

/// Whether a pod of one of the verdict's plans stands at the target.
fn is_at(identity: &Identity, target: &TargetRef) -> bool {
    match target.kind {
        TargetKind::Namespace | TargetKind::FetchrProxy | TargetKind::ExternalHost => true,
        TargetKind::Service => identity.services.contains(&target.name),
        TargetKind::Deployment | TargetKind::StatefulSet | TargetKind::DaemonSet => {
            identity.workload_kind == target.kind.to_string() && identity.workload_name == target.name
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(count: Count) -> (bool, &'static str, String) {
        let says = count.programmed();
        (says.ok, says.reason, says.message)
    }

    #[test]
    fn policy_is_programmed_when_every_sidecar_has_applied_it() {
        assert_eq!(reason(Count { all: 3, in_force: 3, ..Count::default() }).1, "Programmed");
        assert_eq!(reason(Count { all: 3, in_force: 2, ..Count::default() }).1, "Pending");
        assert_eq!(reason(Count::default()).1, "NoPods");
    }

    #[test]
    fn old_sidecars_are_counted() {
        let (ok, reason, message) = reason(Count { all: 5, in_force: 3, too_old: 2, ..Count::default() });
        assert_eq!((ok, reason), (false, "SidecarTooOld"));
        assert!(message.contains("2 pods"), "{message}");
    }

    #[test]
    fn refusal_names_pod_and_reason() {
        let count =
            Count { all: 2, in_force: 1, nack: Some("pod shop/web-1 refused it: bad regex".to_owned()), ..Count::default() };
        assert_eq!(
            reason(count),
            (false, "Rejected", "1 of 2 sidecars have applied it; pod shop/web-1 refused it: bad regex".to_owned())
        );
    }

    #[test]
    fn only_pods_of_the_workload_are_at_it() {
        let identity =
            Identity { workload_kind: "Deployment".to_owned(), workload_name: "web".to_owned(), ..Identity::default() };
        let target = |kind, name: &str| TargetRef { group: None, kind, name: name.to_owned() };
        assert!(is_at(&identity, &target(TargetKind::Deployment, "web")));
        assert!(!is_at(&identity, &target(TargetKind::Deployment, "api")));
        assert!(!is_at(&identity, &target(TargetKind::Service, "web")));
        assert!(is_at(&identity, &target(TargetKind::FetchrProxy, "any")));
    }
}
