//! Peers that use HTTP/2 to make the proxy work, wait or remember for nothing.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PRIORITY, Peer, RST_STREAM, SETTINGS, WINDOW_UPDATE,
        block, frame, get, request,
    },
    support::{LONG, Origin, Proxy, eventually, ms, read_head},
};

const ENHANCE_YOUR_CALM: u32 = 11;
const REFUSED_STREAM: u32 = 7;

fn counter(reason: &str) -> String {
    format!("fetchr_errors_total{{direction=\"inbound\",reason=\"{reason}\"}}")
}

/// An origin that answers `/` and leaves all else waiting.
async fn patient() -> Origin {
    Origin::scripted(|mut stream, _| async move {
        while let Some(head) = read_head(&mut stream).await {
            if !head.starts_with("GET / ") {
                let _ = stream.read_u8().await;
                return;
            }
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        }
    })
    .await
}

async fn serves_others(proxy: &Proxy) {
    assert_eq!(proxy.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.status, 204);
}

/// A POST whose body is still to come.
fn post(stream: u32) -> Vec<u8> {
    let fields = [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/upload")];
    frame(HEADERS, END_HEADERS, stream, &block(&fields))
}

#[tokio::test]
async fn flood_of_frames_that_move_nothing_ends_its_connection() {
    let proxy = Proxy::before(patient().await.address);
    let one = 1_u32.to_be_bytes();
    // The library has a limit of its own on empty DATA.
    let floods: [(&str, usize, Vec<u8>); 8] = [
        ("PING", 900, frame(PING, 0, 0, &[0; 8])),
        ("PING that answers none", 900, frame(PING, 1, 0, &[0; 8])),
        ("SETTINGS", 900, frame(SETTINGS, 0, 0, &[])),
        ("PRIORITY", 900, frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 1])),
        ("tiny WINDOW_UPDATE", 900, frame(WINDOW_UPDATE, 0, 0, &one)),
        ("empty DATA", 50, frame(DATA, 0, 1, &[])),
        ("DATA of padding", 50, frame(DATA, 8, 1, &[3, 0, 0, 0])),
        ("unknown frames", 900, frame(0x20, 0, 1, b"x")),
    ];
    for (count, (name, few, flood)) in floods.into_iter().enumerate() {
        let mut client = Peer::connect(proxy.address).await;
        client.send(&post(1)).await;
        assert!(client.send(&flood.repeat(few)).await, "{name}");
        serves_others(&proxy).await;
        assert_eq!(proxy.metric(&counter("frame_flood")), count as f64, "{name}: so many may come");
        client.send(&flood.repeat(1100 - few)).await;
        assert_eq!(client.next(&[GOAWAY]).await.map(|found| found.code()), Some(ENHANCE_YOUR_CALM), "{name}");
        assert!(client.is_closed().await, "{name}");
        eventually(name, || proxy.metric(&counter("frame_flood")) == count as f64 + 1.0).await;
        serves_others(&proxy).await;
    }
}

#[tokio::test]
async fn head_that_never_ends_ends_its_connection() {
    let proxy = Proxy::before(patient().await.address);
    let mut client = Peer::connect(proxy.address).await;
    client.send(&frame(HEADERS, 0, 1, &block(&get(&[])))).await;
    client.send(&frame(CONTINUATION, 0, 1, &block(&[("x", "1")])).repeat(500)).await;
    assert_eq!(client.next(&[GOAWAY]).await.map(|found| found.code()), Some(ENHANCE_YOUR_CALM));
    assert!(client.is_closed().await);
    eventually("the count", || proxy.metric(&counter("header_too_large")) == 1.0).await;
    serves_others(&proxy).await;
}

