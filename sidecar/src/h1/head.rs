//! Heads of messages, strictly: lines end in CR LF, nothing is folded, and there is no white space before a colon.

use std::ops::Range;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version};

use super::{MAX_FIELDS, MAX_HEAD, MAX_TARGET};

/// Fields for which there is room from the start: those of usual messages, and what the proxy adds.
const USUAL_FIELDS: usize = 12;

/// Why a head was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum BadHead {
    #[error("the first line is not one of HTTP/1")]
    StartLine,
    #[error("the version of HTTP is not 1.0 or 1.1")]
    Version,
    #[error("the request target is longer than {MAX_TARGET} bytes")]
    TargetTooLong,
    #[error("the request target is malformed")]
    Target,
    #[error("the head is larger than {MAX_HEAD} bytes")]
    TooLarge,
    #[error("there are more than {MAX_FIELDS} header fields")]
    TooManyFields,
    #[error("a line does not end in CR LF")]
    LineEnd,
    #[error("a header field is folded over two lines")]
    Folded,
    #[error("a header field has no valid name")]
    Name,
    #[error("a header field's value has a control character")]
    Value,
}

impl BadHead {
    /// The status that tells the client of a request (RFC 9110, section 15.5, and RFC 6585).
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::TooLarge | Self::TooManyFields => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// The reason that it is counted by.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::TargetTooLong => "target_too_long",
            Self::TooLarge | Self::TooManyFields => "header_too_large",
            _ => "malformed_request",
        }
    }
}

/// The head of a request as it was read.
#[derive(Debug)]
pub(crate) struct RequestHead {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) version: Version,
    pub(crate) headers: HeaderMap,
}

/// The head of a response as it was read. The reason phrase is dropped: it means nothing (RFC 9112, section 4).
#[derive(Debug)]
pub(crate) struct ResponseHead {
    pub(crate) status: StatusCode,
    pub(crate) version: Version,
    pub(crate) headers: HeaderMap,
}

/// Finds the end of a head in a buffer that grows, without looking at a byte twice.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    seen: usize,
}

impl Scan {
    /// The length of the head with its empty line, once that is here. An error as soon as it can't be a head any more.
    pub(crate) fn find(&mut self, buf: &[u8]) -> Result<Option<usize>, BadHead> {
        let mut from = self.seen;
        while let Some(at) = memchr::memchr(b'\n', &buf[from..]) {
            let end = from + at;
            if end == 0 || buf[end - 1] != b'\r' {
                return Err(BadHead::LineEnd);
            }
            if end >= 3 && buf[end - 2] == b'\n' {
                self.seen = 0;
                return if end < MAX_HEAD { Ok(Some(end + 1)) } else { Err(BadHead::TooLarge) };
            }
            from = end + 1;
        }
        self.seen = from.max(buf.len());
        if buf.len() >= MAX_HEAD { Err(BadHead::TooLarge) } else { Ok(None) }
    }
}

/// Drops empty lines before a request, as RFC 9112, section 2.2, asks. False if there may be more of one to come.
pub(crate) fn skip_empty_lines(buf: &mut BytesMut) -> bool {
    while buf.starts_with(b"\r\n") {
        buf.advance(2);
    }
    !buf.is_empty() && &buf[..] != b"\r"
}

/// Reads the head of a request; `head` ends in its empty line.
pub(crate) fn request(head: Bytes) -> Result<RequestHead, BadHead> {
    let mut lines = Lines::new(head);
    let range = lines.next()?;
    let line = &lines.head[range.clone()];
    let first = memchr::memchr(b' ', line).ok_or(BadHead::StartLine)?;
    let last = memchr::memrchr(b' ', line).filter(|last| *last > first).ok_or(BadHead::StartLine)?;
    let version = version(&line[last + 1..])?;
    let method = Method::from_bytes(&line[..first]).map_err(|_| BadHead::StartLine)?;
    let target = lines.head.slice(range.start + first + 1..range.start + last);
    if target.len() > MAX_TARGET {
        return Err(BadHead::TargetTooLong);
    }
    if !target.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'#') {
        return Err(BadHead::Target);
    }
    let is_path = target.starts_with(b"/");
    let uri = Uri::from_maybe_shared(target).map_err(|_| BadHead::Target)?;
    if !is_path && !is_form_of(&method, &uri) {
        return Err(BadHead::Target);
    }
    Ok(RequestHead { method, uri, version, headers: lines.fields()? })
}

