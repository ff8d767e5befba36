//! The command line against a cluster with fetchr.
#![allow(clippy::unwrap_used, reason = "a helper that fails has failed its test")]

use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use e2e::namespace::{Namespace, Pod};
use e2e::testbed::{application, with_namespace};
use e2e::tools::sibling;
use e2e::wait::eventually;
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(20);
const PORT: u16 = 8080;
const POLICY: &str = "\
apiVersion: fetchr.sh/v1alpha1
kind: FetchrPolicy
metadata: {name: fields}
spec:
  targetRefs: [{kind: Deployment, name: web}]
  rules:
  - name: echo
    matches: [{path: {type: Prefix, value: /echo}}]
    headers: {response: {set: [{name: x-policy, value: cli}]}}
";

/// Each pod is asked by its own address, so the host is no part of the key.
const CACHING: &str = "\
apiVersion: fetchr.sh/v1alpha1
kind: FetchrPolicy
metadata: {name: cache}
spec:
  targetRefs: [{kind: Deployment, name: web}]
  rules:
  - name: counted
    matches: [{path: {type: Prefix, value: /count}}]
    cache: {ttl: {default: 10m}, key: {host: Ignore}}
";

/// `fetchr` in a namespace of the cluster; its error if the exit code is not 0.
async fn fetchr(namespace: &Namespace, args: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(sibling("fetchr")?);
    command.args(args).args(["-n", namespace.name()]).env("KUBECONFIG", namespace.cluster().kubeconfig());
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    // A check that finds something wrong says what on standard output.
    ensure!(output.status.success(), "{args:?} ends with {}: {}{}", output.status, text(&output.stdout), text(&output.stderr));
    Ok(text(&output.stdout))
}

async fn json(namespace: &Namespace, args: &[&str]) -> anyhow::Result<Value> {
    let args: Vec<&str> = args.iter().copied().chain(["-o", "json"]).collect();
    Ok(serde_json::from_str(&fetchr(namespace, &args).await?)?)
}

async fn injected(namespace: &Namespace) -> Pod {
    namespace.apply(&application("web", 1, "fetchr.sh/inject: enabled")).await.unwrap();
    namespace.ready_pods("app=web", 1).await.unwrap().remove(0)
}

