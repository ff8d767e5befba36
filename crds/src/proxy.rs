//! `FetchrProxy`: how sidecars run.

mod archive;
mod cache;
mod http;
mod limits;
mod redis;
mod tls;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
};

use k8s_openapi::{
    api::core::v1::ResourceRequirements,
    apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector},
};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::archive::{Archive, ArchiveBackend, ArchiveFile, ArchiveS3, ArchiveS3Credentials, PathStyle};
pub use self::cache::{CacheDisk, CacheMemory, CachePersistence, CachePurge, CacheShared, CacheStore, Eviction, WhenCutOff};
pub use self::http::{DotSegments, EncodedSlashes, Http, HttpLimits, HttpPath, PathForward, Slashes, Trace};
pub use self::limits::LimitStore;
pub use self::redis::{Redis, RedisCredentials, RedisMode, RedisSentinel, RedisTls, RedisTlsMode};
pub use self::tls::{CaBundle, Certificate, ListenerTls, SecretKeys, SecretRef, TlsVersion, UpstreamTls};
use crate::{
    check::{
        CIDR_PATTERN, HOST_PATTERN, NAME, UPSTREAM_PATTERN, check_address, check_at_most, check_cidrs, check_host_patterns,
        check_not_zero, check_resources, check_upstream,
    },
    policy::Direction,
    problems::{FieldPath, Problems},
    rule::Rule,
    scalar::Duration,
    schema::{check_selector, conditions_schema, resources_schema, selector_schema},
};

const SHARED_THROUGH_REDIS: Rule = Rule::new(
    "!has(self.cache) || !has(self.cache.shared) || has(self.redis)",
    "cache.shared is kept in Redis: say where it is in redis, or leave it out",
)
.at(".cache");
const PERSISTED_IN_ARCHIVE: Rule = Rule::new(
    "!has(self.cache) || !has(self.cache.persistence) || has(self.archive)",
    "cache.persistence is kept in the archive: say where it is in archive, or leave it out",
)
.at(".cache");
const SHORT_NAME: Rule = Rule::new("self.metadata.name.size() <= 63", "the name of a FetchrProxy has at most 63 characters");
const LISTENERS_OF_MODE: Rule =
    Rule::new("has(self.listeners) == (self.mode == 'Explicit')", "mode Explicit needs listeners, and mode Init has none")
        .at(".listeners");
const FORWARD_IS_OUTBOUND: Rule = Rule::new(
    "has(self.upstream) || self.direction == 'Outbound'",
    "direction Inbound needs an upstream; a listener without one is a forward proxy, with direction Outbound",
)
.at(".upstream");
const TLS_OF_HTTPS: Rule = Rule::new(
    "!has(self.upstreamTLS) || !has(self.upstream) || self.upstream.startsWith('https://')",
    "TLS is spoken to upstreams of https:// only",
)
.at(".upstreamTLS");
const HTTP3_OVER_TLS: Rule = Rule::new(
    "self.http3 == 'Disabled' || has(self.tls) && self.proxyProtocol == 'Disabled'",
    "HTTP/3 needs tls, and knows no PROXY protocol",
)
.at(".http3");
const ONE_NAME_FOR_ONE: Rule = Rule::new(
    "has(self.upstream) || !has(self.upstreamTLS) || !has(self.upstreamTLS.serverName)",
    "a forward proxy asks each host for its own name: leave serverName out",
)
.at(".upstreamTLS");

/// Ports of the sidecar itself: interception, admin, metrics.
const OWN_PORTS: RangeInclusive<i32> = 4610..=4621;
/// Where a forward proxy is expected; a listener may take it.
const FORWARD_PORT: i32 = 4612;
const METRICS_PORT: i32 = 4621;

/// How sidecars run: which pods, what is intercepted, resources, upstream connections, telemetry, start and drain.
#[derive(Clone, CustomResource, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[kube(
    group = "fetchr.sh",
    version = "v1alpha1",
    kind = "FetchrProxy",
    plural = "fetchrproxies",
    shortname = "fxp",
    category = "fetchr",
    doc = "How sidecars run.",
    namespaced,
    status = "FetchrProxyStatus",
    derive = "PartialEq",
    validation = SHORT_NAME,
    selectable = ".spec.interception.mode",
    printcolumn = r#"{"name":"Mode","type":"string","jsonPath":".spec.interception.mode"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].reason"}"#,
    printcolumn = r#"{"name":"Pods","type":"integer","jsonPath":".status.pods.matched"}"#,
    printcolumn = r#"{"name":"Programmed","type":"integer","jsonPath":".status.pods.programmed"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[schemars(extend("x-kubernetes-validations" = [SHARED_THROUGH_REDIS, PERSISTED_IN_ARCHIVE]))]
