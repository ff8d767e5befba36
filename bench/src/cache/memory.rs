//! What a million kept answers take, and how long a purge among them does.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use e2e::report::{median, table};
use serde_json::{Value, json};

use super::{
    Options, ask,
    peers::{self, CORE},
};
use crate::{
    findings::Section,
    peers::{local, nginx},
    process::Process,
};

const PORT: u16 = 18057;
const ADMIN: u16 = 18060;
const METRICS: u16 = 18061;

/// Answers that are there before memory is looked at, so that what the first ones bring with them does not count.
const BEFORE: u32 = 1000;

/// Purges of which one takes all.
const PURGES: usize = 21;

/// Fills the store over the wire, and empties it.
pub(super) fn run(binaries: &Path, options: &Options) -> Result<Section> {
    let folder = tempfile::tempdir()?;
    let _origin = nginx::origin_with(folder.path(), peers::SMALL)?;
    let cache = "{ttl: {default: 1h}, tags: {header: xkey}}";
    let command = peers::fetchr_with(binaries, folder.path(), PORT, "4Gi", cache, [ADMIN, METRICS])?;
    let mut process = Process::pinned(CORE, &command, &folder.path().join("memory.log"))?;
    let address = local(PORT);
    process.wait_for(address)?;
    ask::all(address, 0..BEFORE)?;
    // It lets go of what only its start needed after 5 s.
    thread::sleep(Duration::from_secs(8));
    process.wait_until_quiet();
    let (before, first) = (process.rss_kib(), held()?);
    let begun = Instant::now();
    ask::all(address, BEFORE..options.objects + BEFORE)?;
    let filled = begun.elapsed();
    process.wait_until_quiet();
    let (after, last) = (process.rss_kib(), held()?);
    let objects = (last.objects - first.objects) as f64;
    let resident = (after as f64 - before as f64) * 1024.0 / objects;
    let counted = (last.bytes - first.bytes) as f64 / objects;
    let payload = payload(address, options.objects)? as f64;
    let times = purges(&peers::state(folder.path(), PORT))?;
    let gone = ask::get(address, "/o/0")?.contains("fwd=uri-miss");
    anyhow::ensure!(gone, "a purge left what it named");
    let slowest = times.iter().copied().fold(0.0, f64::max);
    let figures = json!({
        "objects": objects, "resident_bytes": resident, "counted_bytes": counted, "payload_bytes": payload,
        "filled_s": filled.as_secs_f64(), "purge_ms": times,
    });
    let rows = [
        [format!("{objects} answers of 100 B"), String::new()],
        ["memory of the process, bytes each".to_owned(), format!("{resident:.0}")],
        ["of that key, fields and body".to_owned(), format!("{payload:.0}")],
        ["beyond these".to_owned(), format!("{:.0}", resident - payload)],
        ["what the store says that one takes".to_owned(), format!("{counted:.0}")],
        ["all asked for, one worker".to_owned(), format!("{:.0} s", filled.as_secs_f64())],
        [format!("purge of a tag over HTTP, the median of {PURGES}"), format!("{:.2} ms", median(&times))],
        ["the slowest".to_owned(), format!("{slowest:.2} ms")],
    ];
    let title = "Many small answers in one proxy, over the wire; the first of the purges takes all of them.";
    Ok(Section { title, table: table(&rows.map(|row| row.to_vec())), figures, bars: vec![] })
}

/// What the store says of itself.
struct Held {
    objects: u64,
    bytes: u64,
}

fn held() -> Result<Held> {
    let page = ask::get(local(METRICS), "/metrics")?;
    let of = |name: &str| -> Result<u64> {
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.trim().parse().ok()).with_context(|| format!("no {name} in the metrics"))
    };
    Ok(Held { objects: of("fetchr_cache_objects")?, bytes: of("fetchr_cache_size_bytes")? })
}

/// Bytes of scheme, host, path, the fields that are kept and the body of one of them.
fn payload(address: SocketAddr, number: u32) -> Result<usize> {
    let path = format!("/o/{number}");
    let answer = ask::get(address, &path)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer has a head")?;
    anyhow::ensure!(head.to_lowercase().contains("cache-status: fetchr; hit"), "{path} is not kept: {head}");
    let made_anew = ["age", "cache-status", "connection", "content-length"];
    let fields = head.lines().skip(1).filter_map(|line| line.split_once(": "));
    let kept = fields.filter(|(name, _)| !made_anew.contains(&name.to_lowercase().as_str()));
    let fields: usize = kept.map(|(name, value)| name.len() + value.len()).sum();
    Ok("http".len() + address.to_string().len() + path.len() + fields + body.len())
}

/// Milliseconds of purges, each of another tag; the first is that of all answers.
fn purges(state: &Path) -> Result<Vec<f64>> {
    let token = fs::read_to_string(state.join("admin-token")).context("there is no token for orders")?;
    let head = format!("Authorization: Bearer {}\r\nContent-Type: application/json\r\n", token.trim());
    let tags = ["news".to_owned()].into_iter().chain((1..PURGES).map(|number| format!("tag-{number}")));
    tags.map(|tag| {
        let begun = Instant::now();
        let answer = ask::post(local(ADMIN), "/cache/purge", &head, &json!({ "tag": tag }).to_string())?;
        let took = begun.elapsed().as_secs_f64() * 1e3;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let said: Value = serde_json::from_str(body).with_context(|| format!("{body:?} is no answer to a purge"))?;
        anyhow::ensure!(said["complete"] == true, "{said}");
        Ok(took)
    })
    .collect()
}
