//! The sections about tries: `retry`, `loadBalancing`, `circuitBreaker`, `failover`.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sidecar::server::NameServers;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    time::{Instant, sleep},
};

use crate::{
    dns::{Names, Says},
    support::{LONG, Origin, Proxy, eventually, field, nobody, read_chunks, read_head},
};

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

#[tokio::test]
async fn safe_request_is_tried_again_after_a_status_that_says_so() {
    let (origin, came) = origin(&[Does::Say(BUSY), Does::Say(OK)]).await;
    let proxy = before(&origin, r#""retry": {}"#);
    assert_eq!(proxy.ask(GET).await.status, 200);
    assert_eq!((came.load(Ordering::SeqCst), events(&proxy, "retry", "retried", "enforce")), (2, 1.0));
    assert_eq!(origin.connections(), 1, "the answer that nobody wanted was read");
}

#[tokio::test]
async fn request_that_may_have_had_an_effect_is_tried_once() {
    for script in [&[Does::Say(BUSY)], &[Does::Close], &[Does::Hang]] {
        let (origin, came) = origin(script).await;
        let proxy = before(&origin, r#""retry": {"attempts": 5}, "timeouts": {"perTry": "100ms"}"#);
        assert!(proxy.ask(POST).await.status >= 500);
        assert_eq!(came.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn tries_are_counted_and_the_last_answer_is_handed_on() {
    let (origin, came) = origin(&[Does::Say(BUSY)]).await;
    let proxy = before(&origin, r#""retry": {"attempts": 4, "backoff": {"base": "1ms"}}"#);
    let answer = proxy.ask(GET).await;
    assert_eq!((answer.status, answer.text()), (503, "busy"));
    assert_eq!(came.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn connection_that_breaks_off_or_never_answers_is_tried_again() {
    let (origin, came) = origin(&[Does::Close, Does::Hang, Does::Say(OK)]).await;
    let proxy = before(&origin, r#""retry": {"attempts": 3}, "timeouts": {"perTry": "100ms"}"#);
    assert_eq!(proxy.ask(GET).await.status, 200);
    assert_eq!(came.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn failures_that_are_not_listed_are_final() {
    let (origin, came) = origin(&[Does::Close]).await;
    let proxy = before(&origin, r#""retry": {"failures": ["ConnectFailure"]}"#);
    assert_eq!(proxy.ask(GET).await.status, 502);
    assert_eq!(came.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn request_that_was_never_sent_is_tried_again_whatever_its_method() {
    let proxy = Proxy::before(nobody().await);
    proxy.apply(r#"[{"name": "rule", "retry": {"attempts": 3, "backoff": {"base": "1ms"}}}]"#);
    assert_eq!(proxy.ask(POST).await.status, 502);
    assert_eq!(events(&proxy, "retry", "retried", "enforce"), 2.0);
}

#[tokio::test]
async fn try_has_a_time_limit_of_its_own_without_a_further_one_too() {
    let (origin, came) = origin(&[Does::Hang]).await;
    let proxy = before(&origin, r#""timeouts": {"perTry": "100ms"}"#);
    let answer = proxy.ask(GET).await;
    assert_eq!(answer.status, 504);
    assert!(answer.text().contains("100ms"), "{}", answer.text());
    assert_eq!(came.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn limit_on_the_whole_request_bounds_all_tries() {
    let (origin, _) = origin(&[Does::Hang]).await;
    let proxy = before(&origin, r#""retry": {"attempts": 10}, "timeouts": {"perTry": "200ms", "request": "500ms"}"#);
    let start = Instant::now();
    assert_eq!(proxy.ask(GET).await.status, 504);
    assert!(start.elapsed() < Duration::from_millis(1500), "{:?}", start.elapsed());
}

#[tokio::test]
async fn body_is_sent_again_from_its_start() {
    for (script, len) in [(&[Does::Say(BUSY), Does::Say("echo")], 50_000), (&[Does::Close, Does::Say("echo")], 5)] {
        let (origin, came) = origin(script).await;
        let proxy = before(&origin, r#""retry": {"methods": ["PUT"]}"#);
        let body: Vec<u8> = (0..len).map(|n| u8::try_from(n % 251).unwrap()).collect();
        let mut client = proxy.client().await;
        client.send(format!("PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: {len}\r\n\r\n")).await;
        client.send(&body).await;
        let answer = client.response().await;
        assert_eq!(answer.status, 200);
        assert!(answer.body == body, "the body is another");
        assert_eq!(came.load(Ordering::SeqCst), 2);
    }
}

#[tokio::test]
async fn chunked_body_is_sent_again_from_its_start() {
    let (origin, _) = origin(&[Does::Say(BUSY), Does::Say("echo")]).await;
    let proxy = before(&origin, r#""retry": {"methods": ["PUT"]}"#);
    let mut client = proxy.client().await;
    client.send("PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").await;
    assert_eq!(client.response().await.text(), "abcde");
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

#[tokio::test]
async fn body_is_sent_again_over_http2_and_an_earlier_stream_takes_nothing_of_it() {
    let proxy = Proxy::with(&format!("h2c://{}", http2_origin().await), |_| {});
    proxy.apply(r#"[{"name": "rule", "retry": {"methods": ["PUT"], "maxBody": "1Mi"}}]"#);
    let body: Vec<u8> = (0..300_000).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let mut client = proxy.client().await;
    client.send(format!("PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len())).await;
    client.send(&body[..100_000]).await;
    sleep(Duration::from_millis(100)).await;
    client.send(&body[100_000..]).await;
    let answer = client.response().await;
    assert_eq!(answer.status, 200);
    assert!(answer.body == body, "the body is another");
}

#[tokio::test]
async fn body_that_goes_on_in_the_pause_before_a_further_try_is_sent_whole() {
    let proxy = Proxy::with(&format!("h2c://{}", http2_origin().await), |_| {});
    proxy.apply(r#"[{"name": "rule", "retry": {"methods": ["PUT"], "backoff": {"base": "1s"}}}]"#);
    let body: Vec<u8> = (0..200_000).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let mut client = proxy.client().await;
    client.send(format!("PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len())).await;
    client.send(&body[..40_000]).await;
    eventually("the pause", || events(&proxy, "retry", "retried", "enforce") == 1.0).await;
    client.send(&body[40_000..]).await;
    let answer = client.response().await;
    assert_eq!(answer.status, 200);
    assert!(answer.body == body, "the body is another");
}

#[tokio::test]
async fn second_upstream_may_speak_another_version() {
    let standby = http2_origin().await;
    let proxy = Proxy::before(nobody().await);
    proxy.apply(&format!(r#"[{{"name": "rule", "retry": {{}}, "failover": {{"upstream": "h2c://{standby}"}}}}]"#));
    assert_eq!(proxy.ask("PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await.status, 503);
    assert_eq!(proxy.ask("PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc").await.text(), "abc");
}

#[tokio::test]
async fn body_beyond_the_bound_is_sent_once() {
    let (origin, came) = origin(&[Does::Say(BUSY), Does::Say(OK)]).await;
    let proxy = before(&origin, r#""retry": {"methods": ["PUT"], "maxBody": "1Ki"}"#);
    let mut client = proxy.client().await;
    client.send("PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 1025\r\n\r\n").await;
    client.send([b'x'; 1025]).await;
    assert_eq!(client.response().await.status, 503);
    assert_eq!((came.load(Ordering::SeqCst), events(&proxy, "retry", "body_gone", "enforce")), (1, 1.0));
}

#[tokio::test]
async fn nothing_is_tried_again_once_an_answer_has_begun() {
    let origin = Origin::scripted(|mut stream, _| async move {
        read_head(&mut stream).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
        sleep(Duration::from_millis(100)).await;
    })
    .await;
    let proxy = before(&origin, r#""retry": {"attempts": 5}"#);
    let mut client = proxy.client().await;
    client.send(GET).await;
    let rest = client.rest().await;
    assert!(String::from_utf8_lossy(&rest).ends_with("half"));
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn upstream_that_asks_for_patience_gets_it_or_no_further_try() {
    const SOON: &str = "HTTP/1.1 503 x\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n";
    const LATE: &str = "HTTP/1.1 503 x\r\nretry-after: 60\r\ncontent-length: 0\r\n\r\n";
    let (origin_soon, _) = origin(&[Does::Say(SOON), Does::Say(OK)]).await;
    let proxy = before(&origin_soon, r#""retry": {}"#);
    let start = Instant::now();
    assert_eq!(proxy.ask(GET).await.status, 200);
    assert!(start.elapsed() >= Duration::from_secs(1));
    let (origin_late, came) = origin(&[Does::Say(LATE), Does::Say(OK)]).await;
    let proxy = before(&origin_late, r#""retry": {}"#);
    let answer = proxy.ask(GET).await;
    assert_eq!((answer.status, answer.field("retry-after")), (503, "60"));
    assert_eq!((came.load(Ordering::SeqCst), events(&proxy, "retry", "told_to_wait", "enforce")), (1, 1.0));
}

#[tokio::test]
async fn budget_bounds_further_tries() {
    let (origin, came) = origin(&[Does::Say(BUSY)]).await;
    let proxy = before(&origin, r#""retry": {"backoff": {"base": "1ms"}, "budget": {"percent": 10, "burst": 3}}"#);
    for _ in 0..50 {
        assert_eq!(proxy.ask(GET).await.status, 503);
    }
    let tries = came.load(Ordering::SeqCst);
    assert!((55..=58).contains(&tries), "{tries} tries for 50 requests");
    assert!(events(&proxy, "retry", "no_budget", "enforce") > 40.0);
}

#[tokio::test]
async fn retry_in_shadow_counts_and_tries_once() {
    let (origin, came) = origin(&[Does::Say(BUSY), Does::Say(OK)]).await;
    let proxy = before(&origin, r#""retry": {"mode": "Shadow"}"#);
    assert_eq!(proxy.ask(GET).await.status, 503);
    assert_eq!((came.load(Ordering::SeqCst), events(&proxy, "retry", "retried", "shadow")), (1, 1.0));
}

#[tokio::test]
async fn slow_answer_is_overtaken_by_a_second_try() {
    let (origin, came) = origin(&[Does::Hang, Does::Say(OK)]).await;
    let proxy = before(&origin, r#""retry": {"hedge": {"after": "100ms"}}"#);
    assert_eq!(proxy.ask(GET).await.status, 200);
    assert_eq!(came.load(Ordering::SeqCst), 2);
    let count = |event| events(&proxy, "retry", event, "enforce");
    assert_eq!((count("hedged"), count("hedge_first")), (1.0, 1.0));
}

#[tokio::test]
async fn second_try_that_fails_does_not_spoil_the_first() {
    let origin = Origin::scripted(|mut stream, number| async move {
        while read_head(&mut stream).await.is_some() {
            if number == 0 {
                sleep(Duration::from_millis(300)).await;
                stream.write_all(OK.as_bytes()).await.unwrap();
            } else {
                stream.write_all(BUSY.as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    let proxy = before(&origin, r#""retry": {"statuses": [], "hedge": {"after": "50ms"}}"#);
    assert_eq!(proxy.ask(GET).await.status, 200);
    assert_eq!(origin.connections(), 2);
}

#[tokio::test]
async fn request_with_an_effect_is_never_sent_twice_at_once() {
    let origin = Origin::scripted(|mut stream, _| async move {
        while read_head(&mut stream).await.is_some() {
            sleep(Duration::from_millis(200)).await;
            stream.write_all(OK.as_bytes()).await.unwrap();
        }
    })
    .await;
    let proxy = before(&origin, r#""retry": {"methods": ["GET", "POST"], "hedge": {"after": "10ms"}}"#);
    assert_eq!(proxy.ask(POST).await.status, 200);
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn upstream_that_fails_is_left_alone_and_then_probed() {
    let (origin, came) = origin(&[Does::Say(BUSY), Does::Say(BUSY), Does::Say(OK)]).await;
    let proxy = before(&origin, r#""circuitBreaker": {"consecutiveFailures": 2, "openFor": "700ms"}"#);
    assert_eq!(proxy.ask(GET).await.text(), "busy");
    assert_eq!(proxy.ask(GET).await.text(), "busy");
    for _ in 0..3 {
        let refused = proxy.ask(GET).await;
        assert_eq!((refused.status, refused.field("retry-after")), (503, "1"));
        assert!(refused.text().contains("left alone"), "{}", refused.text());
    }
    assert_eq!(came.load(Ordering::SeqCst), 2, "nothing reaches it while its circuit is open");
    let start = Instant::now();
    while proxy.ask(GET).await.status != 200 {
        assert!(start.elapsed() < LONG);
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(came.load(Ordering::SeqCst), 3);
    let count = |event| events(&proxy, "circuitBreaker", event, "enforce");
    assert_eq!((count("opened"), count("closed")), (1.0, 1.0));
    assert_eq!(proxy.ask(GET).await.status, 200);
}

#[tokio::test]
async fn breaker_is_one_for_all_workers_of_the_pod() {
    let (origin, came) = origin(&[Does::Say(BUSY)]).await;
    let proxy = Proxy::with_workers(2, &format!("http://{}", origin.address), |_| {});
    proxy.apply(r#"[{"name": "rule", "circuitBreaker": {"consecutiveFailures": 4, "openFor": "1h"}}]"#);
    let (mut one, mut other) = (proxy.client().await, proxy.client().await);
    for client in [&mut one, &mut other] {
        for _ in 0..4 {
            client.send(GET).await;
            assert_eq!(client.response().await.status, 503);
        }
    }
    assert_eq!(came.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn share_of_failures_opens_the_circuit() {
    let (origin, came) =
        origin(&[Does::Say(OK), Does::Say(OK), Does::Say(BUSY), Does::Say(OK), Does::Say(BUSY), Does::Say(OK)]).await;
    let proxy = before(&origin, r#""circuitBreaker": {"failureRate": {"percent": 40, "window": "1h", "minRequests": 5}}"#);
    for status in [200, 200, 503, 200, 503, 503, 503] {
        assert_eq!(proxy.ask(GET).await.status, status);
    }
    assert_eq!(came.load(Ordering::SeqCst), 5);
}

#[tokio::test]
async fn breaker_in_shadow_counts_and_refuses_nothing() {
    let (origin, came) = origin(&[Does::Say(BUSY)]).await;
    let proxy = before(&origin, r#""circuitBreaker": {"mode": "Shadow", "consecutiveFailures": 1}"#);
    for _ in 0..3 {
        assert_eq!(proxy.ask(GET).await.text(), "busy");
    }
    assert_eq!(came.load(Ordering::SeqCst), 3);
    assert_eq!(events(&proxy, "circuitBreaker", "refused", "shadow"), 2.0);
}

#[tokio::test]
async fn client_that_leaves_a_probe_does_not_hold_its_place() {
    let (origin, _) = origin(&[Does::Say(BUSY), Does::Hang, Does::Say(OK)]).await;
    let proxy = before(&origin, r#""circuitBreaker": {"consecutiveFailures": 1, "openFor": "1ms"}"#);
    assert_eq!(proxy.ask(GET).await.status, 503);
    sleep(Duration::from_millis(5)).await;
    let mut leaves = proxy.client().await;
    leaves.send(GET).await;
    sleep(Duration::from_millis(100)).await;
    drop(leaves);
    let start = Instant::now();
    while proxy.ask(GET).await.status != 200 {
        assert!(start.elapsed() < LONG, "the probe's place never came back");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn second_upstream_steps_in_where_the_first_is_absent() {
    let standby = Origin::echo_head().await;
    let proxy = Proxy::before(nobody().await);
    proxy.apply(&format!(r#"[{{"name": "rule", "failover": {{"upstream": "http://{}"}}}}]"#, standby.address));
    for request in [GET, POST, "POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc"] {
        let answer = proxy.ask(request).await;
        assert_eq!(answer.status, 200);
        assert_eq!(field(answer.text(), "host"), Some("a"));
    }
    assert_eq!(events(&proxy, "failover", "failed_over", "enforce"), 3.0);
}

#[tokio::test]
async fn second_upstream_takes_what_the_first_answered_badly_only_with_retries() {
    let standby = Origin::answering(OK).await;
    let (origin, came) = origin(&[Does::Say(BUSY)]).await;
    let failover = format!(r#""failover": {{"upstream": "http://{}"}}"#, standby.address);
    let proxy = before(&origin, &failover);
    assert_eq!(proxy.ask(GET).await.status, 503);
    proxy.apply(&format!(r#"[{{"name": "rule", "retry": {{"backoff": {{"base": "1ms"}}}}, {failover}}}]"#));
    assert_eq!(proxy.ask(GET).await.status, 200);
    assert_eq!(proxy.ask(POST).await.status, 503, "it may have had an effect");
    assert_eq!(came.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn second_upstream_takes_what_an_open_circuit_refuses() {
    let standby = Origin::answering(OK).await;
    let (origin, came) = origin(&[Does::Say(BUSY)]).await;
    let failover = format!(r#""failover": {{"upstream": "http://{}"}}"#, standby.address);
    let proxy = before(&origin, &format!(r#""circuitBreaker": {{"consecutiveFailures": 1, "openFor": "1h"}}, {failover}"#));
    for status in [503, 200, 200] {
        assert_eq!(proxy.ask(GET).await.status, status);
    }
    assert_eq!(proxy.ask(POST).await.status, 200);
    assert_eq!(came.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn failover_in_shadow_counts_and_goes_nowhere() {
    let standby = Origin::answering(OK).await;
    let proxy = Proxy::before(nobody().await);
    let failover = format!(r#""failover": {{"mode": "Shadow", "upstream": "http://{}"}}"#, standby.address);
    proxy.apply(&format!(r#"[{{"name": "rule", {failover}}}]"#));
    assert_eq!(proxy.ask(GET).await.status, 502);
    assert_eq!((standby.connections(), events(&proxy, "failover", "failed_over", "shadow")), (0, 1.0));
}

/// Origins of one name: each on an address of its own, with a script.
struct Fleet {
    proxy: Proxy,
    came: Vec<Arc<AtomicUsize>>,
    _names: Names,
}

impl Fleet {
    async fn start(scripts: &[&'static [Does]], sections: &str) -> Self {
        let names = Names::serve().await;
        let (first, came) = origin(scripts[0]).await;
        let (port, mut all) = (first.address.port(), vec![came]);
        let mut addresses: Vec<IpAddr> = vec![first.address.ip()];
        for (last, script) in (2..).zip(&scripts[1..]) {
            let address = SocketAddr::from(([127, 0, 0, last], port));
            addresses.push(address.ip());
            all.push(origin_at(address, script).await.1);
        }
        names.set("web.example", Says::Addresses(addresses, 60));
        let proxy = Proxy::to_name(&format!("http://web.example:{port}"), names.servers(&[], 1), |_| {});
        proxy.apply(&format!(r#"[{{"name": "rule", {sections}}}]"#));
        Self { proxy, came: all, _names: names }
    }

    async fn ask(&self, times: usize) -> Vec<u16> {
        let mut statuses = Vec::new();
        for _ in 0..times {
            statuses.push(self.proxy.ask(GET).await.status);
        }
        statuses
    }

    fn came(&self) -> Vec<usize> {
        self.came.iter().map(|came| came.load(Ordering::SeqCst)).collect()
    }
}

#[tokio::test]
async fn name_that_nobody_resolves_takes_no_longer_than_the_request_may() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let servers = NameServers::Fixed { servers: vec![silent.local_addr().unwrap()], search: Vec::new(), ndots: 1 };
    let proxy = Proxy::to_name("http://web.example:80", servers, |_| {});
    proxy.apply(r#"[{"name": "rule", "loadBalancing": {}, "timeouts": {"connect": "20s", "request": "200ms"}}]"#);
    let start = Instant::now();
    assert_eq!(proxy.ask(GET).await.status, 504);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test]
async fn addresses_take_turns() {
    let fleet = Fleet::start(&[&[Does::Say(OK)] as &[_]; 3], r#""loadBalancing": {"policy": "RoundRobin"}"#).await;
    assert_eq!(fleet.ask(30).await, [200; 30]);
    assert_eq!(fleet.came(), [10, 10, 10]);
}

#[tokio::test]
async fn requests_of_one_key_go_to_one_address_and_keys_spread() {
    let hash = r#""loadBalancing": {"policy": "RingHash", "hash": {"source": "Header", "name": "x-user"}}"#;
    let fleet = Fleet::start(&[&[Does::Say(OK)] as &[_]; 3], hash).await;
    for user in 0..20 {
        let before = fleet.came();
        for _ in 0..3 {
            let request = format!("GET / HTTP/1.1\r\nhost: a\r\nx-user: {user}\r\n\r\n");
            assert_eq!(fleet.proxy.ask(&request).await.status, 200);
        }
        let came: Vec<usize> = fleet.came().iter().zip(before).map(|(after, before)| after - before).collect();
        assert!(came.contains(&3), "user {user}: {came:?}");
    }
    assert!(fleet.came().iter().all(|came| *came > 0), "{:?}", fleet.came());
}

#[tokio::test]
async fn slow_address_gets_fewer_requests() {
    let names = Names::serve().await;
    let came = [0, 1, 2].map(|_| Arc::new(AtomicUsize::new(0)));
    let mut address: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let mut addresses = Vec::new();
    for (number, count) in came.iter().enumerate() {
        let count = Arc::clone(count);
        let origin = Origin::scripted_at(address, move |mut stream, _| {
            let count = Arc::clone(&count);
            async move {
                while read_head(&mut stream).await.is_some() {
                    count.fetch_add(1, Ordering::SeqCst);
                    if number == 1 {
                        sleep(Duration::from_millis(100)).await;
                    }
                    stream.write_all(OK.as_bytes()).await.unwrap();
                }
            }
        })
        .await;
        addresses.push(origin.address.ip());
        address = SocketAddr::from(([127, 0, 0, u8::try_from(number).unwrap() + 2], origin.address.port()));
    }
    names.set("web.example", Says::Addresses(addresses, 60));
    let proxy = Proxy::to_name(&format!("http://web.example:{}", address.port()), names.servers(&[], 1), |_| {});
    proxy.apply(r#"[{"name": "rule", "loadBalancing": {}}]"#);
    for _ in 0..100 {
        assert_eq!(proxy.ask(GET).await.status, 200);
    }
    let slow = came[1].load(Ordering::SeqCst);
    assert!((1..20).contains(&slow), "{slow} of 100 went to the slow address");
}

#[tokio::test]
async fn address_that_fails_is_left_out() {
    let fleet = Fleet::start(
        &[&[Does::Say(OK)], &[Does::Say(BUSY)], &[Does::Say(OK)]],
        r#""loadBalancing": {"policy": "RoundRobin", "ejection": {"consecutiveFailures": 3, "time": "1h"}}"#,
    )
    .await;
    let bad = fleet.ask(60).await.iter().filter(|status| **status != 200).count();
    assert_eq!((bad, fleet.came()[1]), (3, 3));
    assert_eq!(events(&fleet.proxy, "loadBalancing", "ejected", "enforce"), 1.0);
}

#[tokio::test]
async fn further_try_goes_to_another_address() {
    let fleet = Fleet::start(
        &[&[Does::Say(OK)], &[Does::Close], &[Does::Say(OK)]],
        r#""retry": {"backoff": {"base": "1ms"}, "budget": {"percent": 100, "burst": 100}}, "loadBalancing": {"policy": "RoundRobin"}"#,
    )
    .await;
    assert_eq!(fleet.ask(60).await, [200; 60]);
    assert_eq!(fleet.came()[1], 5, "as many as it takes to leave it out");
}

#[tokio::test]
async fn addresses_that_all_fail_are_still_asked() {
    let fleet = Fleet::start(
        &[&[Does::Say(BUSY)] as &[_]; 3],
        r#""loadBalancing": {"policy": "RoundRobin", "ejection": {"consecutiveFailures": 1, "time": "1h", "maxEjectedPercent": 100}}"#,
    )
    .await;
    assert_eq!(fleet.ask(20).await, [503; 20]);
    assert_eq!(fleet.came().iter().sum::<usize>(), 20);
    assert_eq!(events(&fleet.proxy, "loadBalancing", "ejected", "enforce"), 2.0);
}

#[tokio::test]
async fn balancing_in_shadow_chooses_and_changes_nothing() {
    let fleet =
        Fleet::start(&[&[Does::Say(OK)], &[Does::Say(OK)]], r#""loadBalancing": {"mode": "Shadow", "policy": "RoundRobin"}"#)
            .await;
    assert_eq!(fleet.ask(10).await, [200; 10]);
    let mut came = fleet.came();
    came.sort_unstable();
    assert_eq!(came, [0, 10], "one connection carries them all");
    assert_eq!(events(&fleet.proxy, "loadBalancing", "chosen", "shadow"), 10.0);
}
