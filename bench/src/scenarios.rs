//! CPU per request of one kind of request after the other.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::Args;
use e2e::report::{median, table};
use serde::Serialize;

use crate::{
    load::{self, Load},
    peers::{self, Peer},
};

/// How long, how often, and where the figures go besides the table.
#[derive(Args)]
pub(crate) struct Options {
    /// Rounds; in each, every proxy has its turn with every kind of request.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of a turn.
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// File for all turns, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// File for a plot, as SVG.
    #[arg(long)]
    svg: Option<PathBuf>,
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
enum Way {
    /// GET of a body by its name, over so many connections that stay open.
    Get(&'static str, u32),
    /// POST of 64 KiB over 64 connections.
    Post,
    /// GET of 1 KiB, each over a connection of its own, 64 at a time.
    NewConnection,
    /// GET of 1 KiB over 64 connections with TLS 1.3.
    Tls,
    /// GET of 1 KiB over one connection of HTTP/2 in clear with 100 streams.
    Http2,
}

const SCENARIOS: [Scenario; 11] = [
    Scenario { name: "GET 1 KiB", way: Way::Get("1k", 64) },
    Scenario { name: "GET 1 KiB, 1 connection", way: Way::Get("1k", 1) },
    Scenario { name: "GET 1 KiB, 2 connections", way: Way::Get("1k", 2) },
    Scenario { name: "GET 1 KiB, 4 connections", way: Way::Get("1k", 4) },
    Scenario { name: "GET 0 B", way: Way::Get("0", 64) },
    Scenario { name: "GET 64 KiB", way: Way::Get("64k", 64) },
    Scenario { name: "GET 1 MiB", way: Way::Get("1m", 64) },
    Scenario { name: "POST 64 KiB", way: Way::Post },
    Scenario { name: "new connection each", way: Way::NewConnection },
    Scenario { name: "TLS 1.3", way: Way::Tls },
    Scenario { name: "HTTP/2, 100 streams", way: Way::Http2 },
];

/// What one proxy did with one kind of request.
#[derive(Serialize)]
struct Outcome {
    scenario: &'static str,
    proxy: &'static str,
    /// CPU microseconds a request, of each turn.
    cpu: Vec<f64>,
    /// Requests a second, of each turn.
    rate: Vec<f64>,
}

/// Sends every kind of request to every proxy in turn; a table of medians, with the ratio to the best peer.
pub(crate) fn run(binaries: &Path, options: &Options) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let _origin = peers::origin(folder.path())?;
    let peers = peers::all(binaries, folder.path(), 10)?;
    let script = folder.path().join("post.lua");
    fs::write(&script, "wrk.method = \"POST\"\nwrk.body = string.rep(\"x\", 65536)\n")?;
    let wanted: Vec<&Scenario> = SCENARIOS.iter().filter(|scenario| scenario.name.contains(&options.only)).collect();
    let outcome =
        |scenario: &Scenario, peer: &Peer| Outcome { scenario: scenario.name, proxy: peer.name, cpu: vec![], rate: vec![] };
    let mut outcomes: Vec<Outcome> =
        wanted.iter().flat_map(|scenario| peers.iter().map(|peer| outcome(scenario, peer))).collect();
    for _ in 0..options.rounds {
        let turns = wanted.iter().flat_map(|scenario| peers.iter().map(move |peer| (scenario, peer)));
        for ((scenario, peer), outcome) in turns.zip(&mut outcomes) {
            let before = peer.process.cpu();
            let load =
                scenario.send(peer, options.seconds, &script).with_context(|| format!("{} to {}", scenario.name, peer.name))?;
            outcome.cpu.push((peer.process.cpu() - before).as_secs_f64() * 1e6 / load.requests);
            outcome.rate.push(load.rate);
        }
    }
    if let Some(file) = &options.json {
        fs::write(file, serde_json::to_string_pretty(&outcomes)? + "\n")?;
    }
    if let Some(file) = &options.svg {
        fs::write(file, plot(&outcomes, peers.len()))?;
    }
    Ok(summary(&outcomes, peers.len()))
}

impl Scenario {
    fn send(&self, peer: &Peer, seconds: u32, script: &Path) -> Result<Load> {
        let of = |scheme: &str, address, path: &str| format!("{scheme}://{address}/{path}");
        let words = |all: &[&str]| all.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        match self.way {
            Way::Get(body, connections) => load::wrk(&of("http", peer.http, body), connections, seconds, &[]),
            Way::Post => load::wrk(&of("http", peer.http, "post"), 64, seconds, &words(&["-s", &script.display().to_string()])),
            Way::NewConnection => load::wrk(&of("http", peer.http, "1k"), 64, seconds, &words(&["-H", "Connection: close"])),
            Way::Tls => load::wrk(&of("https", peer.tls, "1k"), 64, seconds, &[]),
            Way::Http2 => load::h2load(&of("http", peer.http2, "1k"), 100, seconds),
        }
    }
}

/// A line for each kind of request: the CPU of each proxy, and fetchr's to that of the best peer.
fn summary(outcomes: &[Outcome], peers: usize) -> String {
    let mut rows = vec![];
    for line in outcomes.chunks(peers) {
        if rows.is_empty() {
            let mut head = vec!["CPU µs a request (least to most)".to_owned()];
            head.extend(line.iter().map(|outcome| outcome.proxy.to_owned()));
            head.extend(["fetchr to the best peer".to_owned(), "requests/s to the best peer".to_owned()]);
            rows.push(head);
        }
        let medians: Vec<f64> = line.iter().map(|outcome| median(&outcome.cpu)).collect();
        let rates: Vec<f64> = line.iter().map(|outcome| median(&outcome.rate)).collect();
        let mut row = vec![line[0].scenario.to_owned()];
        row.extend(line.iter().zip(&medians).map(|(outcome, median)| {
            let (least, most) = outcome.cpu.iter().fold((f64::MAX, 0f64), |(least, most), cpu| (least.min(*cpu), most.max(*cpu)));
            format!("{median:.1} ({least:.1} to {most:.1})")
        }));
        row.push(format!("{:.2}", medians[0] / medians[1..].iter().copied().fold(f64::MAX, f64::min)));
        row.push(format!("{:.2}", rates[0] / rates[1..].iter().copied().fold(0.0, f64::max)));
        rows.push(row);
    }
    table(&rows)
}

/// Bars of the medians, each kind of request to its own scale: a bar of full width is the greatest of the kind.
fn plot(outcomes: &[Outcome], peers: usize) -> String {
    use std::fmt::Write as _;
    const COLOURS: [&str; 3] = ["#d9480f", "#868e96", "#ced4da"];
    let (bar, gap, left, width) = (14, 12, 190, 420);
    let height = outcomes.len() / peers * (peers * bar + gap) + gap;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 720 {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <title>CPU microseconds a request</title>\n<rect width=\"720\" height=\"{height}\" fill=\"white\"/>\n"
    );
    let mut y = gap;
    for line in outcomes.chunks(peers) {
        let medians: Vec<f64> = line.iter().map(|outcome| median(&outcome.cpu)).collect();
        let greatest = medians.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let _ =
            writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>", left - 8, y + bar * 2 - 3, line[0].scenario);
        for ((outcome, median), colour) in line.iter().zip(&medians).zip(COLOURS.iter().cycle()) {
            let len = median / greatest * f64::from(width);
            let _ = writeln!(
                svg,
                "<rect x=\"{left}\" y=\"{y}\" width=\"{len:.0}\" height=\"{}\" fill=\"{colour}\"/>\
                 <text x=\"{:.0}\" y=\"{}\">{} {median:.1}</text>",
                bar - 2,
                f64::from(u16::try_from(left).unwrap_or_default()) + len + 5.0,
                y + bar - 4,
                outcome.proxy
            );
            y += bar;
        }
        y += gap;
    }
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes() -> Vec<Outcome> {
        let outcome = |proxy, cpu: &[f64]| Outcome { scenario: "GET", proxy, cpu: cpu.to_vec(), rate: vec![1000.0 / cpu[0]] };
        vec![outcome("fetchr", &[10.0, 12.0, 11.0]), outcome("nginx", &[9.0, 10.0, 8.0]), outcome("HAProxy", &[20.0, 20.0, 20.0])]
    }

    #[test]
    fn summary_has_medians_their_spread_and_the_ratio_to_the_best() {
        let text = summary(&outcomes(), 3);
        assert!(text.contains("| GET | 11.0 (10.0 to 12.0) | 9.0 (8.0 to 10.0) | 20.0 (20.0 to 20.0) | 1.22 |"), "{text}");
    }

    #[test]
    fn plot_has_a_bar_for_each() {
        let svg = plot(&outcomes(), 3);
        assert_eq!(svg.matches("<rect x=").count(), 3);
        assert!(svg.contains("nginx 9.0") && svg.ends_with("</svg>\n"));
    }
}
