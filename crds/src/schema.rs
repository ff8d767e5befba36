//! The CustomResourceDefinitions: what `crds/yaml/` is generated from, and what [`crate::validate`] reads.

use std::sync::OnceLock;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::CustomResourceExt;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use crate::{
    FetchrPolicy, FetchrProxy,
    check::QUANTITY_PATTERN,
    problems::{FieldPath, Problems},
    rule::Rule,
};

/// A resource of ours.
#[derive(Debug)]
pub struct Definition {
    /// Its kind.
    pub kind: &'static str,
    /// Name of its file under `crds/yaml/`, without the ending.
    pub file: &'static str,
    /// The CustomResourceDefinition.
    pub crd: Value,
}

impl Definition {
    /// The schema of the served version.
    pub fn schema(&self) -> &Value {
        &self.crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    }

    /// The CustomResourceDefinition as YAML.
    pub fn yaml(&self) -> String {
        serde_yaml::to_string(&self.crd).expect("a JSON value is a YAML value")
    }
}

/// Both resources.
pub fn definitions() -> &'static [Definition] {
    static DEFINITIONS: OnceLock<Vec<Definition>> = OnceLock::new();
    DEFINITIONS.get_or_init(|| {
        vec![
            Definition { kind: "FetchrProxy", file: "fetchrproxies", crd: tidy(FetchrProxy::crd()) },
            Definition { kind: "FetchrPolicy", file: "fetchrpolicies", crd: tidy(FetchrPolicy::crd()) },
        ]
    })
}

fn tidy(crd: impl serde::Serialize) -> Value {
    let mut crd = serde_json::to_value(crd).expect("a definition has string keys only");
    let schema = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    tidy_schema(schema);
    // What every object has; the API server knows it by itself, our own validation reads it here.
    for (name, kind) in [("apiVersion", "string"), ("kind", "string"), ("metadata", "object")] {
        schema["properties"][name] = json!({"type": kind});
    }
    crd
}

/// Removes what says nothing to the API server (an absent field is written as absent, so null is never a value), and writes whole
/// numbers as such.
fn tidy_schema(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if fields.get("nullable") == Some(&Value::Bool(true)) {
                fields.remove("nullable");
            }
            if fields.get("type") == Some(&"integer".into()) && fields.get("format") == Some(&"int32".into()) {
                fields.remove("format");
            }
            if fields.get("title").is_some_and(Value::is_string) {
                fields.remove("title");
            }
            fields.values_mut().for_each(tidy_schema);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy_schema),
        Value::Number(number) => {
            if let Some(whole) = number.as_f64().filter(|float| number.is_f64() && float.fract() == 0.0) {
                *value = Value::from(whole as i64);
            }
        }
        _ => {}
    }
}

/// The schema of `status.conditions`, in the words of the Kubernetes API conventions.
pub(crate) fn conditions_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "description": "Conditions, one of each type.",
        "type": "array",
        "maxItems": 8,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "reason", "message", "lastTransitionTime"],
            "properties": {
                "type": {"type": "string", "maxLength": 316, "pattern": "^[A-Za-z]([A-Za-z0-9]*)$"},
                "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
                "lastTransitionTime": {"type": "string", "format": "date-time"},
                "reason": {"type": "string", "minLength": 1, "maxLength": 1024, "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
                "message": {"type": "string", "maxLength": 32768},
            },
        },
    })
}

/// The schema of a label selector, bounded.
pub(crate) fn selector_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "properties": {
            "matchLabels": {
                "description": "Labels that a pod has, all of them.",
                "type": "object",
                "maxProperties": 16,
                "additionalProperties": {"type": "string", "maxLength": 63, "pattern": LABEL_VALUE},
            },
            "matchExpressions": {
                "description": "Conditions on labels, all of which hold.",
                "type": "array",
                "maxItems": 16,
                "x-kubernetes-list-type": "atomic",
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "x-kubernetes-validations": [VALUES_OF_OPERATOR],
                    "properties": {
                        "key": {"type": "string", "minLength": 1, "maxLength": 317, "pattern": LABEL_KEY},
                        "operator": {"type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
                        "values": {
                            "type": "array",
                            "minItems": 1,
                            "maxItems": 32,
                            "x-kubernetes-list-type": "set",
                            "items": {"type": "string", "maxLength": 63, "pattern": LABEL_VALUE},
                        },
                    },
                },
            },
        },
    })
}

/// The schema of CPU and memory of a container.
pub(crate) fn resources_schema(_: &mut SchemaGenerator) -> Schema {
    let quantities = |description: &str| {
        json!({
            "description": description,
            "type": "object",
            "maxProperties": 8,
            "additionalProperties": {
                "x-kubernetes-int-or-string": true,
                "anyOf": [{"type": "integer"}, {"type": "string"}],
                "minimum": 0,
                "maximum": 999_999_999_999_i64,
                "maxLength": 24,
                "pattern": QUANTITY_PATTERN,
            },
        })
    };
    json_schema!({
        "type": "object",
        "properties": {
            "requests": quantities("What the node sets aside, such as `cpu: 50m`."),
            "limits": quantities("What is never exceeded, such as `memory: 256Mi`."),
        },
    })
}

const LABEL_KEY: &str = "^([a-z0-9]([-.a-z0-9]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$";
const LABEL_VALUE: &str = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$";

const VALUES_OF_OPERATOR: Rule = Rule::new(
    "has(self.values) == (self.operator in ['In', 'NotIn'])",
    "operators In and NotIn need values, operators Exists and DoesNotExist have none",
)
.at(".values");

/// The twin of the rule on `matchExpressions`, and keys of `matchLabels`, for which a schema has no pattern.
pub(crate) fn check_selector(selector: &LabelSelector, at: &FieldPath, problems: &mut Problems) {
    for (index, requirement) in selector.match_expressions.iter().flatten().enumerate() {
        let needs_values = matches!(requirement.operator.as_str(), "In" | "NotIn");
        let at = at.field("matchExpressions").index(index);
        VALUES_OF_OPERATOR.check(
            requirement.values.as_ref().is_some_and(|values| !values.is_empty()) == needs_values,
            &at,
            problems,
        );
    }
    for key in selector.match_labels.iter().flatten().map(|(key, _)| key).filter(|key| !is_label_key(key)) {
        problems.add(
            &at.field("matchLabels"),
            format!("{key:?} is not the key of a label: write one such as app.kubernetes.io/name"),
        );
    }
}

/// The twin of [`LABEL_KEY`], with the lengths that Kubernetes allows.
fn is_label_key(key: &str) -> bool {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let legal = |text: &str, most: usize, inner: &[u8]| {
        let bytes = text.as_bytes();
        let ends = [bytes.first(), bytes.last()].into_iter().all(|end| end.is_some_and(u8::is_ascii_alphanumeric));
        ends && text.len() <= most && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || inner.contains(byte))
    };
    legal(name, 63, b"-_.")
        && prefix.is_none_or(|prefix| legal(prefix, 253, b"-.") && !prefix.bytes().any(|byte| byte.is_ascii_uppercase()))
}
