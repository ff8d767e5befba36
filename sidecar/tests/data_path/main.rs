//! The data path over real sockets: real clients, real origins, and peers that misbehave.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a helper that fails has failed its test")]

mod cache;
#[cfg(feature = "disk-cache")]
mod cache_disk;
mod cache_files;
mod cache_hostile;
mod cache_parts;
mod cache_parts_behind;
mod cache_shared;
mod cache_show;
mod cache_snapshots;
mod cuts;
mod dns;
mod drain;
mod failures;
mod forward;
mod frames;
mod h2spec;
mod http2;
mod http2_limits;
mod http2_strict;
#[cfg(feature = "http3")]
mod http3;
mod interim;
mod limits;
mod limits_faults;
mod limits_kinds;
mod limits_shared;
mod limits_show;
mod memory;
mod mixed;
mod originations;
mod paths;
mod pki;
mod pool;
mod proxy_protocol;
mod purge;
mod purge_shared;
mod question;
mod redis_modes;
#[path = "../../src/redis/server.rs"]
#[allow(dead_code, reason = "the tests of the purge log do more with it")]
mod redis_server;
mod redis_tls;
#[path = "../../../e2e/src/testkit/relay.rs"]
#[allow(dead_code, unreachable_pub, reason = "it is of a crate that others use, too")]
mod relay;
mod services;
mod strict;
mod support;
mod throttle;
mod tls;
mod tls_faults;
mod tls_upstream;
mod tries;
mod tunnel;
mod websocket;
