//! A sound installation, and what each thing that can break in it is called.

use std::sync::LazyLock;

use k8s_openapi::{ByteString, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::command::check::facts::API_SERVICE;
use crate::command::{
    check::{
        Outcome,
        facts::{Answer, Common, Right},
    },
    version::THIS_VERSION,
};

/// A CA that ends on 2036-01-01.
static CA: LazyLock<String> = LazyLock::new(|| {
    let mut params = rcgen::CertificateParams::default();
    params.not_after = rcgen::date_time_ymd(2036, 1, 1);
    let key = rcgen::KeyPair::generate().expect("a key can be made");
    params.self_signed(&key).expect("a certificate can be made").pem()
});
/// 2026-01-01.
const NOW: i64 = 1_767_225_600;

fn object<T: DeserializeOwned>(value: Value) -> Answer<T> {
    Ok(serde_json::from_value(value).expect("the test writes a well-formed object"))
}

fn bundle(pem: &str) -> Value {
    serde_json::to_value(ByteString(pem.as_bytes().to_vec())).expect("bytes are a JSON string")
}

fn webhooks(kind: &str, ca: &str) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": "fetchr"},
        "webhooks": [{"name": "one.fetchr.sh", "clientConfig": {"caBundle": bundle(ca)}, "sideEffects": "None",
                      "admissionReviewVersions": ["v1"]}],
    })
}

fn api_service(ca: &str, available: &str) -> Value {
    json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": API_SERVICE},
        "spec": {"caBundle": bundle(ca), "groupPriorityMinimum": 1000, "versionPriority": 15},
        "status": {"conditions": [{"type": "Available", "status": available, "message": "no endpoints"}]},
    })
}

fn deployment(available: i32, version: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "fetchr-operator", "labels": {"app.kubernetes.io/version": version}},
        "spec": {"replicas": 2, "selector": {}, "template": {}},
        "status": {"availableReplicas": available},
    })
}

fn pod(name: &str, labels: &Value, annotations: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
           "metadata": {"name": name, "namespace": "shop", "labels": labels, "annotations": annotations}})
}

fn stamped(version: &str) -> Value {
    json!({"fetchr.sh/inject": "enabled", "fetchr.sh/status": json!({"version": version, "proxy": "shop/web"}).to_string()})
}

fn established(definition: &crds::schema::Definition) -> (String, Answer<CustomResourceDefinition>) {
    let mut crd = definition.crd.clone();
    crd["status"] = json!({"conditions": [{"type": "Established", "status": "True"}]});
    (crd["metadata"]["name"].as_str().expect("a definition has a name").to_owned(), object(crd))
}

fn common() -> Common {
    let right =
        Right { verb: "create", group: "fetchr.sh", resource: "fetchrproxies", subresource: "", namespace: "shop".into() };
    let server = json!({"major": "1", "minor": "33", "gitVersion": "v1.33.4", "gitCommit": "", "gitTreeState": "", "buildDate": "",
                        "goVersion": "", "compiler": "", "platform": ""});
    Common {
        url: "https://10.0.0.1:6443/".into(),
        server: object(server).expect("the version is well formed"),
        rights: vec![(right, Ok(true))],
        crds: crds::schema::definitions().iter().map(established).collect(),
    }
}

fn sound() -> Installed {
    let injected = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "fetchr-check"},
                          "spec": {"containers": [{"name": "app"}], "initContainers": [{"name": "fetchr-proxy"}]}});
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "fetchr-webhook-1"},
                       "addressType": "IPv4", "endpoints": [{"addresses": ["10.1.0.2"], "conditions": {"ready": true}}]});
    Installed {
        now: NOW,
        common: common(),
        operator_namespace: "fetchr-system".into(),
        deployment: object(deployment(2, THIS_VERSION)),
        mutating: object(webhooks("MutatingWebhookConfiguration", &CA)),
        validating: object(webhooks("ValidatingWebhookConfiguration", &CA)),
        webhook_endpoints: object(json!([slice])),
        api_service: object(api_service(&CA, "True")),
        namespace: "shop".into(),
        injected: object(injected),
        admitted: Err(Gap::Refused("spec.rules[0].matches[0].path.value: unclosed group".into())),
        pods: object(json!([pod("web-0", &json!({"fetchr.sh/injected": "true"}), &stamped(THIS_VERSION))])),
        namespaces: object(json!([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}])),
    }
}

