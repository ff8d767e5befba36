//! fetchr on loopback, without a node: a bare API server that notes each request, operators and a sidecar as processes, an origin,
//! and relays wherever a network can break.

mod operator;
pub(crate) mod port;
mod sidecar;

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use crds::plan::ObjectRef;
use crds::{FetchrPolicy, FetchrProxy};
use http::{HeaderMap, Uri};
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, CustomResourceExt, ResourceExt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use wire::v1;

use crate::apiserver::ApiServer;
use crate::origin;
use crate::origin::load::Load;
use crate::stream::{self, ScriptedSidecar};
use crate::wait::eventually;

pub(crate) use operator::sum;
pub use operator::{Operator, User};
pub use sidecar::Sidecar;

/// Namespace of the application.
pub const NAMESPACE: &str = "shop";
/// Name of the application's proxy and of its Deployment.
pub const NAME: &str = "web";

const OPERATOR_NAMESPACE: &str = "fetchr-system";
const SOON: Duration = Duration::from_secs(30);

/// What runs; all of it ends when this value is dropped.
pub struct Loopback {
    server: ApiServer,
    client: Client,
    folder: TempDir,
    origin: SocketAddr,
    /// Where sidecars find streams, on an address for each operator.
    stream_port: u16,
    /// Where the sidecar listens for requests.
    web_port: u16,
    _origin: AbortOnDropHandle<()>,
}

impl Loopback {
    /// Starts the API server and the origin, and makes the definitions, a proxy without policies, and a pod of it.
    ///
    /// # Errors
    /// The tools can't be installed, or something did not start in time.
    pub async fn start() -> anyhow::Result<Self> {
        // Another part of the program may have chosen the same one.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let origin = listener.local_addr()?;
        let serving = tokio::spawn(async move {
            if let Err(error) = origin::serve(listener, "origin", std::future::pending()).await {
                eprintln!("the origin has ended: {error}");
            }
        });
        let server = ApiServer::start_noting_requests().await?;
        let client = server.client().await?;
        let (folder, stream_port, web_port) = (tempfile::tempdir()?, port::free()?, port::free()?);
        let _origin = AbortOnDropHandle::new(serving);
        let loopback = Self { server, client, folder, origin, stream_port, web_port, _origin };
        loopback.define().await?;
        loopback.populate().await?;
        Ok(loopback)
    }

    /// The API server.
    pub fn server(&self) -> &ApiServer {
        &self.server
    }

    /// Objects of a kind in the application's namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// Requests to the application through its sidecar, at this rate.
    pub fn load(&self, rate: u32) -> Load {
        Load::get(self.url(), rate)
    }

    /// A policy `name` that sets the response header `x-NAME`.
    ///
    /// # Errors
    /// The API server refused it, or can't be reached.
    pub async fn header(&self, name: &str, value: &str) -> anyhow::Result<()> {
        let set = json!({"name": format!("x-{name}"), "value": value});
        self.policy(name, &json!({"name": "all", "headers": {"response": {"set": [set]}}})).await
    }

    /// A policy with one rule.
    ///
    /// # Errors
    /// As [`Loopback::header`].
    pub async fn policy(&self, name: &str, rule: &Value) -> anyhow::Result<()> {
        let policy = json!({
            "apiVersion": "fetchr.sh/v1alpha1",
            "kind": "FetchrPolicy",
            "metadata": {"name": name},
            "spec": {"targetRefs": [{"kind": "FetchrProxy", "name": NAME}], "rules": [rule]},
        });
        self.api::<FetchrPolicy>().patch(name, &PatchParams::apply("e2e").force(), &Patch::Apply(policy)).await?;
        Ok(())
    }

    /// Succeeds when an answer through the sidecar has the header of [`Loopback::header`].
    ///
    /// # Errors
    /// It has another value, or there is no answer.
    pub async fn sets(&self, name: &str, value: &str) -> anyhow::Result<()> {
        let answer = origin::get::get(&self.url(), &HeaderMap::new()).await?;
        let found = answer.headers.get(&format!("x-{name}")).cloned().unwrap_or_default();
        ensure!(found == [value], "x-{name} is {found:?}, expected {value}; status {}", answer.status);
        Ok(())
    }

    /// Waits for [`Loopback::sets`].
    ///
    /// # Errors
    /// It did not come true in time.
    pub async fn until_sets(&self, name: &str, value: &str) -> anyhow::Result<()> {
        eventually("the header is set", SOON, async || self.sets(name, value).await).await
    }

