use crds::{
    FetchrPolicy, FetchrProxy,
    plan::{Plan, Position},
};
use serde_json::json;

use super::*;
use crate::{
    compile::{Content, testing::complete},
    index::{Change, Indexed, Pod, Service, Slice},
    services::Catalog,
    stamp::Stamp,
};

fn key() -> PlanKey {
    PlanKey { pod_namespace: "shop".to_owned(), proxy: ObjectRef::new("shop", "web") }
}

/// Plans of proxy `shop/web` with a policy that has these sections.
fn compilation(version: u64, sections: &serde_json::Value) -> Arc<Compilation> {
    let proxy: FetchrProxy = serde_json::from_value(json!({
        "apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrProxy", "metadata": {"namespace": "shop", "name": "web"}, "spec": {},
    }))
    .unwrap();
    let mut rule = json!({"name": "all"});
    rule.as_object_mut().unwrap().extend(sections.as_object().unwrap().clone());
    let policy: FetchrPolicy = serde_json::from_value(json!({
        "apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrPolicy", "metadata": {"namespace": "shop", "name": "p"},
        "spec": {"targetRefs": [{"kind": "FetchrProxy", "name": "web"}], "rules": [rule]},
    }))
    .unwrap();
    let compiled = crds::plan::compile(&crds::plan::Inputs::of_documents(&[proxy], &[policy]));
    Arc::new(Compilation { position: position(version), content: Arc::new(Content::for_test(compiled.plans)) })
}

fn later(compilation: &Compilation, version: u64) -> Arc<Compilation> {
    Arc::new(Compilation { position: position(version), content: compilation.content.clone() })
}

fn position(version: u64) -> Position {
    [("policies", version.to_string())].into_iter().collect()
}

fn header(value: &str) -> serde_json::Value {
    json!({"headers": {"response": {"set": [{"name": "x-a", "value": value}]}}})
}

fn hub() -> Hub {
    Hub::new(Metrics::default(), "cluster.local")
}

fn join(hub: &Hub, pod: &str, features: &[&str]) -> (Arc<Session>, Inbox) {
    let hello = Hello {
        pod: ObjectRef::new("shop", pod),
        uid: pod.to_owned(),
        key: key(),
        features: features.iter().map(|&feature| feature.to_owned()).collect(),
        version: "0.1.0".to_owned(),
        digest: String::new(),
        takes_services: true,
    };
    hub.join(hello, &Index::default(), &CancellationToken::new())
}

fn newest(inbox: &Inbox) -> Arc<Document> {
    inbox.plan.borrow().clone().expect("there is a plan")
}

fn plan(document: &Document) -> Plan {
    serde_json::from_slice(&document.bytes).unwrap()
}

fn ack(digest: &str) -> v1::Up {
    v1::Up { message: Some(v1::up::Message::Ack(v1::Ack { digest: digest.to_owned() })) }
}

fn nack(digest: &str) -> v1::Up {
    let nack = v1::Nack { digest: digest.to_owned(), subject: String::new(), reason: "no".to_owned() };
    v1::Up { message: Some(v1::up::Message::Nack(nack)) }
}

#[test]
fn all_streams_share_the_bytes_of_a_plan() {
    let hub = hub();
    hub.publish(compilation(1, &header("one")));
    let inboxes: Vec<_> = (0..3).map(|index| join(&hub, &format!("web-{index}"), &["headers"]).1).collect();
    let pointers: Vec<_> = inboxes.iter().map(|inbox| newest(inbox).message().document.as_ptr()).collect();
    assert!(pointers.iter().all(|pointer| *pointer == pointers[0]), "{pointers:?}");
}

#[test]
fn stream_that_comes_before_its_plan_gets_it_later() {
    let hub = hub();
    let (_session, inbox) = join(&hub, "web-1", &["headers"]);
    assert!(inbox.plan.borrow().is_none());
    hub.publish(compilation(1, &header("one")));
    assert_eq!(plan(&newest(&inbox)).policies.len(), 1);
}

#[test]
fn slow_stream_sees_the_newest_plan_only() {
    let hub = hub();
    let (_session, mut inbox) = join(&hub, "web-1", &["headers"]);
    for version in 1..=3 {
        hub.publish(compilation(version, &header(&version.to_string())));
    }
    assert!(inbox.plan.has_changed().unwrap());
    let document = inbox.plan.borrow_and_update().clone().unwrap();
    assert_eq!(document.position["policies"], "3");
    assert!(!inbox.plan.has_changed().unwrap());
}

#[test]
fn newer_position_alone_is_no_news_but_is_there_for_the_next_stream() {
    let hub = hub();
    let first = compilation(1, &header("one"));
    hub.publish(first.clone());
    let (_session, mut inbox) = join(&hub, "web-1", &["headers"]);
    inbox.plan.borrow_and_update();
    hub.publish(later(&first, 9));
    assert!(!inbox.plan.has_changed().unwrap());
    assert_eq!(newest(&inbox).position["policies"], "9");
    hub.publish(compilation(10, &header("one")));
    assert!(!inbox.plan.has_changed().unwrap(), "compiled anew to the same bytes");
}

