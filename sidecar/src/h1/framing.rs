//! Where a body ends (RFC 9112, section 6): one reading, or none.

use http::{HeaderMap, Method, StatusCode, Version, header};

use crate::fields::Present;

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Framing {
    /// After so many bytes; 0 is no body.
    Length(u64),
    /// After the last chunk.
    Chunked,
    /// When the connection closes; only responses.
    Close,
}

/// Why the framing of a message was refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum BadFraming {
    #[error("the message has both Transfer-Encoding and Content-Length")]
    Both,
    #[error("Transfer-Encoding is not \"chunked\" alone")]
    Coding,
    #[error("an HTTP/1.0 message can't have Transfer-Encoding")]
    CodingIn10,
    #[error("Content-Length is not one number")]
    Length,
}

impl BadFraming {
    /// The status that tells the client of a request: a coding that we do not know is 501 (RFC 9112, section 6.1).
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::Coding => StatusCode::NOT_IMPLEMENTED,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// The framing of a request.
pub(crate) fn request(version: Version, headers: &HeaderMap) -> Result<Framing, BadFraming> {
    if let Some(framing) = coded(version, headers)? {
        return Ok(framing);
    }
    Ok(Framing::Length(length(headers)?.unwrap_or(0)))
}

/// The framing of the response to a request of that method. An interim response or one to CONNECT that opens a tunnel has no body.
pub(crate) fn response(
    method: &Method,
    status: StatusCode,
    version: Version,
    headers: &HeaderMap,
    present: Present,
) -> Result<Framing, BadFraming> {
    let coded = if present.any(Present::TRANSFER_ENCODING) { coded(version, headers)? } else { None };
    let length = if coded.is_none() && present.any(Present::CONTENT_LENGTH) { length(headers)? } else { None };
    let bodiless = *method == Method::HEAD
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || (*method == Method::CONNECT && status.is_success());
    if bodiless {
        return Ok(Framing::Length(0));
    }
    Ok(coded.unwrap_or_else(|| length.map_or(Framing::Close, Framing::Length)))
}

fn coded(version: Version, headers: &HeaderMap) -> Result<Option<Framing>, BadFraming> {
    let mut lines = headers.get_all(header::TRANSFER_ENCODING).iter();
    let Some(coding) = lines.next() else { return Ok(None) };
    if version == Version::HTTP_10 {
        return Err(BadFraming::CodingIn10);
    }
    if headers.contains_key(header::CONTENT_LENGTH) {
        return Err(BadFraming::Both);
    }
    if lines.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
        return Err(BadFraming::Coding);
    }
    Ok(Some(Framing::Chunked))
}

fn length(headers: &HeaderMap) -> Result<Option<u64>, BadFraming> {
    let mut lines = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(length) = lines.next() else { return Ok(None) };
    if lines.next().is_some() {
        return Err(BadFraming::Length);
    }
    digits(length.as_bytes()).ok_or(BadFraming::Length).map(Some)
}

/// A decimal number without sign; none if it is not one, or beyond 64 bits.
fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn request_has_one_reading_or_none() {
        const CL: &str = "content-length";
        const TE: &str = "transfer-encoding";
        for (lines, expected) in [
            (&[][..], Ok(Framing::Length(0))),
            (&[(CL, "5")], Ok(Framing::Length(5))),
            (&[(TE, "Chunked")], Ok(Framing::Chunked)),
            (&[(CL, "5"), (CL, "5")], Err(BadFraming::Length)),
            (&[(CL, "5, 5")], Err(BadFraming::Length)),
            (&[(CL, "+5")], Err(BadFraming::Length)),
            (&[(CL, "-1")], Err(BadFraming::Length)),
            (&[(CL, "0x5")], Err(BadFraming::Length)),
            (&[(CL, "")], Err(BadFraming::Length)),
            (&[(CL, "18446744073709551616")], Err(BadFraming::Length)),
            (&[(CL, "18446744073709551615")], Ok(Framing::Length(u64::MAX))),
            (&[(TE, "chunked"), (CL, "5")], Err(BadFraming::Both)),
            (&[(TE, "gzip, chunked")], Err(BadFraming::Coding)),
            (&[(TE, "chunked, chunked")], Err(BadFraming::Coding)),
            (&[(TE, "chunked"), (TE, "identity")], Err(BadFraming::Coding)),
            (&[(TE, "\u{b}chunked")], Err(BadFraming::Coding)),
            (&[(TE, "")], Err(BadFraming::Coding)),
        ] {
            if lines.iter().any(|(_, value)| http::HeaderValue::from_str(value).is_err()) {
                continue; // the reader of heads has refused it
            }
            assert_eq!(request(Version::HTTP_11, &headers(lines)), expected, "{lines:?}");
        }
        assert_eq!(request(Version::HTTP_10, &headers(&[(TE, "chunked")])), Err(BadFraming::CodingIn10));
    }

    #[test]
    fn response_depends_on_method_and_status() {
        let five = [("content-length", "5")];
        let of = |method, status, lines: &[_]| {
            let headers = headers(lines);
            let (status, present) = (StatusCode::from_u16(status).unwrap(), Present::of(&headers));
            response(&method, status, Version::HTTP_11, &headers, present).unwrap()
        };
        assert_eq!(of(Method::GET, 200, &five), Framing::Length(5));
        assert_eq!(of(Method::GET, 200, &[]), Framing::Close);
        assert_eq!(of(Method::GET, 200, &[("transfer-encoding", "chunked")]), Framing::Chunked);
        for (method, status) in [(Method::HEAD, 200), (Method::GET, 304), (Method::GET, 204), (Method::CONNECT, 200)] {
            assert_eq!(of(method, status, &five), Framing::Length(0));
        }
        assert_eq!(of(Method::CONNECT, 404, &five), Framing::Length(5));
    }
}
