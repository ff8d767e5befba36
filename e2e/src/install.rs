//! fetchr on a cluster: images and the chart.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use sha2::{Digest, Sha256};

use crate::cluster::Cluster;
use crate::images;
use crate::process::output;
use crate::tools::repository;

/// Where the tests and the demonstration install fetchr.
pub const NAMESPACE: &str = "fetchr-system";
/// Labels of the operator's pods.
pub const OPERATOR_LABELS: &str = "app.kubernetes.io/name=fetchr-operator";
/// The release's name.
pub const RELEASE: &str = "fetchr";
/// The operator's Deployment.
pub const OPERATOR: &str = "fetchr-operator";

const DEADLINE: Duration = Duration::from_secs(120);
/// Annotation of the operator's pods: what they were made of, so that a new build replaces them.
const BUILD: &str = "fetchr.sh/build";

/// Brings the images of this build onto the cluster on this machine and returns what tells this build from others.
///
/// # Errors
/// A program was not built, or the node refused an image.
pub async fn load_images(cluster: &Cluster) -> anyhow::Result<String> {
    let mut build = Sha256::new();
    for image in images::all()? {
        cluster.load_image(&image).await?;
        if ![images::ORIGIN, images::REDIS].contains(&image.name()) {
            build.update(image.fingerprint()?);
        }
    }
    for file in chart_files()? {
        build.update(std::fs::read(file)?);
    }
    Ok(build.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect())
}

/// Installs the chart, or upgrades it, and waits until the operator is ready. `build` comes from [`load_images`]; where it is
/// installed already, nothing is done. `settings` are `--set` values beside those of the images.
///
/// # Errors
/// helm failed, or the operator was not ready in time; the message holds what the cluster says about it.
pub async fn chart(cluster: &Cluster, build: &str, settings: &[&str]) -> anyhow::Result<()> {
    if installed_build(cluster).await?.as_deref() == Some(build) {
        return Ok(());
    }
    forget_unfinished(cluster)?;
    let mut helm = cluster.helm()?;
    helm.args(["upgrade", "--install", RELEASE]).arg(chart_folder()).args(["--namespace", NAMESPACE, "--create-namespace"]);
    for setting in image_settings(images::OPERATOR, images::SIDECAR, "Never") {
        helm.arg("--set").arg(setting);
    }
    helm.arg("--set-string").arg(format!("podAnnotations.{}={build}", BUILD.replace('.', "\\.")));
    for setting in settings {
        helm.arg("--set").arg(setting);
    }
    helm.args(["--wait", "--timeout", &format!("{}s", DEADLINE.as_secs())]);
    let run = tokio::task::spawn_blocking(move || output(&mut helm)).await?;
    run.map(drop).with_context(|| format!("the chart was not installed; the cluster says:\n{}", describe(cluster, NAMESPACE)))
}

/// helm upgrades no release that it was stopped in the middle of.
fn forget_unfinished(cluster: &Cluster) -> anyhow::Result<()> {
    let unfinished = ["list", "--short", "--pending", "--uninstalling", "--filter", RELEASE, "--namespace", NAMESPACE];
    if output(cluster.helm()?.args(unfinished))?.trim() == RELEASE { discard(cluster) } else { Ok(()) }
}

/// Removes what another build may have left, without its hooks, which belong to that build.
///
/// # Errors
/// helm failed.
pub fn discard(cluster: &Cluster) -> anyhow::Result<()> {
    let uninstall = ["uninstall", RELEASE, "--no-hooks", "--ignore-not-found", "--wait", "--namespace", NAMESPACE];
    output(cluster.helm()?.args(uninstall)).map(drop)
}

/// Removes the chart, with its hooks.
///
/// # Errors
/// helm failed.
pub async fn remove(cluster: &Cluster) -> anyhow::Result<()> {
    let mut helm = cluster.helm()?;
    helm.args(["uninstall", RELEASE, "--namespace", NAMESPACE, "--wait", "--timeout", "60s"]);
    let run = tokio::task::spawn_blocking(move || output(&mut helm)).await?;
    run.map(drop).with_context(|| format!("the chart was not removed; the cluster says:\n{}", describe(cluster, NAMESPACE)))
}

/// The chart's folder.
pub fn chart_folder() -> PathBuf {
    repository().join("charts/fetchr")
}

/// `--set` values that make the chart use these images, with their tags.
pub fn image_settings(operator: &str, sidecar: &str, pull: &str) -> Vec<String> {
    let image = |at: &str, name: &str| {
        let (repository, tag) = name.rsplit_once(':').unwrap_or((name, "latest"));
        format!("{at}image.repository={repository},{at}image.tag={tag},{at}image.pullPolicy={pull}")
    };
    vec![image("", operator), image("sidecar.", sidecar)]
}

/// What somebody would look at first when something in a namespace does not work: pods, events, ends of logs.
pub fn describe(cluster: &Cluster, namespace: &str) -> String {
    let kubectl = |arguments: &[&str]| {
        let run = cluster.kubectl().and_then(|mut kubectl| output(kubectl.args(arguments).args(["--namespace", namespace])));
        run.unwrap_or_else(|error| format!("{error:#}\n"))
    };
    let pods = kubectl(&["get", "pods", "-o", "name"]);
    let mut text = kubectl(&["get", "pods", "-o", "wide"]);
    text += &kubectl(&["get", "events", "--sort-by=.lastTimestamp"]);
    for pod in pods.lines().filter(|pod| pod.starts_with("pod/")) {
        text += &format!("--- logs of {pod}\n");
        text += &kubectl(&["logs", pod, "--all-containers", "--prefix", "--tail=15", "--ignore-errors"]);
    }
    text
}

async fn installed_build(cluster: &Cluster) -> anyhow::Result<Option<String>> {
    let deployments: Api<Deployment> = Api::namespaced(cluster.client().await?, NAMESPACE);
    let Some(deployment) = deployments.get_opt(OPERATOR).await? else { return Ok(None) };
    let spec = deployment.spec.unwrap_or_default();
    let status = deployment.status.unwrap_or_default();
    let settled = status.observed_generation == deployment.metadata.generation
        && spec.replicas == status.updated_replicas
        && spec.replicas == status.ready_replicas
        && spec.replicas == status.replicas;
    let annotations = spec.template.metadata.and_then(|meta| meta.annotations).unwrap_or_default();
    Ok(annotations.get(BUILD).filter(|_| settled).cloned())
}

fn chart_files() -> anyhow::Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![chart_folder()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| format!("could not read {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registry_with_a_port_keeps_it() {
        assert_eq!(
            image_settings("localhost:5000/op:1", "side:2", "Never"),
            [
                "image.repository=localhost:5000/op,image.tag=1,image.pullPolicy=Never",
                "sidecar.image.repository=side,sidecar.image.tag=2,sidecar.image.pullPolicy=Never"
            ]
        );
    }
}
