//! What limits promise, one by one, by their models.

use std::time::Duration;

use super::{
    play::bucket,
    world::{Asked, Owned, Said, World},
};
use crate::limit::shared::{
    model::{Answer, Exchange, Told},
    rule::{ChargeId, Fixed, Micros, Rule, Sliding, Slots, Treatment},
};

const START: Micros = 1_790_000_000_000_000;
const SECOND: Micros = 1_000_000;
const HOUR: Micros = 3600 * SECOND;

impl World {
    /// A pass by charges, of which all are charged or none: which denies, and what each says.
    fn all(&mut self, charges: &[Owned]) -> (Option<usize>, Vec<Told>) {
        match self.pass(ChargeId::random(), charges) {
            Answer::Decided { denied, told } => (denied, told.into_vec()),
            Answer::Foreign => panic!("a window is not of this time"),
        }
    }

    fn one(&mut self, rule: Rule, cost: u64) -> Told {
        self.all(&[Owned::enforce("k", rule, cost)]).1[0]
    }

    fn allows(&mut self, rule: Rule) -> bool {
        self.one(rule, 1).verdict.allowed
    }

    fn give_back(&mut self, rule: Rule, cost: u64, told: Told) {
        let charged = vec![Owned::enforce("k", rule, cost).charged(told.mark)];
        assert_eq!(self.ask(&Asked::Refund { id: ChargeId::random(), charged }), Said::Done(1));
    }

    fn lease(&mut self, rule: Rule, end: Option<(ChargeId, u64, u64)>, wanted: u64) -> (ChargeId, u64) {
        let Rule::Bucket(rule) = rule else { panic!("only buckets are leased") };
        let id = ChargeId::random();
        let exchange = Exchange { end, begin: (id, wanted), term: 10 * SECOND };
        match self.ask(&Asked::Lease { key: "k", rule, exchange }) {
            Said::Leased(leased) => (id, leased.granted),
            other => panic!("{other:?}"),
        }
    }
}

fn rate(requests: u64, seconds: u64, burst: u64) -> Rule {
    Rule::Bucket(bucket(requests, seconds, burst))
}

/// All kinds, each of which allows four.
fn four_of_each() -> [Rule; 4] {
    [
        rate(1, 60, 4),
        Rule::Sliding(Sliding::new(4, Duration::from_secs(60)).unwrap()),
        hours(4, START / HOUR),
        Rule::Slots(Slots::new(4, Duration::from_secs(60)).unwrap()),
    ]
}

fn hours(quota: u64, hour: u64) -> Rule {
    Rule::Fixed(Fixed::new(quota, hour * HOUR, (hour + 1) * HOUR, (hour + 2) * HOUR).unwrap())
}

#[test]
fn a_clock_that_steps_back_denies_nobody_and_gives_nothing() {
    for rule in four_of_each() {
        let mut world = World::at(START);
        assert!(world.allows(rule) && world.allows(rule));
        world.now -= HOUR;
        let rule = if let Rule::Fixed(_) = rule { hours(4, START / HOUR - 1) } else { rule };
        assert!(world.allows(rule) && world.allows(rule) && !world.allows(rule), "{rule:?}");
    }
}

#[test]
fn time_goes_on_after_a_step_back_also_where_all_is_denied() {
    for rule in [rate(1, 60, 4), Rule::Sliding(Sliding::new(4, Duration::from_secs(60)).unwrap())] {
        let mut world = World::at(START);
        (0..4).for_each(|_| assert!(world.allows(rule)));
        world.now -= HOUR;
        assert!(!world.allows(rule));
        world.now += 119 * SECOND;
        assert!(world.allows(rule), "{rule:?}");
    }
}

#[test]
fn a_clock_that_steps_forward_gives_no_more_than_a_burst() {
    for rule in four_of_each() {
        let mut world = World::at(START);
        (0..4).for_each(|_| assert!(world.allows(rule)));
        world.now += HOUR;
        (0..4).for_each(|_| assert!(world.allows(rule)));
        assert!(!world.allows(rule), "{rule:?}");
    }
}

#[test]
fn slots_of_the_dead_are_free_after_a_term_also_if_the_clock_steps_back() {
    let rule = Rule::Slots(Slots::new(1, Duration::from_secs(60)).unwrap());
    let mut world = World::at(START);
    assert!(world.allows(rule));
    world.now -= HOUR;
    assert!(!world.allows(rule));
    world.now += 60 * SECOND;
    assert!(world.allows(rule));
}

