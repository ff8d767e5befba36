//! A client that sends numbered requests at a fixed rate, whether or not answers come, and says what became of each.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::{HeaderMap, Request, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::task::TaskTracker;

use super::REQUEST_NUMBER;

/// What to send.
#[derive(Debug, Clone)]
pub struct Load {
    /// `http://host:port/path`.
    pub url: Uri,
    /// Requests a second.
    pub rate: u32,
    /// How long requests are sent.
    pub duration: Duration,
    /// Headers of each request.
    pub headers: HeaderMap,
    /// How long one request may take, counted from the moment when it was due.
    pub deadline: Duration,
    /// HTTP/2 with prior knowledge on one connection instead of HTTP/1.1 on as many as needed.
    pub http2: bool,
    /// Number of the first request.
    pub first: u64,
}

/// What became of the requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Requests that were due and sent.
    pub sent: u64,
    /// Answers of class 2xx that arrived whole.
    pub ok: u64,
    /// Answers by status, whole ones only.
    pub statuses: BTreeMap<u16, u64>,
    /// Requests without a whole answer, by kind: `connect`, `send`, `body`, `deadline`.
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
    Deadline,
}

/// Sends the load and waits for the last answer or its deadline.
///
/// # Errors
/// The URL is not plain HTTP.
pub async fn run(load: Load) -> anyhow::Result<Report> {
    let target = Arc::new(Target::of(&load)?);
    let total = u64::from(load.rate) * u64::try_from(load.duration.as_millis())? / 1000;
    let (start, tasks, results) = (Instant::now(), TaskTracker::new(), Arc::new(Mutex::new(Vec::new())));
    for index in 0..total {
        let due = start + load.duration.mul_f64(index as f64 / total as f64);
        sleep_until(due).await;
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
    Ok(report(results))
}

fn report(results: Vec<(Result<u16, Failure>, Duration)>) -> Report {
    let mut report = Report { sent: results.len() as u64, ..Report::default() };
    let mut times = Vec::new();
    for (outcome, time) in results {
        match outcome {
            Ok(status) => {
                report.ok += u64::from((200..300).contains(&status));
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
    headers: HeaderMap,
    idle: Mutex<Vec<http1::SendRequest<Empty<Bytes>>>>,
    shared: Option<tokio::sync::Mutex<Option<http2::SendRequest<Empty<Bytes>>>>>,
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
        let shared = load.http2.then(tokio::sync::Mutex::default);
        Ok(Self { authority, address, path, headers: load.headers.clone(), idle: Mutex::default(), shared })
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
                tokio::spawn(connection);
                sender
            }
        };
        let response = sender.send_request(self.numbered(number, false)).await.map_err(|_| Failure::Send)?;
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
        shared: &tokio::sync::Mutex<Option<http2::SendRequest<Empty<Bytes>>>>,
        number: u64,
    ) -> Result<u16, Failure> {
        let mut sender = {
            let mut slot = shared.lock().await;
            match slot.as_ref().filter(|sender| !sender.is_closed()) {
                Some(sender) => sender.clone(),
                None => {
                    let io = self.connect().await?;
                    let handshake = http2::handshake(TokioExecutor::new(), io).await;
                    let (sender, connection) = handshake.map_err(|_| Failure::Connect)?;
                    tokio::spawn(connection);
                    slot.insert(sender).clone()
                }
            }
        };
        sender.ready().await.map_err(|_| Failure::Send)?;
        let response = sender.send_request(self.numbered(number, true)).await.map_err(|_| Failure::Send)?;
        whole(response).await
    }

    fn idle_sender(&self) -> Option<http1::SendRequest<Empty<Bytes>>> {
        let mut idle = self.idle.lock().ok()?;
        idle.retain(|sender| !sender.is_closed());
        idle.pop()
    }

    async fn connect(&self) -> Result<TokioIo<TcpStream>, Failure> {
        let stream = TcpStream::connect(&self.address).await.map_err(|_| Failure::Connect)?;
        stream.set_nodelay(true).map_err(|_| Failure::Connect)?;
        Ok(TokioIo::new(stream))
    }

    fn numbered(&self, number: u64, absolute: bool) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        let uri = if absolute { format!("http://{}{}", self.authority, self.path) } else { self.path.clone() };
        *request.uri_mut() = uri.parse().expect("it is made of the parts of a parsed URI");
        let headers = request.headers_mut();
        if !absolute {
            headers.insert(http::header::HOST, self.authority.parse().expect("an authority holds no control characters"));
        }
        headers.extend(self.headers.clone());
        headers.insert(REQUEST_NUMBER, number.into());
        request
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
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}{path}", listener.local_addr().unwrap()).parse().unwrap();
        let origin = tokio::spawn(async move { super::super::serve(listener, "test", std::future::pending()).await });
        let (headers, deadline) = (HeaderMap::new(), Duration::from_millis(500));
        let report = run(Load { url, rate: 200, duration: Duration::from_millis(100), headers, deadline, http2, first: 1 }).await;
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
    async fn failures_are_told_by_kind() {
        assert_eq!(load("/fail?how=half", false).await.failed, BTreeMap::from([("body".to_owned(), 20)]));
        assert_eq!(load("/fail?how=never", false).await.failed, BTreeMap::from([("deadline".to_owned(), 20)]));
        assert_eq!(load("/fail?how=close", false).await.failed, BTreeMap::from([("send".to_owned(), 20)]));
    }

    #[test]
    fn percentiles_are_of_the_answers() {
        let results = (1..=100).map(|ms| (Ok(200), Duration::from_millis(ms))).collect();
        assert_eq!(report(results).latency_us, Latency { p50: 50_000, p90: 90_000, p99: 99_000, max: 100_000 });
    }
}
