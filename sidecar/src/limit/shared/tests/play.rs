//! Up to five clients that do anything, in any order, while the server's clock steps; and what of it they were admitted.

use std::{collections::HashMap, time::Duration};

use fastrand::Rng;

use super::world::{Asked, Owned, Said, World};
use crate::limit::shared::{
    model::{Answer, Exchange},
    rule::{Bucket, ChargeId, Fixed, MOST, Micros, Rule, Sliding, Slots, Treatment},
    script::Charged,
};

const START: Micros = 1_790_000_000_000_000;
const HOUR: Micros = 3_600_000_000;
/// Of the windows of a calendar.
const WINDOW: Micros = 10_000_000;
const TERM: Duration = Duration::from_secs(5);

type Made = fn() -> Bucket;

/// Buckets whose history is checked: nothing is charged to them but what they allow.
pub(super) const CHECKED: [(&str, Made); 3] = [
    ("{t}small", || bucket(3, 1, 5)),
    ("{t}leased", || bucket(7, 3, 6)),
    // As large as can be counted.
    ("{t}large", || bucket(7, 3600, MOST / 3_600_000_000)),
];

/// What of the server's clock is possible.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Weather {
    /// It goes.
    Calm,
    /// It steps, by up to an hour.
    Steps,
}

pub(super) struct Play {
    pub(super) rng: Rng,
    weather: Weather,
    pub(super) now: Micros,
    /// How long it has been going on. A clock that steps forward is taken at its word.
    elapsed: Micros,
    clients: [Client; 5],
    /// By count: when so many tokens were admitted, and by which charge.
    admitted: HashMap<&'static str, Vec<(Micros, u64, ChargeId)>>,
}

#[derive(Default)]
struct Client {
    /// Charges that could be refunded, also those that were.
    charges: Vec<(ChargeId, Vec<Charged>)>,
    slots: Vec<ChargeId>,
    /// Of the leased bucket: id, tokens, those that are unused, and until when.
    lease: Option<(ChargeId, u64, u64, Micros)>,
    /// A lease that was ended, to be ended again.
    ended: Option<(ChargeId, u64, u64)>,
}

pub(super) fn bucket(requests: u64, seconds: u64, burst: u64) -> Bucket {
    Bucket::new(requests, Duration::from_secs(seconds), burst).unwrap()
}

pub(super) fn slots() -> Slots {
    Slots::new(3, TERM).unwrap()
}

impl Play {
    pub(super) fn new(seed: u64, weather: Weather) -> Self {
        let rng = Rng::with_seed(seed);
        Self { rng, weather, now: START, elapsed: 0, clients: Default::default(), admitted: HashMap::new() }
    }

    pub(super) fn world(&self) -> World {
        World::at(self.now)
    }

    /// The clock goes, or steps.
    pub(super) fn step(&mut self) {
        let ahead = match (self.rng.u8(0..40), self.weather) {
            (0, Weather::Steps) => self.rng.u64(0..HOUR),
            (1, Weather::Steps) => {
                self.now -= self.rng.u64(0..HOUR);
                0
            }
            (2..20, _) => 0,
            (20..25, _) => self.rng.u64(0..5_000_000),
            _ => self.rng.u64(0..300_000),
        };
        self.now += ahead;
        self.elapsed += ahead;
    }

    /// What one of the clients does next, and which.
    pub(super) fn next(&mut self) -> (usize, Asked) {
        let client = self.rng.usize(0..self.clients.len());
        self.spend(client);
        let asked = match self.rng.u8(0..20) {
            0..3 => self.refund(client),
            3..5 => self.lease(client),
            5 => self.clients[client].slots.pop().map(|id| Asked::Release { key: "{t}slots", id }),
            6 => {
                let ids = self.clients[client].slots.clone();
                (!ids.is_empty()).then(|| Asked::Renew { key: "{t}slots", rule: slots(), ids })
            }
            _ => None,
        };
        (client, asked.unwrap_or_else(|| self.pass()))
    }

    fn pass(&mut self) -> Asked {
        let mut charges: Vec<Owned> = (0..self.rng.usize(1..4)).map(|_| self.charge()).collect();
        // Each count once.
        charges.sort_by_key(|charge| charge.key);
        charges.dedup_by_key(|charge| charge.key);
        self.rng.shuffle(&mut charges);
        Asked::Pass { id: ChargeId(self.rng.u128(..)), charges }
    }

