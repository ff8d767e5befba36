//! What a client may ask of the proxy, as the FetchrProxy says: each limit with a client that goes beyond it, and one that does not.

use std::time::Duration;

use crds::{
    proxy::{FetchrProxySpec, HttpLimits},
    scalar::Size,
};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::{
    frames::{
        DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Peer, RST_STREAM, SETTINGS, WINDOW_UPDATE, block, frame, get, request,
    },
    support::{Bystander, Client, Counted, LONG, Origin, Proxy, eventually, ms, read_chunks, read_head},
};

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

/// In front of an origin that speaks HTTP/1, with these limits.
fn limited(origin: &Origin, change: impl FnOnce(&mut HttpLimits)) -> Proxy {
    Proxy::with(&format!("http://{}", origin.address), |settings| change(&mut settings.http.limits))
}

#[tokio::test]
async fn limits_of_the_proxy_hold_on_both_protocols_and_to_the_byte() {
    let origin = Origin::echo_head().await;
    let proxy = limited(&origin, |limits| {
        (limits.max_head, limits.max_fields) = (Size::kib(4), 10);
        (limits.max_target, limits.max_body) = (Size::kib(1), Some(Size(10)));
    });
    let mut other = Bystander::of(&proxy).await;
    let head =
        |size: usize| format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(size - GET.len() - "x: \r\n".len()));
    let fields = |count: usize| format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: 1\r\n".repeat(count - 1));
    let target = |size: usize| format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "a".repeat(size - 1));
    let body = |size: usize| format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n{}", "x".repeat(size));
    let chunks = |size: usize| {
        let chunk = format!("1\r\n{}\r\n", 'x').repeat(size);
        format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{chunk}0\r\n\r\n")
    };
    for (name, most, beyond, status, reason) in [
        ("head", head(4096), head(4097), 431, "header_too_large"),
        ("fields", fields(10), fields(11), 431, "header_too_large"),
        ("target", target(1024), target(1025), 414, "target_too_long"),
        ("body", body(10), body(11), 413, "http_request_body_too_large"),
        ("chunked body", chunks(10), chunks(11), 413, "http_request_body_too_large"),
    ] {
        assert_eq!(proxy.ask(&most).await.status, 200, "{name}");
        let (counted, mut client) = (Counted::by(&proxy), proxy.client().await);
        client.send(&beyond).await;
        let response = client.response().await;
        assert_eq!((response.status, response.field("connection")), (status, "close"), "{name}: {}", response.text());
        assert!(client.rest().await.is_empty(), "{name}");
        counted.once_more(&proxy, reason, name).await;
        other.is_served(name).await;
    }
    let long = format!("/{}", "a".repeat(1024));
    let many: Vec<_> = (0..11).map(|_| ("x", "1")).collect();
    let large = "x".repeat(4096);
    let post = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/")];
    let upload = |length: &[(&str, &str)]| frame(HEADERS, END_HEADERS, 1, &block(&[&post, length].concat()));
    let data = frame(DATA, END_STREAM, 1, &[b'x'; 11]);
    for (name, frames, status, reason) in [
        ("head", request(1, &get(&[("x", &large)])), 431, "header_too_large"),
        ("fields", request(1, &get(&many)), 431, "http_request_error"),
        ("target", request(1, &[post[0], post[1], post[2], (":path", &long)]), 414, "target_too_long"),
        ("body", [upload(&[("content-length", "11")]), data.clone()].concat(), 413, "http_request_body_too_large"),
        ("body of no length", [upload(&[]), data.clone()].concat(), 413, "http_request_body_too_large"),
    ] {
        let (counted, mut client) = (Counted::by(&proxy), Peer::connect(proxy.address).await);
        client.send(&frames).await;
        assert_eq!(client.next(&[HEADERS]).await.unwrap().status(), status, "{name}");
        counted.once_more(&proxy, reason, name).await;
        other.is_served(name).await;
    }
}

#[tokio::test]
async fn changed_limits_hold_at_once_for_bodies_and_for_the_heads_of_new_connections() {
    let origin = Origin::echo_head().await;
    let mut proxy = limited(&origin, |_| {});
    let mut client = proxy.client().await;
    client.send(GET).await;
    assert_eq!(client.response().await.status, 200);
    (proxy.settings.http.limits.max_head, proxy.settings.http.limits.max_body) = (Size::kib(1), Some(Size(1)));
    proxy.apply("[]");
    let large = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(2000));
    client.send(&large).await;
    assert_eq!(client.response().await.status, 200, "the connection keeps its limit on heads");
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nxx").await;
    assert_eq!(client.response().await.status, 413);
    assert_eq!(proxy.ask(&large).await.status, 431);
}

