//! Charges the limits of a request: those that the pod counts first, which costs nothing, and then those that pods share.

mod replay;
mod shown;

use std::{
    hash::RandomState,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwapOption;
use crds::policy::{Mode, rate_limits::Scope};
use http::{HeaderMap, StatusCode};
use prometheus_client::registry::Registry;

use tokio::time::sleep;

use super::{
    Limit, Which,
    charges::Charges,
    counted::{Metrics, Source},
    key::Bytes,
    local::{self, Now},
    meter::Meter,
    outcome::{Outcome, Told, retry_after},
    pauses::{self, Pauses},
    settle::{Debit, Settlement},
    shared::{ChargeId, Micros, Rule, Treatment},
    sharing::{Sharing, StoreSettings},
    top::Top,
};
use crate::{facts::Facts, route::Route};

/// Counts that one pod holds at most; a count takes about 120 bytes.
pub const CAPACITY: usize = 100_000;

/// The limits of a pod: one store for all policies and both directions. It outlives reloads.
#[derive(Debug)]
pub struct Limiter {
    pub(super) store: Arc<local::Store>,
    hasher: RandomState,
    epoch: Instant,
    pub(super) metrics: Metrics,
    pauses: Pauses,
    top: Top,
    sharing: ArcSwapOption<Sharing>,
}

/// A limit that holds for a request, and the match that its rule met.
pub(super) type Holds<'a> = (&'a Arc<Limit>, Option<u8>);

/// A request that limits are charged for.
#[derive(Clone, Copy)]
pub(super) struct Asking<'a> {
    pub(super) facts: &'a Facts<'a>,
    pub(super) now: Now,
}

/// What a limit is asked for.
pub(super) struct Ask<'a> {
    pub(super) limit: &'a Arc<Limit>,
    pub(super) which: Which,
    pub(super) meter: &'a Meter,
    /// What is counted apart.
    pub(super) apart: Bytes,
    /// By which the pod finds its own count.
    pub(super) key: u64,
    pub(super) cost: u64,
}

impl Ask<'_> {
    fn of_pod(&self, now: Now) -> local::Asked {
        let rule = self.meter.rule(|| now.wall).of_pod();
        local::Asked { key: self.key, rule, cost: self.cost, treatment: Treatment::Enforce }
    }
}

impl Default for Limiter {
    fn default() -> Self {
        Self::new(CAPACITY)
    }
}

impl Limiter {
    /// A limiter that holds at most `capacity` counts.
    pub fn new(capacity: usize) -> Self {
        let metrics = Metrics::default();
        Self {
            store: Arc::new(local::Store::new(capacity, metrics.evicted.clone())),
            hasher: RandomState::new(),
            epoch: Instant::now(),
            metrics,
            pauses: Pauses::default(),
            top: Top::default(),
            sharing: ArcSwapOption::empty(),
        }
    }

    /// Adds the limiter's figures to a registry.
    pub fn register(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }

    /// Counts that are held now.
    pub fn len(&self) -> usize {
        self.store.len()
    }

    /// Whether no count is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// From now on at most so many counts are held.
    pub(crate) fn hold_at_most(&self, counts: u32) {
        self.store.hold_at_most(usize::try_from(counts).unwrap_or(usize::MAX), self.at(Instant::now()));
    }

    /// From now on limits of scope Shared are counted there, among so many pods; without one, by each pod for itself. Connects in tasks
    /// of this runtime.
    pub(crate) fn share(&self, settings: Option<StoreSettings>, pods: u32) {
        let before = self.sharing.load_full();
        let sharing = match (settings, &before) {
            (Some(settings), Some(before)) if before.is(&settings, pods) => return,
            (Some(settings), Some(before)) => Some(before.with(settings, pods, &self.metrics)),
            (Some(settings), None) => Some(Sharing::start(settings, pods, &self.metrics)),
            (None, _) => None,
        };
        self.sharing.store(sharing.map(Arc::new));
    }