    fn charge(&mut self) -> Owned {
        let cost = self.rng.u64(0..4);
        let sliding = |requests, seconds| Rule::Sliding(Sliding::new(requests, Duration::from_secs(seconds)).unwrap());
        let of_checked = |at: usize| (CHECKED[at].0, Rule::Bucket(CHECKED[at].1()));
        let (key, rule) = match self.rng.u8(0..12) {
            0 | 1 => of_checked(0),
            2 | 3 => of_checked(1),
            4 => {
                let most = CHECKED[2].1().burst();
                return Owned::enforce(CHECKED[2].0, of_checked(2).1, self.rng.u64(0..most));
            }
            5 => ("{t}sliding", sliding(5, 2)),
            6 => return Owned::enforce("{t}bytes", sliding(10 << 30, 1), self.rng.u64(0..4 << 30)),
            7 => ("{t}fixed", Rule::Fixed(self.calendar())),
            8 => ("{t}slots", Rule::Slots(slots())),
            9 => {
                let treatment = Treatment::Shadow;
                return Owned { key: "{t}shadow", rule: Rule::Bucket(bucket(1, 1, 2)), treatment, cost };
            }
            10 => {
                let treatment = if self.rng.bool() { Treatment::Debit } else { Treatment::Enforce };
                let rule = if self.rng.bool() { Rule::Bucket(bucket(2, 1, 4)) } else { sliding(6, 1) };
                return Owned { key: "{t}debit", rule, treatment, cost: cost * 3 };
            }
            // Its policy is changed all the time.
            _ => ("{t}changed", Rule::Bucket(if self.rng.bool() { bucket(10, 1, 10) } else { bucket(7, 60, 20) })),
        };
        Owned::enforce(key, rule, cost)
    }

    /// As a client computes it from a clock that may be wrong.
    fn calendar(&mut self) -> Fixed {
        let wrong = if self.rng.u8(0..5) == 0 { self.rng.u64(0..3 * WINDOW) } else { 0 };
        let start = (self.now - wrong) / WINDOW * WINDOW;
        Fixed::new(6, start, start + WINDOW, start + 2 * WINDOW).unwrap()
    }

    fn refund(&mut self, client: usize) -> Option<Asked> {
        let charges = &mut self.clients[client].charges;
        let (id, charged) = self.rng.choice(charges.iter()).cloned()?;
        Some(Asked::Refund { id, charged })
    }

    fn lease(&mut self, client: usize) -> Option<Asked> {
        let of = &mut self.clients[client];
        let again = of.ended.filter(|_| self.rng.u8(0..4) == 0);
        let end = again.or_else(|| of.lease.take().map(|(id, tokens, unused, _)| (id, tokens, unused)));
        of.ended = end;
        let begin = if of.lease.is_some() { 0 } else { self.rng.u64(0..4) };
        let term = self.rng.u64(1..3_000_000);
        let exchange = Exchange { end, begin: (ChargeId(self.rng.u128(..)), begin), term };
        Some(Asked::Lease { key: CHECKED[1].0, rule: CHECKED[1].1(), exchange })
    }

    /// A client admits requests by tokens that it has taken ahead.
    fn spend(&mut self, client: usize) {
        if let Some((id, _, unused @ 1.., ends)) = &mut self.clients[client].lease
            && self.elapsed < *ends
        {
            let tokens = self.rng.u64(0..=*unused);
            *unused -= tokens;
            self.admitted.entry(CHECKED[1].0).or_default().push((self.elapsed, tokens, *id));
        }
    }

    /// A client hears what came of it.
    pub(super) fn hear(&mut self, client: usize, asked: &Asked, said: &Said) {
        match (asked, said) {
            (Asked::Pass { id, charges }, Said::Pass(Answer::Decided { denied: None, told })) => {
                let mut charged = Vec::new();
                for (charge, told) in charges.iter().zip(told) {
                    if charge.borrow().is_charged(told.verdict.allowed) {
                        charged.push(charge.charged(told.mark));
                        self.admitted.entry(charge.key).or_default().push((self.elapsed, charge.cost, *id));
                    }
                    if matches!(charge.rule, Rule::Slots(_)) && charge.cost > 0 {
                        self.clients[client].slots.push(*id);
                    }
                }
                self.clients[client].charges.push((*id, charged));
            }
            (Asked::Refund { id, .. }, Said::Done(1)) => {
                self.admitted.values_mut().for_each(|admitted| admitted.retain(|(.., charge)| charge != id));
                self.clients[client].slots.retain(|slot| slot != id);
            }
            (Asked::Lease { exchange, .. }, Said::Leased(leased)) if leased.granted > 0 => {
                let ends = self.elapsed + exchange.term;
                self.clients[client].lease = Some((exchange.begin.0, leased.granted, leased.granted, ends));
            }
            _ => {}
        }
    }

    /// In no time were more admitted than the burst and the rate allow.
    pub(super) fn check(&self) {
        for (key, rule) in CHECKED {
            let (rule, admitted) = (rule(), self.admitted.get(key).map_or(&[][..], Vec::as_slice));
            for (first, (begin, ..)) in admitted.iter().enumerate() {
                let mut units = 0;
                for (end, tokens, _) in &admitted[first..] {
                    units += u128::from(*tokens) * u128::from(rule.unit);
                    let most = u128::from(rule.full()) + u128::from(end - begin) * u128::from(rule.rate);
                    assert!(units <= most, "{key}: {units} of {most} in {} us from {begin}", end - begin);
                }
            }
        }
    }

    /// So many were admitted to a count in each time of this length, at most.
    pub(super) fn most_in(&self, key: &str, start: Micros, length: Micros) -> u64 {
        let mut by_window = HashMap::<u64, u64>::new();
        for (at, tokens, _) in self.admitted.get(key).into_iter().flatten() {
            *by_window.entry((START - start + at) / length).or_default() += tokens;
        }
        by_window.into_values().max().unwrap_or(0)
    }
}
