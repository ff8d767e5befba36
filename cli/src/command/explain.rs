//! `fetchr explain`: what policies do to a request, and why the others do nothing; by the code that decides in the sidecar.

mod table;

use std::{collections::BTreeMap, net::IpAddr};

use clap::ValueEnum;
use crds::{
    document::Documents,
    plan::{Compiled, Identity, Inputs, ObjectRef, Plan, compile},
    policy::Direction,
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
    /// The URL, such as http://shop.example/products?page=1; a path alone is asked of localhost
    url: String,
    /// A header field as `name: value`; may be repeated
    #[arg(short = 'H', long = "header", env = "FETCHR_HEADER", value_delimiter = '\n', value_name = "NAME: VALUE", value_parser = field)]
    headers: Vec<(String, String)>,
    /// Whether the request comes to the application or from it
    #[arg(
        long,
        env = "FETCHR_DIRECTION",
        value_enum,
        default_value = "inbound",
        hide_possible_values = true,
        value_name = "inbound|outbound"
    )]
    direction: Way,
    /// Address of the client
    #[arg(long, env = "FETCHR_CLIENT_IP", value_name = "IP", default_value = "127.0.0.1")]
    client_ip: IpAddr,
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

/// Which way a request goes.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Way {
    Inbound,
    Outbound,
}

impl From<Way> for Direction {
    fn from(way: Way) -> Self {
        match way {
            Way::Inbound => Self::Inbound,
            Way::Outbound => Self::Outbound,
        }
    }
}

/// Reads a header field.
pub(crate) fn field(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("a header field is written as `name: value`")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// Explains by files or by a pod.
pub(crate) fn execute(args: &Args, color: Color) -> Result<Exit, Failure> {
    let request = request(args);
    let explanation = match &args.pod {
        Some(pod) => block_on(by_pod(args, pod, &request))?,
        None => by_files(args, &request, color)?,
    };
    output::print(args.format.output, &explanation, |wide| table::render(&explanation, wide, color.stdout()))?;
    Ok(Exit::Ok)
}

fn request(args: &Args) -> ExplainRequest {
    let headers = merged(&args.headers);
    let url = if args.url.starts_with('/') { format!("http://localhost{}", args.url) } else { args.url.clone() };
    let method = args.method.to_ascii_uppercase();
    ExplainRequest { direction: args.direction.into(), method, headers, client: args.client_ip, ..ExplainRequest::to(url) }
}

/// Fields that come twice are one list, as HTTP reads them.
pub(crate) fn merged(fields: &[(String, String)]) -> BTreeMap<String, String> {
    let mut headers: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in fields {
        let all = headers.entry(name.to_ascii_lowercase()).and_modify(|all| *all = format!("{all}, {value}"));
        all.or_insert_with(|| value.clone());
    }
    headers
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
    let identity = Identity { workload_kind, workload_name, services: args.services.clone(), live_pods: 1 };
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
