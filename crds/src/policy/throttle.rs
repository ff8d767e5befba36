//! The section `throttle`: how much goes to the upstream at a time, and who waits for it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Match, Mode, PolicyKind};
use crate::{
    check::{FIELD_NAME, NAME, check_at_most, check_field_name, check_not_zero},
    problems::{FieldPath, Problems},
    rule::Rule,
    scalar::{Duration, Size},
};

const ACTS: Rule = Rule::new(
    "has(self.concurrency) || has(self.rate) || has(self.bandwidth) || has(self.deadline) || self.mode == 'Disabled'",
    "write concurrency, rate, bandwidth or deadline; a section without any of them needs mode Disabled",
);
const QUEUES: Rule = Rule::new(
    "has(self.concurrency) || !(has(self.queue) || has(self.priorities))",
    "queue and priorities say who waits for concurrency: write that too",
);
const FIXED: Rule = Rule::new(
    "has(self.limit) == (self.type == 'Fixed')",
    "type Fixed needs a limit, and type Adaptive finds its own: write min, max and initial",
)
.at(".limit");
const ADAPTIVE: Rule = Rule::new(
    "self.type == 'Adaptive' || !(has(self.min) || has(self.max) || has(self.initial))",
    "min, max and initial are of type Adaptive: write limit",
);
const NAMED_HEADER: Rule = Rule::new(
    "has(self.name) == (self.source == 'Header')",
    "source Header needs the name of a header field, and the other sources have none",
)
.at(".name");
const ONE_WAY: Rule = Rule::new("has(self.download) || has(self.upload)", "write download or upload");
const LIMITED: Rule = Rule::new("has(self.header) || has(self.default)", "write header or default");

/// How much of a rule's requests goes to the upstream at a time, in each pod; what has no room waits in a queue, and what can't wait is
/// answered with 503 and `Retry-After`. It stands behind the cache: what that answers takes no room.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [ACTS, QUEUES]))]
#[serde(rename_all = "camelCase")]
pub struct Throttle {
    /// Whether the section acts.
    #[serde(default)]
    pub mode: Mode,
    /// Requests at the upstream at a time. None: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Concurrency>,
    /// Where requests wait for their turn. Default: 100 of them, for up to 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<Queue>,
    /// Who goes first, the highest first. A request has the first one of which it meets a match; else the one without matches, or below all
    /// if there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub priorities: Vec<Priority>,
    /// When a client does not wait any longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Deadline>,
    /// Requests come to the upstream evenly, at most so many in so much time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Bytes of bodies a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bandwidth>,
    /// Requests that the section leaves alone, such as health checks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4), extend("x-kubernetes-list-type" = "atomic"))]
    pub exempt: Vec<Match>,
}

/// Requests at the upstream at a time, from when they are let through to the end of their answer's body. One that switches protocols, or is
/// answered with a stream of events, is not counted any more.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [FIXED, ADAPTIVE]))]
#[serde(rename_all = "camelCase")]
pub struct Concurrency {
    /// Who says how many.
    #[serde(rename = "type")]
    pub kind: ConcurrencyKind,
    /// So many, with type `Fixed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub limit: Option<i32>,
    /// At least so many, with type `Adaptive`. Default: 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub min: Option<i32>,
    /// At most so many, with type `Adaptive`. Default: 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max: Option<i32>,
    /// So many to begin with, with type `Adaptive`. Default: 20, within `min` and `max`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub initial: Option<i32>,
}

/// Who says how many requests are at the upstream at a time.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum ConcurrencyKind {
    /// The policy.
    Fixed,
    /// The latency of answers: fewer once they take longer than they do when few are under way.
    Adaptive,
}

