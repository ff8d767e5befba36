//! What several pods have answered, as one. Nothing here asks anybody.

pub(super) mod explain;
pub(super) mod listing;
pub(super) mod purge;
pub(super) mod stats;
pub(super) mod stored;

use super::pods::PodName;

/// The name of a pod among these: with its namespace only where there are several.
struct Names {
    with_namespace: bool,
}

impl Names {
    fn of<'a>(pods: impl IntoIterator<Item = &'a PodName>) -> Self {
        let mut pods = pods.into_iter();
        let first = pods.next();
        Self { with_namespace: first.is_some_and(|first| pods.any(|pod| pod.namespace != first.namespace)) }
    }

    fn name(&self, pod: &PodName) -> String {
        if self.with_namespace { pod.to_string() } else { pod.pod.clone() }
    }

    /// `web-0, web-1`.
    fn list<'a>(&self, pods: impl IntoIterator<Item = &'a PodName>) -> String {
        pods.into_iter().map(|pod| self.name(pod)).collect::<Vec<_>>().join(", ")
    }
}
