//! What one worker's requests are counted by, with the series at hand.

use std::{
    cell::RefCell,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use crds::policy::Direction;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge, histogram::Histogram};

use super::{ByteLabels, DirectionLabels, Durations, MAX_SERIES, Metrics, OTHER, RequestLabels};

/// Series that are kept at hand, at most.
const RECENT: usize = 16;

/// The figures of one worker. A look-up in a family costs a lock and two hashes of strings; here it costs a comparison, mostly.
pub(crate) struct Meter {
    metrics: Arc<Metrics>,
    server: Recent,
    client: Recent,
    inbound: Flows,
    outbound: Flows,
}

/// What is counted for a direction whatever the request.
struct Flows {
    active: Gauge,
    sent: Counter,
    received: Counter,
}

impl Meter {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        let flows = |direction: Direction| {
            let direction = direction.into();
            let bytes = |part| metrics.bytes.get_or_create_owned(&ByteLabels { direction, part });
            let active = metrics.active.get_or_create_owned(&DirectionLabels { direction });
            Flows { active, sent: bytes("request"), received: bytes("response") }
        };
        let (inbound, outbound) = (flows(Direction::Inbound), flows(Direction::Outbound));
        Self { server: Recent::default(), client: Recent::default(), inbound, outbound, metrics }
    }

    fn flows(&self, direction: Direction) -> &Flows {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }

    /// Counts a request as under way.
    pub(crate) fn request_started(&self, direction: Direction) {
        self.flows(direction).active.inc();
    }

    /// Counts a failure.
    pub(crate) fn error(&self, direction: Direction, reason: &'static str) {
        self.metrics.error(direction, reason);
    }

    /// Counts a request that has ended, and the bytes of its bodies.
    pub(crate) fn request_ended(&self, direction: Direction, labels: &RequestLabels, took: Duration, sent: u64, received: u64) {
        let flows = self.flows(direction);
        flows.active.dec();
        if sent > 0 {
            flows.sent.inc_by(sent);
        }
        flows.received.inc_by(received);
        self.server.observe(labels, took, || self.metrics.series(&self.metrics.server, labels));
    }

    /// Counts an attempt whose response has begun, or that failed.
    pub(crate) fn attempt_ended(&self, labels: &RequestLabels, took: Duration) {
        self.client.observe(labels, took, || self.metrics.series(&self.metrics.client, labels));
    }
}

/// The series that were used last, the last one first.
#[derive(Default)]
struct Recent(RefCell<Vec<(RequestLabels, Histogram)>>);

impl Recent {
    fn observe(&self, labels: &RequestLabels, took: Duration, find: impl FnOnce() -> Histogram) {
        let mut recent = self.0.borrow_mut();
        match recent.iter().position(|(of, _)| of == labels) {
            Some(0) => {}
            Some(at) => recent.swap(0, at),
            None => {
                recent.truncate(RECENT - 1);
                recent.insert(0, (labels.clone(), find()));
            }
        }
        recent[0].1.observe(took.as_secs_f64());
    }
}

impl Metrics {
    /// The series of these labels. Label sets beyond the bound fall into one, so that hostile methods or long lives never grow the
    /// page without end.
    fn series(&self, durations: &Durations, labels: &RequestLabels) -> Histogram {
        if let Some(series) = durations.get(labels) {
            series.clone()
        } else if self.series.fetch_add(1, Ordering::Relaxed) < MAX_SERIES {
            durations.get_or_create_owned(labels)
        } else {
            let other = RequestLabels { http_route: OTHER.into(), error_type: None, ..labels.clone() };
            durations.get_or_create_owned(&other)
        }
    }
}
