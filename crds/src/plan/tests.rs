//! Compile, as tables and as properties.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{LabelSelector, Time},
    jiff::Timestamp,
};
use kube::core::ObjectMeta;
use proptest::{prelude::*, sample::select};

use super::*;
use crate::{
    FetchrPolicy, FetchrProxy,
    conditions::reasons,
    policy::{
        FEATURES, FetchrPolicySpec, Match, RateLimit, Timeouts,
        matches::{PathKind, PathMatch},
        rate_limits::Limit,
    },
    scalar::Duration,
    target::{TargetKind, TargetRef},
};

const PLATFORM: &str = "fetchr-system";

fn metadata(namespace: &str, name: &str, age: i64) -> ObjectMeta {
    let created = Timestamp::from_second(1_700_000_000 - age).ok().map(Time);
    ObjectMeta {
        namespace: Some(namespace.into()),
        name: Some(name.into()),
        creation_timestamp: created,
        ..ObjectMeta::default()
    }
}

fn proxy(namespace: &str, name: &str) -> FetchrProxy {
    FetchrProxy { metadata: metadata(namespace, name, 0), spec: FetchrProxySpec::default(), status: None }
}

fn selecting(mut proxy: FetchrProxy, labels: &[(&str, &str)]) -> FetchrProxy {
    proxy.spec.selector = LabelSelector { match_labels: Some(owned(labels)), match_expressions: None };
    proxy
}

fn owned(labels: &[(&str, &str)]) -> BTreeMap<String, String> {
    labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn aged(mut proxy: FetchrProxy, age: i64) -> FetchrProxy {
    let name = proxy.metadata.name.take().unwrap_or_default();
    proxy.metadata = metadata(&proxy.metadata.namespace.take().unwrap_or_default(), &name, age);
    proxy
}

fn target(kind: TargetKind, name: &str) -> TargetRef {
    TargetRef { group: None, kind, name: name.to_owned() }
}

fn policy(namespace: &str, name: &str, target: TargetRef, rules: Vec<PolicyRule>) -> FetchrPolicy {
    let direction = if target.kind == TargetKind::ExternalHost { Direction::Outbound } else { Direction::Inbound };
    let spec = FetchrPolicySpec { target_refs: vec![target], direction, rules };
    FetchrPolicy { metadata: metadata(namespace, name, 0), spec, status: None }
}

fn rule(name: &str, paths: &[&str]) -> PolicyRule {
    let prefix =
        |path: &&str| Match { path: Some(PathMatch { kind: PathKind::Prefix, value: (*path).to_owned() }), ..Match::default() };
    PolicyRule { name: name.to_owned(), matches: paths.iter().map(prefix).collect(), ..PolicyRule::default() }
}

fn timing(name: &str, paths: &[&str], seconds: u64) -> PolicyRule {
    let timeouts = Timeouts { request: Some(Duration::from_secs(seconds)), ..Timeouts::default() };
    PolicyRule { timeouts: Some(timeouts), ..rule(name, paths) }
}

fn limiting(name: &str, paths: &[&str], requests: i64) -> PolicyRule {
    let limit = RateLimit::new("all", Limit::bucket(requests, Duration::from_secs(1), None));
    PolicyRule { rate_limits: vec![limit], ..rule(name, paths) }
}

fn inputs<'a>(proxies: &'a [FetchrProxy], policies: &'a [FetchrPolicy]) -> Inputs<'a> {
    Inputs { operator_namespace: PLATFORM, ..Inputs::of_documents(proxies, policies) }
}

/// Names of the policies in the plan for pods of `namespace` by `proxy`.
fn plan_of<'a>(compiled: &'a Compiled, namespace: &str, proxy: &FetchrProxy) -> &'a Plan {
    let proxy = ObjectRef::new(super::namespace(&proxy.metadata), name(&proxy.metadata));
    &compiled.plans[&PlanKey { pod_namespace: namespace.to_owned(), proxy }]
}

fn names(plan: &Plan) -> Vec<&str> {
    plan.policies.iter().map(|policy| policy.policy.name.as_str()).collect()
}

fn verdict<'a>(compiled: &'a Compiled, name: &str) -> &'a PolicyVerdict {
    compiled.policies.iter().find(|verdict| verdict.policy.name == name).expect("a verdict for each policy")
}

