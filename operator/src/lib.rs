//! The operator: watch -> index -> compile -> deliver, with admission, certificates and the aggregated API beside it.
//!
//! It never sees a request of an application; a sidecar never waits for it before it answers one.

pub mod api;
pub mod certs;
pub mod cleanup;
pub mod coldstart;
pub mod compile;
pub mod context;
pub mod default_proxy;
pub mod deliver;
pub mod health;
pub mod https;
pub mod index;
pub mod inject;
pub mod lease;
pub mod metrics;
pub mod missed;
pub mod run;
pub mod services;
pub mod settings;
pub mod stamp;
pub mod status;
pub mod stream;
pub mod watch;
pub mod webhook;
