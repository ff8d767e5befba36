//! Objects that were stored before the schema was tightened, with a real API server: they cost nobody but themselves.

use std::time::Duration;

use anyhow::{Context, ensure};
use crds::{FetchrPolicy, FetchrProxy, plan::ObjectRef};
use e2e::wait::eventually;
use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition, apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, CustomResourceExt, ResourceExt,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
};
use operator::{
    health::Heart,
    index::Shared,
    watch::{Metrics, Outages, Watches},
};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

#[allow(dead_code, reason = "other tests use the rest")]
mod bed;

use bed::Bed;

const SOON: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn object_that_cannot_be_read_is_named_and_stops_no_other() {
    let bed = Bed::start("unreadable").await.unwrap();
    bed.proxy("web", &json!({})).await.unwrap();
    loosen(&bed).await.unwrap();
    let rule = json!({"name": "all", "headers": {"response": {"set": [{"name": "x-hello", "value": "one"}]}}});
    let sideways = json!({"direction": "Sideways", "targetRefs": [{"kind": "FetchrProxy", "name": "web"}], "rules": [rule]});
    store::<FetchrPolicy>(&bed, "broken", sideways).await.unwrap();
    store::<FetchrProxy>(&bed, "broken", json!({"workers": "many"})).await.unwrap();
    tighten(&bed).await.unwrap();

    bed.policy("good", &json!({"kind": "FetchrProxy", "name": "web"}), "one").await.unwrap();
    bed.policy_condition("good", "Accepted", "True", "Accepted").await.unwrap();
    let pod = bed.injected_pod("web-1", "web").await.unwrap();
    let plan = bed.open(&pod, "web").await.unwrap().plan(SOON).await.unwrap();
    let plan: crds::plan::Plan = serde_json::from_slice(&plan.document).unwrap();
    // The condition above says that the policy was compiled.
    assert_eq!(plan.policies.iter().map(|policy| policy.policy.name.as_str()).collect::<Vec<_>>(), ["good"]);

    let refused = accepted::<FetchrPolicy>(&bed, "/status/ancestors/0/conditions").await.unwrap();
    assert_eq!((refused.status.as_str(), refused.reason.as_str()), ("False", "Invalid"));
    assert!(refused.message.starts_with("spec.direction: Unsupported value: \"Sideways\""), "{}", refused.message);
    let refused = accepted::<FetchrProxy>(&bed, "/status/conditions").await.unwrap();
    assert_eq!((refused.status.as_str(), refused.reason.as_str()), ("False", "Invalid"));
    assert!(refused.message.starts_with("spec.workers: Invalid value"), "{}", refused.message);

    let listed = listed_afresh(&bed).await.unwrap();
    let (broken, good) = (ObjectRef::new("unreadable", "broken"), ObjectRef::new("unreadable", "good"));
    let index = listed.read();
    assert!(index.policies.get(&broken).unwrap().0.object().is_none());
    assert!(index.policies.get(&good).unwrap().0.object().is_some());
}

/// Lets anything be stored.
async fn loosen(bed: &Bed) -> anyhow::Result<()> {
    let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    for mut definition in [json!(FetchrProxy::crd()), json!(FetchrPolicy::crd())] {
        definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = anything.clone();
        definition["spec"]["versions"][0]["selectableFields"] = json!([]);
        replace(bed, definition).await?;
    }
    Ok(())
}

async fn tighten(bed: &Bed) -> anyhow::Result<()> {
    replace(bed, json!(FetchrProxy::crd())).await?;
    replace(bed, json!(FetchrPolicy::crd())).await
}

async fn replace(bed: &Bed, definition: Value) -> anyhow::Result<()> {
    let definitions: Api<CustomResourceDefinition> = Api::all(bed.client().clone());
    let mut definition: CustomResourceDefinition = serde_json::from_value(definition)?;
    definition.metadata.resource_version = definitions.get(&definition.name_any()).await?.resource_version();
    definitions.replace(&definition.name_any(), &PostParams::default(), &definition).await?;
    Ok(())
}

/// Creates an object as soon as the loosened schema lets it.
async fn store<K: kube::Resource<DynamicType = ()>>(bed: &Bed, name: &str, spec: Value) -> anyhow::Result<()> {
    let body = json!({"apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": {"name": name}, "spec": spec});
    eventually("it is stored", SOON, async || {
        untyped::<K>(bed).patch(name, &PatchParams::apply("test"), &Patch::Apply(&body)).await?;
        Ok(())
    })
    .await
}

/// The condition `Accepted` of the object `broken`.
async fn accepted<K: kube::Resource<DynamicType = ()>>(bed: &Bed, conditions: &str) -> anyhow::Result<Condition> {
    eventually("the broken object has a status", SOON, async || {
        let object = json!(untyped::<K>(bed).get("broken").await?);
        let conditions = object.pointer(conditions).cloned().context("no conditions yet")?;
        let conditions: Vec<Condition> = serde_json::from_value(conditions)?;
        conditions.into_iter().find(|condition| condition.type_ == "Accepted").context("not this one")
    })
    .await
}

fn untyped<K: kube::Resource<DynamicType = ()>>(bed: &Bed) -> Api<DynamicObject> {
    Api::namespaced_with(bed.client().clone(), bed.namespace(), &ApiResource::erase::<K>(&()))
}

/// What a replica sees that starts now.
async fn listed_afresh(bed: &Bed) -> anyhow::Result<Shared> {
    let watches = Watches {
        client: bed.client().clone(),
        index: Shared::default(),
        metrics: Metrics::register(&mut Registry::default()),
        heart: Heart::default(),
        outages: Outages::default(),
        shutdown: CancellationToken::new(),
    };
    let index = watches.index.clone();
    let watching = tokio::spawn(async move { watches.run().await });
    eventually("every kind is listed", SOON, async || {
        ensure!(index.read().is_complete(), "not yet");
        Ok(())
    })
    .await?;
    watching.abort();
    Ok(index)
}
