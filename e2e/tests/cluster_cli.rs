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
