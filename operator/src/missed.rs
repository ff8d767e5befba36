//! Opted-in pods that were born without a sidecar: reported on their owner, evicted where the proxy says so.