    /// Charges all limits that hold for a request, or none, and waits for as long as they delay it.
    pub async fn charge(&self, route: &Route, facts: &Facts<'_>, now: Instant) -> Outcome {
        let asking = Asking { facts, now: self.at(now) };
        let (mut outcome, mut charges) = (Outcome::default(), Charges::new(self));
        let sharing = if route.has_shared_limits() { self.sharing.load_full() } else { None };
        match sharing {
            // On the heap: most requests have no such limit.
            Some(sharing) => Box::pin(self.charge_together(&sharing, route, asking, &mut outcome, &mut charges)).await,
            None => {
                self.enforce(route.limits(), asking, &mut outcome, &mut charges);
                self.shadow(route.limits(), asking, &mut outcome, &mut charges);
            }
        }
        if outcome.stops().is_some() {
            self.note_denied(route, facts, &outcome);
            outcome.settlement = None;
            return outcome;
        }
        if !outcome.wait.is_zero() {
            self.metrics.delayed.observe(outcome.wait.as_secs_f64());
            Box::pin(sleep(outcome.wait)).await;
        }
        charges.keep();
        outcome
    }

    async fn charge_together(
        &self,
        sharing: &Arc<Sharing>,
        route: &Route,
        asking: Asking<'_>,
        outcome: &mut Outcome,
        charges: &mut Charges<'_>,
    ) {
        let of = |scope| route.limits().filter(move |(limit, _)| limit.scope == scope);
        self.enforce(of(Scope::Pod), asking, outcome, charges);
        if outcome.stops().is_none() {
            sharing.enforce(self, of(Scope::Shared), asking, outcome, charges).await;
        }
        if outcome.stops().is_some() {
            charges.give_back(outcome);
        }
        self.shadow(of(Scope::Pod), asking, outcome, charges);
        if outcome.stops().is_none() {
            sharing.shadow(self, of(Scope::Shared), asking, outcome);
        }
    }

