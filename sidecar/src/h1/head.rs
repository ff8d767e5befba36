//! Heads of messages, strictly: lines end in CR LF, nothing is folded, and there is no white space before a colon.

use bytes::{Buf, Bytes, BytesMut};
use crds::{proxy::HttpLimits, scalar::Size};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version, request::Parts};

use super::{MAX_FIELDS, MAX_HEAD, MAX_TARGET, names};

/// Fields for which there is room from the start: those of usual messages, and what the proxy adds.
const USUAL_FIELDS: usize = 12;

/// Fields whose places a connection keeps memory for.
const KEPT_FIELDS: usize = 16;

/// Fields that the proxy adds.
const ADDED_FIELDS: usize = 5;

/// Why a head was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum BadHead {
    #[error("the first line is not one of HTTP/1")]
    StartLine,
    #[error("the version of HTTP is not 1.0 or 1.1")]
    Version,
    #[error("the request target is longer than {0} bytes")]
    TargetTooLong(u32),
    #[error("the request target is malformed")]
    Target,
    #[error("the head is larger than {0} bytes")]
    TooLarge(u32),
    #[error("there are more than {0} header fields")]
    TooManyFields(u32),
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
            Self::TargetTooLong(_) => StatusCode::URI_TOO_LONG,
            Self::TooLarge(_) | Self::TooManyFields(_) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Version => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// The reason that it is counted by.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::TargetTooLong(_) => "target_too_long",
            Self::TooLarge(_) | Self::TooManyFields(_) => "header_too_large",
            _ => "malformed_request",
        }
    }
}

/// The head of a response as it was read. The reason phrase is dropped: it means nothing (RFC 9112, section 4).
#[derive(Debug)]
pub(crate) struct ResponseHead {
    pub(crate) status: StatusCode,
    pub(crate) version: Version,
    pub(crate) headers: HeaderMap,
}

/// What a head may be like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of the head.
    head: u32,
    /// Bytes of the target of a request.
    pub(crate) target: u32,
    pub(crate) fields: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { head: MAX_HEAD as u32, target: MAX_TARGET as u32, fields: MAX_FIELDS as u32 }
    }
}

impl Limits {
    /// Those of clients, as the FetchrProxy says.
    pub(crate) fn of(limits: &HttpLimits) -> Self {
        let size = |size: Size| u32::try_from(size.0).unwrap_or(u32::MAX).min(MAX_HEAD as u32);
        let fields = u32::try_from(limits.max_fields).unwrap_or(MAX_FIELDS as u32);
        Self { head: size(limits.max_head), target: size(limits.max_target), fields }
    }

    /// Bytes of the head.
    pub(crate) fn head(&self) -> usize {
        self.head as usize
    }
}

/// Takes heads from the front of a buffer that grows, and looks at hardly a byte twice.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    limits: Limits,
    /// Where the first line ends, without its CR LF; 0 until it is here.
    first: usize,
    fields: Vec<Field>,
    /// Where the line begins that is not whole yet.
    line: usize,
}

/// Where a field is in its head. Heads are no longer than [`MAX_HEAD`].
#[derive(Clone, Copy, Debug)]
struct Field {
    name: u16,
    colon: u16,
    value: u16,
    end: u16,
}

const _: () = assert!(MAX_HEAD <= 1 << 16, "a place in a head is kept in 16 bits");

impl Reader {
    /// A reader that holds its peer to these limits.
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// The head of a request, once it is here with its empty line. An error as soon as it can't be one any more.
    pub(crate) fn request(&mut self, buf: &mut BytesMut) -> Result<Option<Box<Parts>>, BadHead> {
        let Some(head) = self.take_head(buf)? else { return Ok(None) };
        let (method, uri, version) = request_line(&head, self.first, self.limits.target)?;
        let headers = self.fields(&head)?;
        let (mut parts, ()) = http::Request::new(()).into_parts();
        (parts.method, parts.uri, parts.version, parts.headers) = (method, uri, version, headers);
        Ok(Some(Box::new(parts)))
    }

