//! The stage of the section `rateLimits`: all limits of a request are charged, or none is.

mod calendar;
mod charges;
mod cost;
mod counted;
mod held;
mod key;
mod leases;
mod local;
mod meter;
mod outcome;
mod pauses;
mod settle;
mod shared;
mod sharing;
pub mod show;
pub mod simulate;
mod stage;
mod top;
mod uses;

use std::sync::Arc;

use crds::{
    plan::{Attachment, ObjectRef},
    policy::{
        Direction, Match, Mode, RateLimit,
        rate_limits::{Accuracy, LimitFields, OnStoreFailure, OnUpstreamLimit, Override, Scope},
    },
};
use http::HeaderValue;
use sha2::{Digest as _, Sha256};

use self::{
    cost::Cost,
    counted::Counters,
    key::{KeyPart, Wish},
    meter::Meter,
};
pub(crate) use self::{outcome::Stops, settle::Settlement, sharing::StoreSettings};
pub use self::{
    outcome::{Denied, Outcome},
    stage::{CAPACITY, Limiter},
};
use crate::facts::Facts;

/// A limit of a rule, compiled.
#[derive(Debug)]
pub struct Limit {
    policy: Arc<str>,
    rule: Arc<str>,
    name: Arc<str>,
    mode: Mode,
    meter: Meter,
    overrides: Box<[Other]>,
    cost: Cost,
    key: Box<[KeyPart]>,
    scope: Scope,
    accuracy: Accuracy,
    on_store_failure: OnStoreFailure,
    /// Whether it stops while the upstream wants nothing.
    pauses: bool,
    /// What the names of its counts in the store have in common, behind the namespace.
    shared_prefix: Box<str>,
    fields: LimitFields,
    body: Option<Body>,
    counters: Counters,
}

/// Other numbers for some of what is counted apart.
#[derive(Debug)]
struct Other {
    /// What each part of the key has to be.
    wishes: Box<[Wish]>,
    meter: Meter,
}

/// Which numbers of a limit hold: those of an override, or its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Which(Option<u8>);

/// What a 429 says, by choice of a policy.
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) content_type: HeaderValue,
    pub(crate) text: Box<str>,
}

/// Where a limit stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At<'a> {
    /// `namespace/name` of its policy.
    pub(crate) policy: &'a Arc<str>,
    /// Where that is attached: pods at the same place count together.
    pub(crate) place: &'a str,
    pub(crate) rule: &'a Arc<str>,
    /// The matches of the rule.
    pub(crate) matches: &'a [Match],
    pub(crate) direction: Direction,
}

impl Limit {
    /// Compiles a limit of a rule.
    pub(crate) fn build(at: &At<'_>, limit: &RateLimit) -> Result<Self, String> {
        Self::compile(at, limit).map_err(|wrong| format!("limit {}: {wrong}", limit.name))
    }

    fn compile(at: &At<'_>, limit: &RateLimit) -> Result<Self, String> {
        let At { policy, place, rule, matches, direction } = *at;
        let delay = limit.max_delay.map(|delay| delay.0);
        let key: Box<[KeyPart]> = limit.key.iter().map(|part| KeyPart::build(part, matches)).collect::<Result<_, _>>()?;
        let other = |one: &Override| -> Result<Other, String> {
            let wishes = key.iter().zip(&one.values).map(|(part, text)| part.wish(text)).collect::<Result<_, _>>()?;
            Ok(Other { wishes, meter: Meter::build(&one.limit, delay)? })
        };
        let body = limit.body.as_ref().map(|body| -> Result<Body, String> {
            let content_type = HeaderValue::from_str(&body.content_type).map_err(|_| "contentType is none".to_owned())?;
            Ok(Body { content_type, text: body.text.as_str().into() })
        });
        Ok(Self {
            policy: Arc::clone(policy),
            rule: Arc::clone(rule),
            name: limit.name.as_str().into(),
            mode: limit.mode,
            meter: Meter::build(&limit.limit, delay)?,
            overrides: limit.overrides.iter().map(other).collect::<Result<_, _>>()?,
            cost: Cost::build(limit.cost.as_ref())?,
            key,
            scope: limit.scope,
            accuracy: limit.accuracy,
            on_store_failure: limit.on_store_failure.unwrap_or_default(),
            pauses: direction == Direction::Outbound && limit.on_upstream_limit == OnUpstreamLimit::Pause,
            // All limits of a policy in one slot of a cluster, so that they are charged at once.
            shared_prefix: format!("{{limit:{policy}:{place}}}:{rule}/{}", limit.name).into(),
            fields: limit.fields,
            body: body.transpose()?,
            counters: Counters::default(),
        })
    }

    /// What of a request is counted apart; `matched` is the match that it met.
    fn key_of(&self, facts: &Facts<'_>, matched: Option<u8>) -> key::Bytes {
        let mut bytes = key::Bytes::new();
        self.key.iter().for_each(|part| part.write(facts, matched, &mut bytes));
        bytes
    }

    /// Which of its numbers hold for a request.
    fn which(&self, facts: &Facts<'_>, matched: Option<u8>) -> Which {
        let fits = |other: &Other| self.key.iter().zip(&other.wishes).all(|(part, wish)| part.is(wish, facts, matched));
        Which(self.overrides.iter().position(fits).and_then(|place| u8::try_from(place).ok()))
    }

    fn meter(&self, which: Which) -> &Meter {
        which.0.and_then(|place| self.overrides.get(usize::from(place))).map_or(&self.meter, |other| &other.meter)
    }

    /// The name of a request's count in the store: what is counted apart is in it as a digest, for it may be long, or a secret.
    fn shared_name(&self, namespace: &str, key: &key::Bytes) -> String {
        let digest = Sha256::digest(key);
        let digest = u128::from_be_bytes(std::array::from_fn(|at| digest[at]));
        format!("fetchr:{namespace}:{}:{digest:032x}", self.shared_prefix)
    }

    /// Whether it acts, and pods count it together.
    pub(crate) fn is_shared(&self) -> bool {
        self.scope == Scope::Shared && self.mode != Mode::Disabled
    }

    /// `namespace/policy/rule/limit`: which one it is in a pod.
    pub fn full_name(&self) -> String {
        format!("{}/{}/{}", self.policy, self.rule, self.name)
    }

    /// Name of the limit, as clients see it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it acts.
    pub fn mode(&self) -> Mode {
        self.mode
    }
}

/// Where a policy is attached for pods of a proxy: those at the same place count together.
pub(crate) fn place(at: &Attachment, proxy: &ObjectRef) -> String {
    match at {
        Attachment::Platform => "platform".to_owned(),
        Attachment::Namespace => "namespace".to_owned(),
        Attachment::Proxy => format!("FetchrProxy/{proxy}"),
        Attachment::Service { name } => format!("Service/{name}"),
        Attachment::Workload { workload_kind, name } => format!("{workload_kind}/{name}"),
        Attachment::ExternalHost { .. } => "host".to_owned(),
    }
}

#[cfg(test)]
mod tests;
