//! The definitions on a real API server: it takes them (their CEL rules fit its budget), refuses what the fixtures say that it
//! refuses, with the same field, and takes the rest.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that fails has failed its test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use e2e::apiserver::ApiServer;
use e2e::tools::{program, repository};
use e2e::wait::eventually;

#[tokio::test]
async fn fixtures_are_refused_by_whom_they_say_and_for_the_field_that_they_say() {
    let server = with_definitions().await;
    let refused = refusals(server, &fixtures("invalid"));
    let mut wrong = Vec::new();
    for file in fixtures("invalid") {
        let Marks { field, by } = marks(&file);
        let refusal = refused.get(&file);
        match (by.as_str(), refusal) {
            ("webhook", None) => {}
            ("schema" | "cel", Some(error)) if error.contains(&field) => {}
            _ => wrong.push(format!("{}: by {by} for {field}, but the API server says {refusal:?}", file.display())),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn valid_fixtures_are_taken() {
    let server = with_definitions().await;
    assert_eq!(refusals(server, &fixtures("valid")), BTreeMap::new());
}

/// What the head of a fixture says.
struct Marks {
    field: String,
    by: String,
}

fn marks(file: &Path) -> Marks {
    let text = fs::read_to_string(file).unwrap();
    let mark = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("# {name}: ")));
        line.unwrap_or_else(|| panic!("{} has no mark {name}", file.display())).to_owned()
    };
    Marks { field: mark("field"), by: mark("refused-by") }
}

fn fixtures(kind: &str) -> Vec<PathBuf> {
    let folder = repository().join("crds/fixtures").join(kind);
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

async fn with_definitions() -> &'static ApiServer {
    let server = ApiServer::shared().await.unwrap();
    let definitions = repository().join("crds/yaml");
    let apply = kubectl(server).args(["apply", "--server-side", "-f"]).arg(&definitions).output().unwrap();
    assert!(apply.status.success(), "{}", String::from_utf8_lossy(&apply.stderr));
    let served = async || {
        let list = kubectl(server).args(["get", "fetchrpolicies,fetchrproxies"]).output()?;
        anyhow::ensure!(list.status.success(), "{}", String::from_utf8_lossy(&list.stderr));
        Ok(())
    };
    eventually("both kinds are served", Duration::from_secs(20), served).await.unwrap();
    server
}

/// What `kubectl apply` says to each file that is refused.
fn refusals(server: &ApiServer, files: &[PathBuf]) -> BTreeMap<PathBuf, String> {
    let mut apply = kubectl(server);
    apply.args(["apply", "--dry-run=server"]);
    for file in files {
        apply.arg("-f").arg(file);
    }
    let stderr = String::from_utf8(apply.output().unwrap().stderr).unwrap();
    // An error names its file first and may go on for several lines.
    let mut refused: BTreeMap<PathBuf, String> = BTreeMap::new();
    let mut current = None;
    for line in stderr.lines() {
        current = files.iter().find(|file| line.contains(file.to_str().unwrap())).or(current);
        let file = current.unwrap_or_else(|| panic!("kubectl says: {stderr}"));
        refused.entry(file.clone()).or_default().push_str(line);
    }
    refused
}

fn kubectl(server: &ApiServer) -> Command {
    let mut command = Command::new(program("kubectl").unwrap());
    command.env("KUBECONFIG", server.kubeconfig());
    command
}
