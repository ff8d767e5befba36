//! Everything that is wrong with a document, in the API server's words, without an API server.

mod structure;

use serde_json::Value;

use crate::{
    FetchrPolicy, FetchrProxy, GROUP, VERSION,
    problems::{FieldPath, Problems},
    proxy, schema,
};

/// All that is wrong with a document of ours: its structure, as the API server checks it by the schema; and if nothing is, the rules
/// between fields and what only the webhook can check.
pub fn validate_value(document: &Value) -> Problems {
    let mut problems = Problems::default();
    let root = FieldPath::default();
    let kind = document.get("kind").and_then(Value::as_str).unwrap_or_default();
    let Some(definition) = schema::definitions().iter().find(|definition| definition.kind == kind) else {
        problems.add(
            &root.field("kind"),
            format!("Unsupported value: {kind:?}: supported values: \"FetchrPolicy\", \"FetchrProxy\""),
        );
        return problems;
    };
    let wanted = format!("{GROUP}/{VERSION}");
    if document.get("apiVersion").and_then(Value::as_str) != Some(&wanted) {
        let given = document.get("apiVersion").cloned().unwrap_or_default();
        problems.add(&root.field("apiVersion"), format!("Unsupported value: {given}: supported values: {wanted:?}"));
    }
    check_metadata(document, &mut problems);
    structure::check(document, definition.schema(), &mut problems);
    if problems.is_empty() {
        check_typed(kind, document, &mut problems);
    }
    problems
}

/// What the schema leaves to the API server's own rules for metadata.
fn check_metadata(document: &Value, problems: &mut Problems) {
    let at = FieldPath::root("metadata");
    check_texts(document, &at, problems);
    match document.pointer("/metadata/name").and_then(Value::as_str) {
        None | Some("") => problems.add(&at.field("name"), "Required value: name or generateName is required"),
        Some(name) if !is_dns_subdomain(name) => problems.add(
            &at.field("name"),
            format!("Invalid value: {name:?}: a name has lower-case letters, digits, - and ., and begins and ends with a letter or digit"),
        ),
        Some(_) => {}
    }
}

/// Labels and annotations are texts; a number or a boolean needs quotes.
fn check_texts(document: &Value, at: &FieldPath, problems: &mut Problems) {
    for name in ["labels", "annotations"] {
        for (key, value) in document["metadata"][name].as_object().into_iter().flatten().filter(|(_, value)| !value.is_string()) {
            let message = format!("Invalid value: {value}: must be of type string: write it in quotes");
            problems.add(&at.field(name).field(key), message);
        }
    }
}

fn is_dns_subdomain(name: &str) -> bool {
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

fn check_typed(kind: &str, document: &Value, problems: &mut Problems) {
    let read = if kind == "FetchrProxy" {
        serde_json::from_value::<FetchrProxy>(document.clone()).map(|proxy| {
            proxy::check_name(proxy.metadata.name.as_deref().unwrap_or_default(), problems);
            proxy.spec.check()
        })
    } else {
        serde_json::from_value::<FetchrPolicy>(document.clone()).map(|policy| policy.spec.check())
    };
    match read {
        Ok(found) => problems.extend(found),
        // The schema has accepted it, so this is a difference between schema and types; the text is all there is to say.
        Err(error) => problems.add(&FieldPath::default(), format!("unreadable: {error}")),
    }
}
