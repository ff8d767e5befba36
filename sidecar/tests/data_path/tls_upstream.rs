//! TLS with upstreams: who they are, what they speak, and what comes of one that is not who it should be.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use crds::proxy::UpstreamTls;
use http::{HeaderName, Request, Response, Version};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ServerConfig;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    sync::Notify,
};
use tokio_rustls::server::TlsStream;

use crate::{
    dns::{Names, Says},
    pki::{Pki, serve},
    support::{Origin, Proxy, ms, read_head},
};

pub(crate) const GET: &str = "GET / HTTP/1.1\r\nhost: shop.example\r\n\r\n";

/// A server that says which version a request came in, and how many connections had one.
pub(crate) async fn versions(config: ServerConfig) -> (SocketAddr, Arc<AtomicUsize>) {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    let address = serve(config, move |stream| tell_version(stream, Arc::clone(&count))).await;
    (address, connections)
}

pub(crate) async fn tell_version(stream: TlsStream<TcpStream>, connections: Arc<AtomicUsize>) {
    let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let first = AtomicUsize::new(0);
    let service = service_fn(|request: Request<Incoming>| {
        if first.fetch_add(1, Ordering::SeqCst) == 0 {
            connections.fetch_add(1, Ordering::SeqCst);
        }
        let h2 = request.version() == Version::HTTP_2;
        let seen = if h2 { format!("2 {}", request.uri()) } else { "1.1".to_owned() };
        let said = ["via", "x-forwarded-for"].map(|name| request.headers().get(name).cloned());
        async {
            let mut response = Response::new(Full::new(Bytes::from(seen)));
            for (name, value) in ["seen-via", "seen-client"].into_iter().zip(said) {
                response.headers_mut().extend(value.map(|value| (HeaderName::from_static(name), value)));
            }
            Ok::<_, hyper::Error>(response)
        }
    });
    let io = TokioIo::new(stream);
    let _ = if is_h2 {
        hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await
    } else {
        hyper::server::conn::http1::Builder::new().serve_connection(io, service).with_upgrades().await
    };
}

/// A proxy in front of a TLS server that is known as `localhost`.
pub(crate) fn proxy(address: SocketAddr, pki: &Pki, change: impl FnOnce(&mut UpstreamTls)) -> Proxy {
    let mut tls = UpstreamTls { ca: Some(pki.ca()), ..UpstreamTls::default() };
    change(&mut tls);
    Proxy::with(&format!("https://127.0.0.1:{}", address.port()), |settings| {
        settings.interception.listeners[0].upstream_tls = Some(tls);
        settings.upstream.connect_timeout = ms(1000);
    })
}

fn handshakes(proxy: &Proxy, result: &str) -> f64 {
    proxy.metric(&format!("fetchr_tls_handshakes_total{{peer=\"upstream\",result=\"{result}\"}}"))
}

