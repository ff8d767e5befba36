//! What sidecars are injected with: from flags, and what is missing from the cluster. Nothing is ever made up.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use crds::FetchrProxy;
use k8s_openapi::api::core::v1::{Container, Namespace};
use kube::{Api, ResourceExt, api::ListParams};
use operator::{
    inject::{Injector, PROXY_CONTAINER},
    stamp::{self, Stamp},
};
use wire::env;

use super::Args;
use crate::{args::FileArgs, cluster::Cluster, command::version::THIS_VERSION, documents, failure::Failure, output::Paint};

/// Where the operator lives by custom.
const CUSTOMARY_NAMESPACE: &str = "fetchr-system";

/// All that decides how a sidecar is injected.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) injector: Injector,
    pub(super) ca_bundle: String,
    pub(super) plan_keys: Vec<String>,
    pub(super) proxies: Vec<FetchrProxy>,
    pub(super) operator_namespace: String,
    labels: BTreeMap<String, BTreeMap<String, String>>,
    origin: String,
}

impl Settings {
    /// Labels of a namespace; none if there is no such namespace yet, or no cluster was asked.
    pub(super) fn namespace_labels(&self, namespace: &str) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.labels.get(namespace).unwrap_or(&NONE)
    }

    /// Where the proxies came from, for messages.
    pub(super) fn origin(&self) -> String {
        format!("{} FetchrProxies of {} were looked at", self.proxies.len(), self.origin)
    }
}

/// What a trial pod shows of the installation.
struct Seen {
    injector: Injector,
    ca_bundle: String,
    plan_keys: Vec<String>,
}

/// Takes what the flags give, and asks the cluster for the rest.
pub(super) async fn gather(args: &Args, namespaces: BTreeSet<String>, paint: Paint) -> Result<Settings, Failure> {
    let proxies =
        args.proxy_file.as_ref().map(|file| documents::read_valid(&FileArgs { files: vec![file.clone()] }, paint)).transpose()?;
    let ca_bundle = args.ca_file.as_ref().map(|file| {
        fs::read_to_string(file).map_err(|e| Failure::new(format!("the CA bundle can't be read: {e}")).at(file.display()))
    });
    let ca_bundle = ca_bundle.transpose()?;
    let missing = missing(args);
    if let (true, Some(image), Some(ca_bundle), Some(documents)) =
        (missing.is_empty(), args.image.clone(), ca_bundle.clone(), &proxies)
    {
        let operator_namespace = args.cluster.operator_namespace.clone().unwrap_or_else(|| CUSTOMARY_NAMESPACE.to_owned());
        let injector = Injector {
            image,
            image_pull_policy: args.image_pull_policy.clone(),
            operator_address: format!("fetchr-streams.{operator_namespace}.svc:4631"),
            version: THIS_VERSION.to_owned(),
        };
        return Ok(Settings {
            injector,
            ca_bundle,
            plan_keys: args.plan_keys.clone(),
            proxies: documents.proxies.clone(),
            operator_namespace,
            labels: BTreeMap::new(),
            origin: "--proxy-file".to_owned(),
        });
    }
    from_cluster(args, namespaces, ca_bundle, proxies.map(|documents| documents.proxies))
        .await
        .map_err(|failure| failure.hint(format!("without a cluster, these are needed as well: {}", missing.join(", "))))
}

fn missing(args: &Args) -> Vec<&'static str> {
    let wanted = [
        ("--image", args.image.is_none()),
        ("--ca-file", args.ca_file.is_none()),
        ("--plan-key", args.plan_keys.is_empty()),
        ("--proxy-file", args.proxy_file.is_none()),
    ];
    wanted.into_iter().filter(|(_, missing)| *missing).map(|(flag, _)| flag).collect()
}

