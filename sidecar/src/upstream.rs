//! Connections to upstreams: where they go, how they are opened, kept, shared and closed.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

pub(crate) mod connect;
pub(crate) mod h1;
pub(crate) mod h2;
pub(crate) mod pool;
pub(crate) mod resolve;

/// Where a connection goes.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Endpoint {
    /// An address.
    Address(SocketAddr),
    /// A host by name, which is resolved for each new connection.
    Name(Arc<str>, u16),
}

impl Endpoint {
    /// Reads `host:port`, `[v6]:port` or a host alone, which gets the default port. Nothing if there is a colon without a port.
    pub(crate) fn parse(authority: &http::uri::Authority, default_port: u16) -> Option<Self> {
        let host = authority.host();
        let port = if authority.as_str().ends_with(host) { default_port } else { authority.port_u16()? };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        Some(match bare.parse() {
            Ok(ip) => Self::Address(SocketAddr::new(ip, port)),
            Err(_) => Self::Name(host.to_ascii_lowercase().into(), port),
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 in clear, by prior knowledge.
    Http2,
}

/// An upstream: connections of one key are alike.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Key {
    /// Where.
    pub(crate) endpoint: Endpoint,
    /// How.
    pub(crate) protocol: Protocol,
}

/// The limits that hold for one request's connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Until the connection stands, waiting for a free place included.
    pub(crate) connect: Duration,
    /// How long the connection is kept idle: the same for all requests to a host.
    pub(crate) idle: Duration,
    /// Connections to the host, over all workers.
    pub(crate) connections: usize,
}