#[test]
fn sidecar_gets_only_what_it_knows_and_the_rest_is_named() {
    let hub = hub();
    hub.publish(compilation(1, &header("one")));
    let (old, inbox) = join(&hub, "web-1", &["timeouts"]);
    assert!(plan(&newest(&inbox)).policies.is_empty());
    assert_eq!(old.report().left_out.to_vec(), [ObjectRef::new("shop", "p")]);
    let (_new, inbox) = join(&hub, "web-2", &["headers", "timeouts"]);
    assert_eq!(plan(&newest(&inbox)).policies.len(), 1);
}

#[test]
fn sidecar_is_in_sync_from_its_ack_to_the_next_plan() {
    let hub = hub();
    hub.publish(compilation(1, &header("one")));
    let (session, inbox) = join(&hub, "web-1", &["headers"]);
    assert!(!session.report().in_sync);
    hub.hear(&session, ack(&newest(&inbox).digest));
    assert!(session.report().in_sync);
    hub.publish(compilation(2, &header("two")));
    assert!(!session.report().in_sync);
}

#[test]
fn refusal_counts_for_the_newest_plan_only() {
    let hub = hub();
    hub.publish(compilation(1, &header("one")));
    let (session, inbox) = join(&hub, "web-1", &["headers"]);
    let digest = newest(&inbox).digest.clone();
    hub.hear(&session, nack(&digest));
    assert!(session.report().nack.is_some() && session.has_answered(&digest));
    hub.publish(compilation(2, &header("two")));
    assert!(session.report().nack.is_none());
}

#[test]
fn plan_that_came_over_another_replica_counts() {
    let hub = hub();
    hub.publish(compilation(1, &header("one")));
    let (session, inbox) = join(&hub, "web-1", &["headers"]);
    let status = v1::Status { plan_digest: newest(&inbox).digest.clone(), ..v1::Status::default() };
    hub.hear(&session, v1::Up { message: Some(v1::up::Message::Status(status)) });
    assert!(session.report().in_sync);
}

#[test]
fn newer_stream_of_a_pod_ends_the_older_one() {
    let hub = hub();
    let (first, _inbox) = join(&hub, "web-1", &[]);
    let (second, _inbox) = join(&hub, "web-1", &[]);
    assert!(first.ended().is_cancelled() && !second.ended().is_cancelled());
    hub.leave(&first);
    assert_eq!(hub.reports().len(), 1, "the older one takes nothing with it");
    hub.leave(&second);
    assert!(hub.reports().is_empty());
}

#[test]
fn identity_waits_for_the_pod_and_tells_changes_only() {
    let hub = hub();
    let (_session, mut inbox) = join(&hub, "web-1", &[]);
    assert!(inbox.identity.borrow_and_update().is_none());
    let mut index = Index::default();
    let stamp = Stamp { proxy: Some("shop/web".to_owned()), workload: Some("Deployment/web".to_owned()), ..Stamp::default() };
    let labels = [("fetchr.sh/injected".to_owned(), "true".to_owned())].into();
    let pod = Pod { uid: "web-1".to_owned(), stamp: Some(stamp), labels, ..Pod::default() };
    index.apply(ObjectRef::new("shop", "web-1"), pod.clone(), "1".to_owned());
    hub.identify(&index);
    assert_eq!(inbox.identity.borrow_and_update().as_ref().unwrap().live_pods, 1);
    hub.identify(&index);
    assert!(!inbox.identity.has_changed().unwrap());
    index.apply(ObjectRef::new("shop", "web-2"), Pod { uid: "other".to_owned(), ..pod }, "2".to_owned());
    hub.identify(&index);
    assert_eq!(inbox.identity.borrow_and_update().as_ref().unwrap().live_pods, 2);
}

#[tokio::test(start_paused = true)]
async fn command_finds_its_answer() {
    let hub = hub();
    let (session, mut inbox) = join(&hub, "web-1", &[]);
    let asking = hub.command("shop", "web-1", "config", Bytes::from_static(b"?"), Duration::from_secs(5));
    let answering = async {
        let command = inbox.commands.recv().await.unwrap();
        assert_eq!((command.verb.as_str(), command.deadline_ms), ("config", 5000));
        let answer = v1::CommandAnswer { id: command.id, body: Bytes::from_static(b"!"), ..Default::default() };
        hub.hear(&session, v1::Up { message: Some(v1::up::Message::CommandAnswer(answer)) });
    };
    let (answer, ()) = tokio::join!(asking, answering);
    assert_eq!(answer.unwrap(), "!");
}