#[test]
fn what_is_denied_costs_nothing() {
    let mut world = World::at(START);
    let wide = Owned::enforce("wide", rate(1, 60, 100), 1);
    let narrow = Owned::enforce("narrow", rate(1, 60, 2), 1);
    let shadow = Owned { treatment: Treatment::Shadow, ..Owned::enforce("shadow", rate(1, 60, 3), 1) };
    let all = [wide, narrow, shadow];
    let remaining = |told: &[Told]| told.iter().map(|told| told.verdict.remaining).collect::<Vec<_>>();
    for left in [1, 0] {
        let (denied, told) = world.all(&all);
        assert_eq!((denied, remaining(&told)), (None, vec![98 + left, left, 1 + left]));
    }
    for _ in 0..10 {
        let (denied, told) = world.all(&all);
        assert_eq!((denied, remaining(&told)), (Some(1), vec![98, 0, 1]));
    }
}

#[test]
fn shadow_says_what_it_would_have_denied_and_denies_nothing() {
    let mut world = World::at(START);
    let shadow = Owned { treatment: Treatment::Shadow, ..Owned::enforce("shadow", rate(1, 60, 2), 1) };
    let allowed: Vec<_> = (0..4)
        .map(|_| {
            let (denied, told) = world.all(&[shadow.clone(), Owned::enforce("wide", rate(1, 60, 9), 1)]);
            assert_eq!(denied, None);
            told[0].verdict.allowed
        })
        .collect();
    assert_eq!(allowed, [true, true, false, false]);
    world.now += 60 * SECOND;
    assert!(world.all(&[shadow]).1[0].verdict.allowed, "what it would have denied was not charged");
}

#[test]
fn a_debit_is_charged_beyond_what_there_is_and_is_paid_back() {
    let rules = [rate(1, 1, 4), Rule::Sliding(Sliding::new(4, Duration::from_secs(1)).unwrap()), hours(4, START / HOUR)];
    for rule in rules {
        let mut world = World::at(START);
        let debit = Owned { treatment: Treatment::Debit, ..Owned::enforce("k", rule, 10) };
        let (denied, told) = world.all(&[debit]);
        assert_eq!((denied, told[0].verdict.remaining), (None, 0));
        let told = world.one(rule, 1);
        assert!(!told.verdict.allowed);
        let Some(retry) = told.verdict.retry.filter(|retry| !retry.is_zero()) else { panic!("{told:?}") };
        world.now += u64::try_from(retry.as_micros()).unwrap();
        let rule = if let Rule::Fixed(_) = rule { hours(4, world.now / HOUR) } else { rule };
        assert!(world.allows(rule), "{rule:?}");
    }
}

#[test]
fn what_is_promised_is_there_then_and_not_before() {
    let mut rng = fastrand::Rng::with_seed(1);
    for case in 0..2000 {
        let rule = match case % 3 {
            0 => rate(rng.u64(1..50), rng.u64(1..90), 6),
            1 => Rule::Sliding(Sliding::new(6, Duration::from_millis(rng.u64(1..9000))).unwrap()),
            _ => hours(6, START / HOUR),
        };
        let mut world = World::at(START + rng.u64(0..SECOND));
        let denied = loop {
            let cost = rng.u64(1..7);
            let told = world.one(rule, cost);
            if !told.verdict.allowed {
                break (cost, told.verdict.retry.unwrap());
            }
            world.now += rng.u64(0..1000);
        };
        let (cost, retry) = (denied.0, u64::try_from(denied.1.as_micros()).unwrap());
        let mut before = world.clone();
        before.now += retry - 1;
        assert!(!before.one(rule, cost).verdict.allowed, "{case}: {rule:?}");
        world.now += retry;
        assert!(world.one(rule, cost).verdict.allowed, "{case}: {rule:?}");
    }
}

#[test]
fn all_is_there_again_when_it_was_promised() {
    for rule in [rate(3, 7, 4), Rule::Sliding(Sliding::new(4, Duration::from_secs(7)).unwrap())] {
        let mut world = World::at(START + 123);
        world.one(rule, 1);
        world.now += 456;
        let told = world.one(rule, 2);
        world.now += u64::try_from(told.verdict.reset.as_micros()).unwrap();
        assert_eq!(world.one(rule, 0).verdict.remaining, 4, "{rule:?}");
    }
}

#[test]
fn a_cost_that_is_more_than_all_is_never_promised() {
    for rule in &four_of_each()[..3] {
        let told = World::at(START).one(*rule, 5);
        assert_eq!((told.verdict.allowed, told.verdict.retry, told.verdict.remaining), (false, None, 4));
    }
}

