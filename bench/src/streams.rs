//! One operator with a thousand streams: from a changed policy to its plan on every stream, and memory.
//!
//! The API server, the tokens and the operator are real; the sidecars are nothing but their streams.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
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
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::timeout};
use wire::v1;

use crate::{findings::Findings, process::Process};

pub(super) const OPERATOR_NAMESPACE: &str = "fetchr-system";
pub(super) const NAMESPACE: &str = "load";
pub(super) const PROXY: &str = "web";
const POLICY: &str = "hello";
/// What precedes the number of a change in the plan.
const MARK: &str = "change-";
/// How long one step may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// Requests to the API server at a time.
pub(super) const AT_A_TIME: usize = 16;

/// What is measured.
#[derive(Args)]
pub(crate) struct Options {
    /// Streams that are open.
    #[arg(long, default_value_t = 1000)]
    streams: usize,
    /// Changes of the policy, one after the other.
    #[arg(long, default_value_t = 100)]
    changes: usize,
}

/// A plan that reached a stream.
struct Arrival {
    change: Option<usize>,
    at: Instant,
}

/// Measures, with an API server and an operator of its own.
pub(crate) fn run(binaries: &Path, options: &Options) -> Result<Findings> {
    // Another part of the program may have installed it.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    tokio::runtime::Runtime::new()?.block_on(measure(binaries, options))
}

async fn measure(binaries: &Path, options: &Options) -> Result<Findings> {
    let server = ApiServer::start().await?;
    let client = server.client().await?;
    prepare(&client).await?;
    let folder = tempfile::tempdir()?;
    let (operator, streams) = start_operator(binaries, &server, folder.path())?;
    let ca = ca_bundle(&client).await?;

    let idle = operator.rss_kib();
    let (arrivals, mut arrived) = mpsc::unbounded_channel();
    let opened = Instant::now();
    open_all(&client, streams, &ca, options.streams, &arrivals).await?;
    wait_for_all(&mut arrived, None, options.streams).await?;
    let opening = opened.elapsed();
    let connected = operator.rss_kib();

    let mut latencies = Vec::with_capacity(options.streams * options.changes);
    let mut most = connected;
    for change in 0..options.changes {
        let start = Instant::now();
        change_policy(&client, change).await?;
        let arrivals = wait_for_all(&mut arrived, Some(change), options.streams).await?;
        latencies.extend(arrivals.into_iter().map(|at| at - start));
        most = most.max(operator.rss_kib());
    }
    latencies.sort();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
    let figures = json!({
        "opened_s": opening.as_secs_f64(), "rss_kib": [idle, connected, most], "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0),
    });
    Findings::new(table(options, opening, [idle, connected, most], &latencies), &figures)
}

fn table(options: &Options, opening: Duration, rss: [u64; 3], latencies: &[Duration]) -> String {
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_millis();
    let [idle, connected, most] = rss.map(|kib| kib / 1024);
    format!(
        "| {} streams, {} changes of a policy | |\n|---|---|\n\
         | policy applied to plan received: p50, p99, max | {} ms, {} ms, {} ms |\n\
         | memory of the operator (RSS): without streams, connected, most | {idle} MiB, {connected} MiB, {most} MiB |\n\
         | pods made, tokens issued and streams opened in | {:.1} s |\n",
        options.streams,
        options.changes,
        at(0.5),
        at(0.99),
        at(1.0),
        opening.as_secs_f64(),
    )
}

/// Definitions, namespaces and the proxy.
pub(super) async fn prepare(client: &Client) -> Result<()> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in [FetchrProxy::crd(), FetchrPolicy::crd()] {
        definitions.create(&PostParams::default(), &definition).await?;
    }
    let namespaces: Api<Namespace> = Api::all(client.clone());
    for name in [OPERATOR_NAMESPACE, NAMESPACE] {
        namespaces.create(&PostParams::default(), &object(json!({"metadata": {"name": name}}))?).await?;
    }
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
    accounts.create(&PostParams::default(), &object(json!({"metadata": {"name": "default"}}))?).await?;
    let proxies: Api<FetchrProxy> = Api::namespaced(client.clone(), NAMESPACE);
    eventually("the definitions are served", PATIENCE, async || {
        let body = json!({"apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrProxy", "metadata": {"name": PROXY}, "spec": {}});
        Ok(proxies.patch(PROXY, &PatchParams::apply("bench"), &Patch::Apply(&body)).await?)
    })
    .await?;
    Ok(())
}

