//! Limits that pods count together: what is asked of the store, and what holds when it does not answer.

mod shown;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crds::policy::{
    Mode,
    rate_limits::{Accuracy, OnStoreFailure},
};
use smallvec::SmallVec;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::Instant,
};

use super::{
    Limit, Limiter, Which,
    charges::Charges,
    counted::{Metrics, Source},
    held::{Renewals, Slot},
    leases::{self, Leases, Said},
    local::{self, Now},
    meter::Meter,
    outcome::{Outcome, Told, retry_after},
    settle::Debit,
    shared::{Charge, ChargeId, Decision, Failure, Micros, Part, Pass, Rule, Store, Treatment, Verdict},
    stage::{Ask, Asking, Holds},
    uses::Uses,
};
use crate::redis::Redis;

/// Questions that nobody waits for and that are under way, at most: for limits in Shadow, and charges of what requests have cost.
const BESIDE: usize = 256;
/// How long a charge of what a request has cost may take.
const DEBIT: Duration = Duration::from_secs(1);

/// Where counts are that pods share.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StoreSettings {
    /// None if it can't be used, as with a password that is not there: then it fails.
    pub(crate) redis: Option<Redis>,
    /// How long a request waits for it.
    pub(crate) patience: Duration,
    /// Whose counts have names of their own.
    pub(crate) namespace: String,
}

/// The store that pods share, and what one of them knows of the others.
#[derive(Clone)]
pub(super) struct Sharing {
    settings: StoreSettings,
    open: Option<Open>,
    /// Pods of the proxy in the namespace that are alive: among so many a limit is divided where the store fails.
    pods: u32,
    /// How much of each count the pod uses itself: what its share goes by.
    uses: Arc<Uses>,
    runtime: Handle,
    beside: Arc<Semaphore>,
}

/// A store that can be asked.
#[derive(Clone)]
struct Open {
    store: Store,
    renewals: Arc<Renewals>,
    leases: Arc<Leases>,
}

/// A limit that is asked for, and its count in the store.
struct Wanted {
    limit: Arc<Limit>,
    which: Which,
    rule: Rule,
    name: String,
    /// By which the pod finds its own count, for when the store fails.
    key: u64,
    cost: u64,
    /// If tokens of it may be taken ahead.
    lease: Option<leases::Of>,
}

impl Wanted {
    fn meter(&self) -> &Meter {
        self.limit.meter(self.which)
    }

    fn charge(&self, treatment: Treatment) -> Charge<'_> {
        Charge { key: &self.name, rule: self.rule, treatment, cost: self.cost }
    }

    /// What a pod with this part asks of its own count.
    fn of_pod(&self, part: Part, now: Now) -> local::Asked {
        let rule = self.meter().share_of(part, now.wall);
        local::Asked { key: self.key, rule, cost: self.cost, treatment: Treatment::Enforce }
    }

    fn told(&self, rule: &Rule, verdict: &Verdict) -> Told {
        Told::new(&self.limit, self.which, rule, verdict)
    }
}

impl Sharing {
    /// Connects in tasks of this runtime.
    pub(super) fn start(settings: StoreSettings, pods: u32, metrics: &Metrics) -> Self {
        let runtime = Handle::current();
        let open = settings.redis.as_ref().map(|redis| {
            let store = Store::start(redis, settings.patience);
            Open {
                renewals: Renewals::new(store.clone(), runtime.clone()),
                leases: Leases::new(store.clone(), runtime.clone(), metrics.clone()),
                store,
            }
        });
        Self { settings, open, pods: pods.max(1), uses: Arc::default(), runtime, beside: Arc::new(Semaphore::new(BESIDE)) }
    }

    /// Where it is, and among how many pods.
    pub(super) fn is(&self, settings: &StoreSettings, pods: u32) -> bool {
        self.settings == *settings && self.pods == pods.max(1)
    }

    /// There, among so many pods: over the same connections, if it is the same place.
    pub(super) fn with(&self, settings: StoreSettings, pods: u32, metrics: &Metrics) -> Self {
        if self.settings == settings { Self { pods: pods.max(1), ..self.clone() } } else { Self::start(settings, pods, metrics) }
    }

