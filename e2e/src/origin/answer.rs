//! What each path answers.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{Body, Connection, REQUEST_NUMBER};

const MAX_BYTES: u64 = 1 << 30;
const PIECE: u64 = 64 << 10;
const HALF: usize = 1024;

/// A body that ends early on purpose.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("broken on purpose")]
pub(super) struct Broken;

pub(super) async fn answer(request: Request<Incoming>, connection: Connection) -> Response<Body> {
    note(&request, &connection);
    let path = request.uri().path().to_owned();
    let query = Query::of(&request);
    match path.split('/').skip(1).collect::<Vec<_>>()[..] {
        ["echo"] => echo(request, &connection).await,
        ["headers"] => json_reply(&headers(request.headers())),
        ["slow"] => slow(&query).await,
        ["stream"] => streamed(&query),
        ["status", code] => status(code),
        ["bytes", count] => bytes(count),
        ["trailers"] => trailers(request).await,
        ["fail"] => fail(&query, &connection).await,
        ["ws"] => upgrade(request),
        ["seen"] => seen(&request, &connection),
        ["count", tag] => counted(tag, &query, &connection).await,
        ["healthz"] => health(&query, &connection),
        _ => text(StatusCode::OK, &format!("{} {path}\n", connection.memory.name)),
    }
}

fn note(request: &Request<Incoming>, connection: &Connection) {
    let number = request.headers().get(REQUEST_NUMBER).and_then(|value| value.to_str().ok()?.parse().ok());
    if let (Some(number), Ok(mut seen)) = (number, connection.memory.seen.lock()) {
        seen.add(number);
    }
}

async fn echo(request: Request<Incoming>, connection: &Connection) -> Response<Body> {
    let (head, mut body) = request.into_parts();
    let mut size = 0;
    while let Some(Ok(frame)) = body.frame().await {
        size += frame.data_ref().map_or(0, Bytes::len);
    }
    json_reply(&json!({
        "name": connection.memory.name,
        "peer": connection.peer.ip(),
        "method": head.method.as_str(),
        "path": head.uri.path_and_query().map_or("", |path| path.as_str()),
        "version": format!("{:?}", head.version),
        "headers": headers(&head.headers),
        "body": size,
    }))
}

fn headers(map: &HeaderMap) -> Value {
    let mut all: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, value) in map {
        all.entry(name.as_str()).or_default().push(String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    json!(all)
}

/// An answer that is another one each time: host and number. `ms` delays it, and it has a tag to be purged by.
async fn counted(tag: &str, query: &Query, connection: &Connection) -> Response<Body> {
    let number = connection.memory.counted.fetch_add(1, Ordering::SeqCst) + 1;
    sleep(Duration::from_millis(query.number("ms", 0))).await;
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| connection.memory.name.clone());
    let mut response = text(StatusCode::OK, &format!("{host} {number}\n"));
    if let Ok(tag) = tag.parse() {
        response.headers_mut().insert("xkey", tag);
    }
    response
}

async fn slow(query: &Query) -> Response<Body> {
    let ms = query.number("ms", 1000);
    sleep(Duration::from_millis(ms)).await;
    text(StatusCode::OK, &format!("after {ms} ms\n"))
}

fn streamed(query: &Query) -> Response<Body> {
    let (chunks, ms, size) = (query.number("chunks", 10), query.number("ms", 100), query.number("size", 64).min(PIECE));
    let chunk = Bytes::from(vec![b'.'; usize::try_from(size).unwrap_or(64)]);
    let frames = stream::iter(0..chunks).then(move |index| {
        let chunk = chunk.clone();
        async move {
            if index > 0 {
                sleep(Duration::from_millis(ms)).await;
            }
            Ok(Frame::data(chunk))
        }
    });
    Response::new(BodyExt::boxed(StreamBody::new(frames)))
}

fn status(code: &str) -> Response<Body> {
    match StatusCode::from_bytes(code.as_bytes()) {
        Ok(status) if status.as_u16() >= 200 => text(status, ""),
        _ => text(StatusCode::BAD_REQUEST, "expected /status/CODE with a final status, such as /status/503\n"),
    }
}

fn bytes(count: &str) -> Response<Body> {
    let Some(count) = count.parse::<u64>().ok().filter(|count| *count <= MAX_BYTES) else {
        return text(StatusCode::BAD_REQUEST, "expected /bytes/N with N up to 1073741824\n");
    };
    let pieces = (0..count.div_ceil(PIECE)).map(move |index| (count - index * PIECE).min(PIECE));
    let frames = stream::iter(pieces.map(|size| Ok(Frame::data(Bytes::from(vec![b'x'; usize::try_from(size).unwrap_or(0)])))));
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(count));
    response
}

