use std::sync::Arc;

use crds::{
    FetchrPolicy, FetchrProxy,
    plan::{Inputs, ObjectRef, Plan, PlanKey, compile},
};
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use serde_json::{Value, json};
use wire::v1;

use super::*;
use crate::index::{Change, Index, Indexed, Service, Shared, Slice};

fn key(namespace: &str, name: &str) -> ObjectRef {
    ObjectRef::new(namespace, name)
}

/// The plan of pods of `shop` with one outbound rule.
fn plan(settings: &Value, target: &Value, rule: &Value) -> Plan {
    let proxy: FetchrProxy = serde_json::from_value(json!({
        "apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrProxy", "metadata": {"namespace": "shop", "name": "web"}, "spec": settings,
    }))
    .unwrap();
    let policy: FetchrPolicy = serde_json::from_value(json!({
        "apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrPolicy", "metadata": {"namespace": "shop", "name": "p"},
        "spec": {"targetRefs": [target], "direction": "Outbound", "rules": [rule]},
    }))
    .unwrap();
    let plans = compile(&Inputs::of_documents(&[proxy], &[policy])).plans;
    plans[&PlanKey { pod_namespace: "shop".to_owned(), proxy: key("shop", "web") }].clone()
}

fn wanted(settings: &Value, rule: &Value) -> Wanted {
    Wanted::of(&plan(settings, &json!({"kind": "FetchrProxy", "name": "web"}), rule), "shop", "cluster.local")
}

fn services(names: &[&str]) -> Wanted {
    let services = names.iter().map(|name| name.split_once('/').unwrap()).map(|(namespace, name)| key(namespace, name));
    Wanted { services: services.collect(), ..Wanted::default() }
}

#[test]
fn plan_asks_for_the_services_that_rules_which_spread_name() {
    let spread = |hosts: &[&str]| {
        let section = json!({"policy": "RoundRobin"});
        wanted(&json!({}), &json!({"name": "r", "matches": [{"hosts": hosts}], "loadBalancing": section}))
    };
    assert_eq!(spread(&["carts", "cards.bank.svc.cluster.local"]), services(&["bank/cards", "shop/carts"]));
    assert_eq!(spread(&["*.bank"]), Wanted { namespaces: ["bank".to_owned()].into(), ..Wanted::default() });
    assert!(spread(&["*.svc.cluster.local"]).all);
    assert!(spread(&["api.shop.example.org"]).is_nothing());

    let rule = |more: Value| {
        let mut rule = json!({"name": "r"});
        rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        wanted(&json!({}), &rule)
    };
    let of_shop = Wanted { namespaces: ["shop".to_owned()].into(), ..Wanted::default() };
    assert_eq!(rule(json!({"loadBalancing": {}})), of_shop, "a rule for any host");
    assert_eq!(rule(json!({"loadBalancing": {}, "matches": [{"path": {"value": "/a"}}]})), of_shop);
    assert!(rule(json!({"loadBalancing": {"mode": "Disabled"}})).is_nothing());
    assert!(rule(json!({"matches": [{"hosts": ["carts"]}], "retry": {}})).is_nothing(), "it spreads nothing");
}

#[test]
fn plan_asks_for_the_upstreams_that_a_rule_which_spreads_may_send_to() {
    let listener = json!({"name": "l", "port": 8000, "direction": "Outbound", "upstream": "http://Carts.bank.svc:8080"});
    let settings = json!({"interception": {"mode": "Explicit", "listeners": [listener]}});
    let rule = |section: Value| {
        let mut rule = json!({"name": "r", "matches": [{"hosts": ["x.example"]}], "failover": {"upstream": "http://spare:80"}});
        rule.as_object_mut().unwrap().extend(section.as_object().unwrap().clone());
        rule
    };
    assert_eq!(
        wanted(&settings, &rule(json!({"loadBalancing": {}}))).services,
        services(&["bank/carts", "shop/spare", "example/x"]).services
    );
    assert!(wanted(&settings, &rule(json!({}))).is_nothing());
}

#[test]
fn policy_at_a_host_asks_for_that_host_only() {
    let target = json!({"kind": "ExternalHost", "name": "carts.bank.svc"});
    let plan = plan(&json!({}), &target, &json!({"name": "r", "loadBalancing": {}}));
    assert_eq!(Wanted::of(&plan, "shop", "cluster.local"), services(&["bank/carts"]));
}

