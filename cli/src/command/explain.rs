//! `fetchr explain`: what policies do to a request, and why the others do nothing; by the code that decides in the sidecar.

mod table;

use crds::{
    document::Documents,
    plan::{Compiled, Identity, Inputs, ObjectRef, Plan, compile},
};
use sidecar::{
    ask::ExplainRequest,
    route::{Explanation, Routes},
};

use crate::{
    args::{ClusterArgs, FileArgs, FormatArgs, workload},
    cluster::Cluster,
    command::block_on,
    documents,
    failure::{Exit, Failure},
    output::{self, Color},
    request::RequestArgs,
    sidecars,
};

/// Shown below the help.
pub(crate) const EXAMPLES: &str = "Examples:
  # what do these documents do to a request?
  $ fetchr explain GET http://localhost/api/items -f examples/local/
  # with header fields, for the pods of a workload
  $ fetchr explain POST /cart -H 'x-tier: gold' -f deploy/ --proxy web --workload Deployment/web
  # what does the sidecar of a pod do, with the configuration it has now?
  $ fetchr explain GET http://web.shop/echo --pod web-6c9f-x2x1z -n shop

The exit code is 0 whether or not a section applies.";

/// The flags.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The method, such as GET
    method: String,
    #[command(flatten)]
    request: RequestArgs,
    #[command(flatten)]
    files: FileArgs,
    /// The FetchrProxy, as NAME or NAMESPACE/NAME, if the documents have several
    #[arg(long, env = "FETCHR_PROXY", value_name = "NAME", conflicts_with = "pod")]
    proxy: Option<String>,
    /// The workload of the imagined pod, such as Deployment/web
    #[arg(long, env = "FETCHR_WORKLOAD", value_name = "KIND/NAME", value_parser = workload, conflicts_with = "pod")]
    workload: Option<(String, String)>,
    /// A Service in front of the imagined pod; may be repeated
    #[arg(long = "service", env = "FETCHR_SERVICE", value_delimiter = ',', value_name = "NAME", conflicts_with = "pod")]
    services: Vec<String>,
    /// Ask the sidecar of this pod, through the operator, instead of files
    #[arg(long, env = "FETCHR_POD", value_name = "NAME", conflicts_with = "files")]
    pod: Option<String>,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Explains by files or by a pod.
pub(crate) fn execute(args: &Args, color: Color) -> Result<Exit, Failure> {
    let request = args.request.with(&args.method);
    let explanation = match &args.pod {
        Some(pod) => block_on(by_pod(args, pod, &request))?,
        None => by_files(args, &request, color)?,
    };
    output::print(args.format.output, &explanation, |wide| table::render(&explanation, wide, color.stdout()))?;
    Ok(Exit::Ok)
}

async fn by_pod(args: &Args, pod: &str, request: &ExplainRequest) -> Result<Explanation, Failure> {
    let cluster = Cluster::new(&args.cluster).await?;
    let body = output::json(request)?.into_bytes();
    let namespace = &cluster.namespace;
    let answer = sidecars::order(&cluster.client, namespace, pod, "explain", body).await;
    answer.map_err(|e| sidecars::failure(&cluster, &format!("sidecar of {namespace}/{pod}"), "create sidecars/explain", &e))
}

fn by_files(args: &Args, request: &ExplainRequest, color: Color) -> Result<Explanation, Failure> {
    let documents = documents::read_valid(&args.files, color.stderr())?;
    let plan = plan(args, &documents)?;
    let (workload_kind, workload_name) = args.workload.clone().unwrap_or_default();
    let identity =
        Identity { workload_kind, workload_name, services: args.services.clone(), live_pods: 1, ..Identity::default() };
    let broken = |e: &dyn std::fmt::Display| Failure::new(e.to_string());
    let routes = Routes::build(&plan, &identity, request.direction).map_err(|e| broken(&e))?;
    request.explain(&routes).map_err(Failure::usage)
}

/// The plan of the proxy that was asked for, or of the only one.
fn plan(args: &Args, documents: &Documents) -> Result<Plan, Failure> {
    let operator_namespace = args.cluster.operator_namespace.as_deref().unwrap_or("fetchr-system");
    let inputs = Inputs { operator_namespace, ..Inputs::of_documents(&documents.proxies, &documents.policies) };
    let Compiled { plans, .. } = compile(&inputs);
    let wanted = |proxy: &ObjectRef| args.proxy.as_ref().is_none_or(|name| *name == proxy.name || *name == proxy.to_string());
    let in_namespace = |namespace: &str| args.cluster.namespace.as_ref().is_none_or(|wanted| wanted == namespace);
    let mut found: Vec<_> = plans.into_iter().filter(|(key, _)| wanted(&key.proxy) && in_namespace(&key.pod_namespace)).collect();
    match found.len() {
        1 => Ok(found.remove(0).1),
        0 => Err(Failure::new(format!(
            "no such FetchrProxy in the documents: {}",
            args.proxy.as_deref().unwrap_or("there is none")
        ))
        .hint(format!("the documents have {}", list(documents.proxies.iter().map(name_of))))),
        _ => Err(Failure::usage("the documents have several FetchrProxies")
            .at(list(found.iter().map(|(key, _)| key.to_string())))
            .hint("choose one by --proxy NAME, and the namespace of the pods by -n")),
    }
}

fn name_of(proxy: &crds::FetchrProxy) -> String {
    let metadata = &proxy.metadata;
    format!("{}/{}", metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}

fn list(names: impl Iterator<Item = String>) -> String {
    let names: Vec<String> = names.collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
