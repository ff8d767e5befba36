//! HTTP/3 with the clients of a listener, in builds with the feature `http3`.

use std::{future::poll_fn, net::SocketAddr, sync::Arc, time::Duration};

use bytes::{Buf as _, Bytes};
use crds::{
    policy::Direction,
    proxy::{FetchrProxySpec, Http3, ListenerTls},
    scalar::Size,
};
use h3::client::{RequestStream, SendRequest};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use quinn::{ClientConfig, ConnectionError, Endpoint, TransportConfig, VarInt, crypto::rustls::QuicClientConfig};
use sidecar::h3::transport::{Bidi, Connection, Opener};
use tokio::{io::AsyncWriteExt as _, time::timeout};

use crate::{
    pki::{Pki, connect, listener_tls},
    support::{LONG, Origin, Proxy, eventually, field, ms, nobody, read_chunks, read_head, read_response, until},
};

/// Bytes of a frame that the clients here keep.
const LARGEST: usize = 64 << 10;

/// H3_EXCESSIVE_LOAD (RFC 9114, section 8.1).
const EXCESSIVE_LOAD: VarInt = VarInt::from_u32(0x107);

type Sender = SendRequest<Opener, Bytes>;
type Stream = RequestStream<Bidi, Bytes>;

/// A proxy that speaks HTTP/3, too.
fn proxy(origin: SocketAddr, pki: &Pki) -> Proxy {
    with(origin, listener_tls(vec![pki.issue("shop", &["shop.example"])]))
}

fn with(origin: SocketAddr, tls: ListenerTls) -> Proxy {
    set(origin, tls, |settings| settings.upstream.idle_timeout = ms(2000))
}

/// With other settings.
fn set(origin: SocketAddr, tls: ListenerTls, change: impl FnOnce(&mut FetchrProxySpec)) -> Proxy {
    Proxy::with(&format!("http://{origin}"), |settings| {
        let listener = &mut settings.interception.listeners[0];
        (listener.tls, listener.http3) = (Some(tls), Http3::Enabled);
        change(settings);
    })
}

async fn quic(proxy: &Proxy, pki: &Pki) -> Result<quinn::Connection, ConnectionError> {
    quic_within(proxy, pki, 1 << 20).await
}

/// A client that reads so much ahead of a stream.
async fn quic_within(proxy: &Proxy, pki: &Pki, window: u32) -> Result<quinn::Connection, ConnectionError> {
    let mut endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let crypto = QuicClientConfig::try_from(pki.client(&["h3"])).unwrap();
    let (mut config, mut transport) = (ClientConfig::new(Arc::new(crypto)), TransportConfig::default());
    transport.stream_receive_window(window.into());
    config.transport_config(Arc::new(transport));
    endpoint.set_default_client_config(config);
    timeout(LONG, endpoint.connect(proxy.address, "shop.example").unwrap()).await.expect("a handshake in time")
}

/// A client of HTTP/3. It leaves when what it sends requests with is dropped.
async fn client(proxy: &Proxy, pki: &Pki) -> Sender {
    let (mut driver, sender) = h3::client::new(Connection::new(quic(proxy, pki).await.unwrap(), LARGEST)).await.unwrap();
    tokio::spawn(async move { poll_fn(|cx| driver.poll_close(cx)).await });
    sender
}

fn request(method: Method, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("https://shop.example{path}")).body(()).unwrap()
}

/// What came as an answer.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

async fn read(stream: &mut Stream) -> Answer {
    let answer = async {
        let (head, ()) = stream.recv_response().await.unwrap().into_parts();
        let mut body = Vec::new();
        while let Some(mut data) = stream.recv_data().await.unwrap() {
            body.extend_from_slice(&data.copy_to_bytes(data.remaining()));
        }
        let trailers = stream.recv_trailers().await.unwrap();
        Answer { status: head.status, headers: head.headers, body, trailers }
    };
    timeout(LONG, answer).await.expect("an answer in time")
}

async fn ask(sender: &mut Sender, request: Request<()>) -> Answer {
    let mut stream = sender.send_request(request).await.unwrap();
    stream.finish().await.unwrap();
    read(&mut stream).await
}

fn errors(proxy: &Proxy, reason: &str) -> f64 {
    proxy.metric(&format!("fetchr_errors_total{{direction=\"inbound\",reason=\"{reason}\"}}"))
}

