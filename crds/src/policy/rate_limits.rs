//! The section `rateLimits`: how many requests in how much time, or at once.

mod cost;
mod key;
mod limit;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::{
    cost::{Cost, CostSource},
    key::{Key, KeySource, Override, parse_network},
    limit::{Algorithm, CalendarWindow, Limit},
};
use super::{Mode, PolicyKind};
use crate::{
    check::{NAME, check_at_most, check_not_zero},
    problems::{FieldPath, Problems},
    rule::Rule,
    scalar::Duration,
};

const STORE_IS_SHARED: Rule = Rule::new(
    "!has(self.onStoreFailure) || self.scope == 'Shared'",
    "a limit of scope Pod has no store that could fail: write scope: Shared, or leave onStoreFailure out",
)
.at(".onStoreFailure");
const LEASES_ARE_OF_SHARED_BUCKETS: Rule = Rule::new(
    "self.accuracy == 'Exact' || (self.scope == 'Shared' && self.limit.algorithm == 'TokenBucket' && self.action == 'Reject')",
    "accuracy Leased is for limits of scope Shared with the algorithm TokenBucket and the action Reject",
)
.at(".accuracy");
const DELAY_HAS_AN_END: Rule =
    Rule::new("has(self.maxDelay) == (self.action == 'Delay')", "action Delay needs maxDelay, and action Reject has none")
        .at(".maxDelay");
const ONLY_BUCKETS_DELAY: Rule =
    Rule::new("self.action == 'Reject' || self.limit.algorithm == 'TokenBucket'", "action Delay needs the algorithm TokenBucket")
        .at(".action");
const SLOTS_COST_ONE: Rule = Rule::new(
    "!has(self.cost) || self.limit.algorithm != 'Concurrency'",
    "a limit with the algorithm Concurrency counts requests under way: leave cost out",
)
.at(".cost");
const LEASES_HAVE_A_PRICE: Rule = Rule::new(
    "self.accuracy == 'Exact' || !has(self.cost) || self.cost.source in ['Fixed', 'CEL']",
    "with accuracy Leased a cost has to be known before the request is forwarded: Fixed or CEL",
)
.at(".cost");

/// The longest that a request may be delayed.
const LONGEST_DELAY: Duration = Duration::from_secs(60);

/// The limits of a rule.
pub type RateLimits = Vec<RateLimit>;

/// A limit on requests. A request over the limit is answered with 429.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [
    STORE_IS_SHARED, LEASES_ARE_OF_SHARED_BUCKETS, DELAY_HAS_AN_END, ONLY_BUCKETS_DELAY, SLOTS_COST_ONE, LEASES_HAVE_A_PRICE
]))]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// Name of the limit, unique in the rule; clients see it in `RateLimit`, metrics carry it.
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub name: String,
    /// Whether the limit acts.
    #[serde(default)]
    pub mode: Mode,
    /// How many requests in how much time, or at once.
    pub limit: Limit,
    /// What a request takes of the limit. Default: one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
    /// What is counted apart. None: one count for all requests of the rule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4), extend("x-kubernetes-list-type" = "atomic"))]
    pub key: Vec<Key>,
    /// Other numbers for some of what is counted apart; the first that fits holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub overrides: Vec<Override>,
    /// Who shares a count.
    #[serde(default)]
    pub scope: Scope,
    /// How a count that pods share is kept.
    #[serde(default)]
    pub accuracy: Accuracy,
    /// What holds for a limit of scope `Shared` while Redis can't be asked. Default: `Local`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_store_failure: Option<OnStoreFailure>,
    /// What becomes of a request over the limit.
    #[serde(default)]
    pub action: Action,
    /// How long a request may be delayed at most; with action `Delay`. What would have to wait longer is rejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_delay: Option<Duration>,
    /// What follows when the upstream says that it has a limit of its own; with direction Outbound.
    #[serde(default)]
    pub on_upstream_limit: OnUpstreamLimit,
    /// Which fields tell the client of the limit.
    #[serde(default)]
    pub fields: LimitFields,
    /// The body of a 429. Default: a problem (RFC 9457) that names the limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<DenialBody>,
}

/// Who shares a count.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Scope {
    /// Each pod counts for itself.
    #[default]
    Pod,
    /// All pods to which the policy is attached by the same target count together, in the Redis of their FetchrProxy. Without `redis`
    /// each pod counts for itself.
    Shared,
}

