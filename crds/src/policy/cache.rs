//! The section `cache`: which answers are kept, for how long, and under which key.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CEL_VARIABLES, Mode, PolicyKind};
use crate::{
    check::{CIDR_PATTERN, FIELD_NAME, Known, check_cidrs, check_field_name, check_not_zero, compile_expression, note},
    problems::{FieldPath, Problems},
    rule::Rule,
    scalar::{Duration, Size},
};

const TTL_RISES: Rule =
    Rule::new("!has(self.min) || !has(self.max) || duration(self.max) >= duration(self.min)", "max is at least min").at(".max");
const ONE_TTL: Rule = Rule::new(
    "!has(self.override) || !has(self.default)",
    "override is for every answer, so default would never count: write one of them",
)
.at(".default");
const ALLOWED_OR_IGNORED: Rule =
    Rule::new("!has(self.allow) || !has(self.ignore)", "write allow, for all that count, or ignore, for all that don't")
        .at(".ignore");

/// A shared cache (RFC 9111) before the upstream. What an origin says of its answers holds, unless a field here says otherwise.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cache {
    /// Whether the section acts. In Shadow it keeps keys and times alone, and counts what would have been a hit.
    #[serde(default)]
    pub mode: Mode,
    /// Methods that the cache answers.
    #[serde(default = "default_methods")]
    #[schemars(length(min = 1, max = 2), extend("x-kubernetes-list-type" = "set"))]
    pub methods: Vec<CacheMethod>,
    /// How long an answer is fresh.
    #[serde(default)]
    pub ttl: Ttl,
    /// When an answer serves that is no longer fresh.
    #[serde(default)]
    pub stale: Stale,
    /// How long an answer is kept, after all that, to ask its origin whether it has changed.
    #[serde(default = "minutes::<10>")]
    pub keep: Duration,
    /// What makes two requests the same.
    #[serde(default)]
    pub key: CacheKey,
    /// Tags of an answer, which it can be purged by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<Tags>,
    /// Who may take an answer out by a request with the method PURGE. None: such a request goes to the origin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purge_method: Option<PurgeMethod>,
    /// A condition like that of a match; requests that meet it pass the cache by, and their answers are not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub bypass: Option<String>,
    /// A condition like that of a match; requests that meet it go to the origin, and their answers replace what was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub refresh: Option<String>,
    /// The longest body that is kept.
    #[serde(default = "default_max_object_size")]
    pub max_object_size: Size,
    /// What becomes of an answer that sets a cookie.
    #[serde(default)]
    pub set_cookie: SetCookie,
    /// What requests do that miss the same answer at the same time.
    #[serde(default)]
    pub collapse: Collapse,
    /// Who is told by `Cache-Status` (RFC 9211) what the cache did.
    #[serde(default)]
    pub status_field: StatusField,
}

/// A method that the cache can answer.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum CacheMethod {
    /// GET.
    Get,
    /// HEAD, from what was kept of the answer to a GET.
    Head,
}

/// How long an answer is fresh. Without any of these fields that is the origin's say alone.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [TTL_RISES, ONE_TTL]))]
#[serde(rename_all = "camelCase")]
pub struct Ttl {
    /// For an answer whose origin says nothing of it. None: such an answer is not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<Duration>,
    /// At least so long, of what may be kept at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<Duration>,
    /// At most so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<Duration>,
    /// In place of what the origin says. `no-store` and `private` still hold.
    #[serde(default, rename = "override", skip_serializing_if = "Option::is_none")]
    pub override_: Option<Duration>,
    /// In place of `default`, for answers of these statuses; the only way to keep an error whose origin says nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["status"]))]
    pub by_status: Vec<StatusTtl>,
    /// What follows from `Last-Modified` where neither the origin nor `default` says anything.
    #[serde(default)]
    pub heuristic: Heuristic,
    /// A random part of its time, up to so many hundredths, by which an answer ends early: answers that came together do not end together.
    #[serde(default)]
    #[schemars(range(min = 0, max = 50))]
    pub jitter_percent: i32,
}

/// How long an answer of one status is fresh.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusTtl {
    /// Status of the answer.
    #[schemars(range(min = 200, max = 599))]
    pub status: i32,
    /// How long it is fresh.
    pub ttl: Duration,
}

/// Heuristic freshness (RFC 9111, section 4.2.2).
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum Heuristic {
    /// None: what nobody gives a time is not kept.
    #[default]
    Disabled,
    /// A tenth of the time since `Last-Modified`, a day at most.
    LastModified,
}

/// When an answer serves that is no longer fresh (RFC 5861). `must-revalidate` of the origin forbids it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stale {
    /// For so long it serves while one request asks the origin anew. None: what the origin says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub while_revalidate: Option<Duration>,
    /// For so long it serves where the origin fails: no answer, or 500, 502, 503 or 504. None: what the origin says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_error: Option<Duration>,
}

