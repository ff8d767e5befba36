//! HTTP/2 is read in one way or not at all: each case says which frames come in, and what each side gets.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    frames::{
        DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, Peer, RST_STREAM, SETTINGS, WINDOW_UPDATE, block, frame, get,
        request,
    },
    support::{Bystander, Counted, Origin, Proxy, read_chunks, read_head},
};

/// What a client gets.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Gets {
    /// An answer with that status.
    Status(u16),
    /// A reset of the stream with that code.
    Reset(u32),
    /// The end of the connection with that code.
    Leaves(u32),
}
use Gets::{Leaves, Reset, Status};

const PROTOCOL_ERROR: u32 = 1;
const MALFORMED: &str = "malformed_request";
const REQUEST_ERROR: &str = "http_request_error";

fn of(frame: &Frame) -> Gets {
    match frame.kind {
        HEADERS => Status(frame.status()),
        RST_STREAM => Reset(frame.code()),
        _ => Leaves(frame.code()),
    }
}

/// Sends frames on a connection of their own.
async fn gets(proxy: &Proxy, frames: &[u8]) -> Gets {
    let mut client = Peer::connect(proxy.address).await;
    client.send(frames).await;
    of(&client.next(&[HEADERS, RST_STREAM, GOAWAY]).await.expect("an answer"))
}

fn with(fields: &[(&str, &str)]) -> Vec<u8> {
    request(1, &get(fields))
}

fn only(fields: &[(&str, &str)]) -> Vec<u8> {
    request(1, fields)
}

