//! CPU per request of one kind of request after the other, and of few connections on two workers.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use clap::Args;
use e2e::report::{median, table};
use serde::Serialize;

use crate::{
    findings::{Findings, Group, spread},
    load::{self, Load},
    peers::{self, Peer, Plan},
};

/// How long and how often.
#[derive(Args)]
pub(crate) struct Options {
    /// Rounds; in each, every proxy has its turn with every kind of request.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of a turn.
    #[arg(long, default_value_t = 1)]
    seconds: u32,
    /// Only kinds of requests whose names contain this.
    #[arg(long, default_value = "")]
    only: String,
}

/// A kind of request.
struct Scenario {
    name: &'static str,
    way: Way,
}

/// How it is sent.
#[derive(Clone, Copy)]
enum Way {
    /// GET of a body by its name, over so many connections that stay open.
    Get(&'static str, u32),
    /// POST of 64 KiB over 64 connections.
    Post,
    /// GET of 1 KiB, each over a connection of its own, 64 at a time.
    NewConnection,
    /// GET of 1 KiB over 64 connections with TLS 1.3.
    Tls,
    /// GET of 1 KiB, each over a connection of its own with TLS 1.3, 64 at a time.
    NewTls,
    /// GET of 1 KiB over one connection of HTTP/2 in clear with 100 streams.
    Http2,
    /// The same under TLS.
    Http2Tls,
}

const SCENARIOS: [Scenario; 10] = [
    Scenario { name: "GET 0 B", way: Way::Get("0", 64) },
    Scenario { name: "GET 1 KiB", way: Way::Get("1k", 64) },
    Scenario { name: "GET 64 KiB", way: Way::Get("64k", 64) },
    Scenario { name: "GET 1 MiB", way: Way::Get("1m", 64) },
    Scenario { name: "POST 64 KiB", way: Way::Post },
    Scenario { name: "new connection each", way: Way::NewConnection },
    Scenario { name: "TLS 1.3", way: Way::Tls },
    Scenario { name: "TLS 1.3, new connection each", way: Way::NewTls },
    Scenario { name: "HTTP/2, 100 streams", way: Way::Http2 },
    Scenario { name: "HTTP/2 over TLS, 100 streams", way: Way::Http2Tls },
];

const FEW_CONNECTIONS: [Scenario; 4] = [
    Scenario { name: "GET 1 KiB, 1 connection", way: Way::Get("1k", 1) },
    Scenario { name: "GET 1 KiB, 2 connections", way: Way::Get("1k", 2) },
    Scenario { name: "GET 1 KiB, 4 connections", way: Way::Get("1k", 4) },
    Scenario { name: "GET 1 KiB, 64 connections", way: Way::Get("1k", 64) },
];

/// What one proxy did with one kind of request.
#[derive(Serialize)]
struct Outcome {
    scenario: &'static str,
    proxy: &'static str,
    /// Whether fetchr is compared with this one.
    measure: bool,
    /// CPU microseconds a request, of each turn; none where the proxy does not speak so.
    cpu: Vec<f64>,
    /// Requests a second, of each turn.
    rate: Vec<f64>,
}

/// Sends every kind of request to every proxy in turn, one worker each.
pub(crate) fn run(binaries: &Path, options: &Options) -> Result<Findings> {
    of(binaries, options, &SCENARIOS, 1)
}

/// The same over few connections to two workers each: whether the second one has work, too.
pub(crate) fn workers(binaries: &Path, options: &Options) -> Result<Findings> {
    of(binaries, options, &FEW_CONNECTIONS, 2)
}

fn of(binaries: &Path, options: &Options, scenarios: &[Scenario], workers: usize) -> Result<Findings> {
    let folder = tempfile::tempdir()?;
    let _origin = peers::origin(folder.path())?;
    let peers = peers::all(&Plan { workers, ..Plan::new(binaries, folder.path()) })?;
    let script = folder.path().join("post.lua");
    fs::write(&script, "wrk.method = \"POST\"\nwrk.body = string.rep(\"x\", 65536)\n")?;
    let wanted: Vec<&Scenario> = scenarios.iter().filter(|scenario| scenario.name.contains(&options.only)).collect();
    let outcome = |scenario: &Scenario, peer: &Peer| Outcome {
        scenario: scenario.name,
        proxy: peer.name,
        measure: peer.measure,
        cpu: vec![],
        rate: vec![],
    };
    let mut outcomes: Vec<Outcome> =
        wanted.iter().flat_map(|scenario| peers.iter().map(|peer| outcome(scenario, peer))).collect();
    for _ in 0..options.rounds {
        let turns = wanted.iter().flat_map(|scenario| peers.iter().map(move |peer| (scenario, peer)));
        for ((scenario, peer), outcome) in turns.zip(&mut outcomes) {
            let before = peer.process.cpu();
            let load = scenario.send(peer, options.seconds, &script);
            let load = load.with_context(|| format!("{} to {}", scenario.name, peer.name))?;
            // On a machine that is too busy, a turn may pass without an answer.
            let Some(load) = load.filter(|load| load.requests > 0.0) else { continue };
            outcome.cpu.push((peer.process.cpu() - before).as_secs_f64() * 1e6 / load.requests);
            outcome.rate.push(load.rate);
        }
    }
    let findings = Findings::new(summary(&outcomes, peers.len()), &outcomes)?;
    Ok(findings.with_bars("CPU microseconds a request", &groups(&outcomes, peers.len())))
}

impl Scenario {
    /// None if the proxy does not speak so.
    fn send(&self, peer: &Peer, seconds: u32, script: &Path) -> Result<Option<Load>> {
        let of = |scheme: &str, address, path: &str| format!("{scheme}://{address}/{path}");
        let words = |all: &[&str]| all.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let close = words(&["-H", "Connection: close"]);
        let load = match (self.way, peer.tls) {
            (Way::Get(body, connections), _) => load::wrk(&of("http", peer.http, body), connections, seconds, &[]),
            (Way::Post, _) => {
                load::wrk(&of("http", peer.http, "post"), 64, seconds, &words(&["-s", &script.display().to_string()]))
            }
            (Way::NewConnection, _) => load::wrk(&of("http", peer.http, "1k"), 64, seconds, &close),
            (Way::Http2, _) => load::h2load(&of("http", peer.http2, "1k"), 100, seconds),
            (Way::Tls, Some(tls)) => load::wrk(&of("https", tls, "1k"), 64, seconds, &[]),
            (Way::NewTls, Some(tls)) => load::wrk(&of("https", tls, "1k"), 64, seconds, &close),
            (Way::Http2Tls, Some(tls)) => load::h2load(&of("https", tls, "1k"), 100, seconds),
            (Way::Tls | Way::NewTls | Way::Http2Tls, None) => return Ok(None),
        };
        load.map(Some)
    }
}

/// A line for each kind of request: the CPU of each proxy, and fetchr's to that of the better of those it is compared with.
fn summary(outcomes: &[Outcome], peers: usize) -> String {
    let mut rows = vec![];
    for line in outcomes.chunks(peers) {
        if rows.is_empty() {
            let mut head = vec!["CPU µs a request (least to most)".to_owned()];
            head.extend(line.iter().map(|outcome| outcome.proxy.to_owned()));
            head.extend(["CPU to the better of nginx and HAProxy".to_owned(), "requests/s to the better".to_owned()]);
            rows.push(head);
        }
        let measured = |values: fn(&Outcome) -> &Vec<f64>, better: fn(f64, f64) -> f64| {
            line.iter().filter(|outcome| outcome.measure).map(|outcome| median(values(outcome))).fold(f64::NAN, better)
        };
        let mut row = vec![line[0].scenario.to_owned()];
        row.extend(line.iter().map(|outcome| if outcome.cpu.is_empty() { "-".to_owned() } else { spread(&outcome.cpu) }));
        row.push(format!("{:.2}", median(&line[0].cpu) / measured(|outcome| &outcome.cpu, f64::min)));
        row.push(format!("{:.2}", median(&line[0].rate) / measured(|outcome| &outcome.rate, f64::max)));
        rows.push(row);
    }
    table(&rows)
}

fn groups(outcomes: &[Outcome], peers: usize) -> Vec<Group> {
    let bars = |line: &[Outcome]| {
        line.iter().filter(|outcome| !outcome.cpu.is_empty()).map(|outcome| (outcome.proxy, median(&outcome.cpu))).collect()
    };
    outcomes.chunks(peers).map(|line| Group { name: line[0].scenario.to_owned(), bars: bars(line) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes() -> Vec<Outcome> {
        let outcome = |proxy, measure, cpu: &[f64]| Outcome {
            scenario: "GET",
            proxy,
            measure,
            cpu: cpu.to_vec(),
            rate: cpu.first().map(|cpu| 1000.0 / cpu).into_iter().collect(),
        };
        vec![
            outcome("fetchr", false, &[10.0, 12.0, 11.0]),
            outcome("nginx", true, &[9.0, 10.0, 8.0]),
            outcome("HAProxy", true, &[20.0, 20.0, 20.0]),
            outcome("Envoy", false, &[2.0]),
            outcome("Varnish", false, &[]),
        ]
    }

    #[test]
    fn summary_has_medians_their_spread_and_the_ratio_to_the_better() {
        let text = summary(&outcomes(), 5);
        let row = "| GET | 11.0 (10.0 to 12.0) | 9.0 (8.0 to 10.0) | 20.0 (20.0 to 20.0) | 2.0 (2.0 to 2.0) | - | 1.22 | 0.90 |";
        assert!(text.contains(row), "{text}");
    }

    #[test]
    fn plot_leaves_out_who_does_not_speak_so() {
        let groups = groups(&outcomes(), 5);
        assert_eq!((groups.len(), groups[0].bars.len()), (1, 4));
    }
}
