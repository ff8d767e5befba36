//! What makes two requests the same for the cache.
//!
//! The key holds all that the origin's answer may depend on and that is not in its `Vary`: the target as the origin gets it, and the
//! fields by which an application can be told of another target than the request line names. What a policy leaves out of it is the
//! policy's say.

use std::{borrow::Cow, sync::Arc};

use crds::policy::cache::{CacheKey, KeyHost, KeyQuery, QueryOrder};
use http::{HeaderMap, HeaderName, header};
use smallvec::SmallVec;

use super::purge::host;
use crate::{facts::Facts, fields, route::decode};

mod forms;
mod spelling;

pub(crate) use forms::forms;
use spelling::{quoted_pieces, read_as};

/// Fields that some applications take the target, the host or the method from. Whoever sends one gets answers that only its like gets,
/// so that nobody can have an answer of its making stored for others. Sorted.
const TELLING: [&str; 21] = [
    "front-end-https",
    "x-forwarded-host",
    "x-forwarded-path",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-proto",
    "x-forwarded-scheme",
    "x-forwarded-server",
    "x-forwarded-ssl",
    "x-forwarded-uri",
    "x-host",
    "x-http-host-override",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-host",
    "x-original-uri",
    "x-original-url",
    "x-rewrite-url",
    "x-scheme",
    "x-url-scheme",
];

/// Stands where a field of [`TELLING`] has its place in that list.
const FORWARDED: u8 = 255;

/// Which parts of requests make the key, compiled from a policy.
#[derive(Debug)]
pub(crate) struct KeyPlan {
    /// Of whose rule the answers are: rules that make keys in different ways share none.
    rule: Arc<str>,
    host: KeyHost,
    query: Query,
    order: QueryOrder,
    headers: Vec<HeaderName>,
    cookies: Vec<Box<[u8]>>,
}

#[derive(Debug)]
enum Query {
    All,
    Only(Vec<Pattern>),
    Without(Vec<Pattern>),
}

/// A name, or the beginning of names.
#[derive(Debug)]
struct Pattern {
    text: Box<str>,
    /// The same in the form of [`read_as`].
    read: Box<str>,
    begins: bool,
}

impl KeyPlan {
    /// Compiles a section. The error says what is wrong.
    pub(crate) fn build(rule: &Arc<str>, section: &CacheKey) -> Result<Self, String> {
        let name = |name: &String| HeaderName::try_from(name).map_err(|_| format!("{name:?} is not the name of a header field"));
        let mut headers = section.headers.iter().map(name).collect::<Result<Vec<_>, _>>()?;
        headers.retain(|name| telling(name).is_none());
        let cookies = section.cookies.iter().map(|name| name.as_bytes().into()).collect();
        let KeyQuery { allow, ignore, order } = &section.query;
        let patterns = |names: &Vec<String>| names.iter().map(|name| Pattern::build(name)).collect();
        let query = match (allow, ignore) {
            (Some(names), _) => Query::Only(patterns(names)),
            (None, Some(names)) => Query::Without(patterns(names)),
            (None, None) => Query::All,
        };
        Ok(Self { rule: Arc::clone(rule), host: section.host, query, order: *order, headers, cookies })
    }

    /// Writes the key of a request behind what is in `out`. Each part has a length before it or an end that can't stand in it, so no two
    /// different lists of parts look the same.
    pub(crate) fn write(&self, facts: &Facts<'_>, authority: &str, out: &mut Vec<u8>) {
        text(out, self.rule.as_bytes());
        match self.host {
            KeyHost::Include => {
                text(out, facts.scheme.as_bytes());
                // With its port, for what is on another port is another origin, and in its letters, for the origin gets these: it may take
                // `A.example` for no site of its own, and what it answers then is not for those who ask for `a.example`.
                text(out, authority.as_bytes());
            }
            KeyHost::Ignore => text(out, b""),
        }
        text(out, facts.path.as_bytes());
        self.write_query(facts.query, out);
        for name in &self.headers {
            values(out, facts.headers, name);
        }
        for name in &self.cookies {
            cookie(out, facts.headers, name);
        }
        tellings(out, facts.headers);
    }

