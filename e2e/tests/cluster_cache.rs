//! The cache over real pods and a real Redis.
#![allow(clippy::unwrap_used, reason = "a helper that fails has failed its test")]

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e::namespace::{Namespace, Pod};
use e2e::stores;
use e2e::testbed::{application, with_namespace};
use e2e::tools::sibling;
use e2e::wait::eventually;
use futures::future::try_join_all;
use serde_json::{Value, json};

const PORT: u16 = 8080;
const METRICS: u16 = 4621;
const DEADLINE: Duration = Duration::from_secs(60);
/// Each pod is asked by its own address, so the host is no part of the key.
const POLICY: &str = "
apiVersion: fetchr.sh/v1alpha1
kind: FetchrPolicy
metadata: {name: cache}
spec:
  targetRefs: [{kind: FetchrProxy, name: web}]
  rules:
  - name: counted
    matches: [{path: {type: Prefix, value: /count}}]
    cache: {ttl: {default: 10m}, key: {host: Ignore}, tags: {header: xkey}, collapse: {scope: Cluster, wait: 10s}}
";

/// Pods that share a cache, all of them connected. `spec` are fields of their FetchrProxy beside those that all have.
async fn pods(namespace: &Namespace, count: u32, mut redis: Value, spec: Value) -> Vec<Pod> {
    redis["commandTimeout"] = "2s".into();
    let mut all = json!({
        "selector": {"matchLabels": {"app": "web"}},
        "redis": redis,
        "cache": {"shared": {"maxObject": "256Ki"}, "purge": {"maxLag": "4s", "whenCutOff": "Revalidate"}},
    });
    for (field, value) in spec.as_object().unwrap() {
        all[field] = value.clone();
    }
    let proxy = json!({"apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrProxy", "metadata": {"name": "web"}, "spec": all});
    namespace.apply(&proxy.to_string()).await.unwrap();
    namespace.apply(POLICY).await.unwrap();
    namespace.apply(&application("web", count, "fetchr.sh/inject: enabled")).await.unwrap();
    let pods = namespace.ready_pods("app=web", count as usize).await.unwrap();
    connected(&pods).await;
    pods
}

async fn pods_with_one_redis(namespace: &Namespace) -> Vec<Pod> {
    stores::redis(namespace).await.unwrap();
    pods(namespace, 2, json!({"endpoints": ["redis"]}), json!({})).await
}

async fn connected(pods: &[Pod]) {
    eventually("all pods share a cache", DEADLINE, async || {
        for pod in pods {
            let page = pod.get(METRICS, "/metrics").await?;
            for line in ["fetchr_cache_shared_connected 1", "fetchr_cache_cut_off 0"] {
                ensure!(page.text().lines().any(|found| found == line), "{}: no {line:?}", pod.name());
            }
            let answer = pod.get(PORT, "/count/probe").await?;
            ensure!(answer.headers.contains_key("cache-status"), "{}: the policy is not in force", pod.name());
        }
        Ok(())
    })
    .await
    .unwrap();
}

async fn purge(pod: &Pod, namespace: &Namespace, what: Value) -> anyhow::Result<Value> {
    let path = format!("/apis/api.fetchr.sh/v1alpha1/namespaces/{}/sidecars/{}/purge", namespace.name(), pod.name());
    let request = http::Request::post(path).header("content-type", "application/json").body(what.to_string().into_bytes())?;
    // That nobody can be asked is an answer, and by itself the client would ask again for minutes.
    let mut config = namespace.cluster().config().await?;
    config.default_retry = false;
    Ok(kube::Client::try_from(config)?.request(request).await?)
}

