//! The field `rateLimits`: what a pod keeps of limits. Which limits there are is the say of the policies' sections `rateLimits`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The store of a pod's own counts.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LimitStore {
    /// Counts that a pod holds at most, of all limits; each takes about 120 bytes. Beyond that, those that have been idle for longest are
    /// forgotten first. Default 100000.
    #[serde(default = "default_max_counts")]
    #[schemars(range(min = 1000, max = 10_000_000))]
    pub max_counts: u32,
}

impl Default for LimitStore {
    fn default() -> Self {
        Self { max_counts: default_max_counts() }
    }
}

fn default_max_counts() -> u32 {
    100_000
}