#[serde(rename_all = "camelCase")]
pub struct FetchrProxySpec {
    /// Pods that this proxy is for. Empty: every opted-in pod of the namespace that no other proxy selects.
    #[serde(default, skip_serializing_if = "is_empty_selector")]
    #[schemars(schema_with = "selector_schema")]
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
    #[schemars(schema_with = "resources_schema")]
    pub resources: ResourceRequirements,
    /// Connections to upstreams.
    #[serde(default)]
    pub upstream: Upstream,
    /// How requests are read before a policy looks at them.
    #[serde(default)]
    pub http: Http,
    /// Through what the pods share what they must agree upon. None: each is for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis: Option<Redis>,
    /// Where sidecars keep what has to outlive them. None: nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<Archive>,
    /// Where answers are kept that policies let the cache keep.
    #[serde(default)]
    pub cache: CacheStore,
    /// What a pod keeps of the policies' limits.
    #[serde(default)]
    pub rate_limits: LimitStore,
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

impl Default for FetchrProxySpec {
    fn default() -> Self {
        Self {
            selector: LabelSelector::default(),
            interception: Interception::default(),
            missed_pods: MissedPods::default(),
            workers: None,
            resources: default_resources(),
            upstream: Upstream::default(),
            http: Http::default(),
            redis: None,
            archive: None,
            cache: CacheStore::default(),
            rate_limits: LimitStore::default(),
            client_address: ClientAddress::default(),
            telemetry: Telemetry::default(),
            logging: Logging::default(),
            drain: Drain::default(),
            startup: Startup::default(),
        }
    }
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
#[schemars(extend("x-kubernetes-validations" = [LISTENERS_OF_MODE]))]
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
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
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
    #[schemars(length(max = 64), inner(range(min = 1, max = 65535)), extend("x-kubernetes-list-type" = "set"))]
    pub ports: Option<Vec<i32>>,
    /// TCP ports to leave alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(range(min = 1, max = 65535)), extend("x-kubernetes-list-type" = "set"))]
    pub skip_ports: Vec<i32>,
}

/// Traffic from the application.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outbound {
    /// TCP destination ports to intercept. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(range(min = 1, max = 65535)), extend("x-kubernetes-list-type" = "set"))]
    pub ports: Vec<i32>,
    /// Destinations to leave alone, such as `10.0.0.0/8` or `fd00::/8`.
    #[serde(default, skip_serializing_if = "Vec::is_empty", rename = "skipCIDRs")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 43), regex(pattern = CIDR_PATTERN)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub skip_cidrs: Vec<String>,
    /// Hosts whose requests pass without policy; `*.example.org` allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 253), regex(pattern = HOST_PATTERN)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub skip_hosts: Vec<String>,
}

/// A place where the proxy listens.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[schemars(extend("x-kubernetes-validations" = [FORWARD_IS_OUTBOUND, TLS_OF_HTTPS, ONE_NAME_FOR_ONE, HTTP3_OVER_TLS]))]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Name of the listener, unique in the proxy.
    #[schemars(length(min = 1, max = 63), regex(pattern = NAME))]
    pub name: String,
    /// IP address to listen on.
    #[serde(default = "default_listener_address")]
    #[schemars(length(min = 2, max = 45), regex(pattern = "^[0-9a-fA-F:.]+$"))]
    pub address: String,
    /// TCP port to listen on.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// Which policies hold: those for requests to the application or from it.
    #[serde(default)]
    pub direction: Direction,
    /// TLS with its clients. None: in clear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ListenerTls>,
    /// Whether a load balancer in front says who the client is.
    #[serde(default)]
    pub proxy_protocol: ProxyProtocol,
    /// Whether HTTP/3 is spoken, too, over QUIC at the same port of UDP. Only with `tls`, and in builds with the feature `http3`.
    #[serde(default)]
    pub http3: Http3,
    /// Where requests go (reverse proxy), such as `http://127.0.0.1:9000`; `h2c://` speaks HTTP/2 in clear, `https://` TLS and
    /// HTTP/2 or 1.1, as the upstream prefers. None: a forward proxy for absolute URIs and CONNECT, only with direction Outbound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = UPSTREAM_PATTERN))]
    pub upstream: Option<String>,
    /// TLS to an upstream of `https://`; of a forward proxy, to the hosts of `https` URIs.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "upstreamTLS")]
    pub upstream_tls: Option<UpstreamTls>,
}

