//! The chart: what it renders, what of it an API server takes, and what the operator may do once it is installed.
#![allow(clippy::unwrap_used, reason = "a helper that fails has failed its test")]

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use e2e::{apiserver::ApiServer, tools};
use serde::Deserialize;
use serde_json::{Value, json};

const NAMESPACE: &str = "fetchr-system";
const OPERATOR: &str = "system:serviceaccount:fetchr-system:fetchr-operator";
/// PEM that the API server takes for a bundle of certificates.
const AUTHORITY: &str = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1BPT0KLS0tLS1FTkQgQ0VSVElGSUNBVEUtLS0tLQo=";
/// Kinds that only a Prometheus operator brings.
const MONITORING: [&str; 4] =
    ["--api-versions", "monitoring.coreos.com/v1/ServiceMonitor", "--api-versions", "monitoring.coreos.com/v1/PodMonitor"];

#[test]
fn every_example_of_values_passes_lint_and_renders() {
    for file in value_files() {
        let file = file.to_str().unwrap();
        helm(&["lint", "--strict", &chart(), "--values", file]).unwrap();
        assert!(!render(&[&["--values", file][..], &MONITORING].concat()).is_empty(), "{file}");
    }
}

#[test]
fn wrong_values_are_refused_with_their_name() {
    for (setting, name) in [
        ("replicaCount=0", "replicaCount"),
        ("replicas=3", "replicas"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("log.format=xml", "format"),
        ("networkPolicy.apiServerPorts={0}", "apiServerPorts"),
        ("metrics.podMonitor.interval=often", "interval"),
    ] {
        let error = template("fetchr", &["--set", setting]).unwrap_err();
        assert!(
            error.contains("values don't meet the specifications of the schema") && error.contains(name),
            "{setting}: {error}"
        );
    }
}

#[test]
fn operator_has_exactly_these_rights() {
    let objects = render(&[]);
    let expected = "\
fetchr.sh/fetchrproxies,fetchrpolicies: list watch
/namespaces,pods,services: list watch
apps/daemonsets,deployments,statefulsets: list watch
discovery.k8s.io/endpointslices: list watch
/namespaces: get
batch/jobs: get
fetchr.sh/fetchrproxies/status,fetchrpolicies/status: patch
events.k8s.io/events: create patch
/configmaps[fetchr-plan]: create delete list patch watch
/pods/eviction: create
authentication.k8s.io/tokenreviews: create
authorization.k8s.io/subjectaccessreviews: create
admissionregistration.k8s.io/mutatingwebhookconfigurations,validatingwebhookconfigurations[fetchr]: get patch
apiregistration.k8s.io/apiservices[v1alpha1.api.fetchr.sh]: get patch
";
    assert_eq!(rights(&objects, "ClusterRole", "fetchr-operator"), expected);
    let expected = "\
/secrets: create
/secrets[fetchr-ca]: get list watch update
coordination.k8s.io/leases: create
coordination.k8s.io/leases[fetchr-operator]: get patch
fetchr.sh/fetchrproxies[default]: create get patch
";
    assert_eq!(rights(&objects, "Role", "fetchr-operator"), expected);
}

#[test]
fn no_role_has_a_wildcard_or_reads_secrets_of_others() {
    for file in value_files() {
        let objects = render(&["--values", file.to_str().unwrap()]);
        for role in objects.iter().filter(|object| object["kind"].as_str().unwrap().ends_with("Role")) {
            for rule in role["rules"].as_array().unwrap() {
                assert!(!rule.to_string().contains('*'), "{role}");
                let secrets = strings(&rule["resources"]).contains(&"secrets");
                let only_create = strings(&rule["verbs"]) == ["create"];
                assert!(!secrets || only_create || strings(&rule["resourceNames"]) == ["fetchr-ca"], "{role}");
            }
        }
    }
}

#[test]
fn names_are_those_of_the_architecture_whatever_the_release_is_called() {
    let architecture = fs::read_to_string(tools::repository().join("docs/architecture.md")).unwrap();
    let text = template("some-release", &[]).unwrap();
    let rendered: BTreeSet<(String, String)> = documents(&text).iter().map(kind_and_name).collect();
    for (kind, name) in [
        ("Deployment", "fetchr-operator"),
        ("ServiceAccount", "fetchr-operator"),
        ("Service", "fetchr-webhook"),
        ("Service", "fetchr-streams"),
        ("Service", "fetchr-api"),
        ("Service", "fetchr-operator-metrics"),
        ("MutatingWebhookConfiguration", "fetchr"),
        ("ValidatingWebhookConfiguration", "fetchr"),
        ("APIService", "v1alpha1.api.fetchr.sh"),
        ("ConfigMap", "fetchr-default-proxy"),
        ("CustomResourceDefinition", "fetchrproxies.fetchr.sh"),
        ("CustomResourceDefinition", "fetchrpolicies.fetchr.sh"),
    ] {
        assert!(rendered.contains(&(kind.to_owned(), name.to_owned())), "{kind} {name} is not rendered");
        assert!(
            kind == "CustomResourceDefinition" || architecture.contains(&format!("`{name}`")),
            "{name} is not in the architecture"
        );
    }
}

#[test]
fn registrations_are_those_of_the_admission_page() {
    let page = fs::read_to_string(tools::repository().join("docs/admission.md")).unwrap();
    let yaml = page.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let wanted = documents(&yaml.replace("NS", NAMESPACE));
    assert_eq!(wanted.len(), 3);
    let objects = render(&[]);
    for wanted in &wanted {
        let found = objects.iter().find(|object| kind_and_name(object) == kind_and_name(wanted)).unwrap();
        assert_eq!(found["webhooks"], wanted["webhooks"]);
        assert_eq!(found["spec"], wanted["spec"]);
    }
}

#[test]
fn what_the_operator_owns_is_not_rendered() {
    let text = serde_json::to_string(&render(&[])).unwrap();
    for field in ["caBundle", "fetchr-ca\"}", "\"Lease\""] {
        assert!(!text.contains(field), "{field}");
    }
}

#[test]
fn server_side_apply_finds_no_key_twice() {
    let full = chart() + "/ci/full-values.yaml";
    let objects = render(&[&["--values", &full][..], &MONITORING].concat());
    let pod = &find(&objects, "Deployment", "fetchr-operator")["spec"]["template"]["spec"];
    for (list, key) in [("env", "name"), ("ports", "containerPort"), ("ports", "name"), ("volumeMounts", "mountPath")] {
        let values: Vec<String> =
            pod["containers"][0][list].as_array().unwrap().iter().map(|item| item[key].to_string()).collect();
        assert_eq!(values.iter().collect::<BTreeSet<_>>().len(), values.len(), "{list}: {values:?}");
    }
}

#[test]
fn operator_knows_every_variable_that_it_is_given() {
    let objects = render(&[]);
    let operator = tools::sibling("fetchr-operator").unwrap();
    for (kind, name, command) in [("Deployment", "fetchr-operator", "run"), ("Job", "fetchr-cleanup", "cleanup")] {
        let container = &find(&objects, kind, name)["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(strings(&container["command"]), ["fetchr-operator", command]);
        let help = Command::new(&operator).args([command, "--help"]).output().unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        for variable in container["env"].as_array().unwrap() {
            let variable = variable["name"].as_str().unwrap();
            assert!(help.contains(&format!("[env: {variable}=")), "{command} does not know {variable}");
        }
    }
}

#[test]
fn clean_up_runs_wherever_the_operator_does() {
    let values = format!("{}/ci/full-values.yaml", chart());
    let objects = render(&["--values", &values]);
    let spec = |kind, name| find(&objects, kind, name)["spec"]["template"]["spec"].clone();
    let (operator, cleanup) = (spec("Deployment", "fetchr-operator"), spec("Job", "fetchr-cleanup"));
    for field in ["nodeSelector", "tolerations", "affinity", "priorityClassName", "imagePullSecrets"] {
        assert!(!cleanup[field].is_null(), "{field}");
        assert_eq!(cleanup[field], operator[field], "{field}");
    }
    let policy = |name| find(&objects, "NetworkPolicy", name)["spec"].clone();
    let (operator, cleanup) = (policy("fetchr-operator"), policy("fetchr-cleanup"));
    assert_eq!(cleanup["egress"], operator["egress"]);
    let labels = find(&objects, "Job", "fetchr-cleanup")["spec"]["template"]["metadata"]["labels"].clone();
    for (key, value) in cleanup["podSelector"]["matchLabels"].as_object().unwrap() {
        assert_eq!(labels[key], *value, "{key}");
    }
}

#[test]
fn monitors_are_rendered_only_where_their_kinds_exist() {
    let both = ["--set", "metrics.serviceMonitor.enabled=true,metrics.podMonitor.enabled=true"];
    let monitors = |arguments: &[&str]| {
        let objects = render(arguments);
        objects.iter().filter(|object| object["kind"].as_str().unwrap().ends_with("Monitor")).count()
    };
    assert_eq!(monitors(&both), 0);
    assert_eq!(monitors(&MONITORING), 0);
    assert_eq!(monitors(&[&both[..], &MONITORING].concat()), 2);
}

#[test]
fn manifests_are_current() {
    let script = tools::repository().join("scripts/manifests");
    let output = Command::new(script).env("HELM", tools::program("helm").unwrap()).stderr(Stdio::inherit()).output().unwrap();
    let file = fs::read_to_string(tools::repository().join("manifests/fetchr.yaml")).unwrap_or_default();
    assert!(String::from_utf8(output.stdout).unwrap() == file, "manifests/fetchr.yaml is old: make manifests");
}

#[tokio::test]
async fn installed_chart_works_on_an_api_server_and_leaves_only_what_it_should() {
    let server = ApiServer::start().await.unwrap();
    let cluster = Cluster { kubeconfig: server.kubeconfig() };
    tokio::task::spawn_blocking(move || {
        cluster.helm(&["install", "fetchr", &chart(), "--namespace", NAMESPACE, "--create-namespace"]);
        operator_reaches_what_it_needs(&cluster);
        operator_reaches_nothing_else(&cluster);
        people_have_the_rights_of_their_roles(&cluster);
        operator_pods_fit_the_restricted_standard(&cluster);
        upgrade_keeps_what_the_operator_wrote(&cluster);
        uninstall_keeps_only_the_definitions(&cluster);
    })
    .await
    .unwrap();
}

/// As Helm 4 does it, and whoever takes the plain manifests: a field that somebody else owns must not be in them.
#[tokio::test]
async fn manifests_are_applied_server_side_again_and_again_without_conflict() {
    let server = ApiServer::start().await.unwrap();
    let cluster = Cluster { kubeconfig: server.kubeconfig() };
    tokio::task::spawn_blocking(move || {
        let manifests = tools::repository().join("manifests/fetchr.yaml");
        let apply = ["apply", "--server-side", "--validate=strict", "--filename", manifests.to_str().unwrap()];
        cluster.kubectl(&apply, "").unwrap();
        write_authority(&cluster);
        cluster.kubectl(&apply, "").unwrap();
        assert_eq!(authority(&cluster), AUTHORITY);
    })
    .await
    .unwrap();
}

fn operator_reaches_what_it_needs(cluster: &Cluster) {
    // Server-side apply makes a ConfigMap of the one name, and of no other, in any namespace.
    let plan = |name: &str| format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{name: {name}, namespace: default}}}}");
    let apply = ["apply", "--server-side", "--validate=false", "--field-manager=fetchr", "--as", OPERATOR, "--filename", "-"];
    cluster.kubectl(&apply, &plan("fetchr-plan")).unwrap();
    let error = cluster.kubectl(&apply, &plan("other")).unwrap_err();
    assert!(error.contains("forbidden"), "{error}");
    let selected = ["get", "configmaps", "-A", "--field-selector", "metadata.name=fetchr-plan", "-o", "name", "--as", OPERATOR];
    assert_eq!(cluster.kubectl(&selected, "").unwrap(), "configmap/fetchr-plan\n");
    cluster.kubectl(&["delete", "configmap", "fetchr-plan", "--namespace", "default", "--as", OPERATOR], "").unwrap();
    for what in [
        "list /pods",
        "watch /configmaps fetchr-plan default",
        "get /namespaces shop",
        "get fetchr.sh/fetchrproxies default fetchr-system",
        "watch fetchr.sh/fetchrpolicies",
        "patch fetchr.sh/fetchrpolicies/status x shop",
        "create /pods/eviction x shop",
        "create fetchr.sh/fetchrproxies default fetchr-system",
        "update /secrets fetchr-ca fetchr-system",
        "get /configmaps extension-apiserver-authentication kube-system",
    ] {
        assert!(cluster.allows(OPERATOR, what), "the operator may not {what}");
    }
}

