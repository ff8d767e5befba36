//! Token buckets, and tokens of them that were taken ahead.

#[cfg(test)]
use std::collections::BTreeSet;

#[cfg(test)]
use super::verdict;
use super::{Lack, Mark, Verdict, clock::Clock, narrow};
use crate::limit::shared::rule::{Bucket, ChargeId, MOST, Micros};

/// What is stored of a bucket. Units are such that a token and a microsecond are whole.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Level {
    /// What a token counted when this was written.
    unit: u64,
    /// What is missing. More than all of it after a debit.
    used: u64,
    clock: Clock,
    /// What leases reserve: `used` does not drain below it, until the last of them ends.
    held: u64,
    ends: Micros,
    /// All that was ever given back by refunds.
    refunded: u64,
}

/// The leases of a bucket: when each runs out, whose it is, and its tokens.
#[cfg(test)]
pub(crate) type Leases = BTreeSet<(Micros, ChargeId, u64)>;

/// What is asked of the leases of a bucket at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exchange {
    /// The lease that ends, its tokens, and how many of them are unused.
    pub(crate) end: Option<(ChargeId, u64, u64)>,
    /// The lease that begins, and the tokens that are wanted.
    pub(crate) begin: (ChargeId, u64),
    pub(crate) term: Micros,
}

/// What comes of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Exchanged {
    /// Whether there was a lease to end.
    pub(crate) ended: bool,
    /// Tokens of the new lease.
    pub(crate) granted: u64,
    /// What the bucket says to a request for one token more.
    pub(crate) verdict: Verdict,
}

impl Level {
    /// What the time and refunds can take away.
    fn free(&self) -> u64 {
        self.used - self.held
    }

    fn drain(&mut self, time: Micros, rate: u64) {
        if time > self.clock.at {
            let gain = u128::from(time - self.clock.at) * u128::from(rate);
            self.used -= narrow(gain).min(self.free());
            self.clock.at = time;
        }
    }

    #[cfg(test)]
    fn release(&mut self, tokens: u64) {
        self.held = self.held.saturating_sub(tokens.saturating_mul(self.unit));
    }
}

impl Bucket {
    /// As it was stored, in units of this rule.
    fn parse(&self, stored: Option<&Level>, now: Micros) -> Level {
        let empty = Level { unit: self.unit, used: 0, clock: Clock::new(now), held: 0, ends: 0, refunded: 0 };
        let Some(stored) = stored else { return empty };
        if stored.unit == self.unit {
            return *stored;
        }
        let converted = |units, most| converted(units, stored.unit, self.unit, most);
        let (used, held) = (converted(stored.used, self.full()), converted(stored.held, self.full()));
        Level { unit: self.unit, used, held, refunded: converted(stored.refunded, MOST), ..*stored }
    }

    /// As it is now, and whether the time stepped back.
    pub(super) fn read(&self, stored: Option<&Level>, now: Micros) -> (Level, bool) {
        let mut level = self.parse(stored, now);
        let (time, moved) = level.clock.time(now);
        if level.held > 0 && level.ends <= time {
            level.drain(level.ends, self.rate);
            level.held = 0;
        }
        level.drain(time, self.rate);
        (level, moved)
    }

    pub(super) fn look(&self, level: &Level, cost: u64) -> Option<Lack> {
        if cost > self.burst {
            return Some(Lack::Unknown);
        }
        let lacking = level.used.saturating_sub(self.full() - cost * self.unit);
        let reserved = if level.held > 0 && lacking > level.free() { level.ends - level.clock.at } else { 0 };
        (lacking > 0).then(|| Lack::For(lacking.div_ceil(self.rate).max(reserved)))
    }

    pub(super) fn charge(&self, level: &mut Level, cost: u64) {
        let units = u128::from(cost) * u128::from(self.unit);
        level.used = narrow(u128::from(level.used) + units).min(MOST);
    }

    pub(super) fn tell(&self, level: &Level) -> (u64, Micros, Mark) {
        let remaining = self.full().saturating_sub(level.used) / self.unit;
        let reserved = if level.held > 0 { level.ends.saturating_sub(level.clock.at) } else { 0 };
        let mark = [level.clock.at, level.free(), level.refunded];
        (remaining, level.used.div_ceil(self.rate).max(reserved), mark)
    }

    /// Gives back what would be there by now if it had not been charged, which is less than the cost if the bucket would have been full
    /// meanwhile. It is at least what was drainable after the charge, and neither time nor other refunds have taken away since.
    pub(super) fn refund(&self, stored: &mut Level, cost: u64, [at, free, refunded]: Mark, now: Micros) {
        let (mut level, _) = self.read(Some(stored), now);
        let (Some(since), Some(others)) = (level.clock.at.checked_sub(at), level.refunded.checked_sub(refunded)) else { return };
        let drained = u128::from(others) + u128::from(since) * u128::from(self.rate);
        let units = u128::from(cost) * u128::from(self.unit);
        let back = narrow(u128::from(free).saturating_sub(drained).min(units)).min(level.free());
        if back > 0 {
            level.used -= back;
            level.refunded += back;
            if level.refunded > MOST {
                level.refunded = 0;
            }
            *stored = level;
        }
    }

    /// Ends a lease and begins another, as the script does: pods keep no leases of their own counts.
    #[cfg(test)]
    pub(crate) fn exchange(&self, stored: &mut Option<Level>, leases: &mut Leases, asked: Exchange, now: Micros) -> Exchanged {
        let mut level = self.parse(stored.as_ref(), now);
        let (time, _) = level.clock.time(now);
        while let Some((_, _, tokens)) = leases.first().copied().filter(|(ends, ..)| *ends <= time) {
            let Some((ends, ..)) = leases.pop_first() else { break };
            level.drain(ends, self.rate);
            level.release(tokens);
        }
        level.drain(time, self.rate);
        let mut ended = false;
        if let Some((id, tokens, unused)) = asked.end {
            let before = leases.len();
            leases.retain(|(_, lease, of)| (*lease, *of) != (id, tokens));
            ended = leases.len() < before;
            if ended {
                level.release(tokens);
                level.used = level.used.saturating_sub(unused.min(tokens).saturating_mul(self.unit)).max(level.held);
            }
        }
        let (id, wanted) = asked.begin;
        let granted = wanted.min(self.full().saturating_sub(level.used) / self.unit);
        if granted > 0 {
            level.used += granted * self.unit;
            level.held += granted * self.unit;
            leases.insert((time + asked.term, id, granted));
        }
        match leases.last() {
            Some((ends, ..)) => level.ends = *ends,
            None => (level.held, level.ends) = (0, 0),
        }
        *stored = Some(level);
        let (remaining, reset, _) = self.tell(&level);
        Exchanged { ended, granted, verdict: verdict(self.look(&level, 1), remaining, reset) }
    }
}

/// In units of another size, computed as a script does: a part of a token may be rounded.
fn converted(units: u64, from: u64, to: u64, most: u64) -> u64 {
    let (whole, rest) = ((units / from) as f64, (units % from) as f64);
    let (from, to) = (from as f64, to as f64);
    (whole * to + (rest / from * to).floor()).min(most as f64) as u64
}
