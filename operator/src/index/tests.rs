use crds::proxy::FetchrProxySpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::json;

use super::*;
use crate::stamp::Stamp;

const PLATFORM: &str = "fetchr-system";

fn key(namespace: &str, name: &str) -> ObjectRef {
    ObjectRef::new(namespace, name)
}

fn proxy(namespace: &str, name: &str, selector: &[(&str, &str)]) -> (ObjectRef, Proxy) {
    let match_labels = selector.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
    let selector = LabelSelector { match_labels: Some(match_labels), match_expressions: None };
    let mut object = FetchrProxy::new(name, FetchrProxySpec { selector, ..FetchrProxySpec::default() });
    object.metadata.namespace = Some(namespace.to_owned());
    stored(&object)
}

/// A proxy as a watch would show it.
fn stored(object: &FetchrProxy) -> (ObjectRef, Proxy) {
    Proxy::read(serde_json::from_value(json!(object)).unwrap()).unwrap()
}

fn pod(app: &str) -> Pod {
    Pod { uid: "u1".to_owned(), labels: [("app".to_owned(), app.to_owned())].into(), ..Pod::default() }
}

fn injected(app: &str, proxy: &str) -> Pod {
    let stamp = Stamp { proxy: Some(proxy.to_owned()), workload: Some("Deployment/web".to_owned()), ..Stamp::default() };
    let mut pod = Pod { stamp: Some(stamp), ..pod(app) };
    pod.labels.insert(stamp::INJECTED.to_owned(), "true".to_owned());
    pod
}

fn service(selector: &serde_json::Value) -> Service {
    let object = json!({"metadata": {"namespace": "shop", "name": "s"}, "spec": {"selector": selector}});
    Service::read(serde_json::from_value(object).unwrap()).unwrap().1
}

fn namespace(inject: &str) -> Namespace {
    Namespace { inject: Some(inject.to_owned()), ..Namespace::default() }
}

fn apply<T: Indexed>(index: &mut Index, key: ObjectRef, object: T) -> Touched {
    index.apply(key, object, "1".to_owned())
}

#[test]
fn change_of_a_status_touches_nothing() {
    let mut index = Index::default();
    let (key, before) = proxy("shop", "web", &[]);
    let mut after = FetchrProxy::clone(before.0.object().unwrap());
    after.status = Some(crds::proxy::FetchrProxyStatus::default());
    assert_eq!(apply(&mut index, key.clone(), before), Touched { plans: true, pods: true, services: false });
    assert_eq!(apply(&mut index, key, stored(&after).1), Touched::NOTHING);
    assert_eq!(index.revision(), 1);
}

#[test]
fn proxy_made_anew_under_its_name_is_another_one() {
    let mut index = Index::default();
    let (key, before) = proxy("shop", "web", &[]);
    let mut after = FetchrProxy::clone(before.0.object().unwrap());
    after.metadata.uid = Some("u2".to_owned());
    apply(&mut index, key.clone(), before);
    assert!(apply(&mut index, key, stored(&after).1).plans);
}

#[test]
fn pods_never_touch_plans() {
    let mut index = Index::default();
    assert_eq!(apply(&mut index, key("shop", "web-1"), pod("web")), Touched { pods: true, ..Touched::NOTHING });
    assert_eq!(apply(&mut index, key("shop", "web-1"), pod("web")), Touched::NOTHING);
    assert_eq!(index.position().version("pods"), None, "their versions run ahead of everything and decide nothing");
}

#[test]
fn only_targets_of_policies_touch_plans() {
    let mut index = Index::default();
    let object = json!({"apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrPolicy", "metadata": {"namespace": "shop", "name": "p"},
        "spec": {"targetRefs": [{"kind": "Service", "name": "web"}], "rules": [{"name": "r", "timeouts": {"request": "1s"}}]}});
    let (policy, stored) = Policy::read(serde_json::from_value(object).unwrap()).unwrap();
    assert!(apply(&mut index, policy, stored).plans);
    for (namespace, name, expected) in [("shop", "api", false), ("bank", "web", false), ("shop", "web", true)] {
        assert_eq!(
            apply(&mut index, key(namespace, name), service(&json!({"app": "web"}))).plans,
            expected,
            "{namespace}/{name}"
        );
    }
    assert_eq!(index.targets().into_iter().map(|target| target.name).collect::<Vec<_>>(), ["web"]);
    assert!(!index.delete::<Service>(&key("shop", "api"), "2".to_owned()).plans);
    assert!(index.delete::<Service>(&key("shop", "web"), "2".to_owned()).plans);
    assert!(index.targets().is_empty());
    index.reset::<Service>(Vec::new(), "3".to_owned());
    let again = |name| vec![(key("shop", name), service(&json!({"app": "web"})))];
    assert!(!index.reset(again("api"), "4".to_owned()).plans);
    assert!(index.reset(again("web"), "5".to_owned()).plans);
}

#[test]
fn bookmark_moves_the_position_and_touches_nothing() {
    let mut index = Index::default();
    index.seen::<Policy>("7".to_owned());
    assert_eq!(index.position().version("policies"), Some("7"));
    assert_eq!(index.revision(), 0);
}

