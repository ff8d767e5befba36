//! The sections about tries: `retry`, `loadBalancing`, `circuitBreaker`, `failover`.

mod balance;
mod breaker;
mod failover;
mod hedge;
mod retry;

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::support::{Origin, Proxy, field, read_chunks, read_head};

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy";

/// What an origin does with a request.
#[derive(Clone, Copy)]
enum Does {
    Say(&'static str),
    Close,
    Hang,
}

/// An origin that does one thing after the other with the requests that come, over all connections, and the last thing for ever; and how
/// many came.
async fn origin(script: &'static [Does]) -> (Origin, Arc<AtomicUsize>) {
    origin_at("127.0.0.1:0".parse().unwrap(), script).await
}

async fn origin_at(address: SocketAddr, script: &'static [Does]) -> (Origin, Arc<AtomicUsize>) {
    let came = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&came);
    let origin = Origin::scripted_at(address, move |mut stream, _| {
        let count = Arc::clone(&count);
        async move {
            while let Some(body) = read_request(&mut stream).await {
                let turn = count.fetch_add(1, Ordering::SeqCst);
                match script[turn.min(script.len() - 1)] {
                    Does::Say("echo") => {
                        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                        stream.write_all(answer.as_bytes()).await.unwrap();
                        stream.write_all(&body).await.unwrap();
                    }
                    Does::Say(answer) => stream.write_all(answer.as_bytes()).await.unwrap(),
                    Does::Close => return,
                    Does::Hang => drop(stream.read_u8().await),
                }
            }
        }
    })
    .await;
    (origin, came)
}

async fn read_request(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let head = read_head(stream).await?;
    if let Some(len) = field(&head, "content-length") {
        let mut body = vec![0; len.parse().unwrap()];
        stream.read_exact(&mut body).await.ok()?;
        Some(body)
    } else if field(&head, "transfer-encoding").is_some() {
        Some(read_chunks(stream).await.0)
    } else {
        Some(Vec::new())
    }
}

fn events(proxy: &Proxy, section: &str, event: &str, mode: &str) -> f64 {
    let labels = format!("route=\"shop/test/rule\",section=\"{section}\",event=\"{event}\",mode=\"{mode}\"");
    proxy.metric(&format!("fetchr_upstream_policy_events_total{{{labels}}}"))
}

fn before(origin: &Origin, sections: &str) -> Proxy {
    let proxy = Proxy::before(origin.address);
    proxy.apply(&format!(r#"[{{"name": "rule", {sections}}}]"#));
    proxy
}

/// Answers over HTTP/2: 503 to the first stream, and to the others their body.
async fn http2_origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, came) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let came = Arc::clone(&came);
            let service = service_fn(move |request: Request<Incoming>| {
                let first = came.fetch_add(1, Ordering::SeqCst) == 0;
                async move {
                    if first {
                        // Its body is still on its way then.
                        return Ok::<_, Infallible>(http::Response::builder().status(503).body(Full::default()).unwrap());
                    }
                    Ok(http::Response::new(Full::new(request.into_body().collect().await.unwrap().to_bytes())))
                }
            });
            tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}
