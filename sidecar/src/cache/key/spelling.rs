//! How applications read what is spelled in an odd way, as far as it could make one request look like another.

use crate::route::decode;

/// A form that is the same for all names of parameters that some application takes for one: without percent-encoding, in lower case
/// (ASP.NET), up to a NUL, `user.id` and `user id` as `user_id`, and `ids[]` as `ids` (PHP, Rails).
pub(super) fn read_as(name: &str) -> String {
    let decoded = decode(name).to_ascii_lowercase();
    let name = decoded.split('\0').next().unwrap_or_default().trim_start_matches([' ', '+']);
    let name = match name.split_once('[') {
        Some((name, rest)) if rest.contains(']') => name,
        _ => name,
    };
    name.replace([' ', '+', '.', '['], "_")
}

/// What stands between commas and semicolons that are in no quotes. A quote that nobody closes goes on to the end.
pub(super) fn quoted_pieces(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    let mut escaped = false;
    line.split(move |byte| {
        let (begins, was_escaped) = (*byte == b'"', std::mem::take(&mut escaped));
        escaped = quoted && *byte == b'\\' && !was_escaped;
        quoted ^= begins && !was_escaped;
        !quoted && matches!(byte, b',' | b';')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_some_application_takes_for_one_are_read_as_one() {
        for (name, expected) in [
            ("page", "page"),
            ("Page", "page"),
            ("p%61ge", "page"),
            ("%2520page", "%20page"),
            ("+page", "page"),
            ("page[]", "page"),
            ("page%5b%5D", "page"),
            ("a[b", "a_b"),
            ("a.b c", "a_b_c"),
            ("page%00x", "page"),
            ("", ""),
            ("%ff", "\u{fffd}"),
        ] {
            assert_eq!(read_as(name), expected, "{name}");
        }
    }

    #[test]
    fn quotes_hold_pieces_together() {
        for (line, expected) in [
            ("a;b, c", &["a", "b", " c"][..]),
            (r#"a="1;2",b"#, &[r#"a="1;2""#, "b"]),
            (r#"a="1\";2";b"#, &[r#"a="1\";2""#, "b"]),
            (r#"a="1\\";b"#, &[r#"a="1\\""#, "b"]),
            (r#"a="1;b"#, &[r#"a="1;b"#]),
            ("", &[""]),
        ] {
            assert!(quoted_pieces(line.as_bytes()).eq(expected.iter().map(|piece| piece.as_bytes())), "{line}");
        }
    }
}
