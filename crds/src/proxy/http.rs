//! How requests are read before a policy looks at them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How requests are read before a policy looks at them.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Http {
    /// The one spelling of a path that policies look at.
    #[serde(default)]
    pub path: HttpPath,
    /// What becomes of TRACE requests, whose answer repeats all header fields.
    #[serde(default)]
    pub trace: Trace,
}

/// The one spelling of a path that policies look at. Unreserved characters are always decoded (`%61` is `a`), other triplets written
/// in upper case (`%2f` is `%2F`), a percent sign without two digits is `%25`, and `%00` is refused.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpPath {
    /// What goes on to the upstream. Default: Normalized to the application, so that it gets what policies looked at; AsReceived from the
    /// application, for its requests may be signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward: Option<PathForward>,
    /// What becomes of `.` and `..` as segments, encoded or not.
    #[serde(default)]
    pub dot_segments: DotSegments,
    /// What becomes of two and more slashes in a row.
    #[serde(default)]
    pub slashes: Slashes,
    /// What becomes of `%2F`, `%5C` and `\`, which some applications take for slashes.
    #[serde(default)]
    pub encoded_slashes: EncodedSlashes,
}

/// Which spelling of a path goes on to the upstream.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum PathForward {
    /// The one that policies looked at.
    Normalized,
    /// The one that the client sent.
    AsReceived,
}

/// What becomes of dot segments.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum DotSegments {
    /// They are resolved (RFC 3986, section 5.2.4): `/a/../b` is `/b`.
    #[default]
    Resolve,
    /// The request is answered with 400.
    Refuse,
}

/// What becomes of slashes in a row.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Slashes {
    /// They count as one: `//a` is `/a`.
    #[default]
    Merge,
    /// They are another path: `//a` is not `/a`. Only for applications that see it so too.
    Keep,
}

/// What becomes of encoded slashes.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum EncodedSlashes {
    /// They stay, and the request meets the rules of both readings: `/a%2Fb` those for `/a%2Fb` and those for `/a/b`.
    #[default]
    Keep,
    /// They are slashes: `/a%2Fb` is `/a/b`.
    Decode,
    /// The request is answered with 400.
    Refuse,
}

/// What becomes of TRACE requests.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Trace {
    /// They are answered with 405.
    #[default]
    Refuse,
    /// They go on like any other.
    Forward,
}
