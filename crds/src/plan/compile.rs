//! From the documents of a cluster, or of a folder on a laptop, to plans and verdicts.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::{
    AttachedPolicy, Attachment, DEFAULT_PROXY, Memory, ObjectRef, Plan,
    cover::{all_covered, host_covers},
    name, namespace, seniority,
};
use crate::{
    FetchrPolicy, FetchrProxy,
    conditions::reasons,
    policy::{FEATURES, Match, PolicyRule, reach_refusal},
    problems::Problems,
    target::{TargetKind, TargetRef},
};

/// Everything that plans are compiled from.
#[derive(Clone, Debug, Default)]
pub struct Inputs<'a> {
    /// Namespace of the operator: the platform's.
    pub operator_namespace: &'a str,
    /// All proxies.
    pub proxies: Vec<&'a FetchrProxy>,
    /// All policies.
    pub policies: Vec<&'a FetchrPolicy>,
    /// Names of the namespaces that exist.
    pub namespaces: BTreeSet<String>,
    /// Services and workloads that exist. `None`: not known, as on a laptop, so none is missing.
    pub targets: Option<BTreeSet<TargetObject>>,
    /// Sections that sidecars know; see [`FEATURES`].
    pub features: BTreeSet<String>,
}

impl<'a> Inputs<'a> {
    /// Inputs from documents alone, as on a laptop: their namespaces exist, and so does whatever policies are attached to.
    pub fn of_documents(proxies: &'a [FetchrProxy], policies: &'a [FetchrPolicy]) -> Self {
        let metadata = proxies.iter().map(|proxy| &proxy.metadata).chain(policies.iter().map(|policy| &policy.metadata));
        Self {
            namespaces: metadata.map(|metadata| namespace(metadata).to_owned()).collect(),
            features: FEATURES.iter().map(|&feature| feature.to_owned()).collect(),
            proxies: proxies.iter().collect(),
            policies: policies.iter().collect(),
            ..Self::default()
        }
    }
}

/// A Service or a workload that exists.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct TargetObject {
    /// Its namespace.
    pub namespace: String,
    /// Its kind.
    pub kind: TargetKind,
    /// Its name.
    pub name: String,
}

/// Whom a plan is for: the pods of one namespace that one proxy serves. A proxy of the operator's namespace may serve several
/// namespaces.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PlanKey {
    /// Namespace of the pods.
    pub pod_namespace: String,
    /// The proxy that serves them.
    pub proxy: ObjectRef,
}

impl fmt::Display for PlanKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pods of {} by {}", self.pod_namespace, self.proxy)
    }
}

/// Plans, and how each object stands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compiled {
    /// One plan for each namespace with each proxy that may serve its pods.
    pub plans: BTreeMap<PlanKey, Plan>,
    /// One verdict for each policy and target, by name and in the order of `targetRefs`.
    pub policies: Vec<PolicyVerdict>,
    /// One verdict for each proxy, by name.
    pub proxies: Vec<ProxyVerdict>,
}

/// How a policy stands at one of its targets.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyVerdict {
    /// The policy.
    pub policy: ObjectRef,
    /// The target.
    pub target: TargetRef,
    /// Whether it is used.
    pub accepted: Verdict,
    /// Whether its sections can take effect at the target; `None` if it isn't accepted.
    pub attached: Option<Verdict>,
    /// Plans that carry it by this target.
    pub plans: Vec<PlanKey>,
}

/// How a proxy stands.
#[derive(Clone, Debug, PartialEq)]
pub struct ProxyVerdict {
    /// The proxy.
    pub proxy: ObjectRef,
    /// Whether it is used as it says.
    pub accepted: Verdict,
}

/// A condition in the making.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Verdict {
    /// Status of the condition.
    pub ok: bool,
    /// One of [`reasons`].
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
}

impl Verdict {
    fn yes(reason: &'static str, message: impl Into<String>) -> Self {
        Self { ok: true, reason, message: message.into() }
    }

    fn no(reason: &'static str, message: impl Into<String>) -> Self {
        Self { ok: false, reason, message: message.into() }
    }
}

/// Compiles all plans. The order of the inputs doesn't matter.
pub fn compile(inputs: &Inputs<'_>) -> Compiled {
    compile_with(inputs, &mut Memory::default())
}

