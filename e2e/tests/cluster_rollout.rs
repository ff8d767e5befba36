//! No request fails while something is replaced under load.
#![allow(clippy::unwrap_used, reason = "a helper that fails has failed its test")]

use std::time::Duration;

use anyhow::ensure;
use e2e::faults::rolls;
use e2e::install;
use e2e::namespace::{Namespace, Pod};
use e2e::process::output;
use e2e::testbed::{answered_during, application, with_namespace};
use e2e::wait::eventually;

const INJECT: &str = "fetchr.sh/inject: enabled";
const ROLLED: Duration = Duration::from_secs(90);

#[tokio::test]
async fn no_request_fails_while_the_application_rolls() {
    with_namespace(async |namespace| {
        let client = client(&namespace).await;
        namespace.apply(&application("web", 2, INJECT)).await.unwrap();
        let old = namespace.ready_pods("app=web", 2).await.unwrap();
        let roll = async {
            namespace.kubectl(&["rollout", "restart", "deployment/web"], "").await.unwrap();
            eventually("the old pods are gone", ROLLED, async || {
                for pod in &old {
                    ensure!(pod.refreshed().await.is_err(), "{} is there", pod.name());
                }
                Ok(())
            })
            .await
            .unwrap();
        };
        all_answered_during(&client, roll).await;
    })
    .await;
}

#[tokio::test]
async fn no_stream_tunnel_or_upload_is_cut_while_the_application_rolls() {
    with_namespace(async |namespace| {
        println!("{}", rolls::application_rolls(&namespace, 1, 2, Duration::from_secs(5)).await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn no_request_fails_and_no_pod_is_refused_while_the_operator_rolls() {
    with_namespace(async |namespace| {
        let client = client(&namespace).await;
        namespace.apply(&application("web", 2, INJECT)).await.unwrap();
        namespace.ready_pods("app=web", 2).await.unwrap();
        let roll = async {
            operator(&namespace, &["rollout", "restart"]).await;
            namespace.apply(&application("born-meanwhile", 1, INJECT)).await.unwrap();
            assert!(namespace.ready_pods("app=born-meanwhile", 1).await.unwrap()[0].has_sidecar());
            operator(&namespace, &["rollout", "status", "--timeout=90s"]).await;
        };
        all_answered_during(&client, roll).await;
    })
    .await;
}

async fn client(namespace: &Namespace) -> Pod {
    namespace.apply(&application("client", 1, "")).await.unwrap();
    namespace.ready_pods("app=client", 1).await.unwrap().remove(0)
}

async fn all_answered_during(client: &Pod, change: impl Future<Output = ()>) {
    let (answered, ()) = answered_during(client, change).await.unwrap();
    println!("{answered} requests, all answered");
}

async fn operator(namespace: &Namespace, command: &[&str]) {
    let mut kubectl = namespace.cluster().kubectl().unwrap();
    kubectl
        .args(["--namespace", install::NAMESPACE])
        .args(&command[..2])
        .arg(format!("deployment/{}", install::OPERATOR))
        .args(&command[2..]);
    tokio::task::spawn_blocking(move || output(&mut kubectl)).await.unwrap().unwrap();
}