/// The findings that are not good.
fn complaints(facts: &Installed) -> Vec<Finding> {
    installed(facts).into_iter().filter(|finding| finding.outcome != Outcome::Ok).collect()
}

fn only_complaint(facts: &Installed) -> Finding {
    let mut all = complaints(facts);
    assert_eq!(all.len(), 1, "{all:#?}");
    all.remove(0)
}

#[test]
fn sound_installation_has_no_complaint() {
    assert_eq!(complaints(&sound()), []);
}

#[test]
fn operator_without_replicas_is_wrong_and_with_one_of_two_worth_a_look() {
    let gone = Installed { deployment: object(deployment(0, THIS_VERSION)), ..sound() };
    assert_eq!(only_complaint(&gone).outcome, Outcome::Failed);
    let half = Installed { deployment: object(deployment(1, THIS_VERSION)), ..sound() };
    assert_eq!(only_complaint(&half).outcome, Outcome::Warning);
}

#[test]
fn broken_webhook_comes_with_the_way_out() {
    let refused = Gap::Refused("failed calling webhook \"annotated.inject.fetchr.sh\": no endpoints available".into());
    let broken = Installed { injected: Err(refused), ..sound() };
    let finding = only_complaint(&broken);
    assert_eq!(finding.outcome, Outcome::Failed);
    assert!(finding.hint.expect("there is something to do").contains("kubectl delete mutatingwebhookconfiguration fetchr"));
}

#[test]
fn pod_refused_by_someone_else_is_no_fault_of_ours() {
    let broken = Installed { injected: Err(Gap::Refused("exceeded quota: pods".into())), ..sound() };
    assert_eq!(only_complaint(&broken).outcome, Outcome::Warning);
}

#[test]
fn webhook_that_lets_everything_through_is_found_by_trying() {
    let policy = json!({"apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrPolicy", "metadata": {"name": "p"},
                        "spec": {"targetRefs": [], "rules": []}});
    let finding = only_complaint(&Installed { admitted: object(policy), ..sound() });
    assert_eq!((finding.check, finding.outcome), ("validation", Outcome::Failed));
}

#[test]
fn bundles_that_differ_or_lack_are_wrong() {
    let differs = Installed { api_service: object(api_service(&CA.replace('\n', "\r\n"), "True")), ..sound() };
    assert_eq!(only_complaint(&differs).message, "webhooks and APIService carry different CA bundles");
    let lacks = Installed { mutating: object(webhooks("MutatingWebhookConfiguration", "")), ..sound() };
    assert_eq!(only_complaint(&lacks).message, "no caBundle in mutating webhook one.fetchr.sh");
}

#[test]
fn certificate_near_its_end_is_a_warning_and_after_it_wrong() {
    let end = 2_082_758_400; // 2036-01-01
    let near = only_complaint(&Installed { now: end - 3 * 86_400, ..sound() });
    assert_eq!((near.outcome, near.message.as_str()), (Outcome::Warning, "the CA ends in 3 days and has no successor"));
    let over = only_complaint(&Installed { now: end + 86_400, ..sound() });
    assert_eq!((over.outcome, over.message.as_str()), (Outcome::Failed, "the CA ended 1 days ago"));
}

#[test]
fn older_definition_is_told_which_fields_it_lacks() {
    let mut facts = sound();
    let (_, Ok(crd)) = &mut facts.common.crds[1] else { panic!("the definition is there") };
    let schema = crd.spec.versions[0].schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()).expect("a schema");
    let spec = schema.properties.as_mut().and_then(|properties| properties.get_mut("spec")).expect("a spec");
    spec.properties.as_mut().expect("fields").remove("direction");
    let finding = only_complaint(&facts);
    assert_eq!(finding.outcome, Outcome::Failed);
    assert!(finding.message.contains("it lacks spec.direction"), "{}", finding.message);
}

