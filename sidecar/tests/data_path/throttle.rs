//! The section `throttle`: who waits, who is let through, and who is turned away.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Semaphore,
    time::timeout,
};

use crate::{
    frames::{self, Peer, RST_STREAM, frame, request},
    support::{Client, LONG, Origin, Proxy, Response, eventually, field, read_chunks, read_head},
};

/// An origin that answers a request with its path, once it may; and what came to it.
struct Held {
    origin: Origin,
    came: Arc<Mutex<Vec<(String, Instant)>>>,
    may: Arc<Semaphore>,
}

impl Held {
    /// One that may answer so many.
    async fn answering(answers: usize) -> Self {
        let (came, may) = (Arc::<Mutex<Vec<_>>>::default(), Arc::new(Semaphore::new(answers)));
        let (note, turns) = (Arc::clone(&came), Arc::clone(&may));
        let origin = Origin::scripted(move |mut stream, _| {
            let (note, turns) = (Arc::clone(&note), Arc::clone(&turns));
            async move {
                while let Some(head) = read_head(&mut stream).await {
                    let path = head.split(' ').nth(1).unwrap().to_owned();
                    if let Some(length) = field(&head, "content-length") {
                        let mut body = vec![0; length.parse().unwrap()];
                        stream.read_exact(&mut body).await.unwrap();
                    } else if field(&head, "transfer-encoding").is_some() {
                        read_chunks(&mut stream).await;
                    }
                    note.lock().unwrap().push((path.clone(), Instant::now()));
                    turns.acquire().await.unwrap().forget();
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len());
                    let _ = stream.write_all(answer.as_bytes()).await; // its client may have left
                }
            }
        })
        .await;
        Self { origin, came, may }
    }

    fn before(&self, throttle: &str) -> Proxy {
        let proxy = Proxy::before(self.origin.address);
        apply(&proxy, throttle);
        proxy
    }

    fn came(&self) -> Vec<String> {
        self.came.lock().unwrap().iter().map(|(path, _)| path.clone()).collect()
    }

    async fn has_come(&self, count: usize) {
        eventually("requests at the origin", || self.came().len() >= count).await;
        assert_eq!(self.came().len(), count);
    }
}

