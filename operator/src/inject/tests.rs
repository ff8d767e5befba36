#![expect(clippy::needless_pass_by_value, reason = "JSON is written in place")]

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn pod(spec: Value) -> Pod {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "web-6c9f-",
        "annotations": {"fetchr.sh/inject": "enabled"}}, "spec": spec});
    serde_json::from_value(pod).unwrap()
}

fn proxy(spec: Value) -> FetchrProxy {
    let proxy = json!({"apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrProxy",
        "metadata": {"namespace": "shop", "name": "web"}, "spec": spec});
    serde_json::from_value(proxy).unwrap()
}

fn injector() -> Injector {
    Injector {
        image: "fetchr/sidecar:0.1.0".to_owned(),
        image_pull_policy: "IfNotPresent".to_owned(),
        operator_address: "fetchr-streams.fetchr-system.svc:4631".to_owned(),
        version: "0.1.0".to_owned(),
    }
}

fn decide_in(labels: &[(&str, &str)], pod: &Pod, proxy: Option<&FetchrProxy>) -> Decision {
    let labels: BTreeMap<_, _> = labels.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
    let cx = InjectContext {
        namespace_labels: &labels,
        proxy,
        workload: &Workload::new("Deployment", "web"),
        injector: &injector(),
        ca_bundle: "-----BEGIN CERTIFICATE-----\n",
        plan_keys: &["a2V5".to_owned(), "b2xk".to_owned()],
    };
    inject(pod, &cx)
}

fn injected(pod: &Pod, proxy: &FetchrProxy) -> Pod {
    match decide_in(&[], pod, Some(proxy)) {
        Decision::Patch { pod, .. } => *pod,
        other => panic!("not injected: {other:?}"),
    }
}

fn env_of(pod: &Pod, container: &str, name: &str) -> Option<String> {
    let spec = pod.spec.as_ref().unwrap();
    let container = spec.init_containers.iter().flatten().find(|c| c.name == container).unwrap();
    container.env.iter().flatten().find(|env| env.name == name)?.value.clone()
}

fn as_json(pod: &Pod) -> Value {
    serde_json::to_value(pod).unwrap()
}

fn app_with_probes() -> Pod {
    pod(json!({"containers": [{"name": "app", "image": "app",
        "ports": [{"name": "http", "containerPort": 8080}, {"containerPort": 9000, "protocol": "UDP"}],
        "startupProbe": {"httpGet": {"path": "/start", "port": "http"}, "failureThreshold": 30},
        "livenessProbe": {"tcpSocket": {"port": 8080}},
        "readinessProbe": {"httpGet": {"path": "/ready?x=$(HOME)", "port": 8080, "scheme": "HTTPS",
            "httpHeaders": [{"name": "Host", "value": "shop"}]}, "periodSeconds": 3},
        "lifecycle": {"preStop": {"httpGet": {"path": "/bye", "port": "http"}}}},
        {"name": "helper", "image": "helper", "ports": [{"containerPort": 9100}],
         "livenessProbe": {"grpc": {"port": 9100, "service": "s"}},
         "readinessProbe": {"exec": {"command": ["true"]}}}],
        "initContainers": [{"name": "migrate", "image": "migrate"},
            {"name": "agent", "image": "agent", "restartPolicy": "Always", "ports": [{"containerPort": 7000}]}],
        "terminationGracePeriodSeconds": 40}))
}

#[test]
fn pod_with_probes_in_mode_init() {
    let settings = json!({"interception": {"outbound": {"ports": [80], "skipCIDRs": ["10.0.0.0/8"]},
        "inbound": {"skipPorts": [7000]}}});
    insta::assert_yaml_snapshot!(injected(&app_with_probes(), &proxy(settings)));
}

#[test]
fn pod_in_mode_explicit() {
    let listeners = json!([{"name": "web", "port": 8080, "upstream": "http://127.0.0.1:9000"}]);
    let settings = json!({"interception": {"mode": "Explicit", "listeners": listeners}, "workers": 2,
        "drain": {"adjustPod": "Leave"}, "telemetry": {"metricsPort": 15020}, "logging": {"level": "Debug", "format": "Text"}});
    let app = pod(json!({"containers": [{"name": "app", "image": "app", "ports": [{"containerPort": 9000}],
        "readinessProbe": {"httpGet": {"path": "/", "port": 9000}}}]}));
    let Decision::Patch { pod, warnings } =
        decide_in(&[("pod-security.kubernetes.io/enforce", "restricted")], &app, Some(&proxy(settings)))
    else {
        panic!("mode Explicit fits a restricted namespace");
    };
    assert_eq!(warnings, Vec::<String>::new());
    insta::assert_yaml_snapshot!(pod);
}

