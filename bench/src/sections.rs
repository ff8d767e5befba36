//! What each section of a policy costs by itself, in user instructions a request: unlike time they are the same on a busy machine.

pub(crate) mod callgrind;

use std::path::Path;

use anyhow::{Context, Result};
use clap::Args;
use e2e::report::table;
use serde::Serialize;

use crate::{
    findings::Findings,
    peers::{self, Ports, fetchr},
};

/// How many requests, and of which rows.
#[derive(Args)]
pub(crate) struct Options {
    /// Requests that are counted.
    #[arg(long, default_value_t = 1000)]
    requests: u32,
    /// Only rows whose names contain this, besides that without a policy.
    #[arg(long, default_value = "")]
    only: String,
}

const PORTS: Ports = Ports(18040);

/// What is measured: its name, and the fields of a rule.
const ROWS: [(&str, &str); 18] = [
    ("headers", "headers: {response: {set: [{name: x-bench, value: fetchr}]}}"),
    (
        "headers, five changes",
        "headers: {request: {set: [{name: x-a, value: a}], remove: [x-b]}, response: {set: [{name: x-c, value: c}], add: [{name: x-d, value: d}], remove: [server]}}",
    ),
    ("rateLimits, one for all", "rateLimits: [{name: all, limit: {requests: 1000000, per: 1s}}]"),
    ("rateLimits by client", "rateLimits: [{name: each, limit: {requests: 1000000, per: 1s}, key: [{source: ClientIP}]}]"),
    ("throttle with room", "throttle: {concurrency: {type: Adaptive, initial: 1000}}"),
    ("cache, of what isn't kept", "cache: {}"),
    ("cache, a hit", "cache: {ttl: {default: 1h}}"),
    ("timeouts", "timeouts: {request: 10s, idle: 10s}"),
    ("retry", "retry: {}"),
    ("loadBalancing", "loadBalancing: {}"),
    ("circuitBreaker", "circuitBreaker: {consecutiveFailures: 10}"),
    ("failover", "failover: {upstream: \"http://127.0.0.1:1\"}"),
    (
        "all of these",
        "headers: {response: {set: [{name: x-bench, value: fetchr}]}}\n    rateLimits: [{name: each, limit: {requests: 1000000, per: 1s}, key: [{source: ClientIP}]}]\n    throttle: {concurrency: {type: Adaptive, initial: 1000}}\n    cache: {}\n    timeouts: {request: 10s, idle: 10s}\n    retry: {}\n    loadBalancing: {}\n    circuitBreaker: {consecutiveFailures: 10}\n    failover: {upstream: \"http://127.0.0.1:1\"}",
    ),
    (
        "headers, matched by prefix",
        "matches: [{path: {type: Prefix, value: /1k}}]\n    headers: {response: {set: [{name: x-bench, value: fetchr}]}}",
    ),
    (
        "headers, matched by template",
        "matches: [{path: {type: Template, value: \"/{name}\"}}]\n    headers: {response: {set: [{name: x-bench, value: fetchr}]}}",
    ),
    (
        "headers, matched by regex",
        "matches: [{path: {type: Regex, value: \"/[0-9]k\"}}]\n    headers: {response: {set: [{name: x-bench, value: fetchr}]}}",
    ),
    (
        "headers, matched by a header",
        "matches: [{headers: [{name: accept, value: \"*/*\"}]}]\n    headers: {response: {set: [{name: x-bench, value: fetchr}]}}",
    ),
    (
        "headers, matched by CEL",
        "matches: [{cel: \"request.path == '/1k'\"}]\n    headers: {response: {set: [{name: x-bench, value: fetchr}]}}",
    ),
];

#[derive(Serialize)]
struct Figures {
    name: String,
    /// User instructions of one GET of 1 KiB over a connection that stays open.
    instructions: f64,
}

/// One proxy after the other under callgrind.
pub(crate) fn run(binaries: &Path, options: &Options) -> Result<Findings> {
    let folder = tempfile::tempdir()?;
    let _origin = peers::origin(folder.path())?;
    let count = |name: &str, rules: &[String]| {
        let documents = fetchr::documents(folder.path(), PORTS, 1, "localhost", rules)?;
        let counted =
            callgrind::count(fetchr::run(binaries, &documents), folder.path(), PORTS.0, options.requests, &|_| "/1k".to_owned());
        let instructions = counted.with_context(|| format!("instructions with {name}"))?;
        anyhow::Ok(Figures { name: name.to_owned(), instructions })
    };
    let mut all = vec![count("no policy", &[])?];
    for (name, fields) in ROWS.iter().filter(|(name, _)| name.contains(&options.only)) {
        all.push(count(name, &[fetchr::rule(fields)])?);
    }
    for rules in [10, 1000] {
        let name = format!("headers, the last of {rules} rules");
        if name.contains(&options.only) {
            all.push(count(&name, &fetchr::rules(rules))?);
        }
    }
    Findings::new(summary(&all), &all)
}

fn summary(all: &[Figures]) -> String {
    let bare = all[0].instructions;
    let mut rows =
        vec![["policy of one rule with", "instructions a request", "more than none", "in percent"].map(str::to_owned).to_vec()];
    rows.extend(all.iter().map(|one| {
        let more = one.instructions - bare;
        vec![one.name.clone(), format!("{:.0}", one.instructions), format!("{more:.0}"), format!("{:.1}", more / bare * 100.0)]
    }));
    table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_section_has_a_row_and_is_in_the_one_of_all() {
        let (_, together) = ROWS.iter().find(|(name, _)| *name == "all of these").unwrap();
        for section in crds::policy::FEATURES {
            assert!(ROWS.iter().any(|(_, fields)| fields.starts_with(&format!("{section}: "))), "{section} has no row");
            assert!(together.contains(&format!("{section}: ")), "{section} is missing where all are together");
        }
    }

    #[test]
    fn rows_are_documents_that_fetchr_takes() {
        for (name, fields) in ROWS {
            let folder = tempfile::tempdir().unwrap();
            let documents = fetchr::documents(folder.path(), PORTS, 1, "localhost", &[fetchr::rule(fields)]).unwrap();
            let read = crds::document::load(&[documents], &|_| None);
            assert!(read.is_ok(), "{name}: {:?}", read.err());
        }
    }
}
