//! Verdicts on objects that can't be read: none of them is in a plan, and each says why.

use crds::{
    FetchrPolicy, FetchrProxy,
    conditions::reasons,
    plan::{ObjectRef, PolicyVerdict, ProxyVerdict, Verdict},
    policy::FetchrPolicyStatus,
    target::{TargetKind, TargetRef},
};
use serde::Deserialize;

use crate::index::{Stored, Unreadable};

/// One verdict for each target of each policy that can't be read.
pub(super) fn policies(policies: &[Stored<FetchrPolicy>]) -> impl Iterator<Item = PolicyVerdict> {
    policies.iter().filter_map(|policy| Some((policy.key(), policy.unreadable()?))).flat_map(|(policy, unreadable)| {
        let verdict = move |target| PolicyVerdict {
            policy: policy.clone(),
            target,
            accepted: invalid(&unreadable.problem),
            attached: None,
            plans: Vec::new(),
        };
        targets(unreadable).into_iter().map(verdict)
    })
}

/// One verdict for each proxy that can't be read.
pub(super) fn proxies(proxies: &[Stored<FetchrProxy>]) -> impl Iterator<Item = ProxyVerdict> {
    let unreadable = proxies.iter().filter_map(|proxy| Some((proxy.key(), proxy.unreadable()?)));
    unreadable.map(|(proxy, unreadable): (ObjectRef, _)| ProxyVerdict { proxy, accepted: invalid(&unreadable.problem) })
}

fn invalid(problem: &str) -> Verdict {
    Verdict { ok: false, reason: reasons::INVALID, message: problem.to_owned() }
}

/// The targets that can be read; if there is none, the policy's own namespace stands in, for a status is told by target.
fn targets(policy: &Unreadable<FetchrPolicyStatus>) -> Vec<TargetRef> {
    let listed = policy.spec["targetRefs"].as_array().map(Vec::as_slice).unwrap_or_default();
    let readable: Vec<_> = listed.iter().filter_map(|target| TargetRef::deserialize(target).ok()).collect();
    if !readable.is_empty() {
        return readable;
    }
    let name = policy.metadata.namespace.clone().unwrap_or_default();
    vec![TargetRef { group: None, kind: TargetKind::Namespace, name }]
}
