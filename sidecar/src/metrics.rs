//! What the data path counts, in the names of OpenTelemetry's semantic conventions in Prometheus spelling, and the registry
//! that every other part registers its own figures with.

use std::{
    fmt::{self, Write as _},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use crds::policy::{Direction, Mode};
use http::{Method, StatusCode, Version};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};

mod meter;
mod process;
mod tasks;

pub(crate) use meter::Meter;

/// Seconds; the buckets that OpenTelemetry advises for HTTP durations, with three finer ones below.
const SECONDS: [f64; 17] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0];

/// Most series that one family of the data path holds; what comes later is counted under [`OTHER`].
const MAX_SERIES: usize = 2000;

/// Label value for what has no series of its own.
pub const OTHER: &str = "_OTHER";

/// Durations of requests by their labels.
type Durations = Family<RequestLabels, Histogram, fn() -> Histogram>;

/// All figures of the data path and the registry of the process.
pub struct Metrics {
    registry: Mutex<Registry>,
    server: Durations,
    client: Durations,
    series: AtomicUsize,
    /// Requests under way.
    pub active: Family<DirectionLabels, Gauge>,
    /// Open connections.
    pub connections: Family<ConnectionLabels, Gauge>,
    /// Body and tunnel bytes that passed.
    pub bytes: Family<ByteLabels, Counter>,
    /// Requests and connections that failed, by reason.
    pub errors: Family<ReasonLabels, Counter>,
    /// What was refused for want of room.
    pub dropped: Family<ReasonLabels, Counter>,
    /// Panics that were caught.
    pub panics: Counter,
    /// Attempts that were made again on a fresh connection.
    pub retries: Counter,
    /// What the sections about tries did.
    pub policy_events: Family<EventLabels, Counter>,
    policy_series: AtomicUsize,
    /// Interim answers of upstreams, by what came of them.
    pub interims: Family<OutcomeLabels, Counter>,
    /// Names that were asked for, by what came of it.
    pub lookups: Family<OutcomeLabels, Counter>,
    /// Addresses that were too old when a connection needed them.
    pub dns_stale: Counter,
    /// Upstream connections that are open, idle ones included.
    pub upstream_open: Gauge,
    /// Upstream connections that were opened.
    pub opened: Counter,
    /// Attempts that took a pooled connection.
    pub reused: Counter,
    /// The workers' runtimes.
    pub(crate) tasks: tasks::Tasks,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// A registry with the figures of the data path, of the process and of the build.
    pub fn new() -> Arc<Self> {
        let seconds: fn() -> Histogram = || Histogram::new(SECONDS);
        let mut metrics = Self {
            registry: Mutex::new(Registry::default()),
            server: Durations::new_with_constructor(seconds),
            client: Durations::new_with_constructor(seconds),
            series: AtomicUsize::new(0),
            active: Family::default(),
            connections: Family::default(),
            bytes: Family::default(),
            errors: Family::default(),
            dropped: Family::default(),
            panics: Counter::default(),
            retries: Counter::default(),
            policy_events: Family::default(),
            policy_series: AtomicUsize::new(0),
            interims: Family::default(),
            lookups: Family::default(),
            dns_stale: Counter::default(),
            upstream_open: Gauge::default(),
            opened: Counter::default(),
            reused: Counter::default(),
            tasks: tasks::Tasks::default(),
        };
        let mut registry = Registry::default();
        metrics.register_all(&mut registry);
        metrics.registry = Mutex::new(registry);
        Arc::new(metrics)
    }

