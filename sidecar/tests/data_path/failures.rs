//! Peers that are absent, slow, hostile or gone.

use std::{
    net::SocketAddr,
    os::fd::BorrowedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crds::policy::Direction;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use crate::{
    frames::{END_HEADERS, END_STREAM, GOAWAY, HEADERS, Peer, get, request},
    support::{Bystander, Client, Counted, LONG, Origin, Proxy, eventually, ms, nobody, read_head, until},
};

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

#[tokio::test]
async fn absent_upstream_is_502_with_the_reason() {
    let proxy = Proxy::before(nobody().await);
    let mut client = proxy.client().await;
    client.send(GET).await;
    let response = client.response().await;
    assert_eq!(response.status, 502);
    assert!(response.field("proxy-status").starts_with("fetchr; error=connection_refused; details=\""), "{}", response.head);
    assert!(response.text().contains("could not connect to"), "{}", response.text());
    client.send(GET).await;
    assert_eq!(client.response().await.status, 502, "the client's connection stays");
    let reason = "fetchr_errors_total{direction=\"inbound\",reason=\"connection_refused\"}";
    eventually("the count", || proxy.metric(reason) == 2.0).await;
}

#[tokio::test]
async fn listener_that_somebody_else_has_closed_is_opened_again() {
    let (origin, address) = (Origin::echo_head().await, nobody().await);
    let proxy = Proxy::with(&format!("http://{}", origin.address), |settings| {
        settings.interception.listeners[0].port = address.port().into();
    });
    assert_eq!(proxy.ask(GET).await.status, 200);
    let closed = (0..4096).filter(|fd| {
        // SAFETY: it is only asked and shut down; what is no descriptor, or none of a socket, is an error.
        let socket = unsafe { BorrowedFd::borrow_raw(*fd) };
        let socket = SockRef::from(&socket);
        let is_it = socket.is_listener().unwrap_or(false)
            && socket.local_addr().is_ok_and(|local| local.as_socket() == Some(proxy.address));
        is_it && socket.shutdown(std::net::Shutdown::Both).is_ok()
    });
    assert_eq!(closed.count(), 1);
    until("it", async || match TcpStream::connect(proxy.address).await {
        Ok(stream) => {
            let mut client = Client(stream);
            client.send(GET).await;
            client.response().await.status == 200
        }
        Err(_) => false,
    })
    .await;
}

#[tokio::test]
async fn grpc_client_gets_a_grpc_status() {
    let proxy = Proxy::before(nobody().await);
    let request = "POST /shop.Catalogue/List HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n";
    let response = proxy.ask(request).await;
    assert_eq!((response.status, response.field("grpc-status")), (200, "14"));
    assert!(response.field("grpc-message").contains("could not connect"));
}

#[tokio::test]
async fn upstream_that_does_not_accept_is_504() {
    // A socket with a full backlog drops further handshakes.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut fill = Vec::new();
    while let Ok(Ok(stream)) = timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
        fill.push(stream);
    }
    let proxy = Proxy::with(&format!("http://{address}"), |settings| settings.upstream.connect_timeout = ms(100));
    let response = proxy.ask(GET).await;
    assert_eq!(response.status, 504);
    assert!(response.field("proxy-status").contains("connection_timeout"), "{}", response.head);
}