    /// The head of a response, likewise.
    pub(crate) fn response(&mut self, buf: &mut BytesMut) -> Result<Option<ResponseHead>, BadHead> {
        let Some(head) = self.take_head(buf)? else { return Ok(None) };
        let (status, version) = status_line(&head[..self.first])?;
        Ok(Some(ResponseHead { status, version, headers: self.fields(&head)? }))
    }

    /// Trailer fields, once they are here with their empty line.
    pub(crate) fn trailers(&mut self, buf: &mut BytesMut) -> Result<Option<HeaderMap>, BadHead> {
        let Some(section) = self.take_fields(buf)? else { return Ok(None) };
        self.fields(&section).map(Some)
    }

    /// Forgets what was read, and gives the memory back that an idle connection does not need.
    pub(crate) fn release(&mut self) {
        (self.first, self.line) = (0, 0);
        self.fields.clear();
        self.fields.shrink_to(KEPT_FIELDS);
    }

    fn take_head(&mut self, buf: &mut BytesMut) -> Result<Option<Bytes>, BadHead> {
        if self.line == 0 {
            let within = &buf[..buf.len().min(self.limits.head())];
            let Some(end) = memchr::memchr(b'\n', within) else {
                return if buf.len() < self.limits.head() { Ok(None) } else { Err(BadHead::TooLarge(self.limits.head)) };
            };
            self.first = end.checked_sub(1).filter(|end| buf[*end] == b'\r').ok_or(BadHead::LineEnd)?;
            self.line = end + 1;
        }
        self.take_fields(buf)
    }

    fn take_fields(&mut self, buf: &mut BytesMut) -> Result<Option<Bytes>, BadHead> {
        loop {
            match next_line(&buf[..buf.len().min(self.limits.head())], self.line)? {
                Line::Partial if buf.len() < self.limits.head() => return Ok(None),
                Line::Partial => return Err(BadHead::TooLarge(self.limits.head)),
                Line::Empty => {
                    let len = self.line + 2;
                    self.line = 0;
                    return Ok(Some(buf.split_to(len).freeze()));
                }
                Line::Field(..) if self.fields.len() == self.limits.fields as usize => {
                    return Err(BadHead::TooManyFields(self.limits.fields));
                }
                Line::Field(field, next) => {
                    if self.fields.capacity() == 0 {
                        self.fields.reserve_exact(KEPT_FIELDS);
                    }
                    self.fields.push(field);
                    self.line = next;
                }
            }
        }
    }

    /// Makes fields of what [`Self::take_fields`] has just found in this very head.
    fn fields(&mut self, head: &Bytes) -> Result<HeaderMap, BadHead> {
        let mut headers = HeaderMap::with_capacity(USUAL_FIELDS.max(self.fields.len() + ADDED_FIELDS));
        for Field { name, colon, value, end } in self.fields.drain(..) {
            let name = names::read(&head[usize::from(name)..usize::from(colon)]).ok_or(BadHead::Name)?;
            let value = head.slice(usize::from(value)..usize::from(end));
            headers.try_append(name, checked_value(value)).map_err(|_| BadHead::TooManyFields(self.limits.fields))?;
        }
        Ok(headers)
    }
}

/// A value between two ends that [`next_line`] has found.
fn checked_value(value: Bytes) -> HeaderValue {
    // SAFETY: a value may hold what is no control character, and tabs. `next_line` lets no other
    // value pass, and `Reader` cuts the head from the buffer that `next_line` was given.
    unsafe { HeaderValue::from_maybe_shared_unchecked(value) }
}

/// What a line of fields is.
enum Line {
    /// Its end has not come.
    Partial,
    /// The end of the fields.
    Empty,
    /// A field, and where the next line begins.
    Field(Field, usize),
}