/// Compiles all plans, and looks only at those objects that `memory` does not know.
pub fn compile_with(inputs: &Inputs<'_>, memory: &mut Memory) -> Compiled {
    let proxies = judge_proxies(inputs, memory);
    let bindings = bind(inputs, memory);
    memory.forget();
    let reached = Reached::of(&bindings);
    let mut plans = BTreeMap::new();
    let mut effects: BTreeMap<usize, Effect> = BTreeMap::new();
    // Most namespaces have no policy of their own, so that they share all that the platform's come to.
    let mut outcomes: HashMap<Vec<Member>, Outcome> = HashMap::new();
    for (key, proxy) in plan_keys(inputs, &proxies) {
        let members = reached.members(&key, &bindings);
        let outcome = outcomes.entry(members).or_insert_with_key(|members| Outcome::of(members, &bindings));
        outcome.note(&key, &mut effects);
        plans.insert(key.clone(), Plan { proxy: key.proxy, settings: proxy.spec.clone(), policies: outcome.policies.clone() });
    }
    let policies = bindings.iter().enumerate().map(|(index, binding)| binding.verdict(effects.remove(&index))).collect();
    Compiled { plans, policies, proxies }
}

/// The accepted ones first by age, so that the younger of two with the same selector is the one in conflict.
fn judge_proxies(inputs: &Inputs<'_>, memory: &mut Memory) -> Vec<ProxyVerdict> {
    let mut by_age = inputs.proxies.clone();
    by_age.sort_by(|left, right| seniority(&left.metadata).cmp(&seniority(&right.metadata)));
    let mut taken: BTreeMap<(&str, String), &str> = BTreeMap::new();
    let mut verdicts = Vec::new();
    for proxy in by_age {
        let problems = memory.proxy(proxy).problems;
        let accepted = if !problems.is_empty() {
            Verdict::no(reasons::INVALID, problems.to_string())
        } else {
            let selector = (namespace(&proxy.metadata), canonical(&proxy.spec.selector));
            match taken.get(&selector) {
                Some(older) => Verdict::no(
                    reasons::CONFLICTED,
                    format!(
                        "FetchrProxy {older} has the same selector and is older, so it serves the pods; give this one another selector"
                    ),
                ),
                None => {
                    taken.insert(selector, name(&proxy.metadata));
                    Verdict::yes(reasons::ACCEPTED, "The proxy is valid.")
                }
            }
        };
        verdicts.push(ProxyVerdict { proxy: reference(&proxy.metadata), accepted });
    }
    verdicts.sort_by(|left, right| left.proxy.cmp(&right.proxy));
    verdicts
}

/// The selector as a text that is equal for selectors that are written in another order.
fn canonical(selector: &LabelSelector) -> String {
    let mut parts: Vec<String> = Vec::new();
    parts.extend(selector.match_labels.iter().flatten().map(|(key, value)| format!("{key} In [{value:?}]")));
    for requirement in selector.match_expressions.iter().flatten() {
        let values: BTreeSet<_> = requirement.values.iter().flatten().collect();
        parts.push(format!("{} {} {values:?}", requirement.key, requirement.operator).replace('{', "[").replace('}', "]"));
    }
    parts.sort();
    parts.dedup();
    parts.join(",")
}

/// Each namespace with each proxy that may serve its pods. An invalid proxy serves none.
fn plan_keys<'a>(inputs: &Inputs<'a>, verdicts: &[ProxyVerdict]) -> Vec<(PlanKey, &'a FetchrProxy)> {
    let invalid: BTreeSet<_> =
        verdicts.iter().filter(|verdict| verdict.accepted.reason == reasons::INVALID).map(|verdict| &verdict.proxy).collect();
    let mut keys = Vec::new();
    for &proxy in &inputs.proxies {
        let reference = reference(&proxy.metadata);
        if invalid.contains(&reference) {
            continue;
        }
        let mut namespaces = BTreeSet::from([reference.namespace.as_str()]);
        if reference.namespace == inputs.operator_namespace && reference.name == DEFAULT_PROXY {
            namespaces.extend(inputs.namespaces.iter().map(String::as_str));
        }
        keys.extend(namespaces.into_iter().map(|pod_namespace| {
            let key = PlanKey { pod_namespace: pod_namespace.to_owned(), proxy: reference.clone() };
            (key, proxy)
        }));
    }
    keys.sort_by(|(left, _), (right, _)| left.cmp(right));
    keys
}

