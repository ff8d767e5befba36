//! A small HTTP/1.1 server with bounds: connections in all and of one peer, head size, time to send a head and to read an answer.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use axum::Router;
use bytes::Bytes;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::io::ClientIo;

/// Connections at once; further ones wait to be accepted.
const CONNECTIONS: usize = 128;
/// Connections of one peer at once; further ones are closed, so that no pod keeps probes out.
const PEER_CONNECTIONS: usize = 16;
/// How long an answer may wait for a client that does not read.
const STALL_LIMIT: Duration = Duration::from_secs(10);
/// Until the head of a request is there; also how long an idle connection is kept.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
const HEAD_SIZE: usize = 16 << 10;
/// How long answers that are under way may take when the server ends.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Serves a router until `stop`.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let connections = TaskTracker::new();
    let mut peers = Peers::default();
    loop {
        let next = async {
            let permit = Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            () = stop.cancelled() => break,
            next = next => next,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly: it gets better when others end.
                tracing::warn!(%error, "A connection to the admin or metrics port can't be accepted.");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(place) = peers.enter(peer.ip().to_canonical()) else { continue };
        let (service, stop) = (TowerToHyperService::new(router.clone()), stop.clone());
        connections.spawn(async move {
            let socket = ClientIo::new(socket.into(), Bytes::new(), STALL_LIMIT);
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(HEAD_SIZE)
                .serve_connection(TokioIo::new(socket), service);
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                // How a client breaks off is no news here.
                _ = &mut connection => {}
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    let _ = timeout(LAST_ANSWERS, connection).await;
                }
            }
            drop((permit, place));
        });
    }
    connections.close();
    connections.wait().await;
}

/// Open connections by peer.
#[derive(Default)]
struct Peers(HashMap<IpAddr, Arc<()>>);

impl Peers {
    /// A place for a connection, which is free again when it is dropped; none if the peer has all of its own.
    fn enter(&mut self, peer: IpAddr) -> Option<Arc<()>> {
        self.0.retain(|_, places| Arc::strong_count(places) > 1);
        let places = self.0.entry(peer).or_default();
        (Arc::strong_count(places) <= PEER_CONNECTIONS).then(|| Arc::clone(places))
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpSocket, TcpStream},
    };

    use super::*;

    #[tokio::test]
    async fn one_peer_cannot_keep_the_others_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let served = tokio::spawn(serve(listener, Router::new(), stop.clone()));
        let mut held = Vec::new();
        for _ in 0..PEER_CONNECTIONS {
            held.push(TcpStream::connect(address).await.unwrap());
        }
        let mut refused = TcpStream::connect(address).await.unwrap();
        let read = timeout(HEAD_TIMEOUT / 3, refused.read(&mut [0])).await.unwrap();
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
        let other = TcpSocket::new_v4().unwrap();
        other.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let mut other = other.connect(address).await.unwrap();
        other.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        other.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
        drop((held, other));
        stop.cancel();
        timeout(HEAD_TIMEOUT / 3, served).await.unwrap().unwrap();
    }
}
