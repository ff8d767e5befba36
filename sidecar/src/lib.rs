//! The data plane of fetchr: what runs beside every opted-in pod, and as `fetchr run` on a laptop.

pub mod admin;
pub mod ask;
mod attempt;
pub mod config;
mod connection;
pub mod drain;
pub mod edit;
mod error;
mod exchange;
pub mod facts;
mod fields;
mod flow;
pub mod health;
pub mod init;
mod io;
pub mod limit;
mod listen;
pub mod metrics;
mod pipeline;
mod reply;
pub mod route;
pub mod run;
pub mod server;
pub mod source;
mod tunnel;
mod upstream;
mod worker;
