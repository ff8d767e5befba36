//! `fetchr inject`: workloads with the sidecar in their pod template, by the code that the webhook runs.

mod manifests;
mod settings;

use std::path::PathBuf;

use crds::plan::{Choice, PodFacts, choose_proxy};
use k8s_openapi::api::core::v1::Pod;
use operator::{
    inject::{Ask, Decision, InjectContext, Reason, Workload, graft, inject},
    stamp,
};
use serde_json::{Value, json};

use self::{manifests::Template, settings::Settings};
use crate::{
    args::{ClusterArgs, FileArgs},
    command::block_on,
    documents,
    failure::{Exit, Failure},
    output::{self, Color},
};

/// Shown below the help.
pub(crate) const EXAMPLES: &str = "Examples:
  # with image, CA and proxies of the cluster that the kubeconfig names
  $ fetchr inject -f deployment.yaml | kubectl apply -f -
  # without asking a cluster
  $ fetchr inject -f deployment.yaml --proxy-file fetchrproxy.yaml --image registry.example/fetchr-sidecar:0.1.0 \\
      --ca-file ca.pem --plan-key \"$PLAN_KEY\"

Pods, Deployments, StatefulSets, DaemonSets, ReplicaSets, Jobs, CronJobs and Lists of them are injected, unless they carry
fetchr.sh/inject: disabled; all other documents pass unchanged. What was injected before comes out as the settings of now say.";

/// The flags.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    files: FileArgs,
    /// Documents of the FetchrProxies to choose from, instead of the cluster's
    #[arg(long, env = "FETCHR_PROXY_FILE", value_name = "FILE|DIR")]
    proxy_file: Option<PathBuf>,
    /// Image of the sidecar, instead of the cluster's
    #[arg(long, env = "FETCHR_IMAGE", value_name = "IMAGE")]
    image: Option<String>,
    /// When the kubelet pulls that image: Always, IfNotPresent or Never
    #[arg(long, env = "FETCHR_IMAGE_PULL_POLICY", value_name = "POLICY", default_value = "IfNotPresent",
          value_parser = ["Always", "IfNotPresent", "Never"], hide_possible_values = true)]
    image_pull_policy: String,
    /// PEM bundle of the operator's CA, instead of the cluster's
    #[arg(long, env = "FETCHR_CA_FILE", value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Ed25519 key (base64) that may sign cold-start plans, instead of the cluster's; may be repeated
    #[arg(long = "plan-key", env = "FETCHR_PLAN_KEY", value_delimiter = ',', value_name = "KEY")]
    plan_keys: Vec<String>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Reads, asks for what is missing, injects, and prints when all went well.
pub(crate) fn execute(args: &Args, color: Color) -> Result<Exit, Failure> {
    if args.files.files.is_empty() {
        return Err(documents::none_given());
    }
    let mut manifests = manifests::read(&args.files)?;
    let namespace = args.cluster.namespace.as_deref().unwrap_or("default");
    let namespaces = manifests.iter().flat_map(|manifest| manifest.namespaces(namespace)).collect();
    let settings = block_on(settings::gather(args, namespaces, color.stderr()))?;
    let mut notes = String::new();
    for manifest in &mut manifests {
        for mut template in manifest.templates(namespace) {
            notes.push_str(&inject_template(&mut template, &settings)?);
        }
    }
    output::write(&manifests::print(&manifests)?)?;
    eprint!("{notes}");
    Ok(Exit::Ok)
}

/// Injects one pod template in place. Returns what its author should know.
fn inject_template(template: &mut Template<'_>, settings: &Settings) -> Result<String, Failure> {
    let failed = |what: String| Failure::new(what).at(template.place());
    let mut raw = template.pod();
    opt_in(&mut raw);
    let pod: Pod = serde_json::from_value(raw.clone()).map_err(|e| failed(format!("the pod template can't be read: {e}")))?;
    let labels = settings.namespace_labels(&template.namespace);
    let facts = PodFacts {
        namespace: &template.namespace,
        labels: &pod.metadata.labels.clone().unwrap_or_default(),
        annotation: Ask::of(&pod, labels).picked_proxy(&pod),
    };
    let proxies: Vec<_> = settings.proxies.iter().collect();
    let proxy = match choose_proxy(&facts, &settings.operator_namespace, &proxies) {
        Choice::Proxy { proxy, .. } => Some(proxy),
        Choice::Missing => {
            let name = facts.annotation.unwrap_or_default().to_owned();
            return Err(failed(Reason::ProxyMissing { name }.to_string()));
        }
        Choice::None => None,
    };
    let workload = Workload::new(&template.kind, &template.name);
    let context = InjectContext {
        namespace_labels: labels,
        proxy,
        workload: &workload,
        injector: &settings.injector,
        ca_bundle: &settings.ca_bundle,
        plan_keys: &settings.plan_keys,
    };
    match inject(&pod, &context) {
        Decision::Patch { pod: after, warnings } => {
            template.replace(&graft(&raw, &json!(pod), &json!(*after)));
            Ok(warnings.iter().map(|warning| format!("warning: {}: {warning}\n", template.place())).collect())
        }
        Decision::Refuse { reason } | Decision::Skip { reason: reason @ Reason::NoProxy, .. } => {
            Err(failed(reason.to_string()).hint(settings.origin()))
        }
        Decision::Skip { reason, .. } => Ok(format!("warning: {}: left without a sidecar: {reason}\n", template.place())),
    }
}

/// Whoever runs this command asks for a sidecar, unless the template says no.
fn opt_in(pod: &mut Value) {
    let annotations = &mut pod["metadata"]["annotations"];
    if annotations[stamp::INJECT].is_null() {
        annotations[stamp::INJECT] = "enabled".into();
    }
}