fn operator_reaches_nothing_else(cluster: &Cluster) {
    for what in [
        "list /secrets",
        "get /secrets redis fetchr-system",
        "get /secrets fetchr-ca shop",
        "list /configmaps",
        "watch /configmaps",
        "delete /pods x shop",
        "create /pods x fetchr-system",
        "create fetchr.sh/fetchrproxies default shop",
        "patch fetchr.sh/fetchrpolicies x shop",
        "patch admissionregistration.k8s.io/mutatingwebhookconfigurations other",
        "delete admissionregistration.k8s.io/mutatingwebhookconfigurations fetchr",
    ] {
        assert!(!cluster.allows(OPERATOR, what), "the operator may {what}");
    }
}

fn people_have_the_rights_of_their_roles(cluster: &Cluster) {
    for role in ["view", "edit", "admin"] {
        // No controller runs here that would add ours to the role of that name, so ours are bound as the label says.
        let selector = format!("rbac.authorization.k8s.io/aggregate-to-{role}=true,app.kubernetes.io/part-of=fetchr");
        let ours =
            cluster.kubectl(&["get", "clusterroles", "--selector", &selector, "-o=jsonpath={.items[*].metadata.name}"], "");
        for ours in ours.unwrap().split(' ') {
            let name = format!("{role}-{ours}");
            cluster.kubectl(&["create", "clusterrolebinding", &name, "--clusterrole", ours, "--user", role], "").unwrap();
        }
    }
    let editor = ["create", "clusterrolebinding", "platform", "--clusterrole", "fetchr-proxy-editor", "--user", "platform"];
    cluster.kubectl(&editor, "").unwrap();
    for (role, what, expected) in [
        ("view", "get fetchr.sh/fetchrproxies", true),
        ("view", "create fetchr.sh/fetchrpolicies", false),
        ("view", "list api.fetchr.sh/sidecars", true),
        ("view", "get api.fetchr.sh/sidecars/config", false),
        ("view", "get api.fetchr.sh/sidecars/throttles", true),
        ("view", "get api.fetchr.sh/sidecars/cache", false),
        ("view", "get api.fetchr.sh/sidecars/limits", false),
        ("edit", "create fetchr.sh/fetchrpolicies", true),
        ("edit", "patch fetchr.sh/fetchrproxies", false),
        ("edit", "get api.fetchr.sh/sidecars/config", true),
        ("edit", "get api.fetchr.sh/sidecars/cache", true),
        ("edit", "get api.fetchr.sh/sidecars/limits", true),
        ("edit", "create api.fetchr.sh/sidecars/reset", true),
        ("admin", "create fetchr.sh/fetchrpolicies", true),
        ("admin", "patch fetchr.sh/fetchrproxies", false),
        ("platform", "patch fetchr.sh/fetchrproxies", true),
    ] {
        assert_eq!(cluster.allows(role, what), expected, "{role}: {what}");
    }
}

