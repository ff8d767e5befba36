//! The data plane of fetchr: what runs beside every opted-in pod, and as `fetchr run` on a laptop.

pub mod config;
pub mod drain;
<<<<<<< HEAD
pub mod init;
=======
pub mod edit;
pub mod facts;
pub mod limit;
>>>>>>> b1210a5 (Sidecar: facts, match table, explain, rate limits, header edits and the configuration)
pub mod metrics;
pub mod route;
