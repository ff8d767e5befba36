//! HTTP/1 is read in one way or not at all: each case says which bytes come in, and what each side gets.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
    time::timeout,
};

use crate::support::{Bystander, Counted, Origin, Proxy, read_head};

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
/// Nobody repeats it.
const POST: &str = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n";

/// A request that is no request, what the client is told, and what is counted.
const REFUSED: [(&str, u16, &str); 27] = [
    // The first line.
    ("GET / HTTP/9.9\r\nhost: a\r\n\r\n", 505, "malformed_request"),
    ("GET / HTTP/2.0\r\nhost: a\r\n\r\n", 505, "malformed_request"),
    ("GET  HTTP/1.1\r\nhost: a\r\n\r\n", 400, "malformed_request"),
    ("GET  / HTTP/1.1\r\nhost: a\r\n\r\n", 400, "malformed_request"),
    ("GET / x HTTP/1.1\r\nhost: a\r\n\r\n", 400, "malformed_request"),
    ("GET /#x HTTP/1.1\r\nhost: a\r\n\r\n", 400, "malformed_request"),
    ("GET / HTTP/1.1\nhost: a\n\n", 400, "malformed_request"),
    // Fields.
    ("GET / HTTP/1.1\r\nhost a\r\n\r\n", 400, "malformed_request"),
    ("GET / HTTP/1.1\r\nhost: a\r\nx : 1\r\n\r\n", 400, "malformed_request"),
    ("GET / HTTP/1.1\r\nhost: a\r\nx: 1\r\n 2\r\n\r\n", 400, "malformed_request"),
    ("GET / HTTP/1.1\r\nhost: a\r\nx: 1\r2\r\n\r\n", 400, "malformed_request"),
    ("GET / HTTP/1.1\r\nhost: a\r\nx: 1\n\r\n", 400, "malformed_request"),
    ("GET / HTTP/1.1\r\nhost: a\r\nx: \0\r\n\r\n", 400, "malformed_request"),
    ("GET / HTTP/1.1\r\nhost: a\r\n: 1\r\n\r\n", 400, "malformed_request"),
    // The host.
    ("GET / HTTP/1.1\r\n\r\n", 400, "http_request_error"),
    ("GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n", 400, "http_request_error"),
    ("GET / HTTP/1.1\r\nhost: user@a\r\n\r\n", 400, "http_request_error"),
    ("GET http://b/ HTTP/1.1\r\nhost: a\r\n\r\n", 400, "http_request_error"),
    // The framing.
    ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx", 400, "malformed_request"),
    ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\nx", 400, "malformed_request"),
    ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1, 1\r\n\r\nx", 400, "malformed_request"),
    ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n", 400, "malformed_request"),
    ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\nx", 400, "malformed_request"),
    ("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400, "malformed_request"),
    ("POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400, "malformed_request"),
    ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501, "malformed_request"),
    ("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n", 501, "malformed_request"),
];

#[tokio::test]
async fn request_that_could_be_read_in_two_ways_is_refused_and_its_connection_ends() {
    let origin = Origin::echo_head().await;
    let proxy = Proxy::before(origin.address);
    let mut other = Bystander::of(&proxy).await;
    for (request, status, reason) in REFUSED {
        let counted = Counted::by(&proxy);
        let mut client = proxy.client().await;
        client.send(request).await;
        client.send("GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let answer = String::from_utf8(client.rest().await).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{request:?}: {answer}");
        counted.once_more(&proxy, reason, request).await;
        other.is_served(request).await;
    }
    assert_eq!(origin.connections(), 1, "nothing of it all reached the origin");
}

#[tokio::test]
async fn response_that_could_be_read_in_two_ways_is_502_and_its_connection_is_not_used_again() {
    for (answer, error) in [
        ("HTTP/1.1 200 OK\nx: 1\n\n", "http_protocol_error"),
        ("HTTP/1.1 200 OK\r\nx : 1\r\n\r\n", "http_protocol_error"),
        ("HTTP/1.1 200 OK\r\nx: 1\r\n 2\r\n\r\n", "http_protocol_error"),
        ("HTTP/1.1 2000 OK\r\n\r\n", "http_protocol_error"),
        ("HTTP/2 200 OK\r\n\r\n", "http_protocol_error"),
        ("SSH-2.0-OpenSSH_9\r\n\r\n", "http_protocol_error"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx", "http_protocol_error"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\nx", "http_protocol_error"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1x\r\n\r\nx", "http_protocol_error"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "http_protocol_error"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nx", "http_response_transfer_coding"),
        ("", "http_response_incomplete"),
    ] {
        let origin = Origin::misbehaving(answer).await;
        let proxy = Proxy::before(origin.address);
        let mut other = Bystander::of(&proxy).await;
        for _ in 0..2 {
            let (counted, connections) = (Counted::by(&proxy), origin.connections());
            let response = proxy.ask(POST).await;
            assert_eq!(response.status, 502, "{answer:?}");
            assert!(response.field("proxy-status").contains(error), "{answer:?}: {}", response.head);
            counted.once_more(&proxy, error, answer).await;
            other.is_served(answer).await;
            assert_eq!(origin.connections(), connections + 1, "{answer:?}: the bystander needs another connection");
        }
    }
}

#[tokio::test]
async fn broken_chunks_of_an_upload_are_400_and_never_complete_at_the_origin() {
    let whole = Arc::new(Notify::new());
    let told = Arc::clone(&whole);
    let origin = Origin::scripted(move |mut stream, _| {
        let whole = Arc::clone(&told);
        async move {
            while let Some(head) = read_head(&mut stream).await {
                if head.contains(Bystander::PATH) {
                    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
                    continue;
                }
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest).await;
                if rest.ends_with(b"0\r\n\r\n") {
                    whole.notify_one();
                }
            }
        }
    })
    .await;
    let proxy = Proxy::before(origin.address);
    let mut other = Bystander::of(&proxy).await;
    for chunks in
        ["5\r\nhello0\r\n\r\n", "5\nhello\r\n0\r\n\r\n", "x\r\n", "5\r\nhello\r\n0\r\nx : 1\r\n\r\n", "-5\r\nhello\r\n0\r\n\r\n"]
    {
        let counted = Counted::by(&proxy);
        let mut client = proxy.client().await;
        client.send(format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{chunks}{GET}")).await;
        let answer = String::from_utf8(client.rest().await).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400") && answer.matches("HTTP/1.1").count() == 1, "{chunks:?}: {answer}");
        counted.once_more(&proxy, "http_request_body_broken", chunks).await;
        other.is_served(chunks).await;
    }
    assert!(timeout(Duration::ZERO, whole.notified()).await.is_err(), "no origin saw a last chunk");
}

#[tokio::test]
async fn bytes_behind_an_upgrade_wait_for_the_switch() {
    let (sent, answered) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (all_sent, answer) = (Arc::clone(&sent), Arc::clone(&answered));
    let origin = Origin::scripted(move |mut stream, _| {
        let (all_sent, answer) = (Arc::clone(&all_sent), Arc::clone(&answer));
        async move {
            read_head(&mut stream).await.unwrap();
            all_sent.notified().await;
            let early = timeout(Duration::from_millis(50), stream.read_u8()).await;
            assert!(early.is_err(), "a byte came before the 101: {early:?}");
            stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n").await.unwrap();
            let mut tunnelled = [0; 5];
            stream.read_exact(&mut tunnelled).await.unwrap();
            assert_eq!(&tunnelled, b"hello");
            answer.notify_one();
            stream.write_all(b"world").await.unwrap();
        }
    })
    .await;
    let proxy = Proxy::before(origin.address);
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nhello").await;
    sent.notify_one();
    assert_eq!(client.response().await.status, 101);
    assert_eq!(client.bytes(5).await, b"world");
    answered.notified().await;
}

#[tokio::test]
async fn connection_goes_on_after_an_answer_to_a_short_body_that_nobody_read() {
    let proxy = Proxy::before(Origin::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.address);
    proxy.apply(
        r#"[{"name": "r", "matches": [{"methods": ["POST"]}],
             "rateLimits": [{"name": "l", "limit": {"requests": 1, "per": "1h"}}]}]"#,
    );
    let mut client = proxy.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(client.response().await.status, 200);
    client.send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4000\r\n\r\n{}{GET}", "x".repeat(4000))).await;
    assert_eq!(client.response().await.status, 429);
    assert_eq!(client.response().await.text(), "ok");
}

