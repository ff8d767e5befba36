//! WebSocket opened over HTTP/1 (RFC 6455) and over HTTP/2 (RFC 8441), each to each.

use std::{convert::Infallible, net::SocketAddr};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::Empty;
use hyper::{
    body::Incoming,
    client::conn::http2::SendRequest,
    ext::Protocol,
    service::service_fn,
    upgrade::{self, Upgraded},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::support::{Origin, Proxy, eventually, field, read_head};

const TUNNELS: &str = "fetchr_connections_open{direction=\"inbound\",kind=\"tunnel\"}";
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

fn accept(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    BASE64_STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

/// Sends back each byte, upper case.
async fn shout(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut buf = [0; 64];
    while let Ok(len @ 1..) = stream.read(&mut buf).await {
        buf[..len].make_ascii_uppercase();
        stream.write_all(&buf[..len]).await.unwrap();
    }
}

/// An origin over HTTP/1 that takes an upgrade at `/chat` only, and one that hashes its key.
async fn http1() -> Origin {
    Origin::scripted(|mut stream, _| async move {
        while let Some(head) = read_head(&mut stream).await {
            let key = field(&head, "sec-websocket-key").unwrap_or_default();
            let answer = match head.split(' ').nth(1).unwrap() {
                "/chat" if head.starts_with("GET ") && field(&head, "sec-websocket-version") == Some("13") => accept(key),
                "/liar" => "nonsense".to_owned(),
                "/page" => {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                    continue;
                }
                _ => {
                    stream.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
                    continue;
                }
            };
            let answer =
                format!("HTTP/1.1 101 x\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: {answer}\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            return shout(stream).await;
        }
    })
    .await
}

/// An origin over HTTP/2 that takes an extended CONNECT, if `speaks` so.
async fn http2(speaks: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = service_fn(|mut request: Request<Incoming>| async move {
                assert_eq!(request.method(), Method::CONNECT);
                assert_eq!(request.extensions().get::<Protocol>().map(Protocol::as_str), Some("websocket"));
                assert!(!request.headers().contains_key("sec-websocket-key"));
                let chat = request.uri().path() == "/chat";
                let upgraded = upgrade::on(&mut request);
                tokio::spawn(async move {
                    if let Ok(upgraded) = upgraded.await {
                        shout(TokioIo::new(upgraded)).await;
                    }
                });
                let response = Response::builder().status(if chat { 200 } else { 403 });
                Ok::<_, Infallible>(response.header("sec-websocket-protocol", "x").body(Empty::<Bytes>::new()).unwrap())
            });
            let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            if speaks {
                builder.enable_connect_protocol();
            }
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

/// A client over HTTP/2 that has read the proxy's settings.
async fn client(proxy: &Proxy) -> SendRequest<Empty<Bytes>> {
    let stream = TcpStream::connect(proxy.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let first = Request::get("http://a/%00").body(Empty::new()).unwrap();
    assert_eq!(sender.send_request(first).await.unwrap().status(), 400);
    sender
}

async fn open(proxy: &Proxy, path: &str) -> Response<Incoming> {
    let request = Request::builder().method(Method::CONNECT).uri(format!("http://a{path}"));
    let request = request.extension(Protocol::from_static("websocket")).body(Empty::new()).unwrap();
    client(proxy).await.send_request(request).await.unwrap()
}

async fn tunnel(mut response: Response<Incoming>) -> TokioIo<Upgraded> {
    assert_eq!(response.status(), 200);
    for name in ["upgrade", "connection", "sec-websocket-accept"] {
        assert!(!response.headers().contains_key(name), "{:?}", response.headers());
    }
    TokioIo::new(upgrade::on(&mut response).await.unwrap())
}

async fn carries_words(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    for word in ["one", "two"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        let mut heard = [0; 3];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, word.to_uppercase().as_bytes());
    }
}

#[tokio::test]
async fn stream_of_a_client_becomes_an_upgrade_at_an_http1_origin() {
    let proxy = Proxy::before(http1().await.address);
    let mut stream = tunnel(open(&proxy, "/chat").await).await;
    carries_words(&mut stream).await;
    assert_eq!(proxy.metric(TUNNELS), 1.0);
    drop(stream);
    eventually("the end of the tunnel", || proxy.metric(TUNNELS) == 0.0).await;
}

#[tokio::test]
async fn stream_of_a_client_becomes_a_stream_at_an_http2_origin() {
    let proxy = Proxy::with(&format!("h2c://{}", http2(true).await), |_| {});
    let response = open(&proxy, "/chat").await;
    assert_eq!(response.headers()["sec-websocket-protocol"], "x");
    let mut stream = tunnel(response).await;
    carries_words(&mut stream).await;
    drop(stream);
    eventually("the end of the tunnel", || proxy.metric(TUNNELS) == 0.0).await;
}

#[tokio::test]
async fn upgrade_of_a_client_becomes_a_stream_at_an_http2_origin() {
    let proxy = Proxy::with(&format!("h2c://{}", http2(true).await), |_| {});
    let mut client = proxy.client().await;
    client
        .send(format!(
            "GET /chat HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: WebSocket\r\nsec-websocket-key: {KEY}\r\n\r\n"
        ))
        .await;
    let head = read_head(&mut client.0).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert_eq!((field(&head, "upgrade"), field(&head, "sec-websocket-accept")), (Some("websocket"), Some(&*accept(KEY))));
    carries_words(&mut client.0).await;
    drop(client);
    eventually("the end of the tunnel", || proxy.metric(TUNNELS) == 0.0).await;
}

#[tokio::test]
async fn origin_that_does_not_switch_opens_no_tunnel() {
    let http1 = Proxy::before(http1().await.address);
    for (path, status) in [("/other", 403), ("/page", 502), ("/liar", 502)] {
        assert_eq!(open(&http1, path).await.status(), status, "{path}");
    }
    let http2_with = Proxy::with(&format!("h2c://{}", http2(true).await), |_| {});
    assert_eq!(open(&http2_with, "/other").await.status(), 403);
    let http2_without = Proxy::with(&format!("h2c://{}", http2(false).await), |_| {});
    let refused = open(&http2_without, "/chat").await;
    assert_eq!(refused.status(), 502, "{:?}", refused.headers());
    assert!(refused.headers()["proxy-status"].to_str().unwrap().contains("http_upgrade_failed"));
    for proxy in [http1, http2_with, http2_without] {
        assert_eq!(proxy.metric(TUNNELS), 0.0);
        eventually("the end of all", || proxy.metric("http_server_active_requests{direction=\"inbound\"}") == 0.0).await;
    }
}

#[tokio::test]
async fn policies_see_one_form_of_an_open_request() {
    let proxy = Proxy::before(http1().await.address);
    proxy.apply(
        r#"[{"name": "r", "matches": [{"methods": ["GET"], "path": {"value": "/chat"}}],
             "headers": {"response": {"set": [{"name": "x-seen", "value": "1"}]}}}]"#,
    );
    assert_eq!(open(&proxy, "/x/../chat").await.headers()["x-seen"], "1");
}

#[tokio::test]
async fn extended_connect_for_another_protocol_is_refused() {
    let origin = http1().await;
    let proxy = Proxy::before(origin.address);
    let request = Request::builder().method(Method::CONNECT).uri("http://a/chat");
    let request = request.extension(Protocol::from_static("connect-udp")).body(Empty::new()).unwrap();
    assert_eq!(client(&proxy).await.send_request(request).await.unwrap().status(), 400);
    assert_eq!(origin.connections(), 0);
}