#[test]
fn index_is_complete_when_every_kind_was_listed() {
    let mut index = Index::default();
    let version = || "1".to_owned();
    index.reset::<Proxy>(Vec::new(), version());
    index.reset::<Policy>(Vec::new(), version());
    index.reset::<Namespace>(Vec::new(), version());
    index.reset::<Service>(Vec::new(), version());
    index.reset::<Workload<Deployment>>(Vec::new(), version());
    index.reset::<Workload<StatefulSet>>(Vec::new(), version());
    index.reset::<Workload<DaemonSet>>(Vec::new(), version());
    index.reset::<Slice>(Vec::new(), version());
    assert!(!index.is_complete());
    index.reset::<Pod>(Vec::new(), version());
    assert!(index.is_complete());
}

#[test]
fn list_after_a_gap_removes_what_went_in_it() {
    let mut index = Index::default();
    index.reset(vec![proxy("shop", "stays", &[("a", "1")]), proxy("shop", "goes", &[("a", "2")])], "1".to_owned());
    let touched = index.reset(vec![proxy("shop", "stays", &[("a", "1")])], "9".to_owned());
    assert!(touched.plans);
    assert_eq!(index.proxies.keys().map(ToString::to_string).collect::<Vec<_>>(), ["shop/stays"]);
    assert_eq!(index.reset(vec![proxy("shop", "stays", &[("a", "1")])], "10".to_owned()), Touched::NOTHING);
}

#[test]
fn pod_stands_behind_the_services_that_select_it() {
    let mut index = Index::default();
    apply(&mut index, key("shop", "web"), service(&json!({"app": "web"})));
    apply(&mut index, key("shop", "api"), service(&json!({"app": "api"})));
    apply(&mut index, key("shop", "external"), service(&json!(null)));
    apply(&mut index, key("bank", "web"), service(&json!({"app": "web"})));
    let identity = index.identity(&key("shop", "web-1"), &injected("web", "shop/web"));
    assert_eq!(identity.services, ["web"]);
    assert_eq!((identity.workload_kind.as_str(), identity.workload_name.as_str()), ("Deployment", "web"));
}

#[test]
fn pod_gets_the_proxy_that_selects_it_else_the_platforms() {
    let mut index = Index::default();
    for (key, proxy) in [proxy("shop", "web", &[("app", "web")]), proxy("bank", "all", &[]), proxy(PLATFORM, "default", &[])] {
        apply(&mut index, key, proxy);
    }
    let choose = |app| index.choose(&key("shop", "p"), &pod(app), OptIn::Yes, PLATFORM).map(|proxy| proxy.to_string());
    assert_eq!(choose("web").as_deref(), Some("shop/web"));
    assert_eq!(choose("api").as_deref(), Some("fetchr-system/default"));
}

#[test]
fn choice_of_a_pod_does_not_count_where_injection_is_required() {
    let mut index = Index::default();
    for (key, proxy) in [proxy("shop", "web", &[("app", "web")]), proxy("shop", "own", &[("app", "none")])] {
        apply(&mut index, key, proxy);
    }
    let pod = Pod { proxy: Some("own".to_owned()), ..pod("web") };
    let choose = |opt_in| index.choose(&key("shop", "p"), &pod, opt_in, PLATFORM).map(|proxy| proxy.name);
    assert_eq!(choose(OptIn::Yes).as_deref(), Some("own"));
    assert_eq!(choose(OptIn::Required).as_deref(), Some("web"));
}

#[test]
fn pods_that_no_webhook_sees_are_not_opted_in() {
    let mut index = Index::default();
    for name in ["shop", "kube-system", PLATFORM] {
        apply(&mut index, key("", name), namespace("required"));
    }
    let opt_in = |namespace, pod: &Pod| index.opt_in(&key(namespace, "p"), pod, PLATFORM);
    assert_eq!(opt_in("shop", &pod("web")), OptIn::Required);
    assert_eq!(opt_in("kube-system", &pod("web")), OptIn::No);
    assert_eq!(opt_in(PLATFORM, &pod("web")), OptIn::No);
    assert_eq!(opt_in("shop", &Pod { is_mirror: true, ..pod("web") }), OptIn::No);
}

#[test]
fn stamp_without_the_label_is_no_sidecar() {
    let mut pod = injected("web", "shop/web");
    assert_eq!(pod.injected_proxy(), Some(key("shop", "web")));
    pod.labels.remove(stamp::INJECTED);
    assert_eq!(pod.injected_proxy(), None);
}

#[test]
fn metadata_of_a_pod_is_read_and_a_broken_stamp_is_none() {
    let object = json!({"metadata": {
        "namespace": "shop", "name": "web-1", "uid": "u1",
        "labels": {"fetchr.sh/injected": "true"},
        "annotations": {"fetchr.sh/inject": "enabled", "fetchr.sh/status": "not json"},
        "ownerReferences": [
            {"apiVersion": "v1", "kind": "ConfigMap", "name": "other", "uid": "o1"},
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-abc", "uid": "o2", "controller": true},
        ],
    }});
    let (key, pod) = Pod::read(serde_json::from_value(object).unwrap()).unwrap();
    assert_eq!(key.to_string(), "shop/web-1");
    assert_eq!(pod.inject.as_deref(), Some("enabled"));
    assert_eq!(pod.owner.as_ref().map(|owner| owner.kind.as_str()), Some("ReplicaSet"));
    assert_eq!((pod.stamp.clone(), pod.injected_proxy()), (None, None));
}
