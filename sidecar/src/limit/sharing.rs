//! Limits that pods count together: what is asked of the store, and what holds when it does not answer.

use std::{fmt, sync::Arc, time::Duration};

use crds::policy::{Mode, rate_limits::OnStoreFailure};
use smallvec::SmallVec;
use tokio::{runtime::Handle, sync::Semaphore, time::Instant};

use super::{
    Limit, Limiter,
    counted::Source,
    gcra::{Gcra, Level},
    outcome::{Outcome, Told},
    shared::{Bucket, Charge, Decision, Failure, Pass, Rule, Store, Treatment, Verdict},
    stage::{Asked, Holds},
};
use crate::redis::Redis;

/// Questions for limits in Shadow that are under way, at most: nobody waits for them.
const SHADOWS: usize = 256;

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
    store: Option<Store>,
    /// Pods of the proxy in the namespace that are alive: among so many a limit is divided where the store fails.
    pods: u32,
    runtime: Handle,
    shadows: Arc<Semaphore>,
}

/// A limit that is asked for, and the name of its count.
struct Wanted {
    limit: Arc<Limit>,
    rule: Bucket,
    name: String,
    /// By which the pod finds its own count, for when the store fails.
    key: u64,
}

impl Wanted {
    fn charge(&self, treatment: Treatment) -> Charge<'_> {
        Charge { key: &self.name, rule: Rule::Bucket(self.rule), treatment, cost: 1 }
    }
}

impl Sharing {
    /// Connects in tasks of this runtime.
    pub(super) fn start(settings: StoreSettings, pods: u32) -> Self {
        let store = settings.redis.as_ref().map(|redis| Store::start(redis, settings.patience));
        Self { settings, store, pods: pods.max(1), runtime: Handle::current(), shadows: Arc::new(Semaphore::new(SHADOWS)) }
    }

    /// Where it is, and among how many pods.
    pub(super) fn is(&self, settings: &StoreSettings, pods: u32) -> bool {
        self.settings == *settings && self.pods == pods.max(1)
    }

    /// There, among so many pods: over the same connections, if it is the same place.
    pub(super) fn with(&self, settings: StoreSettings, pods: u32) -> Self {
        if self.settings == settings { Self { pods: pods.max(1), ..self.clone() } } else { Self::start(settings, pods) }
    }

