//! Patterns of paths, and the index that finds those of a path.

use std::{collections::HashMap, fmt};

use crds::{
    check::{Segment, compile_pattern, parse_template},
    policy::matches::{PathKind, PathMatch},
};
use regex_automata::{Input, MatchKind, PatternSet, meta};

use super::spelling::Spelling;

/// Memory that all path expressions of one table may take when compiled, in bytes.
const REGEX_SIZE: usize = 8 << 20;

/// A path condition, compiled.
#[derive(Clone, Debug)]
pub(super) enum Pattern {
    /// Any path.
    Any,
    /// This path.
    Exact(Box<str>),
    /// This path and what lies below; without its last slash.
    Prefix(Box<str>),
    /// Segments.
    Template(Template),
    /// The source of an expression for the whole path.
    Regex { source: Box<str>, regex: meta::Regex },
}

impl Pattern {
    pub(super) fn build(path: Option<&PathMatch>, spelling: &Spelling) -> Result<Self, String> {
        let Some(PathMatch { kind, value }) = path else { return Ok(Self::Any) };
        if *kind == PathKind::Regex {
            return Ok(Self::Regex { source: value.as_str().into(), regex: compile_pattern(value)? });
        }
        if !value.starts_with('/') {
            return Err(format!("path {value:?} does not start with a slash"));
        }
        Ok(match kind {
            PathKind::Exact => Self::Exact(spelling.normal(value).into()),
            PathKind::Template => Self::Template(Template::parse(&spelling.normal(value))?),
            _ => match spelling.normal(value).trim_end_matches('/') {
                "" => Self::Any,
                prefix => Self::Prefix(prefix.into()),
            },
        })
    }

    /// Whether this one pattern matches, without the index.
    pub(super) fn matches(&self, path: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => **exact == *path,
            Self::Prefix(prefix) => path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            Self::Template(template) => template.matches(path),
            Self::Regex { regex, .. } => regex.is_match(path),
        }
    }
}

/// A path of segments of which some stand for any.
#[derive(Clone, Debug)]
pub(super) struct Template {
    source: Box<str>,
    segments: Box<[Segment]>,
}

impl Template {
    fn parse(value: &str) -> Result<Self, String> {
        Ok(Self { source: value.into(), segments: parse_template(value)?.into() })
    }

