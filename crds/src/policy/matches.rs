//! Which requests a rule is for.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Conditions that a request has to meet, all of them.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Match {
    /// The path, without the query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// Hosts, without a port; `*.example.org` matches one label or more. None: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)))]
    pub hosts: Vec<String>,
    /// Methods. None: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 32), regex(pattern = "^[A-Z][A-Z-]*$")))]
    pub methods: Vec<String>,
    /// Header fields; names are compared without regard to case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub headers: Vec<ValueMatch>,
    /// Query parameters, compared after percent-decoding; the first of a name counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub query: Vec<ValueMatch>,
    /// A condition in the Common Expression Language over `request` (method, path, host, scheme, query, headers) and
    /// `source` (address), such as `request.headers['x-tier'] == 'gold'`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub cel: Option<String>,
}

/// A condition on the path.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PathMatch {
    /// How the value is compared.
    #[serde(rename = "type", default)]
    pub kind: PathKind,
    /// The path to compare with.
    #[schemars(length(min = 1, max = 1024))]
    pub value: String,
}

/// How a path is compared.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum PathKind {
    /// The whole path, byte for byte.
    Exact,
    /// Whole segments from the start: `/a` matches `/a` and `/a/b`, not `/ab`.
    #[default]
    Prefix,
    /// Segments, of which `{name}` stands for one and a last `{*name}` for all that follow: `/v1/items/{id}`.
    Template,
    /// A regular expression (RE2 syntax) that matches the whole path.
    Regex,
}

/// A condition on a named value: a header field or a query parameter.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ValueMatch {
    /// How the value is compared.
    #[serde(rename = "type", default)]
    pub kind: ValueKind,
    /// Name of the field or parameter.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// The value to compare with; not with type `Present` or `Absent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub value: Option<String>,
}

/// How a named value is compared.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub enum ValueKind {
    /// Byte for byte.
    #[default]
    Exact,
    /// A regular expression (RE2 syntax) that matches the whole value.
    Regex,
    /// The field is there, whatever its value.
    Present,
    /// The field is not there.
    Absent,
}
