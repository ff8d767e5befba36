//! No request fails while something is replaced under load.
#![allow(clippy::unwrap_used, reason = "a helper that fails has failed its test")]

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::ensure;
use e2e::install;
use e2e::namespace::{Namespace, Pod};
use e2e::origin::load::Report;
use e2e::process::output;
use e2e::testbed::{application, with_namespace};
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

/// Sends load in rounds until `change` is done, and some more.
async fn all_answered_during(client: &Pod, change: impl Future<Output = ()>) {
    let load = ["fetchr-origin", "load", "--url", "http://web/bytes/100", "--rate", "50", "--duration", "2"];
    let round = async || {
        let report: Report = serde_json::from_str(&client.exec("app", &load).await.unwrap()).unwrap();
        assert_eq!((report.ok, &report.failed), (report.sent, &BTreeMap::new()), "{report:?}");
        report.ok
    };
    tokio::pin!(change);
    let (mut done, mut answered) = (false, 0);
    while !done {
        let rounds = round();
        tokio::pin!(rounds);
        answered += tokio::select! {
            () = &mut change => { done = true; rounds.await }
            ok = &mut rounds => ok,
        };
    }
    println!("{} requests, all answered", answered + round().await);
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
