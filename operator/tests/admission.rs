//! Admission, certificates and the aggregated API behind a real API server, registered as `docs/admission.md` says.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::needless_pass_by_value,
    reason = "helpers of tests fail by panic; JSON is written in place"
)]

use std::{sync::Arc, time::Duration};

use clap::Parser;
use crds::plan::{ObjectRef, PlanKey};
use e2e::{apiserver::ApiServer, wait::eventually};
use k8s_openapi::{
    api::core::v1::{Pod, Secret},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
    core::GroupVersionKind,
};
use operator::{
    api::{self, FrontProxies, Reviews},
    certs::{self, Installer},
    context::Context,
    deliver::{self, Features, Hello, Hub},
    health::Heart,
    https::{self, PROTOCOLS, Server},
    index::{Index, Shared},
    inject::Injector,
    lease::{self, Leadership},
    metrics::Metrics,
    settings::Settings,
    webhook::{self, Lookup, Webhook, Workers},
};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{OnceCell, watch},
};
use tokio_util::sync::CancellationToken;
use wire::v1;

const NAMESPACE: &str = "fetchr-system";
const SOON: Duration = Duration::from_secs(60);

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    settings: Settings,
}

/// Streams with one sidecar, which answers each command with its verb and its body.
fn one_sidecar(registry: &mut Registry) -> Hub {
    let hub = Hub::new(deliver::Metrics::register(registry), "cluster.local");
    let hello = Hello {
        pod: ObjectRef::new("shop", "web-1"),
        uid: "u-1".to_owned(),
        key: PlanKey { pod_namespace: "shop".to_owned(), proxy: ObjectRef::new("shop", "web") },
        features: Features::new(),
        version: "0.1.0".to_owned(),
        digest: String::new(),
        takes_services: false,
    };
    let (session, mut inbox) = hub.join(hello, &Index::default(), &CancellationToken::new());
    let answering = hub.clone();
    tokio::spawn(async move {
        while let Some(command) = inbox.commands.recv().await {
            let body = String::from_utf8_lossy(&command.body);
            let body = json!({"verb": command.verb, "body": body}).to_string().into();
            let answer = v1::CommandAnswer { id: command.id, body, ..Default::default() };
            answering.hear(&session, v1::Up { message: Some(v1::up::Message::CommandAnswer(answer)) });
        }
    });
    hub
}

/// The API server with the operator's servers behind it, started once on a thread that lives as long as the tests.
async fn cluster() -> Client {
    static STARTED: OnceCell<()> = OnceCell::const_new();
    let server = ApiServer::shared().await.unwrap();
    STARTED
        .get_or_init(async || {
            let (ready, started) = tokio::sync::oneshot::channel();
            std::thread::spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    operate(server).await;
                    ready.send(()).unwrap();
                    std::future::pending::<()>().await;
                });
            });
            started.await.unwrap();
        })
        .await;
    server.client().await.unwrap()
}

async fn operate(server: &ApiServer) {
    let client = server.client().await.unwrap();
    let flags = [
        "fetchr-operator",
        "--namespace",
        NAMESPACE,
        "--pod-name",
        "fetchr-operator-1",
        "--sidecar-image",
        "fetchr/sidecar:test",
    ];
    let (mut registry, metrics) = Metrics::new();
    let (seat, leadership) = Leadership::new(&mut registry);
    let context = Context {
        client: client.clone(),
        settings: Flags::parse_from(flags).settings,
        leadership,
        metrics,
        shutdown: CancellationToken::new(),
    };
    let (config, settings, shutdown) = (server.config().await.unwrap(), context.settings.clone(), context.shutdown.clone());
    tokio::spawn(async move { lease::run(config, &settings, seat, &Heart::default(), shutdown).await });

    let installer = Installer::new(&mut registry);
    let webhooks = Webhook {
        // An index that knows nothing: everything is asked of the API server.
        lookup: Lookup {
            cluster: Arc::new(Shared::default()),
            fallback: Arc::new(webhook::ApiServer(client.clone())),
            operator_namespace: NAMESPACE.to_owned(),
        },
        injector: Injector::from(&context.settings),
        certs: installer.certs(),
        workers: Workers::default(),
        metrics: webhook::Metrics::register(&mut registry),
    };
    let front_proxies = FrontProxies::new(installer.certs());
    let api = api::Api {
        sidecars: Arc::new(one_sidecar(&mut registry)),
        authorizer: Arc::new(Reviews(client.clone())),
        front_proxies: front_proxies.clone(),
        version: "0.1.0".to_owned(),
        metrics: api::Metrics::register(&mut registry),
    };
    let connections = https::Metrics::register(&mut registry);
    let webhook_tls = watch::Sender::new(Arc::new(certs::server_config(installer.certs(), &PROTOCOLS))).subscribe();
    let serve = async |name, router, tls| {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tls, limits) = (Some(tls), https::FOR_API_SERVERS);
        let server = Server { name, router, tls, limits, metrics: connections.clone(), shutdown: context.shutdown.clone() };
        tokio::spawn(server.serve(listener));
        port
    };
    let webhook_port = serve("webhooks", webhook::router(Arc::new(webhooks)), webhook_tls).await;
    let api_port = serve("api", api::router(Arc::new(api)), front_proxies.tls()).await;

    install(&client, webhook_port, api_port).await;
    tokio::spawn(certs::follow(context.clone(), installer.clone()));
    tokio::spawn(certs::keep(context.clone()));
    let (client, shutdown) = (client.clone(), context.shutdown.clone());
    tokio::spawn(async move { front_proxies.follow(client, shutdown).await });
}

