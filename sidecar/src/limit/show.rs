//! What the admin port shows of limits.

use std::{collections::HashMap, sync::Arc};

use crds::policy::{
    Direction, Mode, RateLimit,
    rate_limits::{self, Accuracy, Key, Scope},
};
use serde::{Deserialize, Serialize};

pub use super::counted::{Decided, Source};
use super::{Limit, Limiter};
use crate::{ask::redact, config::Config};

/// What `GET /limits` answers.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LimitList {
    /// Counts that the pod holds for itself, of all limits.
    pub counts: usize,
    /// Counts that it has room for.
    pub capacity: usize,
    /// The limits in force, in the order of the policies.
    pub limits: Vec<LimitFigures>,
}

/// A limit, and what it has decided.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LimitFigures {
    /// `namespace/policy/rule/limit`.
    pub name: String,
    /// Of which requests.
    pub direction: Direction,
    /// Whether it acts.
    pub mode: Mode,
    /// Its numbers.
    pub limit: rate_limits::Limit,
    /// What is counted apart. Expressions are without their texts, which may be secrets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key: Vec<Key>,
    /// How many overrides it has.
    pub overrides: usize,
    /// Who shares a count.
    pub scope: Scope,
    /// How a count that pods share is kept.
    pub accuracy: Accuracy,
    /// What was decided since the proxy began, by who did.
    pub decisions: Vec<Decided>,
}

/// What `GET /limits/count` answers: how one count stands.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LimitCount {
    /// `namespace/policy/rule/limit`.
    pub name: String,
    /// Who has the count.
    pub counted: By,
    /// Requests that may come at once, in a window, or be under way.
    pub quota: u64,
    /// How many of them may come now.
    pub remaining: u64,
    /// Until there is one more; zero when all are there. None for requests under way, of which nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_seconds: Option<f64>,
    /// Until all are there again, likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_seconds: Option<f64>,
    /// How long the upstream wants nothing of it, if it has said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_seconds: Option<f64>,
}

/// Who has a count.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum By {
    /// The pod that was asked.
    Pod,
    /// The Redis that pods share.
    Store,
}

/// What is asked of `GET /limits/count` and `POST /limits/reset`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CountNamed {
    /// `namespace/policy/rule/limit`.
    pub limit: String,
    /// The value of each part of its key, in their order; an empty one stands for requests without it.
    #[serde(default)]
    pub values: Vec<String>,
}

/// What became of a count that was to be forgotten.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Forgotten {
    /// Whether there was one.
    pub found: bool,
}

/// What is asked of `GET /limits/top`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TopRequest {
    /// Keys of this limit, `namespace/policy/rule/limit`; of all without it.
    pub limit: Option<String>,
    /// What comes first.
    pub order: TopOrder,
    /// Keys at most; all that are followed without it.
    pub most: Option<usize>,
}

/// Which keys come first.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum TopOrder {
    /// Those that were denied most often.
    #[default]
    Denied,
    /// Those that have least left, of what they may have.
    Left,
}

/// What `GET /limits/top` answers.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LimitTop {
    /// The keys, the first ones first.
    pub keys: Vec<DeniedOften>,
}

/// A key that limits in force have denied.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeniedOften {
    /// `namespace/policy/rule/limit`.
    pub name: String,
    /// The value of each part of its key: 64 characters of it, or a digest if it may be a secret.
    pub values: Vec<String>,
    /// How often it was denied since the pod follows it, at most.
    pub denied: u64,
    /// How many of these may be another's, whose place it took.
    pub uncertain: u64,
    /// Requests that may come at once, in a window, or be under way.
    pub quota: u64,
    /// How many of them may come now, if the pod has the count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining: Option<u64>,
}

/// Why nothing is shown.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ShowError {
    /// What was asked is wrong, as the words say.
    #[error("{0}")]
    Wrong(String),
    /// There is no such limit.
    #[error("no limit {0} is in force")]
    NoLimit(String),
    /// The store that pods share does not answer, for that reason.
    #[error("the store of shared limits does not answer: {0}")]
    Unanswered(&'static str),
}

