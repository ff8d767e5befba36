//! The one spelling of a path: what rules are compared with, and what goes on to the application.
//!
//! Dot segments are resolved (RFC 3986, section 5.2.4), unreserved characters decoded and the digits of other triplets upper-cased
//! (section 6.2.2), runs of slashes count as one, and a percent sign that begins no triplet is `%25`. So `/a/../admin`, `//admin` and
//! `/%61dmin` all meet a rule for `/admin`.
//!
//! Some applications read more into a path: `%2F`, `%5C` and `\` as slashes, and what follows a `;` as no part of the segment. No
//! spelling is right for all of them, so such a path has other readings besides, and meets the rules of each.

use std::borrow::Cow;

use crds::proxy::{DotSegments, EncodedSlashes, HttpPath, Slashes};
use smallvec::SmallVec;

/// Why a path is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadPath {
    /// `%00`, where some applications end the path.
    #[error("the path has an encoded NUL")]
    Nul,
    /// With `dotSegments: Refuse`.
    #[error("the path has a dot segment")]
    DotSegment,
    /// With `encodedSlashes: Refuse`.
    #[error("the path has an encoded slash or a backslash")]
    EncodedSlash,
}

/// How paths are spelled, after `http.path` of the FetchrProxy.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spelling {
    settings: HttpPath,
}

/// The other readings of a path: mostly none.
pub(super) type Readings = SmallVec<[String; 1]>;

impl Spelling {
    /// Spells as the settings say.
    pub fn new(settings: HttpPath) -> Self {
        Self { settings }
    }

    /// Refuses what no policy could be sure about.
    pub fn check(&self, path: &str) -> Result<(), BadPath> {
        if is_plain(path) {
            return Ok(());
        }
        if path.contains("%00") {
            return Err(BadPath::Nul);
        }
        let slashes = self.settings.encoded_slashes;
        if slashes == EncodedSlashes::Refuse && has_encoded_slash(path) {
            return Err(BadPath::EncodedSlash);
        }
        if self.settings.dot_segments == DotSegments::Refuse {
            let decoded = decode(path);
            let slashed = if slashes == EncodedSlashes::Decode { decode_slashes(&decoded) } else { Cow::Borrowed(&*decoded) };
            if slashed.split('/').any(is_dots) {
                return Err(BadPath::DotSegment);
            }
        }
        Ok(())
    }

    /// The one spelling. Borrowed when the path is spelled like that already.
    pub fn normal<'a>(&self, path: &'a str) -> Cow<'a, str> {
        if is_plain(path) {
            return Cow::Borrowed(path);
        }
        let mut normal = decode(path);
        if self.settings.encoded_slashes == EncodedSlashes::Decode {
            normal = decode_slashes(&normal).into_owned();
        }
        Cow::Owned(resolve(&normal, self.settings.slashes == Slashes::Merge))
    }

    /// The one spelling, and the other readings.
    pub(super) fn readings<'a>(&self, path: &'a str) -> (Cow<'a, str>, Readings) {
        if is_plain(path) {
            return (Cow::Borrowed(path), Readings::new());
        }
        let normal = self.normal(path);
        let others = self.others(&normal);
        (normal, others)
    }

    /// The other readings of a path that is in its one spelling.
    fn others(&self, normal: &str) -> Readings {
        let mut others = Readings::new();
        if is_plain(normal) {
            return others;
        }
        let merge = self.settings.slashes == Slashes::Merge;
        // An application may take some of these for slashes, and not the others.
        let (triplets, all) = (normal.replace("%2F", "/"), decode_slashes(normal));
        let backslashes = normal.replace("%5C", "/").replace('\\', "/");
        for slashed in [normal, &*triplets, &*backslashes, &*all] {
            for reading in [Cow::Borrowed(slashed), without_parameters(slashed)] {
                let reading = resolve(&reading, merge);
                if reading != normal && !others.contains(&reading) {
                    others.push(reading);
                }
            }
        }
        others
    }
}

/// Whether there is nothing in a path that could be spelled in another way, or read so. Most are plain.
pub(crate) fn is_plain(path: &str) -> bool {
    let mut begins = false; // a segment
    !path.bytes().any(|byte| match byte {
        b'%' | b'\\' | b';' => true,
        b'/' | b'.' if begins => true,
        _ => {
            begins = byte == b'/';
            false
        }
    })
}

