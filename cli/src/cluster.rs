//! The way to a cluster, and what its refusals mean.

use std::time::Duration;

use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration,
    core::v1::{Container, Pod, PodSpec},
};
use kube::{
    Api, Client, Config,
    api::{ObjectMeta, PostParams},
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use operator::stamp;

use crate::{args::ClusterArgs, failure::Failure};

/// Name of the webhook configurations, mutating and validating.
pub(crate) const WEBHOOKS: &str = "fetchr";
/// Name of the operator's Deployment.
pub(crate) const OPERATOR: &str = "fetchr-operator";
/// Where the operator lives unless the installation chose otherwise.
const CUSTOMARY_NAMESPACE: &str = "fetchr-system";

/// A cluster that can be asked.
pub(crate) struct Cluster {
    /// The client, with the caller's own rights.
    pub(crate) client: Client,
    /// The namespace that was asked for, or that of the context.
    pub(crate) namespace: String,
    /// Address of the API server.
    pub(crate) url: String,
    operator_namespace: Option<String>,
}

impl Cluster {
    /// Reads the kubeconfig and builds a client; nothing is sent yet.
    pub(crate) async fn new(args: &ClusterArgs) -> Result<Self, Failure> {
        let config = config(args).await?;
        let namespace = args.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let url = config.cluster_url.to_string();
        let client = Client::try_from(config)
            .map_err(|e| Failure::new(format!("the kubeconfig can't be used: {}", chain(&e))).at(&url))?;
        Ok(Self { client, namespace, url, operator_namespace: args.operator_namespace.clone() })
    }

    /// The operator's namespace: the one given, or where the webhook points to.
    pub(crate) async fn operator_namespace(&self) -> Result<String, Failure> {
        if let Some(namespace) = &self.operator_namespace {
            return Ok(namespace.clone());
        }
        let webhooks: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let found = webhooks.get_opt(WEBHOOKS).await;
        let found = match found {
            // Whoever may not read webhook configurations can still use the customary namespace.
            Err(kube::Error::Api(status)) if status.is_forbidden() => None,
            found => found.map_err(|e| self.failure("webhook configurations", &e))?,
        };
        Ok(found.as_ref().and_then(service_namespace).unwrap_or_else(|| CUSTOMARY_NAMESPACE.to_owned()))
    }

    /// Creates a pod that asks for a sidecar, as a dry run: nothing is stored, but the webhook is called.
    pub(crate) async fn trial_pod(&self, namespace: &str) -> kube::Result<Pod> {
        let container = Container { name: "app".to_owned(), image: Some("fetchr-check".to_owned()), ..Default::default() };
        let pod = Pod {
            metadata: ObjectMeta {
                name: Some("fetchr-check".to_owned()),
                annotations: Some([(stamp::INJECT.to_owned(), "enabled".to_owned())].into()),
                ..Default::default()
            },
            spec: Some(PodSpec { containers: vec![container], ..Default::default() }),
            ..Default::default()
        };
        Api::namespaced(self.client.clone(), namespace).create(&Self::dry_run(), &pod).await
    }

    /// Asks the API server to do all but store.
    pub(crate) fn dry_run() -> PostParams {
        PostParams { dry_run: true, field_manager: Some("fetchr-check".to_owned()) }
    }

    /// What a failed call means, for the one who made it.
    pub(crate) fn failure(&self, what: &str, error: &kube::Error) -> Failure {
        match error {
            kube::Error::Api(status) if status.is_forbidden() => {
                Failure::new(format!("{what}: {}", status.message)).hint("ask for the right, or use --as or another --context")
            }
            kube::Error::Api(status) if status.code == 401 => {
                Failure::unreachable(format!("{what}: the cluster does not know you"))
                    .at(&self.url)
                    .hint("log in again, or choose another --context")
            }
            kube::Error::Api(status) => Failure::new(format!("{what}: {}", status.message)).at(&self.url),
            other => Failure::unreachable(format!("{what}: {}", chain(other)))
                .at(&self.url)
                .hint("is the cluster up, and is this the right --context?"),
        }
    }
}

/// Waits for an answer of the cluster, so long at most.
pub(crate) async fn within<T>(patience: Duration, what: &str, answer: impl Future<Output = T>) -> Result<T, Failure> {
    let late = |_| Failure::unreachable(format!("{what}: no answer within {} s", patience.as_secs_f32()));
    tokio::time::timeout(patience, answer).await.map_err(late)
}

async fn config(args: &ClusterArgs) -> Result<Config, Failure> {
    let options = KubeConfigOptions { context: args.context.clone(), cluster: args.cluster.clone(), user: args.user.clone() };
    let chosen = args.kubeconfig.is_some() || args.context.is_some() || args.cluster.is_some() || args.user.is_some();
    let read = match &args.kubeconfig {
        Some(path) => Kubeconfig::read_from(path),
        None => Kubeconfig::read(),
    };
    let loaded = match read {
        Ok(kubeconfig) => Config::from_custom_kubeconfig(kubeconfig, &options).await,
        Err(e) => Err(e),
    };
    let mut config = match loaded {
        Ok(config) => config,
        // In a pod there is no kubeconfig, and none is needed.
        Err(e) if chosen => return Err(kubeconfig_failure(args, &e)),
        Err(e) => Config::incluster().map_err(|_| kubeconfig_failure(args, &e))?,
    };
    config.connect_timeout = Some(args.request_timeout);
    config.read_timeout = Some(args.request_timeout);
    // A command is over in seconds; three silent tries of a dead server would only make it slower to say so.
    config.default_retry = false;
    if let Some(user) = &args.impersonate {
        config.auth_info.impersonate = Some(user.clone());
        config.auth_info.impersonate_groups = Some(args.impersonate_groups.clone()).filter(|groups| !groups.is_empty());
    }
    Ok(config)
}

fn kubeconfig_failure(args: &ClusterArgs, error: &KubeconfigError) -> Failure {
    let failure = Failure::unreachable(format!("no cluster to ask: {}", chain(error)));
    let failure = match &args.kubeconfig {
        Some(path) => failure.at(path.display()),
        None => failure,
    };
    failure.hint("give --kubeconfig FILE and --context NAME, or set KUBECONFIG")
}

fn service_namespace(webhooks: &MutatingWebhookConfiguration) -> Option<String> {
    let first = webhooks.webhooks.as_ref()?.first()?;
    first.client_config.service.as_ref().map(|service| service.namespace.clone())
}

/// The error and its causes, each once.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