/// A policy at one of its targets, and where that is; or why it is nowhere.
struct Binding<'a> {
    policy: &'a FetchrPolicy,
    rules: Arc<[PolicyRule]>,
    target: &'a TargetRef,
    place: Result<Place, Verdict>,
}

/// Where a target is.
struct Place {
    attachment: Attachment,
    reach: Reach,
}

/// Which plans carry a policy.
enum Reach {
    /// Those of all namespaces.
    Everywhere,
    /// Those for pods of one namespace.
    Namespace(String),
    /// Those of one proxy.
    Proxy(ObjectRef),
}

/// All policies at all of their targets, by name and in the order of `targetRefs`.
fn bind<'a>(inputs: &Inputs<'a>, memory: &mut Memory) -> Vec<Binding<'a>> {
    let mut policies = inputs.policies.clone();
    policies.sort_by_key(|policy| (namespace(&policy.metadata), name(&policy.metadata)));
    let proxies: BTreeSet<_> = inputs.proxies.iter().map(|proxy| reference(&proxy.metadata)).collect();
    let mut bindings = Vec::new();
    for policy in policies {
        let known = memory.policy(policy);
        let fault = fault_of(policy, &known.problems, inputs);
        for target in &policy.spec.target_refs {
            let place = match &fault {
                Some(fault) => Err(fault.clone()),
                None => locate(namespace(&policy.metadata), target, inputs, &proxies),
            };
            bindings.push(Binding { policy, rules: known.rules.clone(), target, place });
        }
    }
    bindings
}

/// What keeps a policy out of every plan.
fn fault_of(policy: &FetchrPolicy, problems: &Problems, inputs: &Inputs<'_>) -> Option<Verdict> {
    if !problems.is_empty() {
        return Some(Verdict::no(reasons::INVALID, problems.to_string()));
    }
    let unknown: BTreeSet<_> = policy
        .spec
        .rules
        .iter()
        .flat_map(PolicyRule::sections)
        .map(|section| section.name)
        .filter(|name| !inputs.features.contains(*name))
        .collect();
    (!unknown.is_empty()).then(|| {
        let names = unknown.into_iter().collect::<Vec<_>>().join(", ");
        Verdict::no(reasons::UNSUPPORTED_FEATURE, format!("no sidecar knows {names}; restart the pods after the upgrade"))
    })
}

fn locate(own: &str, target: &TargetRef, inputs: &Inputs<'_>, proxies: &BTreeSet<ObjectRef>) -> Result<Place, Verdict> {
    let TargetRef { kind, name, .. } = target;
    let here = |attachment| Place { attachment, reach: Reach::Namespace(own.to_owned()) };
    match kind {
        TargetKind::Namespace => locate_namespace(own, name, inputs),
        TargetKind::FetchrProxy => {
            let wanted = ObjectRef::new(own, name);
            let exists = proxies.contains(&wanted);
            let place = Place { attachment: Attachment::Proxy, reach: Reach::Proxy(wanted) };
            if exists { Ok(place) } else { Err(not_found(own, target)) }
        }
        TargetKind::ExternalHost => Ok(here(Attachment::ExternalHost { host: name.clone() })),
        TargetKind::Service | TargetKind::Deployment | TargetKind::StatefulSet | TargetKind::DaemonSet => {
            let object = TargetObject { namespace: own.to_owned(), kind: *kind, name: name.clone() };
            if inputs.targets.as_ref().is_some_and(|targets| !targets.contains(&object)) {
                return Err(not_found(own, target));
            }
            Ok(here(match kind {
                TargetKind::Service => Attachment::Service { name: name.clone() },
                _ => Attachment::Workload { workload_kind: kind.to_string(), name: name.clone() },
            }))
        }
    }
}

fn locate_namespace(own: &str, name: &str, inputs: &Inputs<'_>) -> Result<Place, Verdict> {
    let platform = own == inputs.operator_namespace;
    let attachment = if platform { Attachment::Platform } else { Attachment::Namespace };
    let place = |reach| Ok(Place { attachment, reach });
    match name {
        _ if name == own => place(Reach::Namespace(own.to_owned())),
        _ if !platform => Err(Verdict::no(reasons::NOT_ALLOWED, reach_refusal(own, name))),
        "*" => place(Reach::Everywhere),
        _ if inputs.namespaces.contains(name) => place(Reach::Namespace(name.to_owned())),
        _ => Err(Verdict::no(reasons::TARGET_NOT_FOUND, format!("there is no Namespace {name}"))),
    }
}

