//! Responses of our own, and the last touch on those of upstreams. The only place that makes responses.

use std::fmt::Write as _;

use http::{HeaderName, HeaderValue, Response, StatusCode, Version, header};

use crate::{
    error::ForwardError,
    exchange::Exchange,
    fields::{self, Present},
    flow::Flow,
    h1::head::ResponseHead,
    limit,
    pressure::Step,
};

const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Why an exchange goes no further.
#[derive(Debug)]
pub(crate) enum Stop {
    /// A limit denied it.
    Limited,
    /// It could not be forwarded.
    Fail(ForwardError),
}

impl From<ForwardError> for Stop {
    fn from(error: ForwardError) -> Self {
        Self::Fail(error)
    }
}

/// Why there is no room for a client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum NoRoom {
    /// There are as many connections as may be.
    Connections,
    /// Memory is short.
    Memory,
}

impl NoRoom {
    /// The reason that it is counted by.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Connections => "connection_limit",
            Self::Memory => "memory_pressure",
        }
    }
}

/// Makes the response to the client of what came of its request.
pub(crate) fn render(outcome: Result<Box<Response<Flow>>, Stop>, ex: &mut Exchange) -> Box<Response<Flow>> {
    let mut response = match outcome {
        Ok(response) => of_upstream(response, ex),
        Err(Stop::Limited) => Box::new(limited(ex)),
        Err(Stop::Fail(error)) => Box::new(failed(&error, ex)),
    };
    ex.limits.write(response.headers_mut());
    if let Some(edits) = ex.route.headers() {
        edits.edit_response(response.headers_mut());
    }
    if let Some(alternative) = &ex.connection.alternative {
        response.headers_mut().entry(header::ALT_SVC).or_insert_with(|| alternative.clone());
    }
    let worker = &ex.connection.worker;
    if worker.drain.asks_to_close(ex.connection.direction) || worker.pressure.is(Step::Refuse) {
        response.body_mut().close();
    }
    response
}

/// The response to a CONNECT that we have connected.
pub(crate) fn connected() -> Response<Flow> {
    Response::new(Flow::bytes(""))
}

/// The head of an answer that switches protocols; what follows goes through the tunnel.
pub(crate) fn switched(head: Response<()>) -> Response<Flow> {
    let protocol = head.headers().get(header::UPGRADE).cloned();
    let mut response = head.map(|()| Flow::bytes(""));
    let headers = response.headers_mut();
    let present = Present::of(headers);
    fields::remove_hop_by_hop(headers, present);
    if let Some(protocol) = protocol {
        fields::set_upgrade(headers, protocol);
    }
    response.extensions_mut().clear();
    response
}

