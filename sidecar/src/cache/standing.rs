//! How a stored answer stands: what is noted of it, and what purges have left of it.

use super::{
    PodPurges, key, notes,
    purge::Verdict,
    semantics::{
        clock::Now,
        meta::{Flags, Meta},
    },
    store::Object,
};

/// What can be done with a stored answer before a request is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) enum Standing {
    /// It is judged by these notes, in which purges have had their say.
    Kept(Meta),
    /// A purge took it; only its memory is there still.
    Purged,
    /// It is too old for any use, or its notes are none of ours.
    Dead,
}

impl Standing {
    /// Of an object that was found. Purges must be known up to `now`.
    pub(super) fn of(object: &Object, purges: &PodPurges, now: Now) -> Self {
        let Some(mut meta) = notes::read(object).filter(|meta| !meta.is_dead(now)) else { return Self::Dead };
        let of = || (key::url(object.primary()), notes::names(object).names);
        match purges.verdict(notes::stamp(object), of) {
            Verdict::Fresh => {}
            // As if its lifetime had ended now.
            Verdict::Soft => meta.lifetime = meta.lifetime.min(meta.age(now)),
            Verdict::Unknown => meta.flags = meta.flags.with(Flags::INVALID, true),
            Verdict::Hard => return Self::Purged,
        }
        Self::Kept(meta)
    }
}
