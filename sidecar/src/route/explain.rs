//! Why a request gets what it gets.
//!
//! Goes through all rules one by one, without the index of `select`, so that a test can hold the two against each other.

use std::net::IpAddr;

use crds::policy::{Direction, Mode};
use serde::{Deserialize, Serialize};

use super::{
    Entry, Rule, Table, cel,
    condition::{Conditions, Miss},
    path::Pattern,
    shaping::{Kind, Won},
};
use crate::{ask::redact, facts::Facts};

/// What holds for a request, and why the rest doesn't.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Which way the request goes.
    pub direction: Direction,
    /// Its method.
    pub method: String,
    /// Its host.
    pub host: String,
    /// Its path, in the spelling that is matched on.
    pub path: String,
    /// Other readings of it, by applications that take more for a slash or less for a part of a segment. Rules match them too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_paths: Vec<String>,
    /// Address of its client.
    pub client: IpAddr,
    /// Set if the request passes without policy, because its host is one of `skipHosts`.
    pub skipped: bool,
    /// `namespace/policy/rule` of the best match, as logs and metrics name the route; none if no rule matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// Every rule, the most specific policy first.
    pub rules: Vec<RuleVerdict>,
}

/// How a rule stands.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleVerdict {
    /// `namespace/name` of its policy.
    pub policy: String,
    /// What the policy is attached to.
    pub attached_to: String,
    /// Name of the rule; none for a policy that is not for this pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The match that the request meets: `matches[0]`, or `every request`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matched: Option<String>,
    /// If none is met: for each of them the first condition that isn't.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub why_not: Vec<String>,
    /// Its sections; only of a rule that matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sections: Vec<SectionVerdict>,
}

/// How a section of a matching rule stands.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SectionVerdict {
    /// `headers`, `rateLimits`, `timeouts`, ...
    pub section: String,
    /// Whether it holds. A section that holds in mode Disabled does nothing, and keeps others from acting.
    pub applies: bool,
    /// Mode of a section that has one; limits have one each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// The limits of `rateLimits`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<LimitNamed>,
    /// `namespace/policy/rule` that won instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lost_to: Option<String>,
}

/// A limit by name.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LimitNamed {
    /// Name of the limit.
    pub name: String,
    /// Whether it acts.
    pub mode: Mode,
}

pub(super) fn explain(table: &Table, facts: &Facts<'_>) -> Explanation {
    let (path, others) = table.spelling.readings(facts.path);
    let skipped = table.skips(facts);
    let (best, mut rules) = if skipped { (None, Vec::new()) } else { verdicts(table, facts, &path, &others) };
    rules.extend(table.others.iter().map(|(policy, attachment)| RuleVerdict {
        policy: policy.to_string(),
        attached_to: attachment.to_string(),
        rule: None,
        matched: None,
        why_not: vec![format!("the pod {}", not_of(table))],
        sections: Vec::new(),
    }));
    Explanation {
        direction: table.direction,
        method: facts.method.to_string(),
        host: facts.host.to_owned(),
        path: path.into_owned(),
        other_paths: others.into_vec(),
        client: facts.client,
        skipped,
        route: best.map(|rule| rule.label.to_string()),
        rules,
    }
}

fn not_of(table: &Table) -> String {
    let identity = &table.identity;
    let workload = match identity.workload_name.as_str() {
        "" => "has no workload".to_owned(),
        name => format!("is of {} {name}", identity.workload_kind),
    };
    match identity.services.as_slice() {
        [] => format!("{workload} and behind no Service"),
        services => format!("{workload} and behind Service {}", services.join(", ")),
    }
}