/// Decodes `%61` to `a`, makes `%2f` to `%2F`, and `%` to `%25` where it begins no triplet. Doing so again changes nothing.
fn decode(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let Some(byte) = triplet(&rest.as_bytes()[at..]) else {
            out.push_str("%25");
            rest = &rest[at + 1..];
            continue;
        };
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.extend(rest[at..at + 3].chars().map(|digit| digit.to_ascii_uppercase()));
        }
        rest = &rest[at + 3..];
    }
    out.push_str(rest);
    out
}

/// The byte of a `%XX` that starts here.
pub(super) fn triplet(bytes: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = bytes else { return None };
    let digit = |digit: &u8| char::from(*digit).to_digit(16);
    u8::try_from(digit(high)? << 4 | digit(low)?).ok()
}

fn has_encoded_slash(path: &str) -> bool {
    path.contains('\\') || ["%2F", "%2f", "%5C", "%5c"].iter().any(|slash| path.contains(slash))
}

/// Makes slashes of what some take for them; triplets are in upper case.
fn decode_slashes(path: &str) -> Cow<'_, str> {
    if has_encoded_slash(path) { path.replace("%2F", "/").replace("%5C", "/").replace('\\', "/").into() } else { path.into() }
}

/// Without what follows a `;` in a segment, as servlets read it.
fn without_parameters(path: &str) -> Cow<'_, str> {
    if !path.contains(';') {
        return path.into();
    }
    let bare = |segment: &'_ str| segment.split(';').next().unwrap_or_default().to_owned();
    path.split('/').map(bare).collect::<Vec<_>>().join("/").into()
}

fn is_dots(segment: &str) -> bool {
    matches!(segment, "." | "..")
}

