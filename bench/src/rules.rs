//! A thousand rules beside ten.

use std::path::Path;

use anyhow::{Context, Result};
use clap::Args;
use e2e::report::{median, table};
use serde::Serialize;

use crate::{
    findings::{Findings, spread},
    load,
    peers::{self, Ports, fetchr, local, words},
    process::Process,
};

/// How much and how often.
#[derive(Args)]
pub(crate) struct Options {
    /// Rounds; in each, both have their turn.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of a turn.
    #[arg(long, default_value_t = 2)]
    seconds: u32,
}

const COUNTS: [usize; 2] = [10, 1000];

#[derive(Serialize)]
struct Figures {
    rules: usize,
    /// CPU microseconds a request, of each turn.
    cpu: Vec<f64>,
}

/// Both run side by side and are loaded in turns.
pub(crate) fn run(binaries: &Path, options: &Options) -> Result<Findings> {
    let folder = tempfile::tempdir()?;
    let _origin = peers::origin(folder.path())?;
    let mut all = Vec::new();
    for (rules, port) in COUNTS.into_iter().zip([18030, 18031]) {
        all.push((start(binaries, folder.path(), rules, Ports(port))?, port, Figures { rules, cpu: Vec::new() }));
    }
    for _ in 0..options.rounds {
        for (process, port, figures) in &mut all {
            let before = process.cpu();
            let load = load::wrk(&format!("http://{}/1k", local(*port)), 64, options.seconds, &[])
                .with_context(|| format!("load on {} rules", figures.rules))?;
            figures.cpu.push((process.cpu() - before).as_secs_f64() * 1e6 / load.requests);
        }
    }
    let figures: Vec<Figures> = all.into_iter().map(|(.., figures)| figures).collect();
    let mut rows = vec![["rules", "CPU µs a request (least to most)", "to ten"].map(str::to_owned).to_vec()];
    rows.extend(
        figures.iter().map(|one| {
            vec![one.rules.to_string(), spread(&one.cpu), format!("{:.2}", median(&one.cpu) / median(&figures[0].cpu))]
        }),
    );
    Findings::new(table(&rows), &figures)
}

fn start(binaries: &Path, folder: &Path, rules: usize, ports: Ports) -> Result<Process> {
    let documents = fetchr::documents(folder, ports, 1, "127.0.0.1", &fetchr::rules(rules))?;
    let mut command = fetchr::run(binaries, &documents);
    command.extend(words(&["--admin-port", "0", "--metrics-port", "0", "--state-dir"]));
    command.push(folder.join(format!("state-{rules}")).display().to_string());
    let mut process = Process::pinned("1", &command, &folder.join(format!("rules-{rules}.log")))?;
    process.wait_for(local(ports.0))?;
    process.wait_until_quiet();
    Ok(process)
}