    /// The parts of a key that it has written, by name and in their order. None: the request hadn't it.
    pub(super) fn parts(&self, key: &[u8]) -> Vec<(String, Option<String>)> {
        let mut from = Reader(key);
        let Target { rule, scheme, authority, path, query, .. } = Target::read(&mut from);
        let part = |name: &str, value: Cow<'_, str>| (name.to_owned(), Some(value.into_owned()));
        let mut parts = vec![part("rule", rule)];
        if !scheme.is_empty() {
            parts.extend([part("scheme", scheme), part("host", authority)]);
        }
        parts.push(part("path", path));
        parts.extend(query.map(|query| part("query", query)));
        parts.extend(self.headers.iter().map(|name| (format!("header {name}"), from.values())));
        parts.extend(self.cookies.iter().map(|name| {
            let values: Vec<_> = std::iter::from_fn(|| (from.byte() == 1).then(|| from.text())).collect();
            (format!("cookie {}", String::from_utf8_lossy(name)), (!values.is_empty()).then(|| values.join("; ")))
        }));
        let telling = TELLING;
        while let Some(name) = from.0.first().and_then(|number| telling.get(usize::from(*number))) {
            from.byte();
            parts.push((format!("header {name}"), from.values()));
        }
        parts
    }

    fn write_query(&self, query: Option<&str>, out: &mut Vec<u8>) {
        let Some(query) = self.counted(query) else { return out.push(0) };
        out.push(1);
        text(out, query.as_bytes());
    }

    /// The part of a query that counts. None if nothing of it does: `/?utm_source=x` is `/` where that is ignored.
    fn counted<'a>(&self, query: Option<&'a str>) -> Option<Cow<'a, str>> {
        let query = query?;
        if matches!(self.query, Query::All) && self.order == QueryOrder::Keep {
            return Some(query.into());
        }
        let mut counted: Vec<&str> = query.split('&').filter(|parameter| self.query.counts(parameter)).collect();
        // Of parameters that some application reads as one, the order says which counts; so it stays.
        if self.order == QueryOrder::Sort && !query.contains(';') {
            counted.sort_by_cached_key(|parameter| read_as(name_of(parameter)));
        }
        (!counted.is_empty()).then(|| counted.join("&").into())
    }
}

impl Query {
    /// Whether a parameter is part of the key.
    fn counts(&self, parameter: &str) -> bool {
        let named = |patterns: &[Pattern], name: &str| patterns.iter().any(|pattern| pattern.matches(name));
        let name = name_of(parameter);
        match self {
            Self::All => true,
            // Some applications split at `;` too: to them `ignored=1;page=2` holds a parameter that counts.
            _ if parameter.contains(';') => true,
            // What an application may read as one of these counts too.
            Self::Only(patterns) => named(patterns, &decode(name)) || patterns.iter().any(|pattern| pattern.may_be(name)),
            Self::Without(patterns) => !named(patterns, &decode(name)),
        }
    }
}

impl Pattern {
    fn build(name: &str) -> Self {
        let begins = name.ends_with('*');
        let text = name.strip_suffix('*').unwrap_or(name);
        Self { text: text.into(), read: read_as(text).into(), begins }
    }

    fn matches(&self, name: &str) -> bool {
        if self.begins { name.starts_with(&*self.text) } else { name == &*self.text }
    }

    /// Whether some application reads a parameter, whose name is spelled so, as one that matches.
    fn may_be(&self, name: &str) -> bool {
        let name = read_as(name);
        if self.begins { name.starts_with(&*self.read) } else { name == *self.read }
    }
}

fn name_of(parameter: &str) -> &str {
    parameter.split_once('=').map_or(parameter, |(name, _)| name)
}

/// The URL of which a key is, without its scheme: `shop.example/products?page=1`, with the part of the query that counts. Without the host
/// if the key has none. Behind the mode of its rule's section.
pub(super) fn url(key: &[u8]) -> String {
    Target::of(key).located()
}

