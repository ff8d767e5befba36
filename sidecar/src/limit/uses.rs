//! How much of counts that pods share a pod uses itself: when the store fails, its share goes by that.
//!
//! Each answer of the store says what remains. What is missing since the answer before, and what has come in meanwhile, has been used by
//! all pods; what this one was charged is its own. Both fade, so a load that moves takes its share with it.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::shared::{Micros, Part, Rule};

const SHARDS: usize = 16;
/// Counts that are followed at most; of others every pod has an equal share.
const CAPACITY: usize = 4096;
/// In which what was used counts for a third of what is used now.
const FADES: f64 = 10e6;
/// A count that was not asked for in so long may be forgotten.
const IDLE: Micros = 60_000_000;

/// What is used, by the keys of counts.
#[derive(Debug, Default)]
pub(super) struct Uses {
    shards: [Mutex<HashMap<u64, Use>>; SHARDS],
}

/// Of one count.
#[derive(Clone, Copy, Debug)]
struct Use {
    own: f64,
    all: f64,
    /// What the store said last, and when.
    remaining: u64,
    at: Micros,
}

impl Uses {
    /// The store has said what remains, when the pod had spent so much since it said so before.
    pub(super) fn see(&self, key: u64, rule: &Rule, spent: u64, remaining: u64, now: Micros) {
        if !matches!(rule, Rule::Bucket(_) | Rule::Fixed(_)) {
            return;
        }
        let mut shard = self.lock(key);
        if shard.len() >= CAPACITY / SHARDS && !shard.contains_key(&key) {
            shard.retain(|_, one| now.saturating_sub(one.at) < IDLE);
            if shard.len() >= CAPACITY / SHARDS {
                return;
            }
        }
        let first = Use { own: 0.0, all: 0.0, remaining: remaining.saturating_add(spent), at: now };
        shard.entry(key).or_insert(first).see(rule, spent, remaining, now);
    }

    /// What of a count belongs to this one of so many pods.
    pub(super) fn part(&self, key: u64, pods: u32) -> Part {
        match self.lock(key).get(&key) {
            Some(Use { own, all, .. }) if *all >= 1.0 => Part::of_use(pods, *own, *all),
            _ => Part::equal(pods),
        }
    }

    fn lock(&self, key: u64) -> MutexGuard<'_, HashMap<u64, Use>> {
        // A panic under the lock leaves at worst one wrong share.
        self.shards[(key >> 32) as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Use {
    fn see(&mut self, rule: &Rule, spent: u64, remaining: u64, now: Micros) {
        let past = now.saturating_sub(self.at) as f64;
        let used = self.then(rule, remaining, past) - remaining as f64;
        let faded = (-past / FADES).exp();
        self.own = self.own * faded + spent as f64;
        // Answers may come in another order than the store gave them: then one says too much, and the next as much too little.
        self.all = (self.all * faded + used).max(self.own);
        (self.remaining, self.at) = (remaining, now.max(self.at));
    }

    /// What would remain by now if nobody had used anything.
    fn then(&self, rule: &Rule, remaining: u64, past: f64) -> f64 {
        match rule {
            Rule::Bucket(bucket) => (self.remaining as f64 + bucket.rate_of(past)).min(bucket.burst() as f64),
            // It was another window.
            Rule::Fixed(fixed) if remaining > self.remaining => fixed.quota() as f64,
            _ => self.remaining as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::limit::shared::{Bucket, Fixed};

    const SECOND: Micros = 1_000_000;

    /// Two pods ask a bucket in turns, the first so many times as often; the hundredths of each of ten pods.
    fn shares(times: u64) -> [Part; 2] {
        let rule = Rule::Bucket(Bucket::new(500, Duration::from_secs(1), 500).unwrap());
        let pods = [Uses::default(), Uses::default()];
        // Together they use all that comes in, a token every 2 ms.
        for token in 0..20_000_u64 {
            let pod = usize::from(token % (times + 1) == times);
            pods[pod].see(7, &rule, 1, 0, token * 2000);
        }
        [0, 1].map(|pod: usize| pods[pod].part(7, 10))
    }

    #[test]
    fn share_follows_from_what_was_used() {
        for (times, expected) in [(1, [500, 500]), (9, [900, 100]), (99, [990, 10])] {
            for (part, expected) in shares(times).iter().zip(expected) {
                let thousandths = part.of(1000);
                assert!(thousandths.abs_diff(expected) <= 15, "{times}: {thousandths} of {expected}");
            }
        }
    }

    #[test]
    fn share_of_a_window_counts_from_its_begin() {
        let rule = |start| Rule::Fixed(Fixed::new(100, start, start + 60 * SECOND, start + 120 * SECOND).unwrap());
        let uses = Uses::default();
        uses.see(1, &rule(0), 1, 49, SECOND);
        uses.see(1, &rule(0), 1, 45, SECOND);
        assert_eq!(uses.part(1, 2).of(1000), 400, "two of five, and of what went before nothing is known");
        uses.see(1, &rule(60 * SECOND), 5, 90, 60 * SECOND);
        assert!((480..=500).contains(&uses.part(1, 2).of(1000)), "five of the ten, and little of what was long ago");
    }

    #[test]
    fn unknown_counts_are_divided_evenly_and_the_known_are_bounded() {
        let uses = Uses::default();
        assert_eq!(uses.part(1, 4).of(1000), 250);
        let rule = Rule::Bucket(Bucket::new(1, Duration::from_secs(1), 10).unwrap());
        for key in 0..100_000_u64 {
            uses.see(key << 20, &rule, 1, 9, 0);
        }
        let followed = uses.shards.iter().map(|shard| shard.lock().unwrap().len()).sum::<usize>();
        assert!(followed <= CAPACITY, "{followed}");
    }
}
