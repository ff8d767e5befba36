//! Pods whose application ends: the sidecar neither outlives it nor leaves it too early.
#![allow(clippy::unwrap_used, reason = "a helper that fails has failed its test")]

use std::time::Duration;

use anyhow::{Context, ensure};
use e2e::images;
use e2e::namespace::{Namespace, SIDECAR};
use e2e::testbed::{application, with_namespace};
use e2e::wait::eventually;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;

const DEADLINE: Duration = Duration::from_secs(60);
const LAST_WORDS: u64 = 77;

/// Its outbound requests pass the sidecar.
const PROXY: &str = "
apiVersion: fetchr.sh/v1alpha1
kind: FetchrProxy
metadata: {name: client}
spec:
  selector: {matchLabels: {role: client}}
  interception: {outbound: {ports: [80]}}
";

#[tokio::test]
async fn job_with_a_sidecar_completes_and_the_sidecar_ends_in_order() {
    with_namespace(async |namespace| {
        server(&namespace).await;
        let job = format!(
            "
apiVersion: batch/v1
kind: Job
metadata: {{name: once}}
spec:
  backoffLimit: 0
  template:
    metadata: {{labels: {{role: client}}, annotations: {{fetchr.sh/inject: enabled}}}}
    spec:
      restartPolicy: Never
      containers:
      - {{name: app, image: '{}', imagePullPolicy: Never, command: [fetchr-origin, get, 'http://web/echo']}}
",
            images::ORIGIN
        );
        namespace.apply(&job).await.unwrap();
        let complete = async || {
            let status = namespace.api::<Job>().get("once").await?.status.unwrap_or_default();
            ensure!(status.failed.unwrap_or(0) == 0 && status.succeeded == Some(1), "{status:?}");
            Ok(())
        };
        eventually("the job is complete", DEADLINE, complete).await.unwrap();
        let pods = namespace.api::<Pod>().list(&ListParams::default().labels("job-name=once")).await.unwrap().items;
        let status = pods[0].status.clone().unwrap();
        assert_eq!(status.phase.as_deref(), Some("Succeeded"));
        let sidecar = status.init_container_statuses.unwrap().into_iter().find(|one| one.name == SIDECAR).unwrap();
        assert_eq!(sidecar.state.unwrap().terminated.unwrap().exit_code, 0, "it drained and ended by itself");
    })
    .await;
}

#[tokio::test]
async fn last_words_of_an_application_still_pass_its_sidecar() {
    with_namespace(async |namespace| {
        server(&namespace).await;
        let says = format!("x-request-number: {LAST_WORDS}");
        let hook =
            format!("lifecycle: {{preStop: {{exec: {{command: [fetchr-origin, get, 'http://web/echo', --header, '{says}']}}}}}}");
        let yaml = application("talker", 1, "fetchr.sh/inject: enabled")
            .replacen("labels: {app: talker}\n      annotations", "labels: {app: talker, role: client}\n      annotations", 1)
            .replacen("        ports:", &format!("        {hook}\n        ports:"), 1);
        namespace.apply(&yaml).await.unwrap();
        let pod = namespace.ready_pods("app=talker", 1).await.unwrap().remove(0);
        assert!(pod.has_sidecar());
        namespace.kubectl(&["delete", "deployment/talker", "--wait=false"], "").await.unwrap();
        let web = namespace.pods("app=web").await.unwrap().remove(0);
        let heard = async || {
            let seen = web.get(8080, "/seen").await?.json()?;
            let ranges = seen["ranges"].as_array().context("ranges")?.clone();
            ensure!(ranges.contains(&serde_json::json!([LAST_WORDS, LAST_WORDS])), "the server has seen {seen}");
            Ok(())
        };
        eventually("what preStop sends arrives", DEADLINE, heard).await.unwrap();
    })
    .await;
}

async fn server(namespace: &Namespace) {
    namespace.apply(PROXY).await.unwrap();
    namespace.apply(&application("web", 1, "")).await.unwrap();
    namespace.ready_pods("app=web", 1).await.unwrap();
}
