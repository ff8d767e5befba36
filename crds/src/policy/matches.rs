//! Which requests a rule is for.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    check::{
        HOST_PATTERN, Known, check_field_name, check_host_patterns, check_path, check_pattern, check_template,
        compile_expression, note,
    },
    problems::{FieldPath, Problems},
    rule::Rule,
};

const PATH_FROM_ROOT: Rule =
    Rule::new("self.type == 'Regex' || self.value.startsWith('/')", "a path begins with /; only type Regex may begin otherwise")
        .at(".value");
const VALUE_TO_COMPARE: Rule = Rule::new(
    "has(self.value) == (self.type in ['Exact', 'Regex'])",
    "types Exact and Regex need a value, types Present and Absent have none",
)
.at(".value");

/// Variables of the expression in `cel`.
pub const CEL_VARIABLES: &[&str] = &["request", "source"];

/// Conditions that a request has to meet, all of them.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("minProperties" = 1))]
#[serde(rename_all = "camelCase")]
pub struct Match {
    /// The path, without the query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// Hosts, without a port; `*.example.org` matches one label or more. None: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(min = 1, max = 16),
        inner(length(min = 1, max = 253), regex(pattern = HOST_PATTERN)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub hosts: Vec<String>,
    /// Methods. None: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 32), regex(pattern = "^[A-Z][A-Z-]*$")), extend("x-kubernetes-list-type" = "set"))]
    pub methods: Vec<String>,
    /// Header fields; names are compared without regard to case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub headers: Vec<ValueMatch>,
    /// Query parameters, compared after percent-decoding; the first of a name counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub query: Vec<ValueMatch>,
    /// A condition in the Common Expression Language over `request` (method, path, host, scheme, query, headers) and
    /// `source` (address), such as `request.headers['x-tier'] == 'gold'`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub cel: Option<String>,
}

/// A condition on the path.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [PATH_FROM_ROOT]))]
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
#[schemars(extend("x-kubernetes-validations" = [VALUE_TO_COMPARE]))]
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

impl Match {
    pub(super) fn check(&self, at: &FieldPath, problems: &mut Problems) {
        if let Some(path) = &self.path {
            path.check(&at.field("path"), problems);
        }
        check_host_patterns(&self.hosts, &at.field("hosts"), problems);
        for (index, header) in self.headers.iter().enumerate() {
            let at = at.field("headers").index(index);
            check_field_name(&header.name, &at.field("name"), problems);
            header.check(&at, problems);
        }
        for (index, parameter) in self.query.iter().enumerate() {
            parameter.check(&at.field("query").index(index), problems);
        }
        if let Some(cel) = &self.cel {
            check_expression(cel, &at.field("cel"), problems);
        }
    }
}

fn check_expression(source: &str, at: &FieldPath, problems: &mut Problems) {
    static KNOWN: Known = Known::new();
    note(KNOWN.check(source, |source| compile_expression(source, CEL_VARIABLES).map(drop)), at, problems);
}

impl PathMatch {
    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        let from_root = self.kind == PathKind::Regex || self.value.starts_with('/');
        PATH_FROM_ROOT.check(from_root, at, problems);
        if !from_root {
            return;
        }
        let at = at.field("value");
        match self.kind {
            PathKind::Exact | PathKind::Prefix => check_path(&self.value, &at, problems),
            PathKind::Template => check_template(&self.value, &at, problems),
            PathKind::Regex => check_pattern(&self.value, &at, problems),
        }
    }
}

impl ValueMatch {
    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        let compares = matches!(self.kind, ValueKind::Exact | ValueKind::Regex);
        VALUE_TO_COMPARE.check(self.value.is_some() == compares, at, problems);
        if let (ValueKind::Regex, Some(value)) = (self.kind, &self.value) {
            check_pattern(value, &at.field("value"), problems);
        }
    }
}
