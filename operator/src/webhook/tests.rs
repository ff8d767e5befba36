#![expect(clippy::needless_pass_by_value, reason = "JSON is written in place")]

use std::collections::{BTreeMap, HashMap};

use axum::{body::Bytes, http::Request};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use crds::FetchrProxy;
use futures::{FutureExt as _, future::BoxFuture};
use http_body_util::Full;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::*;
use crate::{
    certs::{Installer, server_config},
    https::testing::{TestServer, ca, installer, renew},
    inject::Workload,
};

/// A cluster in a struct; as an index it may know less than as an API server.
#[derive(Clone, Default)]
struct Fixed {
    namespaces: HashMap<String, BTreeMap<String, String>>,
    proxies: HashMap<String, Vec<Arc<FetchrProxy>>>,
    jobs: HashMap<String, Workload>,
    /// Answers never.
    hangs: bool,
}

impl Fixed {
    fn namespace(mut self, name: &str, inject: &str) -> Self {
        self.namespaces.insert(name.to_owned(), [("fetchr.sh/inject".to_owned(), inject.to_owned())].into());
        self
    }

    fn proxy(mut self, namespace: &str, name: &str, spec: Value) -> Self {
        let proxy = json!({"apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrProxy",
            "metadata": {"namespace": namespace, "name": name}, "spec": spec});
        let proxy = serde_json::from_value(proxy).unwrap();
        self.proxies.entry(namespace.to_owned()).or_default().push(Arc::new(proxy));
        self
    }
}

impl Cluster for Fixed {
    fn namespace_labels(&self, namespace: &str) -> Option<BTreeMap<String, String>> {
        self.namespaces.get(namespace).cloned()
    }

    fn proxies(&self, namespace: &str) -> Vec<Arc<FetchrProxy>> {
        self.proxies.get(namespace).cloned().unwrap_or_default()
    }
}

impl Fallback for Fixed {
    fn namespace_labels<'a>(&'a self, namespace: &'a str) -> BoxFuture<'a, Result<BTreeMap<String, String>, LookupError>> {
        async move {
            if self.hangs {
                std::future::pending::<()>().await;
            }
            let missing = || LookupError { what: format!("namespace {namespace}"), reason: "not found".to_owned() };
            Cluster::namespace_labels(self, namespace).ok_or_else(missing)
        }
        .boxed()
    }

    fn proxies<'a>(&'a self, namespace: &'a str) -> BoxFuture<'a, Result<Vec<Arc<FetchrProxy>>, LookupError>> {
        async move { Ok(Cluster::proxies(self, namespace)) }.boxed()
    }

    fn controller_of_job<'a>(&'a self, _: &'a str, job: &'a str) -> BoxFuture<'a, Result<Option<Workload>, LookupError>> {
        async move { Ok(self.jobs.get(job).cloned()) }.boxed()
    }
}

struct Fixture {
    installer: Installer,
    webhook: Arc<Webhook>,
    server: TestServer,
}

impl Fixture {
    async fn start(index: Fixed, api_server: Fixed) -> Self {
        let injector = Injector {
            image: "fetchr/sidecar:0.1.0".to_owned(),
            image_pull_policy: "IfNotPresent".to_owned(),
            operator_address: "fetchr-streams.fetchr-system.svc:4631".to_owned(),
            version: "0.1.0".to_owned(),
        };
        let lookup =
            Lookup { cluster: Arc::new(index), fallback: Arc::new(api_server), operator_namespace: "fetchr-system".to_owned() };
        let metrics = Metrics::register(&mut Registry::default());
        let installer = installer();
        let (certs, workers) = (installer.certs(), Workers::default());
        let webhook = Arc::new(Webhook { lookup, injector, certs, workers, metrics });
        let (_, tls) = watch::channel(Arc::new(server_config(installer.certs(), &https::PROTOCOLS)));
        Self { server: TestServer::start(router(webhook.clone()), tls).await, webhook, installer }
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> (StatusCode, Bytes) {
        let response = self.server.send(&ca(&self.installer), None, request).await.unwrap();
        (response.status(), response.into_body())
    }

    /// The `response` of the review.
    async fn review(&self, path: &str, request: Value) -> Value {
        let (status, body) = self.send(post_json(path, &review_of(request))).await;
        assert_eq!(status, StatusCode::OK, "{body:?}");
        let review: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(review["apiVersion"], "admission.k8s.io/v1");
        assert_eq!(review["response"]["uid"], "u-1");
        review["response"].clone()
    }

    /// The pod as the API server would have it after the webhook's patch.
    async fn injected(&self, namespace: &str, mut pod: Value) -> Value {
        let response = self.review("/inject", pod_request(namespace, &pod)).await;
        assert_eq!(response["allowed"], true, "{response}");
        if let Some(patch) = response["patch"].as_str() {
            assert_eq!(response["patchType"], "JSONPatch");
            let patch: json_patch::Patch = serde_json::from_slice(&STANDARD.decode(patch).unwrap()).unwrap();
            json_patch::patch(&mut pod, &patch).unwrap();
        }
        pod
    }

    async fn stamp(&self, namespace: &str, pod: Value) -> Value {
        let pod = self.injected(namespace, pod).await;
        let stamp = pod["metadata"]["annotations"]["fetchr.sh/status"].as_str().unwrap_or("null");
        serde_json::from_str(stamp).unwrap()
    }
}

fn post_json(path: &str, body: &Value) -> Request<Full<Bytes>> {
    let request = Request::post(path).header("content-type", "application/json");
    request.body(Full::new(serde_json::to_vec(body).unwrap().into())).unwrap()
}

fn review_of(request: Value) -> Value {
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request})
}

