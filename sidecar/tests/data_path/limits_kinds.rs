//! What limits count, and what they do: over real sockets, in the pod and in a real Redis.

use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, time::Instant};

use crate::{
    redis_server::Server,
    support::{Origin, Proxy, Response, eventually, read_head, until},
};

/// Before an origin, with one limit for all requests.
fn limited(origin: &Origin, limit: &Value) -> Proxy {
    let proxy = Proxy::before(origin.address);
    apply(&proxy, limit);
    proxy
}

fn apply(proxy: &Proxy, limit: &Value) {
    proxy.apply(&json!([{"name": "all", "rateLimits": [limit]}]).to_string());
}

/// Pods that share a Redis, each before the origin, with one limit for all requests.
fn sharing(count: usize, server: &Server, origin: &Origin, limit: &Value) -> Vec<Proxy> {
    let redis = json!({"endpoints": [server.address()], "commandTimeout": "5s"});
    let pod = |_| {
        let proxy = Proxy::with(&format!("http://{}", origin.address), |spec| {
            spec.redis = Some(serde_json::from_value(redis.clone()).unwrap());
        });
        apply(&proxy, limit);
        proxy
    };
    (0..count).map(pod).collect()
}

async fn get(proxy: &Proxy, more: &str) -> Response {
    proxy.ask(&format!("GET / HTTP/1.1\r\nhost: a\r\n{more}\r\n")).await
}

