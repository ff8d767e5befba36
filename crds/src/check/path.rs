//! Paths and path templates.

use std::collections::BTreeSet;

use super::note;
use crate::problems::{FieldPath, Problems};

/// A part of a template between slashes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Segment {
    /// These characters.
    Literal(String),
    /// `{name}`: one segment.
    One(String),
    /// `{*name}`: all segments that follow, at least one.
    Rest(String),
}

/// Reads a template such as `/v1/items/{id}` or `/files/{*path}`.
pub fn parse_template(template: &str) -> Result<Vec<Segment>, String> {
    let Some(rest) = template.strip_prefix('/') else {
        return Err("a template begins with /".to_owned());
    };
    let parts: Vec<&str> = rest.split('/').collect();
    let mut names = BTreeSet::new();
    let mut segments = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let segment = parse_segment(part)?;
        if let Segment::One(name) | Segment::Rest(name) = &segment
            && !names.insert(name.clone())
        {
            return Err(format!("{{{name}}} stands twice in the template: give each placeholder a name of its own"));
        }
        if matches!(segment, Segment::Rest(_)) && index + 1 < parts.len() {
            return Err(format!("{part} stands for all that follows, so nothing can come after it"));
        }
        segments.push(segment);
    }
    Ok(segments)
}

fn parse_segment(part: &str) -> Result<Segment, String> {
    if !part.contains(['{', '}']) {
        return Ok(Segment::Literal(part.to_owned()));
    }
    let inner = part.strip_prefix('{').and_then(|part| part.strip_suffix('}')).filter(|inner| !inner.contains(['{', '}']));
    let inner = inner
        .ok_or_else(|| format!("{part:?} is not a segment of a template: a placeholder such as {{id}} fills a whole one"))?;
    let (name, rest) = inner.strip_prefix('*').map_or((inner, false), |name| (name, true));
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.is_empty() || !name.bytes().all(legal) || name.as_bytes()[0].is_ascii_digit() {
        return Err(format!("{name:?} can't name a placeholder: use letters, digits and _, a letter first"));
    }
    Ok(if rest { Segment::Rest(name.to_owned()) } else { Segment::One(name.to_owned()) })
}

pub(crate) fn check_template(template: &str, at: &FieldPath, problems: &mut Problems) {
    check_path(template, at, problems);
    note(parse_template(template), at, problems);
}

/// Checks a path that is compared with what a request names before its query.
pub(crate) fn check_path(path: &str, at: &FieldPath, problems: &mut Problems) {
    let wrong =
        path.chars().find(|char| matches!(char, '?' | '#') || char.is_whitespace() || char.is_control() || !char.is_ascii());
    match wrong {
        Some('?') => problems.add(at, "a path has no query: write what follows the ? as conditions in `query`"),
        Some('#') => problems.add(at, "a path has no fragment: browsers never send what follows the #"),
        Some(wrong) => problems.add(at, format!("{wrong:?} can't stand in a path: write it percent-encoded")),
        None if has_odd_segments(path) => {
            problems.add(at, "no request ever has this path: empty segments, . and .. are resolved before rules are tried; write what they resolve to");
        }
        None => {}
    }
}

/// Whether there is an empty segment before the end, or one that stands for a folder above, also when percent-encoded.
fn has_odd_segments(path: &str) -> bool {
    let mut segments = path.split('/').skip(1).peekable();
    let mut odd = false;
    while let Some(segment) = segments.next() {
        let dots = segment.to_ascii_lowercase().replace("%2e", ".");
        odd |= dots == "." || dots == ".." || (segment.is_empty() && segments.peek().is_some());
    }
    odd
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn templates_are_read_by_segment() {
        use Segment::{Literal, One, Rest};
        let literal = |text: &str| Literal(text.to_owned());
        let cases = [
            ("/", vec![literal("")]),
            ("/v1/items/{id}", vec![literal("v1"), literal("items"), One("id".to_owned())]),
            ("/{a}/b/{*rest}", vec![One("a".to_owned()), literal("b"), Rest("rest".to_owned())]),
        ];
        for (template, segments) in cases {
            assert_eq!(parse_template(template), Ok(segments), "{template}");
        }
    }

    #[test]
    fn half_placeholders_are_refused() {
        for template in
            ["a", "/{id", "/id}", "/a{id}", "/{id}b", "/{}", "/{*}", "/{1a}", "/{a-b}", "/{a}/{a}", "/{*a}/b", "/{{a}}"]
        {
            assert!(parse_template(template).is_err(), "{template}");
        }
    }

    #[test]
    fn segments_that_are_resolved_before_rules_are_tried_are_odd() {
        for path in ["//", "/a//b", "/a/../b", "/.", "/a/%2E%2e", "//a", "/a//"] {
            assert!(has_odd_segments(path), "{path}");
        }
        for path in ["/", "/a", "/a/", "/a/b", "/.well-known/x", "/a/..b", "/...", "/{a}/{*rest}"] {
            assert!(!has_odd_segments(path), "{path}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(template in "[/{}*a-c1_-]{0,20}") {
            drop(parse_template(&template));
        }
    }
}