/// What makes two requests the same, beside method, scheme, path and what the origin names in `Vary`.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheKey {
    /// Whether the host counts.
    #[serde(default)]
    pub host: KeyHost,
    /// What of the query counts.
    #[serde(default)]
    pub query: KeyQuery,
    /// Header fields whose values count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(min = 1, max = 8),
        inner(length(min = 1, max = 256), regex(pattern = FIELD_NAME)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub headers: Vec<String>,
    /// Cookies whose values count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(min = 1, max = 8),
        inner(length(min = 1, max = 256), regex(pattern = FIELD_NAME)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub cookies: Vec<String>,
}

/// Whether the host is part of the key.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum KeyHost {
    /// Each host has answers of its own.
    #[default]
    Include,
    /// All hosts share them. Only right where the origin does not look at `Host`.
    Ignore,
}

/// What of the query is part of the key. Names may end in `*`, for all that begin so.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [ALLOWED_OR_IGNORED]))]
#[serde(rename_all = "camelCase")]
pub struct KeyQuery {
    /// The only parameters that count. The origin must look at no other: it still gets them all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)), extend("x-kubernetes-list-type" = "set"))]
    pub allow: Option<Vec<String>>,
    /// Parameters that don't count, such as `utm_*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 256)), extend("x-kubernetes-list-type" = "set"))]
    pub ignore: Option<Vec<String>>,
    /// Whether the order of parameters counts.
    #[serde(default)]
    pub order: QueryOrder,
}

/// Whether the order of parameters counts.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum QueryOrder {
    /// `?a=1&b=2` and `?b=2&a=1` are two.
    #[default]
    Keep,
    /// They are one; several of one name keep their order.
    Sort,
}

/// Tags of an answer, which it can be purged by.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tags {
    /// Field of the answer that lists them, separated by spaces or commas: `xkey`, `Surrogate-Key`, `Cache-Tag`. Clients don't get it.
    #[schemars(length(min = 1, max = 256), regex(pattern = FIELD_NAME))]
    pub header: String,
}

/// Purge by the method PURGE: what a GET of the same target would get goes, with all its variants.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PurgeMethod {
    /// Networks of the clients that may, such as `10.0.0.0/8`; others are answered with 403. Who a client is says `clientAddress` of the FetchrProxy.
    #[serde(rename = "allowedCIDRs")]
    #[schemars(
        length(min = 1, max = 64),
        inner(length(min = 1, max = 43), regex(pattern = CIDR_PATTERN)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub allowed_cidrs: Vec<String>,
}

/// What becomes of an answer that sets a cookie.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum SetCookie {
    /// It is not kept.
    #[default]
    Bypass,
    /// It is kept without the cookie; who asked first gets it.
    Strip,
}

/// What requests do that miss the same answer at the same time.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Collapse {
    /// Among whom one asks the origin for all.
    #[serde(default)]
    pub scope: CollapseScope,
    /// How long the others wait for the head of its answer before they ask by themselves.
    #[serde(default = "seconds::<3>")]
    pub wait: Duration,
}

/// Among whom one asks the origin for all.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum CollapseScope {
    /// Nobody: each asks by itself.
    Disabled,
    /// The requests of a pod.
    #[default]
    Pod,
    /// Those of all pods of a workload, where the FetchrProxy has `redis` and `cache.shared`; elsewhere those of a pod.
    Cluster,
}

/// Who is told by `Cache-Status` what the cache did.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum StatusField {
    /// Every client.
    #[default]
    Always,
    /// None.
    Never,
}

fn default_methods() -> Vec<CacheMethod> {
    vec![CacheMethod::Get, CacheMethod::Head]
}

fn default_max_object_size() -> Size {
    Size::kib(8 << 10)
}

fn minutes<const N: u64>() -> Duration {
    Duration::from_secs(N * 60)
}

fn seconds<const N: u64>() -> Duration {
    Duration::from_secs(N)
}

impl Default for Collapse {
    fn default() -> Self {
        Self { scope: CollapseScope::default(), wait: seconds::<3>() }
    }
}

impl PolicyKind for Cache {
    const NAME: &'static str = "cache";
    const PROTECTS: bool = false;

    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        self.ttl.check(&at.field("ttl"), problems);
        self.key.check(&at.field("key"), problems);
        if let Some(tags) = &self.tags {
            check_field_name(&tags.header, &at.field("tags").field("header"), problems);
        }
        if let Some(purge) = &self.purge_method {
            check_cidrs(&purge.allowed_cidrs, &at.field("purgeMethod").field("allowedCIDRs"), problems);
        }
        for (name, condition) in [("bypass", &self.bypass), ("refresh", &self.refresh)] {
            if let Some(condition) = condition {
                check_condition(condition, &at.field(name), problems);
            }
        }
        check_not_zero(self.collapse.wait, &at.field("collapse").field("wait"), problems);
    }
}

fn check_condition(source: &str, at: &FieldPath, problems: &mut Problems) {
    static KNOWN: Known = Known::new();
    note(KNOWN.check(source, |source| compile_expression(source, CEL_VARIABLES).map(drop)), at, problems);
}

impl Ttl {
    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        let rises = self.min.zip(self.max).is_none_or(|(min, max)| max >= min);
        TTL_RISES.check(rises, at, problems);
        ONE_TTL.check(self.override_.is_none() || self.default.is_none(), at, problems);
    }
}

impl CacheKey {
    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        ALLOWED_OR_IGNORED.check(self.query.allow.is_none() || self.query.ignore.is_none(), &at.field("query"), problems);
        for (index, name) in self.headers.iter().enumerate() {
            check_field_name(name, &at.field("headers").index(index), problems);
        }
    }
}