#[tokio::test]
async fn upstream_that_does_not_answer_is_504() {
    let origin = Origin::silent().await;
    let proxy = Proxy::with(&format!("http://{}", origin.address), |settings| {
        settings.upstream.response_header_timeout = ms(100);
    });
    let response = proxy.ask(GET).await;
    assert_eq!(response.status, 504);
    assert!(response.field("proxy-status").contains("http_response_timeout"), "{}", response.head);
    proxy.apply(r#"[{"name": "slow", "timeouts": {"request": "10ms"}}]"#);
    let response = proxy.ask(GET).await;
    assert_eq!((response.status, response.text().contains("10ms")), (504, true));
}

#[tokio::test]
async fn time_limits_in_shadow_count_and_end_nothing() {
    let origin = Origin::scripted(|mut stream, _| async move {
        read_head(&mut stream).await.unwrap();
        sleep(Duration::from_millis(20)).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nhalf").await.unwrap();
        sleep(Duration::from_millis(20)).await;
        stream.write_all(b"half").await.unwrap();
        let _ = stream.read_u8().await;
    })
    .await;
    let proxy = Proxy::before(origin.address);
    proxy.metrics.register(sidecar::route::register);
    proxy.apply(r#"[{"name": "watch", "timeouts": {"mode": "Shadow", "connect": "1h", "request": "1ms", "idle": "1ms"}}]"#);
    assert_eq!(proxy.ask(GET).await.text(), "halfhalf");
    let counted = |limit| proxy.metric(&format!("fetchr_timeouts_shadow_total{{route=\"shop/test/watch\",limit=\"{limit}\"}}"));
    assert_eq!([counted("connect"), counted("request"), counted("idle")], [0.0, 1.0, 1.0]);
}

#[tokio::test]
async fn body_that_pauses_for_too_long_is_cut_off() {
    let origin = Origin::scripted(|mut stream, _| async move {
        read_head(&mut stream).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
        let _ = stream.read_u8().await;
    })
    .await;
    let proxy = Proxy::with(&format!("http://{}", origin.address), |settings| settings.upstream.idle_timeout = ms(100));
    let mut client = proxy.client().await;
    client.send(GET).await;
    let rest = client.rest().await;
    assert!(rest.ends_with(b"half"));
    assert_eq!(proxy.metric("fetchr_errors_total{direction=\"inbound\",reason=\"response_broken\"}"), 1.0);
}

#[tokio::test]
async fn upstream_that_breaks_off_cuts_the_answer_visibly() {
    let origin = Origin::answering_once("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n").await;
    let proxy = Proxy::before(origin.address);
    let mut client = proxy.client().await;
    client.send(GET).await;
    let rest = client.rest().await;
    assert!(!rest.ends_with(b"0\r\n\r\n"), "a body that broke off must not end like a whole one");
}

#[tokio::test]
async fn answer_that_breaks_off_before_any_of_it_was_sent_is_502() {
    // The break comes with the head.
    for (answer, interim) in [
        ("HTTP/1.1 200 OK\r\nx-of: origin\r\ntransfer-encoding: chunked\r\n\r\nhalf\r\n", false),
        ("HTTP/1.1 200 OK\r\nx-of: origin\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\nhalf\r\n", false),
        (
            "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nx-of: origin\r\ntransfer-encoding: chunked\r\n\r\n\
             4\r\nhalf\r\nhalf\r\n",
            true,
        ),
    ] {
        let proxy = Proxy::before(Origin::answering_once(answer).await.address);
        let mut client = proxy.client().await;
        client.send(GET).await;
        if interim {
            let hints = read_head(&mut client.0).await.unwrap();
            assert!(hints.starts_with("HTTP/1.1 103 "), "{hints}");
        }
        let response = client.response().await;
        assert_eq!((response.status, response.has("x-of"), response.field("connection")), (502, false, "close"), "{answer:?}");
        assert!(response.field("proxy-status").contains("http_protocol_error"), "{}", response.head);
        assert_eq!(response.text(), "fetchr: the upstream broke off before it answered\n");
        assert!(client.rest().await.is_empty());
        let counted = "http_server_request_duration_seconds_count{direction=\"inbound\",http_request_method=\"GET\",\
                       http_response_status_code=\"502\"";
        assert_eq!(proxy.metric(counted), 1.0);
        assert_eq!(proxy.metric("fetchr_errors_total{direction=\"inbound\",reason=\"http_protocol_error\"}"), 1.0);
    }
}

#[tokio::test]
async fn garbage_from_the_upstream_is_502() {
    let origin = Origin::answering_once("SSH-2.0-OpenSSH_9\r\n\r\n").await;
    let response = Proxy::before(origin.address).ask(GET).await;
    assert_eq!(response.status, 502);
    assert!(response.field("proxy-status").contains("http_protocol_error"), "{}", response.head);
}

#[tokio::test]
async fn client_that_leaves_aborts_the_upstream_request() {
    let gone = Arc::new(AtomicBool::new(false));
    let (asked, seen) = (Arc::new(AtomicBool::new(false)), Arc::clone(&gone));
    let got = Arc::clone(&asked);
    let origin = Origin::scripted(move |mut stream, _| {
        let (seen, got) = (Arc::clone(&seen), Arc::clone(&got));
        async move {
            read_head(&mut stream).await.unwrap();
            got.store(true, Ordering::SeqCst);
            let _ = stream.read(&mut [0]).await;
            seen.store(true, Ordering::SeqCst);
        }
    })
    .await;
    let proxy = Proxy::before(origin.address);
    let mut client = proxy.client().await;
    client.send(GET).await;
    eventually("the request at the origin", || asked.load(Ordering::SeqCst)).await;
    drop(client);
    eventually("the abort at the origin", || gone.load(Ordering::SeqCst)).await;
    let left = "fetchr_errors_total{direction=\"inbound\",reason=\"client_left\"}";
    eventually("the count", || proxy.metric(left) == 1.0).await;
    assert_eq!(proxy.metric("http_server_active_requests{direction=\"inbound\"}"), 0.0);
}

#[tokio::test]
async fn client_that_does_not_read_is_cut_off() {
    let gone = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&gone);
    let origin = Origin::scripted(move |mut stream, _| {
        let seen = Arc::clone(&seen);
        async move {
            read_head(&mut stream).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
            while stream.write_all(format!("10000\r\n{}\r\n", "x".repeat(0x10000)).as_bytes()).await.is_ok() {}
            seen.store(true, Ordering::SeqCst);
        }
    })
    .await;
    let proxy = Proxy::with(&format!("http://{}", origin.address), |settings| settings.upstream.idle_timeout = ms(200));
    let mut client = proxy.client().await;
    client.send(GET).await;
    eventually("the end at the origin", || gone.load(Ordering::SeqCst)).await;
    let reason = "fetchr_errors_total{direction=\"inbound\",reason=\"client_timeout\"}";
    eventually("the count", || proxy.metric(reason) == 1.0).await;
    assert_eq!(proxy.metric("http_server_active_requests{direction=\"inbound\"}"), 0.0);
}

#[tokio::test]
async fn flood_of_fields_is_431() {
    let proxy = Proxy::before(nobody().await);
    let fields: String = (0..150).map(|n| format!("x-{n}: 1\r\n")).collect();
    assert_eq!(proxy.ask(&format!("GET / HTTP/1.1\r\nhost: a\r\n{fields}\r\n")).await.status, 431);
    let big = "a".repeat(100_000);
    let mut client = proxy.client().await;
    client.send(format!("GET / HTTP/1.1\r\nhost: a\r\nx-big: {big}\r\n\r\n")).await;
    assert_eq!(client.response().await.status, 431);
    assert!(client.rest().await.is_empty());
}

#[tokio::test]
async fn transfer_coding_that_would_be_lost_on_the_way_is_refused() {
    for coding in ["gzip, chunked", "chunked, chunked"] {
        let origin = Origin::scripted(move |mut stream, _| async move {
            read_head(&mut stream).await.unwrap();
            let answer = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: {coding}\r\n\r\n1\r\nx\r\n0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        })
        .await;
        let proxy = Proxy::before(origin.address);
        let mut client = proxy.client().await;
        client.send(format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: {coding}\r\n\r\n1\r\nx\r\n0\r\n\r\n")).await;
        let refused = client.response().await;
        assert_eq!((refused.status, refused.field("connection"), origin.connections()), (501, "close", 0), "{coding}");
        let answered = proxy.ask(GET).await;
        assert_eq!(answered.status, 502, "{coding}");
        assert!(answered.field("proxy-status").contains("http_response_transfer_coding"), "{}", answered.head);
    }
}

#[tokio::test]
async fn request_that_comes_back_is_a_loop() {
    let proxy = Proxy::with("http://127.0.0.1:1", |settings| settings.upstream.connect_timeout = ms(100));
    let response = proxy.ask("GET / HTTP/1.1\r\nhost: a\r\nvia: 1.1 x, 1.1 fetchr-test-in\r\n\r\n").await;
    assert_eq!(response.status, 502);
    assert!(response.field("proxy-status").contains("proxy_loop_detected"), "{}", response.head);
}

/// Connects; none if the connection was refused so fast that connecting fails.
async fn attempt(address: SocketAddr) -> Option<Client> {
    TcpStream::connect(address).await.ok().map(Client)
}

/// Connects to the cap, and once more.
async fn fill(address: SocketAddr) -> Vec<Client> {
    let mut held = Vec::new();
    for _ in 0..65 {
        held.extend(attempt(address).await);
    }
    held
}

/// The same beside a bystander, until all of it is seen.
async fn fill_beside(proxy: &Proxy) -> Vec<Client> {
    let held = fill(proxy.address).await;
    eventually("the refusals", || refused(proxy, "inbound") == 2.0).await;
    held
}

/// Asks until an answer comes.
async fn served_at_last(address: SocketAddr) {
    let served = async {
        loop {
            if let Some(mut client) = attempt(address).await
                && client.0.write_all(GET.as_bytes()).await.is_ok()
                && try_read_head(&mut client.0).await.is_some_and(|head| head.starts_with("HTTP/1.1 200"))
            {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LONG, served).await.expect("places come back");
}

fn refused(proxy: &Proxy, direction: &str) -> f64 {
    proxy.metric(&format!("fetchr_dropped_total{{direction=\"{direction}\",reason=\"connection_limit\"}}"))
}

#[tokio::test]
async fn connections_beyond_the_cap_are_refused_and_counted() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let proxy = Proxy::before(origin.address);
    let held = fill(proxy.address).await;
    eventually("the refusal", || refused(&proxy, "inbound") == 1.0).await;
    drop(held);
    served_at_last(proxy.address).await;
}

#[tokio::test]
async fn client_beyond_the_cap_is_told_when_to_come_again_in_its_protocol() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let proxy = Proxy::before(origin.address);
    let mut other = Bystander::of(&proxy).await;
    let _held = fill_beside(&proxy).await;
    for (name, request) in [
        ("a request", GET.to_owned()),
        ("HEAD", "HEAD / HTTP/1.1\r\nhost: a\r\n\r\n".to_owned()),
        ("an upload", format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000\r\n\r\n{}", "x".repeat(100_000))),
        ("the start of a request", "GET / HTTP/1.1\r\n".to_owned()),
        ("half of a line", "GET / HTT".to_owned()),
    ] {
        let (counted, mut client) = (Counted::by(&proxy), proxy.client().await);
        client.send(&request).await;
        if name == "half of a line" {
            client.send("P/1.1\r\n").await;
        }
        let response = client.head_response().await;
        let fields =
            (response.status, response.field("retry-after"), response.field("connection"), response.field("content-length"));
        assert_eq!(fields, (503, "1", "close", "0"), "{name}");
        assert!(response.field("proxy-status").contains("connection_limit_reached"), "{}", response.head);
        assert!(client.rest().await.is_empty(), "{name}");
        counted.once_more(&proxy, "connection_limit", name).await;
        other.is_served(name).await;
    }
    for first in [1, 13] {
        let (counted, mut client) = (Counted::by(&proxy), Peer::connect(proxy.address).await);
        client.send(&request(first, &get(&[]))).await;
        let answer = client.next(&[HEADERS]).await.unwrap();
        assert_eq!((answer.status(), answer.stream, answer.flags), (503, first, END_HEADERS | END_STREAM));
        let leaves = client.next(&[GOAWAY]).await.unwrap();
        assert_eq!((&leaves.payload[..4], leaves.code()), (&first.to_be_bytes()[..], 0));
        assert!(client.is_closed().await);
        counted.once_more(&proxy, "connection_limit", "a stream").await;
        other.is_served("a stream").await;
    }
    assert_eq!(origin.connections(), 1, "nothing of it all reached the origin");
}

#[tokio::test]
async fn refusals_have_an_end_and_are_few_at_a_time() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let proxy = Proxy::before(origin.address);
    let mut other = Bystander::of(&proxy).await;
    let _held = fill_beside(&proxy).await;
    let mut garbage = proxy.client().await;
    garbage.send(b"\x16\x03\x01").await;
    assert!(garbage.rest().await.is_empty(), "what is no HTTP is reset");
    let start = Instant::now();
    let mut silent = Vec::new();
    while refused(&proxy, "inbound") < 40.0 {
        silent.extend(attempt(proxy.address).await);
    }
    // Those beyond the places of the silent ones are reset at once, whatever they say.
    let mut last = silent.pop().unwrap();
    assert!(last.rest().await.is_empty());
    other.is_served("silent clients").await;
    for client in &mut silent {
        assert!(client.rest().await.is_empty());
    }
    assert!(start.elapsed() < LONG / 2, "{:?}", start.elapsed());
    assert_eq!(proxy.ask(GET).await.status, 503, "the places are free again");
}

/// A head; none if the connection ends, or is reset, before its end.
async fn try_read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    String::from_utf8(head).ok()
}

#[tokio::test]
async fn cap_of_one_direction_leaves_the_other_alone() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let proxy = Proxy::with(&format!("http://{}", origin.address), |settings| {
        let mut forward = settings.interception.listeners[0].clone();
        (forward.name, forward.upstream, forward.direction) = ("egress".to_owned(), None, Direction::Outbound);
        settings.interception.listeners.push(forward);
    });
    let outbound = proxy.server.listeners()[1].1;
    let inbound_held = fill(proxy.address).await;
    eventually("the refusal", || refused(&proxy, "inbound") == 1.0).await;
    let mut client = attempt(outbound).await.expect("outbound has places");
    client.send(format!("GET http://{}/ HTTP/1.1\r\nhost: a\r\n\r\n", origin.address)).await;
    assert_eq!((client.response().await.text(), refused(&proxy, "outbound")), ("ok", 0.0));
    let _outbound_held = fill(outbound).await;
    eventually("the refusal", || refused(&proxy, "outbound") >= 1.0).await;
    drop(inbound_held);
    served_at_last(proxy.address).await;
}

