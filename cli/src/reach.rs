//! How a sidecar is asked: that of this machine by its admin port, those of pods through the operator.

pub(crate) mod admin;
pub(crate) mod place;
pub(crate) mod pods;