/// The part of a key that says for which target it is: what is of its rule comes before it, and fields and cookies behind it. Of what is no
/// key, all.
pub(super) fn target(key: &[u8]) -> &[u8] {
    let behind_text = |rest: &'_ [u8]| -> Option<usize> {
        let length = u32::from_be_bytes(*rest.first_chunk()?) as usize;
        (rest.len() >= 4 + length).then_some(4 + length)
    };
    let cut = || {
        let from = 1 + behind_text(key.get(1..)?)?;
        let mut to = from + behind_text(&key[from..])?;
        if to > from + 4 {
            to += behind_text(&key[to..])?; // the host, which only a key with a scheme has
        }
        to += behind_text(&key[to..])?;
        if *key.get(to)? == 1 { Some(from..to + 1 + behind_text(&key[to + 1..])?) } else { Some(from..to + 1) }
    };
    cut().map_or(key, |range| &key[range])
}

/// What a key begins with.
#[derive(Debug)]
pub(super) struct Target<'a> {
    /// Whether it is what mode Shadow keeps.
    pub(super) shadow: bool,
    /// `namespace/policy/rule`.
    pub(super) rule: Cow<'a, str>,
    /// Empty if the key leaves the host out.
    pub(super) scheme: Cow<'a, str>,
    /// Host and port, as they came; empty without a scheme.
    pub(super) authority: Cow<'a, str>,
    pub(super) path: Cow<'a, str>,
    /// The part of it that counts.
    pub(super) query: Option<Cow<'a, str>>,
}

impl<'a> Target<'a> {
    /// Of a key behind the mode of its rule's section. What is no key gives empty texts.
    pub(super) fn of(key: &'a [u8]) -> Self {
        Self::read(&mut Reader(key))
    }

    fn read(from: &mut Reader<'a>) -> Self {
        let shadow = from.byte() == 1;
        let (rule, scheme) = (from.text(), from.text());
        let authority = if scheme.is_empty() { Cow::default() } else { from.text() };
        let path = from.text();
        let query = (from.byte() == 1).then(|| from.text());
        Self { shadow, rule, scheme, authority, path, query }
    }

    /// As purges name it: without the scheme, and without a port that the scheme has anyway.
    pub(super) fn located(&self) -> String {
        let mut url = String::new();
        if !self.scheme.is_empty() {
            url.push_str(&host(&self.scheme, &self.authority));
        }
        url.push_str(&self.path);
        if let Some(query) = &self.query {
            url.push('?');
            url.push_str(query);
        }
        url
    }

    /// With its scheme, unless the key has no host.
    pub(super) fn url(&self) -> String {
        if self.scheme.is_empty() { self.located() } else { format!("{}://{}", self.scheme, self.located()) }
    }
}

/// Takes a key apart from its beginning. Behind its end stand zeros and empty texts.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The lines of a field; none if there are none.
    fn values(&mut self) -> Option<String> {
        let count = u16::from_be_bytes([self.byte(), self.byte()]);
        let lines: Vec<_> = (0..count).map(|_| self.text()).collect();
        (count > 0).then(|| lines.join(", "))
    }

    fn byte(&mut self) -> u8 {
        let (byte, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *byte
    }

    fn text(&mut self) -> Cow<'a, str> {
        let (length, behind) = self.0.split_first_chunk().unwrap_or((&[0; 4], &[]));
        let (text, rest) = behind.split_at_checked(u32::from_be_bytes(*length) as usize).unwrap_or_default();
        self.0 = rest;
        String::from_utf8_lossy(text)
    }
}

fn text(out: &mut Vec<u8>, text: &[u8]) {
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(text);
}

/// All lines of a field; one that is absent is not the same as one that is empty.
fn values(out: &mut Vec<u8>, headers: &HeaderMap, name: &HeaderName) {
    let lines = headers.get_all(name);
    out.extend_from_slice(&u16::try_from(lines.iter().count()).unwrap_or(u16::MAX).to_be_bytes());
    lines.iter().for_each(|line| text(out, line.as_bytes()));
}

