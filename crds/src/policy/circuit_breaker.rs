//! The section `circuitBreaker`: when an upstream that fails is left alone.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Mode, PolicyKind};
use crate::{
    check::check_not_zero,
    problems::{FieldPath, Problems},
    rule::Rule,
    scalar::Duration,
};

const TRIPS: Rule = Rule::new(
    "has(self.consecutiveFailures) || has(self.failureRate) || self.mode == 'Disabled'",
    "write consecutiveFailures or failureRate; a section without either needs mode Disabled",
);

/// Answers with 503 and `Retry-After` for an upstream (host and port) that fails, instead of asking it. A failure is a try that did not
/// connect, broke off, was late or was answered with 500, 502, 503 or 504 (gRPC: UNAVAILABLE). Counted in each pod.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [TRIPS]))]
#[serde(rename_all = "camelCase")]
pub struct CircuitBreaker {
    /// Whether the section acts.
    #[serde(default)]
    pub mode: Mode,
    /// Failures in a row that open it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub consecutive_failures: Option<i32>,
    /// The share of failures that opens it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_rate: Option<FailureRate>,
    /// How long it is open. Then single tries go through, and the first one decides: it closes or opens again.
    #[serde(default = "default_open_for")]
    pub open_for: Duration,
    /// Tries at a time that go through after that.
    #[serde(default = "default_probes")]
    #[schemars(range(min = 1, max = 100))]
    pub probes: i32,
}

/// A share of failures.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FailureRate {
    /// Failures of a hundred tries.
    #[schemars(range(min = 1, max = 100))]
    pub percent: i32,
    /// The time over which tries are counted; counts begin anew with each.
    #[serde(default = "default_window")]
    pub window: Duration,
    /// Tries within it below which the share says nothing.
    #[serde(default = "default_min_requests")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_requests: i32,
}

fn default_open_for() -> Duration {
    Duration::from_secs(5)
}

fn default_probes() -> i32 {
    1
}

fn default_window() -> Duration {
    Duration::from_secs(10)
}

fn default_min_requests() -> i32 {
    20
}

impl PolicyKind for CircuitBreaker {
    const NAME: &'static str = "circuitBreaker";
    const PROTECTS: bool = false;

    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        let trips = self.consecutive_failures.is_some() || self.failure_rate.is_some() || self.mode == Mode::Disabled;
        TRIPS.check(trips, at, problems);
        check_not_zero(self.open_for, &at.field("openFor"), problems);
        if let Some(rate) = self.failure_rate {
            check_not_zero(rate.window, &at.field("failureRate").field("window"), problems);
        }
    }
}
