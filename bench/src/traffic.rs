//! CPU per request, latency and memory under load.

use std::path::Path;

use anyhow::{Context, Result};
use clap::Args;
use e2e::report::{median, table};

use crate::{load, peers};

/// How much load, how often.
#[derive(Args)]
pub(crate) struct Options {
    /// Rounds; in each, every proxy has its turn.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of a turn.
    #[arg(long, default_value_t = 4)]
    seconds: u32,
    /// Connections of the load.
    #[arg(long, default_value_t = 64)]
    connections: u32,
    /// Rules of fetchr's policy.
    #[arg(long, default_value_t = 10)]
    rules: usize,
}

#[derive(Clone, Copy)]
struct Turn {
    rate: f64,
    p50: f64,
    p99: f64,
    cpu: f64,
    memory: f64,
}

/// Loads every proxy in turn; a table of medians, with CPU per request as a ratio to the best peer.
pub(crate) fn run(binaries: &Path, options: &Options) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let _origin = peers::origin(folder.path())?;
    let peers = peers::all(binaries, folder.path(), options.rules)?;
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
    let best = medians[1..].iter().map(|turn| turn.cpu).fold(f64::MAX, f64::min);
    let mut rows = vec![
        ["proxy", "CPU µs a request", "to the best peer", "requests/s", "p50 µs", "p99 µs", "RSS MiB"]
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
    Ok(table(&rows))
}

fn medians(turns: &[Turn]) -> Turn {
    let of = |value: fn(&Turn) -> f64| median(&turns.iter().map(value).collect::<Vec<_>>());
    Turn { rate: of(|t| t.rate), p50: of(|t| t.p50), p99: of(|t| t.p99), cpu: of(|t| t.cpu), memory: of(|t| t.memory) }
}
