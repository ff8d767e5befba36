//! One operator in a cluster of many Services: from a changed EndpointSlice to the streams whose plan spreads requests over its Service,
//! and memory.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use crds::{FetchrPolicy, plan::ObjectRef};
use e2e::{
    apiserver::ApiServer,
    stream::{ScriptedSidecar, hello, token_of},
    wait::eventually,
};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{sync::mpsc, time::timeout};
use wire::v1;

use crate::{
    findings::Findings,
    streams::{AT_A_TIME, NAMESPACE, OPERATOR_NAMESPACE, PATIENCE, PROXY, ca_bundle, make_pod, object, prepare, start_operator},
};

/// What is measured.
#[derive(Args)]
pub(crate) struct Options {
    /// Services of the cluster.
    #[arg(long, default_value_t = 5000)]
    services: usize,
    /// Endpoints of each.
    #[arg(long, default_value_t = 10)]
    endpoints: usize,
    /// Services that the plan asks for.
    #[arg(long, default_value_t = 50)]
    wanted: usize,
    /// Streams that are open.
    #[arg(long, default_value_t = 100)]
    streams: usize,
    /// Changes of an EndpointSlice, one after the other.
    #[arg(long, default_value_t = 100)]
    changes: usize,
}

/// Endpoints of a Service that reached a stream: their number tells the change.
struct Arrival {
    endpoints: usize,
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
    spread(&client, options.wanted).await?;
    let folder = tempfile::tempdir()?;
    let (operator, _) = start_operator(binaries, &server, folder.path())?;
    let _ = ca_bundle(&client).await?; // it is up
    let empty = operator.rss_kib();
    drop(operator);

    let made = stream::iter(0..options.services).map(|number| make_service(&client, number, options.endpoints));
    made.buffer_unordered(AT_A_TIME).try_collect::<Vec<()>>().await?;
    let (operator, streams) = start_operator(binaries, &server, folder.path())?;
    let ca = ca_bundle(&client).await?;
    let (arrivals, mut arrived) = mpsc::unbounded_channel();
    for number in 0..options.streams {
        let pod = make_pod(&client, number).await?;
        let mut hello = hello(&pod, &ObjectRef::new(NAMESPACE, PROXY));
        hello.features.push(wire::service::FEATURE.to_owned());
        let (name, token) = (format!("fetchr-streams.{OPERATOR_NAMESPACE}.svc"), token_of(&client, &pod).await?);
        let open = async || ScriptedSidecar::open(streams, &name, &ca, &token, hello.clone()).await;
        let sidecar = eventually("the operator takes streams", PATIENCE, open).await?;
        tokio::spawn(follow(sidecar, arrivals.clone()));
    }
    wait_for_all(&mut arrived, options.endpoints, options.streams).await?;
    let connected = operator.rss_kib();

