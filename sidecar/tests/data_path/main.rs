//! The data path over real sockets: real clients, real origins, and peers that misbehave.

mod drain;
mod failures;
mod forward;
mod http2;
mod pool;
mod support;
mod tunnel;
