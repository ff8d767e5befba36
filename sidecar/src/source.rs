//! Where the configuration comes from: files, the operator's streams, and for a start without an operator the mounted
//! ConfigMap or the plan that an earlier start kept.

pub mod coldstart;
pub mod file;
pub mod order;
pub mod state;
pub mod stream;

use std::time::Duration;

use crds::proxy::OnNoConfig;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::config::Shared;

/// Waits for the first plan for `patience` (`startup.configTimeout`). If none comes, `on_no_config` holds until one does.
pub async fn give_up_after(shared: Shared, patience: Duration, on_no_config: OnNoConfig) {
    tokio::time::sleep(patience).await;
    if shared.give_up(on_no_config) {
        tracing::warn!(?patience, ?on_no_config, "No configuration came in time.");
    }
}

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

#[cfg(test)]
mod tests {
    use crds::proxy::FetchrProxySpec;

    use super::*;
    use crate::config::{Config, Standing};

    #[tokio::test(start_paused = true)]
    async fn sidecar_waits_for_its_first_plan_only_so_long() {
        let shared = Shared::new(Config::waiting(FetchrProxySpec::default()));
        let waiting = tokio::spawn(give_up_after(shared.clone(), Duration::from_secs(10), OnNoConfig::PassThrough));
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert_eq!(shared.load().standing, Standing::Waiting);
        waiting.await.unwrap();
        assert_eq!(shared.load().standing, Standing::PassThrough);
    }
}
