//! Who gets a sidecar.
#![allow(clippy::unwrap_used, reason = "a helper that fails has failed its test")]

use e2e::namespace::{Namespace, Pod};
use e2e::testbed::{application, with_labelled_namespace, with_namespace};
use kube::ResourceExt;

const PORT: u16 = 8080;

async fn run(namespace: &Namespace, annotations: &str) -> Pod {
    namespace.apply(&application("web", 1, annotations)).await.unwrap();
    namespace.ready_pods("app=web", 1).await.unwrap().remove(0)
}

fn stamp(pod: &Pod) -> serde_json::Value {
    let stamp = pod.object().annotations().get("fetchr.sh/status").unwrap();
    serde_json::from_str(stamp).unwrap()
}

#[tokio::test]
async fn annotated_pod_gets_a_sidecar_that_its_traffic_passes() {
    with_namespace(async |namespace| {
        let pod = run(&namespace, "fetchr.sh/inject: enabled").await;
        assert!(pod.has_sidecar());
        assert_eq!(pod.object().labels()["fetchr.sh/injected"], "true");
        let reply = pod.get(PORT, "/echo").await.unwrap();
        assert!(reply.json().unwrap()["headers"]["via"].is_array(), "no trace of the sidecar: {}", reply.text());
    })
    .await;
}

#[tokio::test]
async fn pod_that_did_not_ask_has_none() {
    with_namespace(async |namespace| {
        let pod = run(&namespace, "").await;
        assert!(!pod.has_sidecar());
        assert!(!pod.object().annotations().contains_key("fetchr.sh/status"));
        let reply = pod.get(PORT, "/echo").await.unwrap();
        assert!(reply.json().unwrap()["headers"]["via"].is_null(), "{}", reply.text());
    })
    .await;
}

#[tokio::test]
async fn pod_may_opt_out_of_an_enabled_namespace() {
    with_labelled_namespace(&[("fetchr.sh/inject", "enabled")], async |namespace| {
        let pod = run(&namespace, "fetchr.sh/inject: disabled").await;
        assert!(!pod.has_sidecar());
        assert_eq!(stamp(&pod)["skipped"]["reason"], "OptedOut", "{}", stamp(&pod));
    })
    .await;
}

#[tokio::test]
async fn pod_may_not_opt_out_where_injection_is_required() {
    with_labelled_namespace(&[("fetchr.sh/inject", "required")], async |namespace| {
        let pod = run(&namespace, "fetchr.sh/inject: disabled").await;
        assert!(pod.has_sidecar());
    })
    .await;
}
