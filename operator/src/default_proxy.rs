//! The FetchrProxy `default` in the operator's namespace, for pods without a proxy of their own.
//!
//! The leader creates it from the chart's values whenever it is absent; while it is there it belongs to whoever edits it.

use std::{io, path::Path, time::Duration};

use crds::{
    FetchrProxy,
    plan::{DEFAULT_PROXY, ObjectRef},
    proxy::FetchrProxySpec,
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::{context::Context, index::Shared};

const FIELD_MANAGER: &str = "fetchr-operator-default";
const RETRY: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why the proxy could not be created.
#[derive(Debug, thiserror::Error)]
pub enum DefaultProxyError {
    /// The file could not be read.
    #[error("could not read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The file is not the spec of a FetchrProxy.
    #[error("{path} is not the spec of a FetchrProxy: {problem}")]
    Parse {
        /// The file.
        path: String,
        /// What is wrong where.
        problem: String,
    },
    /// The API server said no.
    #[error("could not create the FetchrProxy {DEFAULT_PROXY}")]
    Api(#[from] kube::Error),
    /// The API server said nothing.
    #[error("creating the FetchrProxy {DEFAULT_PROXY} took longer than {} s", TIMEOUT.as_secs())]
    Slow,
}

/// Creates the proxy whenever it is absent while this replica leads, until shut-down.
pub async fn run(mut cx: Context, index: Shared) {
    let shutdown = cx.shutdown.clone();
    let keep = async {
        cx.leadership.acquired().await;
        let mut changes = index.plans_changed();
        loop {
            changes.mark_unchanged();
            let is_complete = index.read().is_complete();
            let is_absent = is_complete && !is_there(&index, &cx.settings.names.namespace);
            if is_absent && !create(&cx).await {
                sleep(RETRY).await;
            } else if changes.changed().await.is_err() {
                return;
            }
        }
    };
    shutdown.run_until_cancelled(keep).await;
}

/// Whether the index has the proxy.
pub fn is_there(index: &Shared, operator_namespace: &str) -> bool {
    index.read().proxies.get(&ObjectRef::new(operator_namespace, DEFAULT_PROXY)).is_some()
}

async fn create(cx: &Context) -> bool {
    let result = tokio::time::timeout(TIMEOUT, create_if_absent(cx)).await.unwrap_or(Err(DefaultProxyError::Slow));
    cx.metrics.reconciled("default_proxy", result.is_ok());
    match result {
        Ok(()) => true,
        Err(error) => {
            warn!(error = format!("{:#}", anyhow::Error::new(error)), "No default proxy yet; trying again.");
            false
        }
    }
}

async fn create_if_absent(cx: &Context) -> Result<(), DefaultProxyError> {
    let proxies: Api<FetchrProxy> = Api::namespaced(cx.client.clone(), &cx.settings.names.namespace);
    if proxies.get_metadata_opt(DEFAULT_PROXY).await?.is_some() {
        return Ok(());
    }
    let body = json!({
        "apiVersion": "fetchr.sh/v1alpha1",
        "kind": "FetchrProxy",
        "metadata": {"name": DEFAULT_PROXY, "namespace": cx.settings.names.namespace},
        "spec": read(&cx.settings.default_proxy_file)?,
    });
    proxies.patch(DEFAULT_PROXY, &PatchParams::apply(FIELD_MANAGER), &Patch::Apply(&body)).await?;
    info!(proxy = DEFAULT_PROXY, "Created the default proxy.");
    Ok(())
}

/// The spec as it is written, so that defaults are the API server's to fill in.
fn read(file: &Path) -> Result<Value, DefaultProxyError> {
    let path = file.display().to_string();
    let text = std::fs::read_to_string(file).map_err(|source| DefaultProxyError::Read { path: path.clone(), source })?;
    parse(&text).map_err(|problem| DefaultProxyError::Parse { path, problem })
}

fn parse(text: &str) -> Result<Value, String> {
    let spec: Option<Value> = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    let spec = spec.unwrap_or_else(|| json!({}));
    let typed: FetchrProxySpec = serde_json::from_value(spec.clone()).map_err(|error| error.to_string())?;
    let problems = typed.check();
    if problems.is_empty() { Ok(spec) } else { Err(problems.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spec_is_passed_on_as_written() {
        let spec = parse("interception:\n  outbound: {ports: [80]}\n").unwrap();
        assert_eq!(spec, json!({"interception": {"outbound": {"ports": [80]}}}));
    }

    #[test]
    fn empty_file_is_a_proxy_of_defaults() {
        assert_eq!(parse("{}\n").unwrap(), json!({}));
        assert_eq!(parse("# nothing\n").unwrap(), json!({}));
    }

    #[test]
    fn wrong_spec_names_the_field() {
        let problem = parse("workers: many\n").unwrap_err();
        assert!(problem.contains("many"), "{problem}");
    }
}
