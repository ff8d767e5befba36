//! The section `retry`: when a request is sent again.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Mode, PolicyKind};
use crate::{
    check::check_not_zero,
    problems::{FieldPath, Problems},
    rule::Rule,
    scalar::{Duration, Size},
};

const RISES: Rule = Rule::new("duration(self.max) >= duration(self.base)", "max is at least base").at(".max");

/// Further tries of a request that failed. Nothing is sent again once a byte of an answer is on its way to the client.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// Whether the section acts.
    #[serde(default)]
    pub mode: Mode,
    /// Tries in all, the first one included.
    #[serde(default = "default_attempts")]
    #[schemars(range(min = 2, max = 10))]
    pub attempts: i32,
    /// Failures after which there is another try.
    #[serde(default = "default_failures")]
    #[schemars(length(max = 3), extend("x-kubernetes-list-type" = "set"))]
    pub failures: Vec<RetryFailure>,
    /// Statuses after which there is another try. gRPC's UNAVAILABLE counts as 503.
    #[serde(default = "default_statuses")]
    #[schemars(length(max = 16), inner(range(min = 400, max = 599)), extend("x-kubernetes-list-type" = "set"))]
    pub statuses: Vec<i32>,
    /// Methods that may be sent again although the first try may have had an effect. After `ConnectFailure` any may.
    #[serde(default = "default_methods")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 32), regex(pattern = "^[A-Z][A-Z-]*$")), extend("x-kubernetes-list-type" = "set"))]
    pub methods: Vec<String>,
    /// How much of a request's body is kept to be sent again, at most 1Mi. A request with more has one try once it has been begun to be sent.
    #[serde(default = "default_max_body")]
    pub max_body: Size,
    /// How long it waits between two tries.
    #[serde(default)]
    pub backoff: Backoff,
    /// How many further tries there may be.
    #[serde(default)]
    pub budget: Budget,
    /// A second try beside the first, of requests with safe methods and without a body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedge: Option<Hedge>,
}

/// What failed.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum RetryFailure {
    /// No connection came to stand, or the name could not be resolved: nothing of the request was sent.
    ConnectFailure,
    /// The connection broke off before the head of an answer.
    Broken,
    /// No head of an answer came in time (`timeouts.perTry`, or the FetchrProxy's `responseHeaderTimeout`).
    Timeout,
}

/// The pause before a further try: `base`, doubled with each try up to `max`, of which a random part between half and all is waited. A
/// `Retry-After` of up to `max` is waited for instead; with a longer one there is no further try.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [RISES]))]
#[serde(rename_all = "camelCase")]
pub struct Backoff {
    /// Before the second try.
    #[serde(default = "millis::<25>")]
    pub base: Duration,
    /// Before any.
    #[serde(default = "millis::<1000>")]
    pub max: Duration,
}

/// A store of `burst` further tries. A further try takes one, each request brings `percent` hundredths of one.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Budget {
    /// Further tries for a hundred requests, in the long run; of the rule, in each pod.
    #[serde(default = "default_percent")]
    #[schemars(range(min = 0, max = 100))]
    pub percent: i32,
    /// Further tries that may come at once.
    #[serde(default = "default_burst")]
    #[schemars(range(min = 1, max = 1000))]
    pub burst: i32,
}

/// A second try beside one that takes long; the first good answer counts, and the other try is ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hedge {
    /// How long the first try is alone. The 95th percentile of the latency is a good choice.
    pub after: Duration,
}

fn default_attempts() -> i32 {
    2
}

fn default_failures() -> Vec<RetryFailure> {
    vec![RetryFailure::ConnectFailure, RetryFailure::Broken, RetryFailure::Timeout]
}

fn default_statuses() -> Vec<i32> {
    vec![502, 503, 504]
}

fn default_methods() -> Vec<String> {
    ["GET", "HEAD", "OPTIONS", "TRACE"].map(str::to_owned).to_vec()
}

fn default_max_body() -> Size {
    Size::kib(64)
}

fn default_percent() -> i32 {
    20
}

fn default_burst() -> i32 {
    10
}

fn millis<const N: u64>() -> Duration {
    Duration::from_millis(N)
}

impl Default for Backoff {
    fn default() -> Self {
        Self { base: millis::<25>(), max: millis::<1000>() }
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self { percent: default_percent(), burst: default_burst() }
    }
}

impl PolicyKind for Retry {
    const NAME: &'static str = "retry";
    const PROTECTS: bool = false;

    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        RISES.check(self.backoff.max >= self.backoff.base, &at.field("backoff"), problems);
        if self.max_body > Size::kib(1024) {
            problems.add(&at.field("maxBody"), format!("{} is too much: write 1Mi or less", self.max_body));
        }
        if let Some(hedge) = self.hedge {
            check_not_zero(hedge.after, &at.field("hedge").field("after"), problems);
        }
    }
}
