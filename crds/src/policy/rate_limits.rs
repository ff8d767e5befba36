//! The section `rateLimits`: how many requests in how much time.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Mode, PolicyKind};
use crate::{
    check::{FIELD_NAME, NAME, check_not_zero},
    problems::{FieldPath, Problems},
    rule::Rule,
    scalar::Duration,
};

const NAMED: Rule = Rule::new(
    "has(self.name) == (self.source in ['Header', 'Cookie', 'Query'])",
    "the sources Header, Cookie and Query need a name, and the other sources have none",
)
.at(".name");
const STORE_IS_SHARED: Rule = Rule::new(
    "!has(self.onStoreFailure) || self.scope == 'Shared'",
    "a limit of scope Pod has no store that could fail: write scope: Shared, or leave onStoreFailure out",
)
.at(".onStoreFailure");

/// The limits of a rule.
pub type RateLimits = Vec<RateLimit>;

/// A limit on requests. A request over the limit is answered with 429.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [STORE_IS_SHARED]))]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// Name of the limit, unique in the rule; clients see it in `RateLimit`, metrics carry it.
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub name: String,
    /// Whether the limit acts.
    #[serde(default)]
    pub mode: Mode,
    /// How many requests in how much time.
    pub limit: Limit,
    /// What is counted apart. None: one count for all requests of the rule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4), extend("x-kubernetes-list-type" = "atomic"))]
    pub key: Vec<Key>,
    /// Who shares a count.
    #[serde(default)]
    pub scope: Scope,
    /// What holds for a limit of scope `Shared` while Redis can't be asked. Default: `Local`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_store_failure: Option<OnStoreFailure>,
    /// Which fields tell the client of the limit.
    #[serde(default)]
    pub fields: LimitFields,
}

/// A rate with a burst: a token bucket that holds `burst` and refills by `requests` every `per`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Limit {
    /// Requests in every `per`.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub requests: i64,
    /// The time in which `requests` are allowed.
    pub per: Duration,
    /// Requests that may come at once. Default: `requests`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub burst: Option<i64>,
}

impl Limit {
    /// Requests that may come at once.
    fn burst(&self) -> u64 {
        u64::try_from(self.burst.unwrap_or(self.requests)).unwrap_or_default()
    }

    /// The rate in lowest terms: requests, and the microseconds in which they are allowed.
    fn rate(&self) -> (u64, u64) {
        let requests = u64::try_from(self.requests).unwrap_or_default();
        let micros = u64::try_from(self.per.0.as_micros()).unwrap_or(u64::MAX);
        let divisor = greatest_common_divisor(requests, micros).max(1);
        (requests / divisor, micros / divisor)
    }

    /// The level of a full bucket, in the unit in which both a request and a microsecond are whole numbers: a request counts
    /// `rate().1`, a microsecond `rate().0`. A checked limit keeps it at 2^53 or less, which a double holds exactly, as in Redis.
    fn full_level(&self) -> u128 {
        u128::from(self.burst()) * u128::from(self.rate().1)
    }

    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        check_not_zero(self.per, &at.field("per"), problems);
        if self.full_level() > MAX_LEVEL || u128::from(self.rate().0) > MAX_LEVEL {
            let burst = self.burst();
            let message = format!(
                "{} requests in {} with a burst of {burst} can't be counted exactly: write a smaller burst or a shorter time, or \
                 rounder numbers",
                self.requests, self.per
            );
            problems.add(at, message);
        }
    }
}

/// The largest whole number up to which a double holds every one.
const MAX_LEVEL: u128 = 1 << 53;

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// A part of what is counted apart.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [NAMED]))]
#[serde(rename_all = "camelCase")]
pub struct Key {
    /// Where the part comes from.
    pub source: KeySource,
    /// Name of the header field, the cookie or the parameter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = FIELD_NAME))]
    pub name: Option<String>,
}

/// Where a part of a key comes from.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum KeySource {
    /// Address of the client, after `clientAddress` of the FetchrProxy; IPv6 by its /64.
    ClientIP,
    /// Value of a header field; requests without it share one count.
    Header,
    /// Value of a cookie; requests without it share one count.
    Cookie,
    /// Value of a parameter of the query, as it is spelled; requests without it share one count.
    Query,
    /// The match of the rule that the request met: each path pattern has a count of its own.
    Route,
    /// Host that the request is for.
    Host,
    /// Method of the request.
    Method,
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

/// Which fields tell the client of the limit.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum LimitFields {
    /// `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-11).
    #[default]
    Draft,
    /// None but `Retry-After` on a 429.
    Minimal,
}

impl PolicyKind for RateLimits {
    const NAME: &'static str = "rateLimits";
    const PROTECTS: bool = true;

    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        for (index, limit) in self.iter().enumerate() {
            let at = at.index(index);
            STORE_IS_SHARED.check(limit.on_store_failure.is_none() || limit.scope == Scope::Shared, &at, problems);
            limit.limit.check(&at.field("limit"), problems);
            check_key(&limit.key, &at.field("key"), problems);
        }
    }
}

fn check_key(key: &[Key], at: &FieldPath, problems: &mut Problems) {
    for (index, part) in key.iter().enumerate() {
        let at = at.index(index);
        NAMED.check(part.name.is_some() == part.source.is_named(), &at, problems);
        let same = |other: &Key| other.source == part.source && other.lower_case_name() == part.lower_case_name();
        if key[..index].iter().any(same) {
            problems.add(&at, "stands in the key already: remove it");
        }
    }
}

impl KeySource {
    fn is_named(self) -> bool {
        matches!(self, Self::Header | Self::Cookie | Self::Query)
    }
}

impl Key {
    /// Names of header fields are the same in any case.
    fn lower_case_name(&self) -> Option<String> {
        self.name.as_ref().map(|name| if self.source == KeySource::Header { name.to_ascii_lowercase() } else { name.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(requests: i64, per: Duration, burst: Option<i64>) -> bool {
        let mut problems = Problems::default();
        Limit { requests, per, burst }.check(&FieldPath::default(), &mut problems);
        !problems.is_empty()
    }

    #[test]
    fn rate_is_in_lowest_terms() {
        let rate = |requests, per| Limit { requests, per, burst: None }.rate();
        assert_eq!(rate(100, Duration::from_secs(1)), (1, 10_000));
        assert_eq!(rate(3, Duration::from_secs(1)), (3, 1_000_000));
        assert_eq!(rate(1_000_000, Duration::from_secs(86_400)), (1, 86_400));
    }

    #[test]
    fn limits_that_a_double_holds_exactly_are_accepted() {
        for (requests, per) in [(1, 1), (100, 1), (1_000_000_000, 1), (1_000_000, 86_400), (7, 3600), (99_991, 60)] {
            assert!(!refused(requests, Duration::from_secs(per), None), "{requests} in {per} s");
        }
    }

    #[test]
    fn limits_beyond_that_are_refused() {
        assert!(refused(999_999_937, Duration::from_secs(86_400), None));
        assert!(refused(7, Duration::from_secs(86_400), Some(1_000_000_000)));
        assert!(refused(1, Duration::default(), None));
    }

    #[test]
    fn bound_is_exact() {
        let burst_at_bound = i64::try_from(MAX_LEVEL / 1_000_000).expect("it fits");
        assert!(!refused(3, Duration::from_secs(1), Some(burst_at_bound.min(1_000_000_000))));
        let per = Duration::from_secs(3600);
        let most = i64::try_from(MAX_LEVEL / 3_600_000_000).expect("it fits");
        assert!(!refused(7, per, Some(most)) && refused(7, per, Some(most + 1)));
    }
}
