//! What the operator's parts do to a real API server, each part alone.

use std::{fmt::Debug, net::SocketAddr, time::Duration};

use anyhow::{Context, ensure};
use clap::{Args, FromArgMatches};
use crds::{FetchrPolicy, FetchrProxy, plan::ObjectRef};
use e2e::{apiserver::ApiServer, testkit::relay::Relay, wait::eventually};
use k8s_openapi::{
    api::{
        admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
        apps::v1::Deployment,
        coordination::v1::Lease,
        core::v1::{ConfigMap, Namespace, Secret},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, CustomResourceExt, Resource,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use operator::{
    cleanup,
    health::Heart,
    index::Shared,
    lease::{self, Leadership, LeaseError},
    settings::Settings,
    watch::{Metrics, Outages, Watches},
};
use prometheus_client::registry::Registry;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn change_in_a_gap_of_the_watch_is_seen_after_it() {
    let client = client().await.unwrap();
    define(&client).await.unwrap();
    namespace(&client, "gap").await.unwrap();
    let (watches, relay) = watch_through_a_relay().await.unwrap();
    let stop = watches.shutdown.clone();
    let index = watches.index.clone();
    tokio::spawn(async move { watches.run().await });
    eventually("every kind is listed", SOON, async || {
        ensure!(index.read().is_complete(), "not yet");
        Ok(())
    })
    .await
    .unwrap();

    let proxies: Api<FetchrProxy> = Api::namespaced(client, "gap");
    apply(&proxies, "goes", json!({"spec": {}})).await.unwrap();
    has(&index, "gap", "goes", true).await.unwrap();
    let before = index.read().position().clone();

    relay.cut();
    proxies.delete("goes", &DeleteParams::default()).await.unwrap();
    apply(&proxies, "comes", json!({"spec": {}})).await.unwrap();
    has(&index, "gap", "comes", true).await.unwrap();
    has(&index, "gap", "goes", false).await.unwrap();
    assert!(*index.read().position() > before);
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_one_leads_and_who_loses_the_lease_ends() {
    let client = client().await.unwrap();
    namespace(&client, "election").await.unwrap();
    let (first, mut first_leads) = candidate("election", "first").await.unwrap();
    first_leads.acquired().await;
    let (second, second_leads) = candidate("election", "second").await.unwrap();

    let leases: Api<Lease> = Api::namespaced(client, "election");
    let thief = json!({"spec": {"holderIdentity": "thief"}});
    leases.patch("fetchr-operator", &PatchParams::default(), &Patch::Merge(thief)).await.unwrap();
    let lost = tokio::time::timeout(SOON, first).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(lost, LeaseError::Lost { .. }), "{lost}");
    assert!(!second_leads.is_leader());
    second.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lease_of_an_earlier_version_is_taken_over_when_it_has_run_out() {
    let client = client().await.unwrap();
    namespace(&client, "upgrade").await.unwrap();
    let leases: Api<Lease> = Api::namespaced(client, "upgrade");
    // As a version wrote it that used one field manager for all replicas, and that ended without giving it back.
    let spec = json!({"holderIdentity": "old", "leaseDurationSeconds": 15, "leaseTransitions": 3,
        "acquireTime": "2026-01-01T00:00:00.000000Z", "renewTime": "2026-01-01T00:00:00.000000Z"});
    let lease =
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "fetchr-operator"}, "spec": spec});
    let params = PatchParams::apply("fetchr-operator-lease").force();
    leases.patch("fetchr-operator", &params, &Patch::Apply(&lease)).await.unwrap();

    let (new, mut leads) = candidate("upgrade", "new").await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), leads.acquired()).await.expect("it leads");
    let holder = leases.get("fetchr-operator").await.unwrap().spec.and_then(|spec| spec.holder_identity);
    assert_eq!(holder.as_deref(), Some("new"));
    new.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clean_up_leaves_nothing_that_the_operator_made() {
    let client = client().await.unwrap();
    for name in ["clean", "clean-shop"] {
        namespace(&client, name).await.unwrap();
    }
    let rule = json!({"name": "a.fetchr.sh", "admissionReviewVersions": ["v1"], "sideEffects": "None",
        "clientConfig": {"url": "https://127.0.0.1:1/"}});
    let webhooks = json!({"webhooks": [rule]});
    apply(&Api::<MutatingWebhookConfiguration>::all(client.clone()), "clean", webhooks.clone()).await.unwrap();
    apply(&Api::<ValidatingWebhookConfiguration>::all(client.clone()), "clean", webhooks).await.unwrap();
    let labels = json!({"app": "operator"});
    let template = json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "a", "image": "a"}]}});
    let deployment = json!({"spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": template}});
    apply(&Api::<Deployment>::namespaced(client.clone(), "clean"), "fetchr-operator", deployment).await.unwrap();
    apply(&Api::<Secret>::namespaced(client.clone(), "clean"), "fetchr-ca", json!({})).await.unwrap();
    apply(&Api::<Lease>::namespaced(client.clone(), "clean"), "fetchr-operator", json!({})).await.unwrap();
    let plans: Api<ConfigMap> = Api::namespaced(client.clone(), "clean-shop");
    apply(&plans, "fetchr-plan", json!({})).await.unwrap();
    apply(&plans, "other", json!({})).await.unwrap();

    let command = cleanup::Settings::augment_args(clap::Command::new("test")).no_binary_name(true);
    let flags = ["--namespace=clean", "--webhook-configuration=clean", "--timeout-seconds=30"];
    let settings = cleanup::Settings::from_arg_matches(&command.try_get_matches_from(flags).unwrap()).unwrap();
    cleanup::run(client.clone(), &settings).await.unwrap();
    cleanup::run(client.clone(), &settings).await.expect("a second time there is nothing to do");

    assert!(Api::<MutatingWebhookConfiguration>::all(client.clone()).get_opt("clean").await.unwrap().is_none());
    assert!(Api::<ValidatingWebhookConfiguration>::all(client.clone()).get_opt("clean").await.unwrap().is_none());
    assert!(Api::<Secret>::namespaced(client.clone(), "clean").get_opt("fetchr-ca").await.unwrap().is_none());
    assert!(Api::<Lease>::namespaced(client.clone(), "clean").get_opt("fetchr-operator").await.unwrap().is_none());
    assert!(plans.get_opt("fetchr-plan").await.unwrap().is_none());
    assert!(plans.get_opt("other").await.unwrap().is_some(), "what is not ours stays");
    let scaled = Api::<Deployment>::namespaced(client, "clean").get("fetchr-operator").await.unwrap();
    assert_eq!(scaled.spec.and_then(|spec| spec.replicas), Some(0));
}

