//! The operator is upgraded and rolled back by helm, while sidecars of before serve.

use anyhow::{Context, ensure};
use crds::FetchrProxy;
use k8s_openapi::api::core::v1 as core;
use kube::api::ListParams;

use super::Row;
use crate::namespace::{Namespace, Pod, SIDECAR};
use crate::process::output;
use crate::testbed::{answered_during, application};
use crate::wait::eventually;
use crate::{images, install};

const INJECT: &str = "fetchr.sh/inject: enabled";
const DEADLINE: std::time::Duration = std::time::Duration::from_secs(60);
/// Another name of the same image, as a new version would have.
const NEXT_SIDECAR: &str = "localhost/fetchr-sidecar:next";

/// One upgrade to a release whose sidecar has another image, and a roll-back. Nobody else may use the chart meanwhile.
///
/// # Errors
/// A step failed, or a promise was broken: which one is said.
pub async fn and_back(namespace: &Namespace) -> anyhow::Result<Row> {
    namespace.apply(&application("client", 1, "")).await?;
    namespace.apply("apiVersion: fetchr.sh/v1alpha1\nkind: FetchrProxy\nmetadata: {name: web}\nspec: {}\n").await?;
    namespace.apply(&application("web", 2, INJECT)).await?;
    let client = namespace.ready_pods("app=client", 1).await?.remove(0);
    let old = namespace.ready_pods("app=web", 2).await?;
    namespace.cluster().load_image(&images::sidecar()?.named(NEXT_SIDECAR)).await?;
    let (answered, changed) = answered_during(&client, Box::pin(change(namespace, &old))).await?;
    changed?;
    untouched(&old).await?;
    let seen = format!("{answered} requests, 0 failed; sidecars of before ran on, counted as outdated, and took new policies");
    Ok(Row::new("helm upgrade and rollback of the operator", "once each".to_owned(), seen))
}

async fn change(namespace: &Namespace, old: &[Pod]) -> anyhow::Result<()> {
    let settings = ["sidecar.image.tag=next", "log.level=debug"];
    install::chart(namespace.cluster(), "upgraded", &settings).await.context("upgrade")?;
    policy(namespace, old, "upgraded").await?;
    outdated(namespace, 2).await?;
    only_new_operators(namespace).await?;
    namespace.apply(&application("new", 1, INJECT)).await?;
    let new = namespace.ready_pods("app=new", 1).await?.remove(0);
    ensure!(image(&new).as_deref() == Some(NEXT_SIDECAR), "a new pod's sidecar is {:?}", image(&new));
    let mut helm = namespace.cluster().helm()?;
    helm.args(["rollback", install::RELEASE, "--namespace", install::NAMESPACE, "--wait", "--timeout", "120s"]);
    tokio::task::spawn_blocking(move || output(&mut helm)).await?.context("rollback")?;
    policy(namespace, old, "rolled-back").await?;
    // Now it is the new one that does not fit.
    outdated(namespace, 1).await
}

/// Waits until the replicas of before have ended: while they drain, they admit pods as they always did.
async fn only_new_operators(namespace: &Namespace) -> anyhow::Result<()> {
    let operators = Namespace::named(namespace.cluster(), install::NAMESPACE).await?.api::<core::Pod>();
    eventually("the operators of before have ended", DEADLINE, async || {
        let pods = operators.list(&ListParams::default().labels(install::OPERATOR_LABELS)).await?.items;
        ensure!(pods.len() == 2, "there are {} operators", pods.len());
        Ok(())
    })
    .await
}

/// Applies a policy and waits until all of these pods follow it.
async fn policy(namespace: &Namespace, pods: &[Pod], value: &str) -> anyhow::Result<()> {
    namespace
        .apply(&format!(
            "apiVersion: fetchr.sh/v1alpha1\nkind: FetchrPolicy\nmetadata: {{name: version}}\nspec:\n  targetRefs: [{{kind: FetchrProxy, \
             name: web}}]\n  rules: [{{name: all, headers: {{response: {{set: [{{name: x-version, value: {value}}}]}}}}}}]\n"
        ))
        .await?;
    eventually("old sidecars take new policies", DEADLINE, async || {
        for pod in pods {
            let reply = pod.get(8080, "/").await?;
            ensure!(reply.header("x-version") == value, "{} sets {:?}", pod.name(), reply.header("x-version"));
        }
        Ok(())
    })
    .await
}

async fn outdated(namespace: &Namespace, count: i32) -> anyhow::Result<()> {
    eventually("old sidecars are counted", DEADLINE, async || {
        let pods = namespace.api::<FetchrProxy>().get("web").await?.status.unwrap_or_default().pods;
        ensure!(pods.outdated == count, "{pods:?}");
        Ok(())
    })
    .await
}

/// An error, if a pod was replaced or one of its containers started again.
async fn untouched(pods: &[Pod]) -> anyhow::Result<()> {
    for pod in pods {
        let status = pod.refreshed().await?.object().status.clone().unwrap_or_default();
        let containers = status.container_statuses.into_iter().chain(status.init_container_statuses).flatten();
        for container in containers {
            ensure!(container.restart_count == 0, "{} restarted in {}", container.name, pod.name());
        }
    }
    Ok(())
}

fn image(pod: &Pod) -> Option<String> {
    let containers = pod.object().spec.as_ref()?.init_containers.as_ref()?;
    containers.iter().find(|container| container.name == SIDECAR)?.image.clone()
}