async fn from_cluster(
    args: &Args,
    namespaces: BTreeSet<String>,
    ca_bundle: Option<String>,
    proxies: Option<Vec<FetchrProxy>>,
) -> Result<Settings, Failure> {
    let cluster = Cluster::new(&args.cluster).await?;
    let operator_namespace = cluster.operator_namespace().await?;
    let mut seen = look(&cluster, namespaces.first().unwrap_or(&cluster.namespace)).await?;
    if let Some(image) = &args.image {
        seen.injector.image.clone_from(image);
        seen.injector.image_pull_policy.clone_from(&args.image_pull_policy);
    }
    let origin = if proxies.is_some() { "--proxy-file".to_owned() } else { cluster.url.clone() };
    let proxies = match proxies {
        Some(proxies) => proxies,
        None => list_proxies(&cluster, &namespaces, &operator_namespace).await?,
    };
    Ok(Settings {
        injector: seen.injector,
        ca_bundle: ca_bundle.unwrap_or(seen.ca_bundle),
        plan_keys: if args.plan_keys.is_empty() { seen.plan_keys } else { args.plan_keys.clone() },
        proxies,
        operator_namespace,
        labels: namespace_labels(&cluster, namespaces).await?,
        origin,
    })
}

/// Lets the webhook inject a pod that is never stored, and reads image, CA and keys off it: no right on Secrets is needed.
async fn look(cluster: &Cluster, namespace: &str) -> Result<Seen, Failure> {
    let pod = cluster
        .trial_pod(namespace)
        .await
        .map_err(|e| cluster.failure("a trial pod, to see what sidecars are injected with", &e))?;
    let sidecar = pod
        .spec
        .iter()
        .flat_map(|spec| spec.init_containers.iter().flatten())
        .find(|container| container.name == PROXY_CONTAINER);
    let stamp: Stamp =
        pod.annotations().get(stamp::STATUS).and_then(|stamp| serde_json::from_str(stamp).ok()).unwrap_or_default();
    let Some(sidecar) = sidecar else {
        let why = stamp.skipped.map_or_else(|| "the webhook was not called".to_owned(), |skipped| skipped.message);
        return Err(Failure::new(format!("the operator gives a trial pod in {namespace} no sidecar: {why}")).at(&cluster.url));
    };
    let value = |name| {
        value_of(sidecar, name).ok_or_else(|| Failure::new(format!("the injected sidecar has no {name}")).at(&cluster.url))
    };
    Ok(Seen {
        injector: Injector {
            image: sidecar.image.clone().unwrap_or_default(),
            image_pull_policy: sidecar.image_pull_policy.clone().unwrap_or_default(),
            operator_address: value(env::OPERATOR)?,
            version: stamp.version,
        },
        ca_bundle: value(env::CA_BUNDLE)?,
        plan_keys: value(env::PLAN_KEYS)?.split(',').map(str::to_owned).collect(),
    })
}

fn value_of(container: &Container, name: &str) -> Option<String> {
    container.env.iter().flatten().find(|variable| variable.name == name)?.value.clone()
}

async fn list_proxies(cluster: &Cluster, namespaces: &BTreeSet<String>, operator: &str) -> Result<Vec<FetchrProxy>, Failure> {
    let mut proxies = Vec::new();
    for namespace in namespaces.iter().map(String::as_str).chain((!namespaces.contains(operator)).then_some(operator)) {
        let api: Api<FetchrProxy> = Api::namespaced(cluster.client.clone(), namespace);
        let found = api.list(&ListParams::default()).await;
        proxies.extend(found.map_err(|e| cluster.failure(&format!("FetchrProxies of {namespace}"), &e))?.items);
    }
    Ok(proxies)
}

async fn namespace_labels(
    cluster: &Cluster,
    namespaces: BTreeSet<String>,
) -> Result<BTreeMap<String, BTreeMap<String, String>>, Failure> {
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    let mut labels = BTreeMap::new();
    for namespace in namespaces {
        let found = api.get_opt(&namespace).await.map_err(|e| cluster.failure(&format!("Namespace {namespace}"), &e))?;
        labels.insert(namespace, found.map(|found| found.labels().clone()).unwrap_or_default());
    }
    Ok(labels)
}