/// HTTP/3 (RFC 9114).
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Http3 {
    /// It is not spoken.
    #[default]
    Disabled,
    /// It is spoken, and answers over HTTP/1 and HTTP/2 say so (`Alt-Svc`).
    Enabled,
}

/// The PROXY protocol of HAProxy, versions 1 and 2.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum ProxyProtocol {
    /// It is not spoken: what comes first is HTTP or TLS.
    #[default]
    Disabled,
    /// Every connection begins with its header, else it is closed. Whoever reaches the listener can claim any client address.
    Required,
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
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 43), regex(pattern = CIDR_PATTERN)),
        extend("x-kubernetes-list-type" = "set")
    )]
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
    METRICS_PORT
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
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// How many pods stand where.
    #[serde(default)]
    pub pods: PodCounts,
    /// `Ready`, `Accepted`, `Injected`, `Programmed`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
}

/// How many pods stand where.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodCounts {
    /// Opted-in pods that the proxy selects.
    #[serde(default)]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub matched: i32,
    /// Those with a sidecar.
    #[serde(default)]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub injected: i32,
    /// Those whose sidecar was injected from another version or other settings than now.
    #[serde(default)]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub outdated: i32,
    /// Those whose sidecar has acknowledged the newest plan.
    #[serde(default)]
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub programmed: i32,
}

impl FetchrProxySpec {
    /// The Secrets that it names, and which of their keys are read: what has to be mounted into the sidecar.
    pub fn secrets(&self) -> BTreeSet<(&SecretRef, SecretKeys)> {
        let listeners = self.interception.listeners.iter().flat_map(Listener::secrets);
        let archive = self.archive.iter().filter_map(Archive::secret);
        listeners.chain(self.redis.iter().flat_map(Redis::secrets)).chain(archive).collect()
    }

    /// What is wrong with the proxy beyond what types and patterns of the schema say. The webhook refuses a proxy with these words.
    pub fn check(&self) -> Problems {
        let mut problems = Problems::default();
        let at = FieldPath::root("spec");
        check_selector(&self.selector, &at.field("selector"), &mut problems);
        self.interception.check(&at.field("interception"), &mut problems);
        check_resources(&self.resources, &at.field("resources"), &mut problems);
        self.upstream.check(&at.field("upstream"), &mut problems);
        self.http.limits.check(&at.field("http").field("limits"), &mut problems);
        if let Some(redis) = &self.redis {
            redis.check(&at.field("redis"), &mut problems);
        }
        if let Some(archive) = &self.archive {
            archive.check(&at.field("archive"), &mut problems);
        }
        self.cache.check(&at.field("cache"), &mut problems);
        PERSISTED_IN_ARCHIVE.check(self.cache.persistence.is_none() || self.archive.is_some(), &at, &mut problems);
        SHARED_THROUGH_REDIS.check(self.cache.shared.is_none() || self.redis.is_some(), &at, &mut problems);
        check_cidrs(&self.client_address.trusted_cidrs, &at.field("clientAddress").field("trustedCIDRs"), &mut problems);
        self.check_metrics_port(&at.field("telemetry").field("metricsPort"), &mut problems);
        let drain = at.field("drain");
        check_at_most(self.drain.delay, LONGEST_WAIT, &drain.field("delay"), &mut problems);
        check_at_most(self.drain.timeout, LONGEST_WAIT, &drain.field("timeout"), &mut problems);
        let config_timeout = at.field("startup").field("configTimeout");
        check_at_most(self.startup.config_timeout, LONGEST_WAIT, &config_timeout, &mut problems);
        problems
    }

