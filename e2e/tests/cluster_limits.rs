//! One limit over real pods, and a real Redis that fails over under load.
#![allow(clippy::unwrap_used, reason = "a helper that fails has failed its test")]

use std::time::Duration;

use anyhow::ensure;
use e2e::namespace::{Namespace, Pod};
use e2e::stores;
use e2e::testbed::{application, with_namespace};
use e2e::wait::eventually;
use futures::future::join_all;
use serde_json::{Value, json};
use tokio::time::Instant;

const PORT: u16 = 8080;
const METRICS: u16 = 4621;
const PODS: u32 = 3;
const DEADLINE: Duration = Duration::from_secs(60);
/// What all pods together let pass in a second, and at once.
const RATE: f64 = 30.0;
const POLICY: &str = "
apiVersion: fetchr.sh/v1alpha1
kind: FetchrPolicy
metadata: {name: limit}
spec:
  targetRefs: [{kind: Deployment, name: web}]
  rules:
  - name: all
    matches: [{path: {type: Prefix, value: /count}}]
    rateLimits:
    - {name: together, limit: {requests: 30, per: 1s}, scope: Shared, onStoreFailure: Local}
";

/// What clients saw.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    passed: f64,
    denied: f64,
    others: f64,
    seconds: f64,
}

async fn pods(namespace: &Namespace, mut redis: Value) -> Vec<Pod> {
    // Longer than a busy machine keeps a command waiting.
    redis["commandTimeout"] = "500ms".into();
    let spec = json!({"selector": {"matchLabels": {"app": "web"}}, "redis": redis});
    let proxy = json!({"apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrProxy", "metadata": {"name": "web"}, "spec": spec});
    namespace.apply(&proxy.to_string()).await.unwrap();
    namespace.apply(POLICY).await.unwrap();
    namespace.apply(&application("web", PODS, "fetchr.sh/inject: enabled")).await.unwrap();
    namespace.ready_pods("app=web", PODS as usize).await.unwrap()
}

/// Decisions of this pod by the count that all share.
async fn by_the_store(pod: &Pod) -> anyhow::Result<f64> {
    let page = pod.get(METRICS, "/metrics").await?;
    let of_store = |line: &&str| line.starts_with("fetchr_ratelimit_decisions_total{") && line.contains("source=\"store\"");
    let text = page.text();
    Ok(text.lines().filter(of_store).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

/// Waits until requests of all pods are decided by Redis.
async fn counted_together(pods: &[Pod]) {
    eventually("Redis decides for all pods", DEADLINE, async || {
        for pod in pods {
            let before = by_the_store(pod).await?;
            pod.get(PORT, "/count/probe").await?;
            ensure!(by_the_store(pod).await? > before, "{} does not ask Redis", pod.name());
        }
        Ok(())
    })
    .await
    .unwrap();
}

/// Asks all pods, as fast as they answer, for so long.
async fn load(pods: &[Pod], time: Duration) -> Seen {
    let begun = Instant::now();
    let clients = pods.iter().map(|pod| async move {
        let mut seen = Seen::default();
        while begun.elapsed() < time {
            match pod.get(PORT, "/count/load").await.map(|answer| answer.status.as_u16()) {
                Ok(200) => seen.passed += 1.0,
                Ok(429) => seen.denied += 1.0,
                _ => seen.others += 1.0,
            }
        }
        seen
    });
    let all = join_all(clients).await.into_iter().fold(Seen::default(), |sum, one| Seen {
        passed: sum.passed + one.passed,
        denied: sum.denied + one.denied,
        others: sum.others + one.others,
        seconds: 0.0,
    });
    Seen { seconds: begun.elapsed().as_secs_f64(), ..all }
}

impl Seen {
    /// The limit held: never more than the burst and what came in, and not much less where more was asked for.
    fn holds(&self, what: &str) {
        println!("{what}: {self:?}");
        assert_eq!(self.others, 0.0, "{what}: {self:?}");
        assert!(self.passed <= RATE * self.seconds + RATE, "{what}: {self:?}");
        assert!(self.denied > 0.0 && self.passed >= 0.8 * RATE * self.seconds, "{what}: {self:?}");
    }
}

#[tokio::test]
async fn one_limit_is_held_over_three_pods_while_sentinels_promote_a_replica() {
    with_namespace(async |namespace| {
        let redis = stores::sentinels(&namespace).await.unwrap();
        let pods = pods(&namespace, redis).await;
        counted_together(&pods).await;
        load(&pods, Duration::from_secs(6)).await.holds("with Redis");
        let keys = format!("fetchr:{}:*", namespace.name());
        let primary = stores::primary_of(&namespace, &keys).await.unwrap();
        let kill = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            namespace.kubectl(&["delete", "pod", primary.name(), "--force", "--grace-period=0"], "").await.unwrap();
        };
        let (seen, ()) = tokio::join!(load(&pods, Duration::from_secs(15)), kill);
        println!("over a failover: {seen:?}");
        assert_eq!(seen.others, 0.0, "all are answered by the application or the limit: {seen:?}");
        // What the dead primary had counted last may be lost, and each pod's share holds meanwhile: a burst of both at most.
        assert!(seen.passed <= 1.15 * RATE * seen.seconds + 3.0 * RATE, "{seen:?}");
        assert!(seen.denied > 0.0 && seen.passed >= 0.6 * RATE * seen.seconds, "{seen:?}");
        counted_together(&pods).await;
        load(&pods, Duration::from_secs(6)).await.holds("with the one that was a replica");
    })
    .await;
}
