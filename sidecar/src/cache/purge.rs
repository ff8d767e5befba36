//! Purge with a guarantee: who asks for one learns when no pod will answer from what it took away.
//!
//! # The log
//! Every scope (the pods that share a cache) has a log of purges in Redis. A purge is one entry, whatever the number of
//! objects: they carry a [`Stamp`], the pod's place in the log when their fetch *began*, and are compared at lookup with the
//! entries that name them ([`Index`]). So a purge during a fetch wins over it, and a fill is never joined by who comes after.
//!
//! An entry's place is the later of the server's time in microseconds and one more than the last, within a [`Generation`]:
//! the run of the server and a random number. Generations begin when the log is missing, when another run of Redis finds it (a
//! failover, a restart), or when a member knows more than the log does. A bare counter would give the same place twice after
//! a failover that lost writes.
//!
//! # Members
//! A pod beats each second ([`Member`]): it says up to where it has applied the log, and reads on. The answer is a lease of
//! `maxPurgeLag` from **sending** the beat, if nothing was left to read. Without one the pod is cut off, and
//! `purge.whenCutOff` says what it does: `Serve` goes on and promises nothing, `Revalidate` asks the origin before it
//! answers.
//!
//! # Completion
//! A purge is complete ([`Purge`]) when all members known at its place have applied it, or `maxPurgeLag` and a margin have
//! passed on the purger's *own* clock since its place was known: no lease from before outlives that, and later ones
//! come with the entry. No clock of a server, nor its steps, has a say.
//!
//! The list of members may itself have lost some. So it has a [`Term`](log::Term), which is replaced when the list may be short of a
//! member: with the generation, when the list is missing, and when members were dropped for silence by the server's clock.
//! What the members say completes a purge only if the purger has known the term for longer than any lease; else it waits.
//!
//! # What was lost
//! When a generation ends, entries may be lost with it. A pod whose lease is still good when it learns of the new one
//! lacks no complete purge: it would have had to acknowledge it, or to be without a lease. All others count what they fetched
//! before as of unknown standing: `Revalidate` validates it, `Serve` lets it be stale. Who waits for a purge of a generation that ended
//! appends it again. Nobody has to publish anew what it holds, which differs from the design and needs no agreement
//! about who has done so: a pod without a lease can't know whether somebody else still will.
//!
//! # Promise
//! With `Revalidate`, no answer to a request that came after a hard purge was complete is from before it. It holds over
//! partitions, restarts, lost writes and stepping clocks, as long as a Redis that was replaced takes no more beats. Redis
//! itself can't keep that promise while two primaries are up; [`Rules::replicas`] does, by granting leases only for beats
//! that so many replicas have.

mod alone;
mod completion;
mod follow;
mod index;
mod journal;
mod log;
mod member;
#[cfg(test)]
mod model;
mod name;
mod noted;
mod pod;
mod redis;
mod request;
mod shared;

pub(crate) use self::{
    completion::{Purge, Report},
    index::{Index, Stamp, Verdict},
    log::{Generation, Position, Scope},
    member::Member,
    name::{Name, Naming},
    request::{host, located, named},
    shared::Log as PurgeLog,
};
pub use self::{
    pod::PodPurges,
    request::{Acknowledged, PurgeAnswer, PurgeError, PurgeRequest},
};

use std::time::Duration;

/// Time on a member's own clock that runs evenly and on through a suspension, from a beginning of its choice.
pub(crate) type Uptime = Duration;

/// What all members of a scope agree upon.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Rules {
    /// How long a lease lasts: `maxPurgeLag`.
    pub lag: Duration,
    /// What a pod without a lease does.
    pub cut_off: CutOff,
    /// Replicas that must have a beat or a purge for it to count. All of them, to be safe from two primaries; 0 without any.
    pub replicas: u32,
}

impl Rules {
    /// How long after an event every lease from before it has surely ended: a lease, and what clocks may differ over its length.
    pub(crate) fn outlived(&self) -> Duration {
        self.lag + self.lag / 64 + Duration::from_millis(10)
    }

    /// Time between two beats when there is nothing new.
    pub(crate) fn interval(&self) -> Duration {
        (self.lag / 4).min(Duration::from_secs(1))
    }
}

/// What a pod does with its objects while it can't know what was purged.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum CutOff {
    /// Goes on: an outage of Redis harms nobody, and nothing is promised.
    #[default]
    Serve,
    /// Validates before it answers.
    Revalidate,
}
