//! Header fields: which names and values are legal, and which fields belong to the proxy alone.

use super::note;
use crate::problems::{FieldPath, Problems};

/// Fields of a connection, of message framing and of routing. An edit of one of them would break the exchange (RFC 9110, section
/// 7.6.1; RFC 9112, section 6).
const OWNED: &[&str] = &[
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Checks a field name: a token (RFC 9110, section 5.6.2).
pub(crate) fn check_field_name(name: &str, at: &FieldPath, problems: &mut Problems) {
    note(legal_name(name), at, problems);
}

/// Checks the name of a field that is to be edited.
pub(crate) fn check_editable(name: &str, at: &FieldPath, problems: &mut Problems) {
    check_field_name(name, at, problems);
    if OWNED.iter().any(|owned| owned.eq_ignore_ascii_case(name)) {
        problems
            .add(at, format!("{name} can't be edited: the proxy sets it itself, from the connection, the framing or the route"));
    }
}

/// Checks a field value: visible ASCII characters, with spaces and tabs between them (RFC 9110, section 5.5).
pub(crate) fn check_field_value(value: &str, at: &FieldPath, problems: &mut Problems) {
    note(legal_value(value), at, problems);
}

fn legal_name(name: &str) -> Result<(), String> {
    let legal = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    match name.bytes().find(|byte| !legal(byte)) {
        Some(wrong) => {
            Err(format!("{:?} can't stand in the name of a header field: use letters, digits and hyphens", char::from(wrong)))
        }
        None => Ok(()),
    }
}

fn legal_value(value: &str) -> Result<(), String> {
    if let Some(wrong) = value.chars().find(|char| !matches!(char, '\t' | ' '..='~')) {
        return Err(format!("{wrong:?} can't stand in the value of a header field: use visible ASCII characters and spaces"));
    }
    if value.trim() != value {
        return Err("a header field can't begin or end with white space: remove it".to_owned());
    }
    Ok(())
}