#[test]
fn secrets_that_the_proxy_names_are_mounted_into_the_sidecar_only() {
    let listener = |certificate: &str| {
        let ca = json!({"secretRef": {"name": "clients"}});
        json!([{"name": "web", "port": 8443, "upstream": "http://127.0.0.1:9000",
            "tls": {"certificates": [{"secretRef": {"name": certificate}}], "clientCA": ca}}])
    };
    let secret = |name: &str| json!({"secretRef": {"name": name}});
    let redis = json!({"mode": "Sentinel", "endpoints": ["sentinel:26379"], "credentials": secret("redis"),
        "sentinel": {"masterName": "main", "credentials": secret("sentinels")},
        "tls": {"ca": secret("redis-ca"), "clientCertificate": secret("redis-client")}});
    let archive = json!({"backend": "S3", "s3": {"bucket": "captures", "credentials": secret("s3")}});
    let spec = |certificate| {
        let interception = json!({"mode": "Explicit", "listeners": listener(certificate)});
        proxy(json!({"interception": interception, "redis": redis, "archive": archive}))
    };
    let app = pod(json!({"containers": [{"name": "app", "image": "app"}]}));
    let patched = json!(injected(&app, &spec("web-tls")));
    let volumes = patched["spec"]["volumes"].as_array().unwrap();
    let secrets = volumes.iter().find(|volume| volume["name"] == "fetchr-secrets").expect("the volume");
    assert_eq!(
        secrets["projected"]["sources"],
        json!([
            {"secret": {"name": "clients", "optional": false, "items": [{"key": "ca.crt", "path": "clients/ca.crt"}]}},
            {"secret": {"name": "redis", "optional": false, "items": [{"key": "password", "path": "redis/password"}]}},
            {"secret": {"name": "redis-ca", "optional": false, "items": [{"key": "ca.crt", "path": "redis-ca/ca.crt"}]}},
            {"secret": {"name": "redis-client", "optional": false, "items": [
                {"key": "tls.crt", "path": "redis-client/tls.crt"}, {"key": "tls.key", "path": "redis-client/tls.key"}]}},
            {"secret": {"name": "s3", "optional": false, "items": [
                {"key": "accessKeyID", "path": "s3/accessKeyID"}, {"key": "secretAccessKey", "path": "s3/secretAccessKey"}]}},
            {"secret": {"name": "sentinels", "optional": false, "items": [{"key": "password", "path": "sentinels/password"}]}},
            {"secret": {"name": "web-tls", "optional": false, "items": [
                {"key": "tls.crt", "path": "web-tls/tls.crt"}, {"key": "tls.key", "path": "web-tls/tls.key"}]}},
        ])
    );
    let container = &patched["spec"]["initContainers"][0];
    let mount = json!({"name": "fetchr-secrets", "mountPath": "/etc/fetchr/secrets", "readOnly": true});
    assert!(container["volumeMounts"].as_array().unwrap().contains(&mount), "{container}");
    assert!(
        container["env"].as_array().unwrap().contains(&json!({"name": "FETCHR_SECRETS_DIR", "value": "/etc/fetchr/secrets"}))
    );
    assert_eq!(patched["spec"]["containers"][0].get("volumeMounts"), None);
    let stamp = |proxy: &FetchrProxy| settings_digest(proxy, &injector(), false);
    assert_ne!(stamp(&spec("web-tls")), stamp(&spec("other-tls")), "a pod without the Secret is outdated");
}

