//! What the cache has counted since it began.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::cache::{Cache, disk, fill, store::Gone};

/// Results that spared the origin a request.
const SPARED: [&str; 4] = ["hit", "stale", "collapsed", "shadow_hit"];
/// Results of requests that the cache could not have answered.
const PASSED: [&str; 1] = ["bypass"];

/// What the cache holds, and what it has counted since its process began.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    /// Answers that are stored.
    pub objects: u64,
    /// Bytes that they take, with what the store needs to find them.
    pub bytes: u64,
    /// Bytes that they may take.
    pub limit_bytes: u64,
    /// Answers that are on their way to the store.
    pub fills: Fills,
    /// Answers that left the store, by reason.
    pub evictions: BTreeMap<String, u64>,
    /// Answers that came and did not fit: `tooLarge`, `crowded`.
    pub refused: BTreeMap<String, u64>,
    /// Rules by name.
    pub rules: Vec<RuleFigures>,
    /// Requests that passed the cache by, by reason.
    pub bypassed: BTreeMap<String, u64>,
    /// Requests that the store could not answer, by reason, in the words of `fwd` in `Cache-Status`.
    #[serde(default)]
    pub missed: BTreeMap<String, u64>,
    /// Answers that were not stored, by reason.
    pub not_stored: BTreeMap<String, u64>,
    /// Parts of answers that came, by what became of them: `first` of its answer, `joined` with others, of a newer answer that `replaced` another,
    /// `outdated`; `completed` answers, and others that were `cut`, for there were too many bytes or parts.
    #[serde(default)]
    pub parts: BTreeMap<String, u64>,
    /// Bytes of bodies that the store gave, and so no origin.
    pub served_bytes: u64,
    /// Milliseconds that origins would have taken to the heads of these answers.
    #[serde(default)]
    pub saved_millis: u64,
    /// Purges that were asked for at this pod: `hard`, `soft`.
    pub purges: BTreeMap<String, u64>,
    /// What is on disk; none if nothing is kept there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskFigures>,
    /// Whether purges over all pods may be complete that this one does not know of; none if it shares none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut_off: Option<bool>,
}

/// Answers that are on their way to the store, and what requests that missed them have done.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fills {
    /// How many are on their way.
    pub open: u64,
    /// Bytes that they hold.
    pub bytes: u64,
    /// Misses that fetched for all.
    pub led: u64,
    /// Misses that waited for what another one fetched.
    pub joined: u64,
    /// Misses alone, since the answers to their key were not stored not long ago.
    pub not_storable: u64,
    /// Misses alone, since too much was under way.
    pub crowded: u64,
    /// Fetches that failed.
    pub failed: u64,
}

/// Answers on disk.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskFigures {
    /// Whether they can be used; of several pods, those of all.
    pub open: bool,
    /// How many there are, with one more for each target that varies.
    pub records: u64,
    /// Bytes that they take.
    pub bytes: u64,
    /// Bytes that they may take.
    pub limit_bytes: u64,
    /// Looks for answers that memory did not have.
    pub looks: u64,
    /// Looks that found one.
    pub hits: u64,
}

/// What came of the requests of a rule.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleFigures {
    /// `namespace/policy/rule`.
    pub rule: String,
    /// All of its requests.
    pub total: u64,
    /// Requests by result: `hit`, `stale`, `revalidated`, `collapsed`, `miss`, `bypass`, `error`; in mode Shadow `shadow_hit`, `shadow_miss`.
    pub requests: BTreeMap<String, u64>,
    /// The part that spared the origin a request, 0 to 1, of those that did not pass the cache by. None if there were none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hit_ratio: Option<f64>,
    /// Bytes of bodies that the store gave.
    #[serde(default)]
    pub served_bytes: u64,
    /// Milliseconds that the origin would have taken to the heads of these answers.
    #[serde(default)]
    pub saved_millis: u64,
}