/// How a count that pods share is kept.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Accuracy {
    /// Each request asks Redis.
    #[default]
    Exact,
    /// Pods take tokens ahead, many at once, and most requests ask nobody. Never more than rate and burst; a little less, when what one pod
    /// has taken is wanted by another.
    Leased,
}

/// What holds while the store of a limit can't be asked.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum OnStoreFailure {
    /// Each pod has its share of the limit for itself.
    #[default]
    Local,
    /// The limit allows all requests.
    Allow,
    /// The limit allows none: they are answered with 503.
    Deny,
}

/// What becomes of a request over a limit.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Action {
    /// It is answered with 429.
    #[default]
    Reject,
    /// It waits until the limit has room, in the order in which requests came.
    Delay,
}

/// What follows when an upstream has a limit of its own.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum OnUpstreamLimit {
    /// After a 429 or 503 with `Retry-After`, or a `RateLimit` of which nothing remains, further requests of the same count are denied until the
    /// upstream wants them again, for an hour at most.
    #[default]
    Pause,
    /// Nothing.
    Ignore,
}

/// Which fields tell the client of the limit.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum LimitFields {
    /// `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-11).
    #[default]
    Draft,
    /// `X-RateLimit-Limit`, `X-RateLimit-Remaining` and `X-RateLimit-Reset` (seconds), of the tightest such limit.
    XRateLimit,
    /// Both.
    All,
    /// None but `Retry-After` on a 429.
    Minimal,
}

/// What a 429 says.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DenialBody {
    /// The field `Content-Type`.
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[ -~]+$"))]
    pub content_type: String,
    /// The body.
    #[schemars(length(max = 4096))]
    pub text: String,
}

impl PolicyKind for RateLimits {
    const NAME: &'static str = "rateLimits";
    const PROTECTS: bool = true;

    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        for (index, limit) in self.iter().enumerate() {
            limit.check(&at.index(index), problems);
        }
    }
}

impl RateLimit {
    /// A limit of which all else is as if nothing were written.
    pub fn new(name: &str, limit: Limit) -> Self {
        Self {
            name: name.to_owned(),
            mode: Mode::default(),
            limit,
            cost: None,
            key: Vec::new(),
            overrides: Vec::new(),
            scope: Scope::default(),
            accuracy: Accuracy::default(),
            on_store_failure: None,
            action: Action::default(),
            max_delay: None,
            on_upstream_limit: OnUpstreamLimit::default(),
            fields: LimitFields::default(),
            body: None,
        }
    }

    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        let algorithm = self.limit.algorithm;
        STORE_IS_SHARED.check(self.on_store_failure.is_none() || self.scope == Scope::Shared, at, problems);
        let leasable = self.scope == Scope::Shared && algorithm == Algorithm::TokenBucket && self.action == Action::Reject;
        LEASES_ARE_OF_SHARED_BUCKETS.check(self.accuracy == Accuracy::Exact || leasable, at, problems);
        DELAY_HAS_AN_END.check(self.max_delay.is_some() == (self.action == Action::Delay), at, problems);
        ONLY_BUCKETS_DELAY.check(self.action == Action::Reject || algorithm == Algorithm::TokenBucket, at, problems);
        SLOTS_COST_ONE.check(self.cost.is_none() || algorithm != Algorithm::Concurrency, at, problems);
        let is_priced = self.cost.as_ref().is_none_or(|cost| !cost.source.is_afterwards());
        LEASES_HAVE_A_PRICE.check(self.accuracy == Accuracy::Exact || is_priced, at, problems);
        self.limit.check(self.max_delay, &at.field("limit"), problems);
        if let Some(cost) = &self.cost {
            cost.check(&at.field("cost"), problems);
        }
        if let Some(delay) = self.max_delay {
            check_not_zero(delay, &at.field("maxDelay"), problems);
            check_at_most(delay, LONGEST_DELAY, &at.field("maxDelay"), problems);
        }
        key::check(&self.key, &at.field("key"), problems);
        for (index, one) in self.overrides.iter().enumerate() {
            one.check(&self.key, (&self.limit, self.max_delay), &at.field("overrides").index(index), problems);
        }
    }
}
