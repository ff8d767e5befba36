//! Latency at a constant rate: half of what nginx can do.

pub(crate) mod open_loop;
pub(crate) mod quantiles;

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use clap::Args;
use e2e::report::{median, table};
use serde::Serialize;

use crate::{
    findings::{Findings, Group},
    load,
    peers::{self, Peer, Plan},
};
use open_loop::Schedule;
use quantiles::Quantiles;

/// How much, how long and how often.
#[derive(Args)]
pub(crate) struct Options {
    /// Rounds; in each, every proxy has its turn.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of a turn.
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Requests a second; without it half of what nginx does at most.
    #[arg(long)]
    rate: Option<f64>,
}

const CONNECTIONS: usize = 64;

/// What was measured of one proxy.
#[derive(Default, Serialize)]
struct Figures {
    proxy: &'static str,
    /// Requests a second, at most.
    most: f64,
    #[serde(flatten)]
    latencies: Quantiles,
}

/// Finds out what each proxy can do, and then sends all of them the same rate.
pub(crate) fn run(binaries: &Path, options: &Options) -> Result<Findings> {
    let folder = tempfile::tempdir()?;
    let _origin = peers::origin(folder.path())?;
    let peers = peers::all(&Plan::new(binaries, folder.path()))?;
    let mut all = peers
        .iter()
        .map(|peer| Ok(Figures { proxy: peer.name, most: most(peer)?, ..Figures::default() }))
        .collect::<Result<Vec<_>>>()?;
    let of_nginx = all.iter().find(|figures| figures.proxy == "nginx").map(|figures| figures.most / 2.0);
    let rate = options.rate.or(of_nginx).context("without nginx there must be a --rate")?;
    let schedule = Schedule { rate, duration: Duration::from_secs(options.seconds.into()), connections: CONNECTIONS };
    for _ in 0..options.rounds {
        for (peer, figures) in peers.iter().zip(&mut all) {
            let latencies = schedule.send(peer.http).with_context(|| format!("{rate:.0} requests a second to {}", peer.name))?;
            figures.latencies.add(&latencies);
        }
    }
    let bars = all.iter().map(|figures| (figures.proxy, median(&figures.latencies.p99))).collect();
    let findings = Findings::new(summary(&all, rate), &serde_json::json!({"rate": rate, "proxies": all}))?;
    Ok(findings.with_bars("p99 in microseconds", &[Group { name: format!("{rate:.0} requests/s"), bars }]))
}

fn most(peer: &Peer) -> Result<f64> {
    let url = format!("http://{}/1k", peer.http);
    let rates = (0..3).map(|_| Ok(load::wrk(&url, CONNECTIONS as u32, 1, &[])?.rate)).collect::<Result<Vec<_>>>();
    Ok(median(&rates.with_context(|| format!("load on {}", peer.name))?))
}

fn summary(all: &[Figures], rate: f64) -> String {
    let head = format!("{rate:.0} requests/s, µs (least to most)");
    let heads = [head.as_str()].into_iter().chain(Quantiles::HEADS).chain(["requests/s at most"]);
    let mut rows = vec![heads.map(str::to_owned).collect::<Vec<_>>()];
    for figures in all {
        let mut row = vec![figures.proxy.to_owned()];
        row.extend(figures.latencies.cells());
        row.push(format!("{:.0}", figures.most));
        rows.push(row);
    }
    table(&rows)
}
