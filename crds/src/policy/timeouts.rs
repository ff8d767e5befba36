//! The section `timeouts`: how long the parts of an exchange may take.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Mode;
use crate::scalar::Duration;

/// Time limits. What is absent keeps the FetchrProxy's value.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
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
}