/// What the chart would install.
async fn install(client: &Client, webhook_port: u16, api_port: u16) {
    for name in [NAMESPACE, "shop", "plain", "strict"] {
        let label = if name == "strict" { json!({"fetchr.sh/inject": "required"}) } else { json!({}) };
        apply(client, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": label}})).await;
        apply(client, json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}}))
            .await;
    }
    for name in ["fetchr-webhook", "fetchr-api"] {
        // The API server asks the name, so no Service network is needed.
        apply(
            client,
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"type": "ExternalName", "externalName": "localhost"}}),
        )
        .await;
    }
    for definition in crds::schema::definitions() {
        apply(client, serde_yaml::from_str(&definition.yaml()).unwrap()).await;
    }
    let established = async || {
        let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
        for crd in crds.list(&Default::default()).await?.items {
            let conditions = crd.status.and_then(|status| status.conditions).unwrap_or_default();
            anyhow::ensure!(conditions.iter().any(|one| one.type_ == "Established" && one.status == "True"));
        }
        Ok(())
    };
    eventually("the CRDs are established", SOON, established).await.unwrap();
    for mut object in documented() {
        for webhook in object.get_mut("webhooks").and_then(Value::as_array_mut).into_iter().flatten() {
            webhook["clientConfig"]["service"]["port"] = json!(webhook_port);
        }
        if object["kind"] == "APIService" {
            object["spec"]["service"]["port"] = json!(api_port);
        }
        apply(client, object).await;
    }
}

/// The first block of YAML in `docs/admission.md`, as a user would fill it in.
fn documented() -> Vec<Value> {
    let page = include_str!("../../docs/admission.md");
    let block = page.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let filled = block.replace("namespace: NS", "namespace: fetchr-system").replace("NS]", "fetchr-system]");
    filled.split("---\n").map(|document| serde_yaml::from_str(document).unwrap()).collect()
}

async fn apply(client: &Client, object: Value) {
    let (api_version, kind) = (object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let name = object["metadata"]["name"].as_str().unwrap();
    let params = PatchParams::apply("test").force();
    // A webhook that has no bundle yet refuses what comes too early; so does an API that is not established.
    let applied = async || Ok(api.patch(name, &params, &Patch::Apply(&object)).await?);
    eventually(&format!("{kind} {name} is applied"), SOON, applied).await.unwrap();
}

async fn proxy(client: &Client, namespace: &str) {
    apply(
        client,
        json!({"apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrProxy",
        "metadata": {"name": "web", "namespace": namespace}, "spec": {}}),
    )
    .await;
}

fn pod(name: &str, annotations: Value) -> Pod {
    let pod = json!({"metadata": {"name": name, "annotations": annotations}, "spec": {"containers": [{"name": "app", "image": "app",
        "ports": [{"name": "http", "containerPort": 8080}],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}}}]}});
    serde_json::from_value(pod).unwrap()
}

fn init_containers(pod: &Pod) -> Vec<&str> {
    let spec = pod.spec.as_ref().unwrap();
    spec.init_containers.iter().flatten().map(|container| container.name.as_str()).collect()
}

#[tokio::test]
async fn pod_that_asks_gets_a_sidecar_and_others_never_wait() {
    let client = cluster().await;
    proxy(&client, "shop").await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "shop");
    let injected = pods.create(&PostParams::default(), &pod("asks", json!({"fetchr.sh/inject": "enabled"}))).await.unwrap();
    assert_eq!(init_containers(&injected), ["fetchr-init", "fetchr-proxy"]);
    assert_eq!(injected.labels()["fetchr.sh/injected"], "true");
    let spec = injected.spec.as_ref().unwrap();
    let probe = spec.containers[0].readiness_probe.as_ref().unwrap().http_get.as_ref().unwrap();
    assert_eq!(probe.path.as_deref(), Some("/probe/app/readiness"));
    assert_eq!(spec.termination_grace_period_seconds, Some(35));

    let others: Api<Pod> = Api::namespaced(client, "plain");
    let plain = others.create(&PostParams::default(), &pod("plain", json!({}))).await.unwrap();
    assert_eq!(init_containers(&plain), Vec::<&str>::new());
}

