//! `circuitBreaker`: an upstream that fails is left alone.

use std::sync::atomic::Ordering;

use super::{BUSY, Does, GET, OK, before, events, origin};
use crate::support::{Proxy, eventually, until};

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
    until("the probe", async || proxy.ask(GET).await.status == 200).await;
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
    let (origin, came) = origin(&[Does::Say(BUSY), Does::Hang, Does::Say(OK)]).await;
    let proxy = before(&origin, r#""circuitBreaker": {"consecutiveFailures": 1, "openFor": "1ms"}"#);
    assert_eq!(proxy.ask(GET).await.status, 503);
    let leaves = async {
        // Whoever comes before the circuit lets a probe through is refused.
        loop {
            let mut client = proxy.client().await;
            client.send(GET).await;
            let refused = client.response();
            let probed = eventually("the probe", || came.load(Ordering::SeqCst) == 2);
            tokio::select! {
                refused = refused => assert_eq!(refused.status, 503),
                () = probed => return drop(client),
            }
        }
    };
    leaves.await;
    until("the place of the probe", async || proxy.ask(GET).await.status == 200).await;
}
