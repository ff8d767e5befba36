//! What limits cost a request: CPU of the proxy over a wire, in turns, and instructions, which are the same on a busy machine.

use std::{fmt::Write as _, path::Path};

use anyhow::{Context, Result};
use e2e::report::{median, table};
use serde::Serialize;

use super::{Options, pods, redis::Redis};
use crate::{
    findings::{Group, Section, spread},
    load,
    peers::{self, Ports, fetchr, local, words},
    process::Process,
    sections::callgrind,
};

const FIRST_PORT: u16 = 18081;
const CALLGRIND: Ports = Ports(18095);

/// A policy that is measured.
struct Kind {
    name: &'static str,
    /// Limits that a request meets.
    limits: u32,
    /// Whether Redis counts.
    redis: bool,
    rules: fn() -> Vec<String>,
}

const KINDS: [Kind; 9] = [
    Kind { name: "none", limits: 0, redis: false, rules: Vec::new },
    Kind { name: "Pod", limits: 1, redis: false, rules: || all(1, "") },
    Kind { name: "10 Pod", limits: 10, redis: false, rules: || all(10, "") },
    Kind { name: "10 Pod, by client", limits: 10, redis: false, rules: || all(10, "key: [{source: ClientIP}]") },
    Kind { name: "10 Leased", limits: 10, redis: true, rules: || all(10, "scope: Shared, accuracy: Leased") },
    Kind { name: "Exact", limits: 1, redis: true, rules: || all(1, "scope: Shared") },
    Kind { name: "10 Exact", limits: 10, redis: true, rules: || all(10, "scope: Shared") },
    Kind { name: "Pod, one of 10 by path", limits: 1, redis: false, rules: || by_path(10) },
    Kind { name: "Pod, one of 100 by path", limits: 1, redis: false, rules: || by_path(100) },
];

#[derive(Serialize)]
struct Figures {
    name: &'static str,
    limits: u32,
    /// CPU microseconds a request, of each turn.
    cpu: Vec<f64>,
    /// User instructions a request; none where Redis counts, whose clients look at the clock in a way that valgrind can't follow.
    instructions: Option<f64>,
}

/// All run side by side and are loaded in turns; then each is counted by itself.
pub(super) fn run(binaries: &Path, options: &Options) -> Result<Section> {
    let folder = tempfile::tempdir()?;
    let _origin = peers::origin(folder.path())?;
    let _redis = Redis::start(folder.path())?;
    let mut all = Vec::new();
    for (kind, port) in KINDS.iter().zip(FIRST_PORT..) {
        let figures = Figures { name: kind.name, limits: kind.limits, cpu: Vec::new(), instructions: None };
        all.push((kind.start(binaries, folder.path(), port)?, port, figures));
    }
    for _ in 0..options.rounds {
        for (process, port, figures) in &mut all {
            let before = process.cpu();
            let load = load::wrk(&format!("http://{}/1k", local(*port)), 64, options.turn, &[]).context(figures.name)?;
            figures.cpu.push((process.cpu() - before).as_secs_f64() * 1e6 / load.requests);
        }
    }
    let mut all: Vec<Figures> = all.into_iter().map(|(.., figures)| figures).collect();
    for (kind, figures) in KINDS.iter().zip(&mut all).filter(|(kind, _)| !kind.redis) {
        let documents = kind.documents(folder.path(), CALLGRIND)?;
        let command = fetchr::run(binaries, &documents);
        let counted = callgrind::count(command, folder.path(), CALLGRIND.0, options.requests, &|_| "/1k".to_owned());
        figures.instructions = Some(counted.with_context(|| format!("instructions with {}", kind.name))?);
    }
    let title = "A GET of 1 KiB that meets so many limits, all with room; CPU is the proxy's, without Redis.";
    let bars = all.iter().map(|one| (one.name, median(&one.cpu))).collect();
    let bars = vec![Group { name: "limits".to_owned(), bars }];
    Ok(Section { title, table: summary(&all), figures: serde_json::to_value(&all)?, bars })
}

impl Kind {
    fn documents(&self, folder: &Path, ports: Ports) -> Result<std::path::PathBuf> {
        let redis = if self.redis { pods::with_redis() } else { String::new() };
        fetchr::documents_with(folder, ports, &format!("  workers: 1\n{redis}"), "localhost", &(self.rules)())
    }

    fn start(&self, binaries: &Path, folder: &Path, port: u16) -> Result<Process> {
        let mut command = fetchr::run(binaries, &self.documents(folder, Ports(port))?);
        command.extend(words(&["--admin-port", "0", "--metrics-port", "0", "--state-dir"]));
        command.push(folder.join(format!("state-{port}")).display().to_string());
        let mut process = Process::pinned("1", &command, &folder.join(format!("cost-{port}.log")))?;
        process.wait_for(local(port))?;
        Ok(process)
    }
}

/// One rule with so many limits, each with these fields.
fn all(count: usize, fields: &str) -> Vec<String> {
    let mut limits = String::new();
    for number in 0..count {
        let _ = write!(limits, "{{name: limit-{number}, limit: {{requests: 1000000, per: 1s}}, {fields}}}, ");
    }
    vec![fetchr::rule(&format!("rateLimits: [{limits}]"))]
}

/// So many rules with a limit each, of which a request meets the last.
fn by_path(count: usize) -> Vec<String> {
    let limit = "rateLimits: [{name: all, limit: {requests: 1000000, per: 1s}}]";
    let rule = |number: usize| {
        let path = if number + 1 == count { "/1k".to_owned() } else { format!("/path/{number}") };
        format!("  - name: path-{number}\n    matches: [{{path: {{type: Prefix, value: {path}}}}}]\n    {limit}\n")
    };
    (0..count).map(rule).collect()
}

fn summary(all: &[Figures]) -> String {
    let bare = &all[0];
    let heads = ["limits", "CPU µs a request (least to most)", "µs a limit", "instructions a request", "instructions a limit"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for one in all {
        let of_limit = |more: Option<f64>, digits: usize| match more {
            Some(more) if one.limits > 0 => format!("{:.digits$}", more / f64::from(one.limits)),
            _ => "-".to_owned(),
        };
        let more = one.instructions.zip(bare.instructions).map(|(of_this, of_bare)| of_this - of_bare);
        rows.push(vec![
            one.name.to_owned(),
            spread(&one.cpu),
            of_limit(Some(median(&one.cpu) - median(&bare.cpu)), 2),
            one.instructions.map_or_else(|| "-".to_owned(), |instructions| format!("{instructions:.0}")),
            of_limit(more, 0),
        ]);
    }
    table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_documents_that_fetchr_takes() {
        for kind in KINDS {
            let folder = tempfile::tempdir().unwrap();
            let read = crds::document::load(&[kind.documents(folder.path(), CALLGRIND).unwrap()], &|_| None);
            assert!(read.is_ok(), "{}: {:?}", kind.name, read.err());
        }
    }
}
