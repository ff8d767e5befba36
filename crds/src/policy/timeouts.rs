//! The section `timeouts`: how long the parts of an exchange may take.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Mode, PolicyKind};
use crate::{
    check::check_not_zero,
    problems::{FieldPath, Problems},
    rule::Rule,
    scalar::Duration,
};

const LIMITS_SOMETHING: Rule = Rule::new(
    "has(self.connect) || has(self.request) || has(self.idle) || has(self.perTry) || self.mode == 'Disabled'",
    "write connect, request, idle or perTry; a section without any needs mode Disabled",
);

/// Time limits. What is absent keeps the FetchrProxy's value.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [LIMITS_SOMETHING]))]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// Whether the section acts.
    #[serde(default)]
    pub mode: Mode,
    /// Until the connection to the upstream stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<Duration>,
    /// From the start of the request to the head of the response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Duration>,
    /// Without a byte in either direction while a body is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<Duration>,
    /// From the start of a single try to the head of its response; a section `retry` may have another follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_try: Option<Duration>,
}

impl PolicyKind for Timeouts {
    const NAME: &'static str = "timeouts";
    const PROTECTS: bool = false;

    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        let limits = [("connect", self.connect), ("request", self.request), ("idle", self.idle), ("perTry", self.per_try)];
        let acts = limits.iter().any(|(_, limit)| limit.is_some()) || self.mode == Mode::Disabled;
        LIMITS_SOMETHING.check(acts, at, problems);
        for (name, limit) in limits {
            if let Some(limit) = limit {
                check_not_zero(limit, &at.field(name), problems);
            }
        }
    }
}