#[tokio::test]
async fn requests_pass_and_the_application_hears_of_tls() {
    let pki = Pki::new();
    let proxy = proxy(Origin::echo_head().await.address, &pki);
    let mut sender = client(&proxy, &pki).await;
    for n in 0..3 {
        let answer = ask(&mut sender, request(Method::GET, &format!("/{n}?q"))).await;
        assert_eq!(answer.status, 200);
        let seen = answer.text();
        assert!(seen.starts_with(&format!("GET /{n}?q HTTP/1.1\r\n")), "{seen}");
        for (name, value) in [("host", "shop.example"), ("x-forwarded-proto", "https"), ("via", "3.0 fetchr-test-in")] {
            assert_eq!(field(seen, name), Some(value), "{seen}");
        }
        assert_eq!((field(seen, "transfer-encoding"), field(seen, "content-length")), (None, None), "{seen}");
        assert!(answer.headers.contains_key("date") && !answer.headers.contains_key("alt-svc"), "{:?}", answer.headers);
    }
    assert_eq!(proxy.metric("fetchr_connections_open{direction=\"inbound\",kind=\"http3\"}"), 1.0);
    drop(sender);
    eventually("its end", || proxy.metric("fetchr_connections_open{direction=\"inbound\",kind=\"http3\"}") == 0.0).await;
}

#[tokio::test]
async fn others_are_told_where_http3_is() {
    let pki = Pki::new();
    let proxy = proxy(Origin::echo_head().await.address, &pki);
    let mut stream = connect(proxy.address, &Arc::new(pki.client(&[])), "shop.example").await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let answer = read_response(&mut stream, true).await;
    assert_eq!(answer.field("alt-svc"), format!("h3=\":{}\"; ma=86400", proxy.address.port()));
}

#[tokio::test]
async fn listener_whose_udp_port_is_taken_serves_without_http3_until_it_is_free() {
    let (pki, address) = (Pki::new(), nobody().await);
    let taken = std::net::UdpSocket::bind(address).unwrap();
    let tls = listener_tls(vec![pki.issue("shop", &["shop.example"])]);
    let proxy = Proxy::with(&format!("http://{}", Origin::echo_head().await.address), |settings| {
        let listener = &mut settings.interception.listeners[0];
        (listener.port, listener.tls, listener.http3) = (address.port().into(), Some(tls), Http3::Enabled);
    });
    let alternative = async || {
        let mut stream = connect(proxy.address, &Arc::new(pki.client(&[])), "shop.example").await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let answer = read_response(&mut stream, true).await;
        assert_eq!(answer.status, 200);
        answer.head.to_ascii_lowercase().contains("alt-svc")
    };
    assert!(!alternative().await, "nobody is sent where nobody listens");
    drop(taken);
    until("HTTP/3", alternative).await;
    let mut sender = client(&proxy, &pki).await;
    assert_eq!(ask(&mut sender, request(Method::GET, "/")).await.status, 200);
}

#[tokio::test]
async fn who_leaves_to_another_process_accepts_no_connection() {
    let pki = Pki::new();
    let proxy = proxy(Origin::echo_head().await.address, &pki);
    let mut sender = client(&proxy, &pki).await;
    assert_eq!(ask(&mut sender, request(Method::GET, "/")).await.status, 200);
    let drain = proxy.drain.clone();
    let leaves = tokio::spawn(async move { drain.leave(LONG, LONG).await });
    proxy.drain.accepts_no_more(Direction::Inbound).await;
    let late = timeout(Duration::from_millis(500), quic(&proxy, &pki)).await;
    assert!(!matches!(late, Ok(Ok(_))), "the other process would have taken it");
    drop(sender);
    assert_eq!(leaves.await.unwrap(), 0);
}

