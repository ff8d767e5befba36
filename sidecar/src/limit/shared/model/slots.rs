//! Requests under way.

use std::collections::BTreeMap;

use super::Lack;
use crate::limit::shared::rule::{ChargeId, Micros, Slots};

/// Who has a slot, and when it is given up for lost.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Taken(BTreeMap<ChargeId, Micros>);

impl Slots {
    /// Without those that are lost, and whether that changed anything: nobody takes a slot for longer than a term, so if one would be, the time stepped back.
    pub(super) fn read(&self, stored: &Taken, now: Micros) -> (Taken, bool) {
        let ends = now + self.term;
        let left = |(id, at): (&ChargeId, &Micros)| (*at > now).then_some((*id, (*at).min(ends)));
        let taken = Taken(stored.0.iter().filter_map(left).collect());
        let moved = taken != *stored;
        (taken, moved)
    }

    pub(super) fn look(&self, taken: &Taken, cost: u64) -> Option<Lack> {
        (cost > 0 && taken.0.len() as u64 >= self.most).then_some(Lack::Unknown)
    }

    pub(super) fn charge(&self, taken: &mut Taken, id: ChargeId, now: Micros) {
        taken.0.insert(id, now + self.term);
    }

    pub(super) fn remaining(&self, taken: &Taken) -> u64 {
        self.most.saturating_sub(taken.0.len() as u64)
    }

    /// Requests are still under way, as the script has it. Returns how many of them had been given up for lost.
    #[cfg(test)]
    pub(crate) fn renew(&self, taken: &mut Taken, ids: &[ChargeId], now: Micros) -> usize {
        ids.iter().filter(|id| taken.0.insert(**id, now + self.term).is_none()).count()
    }
}

impl Taken {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A request has ended; whether it had a slot.
    pub(crate) fn release(&mut self, id: ChargeId) -> bool {
        self.0.remove(&id).is_some()
    }
}
