//! The section `failover`: where requests go when their upstream fails.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Mode, PolicyKind};
use crate::{
    check::{UPSTREAM_PATTERN, check_upstream},
    problems::{FieldPath, Problems},
    proxy::UpstreamTls,
    rule::Rule,
};

const GOES_SOMEWHERE: Rule =
    Rule::new("has(self.upstream) || self.mode == 'Disabled'", "write an upstream; a section without one needs mode Disabled")
        .at(".upstream");

const TLS_OF_HTTPS: Rule = Rule::new(
    "!has(self.upstreamTLS) || has(self.upstream) && self.upstream.startsWith('https://')",
    "TLS is spoken to upstreams of https:// only",
)
.at(".upstreamTLS");

/// A second upstream. A request goes there if the first one's name can't be resolved, no connection comes to stand, or its circuit is open; with a section
/// `retry` also if its tries are used up and the last one failed in a way that allows another. `Host` stays as it is.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [GOES_SOMEWHERE, TLS_OF_HTTPS]))]
#[serde(rename_all = "camelCase")]
pub struct Failover {
    /// Whether the section acts.
    #[serde(default)]
    pub mode: Mode,
    /// Where to, such as `http://standby.example:8080`; `h2c://` speaks HTTP/2 in clear, `https://` TLS and HTTP/2 or 1.1, as the upstream
    /// prefers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = UPSTREAM_PATTERN))]
    pub upstream: Option<String>,
    /// TLS to an upstream of `https://`. A Secret in it must be one that a listener of the pod's FetchrProxy names, too: no other is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "upstreamTLS")]
    pub upstream_tls: Option<UpstreamTls>,
}

impl PolicyKind for Failover {
    const NAME: &'static str = "failover";
    const PROTECTS: bool = false;

    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        GOES_SOMEWHERE.check(self.upstream.is_some() || self.mode == Mode::Disabled, at, problems);
        if let Some(upstream) = &self.upstream {
            check_upstream(upstream, &at.field("upstream"), problems);
        }
        let is_https = self.upstream.as_ref().is_some_and(|upstream| upstream.starts_with("https://"));
        TLS_OF_HTTPS.check(self.upstream_tls.is_none() || is_https, at, problems);
        if let Some(tls) = &self.upstream_tls {
            tls.check(&at.field("upstreamTLS"), problems);
        }
    }
}