fn not_found(own: &str, TargetRef { kind, name, .. }: &TargetRef) -> Verdict {
    Verdict::no(reasons::TARGET_NOT_FOUND, format!("there is no {kind} {name} in the namespace {own}"))
}

/// A binding in one plan.
struct Attached<'a> {
    index: usize,
    policy: &'a FetchrPolicy,
    rules: &'a Arc<[PolicyRule]>,
    attachment: Attachment,
}

impl Attached<'_> {
    fn to_plan(&self) -> AttachedPolicy {
        AttachedPolicy {
            policy: reference(&self.policy.metadata),
            attachment: self.attachment.clone(),
            direction: self.policy.spec.direction,
            rules: self.rules.clone(),
        }
    }

    /// Whether this one holds wherever `other` does.
    fn holds_wherever(&self, other: &Self) -> bool {
        match (&self.attachment, &other.attachment) {
            (Attachment::Platform | Attachment::Namespace | Attachment::Proxy, _) => true,
            (Attachment::ExternalHost { host: outer }, Attachment::ExternalHost { host: inner }) => host_covers(outer, inner),
            (own, other) => own == other,
        }
    }
}

/// A binding in one plan, and whether it comes from another namespace than the plan's pods.
type Member = (usize, bool);

/// Bindings by the plans that they reach.
#[derive(Default)]
struct Reached<'a> {
    everywhere: Vec<usize>,
    namespaces: HashMap<&'a str, Vec<usize>>,
    proxies: HashMap<&'a ObjectRef, Vec<usize>>,
}

impl<'a> Reached<'a> {
    fn of(bindings: &'a [Binding<'_>]) -> Self {
        let mut reached = Self::default();
        for (index, binding) in bindings.iter().enumerate() {
            match binding.place.as_ref().map(|place| &place.reach) {
                Ok(Reach::Everywhere) => reached.everywhere.push(index),
                Ok(Reach::Namespace(namespace)) => reached.namespaces.entry(namespace).or_default().push(index),
                Ok(Reach::Proxy(proxy)) => reached.proxies.entry(proxy).or_default().push(index),
                Err(_) => {}
            }
        }
        reached
    }

    /// The bindings of one plan, in their order.
    fn members(&self, key: &PlanKey, bindings: &[Binding<'_>]) -> Vec<Member> {
        let namespaces = self.namespaces.get(key.pod_namespace.as_str()).into_iter().flatten();
        let proxies = self.proxies.get(&key.proxy).into_iter().flatten();
        let is_foreign = |index: usize| namespace(&bindings[index].policy.metadata) != key.pod_namespace;
        let all = self.everywhere.iter().chain(namespaces).chain(proxies);
        let mut members: Vec<_> = all.map(|&index| (index, is_foreign(index))).collect();
        members.sort_unstable();
        members
    }
}

/// What the same members come to in any plan.
struct Outcome {
    /// The most specific first.
    policies: Vec<AttachedPolicy>,
    /// For each member its sections that are lost.
    lost: Vec<(usize, Lost)>,
}

