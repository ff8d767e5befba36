//! Requests that go through, and what is changed on the way.

use crds::policy::Direction;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    frames::{END_HEADERS, END_STREAM, HEADERS, Peer, block, frame},
    support::{Bystander, Origin, Proxy, eventually, field, read_chunks, read_head},
};

#[tokio::test]
async fn connections_are_kept_on_both_sides() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await;
    let proxy = Proxy::before(origin.address);
    let mut client = proxy.client().await;
    for _ in 0..5 {
        client.send("GET / HTTP/1.1\r\nhost: shop\r\n\r\n").await;
        let response = client.response().await;
        assert_eq!((response.status, response.text()), (200, "hi"));
    }
    assert_eq!(proxy.ask("GET / HTTP/1.1\r\nhost: shop\r\n\r\n").await.text(), "hi");
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let origin = Origin::echo_head().await;
    let proxy = Proxy::before(origin.address);
    let mut client = proxy.client().await;
    client.send("GET /1 HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\n\r\nGET /3 HTTP/1.1\r\nhost: a\r\n\r\n").await;
    for n in 1..=3 {
        let response = client.response().await;
        assert!(response.text().starts_with(&format!("GET /{n} HTTP/1.1\r\n")), "{}", response.text());
    }
}

#[tokio::test]
async fn chunks_and_trailers_pass_both_ways() {
    let origin = Origin::scripted(|mut stream, _| async move {
        read_head(&mut stream).await.unwrap();
        let (body, trailers) = read_chunks(&mut stream).await;
        assert_eq!((&body[..], trailers.as_str()), (&b"hello world"[..], "x-sum: 1\n"));
        let answer =
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-end\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nx-end: 2\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream.read_u8().await.unwrap_err();
    })
    .await;
    let proxy = Proxy::before(origin.address);
    let mut client = proxy.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\nte: trailers\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n").await;
    client.send("6\r\nhello \r\n5\r\nworld\r\n0\r\nx-sum: 1\r\n\r\n").await;
    let response = client.response().await;
    assert_eq!((response.status, response.text(), response.trailers.as_str()), (200, "abcde", "x-end: 2\n"));
}

#[tokio::test]
async fn first_bytes_pass_before_the_last_exist() {
    let (release, released) = tokio::sync::oneshot::channel::<()>();
    let released = std::sync::Mutex::new(Some(released));
    let origin = Origin::scripted(move |mut stream, _| {
        let released = released.lock().unwrap().take().unwrap();
        async move {
            read_head(&mut stream).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n").await.unwrap();
            released.await.unwrap();
            stream.write_all(b"3\r\ntwo\r\n0\r\n\r\n").await.unwrap();
            let _ = stream.read_u8().await;
        }
    })
    .await;
    let proxy = Proxy::before(origin.address);
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let head = read_head(&mut client.0).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(client.bytes(8).await, b"3\r\none\r\n");
    release.send(()).unwrap();
    assert_eq!(client.bytes(13).await, b"3\r\ntwo\r\n0\r\n\r\n");
}

#[tokio::test]
async fn http10_client_gets_a_body_that_ends_with_the_connection() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n").await;
    let proxy = Proxy::before(origin.address);
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.0\r\n\r\n").await;
    let response = client.response().await;
    assert!(response.head.starts_with("HTTP/1.1 200"), "{}", response.head);
    assert!(!response.has("transfer-encoding"));
    assert_eq!(response.text(), "abc");
}