#[tokio::test]
async fn head_beyond_its_limit_is_431_and_one_far_beyond_ends_its_connection() {
    let proxy = Proxy::before(patient().await.address);
    let long = "x".repeat(8000);
    let head = |fields: usize| {
        let all: Vec<_> = (0..fields).map(|_| ("x", long.as_str())).collect();
        let block = block(&get(&all));
        let mut parts = block.chunks(16_000).peekable();
        let mut frames = frame(HEADERS, END_STREAM, 1, parts.next().unwrap());
        while let Some(part) = parts.next() {
            frames.extend(frame(CONTINUATION, if parts.peek().is_none() { END_HEADERS } else { 0 }, 1, part));
        }
        frames
    };
    let mut client = Peer::connect(proxy.address).await;
    client.send(&head(9)).await;
    assert_eq!(client.next(&[HEADERS]).await.unwrap().status(), 431);
    eventually("the count", || proxy.metric(&counter("header_too_large")) == 1.0).await;
    client.send(&request(3, &get(&[]))).await;
    assert_eq!(client.next(&[HEADERS]).await.unwrap().status(), 204, "the connection goes on");
    let mut client = Peer::connect(proxy.address).await;
    client.send(&head(60)).await;
    assert!(client.is_closed().await);
    eventually("the count", || proxy.metric(&counter("header_too_large")) == 2.0).await;
    serves_others(&proxy).await;
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_and_do_not_reach_the_origin() {
    let origin = patient().await;
    let proxy = Proxy::with(&format!("http://{}", origin.address), |settings| settings.upstream.max_connections_per_host = 200);
    let mut client = Peer::connect(proxy.address).await;
    let fields = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/held")];
    for number in 0..110 {
        client.send(&request(2 * number + 1, &fields)).await;
    }
    for _ in 0..10 {
        let refused = client.next(&[RST_STREAM, GOAWAY, HEADERS]).await.unwrap();
        assert_eq!((refused.kind, refused.code(), refused.stream > 200), (RST_STREAM, REFUSED_STREAM, true));
    }
    eventually("the count", || proxy.metric(&counter("stream_limit")) == 10.0).await;
    eventually("the streams", || origin.connections() == 100).await;
    serves_others(&proxy).await;
}

#[tokio::test]
async fn streams_reset_as_soon_as_opened_end_their_connection() {
    let origin = patient().await;
    let proxy = Proxy::before(origin.address);
    let mut client = Peer::connect(proxy.address).await;
    let fields = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/held")];
    let mut flood = Vec::new();
    for number in 0..1000 {
        flood.extend(request(2 * number + 1, &fields));
        flood.extend(frame(RST_STREAM, 0, 2 * number + 1, &8_u32.to_be_bytes()));
    }
    client.send(&flood).await;
    assert_eq!(client.next(&[GOAWAY]).await.map(|found| found.code()), Some(ENHANCE_YOUR_CALM));
    assert!(client.is_closed().await);
    eventually("the count", || proxy.metric(&counter("reset_flood")) == 1.0).await;
    assert!(origin.connections() < 100, "{} reached the origin", origin.connections());
    serves_others(&proxy).await;
}

/// "MadeYouReset" (CVE-2025-8671): it is the proxy that resets, since the client breaks the rules on each stream.
#[tokio::test]
async fn streams_that_the_proxy_has_to_reset_end_their_connection() {
    let origin = patient().await;
    let proxy = Proxy::before(origin.address);
    let mut client = Peer::connect(proxy.address).await;
    let fields = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/held")];
    let mut flood = Vec::new();
    for number in 0..300 {
        flood.extend(request(2 * number + 1, &fields));
        flood.extend(frame(WINDOW_UPDATE, 0, 2 * number + 1, &0x7fff_ffff_u32.to_be_bytes()));
    }
    client.send(&flood).await;
    assert_eq!(client.next(&[GOAWAY]).await.map(|found| found.code()), Some(ENHANCE_YOUR_CALM));
    assert!(client.is_closed().await);
    eventually("the count", || proxy.metric(&counter("reset_flood")) == 1.0).await;
    assert!(origin.connections() <= 100, "{} reached the origin", origin.connections());
    serves_others(&proxy).await;
}

/// Plays an upstream over HTTP/2 once it has read a request.
async fn upstream(settings: Vec<u8>, answer: Vec<u8>) -> Origin {
    Origin::scripted(move |stream, _| {
        let (settings, answer) = (settings.clone(), answer.clone());
        async move {
            let Some(mut peer) = Peer::accept(stream, &settings).await else { return };
            if peer.next(&[HEADERS]).await.is_some() {
                peer.send(&answer).await;
                while peer.next(&[GOAWAY]).await.is_some() {}
            }
        }
    })
    .await
}

#[tokio::test]
async fn upstream_that_floods_is_left() {
    let ok = frame(HEADERS, END_HEADERS, 1, &block(&[(":status", "200")]));
    let hints = frame(HEADERS, END_HEADERS, 1, &block(&[(":status", "103"), ("link", "</a>")]));
    for (name, answer, begins) in [
        ("PING", frame(PING, 0, 0, &[0; 8]).repeat(3000), false),
        ("SETTINGS", frame(SETTINGS, 0, 0, &[]).repeat(3000), false),
        ("WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()).repeat(3000), false),
        ("1xx", hints.repeat(3000), false),
        ("empty DATA", [ok, frame(DATA, 0, 1, &[]).repeat(3000)].concat(), true),
    ] {
        let proxy = Proxy::with(&format!("h2c://{}", upstream(Vec::new(), answer).await.address), |_| {});
        let mut client = proxy.client().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        let answer = String::from_utf8(client.rest().await).unwrap();
        // An answer that has begun may have left before its end.
        let cut = begins && answer.starts_with("HTTP/1.1 200") && !answer.ends_with("0\r\n\r\n");
        assert!(cut || answer.starts_with("HTTP/1.1 502"), "{name}: {answer}");
        let reason = if cut { "response_broken" } else { "http_protocol_error" };
        eventually(name, || proxy.metric(&counter(reason)) == 1.0).await;
        eventually(name, || proxy.metric("fetchr_upstream_connections_open") == 0.0).await;
    }
}

#[tokio::test]
async fn upload_to_an_upstream_that_keeps_its_window_closed_is_given_up() {
    let closed = [0, 4, 0, 0, 0, 0]; // SETTINGS_INITIAL_WINDOW_SIZE
    let proxy = Proxy::with(&format!("h2c://{}", upstream(closed.to_vec(), Vec::new()).await.address), |settings| {
        settings.upstream.idle_timeout = ms(200);
        settings.upstream.response_header_timeout = ms(200);
    });
    let answer = proxy.ask("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody").await;
    assert_eq!(answer.status, 504, "{}", answer.head);
    eventually("the count", || proxy.metric(&counter("http_response_timeout")) == 1.0).await;
    eventually("its end", || proxy.metric("http_server_active_requests{direction=\"inbound\"}") == 0.0).await;
}

#[tokio::test]
async fn drain_says_goaway_twice_and_loses_no_stream_that_was_on_its_way() {
    let proxy = Proxy::before(patient().await.address);
    let mut client = Peer::connect(proxy.address).await;
    client.send(&request(1, &get(&[]))).await;
    assert_eq!(client.next(&[HEADERS]).await.unwrap().status(), 204);
    let drain = proxy.drain.clone();
    let drained = tokio::spawn(async move { drain.drain_inbound(Duration::ZERO, LONG).await });
    let first = client.next(&[GOAWAY]).await.unwrap();
    assert_eq!((&first.payload[..4], first.code()), (&[0x7f, 0xff, 0xff, 0xff][..], 0), "no stream is left out yet");
    client.send(&request(3, &get(&[]))).await; // sent before it has read that
    // Only then the PING that came with it is answered.
    assert_eq!(client.next(&[HEADERS]).await.unwrap().status(), 204);
    let last = client.next(&[GOAWAY]).await.unwrap();
    assert_eq!((&last.payload[..4], last.code()), (&[0, 0, 0, 3][..], 0));
    assert!(client.is_closed().await);
    drained.await.unwrap();
}

#[tokio::test]
async fn client_that_opens_its_window_by_drips_is_served_and_costs_no_memory() {
    const LEN: usize = 20_000;
    let origin = Origin::scripted(|mut stream, _| async move {
        read_head(&mut stream).await.unwrap();
        stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {LEN}\r\n\r\n").as_bytes()).await.unwrap();
        stream.write_all(&[b'x'; LEN]).await.unwrap();
        let _ = stream.read_u8().await;
    })
    .await;
    let proxy = Proxy::before(origin.address);
    let mut client = Peer::connect(proxy.address).await;
    client.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
    client.send(&request(1, &get(&[]))).await;
    assert_eq!(client.next(&[HEADERS]).await.unwrap().status(), 200);
    let mut came = 0;
    while came < LEN {
        client.send(&frame(WINDOW_UPDATE, 0, 1, &50_u32.to_be_bytes())).await;
        came += client.next(&[DATA]).await.unwrap().payload.len();
    }
    assert_eq!(came, LEN);
    assert!(client.is_silent(&[RST_STREAM, GOAWAY], Duration::from_millis(20)).await);
}
