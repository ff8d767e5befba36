//! Bodies that are not what their heads say.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{io::AsyncWriteExt, sync::Notify};

use super::{Hands, begin, get, kept, rule, under_way};
use crate::{
    cuts::{reset, whole},
    support::{Origin, Proxy, eventually, read_head},
};

const KEPT: &str = "HTTP/1.1 200 OK\r\ncache-control: max-age=600\r\n";

/// What follows [`KEPT`], and what of it is a whole answer, if any of it is.
const BROKEN: [(&str, Option<&str>); 16] = [
    ("content-length: 10\r\n\r\n", None),
    ("content-length: 10\r\n\r\nshort", None),
    ("content-length: 10\r\n\r\n123456789", None),
    ("transfer-encoding: chunked\r\n\r\n", None),
    ("transfer-encoding: chunked\r\n\r\n5\r\nshort\r\n", None),
    ("transfer-encoding: chunked\r\n\r\n5\r\nsho", None),
    ("transfer-encoding: chunked\r\n\r\n5\r\nshort\r\n0\r\n", None),
    ("transfer-encoding: chunked\r\n\r\n5\r\nshort\r\nzz\r\n", None),
    ("transfer-encoding: chunked\r\n\r\n5\r\nshorter\r\n0\r\n\r\n", None),
    ("transfer-encoding: chunked\r\n\r\nffffffffffffffff\r\nshort", None),
    ("content-length: 5\r\ncontent-length: 6\r\n\r\nshorter", None),
    ("content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshort\r\n0\r\n\r\n", None),
    ("content-length: -5\r\n\r\nshort", None),
    ("content-le", None),
    ("content-length: 5\r\n\r\nshorter", Some("short")),
    ("transfer-encoding: chunked\r\n\r\n5\r\nshort\r\n0\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil", Some("short")),
];

#[tokio::test]
async fn answer_that_is_not_as_its_head_says_is_never_kept_nor_whole_for_anybody() {
    for (rest, right) in BROKEN {
        for resets in [false, true] {
            let what = format!("{rest:?}, reset: {resets}");
            let (origin, go, asked) = broken_once(format!("{KEPT}{rest}"), resets).await;
            let proxy = Proxy::before(origin.address);
            proxy.apply(super::ALL);
            let mut clients = Vec::new();
            for _ in 0..3 {
                clients.push(begin(&proxy, &get("/", "connection: close\r\n")).await);
            }
            under_way(&proxy, 3.0).await;
            eventually("the request", || asked.load(Ordering::SeqCst) > 0).await;
            go.notify_one();
            for client in &mut clients {
                let got = client.rest().await;
                match whole(&got) {
                    None | Some((502, _)) => {}
                    Some((200, body)) => {
                        assert!(body == b"good answer" || Some(&*body) == right.map(str::as_bytes), "{what}: {body:?}")
                    }
                    other => panic!("{what}: {other:?}"),
                }
            }
            let next = begin(&proxy, &get("/", "connection: close\r\n")).await.rest().await;
            let (status, body) = whole(&next).unwrap_or_else(|| panic!("{what}: {:?}", String::from_utf8_lossy(&next)));
            assert!(status == 200 && (body == b"good answer" || Some(&*body) == right.map(str::as_bytes)), "{what}: {body:?}");
        }
    }
}

/// Answers the first request so when it is told to, and breaks off; others well.
async fn broken_once(first: String, resets: bool) -> (Origin, Arc<Notify>, Arc<AtomicUsize>) {
    let (go, asked) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let (wait, count) = (Arc::clone(&go), Arc::clone(&asked));
    let origin = Origin::scripted(move |mut stream, _| {
        let (wait, count, first) = (Arc::clone(&wait), Arc::clone(&count), first.clone());
        async move {
            while read_head(&mut stream).await.is_some() {
                if count.fetch_add(1, Ordering::SeqCst) > 0 {
                    stream.write_all(kept("good answer").as_bytes()).await.unwrap();
                    continue;
                }
                wait.notified().await;
                stream.write_all(first.as_bytes()).await.unwrap();
                if resets {
                    reset(&stream);
                }
                return;
            }
        }
    })
    .await;
    (origin, go, asked)
}

#[tokio::test]
async fn body_that_grows_beyond_what_is_kept_reaches_all_and_is_not_kept() {
    let mut hands = Hands::before(&rule(r#"{"maxObjectSize": "1Ki"}"#)).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(begin(&hands.proxy, &get("/", "")).await);
    }
    under_way(&hands.proxy, 3.0).await;
    let mut asked = hands.asked().await;
    asked.send(format!("{KEPT}transfer-encoding: chunked\r\n\r\n")).await;
    let piece = "x".repeat(600);
    for _ in 0..5 {
        asked.send(format!("258\r\n{piece}\r\n")).await;
    }
    asked.finish("0\r\n\r\n").await;
    for client in &mut clients {
        let response = client.response().await;
        assert_eq!((response.status, response.text()), (200, &*piece.repeat(5)));
    }
    assert_eq!(hands.proxy.metric("fetchr_cache_objects"), 0.0);
    assert_eq!(hands.proxy.metric("fetchr_cache_not_stored_total{reason=\"TooLarge\"}"), 1.0);
    // The next ones do not wait for each other: both reach the origin.
    let mut clients = [begin(&hands.proxy, &get("/", "")).await, begin(&hands.proxy, &get("/", "")).await];
    let both = [hands.asked().await, hands.asked().await];
    for asked in both {
        asked.finish(kept("short enough")).await;
    }
    for client in &mut clients {
        assert_eq!(client.response().await.text(), "short enough");
    }
    // As one would be kept, the next is.
    let mut client = begin(&hands.proxy, &get("/", "")).await;
    hands.asked().await.finish(kept("kept")).await;
    assert_eq!(client.response().await.text(), "kept");
    assert_eq!(super::ask(&hands.proxy, "/", "").await.text(), "kept");
}

#[tokio::test]
async fn body_that_breaks_off_beyond_what_is_kept_is_whole_for_nobody() {
    let mut hands = Hands::before(&rule(r#"{"maxObjectSize": "1Ki"}"#)).await;
    let mut clients = [begin(&hands.proxy, &get("/", "")).await, begin(&hands.proxy, &get("/", "")).await];
    under_way(&hands.proxy, 2.0).await;
    let mut asked = hands.asked().await;
    asked.send(format!("{KEPT}transfer-encoding: chunked\r\n\r\n7d0\r\n{}\r\n", "x".repeat(2000))).await;
    for client in &mut clients {
        read_head(&mut client.0).await.unwrap();
    }
    asked.reset();
    for client in &mut clients {
        let got = client.rest().await;
        assert!(!got.ends_with(b"0\r\n\r\n"), "{}", String::from_utf8_lossy(&got));
    }
    assert_eq!(hands.proxy.metric("fetchr_cache_objects"), 0.0);
}
