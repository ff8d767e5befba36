//! TLS with upstreams that no listener names: hosts that clients of a forward proxy ask for, and second upstreams of policies.

use std::sync::atomic::Ordering;

use crds::proxy::{ProxyProtocol, UpstreamTls};
use tokio::io::AsyncWriteExt as _;

use crate::{
    pki::{Pki, listener_tls},
    support::{Origin, Proxy, eventually, nobody, read_response},
    tls_upstream::{GET, versions},
};

/// A forward proxy that believes a CA.
fn forward(pki: &Pki, change: impl FnOnce(&mut crds::proxy::Listener)) -> Proxy {
    Proxy::forward_with(|settings| {
        let listener = &mut settings.interception.listeners[0];
        listener.upstream_tls = Some(UpstreamTls { ca: Some(pki.ca()), ..UpstreamTls::default() });
        change(listener);
    })
}

#[tokio::test]
async fn https_uri_goes_on_under_tls_as_its_host_prefers() {
    let pki = Pki::new();
    for (alpn, version) in [(&["h2", "http/1.1"][..], "2"), (&["http/1.1"], "1.1")] {
        let (address, connections) = versions(pki.server(&pki.issue("app", &["127.0.0.1"]), alpn, false)).await;
        let proxy = forward(&pki, |_| {});
        for _ in 0..3 {
            let answer = proxy.ask(&format!("GET https://{address}/x?y HTTP/1.1\r\nhost: other\r\n\r\n")).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert!(answer.text().starts_with(version), "{}", answer.text());
            if version == "2" {
                assert_eq!(answer.text(), format!("2 https://{address}/x?y"));
            }
        }
        assert_eq!(connections.load(Ordering::SeqCst), 1, "connections are kept");
    }
}