#[test]
fn more_specific_policies_come_first() {
    let proxies = [proxy("shop", "web"), proxy(PLATFORM, "default")];
    let everywhere = || vec![timing("all", &[], 1)];
    let policies = [
        policy(PLATFORM, "platform", target(TargetKind::Namespace, "*"), everywhere()),
        policy("shop", "namespace", target(TargetKind::Namespace, "shop"), everywhere()),
        policy("shop", "proxy", target(TargetKind::FetchrProxy, "web"), everywhere()),
        policy("shop", "service", target(TargetKind::Service, "web"), everywhere()),
        policy("shop", "workload", target(TargetKind::Deployment, "web"), everywhere()),
    ];
    let compiled = compile(&inputs(&proxies, &policies));
    assert_eq!(names(plan_of(&compiled, "shop", &proxies[0])), ["workload", "service", "proxy", "namespace", "platform"]);
    assert_eq!(names(plan_of(&compiled, "shop", &proxies[1])), ["workload", "service", "namespace", "platform"]);
    assert_eq!(names(plan_of(&compiled, PLATFORM, &proxies[1])), ["platform"]);
}

#[test]
fn of_two_equally_specific_policies_the_older_wins_then_the_first_by_name() {
    let proxies = [proxy("shop", "web")];
    let mut policies =
        ["b", "c", "a"].map(|name| policy("shop", name, target(TargetKind::FetchrProxy, "web"), vec![timing("all", &[], 1)]));
    policies[1].metadata = metadata("shop", "c", 60);
    let compiled = compile(&inputs(&proxies, &policies));
    assert_eq!(names(plan_of(&compiled, "shop", &proxies[0])), ["c", "a", "b"]);
    assert_eq!(verdict(&compiled, "c").attached.as_ref().map(|attached| attached.reason), Some(reasons::ATTACHED));
    for loser in ["a", "b"] {
        let attached = verdict(&compiled, loser).attached.as_ref().expect("it is accepted");
        assert_eq!((attached.ok, attached.reason), (false, reasons::OVERRIDDEN));
        assert_eq!(attached.message, "timeouts of rule all is won by policy shop/c, rule all, attached to its FetchrProxy");
    }
}

#[test]
fn protecting_sections_never_lose() {
    let proxies = [proxy("shop", "web")];
    let policies = [
        policy("shop", "strong", target(TargetKind::FetchrProxy, "web"), vec![limiting("all", &[], 100)]),
        policy("shop", "weak", target(TargetKind::Namespace, "shop"), vec![limiting("all", &[], 10)]),
    ];
    let compiled = compile(&inputs(&proxies, &policies));
    assert_eq!(names(plan_of(&compiled, "shop", &proxies[0])), ["strong", "weak"]);
    assert!(
        compiled
            .policies
            .iter()
            .all(|verdict| verdict.attached.as_ref().is_some_and(|attached| attached.reason == reasons::ATTACHED))
    );
}

#[test]
fn loser_of_one_section_keeps_the_others() {
    let proxies = [proxy("shop", "web")];
    let both = PolicyRule { timeouts: timing("", &[], 1).timeouts, ..limiting("all", &[], 10) };
    let policies = [
        policy("shop", "strong", target(TargetKind::FetchrProxy, "web"), vec![timing("all", &[], 1)]),
        policy("shop", "weak", target(TargetKind::Namespace, "shop"), vec![both]),
    ];
    let compiled = compile(&inputs(&proxies, &policies));
    let attached = verdict(&compiled, "weak").attached.as_ref().expect("it is accepted");
    assert_eq!((attached.ok, attached.reason), (true, reasons::PARTLY_OVERRIDDEN));
    assert!(attached.message.contains("timeouts of rule all is won by policy shop/strong"), "{}", attached.message);
}

#[test]
fn policy_loses_only_if_every_request_and_every_plan_is_taken() {
    let proxies = [selecting(proxy("shop", "web"), &[("app", "web")]), selecting(proxy("shop", "api"), &[("app", "api")])];
    let cases: [(TargetRef, &[&str], bool); 4] = [
        (target(TargetKind::Namespace, "shop"), &["/a", "/b"], true),
        (target(TargetKind::Namespace, "shop"), &["/c"], false),
        (target(TargetKind::Deployment, "web"), &["/a"], false),
        (target(TargetKind::FetchrProxy, "web"), &["/a"], false),
    ];
    for (winner, paths, lost) in cases {
        let winner = {
            let mut winner = policy("shop", "winner", winner, vec![timing("first", paths, 1)]);
            winner.metadata = metadata("shop", "winner", 60);
            winner
        };
        let loser = policy("shop", "loser", target(TargetKind::Namespace, "shop"), vec![timing("inner", &["/a/x", "/b"], 1)]);
        let case = format!("{:?}", winner.spec.target_refs);
        let compiled = compile(&inputs(&proxies, &[winner, loser]));
        let attached = verdict(&compiled, "loser").attached.as_ref().expect("it is accepted");
        assert_eq!(!attached.ok, lost, "{case}: {}", attached.message);
    }
}

