//! Requests that are imagined, at times that are given: nobody waits, and nobody else is asked.

use smallvec::SmallVec;

use super::{Asking, Charges, Facts, Limiter, Metrics, Now, Outcome, Route, Scope};
use crate::limit::local::Charged;

/// What becomes of a request.
#[derive(Debug)]
pub(in crate::limit) struct Replayed {
    /// `namespace/policy/rule/limit` that denied it.
    pub(in crate::limit) denied: Option<String>,
    /// How long it waits before it is forwarded.
    pub(in crate::limit) wait: std::time::Duration,
    /// The slots that it has until it ends: by its pod, and by what pods share.
    pub(in crate::limit) slots: [SmallVec<[Charged; 1]>; 2],
}

impl Limiter {
    /// A limiter whose figures are counted together with those of others.
    pub(in crate::limit) fn counting_in(metrics: &Metrics) -> Self {
        Self { metrics: metrics.clone(), ..Self::default() }
    }

    /// Charges all limits that hold for a request, or none: those of scope Shared by counts of another limiter, which stands for the store.
    pub(in crate::limit) fn replay(&self, store: &Self, route: &Route, facts: &Facts<'_>, now: Now) -> Replayed {
        let (asking, of) = (Asking { facts, now }, |scope| route.limits().filter(move |(limit, _)| limit.scope == scope));
        let (mut own, mut shared) = (Outcome::default(), Outcome::default());
        let (mut charges, mut shared_charges) = (Charges::new(self), Charges::new(store));
        self.enforce(of(Scope::Pod), asking, &mut own, &mut charges);
        if own.denied.is_none() {
            store.enforce(of(Scope::Shared), asking, &mut shared, &mut shared_charges);
        }
        if shared.denied.is_some() {
            charges.give_back(&mut own);
        }
        // What is denied takes nothing from limits in Shadow, whoever has their counts.
        let denied =
            if own.denied.is_some() { Some(&mut own) } else { Some(&mut shared).filter(|shared| shared.denied.is_some()) };
        match denied {
            Some(denied) => {
                self.shadow(of(Scope::Pod), asking, denied, &mut charges);
                store.shadow(of(Scope::Shared), asking, denied, &mut shared_charges);
            }
            None => {
                self.shadow(of(Scope::Pod), asking, &mut own, &mut charges);
                store.shadow(of(Scope::Shared), asking, &mut shared, &mut shared_charges);
            }
        }
        charges.keep();
        shared_charges.keep();
        let denied = own.denied().or(shared.denied()).map(|by| format!("{}/{}/{}", by.policy, by.rule, by.limit));
        let is_denied = denied.is_some();
        let slots =
            |outcome: &mut Outcome| outcome.settlement().filter(|_| !is_denied).map(|settled| settled.slots).unwrap_or_default();
        Replayed { denied, wait: own.wait.max(shared.wait), slots: [slots(&mut own), slots(&mut shared)] }
    }

    /// A request has ended, and gives back what it had.
    pub(in crate::limit) fn replay_end(&self, slots: &[Charged], now: Now) {
        slots.iter().for_each(|slot| self.store.refund(slot, now));
    }
}