#[tokio::test]
async fn long_body_that_nobody_read_ends_the_connection_and_is_never_a_request() {
    let proxy = Proxy::before(Origin::answering("HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\n\r\n").await.address);
    let mut client = proxy.client().await;
    let smuggled = GET.repeat(8000);
    client.send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", smuggled.len() + 1)).await;
    let (mut reader, mut writer) = client.0.into_split();
    let uploads = tokio::spawn(async move {
        let _ = writer.write_all(smuggled.as_bytes()).await;
        writer
    });
    let mut answer = Vec::new();
    let _ = timeout(crate::support::LONG, reader.read_to_end(&mut answer)).await.expect("an end in time");
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 413") && answer.matches("HTTP/1.1").count() == 1, "{answer}");
    uploads.await.unwrap();
}

#[tokio::test]
async fn answer_that_ends_with_its_connection_is_chunked_and_leaves_the_clients_connection_usable() {
    let proxy = Proxy::before(Origin::answering_once("HTTP/1.0 200 OK\r\n\r\nuntil the end").await.address);
    let mut client = proxy.client().await;
    for _ in 0..2 {
        client.send(GET).await;
        let response = client.response().await;
        assert_eq!((response.text(), response.field("transfer-encoding")), ("until the end", "chunked"));
    }
}

#[tokio::test]
async fn answer_that_came_before_the_upload_was_asked_for_is_passed_whole() {
    let origin = Origin::scripted(|mut stream, _| async move {
        read_head(&mut stream).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\none").await.unwrap();
        // Longer than the upload waits for a 100.
        tokio::time::sleep(Duration::from_millis(1300)).await;
        stream.write_all(b"two").await.unwrap();
    })
    .await;
    let proxy = Proxy::before(origin.address);
    let mut client = proxy.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 10\r\n\r\n").await;
    let response = client.response().await;
    assert_eq!((response.text(), response.field("connection")), ("onetwo", "close"));
}