fn path(path: &str) -> Vec<u8> {
    only(&[(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", path)])
}

/// Frames of a request that is none, what the client gets, and what is counted.
fn refused() -> Vec<(&'static str, Vec<u8>, Gets, &'static str)> {
    let reset = Reset(PROTOCOL_ERROR);
    let leaves = Leaves(PROTOCOL_ERROR);
    let (method, scheme, authority, root) = ((":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/"));
    vec![
        // Pseudo-header fields.
        ("no method", only(&[scheme, authority, root]), reset, MALFORMED),
        ("no scheme", only(&[method, authority, root]), reset, MALFORMED),
        ("no path", only(&[method, scheme, authority]), reset, MALFORMED),
        ("empty path", path(""), reset, MALFORMED),
        ("two methods", only(&[method, method, scheme, authority, root]), reset, MALFORMED),
        ("two paths", only(&[method, scheme, authority, root, root]), reset, MALFORMED),
        ("two authorities", only(&[method, scheme, authority, authority, root]), reset, MALFORMED),
        ("a late one", only(&[method, scheme, authority, ("x", "1"), root]), reset, MALFORMED),
        ("a status", with(&[(":status", "200")]), reset, MALFORMED),
        ("an unknown one", only(&[method, scheme, authority, root, (":x", "1")]), leaves, MALFORMED),
        ("a protocol without CONNECT", only(&[method, (":protocol", "websocket"), scheme, authority, root]), reset, MALFORMED),
        ("CONNECT with a path", only(&[(":method", "CONNECT"), authority, root]), reset, MALFORMED),
        ("CONNECT with a scheme", only(&[(":method", "CONNECT"), authority, scheme]), reset, MALFORMED),
        ("another scheme", only(&[method, (":scheme", "ftp"), authority, root]), Status(400), REQUEST_ERROR),
        // The host.
        ("no authority and no host", only(&[method, scheme, root]), Status(400), REQUEST_ERROR),
        ("a host unlike the authority", with(&[("host", "b")]), Status(400), REQUEST_ERROR),
        ("two hosts", with(&[("host", "a"), ("host", "a")]), Status(400), REQUEST_ERROR),
        ("userinfo", only(&[method, scheme, (":authority", "user@a"), root]), Status(400), REQUEST_ERROR),
        ("a broken authority", only(&[method, scheme, (":authority", "a b"), root]), reset, MALFORMED),
        // Fields of the connection.
        ("connection", with(&[("connection", "close")]), reset, MALFORMED),
        ("keep-alive", with(&[("keep-alive", "1")]), reset, MALFORMED),
        ("proxy-connection", with(&[("proxy-connection", "close")]), reset, MALFORMED),
        ("transfer-encoding", with(&[("transfer-encoding", "chunked")]), reset, MALFORMED),
        ("upgrade", with(&[("upgrade", "websocket")]), reset, MALFORMED),
        ("te", with(&[("te", "gzip")]), reset, MALFORMED),
        // What would be something else over HTTP/1.
        ("an upper-case name", with(&[("X-A", "1")]), leaves, MALFORMED),
        ("a name with a colon", with(&[("x:a", "1")]), leaves, MALFORMED),
        ("a name with a space", with(&[("x a", "1")]), leaves, MALFORMED),
        ("a name with a line break", with(&[("x\r\na", "1")]), leaves, MALFORMED),
        ("an empty name", with(&[("", "1")]), leaves, MALFORMED),
        ("a value with a line break", with(&[("x", "1\r\ny: 2")]), leaves, MALFORMED),
        ("a value with a line feed", with(&[("x", "1\n2")]), leaves, MALFORMED),
        ("a value with a NUL", with(&[("x", "1\0")]), leaves, MALFORMED),
        ("a value with space before it", with(&[("x", " 1")]), Status(400), REQUEST_ERROR),
        ("a value with space after it", with(&[("x", "1 ")]), Status(400), REQUEST_ERROR),
        ("a method with a line break", only(&[(":method", "GET / HTTP/1.1\r\n"), scheme, authority, root]), leaves, MALFORMED),
        ("a path with a line break", path("/ HTTP/1.1\r\nhost: b"), reset, MALFORMED),
        ("a path with a space", path("/a b"), reset, MALFORMED),
        ("a path with a NUL", path("/\0"), reset, MALFORMED),
        ("a path that is a URL", path("http://b/"), reset, MALFORMED),
        ("a path without a slash", path("a"), reset, MALFORMED),
        ("a star", path("*"), Status(400), REQUEST_ERROR),
        // The length.
        ("a length without a body", with(&[("content-length", "5")]), reset, MALFORMED),
        ("two lengths", with(&[("content-length", "0"), ("content-length", "1")]), reset, MALFORMED),
        ("one length twice", with(&[("content-length", "0"), ("content-length", "0")]), Status(400), REQUEST_ERROR),
        ("a length with a sign", with(&[("content-length", "+0")]), reset, MALFORMED),
        // TRACE.
        ("TRACE", only(&[(":method", "TRACE"), scheme, authority, root]), Status(405), "http_request_denied"),
    ]
}

#[tokio::test]
async fn stream_that_is_no_request_is_refused_counted_and_never_reaches_the_origin() {
    let origin = Origin::echo_head().await;
    let proxy = Proxy::before(origin.address);
    let mut other = Bystander::of(&proxy).await;
    let mut wrong = Vec::new();
    for (name, frames, expected, reason) in refused() {
        let counted = Counted::by(&proxy);
        let got = gets(&proxy, &frames).await;
        if got != expected {
            wrong.push((name, got));
            continue;
        }
        counted.once_more(&proxy, reason, name).await;
        other.is_served(name).await;
    }
    assert_eq!(wrong, [], "and what its client got");
    assert_eq!(origin.connections(), 1, "nothing of it all reached the origin");
}

#[tokio::test]
async fn request_of_one_reading_reaches_an_http1_origin_in_that_reading() {
    let proxy = Proxy::before(Origin::echo_head().await.address);
    for (name, frames) in [
        ("host instead of authority", only(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", "a")])),
        ("the same host", with(&[("host", "A")])),
        ("te: trailers", with(&[("te", "trailers")])),
        ("crumbs", with(&[("cookie", "a=1"), ("cookie", "b=2")])),
        ("an OPTIONS star", only(&[(":method", "OPTIONS"), (":scheme", "http"), (":authority", "a"), (":path", "*")])),
    ] {
        let mut client = Peer::connect(proxy.address).await;
        client.send(&frames).await;
        assert_eq!(client.next(&[HEADERS, RST_STREAM, GOAWAY]).await.map(|found| of(&found)), Some(Status(200)), "{name}");
        let head = String::from_utf8(client.next(&[DATA]).await.unwrap().payload).unwrap();
        assert_eq!(head.to_ascii_lowercase().matches("\r\nhost: a\r\n").count(), 1, "{name}: {head}");
        assert!(!head.contains("cookie") || head.contains("cookie: a=1; b=2\r\n"), "{name}: {head}");
    }
}

/// A body that is not what was announced must not look whole to the origin.
#[tokio::test]
async fn body_unlike_its_length_is_never_whole_at_the_origin() {
    let (ends, mut ended) = tokio::sync::mpsc::unbounded_channel();
    let origin = Origin::scripted(move |mut stream, _| {
        let ends = ends.clone();
        async move {
            let head = read_head(&mut stream).await.unwrap();
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            ends.send((head, rest)).unwrap();
        }
    })
    .await;
    let proxy = Proxy::before(origin.address);
    let post = |length: &str| {
        let fields = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/"), ("content-length", length)];
        frame(HEADERS, END_HEADERS, 1, &block(&fields))
    };
    for (length, data, more) in [
        ("3", frame(DATA, END_STREAM, 1, b"xx"), Vec::new()),
        ("1", frame(DATA, END_STREAM, 1, b"xx"), Vec::new()),
        ("3", frame(DATA, 0, 1, b"xx"), frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[("x-sum", "1")]))),
        ("3", frame(DATA, 0, 1, b"xx"), frame(HEADERS, END_HEADERS, 1, &block(&[("x-sum", "1")]))),
        ("3", frame(DATA, 0, 1, b"xx"), frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[("connection", "close")]))),
    ] {
        let mut client = Peer::connect(proxy.address).await;
        client.send(&[post(length), data, more].concat()).await;
        let answer = of(&client.next(&[HEADERS, RST_STREAM]).await.unwrap());
        assert!(matches!(answer, Reset(PROTOCOL_ERROR) | Status(400)), "{length}: {answer:?}");
        // The stream may be refused before its head is sent on.
        if let Ok(Some((_, rest))) = tokio::time::timeout(Duration::from_millis(50), ended.recv()).await {
            assert!(rest.len() < length.parse().unwrap(), "{length}: {rest:?}");
        }
    }
}

/// An upstream over HTTP/2 that answers each request with frames, and bystanders well.
async fn origin(answer: fn(u32) -> Vec<u8>) -> Origin {
    Origin::scripted(move |mut stream, _| async move {
        let mut preface = [0; 24];
        if stream.read_exact(&mut preface).await.is_err() {
            return;
        }
        let mut peer = Peer(stream);
        peer.send(&frame(SETTINGS, 0, 0, &[])).await;
        while let Some(found) = peer.next(&[HEADERS]).await {
            // Bystanders send GET, which stands at this place of the static table; others send POST.
            let is_bystander = found.payload[0] == 0x82;
            peer.send(&if is_bystander { answered(found.stream, &[(":status", "204")]) } else { answer(found.stream) }).await;
        }
    })
    .await
}

fn answered(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    request(stream, fields)
}

#[tokio::test]
async fn answer_over_http2_that_is_none_is_502_and_the_next_request_is_served() {
    type Answer = fn(u32) -> Vec<u8>;
    let cases: [(&str, Answer); 12] = [
        ("no status", |stream| answered(stream, &[("x", "1")])),
        ("two states", |stream| answered(stream, &[(":status", "200"), (":status", "200")])),
        ("a late status", |stream| answered(stream, &[("x", "1"), (":status", "200")])),
        ("a status of four digits", |stream| answered(stream, &[(":status", "2000")])),
        ("an unknown pseudo-header", |stream| answered(stream, &[(":status", "200"), (":x", "1")])),
        ("connection", |stream| answered(stream, &[(":status", "200"), ("connection", "close")])),
        ("transfer-encoding", |stream| answered(stream, &[(":status", "200"), ("transfer-encoding", "chunked")])),
        ("an upper-case name", |stream| answered(stream, &[(":status", "200"), ("X-A", "1")])),
        ("a value with a line break", |stream| answered(stream, &[(":status", "200"), ("x", "1\r\ny: 2")])),
        ("a length without a body", |stream| answered(stream, &[(":status", "200"), ("content-length", "5")])),
        ("a window beyond its limit", |_| frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes())),
        ("a body before the head", |stream| frame(DATA, END_STREAM, stream, b"x")),
    ];
    for (name, answer) in cases {
        let proxy = Proxy::with(&format!("h2c://{}", origin(answer).await.address), |_| {});
        let mut other = Bystander::of(&proxy).await;
        for _ in 0..2 {
            let counted = Counted::by(&proxy);
            let response = proxy.ask("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await;
            assert_eq!(response.status, 502, "{name}");
            assert!(response.field("proxy-status").contains("http_protocol_error"), "{name}: {}", response.head);
            counted.once_more(&proxy, "http_protocol_error", name).await;
            other.is_served(name).await;
        }
    }
}

/// An origin that says which trailers it got.
async fn tells_trailers() -> Origin {
    Origin::scripted(|mut stream, _| async move {
        while read_head(&mut stream).await.is_some() {
            let trailers = read_chunks(&mut stream).await.1;
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{trailers}", trailers.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await
}

/// A request with a body, then trailers.
fn with_trailers(trailers: &[(&str, &str)]) -> Vec<u8> {
    let head = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/")];
    [frame(HEADERS, END_HEADERS, 1, &block(&head)), frame(DATA, 0, 1, b"body"), request(1, trailers)].concat()
}

#[tokio::test]
async fn trailers_that_are_none_are_refused() {
    let proxy = Proxy::before(tells_trailers().await.address);
    let leaves = Leaves(PROTOCOL_ERROR);
    for (trailers, expected) in [
        ([("x-end", "1"), (":method", "POST")], Reset(PROTOCOL_ERROR)),
        ([(":path", "/"), (":path", "/")], Reset(PROTOCOL_ERROR)),
        ([(":x", "1"), ("x-end", "1")], leaves),
        ([("X-End", "1"), ("x-end", "1")], leaves),
    ] {
        assert_eq!(gets(&proxy, &with_trailers(&trailers)).await, expected, "{trailers:?}");
    }
}

/// The library drops them without a word.
#[tokio::test]
async fn pseudo_header_fields_in_trailers_go_nowhere() {
    let fields = [(":path", "/other"), (":status", "200"), ("x-end", "1")];
    let proxy = Proxy::before(tells_trailers().await.address);
    let mut client = Peer::connect(proxy.address).await;
    client.send(&with_trailers(&fields)).await;
    assert_eq!(client.next(&[HEADERS, RST_STREAM, GOAWAY]).await.map(|found| of(&found)), Some(Status(200)));
    assert_eq!(client.next(&[DATA]).await.unwrap().payload, b"x-end: 1\n");

    let origin = origin(|stream| {
        let head = frame(HEADERS, END_HEADERS, stream, &block(&[(":status", "200")]));
        [head, frame(DATA, 0, stream, b"body"), request(stream, &[(":path", "/other"), (":status", "500"), ("x-end", "1")])]
            .concat()
    });
    let proxy = Proxy::with(&format!("h2c://{}", origin.await.address), |_| {});
    let answer = proxy.ask("POST / HTTP/1.1\r\nhost: a\r\nte: trailers\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!((answer.status, answer.text(), &*answer.trailers), (200, "body", "x-end: 1\n"));
}
