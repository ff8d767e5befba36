//! Upgrades and CONNECT.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{LONG, Origin, Proxy, eventually, field, read_head};

/// Switches to a protocol that sends back each byte, upper case.
async fn shouting() -> Origin {
    Origin::scripted(|mut stream, _| async move {
        let head = read_head(&mut stream).await.unwrap();
        assert_eq!((field(&head, "upgrade"), field(&head, "connection")), (Some("websocket"), Some("upgrade")));
        // The first bytes of the new protocol come with the head.
        let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: x\r\n\r\nready";
        stream.write_all(answer.as_bytes()).await.unwrap();
        shout(stream).await;
    })
    .await
}

async fn shout(mut stream: tokio::net::TcpStream) {
    let mut buf = [0; 64];
    while let Ok(len @ 1..) = stream.read(&mut buf).await {
        buf[..len].make_ascii_uppercase();
        stream.write_all(&buf[..len]).await.unwrap();
    }
}

#[tokio::test]
async fn upgraded_connection_carries_bytes_both_ways() {
    let proxy = Proxy::before(shouting().await.address);
    let mut client = proxy.client().await;
    client
        .send("GET /chat HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: k\r\n\r\n")
        .await;
    let head = read_head(&mut client.0).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert_eq!((field(&head, "upgrade"), field(&head, "sec-websocket-accept")), (Some("websocket"), Some("x")));
    assert_eq!(client.bytes(5).await, b"ready");
    for word in ["one", "two"] {
        client.send(word).await;
        assert_eq!(client.bytes(3).await, word.to_uppercase().as_bytes());
    }
    assert_eq!(proxy.metric("fetchr_connections_open{direction=\"inbound\",kind=\"tunnel\"}"), 1.0);
    drop(client);
    eventually("the end of the tunnel", || proxy.metric("fetchr_connections_open{direction=\"inbound\",kind=\"tunnel\"}") == 0.0)
        .await;
    assert_eq!(proxy.metric("fetchr_bytes_total{direction=\"inbound\",part=\"request\"}"), 6.0);
    assert_eq!(proxy.metric("fetchr_bytes_total{direction=\"inbound\",part=\"response\"}"), 11.0);
}

#[tokio::test]
async fn client_may_go_on_after_the_upstream_has_ended_its_side() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let origin = Origin::scripted(move |mut stream, _| {
        let tell = tell.clone();
        async move {
            read_head(&mut stream).await.unwrap();
            let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut rest = String::new();
            stream.read_to_string(&mut rest).await.unwrap();
            tell.send(rest).unwrap();
        }
    })
    .await;
    let proxy = Proxy::before(origin.address);
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    read_head(&mut client.0).await.unwrap();
    assert_eq!(client.0.read(&mut [0; 8]).await.unwrap(), 0);
    client.send("late").await;
    client.0.shutdown().await.unwrap();
    let heard = tokio::time::timeout(LONG, told.recv()).await.unwrap();
    assert_eq!(heard.as_deref(), Some("late"));
}

#[tokio::test]
async fn switch_to_what_was_not_asked_for_is_refused() {
    for answer in [
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: other\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\r\n",
    ] {
        let proxy = Proxy::before(Origin::answering(answer).await.address);
        let response = proxy.ask("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
        assert_eq!(response.status, 502, "{answer}");
    }
}

#[tokio::test]
async fn refused_upgrade_is_an_ordinary_answer() {
    let origin = Origin::answering("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno").await;
    let proxy = Proxy::before(origin.address);
    let mut client = proxy.client().await;
    for _ in 0..2 {
        client.send("GET /chat HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
        let response = client.response().await;
        assert_eq!((response.status, response.text()), (403, "no"));
    }
}

#[tokio::test]
async fn switch_that_nobody_asked_for_is_502() {
    let origin = Origin::answering("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n").await;
    let proxy = Proxy::before(origin.address);
    for connections in 1..=2 {
        assert_eq!(proxy.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.status, 502);
        assert_eq!(origin.connections(), connections, "nothing more is sent on a connection that speaks something else");
    }
}

#[tokio::test]
async fn connect_opens_a_tunnel_through_the_forward_proxy() {
    let origin = Origin::scripted(|stream, _| shout(stream)).await;
    let proxy = Proxy::forward();
    let mut client = proxy.client().await;
    // Bytes that come with the request are the tunnel's, but only once it stands.
    client.send(format!("CONNECT {0} HTTP/1.1\r\nhost: {0}\r\n\r\nfirst", origin.address)).await;
    assert!(read_head(&mut client.0).await.unwrap().starts_with("HTTP/1.1 200"));
    assert_eq!(client.bytes(5).await, b"FIRST");
}

#[tokio::test]
async fn connect_without_a_forward_proxy_is_refused() {
    let origin = Origin::echo_head().await;
    let response = Proxy::before(origin.address).ask("CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n").await;
    assert_eq!((response.status, origin.connections()), (405, 0));
}

#[tokio::test]
async fn forward_proxy_does_not_reach_the_proxys_own_ports() {
    let proxy = Proxy::forward();
    let own = proxy.address;
    let refused = proxy.ask(&format!("CONNECT {own} HTTP/1.1\r\nhost: {own}\r\n\r\n")).await;
    assert_eq!(refused.status, 403);
    let refused = proxy.ask(&format!("GET http://localhost:{}/ HTTP/1.1\r\nhost: x\r\n\r\n", own.port())).await;
    assert_eq!(refused.status, 403);
}

#[tokio::test]
async fn port_of_the_proxy_on_another_address_is_no_port_of_the_proxy() {
    let proxy = Proxy::forward();
    let listener = tokio::net::TcpListener::bind(("127.0.0.2", proxy.address.port())).await.unwrap();
    tokio::spawn(async move { shout(listener.accept().await.unwrap().0).await });
    let mut client = proxy.client().await;
    client.send(format!("CONNECT 127.0.0.2:{0} HTTP/1.1\r\nhost: a\r\n\r\nhello", proxy.address.port())).await;
    assert!(read_head(&mut client.0).await.unwrap().starts_with("HTTP/1.1 200"));
    assert_eq!(client.bytes(5).await, b"HELLO");
}