    /// Charges limits in force by counts of the pod: all, or none.
    fn enforce<'a>(
        &self,
        limits: impl Iterator<Item = Holds<'a>>,
        asking: Asking<'_>,
        outcome: &mut Outcome,
        charges: &mut Charges<'_>,
    ) {
        for holds in limits.filter(|(limit, _)| limit.mode == Mode::Enforce) {
            let ask = self.ask(holds, asking);
            if outcome.denied.is_some() {
                self.lengthen(&ask, asking, outcome);
                continue;
            }
            if let Some(told) = self.paused(&ask, asking) {
                let left = told.next();
                outcome.told.push(told);
                self.deny(&ask, Source::Pod, Some(left), outcome, charges);
                continue;
            }
            let wanted = ask.of_pod(asking.now);
            let (verdict, charged) = self.store.charge(&wanted, ChargeId::random(), asking.now);
            outcome.told.push(Told::new(ask.limit, ask.which, &wanted.rule, &verdict));
            if verdict.allowed {
                charges.add(charged, outcome.told.len().checked_sub(1));
                outcome.allow(ask.meter, &wanted.rule, &verdict);
                self.follow(&ask, wanted.rule, charged, None, outcome);
            } else {
                self.deny(&ask, Source::Pod, retry_after(&wanted.rule, &verdict), outcome, charges);
            }
        }
        if outcome.denied.is_none() {
            outcome.told.iter().for_each(|told| self.metrics.decided(&told.limit, Source::Pod, true));
            outcome.told.iter().for_each(|told| self.metrics.used(&told.limit, told.used()));
        }
    }

    fn deny(
        &self,
        ask: &Ask<'_>,
        source: Source,
        retry_after: Option<std::time::Duration>,
        outcome: &mut Outcome,
        charges: &mut Charges<'_>,
    ) {
        outcome.deny(retry_after);
        charges.give_back(outcome);
        self.metrics.decided(ask.limit, source, false);
        self.metrics.used(ask.limit, 1.0);
    }

    /// A request that is denied already may come again when this limit allows it too.
    fn lengthen(&self, ask: &Ask<'_>, asking: Asking<'_>, outcome: &mut Outcome) {
        let wanted = ask.of_pod(asking.now);
        let verdict = self.store.look(&wanted, asking.now);
        if !verdict.allowed {
            outcome.deny(retry_after(&wanted.rule, &verdict));
        }
    }

    /// Whether the upstream wants nothing of what a limit counts.
    pub(super) fn paused(&self, ask: &Ask<'_>, asking: Asking<'_>) -> Option<Told> {
        let left = if ask.limit.pauses { self.pauses.left(ask.key, asking.now.steady) } else { None }?;
        Some(Told::paused(ask.limit, ask.which, &ask.meter.rule(|| asking.now.wall), left))
    }

    /// Notes what follows for a limit when the request ends.
    pub(super) fn follow(
        &self,
        ask: &Ask<'_>,
        rule: Rule,
        slot: Option<local::Charged>,
        name: Option<&str>,
        outcome: &mut Outcome,
    ) {
        let slot = slot.filter(|_| matches!(rule, Rule::Slots(_)));
        if slot.is_none() && !ask.limit.pauses && ask.limit.cost.afterwards().is_none() {
            return;
        }
        let settlement = outcome.settlement.get_or_insert_default();
        settlement.slots.extend(slot);
        if ask.limit.cost.afterwards().is_some() {
            let (limit, name) = (Arc::clone(ask.limit), name.map(str::to_owned));
            settlement.debits.push(Debit { limit, which: ask.which, key: ask.key, name, said: None });
        }
        if ask.limit.pauses {
            settlement.pauses.push(ask.key);
        }
    }

    /// Counts what limits in Shadow would have decided. A request that is denied anyway takes nothing from them.
    fn shadow<'a>(
        &self,
        limits: impl Iterator<Item = Holds<'a>>,
        asking: Asking<'_>,
        outcome: &mut Outcome,
        charges: &mut Charges<'_>,
    ) {
        let charge = outcome.stops().is_none();
        for holds in limits.filter(|(limit, _)| limit.mode == Mode::Shadow) {
            let ask = self.ask(holds, asking);
            let wanted = ask.of_pod(asking.now);
            let verdict = if charge {
                let (verdict, charged) = self.store.charge(&wanted, ChargeId::random(), asking.now);
                self.follow(&ask, wanted.rule, charged, None, outcome);
                charges.add(charged, None);
                verdict
            } else {
                self.store.look(&wanted, asking.now)
            };
            self.metrics.decided(ask.limit, Source::Pod, verdict.allowed);
            if !verdict.allowed {
                // Not louder: it may be true of every request.
                tracing::debug!(policy = %ask.limit.policy, limit = %ask.limit.name, "A limit in Shadow would have denied a request.");
            }
        }
    }

    /// An upstream has answered: takes what its answer says of limits.
    pub(crate) fn answered(&self, settlement: &mut Settlement, status: StatusCode, headers: &mut HeaderMap) {
        settlement.take_costs(headers);
        if !settlement.pauses.is_empty()
            && let Some(time) = pauses::asked(status, headers)
        {
            let now = self.at(Instant::now()).steady;
            settlement.pauses.iter().for_each(|&key| self.pauses.begin(key, time, now));
        }
    }

    /// A request has ended, after bodies of so many bytes.
    pub(crate) fn settle(&self, settlement: &Settlement, sent: u64, received: u64) {
        let now = self.at(Instant::now());
        settlement.slots.iter().for_each(|slot| self.store.refund(slot, now));
        for debit in &settlement.debits {
            let cost = debit.units(sent, received);
            match (&debit.name, &*self.sharing.load()) {
                _ if cost == 0 => {}
                (Some(name), Some(sharing)) => sharing.debit(self, debit, name, cost, now),
                _ => self.store.debit(debit.key, debit.limit.meter(debit.which).rule(|| now.wall), cost, now),
            }
        }
    }

    /// What a limit is asked for by a request.
    pub(super) fn ask<'a>(&self, (limit, matched): Holds<'a>, asking: Asking<'_>) -> Ask<'a> {
        let apart = limit.key_of(asking.facts, matched);
        let key = self.key(limit, &apart);
        let which = limit.which(asking.facts, matched);
        Ask { limit, which, meter: limit.meter(which), apart, key, cost: limit.cost.before(asking.facts) }
    }

    /// What time it is.
    pub(super) fn now(&self) -> Now {
        self.at(Instant::now())
    }

    fn at(&self, now: Instant) -> Now {
        let steady = Micros::try_from(now.saturating_duration_since(self.epoch).as_micros()).unwrap_or(Micros::MAX);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_micros());
        Now { steady, wall: Micros::try_from(wall).unwrap_or(Micros::MAX) }
    }
}