#[tokio::test]
async fn injected_pod_can_be_created_again_as_it_was_read() {
    let client = cluster().await;
    proxy(&client, "shop").await;
    let pods: Api<Pod> = Api::namespaced(client, "shop");
    let first = pods.create(&PostParams::default(), &pod("once", json!({"fetchr.sh/inject": "enabled"}))).await.unwrap();
    let mut again = first.clone();
    again.metadata = kube::core::ObjectMeta {
        name: Some("twice".to_owned()),
        labels: first.metadata.labels.clone(),
        annotations: first.metadata.annotations.clone(),
        ..Default::default()
    };
    again.status = None;
    let second = pods.create(&PostParams::default(), &again).await.unwrap();
    let names = |pod: &Pod| serde_json::to_value(&pod.spec).unwrap();
    let named = |pod: &Pod| serde_json::to_string(&names(pod)).unwrap().replace("Pod/once", "W").replace("Pod/twice", "W");
    assert_eq!(named(&second), named(&first));
}

#[tokio::test]
async fn required_namespace_refuses_what_it_would_skip() {
    let client = cluster().await;
    proxy(&client, "strict").await;
    let pods: Api<Pod> = Api::namespaced(client, "strict");
    let declining = pod("declines", json!({"fetchr.sh/inject": "disabled"}));
    let injected = pods.create(&PostParams::default(), &declining).await.unwrap();
    assert_eq!(init_containers(&injected), ["fetchr-init", "fetchr-proxy"], "opting out doesn't count");
    let mut host = pod("host", json!({}));
    host.spec.as_mut().unwrap().host_network = Some(true);
    let error = pods.create(&PostParams::default(), &host).await.unwrap_err().to_string();
    assert!(error.contains("no sidecar can be injected (HostNetwork)"), "{error}");
}

#[tokio::test]
async fn required_sidecar_cannot_be_changed_in_a_running_pod() {
    let client = cluster().await;
    proxy(&client, "strict").await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "strict");
    pods.create(&PostParams::default(), &pod("guarded", json!({}))).await.unwrap();
    let image = |field: &str, container: &str, image: &str| json!({"spec": {field: [{"name": container, "image": image}]}});
    let patch = async |body: Value| pods.patch("guarded", &PatchParams::default(), &Patch::Strategic(body)).await;
    let error = patch(image("initContainers", "fetchr-proxy", "true")).await.unwrap_err().to_string();
    assert!(error.contains("the pod's sidecar is required (SidecarChanged)"), "{error}");
    patch(image("containers", "app", "app:2")).await.unwrap();

    let debug = |context: Value| json!({"spec": {"ephemeralContainers": [{"name": "debug", "image": "debug", "securityContext": context}]}});
    let attach = async |body: Value| {
        pods.patch_subresource("ephemeralcontainers", "guarded", &PatchParams::default(), &Patch::Strategic(body)).await
    };
    let error = attach(debug(json!({"capabilities": {"add": ["SYS_PTRACE"]}}))).await.unwrap_err().to_string();
    assert!(error.contains("(Privileged): container debug adds the capability SYS_PTRACE"), "{error}");
    attach(debug(json!({}))).await.unwrap();

    let mut escaping = pod("escapes", json!({}));
    escaping.spec.as_mut().unwrap().share_process_namespace = Some(true);
    let error = pods.create(&PostParams::default(), &escaping).await.unwrap_err().to_string();
    assert!(error.contains("no sidecar can be injected (Privileged)"), "{error}");
}

#[tokio::test]
async fn dry_run_shows_the_sidecar_too() {
    let client = cluster().await;
    proxy(&client, "shop").await;
    let pods: Api<Pod> = Api::namespaced(client, "shop");
    let params = PostParams { dry_run: true, ..PostParams::default() };
    let injected = pods.create(&params, &pod("dry", json!({"fetchr.sh/inject": "enabled"}))).await.unwrap();
    assert_eq!(init_containers(&injected), ["fetchr-init", "fetchr-proxy"]);
}

