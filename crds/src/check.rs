//! What no schema can say of a single value. Each function says what is wrong and what would be right.

mod address;
mod expression;
mod field;
mod known;
mod path;
mod pattern;
mod resources;

use std::time;

pub(crate) use address::{
    CIDR_PATTERN, ENDPOINT_PATTERN, HOST_PATTERN, UPSTREAM_PATTERN, check_address, check_cidrs, check_endpoint,
    check_host_pattern, check_host_patterns, check_upstream,
};
pub(crate) use field::{check_editable, check_field_name, check_field_value};
pub(crate) use known::Known;
pub(crate) use path::{check_path, check_template};
pub(crate) use resources::{QUANTITY_PATTERN, check_resources};
pub use {
    address::{UpstreamAddress, UpstreamScheme, parse_endpoint, parse_upstream},
    expression::{compile_expression, compile_value},
    path::{Segment, parse_template},
    pattern::compile_pattern,
};

use crate::{
    problems::{FieldPath, Problems},
    scalar::Duration,
};

/// Pattern of names within a document: rules, limits, listeners.
pub(crate) const NAME: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";

/// Pattern of the name of a header field (RFC 9110, section 5.6.2).
pub(crate) const FIELD_NAME: &str = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$";

/// Checks a regular expression that has to match a whole value.
pub(crate) fn check_pattern(pattern: &str, at: &FieldPath, problems: &mut Problems) {
    static KNOWN: Known = Known::new();
    note(KNOWN.check(pattern, |pattern| compile_pattern(pattern).map(drop)), at, problems);
}

/// Adds the error of a check as a problem at `at`.
pub(crate) fn note<T>(result: Result<T, String>, at: &FieldPath, problems: &mut Problems) {
    if let Err(message) = result {
        problems.add(at, message);
    }
}

/// A time limit of zero would fail every request.
pub(crate) fn check_not_zero(duration: Duration, at: &FieldPath, problems: &mut Problems) {
    if duration.0 == time::Duration::ZERO {
        problems.add(at, "must be more than 0s: no request could ever meet it");
    }
}

/// The longest time limit that makes sense here.
pub(crate) fn check_at_most(duration: Duration, most: Duration, at: &FieldPath, problems: &mut Problems) {
    if duration > most {
        problems.add(at, format!("{duration} is too long: write {most} or less"));
    }
}
