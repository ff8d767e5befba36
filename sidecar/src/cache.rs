//! A shared HTTP cache before the upstream, of which policies say what it keeps.

mod answer;
mod behind;
mod changes;
mod clock;
mod disk;
mod fetch;
pub mod file;
mod fill;
mod invalidation;
mod key;
mod locate;
mod metrics;
mod notes;
mod part;
mod persist;
mod pod;
pub(crate) mod purge;
mod purger;
pub(crate) mod record;
mod rules;
mod semantics;
pub mod show;
mod stage;
mod standing;
pub(crate) mod store;
mod tier;
mod transfer;

pub use self::transfer::{ExportRequest, Imported, Skipped, SpoolError};
pub use self::{
    disk::DiskPlace,
    purge::{Acknowledged, PodPurges, PurgeAnswer, PurgeError, PurgeRequest},
    show::PodCache,
};
pub(crate) use self::{
    disk::Settings as DiskSettings,
    fetch::Fetch,
    fill::{Failure, Reader},
    invalidation::{Change, invalidate},
    key::forms,
    persist::{Keeper, Snapshots},
    pod::Cache,
    purge::{PurgeLog, Scope},
    rules::Caching,
    semantics::uri::Target,
    stage::{Looked, look},
    tier::Settings as TierSettings,
};
