//! `fetchr validate`.

use std::fs;

use serde_json::json;

use crate::support::{command, fetchr, repository, run, run_with};

const PROXY: &str = "apiVersion: fetchr.sh/v1alpha1\nkind: FetchrProxy\nmetadata: {name: web}\nspec: {}\n";
const LOST: &str = "apiVersion: fetchr.sh/v1alpha1
kind: FetchrPolicy
metadata: {name: lost}
spec:
  targetRefs: [{kind: FetchrProxy, name: nobody}]
  rules: [{name: all, timeouts: {request: 1s}}]
";

#[test]
fn examples_are_valid_even_strictly() {
    for folder in ["examples/local/", "examples/cluster/"] {
        let said = fetchr(&["validate", "--strict", "-f", folder]);
        assert_eq!(said.code, 0, "{folder}: {said:?}");
    }
}

#[test]
fn every_invalid_fixture_is_refused_with_file_and_line() {
    for file in fixtures("invalid") {
        let said = fetchr(&["validate", "-f", &file]);
        assert_eq!(said.code, 1, "{file} is accepted: {said:?}");
        let first = said.stdout.lines().next().unwrap_or_default();
        let place = first.strip_prefix(&format!("{file}:")).unwrap_or_else(|| panic!("{file}: {first}"));
        let line: usize = place.split(':').next().and_then(|line| line.parse().ok()).expect("a line number");
        assert!(line > 0, "{file}: {first}");
    }
}

#[test]
fn every_valid_fixture_is_accepted() {
    for file in fixtures("valid") {
        let said = fetchr(&["validate", "-f", &file]);
        assert_eq!(said.code, 0, "{file}: {said:?}");
    }
}

fn fixtures(folder: &str) -> Vec<String> {
    let folder = repository().join("crds/fixtures").join(folder);
    let files: Vec<String> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path().display().to_string()).collect();
    assert!(files.len() >= 10, "the fixtures are there");
    files
}

#[test]
fn problem_is_a_line_with_file_line_column_field_and_message() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("proxy.yaml");
    fs::write(&file, PROXY.replace("spec: {}", "spec:\n  workers: lots\n  missdPods: Evict")).unwrap();
    let said = fetchr(&["validate", "-f", file.to_str().unwrap()]);
    assert_eq!(said.code, 1);
    let file = file.display();
    let lines: Vec<&str> = said.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{}", said.stdout);
    assert!(lines.iter().any(|line| line.starts_with(&format!("{file}:5:12: spec.workers: "))), "{}", said.stdout);
    let unknown = lines.iter().find(|line| line.starts_with(&format!("{file}:6:"))).expect("the unknown field is named");
    assert!(unknown.contains("missdPods") && unknown.contains("did you mean \"missedPods\"?"), "{unknown}");
    assert_eq!(lines[2], "2 errors");
}

#[test]
fn json_holds_the_same_and_where() {
    let said = run_with(&mut command(&["validate", "-o", "json", "-f", "-"]), &PROXY.replace("spec: {}", "spec: {workers: 0}"));
    assert_eq!(said.code, 1);
    let error = &said.json()["errors"][0];
    assert_eq!((&error["line"], &error["field"]), (&json!(4), &json!("spec.workers")));
}

#[test]
fn colour_comes_with_the_line_and_a_mark() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("proxy.yaml");
    fs::write(&file, PROXY.replace("spec: {}", "spec: {workers: 0}")).unwrap();
    let said = fetchr(&["validate", "--color", "always", "-f", file.to_str().unwrap()]);
    assert!(said.stdout.contains("spec: {workers: 0}\n"), "{}", said.stdout);
    assert!(said.stdout.contains('^'), "{}", said.stdout);
}

#[test]
fn missing_target_is_a_warning_and_strictly_an_error() {
    let both = format!("{PROXY}---\n{LOST}");
    let lax = run_with(&mut command(&["validate", "-f", "-"]), &both);
    assert_eq!(lax.code, 0, "{lax:?}");
    assert!(lax.stdout.contains("warning: spec.targetRefs: FetchrProxy nobody: "), "{}", lax.stdout);
    assert!(lax.stdout.ends_with("2 documents valid, 1 warning\n"), "{}", lax.stdout);
    let strict = run_with(&mut command(&["validate", "--strict", "-f", "-"]), &both);
    assert_eq!(strict.code, 1);
    assert!(strict.stdout.ends_with("1 error\n"), "{}", strict.stdout);
}

#[test]
fn proxies_for_the_same_pods_are_a_warning() {
    let two = format!("{PROXY}---\n{}", PROXY.replace("web", "other"));
    let said = run_with(&mut command(&["validate", "-o", "json", "-f", "-"]), &two);
    assert_eq!(said.code, 0);
    assert_eq!(said.json()["warnings"][0]["reason"], "Conflicted", "{said:?}");
}

#[test]
fn variables_come_from_the_environment() {
    let broken = run(command(&["validate", "-f", "examples/local/"]).env("PROXY_PORT", "99999"));
    assert_eq!(broken.code, 1);
    assert!(
        broken.stdout.starts_with("examples/local/fetchrproxy.yaml:14:13: spec.interception.listeners[0].port: "),
        "{broken:?}"
    );
}

#[test]
fn nothing_of_ours_is_an_error_that_says_what_would_be_right() {
    let said = fetchr(&["validate", "-f", "examples/cluster/3-app.yaml"]);
    assert_eq!(said.code, 1);
    assert!(
        said.stderr.starts_with("error: no FetchrProxy and no FetchrPolicy was found\n  examples/cluster/3-app.yaml\n"),
        "{said:?}"
    );
    assert!(said.stderr.contains("kind: FetchrProxy"), "{said:?}");
}
