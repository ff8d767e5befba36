//! One operator with a thousand streams: from a changed policy to its plan on every stream, and memory.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Args;
use e2e::stream::ScriptedSidecar;
use serde_json::json;
use tokio::sync::mpsc;
use wire::v1;

use crate::{
    cluster::{self, Arrival, Arrivals, Changes, Cluster, wait_for_all},
    findings::Findings,
};

const POLICY: &str = "hello";
/// What precedes the number of a change in the plan.
const MARK: &str = "change-";

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

/// Measures, with an API server and an operator of its own.
pub(crate) fn run(binaries: &Path, options: &Options) -> Result<Findings> {
    cluster::run(measure(binaries, options))
}

async fn measure(binaries: &Path, options: &Options) -> Result<Findings> {
    let cluster = Cluster::start().await?;
    let operator = cluster.operator(binaries).await?;
    let idle = operator.process.rss_kib();
    let (arrivals, mut arrived) = mpsc::unbounded_channel();
    let opened = Instant::now();
    cluster.open_streams(&operator, options.streams, &[], |sidecar| follow(sidecar, arrivals.clone())).await?;
    wait_for_all(&mut arrived, &None, options.streams).await?;
    let opening = opened.elapsed();
    let connected = operator.process.rss_kib();

    let amount = (options.changes, options.streams);
    let changes = Changes::measure(&operator, &mut arrived, amount, async |number| {
        let headers = json!({"response": {"set": [{"name": "x-change", "value": format!("{MARK}{number}")}]}});
        cluster.apply(POLICY, "Inbound", &json!([{"name": "all", "headers": headers}])).await?;
        Ok(Some(number))
    })
    .await?;
    let (rss, [p50, p99, max]) = ([idle, connected, changes.most_kib], changes.milliseconds());
    let figures = json!({"opened_s": opening.as_secs_f64(), "rss_kib": rss, "p50_ms": p50, "p99_ms": p99, "max_ms": max});
    Findings::new(table(options, opening, rss, [p50, p99, max]), &figures)
}

fn table(options: &Options, opening: Duration, rss: [u64; 3], [p50, p99, max]: [f64; 3]) -> String {
    let [idle, connected, most] = rss.map(|kib| kib / 1024);
    format!(
        "| {} streams, {} changes of a policy | |\n|---|---|\n\
         | policy applied to plan received: p50, p99, max | {p50:.0} ms, {p99:.0} ms, {max:.0} ms |\n\
         | memory of the operator (RSS): without streams, connected, most | {idle} MiB, {connected} MiB, {most} MiB |\n\
         | pods made, tokens issued and streams opened in | {:.1} s |\n",
        options.streams,
        options.changes,
        opening.as_secs_f64(),
    )
}

/// Acknowledges each plan and tells of it, until the stream ends.
async fn follow(mut sidecar: ScriptedSidecar, arrivals: Arrivals<Option<usize>>) {
    while let Ok(message) = sidecar.next(Duration::MAX).await {
        if let v1::down::Message::Plan(plan) = message {
            let arrival = Arrival { at: Instant::now(), what: change_in(&plan.document) };
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
