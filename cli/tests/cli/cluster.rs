//! Commands that ask a cluster, against a real API server without a node.

use e2e::apiserver::ApiServer;
use k8s_openapi::{
    api::core::v1::{Namespace, Pod, ServiceAccount},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DynamicObject, Patch, PatchParams, PostParams},
    core::ObjectMeta,
    discovery::ApiResource,
};
use serde_json::{Value, json};

use crate::support::{Said, command, run};

/// Runs a command against the API server.
async fn asked(server: &ApiServer, args: &[&str]) -> Said {
    let mut command = command(args);
    command.env("KUBECONFIG", server.kubeconfig());
    tokio::task::spawn_blocking(move || run(&mut command)).await.unwrap()
}

async fn apply(client: &Client, namespace: &str, object: Value) {
    let (api_version, kind) = (object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let resource = ApiResource::from_gvk(&kube::core::GroupVersionKind::gvk(group, version, kind));
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
    api.patch(&name, &PatchParams::apply("test").force(), &Patch::Apply(&object)).await.unwrap();
    if object.get("status").is_some() {
        api.patch_status(&name, &PatchParams::apply("test").force(), &Patch::Apply(&object)).await.unwrap();
    }
}

/// A namespace of one test.
async fn namespace(client: &Client, name: &str) {
    let metadata = ObjectMeta { name: Some(name.to_owned()), ..Default::default() };
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces.create(&PostParams::default(), &Namespace { metadata, ..Default::default() }).await.unwrap();
    // No controller manager makes it here, and pods need it.
    apply(client, name, json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}})).await;
    assert_eq!(Api::<ServiceAccount>::namespaced(client.clone(), name).get("default").await.unwrap().name_any(), "default");
}

/// Installs the two resources, as the chart does.
async fn install_resources(client: &Client) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in crds::schema::definitions() {
        let name = definition.crd["metadata"]["name"].as_str().unwrap();
        api.patch(name, &PatchParams::apply("test").force(), &Patch::Apply(&definition.crd)).await.unwrap();
        e2e::wait::eventually("the resource is established", std::time::Duration::from_secs(20), async || {
            let crd = api.get(name).await?;
            let conditions = crd.status.and_then(|status| status.conditions).unwrap_or_default();
            anyhow::ensure!(conditions.iter().any(|c| c.type_ == "Established" && c.status == "True"), "{conditions:?}");
            Ok(())
        })
        .await
        .unwrap();
    }
}