impl Concurrency {
    /// Least, most and first number of requests; all the same with type `Fixed`.
    pub fn bounds(&self) -> (i32, i32, i32) {
        if let (ConcurrencyKind::Fixed, Some(limit)) = (self.kind, self.limit) {
            return (limit, limit, limit);
        }
        let max = self.max.unwrap_or(1000).max(1);
        let min = self.min.unwrap_or(4).clamp(1, max);
        (min, max, self.initial.unwrap_or(20).clamp(min, max))
    }

    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        let fixed = self.kind == ConcurrencyKind::Fixed;
        FIXED.check(self.limit.is_some() == fixed, at, problems);
        let given = [("min", self.min), ("initial", self.initial), ("max", self.max)];
        ADAPTIVE.check(!fixed || given.iter().all(|(_, value)| value.is_none()), at, problems);
        let mut below: Option<(&str, i32)> = None;
        for (name, value) in given.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            if let Some((lower, least)) = below.filter(|(_, least)| *least > value) {
                problems.add(&at.field(name), format!("{value} is less than {lower}, which is {least}"));
            }
            below = Some((name, value));
        }
    }
}

/// Where requests wait.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Queue {
    /// Requests that wait at a time. When it is full, a request takes the place of one of a lower priority, or of one of a client that has
    /// more waiting. 0: none waits.
    #[serde(default = "default_max_length")]
    #[schemars(range(min = 0, max = 10_000))]
    pub max_length: i32,
    /// How long a request waits.
    #[serde(default = "default_max_wait")]
    pub max_wait: Duration,
    /// Which of the requests of a client goes first.
    #[serde(default)]
    pub order: Order,
    /// Shares between clients. None: one queue for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fairness: Option<Fairness>,
}

/// Which request goes first.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Order {
    /// The one that has waited longest.
    #[default]
    FIFO,
    /// The same, until requests have waited without a break for half of `maxWait`; then the newest, whose client is there most likely.
    AdaptiveLIFO,
}

/// Shares between clients: requests with the same key wait in a few queues of their own (a hand), of which each takes the shortest; the
/// queues take turns. A client that sends much fills its hand, and others have queues beside it.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fairness {
    /// What tells clients apart.
    #[schemars(length(min = 1, max = 4), extend("x-kubernetes-list-type" = "atomic"))]
    pub key: Vec<FairnessKey>,
    /// Queues of each priority.
    #[serde(default = "default_queues")]
    #[schemars(range(min = 1, max = 512))]
    pub queues: i32,
    /// Queues that one key has, of `queues`.
    #[serde(default = "default_hand_size")]
    #[schemars(range(min = 1, max = 16))]
    pub hand_size: i32,
}

/// A part of what tells clients apart.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [NAMED_HEADER]))]
#[serde(rename_all = "camelCase")]
pub struct FairnessKey {
    /// Where the part comes from.
    pub source: FairnessSource,
    /// Name of the header field, with source `Header`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = FIELD_NAME))]
    pub name: Option<String>,
}

/// Where a part of a key comes from.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum FairnessSource {
    /// Address of the client, after `clientAddress` of the FetchrProxy; IPv6 by its /64.
    ClientIP,
    /// Value of a header field; requests without it are of one client.
    Header,
    /// Host that the request is for.
    Host,
}

/// A priority.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Priority {
    /// Its name, unique in the section; metrics carry it.
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub name: String,
    /// Requests that have it meet any of these. None: all that meet no other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4), extend("x-kubernetes-list-type" = "atomic"))]
    pub matches: Vec<Match>,
}

/// When a client does not wait any longer: then its request does not go to the upstream, or is not waited for, and it is answered with 504
/// (gRPC: DEADLINE_EXCEEDED). `grpc-timeout` of gRPC calls counts with any section that has concurrency, rate or deadline; the earliest holds.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [LIMITED]))]
#[serde(rename_all = "camelCase")]
pub struct Deadline {
    /// A header field that says how long: seconds, such as `2.5`, or a number with `ms`, `s` or `m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256), regex(pattern = FIELD_NAME))]
    pub header: Option<String>,
    /// How long a request without that field has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Duration>,
}

/// A rate at which requests come to the upstream: each waits until `per / requests` after the one before it.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rate {
    /// Requests in every `per`.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests: i32,
    /// The time in which `requests` go.
    pub per: Duration,
    /// Requests that may go at once after a pause.
    #[serde(default = "default_burst")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: i32,
    /// How long a request waits; one that would have to wait longer is answered with 503 at once.
    #[serde(default = "default_max_delay")]
    pub max_delay: Duration,
}