#[test]
fn policy_of_another_direction_takes_nothing_away() {
    let proxies = [proxy("shop", "web")];
    let mut outbound = policy("shop", "outbound", target(TargetKind::FetchrProxy, "web"), vec![timing("all", &[], 1)]);
    outbound.spec.direction = Direction::Outbound;
    let inbound = policy("shop", "inbound", target(TargetKind::Namespace, "shop"), vec![timing("all", &[], 1)]);
    let compiled = compile(&inputs(&proxies, &[outbound, inbound]));
    assert!(verdict(&compiled, "inbound").attached.as_ref().is_some_and(|attached| attached.ok));
}

#[test]
fn target_outside_of_the_namespace_is_not_allowed() {
    let policies = [policy("shop", "greedy", target(TargetKind::Namespace, "bank"), vec![timing("all", &[], 1)])];
    let proxies = [proxy("shop", "web"), proxy("bank", "web")];
    let compiled = compile(&inputs(&proxies, &policies));
    let accepted = &verdict(&compiled, "greedy").accepted;
    assert_eq!((accepted.ok, accepted.reason), (false, reasons::NOT_ALLOWED));
    assert!(compiled.plans.values().all(|plan| plan.policies.is_empty()));
    assert_eq!(policies[0].check_reach(PLATFORM).len(), 1);
    assert!(policy(PLATFORM, "p", target(TargetKind::Namespace, "bank"), vec![]).check_reach(PLATFORM).is_empty());
}

#[test]
fn missing_target_is_told_and_heals() {
    let policies = [
        policy("shop", "proxy", target(TargetKind::FetchrProxy, "web"), vec![timing("all", &[], 1)]),
        policy("shop", "workload", target(TargetKind::Deployment, "web"), vec![timing("all", &[], 1)]),
        policy(PLATFORM, "namespace", target(TargetKind::Namespace, "gone"), vec![timing("all", &[], 1)]),
    ];
    let mut inputs = inputs(&[], &policies);
    inputs.targets = Some(BTreeSet::new());
    let compiled = compile(&inputs);
    for one in &compiled.policies {
        assert_eq!((one.accepted.reason, &one.attached), (reasons::TARGET_NOT_FOUND, &None), "{one:?}");
    }
    let proxies = [proxy("shop", "web")];
    inputs.proxies = proxies.iter().collect();
    inputs.namespaces.insert("gone".to_owned());
    let exists = TargetObject { namespace: "shop".to_owned(), kind: TargetKind::Deployment, name: "web".to_owned() };
    inputs.targets = Some([exists].into());
    assert!(compile(&inputs).policies.iter().all(|verdict| verdict.accepted.ok));
}

#[test]
fn section_that_no_sidecar_knows_keeps_the_policy_out() {
    let proxies = [proxy("shop", "web")];
    let policies = [policy("shop", "new", target(TargetKind::FetchrProxy, "web"), vec![timing("all", &[], 1)])];
    let mut inputs = inputs(&proxies, &policies);
    inputs.features.remove("timeouts");
    let compiled = compile(&inputs);
    assert_eq!(verdict(&compiled, "new").accepted.reason, reasons::UNSUPPORTED_FEATURE);
    assert!(plan_of(&compiled, "shop", &proxies[0]).policies.is_empty());
}

#[test]
fn older_sidecar_gets_the_plan_without_what_it_does_not_know() {
    let proxies = [proxy("shop", "web")];
    let policies = [
        policy("shop", "new", target(TargetKind::FetchrProxy, "web"), vec![timing("all", &[], 1), limiting("limits", &[], 1)]),
        policy("shop", "old", target(TargetKind::FetchrProxy, "web"), vec![limiting("all", &[], 1)]),
    ];
    let compiled = compile(&inputs(&proxies, &policies));
    let (plan, left_out) = plan_of(&compiled, "shop", &proxies[0]).clone().for_features(&["rateLimits".to_owned()].into());
    assert_eq!((names(&plan), left_out), (vec!["old"], vec![ObjectRef::new("shop", "new")]));
}