#[tokio::test(start_paused = true)]
async fn command_does_not_outwait_its_deadline_nor_its_stream() {
    let hub = hub();
    let ask = || hub.command("shop", "web-1", "config", Bytes::new(), Duration::from_secs(5));
    assert_eq!(ask().await, Err(CommandError::NotConnected));
    let (session, _inbox) = join(&hub, "web-1", &[]);
    assert_eq!(ask().await, Err(CommandError::NoAnswer), "nobody answers");
    let asking = ask();
    let leaving = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        hub.leave(&session);
        Instant::now()
    };
    let (answer, left) = tokio::join!(asking, leaving);
    assert_eq!(answer, Err(CommandError::NoAnswer));
    assert!(Instant::now() - left < Duration::from_secs(1), "told at once");
}

/// Service `shop/carts` with endpoints.
fn serve(index: &Shared, last: &[u8], version: u64) {
    let spec = json!({"clusterIPs": ["10.96.0.7"], "ports": [{"name": "http", "port": 80}]});
    let service =
        Service::read(serde_json::from_value(json!({"metadata": {"namespace": "shop", "name": "carts"}, "spec": spec})).unwrap());
    let endpoints: Vec<_> = last.iter().map(|last| json!({"addresses": [format!("10.0.0.{last}")]})).collect();
    let slice = Slice::read(
        serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": "carts-1", "labels": {"kubernetes.io/service-name": "carts"}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints,
        }))
        .unwrap(),
    );
    let ((service_key, service), (slice_key, slice)) = (service.unwrap(), slice.unwrap());
    index.change(Change::Apply(service_key, service), version.to_string());
    index.change(Change::Apply(slice_key, slice), version.to_string());
}

/// A plan that asks for Service `shop/carts`; outbound by its second policy.
fn spreading() -> Arc<Compilation> {
    let mut compilation = compilation(1, &header("one"));
    let content = Arc::get_mut(&mut compilation).map(|compilation| Arc::get_mut(&mut compilation.content).unwrap()).unwrap();
    for plan in content.plans.values_mut() {
        let mut policy = plan.policies[0].clone();
        policy.direction = crds::policy::Direction::Outbound;
        policy.rules =
            [serde_json::from_value(json!({"name": "r", "loadBalancing": {}, "matches": [{"hosts": ["carts"]}]})).unwrap()]
                .into();
        plan.policies.push(policy);
    }
    compilation
}

#[test]
fn change_behind_a_service_makes_no_new_plan_and_is_told_to_who_takes_it() {
    let (hub, index, mut catalog) = (hub(), complete(), Catalog::default());
    serve(&index, &[1], 5);
    hub.publish(spreading());
    let (_session, mut inbox) = join(&hub, "web-1", &["headers", "loadBalancing"]);
    inbox.plan.borrow_and_update();
    hub.serve(&index.read(), &mut catalog);
    let services = inbox.services.as_mut().unwrap();
    let first = services.borrow_and_update().clone().unwrap();
    assert_eq!((first.version.as_str(), first.services.len(), first.endpoints), ("5", 1, 1));

    serve(&index, &[1, 2], 6);
    hub.serve(&index.read(), &mut catalog);
    assert!(services.has_changed().unwrap() && !inbox.plan.has_changed().unwrap());
    assert_eq!(services.borrow_and_update().as_ref().unwrap().endpoints, 2);

    serve(&index, &[2, 1], 7);
    hub.serve(&index.read(), &mut catalog);
    assert!(!services.has_changed().unwrap(), "nothing has changed but the version");
    assert_eq!(services.borrow().as_ref().unwrap().version, "7");
}

#[test]
fn nothing_is_told_before_every_kind_was_listed() {
    let (hub, index) = (hub(), Shared::default());
    serve(&index, &[1], 5);
    hub.publish(spreading());
    let (_session, inbox) = join(&hub, "web-1", &["loadBalancing"]);
    hub.serve(&index.read(), &mut Catalog::default());
    assert!(inbox.services.unwrap().borrow().is_none());
}

#[tokio::test(start_paused = true)]
async fn burst_of_changes_behind_a_service_is_told_together() {
    let (hub, index, shutdown) = (hub(), complete(), CancellationToken::new());
    hub.publish(spreading());
    let (_session, mut inbox) = join(&hub, "web-1", &["loadBalancing"]);
    let serving = {
        let (hub, index, shutdown) = (hub.clone(), index.clone(), shutdown.clone());
        tokio::spawn(async move { hub.serve_services(&index, &shutdown).await })
    };
    let services = inbox.services.as_mut().unwrap();
    services.mark_unchanged();
    services.changed().await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    services.mark_unchanged();
    let (begun, mut told) = (Instant::now(), Vec::new());
    for change in 1..=50 {
        serve(&index, &[change], change.into());
        tokio::time::sleep(Duration::from_millis(4)).await;
        if services.has_changed().unwrap() {
            services.mark_unchanged();
            told.push(begun.elapsed().as_millis());
        }
    }
    assert!(told[0] < 10 && told.len() <= 3, "at once, then each 100 ms: {told:?}");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(services.borrow().as_ref().unwrap().version, "50");
    shutdown.cancel();
    serving.await.unwrap();
}
