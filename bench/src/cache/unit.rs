//! What is measured inside of the library, by tests that are not run with the others: they print lines `measured: WHAT: FIGURE`.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::report::table;
use serde_json::{Map, Value};

use super::Options;
use crate::findings::Section;

const TESTS: [&str; 3] =
    ["a_million_requests_by_how_room_is_made", "a_lookup_is_quick_however_much_is_purged", "forty_pods_acknowledge_in_time"];

/// Compiles and runs them, one after the other.
pub(super) fn run(options: &Options) -> Result<Section> {
    let output = Command::new("cargo")
        .args(["test", "--locked", "-q", "--profile", &options.profile, "-p", "fetchr-sidecar", "--lib", "--"])
        .args(["--ignored", "--nocapture", "--test-threads=1"])
        .args(TESTS)
        .output()
        .context("could not run cargo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let lines = measured(&text);
    ensure!(!lines.is_empty(), "no test has measured anything:\n{text}");
    let mut rows = vec![vec!["in the library".to_owned(), String::new()]];
    rows.extend(lines.iter().map(|(what, figure)| vec![what.clone(), figure.clone()]));
    let figures: Map<String, Value> = lines.into_iter().map(|(what, figure)| (what, figure.into())).collect();
    let title =
        "Hit ratios of a million requests whose targets follow Zipf's law (α 0.9), with room for a tenth of them, and purges.";
    Ok(Section { title, table: table(&rows), figures: figures.into(), bars: vec![] })
}

fn measured(text: &str) -> Vec<(String, String)> {
    // The harness writes dots on the same line.
    let lines = text.lines().filter_map(|line| line.split_once("measured: "));
    lines.filter_map(|(_, rest)| rest.rsplit_once(": ")).map(|(what, figure)| (what.to_owned(), figure.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_wherever_they_stand_on_a_line() {
        let text = "running 2 tests\n.measured: S3FIFO: 0.6704\nmeasured: a purge, p99: 3.1ms\n.\ntest result: ok\n";
        let expected = [("S3FIFO", "0.6704"), ("a purge, p99", "3.1ms")];
        assert_eq!(measured(text), expected.map(|(what, figure)| (what.to_owned(), figure.to_owned())));
    }
}
