//! The Secret: followed by every replica, kept by the leader.

use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt, pin_mut};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client, ResourceExt,
    api::PostParams,
    runtime::{WatchStreamExt, watcher},
};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use super::{Installer, Keyring, KeyringError, bundle, unix_now};
use crate::{context::Context, settings::Settings};

/// How often the leader looks whether something is due or has lost the bundle.
const EVERY: Duration = Duration::from_secs(10);
/// How long one round of the leader may take.
const ROUND: Duration = Duration::from_secs(30);

/// Why a round of the leader failed.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    /// The Secret is broken.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// The API server refused or can't be reached.
    #[error("the API server did not take it")]
    Api(#[from] kube::Error),
    /// It took too long.
    #[error("the API server did not answer within 30 s")]
    TimedOut,
}

/// Serves what the Secret holds, from the moment that it changes; until shut-down.
pub async fn follow(context: Context, installer: Installer) {
    let api: Api<Secret> = Api::namespaced(context.client.clone(), &context.settings.names.namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={}", context.settings.names.ca_secret));
    let secrets = watcher(api, config).default_backoff().touched_objects();
    pin_mut!(secrets);
    // The signing key changes by age alone, without a change of the Secret.
    let mut hourly = interval(Duration::from_secs(3600));
    let mut last = None;
    loop {
        tokio::select! {
            () = context.shutdown.cancelled() => return,
            secret = secrets.next() => match secret {
                Some(Ok(secret)) => last = Some(secret),
                Some(Err(error)) => {
                    warn!(%error, "Could not watch the Secret of certificates.");
                    continue;
                }
                None => return,
            },
            _ = hourly.tick() => {}
        }
        if let Some(secret) = &last {
            install(&installer, secret);
        }
    }
}

fn install(installer: &Installer, secret: &Secret) {
    let installed = Keyring::read(&data_of(secret)).and_then(|keyring| installer.install(&keyring, unix_now()));
    match installed {
        Ok(()) => info!(version = secret.resource_version(), "Certificates loaded."),
        Err(error) => warn!(%error, "Certificates in the Secret can't be used; the ones before stay."),
    }
}

/// Renews the Secret and hands out the CA bundle while this replica leads; until shut-down.
pub async fn keep(context: Context) {
    let mut leadership = context.leadership.clone();
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = context.shutdown.cancelled() => return,
            () = async { leadership.acquired().await; ticks.tick().await; } => {}
        }
        let round = timeout(ROUND, round(&context.client, &context.settings)).await.unwrap_or(Err(KeepError::TimedOut));
        context.metrics.reconciled("certificates", round.is_ok());
        if let Err(error) = round {
            warn!(error = &error as &dyn std::error::Error, "Certificates could not be kept up; trying again.");
        }
    }
}

async fn round(client: &Client, settings: &Settings) -> Result<(), KeepError> {
    let keyring = renew(client, settings).await?;
    bundle::hand_out(client, settings, &keyring.bundle()).await?;
    Ok(())
}

/// Writes what is due. Two leaders at once can't overwrite each other: a create fails if the Secret is there, and a replace if it
/// has changed since it was read.
async fn renew(client: &Client, settings: &Settings) -> Result<Keyring, KeepError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), &settings.names.namespace);
    let found = api.get_opt(&settings.names.ca_secret).await?;
    let data = found.as_ref().map(data_of).unwrap_or_default();
    let Some(renewed) = Keyring::read(&data)?.renewed(&names(settings), unix_now())? else {
        return Ok(Keyring::read(&data)?);
    };
    let mut secret = found.clone().unwrap_or_default();
    secret.metadata.name = Some(settings.names.ca_secret.clone());
    secret.metadata.managed_fields = None;
    let labels = secret.metadata.labels.get_or_insert_default();
    labels.insert("app.kubernetes.io/managed-by".to_owned(), "fetchr-operator".to_owned());
    secret.data = Some(renewed.write()?.into_iter().map(|(name, value)| (name, ByteString(value))).collect());
    match found {
        Some(_) => api.replace(&settings.names.ca_secret, &PostParams::default(), &secret).await?,
        None => api.create(&PostParams::default(), &secret).await?,
    };
    info!(secret = settings.names.ca_secret, "Certificates renewed.");
    Ok(renewed)
}

fn data_of(secret: &Secret) -> BTreeMap<String, Vec<u8>> {
    secret.data.iter().flatten().map(|(name, value)| (name.clone(), value.0.clone())).collect()
}

/// DNS names of the three servers.
fn names(settings: &Settings) -> Vec<String> {
    let services = [&settings.webhook_service, &settings.stream_service, &settings.api_service];
    let both = |service: &String| {
        let short = format!("{service}.{}.svc", settings.names.namespace);
        [format!("{short}.{}", settings.cluster_domain), short]
    };
    services.into_iter().flat_map(both).collect()
}
