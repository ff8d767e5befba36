//! What goes on when a part is gone.
#![allow(clippy::unwrap_used, reason = "a helper that fails has failed its test")]

use std::time::{Duration, Instant};

use anyhow::ensure;
use crds::FetchrPolicy;
use e2e::install;
use e2e::namespace::{Namespace, Pod, SIDECAR};
use e2e::process::output;
use e2e::testbed::{application, with_namespace};
use e2e::wait::eventually;
use kube::api::{Patch, PatchParams};
use serde_json::json;

const PORT: u16 = 8080;
const DEADLINE: Duration = Duration::from_secs(60);
const INJECT: &str = "fetchr.sh/inject: enabled";

/// One test after the other: both are about the one operator.
#[tokio::test]
async fn pods_go_on_without_operator_and_after_a_crash_of_their_sidecar() {
    with_namespace(async |namespace| {
        namespace.apply(&application("web", 1, INJECT)).await.unwrap();
        let pod = namespace.ready_pods("app=web", 1).await.unwrap().remove(0);
        assert!(pod.has_sidecar());
        header(&namespace, "kept").await;
        eventually("the policy is in force", DEADLINE, async || sets_header(&pod, "kept").await).await.unwrap();

        scale_operator(&namespace, 0).await;
        let meanwhile = without_operator(&namespace, &pod).await;
        // Other tests need the operator, whatever happened here.
        scale_operator(&namespace, 2).await;
        meanwhile.unwrap();
        assert!(namespace.ready_pods("app=late", 1).await.unwrap()[0].has_sidecar());
        header(&namespace, "changed").await;
        eventually("policies change again", DEADLINE, async || sets_header(&pod, "changed").await).await.unwrap();
    })
    .await;
}

async fn without_operator(namespace: &Namespace, pod: &Pod) -> anyhow::Result<()> {
    sets_header(pod, "kept").await?;
    let before = pod.restarts(SIDECAR).await?;
    for _ in 0..3 {
        pod.kill_worker(SIDECAR).await?;
        let killed = Instant::now();
        sets_header(pod, "kept").await?;
        println!("killed worker serves again, without a new container, after {:?}", killed.elapsed());
    }
    ensure!(pod.restarts(SIDECAR).await? == before, "the container was started again");
    let took = crash(pod).await?;
    println!("killed sidecar serves again, from its own volume and without an operator, after {took:?}");
    ensure!(took < Duration::from_secs(3), "{took:?}");
    namespace.apply(&application("late", 1, INJECT)).await?;
    eventually("a pod that opts in is refused, and its owner told", DEADLINE, async || refused(namespace).await).await
}

async fn header(namespace: &Namespace, value: &str) {
    let policy = json!({
        "apiVersion": "fetchr.sh/v1alpha1",
        "kind": "FetchrPolicy",
        "metadata": {"name": "header"},
        "spec": {
            "targetRefs": [{"kind": "Deployment", "name": "web"}],
            "rules": [{"name": "all", "headers": {"response": {"set": [{"name": "x-policy", "value": value}]}}}],
        },
    });
    let policies = namespace.api::<FetchrPolicy>();
    policies.patch("header", &PatchParams::apply("e2e").force(), &Patch::Apply(policy)).await.unwrap();
}

async fn sets_header(pod: &Pod, value: &str) -> anyhow::Result<()> {
    let reply = pod.get(PORT, "/").await?;
    ensure!(reply.header("x-policy") == value, "the header is {:?}", reply.header("x-policy"));
    Ok(())
}

/// Kills the sidecar, and returns how long it took until a request passed it again.
async fn crash(pod: &Pod) -> anyhow::Result<Duration> {
    pod.kill(SIDECAR).await?;
    let killed = Instant::now();
    eventually("the sidecar serves again", DEADLINE, async || sets_header(pod, "kept").await).await?;
    Ok(killed.elapsed())
}

async fn refused(namespace: &Namespace) -> anyhow::Result<()> {
    let arguments = ["get", "events", "--field-selector", "reason=FailedCreate", "-o", "jsonpath={.items[*].message}"];
    let messages = namespace.kubectl(&arguments, "").await?;
    ensure!(messages.contains("failed calling webhook"), "events say: {messages:?}");
    Ok(())
}

async fn scale_operator(namespace: &Namespace, replicas: u32) {
    let deployment = format!("deployment/{}", install::OPERATOR);
    let wait = match replicas {
        0 => ["wait", "--for=delete", "pod", "--selector=app.kubernetes.io/name=fetchr-operator", "--timeout=60s"],
        _ => ["rollout", "status", &deployment, "--timeout=60s", "--watch"],
    };
    let scale = ["scale", &deployment, &format!("--replicas={replicas}")].map(str::to_owned).to_vec();
    for arguments in [scale, wait.map(str::to_owned).to_vec()] {
        let mut kubectl = namespace.cluster().kubectl().unwrap();
        kubectl.args(["--namespace", install::NAMESPACE]).args(arguments);
        tokio::task::spawn_blocking(move || output(&mut kubectl)).await.unwrap().unwrap();
    }
}