impl Figures {
    /// Adds what another pod has counted.
    pub fn add(&mut self, other: &Self) {
        // Each by its name, so that none is forgotten.
        let Self {
            objects,
            bytes,
            limit_bytes,
            fills,
            evictions,
            refused,
            rules: theirs,
            bypassed,
            not_stored,
            parts,
            missed,
            served_bytes,
            saved_millis,
            purges,
            disk,
            cut_off,
        } = other;
        self.objects += objects;
        self.bytes += bytes;
        self.limit_bytes += limit_bytes;
        self.served_bytes += served_bytes;
        self.saved_millis += saved_millis;
        self.fills.add(*fills);
        for (mine, others) in [
            (&mut self.evictions, evictions),
            (&mut self.refused, refused),
            (&mut self.missed, missed),
            (&mut self.bypassed, bypassed),
            (&mut self.not_stored, not_stored),
            (&mut self.parts, parts),
            (&mut self.purges, purges),
        ] {
            for (name, count) in others {
                *mine.entry(name.clone()).or_default() += count;
            }
        }
        let both = || self.rules.iter().chain(theirs);
        let of = |count: fn(&RuleFigures) -> u64| both().map(|rule| (rule.rule.clone(), count(rule))).collect::<Vec<_>>();
        let (served, saved) = (of(|rule| rule.served_bytes), of(|rule| rule.saved_millis));
        let requests = both().flat_map(|RuleFigures { rule, requests, .. }| {
            requests.iter().map(move |(result, count)| (rule, result.as_str(), *count))
        });
        self.rules = rules(requests, &served, &saved);
        if let Some(other) = disk {
            self.disk.get_or_insert(DiskFigures { open: true, ..DiskFigures::default() }).add(*other);
        }
        self.cut_off = match (self.cut_off, *cut_off) {
            (None, other) => other,
            (mine, None) => mine,
            (Some(mine), Some(other)) => Some(mine || other),
        };
    }
}

impl DiskFigures {
    fn add(&mut self, other: Self) {
        let Self { open, records, bytes, limit_bytes, looks, hits } = other;
        self.open &= open;
        self.records += records;
        self.bytes += bytes;
        self.limit_bytes += limit_bytes;
        self.looks += looks;
        self.hits += hits;
    }
}

impl Fills {
    fn add(&mut self, other: Self) {
        let Self { open, bytes, led, joined, not_storable, crowded, failed } = other;
        self.open += open;
        self.bytes += bytes;
        self.led += led;
        self.joined += joined;
        self.not_storable += not_storable;
        self.crowded += crowded;
        self.failed += failed;
    }
}

/// Reads the counters. They are read one after another, so sums may differ by what happened meanwhile.
pub(super) fn figures(cache: &Cache) -> Figures {
    let (store, metrics) = (cache.store().stats(), &cache.metrics);
    let (served, saved) = (metrics.bytes_served(), metrics.saved());
    let sum = |counts: &[(Arc<str>, u64)]| counts.iter().map(|(_, count)| count).sum();
    Figures {
        objects: store.objects,
        bytes: store.bytes,
        limit_bytes: store.capacity,
        fills: fills(cache),
        evictions: named(Gone::ALL.map(|why| (why.as_str(), store.gone(why)))),
        refused: named([("tooLarge", store.too_large), ("crowded", store.crowded)]),
        rules: rules(metrics.requests(), &served, &saved),
        bypassed: named(metrics.reasons_of_bypass()),
        missed: named(metrics.reasons_of_misses()),
        not_stored: named(metrics.reasons_not_stored()),
        parts: named(metrics.parts()),
        served_bytes: sum(&served),
        saved_millis: sum(&saved),
        purges: named(cache.purges.counts()),
        disk: disk(cache),
        cut_off: cache.purges.is_cut_off(),
    }
}

