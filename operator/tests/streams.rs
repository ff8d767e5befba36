//! From an object in a real API server to a plan on a sidecar's stream, and from what the sidecar says to a status.

use std::{collections::BTreeMap, time::Duration};

use crds::{
    FetchrPolicy, FetchrProxy,
    plan::{ObjectRef, Plan},
};
use e2e::{
    stream::{ScriptedSidecar, hello, token_of},
    wait::eventually,
};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;
use wire::v1;

mod bed;

use bed::Bed;

const SOON: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_reaches_the_stream_and_the_answer_its_status() {
    let bed = Bed::start("policy-flow").await.unwrap();
    bed.proxy("web", &json!({})).await.unwrap();
    let pod = bed.injected_pod("web-1", "web").await.unwrap();
    let mut sidecar = bed.open(&pod, "web").await.unwrap();

    let identity = sidecar.identity(SOON).await.unwrap();
    assert_eq!((identity.workload_kind.as_str(), identity.workload_name.as_str(), identity.live_pods), ("Deployment", "web", 1));
    let first = sidecar.plan(SOON).await.unwrap();
    assert_eq!(document(&first).policies.len(), 0);
    sidecar.ack(&first).await.unwrap();

    bed.policy("hello", &json!({"kind": "FetchrProxy", "name": "web"}), "one").await.unwrap();
    let second = sidecar.plan(Duration::from_secs(5)).await.unwrap();
    assert_eq!(document(&second).policies[0].policy, ObjectRef::new(bed.namespace(), "hello"));
    assert!(position(&second).may_follow(&position(&first)));
    bed.policy_condition("hello", "Programmed", "False", "Pending").await.unwrap();

    sidecar.ack(&second).await.unwrap();
    bed.policy_condition("hello", "Programmed", "True", "Programmed").await.unwrap();
    let ready = bed.proxy_condition("web", "Ready", "True").await.unwrap();
    assert_eq!(ready.reason, "Ready");
    let proxy: FetchrProxy = bed.api().get("web").await.unwrap();
    let pods = proxy.status.unwrap().pods;
    assert_eq!((pods.matched, pods.injected, pods.programmed), (1, 1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusal_of_a_sidecar_shows_with_pod_and_reason() {
    let bed = Bed::start("refusal").await.unwrap();
    bed.proxy("web", &json!({})).await.unwrap();
    bed.policy("hello", &json!({"kind": "FetchrProxy", "name": "web"}), "one").await.unwrap();
    let pod = bed.injected_pod("web-1", "web").await.unwrap();
    let mut sidecar = bed.open(&pod, "web").await.unwrap();
    let plan = plan_with_policies(&mut sidecar, 1).await.unwrap();
    let nack = v1::Nack { digest: plan.digest, subject: "policy x/y".to_owned(), reason: "the moon is full".to_owned() };
    sidecar.say(v1::up::Message::Nack(nack)).await.unwrap();

    let condition = bed.policy_condition("hello", "Programmed", "False", "Rejected").await.unwrap();
    assert!(
        condition.message.contains(&format!("pod {}/web-1 refused it: policy x/y: the moon is full", bed.namespace())),
        "{}",
        condition.message
    );
    bed.proxy_condition("web", "Ready", "False").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_sidecar_gets_the_plan_without_what_it_does_not_know() {
    let bed = Bed::start("skew").await.unwrap();
    bed.proxy("web", &json!({})).await.unwrap();
    bed.policy("hello", &json!({"kind": "FetchrProxy", "name": "web"}), "one").await.unwrap();
    let pod = bed.injected_pod("web-1", "web").await.unwrap();
    let old = v1::Hello { features: vec!["rateLimits".to_owned()], ..hello(&pod, &ObjectRef::new(bed.namespace(), "web")) };
    let mut sidecar = bed.open_as(&pod, old).await.unwrap();
    let plan = sidecar.plan(SOON).await.unwrap();
    assert_eq!(document(&plan).policies.len(), 0);
    sidecar.ack(&plan).await.unwrap();

    let condition = bed.policy_condition("hello", "Programmed", "False", "SidecarTooOld").await.unwrap();
    assert!(condition.message.contains("1 pods"), "{}", condition.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stolen_token_opens_no_stream() {
    let bed = Bed::start("stolen").await.unwrap();
    bed.proxy("web", &json!({})).await.unwrap();
    let (pod, other) = (bed.injected_pod("web-1", "web").await.unwrap(), bed.injected_pod("web-2", "web").await.unwrap());
    let proxy = ObjectRef::new(bed.namespace(), "web");

    let refused = bed.open_with(&token_of(bed.client(), &other).await.unwrap(), hello(&pod, &proxy)).await;
    assert_eq!(code(refused), Some(tonic::Code::PermissionDenied));
    assert_eq!(code(bed.open_with("forged", hello(&pod, &proxy)).await), Some(tonic::Code::Unauthenticated));
    let stranger = ObjectRef::new("kube-system", "web");
    let refused = bed.open_with(&token_of(bed.client(), &pod).await.unwrap(), hello(&pod, &stranger)).await;
    assert_eq!(code(refused), Some(tonic::Code::PermissionDenied));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cold_start_plan_is_signed_follows_the_policies_and_goes_with_the_proxy() {
    let bed = Bed::start("cold-start").await.unwrap();
    bed.proxy("web", &json!({})).await.unwrap();
    let before = bed.cold_start("web").await.unwrap();
    assert_eq!(plan_of(&before.document).policies.len(), 0);

    bed.policy("hello", &json!({"kind": "FetchrProxy", "name": "web"}), "one").await.unwrap();
    eventually("the ConfigMap holds the policy", SOON, async || {
        let opened = bed.cold_start("web").await?;
        anyhow::ensure!(plan_of(&opened.document).policies.len() == 1, "no policy in it");
        Ok(())
    })
    .await
    .unwrap();

    bed.api::<FetchrPolicy>().delete("hello", &DeleteParams::default()).await.unwrap();
    bed.api::<FetchrProxy>().delete("web", &DeleteParams::default()).await.unwrap();
    let maps: Api<ConfigMap> = bed.api();
    eventually("the ConfigMap is gone", SOON, async || {
        anyhow::ensure!(maps.get_opt("fetchr-plan").await?.is_none(), "still there");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cold_start_plan_that_somebody_touched_is_made_anew() {
    let bed = Bed::start("touched").await.unwrap();
    bed.proxy("web", &json!({})).await.unwrap();
    bed.cold_start("web").await.unwrap();
    let maps: Api<ConfigMap> = bed.api();
    maps.delete("fetchr-plan", &DeleteParams::default()).await.unwrap();
    bed.cold_start("web").await.expect("it is back");

    let forged = json!({"binaryData": {"touched.web": "Zm9yZ2Vk"}});
    maps.patch("fetchr-plan", &PatchParams::default(), &Patch::Merge(forged)).await.unwrap();
    bed.cold_start("web").await.expect("it is signed again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn target_that_comes_later_heals_the_policy() {
    let bed = Bed::start("heals").await.unwrap();
    bed.proxy("web", &json!({})).await.unwrap();
    bed.policy("hello", &json!({"kind": "Service", "name": "shop"}), "one").await.unwrap();
    bed.policy_condition("hello", "Accepted", "False", "TargetNotFound").await.unwrap();
    let pod = bed.injected_pod("web-1", "web").await.unwrap();
    let mut sidecar = bed.open(&pod, "web").await.unwrap();
    assert_eq!(document(&sidecar.plan(SOON).await.unwrap()).policies.len(), 0);

    bed.service("shop", &json!({"app": "web"})).await.unwrap();
    let plan = plan_with_policies(&mut sidecar, 1).await.unwrap();
    sidecar.ack(&plan).await.unwrap();
    bed.policy_condition("hello", "Programmed", "True", "Programmed").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn change_of_labels_moves_a_pod_behind_a_service_without_a_new_plan() {
    let bed = Bed::start("identity").await.unwrap();
    bed.proxy("web", &json!({})).await.unwrap();
    bed.service("canary", &json!({"track": "canary"})).await.unwrap();
    let pod = bed.injected_pod("web-1", "web").await.unwrap();
    let mut sidecar = bed.open(&pod, "web").await.unwrap();
    assert_eq!(sidecar.identity(SOON).await.unwrap().services, Vec::<String>::new());
    let plan = sidecar.plan(SOON).await.unwrap();
    sidecar.ack(&plan).await.unwrap();

    let labels = json!({"metadata": {"labels": {"track": "canary"}}});
    bed.api::<Pod>().patch("web-1", &PatchParams::default(), &Patch::Merge(labels)).await.unwrap();
    let message = sidecar.next(SOON).await.unwrap();
    let v1::down::Message::Identity(identity) = message else { panic!("not an identity: {message:?}") };
    assert_eq!(identity.services, ["canary"]);

    bed.injected_pod("web-2", "web").await.unwrap();
    let message = sidecar.next(SOON).await.unwrap();
    let v1::down::Message::Identity(identity) = message else { panic!("not an identity: {message:?}") };
    assert_eq!(identity.live_pods, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_without_a_sidecar_is_named_in_an_event_on_its_owner() {
    let bed = Bed::start("missed").await.unwrap();
    bed.proxy("web", &json!({})).await.unwrap();
    let owner = bed.config_map("owner").await.unwrap();
    bed.bare_pod("web-1", &owner, BTreeMap::from([("fetchr.sh/inject".to_owned(), "enabled".to_owned())])).await.unwrap();
    let event = bed.event_on(&owner).await.unwrap();
    assert_eq!(event.reason.as_deref(), Some("SidecarMissing"));
    assert!(event.note.unwrap().starts_with("No sidecar in web-1: "));
    let condition = bed.proxy_condition("web", "Injected", "False").await.unwrap();
    assert!(condition.message.starts_with("1 of 1 pods have no sidecar"), "{}", condition.message);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missed_pod_is_evicted_only_where_the_proxy_says_so() {
    let bed = Bed::start("evicted").await.unwrap();
    bed.proxy("report", &json!({"selector": {"matchLabels": {"app": "none"}}})).await.unwrap();
    bed.proxy("evict", &json!({"missedPods": "Evict"})).await.unwrap();
    let (first, second) = (bed.config_map("first").await.unwrap(), bed.config_map("second").await.unwrap());
    let opted_in = |proxy: &str| {
        let annotations = [("fetchr.sh/inject", "enabled"), ("fetchr.sh/proxy", proxy)];
        annotations.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    };
    bed.bare_pod("stays", &first, opted_in("report")).await.unwrap();
    bed.bare_pod("goes", &second, opted_in("evict")).await.unwrap();

    let pods: Api<Pod> = bed.api();
    eventually("the pod is evicted", Duration::from_secs(30), async || {
        let pod = pods.get_opt("goes").await?;
        anyhow::ensure!(pod.is_none_or(|pod| pod.metadata.deletion_timestamp.is_some()), "it is still there");
        Ok(())
    })
    .await
    .unwrap();
    assert!(pods.get("stays").await.unwrap().metadata.deletion_timestamp.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_stream_of_a_pod_ends_the_first() {
    let bed = Bed::start("replaced").await.unwrap();
    bed.proxy("web", &json!({})).await.unwrap();
    let pod = bed.injected_pod("web-1", "web").await.unwrap();
    let mut first = bed.open(&pod, "web").await.unwrap();
    first.plan(SOON).await.unwrap();
    let mut second = bed.open(&pod, "web").await.unwrap();
    second.plan(SOON).await.unwrap();
    let end = loop {
        if let Err(end) = first.next(SOON).await {
            break end;
        }
    };
    assert_eq!(end.to_string(), "the stream has ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_of_a_service_that_a_rule_spreads_reach_the_stream_as_they_change() {
    let bed = Bed::start("endpoints").await.unwrap();
    bed.proxy("web", &json!({})).await.unwrap();
    bed.service("carts", &json!({"app": "carts"})).await.unwrap();
    bed.service("other", &json!({"app": "other"})).await.unwrap();
    bed.slice("carts", &[1, 2]).await.unwrap();
    let pod = bed.injected_pod("web-1", "web").await.unwrap();
    let mut hello = hello(&pod, &ObjectRef::new(bed.namespace(), "web"));
    hello.features.push(wire::service::FEATURE.to_owned());
    let mut sidecar = bed.open_as(&pod, hello).await.unwrap();
    let first = sidecar.services(SOON).await.unwrap();
    assert!(first.whole && first.changed.is_empty(), "no rule spreads anything: {first:?}");

    bed.spread("spread", "carts").await.unwrap();
    let plan = plan_with_policies(&mut sidecar, 1).await.unwrap();
    let told = sidecar.services(SOON).await.unwrap();
    let name = |service: &v1::Service| service.name.as_ref().unwrap().name.clone();
    assert_eq!(told.changed.iter().map(name).collect::<Vec<_>>(), ["carts"]);
    assert_eq!((told.changed[0].cluster_ips.len(), last(&told)), (1, vec![1, 2]));
    sidecar.ack(&plan).await.unwrap();
    sidecar.say(v1::up::Message::ServicesAck(v1::ServicesAck { version: told.version })).await.unwrap();

    bed.slice("carts", &[2, 3, 4]).await.unwrap();
    let message = sidecar.next(SOON).await.unwrap();
    let v1::down::Message::Services(told) = message else { panic!("nothing else is sent for it: {message:?}") };
    assert_eq!((told.whole, last(&told)), (false, vec![2, 3, 4]));

    bed.api::<FetchrPolicy>().delete("spread", &DeleteParams::default()).await.unwrap();
    let next = sidecar.plan(SOON).await.unwrap();
    assert_ne!(next.digest, plan.digest);
    let told = sidecar.services(SOON).await.unwrap();
    assert_eq!(told.gone.iter().map(|gone| gone.name.as_str()).collect::<Vec<_>>(), ["carts"]);
}

/// The last octets of the endpoints of the first Service.
fn last(told: &v1::Services) -> Vec<u8> {
    told.changed[0].ports[0].endpoints[0].v4.chunks(4).map(|ip| ip[3]).collect()
}

/// The next plan with so many policies: objects that are applied one after the other may come one after the other too.
async fn plan_with_policies(sidecar: &mut ScriptedSidecar, policies: usize) -> anyhow::Result<v1::Plan> {
    loop {
        let plan = sidecar.plan(SOON).await?;
        if document(&plan).policies.len() == policies {
            return Ok(plan);
        }
    }
}

fn code(refused: anyhow::Result<ScriptedSidecar>) -> Option<tonic::Code> {
    refused.err()?.downcast_ref::<tonic::Status>().map(tonic::Status::code)
}

fn document(plan: &v1::Plan) -> Plan {
    plan_of(&plan.document)
}

fn plan_of(document: &[u8]) -> Plan {
    serde_json::from_slice(document).expect("an operator sends plans")
}

fn position(plan: &v1::Plan) -> crds::plan::Position {
    plan.position.clone().into_iter().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn default_proxy_is_made_from_the_file_and_serves_any_namespace() {
    let bed = Bed::start("defaults").await.unwrap();
    let proxies: Api<FetchrProxy> = Api::namespaced(bed.client().clone(), "fetchr-system");
    let made = eventually("the default proxy is there", SOON, async || Ok(proxies.get("default").await?)).await.unwrap();
    assert_eq!(made.spec.interception.inbound.skip_ports, [9090]);

    let pod = bed.injected_pod("web-1", "default").await.unwrap();
    let hello = hello(&pod, &ObjectRef::new("fetchr-system", "default"));
    let plan = bed.open_as(&pod, hello).await.unwrap().plan(SOON).await.unwrap();
    assert_eq!(document(&plan).proxy, ObjectRef::new("fetchr-system", "default"));
}