fn finding(said: &Said, check: &str) -> Value {
    let json = said.json();
    let found = json.as_array().unwrap().iter().find(|finding| finding["check"] == check);
    found.unwrap_or_else(|| panic!("no finding {check} in {}", said.stdout)).clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_is_checked_before_and_after_the_resources_are_installed() {
    let server = ApiServer::start().await.unwrap();
    let client = server.client().await.unwrap();

    let before = asked(&server, &["check", "--pre"]).await;
    assert_eq!(before.code, 0, "{before:?}");
    assert!(before.stdout.contains("\u{2713} API server"), "{}", before.stdout);
    assert!(before.stdout.contains("fetchrproxies.fetchr.sh is not there yet"), "{}", before.stdout);

    let not_yet = asked(&server, &["status", "-n", "default"]).await;
    assert_eq!(not_yet.code, 1, "{not_yet:?}");
    assert!(not_yet.stderr.starts_with("error: this cluster has no FetchrProxies"), "{}", not_yet.stderr);

    install_resources(&client).await;
    namespace(&client, "shop").await;
    let after = asked(&server, &["check", "-n", "shop", "-o", "json"]).await;
    assert_eq!(after.code, 1, "{after:?}");
    assert_eq!(finding(&after, "resource")["outcome"], "Ok", "{}", after.stdout);
    for (check, words) in [
        ("operator", "Deployment fetchr-system/fetchr-operator is not there"),
        ("CA bundles", "MutatingWebhookConfiguration fetchr is not there: no pod gets a sidecar"),
        ("injection", "let through without a sidecar: the webhook was not called"),
        ("validation", "let through: the webhook was not called"),
        ("commands", "APIService v1alpha1.api.fetchr.sh is not there"),
    ] {
        let finding = finding(&after, check);
        assert_eq!(finding["outcome"], "Failed", "{finding}");
        assert!(finding["message"].as_str().unwrap().contains(words), "{finding}");
        assert!(!finding["hint"].as_str().unwrap().is_empty(), "{finding}");
    }
    let pods: Api<Pod> = Api::namespaced(client, "shop");
    assert!(pods.get_opt("fetchr-check").await.unwrap().is_none(), "a trial leaves nothing");
}

/// kubectl applies the files of a folder by their names: a namespace before what is in it, a proxy before its pods.
#[tokio::test(flavor = "multi_thread")]
async fn example_is_applied_in_one_go() {
    let server = ApiServer::start().await.unwrap();
    install_resources(&server.client().await.unwrap()).await;
    let cache = tempfile::tempdir().unwrap();
    let mut kubectl = tokio::process::Command::new(e2e::tools::program("kubectl").unwrap());
    kubectl.arg("--kubeconfig").arg(server.kubeconfig()).arg("--cache-dir").arg(cache.path());
    let output = kubectl.args(["apply", "-f", "../examples/cluster/", "-o", "name"]).output().await.unwrap();
    let applied = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{applied}{}", String::from_utf8_lossy(&output.stderr));
    let place = |name: &str| applied.lines().position(|line| line == name).unwrap_or_else(|| panic!("no {name} in {applied}"));
    assert!(place("fetchrproxy.fetchr.sh/web") < place("deployment.apps/web"), "{applied}");
}

#[tokio::test(flavor = "multi_thread")]
async fn webhook_that_nobody_answers_comes_with_the_way_out() {
    let server = ApiServer::start().await.unwrap();
    let client = server.client().await.unwrap();
    install_resources(&client).await;
    namespace(&client, "shop").await;
    namespace(&client, "fetchr-system").await;
    let webhook = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration", "metadata": {"name": "fetchr"},
        "webhooks": [{
            "name": "annotated.inject.fetchr.sh", "admissionReviewVersions": ["v1"], "sideEffects": "None", "timeoutSeconds": 1,
            "clientConfig": {"service": {"name": "fetchr-webhook", "namespace": "fetchr-system", "path": "/inject"}},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
        }],
    });
    let api: Api<k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration> = Api::all(client);
    api.create(&PostParams::default(), &serde_json::from_value(webhook).unwrap()).await.unwrap();
    // The API server reads its webhooks a moment after they are stored.
    let said = e2e::wait::eventually("the trial pod is refused", std::time::Duration::from_secs(20), async || {
        let said = asked(&server, &["check", "-n", "shop", "-o", "json"]).await;
        anyhow::ensure!(finding(&said, "injection")["message"].as_str().unwrap().contains("was refused"), "{}", said.stdout);
        Ok(said)
    })
    .await
    .unwrap();
    let hint = finding(&said, "injection")["hint"].clone();
    assert!(hint.as_str().unwrap().contains("kubectl delete mutatingwebhookconfiguration fetchr"), "{hint}");
    assert_eq!(finding(&said, "CA bundles")["outcome"], "Failed");
    let injected = asked(&server, &["inject", "-f", "examples/cluster/3-app.yaml"]).await;
    assert_eq!((injected.code, injected.stdout.as_str()), (1, ""), "{injected:?}");
    assert!(injected.stderr.contains("--image, --ca-file, --plan-key, --proxy-file"), "{}", injected.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn proxies_pods_and_versions_are_shown_and_rights_respected() {
    let server = ApiServer::start().await.unwrap();
    let client = server.client().await.unwrap();
    install_resources(&client).await;
    for name in ["shop", "fetchr-system"] {
        namespace(&client, name).await;
    }
    let proxy = json!({
        "apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrProxy", "metadata": {"name": "web"}, "spec": {},
        "status": {"pods": {"matched": 2, "injected": 1, "outdated": 0, "programmed": 1},
                   "conditions": [{"type": "Ready", "status": "False", "reason": "SidecarMissing", "message": "1 of 2",
                                   "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
    });
    let stamp = json!({"version": "0.1.0", "proxy": "shop/web", "workload": "Deployment/web"}).to_string();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web-0", "labels": {"fetchr.sh/injected": "true"}, "annotations": {"fetchr.sh/status": stamp}},
        "spec": {"containers": [{"name": "web", "image": "web"}]},
    });
    let template = json!({"metadata": {"labels": {"app": "o"}}, "spec": {"containers": [{"name": "o", "image": "o"}]}});
    let operator = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "fetchr-operator", "labels": {"app.kubernetes.io/version": "0.1.0"}},
        "spec": {"selector": {"matchLabels": {"app": "o"}}, "template": template},
    });
    apply(&client, "shop", proxy).await;
    apply(&client, "shop", pod).await;
    apply(&client, "fetchr-system", operator).await;

    let status = asked(&server, &["status", "-n", "shop"]).await;
    assert_eq!(status.code, 0, "{status:?}");
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let lines: Vec<Vec<String>> = status.stdout.lines().map(words).collect();
    assert_eq!(lines[2][..9], ["shop", "web", "Init", "False", "SidecarMissing", "2", "1", "0", "1"], "{}", status.stdout);
    assert_eq!(lines[6], ["shop", "web-0", "shop/web", "0.1.0", "unknown", "unknown"], "{}", status.stdout);
    assert!(status.stderr.starts_with("warning: what sidecars say is not known"), "{}", status.stderr);

    let version = asked(&server, &["version", "-o", "json"]).await;
    assert_eq!(version.code, 0, "{version:?}");
    assert_eq!((&version.json()["operator"], &version.json()["sidecars"]), (&json!("0.1.0"), &json!({"0.1.0": 1})));

    let stranger = asked(&server, &["status", "-n", "shop", "--as", "stranger"]).await;
    assert_eq!(stranger.code, 1, "{stranger:?}");
    assert!(stranger.stderr.contains("User \"stranger\" cannot list resource \"fetchrproxies\""), "{}", stranger.stderr);
    let rights = finding(&asked(&server, &["check", "-n", "shop", "--as", "stranger", "-o", "json"]).await, "your rights");
    assert_eq!(rights["outcome"], "Warning", "{rights}");
    assert!(rights["message"].as_str().unwrap().contains("create fetchrpolicies.fetchr.sh in shop"), "{rights}");

    let pod = asked(&server, &["explain", "GET", "/", "--pod", "web-0", "-n", "shop"]).await;
    assert_eq!(pod.code, 1, "{pod:?}");
    assert!(pod.stderr.starts_with("error: sidecar of shop/web-0: "), "{}", pod.stderr);
    let cache = asked(&server, &["cache", "stats", "--pod", "web-0", "-n", "shop"]).await;
    assert_eq!(cache.code, 1, "{cache:?}");
    assert!(cache.stderr.contains("is fetchr installed, and its API api.fetchr.sh?"), "{}", cache.stderr);
}
