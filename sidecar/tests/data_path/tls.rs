//! TLS with clients: certificates, names, versions, rotation, resumption.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use crds::proxy::{ListenerTls, TlsVersion};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, HandshakeKind, ProtocolVersion};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

use crate::{
    pki::{Pki, connect, listener_tls, shown, version},
    support::{LONG, Origin, Proxy, Response, eventually, field, read_head, read_response},
};

const GET: &str = "GET / HTTP/1.1\r\nhost: shop.example\r\n\r\n";

/// A proxy that speaks TLS with its clients.
fn proxy(origin: &Origin, tls: ListenerTls) -> Proxy {
    Proxy::with(&format!("http://{}", origin.address), |settings| settings.interception.listeners[0].tls = Some(tls))
}

async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), request: &str) -> Response {
    stream.write_all(request.as_bytes()).await.unwrap();
    timeout(LONG, read_response(stream, true)).await.expect("an answer in time")
}

fn handshakes(proxy: &Proxy, result: &str) -> f64 {
    proxy.metric(&format!("fetchr_tls_handshakes_total{{peer=\"client\",result=\"{result}\"}}"))
}

#[tokio::test]
async fn client_of_tls_is_served_and_the_application_hears_of_it() {
    let pki = Pki::new();
    let proxy = proxy(&Origin::echo_head().await, listener_tls(vec![pki.issue("shop", &["shop.example"])]));
    let client = Arc::new(pki.client(&["http/1.1"]));
    let mut stream = connect(proxy.address, &client, "shop.example").await.unwrap();
    assert_eq!(version(&stream), ProtocolVersion::TLSv1_3);
    for _ in 0..3 {
        let seen = ask(&mut stream, GET).await;
        assert_eq!(seen.status, 200);
        assert_eq!(field(seen.text(), "x-forwarded-proto"), Some("https"));
        assert!(field(seen.text(), "forwarded").unwrap().ends_with("proto=https"), "{}", seen.text());
    }
    assert_eq!(handshakes(&proxy, "full"), 1.0);
    assert!(
        proxy.metric("fetchr_tls_certificate_expiry_timestamp_seconds{listener=\"test\",certificate=\"shop.example\"}") > 1e9
    );
}