fn operator_pods_fit_the_restricted_standard(cluster: &Cluster) {
    let namespace = r#"{"apiVersion": "v1", "kind": "Namespace", "metadata":
        {"name": "restricted", "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}"#;
    cluster.kubectl(&["apply", "--filename", "-"], namespace).unwrap();
    let objects = render(&[]);
    for (kind, name) in [("Deployment", "fetchr-operator"), ("Job", "fetchr-cleanup")] {
        let mut pod = find(&objects, kind, name)["spec"]["template"].clone();
        pod["apiVersion"] = "v1".into();
        pod["kind"] = "Pod".into();
        pod["metadata"] = json!({"name": name, "namespace": "restricted"});
        pod["spec"]["serviceAccountName"] = "default".into();
        let account =
            r#"{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "restricted"}}"#;
        cluster.kubectl(&["apply", "--server-side", "--filename", "-"], account).unwrap();
        cluster.kubectl(&["create", "--dry-run=server", "--filename", "-"], &pod.to_string()).unwrap();
    }
}

fn upgrade_keeps_what_the_operator_wrote(cluster: &Cluster) {
    write_authority(cluster);
    let upgrade = ["upgrade", "fetchr", &chart(), "--namespace", NAMESPACE, "--set", "log.level=debug,replicaCount=3"];
    cluster.helm(&upgrade);
    assert_eq!(authority(cluster), AUTHORITY);
    let replicas = ["get", "deployment/fetchr-operator", "-n", NAMESPACE, "-o=jsonpath={.spec.replicas}"];
    assert_eq!(cluster.kubectl(&replicas, "").unwrap(), "3");
}

fn uninstall_keeps_only_the_definitions(cluster: &Cluster) {
    // The hook's Job needs a node; a test with a whole cluster runs it.
    cluster.helm(&["uninstall", "fetchr", "--namespace", NAMESPACE, "--no-hooks"]);
    let kinds = "clusterroles,clusterrolebindings,mutatingwebhookconfigurations,validatingwebhookconfigurations,apiservices,crds,\
        deployments,services,serviceaccounts,roles,rolebindings,configmaps,networkpolicies,poddisruptionbudgets,secrets";
    let left = cluster.kubectl(&["get", kinds, "-A", "-l", "app.kubernetes.io/part-of=fetchr", "-o", "name"], "").unwrap();
    let expected = ["fetchrpolicies.fetchr.sh", "fetchrproxies.fetchr.sh"]
        .map(|name| format!("customresourcedefinition.apiextensions.k8s.io/{name}\n"))
        .concat();
    assert_eq!(left, expected);
}

/// What the leader does with its CA: by server-side apply, and in this one place.
fn write_authority(cluster: &Cluster) {
    let entries: Vec<Value> = ["annotated.inject.fetchr.sh", "namespaces.inject.fetchr.sh"]
        .map(|name| json!({"name": name, "clientConfig": {"caBundle": AUTHORITY}}))
        .into();
    let patch = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "fetchr"}, "webhooks": entries,
    });
    let apply = ["apply", "--server-side", "--validate=false", "--field-manager", "fetchr-operator-ca", "--as", OPERATOR];
    cluster.kubectl(&[&apply[..], &["--filename", "-"]].concat(), &patch.to_string()).unwrap();
}