fn request(group: &str, kind: &str, namespace: &str, object: &Value) -> Value {
    let version = if group.is_empty() { "v1" } else { "v1alpha1" };
    json!({"uid": "u-1", "operation": "CREATE", "namespace": namespace, "name": object["metadata"]["name"].as_str().unwrap_or(""),
        "kind": {"group": group, "version": version, "kind": kind},
        "resource": {"group": group, "version": version, "resource": kind.to_lowercase()},
        "userInfo": {"username": "alice"}, "object": object, "dryRun": true})
}

fn pod_request(namespace: &str, pod: &Value) -> Value {
    request("", "Pod", namespace, pod)
}

fn pod() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "web-6c9f-", "labels": {"app": "web"},
        "annotations": {"fetchr.sh/inject": "enabled"}},
        "spec": {"containers": [{"name": "app", "image": "app", "ports": [{"containerPort": 8080}]}]}})
}

fn shop() -> Fixed {
    Fixed::default().namespace("shop", "").proxy("shop", "web", json!({"selector": {"matchLabels": {"app": "web"}}})).proxy(
        "fetchr-system",
        "default",
        json!({}),
    )
}

#[tokio::test]
async fn annotated_pod_gets_a_sidecar_and_a_second_pass_changes_nothing() {
    let fixture = Fixture::start(shop(), shop()).await;
    let once = fixture.injected("shop", pod()).await;
    assert_eq!(once["spec"]["initContainers"][1]["name"], "fetchr-proxy");
    let trusted = once["spec"]["initContainers"][1]["env"].as_array().unwrap();
    let bundle = trusted.iter().find(|env| env["name"] == "FETCHR_CA_BUNDLE").unwrap();
    assert_eq!(bundle["value"], json!(ca(&fixture.installer)));
    assert_eq!(fixture.injected("shop", once.clone()).await, once);
}

#[tokio::test]
async fn field_of_a_newer_api_survives_where_it_was() {
    let fixture = Fixture::start(shop(), shop()).await;
    let mut newer = pod();
    newer["spec"]["initContainers"] = json!([{"name": "setup", "image": "setup", "fromTheFuture": {"x": [1]}}]);
    newer["spec"]["fromTheFuture"] = json!(true);
    let result = fixture.injected("shop", newer.clone()).await;
    assert_eq!(result["spec"]["fromTheFuture"], true);
    assert_eq!(result["spec"]["initContainers"][2], newer["spec"]["initContainers"][0]);
    assert_eq!(result["spec"]["initContainers"][0].get("fromTheFuture"), None);
}

#[tokio::test]
async fn pod_without_the_annotation_is_left_alone() {
    let fixture = Fixture::start(shop(), shop()).await;
    let mut plain = pod();
    plain["metadata"]["annotations"] = json!({});
    assert_eq!(fixture.injected("shop", plain.clone()).await, plain);
    assert_eq!(fixture.injected("kube-system", pod()).await, pod(), "whatever the webhook configuration says");
    assert_eq!(fixture.injected("fetchr-system", pod()).await, pod());
}

#[tokio::test]
async fn proxy_comes_from_annotation_then_selector_then_platform() {
    let fixture = Fixture::start(shop().proxy("shop", "other", json!({"selector": {"matchLabels": {"x": "y"}}})), shop()).await;
    assert_eq!(fixture.stamp("shop", pod()).await["proxy"], "shop/web");
    let mut picky = pod();
    picky["metadata"]["annotations"]["fetchr.sh/proxy"] = json!("other");
    assert_eq!(fixture.stamp("shop", picky).await["proxy"], "shop/other");
    let mut unselected = pod();
    unselected["metadata"]["labels"]["app"] = json!("api");
    assert_eq!(fixture.stamp("shop", unselected).await["proxy"], "fetchr-system/default");
}

