//! What admission needs to know of the cluster: from the index, or, where the index does not know yet, from the API server.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crds::{FetchrProxy, plan::ObjectRef};
use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::api::{batch::v1::Job, core::v1::Namespace};
use kube::{Api, Client, api::ListParams};
use tokio::time::timeout;

use crate::{
    index::{Raw, Shared, Stored},
    inject::Workload,
};

/// How long one question to the API server may take.
const DEADLINE: Duration = Duration::from_secs(2);

/// The index, as far as admission reads it. What is not in there yet is asked of a [`Fallback`].
pub trait Cluster: Send + Sync + 'static {
    /// Labels of a namespace; None if the index does not know it.
    fn namespace_labels(&self, namespace: &str) -> Option<BTreeMap<String, String>>;

    /// FetchrProxies of a namespace, in any order. One that can't be read serves no pod.
    fn proxies(&self, namespace: &str) -> Vec<Arc<FetchrProxy>>;
}

impl Cluster for Shared {
    fn namespace_labels(&self, namespace: &str) -> Option<BTreeMap<String, String>> {
        self.read().namespaces.get(&ObjectRef::new("", namespace)).map(|found| found.labels.clone())
    }

    fn proxies(&self, namespace: &str) -> Vec<Arc<FetchrProxy>> {
        self.read().proxies.in_namespace(namespace).filter_map(|(_, proxy)| proxy.0.object().cloned()).collect()
    }
}

/// Who knows for sure, at the price of a request.
pub trait Fallback: Send + Sync + 'static {
    /// Labels of a namespace.
    fn namespace_labels<'a>(&'a self, namespace: &'a str) -> BoxFuture<'a, Result<BTreeMap<String, String>, LookupError>>;

    /// FetchrProxies of a namespace.
    fn proxies<'a>(&'a self, namespace: &'a str) -> BoxFuture<'a, Result<Vec<Arc<FetchrProxy>>, LookupError>>;

    /// The controller of a Job; None if nobody made it, or it is gone.
    fn controller_of_job<'a>(&'a self, namespace: &'a str, job: &'a str) -> BoxFuture<'a, Result<Option<Workload>, LookupError>>;
}

/// What could not be found out.
#[derive(Debug, thiserror::Error)]
#[error("fetchr could not read {what} from the API server ({reason}); try again")]
pub struct LookupError {
    /// Such as `namespace shop`.
    pub what: String,
    /// Why.
    pub reason: String,
}

/// The API server as a fallback, with a deadline.
#[derive(Clone)]
pub struct ApiServer(pub Client);

impl Fallback for ApiServer {
    fn namespace_labels<'a>(&'a self, namespace: &'a str) -> BoxFuture<'a, Result<BTreeMap<String, String>, LookupError>> {
        async move {
            let api: Api<Namespace> = Api::all(self.0.clone());
            let found = ask(format!("namespace {namespace}"), api.get_metadata(namespace)).await?;
            Ok(found.metadata.labels.unwrap_or_default())
        }
        .boxed()
    }

    fn proxies<'a>(&'a self, namespace: &'a str) -> BoxFuture<'a, Result<Vec<Arc<FetchrProxy>>, LookupError>> {
        async move {
            let api: Api<Raw<FetchrProxy>> = Api::namespaced(self.0.clone(), namespace);
            let params = ListParams::default();
            let found = ask(format!("the FetchrProxies of namespace {namespace}"), api.list(&params)).await?;
            let readable = |raw| Stored::read(raw).and_then(|(_, proxy)| proxy.object().cloned());
            Ok(found.items.into_iter().filter_map(readable).collect())
        }
        .boxed()
    }

    fn controller_of_job<'a>(&'a self, namespace: &'a str, job: &'a str) -> BoxFuture<'a, Result<Option<Workload>, LookupError>> {
        async move {
            let api: Api<Job> = Api::namespaced(self.0.clone(), namespace);
            let found = ask(format!("Job {namespace}/{job}"), api.get_metadata_opt(job)).await?;
            let owners = found.and_then(|job| job.metadata.owner_references).unwrap_or_default();
            let controller = owners.into_iter().find(|owner| owner.controller == Some(true));
            Ok(controller.map(|owner| Workload::new(owner.kind, owner.name)))
        }
        .boxed()
    }
}

async fn ask<T>(what: String, answer: impl Future<Output = Result<T, kube::Error>>) -> Result<T, LookupError> {
    match timeout(DEADLINE, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(LookupError { what, reason: error.to_string() }),
        Err(_) => Err(LookupError { what, reason: format!("no answer within {} s", DEADLINE.as_secs()) }),
    }
}
