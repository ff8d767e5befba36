//! The section `rateLimits`: how many requests in how much time.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Mode;
use crate::scalar::Duration;

/// A limit on requests. A request over the limit is answered with 429.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// Name of the limit, unique in the rule; clients see it in `RateLimit`, metrics carry it.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Whether the limit acts.
    #[serde(default)]
    pub mode: Mode,
    /// How many requests in how much time.
    pub limit: Limit,
    /// What is counted apart. None: one count for all requests of the rule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub key: Vec<Key>,
    /// Who shares a count.
    #[serde(default)]
    pub scope: Scope,
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

/// A part of what is counted apart.
#[derive(Clone, Debug, Deserialize, Eq, Hash, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Key {
    /// Where the part comes from.
    pub source: KeySource,
    /// Name of the header field, with source `Header`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub name: Option<String>,
}

/// Where a part of a key comes from.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum KeySource {
    /// Address of the client, after `clientAddress` of the FetchrProxy; IPv6 by its /64.
    ClientIP,
    /// Value of a header field; requests without it share one count.
    Header,
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
