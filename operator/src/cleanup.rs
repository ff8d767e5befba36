//! Removes what the operator made at run time: the subcommand of the chart's pre-delete hook.
//!
//! First the webhooks, so that no pod waits for an operator that is about to end; then the operator itself, which would write
//! everything again; then what it wrote. CRDs and custom resources are the chart's to keep or to remove.

use std::{fmt::Debug, time::Duration};

use clap::Args;
use futures::{StreamExt, stream};
use k8s_openapi::{
    api::{
        admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
        apps::v1::Deployment,
        coordination::v1::Lease,
        core::v1::{ConfigMap, Pod, Secret},
    },
    kube_aggregator::pkg::apis::apiregistration::v1::APIService,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use tracing::{info, warn};

use crate::{coldstart, settings::Names};

/// Requests at a time.
const AT_A_TIME: usize = 8;

/// What to remove.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Where the operator runs, and shared names.
    #[command(flatten)]
    pub names: Names,
    /// Deployment of the operator: it is scaled to zero, so that nothing is written again.
    #[arg(long, env = "FETCHR_DEPLOYMENT", default_value = "fetchr-operator")]
    pub deployment: String,
    /// Seconds after which it gives up and says what is left.
    #[arg(long, env = "FETCHR_CLEANUP_TIMEOUT_SECONDS", default_value_t = 90)]
    pub timeout_seconds: u64,
}

/// Why something is left.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// It took too long.
    #[error("not everything was removed within {0} s; run `fetchr-operator cleanup` again")]
    Timeout(u64),
    /// The API server said no.
    #[error("could not remove {what}")]
    Api {
        /// What is left.
        what: String,
        /// Why.
        source: kube::Error,
    },
}

/// Removes everything, or says what is left.
pub async fn run(client: Client, settings: &Settings) -> Result<(), CleanupError> {
    let limit = Duration::from_secs(settings.timeout_seconds);
    tokio::time::timeout(limit, remove_all(&client, settings))
        .await
        .unwrap_or(Err(CleanupError::Timeout(settings.timeout_seconds)))
}

async fn remove_all(client: &Client, settings: &Settings) -> Result<(), CleanupError> {
    let Names { namespace, webhook_configuration, api_registration, ca_secret, lease } = &settings.names;
    remove(&Api::<MutatingWebhookConfiguration>::all(client.clone()), webhook_configuration).await?;
    remove(&Api::<ValidatingWebhookConfiguration>::all(client.clone()), webhook_configuration).await?;
    remove(&Api::<APIService>::all(client.clone()), api_registration).await?;
    stop_operator(client, settings).await?;
    remove_cold_start_plans(client).await?;
    remove(&Api::<Lease>::namespaced(client.clone(), namespace), lease).await?;
    remove(&Api::<Secret>::namespaced(client.clone(), namespace), ca_secret).await
}

/// Scales the operator to zero and waits until its pods have ended.
async fn stop_operator(client: &Client, settings: &Settings) -> Result<(), CleanupError> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), &settings.names.namespace);
    let name = &settings.deployment;
    let failed = |source| CleanupError::Api { what: format!("the pods of Deployment {name}"), source };
    let patch = Patch::Merge(json!({"spec": {"replicas": 0}}));
    match deployments.patch_scale(name, &PatchParams::default(), &patch).await {
        Ok(_) => {}
        Err(error) if is_missing(&error) => return Ok(()),
        Err(error) => return Err(failed(error)),
    }
    let selector = match deployments.get_scale(name).await {
        Ok(scale) => scale.status.and_then(|status| status.selector).unwrap_or_default(),
        Err(error) if is_missing(&error) => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    // The Deployment counts no pod that is about to end; a leader among them would write again what is removed here.
    let pods: Api<Pod> = Api::namespaced(client.clone(), &settings.names.namespace);
    let ours = ListParams::default().labels(&selector);
    while !pods.list_metadata(&ours).await.map_err(failed)?.items.is_empty() {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    info!(deployment = name, "The operator has ended.");
    Ok(())
}

async fn remove_cold_start_plans(client: &Client) -> Result<(), CleanupError> {
    let params = ListParams::default().fields(&format!("metadata.name={}", coldstart::CONFIG_MAP));
    let list = Api::<ConfigMap>::all(client.clone()).list_metadata(&params).await;
    let maps = list.map_err(|source| CleanupError::Api { what: "the ConfigMaps with cold-start plans".to_owned(), source })?;
    let namespaces = maps.items.into_iter().filter_map(|map| map.namespace());
    let mut results =
        stream::iter(namespaces)
            .map(|namespace| async move {
                remove(&Api::<ConfigMap>::namespaced(client.clone(), &namespace), coldstart::CONFIG_MAP).await
            })
            .buffer_unordered(AT_A_TIME);
    let mut first = Ok(());
    while let Some(result) = results.next().await {
        if result.is_err() {
            warn!("A cold-start plan is left.");
        }
        first = first.and(result);
    }
    first
}

async fn remove<K>(api: &Api<K>, name: &str) -> Result<(), CleanupError>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let what = || format!("{} {name}", K::kind(&()));
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => info!(object = what(), "Removed."),
        Err(error) if is_missing(&error) => {}
        Err(source) => return Err(CleanupError::Api { what: what(), source }),
    }
    Ok(())
}

fn is_missing(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}