#[test]
fn a_refund_gives_back_what_was_charged() {
    for rule in four_of_each() {
        let mut world = World::at(START);
        (0..3).for_each(|_| assert!(world.allows(rule)));
        let id = ChargeId::random();
        let Answer::Decided { told, .. } = world.pass(id, &[Owned::enforce("k", rule, 1)]) else { panic!("it is decided") };
        assert!(!world.allows(rule));
        let charged = vec![Owned::enforce("k", rule, 1).charged(told[0].mark)];
        assert_eq!(world.ask(&Asked::Refund { id, charged: charged.clone() }), Said::Done(1));
        assert_eq!(world.ask(&Asked::Refund { id, charged }), Said::Done(0), "once");
        assert!(world.allows(rule) && !world.allows(rule), "{rule:?}");
    }
}

#[test]
fn a_refund_lets_nobody_over_a_limit() {
    // Two tokens, one a second: after half a second of a charge, half of it had been lost by a full bucket.
    let rule = rate(1, 1, 2);
    let mut world = World::at(START);
    let told = world.one(rule, 1);
    world.now += SECOND / 2;
    assert!(world.allows(rule));
    world.give_back(rule, 1, told);
    assert!(world.allows(rule));
    world.now += SECOND / 2;
    assert!(!world.allows(rule), "three in half a second are more than two and a half");
}

#[test]
fn refunds_together_let_nobody_over_a_limit() {
    let rule = rate(1, 1, 3);
    let mut world = World::at(START);
    let (one, other) = (world.one(rule, 1), world.one(rule, 1));
    world.now += SECOND / 2;
    world.give_back(rule, 1, one);
    world.now += SECOND / 2;
    assert!(world.allows(rule));
    world.give_back(rule, 1, other);
    assert_eq!(world.one(rule, 0).verdict.remaining, 2, "one was admitted just now");
}

#[test]
fn a_refund_in_a_later_window_goes_to_its_own() {
    let sliding = Rule::Sliding(Sliding::new(4, Duration::from_secs(60)).unwrap());
    for (rule, later) in [(sliding, 180 * SECOND), (hours(4, START / HOUR), HOUR)] {
        let mut world = World::at(START);
        let told = world.one(rule, 2);
        world.now += later;
        world.one(rule, 2);
        world.give_back(rule, 2, told);
        assert_eq!(world.one(rule, 0).verdict.remaining, 2, "{rule:?}");
    }
}

#[test]
fn leases_are_reserved_out_of_the_burst() {
    let rule = rate(1, 1, 6);
    let mut world = World::at(START);
    let (id, granted) = world.lease(rule, None, 4);
    assert_eq!(granted, 4);
    world.now += 5 * SECOND;
    assert_eq!(world.one(rule, 0).verdict.remaining, 2, "what is leased may be spent now, so the bucket is not full again");
    assert_eq!(world.lease(rule, None, 9).1, 2, "there are no more");
    let (next, granted) = world.lease(rule, Some((id, 4, 3)), 2);
    assert_eq!(granted, 2, "three came back");
    assert_eq!(world.one(rule, 0).verdict.remaining, 1);
    assert_eq!(world.lease(rule, Some((id, 4, 3)), 9).1, 1, "once");
    assert_eq!(world.one(rule, 0).verdict.remaining, 0);
    world.lease(rule, Some((next, 2, 0)), 0);
    assert_eq!(world.one(rule, 0).verdict.remaining, 0, "those were spent");
}

#[test]
fn leases_of_the_dead_run_out() {
    let rule = rate(1, 1, 6);
    let mut world = World::at(START);
    world.lease(rule, None, 6);
    world.now += 10 * SECOND - 1;
    assert_eq!(world.one(rule, 0).verdict.remaining, 0);
    world.now += SECOND;
    assert_eq!(world.one(rule, 0).verdict.remaining, 0, "it fills from then on");
    world.now += 3 * SECOND;
    assert_eq!(world.one(rule, 0).verdict.remaining, 3);
}

#[test]
fn a_changed_limit_keeps_what_was_spent() {
    let mut world = World::at(START);
    assert!(world.one(rate(10, 1, 10), 6).verdict.allowed);
    assert_eq!(world.one(rate(100, 60, 20), 0).verdict.remaining, 14);
    assert!(world.one(rate(10, 1, 10), 0).verdict.remaining == 4);
    assert_eq!(world.one(rate(1, 1, 5), 0).verdict.remaining, 0);
}
