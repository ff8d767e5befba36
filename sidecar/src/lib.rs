//! The data plane of fetchr: what runs beside every opted-in pod, and as `fetchr run` on a laptop.

pub mod admin;
pub mod ask;
pub mod config;
pub mod drain;
pub mod edit;
pub mod facts;
pub mod health;
pub mod init;
pub mod limit;
pub mod metrics;
pub mod route;
pub mod source;