fn apply(proxy: &Proxy, throttle: &str) {
    proxy.apply(&format!(r#"[{{"name": "rule", "throttle": {{{throttle}}}}}]"#));
}

fn get(path: &str) -> String {
    get_with(path, "")
}

fn get_with(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: a\r\n{fields}\r\n")
}

async fn send(proxy: &Proxy, request: &str) -> Client {
    let mut client = proxy.client().await;
    client.send(request).await;
    client
}

/// Waits until so many requests wait at the throttle.
async fn queued(proxy: &Proxy, count: u64) {
    let queued = || proxy.throttles.figures().first().map_or(0, |figures| figures.queued);
    eventually("a queue", || queued() == count).await;
}

async fn delayed(proxy: &Proxy, count: u64) {
    eventually("delayed requests", || proxy.throttles.figures()[0].delayed == count).await;
}

fn counted(proxy: &Proxy, mode: &str, outcome: &str) -> f64 {
    proxy.metric(&format!(
        "fetchr_throttle_requests_total{{policy=\"shop/test\",rule=\"rule\",mode=\"{mode}\",outcome=\"{outcome}\"}}"
    ))
}

fn refused(response: &Response, status: u16, reason: &str) {
    assert_eq!(response.status, status, "{}", response.text());
    let why = response.field("proxy-status");
    assert!(why.starts_with(&format!("fetchr; error={reason};")), "{why}");
}

#[tokio::test]
async fn request_waits_for_room_and_then_goes() {
    let origin = Held::answering(0).await;
    let proxy = origin.before(r#""concurrency": {"type": "Fixed", "limit": 1}"#);
    let mut first = send(&proxy, &get("/1")).await;
    origin.has_come(1).await;
    let mut second = send(&proxy, &get("/2")).await;
    queued(&proxy, 1).await;
    assert_eq!(origin.came(), ["/1"]);
    origin.may.add_permits(2);
    assert_eq!(first.response().await.text(), "/1");
    assert_eq!(second.response().await.text(), "/2");
    assert_eq!((counted(&proxy, "enforce", "admitted"), counted(&proxy, "enforce", "queued")), (1.0, 1.0));
    let waits = "fetchr_throttle_wait_seconds_count{policy=\"shop/test\",rule=\"rule\",priority=\"default\"}";
    assert_eq!(proxy.metric(waits), 1.0);
    let in_flight = "fetchr_throttle_in_flight{policy=\"shop/test\",rule=\"rule\"}";
    eventually("an end", || proxy.metric(in_flight) == 0.0).await;
}

#[tokio::test]
async fn full_queue_is_503_with_a_time_and_a_reason_and_so_is_a_wait_that_is_too_long() {
    let origin = Held::answering(0).await;
    let proxy = origin.before(r#""concurrency": {"type": "Fixed", "limit": 1}, "queue": {"maxLength": 1, "maxWait": "1s500ms"}"#);
    let mut first = send(&proxy, &get("/1")).await;
    origin.has_come(1).await;
    let mut second = send(&proxy, &get("/2")).await;
    queued(&proxy, 1).await;
    let third = proxy.ask(&get("/3")).await;
    refused(&third, 503, "throttle_queue_full");
    assert_eq!(third.field("retry-after"), "2");
    assert!(third.text().contains("throttle shop/test/rule has no room: as many requests wait as may"), "{}", third.text());
    refused(&second.response().await, 503, "throttle_max_wait");
    assert_eq!(proxy.metric("fetchr_errors_total{direction=\"inbound\",reason=\"throttle_queue_full\"}"), 1.0);
    origin.may.add_permits(1);
    assert_eq!(first.response().await.status, 200);
    assert_eq!(origin.came(), ["/1"]);
    assert_eq!((counted(&proxy, "enforce", "queue_full"), counted(&proxy, "enforce", "max_wait")), (1.0, 1.0));
}

#[tokio::test]
async fn higher_priority_goes_first_and_takes_the_place_of_a_lower_one() {
    let origin = Held::answering(0).await;
    let proxy = origin.before(
        r#""concurrency": {"type": "Fixed", "limit": 1}, "queue": {"maxLength": 2, "maxWait": "10s"},
           "priorities": [{"name": "high", "matches": [{"headers": [{"name": "x-priority", "value": "high"}]}]},
                          {"name": "normal"},
                          {"name": "low", "matches": [{"cel": "request.path.startsWith('/low')"}]}]"#,
    );
    let mut first = send(&proxy, &get("/first")).await;
    origin.has_come(1).await;
    let mut low = send(&proxy, &get("/low")).await;
    queued(&proxy, 1).await;
    let mut normal = send(&proxy, &get("/normal")).await;
    queued(&proxy, 2).await;
    assert_eq!(proxy.throttles.figures()[0].priorities.values().copied().collect::<Vec<_>>(), [0, 1, 1]);
    let mut high = send(&proxy, &get_with("/high", "x-priority: high\r\n")).await;
    refused(&low.response().await, 503, "throttle_preempted");
    refused(&proxy.ask(&get("/low")).await, 503, "throttle_queue_full");
    origin.may.add_permits(3);
    for (client, path) in [(&mut first, "/first"), (&mut high, "/high"), (&mut normal, "/normal")] {
        assert_eq!(client.response().await.text(), path);
    }
    assert_eq!(origin.came(), ["/first", "/high", "/normal"]);
    assert_eq!(counted(&proxy, "enforce", "preempted"), 1.0);
}

#[tokio::test]
async fn request_whose_deadline_has_passed_never_reaches_the_upstream() {
    let origin = Held::answering(0).await;
    let proxy = origin.before(
        r#""concurrency": {"type": "Fixed", "limit": 1}, "queue": {"maxWait": "10s"}, "deadline": {"header": "x-timeout", "default": "5s"}"#,
    );
    let mut first = send(&proxy, &get("/1")).await;
    origin.has_come(1).await;
    let began = Instant::now();
    let late = proxy.ask(&get_with("/2", "x-timeout: 200ms\r\n")).await;
    refused(&late, 504, "throttle_deadline");
    assert!(began.elapsed() >= Duration::from_millis(200) && began.elapsed() < Duration::from_secs(5));
    assert!(!late.has("retry-after"));
    refused(&proxy.ask(&get_with("/3", "x-timeout: 0\r\n")).await, 504, "throttle_deadline");
    origin.may.add_permits(1);
    assert_eq!(first.response().await.status, 200);
    assert_eq!(origin.came(), ["/1"]);
    assert_eq!(counted(&proxy, "enforce", "deadline"), 2.0);
    let slow = proxy.ask(&get_with("/4", "x-timeout: 0.2\r\n")).await;
    refused(&slow, 504, "http_response_timeout");
}

#[tokio::test]
async fn time_in_the_queue_is_not_the_upstreams() {
    let origin = Held::answering(0).await;
    let proxy = Proxy::before(origin.origin.address);
    proxy.apply(
        r#"[{"name": "rule", "timeouts": {"request": "300ms"}, "circuitBreaker": {"consecutiveFailures": 1},
             "throttle": {"concurrency": {"type": "Fixed", "limit": 1}, "queue": {"maxWait": "10s"}, "deadline": {"header": "x-timeout"}}}]"#,
    );
    let mut first = send(&proxy, &get_with("/1", "x-timeout: 250ms\r\n")).await;
    origin.has_come(1).await;
    refused(&proxy.ask(&get_with("/2", "x-timeout: 10ms\r\n")).await, 504, "throttle_deadline");
    refused(&first.response().await, 504, "http_response_timeout");
    origin.may.add_permits(10);
    assert_eq!(proxy.ask(&get("/3")).await.status, 200, "no circuit is open");
}

#[tokio::test]
async fn time_limit_of_a_policy_ends_the_wait_for_room() {
    let origin = Held::answering(0).await;
    let proxy = Proxy::before(origin.origin.address);
    proxy.apply(
        r#"[{"name": "rule", "throttle": {"concurrency": {"type": "Fixed", "limit": 1}, "queue": {"maxWait": "1m"}}},
            {"name": "short", "matches": [{"path": {"type": "Exact", "value": "/2"}}], "timeouts": {"request": "100ms"}}]"#,
    );
    let mut first = send(&proxy, &get("/1")).await;
    origin.has_come(1).await;
    refused(&proxy.ask(&get("/2")).await, 504, "throttle_deadline");
    origin.may.add_permits(1);
    assert_eq!(first.response().await.status, 200);
    assert_eq!(origin.came(), ["/1"]);
}

#[tokio::test]
async fn wait_for_room_is_no_pause_of_the_body() {
    let origin = Held::answering(0).await;
    let proxy = Proxy::before(origin.origin.address);
    proxy.apply(
        r#"[{"name": "rule", "timeouts": {"idle": "500ms"},
             "throttle": {"concurrency": {"type": "Fixed", "limit": 1}, "queue": {"maxWait": "1m"}}}]"#,
    );
    let mut first = send(&proxy, &get("/1")).await;
    origin.has_come(1).await;
    let mut second = send(&proxy, "POST /2 HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n").await;
    queued(&proxy, 1).await;
    tokio::time::sleep(Duration::from_millis(700)).await; // longer than a body may pause
    origin.may.add_permits(2);
    assert_eq!(first.response().await.status, 200);
    queued(&proxy, 0).await;
    second.send("ab").await;
    assert_eq!(second.response().await.status, 200);
}