    /// Charges limits in force, all or none. Those that the store does not decide follow what the policy says of that.
    pub(super) async fn enforce<'a>(
        &self,
        limiter: &Limiter,
        limits: impl Iterator<Item = Holds<'a>>,
        asking: Asking<'_>,
        outcome: &mut Outcome,
        charges: &mut Charges<'_>,
    ) {
        let mut wanted: SmallVec<[Wanted; 4]> = SmallVec::new();
        for holds in limits.filter(|(limit, _)| limit.mode == Mode::Enforce) {
            let ask = limiter.ask(holds, asking);
            if let Some(told) = limiter.paused(&ask, asking) {
                let left = told.next();
                outcome.told.push(told);
                outcome.deny(Some(left));
                limiter.metrics.decided(ask.limit, Source::Pod, false);
                return;
            }
            let lease = self.lease_of(&ask);
            if let Some((leases, of)) = &lease
                && self.take_leased(limiter, &ask, leases, of, asking.now, outcome, charges)
            {
                if outcome.denied.is_some() {
                    return;
                }
                continue;
            }
            let one = Wanted { lease: lease.map(|(_, of)| of), ..self.wanted(&ask) };
            limiter.follow(&ask, one.rule, None, Some(&one.name), outcome);
            wanted.push(one);
        }
        if wanted.is_empty() {
            return;
        }
        // In a cluster counts are charged group after group; the tightest first deny without a refund.
        wanted.sort_by_key(|wanted| wanted.meter().quota());
        let begun = Instant::now();
        let mut pass = self.pass(&wanted, Treatment::Enforce).await;
        if pass.decisions.contains(&Decision::Failed(Failure::Window)) {
            // The server's time is known by now. What other slots of a cluster were charged is charged again.
            if let Some(open) = &self.open {
                open.store.refund(pass.ticket);
            }
            wanted.iter_mut().for_each(|wanted| wanted.rule = wanted.limit.meter(wanted.which).rule(|| self.now()));
            pass = self.pass(&wanted, Treatment::Enforce).await;
        }
        limiter.metrics.waited.observe(begun.elapsed().as_secs_f64());
        self.take(limiter, &wanted, pass, asking.now, outcome, charges);
    }

    /// What of a limit may be taken ahead.
    fn lease_of(&self, ask: &Ask<'_>) -> Option<(Arc<Leases>, leases::Of)> {
        let open = self.open.as_ref().filter(|_| ask.limit.accuracy == Accuracy::Leased)?;
        // What costs more than a lease may have would never be there.
        let bucket = ask.meter.bucket().filter(|bucket| ask.cost <= bucket.burst() / 2)?;
        Some((Arc::clone(&open.leases), leases::Of::new(ask.key, bucket)?))
    }

    /// Decides by what the pod has taken ahead; whether it could.
    #[allow(clippy::too_many_arguments, reason = "what a decision needs, and where it goes")]
    fn take_leased(
        &self,
        limiter: &Limiter,
        ask: &Ask<'_>,
        leases: &Arc<Leases>,
        of: &leases::Of,
        now: Now,
        outcome: &mut Outcome,
        charges: &mut Charges<'_>,
    ) -> bool {
        let name = || ask.limit.shared_name(&self.settings.namespace, &ask.apart);
        let (remaining, retry) = match leases.take(of, ask.cost, Instant::now(), name) {
            Said::Ask => return false,
            Said::Denied { retry } => (0, Some(retry)),
            Said::Allowed { remaining, spent } => {
                charges.lease(leases, ask.key, ask.cost);
                limiter.follow(ask, Rule::Bucket(of.bucket), None, None, outcome);
                if let Some(spent) = spent {
                    self.keep_share(limiter, ask.limit, ask.which, ask.key, (spent, remaining), now);
                }
                (remaining, None)
            }
        };
        let reset = of.bucket.time_of(of.bucket.burst().saturating_sub(remaining));
        let verdict = Verdict { allowed: retry.is_none(), remaining, retry, reset };
        outcome.told.push(Told::new(ask.limit, ask.which, &Rule::Bucket(of.bucket), &verdict));
        if retry.is_some() {
            outcome.deny(retry);
        }
        limiter.metrics.decided(ask.limit, Source::Lease, retry.is_none());
        true
    }

    /// Asks for limits in Shadow without waiting for what comes of it.
    pub(super) fn shadow<'a>(
        &self,
        limiter: &Limiter,
        limits: impl Iterator<Item = Holds<'a>>,
        asking: Asking<'_>,
        outcome: &mut Outcome,
    ) {
        let mut wanted: SmallVec<[Wanted; 4]> = SmallVec::new();
        for holds in limits.filter(|(limit, _)| limit.mode == Mode::Shadow) {
            let ask = limiter.ask(holds, asking);
            let one = self.wanted(&ask);
            limiter.follow(&ask, one.rule, None, Some(&one.name), outcome);
            wanted.push(one);
        }
        if wanted.is_empty() {
            return;
        }
        let Some(room) = self.room(&limiter.metrics) else { return };
        // Its slots are released when the request has ended.
        let ended = wanted.iter().any(|wanted| matches!(wanted.rule, Rule::Slots(_))).then(|| {
            let (end, ended) = oneshot::channel();
            outcome.settlement.get_or_insert_default().ends.push(end);
            ended
        });
        let (sharing, metrics) = (self.clone(), limiter.metrics.clone());
        self.runtime.spawn(async move {
            let pass = sharing.pass(&wanted, Treatment::Shadow).await;
            drop(room);
            for (wanted, decision) in wanted.iter().zip(&pass.decisions) {
                match decision {
                    Decision::Told(verdict) => metrics.decided(&wanted.limit, Source::Store, verdict.allowed),
                    Decision::Failed(failure) => metrics.failed(*failure),
                    Decision::Skipped => {}
                }
            }
            let _slots = sharing.slots(&wanted, &pass);
            if let Some(ended) = ended {
                let _: Result<(), _> = ended.await;
            }
        });
    }

    /// Charges a count for what a request has cost. Nobody waits for it. What the store does not take is charged to the pod's share.
    pub(super) fn debit(&self, limiter: &Limiter, debit: &Debit, name: &str, cost: u64, now: Now) {
        let meter = debit.limit.meter(debit.which);
        let (key, share) = (debit.key, meter.share_of(self.uses.part(debit.key, self.pods), now.wall));
        let open = self.open.clone().and_then(|open| Some((open.store, self.room(&limiter.metrics)?)));
        let Some((store, room)) = open else { return limiter.store.debit(key, share, cost, now) };
        let mut rule = meter.rule(|| self.now());
        let (name, limit, which, sharing) = (name.to_owned(), Arc::clone(&debit.limit), debit.which, self.clone());
        let (metrics, own) = (limiter.metrics.clone(), Arc::clone(&limiter.store));
        self.runtime.spawn(async move {
            let until = Instant::now() + DEBIT;
            let mut decision = debited(&store, &name, rule, cost, until).await;
            if decision == Some(Decision::Failed(Failure::Window)) {
                rule = limit.meter(which).rule(|| sharing.now());
                decision = debited(&store, &name, rule, cost, until).await;
            }
            if let Some(Decision::Failed(failure)) = decision {
                metrics.failed(failure);
                own.debit(key, share, cost, now);
            }
            drop(room);
        });
    }

    /// For one more question that nobody waits for; counted, if there is none.
    fn room(&self, metrics: &Metrics) -> Option<OwnedSemaphorePermit> {
        let room = Arc::clone(&self.beside).try_acquire_owned().ok();
        if room.is_none() {
            metrics.busy();
        }
        room
    }

    async fn pass(&self, wanted: &[Wanted], treatment: Treatment) -> Pass {
        let charges: SmallVec<[Charge<'_>; 4]> = wanted.iter().map(|wanted| wanted.charge(treatment)).collect();
        match &self.open {
            Some(Open { store, .. }) => store.pass(&charges, Instant::now() + self.settings.patience).await,
            None => Pass::failed(charges.len(), Failure::Away),
        }
    }

    /// The server's time, as far as is known: windows of the calendar are of it.
    fn now(&self) -> Micros {
        let ours = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_micros());
        self.open.as_ref().map_or_else(|| Micros::try_from(ours()).unwrap_or(Micros::MAX), |open| open.store.now())
    }

    fn wanted(&self, ask: &Ask<'_>) -> Wanted {
        let name = ask.limit.shared_name(&self.settings.namespace, &ask.apart);
        let rule = ask.meter.rule(|| self.now());
        Wanted { limit: Arc::clone(ask.limit), which: ask.which, rule, name, key: ask.key, cost: ask.cost, lease: None }
    }

    /// Takes what the store says of each.
    fn take(&self, limiter: &Limiter, wanted: &[Wanted], pass: Pass, now: Now, outcome: &mut Outcome, charges: &mut Charges<'_>) {
        for (place, (wanted, decision)) in wanted.iter().zip(&pass.decisions).enumerate() {
            match *decision {
                Decision::Skipped => {}
                Decision::Told(verdict) => {
                    outcome.told.push(wanted.told(&wanted.rule, &verdict));
                    self.tell(limiter, wanted, &verdict, (pass.denied, place), outcome);
                    self.note(limiter, wanted, &verdict, pass.denied.is_none(), now);
                }
                Decision::Failed(failure) => {
                    limiter.metrics.failed(failure);
                    if pass.denied.is_none() && outcome.stops().is_none() {
                        self.fall_back(limiter, wanted, now, outcome, charges);
                    }
                }
            }
        }
        if let Some(open) = &self.open {
            if outcome.stops().is_none() {
                let slots = self.slots(wanted, &pass);
                if !slots.is_empty() {
                    outcome.settlement.get_or_insert_default().held.extend(slots);
                }
            }
            // Given back by the caller, if the request goes no further.
            charges.share(&open.store, pass.ticket);
        }
    }

    /// What a verdict of the store means for the request.
    fn tell(
        &self,
        limiter: &Limiter,
        wanted: &Wanted,
        verdict: &Verdict,
        (denied, place): (Option<usize>, usize),
        outcome: &mut Outcome,
    ) {
        match denied {
            None => {
                outcome.allow(wanted.meter(), &wanted.rule, verdict);
                limiter.metrics.decided(&wanted.limit, Source::Store, true);
            }
            Some(first) if !verdict.allowed => {
                outcome.deny(retry_after(&wanted.rule, verdict));
                if first == place {
                    limiter.metrics.decided(&wanted.limit, Source::Store, false);
                }
            }
            Some(_) => {}
        }
        if let Some(told) = outcome.told.last() {
            limiter.metrics.used(&wanted.limit, told.used());
        }
    }

    /// The slots that a pass has taken.
    fn slots(&self, wanted: &[Wanted], pass: &Pass) -> SmallVec<[Slot; 1]> {
        let Some(Open { renewals, .. }) = &self.open else { return SmallVec::new() };
        let slot = |held: super::shared::Held| {
            let of = wanted.iter().find(|wanted| held.is_of(&wanted.name))?;
            let Rule::Slots(rule) = of.rule else { return None };
            Some(renewals.hold(&of.name, rule, pass.ticket.id(), held))
        };
        pass.ticket.held().filter_map(slot).collect()
    }

    /// What holds for a limit that the store did not decide.
    fn fall_back(&self, limiter: &Limiter, wanted: &Wanted, now: Now, outcome: &mut Outcome, charges: &mut Charges<'_>) {
        let limit = &wanted.limit;
        let allowed = match limit.on_store_failure {
            OnStoreFailure::Allow => true,
            OnStoreFailure::Deny => {
                outcome.undecided = Some(Arc::clone(limit));
                false
            }
            OnStoreFailure::Local => {
                let asked = wanted.of_pod(self.uses.part(wanted.key, self.pods), now);
                let (verdict, charged) = limiter.store.charge(&asked, ChargeId::random(), now);
                outcome.told.push(wanted.told(&asked.rule, &verdict));
                if verdict.allowed {
                    if let (Rule::Slots(_), Some(slot)) = (&asked.rule, charged) {
                        outcome.settlement.get_or_insert_default().slots.push(slot);
                    }
                    charges.add(charged, outcome.told.len().checked_sub(1));
                } else {
                    outcome.deny(retry_after(&asked.rule, &verdict));
                }
                verdict.allowed
            }
        };
        limiter.metrics.decided(limit, Source::Fallback, allowed);
    }

    /// Keeps what the store says of a count.
    fn note(&self, limiter: &Limiter, wanted: &Wanted, verdict: &Verdict, charged: bool, now: Now) {
        let (remaining, _) = wanted.meter().delay(&wanted.rule, verdict.remaining, verdict.reset);
        let spent = if charged { wanted.cost } else { 0 };
        self.keep_share(limiter, &wanted.limit, wanted.which, wanted.key, (spent, remaining), now);
        if let (Some(of), Some(open), false) = (&wanted.lease, &self.open, verdict.allowed) {
            open.leases.denied(of, verdict, Instant::now());
        }
    }

    /// Keeps the pod's share of what remains, for when the store fails.
    fn keep_share(&self, limiter: &Limiter, limit: &Limit, which: Which, key: u64, (spent, remaining): (u64, u64), now: Now) {
        if limit.on_store_failure == OnStoreFailure::Local {
            let rule = limit.meter(which).prompt(now.wall);
            self.uses.see(key, &rule, spent, remaining, now.steady);
            let part = self.uses.part(key, self.pods);
            // What is not a whole token for each is one for each: who has any left is not denied by all of them.
            let remaining = if remaining == 0 { 0 } else { part.of(remaining) };
            limiter.store.note(&rule.share_of(part), key, remaining, now);
        }
    }
}

async fn debited(store: &Store, name: &str, rule: Rule, cost: u64, until: Instant) -> Option<Decision> {
    let charge = Charge { key: name, rule, treatment: Treatment::Debit, cost };
    store.pass(&[charge], until).await.decisions.first().copied()
}

impl fmt::Debug for Sharing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sharing").field("settings", &self.settings).field("pods", &self.pods).finish_non_exhaustive()
    }
}
