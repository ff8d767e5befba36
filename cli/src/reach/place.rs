//! Which sidecar: that of a proxy on this machine, of a pod, or of all pods of a workload.

use std::time::Duration;

use serde::de::DeserializeOwned;

use super::{
    admin::{self, Target},
    pods::{self, PodName, Unanswered, Workload},
};
use crate::{
    args::{ClusterArgs, StateArgs, switch, workload},
    cluster::{Cluster, within},
    command::block_on,
    failure::Failure,
    output::Color,
    sidecars,
};

/// The flags. Without one of a pod or a workload it is the proxy on this machine.
#[derive(clap::Args)]
pub(crate) struct Place {
    #[command(flatten)]
    here: StateArgs,
    /// The sidecar of this pod, through the operator
    #[arg(long, env = "FETCHR_POD", value_name = "NAME", conflicts_with = "workload", help_heading = "Cluster")]
    pod: Option<String>,
    /// The sidecars of all pods of this workload, such as deployment/web
    #[arg(long, env = "FETCHR_WORKLOAD", value_name = "KIND/NAME", value_parser = workload, help_heading = "Cluster")]
    workload: Option<(String, String)>,
    /// The workload of this name in all namespaces
    #[arg(short = 'A', long, env = "FETCHR_ALL_NAMESPACES", value_parser = switch(), help_heading = "Cluster")]
    all_namespaces: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

impl Place {
    /// The workload whose pods are all meant, if one is. The error says that flags of a cluster name nobody in it.
    pub(crate) fn workload(&self) -> Result<Option<Workload<'_>>, Failure> {
        let lonely = [
            (self.all_namespaces, "-A"),
            (self.cluster.namespace.is_some(), "-n"),
            (self.cluster.context.is_some(), "--context"),
        ];
        match (&self.pod, &self.workload) {
            (_, Some((kind, name))) => Ok(Some(Workload { kind, name, all_namespaces: self.all_namespaces })),
            (Some(_), None) if self.all_namespaces => Err(Failure::usage("-A is for --workload: a pod is in one namespace")),
            (Some(_), None) => Ok(None),
            (None, None) => match lonely.into_iter().find(|(given, _)| *given) {
                Some((_, flag)) => Err(Failure::usage(format!("{flag} is of a cluster, and no pod of it is named"))
                    .hint("give --pod NAME or --workload KIND/NAME; without any of these it is the proxy on this machine")),
                None => Ok(None),
            },
        }
    }

    /// The proxy on this machine, if it is that one.
    pub(crate) fn here(&self) -> Option<&StateArgs> {
        (self.pod.is_none() && self.workload.is_none()).then_some(&self.here)
    }

    /// These flags, for a hint.
    pub(crate) fn typed(&self) -> String {
        let flag = |name: &str, value: Option<&str>| value.map(|value| format!(" {name} {value}")).unwrap_or_default();
        let workload = self.workload.as_ref().map(|(kind, name)| format!("{kind}/{name}"));
        let namespace = self.cluster.namespace.as_deref().filter(|_| self.here().is_none());
        flag("--pod", self.pod.as_deref()) + &flag("--workload", workload.as_deref()) + &flag("-n", namespace)
    }

    /// Asks the one proxy that is meant: that of this machine, or of a pod.
    pub(crate) fn one<T>(&self, ask: impl AsyncFnOnce(&Asked<'_>) -> Result<T, Failure>) -> Result<T, Failure> {
        block_on(async {
            let Some(pod) = &self.pod else { return ask(&Asked::Here(&self.here)).await };
            let cluster = Cluster::new(&self.cluster).await?;
            let pod = PodName { namespace: cluster.namespace.clone(), pod: pod.clone() };
            ask(&Asked::Pod { cluster: &cluster, pod: &pod, patience: self.cluster.request_timeout }).await
        })
    }

    /// Asks all pods of a workload side by side, and hands over each answer as it comes. Who gave none, and how many were asked.
    pub(crate) fn each<T>(
        &self,
        workload: &Workload<'_>,
        ask: &impl AsyncFn(&Asked<'_>) -> Result<T, Failure>,
        take: impl FnMut(PodName, T),
        color: Color,
    ) -> Result<Unanswered, Failure> {
        block_on(async {
            let cluster = Cluster::new(&self.cluster).await?;
            let pods = pods::of_workload(&cluster, workload).await?;
            let ask =
                async |pod: &PodName| ask(&Asked::Pod { cluster: &cluster, pod, patience: self.cluster.request_timeout }).await;
            Unanswered::of(pods.len(), pods::ask(&pods, ask, take).await, color)
        })
    }

    /// A cluster whose calls may take as long as an order does that waits for other pods.
    pub(crate) async fn patient_cluster(&self, patience: Duration) -> Result<Cluster, Failure> {
        let args = ClusterArgs { request_timeout: self.cluster.request_timeout.max(patience), ..self.cluster.clone() };
        Cluster::new(&args).await
    }

    /// The pod that is named.
    pub(crate) fn pod(&self, cluster: &Cluster) -> Option<PodName> {
        self.pod.as_ref().map(|pod| PodName { namespace: cluster.namespace.clone(), pod: pod.clone() })
    }
}

/// Who is asked.
pub(crate) enum Asked<'a> {
    /// The proxy on this machine.
    Here(&'a StateArgs),
    /// The sidecar of a pod.
    Pod {
        /// Where it is.
        cluster: &'a Cluster,
        /// Its name.
        pod: &'a PodName,
        /// How long an answer may take.
        patience: Duration,
    },
}

impl Asked<'_> {
    /// Gives it an order as JSON: `verb` is that of the operator's API, and the target the path of the admin port.
    pub(crate) async fn order<T: DeserializeOwned>(&self, verb: &str, target: &Target, body: &str) -> Result<T, Failure> {
        let (cluster, pod, patience) = match *self {
            Self::Here(state) => return admin::order(state, target, body),
            Self::Pod { cluster, pod, patience } => (cluster, pod, patience),
        };
        let what = format!("sidecar of {pod}");
        let answer = sidecars::order(&cluster.client, &pod.namespace, &pod.pod, verb, body.as_bytes().to_vec());
        let answer = within(patience, &what, answer).await?;
        answer.map_err(|error| sidecars::failure(cluster, &what, &format!("create sidecars/{verb}"), &error))
    }

    /// What it says to a question.
    pub(crate) async fn look_up<T: DeserializeOwned>(&self, target: &Target) -> Result<T, Failure> {
        self.find(target).await?.map_err(Failure::new)
    }

    /// The same; inside, why there is nothing of what is asked for, where a pod says so.
    pub(crate) async fn find<T: DeserializeOwned>(&self, target: &Target) -> Result<Result<T, String>, Failure> {
        let (cluster, pod, patience) = match *self {
            Self::Here(state) => return admin::look_up(state, target).map(Ok),
            Self::Pod { cluster, pod, patience } => (cluster, pod, patience),
        };
        let what = format!("sidecar of {pod}");
        let answer = sidecars::look_up(&cluster.client, &pod.namespace, &pod.pod, target.as_str());
        match within(patience, &what, answer).await? {
            Ok(answer) => Ok(Ok(answer)),
            Err(error) => match sidecars::said(&error) {
                Some((404, why)) => Ok(Err(why.to_owned())),
                _ => Err(sidecars::failure(cluster, &what, target.right(), &error)),
            },
        }
    }
}
