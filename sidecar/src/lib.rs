//! The data plane of fetchr: what runs beside every opted-in pod, and as `fetchr run` on a laptop.

pub mod admin;
pub mod ask;
mod attempt;
mod cache;
pub mod config;
mod connection;
mod contain;
pub mod drain;
pub mod edit;
mod error;
mod exchange;
pub mod facts;
mod fields;
mod flow;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod h1;
mod h2;
#[cfg(feature = "http3")]
pub mod h3;
/// Pure, and so tested in every build.
#[cfg(all(test, not(feature = "http3")))]
#[path = "h3/frames.rs"]
mod h3_frames;
pub mod health;
pub mod init;
mod io;
pub mod limit;
mod listen;
pub mod metrics;
mod own;
mod pace;
mod pipeline;
pub mod pressure;
mod proxy_protocol;
mod redis;
mod reply;
pub mod route;
pub mod run;
pub mod server;
pub mod services;
mod shadow;
pub mod sockets;
pub mod source;
pub mod supervisor;
pub mod throttle;
mod timer;
mod tls;
mod tries;
mod tunnel;
mod upstream;
mod watch;
mod websocket;
mod worker;

pub use cache::{
    Acknowledged, DiskPlace, ExportRequest, Imported, PodCache, PodPurges, PurgeAnswer, PurgeError, PurgeRequest, Skipped,
    SpoolError, file, show,
};