#[tokio::test]
async fn upstream_that_knows_http2_gets_it_on_one_connection() {
    let pki = Pki::new();
    let certificate = pki.issue("app", &["127.0.0.1"]);
    let (address, connections) = versions(pki.server(&certificate, &["h2", "http/1.1"], false)).await;
    let proxy = proxy(address, &pki, |_| {});
    for _ in 0..5 {
        let response = proxy.ask(GET).await;
        assert_eq!((response.status, response.text()), (200, "2 https://shop.example/"));
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    // One asks what is spoken, the other one speaks.
    assert_eq!(handshakes(&proxy, "full") + handshakes(&proxy, "resumed"), 2.0);
}

#[tokio::test]
async fn upstream_is_told_the_hop_in_either_version() {
    let pki = Pki::new();
    let certificate = pki.issue("app", &["127.0.0.1"]);
    for (alpn, version) in [(&["h2"][..], "2 https://shop.example/"), (&["http/1.1"], "1.1")] {
        let (address, _) = versions(pki.server(&certificate, alpn, false)).await;
        let proxy = proxy(address, &pki, |_| {});
        for _ in 0..2 {
            let response = proxy.ask(GET).await;
            assert_eq!(response.text(), version);
            assert!(response.has("seen-via") && response.has("seen-client"), "{}", response.head);
        }
    }
}

#[tokio::test]
async fn second_upstream_steps_in_for_one_under_tls_that_is_absent_or_not_who_it_should_be() {
    let (pki, stranger) = (Pki::new(), Pki::new());
    let standby = Origin::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let (strange, _) = versions(stranger.server(&stranger.issue("app", &["127.0.0.1"]), &["h2", "http/1.1"], false)).await;
    for address in [crate::support::nobody().await, strange] {
        let proxy = proxy(address, &pki, |_| {});
        proxy.apply(&format!(r#"[{{"name": "rule", "failover": {{"upstream": "http://{}"}}}}]"#, standby.address));
        for _ in 0..2 {
            assert_eq!(proxy.ask(GET).await.text(), "ok");
        }
    }
}

#[tokio::test]
async fn addresses_of_a_name_under_tls_are_asked_for_the_name() {
    let (pki, names) = (Pki::new(), Names::serve().await);
    let (address, connections) = versions(pki.server(&pki.issue("app", &["web.example"]), &["http/1.1"], false)).await;
    names.set("web.example", Says::Addresses(vec![address.ip()], 60));
    let upstream = format!("https://web.example:{}", address.port());
    let proxy = Proxy::to_name(&upstream, names.servers(&[], 1), |settings| {
        settings.interception.listeners[0].upstream_tls = Some(UpstreamTls { ca: Some(pki.ca()), ..UpstreamTls::default() });
    });
    proxy.apply(r#"[{"name": "rule", "loadBalancing": {}}]"#);
    for _ in 0..3 {
        let answer = proxy.ask(GET).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert!(connections.load(Ordering::SeqCst) <= 2);
}

#[tokio::test]
async fn upstream_of_http1_keeps_its_connection_although_tls_sends_tickets() {
    let pki = Pki::new();
    let certificate = pki.issue("app", &["127.0.0.1"]);
    for alpn in [&["http/1.1"][..], &[]] {
        let (address, connections) = versions(pki.server(&certificate, alpn, false)).await;
        let proxy = proxy(address, &pki, |_| {});
        for _ in 0..5 {
            let response = proxy.ask(GET).await;
            assert_eq!((response.status, response.text()), (200, "1.1"));
        }
        assert_eq!(connections.load(Ordering::SeqCst), 1, "{alpn:?}");
    }
}

#[tokio::test]
async fn upgrade_goes_in_http1_to_an_upstream_that_prefers_http2() {
    let pki = Pki::new();
    let certificate = pki.issue("app", &["127.0.0.1"]);
    let (address, _) = versions(pki.server(&certificate, &["h2", "http/1.1"], false)).await;
    let proxy = proxy(address, &pki, |_| {});
    let upgrade = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    assert_eq!(proxy.ask(upgrade).await.text(), "1.1");
    assert!(proxy.ask(GET).await.text().starts_with('2'));
}

#[tokio::test]
async fn upstream_that_is_not_who_it_should_be_is_502_and_gets_no_request() {
    let (pki, stranger) = (Pki::new(), Pki::new());
    let (address, connections) = versions(pki.server(&pki.issue("app", &["app.example", "127.0.0.1"]), &[], false)).await;
    let unknown_ca = proxy(address, &stranger, |_| {});
    let wrong_name = proxy(address, &pki, |tls| tls.server_name = Some("other.example".to_owned()));
    for proxy in [&unknown_ca, &wrong_name] {
        let response = proxy.ask(GET).await;
        assert_eq!(response.status, 502);
        assert!(response.field("proxy-status").contains("error=tls_certificate_error"), "{}", response.head);
        assert!(response.text().contains("no TLS with 127.0.0.1"), "{}", response.text());
        assert_eq!(handshakes(proxy, "bad_certificate"), 1.0);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 0);
    let right_name = proxy(address, &pki, |tls| tls.server_name = Some("app.example".to_owned()));
    assert_eq!(right_name.ask(GET).await.status, 200);
}

#[tokio::test]
async fn upstream_that_asks_for_a_certificate_gets_it() {
    let pki = Pki::new();
    let (address, _) = versions(pki.server(&pki.issue("app", &["127.0.0.1"]), &[], true)).await;
    let without = proxy(address, &pki, |_| {});
    let response = without.ask(GET).await;
    assert_eq!(response.status, 502);
    assert!(response.field("proxy-status").contains("error=tls_alert_received"), "{}", response.head);
    let client = pki.issue("client", &["proxy.example"]);
    let with = proxy(address, &pki, |tls| tls.client_certificate = Some(client));
    assert_eq!(with.ask(GET).await.status, 200);
}

#[tokio::test]
async fn upstream_without_tls_is_502_and_one_that_is_silent_504() {
    let pki = Pki::new();
    let plain = Origin::answering("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await;
    let talks = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = talks.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = talks.accept().await.unwrap();
            stream.write_all(b"220 mail.example\r\n").await.unwrap();
        }
    });
    let response = proxy(address, &pki, |_| {}).ask(GET).await;
    assert_eq!(response.status, 502);
    assert!(response.field("proxy-status").contains("error=tls_protocol_error"), "{}", response.head);
    // It reads on for the end of a head.
    let silent = proxy(plain.address, &pki, |_| {});
    let response = silent.ask(GET).await;
    assert_eq!((response.status, handshakes(&silent, "timeout")), (504, 1.0), "{}", response.head);
}

#[tokio::test]
async fn body_that_ends_without_a_farewell_is_not_taken_for_whole() {
    let pki = Pki::new();
    let certificate = pki.issue("app", &["127.0.0.1"]);
    let (read, end) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let (told, closed) = (Arc::clone(&read), Arc::clone(&end));
    let address = serve(pki.server(&certificate, &["http/1.1"], false), move |mut stream| {
        let (told, closed) = (Arc::clone(&told), Arc::clone(&closed));
        async move {
            if read_head(&mut stream).await.is_some() {
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nhalf").await.unwrap();
                stream.flush().await.unwrap();
                told.notified().await;
                closed.fetch_add(1, Ordering::SeqCst);
            } // the socket is closed, TLS is not
        }
    })
    .await;
    let proxy = proxy(address, &pki, |_| {});
    let mut client = proxy.client().await;
    client.send(GET).await;
    let mut answer = Vec::new();
    while !answer.ends_with(b"half") {
        answer.extend(client.bytes(1).await);
    }
    read.notify_one();
    assert_eq!((client.rest().await, end.load(Ordering::SeqCst)), (b"\r\n".to_vec(), 1), "no last chunk");
}
