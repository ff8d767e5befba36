//! Counts as the models keep them.

use std::collections::{HashMap, HashSet};

use crate::limit::shared::{
    model::{self, Answer, Count, Exchange, Exchanged, Leases},
    rule::{Bucket, Charge, ChargeId, Micros, Rule, Slots, Treatment},
    script::Charged,
};

/// A charge that owns the name of its count.
#[derive(Clone, Debug)]
pub(super) struct Owned {
    pub(super) key: &'static str,
    pub(super) rule: Rule,
    pub(super) treatment: Treatment,
    pub(super) cost: u64,
}

/// Something that is asked of the counts.
#[derive(Clone, Debug)]
pub(super) enum Asked {
    Pass { id: ChargeId, charges: Vec<Owned> },
    Refund { id: ChargeId, charged: Vec<Charged> },
    Lease { key: &'static str, rule: Bucket, exchange: Exchange },
    Renew { key: &'static str, rule: Slots, ids: Vec<ChargeId> },
    Release { key: &'static str, id: ChargeId },
}

/// What is answered.
#[derive(Clone, Debug, Eq, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "hardly any is a small one, and none is kept")]
pub(super) enum Said {
    Pass(Answer),
    Leased(Exchanged),
    /// How many: refunds that were done, slots that were lost, slots that were released.
    Done(u64),
}

/// All counts, and the server's time.
#[derive(Clone, Debug, Default)]
pub(super) struct World {
    pub(super) now: Micros,
    counts: HashMap<String, Count>,
    leases: HashMap<&'static str, Leases>,
    refunded: HashSet<ChargeId>,
}

impl Owned {
    pub(super) fn enforce(key: &'static str, rule: Rule, cost: u64) -> Self {
        Self { key, rule, treatment: Treatment::Enforce, cost }
    }

    pub(super) fn borrow(&self) -> Charge<'_> {
        Charge { key: self.key, rule: self.rule, treatment: self.treatment, cost: self.cost }
    }

    pub(super) fn charged(&self, mark: [u64; 3]) -> Charged {
        Charged::new(&self.borrow(), mark)
    }
}

impl World {
    pub(super) fn at(now: Micros) -> Self {
        Self { now, ..Self::default() }
    }

    pub(super) fn ask(&mut self, asked: &Asked) -> Said {
        match asked {
            Asked::Pass { id, charges } => Said::Pass(self.pass(*id, charges)),
            Asked::Refund { id, charged } => Said::Done(u64::from(self.refund(*id, charged))),
            Asked::Lease { key, rule, exchange } => Said::Leased(self.exchange(key, *rule, *exchange)),
            Asked::Renew { key, rule, ids } => {
                let name = format!("{key}:s");
                let mut taken = match self.counts.remove(&name) {
                    Some(Count::Slots(taken)) => taken,
                    _ => model::Taken::default(),
                };
                let lost = rule.renew(&mut taken, ids, self.now);
                self.counts.insert(name, Count::Slots(taken));
                Said::Done(lost as u64)
            }
            Asked::Release { key, id } => match self.counts.get_mut(&format!("{key}:s")) {
                Some(Count::Slots(taken)) => Said::Done(u64::from(taken.release(*id))),
                _ => Said::Done(0),
            },
        }
    }

    pub(super) fn pass(&mut self, id: ChargeId, charges: &[Owned]) -> Answer {
        let charges: Vec<Charge<'_>> = charges.iter().map(Owned::borrow).collect();
        let mut counts: Vec<Option<Count>> = charges.iter().map(|charge| self.counts.get(&charge.name()).cloned()).collect();
        let answer = model::pass(&charges, &mut counts, id, self.now);
        for (charge, count) in charges.iter().zip(counts) {
            count.and_then(|count| self.counts.insert(charge.name(), count));
        }
        answer
    }

    fn refund(&mut self, id: ChargeId, charged: &[Charged]) -> bool {
        let is_first = self.refunded.insert(id);
        for charged in charged.iter().filter(|_| is_first) {
            let mut count = self.counts.remove(&charged.name);
            charged.rule.refund(&mut count, charged.cost, charged.mark, id, self.now);
            count.and_then(|count| self.counts.insert(charged.name.clone(), count));
        }
        is_first
    }

    fn exchange(&mut self, key: &'static str, rule: Bucket, exchange: Exchange) -> Exchanged {
        let name = format!("{key}:b");
        let mut level = match self.counts.remove(&name) {
            Some(Count::Bucket(level)) => Some(level),
            _ => None,
        };
        let exchanged = rule.exchange(&mut level, self.leases.entry(key).or_default(), exchange, self.now);
        level.and_then(|level| self.counts.insert(name, Count::Bucket(level)));
        exchanged
    }
}
