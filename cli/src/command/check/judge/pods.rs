//! Pods: whether they have the sidecar they asked for, and of which version.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use kube::{ResourceExt, api::PartialObjectMeta};
use operator::{
    inject::Ask,
    stamp::{self, Stamp},
};

use super::{names, stamp_of, unseen};
use crate::command::{
    check::{Finding, facts::Installed},
    version::{THIS_VERSION, minor, of_deployment},
};

pub(super) fn skew(facts: &Installed) -> Finding {
    let Some(operator) = facts.deployment.as_ref().ok().and_then(of_deployment) else {
        return Finding::warning(
            "versions",
            "the operator's version is not known",
            "the Deployment has no label app.kubernetes.io/version",
        );
    };
    let sidecars: BTreeSet<String> =
        stamps(facts).map(|(_, stamp)| stamp.version).filter(|version| !version.is_empty()).collect();
    let far = |version: &str| match (minor(version), minor(&operator)) {
        (Some(one), Some(other)) => one.0 != other.0 || one.1.abs_diff(other.1) > 1,
        _ => true,
    };
    let too_far: Vec<String> = sidecars.iter().filter(|version| far(version)).cloned().collect();
    if !too_far.is_empty() {
        return Finding::failed(
            "versions",
            format!("operator {operator}, but sidecars of {}", names(&too_far)),
            "one minor version apart is supported: restart the workloads of these pods (`fetchr status -A -o wide` names them)",
        );
    }
    let others: Vec<String> =
        sidecars.iter().map(String::as_str).chain([THIS_VERSION]).filter(|v| *v != operator).map(str::to_owned).collect();
    if others.is_empty() {
        return Finding::ok("versions", format!("operator, sidecars and this program are {operator}"));
    }
    let message = format!("operator {operator}, this program {THIS_VERSION}, sidecars {}", names(&Vec::from_iter(sidecars)));
    if far(THIS_VERSION) {
        Finding::failed("versions", message, format!("use fetchr {operator}"))
    } else {
        Finding::warning("versions", message, "a difference of one minor version works; end it by restarting workloads")
    }
}

fn stamps(facts: &Installed) -> impl Iterator<Item = (String, Stamp)> {
    let injected = facts.pods.iter().flatten().filter(|pod| pod.labels().contains_key(stamp::INJECTED));
    injected.filter_map(|pod| Some((pod.name_any(), stamp_of(pod.annotations())?)))
}

pub(super) fn pods(facts: &Installed) -> Vec<Finding> {
    const WHAT: &str = "pods";
    let (pods, namespaces) = match (&facts.pods, &facts.namespaces) {
        (Ok(pods), Ok(namespaces)) => (pods, namespaces),
        (Err(gap), _) | (_, Err(gap)) => {
            return vec![Finding::warning(WHAT, format!("pods: {gap}"), unseen("list pods and namespaces"))];
        }
    };
    let labels: BTreeMap<String, &BTreeMap<String, String>> =
        namespaces.iter().map(|namespace| (namespace.name_any(), namespace.labels())).collect();
    let none = BTreeMap::new();
    let left_out = |namespace: &str| namespace == "kube-system" || namespace == facts.operator_namespace;
    let wanted: Vec<&PartialObjectMeta<Pod>> = pods
        .iter()
        .filter(|pod| {
            let namespace = pod.namespace().unwrap_or_default();
            !left_out(&namespace) && opted_in(pod, labels.get(&namespace).copied().unwrap_or(&none))
        })
        .collect();
    let mut missed = Vec::new();
    let mut skipped = Vec::new();
    for pod in &wanted {
        let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
        let reason = stamp_of(pod.annotations()).and_then(|stamp| stamp.skipped);
        match (pod.labels().contains_key(stamp::INJECTED), reason) {
            (true, _) => {}
            (false, Some(reason)) => skipped.push(format!("{name} ({})", reason.reason)),
            (false, None) => missed.push(name),
        }
    }
    let mut findings = Vec::new();
    if !missed.is_empty() {
        findings.push(Finding::failed(
            WHAT,
            format!("{} asked for a sidecar and have none: {}", missed.len(), names(&missed)),
            "they were created while the webhook was away or before it was there: restart their workloads",
        ));
    }
    if !skipped.is_empty() {
        let hint = "the annotation fetchr.sh/status of the pod says what would be right";
        findings.push(Finding::warning(
            WHAT,
            format!("{} were left without a sidecar: {}", skipped.len(), names(&skipped)),
            hint,
        ));
    }
    if findings.is_empty() {
        let message = match wanted.len() {
            0 => "none has asked for a sidecar yet".to_owned(),
            all => format!("all {all} that asked for a sidecar have one"),
        };
        findings.push(Finding::ok(WHAT, message));
    }
    findings
}

/// By the code of the webhook.
fn opted_in(pod: &PartialObjectMeta<Pod>, namespace: &BTreeMap<String, String>) -> bool {
    let pod = Pod { metadata: pod.metadata.clone(), ..Default::default() };
    matches!(Ask::of(&pod, namespace), Ask::Asked | Ask::Required)
}
