//! What a policy changes, and how soon.
#![allow(clippy::unwrap_used, reason = "a helper that fails has failed its test")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::ensure;
use crds::FetchrPolicy;
use e2e::namespace::{Namespace, Pod};
use e2e::origin::load::Report;
use e2e::testbed::{application, with_namespace};
use e2e::wait::eventually;
use http::StatusCode;
use kube::api::{Patch, PatchParams};
use serde_json::json;

const PORT: u16 = 8080;
const DEADLINE: Duration = Duration::from_secs(20);

async fn injected(namespace: &Namespace, replicas: u32) -> Vec<Pod> {
    namespace.apply(&application("web", replicas, "fetchr.sh/inject: enabled")).await.unwrap();
    namespace.ready_pods("app=web", replicas as usize).await.unwrap()
}

/// Applies a policy with one rule for the Deployment `web`.
async fn policy(namespace: &Namespace, name: &str, rule: serde_json::Value) {
    let policy = json!({
        "apiVersion": "fetchr.sh/v1alpha1",
        "kind": "FetchrPolicy",
        "metadata": {"name": name},
        "spec": {"targetRefs": [{"kind": "Deployment", "name": "web"}], "rules": [rule]},
    });
    let policies = namespace.api::<FetchrPolicy>();
    policies.patch(name, &PatchParams::apply("e2e").force(), &Patch::Apply(policy)).await.unwrap();
}

async fn header(namespace: &Namespace, value: &str) {
    policy(namespace, "header", json!({"name": "all", "headers": {"response": {"set": [{"name": "x-policy", "value": value}]}}}))
        .await;
}

