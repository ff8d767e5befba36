//! `fetchr version`: this program, the operator, and how many sidecars run which version.

use std::collections::BTreeMap;

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{Api, ResourceExt, api::ListParams};
use operator::stamp::{self, Stamp};
use serde::Serialize;

use crate::{
    args::{ClusterArgs, FormatArgs, switch},
    cluster::{Cluster, OPERATOR},
    failure::{Exit, Failure},
    output,
};

/// Shown below the help.
pub(crate) const EXAMPLES: &str = "Examples:
  # this program, the operator and the sidecars of the cluster
  $ fetchr version
  # without asking a cluster
  $ fetchr version --client -o json";

/// The version of this program.
pub(crate) const THIS_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The flags.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this program; ask no cluster
    #[arg(long, env = "FETCHR_CLIENT", value_parser = switch())]
    client: bool,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    client: &'static str,
    /// Version of the resources that this program reads.
    api_version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    operator: Option<String>,
    /// Pods by the version of their sidecar.
    #[serde(skip_serializing_if = "Option::is_none")]
    sidecars: Option<BTreeMap<String, usize>>,
}

/// Asks and prints.
pub(crate) async fn execute(args: Args) -> Result<Exit, Failure> {
    let mut versions = Versions {
        client: THIS_VERSION,
        api_version: format!("{}/{}", crds::GROUP, crds::VERSION),
        operator: None,
        sidecars: None,
    };
    let asked = if args.client { Ok(()) } else { ask(&args.cluster, &mut versions).await };
    output::print(args.format.output, &versions, |_| render(&versions))?;
    // What is known without the cluster was printed all the same.
    asked.map(|()| Exit::Ok)
}

async fn ask(args: &ClusterArgs, versions: &mut Versions) -> Result<(), Failure> {
    let cluster = Cluster::new(args).await?;
    let namespace = cluster.operator_namespace().await?;
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), &namespace);
    let deployment = deployments.get_opt(OPERATOR).await.map_err(|e| cluster.failure("Deployment of the operator", &e))?;
    let deployment = deployment.ok_or_else(|| {
        Failure::new(format!("there is no operator in the namespace {namespace}"))
            .at(&cluster.url)
            .hint("install it, or give --operator-namespace; `fetchr check` looks closer")
    })?;
    versions.operator = Some(of_deployment(&deployment).unwrap_or_else(|| "unknown".to_owned()));
    let injected = ListParams::default().labels(&format!("{}=true", stamp::INJECTED));
    let pods = Api::<Pod>::all(cluster.client.clone()).list_metadata(&injected).await;
    let pods = pods.map_err(|e| cluster.failure("pods with a sidecar", &e))?;
    let mut counts = BTreeMap::new();
    for pod in pods.items {
        *counts.entry(of_sidecar(pod.annotations())).or_default() += 1;
    }
    versions.sidecars = Some(counts);
    Ok(())
}

fn render(versions: &Versions) -> String {
    let mut text = format!("client    {}\nresources {}\n", versions.client, versions.api_version);
    if let Some(operator) = &versions.operator {
        text.push_str(&format!("operator  {operator}\n"));
    }
    if let Some(sidecars) = &versions.sidecars {
        let counts: Vec<String> = sidecars.iter().map(|(version, pods)| format!("{version} ({pods} pods)")).collect();
        text.push_str(&format!("sidecars  {}\n", if counts.is_empty() { "none".to_owned() } else { counts.join(", ") }));
    }
    text
}

/// The version that the Deployment's label says.
pub(crate) fn of_deployment(deployment: &Deployment) -> Option<String> {
    deployment.labels().get("app.kubernetes.io/version").map(|version| version.trim_start_matches('v').to_owned())
}

/// The version that admission stamped on a pod.
fn of_sidecar(annotations: &BTreeMap<String, String>) -> String {
    let stamp = annotations.get(stamp::STATUS).and_then(|stamp| serde_json::from_str::<Stamp>(stamp).ok());
    stamp.map(|stamp| stamp.version).filter(|version| !version.is_empty()).unwrap_or_else(|| "unknown".to_owned())
}

/// The first two numbers of a version such as `v1.33.4+k3s1`.
pub(crate) fn minor(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.trim_start_matches('v').split('.');
    let major = parts.next()?.parse().ok()?;
    let digits: String = parts.next()?.chars().take_while(char::is_ascii_digit).collect();
    Some((major, digits.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minor_version_is_read_from_every_spelling() {
        assert_eq!(minor("v1.33.4"), Some((1, 33)));
        assert_eq!(minor("1.34+"), Some((1, 34)));
        assert_eq!(minor("0.1.0"), Some((0, 1)));
        assert_eq!(minor("latest"), None);
    }
}
