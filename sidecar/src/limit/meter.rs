//! The numbers of a limit, compiled.

use std::time::Duration;

use crds::policy::rate_limits::{self, Algorithm};

use super::{
    calendar::Calendar,
    shared::{Bucket, Micros, Part, Rule, Sliding, Slots},
};

/// A request of which a pod that shares its slots is not heard for so long is given up for lost, and its slot with it.
pub(super) const SLOT_TERM: Duration = Duration::from_secs(15);

/// How a limit counts, and its numbers.
#[derive(Debug)]
pub(super) enum Meter {
    Bucket {
        bucket: Bucket,
        /// The bucket that requests are charged to if they may be delayed: larger by what comes in while they wait.
        patient: Option<Bucket>,
    },
    Sliding(Sliding),
    Calendar(Calendar),
    Slots(Slots),
}

impl Meter {
    /// Compiles the numbers of a limit, which may delay a request for so long.
    pub(super) fn build(limit: &rate_limits::Limit, delay: Option<Duration>) -> Result<Self, String> {
        let requests = u64::try_from(limit.requests).map_err(|_| "requests has to be greater than zero".to_owned())?;
        let per = limit.per.map_or(Duration::ZERO, |per| per.0);
        let inexact =
            || "requests, per and burst have to be greater than zero, and small enough to be counted exactly".to_owned();
        Ok(match limit.algorithm {
            Algorithm::TokenBucket => {
                let burst = u64::try_from(limit.burst.unwrap_or(limit.requests)).map_err(|_| inexact())?;
                let bucket = Bucket::new(requests, per, burst).ok_or_else(inexact)?;
                let patient = delay.map(|delay| bucket.with_room_for(delay).ok_or_else(inexact)).transpose()?;
                Self::Bucket { bucket, patient }
            }
            Algorithm::SlidingWindow => Self::Sliding(Sliding::new(requests, per).ok_or_else(inexact)?),
            Algorithm::FixedWindow => {
                let window = limit.window.ok_or("a calendar needs a window")?;
                Self::Calendar(Calendar::new(requests, window, limit.time_zone.as_deref())?)
            }
            Algorithm::Concurrency => Self::Slots(Slots::new(requests, SLOT_TERM).ok_or_else(inexact)?),
        })
    }

    /// What is counted by; `wall` tells the time of the calendar.
    pub(super) fn rule(&self, wall: impl FnOnce() -> Micros) -> Rule {
        match self {
            Self::Bucket { bucket, patient } => Rule::Bucket(patient.unwrap_or(*bucket)),
            Self::Sliding(sliding) => Rule::Sliding(*sliding),
            Self::Calendar(calendar) => Rule::Fixed(calendar.rule(wall())),
            Self::Slots(slots) => Rule::Slots(*slots),
        }
    }

    /// The bucket, of a limit that counts by one and delays nothing.
    pub(super) fn bucket(&self) -> Option<&Bucket> {
        match self {
            Self::Bucket { bucket, patient: None } => Some(bucket),
            _ => None,
        }
    }

    /// In which all that it allows at once is there again, by this rule of it. None for slots, of which nobody knows.
    pub(super) fn window(&self, rule: &Rule) -> Option<Duration> {
        if let Self::Bucket { bucket, .. } = self { Some(bucket.window()) } else { rule.window() }
    }

    /// What of a charge's remaining is there at once, and how long a charge has to wait until it is there: zero unless it may be delayed.
    pub(super) fn delay(&self, rule: &Rule, remaining: u64, reset: Duration) -> (u64, Duration) {
        match self {
            Self::Bucket { bucket, patient: Some(patient) } if *rule == Rule::Bucket(*patient) => {
                (remaining.saturating_sub(patient.burst() - bucket.burst()), reset.saturating_sub(bucket.window()))
            }
            _ => (remaining, Duration::ZERO),
        }
    }

    /// What is counted by where nothing is delayed.
    pub(super) fn prompt(&self, wall: Micros) -> Rule {
        if let Self::Bucket { bucket, .. } = self { Rule::Bucket(*bucket) } else { self.rule(|| wall) }
    }

    /// What a pod has of it for itself, by its own clock. There nothing is delayed: what a share has not is denied.
    pub(super) fn share_of(&self, part: Part, wall: Micros) -> Rule {
        self.prompt(wall).share_of(part)
    }

    /// Requests that may come at once, in a window, or be under way.
    pub(super) fn quota(&self) -> u64 {
        match self {
            Self::Bucket { bucket, .. } => bucket.burst(),
            Self::Sliding(sliding) => sliding.most(),
            Self::Calendar(calendar) => calendar.quota(),
            Self::Slots(slots) => slots.most(),
        }
    }
}
