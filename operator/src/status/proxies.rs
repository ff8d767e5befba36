//! The status of a FetchrProxy; pure.

use crds::{
    conditions::{ACCEPTED, INJECTED, PROGRAMMED, READY, reasons},
    plan::{ObjectRef, ProxyVerdict},
    proxy::{FetchrProxyStatus, PodCounts},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{Survey, conditions::Says, survey::OfProxy};
use crate::{coldstart::TooLarge, compile::Content, index::Index};

/// The status that each proxy should have. Times of transition go on from what the index has: `content` holds objects as of the
/// last compile, before status was written.
pub(super) fn statuses(
    survey: &Survey<'_>,
    index: &Index,
    content: &Content,
    too_large: &TooLarge,
    now: &Time,
) -> Vec<(ObjectRef, FetchrProxyStatus)> {
    let status = |verdict: &ProxyVerdict| {
        let generation = *content.proxies.get(&verdict.proxy)?;
        let current = index.proxies.get(&verdict.proxy).and_then(|proxy| proxy.0.status());
        let before = current.map(|status| status.conditions.as_slice()).unwrap_or_default();
        let status = status(generation, before, verdict, &survey.of_proxy(&verdict.proxy), too_large.get(&verdict.proxy), now);
        Some((verdict.proxy.clone(), status))
    };
    content.proxy_verdicts.iter().filter_map(status).collect()
}

fn status(
    generation: Option<i64>,
    before: &[Condition],
    verdict: &ProxyVerdict,
    pods: &OfProxy,
    too_large: Option<&String>,
    now: &Time,
) -> FetchrProxyStatus {
    let parts = [accepted(verdict, too_large), injected(pods), programmed(pods)];
    let says = [ready(&parts)].into_iter().chain(parts);
    FetchrProxyStatus {
        observed_generation: generation,
        pods: PodCounts { matched: pods.counts.matched + pods.strays, ..pods.counts },
        conditions: says.map(|says| says.condition(generation, before, now)).collect(),
    }
}

fn accepted(verdict: &ProxyVerdict, too_large: Option<&String>) -> Says {
    match too_large {
        Some(message) if verdict.accepted.ok => {
            Says { kind: ACCEPTED, ok: false, reason: reasons::PLAN_TOO_LARGE, message: message.clone() }
        }
        _ => {
            let crds::plan::Verdict { ok, reason, message } = verdict.accepted.clone();
            Says { kind: ACCEPTED, ok, reason, message }
        }
    }
}

fn injected(OfProxy { counts, strays, bare, .. }: &OfProxy) -> Says {
    let (matched, injected) = (counts.matched + strays, counts.injected);
    let says = |ok, reason, message| Says { kind: INJECTED, ok, reason, message };
    match bare {
        Some(bare) => says(
            false,
            reasons::SIDECAR_MISSING,
            format!("{} of {matched} pods have no sidecar of this proxy, such as {bare}", matched - injected),
        ),
        None if matched == 0 => says(true, reasons::NO_PODS, "No opted-in pod is selected.".to_owned()),
        None => says(true, reasons::INJECTED, format!("All {matched} pods have a sidecar.")),
    }
}

fn programmed(OfProxy { counts, nack, away, .. }: &OfProxy) -> Says {
    let PodCounts { injected, programmed, .. } = counts;
    let says = |ok, reason, message| Says { kind: PROGRAMMED, ok, reason, message };
    if programmed == injected {
        return match injected {
            0 => says(true, reasons::NO_PODS, "There is no sidecar to program.".to_owned()),
            _ => says(true, reasons::PROGRAMMED, format!("All {injected} sidecars have applied the newest plan.")),
        };
    }
    let so_far = format!("{programmed} of {injected} sidecars have applied the newest plan");
    match (nack, away) {
        (Some(nack), _) => says(false, reasons::REJECTED, format!("{so_far}; {nack}")),
        (None, Some(away)) => says(false, reasons::NOT_CONNECTED, format!("{so_far}; pod {away} is not connected")),
        (None, None) => says(false, reasons::PENDING, so_far),
    }
}

fn ready(parts: &[Says]) -> Says {
    match parts.iter().find(|says| !says.ok) {
        Some(Says { reason, message, .. }) => Says { kind: READY, ok: false, reason, message: message.clone() },
        None => Says {
            kind: READY,
            ok: true,
            reason: reasons::READY,
            message: "The proxy is in force in all of its pods.".to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(matched: i32, injected: i32, programmed: i32) -> OfProxy {
        OfProxy { counts: PodCounts { matched, injected, outdated: 0, programmed }, ..OfProxy::default() }
    }

    #[test]
    fn proxy_without_pods_is_ready() {
        let pods = pods(0, 0, 0);
        assert!(ready(&[injected(&pods), programmed(&pods)]).ok);
    }

    #[test]
    fn pod_without_sidecar_makes_it_not_injected() {
        let says = injected(&OfProxy { bare: Some("shop/web-2: HostNetwork: ...".to_owned()), ..pods(2, 1, 1) });
        assert!(!says.ok);
        assert_eq!(says.message, "1 of 2 pods have no sidecar of this proxy, such as shop/web-2: HostNetwork: ...");
    }

    #[test]
    fn refusal_is_told_before_absence() {
        let pods = OfProxy { nack: Some("pod a/b refused it: no".to_owned()), away: Some("a/c".to_owned()), ..pods(3, 3, 1) };
        let says = programmed(&pods);
        assert_eq!(
            (says.reason, says.message.as_str()),
            ("Rejected", "1 of 3 sidecars have applied the newest plan; pod a/b refused it: no")
        );
        assert_eq!(programmed(&OfProxy { nack: None, ..pods }).reason, "NotConnected");
    }

    #[test]
    fn first_part_that_fails_is_the_reason_why_it_is_not_ready() {
        let says = ready(&[injected(&pods(1, 1, 0)), programmed(&pods(1, 1, 0))]);
        assert_eq!((says.ok, says.reason), (false, "Pending"));
    }
}
