//! Tells HTTP from other protocols by its first bytes.

/// The preface of HTTP/2 (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A first line longer than this that has begun like a request is one.
const LONG: usize = 4096;

/// Longest method that is waited for.
const METHOD: usize = 32;

/// What the first bytes are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Guess {
    Http1,
    Http2,
    Other,
    /// More bytes are needed.
    Unknown,
}

/// Reads the first bytes of a client.
///
/// A request is a token, a blank, and a line that ends in `HTTP/` and a version. Empty lines before it are skipped, as servers
/// do (RFC 9112, section 2.2), and so are the case of the method and further blanks: whatever a lenient application would take for a
/// request must not pass as mere bytes, or it would pass without policy.
pub(super) fn guess(bytes: &[u8]) -> Guess {
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
        return if method <= METHOD && start <= LONG { Guess::Unknown } else { Guess::Other };
    }
    if method == 0 || !matches!(line[method], b' ' | b'\t') {
        return Guess::Other;
    }
    match line.iter().position(|byte| *byte == b'\n') {
        Some(end) if names_http(&line[..end]) => Guess::Http1,
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
    fn other_protocols_are_not() {
        let others: [&[u8]; 6] = [
            b"\x16\x03\x01\x02\x00\x01",
            b"SSH-2.0-OpenSSH_9\r\n",
            b"EHLO mail.example\r\n",
            b"*1\r\n$4\r\nPING\r\n",
            b"PING\r\n",
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