/// Whether a target that is no path has the form that its method allows (RFC 9112, section 3.2).
fn is_form_of(method: &Method, uri: &Uri) -> bool {
    match *method {
        Method::CONNECT => uri.scheme().is_none() && uri.authority().is_some() && uri.path_and_query().is_none(),
        Method::OPTIONS if uri.path() == "*" => true,
        _ => uri.scheme().is_some() && uri.authority().is_some(),
    }
}

/// Reads the head of a response; `head` ends in its empty line.
pub(crate) fn response(head: Bytes) -> Result<ResponseHead, BadHead> {
    let mut lines = Lines::new(head);
    let range = lines.next()?;
    let line = &lines.head[range];
    let version = version(line.get(..8).ok_or(BadHead::StartLine)?)?;
    let status = line.get(8..12).filter(|status| status[0] == b' ').ok_or(BadHead::StartLine)?;
    if !matches!(line.get(12), None | Some(b' ')) {
        return Err(BadHead::StartLine);
    }
    let status = StatusCode::from_bytes(&status[1..]).map_err(|_| BadHead::StartLine)?;
    Ok(ResponseHead { status, version, headers: lines.fields()? })
}

/// Reads trailer fields; `section` ends in its empty line, and may be nothing else.
pub(crate) fn trailers(section: Bytes) -> Result<HeaderMap, BadHead> {
    Lines::new(section).fields()
}

fn version(text: &[u8]) -> Result<Version, BadHead> {
    match text {
        b"HTTP/1.1" => Ok(Version::HTTP_11),
        b"HTTP/1.0" => Ok(Version::HTTP_10),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
            Err(BadHead::Version)
        }
        _ => Err(BadHead::StartLine),
    }
}

/// The lines of a head that has been found whole.
struct Lines {
    head: Bytes,
    at: usize,
}

impl Lines {
    fn new(head: Bytes) -> Self {
        Self { head, at: 0 }
    }

    /// Where the next line begins and ends, without its CR LF.
    fn next(&mut self) -> Result<Range<usize>, BadHead> {
        let start = self.at;
        let end = start + memchr::memchr(b'\n', &self.head[start..]).ok_or(BadHead::LineEnd)?;
        if end == start || self.head[end - 1] != b'\r' {
            return Err(BadHead::LineEnd);
        }
        self.at = end + 1;
        Ok(start..end - 1)
    }

    fn fields(mut self) -> Result<HeaderMap, BadHead> {
        let mut headers = HeaderMap::with_capacity(USUAL_FIELDS);
        loop {
            let line = self.next()?;
            if line.is_empty() {
                return Ok(headers);
            }
            let (name, value) = self.field(line)?;
            if headers.len() == MAX_FIELDS {
                return Err(BadHead::TooManyFields);
            }
            headers.try_append(name, value).map_err(|_| BadHead::TooManyFields)?;
        }
    }