#[tokio::test]
async fn bad_policy_is_refused_with_the_field() {
    let client = cluster().await;
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("fetchr.sh", "v1alpha1", "FetchrPolicy"));
    let policies: Api<DynamicObject> = Api::namespaced_with(client.clone(), "shop", &resource);
    let policy = |path: &str| {
        let policy = json!({"apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrPolicy", "metadata": {"name": "p"}, "spec": {
            "targetRefs": [{"kind": "FetchrProxy", "name": "web"}],
            "rules": [{"name": "r", "matches": [{"path": {"type": "Regex", "value": path}}], "timeouts": {"request": "1s"}}]}});
        serde_json::from_value::<DynamicObject>(policy).unwrap()
    };
    proxy(&client, "shop").await;
    let refused = policies.create(&PostParams::default(), &policy("(")).await.unwrap_err();
    let kube::Error::Api(status) = refused else { panic!("{refused}") };
    assert_eq!(status.code, 422, "{status:?}");
    let causes = status.details.unwrap().causes;
    assert_eq!(causes[0].field, "spec.rules[0].matches[0].path.value");
    policies.create(&PostParams::default(), &policy("/a.*")).await.unwrap();
}

#[tokio::test]
async fn bundle_comes_back_if_somebody_takes_it_away() {
    let client = cluster().await;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let bundle = async || {
        let secret = secrets.get("fetchr-ca").await?;
        Ok(secret.data.and_then(|data| Some(data.get("ca.crt")?.0.clone())).unwrap_or_default())
    };
    let bundle = eventually("the Secret is made", SOON, bundle).await.unwrap();
    assert!(bundle.starts_with(b"-----BEGIN CERTIFICATE-----"));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("apiregistration.k8s.io", "v1", "APIService"));
    let registrations: Api<DynamicObject> = Api::all_with(client, &resource);
    let name = "v1alpha1.api.fetchr.sh";
    let taken = json!({"spec": {"caBundle": null}});
    registrations.patch(name, &PatchParams::default(), &Patch::Merge(&taken)).await.unwrap();
    let restored = async || {
        let registration = registrations.get(name).await?;
        anyhow::ensure!(registration.data["spec"]["caBundle"].is_string());
        Ok(())
    };
    eventually("the bundle is back", SOON, restored).await.unwrap();
}

#[tokio::test]
async fn aggregated_api_answers_any_kubeconfig_with_rights() {
    let client = cluster().await;
    let get = async |client: &Client, path: &str| {
        let request = http::Request::get(format!("/apis/api.fetchr.sh/v1alpha1{path}")).body(Vec::new()).unwrap();
        client.request::<Value>(request).await
    };
    let listed = async || Ok(get(&client, "/namespaces/shop/sidecars").await?);
    let list = eventually("the aggregated API is available", SOON, listed).await.unwrap();
    assert_eq!(list["items"][0]["metadata"]["name"], "web-1");
    let config = get(&client, "/namespaces/shop/sidecars/web-1/config").await.unwrap();
    assert_eq!(config["verb"], "config");
    // The API server writes the query anew, sorted.
    let cache =
        get(&client, "/namespaces/shop/sidecars/web-1/cache/objects?prefix=http%3A%2F%2Fa%2F%3Fb+c&limit=5").await.unwrap();
    assert_eq!(cache, json!({"verb": "cache", "body": "/cache/objects?limit=5&prefix=http%3A%2F%2Fa%2F%3Fb+c"}));

    let server = ApiServer::shared().await.unwrap();
    // A cache of its own: that of all may know another server that had the same port.
    let cache = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kubectl-{}", std::process::id()));
    let kubectl = async || {
        let mut kubectl = tokio::process::Command::new(e2e::tools::program("kubectl")?);
        kubectl.arg("--kubeconfig").arg(server.kubeconfig()).arg("--cache-dir").arg(&cache);
        let output = kubectl.args(["-n", "shop", "get", "sidecars.api.fetchr.sh"]).output().await?;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let printed = eventually("kubectl lists them", SOON, kubectl).await.unwrap();
    let lines: Vec<Vec<&str>> = printed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NAME", "PROXY", "WORKLOAD", "VERSION", "IN", "SYNC", "READY"]);
    assert_eq!(lines[1], ["web-1", "shop/web", "0.1.0", "False", "False"]);

    let mut config = server.config().await.unwrap();
    config.auth_info.impersonate = Some("nobody".to_owned());
    let nobody = Client::try_from(config).unwrap();
    let error = get(&nobody, "/namespaces/shop/sidecars").await.unwrap_err().to_string();
    assert!(error.contains("nobody") && error.contains("cannot list resource"), "{error}");
    let error = get(&nobody, "/namespaces/shop/sidecars/web-1/cache/stats").await.unwrap_err().to_string();
    assert!(error.contains("cannot get resource \"sidecars/cache\""), "{error}");
}