#[test]
fn answers_on_disk_have_a_volume_of_the_sidecar_with_some_room_to_spare() {
    let spec = |size| proxy(json!({"cache": {"disk": {"size": size}}}));
    let app = pod(json!({"containers": [{"name": "app", "image": "app"}]}));
    let patched = json!(injected(&app, &spec("1Gi")));
    let volumes = patched["spec"]["volumes"].as_array().unwrap();
    assert!(volumes.contains(&json!({"name": "fetchr-cache", "emptyDir": {"sizeLimit": "1152Mi"}})), "{volumes:?}");
    let container = &patched["spec"]["initContainers"][1];
    let mount = json!({"name": "fetchr-cache", "mountPath": "/var/cache/fetchr"});
    assert!(container["volumeMounts"].as_array().unwrap().contains(&mount), "{container}");
    for variable in [("FETCHR_CACHE_DIR", "/var/cache/fetchr"), ("FETCHR_CACHE_LIMIT", "1Gi")] {
        let variable = json!({"name": variable.0, "value": variable.1});
        assert!(container["env"].as_array().unwrap().contains(&variable), "{variable}");
    }
    assert_eq!(patched["spec"]["containers"][0].get("volumeMounts"), None);
    let stamp = |proxy: &FetchrProxy| settings_digest(proxy, &injector(), false);
    assert_ne!(stamp(&spec("1Gi")), stamp(&spec("2Gi")), "a pod whose volume is too small is outdated");
}

#[test]
fn state_folder_has_room_for_what_the_cache_may_import_and_keep() {
    let app = pod(json!({"containers": [{"name": "app", "image": "app"}]}));
    for (spec, expected) in [
        (json!({}), "128Mi"),
        (json!({"cache": {"memory": {"size": "0"}}}), "64Mi"),
        (json!({"cache": {"memory": {"size": "1Gi"}, "persistence": {"maxBytes": "16Mi"}}}), "1120Mi"),
    ] {
        let patched = json!(injected(&app, &proxy(spec)));
        let volumes = patched["spec"]["volumes"].as_array().unwrap();
        let state = volumes.iter().find(|volume| volume["name"] == "fetchr-state").expect("the volume");
        assert_eq!(state["emptyDir"]["sizeLimit"], expected);
    }
}

#[test]
fn names_of_ports_say_who_speaks_first() {
    let ports = json!([{"name": "http", "containerPort": 8080}, {"name": "tcp-admin", "containerPort": 9000},
        {"name": "web", "containerPort": 8081}, {"name": "mysql", "containerPort": 3306}]);
    let app = pod(json!({"containers": [{"name": "app", "image": "app", "ports": ports}]}));
    let patched = json!(injected(&app, &proxy(json!({"interception": {"inbound": {"skipPorts": [3306]}}}))));
    let env = patched["spec"]["initContainers"][1]["env"].as_array().unwrap();
    assert!(env.contains(&json!({"name": "FETCHR_PORT_SPEAKERS", "value": "8080=client,9000=server"})), "{env:?}");
}

#[test]
fn skipped_pod_says_why() {
    let mut app = pod(json!({"containers": [{"name": "app"}], "hostNetwork": true}));
    let Decision::Skip { pod, reason } = decide_in(&[], &app, Some(&proxy(json!({})))) else { panic!("skipped") };
    assert_eq!(reason, Reason::HostNetwork);
    insta::assert_yaml_snapshot!(pod.metadata.annotations);
    app.metadata.annotations = None;
    let Decision::Skip { pod, .. } = decide_in(&[], &app, None) else { panic!("skipped") };
    assert_eq!(*pod, app, "who didn't ask is not touched");
}

