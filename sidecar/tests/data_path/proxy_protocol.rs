//! The PROXY protocol in front of HTTP and of TLS.

use std::sync::Arc;

use crds::proxy::ProxyProtocol;
use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt as _;
use tokio_rustls::TlsConnector;

use crate::{
    pki::{Pki, listener_tls},
    support::{Origin, Proxy, field, read_response},
};

const HEADER: &str = "PROXY TCP4 203.0.113.7 192.0.2.1 56324 443\r\n";
const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

async fn proxy() -> Proxy {
    Proxy::with(&format!("http://{}", Origin::echo_head().await.address), |settings| {
        settings.interception.listeners[0].proxy_protocol = ProxyProtocol::Required;
    })
}

#[tokio::test]
async fn client_is_who_the_load_balancer_says() {
    let proxy = proxy().await;
    let mut client = proxy.client().await;
    client.send(format!("{HEADER}{GET}")).await;
    assert_eq!(field(client.response().await.text(), "x-forwarded-for"), Some("203.0.113.7"));
    client.send(GET).await;
    assert_eq!(field(client.response().await.text(), "x-forwarded-for"), Some("203.0.113.7"), "for the whole connection");
    let version_2 =
        [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &[198, 51, 100, 9, 192, 0, 2, 1, 0xdc, 0x04, 1, 0xbb], GET.as_bytes()];
    let mut client = proxy.client().await;
    for part in version_2.concat().chunks(5) {
        client.send(part).await;
        client.0.flush().await.unwrap();
    }
    assert_eq!(field(client.response().await.text(), "x-forwarded-for"), Some("198.51.100.9"));
    let mut client = proxy.client().await;
    client.send(format!("PROXY UNKNOWN\r\n{GET}")).await;
    assert_eq!(field(client.response().await.text(), "x-forwarded-for"), Some("127.0.0.1"));
}

#[tokio::test]
async fn limits_count_by_that_client() {
    let proxy = proxy().await;
    proxy.apply(
        r#"[{"name": "all", "rateLimits": [{"name": "each", "limit": {"requests": 1, "per": "1h"}, "key": [{"source": "ClientIP"}]}]}]"#,
    );
    for (address, status) in [("203.0.113.7", 200), ("203.0.113.8", 200), ("203.0.113.7", 429)] {
        let mut client = proxy.client().await;
        client.send(format!("PROXY TCP4 {address} 192.0.2.1 1 2\r\n{GET}")).await;
        assert_eq!(client.response().await.status, status, "{address}");
    }
}

#[tokio::test]
async fn connection_without_a_header_is_closed() {
    let proxy = proxy().await;
    for start in [GET, "PROXY TCP4 nowhere\r\n", "PROXY "] {
        let mut client = proxy.client().await;
        client.send(start).await;
        client.0.shutdown().await.unwrap();
        assert_eq!(client.rest().await, b"", "{start:?}");
    }
    assert_eq!(proxy.metric("fetchr_errors_total{direction=\"inbound\",reason=\"proxy_protocol_missing\"}"), 3.0);
    // A health check says nothing at all.
    let mut client = proxy.client().await;
    client.0.shutdown().await.unwrap();
    assert_eq!(client.rest().await, b"");
    assert_eq!(proxy.metric("fetchr_errors_total{direction=\"inbound\",reason=\"proxy_protocol_missing\"}"), 3.0);
}

#[tokio::test]
async fn header_comes_before_tls() {
    let pki = Pki::new();
    let tls = listener_tls(vec![pki.issue("shop", &["shop.example"])]);
    let proxy = Proxy::with(&format!("http://{}", Origin::echo_head().await.address), |settings| {
        let listener = &mut settings.interception.listeners[0];
        (listener.proxy_protocol, listener.tls) = (ProxyProtocol::Required, Some(tls));
    });
    let mut client = proxy.client().await;
    client.send(HEADER).await;
    let connector = TlsConnector::from(Arc::new(pki.client(&[])));
    let mut stream = connector.connect(ServerName::try_from("shop.example").unwrap(), client.0).await.unwrap();
    stream.write_all(GET.as_bytes()).await.unwrap();
    let seen = read_response(&mut stream, true).await;
    assert_eq!(field(seen.text(), "x-forwarded-for"), Some("203.0.113.7"));
    assert_eq!(field(seen.text(), "x-forwarded-proto"), Some("https"));
}