    /// Waits until a policy's condition `Programmed` has this reason.
    ///
    /// # Errors
    /// It has not in time.
    pub async fn until_programmed(&self, policy: &str, reason: &str) -> anyhow::Result<()> {
        eventually(&format!("the policy {policy} is {reason}"), SOON, async || {
            let ancestors = self.api::<FetchrPolicy>().get(policy).await?.status.unwrap_or_default().ancestors;
            let conditions = ancestors.into_iter().next().context("no ancestor yet")?.conditions;
            let found = conditions.iter().find(|one| one.type_ == "Programmed").context("not programmed yet")?;
            ensure!(found.reason == reason, "{}: {}", found.reason, found.message);
            Ok(())
        })
        .await
    }

    /// The operator's CA, as admission would give it to a sidecar.
    ///
    /// # Errors
    /// No operator made it in time.
    pub async fn ca(&self) -> anyhow::Result<String> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), OPERATOR_NAMESPACE);
        eventually("there are certificates", SOON, async || {
            let mut data = secrets.get("fetchr-ca").await?.data.unwrap_or_default();
            Ok(String::from_utf8(data.remove("ca.crt").context("no ca.crt yet")?.0)?)
        })
        .await
    }

    /// The application's one pod, as admission would have left it.
    ///
    /// # Errors
    /// The API server can't be reached.
    pub async fn pod(&self, name: &str) -> anyhow::Result<Pod> {
        if let Some(pod) = self.api::<Pod>().get_opt(name).await? {
            return Ok(pod);
        }
        let stamp = json!({
            "version": env!("CARGO_PKG_VERSION"), "proxy": format!("{NAMESPACE}/{NAME}"), "workload": format!("Deployment/{NAME}"),
        });
        let pod = serde_json::from_value(json!({
            "metadata": {
                "name": name,
                "labels": {"app": NAME, "fetchr.sh/injected": "true"},
                "annotations": {"fetchr.sh/inject": "enabled", "fetchr.sh/status": stamp.to_string()},
            },
            "spec": {"containers": [{"name": NAME, "image": NAME}]},
        }))?;
        Ok(self.api::<Pod>().create(&PostParams::default(), &pod).await?)
    }

    /// Opens the stream of another pod's sidecar to an operator; it says this, and who it is.
    ///
    /// # Errors
    /// The operator refused it, or can't be reached.
    pub async fn scripted_sidecar(&self, operator: &Operator, pod: &str, hello: v1::Hello) -> anyhow::Result<ScriptedSidecar> {
        let pod = self.pod(pod).await?;
        let whoami = stream::hello(&pod, &ObjectRef::new(NAMESPACE, NAME));
        let hello = v1::Hello { features: hello.features, version: hello.version, ..whoami };
        let token = stream::token_of(&self.client, &pod).await?;
        ScriptedSidecar::open(operator.streams.address(), &sidecar::operators_name(), &self.ca().await?, &token, hello).await
    }

    /// The ends of the logs of all processes, for whoever looks why something failed.
    pub fn describe(&self) -> String {
        let entries = std::fs::read_dir(self.folder()).into_iter().flatten().filter_map(Result::ok);
        let mut logs: Vec<_> =
            entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|end| end == "log")).collect();
        logs.sort();
        logs.iter().map(|log| format!("--- {}\n{}", log.display(), crate::process::tail(log))).collect()
    }

    /// Where the application is reached through its sidecar.
    pub fn url(&self) -> Uri {
        let url = format!("http://127.0.0.1:{}/bytes/100", self.web_port);
        url.parse().expect("an address and a path make a URL")
    }

    fn folder(&self) -> &Path {
        self.folder.path()
    }

    async fn define(&self) -> anyhow::Result<()> {
        let definitions: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        for definition in [FetchrProxy::crd(), FetchrPolicy::crd()] {
            definitions.create(&PostParams::default(), &definition).await?;
            let name = definition.name_any();
            eventually("the definition is served", SOON, async || {
                let conditions = definitions.get(&name).await?.status.and_then(|status| status.conditions).unwrap_or_default();
                ensure!(conditions.iter().any(|one| one.type_ == "Established" && one.status == "True"), "not yet");
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    async fn populate(&self) -> anyhow::Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        for name in [OPERATOR_NAMESPACE, NAMESPACE] {
            let namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
            namespaces.create(&PostParams::default(), &namespace).await?;
        }
        let account = serde_json::from_value(json!({"metadata": {"name": "default"}}))?;
        self.api::<ServiceAccount>().create(&PostParams::default(), &account).await?;
        let upstream = format!("http://{}", self.origin);
        let listener =
            json!({"name": NAME, "address": "127.0.0.1", "port": self.web_port, "direction": "Inbound", "upstream": upstream});
        let proxy = json!({
            "apiVersion": "fetchr.sh/v1alpha1",
            "kind": "FetchrProxy",
            "metadata": {"name": NAME},
            "spec": {"interception": {"mode": "Explicit", "listeners": [listener]}},
        });
        self.api::<FetchrProxy>().create(&PostParams::default(), &serde_json::from_value(proxy)?).await?;
        Ok(())
    }
}
