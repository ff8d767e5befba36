//! How the pod ends without losing requests.

use std::time::Duration;

use crds::proxy::{AdjustPod, Drain};
use k8s_openapi::api::core::v1::{LifecycleHandler, Pod, PodSpec, SleepAction};

use crate::stamp::GracePeriod;

/// What Kubernetes gives a pod that doesn't say.
const DEFAULT_GRACE_SECONDS: i64 = 30;

/// Gives containers without a `preStop` one that sleeps while the drain takes away new connections, and the pod that much
/// more time. Jobs are not held up: a container that ends by itself runs no `preStop`.
pub(super) fn adjust(spec: &mut PodSpec, drain: &Drain) {
    let seconds = whole_seconds(drain.delay.0);
    if drain.adjust_pod == AdjustPod::Leave || seconds == 0 {
        return;
    }
    for container in &mut spec.containers {
        let lifecycle = container.lifecycle.get_or_insert_default();
        lifecycle.pre_stop.get_or_insert_with(|| LifecycleHandler { sleep: Some(SleepAction { seconds }), ..Default::default() });
    }
    let grace = spec.termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE_SECONDS);
    spec.termination_grace_period_seconds = Some(grace.saturating_add(seconds));
}

/// What is remembered so that a second injection starts from the pod's own grace period.
pub(super) fn stamp(before: &Pod, after: &Pod) -> Option<GracePeriod> {
    let seconds = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
    let (was, is) = (seconds(before), seconds(after)?);
    (was != Some(is)).then_some(GracePeriod { was, is })
}

/// Seconds, rounded up.
pub(super) fn whole_seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis().div_ceil(1000)).unwrap_or(i64::MAX)
}
