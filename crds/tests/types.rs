//! Schema and types agree: what the schema accepts, the types can read. Otherwise one object in a cluster would stop a watch.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may panic as tests do")]

use crds::{FetchrPolicy, FetchrProxy, schema::definitions, validate::validate_value};
use proptest::{prelude::*, sample::select, strategy::BoxedStrategy, string::string_regex};
use serde_json::{Map, Value, json};

/// Values that meet a schema, and now and then one that doesn't.
fn values(schema: &Value) -> BoxedStrategy<Value> {
    let good = match schema["type"].as_str() {
        _ if schema.get("enum").is_some() => select(schema["enum"].as_array().unwrap().clone()).boxed(),
        Some("object") if schema.get("additionalProperties").is_some() => {
            let value = values(&schema["additionalProperties"]);
            proptest::collection::btree_map("[a-z]{1,8}", value, 0..3).prop_map(|fields| json!(fields)).boxed()
        }
        Some("object") => objects(schema),
        Some("array") => {
            let least = usize::try_from(schema["minItems"].as_u64().unwrap_or(0)).unwrap();
            proptest::collection::vec(values(&schema["items"]), least..least + 2).prop_map(Value::from).boxed()
        }
        Some("integer") => {
            let bound = |name: &str, fallback: i64| schema[name].as_i64().unwrap_or(fallback);
            (bound("minimum", 0)..=bound("maximum", i64::MAX)).prop_map(Value::from).boxed()
        }
        _ => match schema["pattern"].as_str() {
            Some(pattern) => {
                string_regex(pattern.trim_start_matches('^').trim_end_matches('$')).unwrap().prop_map(Value::from).boxed()
            }
            None => "[ -~]{1,12}".prop_map(Value::from).boxed(),
        },
    };
    let bad =
        select(vec![Value::Null, json!(true), json!(-1), json!(1.5), json!(""), json!("Off"), json!([[]]), json!({"x": {}})]);
    prop_oneof![200 => good, 1 => bad].boxed()
}

fn objects(schema: &Value) -> BoxedStrategy<Value> {
    let required: Vec<_> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut fields: BoxedStrategy<Vec<Option<(String, Value)>>> = Just(Vec::new()).boxed();
    for (name, property) in schema["properties"].as_object().unwrap() {
        let likely = if required.contains(&name.as_str()) { 0.995 } else { 0.4 };
        let name = name.clone();
        let field =
            proptest::option::weighted(likely, values(property)).prop_map(move |value| value.map(|value| (name.clone(), value)));
        fields = (fields, field)
            .prop_map(|(mut fields, field)| {
                fields.push(field);
                fields
            })
            .boxed();
    }
    fields.prop_map(|fields| fields.into_iter().flatten().collect::<Map<_, _>>().into()).boxed()
}

fn documents(kind: usize) -> impl Strategy<Value = Value> {
    let definition = &definitions()[kind];
    values(&definition.schema()["properties"]["spec"]).prop_map(|spec| {
        json!({"apiVersion": "fetchr.sh/v1alpha1", "kind": definition.kind, "metadata": {"name": "any", "namespace": "shop"}, "spec": spec})
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_accepted_policy_can_be_read_and_written_again(document in documents(1)) {
        let problems = validate_value(&document);
        prop_assert!(problems.iter().all(|problem| !problem.message.starts_with("unreadable")), "{problems}\n{document}");
        if problems.is_empty() {
            let policy: FetchrPolicy = serde_json::from_value(document).unwrap();
            let written = serde_json::to_value(&policy).unwrap();
            prop_assert_eq!(validate_value(&written).to_string(), "");
            prop_assert_eq!(serde_json::from_value::<FetchrPolicy>(written).unwrap(), policy);
        }
    }

    #[test]
    fn every_accepted_proxy_can_be_read_and_written_again(document in documents(0)) {
        let problems = validate_value(&document);
        prop_assert!(problems.iter().all(|problem| !problem.message.starts_with("unreadable")), "{problems}\n{document}");
        if problems.is_empty() {
            let proxy: FetchrProxy = serde_json::from_value(document).unwrap();
            let written = serde_json::to_value(&proxy).unwrap();
            prop_assert_eq!(validate_value(&written).to_string(), "");
            prop_assert_eq!(serde_json::from_value::<FetchrProxy>(written).unwrap(), proxy);
        }
    }
}

#[test]
fn boolean_of_yaml_1_1_is_refused_with_the_values_that_would_be_right() {
    let document = json!({
        "apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrPolicy", "metadata": {"name": "any"},
        "spec": {
            "targetRefs": [{"kind": "Service", "name": "web"}],
            "rules": [{"name": "all", "headers": {"mode": false, "request": {"remove": ["x-a"]}}}],
        },
    });
    let text = validate_value(&document).to_string();
    assert!(
        text.contains(
            r#"spec.rules[0].headers.mode: Unsupported value: false: supported values: "Enforce", "Shadow", "Disabled""#
        ),
        "{text}"
    );
    assert!(text.contains("kubectl reads a bare On, Off, Yes or No as a boolean"), "{text}");
}

#[test]
fn metadata_is_checked_as_well() {
    let document =
        |metadata: Value| json!({"apiVersion": "fetchr.sh/v1", "kind": "FetchrProxy", "metadata": metadata, "spec": {}});
    let told =
        |metadata: Value| validate_value(&document(metadata)).iter().map(|problem| problem.field.to_string()).collect::<Vec<_>>();
    assert_eq!(told(json!({})), ["apiVersion", "metadata.name"]);
    assert_eq!(told(json!({"name": "Web"})), ["apiVersion", "metadata.name"]);
    assert_eq!(told(json!({"name": "web", "annotations": {"a": true}})), ["apiVersion", "metadata.annotations.a"]);
    assert_eq!(told(json!([])), ["apiVersion", "metadata.name", "metadata"]);
    let long =
        json!({"apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrProxy", "metadata": {"name": "a".repeat(64)}, "spec": {}});
    assert_eq!(validate_value(&long).to_string(), "metadata.name: the name of a FetchrProxy has at most 63 characters");
    assert!(validate_value(&json!({"kind": "Proxy"})).to_string().contains(r#"supported values: "FetchrPolicy", "FetchrProxy""#));
}
