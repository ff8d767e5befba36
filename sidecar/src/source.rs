//! Where the configuration comes from: files, the operator's streams, and for a start without an operator the mounted
//! ConfigMap or the plan that an earlier start kept.

pub mod coldstart;
pub mod file;
pub mod order;
pub mod state;
pub mod stream;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// What the sources count. Clones share one state.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    plans: Family<PlanLabels, Counter>,
    refused: Family<ReasonLabels, Counter>,
    streams: Gauge,
    behind: Counter,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct PlanLabels {
    source: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ReasonLabels {
    reason: &'static str,
}

impl Metrics {
    /// Adds the figures to a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("fetchr_config_plans", "Plans that were put in force or could not be", self.plans.clone());
        registry.register("fetchr_coldstart_refused", "Cold-start plans that were ignored", self.refused.clone());
        registry.register("fetchr_config_streams", "Open streams to operators", self.streams.clone());
        registry.register("fetchr_config_behind", "Plans older than the one in force that were not taken", self.behind.clone());
    }

    fn planned(&self, source: &'static str, applied: bool) {
        let result = if applied { "applied" } else { "refused" };
        self.plans.get_or_create(&PlanLabels { source, result }).inc();
    }

    fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabels { reason }).inc();
    }
}
