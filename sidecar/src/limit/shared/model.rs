//! What the scripts compute, as functions of a count and a time.
//!
//! `read` tells how a count stands now; `look` what it says to a cost, `charge` and `refund` change it. A count that is only looked at
//! is left as it was stored, unless the time stepped back: that is remembered.

mod bucket;
mod clock;
mod fixed;
mod sliding;
mod slots;

use std::time::Duration;

use smallvec::SmallVec;

#[cfg(test)]
pub(crate) use self::bucket::Leases;
use self::{bucket::Level, fixed::Window, sliding::Windows};
pub(crate) use self::{
    bucket::{Exchange, Exchanged},
    slots::Taken,
};
use super::rule::{Charge, ChargeId, Micros, Rule, Treatment};

/// What is stored of one count.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Count {
    Bucket(Level),
    Sliding(Windows),
    Fixed(Window),
    Slots(Taken),
}

/// What a limit says to a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Verdict {
    /// Whether it has the cost.
    pub(crate) allowed: bool,
    /// Tokens, requests or slots that remain: after the charge, if there was one.
    pub(crate) remaining: u64,
    /// When the cost will be there, if nobody else takes any. Zero if it is; None if it never will be, or nobody knows.
    pub(crate) retry: Option<Duration>,
    /// When everything will be there again, likewise. Zero for slots, of which nobody knows.
    pub(crate) reset: Duration,
}

impl Verdict {
    /// Of what can't be counted.
    pub(crate) const NOTHING: Self = Self { allowed: true, remaining: 0, retry: Some(Duration::ZERO), reset: Duration::ZERO };
}

/// What a refund has to know of a charge; the numbers are the algorithm's own.
pub(in crate::limit) type Mark = [u64; 3];

/// A verdict, and what a refund has to know if the limit was charged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Told {
    pub(crate) verdict: Verdict,
    pub(in crate::limit) mark: Mark,
}

/// What comes of a pass.
#[derive(Clone, Debug, Eq, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "hardly any is the small one, and none is kept")]
pub(crate) enum Answer {
    /// The first limit that denies, if one does; then none was charged. What each says, in the order of the charges.
    Decided { denied: Option<usize>, told: SmallVec<[Told; 4]> },
    /// A window of a calendar, and the one after it, are not of this time. None was charged.
    Foreign,
}

/// A count as it stands now.
struct Seen {
    count: Count,
    /// Whether the time stepped back since it was stored.
    moved: bool,
    /// What lacks until it allows; or else nothing.
    lack: Option<Lack>,
}

/// Why a cost is not there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Lack {
    /// It will be, after so long.
    For(Micros),
    /// It never will be, or nobody knows when.
    Unknown,
}

/// Decides on one charge, and charges it if that allows it. None if a window of a calendar is not of this time.
pub(in crate::limit) fn decide(charge: &Charge<'_>, stored: &mut Option<Count>, id: ChargeId, now: Micros) -> Option<Told> {
    let seen = Seen::of(charge, stored.as_ref(), now)?;
    let passes = !seen.denies(charge);
    Some(seen.settle(charge, passes, stored, id, now))
}

