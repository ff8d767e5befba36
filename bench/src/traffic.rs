//! CPU per request, latency and memory under load.

use std::path::Path;

use anyhow::{Context, Result};
use clap::Args;
use e2e::report::{median, table};
use serde::Serialize;

use crate::{
    findings::{Findings, Group},
    load,
    peers::{self, Plan},
};

/// How much load, how often.
#[derive(Args)]
pub(crate) struct Options {
    /// Rounds; in each, every proxy has its turn.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of a turn.
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Connections of the load.
    #[arg(long, default_value_t = 64)]
    connections: u32,
    /// Rules of fetchr's policy.
    #[arg(long, default_value_t = 10)]
    rules: usize,
}

/// What one proxy did in its turn, or the medians of all of its turns.
#[derive(Clone, Copy, Serialize)]
struct Turn {
    rate: f64,
    p50: f64,
    p99: f64,
    cpu: f64,
    memory: f64,
}

#[derive(Serialize)]
struct Figures<'a> {
    proxy: &'static str,
    turns: &'a [Turn],
}

/// Loads every proxy in turn; a table of medians, with CPU per request as a ratio to the better of nginx and HAProxy.
pub(crate) fn run(binaries: &Path, options: &Options) -> Result<Findings> {
    let folder = tempfile::tempdir()?;
    let _origin = peers::origin(folder.path())?;
    let peers = peers::all(&Plan { rules: options.rules, ..Plan::new(binaries, folder.path()) })?;
    let mut turns: Vec<Vec<Turn>> = vec![Vec::new(); peers.len()];
    for _ in 0..options.rounds {
        for (peer, turns) in peers.iter().zip(&mut turns) {
            let before = peer.process.cpu();
            let load = load::wrk(&format!("http://{}/1k", peer.http), options.connections, options.seconds, &[])
                .with_context(|| format!("load on {}", peer.name))?;
            let cpu = (peer.process.cpu() - before).as_secs_f64() * 1e6 / load.requests;
            turns.push(Turn {
                rate: load.rate,
                p50: load.p50,
                p99: load.p99,
                cpu,
                memory: peer.process.rss_kib() as f64 / 1024.0,
            });
        }
    }
    let medians: Vec<Turn> = turns.iter().map(|turns| medians(turns)).collect();
    let cpu: Vec<f64> = medians.iter().map(|turn| turn.cpu).collect();
    let best = peers::best(&peers, &cpu);
    let mut rows = vec![
        ["proxy", "CPU µs a request", "to the better of nginx and HAProxy", "requests/s", "p50 µs", "p99 µs", "RSS MiB"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for (peer, turn) in peers.iter().zip(&medians) {
        let number = |value: f64, digits: usize| format!("{value:.digits$}");
        rows.push(vec![
            peer.name.to_owned(),
            number(turn.cpu, 1),
            number(turn.cpu / best, 2),
            number(turn.rate, 0),
            number(turn.p50, 0),
            number(turn.p99, 0),
            number(turn.memory, 1),
        ]);
    }
    let figures: Vec<Figures<'_>> = peers.iter().zip(&turns).map(|(peer, turns)| Figures { proxy: peer.name, turns }).collect();
    let bars = peers.iter().zip(&cpu).map(|(peer, cpu)| (peer.name, *cpu)).collect();
    let findings = Findings::new(table(&rows), &figures)?;
    Ok(findings.with_bars("CPU microseconds a request", &[Group { name: "GET 1 KiB".to_owned(), bars }]))
}

fn medians(turns: &[Turn]) -> Turn {
    let of = |value: fn(&Turn) -> f64| median(&turns.iter().map(value).collect::<Vec<_>>());
    Turn { rate: of(|t| t.rate), p50: of(|t| t.p50), p99: of(|t| t.p99), cpu: of(|t| t.cpu), memory: of(|t| t.memory) }
}
