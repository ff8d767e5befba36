//! Peers that misbehave on request: a relay that breaks the network between two ends, and origins and clients that follow a script
//! to the byte.

pub mod relay;
pub mod script;

pub(crate) use relay::reset_when_dropped;
