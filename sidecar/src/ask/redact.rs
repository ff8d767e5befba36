//! What is hidden of a configuration before it is shown. Any value that a policy compares with or writes may be a credential,
//! whatever its name says; names, paths and hosts stay, or nobody could tell one rule from another.

use std::ops::Range;

use serde_json::Value;

/// What stands for a value.
pub(super) const REDACTED: &str = "[redacted]";

/// Hides the value of every `{name, value}`, and the texts in expressions.
pub(super) fn redact(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if fields.contains_key("name")
                && let Some(hidden @ Value::String(_)) = fields.get_mut("value")
            {
                *hidden = REDACTED.into();
            }
            if let Some(Value::String(source)) = fields.get_mut("cel") {
                *source = expression(source);
            }
            fields.values_mut().for_each(redact);
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        _ => {}
    }
}

/// An expression without its texts. Those that pick a field, as in `request.headers['x-tier']`, are names and stay.
pub(crate) fn expression(source: &str) -> String {
    let mut shown = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(text) = next_text(rest) {
        let (before, after) = (&rest[..text.start], &rest[text.end..]);
        shown.push_str(before);
        if picks_a_field(&shown, after) {
            shown.push_str(&rest[text]);
        } else {
            shown.push('\'');
            shown.push_str(REDACTED);
            shown.push('\'');
        }
        rest = after;
    }
    shown + rest
}

/// Where the next text with its quotes stands; one that does not end goes to the end.
fn next_text(source: &str) -> Option<Range<usize>> {
    let bytes = source.as_bytes();
    let start = bytes.iter().position(|byte| matches!(byte, b'\'' | b'"'))?;
    let quote = bytes[start];
    let raw = bytes[..start].iter().rev().take_while(|byte| byte.is_ascii_alphabetic()).any(|byte| matches!(byte, b'r' | b'R'));
    let fence = if bytes[start..].starts_with(&[quote; 3]) { 3 } else { 1 };
    let mut at = start + fence;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if !raw => at += 2,
            byte if byte == quote && bytes[at..].iter().take(fence).filter(|byte| **byte == quote).count() == fence => {
                return Some(start..at + fence);
            }
            _ => at += 1,
        }
    }
    Some(start..bytes.len())
}

/// Whether a text between these parts is the key in `map['key']`, and not a member of a list.
fn picks_a_field(before: &str, after: &str) -> bool {
    let Some(indexed) = before.trim_end().strip_suffix('[') else { return false };
    let is_operand = |char: char| char.is_ascii_alphanumeric() || matches!(char, '_' | ']' | ')');
    let word = indexed.trim_end().rsplit(|char: char| !char.is_ascii_alphanumeric() && char != '_').next();
    after.trim_start().starts_with(']') && indexed.trim_end().ends_with(is_operand) && word != Some("in")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_hidden_whatever_their_name() {
        let mut value = json!({"rules": [{
            "matches": [{
                "path": {"type": "Prefix", "value": "/a"},
                "headers": [{"name": "x-tier", "value": "s3cret"}, {"name": "x-debug", "type": "Absent"}],
                "query": [{"name": "page", "type": "Regex", "value": "s3cret.*"}],
                "cel": "request.headers['x-tier'] == 's3cret'",
            }],
            "headers": {"request": {"set": [{"name": "x-a", "value": "s3cret"}], "remove": ["x-b"]}},
        }]});
        redact(&mut value);
        let shown = value.to_string();
        assert!(!shown.contains("s3cret"), "{shown}");
        for kept in ["/a", "x-tier", "x-debug", "page", "x-a", "x-b", "request.headers['x-tier'] == '[redacted]'"] {
            assert!(shown.contains(kept), "{kept} in {shown}");
        }
    }

    #[test]
    fn texts_of_expressions_are_hidden_in_every_spelling() {
        for (source, shown) in [
            ("request.headers['x'] == 'a'", "request.headers['x'] == '[redacted]'"),
            (r#"request.query["k"] in ["a", 'b']"#, r#"request.query["k"] in ['[redacted]', '[redacted]']"#),
            ("request.path in ['a']", "request.path in ['[redacted]']"),
            ("request.headers[ 'x' ].contains(r'a\\')", "request.headers[ 'x' ].contains(r'[redacted]')"),
            (r"x == 'it\'s' && y == 'b'", "x == '[redacted]' && y == '[redacted]'"),
            ("x == '''a'b''' || y == \"a'b\"", "x == '[redacted]' || y == '[redacted]'"),
            ("x == 'é'", "x == '[redacted]'"),
            ("x == ''", "x == '[redacted]'"),
            ("x == 'open", "x == '[redacted]'"),
            ("1 < 2", "1 < 2"),
        ] {
            assert_eq!(expression(source), shown);
        }
    }
}
