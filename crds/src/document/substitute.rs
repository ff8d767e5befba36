//! `${NAME}`, `${NAME:-default}` and `$$` in the texts of a document.
//!
//! Variables are filled in after the YAML is read, so a value can't change the structure of the document, and every field stays where
//! it was.

use serde_json::Value;

use crate::{
    problems::{FieldPath, Problems},
    schema::definitions,
};

/// Fills in the variables of a document of kind `kind`. A text that is a variable as a whole becomes a number where the schema wants
/// one. Variables that are missing, and what is not well-formed, are returned.
pub(super) fn substitute(document: &mut Value, kind: &str, env: &dyn Fn(&str) -> Option<String>) -> Problems {
    let schema = definitions().iter().find(|definition| definition.kind == kind).map(|definition| definition.schema());
    let mut problems = Problems::default();
    walk(document, schema, &FieldPath::default(), env, &mut problems);
    problems
}

fn walk(
    value: &mut Value,
    schema: Option<&Value>,
    at: &FieldPath,
    env: &dyn Fn(&str) -> Option<String>,
    problems: &mut Problems,
) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let schema =
                    schema.and_then(|schema| schema["properties"].get(name).or_else(|| schema.get("additionalProperties")));
                walk(field, schema, &at.field(name), env, problems);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                walk(item, schema.and_then(|schema| schema.get("items")), &at.index(index), env, problems);
            }
        }
        Value::String(text) if text.contains('$') => match expand(text, env) {
            Ok(expanded) => {
                let number =
                    schema.is_some_and(|schema| schema["type"] == "integer").then(|| expanded.parse::<i64>().ok()).flatten();
                *value = number.map_or_else(|| expanded.into(), Value::from);
            }
            Err(message) => problems.add(at, message),
        },
        _ => {}
    }
}

fn expand(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some(start) = rest.find('$') {
        expanded.push_str(&rest[..start]);
        rest = &rest[start + 1..];
        if let Some(tail) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = tail;
        } else if let Some(tail) = rest.strip_prefix('{') {
            let (inside, tail) =
                tail.split_once('}').ok_or_else(|| "a ${ has no }: write ${NAME}, or $$ for a dollar sign".to_owned())?;
            expanded.push_str(&variable(inside, env)?);
            rest = tail;
        } else {
            expanded.push('$');
        }
    }
    expanded.push_str(rest);
    Ok(expanded)
}

fn variable(inside: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let (name, default) = inside.split_once(":-").map_or((inside, None), |(name, default)| (name, Some(default)));
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.is_empty() || !name.bytes().all(legal) || name.as_bytes()[0].is_ascii_digit() {
        return Err(format!("{name:?} can't name a variable: write ${{NAME}} or ${{NAME:-default}}, or $$ for a dollar sign"));
    }
    match (env(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(format!("the variable {name} is not set: set it, or write ${{{name}:-default}}")),
    }
}
