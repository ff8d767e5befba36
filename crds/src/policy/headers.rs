//! The section `headers`: changes to header fields.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Mode, PolicyKind};
use crate::{
    check::{FIELD_NAME, check_editable, check_field_value},
    problems::{FieldPath, Problems},
    rule::Rule,
};

const CHANGES_SOMETHING: Rule = Rule::new(
    "has(self.request) || has(self.response) || self.mode == 'Disabled'",
    "write request or response; a section without either needs mode Disabled",
);
const EDITS_SOMETHING: Rule =
    Rule::new("has(self.set) || has(self.add) || has(self.remove)", "write set, add or remove: there is nothing to edit here");

/// Changes to the header fields of requests and responses. Order: remove, set, add.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [CHANGES_SOMETHING]))]
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
#[schemars(extend("x-kubernetes-validations" = [EDITS_SOMETHING]))]
#[serde(rename_all = "camelCase")]
pub struct Edits {
    /// Fields that are set; values that were there are replaced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub set: Vec<Field>,
    /// Fields that are added beside those that are there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub add: Vec<Field>,
    /// Names of fields that are removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(min = 1, max = 32),
        inner(length(min = 1, max = 256), regex(pattern = FIELD_NAME)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub remove: Vec<String>,
}

/// A header field.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Field {
    /// Name of the field.
    #[schemars(length(min = 1, max = 256), regex(pattern = FIELD_NAME))]
    pub name: String,
    /// Value of the field.
    #[schemars(length(max = 1024))]
    pub value: String,
}

impl PolicyKind for Headers {
    const NAME: &'static str = "headers";
    const PROTECTS: bool = false;

    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        let acts = self.request.is_some() || self.response.is_some() || self.mode == Mode::Disabled;
        CHANGES_SOMETHING.check(acts, at, problems);
        for (name, edits) in [("request", &self.request), ("response", &self.response)] {
            if let Some(edits) = edits {
                edits.check(&at.field(name), problems);
            }
        }
    }
}

impl Edits {
    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        let Self { set, add, remove } = self;
        EDITS_SOMETHING.check(!(set.is_empty() && add.is_empty() && remove.is_empty()), at, problems);
        for (name, fields) in [("set", set), ("add", add)] {
            for (index, field) in fields.iter().enumerate() {
                let at = at.field(name).index(index);
                check_editable(&field.name, &at.field("name"), problems);
                check_field_value(&field.value, &at.field("value"), problems);
            }
        }
        for (index, name) in remove.iter().enumerate() {
            check_editable(name, &at.field("remove").index(index), problems);
        }
        for (index, field) in set.iter().enumerate() {
            let same = |other: &Field| other.name.eq_ignore_ascii_case(&field.name);
            if set[..index].iter().any(same) {
                let message = format!("{} is set twice: names of header fields don't differ by case", field.name);
                problems.add(&at.field("set").index(index).field("name"), message);
            }
        }
    }
}
