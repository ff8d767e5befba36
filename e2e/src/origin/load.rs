//! A client that sends numbered requests at a fixed rate, whether or not answers come, and says what became of each.
//!
//! It needs a runtime of one thread: on several, hyper's client of HTTP/2 may leave a request without a word if its connection ends
//! while another thread hands it over.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, Request, Uri};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::task::TaskTracker;

use super::REQUEST_NUMBER;

/// Between two pieces of an upload, or two messages in a tunnel.
const PACE: Duration = Duration::from_millis(100);

type Body = UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// What to send.
#[derive(Debug, Clone)]
pub struct Load {
    /// `http://host:port/path`.
    pub url: Uri,
    /// Requests a second.
    pub rate: u32,
    /// How long requests are sent.
    pub duration: Duration,
    /// What each request is.
    pub exchange: Exchange,
    /// Headers of each request.
    pub headers: HeaderMap,
    /// How long one request may take, counted from the moment when it was due.
    pub deadline: Duration,
    /// HTTP/2 with prior knowledge on one connection instead of HTTP/1.1 on as many as needed.
    pub http2: bool,
    /// Number of the first request.
    pub first: u64,
}

/// What a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exchange {
    /// GET.
    Get,
    /// POST of a body that takes this long.
    Upload(Duration),
    /// Upgrade to a protocol that echoes, as `/ws` does, and messages back and forth for this long. HTTP/1.1 only.
    Tunnel(Duration),
}

/// What became of the requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Requests that were due and sent.
    pub sent: u64,
    /// Answers of class 2xx that arrived whole, and tunnels that both sides ended in order.
    pub ok: u64,
    /// Answers by status, whole ones only.
    pub statuses: BTreeMap<u16, u64>,
    /// Requests without a whole answer, by kind: `connect`, `send`, `body`, `tunnel`, `deadline`.
    pub failed: BTreeMap<String, u64>,
    /// Microseconds from the moment when a request was due to the end of its answer.
    pub latency_us: Latency,
}

/// Percentiles in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Median.
    pub p50: u64,
    /// 90 of 100 are not slower.
    pub p90: u64,
    /// 99 of 100 are not slower.
    pub p99: u64,
    /// The slowest.
    pub max: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    Connect,
    Send,
    Body,
    Tunnel,
    Deadline,
}

impl Load {
    /// GET at this rate, each with ten seconds, for [`during`] or until `duration` is set.
    pub fn get(url: Uri, rate: u32) -> Self {
        let (headers, deadline) = (HeaderMap::new(), Duration::from_secs(10));
        Self { url, rate, duration: Duration::ZERO, exchange: Exchange::Get, headers, deadline, http2: false, first: 1 }
    }
}

impl Report {
    /// Succeeds when every request was answered well.
    ///
    /// # Errors
    /// One was not; the message holds the whole report.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.sent == 0 || self.ok != self.sent {
            bail!("{} of {} requests failed: {self:?}", self.sent - self.ok, self.sent);
        }
        Ok(())
    }
}

/// Sends the load and waits for the last answer or its deadline.
///
/// # Errors
/// The URL is not plain HTTP.
pub async fn run(load: Load) -> anyhow::Result<Report> {
    let total = u64::from(load.rate) * u64::try_from(load.duration.as_millis())? / 1000;
    Ok(send(load, total, std::future::pending::<()>()).await?.0)
}

/// Sends the load until `work` is done, however long that takes, and returns what that returned.
///
/// # Errors
/// As [`run`].
pub async fn during<T>(load: Load, work: impl Future<Output = T>) -> anyhow::Result<(Report, T)> {
    let (report, done) = send(load, u64::MAX, work).await?;
    Ok((report, done.context("a load without an end ends with the work")?))
}

