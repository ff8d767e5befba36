//! QUIC in a build without it.

use std::{io, net::SocketAddr};

use crds::policy::Direction;

use super::{Acceptor, Mode};

/// What nobody can open.
pub(super) enum Quic {}

impl Quic {
    /// Whether this build speaks it.
    pub(super) const SPOKEN: bool = false;

    /// Fails.
    pub(super) fn open(_: &Acceptor, _: SocketAddr, _: Direction, _: Mode, _: &rustls::ServerConfig) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn replace(&self, _: &rustls::ServerConfig) {
        match *self {}
    }
}