    fn field(&self, line: Range<usize>) -> Result<(HeaderName, HeaderValue), BadHead> {
        let bytes = &self.head[line.clone()];
        if is_space(bytes[0]) {
            return Err(BadHead::Folded);
        }
        let colon = bytes.iter().position(|byte| *byte == b':').ok_or(BadHead::Name)?;
        let name = HeaderName::from_bytes(&bytes[..colon]).map_err(|_| BadHead::Name)?;
        let (mut start, mut end) = (colon + 1, bytes.len());
        while start < end && is_space(bytes[start]) {
            start += 1;
        }
        while start < end && is_space(bytes[end - 1]) {
            end -= 1;
        }
        let value = self.head.slice(line.start + start..line.start + end);
        Ok((name, HeaderValue::from_maybe_shared(value).map_err(|_| BadHead::Value)?))
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<RequestHead, BadHead> {
        request(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn request_is_read() {
        let head = parse("GET /a?b=c HTTP/1.1\r\nHost: a.example\r\nX-Empty:\r\nX-Spaced: \t one two \r\n\r\n").unwrap();
        assert_eq!((head.method, head.uri.to_string(), head.version), (Method::GET, "/a?b=c".to_owned(), Version::HTTP_11));
        assert_eq!(head.headers["host"], "a.example");
        assert_eq!(head.headers["x-empty"], "");
        assert_eq!(head.headers["x-spaced"], "one two");
    }

    #[test]
    fn response_is_read_with_and_without_a_reason() {
        for line in ["HTTP/1.1 200 OK fine", "HTTP/1.1 200 ", "HTTP/1.1 200"] {
            let head = response(Bytes::from(format!("{line}\r\nA: b\r\n\r\n"))).unwrap();
            assert_eq!((head.status, head.version, head.headers.len()), (StatusCode::OK, Version::HTTP_11, 1), "{line}");
        }
    }

    #[test]
    fn malformed_requests_are_refused_by_what_is_wrong() {
        for (text, expected) in [
            ("GET / HTTP/1.1\nHost: a\r\n\r\n", BadHead::LineEnd),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", BadHead::LineEnd),
            ("GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", BadHead::Folded),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", BadHead::Name),
            ("GET / HTTP/1.1\r\n: a\r\n\r\n", BadHead::Name),
            ("GET / HTTP/1.1\r\nHost\r\n\r\n", BadHead::Name),
            ("GET / HTTP/1.1\r\nX: a\0b\r\n\r\n", BadHead::Value),
            ("GET / HTTP/1.1\r\nX: a\rb\r\n\r\n", BadHead::Value),
            ("GET / HTTP/1.1\r\nX: \x7f\r\n\r\n", BadHead::Value),
            ("GET  / HTTP/1.1\r\n\r\n", BadHead::Target),
            ("GET / a HTTP/1.1\r\n\r\n", BadHead::Target),
            ("GET /#a HTTP/1.1\r\n\r\n", BadHead::Target),
            ("GET /\u{fc} HTTP/1.1\r\n\r\n", BadHead::Target),
            ("GET a HTTP/1.1\r\n\r\n", BadHead::Target),
            ("GET a/b HTTP/1.1\r\n\r\n", BadHead::Target),
            ("GET a:80 HTTP/1.1\r\n\r\n", BadHead::Target),
            ("GET * HTTP/1.1\r\n\r\n", BadHead::Target),
            ("CONNECT http://a/ HTTP/1.1\r\n\r\n", BadHead::Target),
            ("GET /\tHTTP/1.1\r\n\r\n", BadHead::StartLine),
            ("GET /\r\n\r\n", BadHead::StartLine),
            ("G(T / HTTP/1.1\r\n\r\n", BadHead::StartLine),
            ("GET / HTTP/1.1 \r\n\r\n", BadHead::StartLine),
            ("GET / http/1.1\r\n\r\n", BadHead::StartLine),
            ("GET / HTTP/2.0\r\n\r\n", BadHead::Version),
            ("GET / HTTP/1.2\r\n\r\n", BadHead::Version),
        ] {
            assert_eq!(parse(text).unwrap_err(), expected, "{text:?}");
        }
    }

    #[test]
    fn targets_of_every_form_are_read() {
        for (line, target) in [
            ("OPTIONS *", "*"),
            ("CONNECT a.example:443", "a.example:443"),
            ("GET http://a.example/b?c", "http://a.example/b?c"),
            ("GET //a/b", "//a/b"),
        ] {
            assert_eq!(parse(&format!("{line} HTTP/1.1\r\n\r\n")).unwrap().uri.to_string(), target);
        }
    }

    #[test]
    fn bounds_are_kept() {
        let target = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(MAX_TARGET));
        assert_eq!(parse(&target).unwrap_err(), BadHead::TargetTooLong);
        let fields = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_FIELDS + 1));
        assert_eq!(parse(&fields).unwrap_err(), BadHead::TooManyFields);
        assert_eq!(Scan::default().find(&vec![b'a'; MAX_HEAD]), Err(BadHead::TooLarge));
    }

    #[test]
    fn malformed_responses_are_refused() {
        for line in ["HTTP/1.1 20", "HTTP/1.1 2000", "HTTP/1.1  200", "HTTP/1.1 abc", "HTTP/1.1\t200 OK", "ICY 200 OK", ""] {
            assert!(response(Bytes::from(format!("{line}\r\n\r\n"))).is_err(), "{line:?}");
        }
    }

    #[test]
    fn empty_lines_before_a_request_are_skipped() {
        let mut buf = BytesMut::from("\r\n\r\nGET");
        assert!(skip_empty_lines(&mut buf));
        assert_eq!(&buf[..], b"GET");
        assert!(!skip_empty_lines(&mut BytesMut::from("\r\n\r")));
    }

    proptest! {
        #[test]
        fn end_is_found_wherever_the_bytes_are_cut(cuts in proptest::collection::vec(1usize..40, 1..8)) {
            let text = b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n\r\nrest";
            let (mut scan, mut have) = (Scan::default(), 0);
            let mut found = None;
            for cut in cuts.into_iter().chain([text.len()]) {
                have = (have + cut).min(text.len());
                found = scan.find(&text[..have]).unwrap();
                if found.is_some() { break }
            }
            prop_assert_eq!(found, Some(text.len() - 4));
        }

        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from(bytes);
            let _ = Scan::default().find(&bytes);
            let _ = (request(bytes.clone()), response(bytes.clone()), trailers(bytes));
        }
    }
}
