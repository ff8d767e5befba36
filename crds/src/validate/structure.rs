//! A document against its schema: types, required and unknown fields, enums, patterns, ranges, lengths, duplicates.
//!
//! Only what our own schemas use is known here; a test walks them to see that nothing else is in there.

use std::{collections::BTreeMap, sync::OnceLock};

use regex_automata::meta::Regex;
use serde_json::{Map, Value};

use crate::{
    check::{CIDR_PATTERN, HOST_PATTERN, NAME, QUANTITY_PATTERN, UPSTREAM_PATTERN},
    problems::{FieldPath, Problems},
    scalar::Duration,
    schema::definitions,
};

/// Adds what is wrong with the structure of a document.
pub(super) fn check(document: &Value, schema: &Value, problems: &mut Problems) {
    Check { problems }.value(document, schema, &FieldPath::default());
}

struct Check<'a> {
    problems: &'a mut Problems,
}

impl Check<'_> {
    fn value(&mut self, value: &Value, schema: &Value, at: &FieldPath) {
        if schema["x-kubernetes-int-or-string"] == true {
            return self.int_or_string(value, schema, at);
        }
        let wanted = schema["type"].as_str().unwrap_or("object");
        let right_type = has_type(value, wanted);
        if !right_type {
            let given = type_name(value);
            let hint = if value.is_boolean() && wanted == "string" { BOOLEAN_HINT } else { "" };
            self.problems.add(at, format!("Invalid value: {given:?}: {at} in body must be of type {wanted}: {given:?}{hint}"));
        }
        self.one_of_enum(value, schema, at);
        if !right_type {
            return;
        }
        match value {
            Value::Object(fields) => self.object(fields, schema, at),
            Value::Array(items) => self.list(items, schema, at),
            Value::String(text) => self.text(text, schema, at),
            Value::Number(number) => self.range(number.as_i64().unwrap_or(i64::MAX), schema, at),
            Value::Bool(_) | Value::Null => {}
        }
    }

    fn int_or_string(&mut self, value: &Value, schema: &Value, at: &FieldPath) {
        match value {
            Value::String(text) => self.text(text, schema, at),
            Value::Number(number) if number.is_i64() => self.range(number.as_i64().unwrap_or(i64::MAX), schema, at),
            _ => {
                let given = type_name(value);
                self.problems
                    .add(at, format!("Invalid value: {given:?}: {at} in body must be of type integer,string: {given:?}"));
            }
        }
    }

    fn one_of_enum(&mut self, value: &Value, schema: &Value, at: &FieldPath) {
        let Some(supported) = schema["enum"].as_array().filter(|supported| !supported.contains(value)) else {
            return;
        };
        let supported: Vec<_> = supported.iter().map(Value::to_string).collect();
        let is_boolean_word =
            value.as_str().is_some_and(|text| YAML_1_1_BOOLEANS.iter().any(|word| word.eq_ignore_ascii_case(text)));
        let hint = if is_boolean_word { BOOLEAN_HINT } else { "" };
        self.problems.add(at, format!("Unsupported value: {value}: supported values: {}{hint}", supported.join(", ")));
    }

    fn object(&mut self, fields: &Map<String, Value>, schema: &Value, at: &FieldPath) {
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !fields.contains_key(name) {
                self.problems.add(&at.field(name), "Required value");
            }
        }
        self.count(fields.len(), schema, ("minProperties", "maxProperties", "properties"), at);
        let (known, others) = (schema["properties"].as_object(), &schema["additionalProperties"]);
        for (name, value) in fields {
            let at = at.field(name);
            match known.and_then(|known| known.get(name)) {
                Some(schema) => self.value(value, schema, &at),
                None if others.is_object() => self.value(value, others, &at),
                // `metadata` is an object without properties here; the API server has a schema of its own for it.
                None => {
                    if let Some(known) = known {
                        self.problems.add(&at, format!("unknown field \"{at}\"{}", suggestion(name, known)));
                    }
                }
            }
        }
    }

    fn list(&mut self, items: &[Value], schema: &Value, at: &FieldPath) {
        self.count(items.len(), schema, ("minItems", "maxItems", "items"), at);
        for (index, item) in items.iter().enumerate() {
            self.value(item, &schema["items"], &at.index(index));
        }
        let identity = |item: &Value| match schema["x-kubernetes-list-type"].as_str() {
            Some("set") => Some(item.clone()),
            Some("map") => {
                let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten().filter_map(Value::as_str);
                Some(keys.map(|key| (key.to_owned(), item[key].clone())).collect::<Map<_, _>>().into())
            }
            _ => None,
        };
        let identities: Vec<_> = items.iter().map(identity).collect();
        for (index, one) in identities.iter().enumerate() {
            if let Some(one) = one
                && identities[..index].iter().flatten().any(|earlier| earlier == one)
            {
                self.problems.add(&at.index(index), format!("Duplicate value: {one}"));
            }
        }
    }

    fn text(&mut self, text: &str, schema: &Value, at: &FieldPath) {
        let length = text.chars().count();
        if let Some(most) = schema["maxLength"].as_u64().filter(|most| length as u64 > *most) {
            self.problems.add(at, format!("Too long: may not be more than {most} bytes"));
        }
        if let Some(least) = schema["minLength"].as_u64().filter(|least| (length as u64) < *least) {
            self.problems.add(at, format!("Invalid value: {text:?}: {at} in body should be at least {least} chars long"));
        }
        if let Some(pattern) = schema["pattern"].as_str()
            && !patterns()[pattern].is_match(text)
        {
            self.problems.add(at, format!("Invalid value: {text:?}: {at} in body should match '{pattern}'{}", meaning(pattern)));
        }
    }

    fn range(&mut self, number: i64, schema: &Value, at: &FieldPath) {
        if let Some(least) = schema["minimum"].as_f64().filter(|least| (number as f64) < *least) {
            self.problems.add(at, format!("Invalid value: {number}: {at} in body should be greater than or equal to {least}"));
        }
        if let Some(most) = schema["maximum"].as_f64().filter(|most| number as f64 > *most) {
            self.problems.add(at, format!("Invalid value: {number}: {at} in body should be less than or equal to {most}"));
        }
    }

    fn count(&mut self, count: usize, schema: &Value, (least, most, what): (&str, &str, &str), at: &FieldPath) {
        if let Some(least) = schema[least].as_u64().filter(|least| (count as u64) < *least) {
            self.problems.add(at, format!("Invalid value: {count}: {at} in body should have at least {least} {what}"));
        }
        if let Some(most) = schema[most].as_u64().filter(|most| count as u64 > *most) {
            self.problems.add(at, format!("Too many: {count}: must have at most {most} {what}"));
        }
    }
}

