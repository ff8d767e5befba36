//! The real program: what it prints, and its exit codes.
#![allow(clippy::panic, clippy::unwrap_used)] // in tests they say what failed; clippy.toml reaches only #[test] functions

mod cache;
mod cache_files;
mod cache_upgrade;
mod cluster;
mod documented;
mod explain;
mod help;
#[cfg(feature = "http3")]
mod http3;
mod inject;
mod instructions;
mod limits;
mod pods;
mod run;
mod supervised;
mod support;
mod throttle;
mod validate;
