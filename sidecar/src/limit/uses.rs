//! How much of counts that pods share a pod uses itself: when the store fails, its share goes by that.
//!
//! Each answer of the store says what remains. What is missing since the answer before, and what has come in meanwhile, has been used by
//! all pods; what this one was charged is its own. Both fade, so a load that moves takes its share with it. What nobody uses is everybody's
//! in equal parts: who has seen little of a count must not take it for its own.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::shared::{Micros, Part, Rule};

const SHARDS: usize = 16;
/// Counts that are followed at most; of others every pod has an equal share.
const CAPACITY: usize = 4096;
/// In which what was used counts for a third of what is used now.
const FADES: f64 = 10e6;
/// A count that was not asked for in so long may be forgotten.
const IDLE: Micros = 60_000_000;
/// So many uses tell how a count is divided, however slowly it comes in again.
const ENOUGH: u64 = 100;

/// What is used, by the keys of counts.
#[derive(Debug, Default)]
pub(super) struct Uses {
    shards: [Mutex<HashMap<u64, Use>>; SHARDS],
    /// When the store last said anything. What is known fades until then: while it is silent, nobody knows better.
    heard: AtomicU64,
}

/// Of one count.
#[derive(Clone, Copy, Debug)]
struct Use {
    own: f64,
    all: f64,
    /// What the store said last, when, and of which window of a calendar.
    remaining: u64,
    at: Micros,
    window: Micros,
}

impl Uses {
    /// The store has said what remains by this rule, when the pod had spent so much since it said so before.
    pub(super) fn see(&self, key: u64, rule: &Rule, spent: u64, remaining: u64, now: Micros) {
        if !matches!(rule, Rule::Bucket(_) | Rule::Fixed(_)) {
            return;
        }
        self.heard.fetch_max(now, Ordering::Relaxed);
        let mut shard = self.lock(key);
        if shard.len() >= CAPACITY / SHARDS && !shard.contains_key(&key) {
            shard.retain(|_, one| now.saturating_sub(one.at) < IDLE);
            if shard.len() >= CAPACITY / SHARDS {
                return;
            }
        }
        let remained = remaining.saturating_add(spent);
        let first = Use { own: 0.0, all: 0.0, remaining: remained, at: now, window: window(rule) };
        shard.entry(key).or_insert(first).see(rule, spent, remaining, now);
    }

    /// What of a count belongs to this one of so many pods.
    pub(super) fn part(&self, key: u64, rule: &Rule, pods: u32) -> Part {
        let seen = if pods > 1 { self.lock(key).get(&key).copied() } else { None };
        seen.map_or_else(|| Part::equal(pods), |seen| seen.part(rule, pods, self.heard.load(Ordering::Relaxed)))
    }