#[test]
fn reasons_by_pod_and_namespace() {
    let plain = || json!({"containers": [{"name": "app", "ports": [{"containerPort": 8080}]}]});
    let with = |pointer: &str, value: Value| {
        let mut spec = plain();
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        spec.pointer_mut(parent).unwrap()[field] = value;
        spec
    };
    let none: &[(&str, &str)] = &[];
    let required = &[("fetchr.sh/inject", "required")][..];
    let baseline = &[("pod-security.kubernetes.io/enforce", "baseline")][..];
    let privileged = &[("pod-security.kubernetes.io/enforce", "privileged")][..];
    let sidecar = json!([{"name": "agent", "restartPolicy": "Always", "ports": [{"containerPort": 4620}]}]);
    let plain_init = json!([{"name": "setup", "ports": [{"containerPort": 4620}]}]);
    let table = [
        (none, plain(), "patched"),
        (required, plain(), "patched"),
        (privileged, plain(), "patched"),
        (baseline, plain(), "refused PodSecurity"),
        (none, with("/hostNetwork", json!(true)), "skipped HostNetwork"),
        (required, with("/hostNetwork", json!(true)), "refused HostNetwork"),
        (none, with("/os", json!({"name": "windows"})), "skipped Windows"),
        (none, with("/nodeSelector", json!({"kubernetes.io/os": "windows"})), "skipped Windows"),
        (none, with("/securityContext", json!({"runAsUser": 2733})), "refused UserTaken"),
        (none, with("/containers/0/securityContext", json!({"runAsUser": 2733})), "refused UserTaken"),
        (none, with("/initContainers", json!([{"name": "i", "securityContext": {"runAsUser": 2733}}])), "refused UserTaken"),
        (none, with("/containers/0/ports", json!([{"containerPort": 4610}])), "refused PortTaken"),
        (none, with("/containers/0/ports", json!([{"containerPort": 4621}])), "refused PortTaken"),
        (none, with("/containers/0/ports", json!([{"containerPort": 4621, "protocol": "UDP"}])), "patched"),
        (none, with("/initContainers", sidecar), "refused PortTaken"),
        (none, with("/initContainers", plain_init), "patched"),
        (none, with("/containers/0/name", json!("fetchr-proxy")), "refused NameTaken"),
        (none, with("/containers/0/volumeMounts", json!([{"name": "fetchr-state", "mountPath": "/x"}])), "refused VolumeTaken"),
        (
            none,
            with("/initContainers", json!([{"name": "i", "volumeMounts": [{"name": "fetchr-token", "mountPath": "/x"}]}])),
            "refused VolumeTaken",
        ),
    ];
    for (labels, spec, expected) in table {
        let decision = decide_in(labels, &pod(spec.clone()), Some(&proxy(json!({}))));
        let outcome = match decision {
            Decision::Patch { .. } => "patched".to_owned(),
            Decision::Skip { reason, .. } => format!("skipped {}", reason.code()),
            Decision::Refuse { reason } => format!("refused {}", reason.code()),
        };
        assert_eq!(outcome, expected, "{spec} in {labels:?}");
    }
}

#[test]
fn pod_without_a_proxy_is_skipped_or_where_required_refused() {
    let app = pod(json!({"containers": [{"name": "app"}]}));
    assert!(matches!(decide_in(&[], &app, None), Decision::Skip { reason: Reason::NoProxy, .. }));
    let required = decide_in(&[("fetchr.sh/inject", "required")], &app, None);
    assert_eq!(required, Decision::Refuse { reason: Reason::NoProxy });
}

#[test]
fn refusal_names_what_would_be_right() {
    let app = pod(json!({"containers": [{"name": "app"}]}));
    let labels = [("pod-security.kubernetes.io/enforce", "restricted")];
    let Decision::Refuse { reason } = decide_in(&labels, &app, Some(&proxy(json!({})))) else { panic!("refused") };
    assert_eq!(
        reason.to_string(),
        "the namespace enforces the pod security standard restricted, which forbids the capability NET_ADMIN that \
         interception.mode Init of the FetchrProxy shop/web needs; use mode Explicit"
    );
}

#[test]
fn nothing_of_a_forged_sidecar_survives() {
    let mut forged = pod(json!({"containers": [{"name": "app", "ports": [{"containerPort": 8080}]}],
        "initContainers": [{"name": "fetchr-proxy", "image": "evil", "command": ["sh"], "restartPolicy": "Always",
            "securityContext": {"privileged": true, "runAsUser": 0}, "env": [{"name": "LD_PRELOAD", "value": "/x"}],
            "volumeMounts": [{"name": "host", "mountPath": "/host"}], "resources": {"limits": {"cpu": "1m"}}}],
        "volumes": [{"name": "fetchr-state", "hostPath": {"path": "/"}}, {"name": "host", "hostPath": {"path": "/"}}]}));
    let annotations = forged.metadata.annotations.get_or_insert_default();
    for name in ["image", "command", "run-as-user", "capabilities", "status"] {
        annotations.insert(format!("fetchr.sh/{name}"), "evil".to_owned());
    }
    let result = as_json(&injected(&forged, &proxy(json!({}))));
    let honest =
        as_json(&injected(&pod(json!({"containers": [{"name": "app", "ports": [{"containerPort": 8080}]}]})), &proxy(json!({}))));
    assert_eq!(result["spec"]["initContainers"], honest["spec"]["initContainers"]);
    let volumes = result["spec"]["volumes"].as_array().unwrap();
    assert_eq!(volumes[0]["name"], "host", "the author's own volume stays");
    assert_eq!(json!(volumes[1..]), honest["spec"]["volumes"]);
}

