//! Leaving without losing a request.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use sidecar::drain::Phase;
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    sync::{Semaphore, mpsc},
    time::sleep,
};

use crate::support::{Client, Origin, Proxy, read_head};

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

async fn slow() -> Origin {
    Origin::scripted(|mut stream, _| async move {
        while read_head(&mut stream).await.is_some() {
            sleep(Duration::from_millis(20)).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        }
    })
    .await
}

#[tokio::test]
async fn drain_under_load_loses_no_request() {
    let proxy = Arc::new(Proxy::before(slow().await.address));
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let (proxy, stop, served) = (Arc::clone(&proxy), Arc::clone(&stop), Arc::clone(&served));
            tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let Ok(stream) = TcpStream::connect(proxy.address).await else { return };
                    let mut client = Client(stream);
                    loop {
                        client.send(GET).await;
                        let response = client.response().await;
                        assert_eq!(response.text(), "ok");
                        served.fetch_add(1, Ordering::SeqCst);
                        if response.has("connection") {
                            break;
                        }
                    }
                }
            })
        })
        .collect();
    crate::support::eventually("load", || served.load(Ordering::SeqCst) > 50).await;
    let drain = tokio::spawn({
        let drain = proxy.drain.clone();
        async move { drain.drain_inbound(Duration::from_secs(1), Duration::from_secs(5)).await }
    });
    proxy.drain.reached(Phase::Announced).await;
    let before = served.load(Ordering::SeqCst);
    crate::support::eventually("requests meanwhile", || served.load(Ordering::SeqCst) > before + 16).await;
    // By now the endpoints are gone, and nobody sends new requests.
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.expect("no request is lost");
    }
    assert_eq!(drain.await.unwrap(), 0);
    // Who accepts learns of the end in a task of its own.
    crate::support::eventually("nobody listens", || std::net::TcpStream::connect(proxy.address).is_err()).await;
}

/// Answers once for each word of the test, which is told of each request.
async fn gated(requests: mpsc::UnboundedSender<()>, answers: Arc<Semaphore>) -> Origin {
    Origin::scripted(move |mut stream, _| {
        let (requests, answers) = (requests.clone(), Arc::clone(&answers));
        async move {
            while read_head(&mut stream).await.is_some() {
                requests.send(()).unwrap();
                answers.acquire().await.unwrap().forget();
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            }
        }
    })
    .await
}

#[tokio::test]
async fn request_under_way_is_answered_and_idle_connections_are_closed() {
    let (requests, mut asked) = mpsc::unbounded_channel();
    let answers = Arc::new(Semaphore::new(1));
    let proxy = Proxy::before(gated(requests, Arc::clone(&answers)).await.address);
    let (mut idle, mut busy) = (proxy.client().await, proxy.client().await);
    idle.send(GET).await;
    assert_eq!(idle.response().await.status, 200);
    asked.recv().await.unwrap();
    busy.send(GET).await;
    asked.recv().await.expect("the request is under way");
    let drain = tokio::spawn({
        let drain = proxy.drain.clone();
        async move { drain.drain_inbound(Duration::ZERO, Duration::from_secs(5)).await }
    });
    assert!(idle.rest().await.is_empty());
    answers.add_permits(1);
    let response = busy.response().await;
    assert_eq!((response.status, response.field("connection")), (200, "close"));
    drop((idle, busy));
    assert_eq!(drain.await.unwrap(), 0);
}

#[tokio::test]
async fn connection_that_said_nothing_does_not_delay_the_drain() {
    let proxy = Proxy::before(slow().await.address);
    let mut silent = proxy.client().await;
    let mut asked = proxy.client().await;
    asked.send(GET).await;
    assert_eq!(asked.response().await.status, 200);
    drop(asked);
    let drained = proxy.drain.drain_inbound(Duration::ZERO, Duration::from_secs(60));
    assert_eq!(tokio::time::timeout(Duration::from_secs(5), drained).await.expect("an end at once"), 0);
    assert!(silent.rest().await.is_empty());
}

#[tokio::test]
async fn head_that_has_begun_when_connections_are_closed_is_read_to_its_end_and_answered() {
    let proxy = Proxy::before(Origin::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.address);
    let mut client = proxy.client().await;
    client.send(GET).await;
    assert_eq!(client.response().await.status, 200);
    let (begin, end) = GET.split_at(9);
    client.send(begin).await;
    let mut other = proxy.client().await;
    other.send(GET).await;
    // The worker serves one connection after the other, so by now it has seen the beginning.
    assert_eq!(other.response().await.status, 200);
    let drain = tokio::spawn({
        let drain = proxy.drain.clone();
        async move { drain.drain_inbound(Duration::ZERO, Duration::from_secs(5)).await }
    });
    assert!(other.rest().await.is_empty(), "an idle connection is closed");
    for byte in end.as_bytes() {
        client.send([*byte]).await;
    }
    let response = client.response().await;
    assert_eq!((response.status, response.field("connection")), (200, "close"));
    drop(client);
    assert_eq!(drain.await.unwrap(), 0);
    assert_eq!(proxy.metric("fetchr_panics_total"), 0.0);
}