#[tokio::test]
async fn proxy_that_the_index_has_not_seen_yet_is_found() {
    let fixture = Fixture::start(Fixed::default(), shop()).await;
    assert_eq!(fixture.stamp("shop", pod()).await["proxy"], "shop/web");
}

#[tokio::test]
async fn label_that_the_index_has_not_seen_yet_counts() {
    let mut plain = pod();
    plain["metadata"]["annotations"] = json!({});
    let fixture = Fixture::start(shop(), shop().namespace("shop", "enabled")).await;
    assert_eq!(fixture.stamp("shop", plain.clone()).await["proxy"], "shop/web");
    plain["metadata"]["annotations"]["fetchr.sh/inject"] = json!("disabled");
    let fixture = Fixture::start(shop(), shop().namespace("shop", "required")).await;
    assert_eq!(fixture.stamp("shop", plain).await["proxy"], "shop/web");
}

#[tokio::test]
async fn proxy_that_does_not_exist_is_refused_by_name() {
    let fixture = Fixture::start(shop(), shop()).await;
    let mut picky = pod();
    picky["metadata"]["annotations"]["fetchr.sh/proxy"] = json!("nope");
    let response = fixture.review("/inject", pod_request("shop", &picky)).await;
    assert_eq!(response["allowed"], false);
    assert_eq!(
        response["status"]["message"],
        "no sidecar can be injected (ProxyMissing): the annotation fetchr.sh/proxy names \"nope\", and there is no such \
         FetchrProxy in the pod's namespace"
    );
    assert_eq!(response["status"]["code"], 403);
}

#[tokio::test]
async fn job_of_a_cron_job_counts_as_the_cron_job() {
    let mut api_server = shop();
    api_server.jobs.insert("import-28412345".to_owned(), Workload::new("CronJob", "import"));
    let fixture = Fixture::start(shop(), api_server).await;
    let mut owned = pod();
    owned["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "batch/v1", "kind": "Job", "name": "import-28412345", "uid": "1", "controller": true}]);
    assert_eq!(fixture.stamp("shop", owned.clone()).await["workload"], "CronJob/import");
    owned["metadata"]["ownerReferences"][0]["name"] = json!("once");
    assert_eq!(fixture.stamp("shop", owned).await["workload"], "Job/once");
}

#[tokio::test]
async fn skipped_pod_is_created_with_the_reason() {
    let labelled = || shop().namespace("shop", "enabled");
    let fixture = Fixture::start(labelled(), labelled()).await;
    let mut declining = pod();
    declining["metadata"]["annotations"]["fetchr.sh/inject"] = json!("disabled");
    assert_eq!(fixture.stamp("shop", declining).await["skipped"]["reason"], "OptedOut");
}

#[tokio::test]
async fn nothing_is_asked_about_the_job_of_a_pod_that_opted_out() {
    let mut labelled = shop().namespace("shop", "enabled");
    labelled.jobs.insert("import-28412345".to_owned(), Workload::new("CronJob", "import"));
    let fixture = Fixture::start(labelled.clone(), labelled).await;
    let mut declining = pod();
    declining["metadata"]["annotations"]["fetchr.sh/inject"] = json!("disabled");
    declining["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "batch/v1", "kind": "Job", "name": "import-28412345", "uid": "1", "controller": true}]);
    assert_eq!(fixture.stamp("shop", declining).await["workload"], "Job/import-28412345");
}

#[tokio::test]
async fn api_server_that_does_not_answer_is_named() {
    let fixture = Fixture::start(Fixed::default(), Fixed { hangs: true, ..Fixed::default() }).await;
    tokio::time::pause();
    let request = serde_json::from_value(pod_request("shop", &pod())).unwrap();
    let metrics = &fixture.webhook.metrics;
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, "application/json".parse().unwrap())]);
    let body = serde_json::to_vec(&review_of(request)).unwrap();
    // Of its 4 s, three went by while the body came.
    let until = Deadline(Instant::now() + Duration::from_secs(1));
    let decide = async |request| mutate::decide(&fixture.webhook, request).await;
    let answer = answer(metrics, "inject", until, &headers, &body, decide).await;
    assert!(Instant::now() < until.0 + Duration::from_millis(50));
    let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    let review: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(review["response"]["allowed"], false);
    assert_eq!(review["response"]["status"]["code"], 504);
}

#[tokio::test]
async fn unknown_namespace_is_refused_with_a_hint_to_try_again() {
    let fixture = Fixture::start(Fixed::default(), Fixed::default()).await;
    let response = fixture.review("/inject", pod_request("shop", &pod())).await;
    assert_eq!(response["status"]["code"], 503);
    let expected = "fetchr could not read namespace shop from the API server (not found); try again";
    assert_eq!(response["status"]["message"], expected);
}