#[tokio::test]
async fn answers_without_a_body_leave_the_connection_usable() {
    let origin = Origin::scripted(|mut stream, _| async move {
        while let Some(head) = read_head(&mut stream).await {
            let answer = match head.split(' ').nth(1).unwrap() {
                "/204" => "HTTP/1.1 204 No Content\r\n\r\n",
                "/304" => "HTTP/1.1 304 Not Modified\r\netag: \"1\"\r\ncontent-length: 5\r\n\r\n",
                _ if head.starts_with("HEAD") => "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n",
                _ => "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
            };
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let proxy = Proxy::before(origin.address);
    let mut client = proxy.client().await;
    client.send("HEAD / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let head = client.head_response().await;
    assert_eq!((head.status, head.field("content-length")), (200, "5"));
    for status in [204, 304] {
        client.send(format!("GET /{status} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        assert_eq!(client.response().await.status, status);
    }
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(client.response().await.text(), "hello");
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn origin_is_told_who_asked_and_gets_no_field_of_the_hop() {
    let origin = Origin::echo_head().await;
    let proxy = Proxy::before(origin.address);
    let request = "GET /a?b=c HTTP/1.1\r\nHost: Shop.example:80\r\nConnection: X-Hop, close\r\nX-Hop: 1\r\nX-Fetchr-Route: forged\r\n\
                   X-Forwarded-For: 6.6.6.6\r\nKeep-Alive: 5\r\nX-Kept: yes\r\n\r\n";
    let response = proxy.ask(request).await;
    let seen = response.text();
    assert!(seen.starts_with("GET /a?b=c HTTP/1.1\r\n"), "{seen}");
    for (name, value) in [
        ("host", "Shop.example:80"),
        ("x-kept", "yes"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-host", "Shop.example:80"),
        ("x-forwarded-proto", "http"),
        ("via", "1.1 fetchr-test-in"),
    ] {
        assert_eq!(field(seen, name), Some(value), "{name} in {seen}");
    }
    for name in ["x-hop", "keep-alive", "connection", "x-fetchr-route"] {
        assert_eq!(field(seen, name), None, "{name} in {seen}");
    }
    assert_eq!(response.field("via"), "1.1 fetchr-test-in");
}

#[tokio::test]
async fn policy_edits_fields_and_limits_requests() {
    let origin = Origin::echo_head().await;
    let proxy = Proxy::before(origin.address);
    proxy.apply(
        r#"[{"name": "all",
            "headers": {"request": {"set": [{"name": "x-team", "value": "shop"}]}, "response": {"set": [{"name": "x-by", "value": "policy"}]}},
            "rateLimits": [{"name": "one", "limit": {"requests": 1, "per": "1h"}, "key": [{"source": "ClientIP"}], "scope": "Pod"}]}]"#,
    );
    let passed = proxy.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!((passed.status, field(passed.text(), "x-team"), passed.field("x-by")), (200, Some("shop"), "policy"));
    let denied = proxy.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!((denied.status, denied.field("x-by")), (429, "policy"));
    assert_eq!(denied.field("retry-after"), "3600");
    assert!(denied.field("ratelimit").contains("r=0"), "{}", denied.head);
    assert!(denied.has("ratelimit-policy"));
    assert!(proxy.metrics.encode().contains("http_route=\"shop/test/all\""));
}

#[tokio::test]
async fn forward_proxy_takes_absolute_uris() {
    let origin = Origin::echo_head().await;
    let proxy = Proxy::forward();
    let request = format!("GET http://{}/x?y HTTP/1.1\r\nhost: other\r\nproxy-authorization: secret\r\n\r\n", origin.address);
    let response = proxy.ask(&request).await;
    let seen = response.text();
    assert!(seen.starts_with("GET /x?y HTTP/1.1\r\n"), "{seen}");
    assert_eq!(field(seen, "host"), Some(origin.address.to_string().as_str()));
    assert_eq!(field(seen, "proxy-authorization"), None);
    assert_eq!(proxy.ask("GET /x HTTP/1.1\r\nhost: a\r\n\r\n").await.status, 400);
}

#[tokio::test]
async fn upload_waits_for_the_upstream_to_ask_for_it() {
    let origin = Origin::scripted(|mut stream, _| async move {
        let head = read_head(&mut stream).await.unwrap();
        assert_eq!(field(&head, "expect"), Some("100-continue"));
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        let mut body = [0; 5];
        stream.read_exact(&mut body).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        let _ = stream.read_u8().await;
    })
    .await;
    let proxy = Proxy::before(origin.address);
    let mut client = proxy.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n").await;
    assert!(read_head(&mut client.0).await.unwrap().starts_with("HTTP/1.1 100"));
    client.send("hello").await;
    assert_eq!(client.response().await.status, 200);
}

#[tokio::test]
async fn refused_upload_is_never_asked_for() {
    let origin = Origin::answering("HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n").await;
    let proxy = Proxy::before(origin.address);
    let mut client = proxy.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n").await;
    assert!(read_head(&mut client.0).await.unwrap().starts_with("HTTP/1.1 417"), "the final answer comes first, without a 100");
}

#[tokio::test]
async fn reloads_keep_connections_and_lose_no_request() {
    let origin = Origin::echo_head().await;
    let proxy = Proxy::before(origin.address);
    let mut client = proxy.client().await;
    for n in 0..200 {
        proxy.apply(&format!(
            r#"[{{"name": "v", "headers": {{"response": {{"set": [{{"name": "x-version", "value": "{n}"}}]}}}}}}]"#
        ));
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let response = client.response().await;
        assert_eq!((response.status, response.field("x-version")), (200, n.to_string().as_str()));
    }
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn listener_that_changes_keeps_its_port() {
    let origin = Origin::echo_head().await;
    let mut proxy = Proxy::before(origin.address);
    let listener = &mut proxy.settings.interception.listeners[0];
    (listener.name, listener.port) = ("changed".to_owned(), proxy.address.port().into());
    listener.direction = Direction::Outbound;
    proxy.apply("[]");
    eventually("the new listener", || proxy.server.listeners().first().is_some_and(|listener| listener.0 == "changed")).await;
    let response = proxy.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(response.text().contains("fetchr-test-out"), "{}", response.text());
}

#[tokio::test]
async fn own_answers_to_head_have_no_body() {
    let proxy = Proxy::forward();
    let mut client = proxy.client().await;
    for _ in 0..2 {
        client.send("HEAD http://127.0.0.1:99999/ HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let head = read_head(&mut client.0).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 400") && field(&head, "content-length").is_some_and(|len| len != "0"), "{head}");
        assert!(client.rest().await.is_empty(), "the connection ends with the head");
        client = proxy.client().await;
    }
}

/// Server-side request forgery by name: cloud platforms have an address that gives away credentials to whoever reaches it.
#[tokio::test]
async fn inbound_request_reaches_the_application_and_nothing_else_whatever_it_names() {
    let metadata = Origin::scripted_at("127.0.0.9:0".parse().unwrap(), |_, _| async {}).await;
    let application = Origin::echo_head().await;
    let proxy = Proxy::before(application.address);
    let (forbidden, named) = (metadata.address, metadata.address.to_string());
    let mut other = Bystander::of(&proxy).await;
    for balanced in [false, true] {
        if balanced {
            proxy.apply(r#"[{"name": "r", "loadBalancing": {}, "retry": {}}]"#);
        }
        for (request, status) in [
            (format!("GET / HTTP/1.1\r\nhost: {forbidden}\r\n\r\n"), 200),
            (format!("GET http://{forbidden}/ HTTP/1.1\r\nhost: {forbidden}\r\n\r\n"), 200),
            (format!("GET http://{forbidden}/ HTTP/1.0\r\n\r\n"), 200),
            (format!("GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-host: {forbidden}\r\nforwarded: host={forbidden}\r\n\r\n"), 200),
            (format!("GET https://{forbidden}/ HTTP/1.1\r\nhost: {forbidden}\r\n\r\n"), 200),
            (format!("GET //{forbidden}/ HTTP/1.1\r\nhost: a\r\n\r\n"), 200),
            (format!("GET http://{forbidden}/ HTTP/1.1\r\nhost: a\r\n\r\n"), 400),
            (format!("GET http://a@{forbidden}/ HTTP/1.1\r\nhost: a\r\n\r\n"), 400),
            (format!("CONNECT {forbidden} HTTP/1.1\r\nhost: {forbidden}\r\n\r\n"), 405),
        ] {
            assert_eq!(proxy.ask(&request).await.status, status, "{request:?}");
            other.is_served(&request).await;
        }
        for (name, fields, status) in [
            ("authority", vec![(":method", "GET"), (":scheme", "http"), (":authority", named.as_str()), (":path", "/")], 200),
            ("host", vec![(":method", "GET"), (":scheme", "http"), (":path", "/"), ("host", named.as_str())], 200),
            ("CONNECT", vec![(":method", "CONNECT"), (":authority", named.as_str())], 405),
        ] {
            let mut client = Peer::connect(proxy.address).await;
            client
                .send(&frame(HEADERS, if status == 405 { END_HEADERS } else { END_HEADERS | END_STREAM }, 1, &block(&fields)))
                .await;
            assert_eq!(client.next(&[HEADERS]).await.unwrap().status(), status, "{name}");
        }
    }
    assert_eq!(metadata.connections(), 0);
}
