//! Leaving without losing a request.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use sidecar::drain::Phase;
use tokio::{io::AsyncWriteExt, net::TcpStream, time::sleep};

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
        async move { drain.drain_inbound(Duration::from_millis(300), Duration::from_secs(5)).await }
    });
    proxy.drain.reached(Phase::Announced).await;
    sleep(Duration::from_millis(200)).await;
    // By now the endpoints are gone, and nobody sends new requests.
    stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.expect("no request is lost");
    }
    assert_eq!(drain.await.unwrap(), 0);
    assert!(TcpStream::connect(proxy.address).await.is_err());
}

#[tokio::test]
async fn request_under_way_is_answered_and_idle_connections_are_closed() {
    let proxy = Proxy::before(slow().await.address);
    let (mut idle, mut busy) = (proxy.client().await, proxy.client().await);
    idle.send(GET).await;
    assert_eq!(idle.response().await.status, 200);
    busy.send(GET).await;
    sleep(Duration::from_millis(5)).await;
    let drain = tokio::spawn({
        let drain = proxy.drain.clone();
        async move { drain.drain_inbound(Duration::ZERO, Duration::from_secs(5)).await }
    });
    let response = busy.response().await;
    assert_eq!((response.status, response.field("connection")), (200, "close"));
    assert!(idle.rest().await.is_empty());
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
