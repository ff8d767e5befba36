//! References to other resources of the same origin (RFC 3986 section 5, RFC 9110 section 4.3.1).

use super::list::trim;

/// The target URI of a request. A host is compared in any case, a scheme too, and the scheme's own port is as none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Target<'a> {
    /// `http` or `https`.
    pub(crate) scheme: &'a str,
    /// Host and port.
    pub(crate) authority: &'a str,
    /// Path and query, as they are sent.
    pub(crate) path_and_query: &'a str,
}

impl Target<'_> {
    /// What a reference in a field of the response means: path and query of the resource if it is of the same origin, else None.
    pub(crate) fn resolve(&self, reference: &[u8]) -> Option<String> {
        let reference = std::str::from_utf8(trim(reference)).ok()?;
        if reference.bytes().any(|byte| byte <= b' ' || byte == 0x7f || byte == b'\\') {
            return None;
        }
        let reference = reference.split('#').next().unwrap_or_default();
        match scheme(reference) {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case(self.scheme) => self.on_same_host(rest.strip_prefix("//")?),
            Some(_) => None,
            None => match reference.strip_prefix("//") {
                Some(rest) => self.on_same_host(rest),
                None => Some(self.relative(reference)),
            },
        }
    }

    fn on_same_host(&self, rest: &str) -> Option<String> {
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let port = if self.scheme.eq_ignore_ascii_case("https") { ":443" } else { ":80" };
        // An empty port is as none too.
        let bare = |authority: &str| {
            let authority = authority.strip_suffix(port).unwrap_or(authority);
            authority.strip_suffix(':').unwrap_or(authority).to_ascii_lowercase()
        };
        (bare(authority) == bare(self.authority)).then(|| whole(path))
    }

    fn relative(&self, reference: &str) -> String {
        let (base, query) =
            self.path_and_query.split_once('?').map_or((self.path_and_query, None), |(path, query)| (path, Some(query)));
        if reference.starts_with('/') {
            return whole(reference);
        }
        if reference.is_empty() || reference.starts_with('?') {
            let query = reference.strip_prefix('?').or(query);
            return query.map_or_else(|| base.to_owned(), |query| format!("{base}?{query}"));
        }
        let folder = base.rfind('/').map_or("/", |at| &base[..=at]);
        whole(&format!("{folder}{reference}"))
    }
}

/// A scheme and what follows its colon.
fn scheme(reference: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = reference.split_once(':')?;
    let mut bytes = scheme.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic());
    (first && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))).then_some((scheme, rest))
}

/// Without dot segments (RFC 3986 section 5.2.4), and with a path at all.
fn whole(path_and_query: &str) -> String {
    let (path, query) = path_and_query.split_once('?').map_or((path_and_query, None), |(path, query)| (path, Some(query)));
    let mut out: Vec<&str> = Vec::new();
    let segments = path.strip_prefix('/').unwrap_or(path);
    let mut ends_in_folder = false;
    for segment in segments.split('/') {
        ends_in_folder = matches!(segment, "." | "..");
        match segment {
            "." => {}
            ".." => drop(out.pop()),
            _ => out.push(segment),
        }
    }
    let mut whole = format!("/{}", out.join("/"));
    if ends_in_folder && !whole.ends_with('/') {
        whole.push('/');
    }
    if let Some(query) = query {
        whole.push('?');
        whole.push_str(query);
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc3986_5_references_are_resolved_within_the_origin() {
        let target = Target { scheme: "http", authority: "Shop.example", path_and_query: "/a/b/c?d=1" };
        let table = [
            ("/x", Some("/x")),
            ("/x?y#z", Some("/x?y")),
            ("x", Some("/a/b/x")),
            ("./x", Some("/a/b/x")),
            ("../x", Some("/a/x")),
            ("../../../x", Some("/x")),
            ("..", Some("/a/")),
            (".", Some("/a/b/")),
            ("x/./y/../z", Some("/a/b/x/z")),
            ("", Some("/a/b/c?d=1")),
            ("#here", Some("/a/b/c?d=1")),
            ("?e=2", Some("/a/b/c?e=2")),
            ("http://shop.example/x", Some("/x")),
            ("HTTP://SHOP.EXAMPLE:80/x", Some("/x")),
            ("http://shop.example:/x", Some("/x")),
            ("http://shop.example", Some("/")),
            ("http://shop.example?q", Some("/?q")),
            ("//shop.example/x", Some("/x")),
            ("https://shop.example/x", None),
            ("http://shop.example:8080/x", None),
            ("http://evil.example/x", None),
            ("http://shop.example.evil/x", None),
            ("http://shop.example@evil.example/x", None),
            ("//evil.example/x", None),
            ("/\\evil.example", None),
            ("http:x", None),
            ("mailto:a@b", None),
            ("/a b", None),
            ("a/b:c", Some("/a/b/a/b:c")),
            ("1a:b", Some("/a/b/1a:b")),
        ];
        for (reference, expected) in table {
            assert_eq!(target.resolve(reference.as_bytes()).as_deref(), expected, "{reference}");
        }
        let port = Target { scheme: "https", authority: "a:443", path_and_query: "/" };
        assert_eq!(port.resolve(b"https://a/x").as_deref(), Some("/x"));
    }
}
