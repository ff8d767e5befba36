//! A real API server with one operator, and streams of sidecars that are nothing but that.

use std::{
    fmt::Debug,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use crds::{FetchrPolicy, FetchrProxy, plan::ObjectRef};
use e2e::{
    apiserver::ApiServer,
    stream::{ScriptedSidecar, hello, token_of},
    wait::eventually,
};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::{
    api::core::v1::{Namespace, Pod, Secret, ServiceAccount},
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, CustomResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{sync::mpsc, time::timeout};

use crate::process::Process;

const OPERATOR_NAMESPACE: &str = "fetchr-system";
/// Namespace of the pods and of what is measured.
pub(crate) const NAMESPACE: &str = "load";
/// Their proxy.
pub(crate) const PROXY: &str = "web";
/// How long one step may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Requests to the API server at a time.
pub(crate) const AT_A_TIME: usize = 16;

/// Runs a measurement in a runtime of its own.
pub(crate) fn run<T>(measurement: impl Future<Output = Result<T>>) -> Result<T> {
    // Another part of the program may have installed it.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    tokio::runtime::Runtime::new()?.block_on(measurement)
}

/// The API server, with definitions, namespaces and the proxy. It ends when this is dropped.
pub(crate) struct Cluster {
    server: ApiServer,
    pub(crate) client: Client,
    folder: TempDir,
}

/// An operator of it, which ends when this is dropped.
pub(crate) struct Operator {
    pub(crate) process: Process,
    streams: SocketAddr,
    ca: String,
}

impl Cluster {
    pub(crate) async fn start() -> Result<Self> {
        let server = ApiServer::start().await?;
        let client = server.client().await?;
        let cluster = Self { server, client, folder: tempfile::tempdir()? };
        cluster.prepare().await?;
        Ok(cluster)
    }

    async fn prepare(&self) -> Result<()> {
        let definitions: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        for definition in [FetchrProxy::crd(), FetchrPolicy::crd()] {
            definitions.create(&PostParams::default(), &definition).await?;
        }
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        for name in [OPERATOR_NAMESPACE, NAMESPACE] {
            namespaces.create(&PostParams::default(), &object(json!({"metadata": {"name": name}}))?).await?;
        }
        let accounts: Api<ServiceAccount> = self.api();
        accounts.create(&PostParams::default(), &object(json!({"metadata": {"name": "default"}}))?).await?;
        let proxies: Api<FetchrProxy> = self.api();
        eventually("the definitions are served", PATIENCE, async || {
            let body =
                json!({"apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrProxy", "metadata": {"name": PROXY}, "spec": {}});
            Ok(proxies.patch(PROXY, &PatchParams::apply("bench"), &Patch::Apply(&body)).await?)
        })
        .await?;
        Ok(())
    }

    /// Objects of a kind where it is measured.
    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// Makes a policy of the proxy's, or changes it.
    pub(crate) async fn apply(&self, policy: &str, direction: &str, rules: &Value) -> Result<()> {
        let body = json!({
            "apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrPolicy", "metadata": {"name": policy},
            "spec": {"targetRefs": [{"kind": "FetchrProxy", "name": PROXY}], "direction": direction, "rules": rules},
        });
        self.api::<FetchrPolicy>().patch(policy, &PatchParams::apply("bench"), &Patch::Apply(&body)).await?;
        Ok(())
    }

    /// Starts an operator, and waits until it has certificates.
    pub(crate) async fn operator(&self, binaries: &Path) -> Result<Operator> {
        let folder = self.folder.path();
        let defaults = folder.join("default-proxy.yaml");
        fs::write(&defaults, "{}\n")?;
        // All are open at once, so that they differ, and closed before they are taken.
        let free: Vec<_> = (0..4).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<Result<_, _>>()?;
        let ports = free.iter().map(|port| Ok(port.local_addr()?.port())).collect::<Result<Vec<_>>>()?;
        drop(free);
        let mut command = vec!["env".to_owned(), format!("KUBECONFIG={}", self.server.kubeconfig().display())];
        command.push(binaries.join("fetchr-operator").display().to_string());
        command.extend(["run", "--log-level", "warn", "--pod-name", "bench", "--sidecar-image", "none"].map(str::to_owned));
        command.extend([format!("--namespace={OPERATOR_NAMESPACE}"), format!("--default-proxy-file={}", defaults.display())]);
        for (flag, port) in ["stream-port", "webhook-port", "metrics-port", "api-port"].iter().zip(&ports) {
            command.push(format!("--{flag}={port}"));
        }
        let streams: SocketAddr = (Ipv4Addr::LOCALHOST, ports[0]).into();
        let mut process = Process::start(&command, &folder.join("operator.log"))?;
        process.wait_for(streams)?;
        Ok(Operator { process, streams, ca: self.ca_bundle().await? })
    }

    async fn ca_bundle(&self) -> Result<String> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), OPERATOR_NAMESPACE);
        eventually("there are certificates", PATIENCE, async || {
            let data = secrets.get("fetchr-ca").await?.data.unwrap_or_default();
            Ok(String::from_utf8(data.get("ca.crt").context("no ca.crt")?.0.clone())?)
        })
        .await
    }

    /// Makes so many pods and opens a stream of each, with these features besides, and hands it to `follow`, which lives in a task.
    pub(crate) async fn open_streams<F>(
        &self,
        operator: &Operator,
        count: usize,
        features: &[&str],
        follow: impl Fn(ScriptedSidecar) -> F,
    ) -> Result<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let follow = &follow;
        stream::iter(0..count)
            .map(|index| async move {
                tokio::spawn(follow(self.open_stream(operator, index, features).await?));
                anyhow::Ok(())
            })
            .buffer_unordered(AT_A_TIME)
            .try_collect::<Vec<()>>()
            .await?;
        Ok(())
    }

    async fn open_stream(&self, operator: &Operator, index: usize, features: &[&str]) -> Result<ScriptedSidecar> {
        let pod = self.make_pod(index).await?;
        let token = token_of(&self.client, &pod).await?;
        let mut hello = hello(&pod, &ObjectRef::new(NAMESPACE, PROXY));
        hello.features.extend(features.iter().map(|&feature| feature.to_owned()));
        let name = format!("fetchr-streams.{OPERATOR_NAMESPACE}.svc");
        let open = async || ScriptedSidecar::open(operator.streams, &name, &operator.ca, &token, hello.clone()).await;
        eventually("the operator takes streams", PATIENCE, open).await
    }

    /// A pod as admission would have left it.
    async fn make_pod(&self, index: usize) -> Result<Pod> {
        let stamp =
            json!({"version": "0.1.0", "proxy": format!("{NAMESPACE}/{PROXY}"), "workload": "Deployment/web"}).to_string();
        let pod = object(json!({
            "metadata": {
                "name": format!("web-{index}"),
                "labels": {"app": "web", "fetchr.sh/injected": "true"},
                "annotations": {"fetchr.sh/inject": "enabled", "fetchr.sh/status": stamp},
            },
            "spec": {"containers": [{"name": "web", "image": "web"}]},
        }))?;
        Ok(self.api::<Pod>().create(&PostParams::default(), &pod).await?)
    }
}

