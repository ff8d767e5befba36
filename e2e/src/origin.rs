//! A small HTTP application for pods and tests: it echoes, streams, dawdles and fails as its URL says. HTTP/1.1 and HTTP/2 with
//! prior knowledge on one port.

mod answer;
pub mod get;
pub mod greet;
pub mod load;
mod seen;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use seen::Seen;

/// How long requests under way may take after the signal to end.
pub const GRACE: Duration = Duration::from_secs(25);
/// The header that numbers requests; `/seen` tells which numbers arrived.
pub const REQUEST_NUMBER: &str = "x-request-number";

const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0";

type Body = BoxBody<Bytes, answer::Broken>;

/// What the application remembers between requests.
#[derive(Debug)]
struct Memory {
    name: String,
    healthy: AtomicBool,
    seen: Mutex<Seen>,
    /// Answers of `/count` so far.
    counted: AtomicU64,
}

/// A connection as its requests see it.
#[derive(Debug, Clone)]
struct Connection {
    memory: Arc<Memory>,
    /// Who is at the other end.
    peer: SocketAddr,
    /// A second handle of the socket, to make its end a reset.
    socket: Arc<Mutex<Option<OwnedFd>>>,
    /// Ends the connection at once.
    cut: CancellationToken,
}

/// Serves on `listener` until `end` completes, then finishes the requests under way. `name` is told in each answer.
///
/// # Errors
/// The listener failed.
pub async fn serve(listener: TcpListener, name: &str, end: impl Future<Output = ()>) -> std::io::Result<()> {
    serve_with(listener, name, GRACE, end).await
}

/// [`serve`] with another time than [`GRACE`].
///
/// # Errors
/// The listener failed.
pub async fn serve_with(
    listener: TcpListener,
    name: &str,
    grace: Duration,
    end: impl Future<Output = ()>,
) -> std::io::Result<()> {
    let memory = Arc::new(Memory {
        name: name.to_owned(),
        healthy: AtomicBool::new(true),
        seen: Mutex::default(),
        counted: AtomicU64::new(0),
    });
    let (tasks, ending) = (TaskTracker::new(), CancellationToken::new());
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => break,
            accepted = listener.accept() => {
                let (stream, peer) = accepted?;
                tasks.spawn(connection(stream, peer, Arc::clone(&memory), ending.clone()));
            }
        }
    }
    drop(listener);
    memory.healthy.store(false, Ordering::Relaxed);
    ending.cancel();
    tasks.close();
    // What is not done by then is cut off with the process.
    let _ = tokio::time::timeout(grace, tasks.wait()).await;
    Ok(())
}

async fn connection(stream: TcpStream, peer: SocketAddr, memory: Arc<Memory>, ending: CancellationToken) {
    // Without it, small chunks wait for acknowledgements.
    let _ = stream.set_nodelay(true);
    let Ok(http2) = starts_with_preface(&stream).await else { return };
    let socket = Arc::new(Mutex::new(stream.as_fd().try_clone_to_owned().ok()));
    let cut = CancellationToken::new();
    let connection = Connection { memory, peer, socket, cut: cut.clone() };
    let service = service_fn(move |request: Request<Incoming>| {
        let connection = connection.clone();
        async move { Ok::<Response<Body>, Infallible>(answer::answer(request, connection).await) }
    });
    // A client that breaks off is an ordinary end.
    let _ = cut.run_until_cancelled(protocol(TokioIo::new(stream), http2, service, ending)).await;
}

async fn protocol<S>(io: TokioIo<TcpStream>, http2: bool, service: S, ending: CancellationToken) -> hyper::Result<()>
where
    S: hyper::service::Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    if http2 {
        let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service);
        tokio::pin!(connection);
        tokio::select! {
            result = connection.as_mut() => result,
            () = ending.cancelled() => { connection.as_mut().graceful_shutdown(); connection.await }
        }
    } else {
        let mut builder = hyper::server::conn::http1::Builder::new();
        let connection = builder.timer(TokioTimer::new()).serve_connection(io, service).with_upgrades();
        tokio::pin!(connection);
        tokio::select! {
            result = connection.as_mut() => result,
            () = ending.cancelled() => { connection.as_mut().graceful_shutdown(); connection.await }
        }
    }
}