#[test]
fn dollar_signs_reach_the_sidecar_as_they_are() {
    let once = injected(&app_with_probes(), &proxy(json!({})));
    let probes = env_of(&once, PROXY_CONTAINER, "FETCHR_PROBES").unwrap();
    assert!(probes.contains("$$(HOME)"), "Kubernetes would expand $(HOME): {probes}");
    assert_eq!(injected(&once, &proxy(json!({}))), once);
}

#[test]
fn probes_of_another_host_or_port_are_left_alone() {
    let app = pod(json!({"containers": [{"name": "app", "ports": [{"containerPort": 8080}],
        "livenessProbe": {"httpGet": {"port": 8080, "host": "10.0.0.1"}},
        "readinessProbe": {"httpGet": {"port": 9999}},
        "startupProbe": {"httpGet": {"port": "nowhere"}}}]}));
    let after = injected(&app, &proxy(json!({})));
    let containers = |pod: &Pod| as_json(pod)["spec"]["containers"][0]["livenessProbe"].clone();
    assert_eq!(containers(&after), containers(&app));
    assert_eq!(env_of(&after, PROXY_CONTAINER, "FETCHR_PROBES"), None);
}

#[test]
fn workers_follow_the_cpu_limit() {
    let limit = |cpu: &str| json!({"resources": {"limits": {"cpu": cpu}}});
    let table = [(limit("1500m"), "2"), (limit("2"), "2"), (limit("0.1"), "1"), (json!({}), "1"), (json!({"workers": 3}), "3")];
    for (settings, workers) in table {
        let pod = injected(&app_with_probes(), &proxy(settings));
        assert_eq!(env_of(&pod, PROXY_CONTAINER, "FETCHR_WORKERS").as_deref(), Some(workers));
    }
}

#[test]
fn sidecar_blocks_without_configuration_where_it_is_required() {
    let required = [("fetchr.sh/inject", "required")];
    let Decision::Patch { pod, .. } = decide_in(&required, &app_with_probes(), Some(&proxy(json!({})))) else {
        panic!("patched")
    };
    assert_eq!(env_of(&pod, PROXY_CONTAINER, "FETCHR_ON_NO_CONFIG").as_deref(), Some("Block"));
    let optional = injected(&app_with_probes(), &proxy(json!({})));
    assert_eq!(env_of(&optional, PROXY_CONTAINER, "FETCHR_ON_NO_CONFIG").as_deref(), Some("PassThrough"));
}

#[test]
fn digest_follows_what_only_injection_can_change() {
    let of = |settings: Value| settings_digest(&proxy(settings), &injector(), false);
    assert_eq!(of(json!({})), of(json!({"upstream": {"connectTimeout": "2s"}, "logging": {"level": "Debug"}})));
    for settings in [json!({"workers": 2}), json!({"drain": {"delay": "1s"}}), json!({"interception": {"mode": "Explicit"}})] {
        assert_ne!(of(json!({})), of(settings.clone()), "{settings}");
    }
    let newer = Injector { image: "fetchr/sidecar:0.2.0".to_owned(), ..injector() };
    assert_ne!(of(json!({})), settings_digest(&proxy(json!({})), &newer, false));
}

#[test]
fn resources_that_a_limit_range_added_are_kept_until_settings_change() {
    let mut once = injected(&app_with_probes(), &proxy(json!({})));
    let sidecar = &mut once.spec.as_mut().unwrap().init_containers.as_mut().unwrap()[1];
    let limits = sidecar.resources.as_mut().unwrap().limits.as_mut().unwrap();
    limits.insert("cpu".to_owned(), k8s_openapi::apimachinery::pkg::api::resource::Quantity("2".to_owned()));
    let cpu = |pod: &Pod| as_json(pod)["spec"]["initContainers"][1]["resources"]["limits"]["cpu"].clone();
    assert_eq!(cpu(&injected(&once, &proxy(json!({})))), json!("2"));
    assert_eq!(cpu(&injected(&once, &proxy(json!({"workers": 2})))), Value::Null);
}