/// The place of a field in [`TELLING`].
fn telling(name: &HeaderName) -> Option<u8> {
    let name = name.as_str();
    let place = if name.starts_with(['x', 'f']) { TELLING.binary_search(&name).ok() } else { None };
    place.and_then(|place| u8::try_from(place).ok())
}

/// The fields that tell of another target, and what `Forwarded` tells of it: who the client is says nothing of the target.
fn tellings(out: &mut Vec<u8>, headers: &HeaderMap) {
    let mut found: SmallVec<[(u8, &HeaderName); 4]> =
        headers.keys().filter_map(|name| telling(name).map(|place| (place, name))).collect();
    found.sort_unstable_by_key(|(place, _)| *place);
    for (place, name) in found {
        out.push(place);
        values(out, headers, name);
    }
    for line in headers.get_all(header::FORWARDED) {
        let is_of_client = |piece: &[u8]| {
            let name = piece.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
            piece.is_empty() || name.eq_ignore_ascii_case(b"for") || name.eq_ignore_ascii_case(b"by")
        };
        for piece in quoted_pieces(line.as_bytes()).map(<[u8]>::trim_ascii).filter(|piece| !is_of_client(piece)) {
            out.push(FORWARDED);
            text(out, piece);
        }
    }
}

fn cookie(out: &mut Vec<u8>, headers: &HeaderMap, name: &[u8]) {
    for value in fields::cookies(headers, name) {
        out.push(1);
        text(out, value);
    }
    out.push(0);
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn plan(section: &str) -> KeyPlan {
        let section: CacheKey = serde_json::from_str(section).unwrap();
        KeyPlan::build(&Arc::from("shop/catalogue/products"), &section).unwrap()
    }

    fn key(plan: &KeyPlan, target: &str, headers: &[(&str, &str)]) -> Vec<u8> {
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect();
        let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let facts = Facts {
            method: &Method::GET,
            scheme: "http",
            host: "a.example",
            path,
            query,
            headers: &headers,
            client: [192, 0, 2, 1].into(),
        };
        let mut out = Vec::new();
        plan.write(&facts, "A.example:8080", &mut out);
        out
    }

    fn same(section: &str, one: &str, other: &str) -> bool {
        let plan = plan(section);
        key(&plan, one, &[]) == key(&plan, other, &[])
    }

    #[test]
    fn target_counts_as_it_is() {
        for (one, other) in
            [("/a", "/b"), ("/a", "/A"), ("/a", "/a?"), ("/a?", "/a?b"), ("/a?b=1&c=2", "/a?c=2&b=1"), ("/a%2fb", "/a/b")]
        {
            assert!(!same("{}", one, other), "{one} {other}");
        }
    }

    #[test]
    fn query_counts_as_the_policy_says() {
        let ignore = r#"{"query": {"ignore": ["utm_*", "ref"]}}"#;
        let only = r#"{"query": {"allow": ["page"]}}"#;
        let sort = r#"{"query": {"order": "Sort"}}"#;
        for (section, one, other, expected) in [
            (ignore, "/?a=1&utm_source=x", "/?a=1", true),
            (ignore, "/?utm_source=x&a=1&ref=", "/?a=1&ref", true),
            (ignore, "/?ut%6d_source=x&a=1", "/?a=1", true),
            (ignore, "/?utm_source=x", "/", true),
            (ignore, "/?", "/", false),
            (ignore, "/?reference=x", "/?", false),
            (ignore, "/?REF=x", "/?", false),
            (only, "/?page=1&x=y", "/?page=1", true),
            (only, "/?page=1", "/?page=2", false),
            (sort, "/?b=1&a=2", "/?a=2&b=1", true),
            (sort, "/?a=1&a=2", "/?a=2&a=1", false),
            (sort, "/?b=1&a[]=2&a[]=3", "/?a[]=2&a[]=3&b=1", true),
        ] {
            assert_eq!(same(section, one, other), expected, "{section}: {one} {other}");
        }
    }

    #[test]
    fn parameter_cloaking_gets_a_key_of_its_own() {
        let ignore = r#"{"query": {"ignore": ["utm_*"]}}"#;
        assert!(!same(ignore, "/?page=1&utm_content=1;page=evil", "/?page=1"));
        assert!(!same(r#"{"query": {"allow": ["page"]}}"#, "/?page=1&x=1;page=evil", "/?page=1"));
    }

    #[test]
    fn parameter_that_some_application_reads_as_another_counts_like_it() {
        let allow = r#"{"query": {"allow": ["user_id", "f*"]}}"#;
        for spelled in [
            "user.id",
            "user%2eid",
            "user+id",
            "user%20id",
            "%20user_id",
            "USER_ID",
            "user_id[]",
            "user_id[a]",
            "F_1",
            "user[id",
            "user_id%00x",
        ] {
            assert!(!same(allow, &format!("/?{spelled}=evil"), "/?"), "{spelled}");
        }
        assert!(same(allow, "/?user=1&id=2", "/"));
        let sort = r#"{"query": {"order": "Sort"}}"#;
        for (one, other) in [
            ("/?page=1&p%61ge=2", "/?p%61ge=2&page=1"),
            ("/?page=1&PAGE=2", "/?PAGE=2&page=1"),
            ("/?a.b=1&a_b=2", "/?a_b=2&a.b=1"),
            ("/?a=1&a[]=2", "/?a[]=2&a=1"),
            ("/?b=1;a=2&a=3", "/?a=3&b=1;a=2"),
        ] {
            assert!(!same(sort, one, other), "{one} {other}");
        }
    }

    #[test]
    fn target_is_the_same_whatever_counts_beside_it() {
        let (shop, plain) = (plan(r#"{"headers": ["accept"], "cookies": ["a"]}"#), plan("{}"));
        let of = |plan: &KeyPlan, url: &str, headers: &[(&str, &str)]| {
            let key = [&[0][..], &key(plan, url, headers)].concat();
            target(&key).to_vec()
        };
        let (bare, told) = (of(&plain, "/a?b=c", &[]), of(&shop, "/a?b=c", &[("accept", "x"), ("cookie", "a=1")]));
        assert_eq!(bare, told);
        for other in ["/a?b=d", "/a", "/ab=c", "/a?"] {
            assert_ne!(of(&plain, other, &[]), bare, "{other}");
        }
        let hostless = plan(r#"{"host": "Ignore"}"#);
        assert_eq!(of(&hostless, "/a", &[("x-host", "evil")]), of(&hostless, "/a", &[]));
        for foreign in [&b""[..], b"key", &[0, 0, 0, 0, 9]] {
            assert_eq!(target(foreign), foreign);
        }
    }

    #[test]
    fn fields_and_cookies_count_as_the_policy_says() {
        let plan = plan(r#"{"headers": ["X-Tenant"], "cookies": ["currency"]}"#);
        let of = |headers: &[(&str, &str)]| key(&plan, "/", headers);
        assert_eq!(of(&[("cookie", "a=1; currency=EUR")]), of(&[("cookie", "currency=EUR;b=2")]));
        assert_eq!(of(&[("cookie", "currency = EUR")]), of(&[("cookie", "currency=EUR")]));
        for (one, other) in [
            (&[("x-tenant", "a")][..], &[("x-tenant", "b")][..]),
            (&[("x-tenant", "")], &[]),
            (&[("x-tenant", "a, b")], &[("x-tenant", "a"), ("x-tenant", "b")]),
            (&[("cookie", "currency=EUR")], &[("cookie", "currency=USD")]),
            (&[("cookie", "currency=EUR")], &[]),
        ] {
            assert_ne!(of(one), of(other), "{one:?} {other:?}");
        }
        assert_eq!(of(&[("x-other", "a")]), of(&[]));
    }

    #[test]
    fn who_tells_of_another_target_gets_a_key_of_its_own() {
        let plan = plan(r#"{"host": "Ignore"}"#);
        for name in TELLING {
            assert_ne!(key(&plan, "/", &[(name, "evil.example")]), key(&plan, "/", &[]), "{name}");
        }
        assert!(TELLING.is_sorted());
        let both = [("x-host", "a"), ("x-original-url", "b")];
        assert_eq!(key(&plan, "/", &both), key(&plan, "/", &[both[1], both[0]]), "in any order");
    }

    #[test]
    fn forwarded_counts_where_it_tells_of_the_target() {
        let plan = plan("{}");
        let of = |value: &str| key(&plan, "/", &[("forwarded", value)]);
        for client in ["for=192.0.2.1", "For=\"[2001:db8::1]:4711\";by=x", "for=1, for=2", "for=\"a;host=b\""] {
            assert_eq!(of(client), key(&plan, "/", &[]), "{client}");
        }
        for target in ["host=evil.example", "for=1;Host=\"evil\"", "for=1, proto=https", "for=\"1", "nonsense"] {
            let counts = of(target) != key(&plan, "/", &[]);
            assert_eq!(counts, target != "for=\"1", "{target}");
        }
        assert_ne!(of("host=\"a;for=b\""), of("host=\"a;for=c\""));
    }

    #[test]
    fn urls_are_read_from_keys() {
        for (section, target, expected) in [
            ("{}", "/a", "a.example:8080/a"),
            ("{}", "/a?b=1&utm_x=2", "a.example:8080/a?b=1&utm_x=2"),
            (
                r#"{"query": {"ignore": ["utm_*"], "order": "Sort"}, "headers": ["x-a"]}"#,
                "/a?c&utm_x=2&b",
                "a.example:8080/a?b&c",
            ),
            (r#"{"host": "Ignore"}"#, "/a?b", "/a?b"),
        ] {
            let mut whole = vec![0];
            whole.extend(key(&plan(section), target, &[]));
            assert_eq!(url(&whole), expected);
        }
        assert_eq!(url(&[]), "");
        assert_eq!(url(&[0, 255, 255, 255, 255, 1]), "");
    }

    #[test]
    fn parts_of_a_key_have_names() {
        let plan = plan(r#"{"headers": ["x-a", "x-b"], "cookies": ["c", "d"], "query": {"ignore": ["utm_*"]}}"#);
        let headers = [("x-a", "1"), ("x-a", "2"), ("cookie", "d=3; d=4"), ("x-host", "evil")];
        let mut whole = vec![0];
        whole.extend(key(&plan, "/p?q=1&utm_x=2", &headers));
        let parts = plan.parts(&whole);
        let shown: Vec<_> = parts.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
        let expected = [
            ("rule", Some("shop/catalogue/products")),
            ("scheme", Some("http")),
            ("host", Some("A.example:8080")),
            ("path", Some("/p")),
            ("query", Some("q=1")),
            ("header x-a", Some("1, 2")),
            ("header x-b", None),
            ("cookie c", None),
            ("cookie d", Some("3; 4")),
            ("header x-host", Some("evil")),
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn hosts_share_nothing_unless_the_policy_says_so() {
        let key = |section: &str, authority: &str| {
            let headers = HeaderMap::new();
            let facts = Facts {
                method: &Method::GET,
                scheme: "http",
                host: "",
                path: "/",
                query: None,
                headers: &headers,
                client: [192, 0, 2, 1].into(),
            };
            let mut out = Vec::new();
            plan(section).write(&facts, authority, &mut out);
            out
        };
        assert_ne!(key("{}", "A.example"), key("{}", "a.example"), "the origin gets it as it is");
        assert_ne!(key("{}", "a.example:81"), key("{}", "a.example"));
        assert_eq!(key(r#"{"host": "Ignore"}"#, "a.example"), key(r#"{"host": "Ignore"}"#, "b.example"));
    }
}
