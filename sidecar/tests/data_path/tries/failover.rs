//! `failover`: a second upstream.

use std::sync::atomic::Ordering;

use super::{BUSY, Does, GET, OK, POST, before, events, http2_origin, origin};
use crate::support::{Origin, Proxy, field, nobody};

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
async fn second_upstream_may_speak_another_version() {
    let standby = http2_origin().await;
    let proxy = Proxy::before(nobody().await);
    proxy.apply(&format!(r#"[{{"name": "rule", "retry": {{}}, "failover": {{"upstream": "h2c://{standby}"}}}}]"#));
    assert_eq!(proxy.ask("PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await.status, 503);
    assert_eq!(proxy.ask("PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc").await.text(), "abc");
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