#[test]
fn plan_asks_for_what_is_spoken_on_the_ports_that_are_intercepted() {
    let rule = json!({"name": "r", "retry": {}});
    assert_eq!(wanted(&json!({"interception": {"outbound": {"ports": [80, 3306]}}}), &rule).ports, [80, 3306].into());
    let explicit =
        json!({"interception": {"mode": "Explicit", "listeners": [{"name": "l", "port": 1, "direction": "Outbound"}]}});
    assert!(wanted(&explicit, &rule).is_nothing());
}

struct Cluster {
    index: Shared,
    catalog: Catalog,
}

impl Cluster {
    fn new() -> Self {
        Self { index: crate::compile::testing::complete(), catalog: Catalog::default() }
    }

    fn apply<T: Indexed>(&self, object: Value, version: u64)
    where
        T::Resource: serde::de::DeserializeOwned,
    {
        let (key, object) = T::read(serde_json::from_value(object).unwrap()).unwrap();
        self.index.change(Change::Apply(key, object), version.to_string());
    }

    fn service(&self, name: &str, spec: &Value) {
        self.apply::<Service>(json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec}), 1);
    }

    /// A slice of a Service: its ports, and its endpoints with conditions.
    fn slice(&self, name: &str, service: &str, ports: &Value, endpoints: &[(&str, Value)], version: u64) {
        let endpoint = |(address, conditions): &(&str, Value)| json!({"addresses": [address], "conditions": conditions});
        let slice = json!({
            "metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "ports": ports, "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        });
        self.apply::<Slice>(slice, version);
    }

    fn set(&mut self, wanted: &Wanted) -> Arc<Set> {
        let wanted = Arc::new(wanted.clone());
        self.catalog.sets([&wanted], &self.index.read(), &"cluster.local".into())[&wanted].clone()
    }

    /// The endpoints of the ports of the first Service.
    fn endpoints(&mut self) -> Vec<(u32, Vec<String>)> {
        let set = self.set(&services(&["shop/carts"]));
        let ports = &set.services[0].1.ports;
        ports.iter().map(|port| (port.port, port.endpoints.iter().flat_map(addresses).collect())).collect()
    }
}

fn addresses(endpoints: &v1::Endpoints) -> Vec<String> {
    let v4 = endpoints.v4.chunks(4).map(|ip| format!("{}.{}.{}.{}", ip[0], ip[1], ip[2], ip[3]));
    let v6 = endpoints.v6.chunks(16).map(|ip| std::net::Ipv6Addr::from(<[u8; 16]>::try_from(ip).unwrap()).to_string());
    v4.chain(v6).map(|ip| format!("{ip}:{}", endpoints.port)).collect()
}

fn spec(ports: &Value) -> Value {
    json!({"clusterIPs": ["10.96.0.7"], "ports": ports})
}

fn ready() -> Value {
    json!({"ready": true, "serving": true, "terminating": false})
}

fn ending() -> Value {
    json!({"ready": false, "serving": true, "terminating": true})
}

fn http() -> Value {
    json!([{"name": "http", "port": 8080}])
}

#[test]
fn endpoints_are_those_that_are_ready_and_only_if_there_is_none_those_that_end() {
    let dead = json!({"ready": false, "serving": false, "terminating": true});
    let starting = json!({"ready": false, "serving": false, "terminating": false});
    for (conditions, expected) in [
        ([ready(), ending(), starting.clone()], vec!["10.0.0.0:8080"]),
        ([ending(), ending(), dead.clone()], vec!["10.0.0.0:8080", "10.0.0.1:8080"]),
        ([json!({}), dead.clone(), starting.clone()], vec!["10.0.0.0:8080"]),
        ([json!({"ready": false, "serving": true}), dead, starting], vec![]),
    ] {
        let mut cluster = Cluster::new();
        cluster.service("carts", &spec(&json!([{"name": "http", "port": 80}])));
        let named = ["10.0.0.0", "10.0.0.1", "10.0.0.2"];
        let endpoints: Vec<_> = named.into_iter().zip(conditions.clone()).collect();
        cluster.slice("carts-1", "carts", &http(), &endpoints, 2);
        assert_eq!(cluster.endpoints(), [(80, expected.into_iter().map(str::to_owned).collect())], "{conditions:?}");
    }
}