    fn check_metrics_port(&self, at: &FieldPath, problems: &mut Problems) {
        let port = self.telemetry.metrics_port;
        if port != METRICS_PORT && OWN_PORTS.contains(&port) {
            problems.add(at, format!("{port} is a port of the sidecar itself: write 4621 or one outside of 4610 to 4621"));
        }
        let inbound = self.interception.inbound.ports.iter().flatten();
        if inbound.chain(self.interception.listeners.iter().map(|listener| &listener.port)).any(|taken| *taken == port) {
            problems.add(at, format!("{port} is taken by the application or by a listener: choose another port"));
        }
    }
}

/// Longest wait at the start and at the end of a pod.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

impl Interception {
    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        let Self { mode, inbound, outbound, listeners } = self;
        LISTENERS_OF_MODE.check(listeners.is_empty() != (*mode == InterceptionMode::Explicit), at, problems);
        for (index, port) in inbound.ports.iter().flatten().enumerate() {
            if OWN_PORTS.contains(port) {
                let message =
                    format!("{port} is a port of the sidecar itself: the application needs one outside of 4610 to 4621");
                problems.add(&at.field("inbound").field("ports").index(index), message);
            }
        }
        let outbound_at = at.field("outbound");
        check_cidrs(&outbound.skip_cidrs, &outbound_at.field("skipCIDRs"), problems);
        check_host_patterns(&outbound.skip_hosts, &outbound_at.field("skipHosts"), problems);
        let mut taken = BTreeMap::new();
        for (index, listener) in listeners.iter().enumerate() {
            let at = at.field("listeners").index(index);
            listener.check(&at, problems);
            if let Some(other) = taken.insert((&listener.address, listener.port), &listener.name) {
                let message =
                    format!("listener {other} has {} port {} already: choose another port", listener.address, listener.port);
                problems.add(&at.field("port"), message);
            }
        }
    }
}

impl Listener {
    fn secrets(&self) -> impl Iterator<Item = (&SecretRef, SecretKeys)> {
        let clients = self.tls.iter().flat_map(ListenerTls::secrets);
        clients.chain(self.upstream_tls.iter().flat_map(UpstreamTls::secrets))
    }

    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        check_address(&self.address, &at.field("address"), problems);
        FORWARD_IS_OUTBOUND.check(self.upstream.is_some() || self.direction == Direction::Outbound, at, problems);
        if let Some(upstream) = &self.upstream {
            check_upstream(upstream, &at.field("upstream"), problems);
        }
        let is_clear = self.upstream.as_ref().is_some_and(|upstream| !upstream.starts_with("https://"));
        TLS_OF_HTTPS.check(self.upstream_tls.is_none() || !is_clear, at, problems);
        let named = self.upstream_tls.as_ref().is_some_and(|tls| tls.server_name.is_some());
        ONE_NAME_FOR_ONE.check(self.upstream.is_some() || !named, at, problems);
        let can_quic = self.tls.is_some() && self.proxy_protocol == ProxyProtocol::Disabled;
        HTTP3_OVER_TLS.check(self.http3 == Http3::Disabled || can_quic, at, problems);
        if let Some(tls) = &self.tls {
            tls.check(&at.field("tls"), problems);
        }
        if let Some(tls) = &self.upstream_tls {
            tls.check(&at.field("upstreamTLS"), problems);
        }
        if self.port != FORWARD_PORT && OWN_PORTS.contains(&self.port) {
            let message = format!("{} is a port of the sidecar itself: choose 4612, or one outside of 4610 to 4621", self.port);
            problems.add(&at.field("port"), message);
        }
    }
}

impl Upstream {
    fn check(&self, at: &FieldPath, problems: &mut Problems) {
        check_not_zero(self.connect_timeout, &at.field("connectTimeout"), problems);
        check_not_zero(self.response_header_timeout, &at.field("responseHeaderTimeout"), problems);
        check_not_zero(self.idle_timeout, &at.field("idleTimeout"), problems);
    }
}

/// The rule on names that both the schema and `validate_value` know; it is about `metadata`, so `check` can't see it.
pub(crate) fn check_name(name: &str, problems: &mut Problems) {
    SHORT_NAME.check(name.chars().count() <= 63, &FieldPath::root("metadata").field("name"), problems);
}
