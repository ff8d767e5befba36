//! CPU per request, latency and memory under load.

use std::{net::SocketAddr, path::Path, process::Command};

use anyhow::{Context, Result, bail};
use clap::Args;
use e2e::report::{median, table};

use crate::peers::{self, LOAD_CORE};

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
            let load = load(peer.address, options).with_context(|| format!("load on {}", peer.name))?;
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

struct Load {
    requests: f64,
    rate: f64,
    p50: f64,
    p99: f64,
}

fn load(address: SocketAddr, options: &Options) -> Result<Load> {
    let output = Command::new("taskset")
        .args(["-c", &LOAD_CORE.to_string(), "wrk", "-t1", "--latency"])
        .args([format!("-c{}", options.connections), format!("-d{}s", options.seconds), format!("http://{address}/path")])
        .output()
        .context("could not run wrk; `apt-get install wrk` brings it")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        bail!("not every request was answered with 200:\n{text}");
    }
    parse(&text).with_context(|| format!("wrk said something unexpected:\n{text}"))
}

fn parse(text: &str) -> Option<Load> {
    let line = |has: &str| text.lines().find(|line| line.contains(has));
    let word = |line: &str, index: usize| line.split_whitespace().nth(index).map(str::to_owned);
    Some(Load {
        requests: word(line("requests in")?, 0)?.parse().ok()?,
        rate: word(line("Requests/sec:")?, 1)?.parse().ok()?,
        p50: micros(&word(line(" 50%")?, 1)?)?,
        p99: micros(&word(line(" 99%")?, 1)?)?,
    })
}

/// `1.25ms` as microseconds.
fn micros(text: &str) -> Option<f64> {
    let (number, factor) =
        [("us", 1.0), ("ms", 1e3), ("s", 1e6)].into_iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))?;
    Some(number.parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_output_is_read() {
        let text = "  Latency Distribution\n     50%  640.00us\n     75%    0.9ms\n     99%    1.50ms\n  409600 requests in 4.00s, 1MB read\nRequests/sec: 102400.25\n";
        let load = parse(text).expect("this is what wrk prints");
        assert_eq!((load.requests, load.rate, load.p50, load.p99), (409_600.0, 102_400.25, 640.0, 1500.0));
    }
}