/// Bytes of bodies a second, of all requests of the rule together.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [ONE_WAY]))]
#[serde(rename_all = "camelCase")]
pub struct Bandwidth {
    /// Of answers, from the upstream, at least 1Ki.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download: Option<Size>,
    /// Of requests, to the upstream, at least 1Ki.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<Size>,
}

fn default_max_length() -> i32 {
    100
}

fn default_max_wait() -> Duration {
    Duration::from_secs(1)
}

fn default_queues() -> i32 {
    64
}

fn default_hand_size() -> i32 {
    8
}

fn default_burst() -> i32 {
    1
}

fn default_max_delay() -> Duration {
    Duration::from_secs(1)
}

/// The longest wait that makes sense: clients have given up by then.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

impl Default for Queue {
    fn default() -> Self {
        Self { max_length: default_max_length(), max_wait: default_max_wait(), order: Order::default(), fairness: None }
    }
}

impl PolicyKind for Throttle {
    const NAME: &'static str = "throttle";
    const PROTECTS: bool = true;

    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        let acts = self.concurrency.is_some() || self.rate.is_some() || self.bandwidth.is_some() || self.deadline.is_some();
        ACTS.check(acts || self.mode == Mode::Disabled, at, problems);
        let waits = self.queue.is_some() || !self.priorities.is_empty();
        QUEUES.check(self.concurrency.is_some() || !waits, at, problems);
        if let Some(concurrency) = &self.concurrency {
            concurrency.check(&at.field("concurrency"), problems);
        }
        if let Some(queue) = &self.queue {
            queue.check(&at.field("queue"), problems);
        }
        check_priorities(&self.priorities, &at.field("priorities"), problems);
        if let Some(deadline) = &self.deadline {
            deadline.check(&at.field("deadline"), problems);
        }
        if let Some(rate) = &self.rate {
            let at = at.field("rate");
            check_not_zero(rate.per, &at.field("per"), problems);
            check_at_most(rate.max_delay, LONGEST_WAIT, &at.field("maxDelay"), problems);
        }
        if let Some(bandwidth) = &self.bandwidth {
            bandwidth.check(&at.field("bandwidth"), problems);
        }
        for (index, one) in self.exempt.iter().enumerate() {
            one.check(&at.field("exempt").index(index), problems);
        }
    }
}

impl Queue {
    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        check_at_most(self.max_wait, LONGEST_WAIT, &at.field("maxWait"), problems);
        let Some(fairness) = &self.fairness else { return };
        let at = at.field("fairness");
        if fairness.hand_size > fairness.queues {
            problems.add(&at.field("handSize"), format!("{} is more than queues, of which it is a part", fairness.hand_size));
        }
        for (index, part) in fairness.key.iter().enumerate() {
            let named = part.name.is_some() == (part.source == FairnessSource::Header);
            NAMED_HEADER.check(named, &at.field("key").index(index), problems);
        }
    }
}

fn check_priorities(priorities: &[Priority], at: &FieldPath, problems: &mut Problems) {
    let mut others = false;
    for (index, priority) in priorities.iter().enumerate() {
        let at = at.index(index);
        for (index, one) in priority.matches.iter().enumerate() {
            one.check(&at.field("matches").index(index), problems);
        }
        if priority.matches.is_empty() && std::mem::replace(&mut others, true) {
            problems
                .add(&at.field("matches"), "another priority has no matches either: only one can be that of all other requests");
        }
    }
}

impl Deadline {
    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        LIMITED.check(self.header.is_some() || self.default.is_some(), at, problems);
        if let Some(header) = &self.header {
            check_field_name(header, &at.field("header"), problems);
        }
        if let Some(default) = self.default {
            check_not_zero(default, &at.field("default"), problems);
        }
    }
}

impl Bandwidth {
    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        ONE_WAY.check(self.download.is_some() || self.upload.is_some(), at, problems);
        for (name, size) in [("download", self.download), ("upload", self.upload)] {
            if let Some(size) = size.filter(|size| *size < Size::kib(1)) {
                problems.add(&at.field(name), format!("{size} is too little: write 1Ki or more"));
            }
        }
    }
}