fn disk(cache: &Cache) -> Option<DiskFigures> {
    let disk::Stats { open, records, bytes, limit } = cache.behind.disk()?.stats();
    let (hits, looks) = cache.metrics.disk.tally.hits();
    Some(DiskFigures { open, records, bytes, limit_bytes: limit, looks, hits })
}

fn fills(cache: &Cache) -> Fills {
    let fill::Counts { led, joined, hit_for_miss, over_budget, crowded, failed, .. } = cache.fills.counts();
    Fills {
        open: cache.fills.open() as u64,
        bytes: cache.budget.used(),
        led,
        joined,
        not_storable: hit_for_miss,
        crowded: over_budget + crowded,
        failed,
    }
}

fn named(counts: impl IntoIterator<Item = (&'static str, u64)>) -> BTreeMap<String, u64> {
    counts.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

/// Sums up what was counted by rule and result, and of these bytes and milliseconds.
fn rules<'a, R: AsRef<str>, S: AsRef<str>>(
    counts: impl IntoIterator<Item = (R, &'a str, u64)>,
    served: &[(S, u64)],
    saved: &[(S, u64)],
) -> Vec<RuleFigures> {
    let mut rules: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    for (rule, result, count) in counts {
        *rules.entry(rule.as_ref().to_owned()).or_default().entry(result.to_owned()).or_default() += count;
    }
    let figures = |(rule, requests): (String, BTreeMap<String, u64>)| {
        let sum = |results: &[&str]| results.iter().filter_map(|result| requests.get(*result)).sum::<u64>();
        let total = requests.values().sum();
        let asked = total - sum(&PASSED);
        let hit_ratio = (asked > 0).then(|| sum(&SPARED) as f64 / asked as f64);
        let of_rule = |counts: &[(S, u64)]| counts.iter().filter(|(name, _)| name.as_ref() == rule).map(|(_, count)| count).sum();
        RuleFigures { total, requests, hit_ratio, served_bytes: of_rule(served), saved_millis: of_rule(saved), rule }
    };
    rules.into_iter().map(figures).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratio_leaves_out_what_passed_by() {
        let counts = [("a", "hit", 5), ("a", "collapsed", 1), ("a", "miss", 2), ("a", "bypass", 90), ("b", "bypass", 1)];
        let rules = rules(counts, &[("a", 7)], &[("b", 3), ("a", 2)]);
        assert_eq!((rules[0].served_bytes, rules[0].saved_millis, rules[1].saved_millis), (7, 2, 3));
        let ratios: Vec<_> = rules.iter().map(|rule| (rule.rule.as_str(), rule.total, rule.hit_ratio)).collect();
        assert_eq!(ratios, [("a", 98, Some(0.75)), ("b", 1, None)]);
    }

    #[test]
    fn sum_of_pods_has_the_ratio_of_all_their_requests() {
        let pod = |counts: &[(&'static str, &'static str, u64)], cut_off| Figures {
            objects: 2,
            rules: rules(counts.iter().copied(), &[("a", 5)], &[("a", 2)]),
            purges: named([("hard", 1), ("soft", 0)]),
            cut_off,
            ..Figures::default()
        };
        let mut sum = pod(&[("a", "hit", 9), ("a", "miss", 1)], None);
        sum.add(&pod(&[("a", "miss", 10), ("b", "bypass", 3)], Some(true)));
        sum.add(&pod(&[], Some(false)));
        assert_eq!((sum.objects, sum.cut_off, sum.purges), (6, Some(true), named([("hard", 3), ("soft", 0)])));
        assert_eq!((sum.rules[0].served_bytes, sum.rules[0].saved_millis, sum.rules[1].saved_millis), (10, 4, 0));
        let ratios: Vec<_> = sum.rules.iter().map(|rule| (rule.rule.as_str(), rule.total, rule.hit_ratio)).collect();
        assert_eq!(ratios, [("a", 20, Some(0.45)), ("b", 3, None)]);
    }
}
