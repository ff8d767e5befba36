//! From a changed policy to its effect in every pod.

use std::time::{Duration, Instant};

use anyhow::ensure;
use crds::FetchrPolicy;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::row;
use crate::namespace::{Namespace, Pod};
use crate::report::{median, percentile};
use crate::testbed::application;
use crate::wait::eventually;

const CHANGES: usize = 100;
const PODS: u32 = 3;
const PORT: u16 = 8080;
const HEADER: &str = "x-policy";
const DEADLINE: Duration = Duration::from_secs(30);

/// How long each change took, in seconds.
pub(super) struct Changes {
    pub(super) pods: usize,
    pub(super) seconds: Vec<f64>,
}

/// The pods in which policies come into force.
pub(super) async fn pods(namespace: &Namespace) -> anyhow::Result<Vec<Pod>> {
    namespace.apply(&application("web", PODS, "fetchr.sh/inject: enabled")).await?;
    namespace.ready_pods("app=web", PODS as usize).await
}

/// Makes the changes, one after the other; a first one, which creates the policy, is not counted.
pub(super) async fn measure(namespace: &Namespace, pods: &[Pod]) -> anyhow::Result<Changes> {
    eprintln!("figures: {CHANGES} changes of a policy");
    change(namespace, pods, "first").await?;
    let mut seconds = Vec::with_capacity(CHANGES);
    for round in 1..=CHANGES {
        seconds.push(change(namespace, pods, &format!("change-{round}")).await?);
    }
    Ok(Changes { pods: pods.len(), seconds })
}

impl Changes {
    pub(super) fn rows(&self) -> Vec<Vec<String>> {
        let head = format!("policy applied to in force in {} pods, {} changes", self.pods, self.seconds.len());
        let milliseconds = |value: f64| format!("{:.0} ms", value * 1000.0);
        vec![
            row([&head, "time"]),
            row(["median", &milliseconds(median(&self.seconds))]),
            row(["p99", &milliseconds(percentile(&self.seconds, 99))]),
            row(["slowest", &milliseconds(percentile(&self.seconds, 100))]),
        ]
    }
}

/// Seconds from before the request to the API server until the last pod answers by the new policy.
async fn change(namespace: &Namespace, pods: &[Pod], value: &str) -> anyhow::Result<f64> {
    let set = json!({"name": HEADER, "value": value});
    let policy = json!({
        "apiVersion": "fetchr.sh/v1alpha1",
        "kind": "FetchrPolicy",
        "metadata": {"name": "header"},
        "spec": {
            "targetRefs": [{"kind": "Deployment", "name": "web"}],
            "rules": [{"name": "all", "headers": {"response": {"set": [set]}}}],
        },
    });
    let start = Instant::now();
    let policies = namespace.api::<FetchrPolicy>();
    policies.patch("header", &PatchParams::apply("fetchr-figures").force(), &Patch::Apply(policy)).await?;
    futures::future::try_join_all(pods.iter().map(|pod| in_force(pod, value))).await?;
    Ok(start.elapsed().as_secs_f64())
}

async fn in_force(pod: &Pod, value: &str) -> anyhow::Result<()> {
    eventually("the header is set", DEADLINE, async || {
        let reply = pod.get(PORT, "/").await?;
        ensure!(reply.header(HEADER) == value, "{} sets {:?}", pod.name(), reply.header(HEADER));
        Ok(())
    })
    .await
}
