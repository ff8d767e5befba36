//! The section `headers`: changes to header fields.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Mode;

/// Changes to the header fields of requests and responses. Order: remove, set, add.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Headers {
    /// Whether the section acts.
    #[serde(default)]
    pub mode: Mode,
    /// Changes before the request goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Edits>,
    /// Changes before the response goes back; also to responses that the sidecar makes itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response: Option<Edits>,
}

/// Changes to one set of header fields.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Edits {
    /// Fields that are set; values that were there are replaced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub set: Vec<Field>,
    /// Fields that are added beside those that are there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub add: Vec<Field>,
    /// Names of fields that are removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 256)))]
    pub remove: Vec<String>,
}

/// A header field.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Field {
    /// Name of the field.
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))]
    pub name: String,
    /// Value of the field.
    #[schemars(length(max = 1024))]
    pub value: String,
}
