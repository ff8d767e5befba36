//! The data path over real sockets: real clients, real origins, and peers that misbehave.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that fails has failed its test")]

mod dns;
mod drain;
mod failures;
mod forward;
mod http2;
mod mixed;
mod pool;
mod strict;
mod support;
mod tunnel;