#[test]
fn grace_period_grows_once_even_if_the_author_changes_it() {
    let settings = proxy(json!({"drain": {"delay": "1500ms"}}));
    let mut once = injected(&app_with_probes(), &settings);
    let grace = |pod: &Pod| pod.spec.as_ref().unwrap().termination_grace_period_seconds;
    assert_eq!(grace(&once), Some(42));
    assert_eq!(grace(&injected(&once, &settings)), Some(42));
    once.spec.as_mut().unwrap().termination_grace_period_seconds = Some(100);
    assert_eq!(grace(&injected(&once, &settings)), Some(102));
}

fn any_handler() -> impl Strategy<Value = Value> {
    let port = prop_oneof![Just(json!(8080)), Just(json!("http")), Just(json!(9999)), Just(json!(4621))];
    prop_oneof![
        (port.clone(), "/[a-z$()%\"]{0,8}").prop_map(|(port, path)| json!({"httpGet": {"port": port, "path": path}})),
        port.prop_map(|port| json!({"tcpSocket": {"port": port}})),
        Just(json!({"grpc": {"port": 8080}})),
        Just(json!({"exec": {"command": ["true"]}})),
    ]
}

prop_compose! {
    fn any_container(name: &'static str)(
        declares in any::<bool>(),
        liveness in proptest::option::of(any_handler()),
        readiness in proptest::option::of(any_handler()),
        pre_stop in proptest::option::of(prop_oneof![
            Just(json!({"httpGet": {"port": "http"}})), Just(json!({"exec": {"command": ["true"]}}))]),
    ) -> Value {
        let mut container = json!({"name": name, "image": name});
        if declares {
            container["ports"] = json!([{"name": "http", "containerPort": 8080}]);
        }
        for (field, value) in [("livenessProbe", liveness), ("readinessProbe", readiness)] {
            if let Some(value) = value {
                container[field] = value;
            }
        }
        if let Some(hook) = pre_stop {
            container["lifecycle"] = json!({"preStop": hook});
        }
        container
    }
}

fn any_settings() -> impl Strategy<Value = Value> {
    let mode = prop_oneof![Just("Init"), Just("Explicit")];
    (mode, 0u64..9000, prop_oneof![Just("Adjust"), Just("Leave")], proptest::option::of(Just(vec![8080, 9999]))).prop_map(
        |(mode, delay, adjust, ports)| {
            json!({"interception": {"mode": mode, "inbound": {"ports": ports}},
                "drain": {"delay": format!("{delay}ms"), "adjustPod": adjust}})
        },
    )
}

proptest! {
    #[test]
    fn injecting_twice_changes_nothing(
        app in any_container("app"), agent in any_container("agent"),
        grace in proptest::option::of(0i64..100), settings in any_settings(),
    ) {
        let mut spec = json!({"containers": [app], "initContainers": [{"name": "setup"}, agent]});
        spec["initContainers"][1]["restartPolicy"] = json!("Always");
        if let Some(grace) = grace {
            spec["terminationGracePeriodSeconds"] = json!(grace);
        }
        let settings = proxy(settings);
        let once = injected(&pod(spec), &settings);
        let twice = injected(&once, &settings);
        prop_assert_eq!(serde_json::to_string(&twice).unwrap(), serde_json::to_string(&once).unwrap());
    }

    #[test]
    fn container_added_between_two_injections_is_treated_like_the_others(
        app in any_container("app"), late in any_container("late"), settings in any_settings(),
    ) {
        let settings = proxy(settings);
        let both = injected(&pod(json!({"containers": [app.clone(), late.clone()]})), &settings);
        let mut early = injected(&pod(json!({"containers": [app]})), &settings);
        early.spec.as_mut().unwrap().containers.push(serde_json::from_value(late).unwrap());
        prop_assert_eq!(injected(&early, &settings), both);
    }
}