/// Something that reached a stream.
pub(crate) struct Arrival<T> {
    pub(crate) what: T,
    pub(crate) at: Instant,
}

/// Where streams tell what has reached them.
pub(crate) type Arrivals<T> = mpsc::UnboundedSender<Arrival<T>>;

/// Waits until the same has reached so many streams, and returns when.
pub(crate) async fn wait_for_all<T: PartialEq + Debug>(
    arrived: &mut mpsc::UnboundedReceiver<Arrival<T>>,
    what: &T,
    count: usize,
) -> Result<Vec<Instant>> {
    let mut times = Vec::with_capacity(count);
    let all = async {
        while times.len() < count {
            let arrival = arrived.recv().await.context("all streams have ended")?;
            if arrival.what == *what {
                times.push(arrival.at);
            }
        }
        anyhow::Ok(())
    };
    let ended = timeout(PATIENCE, all).await;
    ensure!(ended.is_ok(), "only {} of {count} streams have {what:?} after {PATIENCE:?}", times.len());
    ended??;
    Ok(times)
}

/// How long each change took to each stream, and the most memory of the operator meanwhile.
pub(crate) struct Changes {
    latencies: Vec<Duration>,
    pub(crate) most_kib: u64,
}

impl Changes {
    /// Makes changes one after the other, each of which returns what reaches the streams then.
    pub(crate) async fn measure<T: PartialEq + Debug>(
        operator: &Operator,
        arrived: &mut mpsc::UnboundedReceiver<Arrival<T>>,
        (changes, streams): (usize, usize),
        mut change: impl AsyncFnMut(usize) -> Result<T>,
    ) -> Result<Self> {
        let mut measured = Self { latencies: Vec::with_capacity(changes * streams), most_kib: operator.process.rss_kib() };
        for number in 1..=changes {
            let start = Instant::now();
            let what = change(number).await?;
            let arrivals = wait_for_all(arrived, &what, streams).await?;
            measured.latencies.extend(arrivals.into_iter().map(|at| at - start));
            measured.most_kib = measured.most_kib.max(operator.process.rss_kib());
        }
        measured.latencies.sort();
        Ok(measured)
    }

    /// Median, 99th percentile and maximum, in milliseconds.
    pub(crate) fn milliseconds(&self) -> [f64; 3] {
        [0.5, 0.99, 1.0].map(|share| {
            let at = (self.latencies.len().saturating_sub(1) as f64 * share) as usize;
            self.latencies.get(at).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1000.0)
        })
    }
}

/// An object of its JSON.
pub(crate) fn object<K: DeserializeOwned>(body: Value) -> Result<K> {
    Ok(serde_json::from_value(body)?)
}
