//! How requests are read before a policy looks at them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::seconds;
use crate::{
    problems::{FieldPath, Problems},
    scalar::{Duration, Size},
};

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
    /// What a client may ask of the proxy. Heads are read by the limits that held when their connection was opened.
    #[serde(default)]
    pub limits: HttpLimits,
}

/// What a client may ask of the proxy.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpLimits {
    /// Size of a request's head, 1Ki to 64Ki. Beyond it: 431.
    #[serde(default = "default_max_head")]
    pub max_head: Size,
    /// Header fields of a request. Beyond it: 431.
    #[serde(default = "default_max_fields")]
    #[schemars(range(min = 10, max = 1000))]
    pub max_fields: i32,
    /// Length of a request's target, 1Ki to 32Ki. Beyond it: 414.
    #[serde(default = "default_max_target")]
    pub max_target: Size,
    /// Size of a request's body, 1 or more. Beyond it: 413. Default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_body: Option<Size>,
    /// Bytes a second that a client has to send of a body, or take of an answer, while it is waited for; 0: any. Below it: 408, or the
    /// end of the answer. How long it may pause is said by `upstream.idleTimeout`. Uploads of gRPC calls are exempt: their messages come when they come.
    #[serde(default = "default_min_body_rate")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub min_body_rate: i32,
    /// How long a client is waited for before its rate counts. Default 10s.
    #[serde(default = "seconds::<10>")]
    pub body_rate_grace: Duration,
}

fn default_max_head() -> Size {
    Size::kib(64)
}

fn default_max_fields() -> i32 {
    100
}

fn default_max_target() -> Size {
    Size::kib(16)
}

fn default_min_body_rate() -> i32 {
    240
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            max_head: default_max_head(),
            max_fields: default_max_fields(),
            max_target: default_max_target(),
            max_body: None,
            min_body_rate: default_min_body_rate(),
            body_rate_grace: seconds::<10>(),
        }
    }
}

impl HttpLimits {
    pub(super) fn check(&self, at: &FieldPath, problems: &mut Problems) {
        for (field, size, most) in [("maxHead", self.max_head, 64), ("maxTarget", self.max_target, 32)] {
            if !(Size::kib(1)..=Size::kib(most)).contains(&size) {
                problems.add(&at.field(field), format!("{size} is out of range: write 1Ki to {most}Ki"));
            }
        }
        if self.max_body == Some(Size(0)) {
            problems.add(&at.field("maxBody"), "no request with a body could ever meet it: write 1 or more, or leave it out");
        }
    }
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
