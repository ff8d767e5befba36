//! `fetchr cache purge`: takes answers out before their time, and says who has done so.

use std::time::Duration;

use serde_json::json;
use sidecar::PurgeAnswer;

use super::{
    admin::{self, Target},
    merged::purge::Purges,
    place::Place,
    pods::{self, Failed, Of, PodName, Unanswered, Workload},
};
use crate::{
    args::{FormatArgs, StateArgs, switch},
    cluster::{Cluster, within},
    command::block_on,
    failure::{Exit, Failure},
    output::{self, Color},
    sidecars,
};

/// Shown below the help.
pub(super) const EXAMPLES: &str = "Examples:
  # one URL with all its variants
  $ fetchr cache purge --url http://localhost/products/42?page=1
  # answers that the origin gave a tag, as stale ones
  $ fetchr cache purge --tag news --soft
  # all that a policy had stored
  $ fetchr cache purge --policy shop/catalogue -o json
  # in all pods of a workload
  $ fetchr cache purge --tag news --workload deployment/web -n shop

It ends with 0 when no later request gets what went, also not from a fetch that was under way. Where the pods of a workload share their
purges through Redis one of them is asked, and else each.";

/// More than the longest lease that a purge waits for.
const PATIENCE: Duration = Duration::from_secs(3700);
/// In a cluster no request takes longer.
const PATIENCE_OF_CLUSTERS: Duration = Duration::from_secs(60);

/// The flags.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true)))]
pub(super) struct Args {
    /// One URL with all its variants
    #[arg(long, env = "FETCHR_URL", value_name = "URL", group = "what")]
    url: Option<String>,
    /// All URLs that begin so
    #[arg(long, env = "FETCHR_PREFIX", value_name = "URL", group = "what")]
    prefix: Option<String>,
    /// Answers that the origin gave this tag
    #[arg(long, env = "FETCHR_TAG", value_name = "TAG", group = "what")]
    tag: Option<String>,
    /// Answers that this policy had stored
    #[arg(long, env = "FETCHR_POLICY", value_name = "NAMESPACE/NAME", group = "what")]
    policy: Option<String>,
    /// Everything
    #[arg(long, env = "FETCHR_ALL", value_parser = switch(), group = "what")]
    all: bool,
    /// They are stale instead of gone: the origin is asked whether they are right still
    #[arg(long, env = "FETCHR_SOFT", value_parser = switch())]
    soft: bool,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    place: Place,
}

/// Asks for the purge.
pub(super) fn execute(args: &Args, color: Color) -> Result<Exit, Failure> {
    let Args { url, prefix, tag, policy, all, soft, .. } = args;
    let request = json!({"url": url, "prefix": prefix, "tag": tag, "policy": policy, "all": all, "soft": soft}).to_string();
    if let Some(workload) = args.place.workload()? {
        return block_on(of_pods(args, &workload, &request, color));
    }
    let answer = match args.place.here() {
        Some(here) => here_alone(here, &request)?,
        None => block_on(of_pod(args, &request))?,
    };
    output::print(args.format.output, &answer, |_| {
        let PurgeAnswer { complete, acknowledged, lease_ran_out, pending, took_micros, .. } = &answer;
        let paint = color.stdout();
        let state = if *complete { paint.good("purged") } else { paint.bad("not complete") };
        let (acknowledged, cut_off, pending) = (acknowledged.len(), lease_ran_out.len(), pending.len());
        format!("{state}: {acknowledged} acknowledged, {cut_off} cut off, {pending} pending, {took_micros} us\n")
    })?;
    Ok(if answer.complete { Exit::Ok } else { Exit::Failed })
}

fn here_alone(here: &StateArgs, request: &str) -> Result<PurgeAnswer, Failure> {
    let answer = admin::ask(here, "POST", &Target::new("/cache/purge"), request, PATIENCE)?;
    serde_json::from_str(&answer).map_err(|e| Failure::new(format!("the proxy's answer is none: {e}")))
}

async fn of_pod(args: &Args, request: &str) -> Result<PurgeAnswer, Failure> {
    let cluster = args.place.patient_cluster(PATIENCE_OF_CLUSTERS).await?;
    let pod = args.place.pod(&cluster).ok_or_else(|| Failure::usage("no pod is named"))?;
    order(&cluster, &pod, request).await
}

/// Asks one after another until it is known whether they share their purges, and then as many as it takes.
async fn of_pods(args: &Args, workload: &Workload<'_>, request: &str, color: Color) -> Result<Exit, Failure> {
    let cluster = args.place.patient_cluster(PATIENCE_OF_CLUSTERS).await?;
    let pods = pods::of_workload(&cluster, workload).await?;
    let mut purges = Purges::default();
    loop {
        let next = purges.next(&pods);
        if next.is_empty() {
            break;
        }
        let answers = &mut purges.answers;
        let take = |pod, what| answers.push(Of { pod, what });
        let mut failed = pods::ask(&next, async |pod| order(&cluster, pod, request).await, take).await;
        if let Some(wrong) = failed.iter().position(Failed::is_usage) {
            // The next one would say the same.
            return Err(failed.swap_remove(wrong).failure);
        }
        purges.failed.extend(failed);
    }
    if purges.answers.is_empty() {
        Unanswered::of(pods.len(), purges.failed, color)?;
        return Ok(Exit::Failed);
    }
    let purged = purges.done();
    output::print(args.format.output, &purged, |_| purged.render(color.stdout()))?;
    if purged.complete {
        return Ok(Exit::Ok);
    }
    let lacking = purged.lacking();
    let why = Failure::new("the purge is not complete").at(lacking.join("\n")).hint("purge again, until it is");
    eprint!("{}", why.render(color.stderr()));
    Ok(Exit::Failed)
}

async fn order(cluster: &Cluster, pod: &PodName, request: &str) -> Result<PurgeAnswer, Failure> {
    let what = format!("sidecar of {pod}");
    let answer = sidecars::order(&cluster.client, &pod.namespace, &pod.pod, "purge", request.as_bytes().to_vec());
    let answer = within(PATIENCE_OF_CLUSTERS, &what, answer).await?;
    answer.map_err(|e| sidecars::failure(cluster, &what, "create sidecars/purge", &e))
}