fn refusal(labels: &[(&str, &str)], spec: Value) -> Option<&'static str> {
    match decide_in(labels, &pod(spec), Some(&proxy(json!({})))) {
        Decision::Refuse { reason } => Some(reason.code()),
        Decision::Patch { .. } => None,
        other => panic!("neither refused nor injected: {other:?}"),
    }
}

#[test]
fn pod_that_could_escape_is_refused_where_a_sidecar_is_required() {
    let app = |context: Value| json!({"containers": [{"name": "app", "image": "app", "securityContext": context}]});
    let with = |field: &str| json!({"containers": [{"name": "app", "image": "app"}], field: true});
    let escaping = [
        with("hostPID"),
        with("shareProcessNamespace"),
        app(json!({"privileged": true})),
        app(json!({"capabilities": {"add": ["NET_ADMIN"]}})),
        app(json!({"capabilities": {"add": ["CAP_NET_RAW"]}})),
        app(json!({"capabilities": {"add": ["ALL"]}})),
    ];
    let required = ("fetchr.sh/inject", "required");
    for spec in escaping {
        assert_eq!(refusal(&[required], spec.clone()), Some("Privileged"), "{spec}");
        assert_eq!(refusal(&[required, ("fetchr.sh/privileged-pods", "allowed")], spec.clone()), None, "{spec}");
        assert_eq!(refusal(&[], spec.clone()), None, "{spec}: its team's choice");
    }
    assert_eq!(refusal(&[required], app(json!({"capabilities": {"add": ["NET_BIND_SERVICE"]}}))), None);
    assert_eq!(refusal(&[required, ("fetchr.sh/privileged-pods", "allowed")], with("hostNetwork")), Some("HostNetwork"));
}

#[test]
fn token_like_the_sidecars_is_refused() {
    let token = |audience: &str| {
        json!({"containers": [{"name": "app", "image": "app"}], "volumes": [{"name": "mine",
            "projected": {"sources": [{"serviceAccountToken": {"audience": audience, "path": "t"}}]}}]})
    };
    assert_eq!(refusal(&[], token("fetchr.sh")), Some("TokenTaken"));
    assert_eq!(refusal(&[], token("vault")), None);
}

#[test]
fn running_sidecar_stays_what_it_is() {
    let runs = injected(&pod(json!({"containers": [{"name": "app", "image": "app"}]})), &proxy(json!({})));
    let code = |change: &dyn Fn(&mut Value), labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        let mut changed = as_json(&runs);
        change(&mut changed["spec"]);
        let changed = serde_json::from_value(changed).unwrap();
        check_update(&runs, &changed, &labels, "fetchr/sidecar:0.2.0").err().map(|reason| reason.code())
    };
    let image = |index: usize, image: &'static str| move |spec: &mut Value| spec["initContainers"][index]["image"] = json!(image);
    assert_eq!(code(&image(0, "true"), &[]), Some("SidecarChanged"));
    assert_eq!(code(&image(1, "true"), &[]), Some("SidecarChanged"));
    assert_eq!(code(&image(1, "fetchr/sidecar:0.2.0"), &[]), None, "what a new pod would get");
    assert_eq!(code(&|spec| spec["containers"][0]["image"] = json!("app:2"), &[]), None);
    let debug = |container: Value| {
        move |spec: &mut Value| {
            let mut one = json!({"name": "debug", "image": "debug"});
            one.as_object_mut().unwrap().extend(container.as_object().unwrap().clone());
            spec["ephemeralContainers"] = json!([one]);
        }
    };
    let allowed = [("fetchr.sh/privileged-pods", "allowed")];
    let privileged = json!({"securityContext": {"privileged": true}});
    assert_eq!(code(&debug(json!({})), &[]), None);
    assert_eq!(code(&debug(privileged.clone()), &[]), Some("Privileged"));
    assert_eq!(code(&debug(privileged), &allowed), None);
    assert_eq!(code(&debug(json!({"targetContainerName": "fetchr-proxy"})), &[]), Some("Privileged"));
    assert_eq!(code(&debug(json!({"securityContext": {"runAsUser": 2733}})), &allowed), Some("UserTaken"));
    let mounts = json!({"volumeMounts": [{"name": "fetchr-token", "mountPath": "/t"}]});
    assert_eq!(code(&debug(mounts), &allowed), Some("VolumeTaken"));
}
