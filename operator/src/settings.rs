//! Flags of the operator; each is also an environment variable.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// What is one in a cluster: where the operator runs, and the names of what it shares with the chart.
#[derive(Args, Clone, Debug)]
pub struct Names {
    /// Namespace that the operator runs in; its policies are the platform's.
    #[arg(long, env = "FETCHR_NAMESPACE")]
    pub namespace: String,
    /// Name of the mutating and of the validating webhook configuration.
    #[arg(long, env = "FETCHR_WEBHOOK_CONFIGURATION", default_value = "fetchr")]
    pub webhook_configuration: String,
    /// Name of the APIService.
    #[arg(long, env = "FETCHR_API_REGISTRATION", default_value = "v1alpha1.api.fetchr.sh")]
    pub api_registration: String,
    /// Secret that holds the CA and the key that signs cold-start plans.
    #[arg(long, env = "FETCHR_CA_SECRET", default_value = "fetchr-ca")]
    pub ca_secret: String,
    /// Lease that elects the leader.
    #[arg(long, env = "FETCHR_LEASE", default_value = "fetchr-operator")]
    pub lease: String,
}

/// Where the operator runs, what its objects are called, and where it listens.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Where it runs, and shared names.
    #[command(flatten)]
    pub names: Names,
    /// Name of this pod: the identity in the Lease and in events.
    #[arg(long, env = "FETCHR_POD_NAME")]
    pub pod_name: String,
    /// Image of the sidecar and of `fetchr-init`.
    #[arg(long, env = "FETCHR_SIDECAR_IMAGE")]
    pub sidecar_image: String,
    /// Pull policy of that image.
    #[arg(long, env = "FETCHR_SIDECAR_IMAGE_PULL_POLICY", default_value = "IfNotPresent",
          value_parser = ["Always", "IfNotPresent", "Never"])]
    pub sidecar_image_pull_policy: String,
    /// Service in front of the admission webhooks.
    #[arg(long, env = "FETCHR_WEBHOOK_SERVICE", default_value = "fetchr-webhook")]
    pub webhook_service: String,
    /// Headless Service in front of the config streams.
    #[arg(long, env = "FETCHR_STREAM_SERVICE", default_value = "fetchr-streams")]
    pub stream_service: String,
    /// Service in front of the aggregated API.
    #[arg(long, env = "FETCHR_API_SERVICE", default_value = "fetchr-api")]
    pub api_service: String,
    /// YAML of a FetchrProxy's spec: what the FetchrProxy `default` is created with, if it is absent.
    #[arg(long, env = "FETCHR_DEFAULT_PROXY_FILE", default_value = "/etc/fetchr/default-proxy.yaml")]
    pub default_proxy_file: PathBuf,
    /// Port of the admission webhooks.
    #[arg(long, env = "FETCHR_WEBHOOK_PORT", default_value_t = 4630)]
    pub webhook_port: u16,
    /// Port of the config streams.
    #[arg(long, env = "FETCHR_STREAM_PORT", default_value_t = 4631)]
    pub stream_port: u16,
    /// Port of metrics and health.
    #[arg(long, env = "FETCHR_METRICS_PORT", default_value_t = 4632)]
    pub metrics_port: u16,
    /// Port of the aggregated API.
    #[arg(long, env = "FETCHR_API_PORT", default_value_t = 4633)]
    pub api_port: u16,
    /// DNS domain of the cluster.
    #[arg(long, env = "FETCHR_CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
}

/// How the operator logs.
#[derive(Args, Clone, Debug)]
pub struct LogSettings {
    /// Least severe level that is logged, or filter directives such as `info,operator::stream=debug`.
    #[arg(long, env = "FETCHR_LOG_LEVEL", default_value = "info", global = true)]
    pub log_level: String,
    /// Shape of a line.
    #[arg(long, env = "FETCHR_LOG_FORMAT", default_value = "json", ignore_case = true, global = true)]
    pub log_format: LogFormat,
}

/// Shape of a log line.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}