#[test]
fn invalid_objects_stay_out_of_every_plan() {
    let mut bad_proxy = proxy("shop", "bad");
    bad_proxy.spec.telemetry.metrics_port = 4620;
    let proxies = [proxy("shop", "web"), bad_proxy];
    let policies = [policy("shop", "bad", target(TargetKind::FetchrProxy, "web"), vec![timing("all", &["no-slash"], 1)])];
    let compiled = compile(&inputs(&proxies, &policies));
    assert_eq!(verdict(&compiled, "bad").accepted.reason, reasons::INVALID);
    assert!(plan_of(&compiled, "shop", &proxies[0]).policies.is_empty());
    assert_eq!(compiled.plans.len(), 1);
    assert_eq!(compiled.proxies[0].accepted.reason, reasons::INVALID);
}

#[test]
fn younger_of_two_proxies_with_one_selector_is_in_conflict() {
    let web = &[("app", "web")];
    let proxies = [
        aged(selecting(proxy("shop", "young"), web), 1),
        aged(selecting(proxy("shop", "old"), web), 60),
        selecting(proxy("bank", "web"), web),
        proxy("shop", "rest"),
    ];
    let compiled = compile(&inputs(&proxies, &[]));
    let conflicted: Vec<_> = compiled.proxies.iter().filter(|verdict| !verdict.accepted.ok).collect();
    assert_eq!(conflicted.len(), 1);
    assert_eq!((conflicted[0].proxy.name.as_str(), conflicted[0].accepted.reason), ("young", reasons::CONFLICTED));
    assert!(conflicted[0].accepted.message.contains("FetchrProxy old"), "{}", conflicted[0].accepted.message);
}

#[test]
fn pod_gets_the_proxy_that_it_names_then_selects_then_the_rest() {
    let web = &[("app", "web")];
    let proxies = [
        aged(selecting(proxy("shop", "young"), web), 1),
        aged(selecting(proxy("shop", "old"), web), 60),
        proxy("shop", "rest"),
        proxy(PLATFORM, "default"),
        proxy(PLATFORM, "other"),
    ];
    let proxies: Vec<_> = proxies.iter().collect();
    let choose = |namespace: &str, labels: &[(&str, &str)], annotation: Option<&str>| {
        let labels = owned(labels);
        match choose_proxy(&PodFacts { namespace, labels: &labels, annotation }, PLATFORM, &proxies) {
            Choice::Proxy { proxy, by, losers } => format!("{} {by:?} {}", name(&proxy.metadata), losers.len()),
            other => format!("{other:?}"),
        }
    };
    assert_eq!(choose("shop", web, Some("rest")), "rest Annotation 0");
    assert_eq!(choose("shop", web, Some("gone")), "Missing");
    assert_eq!(choose("shop", web, None), "old Selector 1");
    assert_eq!(choose("shop", &[("app", "api")], None), "rest Namespace 0");
    assert_eq!(choose("bank", web, None), "default Default 0");
    assert_eq!(choose_proxy(&PodFacts { namespace: "bank", labels: &owned(web), annotation: None }, PLATFORM, &[]), Choice::None);
}

#[test]
fn selector_expressions_hold_together() {
    let selector: LabelSelector = serde_json::from_value(serde_json::json!({
        "matchLabels": {"app": "web"},
        "matchExpressions": [
            {"key": "tier", "operator": "In", "values": ["front", "back"]},
            {"key": "zone", "operator": "NotIn", "values": ["c"]},
            {"key": "owner", "operator": "Exists"},
            {"key": "legacy", "operator": "DoesNotExist"},
        ],
    }))
    .expect("it is a selector");
    let good: &[_] = &[("app", "web"), ("tier", "back"), ("owner", "me")];
    assert!(selects(&selector, &owned(good)));
    for (key, value) in [("app", "api"), ("tier", "middle"), ("zone", "c"), ("legacy", "")] {
        let mut labels = owned(good);
        labels.insert(key.to_owned(), value.to_owned());
        assert!(!selects(&selector, &labels), "{key}={value}");
    }
}

