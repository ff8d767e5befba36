//! What the programs count stands in `docs/metrics.md`. Pages of running ones are held against it by the soak and by the changes under load,
//! with types and labels; here is what they don't come by.
#![allow(clippy::unwrap_used, reason = "a helper that fails has failed its test")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use e2e::documented::{self, Program};

/// What a metric is registered by; its name follows. A gauge of the process has a closure of that name.
const CALLS: [&str; 4] = ["registry.register(", "registry.register_with_unit(", "encode_descriptor(", "gauge("];

#[test]
fn every_metric_that_is_registered_is_documented_and_the_other_way_round() {
    // The operator's registry has a prefix.
    for (program, folder, prefix) in [(Program::Sidecar, "sidecar/src", ""), (Program::Operator, "operator/src", "fetchr_")] {
        let registered: BTreeSet<String> = sources(folder).iter().flat_map(|text| names(text, prefix)).collect();
        let documented: BTreeSet<String> = documented::metrics(program).unwrap().into_keys().collect();
        assert_eq!(registered, documented, "the {program}, registered and documented");
    }
}

#[test]
fn names_are_found_however_a_call_is_wrapped() {
    let text = "registry.register(\"a_b\", help, x); registry.register(\n    \"c\",\n    help); registry.register_with_unit(\"d\", \
                help, Unit::Seconds, x); gauge(\"e\", x)?; encode_descriptor(\"f\", x); encode_descriptor(name, x); say(\"g\")";
    let found: BTreeSet<String> = names(text, "p_").into_iter().collect();
    assert_eq!(found, ["p_a_b", "p_c", "p_d_seconds", "p_e", "p_f"].map(str::to_owned).into());
}

/// The names that a text registers.
fn names(text: &str, prefix: &str) -> Vec<String> {
    let mut found = Vec::new();
    for call in CALLS {
        for (at, _) in text.match_indices(call) {
            let Some(rest) = text[at + call.len()..].trim_start().strip_prefix('"') else { continue };
            let name = rest.split('"').next().unwrap();
            let unit = if call.contains("unit") { "_seconds" } else { "" };
            found.push(format!("{prefix}{name}{unit}"));
        }
    }
    found
}

/// The code of a folder, without that of tests.
fn sources(folder: &str) -> Vec<String> {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder)];
    let mut texts = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") && path.file_stem().is_some_and(|stem| stem != "tests") {
                let text = fs::read_to_string(path).unwrap();
                texts.push(text.split("#[cfg(test)]\nmod tests").next().unwrap().to_owned());
            }
        }
    }
    texts
}
