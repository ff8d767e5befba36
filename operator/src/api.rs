//! The aggregated API `api.fetchr.sh`: commands of administrators, routed to the streams of sidecars.

mod sidecars;

pub use sidecars::{CommandError, Sidecar, Sidecars};
