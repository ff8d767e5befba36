//! `FetchrProxy`: how sidecars run.

use k8s_openapi::{
    api::core::v1::ResourceRequirements,
    apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector},
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{policy::Direction, scalar::Duration};

/// How sidecars run: which pods, what is intercepted, resources, upstream connections, telemetry, start and drain.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "fetchr.sh",
    version = "v1alpha1",
    kind = "FetchrProxy",
    plural = "fetchrproxies",
    shortname = "fxp",
    category = "fetchr",
    namespaced,
    status = "FetchrProxyStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Mode","type":"string","jsonPath":".spec.interception.mode"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].reason"}"#,
    printcolumn = r#"{"name":"Pods","type":"integer","jsonPath":".status.pods.matched"}"#,
    printcolumn = r#"{"name":"Programmed","type":"integer","jsonPath":".status.pods.programmed"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct FetchrProxySpec {
    /// Pods that this proxy is for. Empty: every opted-in pod of the namespace that no other proxy selects.
    #[serde(default, skip_serializing_if = "is_empty_selector")]
    pub selector: LabelSelector,
    /// How traffic reaches the sidecar.
    #[serde(default)]
    pub interception: Interception,
    /// What happens to opted-in pods that were created without a sidecar.
    #[serde(default)]
    pub missed_pods: MissedPods,
    /// Threads that serve requests. Default: the CPU limit, rounded up; without one, 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub workers: Option<i32>,
    /// CPU and memory of the sidecar container.
    #[serde(default = "default_resources")]
    pub resources: ResourceRequirements,
    /// Connections to upstreams.
    #[serde(default)]
    pub upstream: Upstream,
    /// Which peers may say who the client is.
    #[serde(default)]
    pub client_address: ClientAddress,
    /// Metrics and health.
    #[serde(default)]
    pub telemetry: Telemetry,
    /// The sidecar's own log.
    #[serde(default)]
    pub logging: Logging,
    /// How a pod ends.
    #[serde(default)]
    pub drain: Drain,
    /// How a pod starts.
    #[serde(default)]
    pub startup: Startup,
}

fn is_empty_selector(selector: &LabelSelector) -> bool {
    *selector == LabelSelector::default()
}

/// 50m CPU and 32Mi memory requested, 256Mi memory at most.
pub fn default_resources() -> ResourceRequirements {
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    let quantity = |name: &str, value: &str| (name.to_owned(), Quantity(value.to_owned()));
    ResourceRequirements {
        requests: Some([quantity("cpu", "50m"), quantity("memory", "32Mi")].into()),
        limits: Some([quantity("memory", "256Mi")].into()),
        ..Default::default()
    }
}

/// How traffic reaches the sidecar.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Interception {
    /// Who redirects.
    #[serde(default)]
    pub mode: InterceptionMode,
    /// Traffic to the application (mode Init).
    #[serde(default)]
    pub inbound: Inbound,
    /// Traffic from the application (mode Init).
    #[serde(default)]
    pub outbound: Outbound,
    /// Where the proxy listens (mode Explicit).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub listeners: Vec<Listener>,
}

/// Who redirects traffic to the sidecar.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum InterceptionMode {
    /// An init container sets redirect rules in the pod's network namespace (needs NET_ADMIN).
    #[default]
    Init,
    /// Nobody: the proxy listens where `listeners` say. Fits the `restricted` pod security standard, and a laptop.
    Explicit,
}

/// Traffic to the application.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Inbound {
    /// TCP ports to intercept. Default: the container ports of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), inner(range(min = 1, max = 65535)))]
    pub ports: Option<Vec<i32>>,
    /// TCP ports to leave alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(range(min = 1, max = 65535)))]
    pub skip_ports: Vec<i32>,
}

/// Traffic from the application.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outbound {
    /// TCP destination ports to intercept. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(range(min = 1, max = 65535)))]
    pub ports: Vec<i32>,
    /// Destinations to leave alone, such as `10.0.0.0/8` or `fd00::/8`.
    #[serde(default, skip_serializing_if = "Vec::is_empty", rename = "skipCIDRs")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 43)))]
    pub skip_cidrs: Vec<String>,
    /// Hosts whose requests pass without policy; `*.example.org` allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    pub skip_hosts: Vec<String>,
}

/// A place where the proxy listens.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Name of the listener, unique in the proxy.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// IP address to listen on.
    #[serde(default = "default_listener_address")]
    #[schemars(length(min = 2, max = 45))]
    pub address: String,
    /// TCP port to listen on.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// Which policies hold: those for requests to the application or from it.
    #[serde(default)]
    pub direction: Direction,
    /// Where requests go (reverse proxy), such as `http://127.0.0.1:9000`; `h2c://` speaks HTTP/2 in clear. None: a forward
    /// proxy for absolute URIs and CONNECT, only with direction Outbound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub upstream: Option<String>,
}