#[tokio::test]
async fn answer_to_an_upload_that_its_upstream_can_not_have_says_that_the_connection_ends() {
    let proxy = Proxy::before(nobody().await);
    for (request, closes) in [("content-length: 5\r\n\r\nhello", false), ("content-length: 200000\r\n\r\nhello", true)] {
        let mut client = proxy.client().await;
        client.send(format!("POST / HTTP/1.1\r\nhost: a\r\n{request}")).await;
        let answer = client.response().await;
        assert_eq!((answer.status, answer.has("connection")), (502, closes), "{request}: {}", answer.head);
    }
}

/// A client that has sent its body whole does not see that nobody reads it, and would lose its next request.
#[tokio::test]
async fn answer_to_an_upload_that_nobody_will_read_says_that_the_connection_ends() {
    let proxy = Proxy::before(Origin::echo_head().await.address);
    proxy.apply(r#"[{"name": "rule", "rateLimits": [{"name": "none", "limit": {"requests": 1, "per": "1h"}}]}]"#);
    assert_eq!(proxy.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.status, 200);
    for (name, request, closes) in [
        ("short", "content-length: 5\r\n\r\nhello", false),
        ("short, in chunks", "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", false),
        ("long", "content-length: 200000\r\n\r\nhello", true),
        ("long, in chunks", "transfer-encoding: chunked\r\n\r\n10000\r\nhello", true),
    ] {
        let mut client = proxy.client().await;
        client.send(format!("POST / HTTP/1.1\r\nhost: a\r\n{request}")).await;
        let answer = client.response().await;
        assert_eq!((answer.status, answer.has("connection")), (429, closes), "{name}: {}", answer.head);
        if !closes {
            client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            assert_eq!(client.response().await.status, 429, "{name}: the connection goes on");
        }
    }
}