pub(super) fn start_operator(binaries: &Path, server: &ApiServer, folder: &Path) -> Result<(Process, SocketAddr)> {
    let defaults = folder.join("default-proxy.yaml");
    fs::write(&defaults, "{}\n")?;
    let ports = (0..4).map(|_| Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?)).collect::<Result<Vec<_>>>()?;
    let ports = ports.iter().map(|port| Ok(port.local_addr()?.port())).collect::<Result<Vec<_>>>()?;
    let mut command = vec!["env".to_owned(), format!("KUBECONFIG={}", server.kubeconfig().display())];
    command.push(binaries.join("fetchr-operator").display().to_string());
    command.extend(["run", "--log-level", "warn", "--pod-name", "bench", "--sidecar-image", "none"].map(str::to_owned));
    command.extend([format!("--namespace={OPERATOR_NAMESPACE}"), format!("--default-proxy-file={}", defaults.display())]);
    for (flag, port) in ["stream-port", "webhook-port", "metrics-port", "api-port"].iter().zip(&ports) {
        command.push(format!("--{flag}={port}"));
    }
    let streams: SocketAddr = (Ipv4Addr::LOCALHOST, ports[0]).into();
    let mut operator = Process::start(&command, &folder.join("operator.log"))?;
    operator.wait_for(streams)?;
    Ok((operator, streams))
}

pub(super) async fn ca_bundle(client: &Client) -> Result<String> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), OPERATOR_NAMESPACE);
    eventually("there are certificates", PATIENCE, async || {
        let data = secrets.get("fetchr-ca").await?.data.unwrap_or_default();
        Ok(String::from_utf8(data.get("ca.crt").context("no ca.crt")?.0.clone())?)
    })
    .await
}

/// Makes the pods and opens their streams.
async fn open_all(
    client: &Client,
    operator: SocketAddr,
    ca: &str,
    count: usize,
    arrivals: &mpsc::UnboundedSender<Arrival>,
) -> Result<()> {
    stream::iter(0..count)
        .map(|index| async move {
            let pod = make_pod(client, index).await?;
            let token = token_of(client, &pod).await?;
            let hello = hello(&pod, &ObjectRef::new(NAMESPACE, PROXY));
            let name = format!("fetchr-streams.{OPERATOR_NAMESPACE}.svc");
            let sidecar = ScriptedSidecar::open(operator, &name, ca, &token, hello).await?;
            tokio::spawn(follow(sidecar, arrivals.clone()));
            anyhow::Ok(())
        })
        .buffer_unordered(AT_A_TIME)
        .try_collect::<Vec<()>>()
        .await?;
    Ok(())
}

/// A pod as admission would have left it.
pub(super) async fn make_pod(client: &Client, index: usize) -> Result<Pod> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let stamp = json!({"version": "0.1.0", "proxy": format!("{NAMESPACE}/{PROXY}"), "workload": "Deployment/web"}).to_string();
    let pod = object(json!({
        "metadata": {
            "name": format!("web-{index}"),
            "labels": {"app": "web", "fetchr.sh/injected": "true"},
            "annotations": {"fetchr.sh/inject": "enabled", "fetchr.sh/status": stamp},
        },
        "spec": {"containers": [{"name": "web", "image": "web"}]},
    }))?;
    Ok(pods.create(&PostParams::default(), &pod).await?)
}

/// Acknowledges each plan and tells of it, until the stream ends.
async fn follow(mut sidecar: ScriptedSidecar, arrivals: mpsc::UnboundedSender<Arrival>) {
    while let Ok(message) = sidecar.next(Duration::MAX).await {
        if let v1::down::Message::Plan(plan) = message {
            let arrival = Arrival { at: Instant::now(), change: change_in(&plan.document) };
            if sidecar.ack(&plan).await.is_err() || arrivals.send(arrival).is_err() {
                return;
            }
        }
    }
}

fn change_in(document: &[u8]) -> Option<usize> {
    let (_, after) = std::str::from_utf8(document).ok()?.split_once(MARK)?;
    after.split_once('"')?.0.parse().ok()
}

/// Waits until every stream has the plan of a change.
async fn wait_for_all(
    arrived: &mut mpsc::UnboundedReceiver<Arrival>,
    change: Option<usize>,
    count: usize,
) -> Result<Vec<Instant>> {
    let mut times = Vec::with_capacity(count);
    let all = async {
        while times.len() < count {
            let arrival = arrived.recv().await.context("all streams have ended")?;
            if arrival.change == change {
                times.push(arrival.at);
            }
        }
        anyhow::Ok(())
    };
    let ended = timeout(PATIENCE, all).await;
    ensure!(ended.is_ok(), "only {} of {count} streams have the plan of change {change:?} after {PATIENCE:?}", times.len());
    ended??;
    Ok(times)
}

async fn change_policy(client: &Client, change: usize) -> Result<()> {
    let policies: Api<FetchrPolicy> = Api::namespaced(client.clone(), NAMESPACE);
    let headers = json!({"response": {"set": [{"name": "x-change", "value": format!("{MARK}{change}")}]}});
    let body = json!({
        "apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrPolicy", "metadata": {"name": POLICY},
        "spec": {"targetRefs": [{"kind": "FetchrProxy", "name": PROXY}], "rules": [{"name": "all", "headers": headers}]},
    });
    policies.patch(POLICY, &PatchParams::apply("bench"), &Patch::Apply(&body)).await?;
    Ok(())
}

pub(super) fn object<K: serde::de::DeserializeOwned>(body: Value) -> Result<K> {
    Ok(serde_json::from_value(body)?)
}