#[test]
fn pod_without_the_sidecar_it_asked_for_is_named() {
    let pods = json!([pod("web-0", &json!({}), &json!({"fetchr.sh/inject": "enabled"})), pod("db-0", &json!({}), &json!({}))]);
    let finding = only_complaint(&Installed { pods: object(pods), ..sound() });
    assert_eq!((finding.outcome, finding.message.as_str()), (Outcome::Failed, "1 asked for a sidecar and have none: shop/web-0"));
}

#[test]
fn pod_that_was_skipped_is_named_with_the_reason() {
    let stamp = json!({"version": THIS_VERSION, "skipped": {"reason": "HostNetwork", "message": "..."}}).to_string();
    let annotations = json!({"fetchr.sh/inject": "enabled", "fetchr.sh/status": stamp});
    let finding = only_complaint(&Installed { pods: object(json!([pod("web-0", &json!({}), &annotations)])), ..sound() });
    assert_eq!(
        (finding.outcome, finding.message.as_str()),
        (Outcome::Warning, "1 were left without a sidecar: shop/web-0 (HostNetwork)")
    );
}

#[test]
fn sidecars_two_minor_versions_away_are_wrong() {
    let pods = json!([pod("web-0", &json!({"fetchr.sh/injected": "true"}), &stamped("0.9.0"))]);
    let finding = only_complaint(&Installed { pods: object(pods), ..sound() });
    assert_eq!((finding.check, finding.outcome), ("versions", Outcome::Failed));
}

#[test]
fn unavailable_api_says_why() {
    let finding = only_complaint(&Installed { api_service: object(api_service(&CA, "False")), ..sound() });
    assert_eq!(finding.outcome, Outcome::Failed);
    assert!(finding.message.ends_with("is not available: no endpoints"), "{}", finding.message);
}

#[test]
fn what_may_not_be_read_is_a_warning_that_names_the_right() {
    let finding = only_complaint(&Installed { webhook_endpoints: Err(Gap::Forbidden), ..sound() });
    assert_eq!(finding.outcome, Outcome::Warning);
    assert_eq!(finding.hint.as_deref(), Some("not checked: it takes the right to list endpointslices"));
}

fn empty_cluster() -> BeforeInstall {
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
                      "status": {"nodeInfo": {"kubeletVersion": "v1.33.4", "architecture": "", "bootID": "", "containerRuntimeVersion": "",
                                              "kernelVersion": "", "kubeProxyVersion": "", "machineID": "", "operatingSystem": "",
                                              "osImage": "", "systemUUID": ""}}});
    let front_proxy = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "extension-apiserver-authentication"},
                             "data": {"requestheader-client-ca-file": "..."}});
    let mut common = common();
    for (_, crd) in &mut common.crds {
        *crd = Err(Gap::NotFound);
    }
    BeforeInstall {
        common,
        nodes: object(json!([node])),
        front_proxy: object(front_proxy),
        operator_namespace: "fetchr-system".into(),
        namespace: Err(Gap::NotFound),
    }
}

#[test]
fn empty_cluster_is_ready_for_fetchr() {
    assert!(pre(&empty_cluster()).iter().all(|finding| finding.outcome == Outcome::Ok), "{:#?}", pre(&empty_cluster()));
}

#[test]
fn old_cluster_and_missing_rights_forbid_an_installation() {
    let mut facts = empty_cluster();
    facts.common.server.git_version = "v1.28.0".into();
    facts.common.rights[0].1 = Ok(false);
    let failed: Vec<_> =
        pre(&facts).into_iter().filter(|finding| finding.outcome == Outcome::Failed).map(|finding| finding.check).collect();
    assert_eq!(failed, ["API server", "your rights"]);
}
