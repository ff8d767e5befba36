//! What throttles did, in numbers.

use std::sync::{Arc, OnceLock};

use crds::policy::Mode;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// What became of a request at a throttle.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// It went at once.
    Admitted,
    /// It waited, and then went.
    Queued,
    /// There was no room to wait.
    QueueFull,
    /// It waited for as long as it may.
    MaxWait,
    /// Another one took its place in the queue.
    Preempted,
    /// It would have had to wait for longer than the rate allows.
    Rate,
    /// Its client does not wait any longer.
    Deadline,
    /// Its client has left while it waited.
    Abandoned,
}

impl Outcome {
    pub(crate) const ALL: [Self; 8] = [
        Self::Admitted,
        Self::Queued,
        Self::QueueFull,
        Self::MaxWait,
        Self::Preempted,
        Self::Rate,
        Self::Deadline,
        Self::Abandoned,
    ];

    /// Its name in metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Admitted => "admitted",
            Self::Queued => "queued",
            Self::QueueFull => "queue_full",
            Self::MaxWait => "max_wait",
            Self::Preempted => "preempted",
            Self::Rate => "rate",
            Self::Deadline => "deadline",
            Self::Abandoned => "abandoned",
        }
    }

    /// The error type in `Proxy-Status`, also the reason in metrics.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Admitted | Self::Queued | Self::QueueFull => "throttle_queue_full",
            Self::MaxWait => "throttle_max_wait",
            Self::Preempted => "throttle_preempted",
            Self::Rate => "throttle_rate",
            Self::Deadline | Self::Abandoned => "throttle_deadline",
        }
    }

    /// The same for people.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Admitted | Self::Queued | Self::QueueFull => "as many requests wait as may",
            Self::MaxWait => "the request has waited for as long as it may",
            Self::Preempted => "another request took its place in the queue",
            Self::Rate => "the request would have to wait for too long",
            Self::Deadline | Self::Abandoned => "its client does not wait any longer",
        }
    }
}

/// The figures of all throttles.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    requests: Family<Decided, Counter>,
    waits: Family<Waited, Histogram, fn() -> Histogram>,
    in_flight: Family<Named, Gauge>,
    queued: Family<Named, Gauge>,
    limit: Family<Named, Gauge>,
    gradient: Family<Named, Gauge<f64, std::sync::atomic::AtomicU64>>,
}

/// `namespace/name` of a policy, and one of its rules.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Named {
    policy: Arc<str>,
    rule: Arc<str>,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Decided {
    policy: Arc<str>,
    rule: Arc<str>,
    mode: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Waited {
    policy: Arc<str>,
    rule: Arc<str>,
    priority: Arc<str>,
}

impl Default for Metrics {
    fn default() -> Self {
        let seconds: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 14));
        Self {
            requests: Family::default(),
            waits: Family::new_with_constructor(seconds),
            in_flight: Family::default(),
            queued: Family::default(),
            limit: Family::default(),
            gradient: Family::default(),
        }
    }
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("fetchr_throttle_requests", "Requests at throttles, by what became of them", self.requests.clone());
        registry.register(
            "fetchr_throttle_wait_seconds",
            "How long requests waited at throttles before they went, of those that had to",
            self.waits.clone(),
        );
        registry.register("fetchr_throttle_in_flight", "Requests that throttles have let through", self.in_flight.clone());
        registry.register("fetchr_throttle_queued", "Requests that wait at throttles", self.queued.clone());
        registry.register("fetchr_throttle_limit", "Requests that throttles let through at a time", self.limit.clone());
        registry.register(
            "fetchr_throttle_gradient",
            "Latency of an upstream when few requests are under way, by its latency now",
            self.gradient.clone(),
        );
    }

    /// The figures of one throttle.
    pub(super) fn of(&self, policy: &Arc<str>, rule: &Arc<str>) -> Figures {
        let named = Named { policy: Arc::clone(policy), rule: Arc::clone(rule) };
        Figures {
            in_flight: self.in_flight.get_or_create_owned(&named),
            queued: self.queued.get_or_create_owned(&named),
            limit: self.limit.get_or_create_owned(&named),
            gradient: self.gradient.get_or_create_owned(&named),
            decided: Default::default(),
            metrics: self.clone(),
            named,
        }
    }
}

/// The figures of one throttle.
#[derive(Debug)]
pub(super) struct Figures {
    named: Named,
    metrics: Metrics,
    pub(super) in_flight: Gauge,
    pub(super) queued: Gauge,
    pub(super) limit: Gauge,
    pub(super) gradient: Gauge<f64, std::sync::atomic::AtomicU64>,
    /// By mode, and then by outcome.
    decided: [[OnceLock<Counter>; Outcome::ALL.len()]; 2],
}

impl Figures {
    /// Counts what became of a request.
    pub(super) fn count(&self, mode: Mode, outcome: Outcome) {
        let shadow = usize::from(mode == Mode::Shadow);
        let counter = self.decided[shadow][outcome as usize].get_or_init(|| {
            let Named { policy, rule } = self.named.clone();
            let mode = if mode == Mode::Shadow { "shadow" } else { "enforce" };
            self.metrics.requests.get_or_create_owned(&Decided { policy, rule, mode, outcome: outcome.label() })
        });
        counter.inc();
    }

    /// How many requests had an outcome, in both modes.
    pub(super) fn counted(&self, outcome: Outcome) -> u64 {
        self.decided.iter().filter_map(|mode| mode[outcome as usize].get()).map(Counter::get).sum()
    }

    /// Seconds that requests of a priority waited.
    pub(super) fn waits(&self, priority: &Arc<str>) -> Histogram {
        let Named { policy, rule } = self.named.clone();
        self.metrics.waits.get_or_create_owned(&Waited { policy, rule, priority: Arc::clone(priority) })
    }

    /// Takes the series of a priority that there is no more off the page.
    pub(super) fn forget_waits(&self, priority: &Arc<str>) {
        let Named { policy, rule } = self.named.clone();
        self.metrics.waits.remove(&Waited { policy, rule, priority: Arc::clone(priority) });
    }

    /// Takes the series of what is not counted any more off the page.
    pub(super) fn forget(&self, priorities: &[Arc<str>]) {
        let Named { policy, rule } = &self.named;
        let Metrics { requests, in_flight, queued, limit, gradient, .. } = &self.metrics;
        for mode in ["enforce", "shadow"] {
            for outcome in Outcome::ALL {
                let (policy, rule) = (Arc::clone(policy), Arc::clone(rule));
                requests.remove(&Decided { policy, rule, mode, outcome: outcome.label() });
            }
        }
        priorities.iter().for_each(|priority| self.forget_waits(priority));
        in_flight.remove(&self.named);
        queued.remove(&self.named);
        limit.remove(&self.named);
        gradient.remove(&self.named);
    }
}