impl Outcome {
    fn of(members: &[Member], bindings: &[Binding<'_>]) -> Self {
        let attached = attached_to(members, bindings);
        let lost = |(position, one): (usize, &Attached<'_>)| (one.index, losses(one, &attached[..position]));
        Self { lost: attached.iter().enumerate().map(lost).collect(), policies: attached.iter().map(Attached::to_plan).collect() }
    }

    fn note(&self, key: &PlanKey, effects: &mut BTreeMap<usize, Effect>) {
        for (index, lost) in &self.lost {
            let effect = effects.entry(*index).or_default();
            if effect.plans.is_empty() {
                effect.lost.clone_from(lost);
            } else {
                effect.lost.retain(|section, _| lost.contains_key(section));
            }
            effect.plans.push(key.clone());
        }
    }
}

/// The bindings of one plan, the most specific first.
fn attached_to<'a>(members: &[Member], bindings: &'a [Binding<'_>]) -> Vec<Attached<'a>> {
    let attach = |&(index, is_foreign): &Member| {
        let Binding { policy, rules, place, .. } = &bindings[index];
        // To pods of other namespaces, whatever comes from the operator's is the platform's.
        let attachment = if is_foreign { Attachment::Platform } else { place.as_ref().ok()?.attachment.clone() };
        Some(Attached { index, policy, rules, attachment })
    };
    let mut attached: Vec<_> = members.iter().filter_map(attach).collect();
    attached.sort_by(|left, right| order(left).cmp(&order(right)));
    attached
}

fn order<'a>(attached: &'a Attached<'_>) -> impl Ord + 'a {
    (Reverse(attached.attachment.specificity()), seniority(&attached.policy.metadata), attached.index)
}

/// Sections that are lost, by rule and name, with the winner.
type Lost = BTreeMap<(usize, &'static str), String>;

/// What became of a binding, over all plans that carry it.
#[derive(Default)]
struct Effect {
    plans: Vec<PlanKey>,
    /// What is lost in every plan so far.
    lost: Lost,
}

/// The shaping sections of `one` that can never take effect beside those that are `above` it.
fn losses(one: &Attached<'_>, above: &[Attached<'_>]) -> Lost {
    let rivals: Vec<_> = above
        .iter()
        .filter(|rival| rival.policy.spec.direction == one.policy.spec.direction && rival.holds_wherever(one))
        .filter(|rival| reference(&rival.policy.metadata) != reference(&one.policy.metadata))
        .collect();
    let mut lost = BTreeMap::new();
    for (index, rule) in one.policy.spec.rules.iter().enumerate() {
        for section in rule.sections().into_iter().filter(|section| !section.protects) {
            if let Some(winner) = winner(rule, section.name, &rivals) {
                lost.insert((index, section.name), winner);
            }
        }
    }
    lost
}

/// Who wins `section` for every request of `rule`, if that is certain.
fn winner(rule: &PolicyRule, section: &str, rivals: &[&Attached<'_>]) -> Option<String> {
    let everything = [Match::default()];
    let matches: &[Match] = if rule.matches.is_empty() { &everything } else { &rule.matches };
    let mut winners = matches.iter().map(|inner| {
        rivals.iter().find_map(|rival| {
            let covering =
                |rule: &&PolicyRule| rule.sections().iter().any(|one| one.name == section) && all_covered(&rule.matches, inner);
            let rule = rival.policy.spec.rules.iter().find(covering)?;
            Some(format!("policy {}, rule {}, attached to {}", reference(&rival.policy.metadata), rule.name, rival.attachment))
        })
    });
    let first = winners.next()??;
    winners.all(|winner| winner.is_some()).then_some(first)
}

impl Binding<'_> {
    fn verdict(&self, effect: Option<Effect>) -> PolicyVerdict {
        let effect = effect.unwrap_or_default();
        let (accepted, attached) = match &self.place {
            Ok(_) => {
                (Verdict::yes(reasons::ACCEPTED, "The policy is valid and its target exists."), Some(self.attached(&effect)))
            }
            Err(fault) => (fault.clone(), None),
        };
        PolicyVerdict {
            policy: reference(&self.policy.metadata),
            target: self.target.clone(),
            accepted,
            attached,
            plans: effect.plans,
        }
    }

    fn attached(&self, Effect { lost, .. }: &Effect) -> Verdict {
        if lost.is_empty() {
            return Verdict::yes(reasons::ATTACHED, "Every section can take effect.");
        }
        let rules = &self.policy.spec.rules;
        let sections: usize = rules.iter().map(|rule| rule.sections().len()).sum();
        let told: Vec<_> = lost
            .iter()
            .map(|((rule, section), winner)| format!("{section} of rule {} is won by {winner}", rules[*rule].name))
            .collect();
        let message = told.join("; ");
        if lost.len() == sections {
            Verdict::no(reasons::OVERRIDDEN, message)
        } else {
            Verdict::yes(reasons::PARTLY_OVERRIDDEN, message)
        }
    }
}

fn reference(metadata: &kube::core::ObjectMeta) -> ObjectRef {
    ObjectRef::new(namespace(metadata), name(metadata))
}
