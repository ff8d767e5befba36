//! What clients of ten proxies see while Redis is gone, and when it is back.

use std::{ops::Range, path::Path, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use e2e::report::table;
use serde::Serialize;

use super::{
    Options,
    clients::{Answer, Load},
    pods::{Pods, RATE},
    redis::Redis,
};
use crate::{findings::Section, peers};

/// What is not looked at after the fault, and after the return.
const FAULT: f64 = 0.06;
const RETURN: f64 = 1.0;
/// The bucket is empty by then.
const BEGIN: f64 = 2.0;

/// A part of the time.
#[derive(Serialize)]
struct Figures {
    load: String,
    redis: &'static str,
    requests: usize,
    /// Answers other than 200 and 429.
    errors: usize,
    admitted: usize,
    /// Admitted of what comes in meanwhile.
    of_rate: f64,
    /// In milliseconds.
    p99: f64,
    slowest: f64,
}

/// Even and uneven load.
pub(super) fn run(binaries: &Path, options: &Options) -> Result<Section> {
    let mut all = Vec::new();
    for load in [Load::Even, Load::Uneven] {
        all.extend(play(binaries, load, f64::from(options.seconds) / 3.0)?);
    }
    let title = "The same with accuracy Exact while Redis is killed, and starts again empty: from 60 ms after the fault, and from a second after the return.";
    Ok(Section { title, table: summary(&all), figures: serde_json::to_value(&all)?, bars: vec![] })
}

/// Redis is there for so many seconds, gone for so many, and back for so many.
fn play(binaries: &Path, load: Load, third: f64) -> Result<Vec<Figures>> {
    let folder = tempfile::tempdir()?;
    let _origin = peers::origin(folder.path())?;
    let redis = Redis::start(folder.path())?;
    let pods = Pods::start(binaries, folder.path(), "Exact")?;
    let answers = thread::scope(|scope| {
        let sending = scope.spawn(|| load.send(&pods.addresses, Duration::from_secs_f64(3.0 * third)));
        thread::sleep(Duration::from_secs_f64(third));
        redis.kill();
        thread::sleep(Duration::from_secs_f64(third));
        let back = Redis::start(folder.path())?;
        let answers = sending.join().map_err(|_| anyhow::anyhow!("the load panicked"))?;
        drop(back);
        answers
    })?;
    let part = |redis, from, to| of_part(&answers, load, redis, from..to);
    [("there", BEGIN, third), ("gone", third + FAULT, 2.0 * third), ("back", 2.0 * third + RETURN, 3.0 * third)]
        .into_iter()
        .map(|(redis, from, to)| part(redis, from, to))
        .collect()
}

fn of_part(answers: &[Answer], load: Load, redis: &'static str, part: Range<f64>) -> Result<Figures> {
    let within: Vec<&Answer> = answers.iter().filter(|answer| part.contains(&answer.due.as_secs_f64())).collect();
    let with = |statuses: &[u16]| within.iter().filter(|answer| statuses.contains(&answer.status)).count();
    let admitted = with(&[200]);
    let mut latencies: Vec<f64> = within.iter().map(|answer| answer.latency.as_secs_f64() * 1e3).collect();
    latencies.sort_by(f64::total_cmp);
    let slowest = *latencies.last().context("nothing was sent")?;
    ensure!(within.len() > 100, "too little was sent");
    Ok(Figures {
        load: format!("{load:?}"),
        redis,
        requests: within.len(),
        errors: within.len() - with(&[200, 429]),
        admitted,
        of_rate: admitted as f64 / (RATE * (part.end - part.start)),
        p99: latencies[latencies.len() * 99 / 100],
        slowest,
    })
}

fn summary(all: &[Figures]) -> String {
    let heads = ["load", "Redis is", "requests", "neither 200 nor 429", "admitted", "of rate", "p99", "slowest"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(all.iter().map(|one| {
        vec![
            one.load.to_lowercase(),
            one.redis.to_owned(),
            one.requests.to_string(),
            one.errors.to_string(),
            one.admitted.to_string(),
            format!("{:.1} %", 100.0 * one.of_rate),
            format!("{:.2} ms", one.p99),
            format!("{:.1} ms", one.slowest),
        ]
    }));
    table(&rows)
}
