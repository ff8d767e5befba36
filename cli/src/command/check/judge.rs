//! Facts -> findings; pure.

mod cluster;
mod operator;
mod pods;
mod resources;
mod trust;

use std::collections::BTreeMap;

use ::operator::stamp::{self, Stamp};

use super::{
    Finding,
    facts::{BeforeInstall, Gap, Installed},
};
use crate::cluster::WEBHOOKS;

/// Names that a line mentions before it says "and n more".
const NAMES: usize = 5;

/// Judges a cluster without fetchr.
pub(super) fn pre(facts: &BeforeInstall) -> Vec<Finding> {
    let namespace = &facts.operator_namespace;
    let mut findings =
        vec![cluster::server(&facts.common), cluster::nodes(facts), cluster::front_proxy(facts), cluster::namespace_to_be(facts)];
    findings.extend(facts.common.crds.iter().map(|(name, crd)| match crd {
        Err(Gap::NotFound) => Finding::ok("resource", format!("{name} is not there yet")),
        present => resources::definition(name, present),
    }));
    findings.push(cluster::rights(
        &facts.common,
        &format!("ask an administrator to install it, or for these rights (namespace {namespace})"),
        true,
    ));
    findings
}

/// Judges an installation.
pub(super) fn installed(facts: &Installed) -> Vec<Finding> {
    let mut findings = vec![cluster::server(&facts.common)];
    findings.extend(facts.common.crds.iter().map(|(name, crd)| resources::definition(name, crd)));
    findings.push(operator::operator(facts));
    findings.push(pods::skew(facts));
    findings.push(operator::webhook_endpoints(facts));
    findings.push(trust::bundles(facts));
    findings.push(trust::certificate(facts));
    findings.push(operator::injection(facts));
    findings.push(operator::validation(facts));
    findings.push(operator::api_service(facts));
    findings.push(cluster::rights(
        &facts.common,
        "ask for a Role with them; the chart's ClusterRoles aggregate to view and edit",
        false,
    ));
    findings.extend(pods::pods(facts));
    findings
}

fn emergency() -> String {
    format!("in an emergency, to let pods start without sidecars: kubectl delete mutatingwebhookconfiguration {WEBHOOKS}")
}

fn stamp_of(annotations: &BTreeMap<String, String>) -> Option<Stamp> {
    serde_json::from_str(annotations.get(stamp::STATUS)?).ok()
}

fn names(all: &[String]) -> String {
    let shown = all.iter().take(NAMES).cloned().collect::<Vec<_>>().join(", ");
    if all.len() > NAMES { format!("{shown} and {} more", all.len() - NAMES) } else { shown }
}

fn unseen(right: &str) -> String {
    format!("not checked: it takes the right to {right}")
}

#[cfg(test)]
mod tests;
