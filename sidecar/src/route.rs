//! The match table of one direction: which sections of which policies hold for a request.
//!
//! Everything is compiled when the configuration arrives. A request costs a look-up by path and, for the few matches that are
//! left, a comparison of the rest; CEL runs last and only where all else holds.

mod cel;
mod condition;
mod explain;
mod meets;
mod path;
mod shaping;
mod spelling;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, LazyLock},
};

use crds::{
    plan::{AttachedPolicy, Attachment, Identity, ObjectRef, Plan, ordered_matches},
    policy::{Direction, Mode, PolicyRule, Timeouts},
    proxy::UpstreamTls,
};
use prometheus_client::metrics::counter::Counter;
use smallvec::{SmallVec, smallvec};

pub(crate) use self::{
    cel::{Condition, Expression, Request as Evaluated},
    condition::decode,
    meets::OneOf,
    spelling::is_plain,
};
use self::{
    condition::{Conditions, HostPattern, Miss},
    path::{Index, Pattern},
    shaping::{Kind, Kinds, Won},
};
pub use self::{
    explain::{Explanation, LimitNamed, RuleVerdict, SectionVerdict},
    spelling::{BadPath, Spelling},
};
use crate::{
    cache::Caching,
    edit::headers::HeaderEdits,
    facts::Facts,
    limit::{self, Limit},
    shadow::Shadow,
    throttle::Throttle,
    upstream::{balance::Balancing, breaker::Breaking, failover::Standby, retry::Retrying},
};

/// Evaluations of CEL conditions that ended in an error; such a match does not hold.
static CEL_ERRORS: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Adds the table's figures to a registry.
pub fn register(registry: &mut prometheus_client::registry::Registry) {
    crate::edit::headers::register(registry);
    crate::shadow::register(registry);
    registry.register("fetchr_cel_errors", "CEL conditions that ended in an error and so did not match", CEL_ERRORS.clone());
}