/// Looks at the first bytes without taking them.
async fn starts_with_preface(stream: &TcpStream) -> std::io::Result<bool> {
    let mut head = [0; HTTP2_PREFACE.len()];
    loop {
        let seen = stream.peek(&mut head).await?;
        if seen == 0 || head[..seen] != HTTP2_PREFACE[..seen] {
            return Ok(false);
        }
        if seen == head.len() {
            return Ok(true);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Empty};
    use serde_json::Value;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn origin() -> (SocketAddr, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, end) = (listener.local_addr().unwrap(), CancellationToken::new());
        let ended = end.clone();
        tokio::spawn(async move { serve(listener, "test", ended.cancelled()).await });
        (address, end)
    }

    /// Sends raw text and returns all that comes back until the end of the connection.
    async fn raw(address: SocketAddr, request: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    fn get(path: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: o\r\nX-Request-Number: 7\r\nConnection: close\r\n\r\n")
    }

    async fn json(address: SocketAddr, request: &str) -> Value {
        let answer = raw(address, request).await.unwrap();
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    #[tokio::test]
    async fn echo_tells_what_arrived() {
        let (address, _end) = origin().await;
        let request =
            "POST /echo?a=1 HTTP/1.1\r\nHost: o\r\nX-A: 1\r\nX-A: 2\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc";
        let seen = json(address, request).await;
        assert_eq!(
            (seen["method"].as_str(), seen["path"].as_str(), seen["body"].as_u64()),
            (Some("POST"), Some("/echo?a=1"), Some(3))
        );
        assert_eq!(seen["headers"]["x-a"], serde_json::json!(["1", "2"]));
    }

    #[tokio::test]
    async fn client_tells_the_whole_answer() {
        let (address, _end) = origin().await;
        let url = format!("http://{address}/status/418").parse().unwrap();
        let answer = get::get(&url, &http::HeaderMap::new()).await.unwrap();
        assert_eq!((answer.status, answer.headers["content-type"].as_slice()), (418, &["text/plain".to_owned()][..]));
    }

    #[tokio::test]
    async fn http2_is_served_on_the_same_port() {
        let (address, _end) = origin().await;
        let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get(format!("http://{address}/trailers")).body(Empty::<Bytes>::new()).unwrap();
        let body = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["x-end"], "reached");
    }

    #[tokio::test]
    async fn failures_look_as_asked_for() {
        let (address, _end) = origin().await;
        let reset = raw(address, &get("/fail?how=reset")).await.unwrap_err();
        assert_eq!(reset.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(raw(address, &get("/fail?how=close")).await.unwrap(), "");
        let half = raw(address, &get("/fail?how=half")).await.unwrap();
        assert!(half.contains("content-length: 2048\r\n") && half.len() < 2048, "{half}");
        assert!(raw(address, &get("/fail?how=wrong")).await.unwrap().starts_with("HTTP/1.1 400 "));
    }

    #[tokio::test]
    async fn numbers_that_arrived_are_told() {
        let (address, _end) = origin().await;
        raw(address, &get("/bytes/10")).await.unwrap();
        raw(address, &get("/status/204")).await.unwrap();
        let seen = json(address, "GET /seen HTTP/1.1\r\nHost: o\r\nConnection: close\r\n\r\n").await;
        assert_eq!(seen, serde_json::json!({"count": 1, "repeated": 1, "ranges": [[7, 7]]}));
    }

    #[tokio::test]
    async fn upgraded_connection_echoes_bytes() {
        let (address, _end) = origin().await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /ws HTTP/1.1\r\nHost: o\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nping").await.unwrap();
        let mut answer = String::new();
        while !answer.ends_with("ping") {
            answer.push(char::from(stream.read_u8().await.unwrap()));
        }
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    }

    #[tokio::test]
    async fn request_under_way_is_finished_after_the_end_was_asked_for() {
        let (address, end) = origin().await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(get("/stream?chunks=3&ms=50&size=1").as_bytes()).await.unwrap();
        stream.read_u8().await.unwrap();
        end.cancel();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert!(rest.ends_with("0\r\n\r\n"), "{rest}");
        assert!(TcpStream::connect(address).await.is_err(), "no new connection is taken");
    }

    #[tokio::test]
    async fn health_fails_when_told_to() {
        let (address, _end) = origin().await;
        assert!(raw(address, &get("/healthz")).await.unwrap().starts_with("HTTP/1.1 200 "));
        raw(address, &get("/healthz?set=fail")).await.unwrap();
        assert!(raw(address, &get("/healthz")).await.unwrap().starts_with("HTTP/1.1 503 "));
    }
}