#[tokio::test]
async fn bodies_and_trailers_pass_both_ways() {
    let origin = Origin::scripted(|mut stream, _| async move {
        while let Some(head) = read_head(&mut stream).await {
            assert_eq!(field(&head, "transfer-encoding"), Some("chunked"));
            let (body, trailers) = read_chunks(&mut stream).await;
            assert_eq!(trailers, "x-sum: 1\n");
            let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.write_all(format!("{:x}\r\n", body.len()).as_bytes()).await.unwrap();
            stream.write_all(&body).await.unwrap();
            let of_the_hop = "connection: x-end\r\nkeep-alive: 5\r\nproxy-connection: close\r\nte: trailers\r\nupgrade: x\r\n";
            stream.write_all(format!("\r\n0\r\n{of_the_hop}x-end: 2\r\n\r\n").as_bytes()).await.unwrap();
        }
    })
    .await;
    let pki = Pki::new();
    let proxy = proxy(origin.address, &pki);
    let mut sender = client(&proxy, &pki).await;
    let sent: Vec<u8> = (0..3_u32 << 18).map(|n| (n % 251) as u8).collect();
    let mut stream = sender.send_request(request(Method::POST, "/")).await.unwrap();
    stream.send_data(Bytes::from(sent.clone())).await.unwrap();
    stream.send_trailers([("x-sum".parse().unwrap(), "1".parse().unwrap())].into_iter().collect()).await.unwrap();
    stream.finish().await.unwrap();
    let answer = read(&mut stream).await;
    assert!(answer.status == 200 && answer.body == sent, "{} bytes", answer.body.len());
    let trailers = answer.trailers.unwrap();
    assert!(trailers.len() == 1 && trailers["x-end"] == "2", "{trailers:?}");
}

#[tokio::test]
async fn announced_length_is_kept_and_another_one_is_malformed() {
    let pki = Pki::new();
    let proxy = proxy(Origin::echo_head().await.address, &pki);
    let mut sender = client(&proxy, &pki).await;
    for (announced, good) in [("4", true), ("5", false), ("3", false), ("+4", false), ("4, 4", false)] {
        let mut head = request(Method::POST, "/");
        head.headers_mut().insert("content-length", announced.parse().unwrap());
        let mut stream = sender.send_request(head).await.unwrap();
        let _ = stream.send_data(Bytes::from_static(b"body")).await;
        let _ = stream.finish().await;
        if good {
            let answer = read(&mut stream).await;
            assert_eq!(field(answer.text(), "content-length"), Some("4"));
        } else {
            let refused = timeout(LONG, stream.recv_response()).await.expect("an answer in time");
            assert!(refused.as_ref().map_or(true, |answer| answer.status() == 400), "{announced}: {refused:?}");
        }
    }
}

#[tokio::test]
async fn fields_of_a_connection_are_refused_and_large_heads_too() {
    let pki = Pki::new();
    let proxy = proxy(Origin::echo_head().await.address, &pki);
    let mut sender = client(&proxy, &pki).await;
    for (name, value) in [
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("keep-alive", "timeout=5"),
        ("te", "gzip"),
        ("x", " padded"),
    ] {
        let mut head = request(Method::GET, "/");
        head.headers_mut().insert(name, value.parse().unwrap());
        assert_eq!(ask(&mut sender, head).await.status, 400, "{name}");
    }
    let mut te = request(Method::GET, "/");
    te.headers_mut().insert("te", "trailers".parse().unwrap());
    assert_eq!(field(ask(&mut sender, te).await.text(), "te"), Some("trailers"));
    let mut many = request(Method::GET, "/");
    many.headers_mut().extend((0..101).map(|n| (HeaderName::from_static("x"), HeaderValue::from(n))));
    assert_eq!(ask(&mut sender, many).await.status, 431);
    let mut long = request(Method::GET, "/");
    let value: HeaderValue = "x".repeat(6000).parse().unwrap();
    long.headers_mut().extend((0..10).map(|_| (HeaderName::from_static("x"), value.clone())));
    assert_eq!(ask(&mut sender, long).await.status, 200, "so much may come");
    assert_eq!(ask(&mut sender, request(Method::CONNECT, "")).await.status.as_u16() / 100, 4);
}

#[tokio::test]
async fn frame_that_never_ends_is_not_kept() {
    let pki = Pki::new();
    let proxy = proxy(Origin::echo_head().await.address, &pki);
    let connection = quic(&proxy, &pki).await.unwrap();
    for kind in [1_u8, 0x21] {
        let (mut send, mut recv) = connection.open_bi().await.unwrap();
        send.write_all(&[kind]).await.unwrap();
        send.write_all(&(1_u64 << 40 | 0b11 << 62).to_be_bytes()).await.unwrap();
        let part = vec![b'x'; 64 << 10];
        let endless = async { while send.write_all(&part).await.is_ok() {} };
        timeout(LONG, endless).await.expect("an end of it");
        assert!(timeout(LONG, recv.read_to_end(100)).await.expect("an end in time").map_or(true, |read| read.is_empty()));
    }
    assert_eq!(ask(&mut client(&proxy, &pki).await, request(Method::GET, "/")).await.status, 200, "others are served");
    assert!(errors(&proxy, "header_too_large") + errors(&proxy, "malformed_request") >= 2.0);
}

