//! Counts by the names that administrators use.

use std::{hash::BuildHasher as _, sync::Arc, time::Instant};

use crds::policy::rate_limits::Scope;

use super::{Ask, Facts, Limit, Limiter, Now, Outcome, Route, Sharing, Told, Which};
use crate::limit::{
    counted::Decided,
    key::Bytes,
    shared::{Failure, Rule},
    show::{By, DeniedOften, LimitCount, LimitTop, ShowError, TopRequest},
    top::{DeniedKey, Entry},
};

impl Limiter {
    /// How what is counted under these values stands, one for each part of the key.
    ///
    /// # Errors
    /// The values are none of this limit, or the store does not answer.
    pub(crate) async fn count(&self, limit: &Arc<Limit>, values: &[String]) -> Result<LimitCount, ShowError> {
        let (ask, now) = (self.named(limit, values)?, self.at(Instant::now()));
        let (counted, rule, verdict) = match self.shared_by(limit) {
            Some(sharing) => {
                let (rule, verdict) = sharing.look(&ask).await?;
                (By::Store, rule, verdict)
            }
            None => {
                let wanted = ask.of_pod(now);
                (By::Pod, wanted.rule, self.store.look(&wanted, now))
            }
        };
        let paused = if limit.pauses { self.pauses.left(ask.key, now.steady) } else { None };
        let told = Told::new(limit, ask.which, &rule, &verdict);
        let is_known = !matches!(rule, Rule::Slots(_));
        Ok(LimitCount {
            name: limit.full_name(),
            counted,
            quota: told.quota(),
            remaining: told.remaining(),
            next_seconds: is_known.then(|| told.next().as_secs_f64()),
            full_seconds: is_known.then_some(verdict.reset.as_secs_f64()),
            paused_seconds: paused.map(|left| left.as_secs_f64()),
        })
    }

    /// Forgets what is counted under these values, so that it begins anew, and that an upstream wants nothing of it; whether there was
    /// anything to forget.
    ///
    /// # Errors
    /// The values are none of this limit, or the store does not answer: then the pod alone has forgotten.
    pub(crate) async fn forget(&self, limit: &Arc<Limit>, values: &[String]) -> Result<bool, ShowError> {
        let ask = self.named(limit, values)?;
        let here = self.store.forget(ask.key) | self.pauses.end(ask.key);
        match self.shared_by(limit) {
            Some(sharing) => Ok(sharing.forget(&ask).await? | here),
            None => Ok(here),
        }
    }

    /// The keys that were denied most, or those of them that have least left.
    pub(crate) fn top(&self, request: &TopRequest) -> LimitTop {
        let now = self.at(Instant::now());
        let wanted = |name: &str| request.limit.as_ref().is_none_or(|limit| limit == name);
        let denied = self.top.all().into_iter().map(|entry| self.denied_key(entry, now)).filter(|key| wanted(&key.name));
        LimitTop::of(denied.collect(), request.order, request.most)
    }

    fn denied_key(&self, Entry { key, count, error, what }: Entry<DeniedKey>, now: Now) -> DeniedOften {
        let DeniedKey { limit, which, apart, values } = what;
        let (name, is_here) = (limit.full_name(), self.shared_by(&limit).is_none());
        let ask = Ask { limit: &limit, which, meter: limit.meter(which), apart, key, cost: 0 };
        let wanted = ask.of_pod(now);
        let told = Told::new(&limit, which, &wanted.rule, &self.store.look(&wanted, now));
        DeniedOften {
            name,
            values: values.into(),
            denied: count,
            uncertain: error,
            quota: told.quota(),
            // Nobody is asked for what the store has.
            remaining: is_here.then(|| told.remaining()),
        }
    }

    /// Follows the key for which a limit has denied a request.
    pub(super) fn note_denied(&self, route: &Route, facts: &Facts<'_>, outcome: &Outcome) {
        let denied = outcome.denied.and_then(|place| outcome.told.get(place));
        let of = |told: &Told| route.limits().find(|(limit, _)| Arc::ptr_eq(limit, &told.limit));
        if let Some((limit, matched)) = denied.and_then(of) {
            let apart = limit.key_of(facts, matched);
            self.top.denied(self.key(limit, &apart), (limit, matched), apart, facts);
        }
    }

    /// What was decided of a limit, by who did.
    pub(crate) fn decisions(&self, limit: &Limit) -> Vec<Decided> {
        self.metrics.decisions(limit)
    }

    /// Counts that there is room for.
    pub(crate) fn capacity(&self) -> usize {
        self.store.capacity()
    }

    /// By which the pod finds a count.
    pub(super) fn key(&self, limit: &Limit, apart: &Bytes) -> u64 {
        self.hasher.hash_one((limit.identity, apart))
    }

    fn shared_by(&self, limit: &Limit) -> Option<Arc<Sharing>> {
        if limit.scope == Scope::Shared { self.sharing.load_full() } else { None }
    }

    fn named<'a>(&self, limit: &'a Arc<Limit>, values: &[String]) -> Result<Ask<'a>, ShowError> {
        let (parts, given) = (limit.key.len(), values.len());
        if parts != given {
            let wrong = format!("the key of {} has {parts} parts, and {given} values are given", limit.full_name());
            return Err(ShowError::Wrong(wrong));
        }
        let mut apart = Bytes::new();
        for (part, text) in limit.key.iter().zip(values) {
            part.write_text(text, &mut apart).map_err(ShowError::Wrong)?;
        }
        let which = limit.which_of(values);
        let key = self.key(limit, &apart);
        Ok(Ask { limit, which, meter: limit.meter(which), apart, key, cost: 0 })
    }
}

impl Limit {
    /// Which of its numbers hold for what has these values.
    fn which_of(&self, values: &[String]) -> Which {
        let mut parts = self.overrides.iter().map(|other| self.key.iter().zip(&other.wishes).zip(values));
        let place = parts.position(|mut parts| parts.all(|((part, wish), text)| part.is_text(wish, text)));
        Which(place.and_then(|place| u8::try_from(place).ok()))
    }
}

impl From<Failure> for ShowError {
    fn from(failure: Failure) -> Self {
        Self::Unanswered(failure.label())
    }
}