async fn header_in_force(pods: &[Pod], value: &str) {
    eventually("every pod sets the header", DEADLINE, async || {
        for pod in pods {
            let reply = pod.get(PORT, "/").await?;
            ensure!(reply.header("x-policy") == value, "{} sets {:?}", pod.name(), reply.header("x-policy"));
        }
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn change_is_in_force_in_every_pod_within_a_second() {
    with_namespace(async |namespace| {
        let pods = injected(&namespace, 2).await;
        header(&namespace, "first").await;
        header_in_force(&pods, "first").await;
        let mut times = Vec::new();
        for round in 0..100 {
            let value = format!("round-{round}");
            header(&namespace, &value).await;
            let applied = Instant::now();
            header_in_force(&pods, &value).await;
            times.push(applied.elapsed());
        }
        times.sort_unstable();
        println!(
            "applied to in force in 2 pods, 100 changes: median {:?}, p99 {:?}, slowest {:?}",
            times[50], times[98], times[99]
        );
        assert!(times[98] < Duration::from_secs(1), "{times:?}");
    })
    .await;
}

#[tokio::test]
async fn request_above_the_limit_is_refused_with_its_fields() {
    with_namespace(async |namespace| {
        let pods = injected(&namespace, 1).await;
        let limit = json!({"name": "all", "limit": {"requests": 3, "per": "1h"}});
        policy(&namespace, "limit", json!({"name": "limited", "rateLimits": [limit]})).await;
        let refused = eventually("a request is refused", DEADLINE, async || {
            let reply = pods[0].get(PORT, "/").await?;
            ensure!(reply.status == StatusCode::TOO_MANY_REQUESTS, "answered {}", reply.status);
            Ok(reply)
        })
        .await
        .unwrap();
        for field in ["retry-after", "ratelimit", "ratelimit-policy"] {
            assert!(refused.headers.contains_key(field), "{field} is missing: {:?}", refused.headers);
        }
    })
    .await;
}

#[tokio::test]
async fn no_request_fails_while_policies_change() {
    with_namespace(async |namespace| {
        let pods = injected(&namespace, 2).await;
        namespace.apply(&application("client", 1, "")).await.unwrap();
        let client = namespace.ready_pods("app=client", 1).await.unwrap().remove(0);
        let load = ["fetchr-origin", "load", "--url", "http://web/bytes/100", "--rate", "100", "--duration", "11"];
        let changes = async {
            let mut pace = tokio::time::interval(Duration::from_millis(100));
            for round in 0..100 {
                pace.tick().await;
                header(&namespace, &format!("under-load-{round}")).await;
            }
        };
        let (report, ()) = tokio::join!(client.exec("app", &load), changes);
        let report: Report = serde_json::from_str(&report.unwrap()).unwrap();
        println!("under load: {report:?}");
        assert_eq!((report.ok, &report.failed), (report.sent, &BTreeMap::new()), "{report:?}");
        header_in_force(&pods, "under-load-99").await;
    })
    .await;
}

/// A client whose requests to these ports pass its sidecar, and three pods behind a Service without an address of its own.
const HEADLESS: &str = "
apiVersion: fetchr.sh/v1alpha1
kind: FetchrProxy
metadata: {name: client}
spec:
  selector: {matchLabels: {app: client}}
  interception: {outbound: {ports: [8080, 8081]}}
---
apiVersion: v1
kind: Service
metadata: {name: pods}
spec:
  clusterIP: None
  selector: {app: web}
  ports: [{name: http, port: 8080}]
";

/// Applies a policy with one rule for what the Deployment `client` sends.
async fn outbound(namespace: &Namespace, rule: serde_json::Value) {
    let policy = json!({
        "apiVersion": "fetchr.sh/v1alpha1",
        "kind": "FetchrPolicy",
        "metadata": {"name": "outbound"},
        "spec": {"targetRefs": [{"kind": "Deployment", "name": "client"}], "direction": "Outbound", "rules": [rule]},
    });
    let policies = namespace.api::<FetchrPolicy>();
    policies.patch("outbound", &PatchParams::apply("e2e").force(), &Patch::Apply(policy)).await.unwrap();
}

/// The application keeps one connection, and so all its requests went to one pod.
#[tokio::test]
async fn requests_of_one_connection_to_a_headless_service_are_spread_over_its_pods() {
    with_namespace(async |namespace| {
        namespace.apply(HEADLESS).await.unwrap();
        namespace.apply(&application("web", 3, "")).await.unwrap();
        namespace.apply(&application("client", 1, "fetchr.sh/inject: enabled")).await.unwrap();
        let servers = namespace.ready_pods("app=web", 3).await.unwrap();
        let client = namespace.ready_pods("app=client", 1).await.unwrap().remove(0);
        outbound(&namespace, json!({"name": "all", "loadBalancing": {"policy": "RoundRobin"}, "retry": {}})).await;
        let load = ["fetchr-origin", "load", "--url", "http://pods:8080/bytes/10", "--rate", "30", "--duration", "1"];
        eventually("each pod gets its share", DEADLINE, async || {
            let before = came(&servers).await?;
            let report: Report = serde_json::from_str(&client.exec("app", &load).await?)?;
            report.check()?;
            let shares: Vec<u64> = came(&servers).await?.iter().zip(before).map(|(after, before)| after - before).collect();
            ensure!(shares.iter().all(|share| *share * 4 >= report.sent), "{shares:?} of {}", report.sent);
            Ok(())
        })
        .await
        .unwrap();
    })
    .await;
}

#[tokio::test]
async fn upstream_that_is_gone_is_left_alone_and_a_second_one_steps_in() {
    with_namespace(async |namespace| {
        namespace.apply(HEADLESS).await.unwrap();
        for name in ["web", "standby"] {
            namespace.apply(&application(name, 1, "")).await.unwrap();
        }
        namespace.apply(&application("client", 1, "fetchr.sh/inject: enabled")).await.unwrap();
        for app in ["app=web", "app=standby"] {
            namespace.ready_pods(app, 1).await.unwrap();
        }
        let client = namespace.ready_pods("app=client", 1).await.unwrap().remove(0);
        // Nobody listens there.
        let ask = async || {
            let told = client.exec("app", &["fetchr-origin", "get", "http://pods:8081/"]).await?;
            Ok::<serde_json::Value, anyhow::Error>(serde_json::from_str(&told)?)
        };
        let breaker = json!({"consecutiveFailures": 3, "openFor": "1h"});
        outbound(&namespace, json!({"name": "all", "circuitBreaker": breaker})).await;
        eventually("the circuit is open", DEADLINE, async || {
            let answer = ask().await?;
            ensure!(answer["status"] == 503 && answer["headers"]["retry-after"].is_array(), "answered {answer}");
            Ok(())
        })
        .await
        .unwrap();
        outbound(&namespace, json!({"name": "all", "circuitBreaker": breaker, "failover": {"upstream": "http://standby"}})).await;
        eventually("the second upstream answers", DEADLINE, async || {
            let answer = ask().await?;
            let body = answer["body"].as_str().unwrap_or_default();
            ensure!(answer["status"] == 200 && body.starts_with("standby "), "answered {answer}");
            Ok(())
        })
        .await
        .unwrap();
    })
    .await;
}

/// How many numbered requests each pod has had.
async fn came(pods: &[Pod]) -> anyhow::Result<Vec<u64>> {
    let mut counts = Vec::new();
    for pod in pods {
        let seen = pod.get(PORT, "/seen").await?.json()?;
        counts.push(seen["count"].as_u64().unwrap_or_default() + seen["repeated"].as_u64().unwrap_or_default());
    }
    Ok(counts)
}
