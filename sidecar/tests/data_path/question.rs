//! What an upstream under TLS is asked first, its protocol, is part of a request's tries.

use std::time::Duration;

use crds::proxy::UpstreamTls;
use futures::future::join_all;
use tokio::{io::AsyncReadExt as _, time::Instant};
use tokio_rustls::TlsAcceptor;

use crate::{
    dns::{Names, Says},
    pki::Pki,
    support::{Origin, Proxy, ms, read_head},
    tls_upstream::{GET, proxy, tell_version},
};

fn events(proxy: &Proxy, section: &str, event: &str) -> f64 {
    let labels = format!("route=\"shop/test/rule\",section=\"{section}\",event=\"{event}\",mode=\"enforce\"");
    proxy.metric(&format!("fetchr_upstream_policy_events_total{{{labels}}}"))
}

/// A server that never answers.
async fn silent() -> Origin {
    Origin::scripted(|mut stream, _| async move {
        let mut read = [0; 1024];
        while stream.read(&mut read).await.is_ok_and(|read| read > 0) {}
    })
    .await
}

#[tokio::test]
async fn open_circuit_asks_no_question() {
    let pki = Pki::new();
    let origin = Origin::scripted(|_, _| async {}).await;
    let proxy = proxy(origin.address, &pki, |_| {});
    proxy.apply(r#"[{"name": "rule", "circuitBreaker": {"consecutiveFailures": 2, "openFor": "1m"}}]"#);
    for status in [502, 502, 503] {
        assert_eq!(proxy.ask(GET).await.status, status);
    }
    let asked = origin.connections();
    for _ in 0..5 {
        assert_eq!(proxy.ask(GET).await.status, 503);
    }
    assert_eq!((events(&proxy, "circuitBreaker", "opened"), origin.connections()), (1.0, asked));
}

#[tokio::test]
async fn question_takes_no_longer_than_a_try_may() {
    let pki = Pki::new();
    let (origin, limit) = (silent().await, Duration::from_secs(5));
    let mut proxy = proxy(origin.address, &pki, |_| {});
    proxy.settings.upstream.connect_timeout.0 = limit;
    for rule in
        [r#""timeouts": {"perTry": "100ms"}"#, r#""timeouts": {"request": "100ms"}"#, r#""timeouts": {"connect": "100ms"}"#]
    {
        proxy.apply(&format!(r#"[{{"name": "rule", {rule}}}]"#));
        let start = Instant::now();
        assert_eq!(proxy.ask(GET).await.status, 504);
        assert!(start.elapsed() < limit, "{rule}: {:?}", start.elapsed());
    }
}

#[tokio::test]
async fn requests_wait_for_one_answer_and_no_longer_than_for_a_connection() {
    let pki = Pki::new();
    let origin = silent().await;
    let mut proxy = proxy(origin.address, &pki, |_| {});
    proxy.settings.upstream.connect_timeout = ms(500);
    proxy.apply("[]");
    let start = Instant::now();
    let answers = join_all((0..20).map(|_| proxy.ask(GET))).await;
    assert!(answers.iter().all(|answer| answer.status == 504));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert!(origin.connections() <= 2, "{}", origin.connections()); // a late one may begin another
}

#[tokio::test]
async fn question_goes_on_when_the_client_leaves_that_was_first() {
    let pki = Pki::new();
    let acceptor = TlsAcceptor::from(std::sync::Arc::new(pki.server(&pki.issue("app", &["127.0.0.1"]), &["http/1.1"], false)));
    let origin = Origin::scripted(move |stream, number| {
        let acceptor = acceptor.clone();
        async move {
            if number == 0 {
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            if let Ok(stream) = acceptor.accept(stream).await {
                tell_version(stream, std::sync::Arc::default()).await;
            }
        }
    })
    .await;
    let proxy = proxy(origin.address, &pki, |_| {});
    let mut first = proxy.client().await;
    first.send(GET).await;
    crate::support::eventually("the question", || origin.connections() == 1).await;
    drop(first);
    assert_eq!(proxy.ask(GET).await.text(), "1.1");
    assert_eq!(origin.connections(), 2, "one asked, the other one spoke");
}

#[tokio::test]
async fn failed_question_is_tried_again() {
    let pki = Pki::new();
    let acceptor =
        TlsAcceptor::from(std::sync::Arc::new(pki.server(&pki.issue("app", &["127.0.0.1"]), &["h2", "http/1.1"], false)));
    let origin = Origin::scripted(move |stream, number| {
        let acceptor = acceptor.clone();
        async move {
            if number > 0
                && let Ok(stream) = acceptor.accept(stream).await
            {
                tell_version(stream, std::sync::Arc::default()).await;
            }
        }
    })
    .await;
    let proxy = proxy(origin.address, &pki, |_| {});
    proxy.apply(r#"[{"name": "rule", "retry": {}}]"#);
    let answer = proxy.ask("POST / HTTP/1.1\r\nhost: shop.example\r\ncontent-length: 4\r\n\r\nbody").await;
    assert_eq!((answer.status, answer.text(), events(&proxy, "retry", "retried")), (200, "2 https://shop.example/", 1.0));
}

#[tokio::test]
async fn server_that_does_not_answer_its_question_is_ejected() {
    let (pki, names) = (Pki::new(), Names::serve().await);
    let acceptor = TlsAcceptor::from(std::sync::Arc::new(pki.server(&pki.issue("app", &["web.example"]), &["http/1.1"], false)));
    let good = Origin::scripted(move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                tell_version(stream, std::sync::Arc::default()).await;
            }
        }
    })
    .await;
    let port = good.address.port();
    let bad = Origin::scripted_at(([127, 0, 0, 2], port).into(), |_, _| async {}).await;
    names.set("web.example", Says::Addresses(vec![good.address.ip(), bad.address.ip()], 60));
    let proxy = Proxy::to_name(&format!("https://web.example:{port}"), names.servers(&[], 1), |settings| {
        settings.interception.listeners[0].upstream_tls = Some(UpstreamTls { ca: Some(pki.ca()), ..UpstreamTls::default() });
    });
    proxy.apply(
        r#"[{"name": "rule", "retry": {"backoff": {"base": "20ms"}},
             "loadBalancing": {"policy": "RoundRobin", "ejection": {"consecutiveFailures": 2}}}]"#,
    );
    for _ in 0..10 {
        assert_eq!(proxy.ask(GET).await.status, 200);
    }
    assert_eq!((events(&proxy, "loadBalancing", "ejected"), bad.connections()), (1.0, 2));
}

#[tokio::test]
async fn client_that_waits_for_a_100_gets_it_although_the_upstream_chooses_http2() {
    let pki = Pki::new();
    let (address, _) = crate::tls_upstream::versions(pki.server(&pki.issue("app", &["127.0.0.1"]), &["h2"], false)).await;
    let proxy = proxy(address, &pki, |_| {});
    for _ in 0..2 {
        let mut client = proxy.client().await;
        client.send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncookie: a=1\r\ncontent-length: 4\r\n\r\n").await;
        let head = read_head(&mut client.0).await.unwrap();
        // The origin answers without a look at the body, so either may be first.
        if head.starts_with("HTTP/1.1 100") {
            client.send("body").await;
            assert_eq!(client.response().await.text(), "2 https://a/");
        } else {
            assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        }
    }
}