/// A body, then the trailers `x-end` and, as `x-got-NAME`, those of the request.
async fn trailers(request: Request<Incoming>) -> Response<Body> {
    let got = request.into_body().collect().await.ok().and_then(|body| body.trailers().cloned()).unwrap_or_default();
    let mut end = HeaderMap::from_iter([(HeaderName::from_static("x-end"), HeaderValue::from_static("reached"))]);
    for (name, value) in &got {
        if let Ok(name) = HeaderName::try_from(format!("x-got-{name}")) {
            end.insert(name, value.clone());
        }
    }
    let names: Vec<&str> = end.keys().map(HeaderName::as_str).collect();
    let announced = HeaderValue::try_from(names.join(", ")).ok();
    let frames = stream::iter([Ok(Frame::data(Bytes::from_static(b"body\n"))), Ok(Frame::trailers(end))]);
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    if let Some(announced) = announced {
        response.headers_mut().insert(http::header::TRAILER, announced);
    }
    response
}

async fn fail(query: &Query, connection: &Connection) -> Response<Body> {
    let partial = |sent: usize| {
        let frames = stream::iter([Ok(Frame::data(Bytes::from(vec![b'h'; sent])))]).chain(stream::once(async {
            // The half that is sent leaves first.
            sleep(Duration::from_millis(20)).await;
            Err(Broken)
        }));
        let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(2 * HALF));
        response
    };
    let how = query.text("how").unwrap_or_default();
    match how {
        "never" => std::future::pending().await,
        "half" => partial(HALF),
        "close" => end_now(connection).await,
        "reset" => {
            reset_on_close(connection);
            end_now(connection).await
        }
        "half-reset" => {
            reset_on_close(connection);
            partial(HALF)
        }
        _ => text(StatusCode::BAD_REQUEST, "expected how=never, close, reset, half or half-reset\n"),
    }
}

/// Ends the whole connection without an answer.
async fn end_now(connection: &Connection) -> Response<Body> {
    connection.cut.cancel();
    std::future::pending().await
}

/// With no time to linger, the kernel answers a close with a reset.
fn reset_on_close(connection: &Connection) {
    if let Ok(mut socket) = connection.socket.lock()
        && let Some(socket) = socket.take()
    {
        // A socket that is gone already can't be reset.
        let _ = socket2::Socket::from(socket).set_linger(Some(Duration::ZERO));
    }
}

/// Switches to the protocol that the client names, in which every byte is sent back.
fn upgrade(mut request: Request<Incoming>) -> Response<Body> {
    let Some(protocol) = request.headers().get(UPGRADE).cloned() else {
        return text(StatusCode::UPGRADE_REQUIRED, "expected an Upgrade field\n");
    };
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgraded.await {
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgraded));
            // The client ends it in its own way.
            let _ = tokio::io::copy(&mut read, &mut write).await;
        }
    });
    let mut response = text(StatusCode::SWITCHING_PROTOCOLS, "");
    response.headers_mut().remove(CONTENT_TYPE);
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, protocol);
    response
}

fn seen(request: &Request<Incoming>, connection: &Connection) -> Response<Body> {
    let Ok(mut seen) = connection.memory.seen.lock() else { return text(StatusCode::INTERNAL_SERVER_ERROR, "") };
    let report = seen.report();
    if request.method() == http::Method::DELETE {
        *seen = super::Seen::default();
    }
    json_reply(&report)
}

fn health(query: &Query, connection: &Connection) -> Response<Body> {
    match query.text("set") {
        Some("fail") => connection.memory.healthy.store(false, Ordering::Relaxed),
        Some("ok") => connection.memory.healthy.store(true, Ordering::Relaxed),
        _ => {}
    }
    match connection.memory.healthy.load(Ordering::Relaxed) {
        true => text(StatusCode::OK, "ok\n"),
        false => text(StatusCode::SERVICE_UNAVAILABLE, "failing\n"),
    }
}

fn text(status: StatusCode, text: &str) -> Response<Body> {
    reply(status, "text/plain", Bytes::from(text.to_owned()))
}

fn json_reply(value: &Value) -> Response<Body> {
    reply(StatusCode::OK, "application/json", Bytes::from(value.to_string()))
}

fn reply(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Full::new(body).map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

struct Query(BTreeMap<String, String>);

impl Query {
    fn of(request: &Request<Incoming>) -> Self {
        let pairs = request.uri().query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        Self(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn number(&self, name: &str, default: u64) -> u64 {
        self.text(name).and_then(|text| text.parse().ok()).unwrap_or(default)
    }
}
