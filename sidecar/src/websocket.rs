//! WebSocket in the two forms that it opens with: an upgrade over HTTP/1 (RFC 6455), and an extended CONNECT over HTTP/2 (RFC 8441).
//! Inside of the proxy, and so for policies, it is always the upgrade: a GET with `Upgrade: websocket`.

use aws_lc_rs::{
    digest::{SHA1_FOR_LEGACY_USE_ONLY, digest},
    rand,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use hyper::ext::Protocol;

use crate::fields;

const KEY: HeaderName = header::SEC_WEBSOCKET_KEY;
const ACCEPT: HeaderName = header::SEC_WEBSOCKET_ACCEPT;
const VERSION: HeaderName = header::SEC_WEBSOCKET_VERSION;

/// What a server appends to the key before it hashes it (RFC 6455, section 1.3).
const MAGIC: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

const NAME: &str = "websocket";

/// Makes an upgrade of an extended CONNECT. False if it asks for another protocol, which nobody here speaks.
pub(crate) fn from_stream(parts: &mut Parts) -> bool {
    let Some(protocol) = parts.extensions.remove::<Protocol>() else { return true };
    if !protocol.as_str().eq_ignore_ascii_case(NAME) {
        return false;
    }
    parts.method = Method::GET;
    fields::set_upgrade(&mut parts.headers, HeaderValue::from_static(NAME));
    parts.headers.insert(KEY, key());
    parts.headers.entry(VERSION).or_insert(HeaderValue::from_static("13"));
    true
}

/// Whether a request as it goes to an upstream asks for WebSocket.
pub(crate) fn is_asked(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(is_websocket)
}

/// Whether these protocols to switch to are WebSocket and nothing else.
pub(crate) fn is_websocket(protocols: &HeaderValue) -> bool {
    protocols.as_bytes().eq_ignore_ascii_case(NAME.as_bytes())
}

/// Makes an extended CONNECT of an upgrade.
pub(crate) fn to_stream<B>(request: &mut Request<B>) {
    *request.method_mut() = Method::CONNECT;
    request.extensions_mut().insert(Protocol::from_static(NAME));
    for name in [header::CONNECTION, header::UPGRADE, KEY] {
        request.headers_mut().remove(name);
    }
}

/// The answer to an upgrade that a stream has granted.
pub(crate) fn switched(granted: &HeaderMap, asked: &HeaderMap) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    *headers = granted.clone();
    headers.remove(header::CONTENT_LENGTH);
    fields::set_upgrade(headers, HeaderValue::from_static(NAME));
    if let Some(accept) = asked.get(KEY).map(accept) {
        headers.insert(ACCEPT, accept);
    }
    response
}

/// Makes the answer to an extended CONNECT of a switch.
pub(crate) fn granted<B>(switched: &mut Response<B>) {
    *switched.status_mut() = StatusCode::OK;
    for name in [header::CONNECTION, header::UPGRADE, ACCEPT] {
        switched.headers_mut().remove(name);
    }
}

/// Whether a server that switched has read the key of the request.
pub(crate) fn is_accepted(answer: &HeaderMap, key: &HeaderValue) -> bool {
    answer.get(ACCEPT).is_some_and(|told| *told == accept(key))
}

/// The key of a request.
pub(crate) fn key_of(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.get(KEY)
}

fn accept(key: &HeaderValue) -> HeaderValue {
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key.as_bytes(), MAGIC].concat());
    base64(hash.as_ref())
}

/// A key of our own. If there is no randomness it is always the same, which only weakens its proof that a server is one of WebSocket.
fn key() -> HeaderValue {
    let mut nonce = [0; 16];
    let _ = rand::fill(&mut nonce);
    base64(&nonce)
}

fn base64(bytes: &[u8]) -> HeaderValue {
    HeaderValue::try_from(BASE64_STANDARD.encode(bytes)).expect("base64 is ASCII without control characters")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_is_accepted_as_the_standard_says() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let answer = [(ACCEPT, accept(&key))].into_iter().collect();
        assert!(is_accepted(&answer, &key));
        assert!(!is_accepted(&answer, &HeaderValue::from_static("other")));
        assert!(!is_accepted(&HeaderMap::new(), &key));
    }

    #[test]
    fn stream_becomes_an_upgrade_and_a_stream_again() {
        let request = Request::builder().method(Method::CONNECT).uri("http://a/chat").extension(Protocol::from_static(NAME));
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        assert!(from_stream(&mut parts));
        assert_eq!((&parts.method, &parts.headers["upgrade"]), (&Method::GET, &HeaderValue::from_static(NAME)));
        assert_eq!(parts.headers[KEY].len(), 24);
        assert!(is_asked(&parts.headers));
        let mut request = Request::from_parts(parts, ());
        to_stream(&mut request);
        assert_eq!(request.method(), Method::CONNECT);
        assert_eq!(request.headers().keys().collect::<Vec<_>>(), [&VERSION]);
    }

    #[test]
    fn other_protocols_are_not_spoken() {
        let request = Request::builder().method(Method::CONNECT).uri("http://a/").extension(Protocol::from_static("connect-udp"));
        assert!(!from_stream(&mut request.body(()).unwrap().into_parts().0));
    }
}