/// The rule of the best match, and one verdict for each rule at each place where its policy is attached, in the order in which
/// they are tried.
fn verdicts<'a>(table: &'a Table, facts: &Facts<'_>, path: &str, others: &[String]) -> (Option<&'a Rule>, Vec<RuleVerdict>) {
    let request = cel::Request::new(facts, path);
    let mut found: Vec<(u32, &Entry, RuleVerdict)> = Vec::new();
    let (mut best, mut won) = (None, Won::default());
    for entry in &table.entries {
        let rule = &table.rules[entry.rule as usize];
        let known = found.iter_mut().find(|(id, at, _)| *id == entry.rule && at.attachment == entry.attachment);
        let verdict = match known {
            Some((_, _, verdict)) => verdict,
            None => {
                found.push((entry.rule, entry, unmatched(rule, entry)));
                &mut found.last_mut().expect("just pushed").2
            }
        };
        if verdict.matched.is_some() {
            continue;
        }
        let paths = std::iter::once(path).chain(others.iter().map(String::as_str));
        if let Err(why) = meets(entry, facts, paths, &request) {
            verdict.why_not.push(why);
            continue;
        }
        verdict.why_not.clear();
        verdict.matched = Some(entry.matched.map_or_else(|| "every request".to_owned(), |at| format!("matches[{at}]")));
        verdict.sections = sections(table, rule, &won);
        best = best.or(Some(rule));
        won.take(rule.kinds, entry.rule);
    }
    (best, found.into_iter().map(|(_, _, verdict)| verdict).collect())
}

fn unmatched(rule: &Rule, entry: &Entry) -> RuleVerdict {
    RuleVerdict {
        policy: rule.policy.to_string(),
        attached_to: entry.attachment.to_string(),
        rule: Some(rule.name.clone()),
        matched: None,
        why_not: Vec::new(),
        sections: Vec::new(),
    }
}

/// The sections of a rule that matches. `won` are those that others have won already.
fn sections(table: &Table, rule: &Rule, won: &Won) -> Vec<SectionVerdict> {
    let shaping = |kind: Kind| {
        let mode = rule.kinds.mode(kind)?;
        let winner = won.rule(kind).map(|winner| &table.rules[winner as usize]);
        // A second attachment of the same rule does not lose to itself.
        let lost_to = winner.filter(|winner| !std::ptr::eq(*winner, rule)).map(|winner| winner.label.to_string());
        let section = kind.name().to_owned();
        Some(SectionVerdict { section, applies: lost_to.is_none(), mode: Some(mode), limits: Vec::new(), lost_to })
    };
    let limits = || rule.limits.iter().map(|limit| LimitNamed { name: limit.name().to_owned(), mode: limit.mode() }).collect();
    let limited = (!rule.limits.is_empty()).then(|| SectionVerdict {
        section: "rateLimits".to_owned(),
        applies: true,
        mode: None,
        limits: limits(),
        lost_to: None,
    });
    let throttled = rule.throttle.as_ref().map(|throttle| SectionVerdict {
        section: "throttle".to_owned(),
        applies: true,
        mode: Some(throttle.mode()),
        limits: Vec::new(),
        lost_to: None,
    });
    let mut sections: Vec<_> = Kind::ALL.into_iter().filter_map(shaping).collect();
    sections.extend(limited);
    sections.extend(throttled);
    sections.sort_by(|a, b| a.section.cmp(&b.section));
    sections
}

fn meets<'a>(
    entry: &Entry,
    facts: &Facts<'_>,
    mut paths: impl Iterator<Item = &'a str> + Clone,
    request: &cel::Request<'_>,
) -> Result<(), String> {
    let at = entry.matched.map(|at| format!("matches[{at}]: ")).unwrap_or_default();
    if !paths.clone().any(|path| entry.path.matches(path)) {
        let path = paths.next().unwrap_or_default();
        return Err(format!("{at}path {path} {}", differs(&entry.path)));
    }
    entry.meets(facts, request).map_err(|miss| format!("{at}{}", describe(&miss, facts, entry.conditions.as_ref())))
}

fn differs(pattern: &Pattern) -> String {
    match pattern {
        Pattern::Any => "is not a path".to_owned(),
        Pattern::Exact(exact) => format!("is not {exact}"),
        Pattern::Prefix(prefix) => format!("is not {prefix} and not below it"),
        Pattern::Template(template) => format!("does not fit {template}"),
        Pattern::Regex { source, .. } => format!("does not match {source}"),
    }
}

fn describe(miss: &Miss, facts: &Facts<'_>, conditions: Option<&Conditions>) -> String {
    match miss {
        Miss::Host => format!("host {} is not one of the hosts", facts.host),
        Miss::Method => format!("method {} is not one of the methods", facts.method),
        Miss::Header(at) => format!("headers[{at}] is not met"),
        Miss::Query(at) => format!("query[{at}] is not met"),
        // Whoever may ask may not read the credentials that it compares with.
        Miss::Cel => format!("{} is false", redact::expression(conditions.map(Conditions::cel_source).unwrap_or_default())),
        Miss::CelError(error) => format!("cel: {error}"),
    }
}
