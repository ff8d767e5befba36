//! The rules of the upstream pool, (a) to (e), each with a peer that shows what it is for.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
    time::{sleep, timeout},
};

use crate::support::{Client, LONG, Origin, Proxy, eventually, field, ms, read_head};

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

#[tokio::test]
async fn connection_that_ends_with_its_answer_is_not_polled_again() {
    let origin = Origin::scripted(|mut stream, _| async move {
        read_head(&mut stream).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n").await.unwrap();
        for _ in 0..3 {
            sleep(Duration::from_millis(10)).await;
            stream.write_all(b"part").await.unwrap();
        }
    })
    .await;
    let proxy = Proxy::before(origin.address);
    let mut client = proxy.client().await;
    for _ in 0..3 {
        client.send(GET).await;
        assert_eq!(client.response().await.text(), "partpartpart");
    }
    assert_eq!(origin.connections(), 3);
    assert_eq!(proxy.metric("fetchr_panics_total"), 0.0);
}

#[tokio::test]
async fn trailers_end_an_answer_and_keep_its_connection() {
    let origin = Origin::scripted(|mut stream, _| async move {
        while read_head(&mut stream).await.is_some() {
            let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let proxy = Proxy::before(origin.address);
    let mut client = proxy.client().await;
    for _ in 0..3 {
        client.send(GET).await;
        assert_eq!(client.response().await.text(), "ok");
    }
    assert_eq!(origin.connections(), 1);
    assert!(!proxy.metrics.encode().contains("client_left"));
}

/// Answers the first request of a connection and breaks off at the second, once it has read its head.
async fn forgetful_origin() -> (Origin, Arc<AtomicUsize>) {
    let heads = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&heads);
    let origin = Origin::scripted(move |mut stream, _| {
        let count = Arc::clone(&count);
        async move {
            for request in 0..2 {
                let Some(head) = read_head(&mut stream).await else { return };
                count.fetch_add(1, Ordering::SeqCst);
                if request == 1 {
                    return;
                }
                if let Some(len) = field(&head, "content-length") {
                    stream.read_exact(&mut vec![0; len.parse().unwrap()]).await.unwrap();
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            }
        }
    })
    .await;
    (origin, heads)
}

#[tokio::test]
async fn safe_request_is_repeated_once_when_its_pooled_connection_was_closed() {
    let (origin, _) = forgetful_origin().await;
    let proxy = Proxy::before(origin.address);
    for _ in 0..4 {
        assert_eq!(proxy.ask(GET).await.status, 200);
    }
    assert!(proxy.metric("fetchr_upstream_retries_total") >= 1.0);
}

#[tokio::test]
async fn request_that_may_have_had_an_effect_is_not_repeated() {
    let (origin, heads) = forgetful_origin().await;
    let proxy = Proxy::before(origin.address);
    let post = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(proxy.ask(post).await.status, 200);
    let broken = proxy.ask(post).await;
    assert_eq!(broken.status, 502);
    assert!(broken.field("proxy-status").starts_with("fetchr; error="), "{}", broken.head);
    assert_eq!(heads.load(Ordering::SeqCst), 2);
    assert_eq!(proxy.metric("fetchr_upstream_retries_total"), 0.0);
}

#[tokio::test]
async fn method_that_has_an_effect_is_not_repeated_though_it_is_idempotent() {
    let (origin, heads) = forgetful_origin().await;
    let proxy = Proxy::before(origin.address);
    assert_eq!(proxy.ask(GET).await.status, 200);
    assert_eq!(proxy.ask("DELETE / HTTP/1.1\r\nhost: a\r\n\r\n").await.status, 502);
    assert_eq!(heads.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn request_is_never_repeated_twice() {
    let heads = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&heads);
    let origin = Origin::scripted(move |mut stream, number| {
        let count = Arc::clone(&count);
        async move {
            while read_head(&mut stream).await.is_some() {
                if count.fetch_add(1, Ordering::SeqCst) > 0 {
                    return;
                }
                assert_eq!(number, 0);
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            }
        }
    })
    .await;
    let proxy = Proxy::before(origin.address);
    assert_eq!(proxy.ask(GET).await.status, 200);
    assert_eq!(proxy.ask(GET).await.status, 502);
    assert_eq!((heads.load(Ordering::SeqCst), origin.connections()), (3, 2));
}

#[tokio::test]
async fn new_connection_that_dies_is_not_repeated() {
    let origin = Origin::scripted(|mut stream, _| async move { drop(read_head(&mut stream).await) }).await;
    let proxy = Proxy::before(origin.address);
    assert_eq!(proxy.ask(GET).await.status, 502);
    assert_eq!(origin.connections(), 1);
}

/// Closes connections that are idle for as long as it says, and counts the requests that come too late.
async fn punctual_origin(keep_alive: &'static str, keeps: Duration) -> Origin {
    Origin::scripted(move |mut stream, _| async move {
        while let Ok(Some(_)) = timeout(keeps, read_head(&mut stream)).await {
            let answer = format!("HTTP/1.1 200 OK\r\nkeep-alive: {keep_alive}\r\ncontent-length: 2\r\n\r\nok");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await
}

#[tokio::test]
async fn origin_says_how_long_an_idle_connection_may_be_used() {
    // A second of it is the margin.
    let origin = punctual_origin("timeout=3, max=100", 2 * LONG).await;
    let proxy = Proxy::before(origin.address);
    assert_eq!(proxy.ask(GET).await.text(), "ok");
    assert_eq!(proxy.ask(GET).await.text(), "ok");
    assert_eq!(origin.connections(), 1);
    eventually("it is closed", || proxy.metric("fetchr_upstream_connections_open") == 0.0).await;
    assert_eq!(proxy.ask(GET).await.text(), "ok");
    assert_eq!(origin.connections(), 2, "what the origin may close at any moment is not used");
}

#[tokio::test]
async fn connection_of_an_origin_that_keeps_none_is_not_used_again() {
    let origin = punctual_origin("timeout=0", LONG).await;
    let proxy = Proxy::before(origin.address);
    for _ in 0..3 {
        assert_eq!(proxy.ask(GET).await.text(), "ok");
    }
    assert_eq!(origin.connections(), 3);
}

#[tokio::test]
async fn connection_with_an_unsent_upload_is_not_pooled() {
    let origin = Origin::scripted(|mut stream, number| async move {
        read_head(&mut stream).await.unwrap();
        if number == 0 {
            stream.write_all(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nbig").await.unwrap();
            // What comes now is the rest of the upload, and then the end.
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            assert!(!String::from_utf8_lossy(&rest).contains("GET"), "another request came on this connection");
        } else {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        }
    })
    .await;
    let proxy = Proxy::before(origin.address);
    let mut client = proxy.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\npart").await;
    let early = client.response().await;
    assert_eq!((early.status, early.text()), (413, "big"));
    assert_eq!(proxy.ask(GET).await.text(), "ok");
    assert_eq!(origin.connections(), 2);
    assert_eq!(proxy.metric("fetchr_upstream_connections_reused_total"), 0.0, "it was taken from the pool and found unfit");
}

#[tokio::test]
async fn early_answer_reaches_a_client_that_is_still_uploading() {
    let origin = Origin::scripted(|mut stream, _| async move {
        read_head(&mut stream).await.unwrap();
        stream.write_all(b"HTTP/1.1 413 Content Too Large\r\nconnection: close\r\ncontent-length: 3\r\n\r\nbig").await.unwrap();
        // Closing with unread bytes resets the connection.
    })
    .await;
    let proxy = Proxy::before(origin.address);
    for _ in 0..20 {
        let client = proxy.client().await;
        let (read, mut write) = client.0.into_split();
        let upload = tokio::spawn(async move {
            write.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4000000\r\n\r\n").await.unwrap();
            // It may break off once the answer is there.
            for _ in 0..40 {
                if write.write_all(&[b'x'; 100_000]).await.is_err() {
                    break;
                }
            }
            write // dropped here, it would say that the client leaves
        });
        let mut client = Client(read.reunite(upload.await.unwrap()).unwrap());
        let answer = client.response().await;
        assert_eq!((answer.status, answer.text()), (413, "big"));
    }
}

#[tokio::test]
async fn idle_connection_that_its_origin_closes_is_dropped_before_it_is_used() {
    let closed = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&closed);
    let origin = Origin::scripted(move |mut stream, _| {
        let seen = Arc::clone(&seen);
        async move {
            read_head(&mut stream).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            stream.shutdown().await.unwrap();
            // The other side closes too, without a further request.
            assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
            seen.store(true, Ordering::SeqCst);
        }
    })
    .await;
    let proxy = Proxy::before(origin.address);
    assert_eq!(proxy.ask(GET).await.text(), "ok");
    eventually("the proxy's end", || closed.load(Ordering::SeqCst)).await;
    assert_eq!(proxy.metric("fetchr_upstream_connections_reused_total"), 0.0);
}

#[tokio::test]
async fn idle_connection_that_speaks_unasked_is_dropped() {
    let (closed, idle) = (Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
    let seen = (Arc::clone(&closed), Arc::clone(&idle));
    let origin = Origin::scripted(move |mut stream, number| {
        let (seen, idle) = seen.clone();
        async move {
            while read_head(&mut stream).await.is_some() {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                if number == 0 {
                    idle.notified().await;
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged").await.unwrap();
                    let _ = stream.read(&mut [0]).await;
                    seen.store(true, Ordering::SeqCst);
                    return;
                }
            }
        }
    })
    .await;
    let proxy = Proxy::before(origin.address);
    assert_eq!(proxy.ask(GET).await.text(), "ok");
    idle.notify_one();
    eventually("the proxy's end", || closed.load(Ordering::SeqCst)).await;
    assert_eq!(proxy.ask(GET).await.text(), "ok");
}

#[tokio::test]
async fn idle_connection_is_closed_when_it_is_old() {
    let closed = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&closed);
    let origin = Origin::scripted(move |mut stream, _| {
        let seen = Arc::clone(&seen);
        async move {
            read_head(&mut stream).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            let _ = stream.read(&mut [0]).await;
            seen.store(true, Ordering::SeqCst);
        }
    })
    .await;
    let proxy = Proxy::with(&format!("http://{}", origin.address), |settings| settings.upstream.idle_timeout = ms(500));
    // A policy's limit is for the pauses of a body, and says nothing of the pool.
    proxy.apply(r#"[{"name": "patient", "timeouts": {"idle": "1h"}}]"#);
    assert_eq!(proxy.ask(GET).await.text(), "ok");
    eventually("the proxy's end", || closed.load(Ordering::SeqCst)).await;
}

/// Neither direction may wait for the other: the client does not read its download until its upload is through.
#[tokio::test]
async fn upload_goes_on_while_the_download_pauses() {
    const LEN: usize = 16 << 20;
    let (origin, _) = Origin::both_ways(LEN).await;
    let proxy = Proxy::before(origin.address);
    let mut client = proxy.client().await;
    client.send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {LEN}\r\n\r\n")).await;
    timeout(LONG, client.send(vec![b'u'; LEN])).await.expect("the upload to pass while nothing is read");
    assert_eq!(client.response().await.body.len(), LEN);
}

#[tokio::test]
async fn requests_beyond_the_cap_wait_for_a_connection() {
    let origin = Origin::scripted(|mut stream, _| async move {
        while read_head(&mut stream).await.is_some() {
            sleep(Duration::from_millis(30)).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        }
    })
    .await;
    let proxy = Proxy::with(&format!("http://{}", origin.address), |settings| settings.upstream.max_connections_per_host = 2);
    let asked = futures::future::join_all((0..8).map(|_| proxy.ask(GET))).await;
    assert!(asked.iter().all(|response| response.status == 200));
    assert_eq!(origin.connections(), 2);
}

#[tokio::test]
async fn waiting_for_a_connection_ends_with_503() {
    let origin = Origin::silent().await;
    let proxy = Proxy::with(&format!("http://{}", origin.address), |settings| {
        settings.upstream.max_connections_per_host = 1;
        settings.upstream.connect_timeout = ms(100);
    });
    let mut holder = proxy.client().await;
    holder.send(GET).await;
    eventually("the connection in use", || origin.connections() == 1).await;
    let refused = proxy.ask(GET).await;
    assert_eq!(refused.status, 503);
    assert!(refused.field("proxy-status").contains("connection_limit_reached"), "{}", refused.head);
    assert!(refused.has("retry-after"));
}

#[tokio::test]
async fn limit_on_the_whole_request_bounds_the_wait_for_a_connection() {
    let origin = Origin::silent().await;
    let proxy = Proxy::with(&format!("http://{}", origin.address), |settings| {
        settings.upstream.max_connections_per_host = 1;
        settings.upstream.connect_timeout = ms(600_000);
    });
    let mut holder = proxy.client().await;
    holder.send(GET).await;
    eventually("the connection in use", || origin.connections() == 1).await;
    proxy.apply(r#"[{"name": "short", "timeouts": {"request": "50ms"}}]"#);
    let refused = timeout(LONG, proxy.ask(GET)).await.unwrap();
    assert!(refused.status >= 500, "{}", refused.head);
}

#[tokio::test]
async fn idle_connection_of_one_worker_makes_room_for_another() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let proxy = Proxy::with_workers(2, &format!("http://{}", origin.address), |settings| {
        settings.upstream.max_connections_per_host = 1;
    });
    // Both connections stay open, so the second one is on the other worker.
    let (mut first, mut second) = (proxy.client().await, proxy.client().await);
    for _ in 0..3 {
        for client in [&mut first, &mut second] {
            client.send(GET).await;
            assert_eq!(client.response().await.text(), "ok");
        }
    }
    assert_eq!(origin.connections(), 6);
    assert_eq!(proxy.metric("fetchr_upstream_connections_open"), 1.0);
}
