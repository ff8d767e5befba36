//! Answers that are kept, beside the caches of peers.

use std::path::Path;

use anyhow::{Context, Result};
use e2e::report::{median, table};
use serde::Serialize;

use super::{
    Options, ask,
    peers::{self, Peer},
};
use crate::{
    findings::{Group, Section, spread},
    load,
};

/// What is asked for: its name in the table and the path.
const BODIES: [(&str, &str); 3] = [("1 KiB", "/1k"), ("64 KiB", "/64k"), ("1 MiB", "/1m")];

const CONNECTIONS: u32 = 64;

/// What one proxy did with hits of one length.
#[derive(Serialize)]
struct Outcome {
    body: &'static str,
    proxy: &'static str,
    /// CPU microseconds a request, of each turn; none if it keeps no such answer.
    cpu: Vec<f64>,
    /// Requests a second, of each turn.
    rate: Vec<f64>,
}

/// Sends the same requests to every proxy in turn.
pub(super) fn run(binaries: &Path, options: &Options) -> Result<Section> {
    let folder = tempfile::tempdir()?;
    let _origin = peers::origin(folder.path())?;
    let peers = peers::all(binaries, folder.path())?;
    let mut outcomes = Vec::new();
    for (body, path) in BODIES {
        for peer in &peers {
            outcomes.push((path, peer, Outcome { body, proxy: peer.name, cpu: vec![], rate: vec![] }, keeps(peer, path)?));
        }
    }
    for _ in 0..options.rounds {
        for (path, peer, outcome, _) in outcomes.iter_mut().filter(|(.., keeps)| *keeps) {
            let (before, asked) = (peer.process.cpu(), peers::asked()?);
            let load = load::wrk(&format!("http://{}{path}", peer.address), CONNECTIONS, options.seconds, &[])
                .with_context(|| format!("{path} of {}", peer.name))?;
            let cpu = peer.process.cpu() - before;
            let missed = peers::asked()? - asked - 1;
            // On a machine that is too busy, a turn may pass without an answer.
            if load.requests > 0.0 && missed as f64 <= load.requests / 1000.0 {
                outcome.cpu.push(cpu.as_secs_f64() * 1e6 / load.requests);
                outcome.rate.push(load.rate);
            } else if missed > 0 {
                eprintln!("bench: {} asked the origin for {path} {missed} times in a turn, which is left out", peer.name);
            }
        }
    }
    let outcomes: Vec<Outcome> = outcomes.into_iter().map(|(_, _, outcome, _)| outcome).collect();
    let title = "Hits over 64 connections that stay open. \"-\": that cache keeps no such answer.";
    let table = summary(&outcomes, peers.len());
    Ok(Section { title, table, figures: serde_json::to_value(&outcomes)?, bars: groups(&outcomes, peers.len()) })
}

/// Whether it answers by itself what it was asked for before.
fn keeps(peer: &Peer, path: &str) -> Result<bool> {
    for _ in 0..3 {
        ask::get(peer.address, path).with_context(|| format!("{path} of {}", peer.name))?;
    }
    let before = peers::asked()?;
    ask::get(peer.address, path)?;
    let keeps = peers::asked()? == before + 1;
    if !keeps {
        eprintln!("bench: {} does not keep {path}", peer.name);
    }
    Ok(keeps)
}

/// A line for each length and proxy; the ratios are fetchr's figures to its own.
fn summary(outcomes: &[Outcome], peers: usize) -> String {
    let head =
        ["hit of", "proxy", "CPU µs a request (least to most)", "fetchr's to it", "requests/s (least to most)", "fetchr's to it"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for line in outcomes.chunks(peers) {
        for outcome in line {
            let mut row = vec![outcome.body.to_owned(), outcome.proxy.to_owned()];
            let columns: [fn(&Outcome) -> &Vec<f64>; 2] = [|outcome| &outcome.cpu, |outcome| &outcome.rate];
            for values in columns {
                row.extend(match values(outcome).as_slice() {
                    [] => ["-".to_owned(), "-".to_owned()],
                    some => [spread(some), format!("{:.2}", median(values(&line[0])) / median(some))],
                });
            }
            rows.push(row);
        }
    }
    table(&rows)
}

fn groups(outcomes: &[Outcome], peers: usize) -> Vec<Group> {
    let bars = |line: &[Outcome]| {
        line.iter().filter(|outcome| !outcome.cpu.is_empty()).map(|outcome| (outcome.proxy, median(&outcome.cpu))).collect()
    };
    outcomes.chunks(peers).map(|line| Group { name: format!("hit of {}", line[0].body), bars: bars(line) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_to_each_and_who_keeps_nothing_has_none() {
        let outcome = |proxy, cpu: &[f64]| Outcome {
            body: "1 KiB",
            proxy,
            cpu: cpu.to_vec(),
            rate: cpu.iter().map(|cpu| 1000.0 / cpu).collect(),
        };
        let text = summary(&[outcome("fetchr", &[10.0, 12.0, 8.0]), outcome("nginx", &[20.0]), outcome("Envoy", &[])], 3);
        assert!(text.contains("| 1 KiB | fetchr | 10.0 (8.0 to 12.0) | 1.00 | 100.0 (83.3 to 125.0) | 1.00 |"), "{text}");
        assert!(text.contains("| 1 KiB | nginx | 20.0 (20.0 to 20.0) | 0.50 | 50.0 (50.0 to 50.0) | 2.00 |"), "{text}");
        assert!(text.contains("| 1 KiB | Envoy | - | - | - | - |"), "{text}");
    }
}
