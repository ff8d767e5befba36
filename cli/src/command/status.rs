//! `fetchr status`: proxies, and the pods that have a sidecar of theirs.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use crds::{FetchrProxy, conditions, proxy::PodCounts};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{ListParams, PartialObjectMeta},
};
use operator::stamp::{self, Stamp};
use serde::Serialize;

use crate::{
    args::{ClusterArgs, FormatArgs, switch},
    cluster::Cluster,
    failure::{Exit, Failure},
    output::{self, Color, Paint, Table, age, or_dash},
    sidecars::{self, Sidecar, SidecarStatus},
};

/// Shown below the help.
pub(crate) const EXAMPLES: &str = "Examples:
  # proxies and pods of a namespace
  $ fetchr status -n shop
  # of the whole cluster, with workloads and what went wrong
  $ fetchr status -A -o wide

The exit code is 0 whether or not proxies are ready; `fetchr check` judges.";

/// The flags.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// All namespaces
    #[arg(short = 'A', long, env = "FETCHR_ALL_NAMESPACES", value_parser = switch())]
    all_namespaces: bool,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct Report {
    proxies: Vec<Proxy>,
    pods: Vec<InjectedPod>,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Proxy {
    namespace: String,
    name: String,
    mode: String,
    pods: PodCounts,
    /// Status of the condition `Ready`: True, False or Unknown.
    ready: String,
    reason: String,
    message: String,
    /// Seconds since it was created.
    #[serde(skip_serializing_if = "Option::is_none")]
    age_seconds: Option<u64>,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct InjectedPod {
    namespace: String,
    name: String,
    proxy: String,
    workload: String,
    /// Version of the sidecar: what it says itself, or what admission stamped on the pod.
    version: String,
    /// What the sidecar says through the operator; absent if it has no stream, or nobody could be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    sidecar: Option<Live>,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Live {
    in_sync: bool,
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    nack: Option<String>,
}

impl From<SidecarStatus> for Live {
    fn from(status: SidecarStatus) -> Self {
        Self { in_sync: status.in_sync, ready: status.ready, nack: status.nack }
    }
}

/// Asks and prints.
pub(crate) async fn execute(args: Args, color: Color) -> Result<Exit, Failure> {
    let cluster = Cluster::new(&args.cluster).await?;
    let namespace = (!args.all_namespaces).then_some(cluster.namespace.as_str());
    let proxies: Api<FetchrProxy> = scoped(&cluster, namespace);
    let pods: Api<Pod> = scoped(&cluster, namespace);
    let injected = ListParams::default().labels(&format!("{}=true", stamp::INJECTED));
    let everything = ListParams::default();
    let (proxies, pods, live) =
        futures::join!(proxies.list(&everything), pods.list_metadata(&injected), sidecars::list(&cluster.client, namespace));
    let proxies = proxies.map_err(|e| not_installed(&cluster, &e))?.items;
    let pods = pods.map_err(|e| cluster.failure("pods", &e))?.items;
    let note = live
        .as_ref()
        .err()
        .map(|e| cluster.failure("what sidecars say is not known", e).render(color.stderr()).replacen("error:", "warning:", 1));
    let report = report(&proxies, &pods, live.unwrap_or_default(), SystemTime::now());
    output::print(args.format.output, &report, |wide| render(&report, namespace, wide, color.stdout()))?;
    if let Some(note) = note {
        eprint!("{note}");
    }
    Ok(Exit::Ok)
}

fn scoped<K>(cluster: &Cluster, namespace: Option<&str>) -> Api<K>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(cluster.client.clone(), namespace),
        None => Api::all(cluster.client.clone()),
    }
}

fn not_installed(cluster: &Cluster, error: &kube::Error) -> Failure {
    match error {
        kube::Error::Api(status) if status.code == 404 => Failure::new("this cluster has no FetchrProxies")
            .at(&cluster.url)
            .hint("install fetchr first; `fetchr check` looks closer"),
        other => cluster.failure("FetchrProxies", other),
    }
}

