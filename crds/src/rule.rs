//! Rules between fields: the schema says them in CEL, for the API server, and `check` says them in Rust, in the same words.

use serde::Serialize;

use crate::problems::{FieldPath, Problems};

/// One entry of `x-kubernetes-validations`.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Rule {
    rule: &'static str,
    message: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field_path: Option<&'static str>,
}

impl Rule {
    /// A rule that holds for objects for which the CEL expression is true.
    pub(crate) const fn new(rule: &'static str, message: &'static str) -> Self {
        Self { rule, message, field_path: None }
    }

    /// The field that is wrong when the rule is broken, such as `.value`.
    pub(crate) const fn at(self, field_path: &'static str) -> Self {
        Self { field_path: Some(field_path), ..self }
    }

    /// Adds the rule's message to the problems of the object at `at`, unless the rule holds.
    pub(crate) fn check(&self, holds: bool, at: &FieldPath, problems: &mut Problems) {
        if !holds {
            let field = self.field_path.map_or_else(|| at.clone(), |field| at.field(&field[1..]));
            problems.add(&field, self.message);
        }
    }
}

impl From<Rule> for kube::core::Rule {
    fn from(Rule { rule, message, field_path }: Rule) -> Self {
        let rule = Self::new(rule).message(message);
        match field_path {
            Some(field_path) => rule.field_path(field_path),
            None => rule,
        }
    }
}