fn authority(cluster: &Cluster) -> String {
    let path = "-o=jsonpath={.webhooks[0].clientConfig.caBundle}";
    cluster.kubectl(&["get", "mutatingwebhookconfiguration/fetchr", path], "").unwrap()
}

/// An API server, without any node or controller.
struct Cluster {
    kubeconfig: PathBuf,
}

impl Cluster {
    fn helm(&self, arguments: &[&str]) {
        helm(&[arguments, &["--kubeconfig", self.kubeconfig.to_str().unwrap()]].concat()).unwrap();
    }

    fn kubectl(&self, arguments: &[&str], stdin: &str) -> Result<String, String> {
        let kubeconfig = ["--kubeconfig", self.kubeconfig.to_str().unwrap()];
        run(&tools::program("kubectl").unwrap(), &[arguments, &kubeconfig].concat(), stdin)
    }

    /// Whether a user may do this: `verb group/resource[/subresource] [name] [namespace]`.
    fn allows(&self, user: &str, what: &str) -> bool {
        let mut words = what.split(' ');
        let verb = words.next().unwrap();
        let mut path = words.next().unwrap().split('/');
        let attributes = json!({
            "verb": verb, "group": path.next(), "resource": path.next(), "subresource": path.next(),
            "name": words.next(), "namespace": words.next(),
        });
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {"user": user, "resourceAttributes": attributes},
        });
        self.kubectl(&["create", "--filename", "-", "-o=jsonpath={.status.allowed}"], &review.to_string()).unwrap() == "true"
    }
}