    /// Charges limits in force, all or none. Those that the store does not decide follow what the policy says of that.
    pub(super) async fn enforce<'a>(
        &self,
        limiter: &Limiter,
        limits: impl Iterator<Item = Holds<'a>>,
        asked: Asked<'_>,
        outcome: &mut Outcome,
    ) {
        let limits = limits.filter(|(limit, _)| limit.mode == Mode::Enforce);
        let mut wanted: SmallVec<[Wanted; 4]> = limits.filter_map(|holds| self.wanted(limiter, holds, asked)).collect();
        if wanted.is_empty() {
            return;
        }
        // In a cluster counts are charged group after group; the tightest first deny without a refund.
        wanted.sort_by_key(|wanted| wanted.rule.burst());
        let begun = Instant::now();
        let pass = self.pass(&wanted, Treatment::Enforce).await;
        limiter.metrics.waited.observe(begun.elapsed().as_secs_f64());
        self.take(limiter, &wanted, pass, asked, outcome);
    }

    /// Asks for limits in Shadow without waiting for what comes of it.
    pub(super) fn shadow<'a>(&self, limiter: &Limiter, limits: impl Iterator<Item = Holds<'a>>, asked: Asked<'_>) {
        let limits = limits.filter(|(limit, _)| limit.mode == Mode::Shadow);
        let wanted: SmallVec<[Wanted; 4]> = limits.filter_map(|holds| self.wanted(limiter, holds, asked)).collect();
        if wanted.is_empty() {
            return;
        }
        let Ok(room) = Arc::clone(&self.shadows).try_acquire_owned() else { return limiter.metrics.busy() };
        let (sharing, metrics) = (self.clone(), limiter.metrics.clone());
        self.runtime.spawn(async move {
            let _room = room;
            let pass = sharing.pass(&wanted, Treatment::Shadow).await;
            for (wanted, decision) in wanted.iter().zip(&pass.decisions) {
                match decision {
                    Decision::Told(verdict) => metrics.decided(&wanted.limit, Source::Store, verdict.allowed),
                    Decision::Failed(failure) => metrics.failed(*failure),
                    Decision::Skipped => {}
                }
            }
        });
    }

    async fn pass(&self, wanted: &[Wanted], treatment: Treatment) -> Pass {
        let charges: SmallVec<[Charge<'_>; 4]> = wanted.iter().map(|wanted| wanted.charge(treatment)).collect();
        match &self.store {
            Some(store) => store.pass(&charges, Instant::now() + self.settings.patience).await,
            None => Pass::failed(charges.len(), Failure::Away),
        }
    }

    fn wanted(&self, limiter: &Limiter, (limit, matched): Holds<'_>, asked: Asked<'_>) -> Option<Wanted> {
        let key = limit.key_of(asked.facts, matched);
        let (name, key) = (limit.shared_name(&self.settings.namespace, &key), limiter.key(limit, &key));
        Some(Wanted { limit: Arc::clone(limit), rule: limit.bucket?, name, key })
    }

    /// Takes what the store says of each.
    fn take(&self, limiter: &Limiter, wanted: &[Wanted], pass: Pass, asked: Asked<'_>, outcome: &mut Outcome) {
        let mut fallen: SmallVec<[u64; 4]> = SmallVec::new();
        for (place, (wanted, decision)) in wanted.iter().zip(&pass.decisions).enumerate() {
            match *decision {
                Decision::Skipped => {}
                Decision::Told(verdict) => {
                    if outcome.denied.is_none() && pass.denied == Some(place) {
                        outcome.denied = Some(outcome.told.len());
                        limiter.metrics.decided(&wanted.limit, Source::Store, false);
                    } else if pass.denied.is_none() {
                        limiter.metrics.decided(&wanted.limit, Source::Store, true);
                    }
                    self.note(limiter, wanted, &verdict, asked);
                    let level = level(&wanted.limit.gcra, &verdict);
                    outcome.told.push(Told { limit: Arc::clone(&wanted.limit), level });
                }
                Decision::Failed(failure) => {
                    limiter.metrics.failed(failure);
                    if pass.denied.is_none() && outcome.stops().is_none() && self.fall_back(limiter, wanted, asked, outcome) {
                        fallen.push(wanted.key);
                    }
                }
            }
        }
        if outcome.stops().is_some() {
            fallen.iter().for_each(|&key| limiter.store.refund(key));
            if let Some(store) = &self.store {
                store.refund(pass.ticket);
            }
        }
    }

    /// What holds for a limit that the store did not decide. Returns whether the pod's own count was charged.
    fn fall_back(&self, limiter: &Limiter, wanted: &Wanted, asked: Asked<'_>, outcome: &mut Outcome) -> bool {
        let limit = &wanted.limit;
        let allowed = match limit.on_store_failure {
            OnStoreFailure::Allow => true,
            OnStoreFailure::Deny => {
                outcome.undecided = Some(Arc::clone(limit));
                false
            }
            OnStoreFailure::Local => {
                let decision = limiter.store.charge(&limit.gcra.share_of(self.pods), wanted.key, asked.now);
                let (Ok(level) | Err(level)) = decision;
                outcome.told.push(Told { limit: Arc::clone(limit), level });
                if decision.is_err() {
                    outcome.denied = outcome.told.len().checked_sub(1);
                }
                decision.is_ok()
            }
        };
        limiter.metrics.decided(limit, Source::Fallback, allowed);
        allowed && limit.on_store_failure == OnStoreFailure::Local
    }

    /// Keeps the pod's share of what remains, for when the store fails.
    fn note(&self, limiter: &Limiter, wanted: &Wanted, verdict: &Verdict, asked: Asked<'_>) {
        if wanted.limit.on_store_failure == OnStoreFailure::Local {
            // What is not a whole token for each is one for each: who has any left is not denied by all of them.
            let remaining = verdict.remaining.div_ceil(u64::from(self.pods));
            limiter.store.note(&wanted.limit.gcra.share_of(self.pods), wanted.key, remaining, asked.now);
        }
    }
}

/// How a bucket stands, of which is told what remains and when it is full.
fn level(gcra: &Gcra, verdict: &Verdict) -> Level {
    let remaining = u32::try_from(verdict.remaining).unwrap_or(u32::MAX);
    let lacking = gcra.burst().saturating_sub(remaining);
    let next = match verdict.retry {
        Some(retry) if !verdict.allowed => retry,
        // All but the first of those that lack come after it.
        _ => verdict.reset.saturating_sub(gcra.time_of(lacking.saturating_sub(1))),
    };
    Level { remaining, next }
}

impl fmt::Debug for Sharing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sharing").field("settings", &self.settings).field("pods", &self.pods).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_token_is_the_first_of_those_that_lack() {
        let gcra = Gcra::new(10, Duration::from_secs(1), 10).unwrap();
        let verdict = |allowed, remaining, retry, reset| Verdict {
            allowed,
            remaining,
            retry: Some(Duration::from_millis(retry)),
            reset: Duration::from_millis(reset),
        };
        assert_eq!(level(&gcra, &verdict(true, 10, 0, 0)), Level { remaining: 10, next: Duration::ZERO });
        assert_eq!(level(&gcra, &verdict(true, 7, 0, 250)), Level { remaining: 7, next: Duration::from_millis(50) });
        assert_eq!(level(&gcra, &verdict(false, 0, 40, 940)), Level { remaining: 0, next: Duration::from_millis(40) });
    }
}
