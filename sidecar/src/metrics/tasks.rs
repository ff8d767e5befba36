//! The tasks of the workers, counted by their runtimes and read when the page is asked for.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::gauge::ConstGauge,
};
use tokio::runtime::Handle;

/// The runtimes whose tasks are counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks(Arc<Mutex<Vec<Handle>>>);

impl Tasks {
    /// Counts those of another runtime, too.
    pub(crate) fn watch(&self, runtime: Handle) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(runtime);
    }

    fn alive(&self) -> usize {
        let runtimes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        runtimes.iter().map(|runtime| runtime.metrics().num_alive_tasks()).sum()
    }
}

impl Collector for Tasks {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let gauge = ConstGauge::new(i64::try_from(self.alive()).unwrap_or(i64::MAX));
        let help = "Tasks of the workers; each has one for its pool";
        let metric = encoder.encode_descriptor("fetchr_worker_tasks", help, None, gauge.metric_type())?;
        gauge.encode(metric)
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::{Builder, LocalOptions};

    use super::*;

    #[test]
    fn tasks_are_counted_until_they_end() {
        let tasks = Tasks::default();
        let runtime = Builder::new_current_thread().build_local(LocalOptions::default()).unwrap();
        runtime.block_on(async {
            tasks.watch(Handle::current());
            let task = tokio::task::spawn_local(std::future::pending::<()>());
            assert_eq!(tasks.alive(), 1);
            task.abort();
            assert!(task.await.is_err());
            assert_eq!(tasks.alive(), 0);
        });
    }
}