#[tokio::test]
async fn head_is_limited_as_the_settings_say() {
    let pki = Pki::new();
    let tls = listener_tls(vec![pki.issue("shop", &["shop.example"])]);
    let proxy = set(Origin::echo_head().await.address, tls, |settings| settings.http.limits.max_head = Size::kib(4));
    let mut sender = client(&proxy, &pki).await;
    assert_eq!(ask(&mut sender, request(Method::GET, "/")).await.status, 200);
    let mut large = request(Method::GET, "/");
    large.headers_mut().insert("x", "x".repeat(5000).parse().unwrap());
    let told = sender.send_request(large).await.err().expect("a client that was told of the limit");
    assert!(matches!(told, h3::error::StreamError::HeaderTooBig { max_size: 4096, .. }), "{told}");
    let (mut send, _recv) = quic(&proxy, &pki).await.unwrap().open_bi().await.unwrap();
    send.write_all(&[1, 0x60, 0]).await.unwrap(); // HEADERS of 8 KiB
    assert_eq!(timeout(LONG, send.stopped()).await.expect("an end of it"), Ok(Some(EXCESSIVE_LOAD)));
    eventually("the count", || errors(&proxy, "header_too_large") == 1.0).await;
}

#[tokio::test]
async fn flood_of_resets_ends_the_connection() {
    let origin = Origin::scripted(|mut stream, _| async move {
        if read_head(&mut stream).await.is_none() {
            return;
        }
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 65536\r\n\r\n").await;
        let _ = stream.write_all(&[b'x'; 64 << 10]).await;
    })
    .await;
    let pki = Pki::new();
    let proxy = proxy(origin.address, &pki);
    // So none of the answers can be written in whole before its client leaves.
    let connection = quic_within(&proxy, &pki, 1 << 10).await.unwrap();
    let (mut driver, mut sender) = h3::client::new(Connection::new(connection.clone(), LARGEST)).await.unwrap();
    tokio::spawn(async move { poll_fn(|cx| driver.poll_close(cx)).await });
    let flood = async {
        for _ in 0..2000 {
            if sender.send_request(request(Method::GET, "/")).await.is_err() {
                break; // what it returned is dropped, which stops the stream
            }
        }
        connection.closed().await
    };
    let closed = timeout(LONG, flood).await.expect("an end of the flood");
    assert!(matches!(&closed, ConnectionError::ApplicationClosed(closed) if closed.error_code == EXCESSIVE_LOAD), "{closed}");
    assert_eq!(errors(&proxy, "reset_flood"), 1.0);
    let other = connect(proxy.address, &Arc::new(pki.client(&[])), "shop.example").await;
    assert!(other.is_ok(), "others are served");
}

