//! One operator beside one bare API server for all tests of a program, and a namespace for each test.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, ensure};
use clap::{Args, FromArgMatches};
use crds::{FetchrPolicy, FetchrProxy, plan::ObjectRef};
use e2e::{
    apiserver::ApiServer,
    stream::{ScriptedSidecar, hello, token_of},
    wait::eventually,
};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        core::v1::{ConfigMap, Namespace, Pod, Secret, Service, ServiceAccount},
        discovery::v1::EndpointSlice,
        events::v1::Event,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, Client, CustomResourceExt, Resource, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use operator::{certs::Keyring, run::Operator, settings::Settings, stamp::Stamp};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use wire::{signed::Opened, v1};

const OPERATOR_NAMESPACE: &str = "fetchr-system";
const SOON: Duration = Duration::from_secs(20);

/// A namespace of one test.
pub(crate) struct Bed {
    client: Client,
    namespace: String,
    streams: SocketAddr,
}

impl Bed {
    /// Starts what is shared, unless another test has, and makes the namespace.
    pub(crate) async fn start(namespace: &str) -> anyhow::Result<Self> {
        let streams = shared_operator().await?;
        let client = ApiServer::shared().await?.client().await?;
        let bed = Self { client, namespace: namespace.to_owned(), streams };
        let namespaces: Api<Namespace> = Api::all(bed.client.clone());
        namespaces.create(&PostParams::default(), &object(json!({"metadata": {"name": namespace}}))?).await?;
        bed.create::<ServiceAccount>(json!({"metadata": {"name": "default"}})).await?;
        Ok(bed)
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(crate) async fn proxy(&self, name: &str, spec: &Value) -> anyhow::Result<FetchrProxy> {
        self.create(json!({"apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrProxy", "metadata": {"name": name}, "spec": spec}))
            .await
    }

    /// A policy that sets the response header `x-hello` to `value`.
    pub(crate) async fn policy(&self, name: &str, target: &Value, value: &str) -> anyhow::Result<FetchrPolicy> {
        let headers = json!({"response": {"set": [{"name": "x-hello", "value": value}]}});
        let body = json!({
            "apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrPolicy", "metadata": {"name": name},
            "spec": {"targetRefs": [target], "rules": [{"name": "all", "headers": headers}]},
        });
        Ok(self.api().patch(name, &PatchParams::apply("test"), &Patch::Apply(&body)).await?)
    }

    pub(crate) async fn service(&self, name: &str, selector: &Value) -> anyhow::Result<Service> {
        self.create(json!({"metadata": {"name": name}, "spec": {"selector": selector, "ports": [{"port": 80}]}})).await
    }

    /// An outbound policy that spreads requests to a host.
    pub(crate) async fn spread(&self, name: &str, host: &str) -> anyhow::Result<FetchrPolicy> {
        let rule = json!({"name": "all", "matches": [{"hosts": [host]}], "loadBalancing": {"policy": "RoundRobin"}});
        let body = json!({
            "apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrPolicy", "metadata": {"name": name},
            "spec": {"targetRefs": [{"kind": "FetchrProxy", "name": "web"}], "direction": "Outbound", "rules": [rule]},
        });
        Ok(self.api().patch(name, &PatchParams::apply("test"), &Patch::Apply(&body)).await?)
    }

    /// Writes the one EndpointSlice of a Service, with ready endpoints 10.0.0.N.
    pub(crate) async fn slice(&self, service: &str, endpoints: &[u8]) -> anyhow::Result<EndpointSlice> {
        let endpoints: Vec<_> = endpoints.iter().map(|last| json!({"addresses": [format!("10.0.0.{last}")]})).collect();
        let body = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": service, "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 8080}], "endpoints": endpoints,
        });
        Ok(self.api().patch(service, &PatchParams::apply("test"), &Patch::Apply(&body)).await?)
    }

    pub(crate) async fn config_map(&self, name: &str) -> anyhow::Result<ConfigMap> {
        self.create(json!({"metadata": {"name": name}})).await
    }

    /// A pod of Deployment `web` as admission would have left it.
    pub(crate) async fn injected_pod(&self, name: &str, proxy: &str) -> anyhow::Result<Pod> {
        let stamp = Stamp {
            version: "0.1.0".to_owned(),
            proxy: Some(format!("{}/{proxy}", self.namespace)),
            workload: Some("Deployment/web".to_owned()),
            ..Stamp::default()
        };
        self.create(json!({
            "metadata": {
                "name": name,
                "labels": {"app": "web", "fetchr.sh/injected": "true"},
                "annotations": {"fetchr.sh/inject": "enabled", "fetchr.sh/status": serde_json::to_string(&stamp)?},
            },
            "spec": {"containers": [{"name": "web", "image": "web"}]},
        }))
        .await
    }

    /// A pod that no webhook has seen, made by `owner`.
    pub(crate) async fn bare_pod(
        &self,
        name: &str,
        owner: &ConfigMap,
        annotations: BTreeMap<String, String>,
    ) -> anyhow::Result<Pod> {
        self.create(json!({
            "metadata": {
                "name": name,
                "labels": {"app": "web"},
                "annotations": annotations,
                "ownerReferences": [{
                    "apiVersion": "v1", "kind": "ConfigMap", "name": owner.name_any(), "uid": owner.uid(), "controller": true,
                }],
            },
            "spec": {"containers": [{"name": "web", "image": "web"}]},
        }))
        .await
    }

    /// Opens the stream of a pod's sidecar.
    pub(crate) async fn open(&self, pod: &Pod, proxy: &str) -> anyhow::Result<ScriptedSidecar> {
        self.open_as(pod, hello(pod, &ObjectRef::new(&self.namespace, proxy))).await
    }

    /// Opens the stream of a pod's sidecar with this Hello.
    pub(crate) async fn open_as(&self, pod: &Pod, hello: v1::Hello) -> anyhow::Result<ScriptedSidecar> {
        self.open_with(&token_of(&self.client, pod).await?, hello).await
    }

    /// Opens a stream with this token and this Hello.
    pub(crate) async fn open_with(&self, token: &str, hello: v1::Hello) -> anyhow::Result<ScriptedSidecar> {
        let ca = keyring(&self.client).await?.bundle();
        let name = format!("fetchr-streams.{OPERATOR_NAMESPACE}.svc");
        ScriptedSidecar::open(self.streams, &name, &ca, token, hello).await
    }

    /// Waits until a policy's first target has this condition.
    pub(crate) async fn policy_condition(&self, name: &str, kind: &str, status: &str, reason: &str) -> anyhow::Result<Condition> {
        eventually(&format!("policy {name} is {kind}={status} because of {reason}"), SOON, async || {
            let policy: FetchrPolicy = self.api().get(name).await?;
            let ancestors = policy.status.unwrap_or_default().ancestors;
            let conditions = ancestors.into_iter().next().context("no ancestor yet")?.conditions;
            let found = find(conditions, kind)?;
            ensure!(found.status == status && found.reason == reason, "it is {found:?}");
            Ok(found)
        })
        .await
    }

    /// Waits until a proxy has this condition.
    pub(crate) async fn proxy_condition(&self, name: &str, kind: &str, status: &str) -> anyhow::Result<Condition> {
        eventually(&format!("proxy {name} is {kind}={status}"), SOON, async || {
            let proxy: FetchrProxy = self.api().get(name).await?;
            let found = find(proxy.status.unwrap_or_default().conditions, kind)?;
            ensure!(found.status == status, "it is {found:?}");
            Ok(found)
        })
        .await
    }

    /// Waits for the cold-start plan of a proxy and opens it.
    pub(crate) async fn cold_start(&self, proxy: &str) -> anyhow::Result<Opened> {
        let keys: Vec<_> = keyring(&self.client).await?.public_keys().collect();
        eventually("there is a cold-start plan", SOON, async || {
            let map: ConfigMap = self.api().get("fetchr-plan").await?;
            let data = map.binary_data.unwrap_or_default();
            let envelope = data.get(&format!("{}.{proxy}", self.namespace)).context("no plan of this proxy")?;
            Ok(wire::signed::open(&envelope.0, &keys, &self.namespace, &ObjectRef::new(&self.namespace, proxy))?)
        })
        .await
    }

    /// Waits for an event about an object.
    pub(crate) async fn event_on(&self, object: &ConfigMap) -> anyhow::Result<Event> {
        let events: Api<Event> = self.api();
        eventually("there is an event", SOON, async || {
            let all = events.list(&ListParams::default()).await?;
            let about = |event: &Event| event.regarding.as_ref().and_then(|regarding| regarding.uid.clone()) == object.uid();
            all.items.into_iter().find(about).context("no event about it")
        })
        .await
    }

    async fn create<K>(&self, body: Value) -> anyhow::Result<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned + serde::Serialize,
    {
        Ok(self.api().create(&PostParams::default(), &object(body)?).await?)
    }
}

