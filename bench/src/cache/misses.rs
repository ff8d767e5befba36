//! What a request that misses costs beside one that no cache has seen, in user instructions.

use std::path::Path;

use anyhow::{Context, Result};
use e2e::report::table;
use serde::Serialize;

use super::{Options, peers::SMALL};
use crate::{
    findings::Section,
    peers::{Ports, fetchr, nginx},
    sections::callgrind,
};

const PORTS: Ports = Ports(18056);

/// A kind of request.
struct Row {
    name: &'static str,
    /// The section, or none.
    cache: Option<&'static str>,
    /// Bytes for answers.
    size: &'static str,
    /// Whether each request is for another target.
    anew: bool,
}

const ROWS: [Row; 6] = [
    Row { name: "without a cache", cache: None, size: "64Mi", anew: true },
    Row { name: "not kept, each of another target", cache: Some("{}"), size: "64Mi", anew: true },
    Row { name: "not kept, and known not to be", cache: Some("{}"), size: "64Mi", anew: false },
    Row { name: "kept, with room", cache: Some("{ttl: {default: 1h}}"), size: "64Mi", anew: true },
    Row { name: "kept, another one has to go", cache: Some("{ttl: {default: 1h}}"), size: "256Ki", anew: true },
    Row { name: "a hit", cache: Some("{ttl: {default: 1h}}"), size: "64Mi", anew: false },
];

#[derive(Serialize)]
struct Figures {
    name: &'static str,
    /// User instructions of one GET of 1 KiB over a connection that stays open.
    instructions: f64,
}

/// One proxy after the other under callgrind.
pub(super) fn run(binaries: &Path, options: &Options) -> Result<Section> {
    let folder = tempfile::tempdir()?;
    let _origin = nginx::origin_with(folder.path(), SMALL)?;
    let all = ROWS
        .iter()
        .map(|row| {
            let instructions = row.count(binaries, folder.path(), options.requests).context(row.name)?;
            Ok(Figures { name: row.name, instructions })
        })
        .collect::<Result<Vec<_>>>()?;
    let title = "Instructions of a GET of 1 KiB, as in [what each section costs](#what-each-section-costs).";
    Ok(Section { title, table: summary(&all), figures: serde_json::to_value(&all)?, bars: vec![] })
}

impl Row {
    fn count(&self, binaries: &Path, folder: &Path, requests: u32) -> Result<f64> {
        let rules: Vec<String> = self.cache.iter().map(|cache| fetchr::rule(&format!("cache: {cache}"))).collect();
        let spec = format!("  workers: 1\n  cache: {{memory: {{size: {}}}}}\n", self.size);
        let documents = fetchr::documents_with(folder, PORTS, &spec, "127.0.0.1", &rules)?;
        let target = |number: u32| if self.anew { format!("/1k?{number:08}") } else { "/1k?00000000".to_owned() };
        callgrind::count(fetchr::run(binaries, &documents), folder, PORTS.0, requests, &target)
    }
}

fn summary(all: &[Figures]) -> String {
    let bare = all[0].instructions;
    let mut rows = vec![["request", "instructions", "more than without", "in percent"].map(str::to_owned).to_vec()];
    rows.extend(all.iter().map(|one| {
        let more = one.instructions - bare;
        vec![one.name.to_owned(), format!("{:.0}", one.instructions), format!("{more:.0}"), format!("{:.1}", more / bare * 100.0)]
    }));
    table(&rows)
}
