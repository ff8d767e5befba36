//! The data plane of fetchr: what runs beside every opted-in pod, and as `fetchr run` on a laptop.

pub mod drain;
pub mod init;
pub mod metrics;
