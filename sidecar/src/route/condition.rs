//! What a match asks of a request beside its path, compiled.

use std::borrow::Cow;

use crds::{
    check::compile_pattern,
    policy::{
        Match,
        matches::{ValueKind, ValueMatch},
    },
};
use http::{HeaderMap, HeaderName, Method};
use regex_automata::meta;

use super::{cel, spelling::triplet};
use crate::facts::Facts;

/// All conditions of a match but the path.
#[derive(Debug)]
pub(super) struct Conditions {
    hosts: Vec<HostPattern>,
    methods: Option<Methods>,
    headers: Vec<(HeaderName, Test)>,
    query: Vec<(Box<str>, Test)>,
    cel: Option<cel::Condition>,
}

/// The first condition that a request does not meet.
#[derive(Debug)]
pub(super) enum Miss {
    Host,
    Method,
    /// The n-th header condition.
    Header(usize),
    /// The n-th query condition.
    Query(usize),
    Cel,
    CelError(String),
}

impl Conditions {
    pub(super) fn build(one: &Match) -> Result<Self, String> {
        let header = |value: &ValueMatch| {
            let name = HeaderName::from_bytes(value.name.as_bytes()).map_err(|_| format!("{:?} is no field name", value.name))?;
            Ok::<_, String>((name, Test::build(value)?))
        };
        let parameter = |value: &ValueMatch| Ok::<_, String>((value.name.as_str().into(), Test::build(value)?));
        Ok(Self {
            hosts: one.hosts.iter().map(|host| HostPattern::new(host)).collect(),
            methods: Methods::build(&one.methods)?,
            headers: one.headers.iter().map(header).collect::<Result<_, _>>()?,
            query: one.query.iter().map(parameter).collect::<Result<_, _>>()?,
            cel: one.cel.as_deref().map(cel::Condition::compile).transpose()?,
        })
    }

    /// Checks the cheap ones first; an expression only when all else holds.
    pub(super) fn check(&self, facts: &Facts<'_>, request: &cel::Request<'_>) -> Result<(), Miss> {
        if !self.hosts.is_empty() && !self.hosts.iter().any(|host| host.matches(facts.host)) {
            return Err(Miss::Host);
        }
        if self.methods.as_ref().is_some_and(|methods| !methods.contains(facts.method)) {
            return Err(Miss::Method);
        }
        if let Some(missed) = self.headers.iter().position(|(name, test)| !test.field(facts.headers, name)) {
            return Err(Miss::Header(missed));
        }
        if let Some(missed) = self.query.iter().position(|(name, test)| !test.parameter(facts.query, name)) {
            return Err(Miss::Query(missed));
        }
        match self.cel.as_ref().map(|condition| condition.evaluate(request)) {
            None | Some(Ok(true)) => Ok(()),
            Some(Ok(false)) => Err(Miss::Cel),
            Some(Err(error)) => Err(Miss::CelError(error)),
        }
    }

    pub(super) fn cel_source(&self) -> &str {
        self.cel.as_ref().map(cel::Condition::source).unwrap_or_default()
    }
}

/// A host, or all hosts below one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum HostPattern {
    /// This host.
    Exact(Box<str>),
    /// One label or more before this suffix, which starts with a dot.
    Below(Box<str>),
}

impl HostPattern {
    pub(super) fn new(pattern: &str) -> Self {
        let pattern = pattern.to_ascii_lowercase();
        let pattern = pattern.strip_suffix('.').unwrap_or(&pattern);
        match pattern.strip_prefix('*') {
            Some(suffix) if suffix.starts_with('.') => Self::Below(suffix.into()),
            _ => Self::Exact(pattern.into()),
        }
    }

    pub(super) fn matches(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        match self {
            Self::Exact(exact) => **exact == *host,
            Self::Below(suffix) => host.len() > suffix.len() && host.ends_with(&**suffix),
        }
    }
}

/// A set of methods: a bit for each that RFC 9110 and RFC 5789 define, a list for others.
#[derive(Debug)]
struct Methods {
    known: u16,
    others: Vec<Method>,
}

