//! The pods of a workload: which they are, and how all of them are asked.

use std::{
    collections::BTreeSet,
    fmt,
    io::{self, IsTerminal as _, Write as _},
};

use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, PartialObjectMeta},
};
use operator::stamp::{self, Stamp};
use serde::Serialize;

use crate::{
    cluster::Cluster,
    failure::{Exit, Failure},
    output::Color,
    sidecars::{self, Sidecar},
};

/// Pods that are asked at a time.
const AT_A_TIME: usize = 16;
/// Failures that are named.
const NAMED: usize = 10;

/// A pod.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub(crate) struct PodName {
    pub(crate) namespace: String,
    pub(crate) pod: String,
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.pod)
    }
}

/// The name of a pod among these: with its namespace only where there are several.
pub(crate) struct Names {
    with_namespace: bool,
}

impl Names {
    pub(crate) fn of<'a>(pods: impl IntoIterator<Item = &'a PodName>) -> Self {
        let mut pods = pods.into_iter();
        let first = pods.next();
        Self { with_namespace: first.is_some_and(|first| pods.any(|pod| pod.namespace != first.namespace)) }
    }

    pub(crate) fn name(&self, pod: &PodName) -> String {
        if self.with_namespace { pod.to_string() } else { pod.pod.clone() }
    }

    /// `web-0, web-1`.
    pub(crate) fn list<'a>(&self, pods: impl IntoIterator<Item = &'a PodName>) -> String {
        pods.into_iter().map(|pod| self.name(pod)).collect::<Vec<_>>().join(", ")
    }
}

/// What is of a pod.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Of<T> {
    #[serde(flatten)]
    pub(crate) pod: PodName,
    #[serde(flatten)]
    pub(crate) what: T,
}

/// All pods of a name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload<'a> {
    pub(crate) kind: &'a str,
    pub(crate) name: &'a str,
    pub(crate) all_namespaces: bool,
}

impl fmt::Display for Workload<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

impl Workload<'_> {
    /// Whether it is that of a stamp or a stream, `Kind/name`. Its kind may be written as kubectl takes it.
    fn is(&self, workload: &str) -> bool {
        let Some((kind, name)) = workload.split_once('/') else { return false };
        let (kind, asked) = (kind.to_ascii_lowercase(), self.kind.to_ascii_lowercase());
        let short =
            [("deploy", "deployment"), ("ds", "daemonset"), ("sts", "statefulset"), ("rs", "replicaset"), ("cj", "cronjob")];
        let asked = short.iter().find(|(short, _)| *short == asked).map_or(asked.as_str(), |(_, long)| *long);
        name == self.name && (kind == asked || asked.strip_suffix('s') == Some(&*kind))
    }
}

/// The pods of a workload that have a sidecar: those that run, and those whose sidecar is connected.
pub(crate) async fn of_workload(cluster: &Cluster, workload: &Workload<'_>) -> Result<Vec<PodName>, Failure> {
    let namespace = (!workload.all_namespaces).then_some(cluster.namespace.as_str());
    let pods: Api<Pod> = match namespace {
        Some(namespace) => Api::namespaced(cluster.client.clone(), namespace),
        None => Api::all(cluster.client.clone()),
    };
    let running = ListParams::default().labels(&format!("{}=true", stamp::INJECTED)).fields("status.phase=Running");
    let (pods, live) = futures::join!(pods.list_metadata(&running), sidecars::list(&cluster.client, namespace));
    let live = live.map_err(|e| sidecars::failure(cluster, "sidecars", "list sidecars", &e))?;
    let pods = pods.map_err(|e| cluster.failure("pods", &e))?.items;
    let found = chosen(&pods, live, workload);
    if found.is_empty() {
        let place = namespace.map_or_else(|| "in any namespace".to_owned(), |namespace| format!("in namespace {namespace}"));
        return Err(Failure::new(format!("no pod of {workload} {place} has a sidecar that runs"))
            .hint("`fetchr status -o wide` shows which pods have one, and their workloads"));
    }
    Ok(found)
}