#[test]
fn ports_are_those_that_the_slices_have_for_the_name() {
    let mut cluster = Cluster::new();
    cluster.service(
        "carts",
        &spec(&json!([
            {"name": "http", "port": 80, "targetPort": "web"},
            {"name": "admin", "port": 81},
            {"name": "none", "port": 82},
            {"name": "nowhere", "port": 0},
            {"name": "dns", "port": 53, "protocol": "UDP"},
        ])),
    );
    let (udp, none) = (json!({"name": "dns", "port": 53, "protocol": "UDP"}), json!({"name": "none", "port": 0}));
    let ports = |web: u16| json!([{"name": "http", "port": web}, udp, {"name": "admin"}, none]);
    cluster.slice("carts-1", "carts", &ports(8080), &[("10.0.0.1", ready())], 2);
    cluster.slice("carts-2", "carts", &ports(9090), &[("10.0.0.2", ready()), ("fd00::2", ready())], 3);
    cluster.slice("carts-3", "carts", &ports(8080), &[("10.0.0.1", ready())], 4);
    cluster.slice("cards-1", "cards", &ports(8080), &[("10.0.0.3", ready())], 5);
    let web = ["10.0.0.1:8080", "10.0.0.2:9090", "fd00::2:9090"].map(str::to_owned);
    assert_eq!(cluster.endpoints(), [(80, web.to_vec()), (81, Vec::new()), (82, Vec::new())]);
}

#[test]
fn headless_sticky_and_local_services_are_left_to_dns_and_the_node() {
    let mut cluster = Cluster::new();
    cluster.service("headless", &json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"port": 80}]}));
    let local =
        json!({"clusterIPs": ["10.96.0.8"], "internalTrafficPolicy": "Local", "ports": [{"port": 80, "appProtocol": "tcp"}]});
    cluster.service("local", &local);
    cluster.service("sticky", &json!({"clusterIPs": ["10.96.0.9"], "sessionAffinity": "ClientIP", "ports": [{"port": 81}]}));
    cluster.service("other", &json!({"type": "ExternalName", "externalName": "example.org"}));
    let all = Wanted { all: true, ..Wanted::default() };
    assert!(cluster.set(&all).services.is_empty());
    let speaking = Wanted { ports: [80].into(), ..all };
    assert_eq!(cluster.set(&speaking).services[0].0, key("shop", "local"), "what it speaks is worth knowing");
}

#[test]
fn of_services_that_nobody_spreads_those_are_told_whose_protocol_makes_a_difference() {
    let mut cluster = Cluster::new();
    let port = |port: u16, app_protocol: &str| spec(&json!([{"port": port, "appProtocol": app_protocol}]));
    cluster.service("db", &port(3306, "mysql"));
    cluster.service("grpc", &port(80, "kubernetes.io/h2c"));
    cluster.service("web", &port(80, "http"));
    cluster.service("mail", &port(25, "smtp"));
    cluster.slice("db-1", "db", &json!([{"name": "", "port": 3306}]), &[("10.0.0.1", ready())], 2);
    let set = cluster.set(&Wanted { ports: [80, 3306].into(), ..Wanted::default() });
    let told: Vec<_> = set.services.iter().map(|(key, service)| (key.name.as_str(), service.ports[0].spoken())).collect();
    assert_eq!(told, [("db", v1::Spoken::ServerFirst), ("grpc", v1::Spoken::H2c)]);
    assert_eq!(set.endpoints, 0);
}

#[test]
fn too_many_services_and_endpoints_are_left_out_and_counted_but_named_ones_come_first() {
    let mut cluster = Cluster::new();
    for number in 0..=MAX_SERVICES {
        cluster.service(&format!("s{number:04}"), &spec(&json!([{"name": "http", "port": 80}])));
    }
    cluster.service("zz", &spec(&json!([{"name": "http", "port": 80}])));
    let wanted = Wanted { services: [key("shop", "zz")].into(), namespaces: ["shop".to_owned()].into(), ..Wanted::default() };
    let set = cluster.set(&wanted);
    assert_eq!((set.services.len(), set.left_out, cluster.catalog.services), (MAX_SERVICES, 2, MAX_SERVICES));
    assert_eq!(set.services.last().unwrap().0.name, "zz");

    let mut cluster = Cluster::new();
    for (name, count) in [("big", MAX_ENDPOINTS - 1), ("middle", 2), ("small", 1)] {
        cluster.service(name, &spec(&json!([{"name": "http", "port": 80}])));
        let ips: Vec<_> = (0..count).map(|n| format!("10.{}.{}.{}", n >> 16, (n >> 8) & 255, n & 255)).collect();
        let endpoints: Vec<_> = ips.iter().map(|ip| (ip.as_str(), ready())).collect();
        cluster.slice(&format!("{name}-1"), name, &http(), &endpoints, 2);
    }
    let everything = Wanted { services: [key("shop", "middle")].into(), all: true, ..Wanted::default() };
    let twice = cluster.set(&Wanted { namespaces: ["shop".to_owned()].into(), ..everything });
    assert_eq!((twice.services.len(), twice.left_out), (2, 1), "one that is asked for twice is left out once");
    let set = cluster.set(&Wanted { all: true, ..Wanted::default() });
    let names: Vec<_> = set.services.iter().map(|(key, _)| key.name.as_str()).collect();
    assert_eq!((names, set.left_out, set.endpoints), (vec!["big", "small"], 1, MAX_ENDPOINTS));
}