impl Methods {
    fn build(names: &[String]) -> Result<Option<Self>, String> {
        let mut methods = Self { known: 0, others: Vec::new() };
        for name in names {
            let method = Method::from_bytes(name.as_bytes()).map_err(|_| format!("{name:?} is no method"))?;
            match bit(&method) {
                0 => methods.others.push(method),
                known => methods.known |= known,
            }
        }
        Ok((!names.is_empty()).then_some(methods))
    }

    fn contains(&self, method: &Method) -> bool {
        match bit(method) {
            0 => self.others.contains(method),
            known => self.known & known != 0,
        }
    }
}

fn bit(method: &Method) -> u16 {
    match *method {
        Method::GET => 1,
        Method::HEAD => 1 << 1,
        Method::POST => 1 << 2,
        Method::PUT => 1 << 3,
        Method::DELETE => 1 << 4,
        Method::CONNECT => 1 << 5,
        Method::OPTIONS => 1 << 6,
        Method::TRACE => 1 << 7,
        Method::PATCH => 1 << 8,
        _ => 0,
    }
}

/// A condition on a value.
#[derive(Debug)]
enum Test {
    Exact(Box<str>),
    Regex(meta::Regex),
    Present,
    Absent,
}

impl Test {
    fn build(value: &ValueMatch) -> Result<Self, String> {
        let wanted = || value.value.as_deref().ok_or_else(|| format!("{:?} has no value to compare with", value.name));
        Ok(match value.kind {
            ValueKind::Exact => Self::Exact(wanted()?.into()),
            ValueKind::Regex => Self::Regex(compile_pattern(wanted()?)?),
            ValueKind::Present => Self::Present,
            ValueKind::Absent => Self::Absent,
        })
    }

    /// Of several lines of a field one that matches is enough.
    fn field(&self, headers: &HeaderMap, name: &HeaderName) -> bool {
        match self {
            Self::Exact(exact) => headers.get_all(name).iter().any(|line| line.as_bytes() == exact.as_bytes()),
            Self::Regex(regex) => headers.get_all(name).iter().any(|line| regex.is_match(line.as_bytes())),
            Self::Present => headers.contains_key(name),
            Self::Absent => !headers.contains_key(name),
        }
    }

    /// The first parameter of the name counts.
    fn parameter(&self, query: Option<&str>, name: &str) -> bool {
        let value = parameters(query.unwrap_or_default()).find(|(found, _)| found == name).map(|(_, value)| value);
        match self {
            Self::Exact(exact) => value.as_deref() == Some(&**exact),
            Self::Regex(regex) => value.is_some_and(|value| regex.is_match(value.as_bytes())),
            Self::Present => value.is_some(),
            Self::Absent => value.is_none(),
        }
    }
}

/// Names and values of a query, percent-decoded. A name without `=` has an empty value.
pub(super) fn parameters(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    query.split('&').filter(|part| !part.is_empty()).map(|part| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        (decode(name), decode(value))
    })
}

/// Percent-decodes; bytes that are not UTF-8 become the replacement character.
pub(crate) fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let mut rest = text.as_bytes();
    let mut out = Vec::with_capacity(rest.len());
    while let Some((first, tail)) = rest.split_first() {
        match triplet(rest) {
            Some(byte) => {
                out.push(byte);
                rest = &rest[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    Cow::Owned(String::from_utf8(out).unwrap_or_else(|wrong| String::from_utf8_lossy(wrong.as_bytes()).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcard_host_takes_one_label_or_more() {
        let below = HostPattern::new("*.Example.org");
        for (host, matches) in [
            ("a.example.org", true),
            ("a.b.example.org", true),
            ("a.example.org.", true),
            ("example.org", false),
            (".example.org", false),
            ("aexample.org", false),
        ] {
            assert_eq!(below.matches(host), matches, "{host}");
        }
        assert!(HostPattern::new("example.org").matches("example.org."));
    }

    #[test]
    fn parameters_are_decoded_after_they_are_split() {
        let found: Vec<_> = parameters("a=1%262&b&&c%3D=%zz&d=%C3%A4&e=%ff").collect();
        let expected = [("a", "1&2"), ("b", ""), ("c=", "%zz"), ("d", "ä"), ("e", "\u{fffd}")];
        assert_eq!(found, expected.map(|(name, value)| (Cow::Borrowed(name), Cow::Borrowed(value))));
    }
}
