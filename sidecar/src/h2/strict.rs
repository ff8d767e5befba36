//! What a request over HTTP/2 or HTTP/3 must be beyond what the library asks (RFC 9113, section 8; RFC 9114, section 4). That of HTTP/2 refuses,
//! with a reset of the stream, pseudo-header fields that are absent, doubled, unknown or late, fields of the connection, upper-case names, and bodies that
//! are not as long as announced.

use http::{HeaderMap, Method, Version, header, request::Parts, uri::Scheme};

use crate::fields::Present;

/// Says what is wrong with a request.
pub(crate) fn check(parts: &Parts) -> Result<(), &'static str> {
    let uri = &parts.uri;
    if uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTP && *scheme != Scheme::HTTPS) {
        return Err("the scheme is not http or https");
    }
    if uri.authority().is_none() && !parts.headers.contains_key(header::HOST) {
        return Err("the request has neither :authority nor a Host field");
    }
    if !is_target_of(&parts.method, uri.path_and_query().map_or("", |target| target.as_str())) {
        return Err("the :path does not begin with a slash, or has characters that no path has");
    }
    if parts.version == Version::HTTP_3 {
        check_connection(&parts.headers)?;
    }
    check_fields(&parts.headers)
}

/// Fields of a connection, which the library of HTTP/3 lets pass.
pub(crate) fn check_connection(headers: &HeaderMap) -> Result<(), &'static str> {
    let present = Present::of(headers);
    let forbidden = Present::CONNECTION.and(Present::TRANSFER_ENCODING).and(Present::UPGRADE).and(Present::HOP);
    let te = || headers.get_all(header::TE).iter().any(|te| te != "trailers");
    if present.any(forbidden) || (present.any(Present::TE) && te()) {
        return Err("the request has fields of a connection");
    }
    Ok(())
}

/// Whether a path has the form that its method allows, and can be written on one line of HTTP/1.
fn is_target_of(method: &Method, target: &str) -> bool {
    let readable = target.bytes().all(|byte| byte.is_ascii_graphic());
    match target {
        "" => *method == Method::CONNECT,
        "*" => *method == Method::OPTIONS,
        // An extended CONNECT for what we do not speak would be one, too.
        _ => readable && target.starts_with('/') && *method != Method::CONNECT,
    }
}

fn check_fields(headers: &HeaderMap) -> Result<(), &'static str> {
    if headers.get_all(header::CONTENT_LENGTH).iter().nth(1).is_some() {
        return Err("the request has more than one Content-Length field");
    }
    let padded = |value: &[u8]| matches!(value, [b' ' | b'\t', ..] | [.., b' ' | b'\t']);
    if headers.values().any(|value| padded(value.as_bytes())) {
        return Err("a field's value begins or ends with white space");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::{Request, Uri};

    use super::*;

    fn parts(method: Method, uri: &str, fields: &[(&str, &str)]) -> Parts {
        let uri: Uri = uri.parse().unwrap();
        let request = Request::builder().method(method).uri(uri);
        let request = fields.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn target_has_the_form_that_its_method_allows() {
        for (method, target, good) in [
            (Method::GET, "/a?b=%20", true),
            (Method::GET, "*", false),
            (Method::OPTIONS, "*", true),
            (Method::GET, "", false),
            (Method::CONNECT, "", true),
            (Method::CONNECT, "/", false),
            (Method::GET, "a", false),
            (Method::GET, "http://b/", false),
            (Method::GET, "/ä", false),
            (Method::GET, "/a b", false),
            (Method::GET, "/a\r\nx: 1", false),
        ] {
            assert_eq!(is_target_of(&method, target), good, "{method} {target:?}");
        }
    }

    #[test]
    fn request_names_a_host_and_a_known_scheme() {
        assert!(check(&parts(Method::GET, "http://a/", &[])).is_ok());
        assert!(check(&parts(Method::GET, "/", &[("host", "a")])).is_ok());
        assert!(check(&parts(Method::GET, "/", &[])).is_err());
        assert!(check(&parts(Method::GET, "ftp://a/", &[])).is_err());
    }

    #[test]
    fn fields_are_not_padded_and_there_is_one_length() {
        for (fields, good) in [
            (&[("x", "a b"), ("content-length", "0")][..], true),
            (&[("x", "")], true),
            (&[("x", " a")], false),
            (&[("x", "a\t")], false),
            (&[("content-length", "0"), ("content-length", "0")], false),
        ] {
            assert_eq!(check(&parts(Method::GET, "http://a/", fields)).is_ok(), good, "{fields:?}");
        }
    }
}