fn chosen(pods: &[PartialObjectMeta<Pod>], live: Vec<Sidecar>, workload: &Workload<'_>) -> Vec<PodName> {
    let stamped = pods.iter().filter(|pod| {
        let stamp: Option<Stamp> = pod.annotations().get(stamp::STATUS).and_then(|text| serde_json::from_str(text).ok());
        stamp.and_then(|stamp| stamp.workload).is_some_and(|of| workload.is(&of))
    });
    let stamped = stamped.map(|pod| PodName { namespace: pod.namespace().unwrap_or_default(), pod: pod.name_any() });
    let connected = live.into_iter().filter(|sidecar| workload.is(&sidecar.status.workload)).map(|sidecar| PodName {
        namespace: sidecar.metadata.namespace.unwrap_or_default(),
        pod: sidecar.metadata.name.unwrap_or_default(),
    });
    stamped.chain(connected).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Why a pod gave no answer.
#[derive(Debug, Serialize)]
pub(crate) struct Failed {
    #[serde(flatten)]
    pub(crate) pod: PodName,
    pub(crate) error: String,
    #[serde(skip)]
    pub(crate) failure: Failure,
}

impl Failed {
    pub(crate) fn new(pod: PodName, failure: Failure) -> Self {
        Self { pod, error: failure.what().to_owned(), failure }
    }

    /// Whether what was asked is wrong, whoever is asked.
    pub(crate) fn is_usage(&self) -> bool {
        self.failure.exit() == Exit::Usage
    }
}

/// Asks pods side by side, and hands over each answer as it comes. Who gave none.
pub(crate) async fn ask<T>(
    pods: &[PodName],
    ask: impl AsyncFn(&PodName) -> Result<T, Failure>,
    mut take: impl FnMut(PodName, T),
) -> Vec<Failed> {
    let mut progress = Progress::new(pods.len());
    let ask = &ask;
    let answers = stream::iter(pods).map(async |pod| (pod, ask(pod).await));
    let mut answers = std::pin::pin!(answers.buffer_unordered(AT_A_TIME));
    let mut failed = Vec::new();
    while let Some((pod, answer)) = answers.next().await {
        progress.step();
        match answer {
            Ok(answer) => take(pod.clone(), answer),
            Err(failure) => failed.push(Failed::new(pod.clone(), failure)),
        }
    }
    failed.sort_by(|a, b| a.pod.cmp(&b.pod));
    failed
}

/// The pods that gave no answer, of all that were asked.
#[derive(Debug)]
pub(crate) struct Unanswered {
    pub(crate) failed: Vec<Failed>,
    asked: usize,
    color: Color,
}

impl Unanswered {
    /// If nobody gave one there is nothing to show, but why.
    pub(crate) fn of(asked: usize, mut failed: Vec<Failed>, color: Color) -> Result<Self, Failure> {
        if failed.len() < asked || failed.is_empty() {
            return Ok(Self { failed, asked, color });
        }
        let first = failed.swap_remove(0).failure;
        Err(if asked == 1 { first } else { first.at(format!("and so {} other pods, or alike", asked - 1)) })
    }

    /// Tells of them on standard error. How the command ends.
    pub(crate) fn tell(&self) -> Exit {
        if self.failed.is_empty() {
            return Exit::Ok;
        }
        eprint!("{}", self.failure().render(self.color.stderr()));
        Exit::Failed
    }

    fn failure(&self) -> Failure {
        let mut lines: Vec<&str> = self.failed.iter().take(NAMED).map(|failed| failed.error.as_str()).collect();
        let more = format!("and {} more", self.failed.len().saturating_sub(NAMED));
        lines.extend((self.failed.len() > NAMED).then_some(more.as_str()));
        Failure::new(format!("{} of {} pods gave no answer", self.failed.len(), self.asked)).at(lines.join("\n"))
    }
}

/// How many have answered, on a terminal.
struct Progress {
    done: usize,
    of: usize,
    is_shown: bool,
}

impl Progress {
    fn new(of: usize) -> Self {
        Self { done: 0, of, is_shown: of > 1 && io::stderr().is_terminal() }
    }

    fn step(&mut self) {
        self.done += 1;
        if self.is_shown {
            eprint!("\r{} of {} pods", self.done, self.of);
            // It is for the eye alone.
            let _ = io::stderr().flush();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_shown {
            eprint!("\r\x1b[K");
        }
    }
}
