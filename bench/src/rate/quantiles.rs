//! Latencies of turns, as tables tell them.

use std::time::Duration;

use serde::Serialize;

use crate::findings::spread;

/// Microseconds from the moment at which a request was due, a value for each turn.
#[derive(Default, Serialize)]
pub(crate) struct Quantiles {
    pub(crate) p50: Vec<f64>,
    pub(crate) p99: Vec<f64>,
    pub(crate) p999: Vec<f64>,
    pub(crate) slowest: Vec<f64>,
}

impl Quantiles {
    /// Heads of the columns that [`Self::cells`] fills.
    pub(crate) const HEADS: [&str; 4] = ["p50", "p99", "p99.9", "slowest"];

    /// Takes the latencies of a turn, of which there is at least one, in ascending order.
    pub(crate) fn add(&mut self, latencies: &[Duration]) {
        let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
        self.p50.push(at(0.5));
        self.p99.push(at(0.99));
        self.p999.push(at(0.999));
        self.slowest.push(at(1.0));
    }

    /// The median of the turns, with the least and the most.
    pub(crate) fn cells(&self) -> impl Iterator<Item = String> {
        [&self.p50, &self.p99, &self.p999, &self.slowest].into_iter().map(|values| spread(values))
    }
}