/// Reads the line that begins at `start`. `buf` is no longer than [`MAX_HEAD`].
fn next_line(buf: &[u8], start: usize) -> Result<Line, BadHead> {
    let Some(len) = memchr::memchr(b'\n', &buf[start..]) else { return Ok(Line::Partial) };
    let Some((b'\r', line)) = buf[start..start + len].split_last() else { return Err(BadHead::LineEnd) };
    match line {
        [] => return Ok(Line::Empty),
        [b' ' | b'\t', ..] => return Err(BadHead::Folded),
        _ => {}
    }
    let colon = memchr::memchr(b':', line).ok_or(BadHead::Name)?;
    let (mut value, mut end) = (colon + 1, line.len());
    while value < end && is_space(line[value]) {
        value += 1;
    }
    while value < end && is_space(line[end - 1]) {
        end -= 1;
    }
    if !is_value(&line[value..end]) {
        return Err(BadHead::Value);
    }
    let at = |offset: usize| u16::try_from(start + offset).map_err(|_| BadHead::TooLarge(MAX_HEAD as u32));
    let field = Field { name: at(0)?, colon: at(colon)?, value: at(value)?, end: at(end)? };
    Ok(Line::Field(field, start + len + 1))
}

/// Whether a value holds no control characters but tabs (RFC 9110, section 5.5).
fn is_value(text: &[u8]) -> bool {
    let (words, rest) = text.as_chunks::<8>();
    let suspect = words.iter().fold(false, |suspect, word| suspect | has_control(u64::from_le_bytes(*word)));
    let checked = if suspect { text } else { rest };
    checked.iter().all(|byte| !is_control(*byte))
}

/// Whether one of eight bytes is a control character, tabs among them.
fn has_control(word: u64) -> bool {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    let below_space = word.wrapping_sub(ONES * 0x20) & !word & HIGH;
    let delete = word ^ (ONES * 0x7f);
    (below_space | (delete.wrapping_sub(ONES) & !delete & HIGH)) != 0
}

fn is_control(byte: u8) -> bool {
    (byte < b' ' && byte != b'\t') || byte == 0x7f
}

/// Drops empty lines before a request, as RFC 9112, section 2.2, asks. False if there may be more of one to come.
pub(crate) fn skip_empty_lines(buf: &mut BytesMut) -> bool {
    while buf.starts_with(b"\r\n") {
        buf.advance(2);
    }
    !buf.is_empty() && &buf[..] != b"\r"
}

/// Reads the first line of a request; it ends at `end`.
fn request_line(head: &Bytes, end: usize, max_target: u32) -> Result<(Method, Uri, Version), BadHead> {
    let line = &head[..end];
    let first = line.iter().position(|byte| *byte == b' ').ok_or(BadHead::StartLine)?;
    let last = line.iter().rposition(|byte| *byte == b' ').filter(|last| *last > first).ok_or(BadHead::StartLine)?;
    let version = version(&line[last + 1..])?;
    let method = Method::from_bytes(&line[..first]).map_err(|_| BadHead::StartLine)?;
    let target = head.slice(first + 1..last);
    if target.len() > max_target as usize {
        return Err(BadHead::TargetTooLong(max_target));
    }
    if !target.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'#') {
        return Err(BadHead::Target);
    }
    let is_path = target.starts_with(b"/");
    let uri = Uri::from_maybe_shared(target).map_err(|_| BadHead::Target)?;
    if !is_path && !is_form_of(&method, &uri) {
        return Err(BadHead::Target);
    }
    Ok((method, uri, version))
}

/// Whether a target that is no path has the form that its method allows (RFC 9112, section 3.2).
fn is_form_of(method: &Method, uri: &Uri) -> bool {
    match *method {
        Method::CONNECT => uri.scheme().is_none() && uri.authority().is_some() && uri.path_and_query().is_none(),
        Method::OPTIONS if uri.path() == "*" => true,
        _ => uri.scheme().is_some() && uri.authority().is_some(),
    }
}