#[tokio::test]
async fn client_that_prefers_http2_gets_it() {
    let pki = Pki::new();
    let proxy = proxy(&Origin::echo_head().await, listener_tls(vec![pki.issue("shop", &["shop.example"])]));
    let stream = connect(proxy.address, &Arc::new(pki.client(&["h2", "http/1.1"])), "shop.example").await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("https://shop.example/x").body(Full::<Bytes>::default()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let seen = response.into_body().collect().await.unwrap().to_bytes();
    let seen = std::str::from_utf8(&seen).unwrap();
    assert!(seen.starts_with("GET /x HTTP/1.1\r\n") && field(seen, "x-forwarded-proto") == Some("https"), "{seen}");
}

#[tokio::test]
async fn policies_match_what_came_over_tls() {
    let pki = Pki::new();
    let proxy = proxy(&Origin::echo_head().await, listener_tls(vec![pki.issue("shop", &["shop.example"])]));
    proxy.apply(
        r#"[{"name": "secure", "matches": [{"cel": "request.scheme == 'https'"}], "headers": {"response": {"set": [{"name": "x-secure", "value": "yes"}]}}}]"#,
    );
    let mut stream = connect(proxy.address, &Arc::new(pki.client(&[])), "shop.example").await.unwrap();
    assert_eq!(ask(&mut stream, GET).await.field("x-secure"), "yes");
}

#[tokio::test]
async fn each_name_has_its_certificate_and_the_first_serves_the_rest() {
    let pki = Pki::new();
    let certificates = vec![
        pki.issue("first", &["first.example", "127.0.0.1"]),
        pki.issue("shop", &["shop.example"]),
        pki.issue("any", &["*.any.example"]),
    ];
    let proxy = proxy(&Origin::echo_head().await, listener_tls(certificates));
    let client = Arc::new(pki.client(&[]));
    for (asked, names) in [
        ("shop.example", "shop.example"),
        ("a.any.example", "*.any.example"),
        ("first.example", "first.example"),
        ("127.0.0.1", "first.example"),
    ] {
        let stream = connect(proxy.address, &client, asked).await.unwrap();
        assert!(shown(&stream).contains(names), "{asked}");
    }
    // The client itself finds that the first is not for this name.
    assert!(connect(proxy.address, &client, "a.b.any.example").await.is_err());
}

#[tokio::test]
async fn rotated_certificate_is_shown_from_then_on_and_open_connections_stay() {
    let pki = Pki::new();
    let proxy = proxy(&Origin::echo_head().await, listener_tls(vec![pki.issue("shop", &["shop.example", "old.example"])]));
    let fresh = || Arc::new(pki.client(&[]));
    let mut before = connect(proxy.address, &fresh(), "shop.example").await.unwrap();
    assert_eq!(ask(&mut before, GET).await.status, 200);
    pki.issue("shop", &["shop.example", "new.example"]);
    loop {
        let mut stream = connect(proxy.address, &fresh(), "shop.example").await.unwrap();
        assert_eq!(ask(&mut stream, GET).await.status, 200, "no handshake fails meanwhile");
        if shown(&stream).contains("new.example") {
            break;
        }
        assert!(shown(&stream).contains("old.example"));
    }
    assert_eq!(ask(&mut before, GET).await.status, 200);
    assert!(proxy.metric("fetchr_tls_reloads_total{result=\"taken\"}") >= 1.0);
}

#[tokio::test]
async fn listener_with_a_new_name_leaves_no_certificate_under_the_old_one() {
    let pki = Pki::new();
    let mut proxy = proxy(&Origin::echo_head().await, listener_tls(vec![pki.issue("shop", &["shop.example"])]));
    let expiry = |proxy: &Proxy, name| {
        proxy.metric(&format!(
            "fetchr_tls_certificate_expiry_timestamp_seconds{{listener=\"{name}\",certificate=\"shop.example\"}}"
        ))
    };
    assert!(expiry(&proxy, "test") > 1e9);
    proxy.settings.interception.listeners[0].name = "renamed".to_owned();
    proxy.apply("[]");
    eventually("the new name", || expiry(&proxy, "renamed") > 1e9 && expiry(&proxy, "test") == 0.0).await;
}

#[tokio::test]
async fn certificate_that_can_not_be_used_leaves_the_one_before_in_force() {
    let pki = Pki::new();
    let proxy = proxy(&Origin::echo_head().await, listener_tls(vec![pki.issue("shop", &["shop.example"])]));
    pki.spoil("shop.crt");
    eventually("the refusal", || proxy.metric("fetchr_tls_reloads_total{result=\"refused\"}") >= 1.0).await;
    let mut stream = connect(proxy.address, &Arc::new(pki.client(&[])), "shop.example").await.unwrap();
    assert_eq!(ask(&mut stream, GET).await.status, 200);
}

async fn kind(address: SocketAddr, client: &Arc<ClientConfig>) -> HandshakeKind {
    let mut stream = connect(address, client, "shop.example").await.unwrap();
    assert_eq!(ask(&mut stream, GET).await.status, 200); // the ticket comes with the answer, or before it
    stream.get_ref().1.handshake_kind().unwrap()
}

#[tokio::test]
async fn session_is_resumed_where_it_began_and_nowhere_else() {
    let pki = Pki::new();
    let certificates = vec![pki.issue("shop", &["shop.example"])];
    let origin = Origin::echo_head().await;
    let (one, other) = (proxy(&origin, listener_tls(certificates.clone())), proxy(&origin, listener_tls(certificates)));
    for client in [pki.client(&[]), pki.old_client()].map(Arc::new) {
        assert_eq!(kind(one.address, &client).await, HandshakeKind::Full);
        assert_eq!(kind(one.address, &client).await, HandshakeKind::Resumed);
        assert_ne!(kind(other.address, &client).await, HandshakeKind::Resumed);
    }
    assert_eq!((handshakes(&one, "resumed"), handshakes(&other, "resumed")), (2.0, 0.0));
}

#[tokio::test]
async fn client_without_a_certificate_is_refused_where_one_is_asked_for() {
    let pki = Pki::new();
    let tls = ListenerTls { client_ca: Some(pki.ca()), ..listener_tls(vec![pki.issue("shop", &["shop.example"])]) };
    let proxy = proxy(&Origin::echo_head().await, tls);
    let mut refused = connect(proxy.address, &Arc::new(pki.client(&[])), "shop.example").await.unwrap();
    let _ = refused.write_all(GET.as_bytes()).await; // TLS 1.3 tells the client after its handshake
    assert!(refused.read_u8().await.is_err());
    eventually("the refusal", || handshakes(&proxy, "no_certificate") == 1.0).await;
    let stranger = Pki::new();
    let mut config = pki.client_with(&stranger.issue("client", &["client.example"]));
    config.resumption = rustls::client::Resumption::disabled();
    let mut refused = connect(proxy.address, &Arc::new(config), "shop.example").await.unwrap();
    let _ = refused.write_all(GET.as_bytes()).await;
    assert!(refused.read_u8().await.is_err());
    eventually("the refusal", || handshakes(&proxy, "bad_certificate") == 1.0).await;
    let known = Arc::new(pki.client_with(&pki.issue("client", &["client.example"])));
    assert_eq!(ask(&mut connect(proxy.address, &known, "shop.example").await.unwrap(), GET).await.status, 200);
}

#[tokio::test]
async fn old_version_is_spoken_unless_it_is_excluded() {
    let pki = Pki::new();
    let origin = Origin::echo_head().await;
    let tls = listener_tls(vec![pki.issue("shop", &["shop.example"])]);
    let (both, newest) = (proxy(&origin, tls.clone()), proxy(&origin, ListenerTls { min_version: TlsVersion::Tls13, ..tls }));
    let client = Arc::new(pki.old_client());
    let mut stream = connect(both.address, &client, "shop.example").await.unwrap();
    assert_eq!((version(&stream), ask(&mut stream, GET).await.status), (ProtocolVersion::TLSv1_2, 200));
    assert!(connect(newest.address, &client, "shop.example").await.is_err());
    eventually("the refusal", || handshakes(&newest, "incompatible") == 1.0).await;
}

#[tokio::test]
async fn what_is_no_tls_is_closed_and_health_checks_are_no_errors() {
    let pki = Pki::new();
    let proxy = proxy(&Origin::echo_head().await, listener_tls(vec![pki.issue("shop", &["shop.example"])]));
    let mut plain = proxy.client().await;
    plain.send(GET).await;
    assert!(!plain.rest().await.starts_with(b"HTTP/1.1 2"));
    eventually("the refusal", || handshakes(&proxy, "not_tls") == 1.0).await;
    drop(proxy.client().await);
    eventually("the check", || handshakes(&proxy, "broken_off") == 1.0).await;
    assert_eq!(proxy.metric("fetchr_errors_total{direction=\"inbound\",reason=\"tls_handshake_failed\"}"), 1.0);
    let mut stream = connect(proxy.address, &Arc::new(pki.client(&[])), "shop.example").await.unwrap();
    assert_eq!(ask(&mut stream, GET).await.status, 200);
}

#[tokio::test]
async fn large_bodies_pass_both_ways() {
    const LEN: usize = 3 << 20;
    let origin = Origin::scripted(|mut stream, _| async move {
        let head = read_head(&mut stream).await.unwrap();
        let mut body = vec![0; field(&head, "content-length").unwrap().parse().unwrap()];
        stream.read_exact(&mut body).await.unwrap();
        stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes()).await.unwrap();
        stream.write_all(&body).await.unwrap();
    })
    .await;
    let pki = Pki::new();
    let proxy = proxy(&origin, listener_tls(vec![pki.issue("shop", &["shop.example"])]));
    let stream = connect(proxy.address, &Arc::new(pki.client(&[])), "shop.example").await.unwrap();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let body: Vec<u8> = (0..LEN).map(|n| (n % 251) as u8).collect();
    let sent = body.clone();
    let writing = tokio::spawn(async move {
        writer.write_all(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {LEN}\r\n\r\n").as_bytes()).await.unwrap();
        writer.write_all(&sent).await.unwrap();
        writer.flush().await.unwrap();
        writer
    });
    let response = timeout(LONG, read_response(&mut reader, true)).await.expect("an answer in time");
    assert!(response.status == 200 && response.body == body, "{} bytes", response.body.len());
    writing.await.unwrap();
}

#[tokio::test]
async fn upgraded_connection_stays_under_tls() {
    let origin = Origin::scripted(|mut stream, _| async move {
        read_head(&mut stream).await.unwrap();
        let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\nready";
        stream.write_all(answer.as_bytes()).await.unwrap();
        let (mut reader, mut writer) = stream.split();
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
    })
    .await;
    let pki = Pki::new();
    let proxy = proxy(&origin, listener_tls(vec![pki.issue("shop", &["shop.example"])]));
    let mut stream = connect(proxy.address, &Arc::new(pki.client(&[])), "shop.example").await.unwrap();
    let request = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    assert_eq!(ask(&mut stream, request).await.status, 101);
    stream.write_all(b" steady").await.unwrap();
    let mut read = [0; 12];
    timeout(LONG, stream.read_exact(&mut read)).await.expect("bytes in time").unwrap();
    assert_eq!(&read, b"ready steady");
}

#[cfg(not(feature = "http3"))]
#[tokio::test]
#[should_panic(expected = "needs the cargo feature http3")]
async fn listener_of_http3_is_refused_by_a_build_without_it() {
    let pki = Pki::new();
    let tls = listener_tls(vec![pki.issue("shop", &["shop.example"])]);
    Proxy::with("http://127.0.0.1:1", |settings| {
        let listener = &mut settings.interception.listeners[0];
        (listener.tls, listener.http3) = (Some(tls), crds::proxy::Http3::Enabled);
    });
}
