//! One operator in a cluster of many Services: from a changed EndpointSlice to the streams whose plan spreads requests over its Service,
//! and memory.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Args;
use e2e::stream::ScriptedSidecar;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use wire::v1;

use crate::{
    cluster::{self, AT_A_TIME, Arrival, Arrivals, Changes, Cluster, NAMESPACE, object, wait_for_all},
    findings::Findings,
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

/// Measures, with an API server and an operator of its own.
pub(crate) fn run(binaries: &Path, options: &Options) -> Result<Findings> {
    cluster::run(measure(binaries, options))
}

async fn measure(binaries: &Path, options: &Options) -> Result<Findings> {
    let cluster = Cluster::start().await?;
    cluster.apply("spread", "Outbound", &rules(options.wanted)).await?;
    let empty = cluster.operator(binaries).await?.process.rss_kib();

    let made = stream::iter(0..options.services).map(|number| make_service(&cluster, number, options.endpoints));
    made.buffer_unordered(AT_A_TIME).try_collect::<Vec<()>>().await?;
    let operator = cluster.operator(binaries).await?;
    let (arrivals, mut arrived) = mpsc::unbounded_channel();
    let features = [wire::service::FEATURE];
    cluster.open_streams(&operator, options.streams, &features, |sidecar| follow(sidecar, arrivals.clone())).await?;
    wait_for_all(&mut arrived, &options.endpoints, options.streams).await?;
    let connected = operator.process.rss_kib();

    let amount = (options.changes, options.streams);
    let changes = Changes::measure(&operator, &mut arrived, amount, async |number| {
        let endpoints = options.endpoints + number;
        write_slice(&cluster, 0, endpoints).await?;
        Ok(endpoints)
    })
    .await?;
    let (rss, [p50, p99, max]) = ([empty, connected, changes.most_kib], changes.milliseconds());
    let figures = json!({"rss_kib": rss, "p50_ms": p50, "p99_ms": p99, "max_ms": max});
    Findings::new(table(options, rss, [p50, p99, max]), &figures)
}

fn table(options: &Options, rss: [u64; 3], [p50, p99, max]: [f64; 3]) -> String {
    let [empty, connected, most] = rss.map(|kib| kib / 1024);
    format!(
        "| {} Services with {} endpoints each, {} streams whose plan asks for {} of them, {} changes | |\n|---|---|\n\
         | EndpointSlice written to endpoints received: p50, p99, max | {p50:.0} ms, {p99:.0} ms, {max:.0} ms |\n\
         | memory of the operator (RSS): without Services and streams, with them, most | {empty} MiB, {connected} MiB, {most} MiB |\n",
        options.services, options.endpoints, options.streams, options.wanted, options.changes,
    )
}

/// The rules that ask for the first so many Services.
fn rules(wanted: usize) -> Value {
    let names: Vec<String> = (0..wanted).map(name).collect();
    let matches: Vec<_> = names.chunks(16).map(|hosts| json!({"hosts": hosts})).collect();
    let rule =
        |(number, matches): (usize, &[Value])| json!({"name": format!("r{number}"), "matches": matches, "loadBalancing": {}});
    matches.chunks(4).enumerate().map(rule).collect()
}

fn name(number: usize) -> String {
    format!("s{number}")
}

async fn make_service(cluster: &Cluster, number: usize, endpoints: usize) -> Result<()> {
    let service = json!({"metadata": {"name": name(number)}, "spec": {"ports": [{"name": "http", "port": 80}]}});
    cluster.api::<Service>().create(&PostParams::default(), &object(service)?).await?;
    write_slice(cluster, number, endpoints).await
}

async fn write_slice(cluster: &Cluster, number: usize, endpoints: usize) -> Result<()> {
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
    cluster.api::<EndpointSlice>().patch(&name(number), &PatchParams::apply("bench"), &Patch::Apply(&body)).await?;
    Ok(())
}

/// Acknowledges what is told, and tells how many endpoints the first Service has.
async fn follow(mut sidecar: ScriptedSidecar, arrivals: Arrivals<usize>) {
    while let Ok(message) = sidecar.next(Duration::MAX).await {
        let said = match message {
            v1::down::Message::Plan(plan) => sidecar.ack(&plan).await,
            v1::down::Message::Services(services) => {
                let is_first = |service: &&v1::Service| service.name.as_ref().is_some_and(|found| found.name == name(0));
                if let Some(first) = services.changed.iter().find(is_first) {
                    let packed = first.ports.iter().flat_map(|port| &port.endpoints).map(|endpoints| endpoints.v4.len());
                    let arrival = Arrival { what: packed.sum::<usize>() / 4, at: Instant::now() };
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