/// Decides on all charges, each with a count of its own, and charges all of them or none.
///
/// Of a request that nothing denies, Debit is charged always, and Shadow if it would have allowed it.
#[cfg(test)]
pub(in crate::limit) fn pass(charges: &[Charge<'_>], counts: &mut [Option<Count>], id: ChargeId, now: Micros) -> Answer {
    let seen = charges.iter().zip(counts.iter()).map(|(charge, stored)| Seen::of(charge, stored.as_ref(), now));
    let Some(seen) = seen.collect::<Option<Vec<_>>>() else { return Answer::Foreign };
    let denied = charges.iter().zip(&seen).position(|(charge, seen)| seen.denies(charge));
    let settle = |((charge, seen), stored): ((&Charge<'_>, Seen), _)| seen.settle(charge, denied.is_none(), stored, id, now);
    Answer::Decided { denied, told: charges.iter().zip(seen).zip(counts).map(settle).collect() }
}

impl Seen {
    /// How a count stands, and what it says to a charge.
    fn of(charge: &Charge<'_>, stored: Option<&Count>, now: Micros) -> Option<Self> {
        let (count, moved) = charge.rule.read(stored, now)?;
        let lack = charge.rule.look(&count, charge.units(), now);
        Some(Self { count, moved, lack })
    }

    fn denies(&self, charge: &Charge<'_>) -> bool {
        charge.treatment == Treatment::Enforce && self.lack.is_some()
    }

    /// Charges the count, if the request passes, and keeps it.
    fn settle(self, charge: &Charge<'_>, passes: bool, stored: &mut Option<Count>, id: ChargeId, now: Micros) -> Told {
        let Self { mut count, moved, lack } = self;
        let charged = passes && charge.is_charged(lack.is_none());
        if charged {
            charge.rule.charge(&mut count, charge.units(), id, now);
        }
        let told = charge.rule.tell(&count, lack, now);
        if charged || moved {
            *stored = Some(count);
        }
        told
    }
}

impl Rule {
    /// How a count stands now, and whether the time stepped back since it was stored. One of another kind is none. None if a window
    /// of a calendar is not of this time.
    fn read(&self, stored: Option<&Count>, now: Micros) -> Option<(Count, bool)> {
        Some(match self {
            Self::Bucket(rule) => {
                let (level, moved) = rule.read(if let Some(Count::Bucket(level)) = stored { Some(level) } else { None }, now);
                (Count::Bucket(level), moved)
            }
            Self::Sliding(rule) => {
                let stored = if let Some(Count::Sliding(windows)) = stored { Some(windows) } else { None };
                let (windows, moved) = rule.read(stored, now);
                (Count::Sliding(windows), moved)
            }
            Self::Fixed(rule) => {
                let (window, moved) =
                    rule.read(if let Some(Count::Fixed(window)) = stored { Some(window) } else { None }, now)?;
                (Count::Fixed(window), moved)
            }
            Self::Slots(rule) => {
                let stored = if let Some(Count::Slots(taken)) = stored { taken.clone() } else { Taken::default() };
                let (taken, moved) = rule.read(&stored, now);
                (Count::Slots(taken), moved)
            }
        })
    }

    fn look(&self, count: &Count, cost: u64, now: Micros) -> Option<Lack> {
        match (self, count) {
            (Self::Bucket(rule), Count::Bucket(level)) => rule.look(level, cost),
            (Self::Sliding(rule), Count::Sliding(windows)) => rule.look(windows, cost),
            (Self::Fixed(rule), Count::Fixed(window)) => rule.look(window, cost, now),
            (Self::Slots(rule), Count::Slots(taken)) => rule.look(taken, cost),
            _ => None,
        }
    }

    fn charge(&self, count: &mut Count, cost: u64, id: ChargeId, now: Micros) {
        match (self, count) {
            (Self::Bucket(rule), Count::Bucket(level)) => rule.charge(level, cost),
            (Self::Sliding(rule), Count::Sliding(windows)) => rule.charge(windows, cost),
            (Self::Fixed(_), Count::Fixed(window)) => window.charge(cost),
            (Self::Slots(rule), Count::Slots(taken)) => rule.charge(taken, id, now),
            _ => {}
        }
    }

    fn tell(&self, count: &Count, lack: Option<Lack>, now: Micros) -> Told {
        let (remaining, reset, mark) = match (self, count) {
            (Self::Bucket(rule), Count::Bucket(level)) => rule.tell(level),
            (Self::Sliding(rule), Count::Sliding(windows)) => rule.tell(windows),
            (Self::Fixed(rule), Count::Fixed(window)) => rule.tell(window, now),
            (Self::Slots(rule), Count::Slots(taken)) => (rule.remaining(taken), 0, [0; 3]),
            _ => (0, 0, [0; 3]),
        };
        Told { verdict: verdict(lack, remaining, reset), mark }
    }

    /// A count of which so much remains, or all.
    pub(in crate::limit) fn with_remaining(&self, remaining: u64, now: Micros) -> Option<Count> {
        let (mut count, _) = self.read(None, now)?;
        let gone = self.quota().saturating_sub(remaining);
        match (self, &mut count) {
            // Who has them is not known here.
            (Self::Slots(_), _) => return None,
            (rule, count) => rule.charge(count, gone, ChargeId::NONE, now),
        }
        Some(count)
    }

    /// Whether nothing is under way that a count has to know of.
    pub(in crate::limit) fn is_idle(count: &Count) -> bool {
        if let Count::Slots(taken) = count { taken.is_empty() } else { true }
    }

    fn quota(&self) -> u64 {
        match self {
            Self::Bucket(rule) => rule.burst,
            Self::Sliding(rule) => rule.most,
            Self::Fixed(rule) => rule.quota,
            Self::Slots(rule) => rule.most,
        }
    }

    /// Gives back what was charged when that was told. That it is done once is the caller's business.
    pub(in crate::limit) fn refund(&self, stored: &mut Option<Count>, cost: u64, mark: Mark, id: ChargeId, now: Micros) {
        match (self, stored) {
            (Self::Bucket(rule), Some(Count::Bucket(level))) => rule.refund(level, cost, mark, now),
            (Self::Sliding(rule), Some(Count::Sliding(windows))) => rule.refund(windows, cost, mark, now),
            (Self::Fixed(_), Some(Count::Fixed(window))) => window.refund(cost, mark),
            (Self::Slots(_), Some(Count::Slots(taken))) => {
                taken.release(id);
            }
            _ => {}
        }
    }
}

fn verdict(lack: Option<Lack>, remaining: u64, reset: Micros) -> Verdict {
    let retry = match lack {
        None => Some(Duration::ZERO),
        Some(Lack::For(time)) => Some(Duration::from_micros(time)),
        Some(Lack::Unknown) => None,
    };
    Verdict { allowed: lack.is_none(), remaining, retry, reset: Duration::from_micros(reset) }
}

/// What does not fit is more than anything that it is compared with.
fn narrow(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
