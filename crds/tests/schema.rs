//! The generated CustomResourceDefinitions: up to date, bounded, and with the defaults that the types have.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may panic as tests do")]

use std::{fs, path::Path};

use crds::{FetchrPolicy, FetchrProxy, policy::FEATURES, proxy::FetchrProxySpec, schema::definitions};
use serde_json::{Map, Value, json};

#[test]
fn generated_yaml_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for definition in definitions() {
        for folder in ["crds/yaml", "charts/fetchr/files/crds"] {
            let file = root.join(folder).join(format!("{}.yaml", definition.file));
            let found = fs::read_to_string(&file).unwrap();
            assert!(
                found.ends_with(&definition.yaml()),
                "{} is stale; run: cargo run -p fetchr-crds --bin crdgen",
                file.display()
            );
        }
    }
}

#[test]
fn everything_in_a_schema_is_bounded() {
    let mut loose = Vec::new();
    for definition in definitions() {
        let properties = &definition.schema()["properties"];
        for part in ["spec", "status"] {
            find_loose(&properties[part], &format!("{}.{part}", definition.kind), &mut loose);
        }
    }
    assert!(loose.is_empty(), "{}", loose.join("\n"));
}

/// Whatever has no bound, and keywords that the offline check doesn't know.
fn find_loose(schema: &Value, at: &str, loose: &mut Vec<String>) {
    const KNOWN: &[&str] = &[
        "additionalProperties",
        "anyOf",
        "default",
        "description",
        "enum",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "pattern",
        "properties",
        "required",
        "type",
        "x-kubernetes-int-or-string",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-list-type",
        "x-kubernetes-validations",
    ];
    let mut wants = |keyword: &str| {
        if schema.get(keyword).is_none() {
            loose.push(format!("{at} has no {keyword}"));
        }
    };
    match schema["type"].as_str() {
        Some("array") => ["items", "maxItems", "x-kubernetes-list-type"].into_iter().for_each(&mut wants),
        Some("integer") => {
            wants("minimum");
            if schema["format"] != "int64" || at.ends_with("requests") {
                wants("maximum");
            }
        }
        Some("string") if schema.get("enum").is_none() && schema["format"] != "date-time" => wants("maxLength"),
        Some("string" | "boolean") => {}
        Some("object") if schema.get("additionalProperties").is_some() => wants("maxProperties"),
        Some("object") => wants("properties"),
        None if schema["x-kubernetes-int-or-string"] == true => wants("maxLength"),
        other => loose.push(format!("{at} has the type {other:?}")),
    }
    for keyword in schema.as_object().unwrap().keys().filter(|keyword| !KNOWN.contains(&keyword.as_str())) {
        loose.push(format!("{at} uses {keyword}"));
    }
    if let Some(description) = schema["description"].as_str().filter(|description| description.len() > 400) {
        loose.push(format!("{at} has a description of {} bytes", description.len()));
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        find_loose(property, &format!("{at}.{name}"), loose);
    }
    for keyword in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get(keyword) {
            find_loose(inner, &format!("{at}[]"), loose);
        }
    }
}

#[test]
fn defaults_of_the_schema_are_those_of_the_types() {
    let metadata = json!({"name": "web", "namespace": "shop"});
    let explicit = json!({"listeners": [{"name": "web", "port": 80, "upstream": "http://localhost"}], "mode": "Explicit"});
    let object = |spec: Value| json!({"apiVersion": "fetchr.sh/v1alpha1", "kind": "", "metadata": metadata, "spec": spec});
    let read = |value: Value| serde_json::from_value::<FetchrProxy>(value).unwrap().spec;
    assert_eq!(read(object(json!({}))), FetchrProxySpec::default());
    for spec in [json!({}), json!({"interception": explicit}), json!({"upstream": {}, "drain": {}, "startup": {}, "logging": {}})]
    {
        let (bare, mut filled) = (object(spec.clone()), object(spec));
        fill(&mut filled, definitions()[0].schema());
        assert_eq!(read(bare), read(filled));
    }
    let bare = object(json!({
        "targetRefs": [{"kind": "FetchrProxy", "name": "web"}],
        "rules": [{
            "name": "all",
            "matches": [{"path": {"value": "/"}, "headers": [{"name": "a", "value": "b"}]}],
            "headers": {"request": {"remove": ["x"]}},
            "rateLimits": [{"name": "all", "limit": {"requests": 1, "per": "1s"}}],
            "timeouts": {"idle": "1s"},
        }],
    }));
    let mut filled = bare.clone();
    fill(&mut filled, definitions()[1].schema());
    assert_ne!(bare, filled);
    let read = |value: Value| serde_json::from_value::<FetchrPolicy>(value).unwrap().spec;
    assert_eq!(read(bare), read(filled));
}

/// Fills in defaults as the API server does: from the outside in, and only where the object itself is there.
fn fill(value: &mut Value, schema: &Value) {
    if let Value::Object(fields) = value {
        for (name, property) in schema["properties"].as_object().unwrap_or(&Map::new()) {
            if let (None, Some(default)) = (fields.get(name), property.get("default")) {
                fields.insert(name.clone(), default.clone());
            }
            if let Some(field) = fields.get_mut(name) {
                fill(field, property);
            }
        }
    } else if let Value::Array(items) = value {
        items.iter_mut().for_each(|item| fill(item, &schema["items"]));
    }
}

#[test]
fn rule_that_wants_a_section_knows_every_kind() {
    let rule = &definitions()[1].schema()["properties"]["spec"]["properties"]["rules"]["items"];
    let text = rule["x-kubernetes-validations"][0]["rule"].as_str().unwrap();
    for feature in FEATURES {
        assert!(text.contains(&format!("has(self.{feature})")), "{feature} is missing in: {text}");
        assert!(rule["properties"].get(feature).is_some(), "{feature} is no field of a rule");
    }
}

/// Readers of YAML 1.1 (helm, kubectl, many editors) take such a key or value for a boolean, and the field is lost or refused.
#[test]
fn no_name_or_value_of_a_schema_is_a_boolean_in_yaml_1_1() {
    let mut found = Vec::new();
    for definition in definitions() {
        find_booleans(definition.schema(), definition.kind, &mut found);
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
    let mut planted = Vec::new();
    find_booleans(&json!({"properties": {"On": {"enum": ["No", "Other"]}}}), "X", &mut planted);
    assert_eq!(planted, ["X.On", "X.On: No"]);
}

fn find_booleans(schema: &Value, at: &str, found: &mut Vec<String>) {
    const BOOLEANS: &[&str] = &["y", "n", "yes", "no", "on", "off", "true", "false"];
    let is_boolean = |word: &str| BOOLEANS.contains(&word.to_ascii_lowercase().as_str());
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let at = format!("{at}.{name}");
        if is_boolean(name) {
            found.push(at.clone());
        }
        find_booleans(property, &at, found);
    }
    // The states of a condition are Kubernetes' own, and nobody writes them.
    let values = schema["enum"].as_array().filter(|values| !values.contains(&json!("Unknown")));
    let values = values.into_iter().flatten().filter_map(Value::as_str);
    found.extend(values.filter(|value| is_boolean(value)).map(|value| format!("{at}: {value}")));
    for keyword in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get(keyword) {
            find_booleans(inner, &format!("{at}[]"), found);
        }
    }
}
