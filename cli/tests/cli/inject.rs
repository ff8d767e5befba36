//! `fetchr inject` without a cluster.

use std::fs;

use serde_json::Value;

use crate::support::{Said, command, run, run_with};

const KEY: &str = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=";
const CA: &str = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";

/// The flags that replace a cluster, with a CA file in a folder of its own.
struct Offline {
    folder: tempfile::TempDir,
}

impl Offline {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ca.pem"), CA).unwrap();
        Self { folder }
    }

    fn inject(&self, extra: &[&str], stdin: &str) -> Said {
        let ca = self.folder.path().join("ca.pem");
        let flags = ["inject", "--image", "fetchr-sidecar:test", "--plan-key", KEY, "--ca-file", ca.to_str().unwrap()];
        let mut command = command(&flags);
        command.args(["--proxy-file", "examples/cluster/2-fetchrproxy.yaml"]).args(extra);
        if stdin.is_empty() { run(&mut command) } else { run_with(command.args(["-f", "-"]), stdin) }
    }
}

fn documents(text: &str) -> Vec<Value> {
    text.split("\n---\n").map(|document| serde_yaml::from_str(document).expect("the output is YAML")).collect()
}

#[test]
fn deployment_gets_the_sidecar_and_the_rest_passes_unchanged() {
    let said = Offline::new().inject(&["-f", "examples/cluster/3-app.yaml"], "");
    assert_eq!(said.code, 0, "{said:?}");
    let [deployment, service] = &documents(&said.stdout)[..] else { panic!("two documents: {}", said.stdout) };
    let spec = &deployment["spec"]["template"]["spec"];
    let names: Vec<_> = spec["initContainers"].as_array().unwrap().iter().map(|container| container["name"].clone()).collect();
    assert_eq!(names, ["fetchr-init", "fetchr-proxy"]);
    let env = spec["initContainers"][1]["env"].as_array().unwrap();
    let value = |name: &str| env.iter().find(|variable| variable["name"] == name).map(|variable| variable["value"].clone());
    assert_eq!(value("FETCHR_PROXY"), Some("shop/web".into()));
    assert_eq!(value("FETCHR_WORKLOAD"), Some("Deployment/web".into()));
    assert_eq!(value("FETCHR_CA_BUNDLE"), Some(CA.into()));
    assert_eq!(value("FETCHR_PLAN_KEYS"), Some(KEY.into()));
    assert_eq!(service["kind"], "Service");
    let text = fs::read_to_string(crate::support::repository().join("examples/cluster/3-app.yaml")).unwrap();
    let service_as_written = text.split("\n---\n").nth(1).unwrap();
    assert!(said.stdout.ends_with(service_as_written), "a document without a pod is printed as it was written");
}

#[test]
fn injecting_twice_changes_nothing() {
    let offline = Offline::new();
    let once = offline.inject(&["-f", "examples/cluster/3-app.yaml"], "").stdout;
    let twice = offline.inject(&[], &once);
    assert_eq!(twice.stdout, once, "{}", twice.stderr);
}

#[test]
fn list_and_cronjob_are_injected() {
    let pod = "{metadata: {labels: {app: web}}, spec: {containers: [{name: a, image: b}], restartPolicy: Never}}";
    let cronjob = format!(
        "{{apiVersion: batch/v1, kind: CronJob, metadata: {{name: nightly, namespace: shop}}, \
         spec: {{schedule: '0 0 * * *', jobTemplate: {{spec: {{template: {pod}}}}}}}}}"
    );
    let said = Offline::new().inject(&[], &format!("apiVersion: v1\nkind: List\nitems:\n- {cronjob}\n"));
    assert_eq!(said.code, 0, "{said:?}");
    let template = &documents(&said.stdout)[0]["items"][0]["spec"]["jobTemplate"]["spec"]["template"];
    assert_eq!(template["spec"]["initContainers"][1]["name"], "fetchr-proxy");
    assert_eq!(template["metadata"]["annotations"]["fetchr.sh/inject"], "enabled");
}

#[test]
fn template_that_opted_out_is_left_alone_and_said() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  namespace: shop\n  labels: {app: web}\n  annotations: {fetchr.sh/inject: disabled}\n\
               spec: {containers: [{name: a, image: b}]}\n";
    let said = Offline::new().inject(&[], pod);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(!said.stdout.contains("fetchr-proxy"));
    assert!(said.stderr.starts_with("warning: Pod shop/web in /dev/stdin: left without a sidecar: "), "{}", said.stderr);
}

#[test]
fn pod_that_no_proxy_is_for_is_an_error_and_nothing_is_printed() {
    let pod =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web, namespace: elsewhere}\nspec: {containers: [{name: a, image: b}]}\n";
    let said = Offline::new().inject(&[], pod);
    assert_eq!((said.code, said.stdout.as_str()), (1, ""));
    assert!(said.stderr.contains("no FetchrProxy selects the pod"), "{}", said.stderr);
}

#[test]
fn what_is_missing_is_named_never_made_up() {
    let said =
        run(&mut command(&["inject", "-f", "examples/cluster/3-app.yaml", "--image", "x", "--kubeconfig", "/nonexistent"]));
    assert_eq!((said.code, said.stdout.as_str()), (4, ""));
    assert!(said.stderr.contains("--ca-file, --plan-key, --proxy-file"), "{}", said.stderr);
}
