//! `retry`: what is sent again, how often and how much of it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{io::AsyncWriteExt, sync::Notify, time::Instant};

use super::{BUSY, Does, GET, OK, POST, before, events, http2_origin, origin};
use crate::support::{Origin, Proxy, eventually, nobody, read_head};

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

#[tokio::test]
async fn body_is_sent_again_over_http2_and_an_earlier_stream_takes_nothing_of_it() {
    let proxy = Proxy::with(&format!("h2c://{}", http2_origin().await), |_| {});
    proxy.apply(r#"[{"name": "rule", "retry": {"methods": ["PUT"], "maxBody": "1Mi"}}]"#);
    let body: Vec<u8> = (0..300_000).map(|n| u8::try_from(n % 251).unwrap()).collect();
    let mut client = proxy.client().await;
    client.send(format!("PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", body.len())).await;
    client.send(&body[..100_000]).await;
    eventually("the first try's end", || events(&proxy, "retry", "retried", "enforce") == 1.0).await;
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
    let arrived = Arc::new(Notify::new());
    let wait = Arc::clone(&arrived);
    let origin = Origin::scripted(move |mut stream, _| {
        let wait = Arc::clone(&wait);
        async move {
            read_head(&mut stream).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
            wait.notified().await;
        }
    })
    .await;
    let proxy = before(&origin, r#""retry": {"attempts": 5}"#);
    let mut client = proxy.client().await;
    client.send(GET).await;
    read_head(&mut client.0).await.unwrap();
    assert_eq!(client.bytes(4).await, b"half");
    arrived.notify_one();
    assert_eq!(client.rest().await, b"");
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
