//! What several pods have answered, as one. Nothing here asks anybody.

pub(super) mod explain;
pub(super) mod listing;
pub(super) mod purge;
pub(super) mod stats;
pub(super) mod stored;

use crate::reach::pods::Names;
