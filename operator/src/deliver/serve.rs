//! The Services of all streams, made anew when something behind one of them changes.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Hub;
use crate::{
    index::{Index, Shared},
    services::Catalog,
};

/// The first change is told at once; those of a burst, as when a Deployment rolls, after this pause, together.
const PAUSE: Duration = Duration::from_millis(100);
/// Making the sets takes at most one part in so many of the time.
const SHARE: u32 = 5;
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// What is told of Services.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    services: Gauge,
    endpoints: Gauge,
    left_out: Gauge,
    told: Counter,
    acknowledged: Counter,
    duration: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        let buckets = [0.0001, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0];
        Self {
            services: Gauge::default(),
            endpoints: Gauge::default(),
            left_out: Gauge::default(),
            told: Counter::default(),
            acknowledged: Counter::default(),
            duration: Histogram::new(buckets),
        }
    }
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("services", "Services that sidecars are told of", self.services.clone());
        registry.register("service_endpoints", "Endpoints of these Services", self.endpoints.clone());
        let help = "Services that plans ask for and that sidecars are not told of, since they are too many";
        registry.register("services_left_out", help, self.left_out.clone());
        registry.register("services_messages", "Messages about Services", self.told.clone());
        registry.register(
            "services_acknowledged",
            "Messages about Services that a sidecar has put in force",
            self.acknowledged.clone(),
        );
        let help = "Time from a change behind Services to what all plans ask for of them";
        registry.register_with_unit("services_compile_duration", help, Unit::Seconds, self.duration.clone());
    }

    pub(super) fn told(&self) {
        self.told.inc();
    }

    pub(super) fn acknowledged(&self) {
        self.acknowledged.inc();
    }
}

impl Hub {
    /// Keeps the Services of streams up to date until shut-down.
    pub(super) async fn serve_services(&self, index: &Shared, shutdown: &CancellationToken) {
        let mut changes = index.services_changed();
        let mut catalog = Catalog::default();
        let mut due = Instant::now();
        loop {
            let changed = async {
                tokio::select! {
                    changed = changes.changed() => changed.is_ok(),
                    () = self.asked.notified() => true,
                }
            };
            if shutdown.run_until_cancelled(changed).await != Some(true)
                || shutdown.run_until_cancelled(sleep_until(due)).await.is_none()
            {
                return;
            }
            changes.mark_unchanged();
            let begun = Instant::now();
            self.serve(&index.read(), &mut catalog);
            due = Instant::now() + pause_after(begun.elapsed());
        }
    }

    /// Tells every group of streams its Services, where they changed.
    pub(super) fn serve(&self, index: &Index, catalog: &mut Catalog) {
        // Before that, what is missing may well be there.
        if !index.is_complete() {
            return;
        }
        let begun = std::time::Instant::now();
        let (wanted, cluster_domain) = {
            let inner = self.lock();
            let wanted: Vec<_> = inner.groups.values().filter_map(|group| group.wanted.clone()).collect();
            (wanted, Arc::clone(&inner.cluster_domain))
        };
        // Not under the lock: streams that come now are served the next time, for they have rung.
        let sets = catalog.sets(&wanted, index, &cluster_domain);
        self.metrics.services.show(catalog, sets.values().map(|set| set.left_out).sum());
        for group in self.lock().groups.values() {
            let Some(set) = group.wanted.as_ref().and_then(|wanted| sets.get(wanted)) else { continue };
            group.services.send_if_modified(|current| {
                let changed = current.as_ref().is_none_or(|current| !current.is_same(set));
                // A newer version alone is no news; whoever asks next gets it.
                *current = Some(Arc::clone(set));
                changed
            });
        }
        self.metrics.services.duration.observe(begun.elapsed().as_secs_f64());
    }
}

impl Metrics {
    fn show(&self, catalog: &Catalog, left_out: usize) {
        let figures = [(&self.services, catalog.services), (&self.endpoints, catalog.endpoints), (&self.left_out, left_out)];
        for (gauge, figure) in figures {
            gauge.set(i64::try_from(figure).unwrap_or(i64::MAX));
        }
    }
}

/// How long to wait after making the sets took so long.
fn pause_after(took: Duration) -> Duration {
    (took * (SHARE - 1)).clamp(PAUSE, LONGEST_PAUSE)
}