#[test]
fn stream_is_told_how_many_are_left_out_also_where_nothing_else_is_new() {
    let mut cluster = Cluster::new();
    let http = spec(&json!([{"name": "http", "port": 80}]));
    (0..MAX_SERVICES).for_each(|number| cluster.service(&format!("s{number:04}"), &http));
    let wanted = Wanted { all: true, ..Wanted::default() };
    let before = cluster.set(&wanted);
    cluster.service("zz", &http);
    let after = cluster.set(&wanted);
    assert!(!after.is_same(&before), "it is news");
    let told = after.since(Some(&before));
    assert_eq!((told.changed.len(), told.gone.len(), told.left_out), (0, 0, 1));
}

#[test]
fn stream_is_told_what_is_new() {
    let mut cluster = Cluster::new();
    let all = Wanted { all: true, ..Wanted::default() };
    for name in ["a", "b", "c"] {
        cluster.service(name, &spec(&json!([{"name": "http", "port": 80}])));
        cluster.slice(&format!("{name}-1"), name, &http(), &[("10.0.0.1", ready())], 2);
    }
    let first = cluster.set(&all);
    let message = first.since(None);
    assert!(message.whole && message.changed.len() == 3 && message.version == "2" && message.cluster_domain == "cluster.local");

    cluster.index.change(Change::<Slice>::Seen, "5".to_owned());
    let later = cluster.set(&all);
    assert!(later.is_same(&first) && later.version == "5");

    cluster.slice("b-1", "b", &http(), &[("10.0.0.1", ready()), ("10.0.0.2", ready())], 6);
    cluster.index.change(Change::<Service>::Delete(key("shop", "a")), "7".to_owned());
    cluster.service("d", &spec(&json!([{"name": "http", "port": 80}])));
    let last = cluster.set(&all);
    assert!(!last.is_same(&later));
    let message = last.since(Some(&first));
    let name = |name: &Option<v1::ServiceName>| name.as_ref().unwrap().name.clone();
    let changed: Vec<_> = message.changed.iter().map(|service| name(&service.name)).collect();
    let gone: Vec<_> = message.gone.iter().map(|name| name.name.as_str()).collect();
    assert_eq!((changed, gone, message.whole), (vec!["b".to_owned(), "d".to_owned()], vec!["a"], false));
}

#[test]
fn conditions_that_change_nothing_and_another_order_touch_nothing() {
    let mut index = Index::default();
    let read = |endpoints: Value| {
        let slice: discovery::EndpointSlice = serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": "s", "labels": {"kubernetes.io/service-name": "carts"}},
            "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": endpoints,
        }))
        .unwrap();
        Slice::read(slice).unwrap()
    };
    let endpoint = |address: &str, node: &str| json!({"addresses": [address], "nodeName": node, "conditions": ready()});
    let mut apply = |endpoints: Value| {
        let (key, slice) = read(endpoints);
        index.apply(key, slice, "1".to_owned()).services
    };
    assert!(apply(json!([endpoint("10.0.0.1", "a"), endpoint("10.0.0.2", "a")])));
    assert!(!apply(json!([endpoint("10.0.0.2", "b"), endpoint("10.0.0.1", "b")])));
    assert!(apply(json!([endpoint("10.0.0.2", "b")])));
    let service: core::Service = serde_json::from_value(json!({"metadata": {"namespace": "shop", "name": "s"}})).unwrap();
    let (key, service) = Service::read(service).unwrap();
    assert!(index.apply(key, service, "1".to_owned()).services);
}
