//! Peers that misbehave on request: a relay that breaks the network between two ends, and origins and clients that follow a script
//! to the byte.

pub mod relay;
pub mod script;

use std::time::Duration;

use tokio::net::TcpStream;

/// Makes the end of a connection a reset instead of a FIN.
pub(crate) fn reset_when_dropped(stream: &TcpStream) {
    // A socket that is gone already can't be reset.
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
