//! Names that the injector writes into a pod and that `fetchr-proxy` and `fetchr-init` read.

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
        $($(#[$doc])* pub const $name: &str = $value;)*
    };
}

names! {
    /// Namespace of the pod.
    POD_NAMESPACE = "FETCHR_POD_NAMESPACE";
    /// Name of the pod.
    POD_NAME = "FETCHR_POD_NAME";
    /// UID of the pod.
    POD_UID = "FETCHR_POD_UID";
    /// Addresses of the pod, comma-separated.
    POD_IPS = "FETCHR_POD_IPS";
    /// `namespace/name` of the FetchrProxy that admission chose.
    PROXY = "FETCHR_PROXY";
    /// `Kind/name` of the pod's workload, resolved at admission.
    WORKLOAD = "FETCHR_WORKLOAD";
    /// `host:port` of the operator's config stream; every address behind the host gets a stream.
    OPERATOR = "FETCHR_OPERATOR";
    /// File of the projected service-account token.
    TOKEN_FILE = "FETCHR_TOKEN_FILE";
    /// PEM bundle of the operator's CA.
    CA_BUNDLE = "FETCHR_CA_BUNDLE";
    /// Ed25519 public keys that may sign cold-start plans, base64, comma-separated.
    PLAN_KEYS = "FETCHR_PLAN_KEYS";
    /// Folder where the ConfigMap `fetchr-plan` is mounted.
    PLAN_DIR = "FETCHR_PLAN_DIR";
    /// Folder where the Secrets that listeners name are mounted, one folder each; absent where they name none.
    SECRETS_DIR = "FETCHR_SECRETS_DIR";
    /// Folder that survives a restart of the container.
    STATE_DIR = "FETCHR_STATE_DIR";
    /// Folder of the volume for answers that are kept on disk; absent where none are.
    CACHE_DIR = "FETCHR_CACHE_DIR";
    /// Bytes of answers for which that volume has room, such as `1Gi`.
    CACHE_LIMIT = "FETCHR_CACHE_LIMIT";
    /// `Init` or `Explicit`.
    INTERCEPT = "FETCHR_INTERCEPT";
    /// How long to wait for the first configuration.
    CONFIG_TIMEOUT = "FETCHR_CONFIG_TIMEOUT";
    /// `PassThrough` or `Block`.
    ON_NO_CONFIG = "FETCHR_ON_NO_CONFIG";
    /// How long connections are accepted after readiness is gone.
    DRAIN_DELAY = "FETCHR_DRAIN_DELAY";
    /// How long requests under way may take after that.
    DRAIN_TIMEOUT = "FETCHR_DRAIN_TIMEOUT";
    /// Threads that serve requests.
    WORKERS = "FETCHR_WORKERS";
    /// Least severe level that is logged.
    LOG_LEVEL = "FETCHR_LOG_LEVEL";
    /// `Json` or `Text`.
    LOG_FORMAT = "FETCHR_LOG_FORMAT";
    /// Whether to run without the supervisor.
    NO_SUPERVISOR = "FETCHR_NO_SUPERVISOR";
    /// Port of the admin interface.
    ADMIN_PORT = "FETCHR_ADMIN_PORT";
    /// Port of metrics, health and rewritten probes.
    METRICS_PORT = "FETCHR_METRICS_PORT";
    /// Port of intercepted inbound traffic.
    INBOUND_PORT = "FETCHR_INBOUND_PORT";
    /// Port of intercepted outbound traffic.
    OUTBOUND_PORT = "FETCHR_OUTBOUND_PORT";
    /// Who speaks first on ports of the application, by their names: `3306=server,8080=client`; absent where no name says so.
    PORT_SPEAKERS = "FETCHR_PORT_SPEAKERS";
    /// JSON of the probes that were rewritten.
    PROBES = "FETCHR_PROBES";
    /// `fetchr-init`: ports whose inbound traffic is redirected, comma-separated.
    INBOUND_PORTS = "FETCHR_INBOUND_PORTS";
    /// `fetchr-init`: ports whose inbound traffic is left alone.
    SKIP_INBOUND_PORTS = "FETCHR_SKIP_INBOUND_PORTS";
    /// `fetchr-init`: destination ports whose outbound traffic is redirected.
    OUTBOUND_PORTS = "FETCHR_OUTBOUND_PORTS";
    /// `fetchr-init`: destinations whose outbound traffic is left alone.
    SKIP_CIDRS = "FETCHR_SKIP_CIDRS";
    /// `fetchr-init`: user whose traffic is never redirected.
    PROXY_UID = "FETCHR_PROXY_UID";
}