fn chart() -> String {
    tools::repository().join("charts/fetchr").to_str().unwrap().to_owned()
}

fn value_files() -> Vec<PathBuf> {
    let examples = fs::read_dir(chart() + "/ci").unwrap().map(|entry| entry.unwrap().path());
    examples.chain([PathBuf::from(chart() + "/values.yaml")]).collect()
}

/// What the chart renders, hooks too.
fn render(arguments: &[&str]) -> Vec<Value> {
    documents(&template("fetchr", arguments).unwrap())
}

fn template(release: &str, arguments: &[&str]) -> Result<String, String> {
    // A helm that was built from source takes the cluster for an old one.
    let fixed = ["template", release, &chart(), "--namespace", NAMESPACE, "--kube-version", "1.33.0"];
    helm(&[&fixed, arguments].concat())
}

fn documents(yaml: &str) -> Vec<Value> {
    let documents = serde_yaml::Deserializer::from_str(yaml).map(|document| Value::deserialize(document).unwrap());
    documents.filter(|document| !document.is_null()).collect()
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    objects.iter().find(|object| kind_and_name(object) == (kind.to_owned(), name.to_owned())).unwrap()
}

fn kind_and_name(object: &Value) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&object["kind"]), text(&object["metadata"]["name"]))
}

/// The rules of a role, a line each: `group/resources[names]: verbs`.
fn rights(objects: &[Value], kind: &str, name: &str) -> String {
    let rules = find(objects, kind, name)["rules"].as_array().unwrap();
    let line = |rule: &Value| {
        let names = strings(&rule["resourceNames"]).join(",");
        let names = if names.is_empty() { names } else { format!("[{names}]") };
        let (groups, resources) = (strings(&rule["apiGroups"]).join(","), strings(&rule["resources"]).join(","));
        format!("{groups}/{resources}{names}: {}\n", strings(&rule["verbs"]).join(" "))
    };
    rules.iter().map(line).collect()
}

fn strings(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().map(|item| item.as_str().unwrap()).collect()
}

/// Helm 3, or the program in `$HELM`: Helm 4 passes too.
fn helm(arguments: &[&str]) -> Result<String, String> {
    let program = tools::helm().unwrap();
    run(&program, arguments, "")
}

/// Standard output, or everything that a failed program wrote.
fn run(program: &Path, arguments: &[&str], stdin: &str) -> Result<String, String> {
    let piped = Stdio::piped;
    let mut child = Command::new(program).args(arguments).stdin(piped()).stdout(piped()).stderr(piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    if output.status.success() { Ok(stdout) } else { Err(format!("{stdout}{stderr}")) }
}
