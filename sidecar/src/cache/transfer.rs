//! Answers that leave a cache as a [file](super::file), and those that come in from one.
//!
//! A file is written as fast as it is taken, some objects at a time, and read only when all of it has come and is whole.

mod export;
mod import;
mod metrics;
mod spool;

use super::{
    Cache,
    key::Target,
    notes,
    record::Answer,
    semantics::{clock::Now, meta::Flags, vary},
    standing::Standing,
    store::{Object, Vary},
};

pub use self::{
    export::ExportRequest,
    import::{Imported, Skipped},
    spool::SpoolError,
};
pub(super) use self::{
    export::{Export, most_used},
    import::Import,
    metrics::Metrics,
    spool::Spool,
};

/// What an answer takes beside its body, at most: key, fields, tags, notes.
const OVERHEAD: u64 = 5 << 20;

/// An object as other processes get it. None if nothing can be done with it any more, or it has no body, for its rule is in mode Shadow, or
/// a part of it alone.
fn departing(cache: &Cache, object: &Object, now: Now) -> Option<Answer> {
    let Standing::Kept(meta) = Standing::of(object, &cache.purges, now) else { return None };
    if meta.flags.any(Flags::PARTIAL) || Target::of(object.primary()).shadow {
        return None;
    }
    let position = cache.purges.place(notes::stamp(object));
    Some(Answer { object: object.clone(), meta: meta.departing(now), position, tags: notes::names(object).tags })
}

/// The names of the fields that tell it from other variants. An error if they can't be told.
fn vary_of(object: &Object) -> Result<Option<Vary>, ()> {
    if object.variant().is_empty() {
        return Ok(None);
    }
    let names = vary::selecting(&object.headers(0)).map_err(drop)?;
    Vary::new(names.iter().map(http::HeaderName::as_str)).map(Some).ok_or(())
}