/// Sends `total` requests, or as many as are due until `work` is done; then the work's result is there.
async fn send<T>(load: Load, total: u64, work: impl Future<Output = T>) -> anyhow::Result<(Report, Option<T>)> {
    let target = Arc::new(Target::of(&load)?);
    let (start, tasks, results) = (Instant::now(), TaskTracker::new(), Arc::new(Mutex::new(Vec::new())));
    tokio::pin!(work);
    let mut done = None;
    for index in 0..total {
        let due = start + Duration::from_secs_f64(index as f64 / f64::from(load.rate));
        tokio::select! {
            result = &mut work => { done = Some(result); break }
            () = sleep_until(due) => {}
        }
        let (target, results, number, deadline) = (Arc::clone(&target), Arc::clone(&results), load.first + index, load.deadline);
        tasks.spawn(async move {
            let outcome = timeout_at(due + deadline, target.request(number)).await.unwrap_or(Err(Failure::Deadline));
            if let Ok(mut results) = results.lock() {
                results.push((outcome, due.elapsed()));
            }
        });
    }
    tasks.close();
    tasks.wait().await;
    let results = std::mem::take(&mut *results.lock().map_err(|_| anyhow::anyhow!("a request's task panicked"))?);
    Ok((report(results), done))
}

fn report(results: Vec<(Result<u16, Failure>, Duration)>) -> Report {
    let mut report = Report { sent: results.len() as u64, ..Report::default() };
    let mut times = Vec::new();
    for (outcome, time) in results {
        match outcome {
            Ok(status) => {
                report.ok += u64::from(status == 101 || (200..300).contains(&status));
                *report.statuses.entry(status).or_default() += 1;
                times.push(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
            }
            Err(failure) => *report.failed.entry(format!("{failure:?}").to_lowercase()).or_default() += 1,
        }
    }
    times.sort_unstable();
    let at = |percent: usize| times.get((times.len() * percent).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default();
    report.latency_us = Latency { p50: at(50), p90: at(90), p99: at(99), max: at(100) };
    report
}

/// Where requests go, and the connections that wait for one.
struct Target {
    authority: String,
    address: String,
    path: String,
    exchange: Exchange,
    headers: HeaderMap,
    idle: Mutex<Vec<http1::SendRequest<Body>>>,
    shared: Option<tokio::sync::Mutex<Option<http2::SendRequest<Body>>>>,
}

impl Target {
    fn of(load: &Load) -> anyhow::Result<Self> {
        let authority = load.url.authority().context("the URL has no host")?.to_string();
        if load.url.scheme_str() != Some("http") {
            bail!("{}: expected http://host:port/path", load.url);
        }
        let host = load.url.host().context("the URL has no host")?;
        let address = format!("{host}:{}", load.url.port_u16().unwrap_or(80));
        let path = load.url.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        if load.http2 && matches!(load.exchange, Exchange::Tunnel(_)) {
            bail!("a tunnel is one of HTTP/1.1");
        }
        let shared = load.http2.then(tokio::sync::Mutex::default);
        Ok(Self {
            authority,
            address,
            path,
            exchange: load.exchange,
            headers: load.headers.clone(),
            idle: Mutex::default(),
            shared,
        })
    }

    async fn request(&self, number: u64) -> Result<u16, Failure> {
        match &self.shared {
            None => self.over_http1(number).await,
            Some(shared) => self.over_http2(shared, number).await,
        }
    }

    async fn over_http1(&self, number: u64) -> Result<u16, Failure> {
        let mut sender = match self.idle_sender() {
            Some(sender) => sender,
            None => {
                let (sender, connection) = http1::handshake(self.connect().await?).await.map_err(|_| Failure::Connect)?;
                tokio::spawn(connection.with_upgrades());
                sender
            }
        };
        let response = sender.send_request(self.numbered(number, false)).await.map_err(|_| Failure::Send)?;
        if let (Exchange::Tunnel(time), http::StatusCode::SWITCHING_PROTOCOLS) = (self.exchange, response.status()) {
            return tunnel(response, time).await;
        }
        let status = whole(response).await?;
        // A connection that is ready again has sent and read everything.
        if sender.ready().await.is_ok()
            && let Ok(mut idle) = self.idle.lock()
        {
            idle.push(sender);
        }
        Ok(status)
    }

    async fn over_http2(
        &self,
        shared: &tokio::sync::Mutex<Option<http2::SendRequest<Body>>>,
        number: u64,
    ) -> Result<u16, Failure> {
        let mut request = self.numbered(number, true);
        loop {
            let mut sender = self.http2_sender(shared).await?;
            if sender.ready().await.is_err() {
                continue;
            }
            match sender.try_send_request(request).await {
                Ok(response) => return whole(response).await,
                // The other side is about to close the connection and has not looked at it: every client uses another one then.
                Err(mut failed) => {
                    request = match failed.take_message() {
                        Some(unsent) => unsent,
                        None if of_goaway(failed.error()) => self.numbered(number, true),
                        None => return Err(Failure::Send),
                    }
                }
            }
        }
    }

    /// A handle of the one connection, which is replaced when it takes no more requests.
    async fn http2_sender(
        &self,
        shared: &tokio::sync::Mutex<Option<http2::SendRequest<Body>>>,
    ) -> Result<http2::SendRequest<Body>, Failure> {
        let mut slot = shared.lock().await;
        if let Some(sender) = slot.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let io = self.connect().await?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.map_err(|_| Failure::Connect)?;
        tokio::spawn(connection);
        Ok(slot.insert(sender).clone())
    }

    fn idle_sender(&self) -> Option<http1::SendRequest<Body>> {
        let mut idle = self.idle.lock().ok()?;
        idle.retain(|sender| !sender.is_closed());
        idle.pop()
    }

    async fn connect(&self) -> Result<TokioIo<TcpStream>, Failure> {
        let stream = TcpStream::connect(&self.address).await.map_err(|_| Failure::Connect)?;
        stream.set_nodelay(true).map_err(|_| Failure::Connect)?;
        Ok(TokioIo::new(stream))
    }

    fn numbered(&self, number: u64, absolute: bool) -> Request<Body> {
        let mut request = Request::new(match self.exchange {
            Exchange::Upload(time) => upload(time),
            Exchange::Get | Exchange::Tunnel(_) => Empty::new().boxed_unsync(),
        });
        if matches!(self.exchange, Exchange::Upload(_)) {
            *request.method_mut() = http::Method::POST;
        }
        let uri = if absolute { format!("http://{}{}", self.authority, self.path) } else { self.path.clone() };
        *request.uri_mut() = uri.parse().expect("it is made of the parts of a parsed URI");
        let headers = request.headers_mut();
        if !absolute {
            headers.insert(http::header::HOST, self.authority.parse().expect("an authority holds no control characters"));
        }
        if matches!(self.exchange, Exchange::Tunnel(_)) {
            headers.insert(http::header::CONNECTION, http::HeaderValue::from_static("upgrade"));
            headers.insert(http::header::UPGRADE, http::HeaderValue::from_static("echo"));
        }
        headers.extend(self.headers.clone());
        headers.insert(REQUEST_NUMBER, number.into());
        request
    }
}

/// Whether the request is one that the other side says in its GOAWAY not to have processed (RFC 9113, section 6.8). hyper keeps
/// the message when the GOAWAY arrives while it is handed over.
fn of_goaway(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(|cause| cause.is_go_away() && cause.is_remote())
}

/// A body whose pieces come at a pace, for this long.
fn upload(time: Duration) -> Body {
    let pieces = u32::try_from(time.as_millis() / PACE.as_millis()).unwrap_or(u32::MAX);
    let frames = stream::unfold(pieces, async |left| {
        sleep(PACE).await;
        Some((Ok(Frame::data(Bytes::from_static(&[b'u'; 1024]))), left.checked_sub(1)?))
    });
    StreamBody::new(frames).boxed_unsync()
}

/// Messages back and forth for this long, then the end from this side and, after it, from the other.
async fn tunnel(response: http::Response<hyper::body::Incoming>, time: Duration) -> Result<u16, Failure> {
    let upgraded = hyper::upgrade::on(response).await.map_err(|_| Failure::Tunnel)?;
    let (mut io, end) = (TokioIo::new(upgraded), Instant::now() + time);
    let exchange = async {
        while Instant::now() < end {
            let (sent, mut got) = (*b"ping", [0; 4]);
            io.write_all(&sent).await?;
            io.read_exact(&mut got).await?;
            sleep(PACE).await;
        }
        io.shutdown().await?;
        std::io::Result::Ok(io.read(&mut [0]).await? == 0)
    };
    match exchange.await {
        Ok(true) => Ok(http::StatusCode::SWITCHING_PROTOCOLS.as_u16()),
        _ => Err(Failure::Tunnel),
    }
}

async fn whole(response: http::Response<hyper::body::Incoming>) -> Result<u16, Failure> {
    let status = response.status().as_u16();
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        frame.map_err(|_| Failure::Body)?;
    }
    Ok(status)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn load(path: &str, http2: bool) -> Report {
        load_of(Exchange::Get, path, http2).await
    }

    async fn load_of(exchange: Exchange, path: &str, http2: bool) -> Report {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}{path}", listener.local_addr().unwrap()).parse().unwrap();
        let origin = tokio::spawn(async move { super::super::serve(listener, "test", std::future::pending()).await });
        let (headers, deadline) = (HeaderMap::new(), Duration::from_millis(500));
        let report =
            run(Load { url, rate: 200, duration: Duration::from_millis(100), exchange, headers, deadline, http2, first: 1 })
                .await;
        origin.abort();
        report.unwrap()
    }

    #[tokio::test]
    async fn every_request_is_accounted_for() {
        for http2 in [false, true] {
            let report = load("/bytes/100", http2).await;
            assert_eq!((report.sent, report.ok, report.statuses), (20, 20, BTreeMap::from([(200, 20)])), "http2: {http2}");
        }
    }

    #[tokio::test]
    async fn uploads_and_tunnels_take_their_time_and_end_in_order() {
        let time = Duration::from_millis(200);
        for http2 in [false, true] {
            let report = load_of(Exchange::Upload(time), "/echo", http2).await;
            assert_eq!((report.ok, report.latency_us.p50 >= 200_000), (20, true), "http2: {http2}, {report:?}");
        }
        let report = load_of(Exchange::Tunnel(time), "/ws", false).await;
        assert_eq!(report.statuses, BTreeMap::from([(101, 20)]), "{report:?}");
        let report = load_of(Exchange::Tunnel(Duration::from_secs(9)), "/ws", false).await;
        assert_eq!(report.failed, BTreeMap::from([("deadline".to_owned(), 20)]), "{report:?}");
    }

    #[tokio::test]
    async fn load_goes_on_until_the_work_is_done() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let origin = tokio::spawn(async move { super::super::serve(listener, "test", std::future::pending()).await });
        let load = Load::get(url, 100);
        let (report, done) = during(load, async {
            sleep(Duration::from_millis(100)).await;
            7
        })
        .await
        .unwrap();
        origin.abort();
        assert!(done == 7 && report.ok == report.sent && (5..=15).contains(&report.sent), "{report:?}");
    }

    #[tokio::test]
    async fn failures_are_told_by_kind() {
        assert_eq!(load("/fail?how=half", false).await.failed, BTreeMap::from([("body".to_owned(), 20)]));
        assert_eq!(load("/fail?how=never", false).await.failed, BTreeMap::from([("deadline".to_owned(), 20)]));
        assert_eq!(load("/fail?how=close", false).await.failed, BTreeMap::from([("send".to_owned(), 20)]));
    }

    #[tokio::test]
    async fn no_request_is_lost_when_http2_connections_are_drained() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/bytes/100", listener.local_addr().unwrap()).parse().unwrap();
        let origin = tokio::spawn(drains_often(listener));
        let load = Load { http2: true, duration: Duration::from_secs(1), ..Load::get(url, 2000) };
        let report = run(load).await.unwrap();
        origin.abort();
        report.check().unwrap();
    }

    /// Serves HTTP/2 and drains each connection after a few milliseconds.
    async fn drains_often(listener: TcpListener) {
        loop {
            let (io, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let service = hyper::service::service_fn(async |_| {
                    Ok::<_, std::convert::Infallible>(http::Response::new(Empty::<Bytes>::new()))
                });
                let connection =
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(io), service);
                tokio::pin!(connection);
                tokio::select! {
                    _ = connection.as_mut() => {}
                    () = sleep(Duration::from_millis(5)) => {
                        connection.as_mut().graceful_shutdown();
                        let _ = connection.await;
                    }
                }
            });
        }
    }

    #[test]
    fn percentiles_are_of_the_answers() {
        let results = (1..=100).map(|ms| (Ok(200), Duration::from_millis(ms))).collect();
        assert_eq!(report(results).latency_us, Latency { p50: 50_000, p90: 90_000, p99: 99_000, max: 100_000 });
    }
}
