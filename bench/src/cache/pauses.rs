//! Whether clients notice that answers have to go for others.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use e2e::report::{median, table};
use serde::Serialize;

use super::{
    Options, Section, ask,
    peers::{self, CORE},
};
use crate::{
    findings::spread,
    peers::{local, nginx},
    process::Process,
    rate::open_loop::Schedule,
};

const CONNECTIONS: usize = 64;

/// One request in so many is for 1 MiB, where some are: fewer than the latencies that are left out of p99.9.
const LARGE: usize = 4000;

/// A proxy whose answers go, or stay.
struct Kind {
    name: &'static str,
    port: u16,
    size: &'static str,
    /// Answers that are there before.
    filled: u32,
    large: bool,
}

const KINDS: [Kind; 3] = [
    Kind { name: "room for all", port: 18057, size: "4Gi", filled: 1000, large: false },
    Kind { name: "full: another one goes for each", port: 18058, size: "64Mi", filled: 200_000, large: false },
    Kind { name: "full, some take 1 MiB, for which 2000 go", port: 18059, size: "64Mi", filled: 200_000, large: true },
];

/// Latencies of one kind, microseconds from the moment at which a request was due, a value for each turn.
#[derive(Serialize)]
struct Figures {
    name: &'static str,
    p50: Vec<f64>,
    p99: Vec<f64>,
    p999: Vec<f64>,
    slowest: Vec<f64>,
}

/// Sends the same rate of misses to each in turn.
pub(super) fn run(binaries: &Path, options: &Options) -> Result<Section> {
    let folder = tempfile::tempdir()?;
    let _origin = nginx::origin_with(folder.path(), peers::SMALL)?;
    let started = KINDS.iter().map(|kind| kind.start(binaries, folder.path(), options)).collect::<Result<Vec<_>>>()?;
    let figures = |kind: &Kind| Figures { name: kind.name, p50: vec![], p99: vec![], p999: vec![], slowest: vec![] };
    let mut all: Vec<Figures> = KINDS.iter().map(figures).collect();
    let duration = Duration::from_secs(options.seconds.into());
    let schedule = Schedule { rate: options.rate, duration, connections: CONNECTIONS };
    for round in 0..options.rounds {
        for (kind, figures) in KINDS.iter().zip(&mut all) {
            let request = |number: usize| kind.request(round, number);
            let latencies = schedule.send_each(local(kind.port), &request).context(kind.name)?;
            let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
            figures.p50.push(at(0.5));
            figures.p99.push(at(0.99));
            figures.p999.push(at(0.999));
            figures.slowest.push(at(1.0));
        }
    }
    drop(started);
    let title = "Latency while answers of 100 B are kept that nobody asked for before, all at the same rate.";
    Ok(Section { title, table: summary(&all, options.rate), figures: serde_json::to_value(&all)?, bars: vec![] })
}

impl Kind {
    fn start(&self, binaries: &Path, folder: &Path, options: &Options) -> Result<Process> {
        let command = peers::fetchr_with(binaries, folder, self.port, self.size, "{ttl: {default: 1h}}", [0, 0])?;
        let mut process = Process::pinned(CORE, &command, &folder.join(format!("pauses-{}.log", self.port)))?;
        process.wait_for(local(self.port))?;
        ask::all(local(self.port), 0..self.filled.min(options.objects))?;
        Ok(process)
    }

    fn request(&self, round: u32, number: usize) -> Vec<u8> {
        let path = if self.large && number % LARGE == LARGE - 1 { "/1m" } else { "/o/new" };
        format!("GET {path}?{round}-{number} HTTP/1.1\r\nHost: bench\r\n\r\n").into_bytes()
    }
}

fn summary(all: &[Figures], rate: f64) -> String {
    let head = format!("{rate:.0} misses/s, µs (least to most)");
    let mut rows = vec![vec![
        head,
        "p50".to_owned(),
        "p99".to_owned(),
        "p99.9".to_owned(),
        "slowest".to_owned(),
        "p99.9 to the first".to_owned(),
    ]];
    for one in all {
        let mut row = vec![one.name.to_owned()];
        row.extend([&one.p50, &one.p99, &one.p999, &one.slowest].map(|values| spread(values)));
        row.push(format!("{:.2}", median(&one.p999) / median(&all[0].p999)));
        rows.push(row);
    }
    table(&rows)
}