impl LimitFigures {
    /// Requests that it allowed.
    pub fn allowed(&self) -> u64 {
        self.decisions.iter().map(|decided| decided.allowed).sum()
    }

    /// Requests that it denied.
    pub fn denied(&self) -> u64 {
        self.decisions.iter().map(|decided| decided.denied).sum()
    }
}

impl LimitTop {
    /// The first of these keys.
    pub fn of(mut keys: Vec<DeniedOften>, order: TopOrder, most: Option<usize>) -> Self {
        keys.sort_by(|a, b| {
            let often = b.denied.cmp(&a.denied).then_with(|| (&a.name, &a.values).cmp(&(&b.name, &b.values)));
            match order {
                TopOrder::Denied => often,
                TopOrder::Left => a.left().total_cmp(&b.left()).then(often),
            }
        });
        keys.truncate(most.unwrap_or(usize::MAX));
        Self { keys }
    }
}

impl DeniedOften {
    /// The part that is left; all, if nobody knows.
    fn left(&self) -> f64 {
        self.remaining.map_or(1.0, |remaining| remaining as f64 / self.quota.max(1) as f64)
    }
}

impl CountNamed {
    /// From the parts of a query: `?limit=shop/web/all/per-client&value=10.0.0.1`; `value` may stand several times.
    pub(crate) fn in_parts(parts: Vec<(String, String)>) -> Result<Self, ShowError> {
        let (mut limit, mut values) = (None, Vec::new());
        for (name, value) in parts {
            match name.as_str() {
                "limit" => limit = Some(value),
                "value" => values.push(value),
                _ => return Err(ShowError::Wrong(format!("{name:?} is unknown: a count is named by limit and value"))),
            }
        }
        let limit = limit.ok_or_else(|| ShowError::Wrong("limit is missing, such as shop/web/all/per-client".to_owned()))?;
        Ok(Self { limit, values })
    }

    /// The limit that it names.
    pub(crate) fn find<'a>(&self, config: &'a Config) -> Result<&'a Arc<Limit>, ShowError> {
        let mut all = [Direction::Inbound, Direction::Outbound].into_iter().flat_map(|way| config.routes(way).every_limit());
        all.find(|limit| limit.full_name() == self.limit).ok_or_else(|| ShowError::NoLimit(self.limit.clone()))
    }
}

/// The limits in force.
pub(crate) fn list(config: &Config, limiter: &Limiter) -> LimitList {
    let written = written(config);
    let figures = |direction, limit: &Arc<Limit>| {
        let name = limit.full_name();
        let spec: &RateLimit = written.get(&name)?;
        let mut key = spec.key.clone();
        key.iter_mut().filter_map(|part| part.cel.as_mut()).for_each(|cel| *cel = redact::expression(cel));
        Some(LimitFigures {
            name,
            direction,
            mode: spec.mode,
            limit: spec.limit.clone(),
            key,
            overrides: spec.overrides.len(),
            scope: spec.scope,
            accuracy: spec.accuracy,
            decisions: limiter.decisions(limit),
        })
    };
    let of = |direction| config.routes(direction).every_limit().map(move |limit| (direction, limit));
    let all = of(Direction::Inbound).chain(of(Direction::Outbound));
    let limits = all.filter_map(|(direction, limit)| figures(direction, limit)).collect();
    LimitList { counts: limiter.len(), capacity: limiter.capacity(), limits }
}

/// The limits as policies write them, by their full names.
fn written(config: &Config) -> HashMap<String, &RateLimit> {
    let policies = config.planned.iter().flat_map(|planned| &planned.plan.policies);
    let rules = policies.flat_map(|policy| policy.rules.iter().map(move |rule| (&policy.policy, rule)));
    let limits = rules.flat_map(|(policy, rule)| rule.rate_limits.iter().map(move |limit| (policy, rule, limit)));
    limits.map(|(policy, rule, limit)| (format!("{policy}/{}/{}", rule.name, limit.name), limit)).collect()
}