async fn client() -> anyhow::Result<Client> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    ApiServer::shared().await?.client().await
}

async fn namespace(client: &Client, name: &str) -> anyhow::Result<()> {
    apply(&Api::<Namespace>::all(client.clone()), name, json!({})).await
}

async fn apply<K>(api: &Api<K>, name: &str, body: Value) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize,
{
    let mut object = json!({"apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": {"name": name}});
    object.as_object_mut().context("an object")?.extend(body.as_object().cloned().unwrap_or_default());
    api.patch(name, &PatchParams::apply("test").force(), &Patch::Apply(&object)).await?;
    Ok(())
}

/// Both kinds must be served before they can be listed.
async fn define(client: &Client) -> anyhow::Result<()> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in [FetchrProxy::crd(), FetchrPolicy::crd()] {
        definitions.create(&PostParams::default(), &definition).await?;
    }
    Ok(())
}

/// Watches that reach the API server through a relay, which can cut them off.
async fn watch_through_a_relay() -> anyhow::Result<(Watches, Relay)> {
    let mut config = ApiServer::shared().await?.config().await?;
    let port = config.cluster_url.port_u16().context("the API server has a port")?;
    let relay = Relay::start(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    config.cluster_url = format!("https://{}", relay.address()).parse()?;
    let watches = Watches {
        client: Client::try_from(config)?,
        index: Shared::default(),
        metrics: Metrics::register(&mut Registry::default()),
        heart: Heart::default(),
        outages: Outages::default(),
        shutdown: CancellationToken::new(),
    };
    Ok((watches, relay))
}

async fn has(index: &Shared, namespace: &str, proxy: &str, expected: bool) -> anyhow::Result<()> {
    eventually(&format!("the index has {proxy}: {expected}"), SOON, async || {
        let found = index.read().proxies.get(&ObjectRef::new(namespace, proxy)).is_some();
        ensure!(found == expected, "it is {found}");
        Ok(())
    })
    .await
}

/// Takes part in the election of a namespace.
async fn candidate(namespace: &str, name: &str) -> anyhow::Result<(tokio::task::JoinHandle<Result<(), LeaseError>>, Leadership)> {
    let config = ApiServer::shared().await?.config().await?;
    let command = Settings::augment_args(clap::Command::new("test")).no_binary_name(true);
    let flags = [format!("--namespace={namespace}"), format!("--pod-name={name}"), "--sidecar-image=none".to_owned()];
    let settings = Settings::from_arg_matches(&command.try_get_matches_from(flags)?)?;
    let (seat, leadership) = Leadership::new(&mut Registry::default());
    let election =
        tokio::spawn(async move { lease::run(config, &settings, seat, &Heart::default(), CancellationToken::new()).await });
    Ok((election, leadership))
}