#[tokio::test]
async fn streams_are_served_side_by_side_and_end_with_their_connection() {
    let origin = Origin::scripted(|mut stream, _| async move {
        let head = read_head(&mut stream).await.unwrap();
        if head.starts_with("GET /slow") {
            std::future::pending::<()>().await;
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
    })
    .await;
    let pki = Pki::new();
    let proxy = proxy(origin.address, &pki);
    let mut sender = client(&proxy, &pki).await;
    let mut slow = sender.send_request(request(Method::GET, "/slow")).await.unwrap();
    slow.finish().await.unwrap();
    eventually("the slow one", || origin.connections() == 1).await;
    assert_eq!(ask(&mut sender, request(Method::GET, "/")).await.text(), "ok");
    assert_eq!(proxy.metric("http_server_active_requests{direction=\"inbound\"}"), 1.0);
    drop((sender, slow));
    eventually("its end", || proxy.metric("http_server_active_requests{direction=\"inbound\"}") == 0.0).await;
    assert_eq!(errors(&proxy, "client_left"), 1.0);
}

#[tokio::test]
async fn client_that_takes_nothing_is_cut_off() {
    let pki = Pki::new();
    let proxy = proxy(endless().await.address, &pki);
    is_cut_off(&proxy, &pki).await;
}

#[tokio::test]
async fn client_that_takes_less_than_the_least_rate_is_cut_off() {
    let pki = Pki::new();
    let tls = listener_tls(vec![pki.issue("shop", &["shop.example"])]);
    let proxy = set(endless().await.address, tls, |settings| {
        settings.http.limits.min_body_rate = 1_000_000;
        settings.http.limits.body_rate_grace = ms(300);
    });
    assert!(proxy.settings.upstream.idle_timeout.0 > LONG);
    is_cut_off(&proxy, &pki).await;
}

/// An origin whose answers have no end.
async fn endless() -> Origin {
    Origin::scripted(|mut stream, _| async move {
        read_head(&mut stream).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        while stream.write_all(&[b'x'; 64 << 10]).await.is_ok() {}
    })
    .await
}

async fn is_cut_off(proxy: &Proxy, pki: &Pki) {
    let mut sender = client(proxy, pki).await;
    let mut stream = sender.send_request(request(Method::GET, "/")).await.unwrap();
    stream.finish().await.unwrap();
    assert_eq!(timeout(LONG, stream.recv_response()).await.unwrap().unwrap().status(), 200);
    eventually("the end", || errors(proxy, "client_timeout") == 1.0).await;
    eventually("the upstream's", || proxy.metric("fetchr_upstream_connections_open") == 0.0).await;
}

/// Some more than the congestion window of a new connection takes at once: the rest waits in a buffer of the proxy's.
const MUCH: usize = 500 << 10;

/// An origin that takes its time.
async fn late() -> Origin {
    Origin::scripted(|mut stream, _| async move {
        while read_head(&mut stream).await.is_some() {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {MUCH}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(&[b'x'; MUCH]).await.unwrap();
        }
    })
    .await
}

#[tokio::test]
async fn drain_says_goaway_and_answers_what_is_under_way() {
    let (pki, origin) = (Pki::new(), late().await);
    let proxy = proxy(origin.address, &pki);
    let connection = quic(&proxy, &pki).await.unwrap();
    let (mut driver, mut sender) = h3::client::new(Connection::new(connection.clone(), LARGEST)).await.unwrap();
    let driven = tokio::spawn(async move { poll_fn(|cx| driver.poll_close(cx)).await });
    let mut stream = sender.send_request(request(Method::GET, "/")).await.unwrap();
    stream.finish().await.unwrap();
    eventually("the request", || origin.connections() == 1).await;
    let drain = proxy.drain.clone();
    let drained = tokio::spawn(async move { drain.drain_inbound(Duration::ZERO, LONG).await });
    assert_eq!(read(&mut stream).await.body.len(), MUCH);
    timeout(LONG, driven).await.expect("an end of the connection").unwrap();
    assert_eq!(drained.await.unwrap(), 0);
    let late = timeout(Duration::from_millis(500), quic(&proxy, &pki)).await;
    assert!(late.map_or(true, |taken| taken.is_err()), "nobody is taken any more");
}

#[tokio::test]
async fn client_that_says_goaway_gets_what_it_has_asked_for() {
    let (pki, origin) = (Pki::new(), late().await);
    let proxy = proxy(origin.address, &pki);
    let (mut driver, mut sender) = h3::client::new(Connection::new(quic(&proxy, &pki).await.unwrap(), LARGEST)).await.unwrap();
    let mut stream = sender.send_request(request(Method::GET, "/")).await.unwrap();
    stream.finish().await.unwrap();
    eventually("the request", || origin.connections() == 1).await;
    driver.shutdown(0).await.unwrap();
    let driven = tokio::spawn(async move { poll_fn(|cx| driver.poll_close(cx)).await });
    assert_eq!(read(&mut stream).await.body.len(), MUCH);
    timeout(LONG, driven).await.expect("an end of the connection").unwrap();
}

#[tokio::test]
async fn certificate_follows_its_file_and_clients_must_show_theirs() {
    let pki = Pki::new();
    let tls = ListenerTls { client_ca: Some(pki.ca()), ..listener_tls(vec![pki.issue("shop", &["shop.example"])]) };
    let proxy = with(Origin::echo_head().await.address, tls);
    let refused = match quic(&proxy, &pki).await {
        Err(_) => true,
        // It learns of it after its own handshake.
        Ok(connection) => timeout(LONG, connection.closed()).await.is_ok(),
    };
    assert!(refused);
    let open = self::proxy(Origin::echo_head().await.address, &pki);
    let names = |connection: &quinn::Connection| {
        let shown = connection.peer_identity().unwrap().downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().unwrap();
        String::from_utf8_lossy(&shown[0]).into_owned()
    };
    pki.issue("shop", &["shop.example", "new.example"]);
    eventually("the reload", || open.metric("fetchr_tls_reloads_total{result=\"taken\"}") >= 1.0).await;
    assert!(names(&quic(&open, &pki).await.unwrap()).contains("new.example"));
}