/// The answer to what is no request.
pub(crate) fn refused(status: StatusCode, why: &str) -> Response<Flow> {
    let mut response = Response::new(Flow::bytes(format!("fetchr: {why}\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert(PROXY_STATUS, HeaderValue::from_static("fetchr; error=http_request_error"));
    response
}

/// The answer in the place of one whose body broke off before anything of it was sent.
pub(crate) fn instead(error: &ForwardError) -> Response<Flow> {
    tracing::debug!(reason = error.reason(), "An answer broke off before anything of it was sent.");
    let mut response = refused(error.status(), &error.to_string());
    response.headers_mut().insert(PROXY_STATUS, proxy_status(error));
    response
}

/// The head of the answer to a client that there is no room for.
pub(crate) fn no_room(why: NoRoom) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    let headers = response.headers_mut();
    headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    headers.insert(
        PROXY_STATUS,
        HeaderValue::from_static(match why {
            NoRoom::Connections => "fetchr; error=connection_limit_reached; details=\"too many connections of clients\"",
            NoRoom::Memory => "fetchr; error=memory_pressure; details=\"memory is short\"",
        }),
    );
    response
}

fn of_upstream(mut response: Box<Response<Flow>>, ex: &mut Exchange) -> Box<Response<Flow>> {
    ex.settle(&mut response);
    let spoken = response.version();
    *response.version_mut() = Version::HTTP_11;
    response.extensions_mut().clear();
    let present = response.body().present();
    let headers = response.headers_mut();
    fields::remove_hop_by_hop(headers, present.unwrap_or_else(|| Present::of(headers)));
    ex.connection.via().append(headers, spoken);
    response
}

/// An interim answer of the upstream, as the client gets it.
pub(crate) fn interim(mut head: ResponseHead, ex: &Exchange) -> ResponseHead {
    let headers = &mut head.headers;
    let present = Present::of(headers);
    fields::remove_hop_by_hop(headers, present);
    ex.connection.via().append(headers, head.version);
    if let Some(edits) = ex.route.headers() {
        edits.edit_interim(headers);
    }
    head
}

fn limited(ex: &mut Exchange) -> Response<Flow> {
    ex.failed("rate_limited");
    let Some(denied) = ex.limits.denied() else { return own(StatusCode::TOO_MANY_REQUESTS, "a limit is used up", ex) };
    let again = denied.retry_after.map_or_else(
        || "the request is larger than the limit".to_owned(),
        |time| format!("try again in {} s", time.as_millis().div_ceil(1000)),
    );
    let text = format!("limit {} of {} ({}) is used up; {again}", denied.limit, denied.policy, denied.rule);
    if ex.grpc {
        return grpc(StatusCode::TOO_MANY_REQUESTS, &text);
    }
    let (content_type, body) = match denied.body {
        Some(body) => (body.content_type.clone(), String::from(&*body.text)),
        None => (HeaderValue::from_static("application/problem+json"), quota_exceeded(&denied, &text)),
    };
    with_body(StatusCode::TOO_MANY_REQUESTS, content_type, body, ex)
}

/// A problem (RFC 9457) of the type that draft-ietf-httpapi-ratelimit-headers-11 registers.
fn quota_exceeded(denied: &limit::Denied<'_>, text: &str) -> String {
    let problem = serde_json::json!({
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "A quota is used up",
        "status": StatusCode::TOO_MANY_REQUESTS.as_u16(),
        "detail": text,
        "violated-policies": [denied.limit],
    });
    format!("{problem}\n")
}

fn failed(error: &ForwardError, ex: &mut Exchange) -> Response<Flow> {
    ex.failed(error.reason());
    let cause = std::error::Error::source(error).map(ToString::to_string);
    tracing::debug!(reason = error.reason(), cause, "{error}.");
    let mut response = own(error.status(), &error.to_string(), ex);
    let headers = response.headers_mut();
    headers.insert(PROXY_STATUS, proxy_status(error));
    if error.status() == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"));
    }
    if error.status() == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, error.retry_after().into());
    }
    if error.poisons_connection() {
        response.body_mut().close();
    }
    response
}

/// `fetchr; error=connection_refused; details="..."` (RFC 9209).
fn proxy_status(error: &ForwardError) -> HeaderValue {
    let mut value = format!("fetchr; error={}; details=\"", error.reason());
    // A structured string holds printable ASCII, and escapes two of them (RFC 9651, section 3.3.3).
    for char in error.to_string().chars().filter(|char| char.is_ascii_graphic() || *char == ' ') {
        if matches!(char, '"' | '\\') {
            value.push('\\');
        }
        value.push(char);
    }
    value.push('"');
    HeaderValue::try_from(value).unwrap_or_else(|_| HeaderValue::from_static("fetchr; error=proxy_internal_error"))
}

fn own(status: StatusCode, text: &str, ex: &Exchange) -> Response<Flow> {
    if ex.grpc {
        return grpc(status, text);
    }
    with_body(status, HeaderValue::from_static("text/plain; charset=utf-8"), format!("fetchr: {text}\n"), ex)
}

fn with_body(status: StatusCode, content_type: HeaderValue, body: String, ex: &Exchange) -> Response<Flow> {
    let len = body.len();
    let mut response = Response::new(Flow::bytes(if ex.head_only { String::new() } else { body }));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_LENGTH, len.into());
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

/// A gRPC client reads no HTTP status: the call ends in the head of the response ("Trailers-Only").
fn grpc(status: StatusCode, text: &str) -> Response<Flow> {
    let code = match status {
        StatusCode::TOO_MANY_REQUESTS => "8", // RESOURCE_EXHAUSTED
        StatusCode::GATEWAY_TIMEOUT => "4",   // DEADLINE_EXCEEDED
        StatusCode::FORBIDDEN => "7",         // PERMISSION_DENIED
        status if status.is_client_error() || status == StatusCode::INTERNAL_SERVER_ERROR => "13", // INTERNAL
        _ => "14",                            // UNAVAILABLE
    };
    let mut message = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte == b'%' || !(b' '..=b'~').contains(&byte) {
            let _ = write!(message, "%{byte:02X}"); // writing to a string can't fail
        } else {
            message.push(byte.into());
        }
    }
    let mut response = Response::new(Flow::bytes(""));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(GRPC_STATUS, HeaderValue::from_static(code));
    if let Ok(message) = HeaderValue::try_from(message) {
        headers.insert(GRPC_MESSAGE, message);
    }
    response
}