#[tokio::test]
async fn only_posts_of_json_reviews_are_read() {
    let fixture = Fixture::start(shop(), shop()).await;
    let empty = || Full::new(Bytes::new());
    let get = Request::get("/inject").body(empty()).unwrap();
    assert_eq!(fixture.send(get).await.0, StatusCode::METHOD_NOT_ALLOWED);
    let text = Request::post("/inject").header("content-type", "text/plain").body(empty()).unwrap();
    assert_eq!(fixture.send(text).await.0, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    for wrong in [json!({}), json!([]), json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"})] {
        assert_eq!(fixture.send(post_json("/inject", &wrong)).await.0, StatusCode::BAD_REQUEST, "{wrong}");
    }
    let mut old = review_of(pod_request("shop", &pod()));
    old["apiVersion"] = json!("admission.k8s.io/v1beta1");
    assert_eq!(fixture.send(post_json("/inject", &old)).await.0, StatusCode::BAD_REQUEST);
    let huge = json!({"padding": "x".repeat(MAX_BODY)});
    assert_eq!(fixture.send(post_json("/inject", &huge)).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(fixture.send(post_json("/other", &json!({}))).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn new_certificate_is_served_without_a_restart() {
    let fixture = Fixture::start(shop(), shop()).await;
    let old = ca(&fixture.installer);
    renew(&fixture.installer);
    let get = || Request::get("/inject").body(Full::new(Bytes::new())).unwrap();
    assert!(fixture.server.send(&old, None, get()).await.is_err(), "the old CA did not sign the new leaf");
    assert_eq!(fixture.send(get()).await.0, StatusCode::METHOD_NOT_ALLOWED);
}

fn policy(namespace: &str, spec: &Value) -> Value {
    let object = json!({"apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrPolicy",
        "metadata": {"name": "p", "namespace": namespace}, "spec": spec});
    request("fetchr.sh", "FetchrPolicy", namespace, &object)
}

#[tokio::test]
async fn policy_with_problems_is_refused_with_all_of_them() {
    let fixture = Fixture::start(shop(), shop()).await;
    let rule = |path: Value| json!({"name": "r", "matches": [{"path": path}], "timeouts": {"request": "1s"}});
    let good = json!({"targetRefs": [{"kind": "FetchrProxy", "name": "web"}], "rules": [rule(json!({"type": "Prefix", "value": "/a"}))]});
    let allowed = fixture.review("/validate", policy("shop", &good)).await;
    assert_eq!(allowed["allowed"], true, "{allowed}");
    let bad = json!({"targetRefs": [{"kind": "Namespace", "name": "bank"}],
        "rules": [rule(json!({"type": "Regex", "value": "("}))]});
    let refused = fixture.review("/validate", policy("shop", &bad)).await;
    assert_eq!(refused["allowed"], false);
    assert_eq!(refused["status"]["code"], 422);
    let causes = refused["status"]["details"]["causes"].as_array().unwrap();
    let fields: Vec<_> = causes.iter().map(|cause| cause["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["spec.rules[0].matches[0].path.value", "spec.targetRefs[0].name"]);
    let message = refused["status"]["message"].as_str().unwrap();
    assert!(message.contains("spec.targetRefs[0].name: a policy reaches only its own namespace"), "{message}");
}

#[tokio::test]
async fn platform_may_target_any_namespace() {
    let fixture = Fixture::start(shop(), shop()).await;
    let spec = json!({"targetRefs": [{"kind": "Namespace", "name": "*"}],
        "rules": [{"name": "r", "timeouts": {"request": "1s"}}]});
    assert_eq!(fixture.review("/validate", policy("fetchr-system", &spec)).await["allowed"], true);
    assert_eq!(fixture.review("/validate", policy("shop", &spec)).await["allowed"], false);
}

#[tokio::test]
async fn proxy_is_validated_too() {
    let fixture = Fixture::start(shop(), shop()).await;
    let object = json!({"apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrProxy", "metadata": {"name": "p", "namespace": "shop"},
        "spec": {"interception": {"outbound": {"skipCIDRs": ["10.0.0.0/99"]}}}});
    let refused = fixture.review("/validate", request("fetchr.sh", "FetchrProxy", "shop", &object)).await;
    assert_eq!(refused["allowed"], false);
    assert_eq!(refused["status"]["details"]["causes"][0]["field"], "spec.interception.outbound.skipCIDRs[0]");
    let unknown = fixture.review("/validate", request("fetchr.sh", "Other", "shop", &object)).await;
    assert_eq!(unknown["status"]["code"], 400);
}
