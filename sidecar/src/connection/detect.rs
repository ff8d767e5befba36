//! Tells HTTP from other protocols by its first bytes.

/// The preface of HTTP/2 (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// More bytes than this that have begun like a request are one.
const LONG: usize = 4096;

/// What the first bytes are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Guess {
    Http1,
    Http2,
    Other,
    /// More bytes are needed.
    Unknown,
}

/// Reads the first bytes of a client.
///
/// A request is a token, a blank, and a line that ends in `HTTP/` and a version, or has a target and no version, as HTTP/0.9
/// had. Empty lines before it are skipped, as servers do (RFC 9112, section 2.2), and so are the case of the method and further
/// blanks: whatever a lenient application would take for a request must not pass as mere bytes, or it would pass without policy.
pub(crate) fn guess(bytes: &[u8]) -> Guess {
    if bytes.starts_with(PREFACE) {
        return Guess::Http2;
    }
    if may_be_http2(bytes) {
        return Guess::Unknown;
    }
    let blank = |byte: &u8| matches!(byte, b'\r' | b'\n' | b' ' | b'\t');
    let start = bytes.iter().position(|byte| !blank(byte)).unwrap_or(bytes.len());
    let line = &bytes[start..];
    let method = line.iter().take_while(|byte| is_token(**byte)).count();
    if method == line.len() {
        return if bytes.len() <= LONG { Guess::Unknown } else { Guess::Http1 };
    }
    if method == 0 || !matches!(line[method], b' ' | b'\t') {
        return Guess::Other;
    }
    match line.iter().position(|byte| *byte == b'\n') {
        Some(end) if names_http(&line[..end]) || has_no_version(&line[..end]) => Guess::Http1,
        Some(_) => Guess::Other,
        None if line.len() > LONG => Guess::Http1,
        None => Guess::Unknown,
    }
}

/// Whether the bytes are the beginning of HTTP/2's preface.
pub(super) fn may_be_http2(bytes: &[u8]) -> bool {
    bytes.len() < PREFACE.len() && PREFACE.starts_with(bytes)
}

fn names_http(line: &[u8]) -> bool {
    let last = line.split(u8::is_ascii_whitespace).rfind(|word| !word.is_empty()).unwrap_or_default();
    last.len() >= 5 && last[..5].eq_ignore_ascii_case(b"HTTP/")
}

/// Whether a line is a request of HTTP/0.9, which lenient servers still answer. A method in lower case is none: it would take
/// `get /key` from memcached.
fn has_no_version(line: &[u8]) -> bool {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let method = words.next().unwrap_or_default();
    let target = words.next().unwrap_or_default();
    let is_target = target.starts_with(b"/") || target.windows(3).any(|part| part == b"://");
    is_target && !method.iter().any(u8::is_ascii_lowercase)
}

/// Whether a server's first bytes are the header of a SETTINGS frame, with which HTTP/2 begins (RFC 9113, section 3.4). Those
/// that have come decide, once the type is among them.
pub(super) fn is_settings(bytes: &[u8]) -> bool {
    bytes.len() > 3 && bytes[3] == 4 && bytes[4..].iter().take(5).all(|byte| *byte == 0)
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_http() {
        for request in
            ["GET / HTTP/1.1\r\n", "\r\n\r\nBREW /pot HTTP/1.0\n", "get  /x  http/1.1 \r\n", "M-SEARCH * HTTP/1.1\r\nHost"]
        {
            assert_eq!(guess(request.as_bytes()), Guess::Http1, "{request:?}");
        }
        let long = format!("GET /{}", "a".repeat(LONG));
        assert_eq!(guess(long.as_bytes()), Guess::Http1);
    }

    #[test]
    fn oddly_written_requests_are_http() {
        let after_empty_lines = format!("{}GET / HTTP/1.1\r\n", "\r\n".repeat(LONG));
        let long_method = format!("{} / HTTP/1.1\r\n", "X".repeat(100));
        for request in
            ["GET /x\r\n", "POST http://a/x\r\n", &after_empty_lines, &long_method, &"\r\n".repeat(LONG), &"X".repeat(LONG + 1)]
        {
            assert_eq!(guess(request.as_bytes()), Guess::Http1, "{request:?}");
        }
    }

    #[test]
    fn settings_are_told_from_other_greetings() {
        assert!(is_settings(&[0, 0, 18, 4, 0, 0, 0, 0, 0, 0, 3]) && is_settings(&[0, 0, 0, 4, 0]));
        for other in [&b"220 app\r\n"[..], b"SSH-2.0-x\r\n", &[0x4a, 0, 0, 0, 10, b'8'], &[0, 0, 0, 4, 9], &[0, 0, 0], &[]] {
            assert!(!is_settings(other), "{other:?}");
        }
    }

    #[test]
    fn other_protocols_are_not() {
        let others: [&[u8]; 7] = [
            b"\x16\x03\x01\x02\x00\x01",
            b"SSH-2.0-OpenSSH_9\r\n",
            b"EHLO mail.example\r\n",
            b"*1\r\n$4\r\nPING\r\n",
            b"PING\r\n",
            b"get /key\r\n",
            b"\0",
        ];
        for other in others {
            assert_eq!(guess(other), Guess::Other, "{other:?}");
        }
    }

    #[test]
    fn preface_is_http2_and_its_beginning_waits() {
        assert_eq!(guess(PREFACE), Guess::Http2);
        for len in 0..PREFACE.len() {
            assert_eq!(guess(&PREFACE[..len]), Guess::Unknown);
        }
        assert_eq!(guess(b"PRI /x HTTP/1.1\r\n"), Guess::Http1);
    }

    #[test]
    fn beginning_of_a_request_waits() {
        let request = b"DELETE /x HTTP/1.1\r\n";
        for len in 1..request.len() {
            assert_eq!(guess(&request[..len]), Guess::Unknown, "{len}");
        }
    }
}
