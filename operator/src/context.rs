//! What every task of the operator is given.

use kube::Client;
use tokio_util::sync::CancellationToken;

use crate::{lease::Leadership, metrics::Metrics, settings::Settings};

/// What every task of the operator is given; shared by `Arc`.
#[derive(Clone)]
pub struct Context {
    /// Client of the API server.
    pub client: Client,
    /// Flags.
    pub settings: Settings,
    /// Whether this replica leads.
    pub leadership: Leadership,
    /// Counters that several parts share; what belongs to one part is registered by it.
    pub metrics: Metrics,
    /// Cancelled when the operator is to end.
    pub shutdown: CancellationToken,
}
