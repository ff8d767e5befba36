//! What injection needs to know about one pod.

use std::{collections::BTreeMap, sync::Arc};

use crds::{
    FetchrProxy,
    plan::{Choice, ChosenBy, PodFacts, choose_proxy},
};
use k8s_openapi::api::core::v1::Pod;

use super::{Cluster, Fallback, LookupError};
use crate::inject::{Ask, Reason, Workload};

/// Where admission looks things up.
#[derive(Clone)]
pub struct Lookup {
    /// The index.
    pub cluster: Arc<dyn Cluster>,
    /// Who is asked for what the index does not know.
    pub fallback: Arc<dyn Fallback>,
    /// Namespace whose FetchrProxy `default` serves pods without one of their own.
    pub operator_namespace: String,
}

/// The outcome of a choice, with the proxy owned.
enum Chosen {
    Proxy(Arc<FetchrProxy>, ChosenBy),
    Missing,
    Nobody,
}

impl Lookup {
    /// Labels of a namespace.
    pub(super) async fn namespace_labels(&self, namespace: &str) -> Result<BTreeMap<String, String>, LookupError> {
        match self.cluster.namespace_labels(namespace) {
            Some(labels) => Ok(labels),
            None => self.newest_namespace_labels(namespace).await,
        }
    }

    /// Labels of a namespace as the API server has them: the index may not have heard yet of one that was just set.
    pub(super) async fn newest_namespace_labels(&self, namespace: &str) -> Result<BTreeMap<String, String>, LookupError> {
        self.fallback.namespace_labels(namespace).await
    }

    /// The workload of a pod, through its controller's controller.
    pub(super) async fn workload(&self, namespace: &str, pod: &Pod) -> Result<Workload, LookupError> {
        let workload = Workload::of(pod);
        if workload.kind != "Job" {
            return Ok(workload);
        }
        let controller = self.fallback.controller_of_job(namespace, &workload.name).await?;
        Ok(controller.unwrap_or(workload))
    }

    /// The proxy of a pod; the inner error is the pod's to hear. A proxy is often applied together with its pods, so unless the
    /// index shows one of the pod's own namespace, the API server has the last word.
    pub(super) async fn proxy(
        &self,
        namespace: &str,
        pod: &Pod,
        ask: Ask,
    ) -> Result<Result<Option<Arc<FetchrProxy>>, Reason>, LookupError> {
        let mut platform = self.cluster.proxies(&self.operator_namespace);
        let indexed = self.choose(namespace, pod, ask, &self.cluster.proxies(namespace), &platform);
        let chosen = match indexed {
            Chosen::Proxy(_, by) if by != ChosenBy::Default => indexed,
            _ => {
                if platform.is_empty() {
                    platform = self.fallback.proxies(&self.operator_namespace).await?;
                }
                let own = self.fallback.proxies(namespace).await?;
                self.choose(namespace, pod, ask, &own, &platform)
            }
        };
        Ok(match chosen {
            Chosen::Proxy(proxy, _) => Ok(Some(proxy)),
            Chosen::Nobody => Ok(None),
            Chosen::Missing => Err(Reason::ProxyMissing { name: ask.picked_proxy(pod).unwrap_or_default().to_owned() }),
        })
    }

    fn choose(&self, namespace: &str, pod: &Pod, ask: Ask, own: &[Arc<FetchrProxy>], platform: &[Arc<FetchrProxy>]) -> Chosen {
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let facts = PodFacts { namespace, labels: &labels, annotation: ask.picked_proxy(pod) };
        let candidates: Vec<&FetchrProxy> = own.iter().chain(platform).map(|proxy| &**proxy).collect();
        let shared = |chosen: &FetchrProxy| own.iter().chain(platform).find(|one| std::ptr::eq(&***one, chosen)).cloned();
        match choose_proxy(&facts, &self.operator_namespace, &candidates) {
            Choice::Proxy { proxy, by, .. } => shared(proxy).map_or(Chosen::Nobody, |proxy| Chosen::Proxy(proxy, by)),
            Choice::Missing => Chosen::Missing,
            Choice::None => Chosen::Nobody,
        }
    }
}
