//! What follows for limits when a request has been answered, and when it ends.

use std::sync::Arc;

use http::HeaderMap;
use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::{Limit, Which, cost, cost::Afterwards, held::Slot, local};

/// What follows when a request ends.
#[derive(Debug, Default)]
pub(crate) struct Settlement {
    /// Slots of the pod's own counts.
    pub(super) slots: SmallVec<[local::Charged; 1]>,
    /// Slots that pods share: they are released when these are dropped.
    pub(super) held: SmallVec<[Slot; 1]>,
    /// Dropped with it: whoever waits for that releases what the request has without knowing.
    pub(super) ends: SmallVec<[oneshot::Sender<()>; 1]>,
    /// What is charged then.
    pub(super) debits: Vec<Debit>,
    /// Counts of which the upstream may say that it wants no more.
    pub(super) pauses: SmallVec<[u64; 1]>,
}

/// A charge of which the cost is known when the request has ended.
#[derive(Debug)]
pub(super) struct Debit {
    pub(super) limit: Arc<Limit>,
    pub(super) which: Which,
    /// By which the pod finds its own count.
    pub(super) key: u64,
    /// Name of the count that pods share, if they do.
    pub(super) name: Option<String>,
    /// The cost, if the upstream said it.
    pub(super) said: Option<u64>,
}

impl Settlement {
    /// Takes costs from the fields of an answer: they are not for its client.
    pub(super) fn take_costs(&mut self, headers: &mut HeaderMap) {
        for debit in &mut self.debits {
            debit.said = debit.limit.cost.field().and_then(|name| cost::said(headers, name));
        }
        for name in self.debits.iter().filter_map(|debit| debit.limit.cost.field()) {
            headers.remove(name);
        }
    }
}

impl Debit {
    /// What it comes to, of a request with bodies of so many bytes.
    pub(super) fn units(&self, sent: u64, received: u64) -> u64 {
        match self.limit.cost.afterwards() {
            Some(Afterwards::RequestBytes) => sent,
            Some(Afterwards::ResponseBytes) => received,
            Some(Afterwards::ResponseHeader(_)) => self.said.unwrap_or(1),
            None => 0,
        }
    }
}