/// A purge of all pods by the command line, which fails if it is not complete.
async fn purge_workload(namespace: &Namespace, tag: &str) -> anyhow::Result<Value> {
    let mut command = Command::new(sibling("fetchr")?);
    command.args(["cache", "purge", "--tag", tag, "--workload", "deployment/web", "-n", namespace.name(), "-o", "json"]);
    command.env("KUBECONFIG", namespace.cluster().kubeconfig());
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    ensure!(output.status.success(), "{output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Which pod's application answered, and for which time.
async fn counted(pod: &Pod, path: &str) -> anyhow::Result<(String, u64)> {
    let reply = pod.get(PORT, path).await?;
    let text = reply.text();
    let (host, number) = text.trim().split_once(' ').with_context(|| format!("{}: {text:?}", reply.status))?;
    Ok((host.to_owned(), number.parse()?))
}

#[tokio::test]
async fn pods_share_answers_and_purges_and_one_of_them_fetches() {
    with_namespace(async |namespace| {
        let pods = pods_with_one_redis(&namespace).await;
        let paths = (0..40).map(|index| &pods[index % 2]);
        let answers = try_join_all(paths.map(|pod| counted(pod, "/count/news?ms=1000"))).await.unwrap();
        assert!(answers.windows(2).all(|pair| pair[0] == pair[1]), "one application was asked once: {answers:?}");
        let late = counted(&pods[1], "/count/news?ms=1000").await.unwrap();
        assert_eq!(late, answers[0]);
        let answer = purge(&pods[0], &namespace, json!({"tag": "news"})).await.unwrap();
        let acknowledged = answer["acknowledged"].as_array().unwrap().len();
        assert_eq!(
            (answer["complete"].as_bool(), answer["shared"].as_bool(), acknowledged),
            (Some(true), Some(true), 2),
            "{answer}"
        );
        let anew = counted(&pods[1], "/count/news?ms=1000").await.unwrap();
        assert_ne!(anew, late);
        assert_eq!(counted(&pods[0], "/count/news?ms=1000").await.unwrap(), anew);
        let answer = purge_workload(&namespace, "news").await.unwrap();
        let outcomes: Vec<_> = answer["pods"].as_array().unwrap().iter().map(|pod| pod["outcome"].as_str().unwrap()).collect();
        assert_eq!((answer["complete"].as_bool(), outcomes), (Some(true), vec!["Purged"; 2]), "{answer}");
        assert_eq!(answer["answers"].as_array().unwrap().len(), 1, "one was asked for both: {answer}");
        assert_ne!(counted(&pods[1], "/count/news?ms=1000").await.unwrap(), anew);
    })
    .await;
}

/// Purges by one of two pods, and asks both if it was complete: none may have an answer from before. Returns whether it was.
async fn purge_and_ask(namespace: &Namespace, pods: &[Pod], round: usize) -> bool {
    // What each application has counted so far: an answer from after the purge has counted more.
    let mut floor = BTreeMap::new();
    for pod in pods {
        let (host, number) = counted(pod, &format!("/count/floor-{round}-{}", pod.name())).await.unwrap();
        floor.insert(host, number);
    }
    let answer = purge(&pods[round % pods.len()], namespace, json!({"tag": "news"})).await;
    if !answer.is_ok_and(|answer| answer["complete"].as_bool() == Some(true)) {
        return false;
    }
    for pod in pods {
        let (host, number) = counted(pod, "/count/news").await.unwrap();
        assert!(floor.get(&host).is_none_or(|floor| number > *floor), "round {round}: {host} {number} after {floor:?}");
    }
    true
}

#[tokio::test]
async fn no_stale_answer_after_a_purge_while_redis_is_killed_and_comes_back() {
    with_namespace(async |namespace| {
        let pods = pods_with_one_redis(&namespace).await;
        let store = namespace.ready_pods(stores::REDIS_LABELS, 1).await.unwrap().remove(0);
        let scale = async |replicas: &str| {
            let replicas = format!("--replicas={replicas}");
            namespace.kubectl(&["scale", "deployment/redis", &replicas], "").await.unwrap();
        };
        let (mut complete, mut incomplete, mut since) = (0, 0, 0);
        let (mut is_gone, mut is_back) = (false, false);
        for round in 0..400 {
            match round {
                10 => store.kill("redis").await.unwrap(),
                30 => {
                    scale("0").await;
                    is_gone = true;
                }
                _ => {}
            }
            if !purge_and_ask(&namespace, &pods, round).await {
                incomplete += 1;
                if is_gone && !is_back {
                    scale("1").await;
                    is_back = true;
                }
                continue;
            }
            complete += 1;
            since += usize::from(is_back);
            if since >= 20 {
                break;
            }
        }
        println!("{complete} purges complete, {incomplete} not, {since} after Redis was back");
        assert!(incomplete > 0 && since >= 20, "{complete} complete, {incomplete} not, {since} after that");
        connected(&pods).await;
    })
    .await;
}

/// Takes the primary away for good, in the middle of purges, and goes on until another one has completed enough.
async fn no_stale_answer_over_a_failover(namespace: &Namespace, redis: Value) {
    let pods = pods(namespace, 2, redis, json!({})).await;
    let mut complete = 0;
    for round in 0..10 {
        complete += usize::from(purge_and_ask(namespace, &pods, round).await);
    }
    assert!(complete >= 8, "{complete} of 10 purges complete before the primary is gone");
    let log = format!("fetchr:{}:*:log", namespace.name());
    let primary = stores::primary_of(namespace, &log).await.unwrap();
    namespace.kubectl(&["delete", "pod", primary.name(), "--force", "--grace-period=0"], "").await.unwrap();
    let (mut since, mut incomplete) = (0, 0);
    for round in 10..200 {
        if purge_and_ask(namespace, &pods, round).await {
            since += 1;
        } else {
            incomplete += 1;
        }
        if since >= 20 {
            break;
        }
    }
    println!("{since} purges complete after the primary was gone, {incomplete} not");
    assert!(since >= 20, "{since} purges complete after the primary was gone, {incomplete} not");
    let now = stores::primary_of(namespace, &log).await.unwrap();
    assert_ne!(now.name(), primary.name());
    connected(&pods).await;
}

#[tokio::test]
async fn no_stale_answer_after_a_purge_while_sentinels_promote_a_replica() {
    with_namespace(async |namespace| {
        let redis = stores::sentinels(&namespace).await.unwrap();
        no_stale_answer_over_a_failover(&namespace, redis).await;
    })
    .await;
}

#[tokio::test]
async fn no_stale_answer_after_a_purge_while_a_replica_takes_over_in_a_cluster() {
    with_namespace(async |namespace| {
        let redis = stores::cluster(&namespace).await.unwrap();
        no_stale_answer_over_a_failover(&namespace, redis).await;
    })
    .await;
}

/// Snapshots that a pod has written or read.
async fn snapshots(pod: &Pod, operation: &str) -> anyhow::Result<f64> {
    let series = format!("fetchr_cache_snapshots_total{{operation=\"{operation}\",result=\"done\"}}");
    let page = pod.get(METRICS, "/metrics").await?;
    Ok(page.text().lines().find_map(|line| line.strip_prefix(&series)?.trim().parse().ok()).unwrap_or(0.0))
}

#[tokio::test]
async fn answers_outlive_all_pods_in_s3() {
    with_namespace(async |namespace| {
        let archive = stores::s3(&namespace).await.unwrap();
        stores::redis(&namespace).await.unwrap();
        // Which are too long for Redis.
        let cache = json!({"shared": {"maxObject": "1"}, "purge": {"maxLag": "4s"}, "persistence": {"interval": "1s"}});
        let spec = json!({"archive": archive, "cache": cache});
        let before = pods(&namespace, 1, json!({"endpoints": ["redis"]}), spec).await;
        let answer = counted(&before[0], "/count/news").await.unwrap();
        let written = snapshots(&before[0], "write").await.unwrap();
        eventually("a snapshot holds it", DEADLINE, async || {
            // One may have been under way when it was fetched.
            let now = snapshots(&before[0], "write").await?;
            ensure!(now >= written + 2.0, "{now} written");
            Ok(())
        })
        .await
        .unwrap();
        namespace.kubectl(&["delete", "pod", before[0].name()], "").await.unwrap();
        let after = namespace.ready_pods("app=web", 1).await.unwrap();
        assert_ne!(after[0].name(), before[0].name());
        connected(&after).await;
        eventually("the snapshot is read", DEADLINE, async || {
            ensure!(snapshots(&after[0], "read").await? == 1.0, "it is not");
            Ok(())
        })
        .await
        .unwrap();
        assert_eq!(counted(&after[0], "/count/news").await.unwrap(), answer);
    })
    .await;
}