fn default_listener_address() -> String {
    "127.0.0.1".to_owned()
}

/// What happens to opted-in pods that were created without a sidecar.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum MissedPods {
    /// They are counted in `status.pods` and named in an event on their owner.
    #[default]
    Report,
    /// They are also evicted, one at a time and within their disruption budgets, if a controller will make them anew.
    Evict,
}

/// Connections to upstreams.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Upstream {
    /// Until a connection stands. Default 1s.
    #[serde(default = "seconds::<1>")]
    pub connect_timeout: Duration,
    /// From the end of the request to the head of the response. Default 15s.
    #[serde(default = "seconds::<15>")]
    pub response_header_timeout: Duration,
    /// How long an idle connection is kept, and how long a body may pause. Default 60s.
    #[serde(default = "seconds::<60>")]
    pub idle_timeout: Duration,
    /// Connections to one host and port, over all workers. Default 256.
    #[serde(default = "default_max_connections_per_host")]
    #[schemars(range(min = 1, max = 65535))]
    pub max_connections_per_host: i32,
}

fn seconds<const N: u64>() -> Duration {
    Duration::from_secs(N)
}

fn default_max_connections_per_host() -> i32 {
    256
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            connect_timeout: seconds::<1>(),
            response_header_timeout: seconds::<15>(),
            idle_timeout: seconds::<60>(),
            max_connections_per_host: default_max_connections_per_host(),
        }
    }
}

/// Which peers may say who the client is.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientAddress {
    /// Peers whose `X-Forwarded-*` and `Forwarded` fields are believed and extended; those of all others are replaced.
    /// The client is the right-most address of `X-Forwarded-For` that is not in here. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty", rename = "trustedCIDRs")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 43)))]
    pub trusted_cidrs: Vec<String>,
}

/// Metrics and health.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Telemetry {
    /// Port of `/metrics`, `/livez`, `/readyz`. Default 4621.
    #[serde(default = "default_metrics_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub metrics_port: i32,
}

fn default_metrics_port() -> i32 {
    4621
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { metrics_port: default_metrics_port() }
    }
}

/// The sidecar's own log.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Logging {
    /// The least severe level that is written.
    #[serde(default)]
    pub level: LogLevel,
    /// Shape of a line.
    #[serde(default)]
    pub format: LogFormat,
}

/// Severity of a log line.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum LogLevel {
    /// Only what failed.
    Error,
    /// And what may fail soon.
    Warn,
    /// And what changed.
    #[default]
    Info,
    /// And why.
    Debug,
    /// And everything else.
    Trace,
}

/// Shape of a log line.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Text,
}

/// How a pod ends.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Drain {
    /// How long connections are still accepted after readiness is gone. Default 5s.
    #[serde(default = "seconds::<5>")]
    pub delay: Duration,
    /// How long requests under way may take after that. Default 30s.
    #[serde(default = "seconds::<30>")]
    pub timeout: Duration,
    /// Whether the pod is changed at injection so that no request is lost when it ends.
    #[serde(default)]
    pub adjust_pod: AdjustPod,
}

impl Default for Drain {
    fn default() -> Self {
        Self { delay: seconds::<5>(), timeout: seconds::<30>(), adjust_pod: AdjustPod::default() }
    }
}

/// Whether a pod's own termination is changed at injection.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum AdjustPod {
    /// Containers without a `preStop` get one that sleeps for `drain.delay`, and the grace period grows by it.
    #[default]
    Adjust,
    /// It is left as it is.
    Leave,
}

/// How a pod starts.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Startup {
    /// How long the sidecar waits for its first configuration. Default 10s.
    #[serde(default = "seconds::<10>")]
    pub config_timeout: Duration,
    /// What happens without one. Default: Block where injection is required, else PassThrough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_no_config: Option<OnNoConfig>,
}

impl Default for Startup {
    fn default() -> Self {
        Self { config_timeout: seconds::<10>(), on_no_config: None }
    }
}

/// What a sidecar does that got no configuration in time.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum OnNoConfig {
    /// It forwards without policy, and says so.
    PassThrough,
    /// It answers 503 and is not ready.
    Block,
}

/// What the operator reports for a proxy.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FetchrProxyStatus {
    /// Generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// How many pods stand where.
    #[serde(default)]
    pub pods: PodCounts,
    /// `Ready`, `Accepted`, `Injected`, `Programmed`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// How many pods stand where.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodCounts {
    /// Opted-in pods that the proxy selects.
    #[serde(default)]
    pub matched: i32,
    /// Those with a sidecar.
    #[serde(default)]
    pub injected: i32,
    /// Those whose sidecar was injected from another version or other settings than now.
    #[serde(default)]
    pub outdated: i32,
    /// Those whose sidecar has acknowledged the newest plan.
    #[serde(default)]
    pub programmed: i32,
}
