//! Lists of HTTP (RFC 9110 section 5.6.1): members between commas, which don't count inside a quoted string.

/// Members of a line, without white space around them and without empty ones.
#[derive(Clone, Debug)]
pub(crate) struct Members<'a> {
    rest: Option<&'a [u8]>,
}

/// Splits the value of one field line.
pub(crate) fn members(line: &[u8]) -> Members<'_> {
    Members { rest: Some(line) }
}

impl<'a> Iterator for Members<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            let rest = self.rest?;
            let end = comma(rest);
            self.rest = end.map(|end| &rest[end + 1..]);
            let member = trim(&rest[..end.unwrap_or(rest.len())]);
            if !member.is_empty() {
                return Some(member);
            }
        }
    }
}

/// Without spaces and tabs at both ends (`OWS`).
pub(crate) fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = text {
        text = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// Where the first comma outside a quoted string is. A string that isn't ended takes all that follows: what is inside it can't be
/// told from directives, and a reader that guesses would find some.
fn comma(text: &[u8]) -> Option<usize> {
    // Most lists have no quotes.
    let first = text.iter().position(|&byte| matches!(byte, b',' | b'"'))?;
    let (mut quoted, mut escaped) = (false, false);
    let found = text[first..].iter().position(|&byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' => return !quoted,
            _ => {}
        }
        false
    })?;
    Some(first + found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc9110_5_6_1_lists_are_split_outside_quotes() {
        let table: [(&str, &[&str]); 7] = [
            ("a, b", &["a", "b"]),
            (" , a ,\t, b , ", &["a", "b"]),
            ("", &[]),
            (",,,", &[]),
            (r#"a="b, c", d"#, &[r#"a="b, c""#, "d"]),
            (r#"a="b\", c", d"#, &[r#"a="b\", c""#, "d"]),
            (r#"a="b, c"#, &[r#"a="b, c"#]),
        ];
        for (line, expected) in table {
            let found: Vec<_> = members(line.as_bytes()).map(|member| std::str::from_utf8(member).unwrap()).collect();
            assert_eq!(found, expected, "{line}");
        }
    }
}
