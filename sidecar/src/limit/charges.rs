//! What a request was charged, until it is certain that it goes on.

use std::sync::Arc;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::{
    leases::Leases,
    local,
    outcome::Outcome,
    shared::{ChargeId, Store, Ticket},
    stage::Limiter,
};

/// What a request was charged. Dropped, as when its client leaves while it waits, counts have it back.
pub(super) struct Charges<'a> {
    limiter: &'a Limiter,
    /// By counts of the pod, and the place of each in what is told, if it is.
    own: SmallVec<[(local::Charged, Option<usize>); 2]>,
    /// By counts that pods share.
    shared: Option<(Store, Ticket)>,
    leased: SmallVec<[Spent; 1]>,
}

/// Tokens that were taken ahead: whose they are, and of which key and lease.
struct Spent {
    leases: Arc<Leases>,
    key: u64,
    lease: ChargeId,
    tokens: u64,
}

impl<'a> Charges<'a> {
    pub(super) fn new(limiter: &'a Limiter) -> Self {
        Self { limiter, own: SmallVec::new(), shared: None, leased: SmallVec::new() }
    }

    /// A count of the pod was charged, which stands at this place in what is told.
    pub(super) fn add(&mut self, charged: Option<local::Charged>, told: Option<usize>) {
        self.own.extend(charged.map(|charged| (charged, told)));
    }

    /// Counts that pods share were charged.
    pub(super) fn share(&mut self, store: &Store, ticket: Ticket) {
        if !ticket.is_empty() {
            self.shared = Some((store.clone(), ticket));
        }
    }

    /// Tokens that were taken ahead are spent.
    pub(super) fn lease(&mut self, leases: &Arc<Leases>, key: u64, lease: ChargeId, tokens: u64) {
        self.leased.push(Spent { leases: Arc::clone(leases), key, lease, tokens });
    }

    /// Gives everything back, and tells what there is then.
    pub(super) fn give_back(&mut self, outcome: &mut Outcome) {
        let own = std::mem::take(&mut self.own);
        own.iter().for_each(|(charged, _)| self.limiter.store.refund(charged, self.limiter.now()));
        for (charged, told) in own {
            if let Some(told) = told.and_then(|told| outcome.told.get_mut(told)) {
                let verdict = self.limiter.store.look(&charged.free(), self.limiter.now());
                told.stands(&charged.rule, &verdict);
            }
        }
        self.give_back_shared();
    }

    fn give_back_shared(&mut self) {
        for Spent { leases, key, lease, tokens } in self.leased.drain(..) {
            leases.give_back(key, lease, tokens, Instant::now());
        }
        if let Some((store, ticket)) = self.shared.take() {
            store.refund(ticket);
        }
    }

    /// The request goes on: it stays charged.
    pub(super) fn keep(mut self) {
        self.own.clear();
        self.leased.clear();
        self.shared = None;
    }
}

impl Drop for Charges<'_> {
    fn drop(&mut self) {
        self.own.iter().for_each(|(charged, _)| self.limiter.store.refund(charged, self.limiter.now()));
        self.give_back_shared();
    }
}