const YAML_1_1_BOOLEANS: &[&str] = &["y", "n", "yes", "no", "on", "off", "true", "false"];
const BOOLEAN_HINT: &str = "; kubectl reads a bare On, Off, Yes or No as a boolean (YAML 1.1)";

fn has_type(value: &Value, wanted: &str) -> bool {
    match wanted {
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64(),
        "array" => value.is_array(),
        _ => value.is_object(),
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// What a pattern means, where its reader can't be expected to see it.
fn meaning(pattern: &str) -> &'static str {
    match pattern {
        Duration::PATTERN => "; write a duration such as 500ms, 15s or 1m30s",
        NAME => "; write lower-case letters, digits and -",
        HOST_PATTERN => "; write a host in lower case, without a port, such as shop.example.org or *.example.org",
        UPSTREAM_PATTERN => "; write http://HOST:PORT, https://HOST:PORT, or h2c://HOST:PORT for HTTP/2 in clear",
        CIDR_PATTERN => "; write address/prefix length, such as 10.0.0.0/8",
        QUANTITY_PATTERN => "; write a quantity such as 500m, 2, 64Mi or 1Gi",
        _ => "",
    }
}

/// All patterns of our schemas, compiled once.
fn patterns() -> &'static BTreeMap<String, Regex> {
    static PATTERNS: OnceLock<BTreeMap<String, Regex>> = OnceLock::new();
    PATTERNS.get_or_init(|| {
        let mut patterns = BTreeMap::new();
        for definition in definitions() {
            collect_patterns(definition.schema(), &mut patterns);
        }
        patterns
    })
}

fn collect_patterns(schema: &Value, patterns: &mut BTreeMap<String, Regex>) {
    match schema {
        Value::Object(fields) => {
            if let Some(Value::String(pattern)) = fields.get("pattern") {
                patterns.insert(pattern.clone(), Regex::new(pattern).expect("a pattern of our own schema"));
            }
            fields.values().for_each(|value| collect_patterns(value, patterns));
        }
        Value::Array(items) => items.iter().for_each(|item| collect_patterns(item, patterns)),
        _ => {}
    }
}

/// The known field that was probably meant.
fn suggestion(name: &str, known: &Map<String, Value>) -> String {
    let close = |candidate: &&String| candidate.eq_ignore_ascii_case(name) || distance(candidate, name) <= 2.max(name.len() / 4);
    match known.keys().filter(close).min_by_key(|candidate| distance(candidate, name)) {
        Some(meant) => format!("; did you mean {meant:?}?"),
        None => format!("; known fields are {}", known.keys().map(String::as_str).collect::<Vec<_>>().join(", ")),
    }
}

/// How many characters have to be inserted, removed or replaced (Levenshtein).
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, one) in left.chars().take(64).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], index + 1);
        for (column, other) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(one != *other);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}