    let (mut latencies, mut most) = (Vec::new(), connected);
    for change in 1..=options.changes {
        let endpoints = options.endpoints + change;
        let start = Instant::now();
        write_slice(&client, 0, endpoints).await?;
        let arrivals = wait_for_all(&mut arrived, endpoints, options.streams).await?;
        latencies.extend(arrivals.into_iter().map(|at| at - start));
        most = most.max(operator.rss_kib());
    }
    latencies.sort();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
    let figures = json!({"rss_kib": [empty, connected, most], "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0)});
    Findings::new(table(options, [empty, connected, most], &latencies), &figures)
}

fn table(options: &Options, rss: [u64; 3], latencies: &[Duration]) -> String {
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_millis();
    let [empty, connected, most] = rss.map(|kib| kib / 1024);
    format!(
        "| {} Services with {} endpoints each, {} streams whose plan asks for {} of them, {} changes | |\n|---|---|\n\
         | EndpointSlice written to endpoints received: p50, p99, max | {} ms, {} ms, {} ms |\n\
         | memory of the operator (RSS): without Services and streams, with them, most | {empty} MiB, {connected} MiB, {most} MiB |\n",
        options.services,
        options.endpoints,
        options.streams,
        options.wanted,
        options.changes,
        at(0.5),
        at(0.99),
        at(1.0),
    )
}

/// The policy that asks for the first so many Services.
async fn spread(client: &Client, wanted: usize) -> Result<()> {
    let names: Vec<String> = (0..wanted).map(name).collect();
    let matches: Vec<_> = names.chunks(16).map(|hosts| json!({"hosts": hosts})).collect();
    let rule = |(number, matches): (usize, &[serde_json::Value])| json!({"name": format!("r{number}"), "matches": matches, "loadBalancing": {}});
    let rules: Vec<_> = matches.chunks(4).enumerate().map(rule).collect();
    let body = json!({
        "apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrPolicy", "metadata": {"name": "spread"},
        "spec": {"targetRefs": [{"kind": "FetchrProxy", "name": PROXY}], "direction": "Outbound", "rules": rules},
    });
    let policies: Api<FetchrPolicy> = Api::namespaced(client.clone(), NAMESPACE);
    policies.patch("spread", &PatchParams::apply("bench"), &Patch::Apply(&body)).await?;
    Ok(())
}

fn name(number: usize) -> String {
    format!("s{number}")
}

async fn make_service(client: &Client, number: usize, endpoints: usize) -> Result<()> {
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    let service = json!({"metadata": {"name": name(number)}, "spec": {"ports": [{"name": "http", "port": 80}]}});
    services.create(&PostParams::default(), &object(service)?).await?;
    write_slice(client, number, endpoints).await
}

async fn write_slice(client: &Client, number: usize, endpoints: usize) -> Result<()> {
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    let endpoint = |last: usize| {
        let address = format!("10.{}.{}.{}", number >> 8 & 255, number & 255, last);
        let target = json!({"kind": "Pod", "name": format!("pod-{number}-{last}"), "namespace": NAMESPACE});
        let conditions = json!({"ready": true, "serving": true, "terminating": false});
        json!({"addresses": [address], "conditions": conditions, "nodeName": "node", "zone": "zone", "targetRef": target})
    };
    let body = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name(number), "labels": {"kubernetes.io/service-name": name(number)}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
        "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
    });
    slices.patch(&name(number), &PatchParams::apply("bench"), &Patch::Apply(&body)).await?;
    Ok(())
}

/// Acknowledges what is told, and tells how many endpoints the first Service has.
async fn follow(mut sidecar: ScriptedSidecar, arrivals: mpsc::UnboundedSender<Arrival>) {
    while let Ok(message) = sidecar.next(Duration::MAX).await {
        let said = match message {
            v1::down::Message::Plan(plan) => sidecar.ack(&plan).await,
            v1::down::Message::Services(services) => {
                let is_first = |service: &&v1::Service| service.name.as_ref().is_some_and(|found| found.name == name(0));
                if let Some(first) = services.changed.iter().find(is_first) {
                    let packed = first.ports.iter().flat_map(|port| &port.endpoints).map(|endpoints| endpoints.v4.len());
                    let arrival = Arrival { endpoints: packed.sum::<usize>() / 4, at: Instant::now() };
                    if arrivals.send(arrival).is_err() {
                        return;
                    }
                }
                sidecar.say(v1::up::Message::ServicesAck(v1::ServicesAck { version: services.version })).await
            }
            _ => Ok(()),
        };
        if said.is_err() {
            return;
        }
    }
}

async fn wait_for_all(arrived: &mut mpsc::UnboundedReceiver<Arrival>, endpoints: usize, count: usize) -> Result<Vec<Instant>> {
    let mut times = Vec::with_capacity(count);
    let all = async {
        while times.len() < count {
            let arrival = arrived.recv().await.context("all streams have ended")?;
            if arrival.endpoints == endpoints {
                times.push(arrival.at);
            }
        }
        anyhow::Ok(())
    };
    let ended = timeout(PATIENCE, all).await;
    ensure!(ended.is_ok(), "only {} of {count} streams have the {endpoints} endpoints after {PATIENCE:?}", times.len());
    ended??;
    Ok(times)
}