    fn register_all(&self, registry: &mut Registry) {
        registry.register(
            "http_server_request_duration_seconds",
            "From the head of a request to the end of its response",
            self.server.clone(),
        );
        registry.register(
            "http_client_request_duration_seconds",
            "From the start of an attempt to the head of its response",
            self.client.clone(),
        );
        registry.register("http_server_active_requests", "Requests under way", self.active.clone());
        registry.register("fetchr_connections_open", "Open connections by kind", self.connections.clone());
        registry.register("fetchr_bytes", "Body and tunnel bytes that passed", self.bytes.clone());
        registry.register("fetchr_errors", "Requests and connections that failed, by reason", self.errors.clone());
        registry.register("fetchr_dropped", "What was refused for want of room, by reason", self.dropped.clone());
        registry.register("fetchr_panics", "Panics that were caught; each cost one connection", self.panics.clone());
        registry.register("fetchr_upstream_retries", "Attempts made again on a fresh connection", self.retries.clone());
        registry.register(
            "fetchr_upstream_policy_events",
            "What retry, loadBalancing, circuitBreaker and failover did, or would have done in mode Shadow",
            self.policy_events.clone(),
        );
        registry.register(
            "fetchr_interim_responses",
            "Interim answers (1xx) of upstreams, other than 100 and 101, by what came of them",
            self.interims.clone(),
        );
        registry.register("fetchr_dns_lookups", "Names that were looked up, by what came of it", self.lookups.clone());
        registry.register(
            "fetchr_dns_stale",
            "Times that a name's addresses were too old and had to be looked up first",
            self.dns_stale.clone(),
        );
        registry.register(
            "fetchr_upstream_connections_open",
            "Open upstream connections, idle ones included",
            self.upstream_open.clone(),
        );
        registry.register("fetchr_upstream_connections_opened", "Upstream connections opened", self.opened.clone());
        registry.register("fetchr_upstream_connections_reused", "Attempts on a pooled connection", self.reused.clone());
        registry.register("fetchr_build", "Version of the program", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        registry.register_collector(Box::new(process::Process::new()));
        registry.register_collector(Box::new(self.tasks.clone()));
    }

    /// Registers the figures of another part.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// All figures as OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        if text::encode(&mut text, &registry).is_err() {
            // Writing to a string fails only if a collector does; an empty page shows it.
            text.clear();
        }
        text
    }

    /// Counts a failure.
    pub fn error(&self, direction: Direction, reason: &'static str) {
        self.errors.get_or_create(&ReasonLabels { direction: direction.into(), reason }).inc();
    }

    /// Counts what a section about tries did.
    pub(crate) fn policy_event(&self, route: &Arc<str>, section: &'static str, event: &'static str, mode: Mode) {
        let mode = if mode == Mode::Shadow { "shadow" } else { "enforce" };
        let mut labels = EventLabels { route: Arc::clone(route), section, event, mode };
        let known = self.policy_events.get(&labels).is_some();
        if !known && self.policy_series.fetch_add(1, Ordering::Relaxed) >= MAX_SERIES {
            labels.route = OTHER.into();
        }
        self.policy_events.get_or_create_owned(&labels).inc();
    }

    /// Counts a name that was looked up.
    pub fn looked_up(&self, outcome: &'static str) {
        self.lookups.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// Counts an interim answer.
    pub(crate) fn interim(&self, outcome: &'static str) {
        self.interims.get_or_create(&OutcomeLabels { outcome }).inc();
    }

    /// Requests of a direction that are under way.
    pub(crate) fn under_way(&self, direction: Direction) -> u64 {
        self.active.get_or_create(&DirectionLabels { direction: direction.into() }).get().try_into().unwrap_or(0)
    }

    /// Counts something that was refused for want of room.
    pub fn drop_counted(&self, direction: Direction, reason: &'static str) {
        self.dropped.get_or_create(&ReasonLabels { direction: direction.into(), reason }).inc();
    }
}

/// Which way a request goes, as a label.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct DirectionLabel(Direction);

impl From<Direction> for DirectionLabel {
    fn from(direction: Direction) -> Self {
        Self(direction)
    }
}

impl EncodeLabelValue for DirectionLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self.0 {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        })
    }
}

/// Labels of a duration.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct RequestLabels {
    /// Which way the request goes.
    pub direction: DirectionLabel,
    /// Method, or `_OTHER` for one that RFC 9110 does not define.
    pub http_request_method: &'static str,
    /// Status of the answer; 0 when there was none.
    pub http_response_status_code: u16,
    /// Name of the rule that the route was chosen by.
    pub http_route: Arc<str>,
    /// `1.0`, `1.1`, `2` or `3`.
    pub network_protocol_version: &'static str,
    /// Why there was no answer, or not a whole one.
    pub error_type: Option<&'static str>,
}

impl RequestLabels {
    /// Labels of a request without an answer yet.
    pub fn new(direction: Direction, method: &Method, version: Version, route: Arc<str>) -> Self {
        Self {
            direction: direction.into(),
            http_request_method: method_label(method),
            http_response_status_code: 0,
            http_route: route,
            network_protocol_version: version_label(version),
            error_type: None,
        }
    }

