//! What ten proxies admit of one limit.

use std::{path::Path, time::Duration};

use anyhow::{Result, ensure};
use e2e::report::table;
use serde::Serialize;

use super::{
    Options,
    clients::Load,
    pods::{Pods, RATE},
    redis::Redis,
};
use crate::{findings::Section, peers};

/// After it every proxy has asked Redis, and what was admitted meanwhile has come in again.
const WARM: Duration = Duration::from_secs(2);
const FULL: Duration = Duration::from_millis(1500);

/// One run.
#[derive(Serialize)]
struct Figures {
    accuracy: &'static str,
    load: String,
    requests: usize,
    admitted: usize,
    /// The burst, and what comes in meanwhile.
    most: f64,
    /// Calls of Redis.
    calls: f64,
}

/// Each accuracy under each load.
pub(super) fn run(binaries: &Path, options: &Options) -> Result<Section> {
    let mut all = Vec::new();
    for accuracy in ["Exact", "Leased"] {
        for load in [Load::Even, Load::Uneven, Load::Moving] {
            all.push(play(binaries, accuracy, load, Duration::from_secs(options.seconds.into()))?);
        }
    }
    let title = "Ten proxies on one Redis are asked 1,000 times a second of a limit of 500 a second, burst 500.";
    Ok(Section { title, table: summary(&all), figures: serde_json::to_value(&all)?, bars: vec![] })
}

fn play(binaries: &Path, accuracy: &'static str, load: Load, time: Duration) -> Result<Figures> {
    let folder = tempfile::tempdir()?;
    let _origin = peers::origin(folder.path())?;
    let redis = Redis::start(folder.path())?;
    let pods = Pods::start(binaries, folder.path(), accuracy)?;
    Load::Even.send(&pods.addresses, WARM)?;
    std::thread::sleep(FULL);
    let before = redis.scripts()?;
    let answers = load.send(&pods.addresses, time)?;
    let calls = redis.scripts()? - before;
    ensure!(answers.iter().all(|answer| matches!(answer.status, 200 | 429)), "a request was neither admitted nor denied");
    let admitted = answers.iter().filter(|answer| answer.status == 200).count();
    let last = answers.iter().map(|answer| answer.due + answer.latency).max().unwrap_or_default();
    let most = RATE * (1.0 + last.as_secs_f64());
    ensure!(admitted as f64 <= most, "{accuracy}, {load:?}: {admitted} were admitted of {most}");
    Ok(Figures { accuracy, load: format!("{load:?}"), requests: answers.len(), admitted, most, calls })
}

fn summary(all: &[Figures]) -> String {
    let heads = ["accuracy", "load", "requests", "admitted", "of burst and rate", "calls of Redis for each request"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(all.iter().map(|one| {
        vec![
            format!("`{}`", one.accuracy),
            one.load.to_lowercase(),
            one.requests.to_string(),
            one.admitted.to_string(),
            format!("{:.2} %", 100.0 * one.admitted as f64 / one.most),
            format!("{:.1} %", 100.0 * one.calls / one.requests as f64),
        ]
    }));
    table(&rows)
}