/// Reads the first line of a response.
fn status_line(line: &[u8]) -> Result<(StatusCode, Version), BadHead> {
    let version = version(line.get(..8).ok_or(BadHead::StartLine)?)?;
    let status = line.get(8..12).filter(|status| status[0] == b' ').ok_or(BadHead::StartLine)?;
    if !matches!(line.get(12), None | Some(b' ')) {
        return Err(BadHead::StartLine);
    }
    Ok((StatusCode::from_bytes(&status[1..]).map_err(|_| BadHead::StartLine)?, version))
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

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Box<Parts>, BadHead> {
        Reader::default().request(&mut BytesMut::from(text)).map(|head| head.expect("the head is whole"))
    }

    fn parse_response(text: &str) -> Result<ResponseHead, BadHead> {
        Reader::default().response(&mut BytesMut::from(text)).map(|head| head.expect("the head is whole"))
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
            let head = parse_response(&format!("{line}\r\nA: b\r\n\r\n")).unwrap();
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
        assert_eq!(parse(&target).unwrap_err(), BadHead::TargetTooLong(MAX_TARGET as u32));
        let fields = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_FIELDS + 1));
        assert_eq!(parse(&fields).unwrap_err(), BadHead::TooManyFields(MAX_FIELDS as u32));
        for text in ["a".repeat(MAX_HEAD), format!("GET / HTTP/1.1\r\nA: {}", "a".repeat(MAX_HEAD))] {
            assert_eq!(
                Reader::default().request(&mut BytesMut::from(&text[..])).unwrap_err(),
                BadHead::TooLarge(MAX_HEAD as u32)
            );
        }
        let room = MAX_HEAD - "GET / HTTP/1.1\r\nA: \r\n\r\n".len();
        for (len, fits) in [(room, true), (room + 1, false)] {
            assert_eq!(parse(&format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(len))).is_ok(), fits);
        }
    }

    #[test]
    fn malformed_responses_are_refused() {
        for line in ["HTTP/1.1 20", "HTTP/1.1 2000", "HTTP/1.1  200", "HTTP/1.1 abc", "HTTP/1.1\t200 OK", "ICY 200 OK", ""] {
            assert!(parse_response(&format!("{line}\r\n\r\n")).is_err(), "{line:?}");
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
        fn head_is_read_wherever_the_bytes_are_cut(cuts in proptest::collection::vec(1usize..40, 1..8)) {
            let text = b"GET / HTTP/1.1\r\nHost: a\r\nA-Name: \tvalue\twith tabs \r\n\r\nrest";
            let (mut reader, mut buf, mut have) = (Reader::default(), BytesMut::new(), 0);
            let mut found = None;
            for cut in cuts.into_iter().chain([text.len()]) {
                let more = (have + cut).min(text.len());
                buf.extend_from_slice(&text[have..more]);
                have = more;
                found = reader.request(&mut buf).unwrap();
                if found.is_some() { break }
            }
            let head = found.unwrap();
            prop_assert_eq!((&head.headers["host"], &head.headers["a-name"]), (&"a".parse().unwrap(), &"value\twith tabs".parse().unwrap()));
            prop_assert!(b"rest".starts_with(&buf));
        }

        #[test]
        fn values_are_those_of_the_library(value in proptest::collection::vec(any::<u8>().prop_filter("ends a line", |byte| *byte != b'\r'), 0..40)) {
            let mut text = BytesMut::from("GET / HTTP/1.1\r\nA:");
            text.extend_from_slice(&value);
            text.extend_from_slice(b"\r\n\r\n");
            let read = Reader::default().request(&mut text).map(|head| head.expect("it is whole").headers["a"].clone()).ok();
            let end = value.iter().rposition(|byte| !is_space(*byte)).map_or(0, |last| last + 1);
            let start = value.iter().position(|byte| !is_space(*byte)).unwrap_or(end);
            prop_assert_eq!(read, HeaderValue::from_bytes(&value[start..end]).ok());
        }

        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let buf = || BytesMut::from(&bytes[..]);
            let _ = (Reader::default().request(&mut buf()), Reader::default().response(&mut buf()));
            let _ = Reader::default().trailers(&mut buf());
        }
    }
}