    fn matches(&self, path: &str) -> bool {
        let Some(mut rest) = path.strip_prefix('/') else { return false };
        let last = self.segments.len() - 1;
        for (at, segment) in self.segments.iter().enumerate() {
            let (head, tail) = match rest.split_once('/') {
                Some((head, tail)) => (head, Some(tail)),
                None => (rest, None),
            };
            let fits = match segment {
                Segment::Literal(literal) => literal == head,
                Segment::One(_) => !head.is_empty(),
                Segment::Rest(_) => return !rest.is_empty(),
            };
            match tail {
                _ if !fits => return false,
                Some(tail) if at < last => rest = tail,
                None if at == last => return true,
                _ => return false,
            }
        }
        false
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

/// Finds all patterns of a table that match a path: hash look-ups, and one pass for all expressions.
#[derive(Debug)]
pub(super) struct Index {
    any: Vec<u32>,
    exact: HashMap<Box<str>, Vec<u32>>,
    prefixes: HashMap<Box<str>, Vec<u32>>,
    /// Segments of the deepest prefix: no deeper one is looked up.
    depth: usize,
    templates: Vec<(Template, u32)>,
    regexes: Regexes,
}

/// Expressions of a table.
#[derive(Debug)]
enum Regexes {
    None,
    /// All in one, which takes one pass.
    Joint(meta::Regex, Vec<u32>),
    /// One after the other: together they would be too large.
    Apart(Vec<(meta::Regex, u32)>),
}

impl Regexes {
    /// `size` bounds the memory of the joint one, in bytes.
    fn build(all: Vec<(&str, &meta::Regex, u32)>, size: usize) -> Self {
        if all.is_empty() {
            return Self::None;
        }
        let sources: Vec<_> = all.iter().map(|(source, ..)| format!("^(?:{source})$")).collect();
        let config = meta::Config::new().nfa_size_limit(Some(size)).match_kind(MatchKind::All);
        match meta::Regex::builder().configure(config).build_many(&sources) {
            Ok(joint) => Self::Joint(joint, all.into_iter().map(|(.., id)| id).collect()),
            Err(_) => Self::Apart(all.into_iter().map(|(_, regex, id)| (regex.clone(), id)).collect()),
        }
    }

    fn find(&self, path: &str, mut found: impl FnMut(u32)) {
        match self {
            Self::None => {}
            Self::Joint(regex, ids) => {
                let mut matching = PatternSet::new(ids.len());
                regex.which_overlapping_matches(&Input::new(path), &mut matching);
                matching.iter().for_each(|pattern| found(ids[pattern.as_usize()]));
            }
            Self::Apart(all) => all.iter().filter(|(regex, _)| regex.is_match(path)).for_each(|(_, id)| found(*id)),
        }
    }
}

impl Index {
    /// Indexes patterns by their place in the list.
    pub(super) fn build<'a>(patterns: impl Iterator<Item = &'a Pattern>) -> Self {
        let mut index = Self {
            any: Vec::new(),
            exact: HashMap::new(),
            prefixes: HashMap::new(),
            depth: 0,
            templates: Vec::new(),
            regexes: Regexes::None,
        };
        let mut regexes = Vec::new();
        for (id, pattern) in (0_u32..).zip(patterns) {
            match pattern {
                Pattern::Any => index.any.push(id),
                Pattern::Exact(path) => index.exact.entry(path.clone()).or_default().push(id),
                Pattern::Prefix(path) => {
                    index.depth = index.depth.max(path.bytes().filter(|byte| *byte == b'/').count());
                    index.prefixes.entry(path.clone()).or_default().push(id);
                }
                Pattern::Template(template) => index.templates.push((template.clone(), id)),
                Pattern::Regex { source, regex } => regexes.push((&**source, regex, id)),
            }
        }
        index.regexes = Regexes::build(regexes, REGEX_SIZE);
        index
    }

    /// Calls `found` for each pattern that matches, in no order.
    pub(super) fn find(&self, path: &str, mut found: impl FnMut(u32)) {
        let mut all = |ids: &[u32]| ids.iter().copied().for_each(&mut found);
        all(&self.any);
        if let Some(ids) = self.exact.get(path) {
            all(ids);
        }
        if self.depth > 0 {
            let ends = path.bytes().enumerate().skip(1).filter(|(_, byte)| *byte == b'/').map(|(at, _)| at);
            for end in ends.chain([path.len()]).take(self.depth) {
                if let Some(ids) = self.prefixes.get(&path[..end]) {
                    all(ids);
                }
            }
        }
        for (template, id) in &self.templates {
            if template.matches(path) {
                all(&[*id]);
            }
        }
        self.regexes.find(path, found);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(kind: PathKind, value: &str) -> Pattern {
        Pattern::build(Some(&PathMatch { kind, value: value.to_owned() }), &Spelling::default()).unwrap()
    }

    #[test]
    fn prefix_takes_whole_segments() {
        let prefix = pattern(PathKind::Prefix, "/a/");
        for (path, matches) in [("/a", true), ("/a/", true), ("/a/b", true), ("/ab", false), ("/", false), ("*", false)] {
            assert_eq!(prefix.matches(path), matches, "{path}");
        }
        assert!(pattern(PathKind::Prefix, "/").matches("*"));
    }

    #[test]
    fn placeholder_takes_one_segment_and_the_last_may_take_all() {
        let items = pattern(PathKind::Template, "/v1/items/{id}");
        for (path, matches) in [
            ("/v1/items/7", true),
            ("/v1/items/", false),
            ("/v1/items", false),
            ("/v1/items/7/", false),
            ("/v1/items/7/x", false),
            ("/v2/items/7", false),
        ] {
            assert_eq!(items.matches(path), matches, "{path}");
        }
        let files = pattern(PathKind::Template, "/files/{*rest}");
        for (path, matches) in [("/files/a", true), ("/files/a/b", true), ("/files/", false), ("/files", false)] {
            assert_eq!(files.matches(path), matches, "{path}");
        }
    }

    #[test]
    fn expression_matches_the_whole_path() {
        let regex = pattern(PathKind::Regex, "/a|/b");
        assert!(regex.matches("/a") && regex.matches("/b"));
        assert!(!regex.matches("/ax") && !regex.matches("x/b"));
    }

    #[test]
    fn patterns_that_cannot_be_are_refused() {
        for (kind, value) in [
            (PathKind::Exact, "a"),
            (PathKind::Template, "/a/{*b}/c"),
            (PathKind::Template, "/a/x{b}"),
            (PathKind::Regex, "("),
            (PathKind::Regex, r"(\w{1000}){1000}"),
        ] {
            assert!(Pattern::build(Some(&PathMatch { kind, value: value.to_owned() }), &Spelling::default()).is_err(), "{value}");
        }
    }

    #[test]
    fn expressions_too_large_together_still_match() {
        let sources = ["/a.*", "/b.*", "/.*z"];
        let regexes: Vec<_> = sources.iter().map(|source| compile_pattern(source).unwrap()).collect();
        let all = || sources.into_iter().zip(&regexes).zip(0..).map(|((source, regex), id)| (source, regex, id)).collect();
        let (joint, apart) = (Regexes::build(all(), REGEX_SIZE), Regexes::build(all(), 100));
        assert!(matches!(joint, Regexes::Joint(..)) && matches!(apart, Regexes::Apart(_)));
        for (path, expected) in [("/az", vec![0, 2]), ("/b", vec![1]), ("/c", vec![])] {
            for regexes in [&joint, &apart] {
                let mut found = Vec::new();
                regexes.find(path, |id| found.push(id));
                assert_eq!(found, expected, "{path}");
            }
        }
    }

    fn segments() -> impl Strategy<Value = String> {
        proptest::collection::vec(prop::sample::select(vec!["a", "b", "", ".", "..", "%61", "%2f"]), 0..5)
            .prop_map(|segments| format!("/{}", segments.join("/")))
    }

    fn any_pattern() -> impl Strategy<Value = Pattern> {
        let template =
            prop::sample::select(vec!["/a", "/{x}", "/{x}/b", "/a/{x}", "/a/b/{x}", "/{x}/{y}", "/a/{*x}", "/{x}/{*y}"]);
        prop_oneof![
            segments().prop_map(|value| pattern(PathKind::Exact, &value)),
            segments().prop_map(|value| pattern(PathKind::Prefix, &value)),
            template.prop_map(|value| pattern(PathKind::Template, value)),
            prop::sample::select(vec!["/a.*", "/[ab]/b", ".*"]).prop_map(|value| pattern(PathKind::Regex, value)),
        ]
    }

    proptest! {
        #[test]
        fn index_finds_what_each_pattern_matches(patterns in proptest::collection::vec(any_pattern(), 0..12), path in segments()) {
            let path = Spelling::default().normal(&path);
            let mut found = Vec::new();
            Index::build(patterns.iter()).find(&path, |id| found.push(id as usize));
            found.sort_unstable();
            let expected: Vec<_> = (0..patterns.len()).filter(|&id| patterns[id].matches(&path)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
