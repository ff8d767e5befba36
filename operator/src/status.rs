//! Conditions and counts -> `/status`, by server-side apply, only by the leader and only on change.