#[tokio::test]
async fn sound_installation_passes_the_check() {
    with_namespace(async |namespace| {
        injected(&namespace).await;
        // Other tests change pods of theirs at the same time: those are no fault of the installation.
        eventually("nothing is wrong", DEADLINE, async || fetchr(&namespace, &["check"]).await).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn pod_is_shown_in_sync_with_its_version() {
    with_namespace(async |namespace| {
        let pod = injected(&namespace).await;
        eventually("the sidecar is in sync", DEADLINE, async || {
            let status = json(&namespace, &["status"]).await?;
            let shown = &status["pods"][0];
            ensure!(
                shown["name"] == pod.name() && shown["sidecar"]["inSync"] == true && shown["sidecar"]["ready"] == true,
                "{status}"
            );
            let versions = json(&namespace, &["version"]).await?;
            ensure!(
                versions["operator"] == versions["client"] && versions["operator"] == shown["version"],
                "{versions} {status}"
            );
            Ok(())
        })
        .await
        .unwrap();
    })
    .await;
}

#[tokio::test]
async fn sidecar_of_a_pod_explains_a_request() {
    with_namespace(async |namespace| {
        let pod = injected(&namespace).await;
        namespace.apply(POLICY).await.unwrap();
        eventually("the section applies", DEADLINE, async || {
            let table = fetchr(&namespace, &["explain", "GET", "http://web/echo", "--pod", pod.name()]).await?;
            let policy = format!("{}/fields", namespace.name());
            let line = table.lines().find(|line| line.starts_with("headers "));
            ensure!(line.is_some_and(|line| line.contains(&policy)), "{table}");
            Ok(())
        })
        .await
        .unwrap();
    })
    .await;
}

#[tokio::test]
async fn caches_of_all_pods_of_a_workload_are_asked_and_purged() {
    with_namespace(async |namespace| {
        namespace.apply(CACHING).await.unwrap();
        namespace.apply(&application("web", 2, "fetchr.sh/inject: enabled")).await.unwrap();
        let mut pods = namespace.ready_pods("app=web", 2).await.unwrap();
        pods.sort_by(|a, b| a.name().cmp(b.name()));
        for pod in &pods {
            eventually("the policy is in force", DEADLINE, async || {
                let answer = pod.get(PORT, "/count/all").await?;
                ensure!(answer.headers.contains_key("cache-status"), "{}: {:?}", pod.name(), answer.headers);
                Ok(())
            })
            .await
            .unwrap();
        }
        pods[1].get(PORT, "/count/one").await.unwrap();
        let of_web = async |args: &[&str]| json(&namespace, &[args, &["--workload", "deployment/web"]].concat()).await;
        let named = |objects: &Value| -> Vec<Value> {
            objects.as_array().into_iter().flatten().map(|object| object["pod"].clone()).collect()
        };

        let stats = of_web(&["cache", "stats"]).await.unwrap();
        assert_eq!((&stats["total"]["objects"], stats["failed"].as_array().unwrap().len()), (&3.into(), 0), "{stats}");
        assert_eq!(named(&stats["pods"]), [pods[0].name(), pods[1].name()], "{stats}");
        let one = json(&namespace, &["cache", "stats", "--pod", pods[0].name()]).await.unwrap();
        assert_eq!(one["objects"], 1, "{one}");
        let listed = of_web(&["cache", "ls"]).await.unwrap();
        assert_eq!(named(&listed["objects"]), [pods[0].name(), pods[1].name(), pods[1].name()], "{listed}");
        let got = of_web(&["cache", "get", "http://web/count/one"]).await.unwrap();
        assert_eq!(
            (named(&got["pods"]), named(&got["nothing"])),
            (vec![pods[1].name().into()], vec![pods[0].name().into()]),
            "{got}"
        );
        let outcomes = async || {
            let explained = of_web(&["cache", "explain", "http://web/count/one"]).await.unwrap();
            explained["pods"].as_array().unwrap().iter().map(|pod| pod["outcome"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(outcomes().await, ["Miss", "Hit"]);

        let purged = of_web(&["cache", "purge", "--all"]).await.unwrap();
        assert_eq!((&purged["complete"], named(&purged["pods"]).len()), (&true.into(), 2), "{purged}");
        assert_eq!(named(&purged["answers"]).len(), 2, "without Redis each was asked: {purged}");
        assert_eq!(outcomes().await, ["Miss", "Miss"]);

        let nobody = fetchr(&namespace, &["cache", "stats", "--pod", "nope"]).await.unwrap_err().to_string();
        assert!(nobody.contains("no sidecar of this pod is connected"), "{nobody}");
        let stranger = fetchr(&namespace, &["cache", "stats", "--pod", pods[0].name(), "--as", "stranger"]).await;
        let stranger = stranger.unwrap_err().to_string();
        assert!(stranger.contains("cannot get resource") && stranger.contains("the right to get sidecars/cache"), "{stranger}");
    })
    .await;
}

#[tokio::test]
async fn manifest_injected_by_hand_runs_like_one_injected_by_the_webhook() {
    with_namespace(async |namespace| {
        let by_webhook = injected(&namespace).await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("app.yaml");
        std::fs::write(&file, application("hand", 1, "")).unwrap();
        let manifest = fetchr(&namespace, &["inject", "-f", file.to_str().unwrap()]).await.unwrap();
        namespace.apply(&manifest).await.unwrap();
        let by_hand = namespace.ready_pods("app=hand", 1).await.unwrap().remove(0);
        let sidecar = |pod: &Pod| {
            let spec = pod.object().spec.clone().unwrap_or_default();
            spec.init_containers
                .unwrap_or_default()
                .into_iter()
                .map(|container| (container.name, container.image))
                .collect::<Vec<_>>()
        };
        assert!(by_hand.has_sidecar());
        assert_eq!(sidecar(&by_hand), sidecar(&by_webhook));
    })
    .await;
}
