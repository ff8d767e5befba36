//! The resources that the documentation shows are good ones.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may panic as tests do")]

use std::{fs, path::PathBuf};

use serde::Deserialize;
use serde_json::Value;

#[test]
fn every_resource_in_the_documentation_is_valid() {
    let mut seen = 0;
    for file in pages() {
        let text = fs::read_to_string(&file).unwrap();
        for block in yaml_blocks(&text).filter(|block| block.contains("apiVersion: fetchr.sh/")) {
            for document in serde_yaml::Deserializer::from_str(block) {
                let document =
                    Value::deserialize(document).unwrap_or_else(|error| panic!("{}: {error}\n{block}", file.display()));
                let problems = crds::validate::validate_value(&document);
                assert!(problems.is_empty(), "{}: {problems}\n{block}", file.display());
                seen += 1;
            }
        }
    }
    assert!(seen >= 3, "only {seen} resources found");
}

fn pages() -> Vec<PathBuf> {
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let docs = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    docs.filter(|path| path.extension().is_some_and(|extension| extension == "md")).chain([root.join("README.md")]).collect()
}

fn yaml_blocks(text: &str) -> impl Iterator<Item = &str> {
    text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next())
}