#[tokio::test]
async fn calls_of_grpc_get_the_statuses_of_grpc() {
    let origin = Held::answering(0).await;
    let proxy = origin.before(r#""concurrency": {"type": "Fixed", "limit": 1}, "queue": {"maxLength": 0}"#);
    let call = |fields: &str| {
        format!("POST /shop/Get HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\n{fields}content-length: 0\r\n\r\n")
    };
    let expired = proxy.ask(&call("grpc-timeout: 0m\r\n")).await;
    assert_eq!((expired.status, expired.field("grpc-status")), (200, "4"), "DEADLINE_EXCEEDED");
    let mut first = send(&proxy, &get("/1")).await;
    origin.has_come(1).await;
    let full = proxy.ask(&call("")).await;
    assert_eq!((full.status, full.field("grpc-status"), full.field("retry-after")), (200, "14", "1"), "UNAVAILABLE");
    assert!(full.field("grpc-message").contains("has no room"));
    origin.may.add_permits(1);
    assert_eq!(first.response().await.status, 200);
    let slow = proxy.ask(&call("grpc-timeout: 200m\r\n")).await;
    assert_eq!(slow.field("grpc-status"), "4");
}

#[tokio::test]
async fn request_of_a_client_that_left_is_not_sent() {
    let origin = Held::answering(0).await;
    let proxy = origin.before(r#""concurrency": {"type": "Fixed", "limit": 1}, "queue": {"maxWait": "1m"}"#);
    let mut first = send(&proxy, &get("/1")).await;
    origin.has_come(1).await;
    let leaves = send(&proxy, &get("/2")).await;
    queued(&proxy, 1).await;
    drop(leaves);
    queued(&proxy, 0).await;
    let mut third = send(&proxy, &get("/3")).await;
    queued(&proxy, 1).await;
    origin.may.add_permits(2);
    assert_eq!((first.response().await.status, third.response().await.status), (200, 200));
    assert_eq!(origin.came(), ["/1", "/3"]);
    assert_eq!(counted(&proxy, "enforce", "abandoned"), 1.0);
}

#[tokio::test]
async fn client_that_leaves_while_it_is_served_gives_its_room_back() {
    let origin = Held::answering(0).await;
    let proxy = origin.before(r#""concurrency": {"type": "Fixed", "limit": 1}, "queue": {"maxWait": "1m"}"#);
    let leaves = send(&proxy, &get("/1")).await;
    origin.has_come(1).await;
    let mut second = send(&proxy, &get("/2")).await;
    queued(&proxy, 1).await;
    drop(leaves);
    origin.has_come(2).await;
    origin.may.add_permits(2);
    assert_eq!(second.response().await.text(), "/2");
}

#[tokio::test]
async fn room_is_taken_until_the_body_has_ended() {
    let origin = Origin::scripted(|mut stream, _| async move {
        read_head(&mut stream).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\na").await.unwrap();
        let _ = stream.read_u8().await;
    })
    .await;
    let proxy = Proxy::before(origin.address);
    apply(&proxy, r#""concurrency": {"type": "Fixed", "limit": 1}, "queue": {"maxLength": 0}"#);
    let mut client = send(&proxy, &get("/")).await;
    client.bytes(20).await;
    refused(&proxy.ask(&get("/")).await, 503, "throttle_queue_full");
    drop(client);
    eventually("room", || proxy.throttles.figures()[0].in_flight == 0).await;
}

#[tokio::test]
async fn connection_that_switches_and_stream_of_events_take_no_room() {
    let origin = Origin::scripted(|mut stream, _| async move {
        let head = read_head(&mut stream).await.unwrap();
        let answer = match field(&head, "upgrade") {
            Some(_) => "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n",
            None => "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n3\r\n:\n\n\r\n",
        };
        stream.write_all(answer.as_bytes()).await.unwrap();
        let _ = stream.read_u8().await;
    })
    .await;
    let proxy = Proxy::before(origin.address);
    apply(&proxy, r#""concurrency": {"type": "Fixed", "limit": 1}, "queue": {"maxLength": 0}"#);
    let mut held = Vec::new();
    for fields in ["connection: upgrade\r\nupgrade: echo\r\n", "", "connection: upgrade\r\nupgrade: echo\r\n"] {
        let mut client = send(&proxy, &get_with("/", fields)).await;
        let head = timeout(LONG, read_head(&mut client.0)).await.unwrap().unwrap();
        assert!(head.starts_with("HTTP/1.1 101") || head.starts_with("HTTP/1.1 200"), "{head}");
        held.push(client);
    }
}

#[tokio::test]
async fn state_outlives_a_reload_and_goes_with_the_policy() {
    let origin = Held::answering(0).await;
    let proxy = origin.before(r#""concurrency": {"type": "Fixed", "limit": 1}, "queue": {"maxWait": "1m"}"#);
    let mut first = send(&proxy, &get("/1")).await;
    origin.has_come(1).await;
    let mut second = send(&proxy, &get("/2")).await;
    queued(&proxy, 1).await;
    apply(&proxy, r#""concurrency": {"type": "Fixed", "limit": 1}, "queue": {"maxLength": 1, "maxWait": "1m"}"#);
    eventually("the new length", || proxy.config.load().digest() == "test").await;
    refused(&proxy.ask(&get("/3")).await, 503, "throttle_queue_full");
    assert_eq!(origin.came(), ["/1"], "both are counted still");
    apply(&proxy, r#""concurrency": {"type": "Fixed", "limit": 2}, "queue": {"maxLength": 1, "maxWait": "1m"}"#);
    origin.has_come(2).await;
    origin.may.add_permits(2);
    assert_eq!((first.response().await.text(), second.response().await.text()), ("/1", "/2"));
    proxy.apply("[]");
    eventually("its end", || proxy.throttles.figures().is_empty()).await;
    assert!(!proxy.metrics.encode().contains("fetchr_throttle_limit{"));
}

#[tokio::test]
async fn throttle_in_shadow_counts_and_holds_nobody() {
    let origin = Held::answering(0).await;
    let proxy = origin.before(
        r#""mode": "Shadow", "concurrency": {"type": "Fixed", "limit": 1}, "queue": {"maxLength": 1}, "deadline": {"default": "1ms"}"#,
    );
    let mut clients = Vec::new();
    for path in ["/1", "/2", "/3"] {
        clients.push(send(&proxy, &get(path)).await);
        origin.has_come(clients.len()).await;
    }
    origin.may.add_permits(3);
    for client in &mut clients {
        assert_eq!(client.response().await.status, 200);
    }
    let outcomes = ["admitted", "queued", "queue_full", "deadline"];
    assert_eq!(outcomes.map(|outcome| counted(&proxy, "shadow", outcome)).iter().sum::<f64>(), 3.0);
    assert!(counted(&proxy, "shadow", "queue_full") + counted(&proxy, "shadow", "deadline") >= 1.0);
    assert_eq!(counted(&proxy, "enforce", "admitted"), 0.0);
}

#[tokio::test]
async fn exempt_requests_pass_a_full_throttle() {
    let origin = Held::answering(0).await;
    let proxy = origin.before(
        r#""concurrency": {"type": "Fixed", "limit": 1}, "queue": {"maxLength": 0}, "exempt": [{"path": {"type": "Exact", "value": "/healthz"}}]"#,
    );
    let mut first = send(&proxy, &get("/1")).await;
    origin.has_come(1).await;
    let mut probe = send(&proxy, &get("/healthz")).await;
    origin.has_come(2).await;
    origin.may.add_permits(2);
    assert_eq!((first.response().await.status, probe.response().await.status), (200, 200));
}

#[tokio::test]
async fn throttles_of_all_rules_hold_together_over_all_workers() {
    let origin = Held::answering(0).await;
    let proxy = Proxy::with_workers(2, &format!("http://{}", origin.origin.address), |_| {});
    let throttle =
        |limit| format!(r#""throttle": {{"concurrency": {{"type": "Fixed", "limit": {limit}}}, "queue": {{"maxWait": "1m"}}}}"#);
    proxy.apply(&format!(r#"[{{"name": "wide", {}}}, {{"name": "narrow", {}}}]"#, throttle(3), throttle(2)));
    let mut clients = Vec::new();
    for path in ["/1", "/2", "/3", "/4"] {
        clients.push(send(&proxy, &get(path)).await);
    }
    origin.has_come(2).await;
    eventually("two queues", || proxy.throttles.figures().iter().map(|figures| figures.queued).sum::<u64>() == 2).await;
    origin.may.add_permits(4);
    for client in &mut clients {
        assert_eq!(client.response().await.status, 200, "those on another worker are woken too");
    }
    origin.has_come(4).await;
}

#[tokio::test]
async fn rate_spreads_requests_evenly_and_refuses_what_would_wait_too_long() {
    let origin = Held::answering(100).await;
    let proxy = origin.before(r#""rate": {"requests": 50, "per": "1s", "maxDelay": "400ms"}"#);
    let (begun, mut clients) = (Instant::now(), Vec::new());
    for number in 0..30 {
        clients.push(send(&proxy, &get(&format!("/{number}"))).await);
    }
    let mut statuses = Vec::new();
    for client in &mut clients {
        statuses.push(client.response().await.status);
    }
    let passed = statuses.iter().filter(|status| **status == 200).count();
    assert!(passed >= 20 && statuses.iter().all(|status| matches!(status, 200 | 503)), "{statuses:?}");
    let times: Vec<Instant> = origin.came.lock().unwrap().iter().map(|(_, at)| *at).collect();
    let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
    let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
    println!("50 a second: mean gap {:.1} ms, coefficient of variation {:.2}", mean * 1e3, deviation / mean);
    // A busy machine brings some later, but none comes before its time.
    for (number, came) in times.iter().enumerate() {
        assert!(*came >= begun + number as u32 * Duration::from_millis(20), "{number}: {:?}", *came - begun);
    }
    assert_eq!(counted(&proxy, "enforce", "rate"), (statuses.len() - passed) as f64);
}

#[tokio::test]
async fn request_takes_no_room_while_the_rate_of_another_rule_delays_it() {
    let origin = Held::answering(10).await;
    let proxy = Proxy::before(origin.origin.address);
    proxy.apply(
        r#"[{"name": "all", "throttle": {"concurrency": {"type": "Fixed", "limit": 1}, "queue": {"maxLength": 0}}},
            {"name": "slow", "matches": [{"path": {"type": "Exact", "value": "/slow"}}],
             "throttle": {"rate": {"requests": 1, "per": "1h", "maxDelay": "1h"}}}]"#,
    );
    assert_eq!(proxy.ask(&get("/slow")).await.status, 200);
    let _delayed = send(&proxy, &get("/slow")).await;
    eventually("a delayed request", || proxy.throttles.figures().iter().any(|figures| figures.delayed == 1)).await;
    assert_eq!(proxy.ask(&get("/quick")).await.status, 200);
    assert_eq!(origin.came(), ["/slow", "/quick"]);
}

#[tokio::test]
async fn request_that_leaves_while_it_is_delayed_is_not_sent() {
    let origin = Held::answering(10).await;
    let proxy = origin.before(r#""rate": {"requests": 2, "per": "1s", "maxDelay": "10s"}"#);
    assert_eq!(proxy.ask(&get("/1")).await.status, 200);
    let leaves = send(&proxy, &get("/2")).await;
    delayed(&proxy, 1).await;
    drop(leaves);
    delayed(&proxy, 0).await;
    assert_eq!(proxy.ask(&get("/3")).await.status, 200);
    assert_eq!(origin.came(), ["/1", "/3"]);
}

/// How many bytes a second so many took since then.
fn rate(bytes: usize, since: Instant) -> f64 {
    bytes as f64 / since.elapsed().as_secs_f64()
}

#[tokio::test]
async fn bodies_of_answers_together_keep_to_the_bandwidth() {
    const BODY: usize = 200_000;
    let origin = Origin::scripted(|mut stream, _| async move {
        while read_head(&mut stream).await.is_some() {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {BODY}\r\n\r\n");
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(&vec![b'd'; BODY]).await.unwrap();
        }
    })
    .await;
    let proxy = Proxy::before(origin.address);
    apply(&proxy, r#""bandwidth": {"download": "200Ki"}"#);
    let (mut one, mut other) = (send(&proxy, &get("/")).await, send(&proxy, &get("/")).await);
    let began = Instant::now();
    let (first, second) = tokio::join!(one.response(), other.response());
    assert_eq!((first.body.len(), second.body.len()), (BODY, BODY));
    let rate = rate(2 * BODY, began);
    println!("200 KiB a second for two answers: {:.1} KiB/s", rate / 1024.0);
    assert!((rate / (200.0 * 1024.0) - 1.0).abs() < 0.1, "{rate}");
}

#[tokio::test]
async fn body_of_a_request_keeps_to_the_bandwidth_and_comes_whole() {
    const BODY: usize = 300_000;
    let origin = Held::answering(10).await;
    let proxy = origin.before(r#""bandwidth": {"upload": "200Ki"}"#);
    let began = Instant::now();
    let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {BODY}\r\n\r\n");
    let mut client = send(&proxy, &head).await;
    client.send(vec![b'u'; BODY]).await;
    assert_eq!(client.response().await.status, 200);
    let rate = rate(BODY, began);
    println!("200 KiB a second for an upload: {:.1} KiB/s", rate / 1024.0);
    assert!((rate / (200.0 * 1024.0) - 1.0).abs() < 0.1, "{rate}");
    let mut chunked = send(&proxy, "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await;
    chunked.send(format!("{:x}\r\n{}\r\n0\r\n\r\n", 50_000, "c".repeat(50_000))).await;
    assert_eq!(chunked.response().await.status, 200);
}

#[tokio::test]
async fn stream_that_is_reset_while_it_waits_is_not_sent() {
    let origin = Held::answering(0).await;
    let proxy = origin.before(r#""concurrency": {"type": "Fixed", "limit": 1}, "queue": {"maxWait": "1m"}"#);
    let mut first = send(&proxy, &get("/1")).await;
    origin.has_come(1).await;
    let mut peer = Peer::connect(proxy.address).await;
    peer.send(&request(1, &frames::get(&[]))).await;
    queued(&proxy, 1).await;
    peer.send(&frame(RST_STREAM, 0, 1, &8u32.to_be_bytes())).await;
    queued(&proxy, 0).await;
    origin.may.add_permits(1);
    assert_eq!(first.response().await.status, 200);
    assert_eq!((origin.came(), counted(&proxy, "enforce", "abandoned")), (vec!["/1".to_owned()], 1.0));
}

#[tokio::test]
async fn answer_of_the_cache_takes_no_room() {
    let origin = Held::answering(1).await;
    let proxy = Proxy::before(origin.origin.address);
    proxy.apply(
        r#"[{"name": "rule", "cache": {"ttl": {"default": "1m"}},
             "throttle": {"concurrency": {"type": "Fixed", "limit": 1}, "queue": {"maxLength": 0}}}]"#,
    );
    assert_eq!(proxy.ask(&get("/kept")).await.status, 200);
    let mut first = send(&proxy, &get("/1")).await;
    origin.has_come(2).await;
    refused(&proxy.ask(&get("/2")).await, 503, "throttle_queue_full");
    let hit = proxy.ask(&get("/kept")).await;
    assert_eq!((hit.status, hit.text()), (200, "/kept"));
    origin.may.add_permits(1);
    assert_eq!(first.response().await.status, 200);
}