/// An origin that reads bodies before it answers, and tells whether one came whole.
async fn reading() -> (Origin, tokio::sync::mpsc::UnboundedReceiver<usize>) {
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    let origin = Origin::scripted(move |mut stream, _| {
        let tell = tell.clone();
        async move {
            while let Some(head) = read_head(&mut stream).await {
                if head.starts_with("POST") {
                    let mut body = vec![0; 40];
                    let read = async {
                        match crate::support::field(&head, "content-length") {
                            Some(_) => stream.read_exact(&mut body).await.map_or(0, |_| 40),
                            None => read_chunks(&mut stream).await.0.len(),
                        }
                    };
                    tell.send(read.await).unwrap();
                }
                if stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (origin, told)
}

/// 240 bytes a second, from 300 ms on.
fn hasty(settings: &mut FetchrProxySpec) {
    settings.http.limits.body_rate_grace = ms(300);
}

#[tokio::test]
async fn body_that_comes_by_drips_is_408_and_never_whole_at_the_origin() {
    let (origin, mut whole) = reading().await;
    let proxy = Proxy::with(&format!("http://{}", origin.address), hasty);
    let mut other = Bystander::of(&proxy).await;
    let counted = Counted::by(&proxy);
    let mut client = proxy.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 40\r\n\r\n").await;
    for _ in 0..39 {
        // Far from a pause.
        sleep(Duration::from_millis(25)).await;
        if client.0.write_all(b"x").await.is_err() {
            break;
        }
    }
    let response = client.response().await;
    assert_eq!((response.status, response.field("connection")), (408, "close"), "{}", response.text());
    counted.once_more(&proxy, "http_request_body_too_slow", "drips").await;
    other.is_served("drips").await;
    assert_eq!(whole.recv().await, Some(0), "the origin got a part");

    let counted = Counted::by(&proxy);
    let mut client = Peer::connect(proxy.address).await;
    let fields = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/"), ("content-length", "40")];
    client.send(&frame(HEADERS, END_HEADERS, 1, &block(&fields))).await;
    for _ in 0..39 {
        sleep(Duration::from_millis(25)).await;
        client.send(&frame(DATA, 0, 1, b"x")).await;
    }
    assert_eq!(client.next(&[HEADERS, RST_STREAM, GOAWAY]).await.unwrap().status(), 408);
    counted.once_more(&proxy, "http_request_body_too_slow", "drips in frames").await;
    other.is_served("drips in frames").await;
}

#[tokio::test]
async fn messages_of_grpc_may_be_small_and_far_between() {
    let (origin, mut whole) = reading().await;
    let proxy = Proxy::with(&format!("http://{}", origin.address), hasty);
    let mut client = proxy.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ntransfer-encoding: chunked\r\n\r\n").await;
    for _ in 0..30 {
        sleep(Duration::from_millis(25)).await;
        client.send("1\r\nx\r\n").await;
    }
    client.send("0\r\n\r\n").await;
    assert_eq!((client.response().await.status, whole.recv().await), (204, Some(30)));
}

/// An origin whose answers have no end.
async fn endless() -> Origin {
    Origin::scripted(|mut stream, _| async move {
        while let Some(head) = read_head(&mut stream).await {
            if head.contains(Bystander::PATH) {
                stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
                continue;
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
            let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
            while stream.write_all(chunk.as_bytes()).await.is_ok() {}
        }
    })
    .await
}

#[tokio::test]
async fn client_that_reads_by_drips_is_cut_off() {
    let origin = endless().await;
    let proxy = Proxy::with(&format!("http://{}", origin.address), |settings| {
        hasty(settings);
        settings.http.limits.min_body_rate = 1_000_000; // a window opens by more than drips
    });
    let mut other = Bystander::of(&proxy).await;
    let counted = Counted::by(&proxy);
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    socket.connect(&proxy.address.into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut client = Client(TcpStream::from_std(socket.into()).unwrap());
    client.send(GET).await;
    let mut part = [0; 4 << 10];
    let ended = async {
        while client.0.read(&mut part).await.is_ok_and(|read| read > 0) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, ended).await.expect("its answer ends");
    counted.once_more(&proxy, "client_timeout", "drips").await;
    other.is_served("drips").await;

    let counted = Counted::by(&proxy);
    let mut client = Peer::connect(proxy.address).await;
    client.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
    client.send(&request(1, &get(&[]))).await;
    assert_eq!(client.next(&[HEADERS]).await.unwrap().status(), 200);
    let reset = async {
        loop {
            client.send(&frame(WINDOW_UPDATE, 0, 1, &50_u32.to_be_bytes())).await;
            if client.next(&[DATA, RST_STREAM]).await.unwrap().kind == RST_STREAM {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, reset).await.expect("its stream is reset");
    counted.once_more(&proxy, "client_timeout", "a window that opens by drips").await;
    other.is_served("a window that opens by drips").await;
    eventually("all ends", || proxy.metric("http_server_active_requests{direction=\"inbound\"}") == 0.0).await;
}
