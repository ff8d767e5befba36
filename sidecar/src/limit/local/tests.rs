use governor::{Quota, RateLimiter, clock::FakeRelativeClock};
use proptest::prelude::*;

use super::*;
use crate::limit::shared::{Bucket, Fixed, Part, Sliding, Slots};

const SECOND: Micros = 1_000_000;

fn bucket(requests: u64, per: Duration, burst: u64) -> Rule {
    Rule::Bucket(Bucket::new(requests, per, burst).unwrap())
}

fn per_second(requests: u64, burst: u64) -> Rule {
    bucket(requests, Duration::from_secs(1), burst)
}

fn spread(key: u64) -> u64 {
    key.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn at(steady: Micros) -> Now {
    Now { steady, wall: steady }
}

fn one(rule: Rule, key: u64) -> Asked {
    Asked { key, rule, cost: 1, treatment: Treatment::Enforce }
}

impl Store {
    fn sized(capacity: usize) -> Self {
        Self::new(capacity, Counter::default())
    }

    fn takes(&self, rule: Rule, key: u64, now: Micros) -> bool {
        self.charge(&one(rule, key), ChargeId::random(), at(now)).0.allowed
    }

    fn remaining(&self, rule: Rule, key: u64, now: Micros) -> u64 {
        self.look(&Asked { cost: 0, ..one(rule, key) }, at(now)).remaining
    }
}

#[test]
fn a_million_keys_stay_within_the_bound() {
    let evicted = Counter::default();
    let store = Store::new(10_000, evicted.clone());
    for key in 0..1_000_000 {
        store.takes(per_second(1, 2), spread(key), SECOND);
    }
    assert!(store.len() <= 10_000 + SHARDS, "{}", store.len());
    assert!(evicted.get() > 900_000);
}

#[test]
fn flood_of_new_keys_does_not_free_a_client_over_its_limit() {
    let store = Store::sized(3_200);
    let limit = per_second(1, 10);
    assert!((0..10).all(|_| store.takes(limit, spread(u64::MAX), SECOND)));
    for key in 0..100_000 {
        store.takes(limit, spread(key), SECOND);
    }
    assert!(!store.takes(limit, spread(u64::MAX), SECOND));
}

#[test]
fn full_buckets_are_forgotten_without_loss() {
    let evicted = Counter::default();
    let store = Store::new(32, evicted.clone());
    (0..1000).for_each(|key| assert!(store.takes(per_second(1, 1), spread(key), SECOND + 2 * SECOND * key)));
    assert_eq!(evicted.get(), 0);
}

#[test]
fn requests_under_way_are_never_forgotten_while_anything_else_can_be() {
    let store = Store::sized(320);
    let slots = Rule::Slots(Slots::new(1, Duration::from_secs(15)).unwrap());
    let (_, held) = store.charge(&one(slots, spread(u64::MAX)), ChargeId::random(), at(0));
    for key in 0..10_000 {
        store.takes(bucket(1, Duration::from_secs(86_400), 1), spread(key), 1);
    }
    assert!(!store.takes(slots, spread(u64::MAX), 2));
    store.refund(&held.unwrap(), at(3));
    assert!(store.takes(slots, spread(u64::MAX), 4));
}

#[test]
fn fewer_counts_are_held_as_soon_as_fewer_may_be() {
    let evicted = Counter::default();
    let store = Store::new(32_000, evicted.clone());
    for key in 0..32_000 {
        store.takes(per_second(1, 2), spread(key), SECOND);
    }
    store.hold_at_most(3_200, at(SECOND));
    assert!(store.len() <= 3_200 && evicted.get() > 0, "{}", store.len());
    store.hold_at_most(6_400, at(SECOND));
    for key in 0..32_000 {
        store.takes(per_second(1, 2), spread(key), SECOND);
    }
    assert!(store.len() > 3_200 && store.len() <= 6_400, "{}", store.len());
}

#[test]
fn changed_limit_takes_over_the_count() {
    let store = Store::sized(100);
    assert!((0..8).all(|_| store.takes(per_second(10, 10), 7, SECOND)));
    assert_eq!(store.remaining(per_second(20, 20), 7, SECOND), 12);
    assert!(store.takes(per_second(20, 20), 7, SECOND));
    assert_eq!(store.remaining(per_second(20, 20), 7, SECOND), 11);
}

#[test]
fn threads_together_never_get_more_than_the_burst() {
    let store = Store::sized(100);
    let allowed = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..1000 {
                    if store.takes(per_second(1, 500), 1, SECOND) {
                        allowed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(allowed.into_inner(), 500);
}

#[test]
fn spent_burst_refills_with_time() {
    let (store, limit) = (Store::sized(100), per_second(2, 1));
    assert!(store.takes(limit, 1, SECOND));
    let (denied, _) = store.charge(&one(limit, 1), ChargeId::random(), at(SECOND));
    assert_eq!((denied.allowed, denied.retry), (false, Some(Duration::from_millis(500))));
    assert!(!store.takes(limit, 1, SECOND + SECOND / 2 - 1));
    assert!(store.takes(limit, 1, SECOND + SECOND / 2));
}

#[test]
fn rate_that_does_not_divide_a_second_is_kept_exactly() {
    let (store, limit) = (Store::sized(100), per_second(3, 2));
    let on_time = (0..3_000).filter(|n| store.takes(limit, 1, (n * SECOND).div_ceil(3))).count();
    assert_eq!(on_time, 3_000, "no request that comes in time is refused by rounding");
    let after = store.look(&Asked { cost: 0, ..one(limit, 1) }, at(1_000 * SECOND + 1));
    assert_eq!((after.remaining, after.reset), (2, Duration::ZERO), "and none of them left anything behind");
}

#[test]
fn refund_gives_back_what_was_charged_and_never_more_than_would_be_there() {
    let (store, limit) = (Store::sized(100), per_second(1, 5));
    let charge = |now| store.charge(&one(limit, 1), ChargeId::random(), at(now)).1.unwrap();
    let first = charge(SECOND);
    let second = charge(SECOND);
    store.refund(&second, at(SECOND));
    assert_eq!(store.remaining(limit, 1, SECOND), 4);
    // The bucket was full in between, so the first has come back already.
    let third = charge(10 * SECOND);
    store.refund(&first, at(10 * SECOND));
    assert_eq!(store.remaining(limit, 1, 10 * SECOND), 4);
    store.refund(&third, at(10 * SECOND));
    assert_eq!(store.remaining(limit, 1, 10 * SECOND), 5);
}

#[test]
fn requests_that_come_in_another_order_than_they_began_gain_nothing() {
    let (store, limit) = (Store::sized(100), per_second(1, 5));
    assert!((0..5).all(|_| store.takes(limit, 1, 100 * SECOND)));
    for _ in 0..10 {
        assert!(!store.takes(limit, 1, 40 * SECOND), "it began a minute before");
    }
    assert_eq!(store.remaining(limit, 1, 100 * SECOND), 0);
    assert_eq!(store.remaining(limit, 1, 101 * SECOND), 1);
}

#[test]
fn count_without_requests_under_way_makes_room_for_others() {
    let store = Store::sized(320);
    let slots = Rule::Slots(Slots::new(1, Duration::from_secs(15)).unwrap()).of_pod();
    for key in 0..320 {
        let (_, held) = store.charge(&one(slots, spread(key)), ChargeId::random(), at(SECOND));
        held.iter().for_each(|held| store.refund(held, at(SECOND)));
    }
    let busy = bucket(1, Duration::from_secs(86_400), 1);
    for key in 1000..1100 {
        assert!(store.takes(busy, spread(key), SECOND));
    }
    let kept = (1000..1100).filter(|key| !store.takes(busy, spread(*key), SECOND)).count();
    assert!(kept >= 90, "{kept} of 100 are remembered");
}

#[test]
fn shares_add_up_to_the_limit() {
    let hour = 3600 * SECOND;
    let store = Store::sized(1000);
    let share = per_second(100, 200).share_of(Part::equal(8));
    let allowed = |now| (0..8).map(|pod| (0..1000).filter(|_| store.takes(share, pod, now)).count()).sum::<usize>();
    // A part of a token is not there yet in each of them.
    let all = allowed(hour) + allowed(hour + SECOND);
    assert!((300 - 8..=300).contains(&all), "{all}");
    let one_in_all = per_second(1, 1).share_of(Part::equal(3));
    assert_eq!((0..10).filter(|_| store.takes(one_in_all, 9, hour)).count(), 1);
}

#[test]
fn count_is_made_from_what_remains() {
    let store = Store::sized(100);
    let kinds = [
        per_second(10, 10),
        Rule::Sliding(Sliding::new(10, Duration::from_secs(1)).unwrap()),
        Rule::Fixed(Fixed::new(10, 0, 60 * SECOND, 120 * SECOND).unwrap()),
    ];
    for (key, kind) in kinds.into_iter().enumerate() {
        store.note(&kind, key as u64, 3, at(7 * SECOND));
        assert_eq!((0..10).filter(|_| store.takes(kind, key as u64, 7 * SECOND)).count(), 3, "{kind:?}");
        store.note(&kind, key as u64, 11, at(7 * SECOND));
        assert_eq!(store.remaining(kind, key as u64, 7 * SECOND), 10, "{kind:?}");
    }
}

#[test]
fn debit_leaves_a_debt_that_has_to_come_in_again() {
    let (store, limit) = (Store::sized(100), per_second(10, 10));
    let look = Asked { cost: 0, ..one(limit, 1) };
    assert!(store.charge(&look, ChargeId::NONE, at(SECOND)).0.allowed);
    store.charge(&Asked { cost: 25, treatment: Treatment::Debit, ..look }, ChargeId::NONE, at(SECOND));
    let (verdict, _) = store.charge(&look, ChargeId::NONE, at(SECOND));
    assert_eq!((verdict.allowed, verdict.retry), (false, Some(Duration::from_millis(1500))));
    assert!(store.charge(&look, ChargeId::NONE, at(SECOND + SECOND * 3 / 2)).0.allowed);
}

#[test]
fn largest_limits_do_not_overflow() {
    let store = Store::sized(100);
    let limit = bucket(1_000_000_000, Duration::from_secs(9_007_199), 1_000_000_000);
    assert!(store.takes(limit, 1, u64::MAX / 2));
    assert_eq!(store.remaining(limit, 1, u64::MAX / 2), 999_999_999);
}

#[test]
#[ignore = "prints figures"]
fn what_counts_cost() {
    fn resident() -> u64 {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        4096 * pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap()
    }
    /// Of this thread, for others may keep the machine busy.
    fn processor_nanos() -> i64 {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        time.tv_sec * 1_000_000_000 + time.tv_nsec
    }
    const KEYS: u64 = 1_000_000;
    let before = resident();
    let store = Store::sized(2 * KEYS as usize);
    (0..KEYS).for_each(|key| assert!(store.takes(per_second(100, 200), spread(key), SECOND)));
    println!("{} counts: {} MiB", store.len(), (resident() - before) >> 20);
    let begun = processor_nanos();
    (0..KEYS).for_each(|key| assert!(store.takes(per_second(100, 200), spread(key), 2 * SECOND)));
    println!("a charge of one of them: {} ns", (processor_nanos() - begun) / KEYS as i64);
    let begun = processor_nanos();
    (0..KEYS).for_each(|now| assert!(store.takes(per_second(1_000_000, 1_000_000), 1, 3 * SECOND + now)));
    println!("a charge of the same: {} ns", (processor_nanos() - begun) / KEYS as i64);
}

proptest! {
    #[test]
    fn decides_as_governor_does(
        requests in prop::sample::select(vec![1_u32, 2, 5, 10, 100, 1000]),
        burst in 1_u32..20,
        steps in proptest::collection::vec(0_u64..400_000, 1..200),
    ) {
        let (store, ours) = (Store::sized(100), per_second(requests.into(), burst.into()));
        let clock = FakeRelativeClock::default();
        let quota = Quota::per_second(requests.try_into().unwrap()).allow_burst(burst.try_into().unwrap());
        let oracle = RateLimiter::direct_with_clock(quota, clock.clone());
        let mut now = 0;
        for step in steps {
            clock.advance(Duration::from_micros(step));
            now += step;
            prop_assert_eq!(store.takes(ours, 1, now), oracle.check().is_ok(), "at {} us", now);
        }
    }

    #[test]
    fn never_more_than_burst_and_rate_in_any_window(
        requests in 1_u64..50, per_ms in 1_u64..5000, burst in 1_u64..50,
        steps in proptest::collection::vec(0_u64..2_000_000, 1..200),
    ) {
        let per = Duration::from_millis(per_ms);
        let (store, limit) = (Store::sized(100), bucket(requests, per, burst));
        let mut now = 0;
        let mut allowed: Vec<Micros> = Vec::new();
        for step in steps {
            now += step;
            if store.takes(limit, 1, now) {
                allowed.push(now);
            }
        }
        for (first, start) in allowed.iter().enumerate() {
            for (last, end) in allowed.iter().enumerate().skip(first) {
                let count = (last - first + 1) as u128;
                let refilled = u128::from(end - start) * u128::from(requests) / per.as_micros();
                prop_assert!(count <= u128::from(burst) + refilled);
            }
        }
    }

    #[test]
    fn next_token_is_there_when_it_was_promised(requests in 1_u64..1000, burst in 1_u64..5, start in 0_u64..SECOND) {
        let (store, limit) = (Store::sized(100), bucket(requests, Duration::from_secs(7), burst));
        let denied = loop {
            let (verdict, _) = store.charge(&one(limit, 1), ChargeId::random(), at(start));
            if !verdict.allowed {
                break verdict;
            }
        };
        let wait = u64::try_from(denied.retry.unwrap().as_micros()).unwrap();
        prop_assert!(!store.takes(limit, 1, start + wait - 1));
        prop_assert!(store.takes(limit, 1, start + wait));
    }
}