#[tokio::test]
async fn host_of_an_https_uri_must_be_who_it_says() {
    let (pki, stranger) = (Pki::new(), Pki::new());
    let (wrong_name, _) = versions(pki.server(&pki.issue("app", &["app.example"]), &[], false)).await;
    let (wrong_ca, _) = versions(stranger.server(&stranger.issue("app", &["127.0.0.1"]), &[], false)).await;
    let proxy = forward(&pki, |_| {});
    for address in [wrong_name, wrong_ca] {
        let answer = proxy.ask(&format!("GET https://{address}/ HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        assert_eq!(answer.status, 502);
        assert!(answer.field("proxy-status").contains("tls_certificate_error"), "{}", answer.head);
    }
    let plain = Origin::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let answer = proxy.ask(&format!("GET http://{}/ HTTP/1.1\r\nhost: a\r\n\r\n", plain.address)).await;
    assert_eq!(answer.status, 200, "others go in clear, as they ask");
}

#[tokio::test]
async fn policies_see_what_is_asked_of_https() {
    let pki = Pki::new();
    let (address, _) = versions(pki.server(&pki.issue("app", &["127.0.0.1"]), &[], false)).await;
    let proxy = forward(&pki, |_| {});
    proxy.apply(
        r#"[{"name": "secure", "matches": [{"cel": "request.scheme == 'https'"}], "headers": {"response": {"set": [{"name": "x-secure", "value": "yes"}]}}}]"#,
    );
    let answer = proxy.ask(&format!("GET https://{address}/ HTTP/1.1\r\nhost: a\r\n\r\n")).await;
    assert_eq!((answer.status, answer.field("x-secure")), (200, "yes"));
}

#[tokio::test]
async fn https_uri_that_came_over_a_network_in_clear_is_refused() {
    let pki = Pki::new();
    let (address, connections) = versions(pki.server(&pki.issue("app", &["127.0.0.1"]), &[], false)).await;
    let header = "PROXY TCP4 203.0.113.7 192.0.2.1 56324 4612\r\n";
    let request = format!("GET https://{address}/ HTTP/1.1\r\nhost: a\r\n\r\n");
    let clear = forward(&pki, |listener| listener.proxy_protocol = ProxyProtocol::Required);
    let answer = clear.ask(&format!("{header}{request}")).await;
    assert_eq!((answer.status, connections.load(Ordering::SeqCst)), (403, 0));
    assert!(answer.text().contains("CONNECT"), "{}", answer.text());
    let certificate = pki.issue("proxy", &["proxy.example"]);
    let secret = forward(&pki, |listener| {
        listener.proxy_protocol = ProxyProtocol::Required;
        listener.tls = Some(listener_tls(vec![certificate]));
    });
    let mut client = secret.client().await;
    client.send(header).await;
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(pki.client(&[])));
    let mut stream = connector.connect("proxy.example".try_into().unwrap(), client.0).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(read_response(&mut stream, true).await.status, 200);
}

fn events(proxy: &Proxy, event: &str) -> f64 {
    let labels = format!("route=\"shop/test/rule\",section=\"failover\",event=\"{event}\",mode=\"enforce\"");
    proxy.metric(&format!("fetchr_upstream_policy_events_total{{{labels}}}"))
}

/// The rule that has a second upstream under TLS.
fn rule(port: u16, tls: &UpstreamTls) -> String {
    let tls = serde_json::to_string(tls).unwrap();
    format!(r#"[{{"name": "rule", "failover": {{"upstream": "https://127.0.0.1:{port}", "upstreamTLS": {tls}}}}}]"#)
}

#[tokio::test]
async fn second_upstream_may_be_one_under_tls() {
    let pki = Pki::new();
    let (address, connections) = versions(pki.server(&pki.issue("app", &["standby.example"]), &["h2", "http/1.1"], false)).await;
    let proxy = Proxy::before(nobody().await);
    let named = UpstreamTls { ca: Some(pki.ca()), server_name: Some("standby.example".to_owned()), ..UpstreamTls::default() };
    let rules = rule(address.port(), &named);
    proxy.apply(&rules);
    let post = "POST / HTTP/1.1\r\nhost: shop.example\r\ncontent-length: 4\r\n\r\nbody";
    for request in [GET, post, GET] {
        assert_eq!(proxy.ask(request).await.text(), "2 https://shop.example/");
        proxy.apply(&rules); // what was read for one configuration serves the next
    }
    assert_eq!((events(&proxy, "failed_over"), connections.load(Ordering::SeqCst)), (3.0, 1));
    let unnamed = UpstreamTls { server_name: None, ..named };
    proxy.apply(&rule(address.port(), &unnamed));
    let answer = proxy.ask(GET).await;
    assert!(answer.status == 502 && answer.field("proxy-status").contains("tls_certificate_error"), "{}", answer.head);
}

#[tokio::test]
async fn second_upstream_steps_in_for_one_under_tls_in_its_own_protocol() {
    let pki = Pki::new();
    let (address, _) = versions(pki.server(&pki.issue("app", &["127.0.0.1"]), &["http/1.1"], false)).await;
    let proxy = crate::tls_upstream::proxy(nobody().await, &pki, |_| {});
    proxy.apply(&rule(address.port(), &UpstreamTls { ca: Some(pki.ca()), ..UpstreamTls::default() }));
    assert_eq!(proxy.ask(GET).await.text(), "1.1");
}

#[tokio::test]
async fn second_upstream_whose_ca_is_missing_is_used_once_it_is_there() {
    let pki = Pki::new();
    let (address, _) = versions(pki.server(&pki.issue("app", &["127.0.0.1"]), &["http/1.1"], false)).await;
    let good = std::fs::read(pki.ca().file.unwrap()).unwrap();
    pki.spoil("ca.crt");
    let proxy = Proxy::before(nobody().await);
    proxy.apply(&rule(address.port(), &UpstreamTls { ca: Some(pki.ca()), ..UpstreamTls::default() }));
    let answer = proxy.ask(GET).await;
    assert!(answer.status == 502 && answer.field("proxy-status").contains("connection_refused"), "{}", answer.head);
    assert_eq!((events(&proxy, "unusable"), events(&proxy, "failed_over")), (1.0, 0.0));
    std::fs::write(pki.ca().file.unwrap(), good).unwrap();
    assert_eq!(proxy.ask(GET).await.text(), "1.1");
    pki.spoil("ca.crt");
    eventually("the refusal", || proxy.metric("fetchr_tls_reloads_total{result=\"refused\"}") >= 1.0).await;
    assert_eq!(proxy.ask(GET).await.text(), "1.1", "what was read before stays in force");
}

#[tokio::test]
async fn servers_at_two_ports_of_a_host_are_spoken_to_each_as_it_prefers() {
    let pki = Pki::new();
    let certificate = pki.issue("app", &["127.0.0.1"]);
    let (new, of_new) = versions(pki.server(&certificate, &["h2"], false)).await;
    let (old, of_old) = versions(pki.server(&certificate, &["http/1.1"], false)).await;
    let proxy = forward(&pki, |_| {});
    for _ in 0..3 {
        for (address, version) in [(new, "2"), (old, "1.1")] {
            let answer = proxy.ask(&format!("GET https://{address}/ HTTP/1.1\r\nhost: a\r\n\r\n")).await;
            assert!(answer.status == 200 && answer.text().starts_with(version), "{address}: {} {}", answer.head, answer.text());
        }
    }
    assert_eq!((of_new.load(Ordering::SeqCst), of_old.load(Ordering::SeqCst)), (1, 1), "connections are kept");
}
