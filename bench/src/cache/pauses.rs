//! Whether clients notice that answers have to go for others.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use e2e::report::{median, table};
use serde::Serialize;

use super::{
    Options, ask,
    peers::{self, CORE},
};
use crate::{
    findings::Section,
    peers::{local, nginx},
    process::Process,
    rate::{open_loop::Schedule, quantiles::Quantiles},
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

/// Latencies of one kind.
#[derive(Serialize)]
struct Figures {
    name: &'static str,
    #[serde(flatten)]
    latencies: Quantiles,
}

/// Sends the same rate of misses to each in turn.
pub(super) fn run(binaries: &Path, options: &Options) -> Result<Section> {
    let folder = tempfile::tempdir()?;
    let _origin = nginx::origin_with(folder.path(), peers::SMALL)?;
    let started = KINDS.iter().map(|kind| kind.start(binaries, folder.path(), options)).collect::<Result<Vec<_>>>()?;
    let figures = |kind: &Kind| Figures { name: kind.name, latencies: Quantiles::default() };
    let mut all: Vec<Figures> = KINDS.iter().map(figures).collect();
    let duration = Duration::from_secs(options.seconds.into());
    let schedule = Schedule { rate: options.rate, duration, connections: CONNECTIONS };
    for round in 0..options.rounds {
        for (kind, figures) in KINDS.iter().zip(&mut all) {
            let request = |number: usize| kind.request(round, number);
            let latencies = schedule.send_each(local(kind.port), &request).context(kind.name)?;
            figures.latencies.add(&latencies);
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
    let heads = [head.as_str()].into_iter().chain(Quantiles::HEADS).chain(["p99.9 to the first"]);
    let mut rows = vec![heads.map(str::to_owned).collect::<Vec<_>>()];
    for one in all {
        let mut row = vec![one.name.to_owned()];
        row.extend(one.latencies.cells());
        row.push(format!("{:.2}", median(&one.latencies.p999) / median(&all[0].latencies.p999)));
        rows.push(row);
    }
    table(&rows)
}
