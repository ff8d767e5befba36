//! From the creation of a pod to its condition Ready, with fetchr and with containers that do nothing in its place.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams};
use kube::runtime::conditions::is_deleted;
use kube::runtime::wait::await_condition;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use super::row;
use crate::namespace::{Namespace, PODS_DEADLINE, SIDECAR, is_ready};
use crate::report::{median, percentile};
use crate::{images, install};

const PAIRS: usize = 10;
const GONE_DEADLINE: Duration = Duration::from_secs(60);
const PORT: u16 = 8080;
const IDLE_PORT: u16 = 4621;

/// Seconds, the pods of a pair at the same place.
#[derive(Default)]
pub(super) struct Readiness {
    pub(super) fetchr: Vec<f64>,
    pub(super) idle: Vec<f64>,
}

/// Measures pair by pair, one pod at a time. A first pair, whose files are not in any cache yet, is not counted.
pub(super) async fn measure(namespace: &Namespace) -> anyhow::Result<Readiness> {
    let mut seconds = Readiness::default();
    for pair in 0..=PAIRS {
        // Which one goes first changes, so that neither has an advantage.
        let (fetchr, idle) = if pair % 2 == 0 {
            let fetchr = ready(namespace, fetchr_pod()).await?;
            (fetchr, ready(namespace, idle_pod()).await?)
        } else {
            let idle = ready(namespace, idle_pod()).await?;
            (ready(namespace, fetchr_pod()).await?, idle)
        };
        eprintln!("figures: pod ready, pair {pair} of {PAIRS}: {fetchr:.2} s, without fetchr {idle:.2} s");
        if pair > 0 {
            seconds.fetchr.push(fetchr);
            seconds.idle.push(idle);
        }
    }
    Ok(seconds)
}

impl Readiness {
    pub(super) fn rows(&self) -> Vec<Vec<String>> {
        let later: Vec<f64> = self.fetchr.iter().zip(&self.idle).map(|(fetchr, idle)| fetchr - idle).collect();
        let figures = |name: &str, values: &[f64]| {
            row([name, &format!("{:.2} s", median(values)), &format!("{:.2} s", percentile(values, 100))])
        };
        vec![
            row([&format!("creation of a pod to Ready, {} pairs", self.fetchr.len()), "median", "slowest"]),
            figures("with fetchr's sidecar", &self.fetchr),
            figures("with containers that do nothing", &self.idle),
            figures("later with fetchr, pair by pair", &later),
        ]
    }
}

/// Creates a pod, waits until it is ready, and removes it, so that the next one finds the node at rest. The time runs from
/// before the request until the API server tells of the condition.
async fn ready(namespace: &Namespace, pod: Value) -> anyhow::Result<f64> {
    let pods: Api<Pod> = namespace.api();
    let pod: Pod = serde_json::from_value(pod)?;
    let wants_sidecar = pod.annotations().contains_key("fetchr.sh/inject");
    let start = Instant::now();
    let created = pods.create(&PostParams::default(), &pod).await?;
    let name = created.name_any();
    let condition = Box::pin(await_condition(pods.clone(), &name, |pod: Option<&Pod>| pod.is_some_and(is_ready)));
    let reached = tokio::time::timeout(PODS_DEADLINE, condition).await;
    let seconds = start.elapsed().as_secs_f64();
    let late = || format!("{name} was not ready in time:\n{}", install::describe(namespace.cluster(), namespace.name()));
    let ready = reached.with_context(late)??.with_context(|| format!("{name} is gone"))?;
    let mut containers = ready.spec.into_iter().flat_map(|spec| spec.init_containers.unwrap_or_default());
    let has_sidecar =
        containers.any(|container| container.name == SIDECAR && container.image.as_deref() == Some(images::SIDECAR));
    ensure!(has_sidecar == wants_sidecar, "{name}: a sidecar is wanted: {wants_sidecar}, there: {has_sidecar}");
    remove(&pods, &created).await?;
    Ok(seconds)
}

async fn remove(pods: &Api<Pod>, pod: &Pod) -> anyhow::Result<()> {
    let (name, uid) = (pod.name_any(), pod.uid().context("the API server names each pod")?);
    // Nobody sends it anything, so there is nothing to drain.
    pods.delete(&name, &DeleteParams::default().grace_period(1)).await?;
    let gone = Box::pin(await_condition(pods.clone(), &name, is_deleted(&uid)));
    tokio::time::timeout(GONE_DEADLINE, gone).await.with_context(|| format!("{name} did not end"))??;
    Ok(())
}

/// A pod that asks for fetchr.
fn fetchr_pod() -> Value {
    json!({
        "metadata": {"generateName": "fetchr-", "annotations": {"fetchr.sh/inject": "enabled"}},
        "spec": {"containers": [application()]},
    })
}

/// The same pod with an init container that ends at once and a native sidecar with the probes of fetchr's.
fn idle_pod() -> Value {
    let init = json!({
        "name": "idle-init",
        "image": images::ORIGIN,
        "imagePullPolicy": "Never",
        "command": ["fetchr-origin", "--version"],
    });
    let asks = json!({"path": "/healthz", "port": IDLE_PORT});
    let sidecar = json!({
        "name": "idle-sidecar",
        "image": images::ORIGIN,
        "imagePullPolicy": "Never",
        "restartPolicy": "Always",
        "env": [{"name": "ORIGIN_LISTEN", "value": format!("0.0.0.0:{IDLE_PORT}")}],
        "startupProbe": {"httpGet": asks, "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 20},
        "readinessProbe": {"httpGet": asks, "periodSeconds": 2, "timeoutSeconds": 2, "failureThreshold": 3},
        "livenessProbe": {"httpGet": asks, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 6},
    });
    json!({
        "metadata": {"generateName": "idle-"},
        "spec": {"initContainers": [init, sidecar], "containers": [application()]},
    })
}

fn application() -> Value {
    json!({
        "name": "app",
        "image": images::ORIGIN,
        "imagePullPolicy": "Never",
        "ports": [{"containerPort": PORT}],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": PORT}, "periodSeconds": 1},
    })
}