fn report(proxies: &[FetchrProxy], pods: &[PartialObjectMeta<Pod>], live: Vec<Sidecar>, now: SystemTime) -> Report {
    let key = |namespace: Option<String>, name: String| (namespace.unwrap_or_default(), name);
    let mut live: BTreeMap<_, _> = live
        .into_iter()
        .map(|sidecar| (key(sidecar.metadata.namespace.clone(), sidecar.metadata.name.clone().unwrap_or_default()), sidecar))
        .collect();
    let mut report = Report {
        proxies: proxies.iter().map(|proxy| Proxy::new(proxy, now)).collect(),
        pods: pods.iter().map(|pod| InjectedPod::new(pod, live.remove(&key(pod.namespace(), pod.name_any())))).collect(),
    };
    report.proxies.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    report.pods.sort_by(|a, b| (&a.namespace, &a.proxy, &a.name).cmp(&(&b.namespace, &b.proxy, &b.name)));
    report
}

impl Proxy {
    fn new(proxy: &FetchrProxy, now: SystemTime) -> Self {
        let status = proxy.status.as_ref();
        let ready = status.and_then(|status| status.conditions.iter().find(|condition| condition.type_ == conditions::READY));
        Self {
            namespace: proxy.namespace().unwrap_or_default(),
            name: proxy.name_any(),
            mode: format!("{:?}", proxy.spec.interception.mode),
            pods: status.map(|status| status.pods).unwrap_or_default(),
            ready: ready.map_or_else(|| "Unknown".to_owned(), |ready| ready.status.clone()),
            reason: ready.map(|ready| ready.reason.clone()).unwrap_or_default(),
            message: ready.map(|ready| ready.message.clone()).unwrap_or_default(),
            age_seconds: proxy.creation_timestamp().and_then(|created| {
                let created = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(created.0.as_second()).ok()?);
                now.duration_since(created).ok().map(|age| age.as_secs())
            }),
        }
    }
}

impl InjectedPod {
    fn new(pod: &PartialObjectMeta<Pod>, sidecar: Option<Sidecar>) -> Self {
        let stamped: Stamp =
            pod.annotations().get(stamp::STATUS).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let version = sidecar.as_ref().map(|sidecar| sidecar.status.version.clone()).filter(|version| !version.is_empty());
        Self {
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            proxy: stamped.proxy.unwrap_or_default(),
            workload: stamped.workload.unwrap_or_default(),
            version: version.unwrap_or(stamped.version),
            sidecar: sidecar.map(|sidecar| Live::from(sidecar.status)),
        }
    }
}

fn render(report: &Report, namespace: Option<&str>, wide: bool, paint: Paint) -> String {
    let place = namespace.map_or_else(|| "this cluster".to_owned(), |namespace| format!("namespace {namespace}"));
    if report.proxies.is_empty() && report.pods.is_empty() {
        return format!("No proxies and no injected pods in {place}.\n");
    }
    let mut text = paint.strong("Proxies") + "\n";
    match report.proxies.is_empty() {
        true => text.push_str(&format!("None in {place}.\n")),
        false => text.push_str(&proxies_table(&report.proxies, wide).to_string()),
    }
    text.push_str(&format!("\n{}\n", paint.strong("Pods")));
    match report.pods.is_empty() {
        true => text.push_str(&format!("None with a sidecar in {place}.\n")),
        false => text.push_str(&pods_table(&report.pods, wide).to_string()),
    }
    text
}