/// Resolves dot segments, and merges slashes first if that is asked for.
fn resolve(path: &str, merge: bool) -> String {
    let Some(inner) = path.strip_prefix('/') else { return path.to_owned() };
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = inner.split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "" if merge && !last => {}
            "." if !last => {}
            ".." => {
                kept.pop();
                if last {
                    kept.push("");
                }
            }
            "." => kept.push(""),
            _ => kept.push(segment),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in &kept {
        out.push('/');
        out.push_str(segment);
    }
    if out.is_empty() {
        out.push('/');
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spelling(settings: HttpPath) -> Spelling {
        Spelling::new(settings)
    }

    fn normal(path: &str) -> String {
        Spelling::default().normal(path).into_owned()
    }

    #[test]
    fn other_spellings_of_a_path_become_one() {
        for (path, expected) in [
            ("/a/b", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/../../b", "/b"),
            ("//a///b", "/a/b"),
            ("/a//../b", "/b"),
            ("/%61dmin", "/admin"),
            ("/a/%2e%2E/b", "/b"),
            ("/a%2fb", "/a%2Fb"),
            ("/a%2Fb", "/a%2Fb"),
            ("/a%zz%", "/a%25zz%25"),
            ("/%%361", "/%2561"),
            ("/%2561", "/%2561"),
            ("/a/.", "/a/"),
            ("/a/..", "/"),
            ("/a/b/..", "/a/"),
            ("/", "/"),
            ("//", "/"),
            ("/.well-known/x", "/.well-known/x"),
            ("/a/b/", "/a/b/"),
            ("*", "*"),
            ("", ""),
        ] {
            assert_eq!(normal(path), expected, "{path}");
        }
        assert!(matches!(Spelling::default().normal("/a/b.c"), Cow::Borrowed(_)));
    }

    #[test]
    fn slashes_in_a_row_may_be_kept() {
        let keeping = spelling(HttpPath { slashes: Slashes::Keep, ..HttpPath::default() });
        for (path, expected) in [("//a///b", "//a///b"), ("/a//../b", "/a/b"), ("/a/./b//", "/a/b//"), ("//", "//")] {
            assert_eq!(keeping.normal(path), expected, "{path}");
        }
    }

    #[test]
    fn encoded_slashes_may_be_slashes() {
        let decoding = spelling(HttpPath { encoded_slashes: EncodedSlashes::Decode, ..HttpPath::default() });
        for (path, expected) in [("/a%2fb", "/a/b"), ("/a%5C..\\b", "/b"), ("/a%2F..%2Fadmin", "/admin")] {
            assert_eq!(decoding.normal(path), expected, "{path}");
        }
    }

    #[test]
    fn path_that_applications_read_differently_has_every_reading() {
        for (path, expected) in [
            ("/a/b", &[][..]),
            ("/a%20b", &[]),
            ("/a%2Fb", &["/a/b"]),
            ("/public%2F..%2Fadmin", &["/admin"]),
            ("/public/..;/admin", &["/admin"]),
            ("/admin;x=1", &["/admin"]),
            (r"/a\b", &["/a/b"]),
            ("/a%5Cb", &["/a/b"]),
            ("/a%2Fb;x", &["/a%2Fb", "/a/b;x", "/a/b"]),
            ("/admin%2Fx%5C..%5C..", &["/admin/x%5C..%5C..", "/"]),
        ] {
            assert_eq!(Spelling::default().others(&normal(path)).as_slice(), expected, "{path}");
        }
    }

    #[test]
    fn what_is_refused_is_so_in_every_spelling() {
        let strict =
            HttpPath { dot_segments: DotSegments::Refuse, encoded_slashes: EncodedSlashes::Refuse, ..HttpPath::default() };
        for (path, expected) in [
            ("/a%00b", Err(BadPath::Nul)),
            ("/a/../b", Err(BadPath::DotSegment)),
            ("/a/%2e/b", Err(BadPath::DotSegment)),
            ("/a/%2E%2e", Err(BadPath::DotSegment)),
            ("/a%2fb", Err(BadPath::EncodedSlash)),
            (r"/a\b", Err(BadPath::EncodedSlash)),
            ("/a/..b/.c", Ok(())),
        ] {
            assert_eq!(spelling(strict).check(path), expected, "{path}");
        }
        for path in ["/a/../b", "/a%2Fb", r"/a\b"] {
            assert_eq!(Spelling::default().check(path), Ok(()), "{path}");
        }
        let decoding = HttpPath { encoded_slashes: EncodedSlashes::Decode, ..strict };
        assert_eq!(spelling(decoding).check("/a%2F..%2Fb"), Err(BadPath::DotSegment));
    }

    fn any_settings() -> impl Strategy<Value = HttpPath> {
        let slashes = prop::sample::select(vec![Slashes::Merge, Slashes::Keep]);
        let encoded = prop::sample::select(vec![EncodedSlashes::Keep, EncodedSlashes::Decode]);
        (slashes, encoded).prop_map(|(slashes, encoded_slashes)| HttpPath { slashes, encoded_slashes, ..HttpPath::default() })
    }

    /// A segment, and the same spelled in another way.
    fn segment() -> impl Strategy<Value = (String, String)> {
        proptest::collection::vec(("[a-c.~-]", 0..4), 1..5).prop_filter_map("dot segments are others", |chars| {
            let plain: String = chars.iter().map(|(char, _)| char.as_str()).collect();
            let spelled = chars.iter().map(|(char, how)| match how {
                0 => format!("%{:02x}", char.as_bytes()[0]),
                1 => format!("%{:02X}", char.as_bytes()[0]),
                _ => char.clone(),
            });
            let spelled = spelled.collect();
            (!is_dots(&plain)).then_some((plain, spelled))
        })
    }

    proptest! {
        #[test]
        fn normal_spelling_is_spelled_as_itself(path in "[/a-c.%0-9A-F;\\\\]{0,24}", settings in any_settings()) {
            let spelling = spelling(settings);
            let once = spelling.normal(&path).into_owned();
            prop_assert_eq!(spelling.normal(&once), once.as_str());
            if once.starts_with('/') {
                prop_assert!(settings.slashes == Slashes::Keep || !once.contains("//"));
                prop_assert!(!once.split('/').any(is_dots));
                prop_assert!(settings.encoded_slashes == EncodedSlashes::Keep || !has_encoded_slash(&once));
            }
            for other in spelling.others(&once) {
                prop_assert!(!other.starts_with('/') || !other.split('/').any(is_dots), "{}", other);
            }
        }

        /// However a client spells the path of a resource, it is one path.
        #[test]
        fn all_spellings_of_a_path_are_one(
            segments in proptest::collection::vec((segment(), prop::sample::select(vec!["/", "//", "/./", "/x/../", "/%2e/", "/y/%2E./"])), 1..6),
        ) {
            let plain: String = segments.iter().map(|((plain, _), _)| format!("/{plain}")).collect();
            let spelled: String = segments.iter().map(|((_, spelled), before)| format!("{before}{spelled}")).collect();
            prop_assert_eq!(normal(&spelled), normal(&plain));
        }
    }
}
