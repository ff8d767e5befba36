//! Install, upgrade, uninstall: what works after each, and what stays. Other programs of tests install fetchr again when they
//! find it gone.
#![allow(clippy::unwrap_used, reason = "a helper that fails has failed its test")]

use std::time::Duration;

use anyhow::ensure;
use e2e::cluster::{Cluster, State};
use e2e::faults::upgrade;
use e2e::install;
use e2e::namespace::Namespace;
use e2e::process::output;
use e2e::testbed::{self, application};
use e2e::wait::eventually;

const DEADLINE: Duration = Duration::from_secs(60);
/// The API server makes the APIService for the definitions by itself.
const DEFINITIONS: [&str; 3] = [
    "apiservice.apiregistration.k8s.io/v1alpha1.fetchr.sh",
    "customresourcedefinition.apiextensions.k8s.io/fetchrpolicies.fetchr.sh",
    "customresourcedefinition.apiextensions.k8s.io/fetchrproxies.fetchr.sh",
];
const INJECT: &str = "fetchr.sh/inject: enabled";

#[tokio::test]
async fn chart_is_installed_upgraded_and_uninstalled() {
    let cluster = testbed::cluster().await.unwrap();
    let _lock = State::of_this_machine().unwrap().install_lock().unwrap();
    let build = testbed::build(&cluster).await.unwrap();
    install::discard(&cluster).unwrap();

    install::chart(&cluster, build, &[]).await.unwrap();
    let namespace = Namespace::create(&cluster, "lifecycle", &[]).await.unwrap();
    namespace.apply(&application("before", 1, INJECT)).await.unwrap();
    let before = namespace.ready_pods("app=before", 1).await.unwrap().remove(0);
    assert!(before.has_sidecar());

    install::chart(&cluster, "upgraded", &["log.level=debug"]).await.unwrap();
    namespace.apply(&application("after", 1, INJECT)).await.unwrap();
    assert!(namespace.ready_pods("app=after", 1).await.unwrap()[0].has_sidecar());

    install::remove(&cluster).await.unwrap();
    assert_eq!(before.get(8080, "/").await.unwrap().status, 200, "a pod with a sidecar goes on without an operator");
    namespace.apply(&application("without", 1, INJECT)).await.unwrap();
    assert!(!namespace.ready_pods("app=without", 1).await.unwrap()[0].has_sidecar(), "no webhook is left");
    only_definitions_stay(&cluster).await;
    namespace.delete().await.unwrap();
}

#[tokio::test]
async fn sidecars_of_before_serve_through_an_upgrade_and_its_roll_back() {
    let cluster = testbed::cluster().await.unwrap();
    let _lock = State::of_this_machine().unwrap().install_lock().unwrap();
    install::chart(&cluster, testbed::build(&cluster).await.unwrap(), &[]).await.unwrap();
    let namespace = Namespace::create(&cluster, "upgrade", &[]).await.unwrap();
    println!("{}", upgrade::and_back(&namespace).await.unwrap());
    namespace.delete().await.unwrap();
}

async fn only_definitions_stay(cluster: &Cluster) {
    let kinds = "clusterroles,clusterrolebindings,mutatingwebhookconfigurations,validatingwebhookconfigurations,apiservices,crds,\
        deployments,services,serviceaccounts,roles,rolebindings,networkpolicies,poddisruptionbudgets,secrets,leases";
    eventually("only the definitions stay", DEADLINE, async || {
        let all = kubectl(cluster, &["get", kinds, "-A", "-o", "name"]);
        let ours: Vec<&str> = all.lines().filter(|name| name.contains("fetchr")).collect();
        ensure!(ours == DEFINITIONS, "{ours:?}");
        Ok(())
    })
    .await
    .unwrap();
    let plans = kubectl(cluster, &["get", "configmaps", "-A", "--field-selector", "metadata.name=fetchr-plan", "-o", "name"]);
    assert_eq!(plans, "", "no cold-start plan stays");
}

fn kubectl(cluster: &Cluster, arguments: &[&str]) -> String {
    output(cluster.kubectl().unwrap().args(arguments)).unwrap()
}
