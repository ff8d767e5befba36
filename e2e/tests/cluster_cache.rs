//! The cache over real pods and a real Redis.
#![allow(clippy::unwrap_used, reason = "a helper that fails has failed its test")]

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use e2e::namespace::{Namespace, Pod};
use e2e::testbed::{application, redis, with_namespace};
use e2e::tools::sibling;
use e2e::wait::eventually;
use futures::future::try_join_all;
use serde_json::{Value, json};

const PORT: u16 = 8080;
const METRICS: u16 = 4621;
const DEADLINE: Duration = Duration::from_secs(60);
/// Each pod is asked by its own address, so the host is no part of the key.
const DOCUMENTS: &str = "
apiVersion: fetchr.sh/v1alpha1
kind: FetchrProxy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  redis: {endpoints: [redis], commandTimeout: 2s}
  cache:
    shared: {maxObject: 256Ki}
    purge: {maxLag: 4s, whenCutOff: Revalidate}
---
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

/// Pods that share a cache, all of them connected.
async fn pods(namespace: &Namespace, count: u32) -> Vec<Pod> {
    namespace.apply(&redis()).await.unwrap();
    namespace.ready_pods("app=redis", 1).await.unwrap();
    namespace.apply(DOCUMENTS).await.unwrap();
    namespace.apply(&application("web", count, "fetchr.sh/inject: enabled")).await.unwrap();
    let pods = namespace.ready_pods("app=web", count as usize).await.unwrap();
    connected(&pods).await;
    pods
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
    Ok(namespace.client().request(request).await?)
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
        let pods = pods(&namespace, 2).await;
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

#[tokio::test]
async fn no_stale_answer_after_a_purge_while_redis_is_killed_and_comes_back() {
    with_namespace(async |namespace| {
        let pods = pods(&namespace, 2).await;
        let store = namespace.ready_pods("app=redis", 1).await.unwrap().remove(0);
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
            // What each application has counted so far: an answer from after the purge has counted more.
            let mut floor = BTreeMap::new();
            for pod in &pods {
                let (host, number) = counted(pod, &format!("/count/floor-{round}-{}", pod.name())).await.unwrap();
                floor.insert(host, number);
            }
            let answer = purge(&pods[round % 2], &namespace, json!({"tag": "news"})).await;
            if !answer.is_ok_and(|answer| answer["complete"].as_bool() == Some(true)) {
                incomplete += 1;
                if is_gone && !is_back {
                    scale("1").await;
                    is_back = true;
                }
                continue;
            }
            complete += 1;
            for pod in &pods {
                let (host, number) = counted(pod, "/count/news").await.unwrap();
                assert!(floor.get(&host).is_none_or(|floor| number > *floor), "round {round}: {host} {number} after {floor:?}");
            }
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