#[test]
fn digest_is_that_of_canonical_json() {
    let plan = Plan { proxy: ObjectRef::new("shop", "web"), ..Plan::default() };
    let text = String::from_utf8(plan.to_bytes()).expect("JSON is UTF-8");
    assert!(text.starts_with(r#"{"policies":[],"proxy":{"name":"web","namespace":"shop"},"settings":{"#), "{text}");
    let read: Plan = serde_json::from_str(&text).expect("what was written can be read");
    assert_eq!((digest(&read), &read), (digest_bytes(text.as_bytes()), &plan));
    assert_ne!(digest(&Plan { proxy: ObjectRef::new("shop", "api"), ..Plan::default() }), digest(&plan));
    assert_eq!(digest_bytes(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

fn any_target() -> impl Strategy<Value = TargetRef> {
    let kinds = vec![
        target(TargetKind::Namespace, "shop"),
        target(TargetKind::Namespace, "bank"),
        target(TargetKind::Namespace, PLATFORM),
        target(TargetKind::Namespace, "*"),
        target(TargetKind::FetchrProxy, "web"),
        target(TargetKind::FetchrProxy, "default"),
        target(TargetKind::Service, "web"),
        target(TargetKind::Deployment, "web"),
        target(TargetKind::ExternalHost, "api.example.org"),
        target(TargetKind::ExternalHost, "*.example.org"),
    ];
    select(kinds)
}

const PATHS: [&str; 5] = ["/", "/a", "/a/b", "/b", "/c"];

fn any_rule(name: usize) -> impl Strategy<Value = PolicyRule> {
    (proptest::collection::btree_set(select(&PATHS[..]), 0..3), 1..3u8).prop_map(move |(paths, sections)| {
        let paths: Vec<_> = paths.into_iter().collect();
        let name = format!("rule-{name}");
        match sections {
            1 => timing(&name, &paths, 1),
            2 => limiting(&name, &paths, 1),
            _ => PolicyRule { timeouts: timing("", &[], 1).timeouts, ..limiting(&name, &paths, 1) },
        }
    })
}

/// Namespace, target, rules, age, and whether it is outbound.
type AnyPolicy = (&'static str, TargetRef, (PolicyRule, PolicyRule), i64, bool);

fn any_policies(most: usize) -> impl Strategy<Value = Vec<FetchrPolicy>> {
    let one = (select(vec!["shop", "bank", PLATFORM]), any_target(), (any_rule(0), any_rule(1)), 0..3i64, any::<bool>());
    proptest::collection::vec(one, 0..most).prop_map(|policies| {
        let build = |(index, one): (usize, AnyPolicy)| {
            let (namespace, target, rules, age, outbound) = one;
            let mut policy = policy(namespace, &format!("policy-{index}"), target, vec![rules.0, rules.1]);
            policy.metadata = metadata(namespace, &format!("policy-{index}"), age);
            if outbound {
                policy.spec.direction = Direction::Outbound;
            }
            policy
        };
        policies.into_iter().enumerate().map(build).collect()
    })
}

fn some_proxies() -> Vec<FetchrProxy> {
    vec![proxy("shop", "web"), proxy("shop", "rest"), proxy("bank", "web"), proxy(PLATFORM, "default")]
}

/// Everything that protects in a plan: each limit with the requests that it is for.
fn protections(plan: &Plan) -> Vec<String> {
    let rules = plan.policies.iter().flat_map(|policy| policy.rules.iter().map(move |rule| (policy, rule)));
    rules
        .flat_map(|(policy, rule)| {
            rule.rate_limits.iter().map(move |limit| {
                format!("{} {:?} {:?} {:?} {limit:?}", policy.policy, policy.attachment, policy.direction, rule.matches)
            })
        })
        .collect()
}

/// The policy and rule whose time limits hold for a request, as a sidecar finds them.
fn winner_for(plan: &Plan, identity: &Identity, host: &str, direction: Direction, path: &str) -> Option<(ObjectRef, String)> {
    plan.policies.iter().filter(|policy| policy.direction == direction && identity.has(&policy.attachment)).find_map(|policy| {
        if let Attachment::ExternalHost { host: wanted } = &policy.attachment
            && !cover::host_covers(wanted, host)
        {
            return None;
        }
        let meets = |one: &Match| {
            let wanted = one.path.as_ref().map_or("", |path| path.value.trim_end_matches('/'));
            path.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let best = ordered_matches(&policy.rules).into_iter().find(|(rule, index)| {
            let rule = &policy.rules[*rule];
            rule.timeouts.is_some() && index.is_none_or(|index| meets(&rule.matches[index]))
        });
        best.map(|(rule, _)| (policy.policy.clone(), policy.rules[rule].name.clone()))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn order_of_the_inputs_never_matters(policies in any_policies(8), seed in any::<u64>()) {
        let proxies = some_proxies();
        let inputs = inputs(&proxies, &policies);
        let mut shuffled = inputs.clone();
        let rotation = |length: usize| if length == 0 { 0 } else { usize::try_from(seed % 1024).unwrap_or_default() % length };
        shuffled.policies.rotate_left(rotation(policies.len()));
        shuffled.proxies.rotate_left(rotation(proxies.len()));
        if seed % 2 == 0 {
            shuffled.policies.reverse();
            shuffled.proxies.reverse();
        }
        let (one, other) = (compile(&inputs), compile(&shuffled));
        for (key, plan) in &one.plans {
            prop_assert_eq!(plan.to_bytes(), other.plans[key].to_bytes());
            prop_assert_eq!(digest(plan), digest(&other.plans[key]));
            let read: Plan = serde_json::from_slice(&plan.to_bytes()).expect("what was written can be read");
            prop_assert_eq!(&read, plan);
        }
        prop_assert_eq!(one, other);
    }

    #[test]
    fn another_policy_never_loosens_what_protects(policies in any_policies(6), more in any_policies(3)) {
        let proxies = some_proxies();
        let mut all = policies.clone();
        all.extend(more.into_iter().enumerate().map(|(index, mut policy)| {
            policy.metadata.name = Some(format!("more-{index}"));
            policy
        }));
        let (before, after) = (compile(&inputs(&proxies, &policies)), compile(&inputs(&proxies, &all)));
        for (key, plan) in &before.plans {
            let still = protections(&after.plans[key]);
            for protection in protections(plan) {
                prop_assert!(still.contains(&protection), "{key}: {protection} is gone");
            }
        }
    }

    #[test]
    fn what_is_told_to_be_lost_never_wins(policies in any_policies(8)) {
        let proxies = some_proxies();
        let compiled = compile(&inputs(&proxies, &policies));
        let identity = Identity {
            namespace: "shop".to_owned(), workload_kind: "Deployment".to_owned(), workload_name: "web".to_owned(),
            services: vec!["web".to_owned()], live_pods: 1,
        };
        for (plan, direction) in compiled.plans.values().flat_map(|plan| [(plan, Direction::Inbound), (plan, Direction::Outbound)]) {
            for (path, host) in PATHS.iter().flat_map(|path| ["api.example.org", "www.example.org", "local"].map(|host| (path, host))) {
                for identity in [&identity, &Identity::default()] {
                    let Some((policy, rule)) = winner_for(plan, identity, host, direction, path) else { continue };
                    let verdict = compiled.policies.iter().find(|verdict| verdict.policy == policy);
                    let attached = verdict.and_then(|verdict| verdict.attached.as_ref()).expect("what is in a plan is accepted");
                    let lost = attached.message.split("; ").any(|told| told.starts_with(&format!("timeouts of rule {rule} is won")));
                    prop_assert!(!lost, "{policy} {rule} wins {direction:?} {path} at {host}, but: {}", attached.message);
                }
            }
        }
    }

    #[test]
    fn every_policy_of_a_plan_has_a_verdict_that_names_it(policies in any_policies(8)) {
        let proxies = some_proxies();
        let compiled = compile(&inputs(&proxies, &policies));
        prop_assert_eq!(compiled.policies.len(), policies.len());
        for verdict in &compiled.policies {
            let carrying: Vec<_> = compiled.plans.iter()
                .filter(|(_, plan)| plan.policies.iter().any(|policy| policy.policy == verdict.policy))
                .map(|(key, _)| key.clone())
                .collect();
            let mut told = verdict.plans.clone();
            told.sort();
            prop_assert_eq!(told, carrying);
            prop_assert_eq!(verdict.accepted.ok, verdict.attached.is_some());
        }
        for plan in compiled.plans.values() {
            let levels: Vec<_> = plan.policies.iter().map(|policy| policy.attachment.specificity()).collect();
            prop_assert!(levels.is_sorted_by(|left, right| left >= right), "{levels:?}");
        }
    }
}

#[test]
fn features_are_the_names_of_the_sections() {
    let names =
        ["headers", "rateLimits", "throttle", "cache", "timeouts", "retry", "loadBalancing", "circuitBreaker", "failover"];
    assert_eq!(FEATURES, names);
}