fn proxies_table(proxies: &[Proxy], wide: bool) -> Table {
    let narrow = ["NAMESPACE", "NAME", "MODE", "READY", "REASON", "MATCHED", "INJECTED", "OUTDATED", "PROGRAMMED", "AGE"];
    let mut header = narrow.to_vec();
    if wide {
        header.push("MESSAGE");
    }
    let mut table = Table::new(&header);
    for proxy in proxies {
        let counts = [proxy.pods.matched, proxy.pods.injected, proxy.pods.outdated, proxy.pods.programmed];
        let mut row =
            vec![proxy.namespace.clone(), proxy.name.clone(), proxy.mode.clone(), proxy.ready.clone(), or_dash(&proxy.reason)];
        row.extend(counts.map(|count| count.to_string()));
        row.push(proxy.age_seconds.map_or_else(|| "-".to_owned(), age));
        if wide {
            row.push(or_dash(&proxy.message));
        }
        table.row(row);
    }
    table
}

fn pods_table(pods: &[InjectedPod], wide: bool) -> Table {
    let mut header = vec!["NAMESPACE", "POD", "PROXY", "VERSION", "PLAN", "READY"];
    if wide {
        header.extend(["WORKLOAD", "REFUSED"]);
    }
    let mut table = Table::new(&header);
    for pod in pods {
        let live = pod.sidecar.as_ref();
        let plan = live.map_or("unknown", |live| if live.in_sync { "in sync" } else { "behind" });
        let ready = live.map_or("unknown", |live| if live.ready { "yes" } else { "no" });
        let mut row = vec![
            pod.namespace.clone(),
            pod.name.clone(),
            or_dash(&pod.proxy),
            or_dash(&pod.version),
            plan.to_owned(),
            ready.to_owned(),
        ];
        if wide {
            row.push(or_dash(&pod.workload));
            row.push(or_dash(live.and_then(|live| live.nack.clone()).unwrap_or_default()));
        }
        table.row(row);
    }
    table
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn proxy() -> FetchrProxy {
        serde_json::from_value(json!({
            "apiVersion": "fetchr.sh/v1alpha1", "kind": "FetchrProxy",
            "metadata": {"name": "web", "namespace": "shop", "creationTimestamp": "1970-01-01T00:00:00Z"},
            "spec": {},
            "status": {
                "pods": {"matched": 3, "injected": 2, "outdated": 1, "programmed": 1},
                "conditions": [{"type": "Ready", "status": "False", "reason": "PartiallyInjected", "message": "2/3",
                                "lastTransitionTime": "1970-01-01T00:00:00Z"}],
            },
        }))
        .expect("the document is a FetchrProxy")
    }

    fn pod(name: &str) -> PartialObjectMeta<Pod> {
        let stamp = r#"{"version": "0.1.0", "proxy": "shop/web", "workload": "Deployment/web"}"#;
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop", "annotations": {"fetchr.sh/status": stamp}},
        }))
        .expect("the document is a Pod")
    }

    fn sidecar(name: &str) -> Sidecar {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "shop"}, "status": {"workload": "Deployment/web", "version": "0.1.1", "inSync": true, "ready": true},
        }))
        .expect("the document is a Sidecar")
    }

    #[test]
    fn proxies_and_pods_are_shown_with_what_their_sidecars_say() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(300);
        let report = report(&[proxy()], &[pod("web-1"), pod("web-0")], vec![sidecar("web-0")], now);
        insta::assert_snapshot!(render(&report, Some("shop"), true, Paint::off()), @r"
        Proxies
        NAMESPACE   NAME   MODE   READY   REASON              MATCHED   INJECTED   OUTDATED   PROGRAMMED   AGE   MESSAGE
        shop        web    Init   False   PartiallyInjected   3         2          1          1            5m    2/3

        Pods
        NAMESPACE   POD     PROXY      VERSION   PLAN      READY     WORKLOAD         REFUSED
        shop        web-0   shop/web   0.1.1     in sync   yes       Deployment/web   -
        shop        web-1   shop/web   0.1.0     unknown   unknown   Deployment/web   -
        ");
    }

    #[test]
    fn empty_namespace_is_said_in_a_sentence() {
        let text = render(&Report::default(), Some("shop"), false, Paint::off());
        assert_eq!(text, "No proxies and no injected pods in namespace shop.\n");
    }
}