/// Decisions of a source, of whatever limit.
fn decided(proxy: &Proxy, source: &str) -> f64 {
    let labels = format!(r#"source="{source}"}} "#);
    let page = proxy.metrics.encode();
    let lines = page.lines().filter(|line| line.starts_with("fetchr_ratelimit_decisions_total{") && line.contains(&labels));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// An origin that answers only when it is told to.
async fn held() -> (Origin, tokio::sync::watch::Sender<bool>) {
    let (release, released) = tokio::sync::watch::channel(false);
    let origin = Origin::scripted(move |mut stream, _| {
        let mut released = released.clone();
        async move {
            while read_head(&mut stream).await.is_some() {
                let _ = released.wait_for(|released| *released).await;
                if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (origin, release)
}

#[tokio::test]
async fn denial_is_a_problem_that_names_the_limit_or_what_the_policy_says() {
    let origin = Origin::echo_head().await;
    let proxy = limited(&origin, &json!({"name": "one", "limit": {"requests": 1, "per": "1h"}}));
    assert_eq!(get(&proxy, "").await.status, 200);
    let denied = get(&proxy, "").await;
    assert_eq!((denied.status, denied.field("content-type")), (429, "application/problem+json"));
    let problem: Value = serde_json::from_str(denied.text()).unwrap();
    assert_eq!(problem["status"], 429);
    assert_eq!(problem["violated-policies"], json!(["one"]));
    assert!(problem["detail"].as_str().unwrap().starts_with("limit one of "), "{problem}");
    let body = json!({"contentType": "text/html", "text": "<p>later</p>"});
    apply(&proxy, &json!({"name": "one", "limit": {"requests": 1, "per": "1h"}, "body": body}));
    let denied = get(&proxy, "").await;
    assert_eq!((denied.status, denied.field("content-type"), denied.text()), (429, "text/html", "<p>later</p>"));
    let call = proxy.ask("POST / HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!((call.status, call.field("grpc-status")), (200, "8"));
}

#[tokio::test]
async fn slots_are_free_again_when_their_requests_end_or_their_clients_leave() {
    let (origin, release) = held().await;
    let proxy = limited(&origin, &json!({"name": "two", "limit": {"algorithm": "Concurrency", "requests": 2}}));
    let mut clients = Vec::new();
    for number in 0..2 {
        let mut client = proxy.client().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        eventually("the origin has it", || origin.connections() == number + 1).await;
        clients.push(client);
    }
    let denied = get(&proxy, "").await;
    assert_eq!((denied.status, denied.field("retry-after")), (429, "1"));
    drop(clients.pop());
    let mut third = proxy.client().await;
    until("the slot of the client that left is free", async || {
        third.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        match tokio::time::timeout(Duration::from_millis(100), third.response()).await {
            Ok(response) => {
                assert_eq!(response.status, 429);
                false
            }
            Err(_) => true,
        }
    })
    .await;
    release.send(true).unwrap();
    assert_eq!(clients[0].response().await.status, 200);
    assert_eq!(third.response().await.status, 200);
    until("all slots are free", async || get(&proxy, "").await.status == 200).await;
}

#[tokio::test]
async fn pods_together_have_no_more_requests_under_way_than_one_limit() {
    let server = Server::start(&[]).await;
    let (origin, release) = held().await;
    let limit = json!({"name": "three", "limit": {"algorithm": "Concurrency", "requests": 3}, "scope": "Shared", "onStoreFailure": "Deny"});
    let pods = sharing(2, &server, &origin, &limit);
    let mut clients = Vec::new();
    while clients.len() < 3 {
        let mut client = pods[clients.len() % 2].client().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        // Until it is connected, Redis decides nothing.
        if tokio::time::timeout(Duration::from_millis(300), client.response()).await.is_err() {
            clients.push(client);
        }
    }
    for pod in &pods {
        assert_eq!(get(pod, "").await.status, 429);
    }
    release.send(true).unwrap();
    for client in &mut clients {
        assert_eq!(client.response().await.status, 200);
    }
    until("their slots are free", async || {
        let answers = join_all((0..3).map(|number| get(&pods[number % 2], ""))).await;
        answers.iter().all(|answer| answer.status == 200)
    })
    .await;
}

#[tokio::test]
async fn requests_that_are_under_way_when_redis_goes_have_slots_of_the_pods_share() {
    let mut server = Server::start(&[]).await;
    let (origin, release) = held().await;
    let limit = json!({"name": "two", "limit": {"algorithm": "Concurrency", "requests": 2}, "scope": "Shared"});
    let pods = sharing(1, &server, &origin, &limit);
    release.send(true).unwrap();
    until("Redis decides", async || get(&pods[0], "").await.status == 200 && decided(&pods[0], "store") > 0.0).await;
    release.send(false).unwrap();
    let before = decided(&pods[0], "store");
    let mut clients = Vec::new();
    for number in 1..=2 {
        let mut client = pods[0].client().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        eventually("Redis has given it a slot", || decided(&pods[0], "store") == before + f64::from(number)).await;
        clients.push(client);
    }
    server.kill();
    assert_eq!(get(&pods[0], "").await.status, 429, "both slots are taken");
    assert!(decided(&pods[0], "fallback") > 0.0);
    release.send(true).unwrap();
    for client in &mut clients {
        assert_eq!(client.response().await.status, 200);
    }
    until("the slots are free", async || get(&pods[0], "").await.status == 200).await;
}

#[tokio::test]
async fn what_responses_cost_is_charged_for_all_pods_and_not_told_to_clients() {
    let server = Server::start(&[]).await;
    let origin = Origin::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-cost: 40\r\n\r\nok").await;
    let cost = json!({"source": "ResponseHeader", "name": "x-cost"});
    let limit = json!({"name": "units", "limit": {"algorithm": "FixedWindow", "requests": 100, "window": "Month"}, "cost": cost, "scope": "Shared"});
    let pods = sharing(2, &server, &origin, &limit);
    for pod in &pods {
        until("Redis decides", async || {
            let answer = get(pod, "").await;
            assert!([200, 429].contains(&answer.status));
            assert!(!answer.has("x-cost"));
            decided(pod, "store") > 0.0
        })
        .await;
    }
    until("it is used up for both", async || get(&pods[0], "").await.status == 429 && get(&pods[1], "").await.status == 429)
        .await;
}

#[tokio::test]
async fn bytes_of_both_ways_are_charged_when_they_have_gone() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n0123456789").await;
    for (source, charged) in [("RequestBytes", 4), ("ResponseBytes", 10)] {
        let limit = json!({"name": "bytes", "limit": {"requests": 1000, "per": "10h"}, "cost": {"source": source}});
        let proxy = limited(&origin, &limit);
        let first = proxy.ask("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody").await;
        assert_eq!((first.status, first.field("ratelimit")), (200, "\"bytes\";r=1000;t=0"), "{source}");
        let left = format!("\"bytes\";r={};", 1000 - charged);
        let mut seen = String::new();
        until("it is charged", async || {
            seen = get(&proxy, "").await.field("ratelimit").to_owned();
            seen.starts_with(&left) || source == "ResponseBytes" && !seen.contains("r=1000;")
        })
        .await;
        assert!(seen.starts_with(&left), "{source}: {seen}");
    }
}

#[tokio::test]
async fn delayed_requests_leave_at_the_rate_of_the_limit() {
    let origin = Origin::echo_head().await;
    let limit = json!({"name": "slow", "limit": {"requests": 20, "per": "1s", "burst": 1}, "action": "Delay", "maxDelay": "10s"});
    let proxy = limited(&origin, &limit);
    let begun = Instant::now();
    let answers = join_all((0..11).map(|_| get(&proxy, ""))).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
    assert!(begun.elapsed() >= Duration::from_millis(500), "{:?}", begun.elapsed());
    assert!(proxy.metric("fetchr_ratelimit_delay_seconds_count") >= 10.0);
}

#[tokio::test]
async fn leased_limit_is_never_exceeded_and_most_requests_ask_nobody() {
    const RATE: f64 = 300.0;
    let server = Server::start(&[]).await;
    let origin = Origin::answering("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let limit = json!({"name": "leased", "limit": {"requests": RATE as u32, "per": "1s"}, "scope": "Shared", "accuracy": "Leased", "onStoreFailure": "Deny"});
    let pods = sharing(3, &server, &origin, &limit);
    for pod in &pods {
        until("Redis is asked", async || get(pod, "").await.status != 503).await;
    }
    let begun = Instant::now();
    let before: f64 = pods.iter().map(|pod| decided(pod, "store")).sum();
    let load = pods.iter().map(|pod| async {
        let (mut client, mut passed, mut asked) = (pod.client().await, 0.0, 0.0);
        while begun.elapsed() < Duration::from_secs(4) {
            client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            passed += f64::from(client.response().await.status == 200);
            asked += 1.0;
        }
        (passed, asked)
    });
    let counts: Vec<(f64, f64)> = join_all(load).await;
    let (passed, asked) = counts.iter().fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    // The burst may be full at the start, and a second of the rate comes in every second.
    let most = RATE * begun.elapsed().as_secs_f64() + RATE;
    assert!(passed <= most, "{passed} of {asked} passed, {most} at most");
    if asked > 2.0 * most {
        assert!(passed >= 0.8 * (most - RATE), "{passed} of {asked} passed, {most} at most");
        let exact = pods.iter().map(|pod| decided(pod, "store")).sum::<f64>() - before;
        assert!(exact < 0.1 * asked, "{exact} of {asked} asked Redis");
    }
    eprintln!("leased: {passed} of {asked} passed, {most:.0} at most");
}
