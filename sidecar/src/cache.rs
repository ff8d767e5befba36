//! A shared HTTP cache before the upstream, of which policies say what it keeps.

mod answer;
mod clock;
mod fetch;
#[allow(dead_code, unused_imports, reason = "not all of what it counts is shown yet")]
mod fill;
mod invalidation;
mod key;
mod metrics;
mod notes;
mod pod;
#[allow(dead_code, unused_imports, reason = "there is no tier that other processes read yet")]
pub(crate) mod purge;
mod rules;
#[allow(dead_code, unused_imports, reason = "parts of answers are not kept yet")]
mod semantics;
mod stage;
#[allow(dead_code, unused_imports, reason = "there is no tier beyond memory yet, and nobody lists it")]
pub(crate) mod store;

pub use self::purge::{Acknowledged, PodPurges, PurgeAnswer, PurgeError, PurgeRequest};
pub(crate) use self::{
    fetch::Fetch,
    fill::{Failure, Reader},
    invalidation::invalidate,
    pod::Cache,
    purge::PurgeLog,
    rules::Caching,
    semantics::uri::Target,
    stage::{Looked, look},
};
