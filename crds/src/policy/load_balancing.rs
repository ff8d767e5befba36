//! The section `loadBalancing`: which address of a name a request goes to.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Mode, PolicyKind};
use crate::{
    check::{FIELD_NAME, check_not_zero},
    problems::{FieldPath, Problems},
    rule::Rule,
    scalar::Duration,
};

const HASHED: Rule =
    Rule::new("has(self.hash) == (self.policy == 'RingHash')", "policy RingHash needs a hash, and the other policies have none")
        .at(".hash");
const NAMED_HEADER: Rule = Rule::new(
    "has(self.name) == (self.source == 'Header')",
    "source Header needs the name of a header field, and source ClientIP has none",
)
.at(".name");

/// How requests are spread: over the ready endpoints of a Service that a listener's `upstream`, a forward proxy's target or an intercepted
/// request from the application goes to, or else over the addresses of the name. The rule names the Services by its `hosts`; one without
/// is for those of the pod's namespace.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [HASHED]))]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancing {
    /// Whether the section acts.
    #[serde(default)]
    pub mode: Mode,
    /// How an address is chosen.
    #[serde(default)]
    pub policy: BalancePolicy,
    /// What requests that go to the same address have in common, with policy RingHash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<HashKey>,
    /// When an address that fails is left out.
    #[serde(default)]
    pub ejection: Ejection,
}

/// How an address is chosen.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum BalancePolicy {
    /// Of two random ones the one with the lower product of recent latency (its peaks count, and decay within 10 s) and requests under way.
    #[default]
    PeakEWMA,
    /// One after the other.
    RoundRobin,
    /// By a hash, such that few requests move when addresses come and go.
    RingHash,
}

/// What is hashed.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [NAMED_HEADER]))]
#[serde(rename_all = "camelCase")]
pub struct HashKey {
    /// Where the key comes from.
    pub source: HashSource,
    /// Name of the header field, with source `Header`. Requests without it go to any address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = FIELD_NAME))]
    pub name: Option<String>,
}

/// Where the key of a hash comes from.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum HashSource {
    /// Address of the client, after `clientAddress` of the FetchrProxy.
    ClientIP,
    /// Value of a header field.
    Header,
}

/// When an address is left out: after `consecutiveFailures` tries in a row that failed to connect, broke off, were late or were answered
/// with 500, 502, 503 or 504. At least one address stays; if all are left out since others have gone, all are used.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ejection {
    /// Failures in a row.
    #[serde(default = "default_consecutive_failures")]
    #[schemars(range(min = 1, max = 1000))]
    pub consecutive_failures: i32,
    /// How long it is left out; the second time in a row twice as long, and so on up to ten times.
    #[serde(default = "default_time")]
    pub time: Duration,
    /// Share of the addresses that may be left out at a time; of two or more addresses one always may. 0: none is ever left out.
    #[serde(default = "default_max_ejected_percent")]
    #[schemars(range(min = 0, max = 100))]
    pub max_ejected_percent: i32,
}

fn default_consecutive_failures() -> i32 {
    5
}

fn default_time() -> Duration {
    Duration::from_secs(30)
}

fn default_max_ejected_percent() -> i32 {
    33
}

impl Default for Ejection {
    fn default() -> Self {
        Self {
            consecutive_failures: default_consecutive_failures(),
            time: default_time(),
            max_ejected_percent: default_max_ejected_percent(),
        }
    }
}

impl PolicyKind for LoadBalancing {
    const NAME: &'static str = "loadBalancing";
    const PROTECTS: bool = false;

    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        HASHED.check(self.hash.is_some() == (self.policy == BalancePolicy::RingHash), at, problems);
        if let Some(hash) = &self.hash {
            let named = hash.name.is_some() == (hash.source == HashSource::Header);
            NAMED_HEADER.check(named, &at.field("hash"), problems);
        }
        check_not_zero(self.ejection.time, &at.field("ejection").field("time"), problems);
    }
}
