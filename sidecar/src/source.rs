//! Where the configuration comes from: files, the operator's streams, and for a start without an operator the mounted
//! ConfigMap or the plan that an earlier start kept.

pub mod coldstart;
pub mod file;
pub mod order;
pub mod state;
pub mod stream;

use std::time::SystemTime;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::services::Services;

/// What the sources count. Clones share one state.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    plans: Family<PlanLabels, Counter>,
    refused: Family<ReasonLabels, Counter>,
    streams: Gauge,
    behind: Counter,
    restored: Counter,
    applied: Gauge,
    services: Gauge,
    endpoints: Gauge,
    told_of_services: Family<ResultLabels, Counter>,
    unusable_of_services: Counter,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct PlanLabels {
    source: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ResultLabels {
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
        registry.register(
            "fetchr_config_restored",
            "Plans older than the one in force that were taken, since all operators had offered only older ones for a minute",
            self.restored.clone(),
        );
        registry.register(
            "fetchr_config_applied_timestamp_seconds",
            "When a plan was last put in force, in seconds since the epoch; 0 if none was",
            self.applied.clone(),
        );
        registry.register("fetchr_services", "Services that an operator told of", self.services.clone());
        registry.register("fetchr_service_endpoints", "Endpoints of these Services", self.endpoints.clone());
        registry.register(
            "fetchr_services_messages",
            "Messages about Services, by what came of them",
            self.told_of_services.clone(),
        );
        registry.register(
            "fetchr_services_unusable",
            "Services, ports, addresses and endpoints that an operator told of and that can't be used",
            self.unusable_of_services.clone(),
        );
    }

    /// Counts a message about Services.
    fn told_of_services(&self, result: &'static str) {
        self.told_of_services.get_or_create(&ResultLabels { result }).inc();
    }

    /// Counts what was left out of a message about Services.
    fn unusable_of_services(&self, count: usize) {
        self.unusable_of_services.inc_by(count as u64);
    }

    fn serves(&self, services: &Services) {
        self.services.set(i64::try_from(services.len()).unwrap_or(i64::MAX));
        self.endpoints.set(i64::try_from(services.endpoints()).unwrap_or(i64::MAX));
    }

    fn planned(&self, source: &'static str, applied: bool) {
        let result = if applied { "applied" } else { "refused" };
        self.plans.get_or_create(&PlanLabels { source, result }).inc();
        if applied {
            let now = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
            self.applied.set(i64::try_from(now).unwrap_or(i64::MAX));
        }
    }

    fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabels { reason }).inc();
    }
}