    /// The labels with another version.
    pub(crate) fn over(mut self, version: Version) -> Self {
        self.network_protocol_version = version_label(version);
        self
    }

    /// The labels with the status of the answer.
    pub fn answered(mut self, status: StatusCode) -> Self {
        self.http_response_status_code = status.as_u16();
        self
    }
}

fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::CONNECT => "CONNECT",
        Method::OPTIONS => "OPTIONS",
        Method::TRACE => "TRACE",
        Method::PATCH => "PATCH",
        _ => OTHER,
    }
}

fn version_label(version: Version) -> &'static str {
    match version {
        Version::HTTP_3 => "3",
        Version::HTTP_2 => "2",
        Version::HTTP_10 => "1.0",
        _ => "1.1",
    }
}

/// Labels of a figure by direction.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct DirectionLabels {
    /// Which way the request goes.
    pub direction: DirectionLabel,
}

/// Labels of open connections.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct ConnectionLabels {
    /// Which way its requests go.
    pub direction: DirectionLabel,
    /// `http1`, `http2`, `http3`, `tcp`, `tunnel`, `detecting`.
    pub kind: &'static str,
}

/// Labels of bytes.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct ByteLabels {
    /// Which way the request goes.
    pub direction: DirectionLabel,
    /// `request` (to the upstream) or `response`.
    pub part: &'static str,
}

/// Labels of a count by reason.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct ReasonLabels {
    /// Which way the request goes.
    pub direction: DirectionLabel,
    /// A word from the code, never from a peer.
    pub reason: &'static str,
}

/// Labels of what a section about tries did.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct EventLabels {
    /// `namespace/policy/rule`.
    pub route: Arc<str>,
    /// The section's field.
    pub section: &'static str,
    /// A word from the code.
    pub event: &'static str,
    /// `enforce` or `shadow`.
    pub mode: &'static str,
}

/// Labels of a count by outcome.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct OutcomeLabels {
    /// A word from the code.
    pub outcome: &'static str,
}

/// Keeps a gauge one higher while it lives.
#[derive(Debug)]
pub struct Raised(Gauge);

impl Raised {
    /// Raises the gauge.
    pub fn new(gauge: Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn labels(route: &str) -> RequestLabels {
        RequestLabels::new(Direction::Inbound, &Method::GET, Version::HTTP_11, route.into())
    }

    #[test]
    fn page_names_what_a_dashboard_reads() {
        let metrics = Metrics::new();
        let meter = Meter::new(Arc::clone(&metrics));
        let labels = labels("shop/catalogue/products").answered(StatusCode::OK);
        meter.request_ended(Direction::Inbound, &labels, Duration::from_millis(3), 0, 0);
        metrics.error(Direction::Inbound, "connection_refused");
        metrics.drop_counted(Direction::Inbound, "connection_limit");
        let page = metrics.encode();
        for line in [
            "http_server_request_duration_seconds_count{direction=\"inbound\",http_request_method=\"GET\",\
             http_response_status_code=\"200\",http_route=\"shop/catalogue/products\",network_protocol_version=\"1.1\"",
            "fetchr_errors_total{direction=\"inbound\",reason=\"connection_refused\"} 1",
            "fetchr_dropped_total{direction=\"inbound\",reason=\"connection_limit\"} 1",
            "fetchr_panics_total 0",
            "fetchr_build_info{version=",
            "process_resident_memory_bytes ",
            "process_open_fds ",
            "process_cpu_seconds_total ",
            "process_start_time_seconds ",
        ] {
            assert!(page.contains(line), "{line} is missing in\n{page}");
        }
    }

    #[test]
    fn series_beyond_the_bound_share_one() {
        let metrics = Metrics::new();
        let meter = Meter::new(Arc::clone(&metrics));
        for n in 0..MAX_SERIES + 50 {
            let labels = labels(&format!("route-{n}")).answered(StatusCode::OK);
            meter.request_ended(Direction::Inbound, &labels, Duration::ZERO, 0, 0);
        }
        let page = metrics.encode();
        assert!(page.contains("http_route=\"_OTHER\""));
        assert!(page.matches("http_server_request_duration_seconds_count{").count() <= MAX_SERIES + 1);
    }

    #[test]
    fn methods_that_nobody_defined_share_a_label() {
        let brew = Method::from_bytes(b"BREW").unwrap();
        assert_eq!(method_label(&brew), OTHER);
    }
}