/// A plan that can't be compiled: where, and why.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub struct ConfigError {
    /// The policy at fault; none if it is the plan as a whole.
    pub policy: Option<ObjectRef>,
    /// The rule at fault.
    pub rule: Option<String>,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(policy) = &self.policy {
            write!(f, "policy {policy}: ")?;
        }
        if let Some(rule) = &self.rule {
            write!(f, "rule {rule}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// The compiled policies of one direction.
#[derive(Clone, Debug)]
pub struct Routes {
    table: Arc<Table>,
}

#[derive(Debug)]
struct Table {
    direction: Direction,
    /// The spelling in which paths are compared.
    spelling: Spelling,
    rules: Vec<Rule>,
    /// Every match of every rule: the most specific policy first, within it the best match first.
    entries: Vec<Entry>,
    index: Index,
    /// Whether any rule has a cache.
    caches: bool,
    /// Whether pods count a limit of any rule together.
    shared_limits: bool,
    /// Hosts whose requests pass without policy.
    skip_hosts: Vec<HostPattern>,
    /// Policies that are not for this pod; only to explain.
    others: Vec<(ObjectRef, Attachment)>,
    identity: Identity,
}

/// A rule's sections. A policy that is attached twice has its rules here once.
#[derive(Debug)]
struct Rule {
    policy: ObjectRef,
    name: String,
    /// `namespace/policy/rule`.
    label: Arc<str>,
    /// The shaping sections that it has.
    kinds: Kinds,
    headers: Option<HeaderEdits>,
    limits: Vec<Arc<Limit>>,
    throttle: Option<Arc<Throttle>>,
    cache: Option<Arc<Caching>>,
    timeouts: Option<Timeouts>,
    retry: Option<Retrying>,
    balancing: Option<Balancing>,
    breaking: Option<Breaking>,
    standby: Option<Standby>,
}

#[derive(Debug)]
struct Entry {
    rule: u32,
    /// Which of the rule's matches; none for a rule without.
    matched: Option<u8>,
    attachment: Attachment,
    /// The host of an ExternalHost.
    host: Option<HostPattern>,
    path: Pattern,
    conditions: Option<Conditions>,
}

impl Routes {
    /// Compiles the policies of a plan that are for this pod and this direction.
    pub fn build(plan: &Plan, identity: &Identity, direction: Direction) -> Result<Self, ConfigError> {
        let spelling = Spelling::new(plan.settings.http.path);
        let mut build = Build { proxy: plan.proxy.clone(), spelling, ..Build::default() };
        for policy in plan.policies.iter().filter(|policy| policy.direction == direction) {
            if identity.has(&policy.attachment) {
                build.add(policy)?;
            } else {
                build.others.push((policy.policy.clone(), policy.attachment.clone()));
            }
        }
        let index = Index::build(build.entries.iter().map(|entry| &entry.path));
        let skipped = &plan.settings.interception.outbound.skip_hosts;
        let table = Table {
            caches: build.rules.iter().any(|rule| rule.cache.is_some()),
            shared_limits: build.rules.iter().any(|rule| rule.limits.iter().any(|limit| limit.is_shared())),
            direction,
            spelling: build.spelling,
            rules: build.rules,
            entries: build.entries,
            index,
            skip_hosts: match direction {
                Direction::Outbound => skipped.iter().map(|host| HostPattern::new(host)).collect(),
                Direction::Inbound => Vec::new(),
            },
            others: build.others,
            identity: identity.clone(),
        };
        Ok(Self { table: Arc::new(table) })
    }

    /// A table without policies.
    pub fn empty(direction: Direction) -> Self {
        Self::build(&Plan::default(), &Identity::default(), direction).expect("there is nothing to compile")
    }

    /// What holds for a request.
    pub fn select(&self, facts: &Facts<'_>) -> Route {
        let table = &self.table;
        let mut route = Route::none(table);
        if table.entries.is_empty() || table.skips(facts) {
            return route;
        }
        let (path, others) = table.spelling.readings(facts.path);
        let request = cel::Request::new(facts, &path);
        let mut candidates: SmallVec<[u64; 8]> = smallvec![0; table.entries.len().div_ceil(64)];
        let mut found = |entry: u32| candidates[entry as usize / 64] |= 1 << (entry % 64);
        table.index.find(&path, &mut found);
        for other in others {
            table.index.find(&other, &mut found);
        }
        for entry in ones(&candidates) {
            let entry = &table.entries[entry];
            if route.needs(entry.rule) && entry.meets(facts, &request).is_ok() {
                route.take(entry);
            }
        }
        route
    }

    /// Which rules hold for a request, which sections win, and why the others don't.
    pub fn explain(&self, facts: &Facts<'_>) -> Explanation {
        explain::explain(&self.table, facts)
    }

    /// The TLS of second upstreams, by the labels of their rules.
    pub(crate) fn second_upstreams(&self) -> impl Iterator<Item = (&Arc<str>, &UpstreamTls)> {
        self.table.rules.iter().filter_map(|rule| Some((&rule.label, rule.standby.as_ref()?.tls()?)))
    }

    /// Whether pods count a limit of any rule together.
    pub(crate) fn has_shared_limits(&self) -> bool {
        self.table.shared_limits
    }

    /// The limits of all rules.
    pub(crate) fn every_limit(&self) -> impl Iterator<Item = &Arc<Limit>> {
        self.table.rules.iter().flat_map(|rule| &rule.limits)
    }

    /// Whether any rule has a cache.
    pub(crate) fn has_caches(&self) -> bool {
        self.table.caches
    }

    /// The throttles of all rules.
    pub(crate) fn throttles(&self) -> impl Iterator<Item = &Arc<Throttle>> {
        self.table.rules.iter().filter_map(|rule| rule.throttle.as_ref())
    }

    /// What rules say of the cache.
    pub(crate) fn caches(&self) -> impl Iterator<Item = &Caching> {
        self.table.rules.iter().filter_map(|rule| rule.cache.as_deref())
    }

    /// Rules that may hold for a request of this pod.
    pub fn rules(&self) -> usize {
        self.table.rules.len()
    }
}

impl Table {
    fn skips(&self, facts: &Facts<'_>) -> bool {
        self.skip_hosts.iter().any(|host| host.matches(facts.host))
    }
}

impl Entry {
    /// Everything but the path.
    fn meets(&self, facts: &Facts<'_>, request: &cel::Request<'_>) -> Result<(), Miss> {
        if self.host.as_ref().is_some_and(|host| !host.matches(facts.host)) {
            return Err(Miss::Host);
        }
        met(self.conditions.as_ref().map_or(Ok(()), |conditions| conditions.check(facts, request)))
    }
}

/// Counts a condition that ended in an error.
fn met(checked: Result<(), Miss>) -> Result<(), Miss> {
    if matches!(checked, Err(Miss::CelError(_))) {
        CEL_ERRORS.inc();
    }
    checked
}

/// Indices of the bits that are set, in order.
fn ones(words: &[u64]) -> impl Iterator<Item = usize> {
    words.iter().enumerate().flat_map(|(at, &word)| {
        std::iter::successors((word != 0).then_some(word), |word| Some(word & (word - 1)).filter(|rest| *rest != 0))
            .map(move |word| at * 64 + word.trailing_zeros() as usize)
    })
}

#[derive(Default)]
struct Build {
    proxy: ObjectRef,
    spelling: Spelling,
    rules: Vec<Rule>,
    entries: Vec<Entry>,
    others: Vec<(ObjectRef, Attachment)>,
    /// Where the rules of a policy begin, and whether it holds for all hosts already.
    policies: HashMap<ObjectRef, (u32, bool)>,
}

impl Build {
    fn add(&mut self, attached: &AttachedPolicy) -> Result<(), ConfigError> {
        let host = match &attached.attachment {
            Attachment::ExternalHost { host } => Some(HostPattern::new(host)),
            _ => None,
        };
        let first = match self.policies.get_mut(&attached.policy) {
            // Attached twice, and the first time more specifically: nothing new.
            Some((_, true)) => return Ok(()),
            Some((first, everywhere)) => {
                *everywhere = host.is_none();
                *first
            }
            None => {
                let first = number(self.rules.len());
                for rule in &*attached.rules {
                    self.rules.push(Rule::build(&self.proxy, attached, rule, &self.spelling)?);
                }
                self.policies.insert(attached.policy.clone(), (first, host.is_none()));
                first
            }
        };
        for (rule, matched) in ordered_matches(&attached.rules) {
            self.entries.push(Entry::build(attached, host.clone(), first, rule, matched, &self.spelling)?);
        }
        Ok(())
    }
}

impl Rule {
    fn build(proxy: &ObjectRef, attached: &AttachedPolicy, rule: &PolicyRule, spelling: &Spelling) -> Result<Self, ConfigError> {
        let policy = &attached.policy;
        let wrong = |message| ConfigError { policy: Some(policy.clone()), rule: Some(rule.name.clone()), message };
        let (policy_label, rule_label): (Arc<str>, Arc<str>) = (policy.to_string().into(), rule.name.as_str().into());
        let label: Arc<str> = format!("{policy}/{}", rule.name).into();
        let headers = |section| HeaderEdits::build(&label, section);
        let place = limit::place(&attached.attachment, proxy);
        let at = limit::At {
            policy: &policy_label,
            place: &place,
            rule: &rule_label,
            matches: &rule.matches,
            direction: attached.direction,
        };
        let limit = |limit| Limit::build(&at, limit).map(Arc::new);
        let throttle = |section| Throttle::build(&policy_label, &rule_label, section, spelling).map(Arc::new);
        Ok(Self {
            policy: policy.clone(),
            name: rule.name.clone(),
            kinds: Kinds::of(rule),
            retry: rule.retry.as_ref().map(|section| Retrying::build(&label, section)).transpose().map_err(wrong)?,
            balancing: rule
                .load_balancing
                .as_ref()
                .map(|section| Balancing::build(&label, section))
                .transpose()
                .map_err(wrong)?,
            breaking: rule.circuit_breaker.as_ref().map(|section| Breaking::build(&label, section)),
            standby: rule.failover.as_ref().map(|section| Standby::build(&label, section)).transpose().map_err(wrong)?,
            headers: rule.headers.as_ref().map(headers).transpose().map_err(wrong)?,
            throttle: rule.throttle.as_ref().map(throttle).transpose().map_err(wrong)?,
            limits: rule.rate_limits.iter().map(limit).collect::<Result<_, _>>().map_err(wrong)?,
            cache: rule.cache.as_ref().map(|section| Caching::build(&label, section).map(Arc::new)).transpose().map_err(wrong)?,
            timeouts: rule.timeouts,
            label,
        })
    }
}

impl Entry {
    fn build(
        attached: &AttachedPolicy,
        host: Option<HostPattern>,
        first: u32,
        rule: usize,
        matched: Option<usize>,
        spelling: &Spelling,
    ) -> Result<Self, ConfigError> {
        let name = &attached.rules[rule].name;
        let wrong = |message: String| {
            let message = matched.map_or(message.clone(), |at| format!("matches[{at}]: {message}"));
            ConfigError { policy: Some(attached.policy.clone()), rule: Some(name.clone()), message }
        };
        let one = matched.map(|at| &attached.rules[rule].matches[at]);
        let matched = matched.map(u8::try_from).transpose().map_err(|_| wrong("more than 256 matches".to_owned()))?;
        Ok(Self {
            rule: first + number(rule),
            matched,
            attachment: attached.attachment.clone(),
            host,
            path: Pattern::build(one.and_then(|one| one.path.as_ref()), spelling).map_err(wrong)?,
            conditions: one.map(Conditions::build).transpose().map_err(wrong)?,
        })
    }
}

fn number(index: usize) -> u32 {
    u32::try_from(index).expect("a plan is a few MiB at most, a rule has several bytes")
}

/// What holds for one request. Cheap to clone and to hold for as long as the exchange lives.
#[derive(Clone, Debug)]
pub struct Route {
    table: Arc<Table>,
    best: Option<u32>,
    /// The rules that have won the shaping sections.
    won: Won,
    /// Rules with limits that match, and by which of their matches.
    limits: SmallVec<[(u32, Option<u8>); 4]>,
    /// Rules with a throttle that match, in the order in which they are asked: the same for all requests, so that none holds what another
    /// waits for.
    throttles: SmallVec<[u32; 4]>,
}

impl Route {
    fn none(table: &Arc<Table>) -> Self {
        Self { table: Arc::clone(table), best: None, won: Won::default(), limits: SmallVec::new(), throttles: SmallVec::new() }
    }

    /// Whether another match of this rule could still change something.
    fn needs(&self, rule: u32) -> bool {
        let Rule { kinds, limits, throttle, .. } = &self.table.rules[rule as usize];
        let limited = || self.limits.iter().any(|(counted, _)| *counted == rule);
        let throttled = || self.throttles.contains(&rule);
        self.best.is_none()
            || self.won.lacks(*kinds)
            || (!limits.is_empty() && !limited())
            || (throttle.is_some() && !throttled())
    }

    fn take(&mut self, entry: &Entry) {
        let Rule { kinds, limits, throttle, .. } = &self.table.rules[entry.rule as usize];
        self.best = self.best.or(Some(entry.rule));
        self.won.take(*kinds, entry.rule);
        if !limits.is_empty() && !self.limits.iter().any(|(counted, _)| *counted == entry.rule) {
            self.limits.push((entry.rule, entry.matched));
        }
        if throttle.is_some()
            && let Err(at) = self.throttles.binary_search(&entry.rule)
        {
            self.throttles.insert(at, entry.rule);
        }
    }

    /// The rule that has won a section.
    fn winner(&self, kind: Kind) -> Option<&Rule> {
        self.won.rule(kind).map(|rule| &self.table.rules[rule as usize])
    }

    /// `namespace/policy/rule` of the best match, for logs and metrics; empty if no rule matched.
    pub fn label(&self) -> Arc<str> {
        static NONE: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from(""));
        Arc::clone(self.best.map_or(&NONE, |rule| &self.table.rules[rule as usize].label))
    }

    /// Changes to header fields, in the mode that the section has.
    pub fn headers(&self) -> Option<&HeaderEdits> {
        self.winner(Kind::Headers)?.headers.as_ref()
    }

    /// The cache, unless disabled.
    pub(crate) fn cache(&self) -> Option<&Arc<Caching>> {
        self.winner(Kind::Cache)?.cache.as_ref().filter(|section| section.mode != Mode::Disabled)
    }

    /// Time limits that act: what is absent keeps the FetchrProxy's value.
    pub fn timeouts(&self) -> Timeouts {
        let won = self.winner(Kind::Timeouts).and_then(|rule| rule.timeouts);
        won.filter(|timeouts| timeouts.mode == Mode::Enforce).unwrap_or_default()
    }

    /// Time limits that only watch.
    pub(crate) fn shadow_timeouts(&self) -> Option<Shadow> {
        let rule = self.winner(Kind::Timeouts)?;
        let limits = rule.timeouts.filter(|timeouts| timeouts.mode == Mode::Shadow)?;
        Some(Shadow::new(Arc::clone(&rule.label), limits))
    }

    /// Whether anything is said about how its upstream is asked.
    pub(crate) fn has_tries(&self) -> bool {
        self.won.has(Kinds::TRIES)
    }

    /// Further tries, unless disabled.
    pub(crate) fn retry(&self) -> Option<&Retrying> {
        self.winner(Kind::Retry)?.retry.as_ref().filter(|section| section.mode != Mode::Disabled)
    }

    /// The choice of an address, unless disabled.
    pub(crate) fn balancing(&self) -> Option<&Balancing> {
        self.winner(Kind::LoadBalancing)?.balancing.as_ref().filter(|section| section.mode != Mode::Disabled)
    }

    /// The circuit breaker, unless disabled.
    pub(crate) fn breaking(&self) -> Option<&Breaking> {
        self.winner(Kind::CircuitBreaker)?.breaking.as_ref().filter(|section| section.mode != Mode::Disabled)
    }

    /// The second upstream, unless disabled.
    pub(crate) fn standby(&self) -> Option<&Standby> {
        self.winner(Kind::Failover)?.standby.as_ref().filter(|section| section.mode != Mode::Disabled)
    }

    /// Whether any throttle holds.
    pub(crate) fn has_throttles(&self) -> bool {
        !self.throttles.is_empty()
    }

    /// The throttles that hold, in the order in which they are asked.
    pub(crate) fn throttles(&self) -> impl Iterator<Item = &Arc<Throttle>> {
        self.throttles.iter().filter_map(|&rule| self.table.rules[rule as usize].throttle.as_ref())
    }

    /// Whether any limit holds.
    pub fn has_limits(&self) -> bool {
        !self.limits.is_empty()
    }

    /// Whether pods count one of the limits that hold together.
    pub(crate) fn has_shared_limits(&self) -> bool {
        self.table.shared_limits
            && self.limits.iter().any(|&(rule, _)| self.table.rules[rule as usize].limits.iter().any(|limit| limit.is_shared()))
    }

    /// The limits that hold, each with the match that its rule met.
    pub fn limits(&self) -> impl Iterator<Item = (&Arc<Limit>, Option<u8>)> {
        self.limits
            .iter()
            .flat_map(|&(rule, matched)| self.table.rules[rule as usize].limits.iter().map(move |limit| (limit, matched)))
    }
}

#[cfg(test)]
mod tests;