fn object<K: DeserializeOwned>(body: Value) -> anyhow::Result<K> {
    Ok(serde_json::from_value(body)?)
}

fn find(conditions: Vec<Condition>, kind: &str) -> anyhow::Result<Condition> {
    conditions.into_iter().find(|condition| condition.type_ == kind).context("no such condition yet")
}

async fn keyring(client: &Client) -> anyhow::Result<Keyring> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), OPERATOR_NAMESPACE);
    eventually("there are certificates", SOON, async || {
        let data = secrets.get("fetchr-ca").await?.data.unwrap_or_default();
        Ok(Keyring::read(&data.into_iter().map(|(key, value)| (key, value.0)).collect())?)
    })
    .await
}

/// Where the streams of the one operator are; started by the first test that asks.
async fn shared_operator() -> anyhow::Result<SocketAddr> {
    static SHARED: OnceCell<SocketAddr> = OnceCell::const_new();
    SHARED.get_or_try_init(start_operator).await.copied()
}

async fn start_operator() -> anyhow::Result<SocketAddr> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let server = ApiServer::shared().await?;
    let client = server.client().await?;
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces.create(&PostParams::default(), &object(json!({"metadata": {"name": OPERATOR_NAMESPACE}}))?).await?;
    install_definitions(&client).await?;
    let (config, settings) = (server.config().await?, settings()?);
    let (told, port) = tokio::sync::oneshot::channel();
    // On a runtime of its own: it outlives the test that happens to come first, and ends with the program.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
        let ended = runtime.block_on(async {
            let operator = Operator::bind(config, settings)?;
            let _ = told.send(operator.addresses()?.streams.port());
            anyhow::Ok(operator.run(CancellationToken::new()).await?)
        });
        if let Err(error) = ended {
            eprintln!("the operator has ended: {error:?}");
        }
    });
    Ok((Ipv4Addr::LOCALHOST, port.await.context("the operator did not start")?).into())
}

async fn install_definitions(client: &Client) -> anyhow::Result<()> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in [FetchrProxy::crd(), FetchrPolicy::crd()] {
        definitions.create(&PostParams::default(), &definition).await?;
        let name = definition.name_any();
        eventually("the definition is served", SOON, async || {
            let conditions = definitions.get(&name).await?.status.and_then(|status| status.conditions).unwrap_or_default();
            ensure!(conditions.iter().any(|condition| condition.type_ == "Established" && condition.status == "True"), "not yet");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

fn settings() -> anyhow::Result<Settings> {
    let defaults = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bed/default-proxy.yaml");
    let flags = [
        format!("--namespace={OPERATOR_NAMESPACE}"),
        format!("--default-proxy-file={defaults}"),
        "--pod-name=operator-of-the-test".to_owned(),
        "--sidecar-image=fetchr-sidecar".to_owned(),
    ];
    let ports = ["webhook", "stream", "metrics", "api"].map(|name| format!("--{name}-port=0"));
    let command = Settings::augment_args(clap::Command::new("test")).no_binary_name(true);
    Ok(Settings::from_arg_matches(&command.try_get_matches_from(flags.into_iter().chain(ports))?)?)
}
