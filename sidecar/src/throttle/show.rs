//! How throttles stand, for administrators.

use std::{collections::BTreeMap, sync::Arc};

use crds::policy::Mode;
use serde::{Deserialize, Serialize};

use super::Throttles;

/// The throttles of this pod. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct PodThrottles(pub(crate) Arc<Throttles>);

impl PodThrottles {
    /// How they stand, by the names of their rules.
    pub fn figures(&self) -> Vec<ThrottleFigures> {
        self.0.figures()
    }
}

/// How the throttle of a rule stands, and what it has counted since its process began.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ThrottleFigures {
    /// `namespace/policy/rule`.
    pub rule: String,
    /// Whether it acts.
    pub mode: Mode,
    /// Requests that it has let through and that are not over.
    pub in_flight: u64,
    /// Requests that it lets through at a time; none if any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Of an adaptive limit: below 1, answers take longer than when few are under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gradient: Option<f64>,
    /// Of an adaptive limit: milliseconds that an answer takes when few are under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline_millis: Option<f64>,
    /// Requests that wait for their turn.
    pub queued: u64,
    /// Requests that wait for the time that the rate gives them.
    pub delayed: u64,
    /// Requests that wait, by priority.
    pub priorities: BTreeMap<String, u64>,
    /// Requests by what became of them: `admitted`, `queued`, `queue_full`, `max_wait`, `preempted`, `rate`, `deadline`, `abandoned`.
    pub requests: BTreeMap<String, u64>,
}