    fn lock(&self, key: u64) -> MutexGuard<'_, HashMap<u64, Use>> {
        // A panic under the lock leaves at worst one wrong share.
        self.shards[(key >> 32) as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Use {
    fn see(&mut self, rule: &Rule, spent: u64, remaining: u64, now: Micros) {
        let past = now.saturating_sub(self.at);
        let (faded, then) = (fade(past), self.then(rule, past));
        let remaining = match rule {
            // Within a window only refunds give anything back, and answers that come in another order than the store gave them.
            Rule::Fixed(_) => remaining.min(then as u64),
            _ => remaining,
        };
        self.own = self.own * faded + spent as f64;
        // Of a bucket such an answer says too much, and the next one as much too little.
        self.all = (self.all * faded + then - remaining as f64).max(self.own);
        (self.remaining, self.at, self.window) = (remaining, now.max(self.at), window(rule));
    }

    /// What would remain by now if nobody had used anything.
    fn then(&self, rule: &Rule, past: Micros) -> f64 {
        match rule {
            Rule::Bucket(bucket) => (self.remaining as f64 + bucket.rate_of(past as f64)).min(bucket.burst() as f64),
            Rule::Fixed(fixed) if fixed.start() != self.window => fixed.quota() as f64,
            _ => self.remaining as f64,
        }
    }

    /// Each pod keeps what it uses, and has an equal part of what nobody does.
    fn part(&self, rule: &Rule, pods: u32, heard: Micros) -> Part {
        let faded = fade(heard.saturating_sub(self.at));
        let (own, all) = (self.own * faded, self.all * faded);
        let unused = (most(rule) - all).max(0.0);
        Part::of_use(pods, own + unused / f64::from(pods), all + unused)
    }
}

/// What is left of what was used so long ago.
fn fade(past: Micros) -> f64 {
    (-(past as f64) / FADES).exp()
}

/// What is known of a count of which everything is used: what comes in while that fades.
fn most(rule: &Rule) -> f64 {
    let (meanwhile, at_once) = match rule {
        Rule::Bucket(bucket) => (bucket.rate_of(FADES), bucket.burst()),
        Rule::Fixed(fixed) => (fixed.quota() as f64 * FADES / fixed.length() as f64, fixed.quota()),
        Rule::Sliding(_) | Rule::Slots(_) => (0.0, ENOUGH),
    };
    meanwhile.max(at_once.min(ENOUGH) as f64)
}

/// When the window of a calendar began.
fn window(rule: &Rule) -> Micros {
    if let Rule::Fixed(fixed) = rule { fixed.start() } else { 0 }
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
        for token in 0..30_000_u64 {
            let pod = usize::from(token % (times + 1) == times);
            pods[pod].see(7, &rule, 1, 0, token * 2000);
        }
        [0, 1].map(|pod: usize| pods[pod].part(7, &rule, 10))
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
    fn who_used_all_has_all_that_remains() {
        let hourly = Rule::Bucket(Bucket::new(1, Duration::from_secs(3600), 5).unwrap());
        let uses = Uses::default();
        // Answers say whole tokens, and meanwhile a part of one has come in.
        (0..5).for_each(|used| uses.see(1, &hourly, 1, 4 - used, used * SECOND / 1000));
        assert_eq!(uses.part(1, &hourly, 10).of(3), 3);
        assert_eq!(uses.part(2, &hourly, 1).of(3), 3, "the only pod has all of what it does not know, too");
    }

    #[test]
    fn pods_that_each_saw_one_request_have_together_little_more_than_the_limit() {
        let minute = Rule::Fixed(Fixed::new(100, 0, 60 * SECOND, 120 * SECOND).unwrap());
        let second = Rule::Bucket(Bucket::new(10, Duration::from_secs(1), 10).unwrap());
        let part = |pod: u64, rule: Rule| {
            let uses = Uses::default();
            uses.see(7, &rule, 1, 9 - pod, pod * SECOND);
            uses.part(7, &rule, 10).of(1000)
        };
        for rule in [minute, second] {
            let all: u64 = (0..10).map(|pod| part(pod, rule)).sum();
            assert!((990..1150).contains(&all), "{all} of 1000 by {rule:?}");
        }
    }

    #[test]
    fn what_was_used_long_ago_counts_for_nothing_unless_the_store_is_silent() {
        let rule = Rule::Bucket(Bucket::new(10, Duration::from_secs(1), 10).unwrap());
        let uses = Uses::default();
        (0..600).for_each(|tenth| uses.see(1, &rule, 1, 0, tenth * SECOND / 10));
        assert!(uses.part(1, &rule, 4).of(1000) > 980, "it is the only one, and nothing else was heard since");
        uses.see(2, &rule, 1, 9, 160 * SECOND);
        assert!((245..255).contains(&uses.part(1, &rule, 4).of(1000)));
    }

    #[test]
    fn share_of_a_window_counts_from_its_begin_whatever_the_order_of_answers() {
        let rule = |start| Rule::Fixed(Fixed::new(1000, start, start + 60 * SECOND, start + 120 * SECOND).unwrap());
        let uses = Uses::default();
        let thousandths = |start| uses.part(1, &rule(start), 2).of(1000);
        uses.see(1, &rule(0), 100, 800, SECOND);
        uses.see(1, &rule(0), 100, 500, SECOND);
        assert_eq!(thousandths(0), 500, "200 of 400, and of what went before nothing is known");
        for late in [501, 600, 500] {
            uses.see(1, &rule(0), 0, late, SECOND);
            assert_eq!(thousandths(0), 500, "{late}");
        }
        let next = 60 * SECOND;
        uses.see(1, &rule(next), 100, 400, next);
        assert!(
            (160..180).contains(&thousandths(next)),
            "100 of the 600, and little of what was long ago: {}",
            thousandths(next)
        );
    }

    #[test]
    fn unknown_counts_are_divided_evenly_and_the_known_are_bounded() {
        let uses = Uses::default();
        let rule = Rule::Bucket(Bucket::new(1, Duration::from_secs(1), 10).unwrap());
        assert_eq!(uses.part(1, &rule, 4).of(1000), 250);
        for key in 0..100_000_u64 {
            uses.see(key << 20, &rule, 1, 9, 0);
        }
        let followed = uses.shards.iter().map(|shard| shard.lock().unwrap().len()).sum::<usize>();
        assert!(followed <= CAPACITY, "{followed}");
    }
}
